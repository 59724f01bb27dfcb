"""Kernel body and schedule to loops: one function per form of `passes.forms`."""

from __future__ import annotations

from typing import assert_never

from graphc.errors import LoweringError
from graphc.ir.graph import Graph
from graphc.loops import tiling
from graphc.loops.columns import lower_columns
from graphc.loops.contract import lower_contract
from graphc.loops.ir import Function
from graphc.loops.maps import lower_map
from graphc.loops.narrow import lower_narrow
from graphc.loops.opaque import lower_opaque
from graphc.loops.rows import lower_rows
from graphc.loops.schedule import (
    ColumnsSchedule,
    ContractSchedule,
    MapSchedule,
    NarrowSchedule,
    RowsSchedule,
    Schedule,
    choose,
)
from graphc.loops.target import Target
from graphc.passes.forms import Contract, Map, Opaque, Rows, classify


def lower(body: Graph, name: str, target: Target, schedule: Schedule | None = None) -> Function:
    """The loops of a kernel body. Parameters are the body's inputs and outputs, flat, in order.

    A body that is one `check_index` has no outputs: its result is a view of the operand.
    Raises LoweringError when the body has no form, or the schedule is for another.
    """
    form = classify(body)
    match form:
        case None:
            raise LoweringError(f"kernel {name} has no form: it cannot be lowered as one kernel")
        case Contract():
            schedule = schedule or tiling.choose(body, form, target)
        case Map() | Rows() | Opaque():
            schedule = schedule or choose(body, form, target)
        case _:
            assert_never(form)
    match form, schedule:
        case Map(), MapSchedule():
            return lower_map(body, form, name, schedule)
        case Opaque(), MapSchedule():
            return lower_opaque(body, form, name, schedule)
        case Rows(), RowsSchedule():
            return lower_rows(body, form, name, schedule)
        case Rows(), ColumnsSchedule():
            return lower_columns(body, form, name, schedule)
        case Rows(), NarrowSchedule():
            return lower_narrow(body, form, name, schedule)
        case Contract(), ContractSchedule():
            return lower_contract(body, form, name, schedule)
    raise LoweringError(f"kernel {name} is a {type(form).__name__.lower()} kernel; its schedule is {schedule}")
