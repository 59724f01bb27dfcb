"""Two results of one graph: how far apart they may be, and which kernel is the first that is wrong.

Tolerances are in units of the last place of the largest element of an array: a sum of many terms is as exact as its
terms are large, not as its result is. They grow with the square root of the number of terms that were added.

Where that is exceeded, terms may have cancelled: the gradient of a bias before a batch norm is nothing but rounding.
Then each element is held against what rounding can do to it (`graphc.rounding`), on the way from the feeds for the
results of a graph, from exact operands for one kernel. That takes a few runs of the reference, so it comes second.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod, sqrt
from typing import Any

import numpy as np

from graphc import reference, rounding
from graphc.codegen.step import scratch_bytes
from graphc.errors import MismatchError
from graphc.ir.graph import Graph, Node
from graphc.ir.op import Contraction, Opaque, Reduction, Scan
from graphc.ir.types import DType, as_dtype
from graphc.loops.ir import Function
from graphc.runtime.executable import Executable
from graphc.runtime.memory import aligned_bytes
from graphc.runtime.team import members

Array = np.ndarray[Any, Any]

ULPS: Mapping[DType, float] = {  # for one kernel without sums
    DType.F32: 16.0,
    DType.F64: 64.0,  # the reference computes in float64 itself and is no more exact
    DType.I32: 0.0,
    DType.I64: 0.0,
    DType.BOOL: 0.0,
}


def distance(found: Array, wanted: Array, scale: float = 0.0) -> float:
    """Largest difference, in ulps of the largest finite element of `wanted`; infinite where NaN or infinity differ.

    `scale`: how large the terms of sums are, where those may cancel to something smaller.
    """
    if found.size == 0:
        return 0.0
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.count_nonzero(found != wanted))
    finite = np.isfinite(wanted)
    if not np.array_equal(found[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    largest = max(float(np.abs(wanted[finite]).max()), scale, float(np.finfo(wanted.dtype).tiny))
    unit = np.spacing(wanted.dtype.type(largest))
    return float(np.abs(found[finite].astype(np.float64) - wanted[finite]).max() / unit)


def tolerance(graph: Graph, dtype: DType) -> float:
    """Ulps that results of this dtype may be apart after all the nodes of `graph`."""
    return ULPS[dtype] * max(1.0, sqrt(_terms(graph)))


def require_close(
    found: Array,
    wanted: Array,
    graph: Graph,
    what: str,
    scale: float = 0.0,
    errors: Callable[[], Array] | None = None,
) -> None:
    """Raises MismatchError, which says by how many ulps, unless the arrays agree within the tolerance for `graph`.

    `errors`: how far each element may be off where they do not, asked for only then.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise MismatchError(f"{what}: {found.dtype}{list(found.shape)} is not {wanted.dtype}{list(wanted.shape)}")
    ulps, allowed = distance(found, wanted, scale), tolerance(graph, as_dtype(wanted.dtype))
    if not ulps <= allowed and not (errors and _within(found, wanted, errors())):
        raise MismatchError(f"{what}: native and interpreted differ by {ulps:.3g} ulp, {allowed:.3g} are allowed")


def require_all_close(
    names: Sequence[str], found: Sequence[Array], wanted: Sequence[Array], graph: Graph, feeds: Sequence[Array]
) -> None:
    """`require_close` for all results of `graph`, outputs then next states, on feeds for inputs then state."""
    errors: list[Array] = []

    def error(number: int) -> Array:
        errors.extend(() if errors else rounding.errors(graph, feeds))
        return errors[number]

    for number, (name, array, other) in enumerate(zip(names, found, wanted, strict=True)):
        require_close(array, other, graph, name, errors=partial(error, number))


def _within(found: Array, wanted: Array, errors: Array) -> bool:
    """Whether no element is further off than it may be; NaN and infinities are where they should be."""
    same = (found == wanted) | ((found != found) & (wanted != wanted))
    finite = np.isfinite(found) & np.isfinite(wanted)
    with np.errstate(all="ignore"):
        near = np.abs(found.astype(np.float64) - wanted.astype(np.float64)) <= errors
    return bool((same | (finite & near)).all())


def require_equal_kernels(executable: Executable, feeds: Sequence[Array]) -> None:
    """Run every kernel on what the reference computed before it.

    `feeds` are arrays for inputs then state. Raises MismatchError naming the first kernel that differs and its line.
    """

    def observe(node: Node, operands: list[Array], results: tuple[Array, ...]) -> None:
        if node not in executable.kernels or not results:
            return
        found = call(executable, executable.kernels[node], operands, results)
        names = [f"output {number} of kernel {node.attrs['name']}" for number in range(len(results))]
        try:
            require_all_close(names, found, results, node.attrs["body"], operands)
        except MismatchError as error:
            raise MismatchError(error.message, node.location) from None

    reference.run(executable.plan.graph, feeds, observe)


def call(executable: Executable, function: Function, operands: Sequence[Array], like: Sequence[Array]) -> list[Array]:
    """One kernel by itself. A check has no result of its own: its operand is."""
    outputs = [aligned_bytes(a.nbytes, function.name).view(a.dtype).reshape(a.shape) for a in like]
    for array in outputs:
        array.reshape(-1).view(np.uint8)[...] = 0xFF  # NaN: what the kernel leaves unwritten shows
    inputs = [np.require(a, requirements=["C", "A"]) for a in operands]
    written = outputs if function.outputs else []
    scratch = aligned_bytes(scratch_bytes(function), function.name)
    offset, pointers = 0, [a.ctypes.data for a in (*inputs, *written)]
    for buffer in function.scratch:
        pointers.append(scratch.ctypes.data + offset)
        offset += scratch_bytes(Function("", (), (), (buffer,), ()))
    alone = members(1)
    if executable.threads > 1 and function.outputs:
        pointers += [alone.ctypes.data, 0, 1]  # team, tid, threads
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * len(pointers))
    kind(executable.compiled.address(function.name))(*pointers)
    return written or [np.asarray(a) for a in like]


def _terms(graph: Graph) -> int:
    """The largest number of terms that one sum in the graph has; errors of the steps of a scan add up."""
    most = 1
    for node in graph.nodes:
        match node.op.kind:
            case Reduction():
                most = max(most, prod(node.inputs[0].type.extents) // max(1, prod(node.output.type.extents)))
            case Contraction():
                sizes = dict(zip(*_letters(node), strict=True))
                result = node.attrs["spec"].split("->")[1]
                most = max(most, prod(n for letter, n in sizes.items() if letter not in result))
            case Opaque():
                most = max(most, prod(node.inputs[0].type.extents))
            case Scan():
                most = max(most, node.attrs["length"] * _terms(node.attrs["body"]))
            case _ if "body" in node.attrs:
                most = max(most, _terms(node.attrs["body"]))
    return most


def _letters(node: Node) -> tuple[str, tuple[int, ...]]:
    first, second = node.attrs["spec"].split("->")[0].split(",")
    return first + second, (*node.inputs[0].type.extents, *node.inputs[1].type.extents)
