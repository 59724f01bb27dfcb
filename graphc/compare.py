"""Two results of one graph: how far apart they may be, and which kernel is the first that is wrong.

Tolerances are in units of the last place of the largest element of an array: a sum of many terms is as exact as its
terms are large, not as its result is. They grow with the square root of the number of terms that were added.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from graphc import reference
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


def require_close(found: Array, wanted: Array, graph: Graph, what: str, scale: float = 0.0) -> None:
    """Raises MismatchError, which says by how many ulps, unless the arrays agree within the tolerance for `graph`."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise MismatchError(f"{what}: {found.dtype}{list(found.shape)} is not {wanted.dtype}{list(wanted.shape)}")
    ulps, allowed = distance(found, wanted, scale), tolerance(graph, as_dtype(wanted.dtype))
    if not ulps <= allowed:
        raise MismatchError(f"{what}: native and interpreted differ by {ulps:.3g} ulp, {allowed:.3g} are allowed")


def require_equal_kernels(executable: Executable, feeds: Sequence[Array]) -> None:
    """Run every kernel on what the reference computed before it.

    `feeds` are arrays for inputs then state. Raises MismatchError naming the first kernel that differs and its line.
    """

    def observe(node: Node, operands: list[Array], results: tuple[Array, ...]) -> None:
        if node not in executable.kernels or not results:
            return
        found = call(executable, executable.kernels[node], operands, results)
        for number, (array, wanted) in enumerate(zip(found, results, strict=True)):
            try:
                require_close(array, wanted, node.attrs["body"], f"output {number} of kernel {node.attrs['name']}")
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
