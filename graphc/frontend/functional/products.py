"""Sums of products: linear maps, einsum, attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

from graphc import ops
from graphc.errors import ArgumentError, ShapeError
from graphc.frontend.functional.activations import softmax
from graphc.frontend.functional.elementwise import where
from graphc.frontend.functional.making import row_and_column, zeros_like
from graphc.frontend.functional.reductions import sum
from graphc.frontend.functional.shapes import squeeze, swapaxes
from graphc.frontend.tensor import Tensor, as_tensor, matmul, promote
from graphc.ir import source
from graphc.ir.dim import Dim
from graphc.ir.types import DType


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; x is [..., inputs], weight [outputs, inputs], bias [outputs]."""
    product = matmul(x, weight.T)
    return product if bias is None else product + bias


def einsum(spec: str, *operands: Any) -> Tensor:
    """NumPy's einsum for any number of operands: repeated letters are diagonals, "..." stands for axes that broadcast.

    Without "->" the result has the axes of "...", then the letters that occur once, sorted.
    """
    found = promote(*operands)
    parts, result = _letters(spec, [x.ndim for x in found])
    found, parts = _with_equal_batches(found, parts)
    diagonals = [_diagonal(x, part) for x, part in zip(found, parts, strict=True)]
    value, letters = diagonals[0]
    for number, (other, theirs) in enumerate(diagonals[1:], 1):
        needed = set(result).union(*(part for _, part in diagonals[number + 1 :]))
        value, letters = _without_lone(value, letters, needed | set(theirs))
        other, theirs = _without_lone(other, theirs, needed | set(letters))
        kept = "".join(c for c in dict.fromkeys(letters + theirs) if c in needed)
        value = Tensor(ops.contract(value.value, other.value, spec=f"{letters},{theirs}->{kept}"))
        letters = kept
    value, letters = _without_lone(value, letters, set(result))
    return value.transpose(*map(letters.index, result)) if letters != result else value


def _letters(spec: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; the axes of "..." get capitals that the text does not use."""
    left, arrow, result = spec.replace(" ", "").partition("->")
    parts = left.split(",")
    spare = [c for c in string.ascii_uppercase if c not in spec]
    counts = [rank - len(part.replace("...", "")) for part, rank in zip(parts, ranks)]
    wide = max((n for part, n in zip(parts, counts) if "..." in part), default=0)
    batch = "".join(spare[:wide])
    if not arrow:
        result = ("..." if "..." in left else "") + "".join(
            sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
        )
    fits = len(parts) == len(ranks) and all(n == 0 or ("..." in part and n > 0) for part, n in zip(parts, counts))
    parts = [part.replace("...", batch[wide - n :]) for part, n in zip(parts, counts)]
    result = result.replace("...", batch)
    is_plain = all(c.isalpha() for c in "".join(parts) + result)
    if not fits or not is_plain or len(set(result)) < len(result) or not set(result) <= set("".join(parts)):
        raise ArgumentError(f'einsum "{spec}" does not fit operands of {list(ranks)} axes', source.here())
    return parts, result


def _with_equal_batches(found: list[Tensor], parts: list[str]) -> tuple[list[Tensor], list[str]]:
    """Axes of extent 1 that meet others of the same letter dropped: what they hold counts for all."""
    extents: dict[str, set[Dim]] = {}
    for x, part in zip(found, parts, strict=True):
        for letter, extent in zip(part, x.shape, strict=True):
            extents.setdefault(letter, set()).add(extent)
    pairs = []
    for x, part in zip(found, parts, strict=True):
        ones = [a for a, c in enumerate(part) if c.isupper() and x.shape[a] == 1 and len(extents[c]) > 1]
        kept = "".join(c for a, c in enumerate(part) if a not in ones)
        pairs.append((squeeze(x, ones) if ones else x, kept))
    return [x for x, _ in pairs], [part for _, part in pairs]


def _diagonal(x: Tensor, letters: str) -> tuple[Tensor, str]:
    """The elements whose positions along axes of one letter are equal, and each letter once."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first, second = letters.index(letter), letters.rindex(letter)
            if x.shape[first] != x.shape[second]:
                raise ShapeError(f"{x.type} has no diagonal along axes {first} and {second}", source.here())
            here, there = (Tensor(ops.iota(shape=x.shape, axis=a, dtype=DType.I64)) for a in (first, second))
            x = _added(where(here == there, x, zeros_like(x)), (second,))
            letters = letters[:second] + letters[second + 1 :]
    return x, letters


def _without_lone(x: Tensor, letters: str, needed: set[str]) -> tuple[Tensor, str]:
    """Sum over the letters that nothing else has."""
    lone = [a for a, c in enumerate(letters) if c not in needed]
    return (_added(x, lone), "".join(c for c in letters if c in needed)) if lone else (x, letters)


def _added(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The sum along axes in the dtype of x, as einsum's; of bools, whether any holds."""
    return Tensor((ops.reduce_any if x.dtype is DType.BOOL else ops.reduce_sum)(x.value, axes=axes))


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query key^T scale + mask) value, as torch's: [..., T, E], [..., S, E], [..., S, V] -> [..., T, V].

    attn_mask  bool (True: may look) or float (added), broadcast to [..., T, S]
    is_causal  position t sees positions up to t
    scale      1 / sqrt(E) by default
    """
    width = query.shape[-1]
    if scale is None:
        if not isinstance(width, int):
            raise ShapeError(f"attention over the dimension {width} needs a scale", source.here())
        scale = 1 / math.sqrt(width)
    scores = (query @ swapaxes(key, -1, -2)) * scale
    if is_causal:
        if attn_mask is not None:
            raise ArgumentError("give attn_mask or is_causal, not both", source.here())
        row, column = row_and_column(scores.shape)
        scores = where(column <= row, scores, -math.inf)
    elif attn_mask is not None:
        mask = as_tensor(attn_mask)
        scores = where(mask, scores, -math.inf) if mask.dtype is DType.BOOL else scores + mask
    return softmax(scores, -1) @ value


def outer(a: Any, b: Any) -> Tensor:
    """The products of each element of a with each of b: [m], [n] -> [m, n]."""
    return einsum("m,n->mn", a, b)


def diagonal(x: Tensor) -> Tensor:
    """The diagonals of the matrices in the last two axes."""
    return einsum("...ii->...i", x)


def trace(x: Tensor) -> Tensor:
    """The sums of the diagonals of the matrices in the last two axes."""
    return sum(diagonal(x), -1)


bmm, mm, mv, dot = matmul, matmul, matmul, matmul
