"""Matrices that every step of a scan multiplies by are laid out once, before it, as the product reads them.

Before: a step with `%0 = contract %c0, %w0 spec="mk,nk->mn"` of its constant `%w0: f32[1024,256]`.
After:  the constant is `f32[32,256,32]`, transposed outside: blocks of 32 neighbouring n, in each of which they stand
        side by side for one k after the other. The step computes `spec="mk,bkn->mbn"` and reshapes, which is a view.

A block is as wide as a register tile of the widest vectors; of narrower ones, several tiles stand side by side in it.
Vectors run along n without gaps, one block after the other is read from end to end, and threads that share the blocks
keep each its own in its cache from step to step. It is done where the letter that only the matrix has is last in the
result, and the matrix is not dense along it, or its rows are so far apart that they compete for places in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from string import ascii_letters

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, copy_node, make_node, rebuild, topological
from graphc.ir.op import Contraction, Scan
from graphc.ops.contraction import letters
from graphc.ops.control import Parts, depending
from graphc.passes.manager import graph_pass

HIGH_TILES, HIGH_WIDTH = range(8, 64), 128  # rows of products that run in tiles of 8 rows, and bytes of such a tile
WIDTH = 256  # bytes of others: lower ones, and those whose rows are so many that a block is read again and again
NARROWEST = 64  # bytes
ALIASED = 1024  # bytes: rows that are multiples of it apart share few places in the first-level cache


@graph_pass
def block_weights(graph: Graph) -> Graph:
    """Lay out the matrices that the steps of a scan read.

    Before: `contract %c0, %w0 spec="mk,nk->mn"` in a step, `%w0: f32[1024,256]`. After: `%w0: f32[32,256,32]`.
    """
    if not any(isinstance(node.op.kind, Scan) for node in graph.nodes):
        return graph
    return rebuild(graph, _blocked)


def _blocked(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    if not isinstance(node.op.kind, Scan):
        return copy_node(node, inputs)
    parts, body = Parts.of(node, inputs), node.attrs["body"]
    outer = dict(zip(parts.fixed, parts.constants, strict=True))
    varying = depending(body.nodes, (*body.state, *parts.sliced))
    inner: dict[tuple[Value, _Layout], Value] = {}
    outside: list[Value] = []

    def transform(product: Node, operands: tuple[Value, ...]) -> tuple[Value, ...]:
        place = _matrix(product, outer, varying)
        blocks = None if place is None else _blocks_of(product, place)
        if place is None or blocks is None:
            return copy_node(product, operands)
        layout, spec = blocks
        key = product.inputs[place], layout
        if key not in inner:
            laid = layout.apply(outer[key[0]])
            inner[key] = Value(laid.type, name=f"blocks{len(inner)}")
            outside.append(laid)
        given = [inner[key] if number == place else value for number, value in enumerate(operands)]
        return (ops.reshape(ops.contract(*given, spec=spec), shape=product.output.shape),)

    found = rebuild(body, transform)
    if found is body:
        return copy_node(node, inputs)
    step = Graph(
        body.name, (*body.inputs, *inner.values()), body.state, topological(found.results), found.outputs, found.next
    )
    return make_node(node.op, (*inputs, *outside), {**node.attrs, "body": step}).outputs


def _matrix(node: Node, outer: dict[Value, Value], varying: set[Value]) -> int | None:
    """Which operand of a product is a constant of the loop, while the other varies."""
    if not isinstance(node.op.kind, Contraction):
        return None
    places = [n for n in (0, 1) if node.inputs[n] in outer and node.inputs[1 - n] in varying]
    return places[0] if places else None


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a matrix is stored: reshaped to `shape`, then transposed. Products with equal ones share what is stored."""

    shape: tuple[int, ...]
    perm: tuple[int, ...]

    def apply(self, matrix: Value) -> Value:
        """The matrix in this layout."""
        return ops.transpose(ops.reshape(matrix, shape=self.shape), perm=self.perm)


def _blocks_of(node: Node, place: int) -> tuple[_Layout, str] | None:
    """The layout for an operand of a product, and the product's spec with it; None where it is good as it is."""
    *parts, result = letters(node.attrs["spec"])
    mine, other, matrix = parts[place], parts[1 - place], node.inputs[place].type
    own = [letter for letter in mine if letter not in other]
    if len(own) != 1 or result[-1] != own[0] or any(c in result for c in mine if c in other):
        return None
    (column,) = own
    extent, size = matrix.extents[mine.index(column)], matrix.dtype.itemsize
    is_dense = mine[-1] == column
    rows = prod(n for c, n in zip(other, node.inputs[1 - place].type.extents, strict=True) if c in result)
    width = _width(extent, HIGH_WIDTH if rows in HIGH_TILES else WIDTH, size)
    if is_dense and (width == extent or extent * size % ALIASED):
        return None
    block = next(letter for letter in ascii_letters if letter not in mine + other)
    shape: list[int] = []
    for letter, whole in zip(mine, matrix.extents, strict=True):
        shape += [whole // width, width] if letter == column else [whole]
    axes = mine.replace(column, block + column)
    order = block + "".join(c for c in other if c in mine) + column
    specs = [parts[0], parts[1]]
    specs[place] = order
    layout = _Layout(tuple(shape), tuple(map(axes.index, order)))
    return layout, f"{specs[0]},{specs[1]}->{result[:-1]}{block}{column}"


def _width(extent: int, widest: int, size: int) -> int:
    """Columns of a block: as many as divide the extent; all of them where no number of whole vectors does."""
    vectors = range(widest // NARROWEST, 0, -1)
    step = NARROWEST // size
    return next((n * step for n in vectors if extent % (n * step) == 0), extent)
