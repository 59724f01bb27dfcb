"""The contraction: a sum of products over shared letters, as einsum writes it.

`spec` is "ab,bc->ac": one letter per axis, none twice within an operand or the result, and every letter in at least
two of the three places. Transposed, batched, outer and inner products are all of this form, and so are its gradients.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

import graphc.ops as ops
from graphc.errors import ArgumentError, ShapeError
from graphc.ir.dim import Dim
from graphc.ir.graph import Node, Value
from graphc.ir.op import Contraction
from graphc.ir.types import NUMBERS, TensorType
from graphc.ops.define import Constructor, define, require_dtype


def letters(spec: str) -> tuple[str, str, str]:
    """The letters of both operands and of the result; raises ArgumentError for what is no such product."""
    match = re.fullmatch(r"([A-Za-z]*),([A-Za-z]*)->([A-Za-z]*)", spec)
    if match is None:
        raise ArgumentError(f'spec must look like "mk,kn->mn", not "{spec}"')
    a, b, c = match.groups()
    for part in (a, b, c):
        if len(set(part)) != len(part):
            raise ArgumentError(f'spec "{spec}" has a letter twice in "{part}"')
    for letter in a + b + c:
        if (letter in a) + (letter in b) + (letter in c) < 2:
            raise ArgumentError(f'spec "{spec}" has {letter} in one place only')
    return a, b, c


def _contract_type(a: TensorType, b: TensorType, *, spec: str) -> TensorType:
    require_dtype(NUMBERS, a, b)
    first, second, result = letters(spec)
    sizes: dict[str, Dim] = {}
    for operand, part in ((a, first), (b, second)):
        if len(part) != operand.rank:
            raise ShapeError(f'"{part}" of spec "{spec}" does not fit {operand}')
        for letter, extent in zip(part, operand.shape, strict=True):
            if sizes.setdefault(letter, extent) != extent:
                raise ShapeError(
                    f'{letter} of spec "{spec}" is {sizes[letter]} in one operand and {extent} in the other'
                )
    return a.with_shape(tuple(sizes[letter] for letter in result))


def _contract(a: Any, b: Any, *, spec: str) -> Any:
    """As one batched matrix product; float32 is summed in float64 and rounded once."""
    first, second, result = letters(spec)
    batch = [x for x in first if x in second and x in result]
    depth = [x for x in first if x in second and x not in result]
    rows, cols = [x for x in first if x not in second], [x for x in second if x not in first]
    dtype, wide = a.dtype, np.float64 if a.dtype.kind == "f" else a.dtype
    left = np.transpose(a, [first.index(x) for x in (*batch, *rows, *depth)]).astype(wide)
    right = np.transpose(b, [second.index(x) for x in (*batch, *depth, *cols)]).astype(wide)
    sizes = dict(zip(first + second, a.shape + b.shape, strict=True))
    n, m, k, c = (prod(sizes[x] for x in part) for part in (batch, rows, depth, cols))
    with np.errstate(all="ignore"):
        product = np.matmul(left.reshape(n, m, k), right.reshape(n, k, c)).astype(dtype)
    order = [*batch, *rows, *cols]
    return product.reshape([sizes[x] for x in order]).transpose([order.index(x) for x in result])


def _contract_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    a, b = node.inputs
    first, second, result = letters(node.attrs["spec"])
    return (
        ops.contract(cotangent, b, spec=f"{result},{second}->{first}"),
        ops.contract(cotangent, a, spec=f"{result},{first}->{second}"),
    )


contract: Constructor = define(
    "contract",
    Contraction(),
    _contract_type,
    _contract,
    _contract_vjp,
    "the sum of products over the letters of `spec` that the result lacks",
)
