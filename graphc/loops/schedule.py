"""The numbers of a kernel's loops: chosen from form and target, printable as one line, overridable.

    map lanes=8 unroll=4 blocks=16
    rows lanes=8 unroll=4 blocks=32 buffer=16384
    columns lanes=8 unroll=4 blocks=8
    narrow lanes=16 blocks=8
    contract axis=1 lanes=16 vectors=3 rows=8 unroll=1 blocks=8 across=0 strip=4 parts=1 steps=1 pack=1 ahead=0 early=1
        fma=1

Lanes and unroll fix the order in which a row is summed, blocks the order in which rows are: with the same schedule
results are the same bits, whatever the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from graphc.errors import ArgumentError
from graphc.ir.graph import Graph, Node
from graphc.ir.op import Elementwise
from graphc.ir.types import DType
from graphc.loops.target import Target
from graphc.passes.forms import Map, Opaque, Rows, is_narrow, is_single_phase, lies_across

BLOCK_COST, MOST_BLOCKS = 64 * 1024, 32  # scalar operations of a block, and how many blocks there are
LEAST_COST, FEW_BLOCKS = 16 * 1024, 4  # the same where that makes few: some microseconds are worth handing over
WIDE_ROW, WIDE_SPACE = 256, 128 * 1024  # elements: from here on columns are summed a row at a time
SUMMED_APART = 16  # blocks of columns: their partial results are added up element by element
STREAMS = 32  # rows that are as well read side by side
_SIMPLE = 1
_FUNCTION = 12
COSTS = dict.fromkeys(("div", "sqrt", "rsqrt", "floor_div", "mod"), 4) | dict.fromkeys(
    ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "pow"), _FUNCTION
)


@dataclass(frozen=True, slots=True)
class MapSchedule:
    """A pointwise kernel: vectors in flight, and blocks that threads may share."""

    lanes: int
    unroll: int
    blocks: int

    def __str__(self) -> str:
        return _text("map", self)


@dataclass(frozen=True, slots=True)
class RowsSchedule:
    """A sweep along rows: accumulators per row, blocks of rows, and the longest row that is kept (elements)."""

    lanes: int
    unroll: int
    blocks: int
    buffer: int

    def __str__(self) -> str:
        return _text("rows", self)


@dataclass(frozen=True, slots=True)
class ColumnsSchedule:
    """A sweep down columns: vectors of columns side by side, and blocks of rows that are summed apart."""

    lanes: int
    unroll: int
    blocks: int

    def __str__(self) -> str:
        return _text("columns", self)


@dataclass(frozen=True, slots=True)
class NarrowSchedule:
    """Short rows, one in each lane, and blocks of tiles of them."""

    lanes: int
    blocks: int

    def __str__(self) -> str:
        return _text("narrow", self)


PACK_NEVER, PACK_FIRST, PACK_EACH = range(3)


@dataclass(frozen=True, slots=True)
class ContractSchedule:
    """A sum of products.

    axis     the axis that vectors run along: of the result, or beyond it a summed one (dot products); -1: none
    lanes    elements of a vector
    vectors  vectors side by side in a register tile; for dot products, columns
    rows     rows of a tile
    unroll   accumulators of one dot product
    blocks   about how many blocks of tiles threads may share
    across   1: blocks are cut out of the columns first; 0: out of the batch and the rows
    strip    tiles of rows that pass over one strip of columns before the next strip, of several points of the batch
             where that is more than one has
    parts    partial sums over the depth that threads may share
    steps    how often such a sum is put down and taken up again
    pack     1: copy the panel first, so that its vectors stand in a row; 2: strip by strip in each block; 0: do not
    ahead    rows further down whose elements of the left operand a tile asks for, term by term; 0: it does not
    early    1: what the epilogue reads is asked for before the products, unless several parts of them come first
    fma      1: multiply and add with one rounding
    """

    axis: int
    lanes: int
    vectors: int
    rows: int
    unroll: int
    blocks: int
    across: int
    strip: int
    parts: int
    steps: int
    pack: int
    ahead: int
    early: int
    fma: int

    def __str__(self) -> str:
        return _text("contract", self)


Schedule = MapSchedule | RowsSchedule | ColumnsSchedule | NarrowSchedule | ContractSchedule
_KINDS: dict[str, type[Schedule]] = {
    "map": MapSchedule,
    "rows": RowsSchedule,
    "columns": ColumnsSchedule,
    "narrow": NarrowSchedule,
    "contract": ContractSchedule,
}


def parse(text: str) -> Schedule:
    """Inverse of `str`; raises ArgumentError on anything else."""
    kind, *pairs = text.split()
    numbers = dict(pair.split("=", 1) for pair in pairs)
    if kind not in _KINDS or set(numbers) != {f.name for f in fields(_KINDS[kind])}:
        raise ArgumentError(f"a schedule looks like 'map lanes=8 unroll=4 blocks=16', not {text!r}")
    return _KINDS[kind](**{name: int(number) for name, number in numbers.items()})


def choose(body: Graph, form: Map | Rows | Opaque, target: Target) -> Schedule:
    """The schedule for a body of this form."""
    lanes = lanes_of(body, target)
    nodes = sum(isinstance(node.op.kind, Elementwise) for node in body.nodes)
    if not isinstance(form, Rows):
        size = math.prod(form.space) if isinstance(form, Map) else 0
        return MapSchedule(lanes, 4 if nodes <= 8 else 2 if nodes <= 16 else 1, share(size * cost(body)))
    work = share(math.prod(form.space) * cost(body))
    if lies_across(form) and not form.accumulations and not _is_wide(body, form):
        return ColumnsSchedule(lanes, 4, min(work, SUMMED_APART))
    if is_narrow(form) and _fits_lanes(form, lanes):
        return NarrowSchedule(lanes, work)
    return RowsSchedule(lanes, in_flight(cost(body)), work, 16 * 1024)


def in_flight(cost: int) -> int:
    """Vectors side by side: as many as stay in registers. A function like tanh fills many, and has work enough."""
    return 4 if cost <= 24 else 2 if cost <= 36 else 1


def _fits_lanes(form: Rows, lanes: int) -> bool:
    """Whether rows are so short that turning them costs less than work on vectors that are not full, and enough to fill
    a quarter of the lanes."""
    rows, length = (math.prod(form.space[axis] for axis in axes) for axes in (form.kept, form.axes))
    return length <= 2 * lanes and 4 * rows >= lanes


def _is_wide(body: Graph, form: Rows) -> bool:
    """Whether walking down columns would jump from page to page: long rows of memory, many of them."""
    rows, size = math.prod(form.space[axis] for axis in form.axes), math.prod(form.space)
    is_large = rows > STREAMS and form.space[-1] >= WIDE_ROW and size >= WIDE_SPACE
    return is_large and is_single_phase(body, form)


def lanes_of(body: Graph, target: Target) -> int:
    """Lanes of the widest float that the body computes with; other types take as many registers as they need."""
    values = [*body.inputs, *(value for node in body.nodes for value in node.outputs)]
    return target.lanes(8 if any(value.dtype is DType.F64 for value in values) else 4)


def cost(body: Graph) -> int:
    """Scalar operations for one point, roughly; loads and stores count."""
    work = sum(COSTS.get(node.op.name, _SIMPLE) for node in body.nodes if isinstance(node.op.kind, Elementwise))
    return work + len(body.inputs) + len(body.outputs)


def is_function(node: Node) -> bool:
    """Whether a node is a chain of many operations."""
    return COSTS.get(node.op.name, _SIMPLE) >= _FUNCTION


def share(work: int) -> int:
    """How many blocks for so many operations."""
    return max(1, min(FEW_BLOCKS, work // LEAST_COST), min(MOST_BLOCKS, work // BLOCK_COST))


def _text(kind: str, schedule: Schedule) -> str:
    return " ".join([kind, *(f"{f.name}={getattr(schedule, f.name)}" for f in fields(schedule))])
