"""Pairs in strips: attention without its T x T scores, and whatever else makes something for each pair of rows.

Before: `%2 = contract %q, %k spec="abmk,abnk->abmn"`, f32[2,4,2048,2048], its softmax, the product of that with `%v`
After:  a scan over the 8 heads, whose step is a scan over strips f32[64,2048] of each.

What a strip makes stays in the cache of a core. The backward pass computes the scores again, which takes less time than
to write and read them; what it needs of their rows (maxima, sums) is handed on. Sums over all rows (the gradients of
keys and values) are carried from strip to strip.

What a mask of positions leaves out is not computed: rows are first cut into blocks, and each has the columns that it
needs (`ranges`), under a causal mask those up to its last row. Columns are left out where all that is made of them is
what a sum or maximum begins with. An infinity or NaN that a mask hides is then hidden for good.

Heads are independent, so that threads take whole ones. How rows are cut depends on shapes alone, and so do all results.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from graphc.ir.graph import Graph, Node, Value, copy_node, substitute, with_results
from graphc.ir.op import Contraction, Reduction
from graphc.ir.signature import signature
from graphc.ir.source import located
from graphc.passes.manager import graph_pass, work_of
from graphc.passes.pair_loops import loops
from graphc.passes.pair_regions import Region, regions
from graphc.passes.pair_tiling import Tiling
from graphc.passes.strips import FAR

FEWEST = 128 * 128  # pairs of a strip that are worth entering its kernels
MANY = 256 * 1024 * 1024  # bytes of pairs that are not stored at any price
PACE = 4  # operations in the time that a byte takes to or from memory


@graph_pass
def tile_pairs(graph: Graph) -> Graph:
    """Make pairs of rows in strips, where storing them does not pay.

    Before: `%0 = contract %q, %k spec="mk,nk->mn"`, `%1 = exp %0`, `%2 = contract %1, %v spec="mn,nk->mk"`, where `%0`
    is large. After: a scan over strips of `%q`.
    """
    known: dict[Hashable, Tiling | None] = {}
    stretches = []
    for parts in regions(graph):
        tilings = [_tiling(region, known) for region in parts]
        if _pays(tilings):
            stretches.append({region: tiling for region, tiling in zip(parts, tilings, strict=True) if tiling})
    while stretches:
        try:
            return _with(graph, {region: tiling for stretch in stretches for region, tiling in stretch.items()})
        except CycleError as error:  # two that wait for each other: neither is one loop
            stretches = [stretch for stretch in stretches if stretch.keys().isdisjoint(error.args[1])]
    return graph


def _tiling(region: Region, known: dict[Hashable, Tiling | None]) -> Tiling | None:
    """The tiling of a region; one for all that are equal, as those of repeated layers."""
    operands = list(region.given.values())
    same = tuple(map(operands.index, operands))
    again = tuple(number for number, node in enumerate(region.body.nodes) if node in region.again)
    key = signature(region.body), same, again
    if key not in known:
        known[key] = Tiling.of(region, same)
    return known[key]


def _with(graph: Graph, tilings: Mapping[Region, Tiling]) -> Graph:
    """The graph with loops in place of what regions make."""
    made = {value: region for region in tilings for value in region.wanted}
    operands: dict[Node | Region, Sequence[Value]] = {node: node.inputs for node in graph.nodes}
    operands |= {region: tuple(region.given.values()) for region in tilings}
    before = {part: [made.get(v, v.node) for v in values] for part, values in operands.items()}
    order = TopologicalSorter({part: [p for p in parts if p is not None] for part, parts in before.items()})
    parts = tuple(order.static_order())
    made_of = {tiling: loops(tiling) for tiling in dict.fromkeys(tilings.values())}
    new: dict[Value, Value] = {}
    for part in parts:
        if isinstance(part, Node):
            with located(part.location):
                values = copy_node(part, tuple(new.get(v, v) for v in part.inputs))
            new |= {old: v for old, v in zip(part.outputs, values, strict=True) if old not in made}
        else:
            tiling = tilings[part]
            given = [new.get(value, value) for value in part.given.values()]
            found = substitute(made_of[tiling], dict(zip(tiling.body.inputs, given, strict=True)))
            new |= zip(part.wanted, found, strict=True)
    return with_results(graph, [new.get(value, value) for value in graph.results])


def _pays(found: Sequence[Tiling | None]) -> bool:
    """Whether a stretch is better made in strips: all its regions."""
    tilings = [tiling for tiling in found if tiling is not None]
    stored = sum(seed.output.type.nbytes for tiling in tilings for seed in tiling.region.seeds)
    if len(tilings) < len(found) or stored < FAR:
        return False
    if any(not t.adds_little or t.strip * t.row < FEWEST * t.pairs.dtype.itemsize for t in tilings):
        return False
    return stored >= MANY or sum(map(_gain, tilings)) > 0


def _gain(tiling: Tiling) -> float:
    """Operations that a tiling saves, or bytes in their place, less those of what an earlier one makes, too."""
    gain = 0.0
    for node in tiling.body.nodes:
        if isinstance(node.op.kind, Contraction | Reduction):
            operations = work_of(node).operations
            if node in tiling.region.again:
                gain -= operations * tiling.share
            else:
                stored = sum(v.type.nbytes for v in (*node.inputs, node.output) if tiling.has_pairs(v))
                gain += operations * (1 - tiling.share) + PACE * stored
    return gain
