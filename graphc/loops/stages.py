"""Chains of functions in stages: a stretch of elements goes through one function before the next.

Before: z = tanh(exp(x)), element by element.  After: e = exp(x) for 256 elements, kept in the cache, then tanh(e).

A processor works on the next elements while one is on its way through a chain of dependent operations, but can look
ahead by a few hundred instructions only: two functions deep, it waits.

Invariant: all that a later stage reads has been kept by an earlier one, operands too. So an earlier stage may write its
results over operands at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from graphc.ir.graph import Value, topological
from graphc.ir.index import Index
from graphc.ir.op import Elementwise, Generator
from graphc.loops.ir import Buffer, Load
from graphc.loops.point import Barrier, Point
from graphc.loops.schedule import is_function

STRETCH = 256  # elements


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage computes: `results`, and what is `kept` for later ones."""

    results: tuple[Value, ...]
    kept: tuple[Value, ...]


def stages(results: Iterable[Value], space: tuple[int, ...]) -> list[Stage]:
    """The stages of some results of one shape; a single one where what is late moves, or has another shape on its way.

    What moves is read at another place than the current one, which is the only one that is kept.
    """
    results = list(dict.fromkeys(results))
    depth: dict[Value, int] = {}
    kept: dict[Value, None] = {}

    def level(value: Value) -> int:
        return max(0, depth.get(value, 0) - 1)

    for node in topological(results):
        deep = max((depth.get(value, 0) for value in node.inputs), default=0) + is_function(node)
        depth.update(dict.fromkeys(node.outputs, deep))
        if level(node.output):
            if not isinstance(node.op.kind, Elementwise) or node.output.type.extents != space:
                return [Stage(tuple(results), ())]
            kept.update((v, None) for v in node.inputs if level(v) < level(node.output) and not _is_free(v))
    last = max(map(level, results), default=0)
    return [
        Stage(*(tuple(v for v in values if level(v) == number) for values in (results, kept)))
        for number in range(last + 1)
    ]


def _is_free(value: Value) -> bool:
    return value.node is not None and isinstance(value.node.op.kind, Generator)


def in_stages(
    point: Point,
    chain: Sequence[Stage],
    here: tuple[Index, ...],
    length: int,
    each: Callable[[Index, int, Callable[[Index], None]], None],
    store: Callable[[Sequence[Value]], None],
) -> None:
    """All stages of a stretch, then of the next, over `length` elements.

    `each(first, count, body)` emits `body(position)` for so many elements from `first` on; `store` stores results.
    """
    with point.loop("c", length // STRETCH) as number:
        _stretch(point, chain, here, number * STRETCH, STRETCH, each, store)
    if length % STRETCH:
        _stretch(point, chain, here, Index(length // STRETCH * STRETCH), length % STRETCH, each, store)


def _stretch(
    point: Point,
    chain: Sequence[Stage],
    here: tuple[Index, ...],
    first: Index,
    count: int,
    each: Callable[[Index, int, Callable[[Index], None]], None],
    store: Callable[[Sequence[Value]], None],
) -> None:
    kept: dict[Value, Buffer] = {}

    def stage_at(stage: Stage, made: dict[Value, Buffer]) -> Callable[[Index], None]:
        known = dict(kept)

        def body(position: Index) -> None:
            with point.knowing({value: _kept(buffer, here, position) for value, buffer in known.items()}):
                found = [(buffer, point.at(value, here)) for value, buffer in made.items()]
                store(stage.results)
                for buffer, expr in found:
                    point.store(buffer, position, expr)

        return body

    for stage in chain:
        made = {value: point.local("kept", value.dtype, count) for value in stage.kept}
        with point.section():
            each(first, count, stage_at(stage, made))
        kept |= made


def _kept(buffer: Buffer, here: tuple[Index, ...], position: Index) -> Barrier:
    """An element that an earlier stage has kept; elsewhere it is computed."""
    return lambda index: Load(buffer, (position,)) if index == here else None
