"""Fusion: the nodes of a graph are grouped into kernels.

Before: primitive nodes. After: every node is a `kernel` whose body has a form (`passes.forms`), a `reshape` between
kernels (a view, costs nothing), a constant whose elements differ, or a scan of such a graph.

How groups form:
 1. Each unit (`passes.units`) is one group at first.
 2. Groups are joined along edges, the most memory traffic saved first, while the union is convex, has a form and pays
    (`_pays`): elementwise work and reductions with each other, contractions with what follows them.
 3. Groups that read the same large value over one space are joined.
 4. Contractions are joined with the sums of their results, and last with stored work on their operands. These wait
    because a reduction belongs first to the row that it normalises, and elementwise work to the kernel that produces
    its operands, which runs it once. A sum across memory (a batch norm's mean) is another matter: whoever normalises
    would walk all of it once more, so it is joined with the contraction before all others.
 5. What a kernel stores for others is reduced to the least number of bytes from which they can compute, with a few
    operations, what they read (`_store_less`): the input and the mean instead of the normalised values, say.

Invariant: `inline` of the result computes the same values.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphc.errors import PassError
from graphc.ir.graph import Graph, Node, Value, copy_node, rebuild, topological, with_results
from graphc.ir.op import Call, Scan
from graphc.passes.cut import cheapest_cut
from graphc.passes.forms import Contract, Form, Map, Opaque, Rows, classify, is_single_phase, lies_across
from graphc.passes.kernels import clone, make_kernel
from graphc.passes.manager import graph_pass
from graphc.passes.partition import Partition
from graphc.passes.sink import sink_reshapes
from graphc.passes.units import RECOMPUTE_COST, Cone, Unit, cheap_nodes, cost, is_view, size, unit_of, units, work

PROLOGUE_COST = 4  # of stored work on a contraction's operands, which is repeated by every tile that packs them
GROUP_LIMIT = 96  # units in one kernel; bounds the cost of classifying the joins
LAUNCH_BYTES = 256  # memory traffic that takes about as long as starting one more kernel
OPERATIONS_PER_BYTE = 2  # that take no longer than storing or loading it
FAR = 1024 * 1024  # bytes of a value that will be in no near cache when it is read
FAR_COST, FAR_OPERATIONS_PER_BYTE = 12, 2.5  # what is recomputed then, functions too, and for how much

# When a producer of one form is joined with a consumer of another: 0 before siblings, then 1, then 2.
_STAGES: dict[tuple[type[Form], type[Form]], int] = {
    (Map, Map): 0,
    (Map, Rows): 0,
    (Rows, Map): 0,
    (Rows, Rows): 0,
    (Contract, Map): 0,
    (Contract, Rows): 1,
    (Map, Contract): 2,
    (Map, Opaque): 2,
}
_FIRST = -1  # before all of them: a sum across memory with the product that it is of, which stores all the same
_SIBLINGS = {(Map, Map), (Map, Rows), (Rows, Map), (Rows, Rows)}


@graph_pass
def fuse(graph: Graph) -> Graph:
    """Group nodes into kernels.

    Before: `%0 = exp %x`, `%1 = neg %0`. After: one `kernel %x name="exp_neg"` whose body holds both.
    """
    return _Fusion(sink_reshapes(graph)).run()


@graph_pass
def inline(graph: Graph) -> Graph:
    """Replace each kernel by the nodes of its body: the inverse of `fuse`, but for shared work that was duplicated."""
    return rebuild(graph, _expand)


def _expand(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    if not isinstance(node.op.kind, Call):
        return copy_node(node, inputs)
    body: Graph = node.attrs["body"]
    new = dict(zip(body.inputs, inputs, strict=True))
    clone(body.nodes, new)
    return tuple(new[value] for value in body.outputs)


# Groups --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Traffic:
    """What a group reads and makes: the values that others read too, and how many bytes nobody else does."""

    reads: frozenset[Value] = frozenset()
    made: frozenset[Value] = frozenset()
    leaving: tuple[Value, ...] = ()
    inner: int = 0

    @staticmethod
    def of(unit: Unit) -> _Traffic:
        return _Traffic(frozenset(unit.reads), frozenset(unit.node.outputs), unit.node.outputs)


class _Fusion:
    """The groups of one graph while they are being joined."""

    def __init__(self, graph: Graph) -> None:
        nodes = topological(graph.results)
        self.graph = Graph(graph.name, graph.inputs, graph.state, nodes, graph.outputs, graph.next)
        self.cheap = cheap_nodes(self.graph)
        self.units = units(self.graph, self.cheap)
        self.number = {node: position for position, node in enumerate(nodes)}
        self.results = set(graph.results)
        self.maker = {value: v for v, unit in enumerate(self.units) for value in unit.node.outputs}
        self.readers: dict[Value, list[int]] = {}
        successors: list[set[int]] = [set() for _ in self.units]
        for reader, unit in enumerate(self.units):
            for value in unit.reads:
                self.readers.setdefault(value, []).append(reader)
                if value in self.maker:
                    successors[self.maker[value]].add(reader)
        self.groups = Partition(successors)
        self.forms = {v: self._form([v]) for v in range(len(self.units))}
        self.traffic = {v: self._joined(_Traffic(), _Traffic.of(unit), {v}) for v, unit in enumerate(self.units)}
        self.queue: list[tuple[int, int, int, int, int, int]] = []

    def run(self) -> Graph:
        self._offer(range(len(self.units)))
        self._drain(stage=0)
        for value in self.readers:
            self._join_siblings(value)
        self._drain(stage=2)
        for group in self.groups.order():
            self._store_less(group)
        return self._emit()

    # Joining

    def _drain(self, stage: int) -> None:
        while self.queue and self.queue[0][0] <= stage:
            _, saved, first, second, *sizes = heapq.heappop(self.queue)
            members = self.groups.members
            if [len(members.get(first, ())), len(members.get(second, ()))] == sizes:
                self._join(first, second, -saved)

    def _offer(self, groups: Iterable[int]) -> None:
        """Queue the joins along the edges of some groups."""
        for group in groups:
            for first, second in [
                *((group, after) for after in self.groups.after[group]),
                *((before, group) for before in self.groups.before[group]),
            ]:
                self._offer_pair(first, second)

    def _offer_pair(self, first: int, second: int) -> None:
        producer, consumer = self.forms[first], self.forms[second]
        if producer is None or consumer is None:
            return
        stage = _STAGES.get((type(producer), type(consumer)))
        members = self.groups.members
        sizes = len(members[first]), len(members[second])
        if stage is None or sum(sizes) > GROUP_LIMIT:
            return
        saved = self._saved(first, second)
        if isinstance(producer, Contract) and self._is_sum_across(first, second):
            stage = _FIRST
        elif isinstance(producer, Contract) and not self._is_stored(second) and not self._vanishes(first, second):
            saved //= 4  # the result is stored all the same, and the consumer may vanish into its own consumers
        heapq.heappush(self.queue, (stage, -saved, first, second, *sizes))

    def _is_sum_across(self, first: int, second: int) -> bool:
        """Whether the second group is a sum, across memory, of what the first one makes."""
        members, form = self.groups.members[second], self.forms[second]
        node = self.units[members[0]].node
        alone = len(members) == 1 and node.op.name == "reduce_sum" and node.inputs[0] in self.traffic[first].made
        return alone and isinstance(form, Rows) and lies_across(form)

    def _is_stored(self, group: int) -> bool:
        """Whether a result of a group is stored however the groups are joined along edges."""
        outputs = self.traffic[group].leaving
        if not self.results.isdisjoint(outputs):
            return True
        readers = {self.groups.group_of[reader] for value in outputs for reader in self.readers[value]}
        return any(not isinstance(self.forms[reader], Map | Rows) for reader in readers if reader != group)

    def _vanishes(self, first: int, second: int) -> bool:
        """Whether all that the second group reads of the first is read by nobody else."""
        inside = {*self.groups.members[first], *self.groups.members[second]}
        reads = self.traffic[second].reads
        return not any(self._leaves(value, inside) for value in self.traffic[first].leaving if value in reads)

    def _join(self, first: int, second: int, saved: int) -> bool:
        if not self.groups.can_join(first, second):  # asked first: it costs less than classifying the union
            return False
        members = self.groups.members[first] + self.groups.members[second]
        form = self._form(members)
        if form is None or self._walks_badly(members, form) or not self._pays(first, second, form, saved):
            return False
        parts = self.traffic[first], self.traffic[second]
        group = self.groups.join(first, second)
        if group is None:
            return False
        self.forms[group] = form
        self.traffic[group] = self._joined(*parts, set(self.groups.members[group]))
        self._offer([group])
        return True

    def _join_siblings(self, value: Value) -> None:
        """Join groups that read all of `value` over the same space."""
        readers = dict.fromkeys(self.groups.group_of[reader] for reader in self.readers[value])
        previous: int | None = None
        for group in readers:
            if self.groups.group_of[group] != group or not self._sweeps(group, value):
                continue
            if previous is not None and self._are_siblings(previous, group):
                first, second = self.groups.sorted(previous, group)
                if self._join(first, second, self._saved(first, second)):
                    self._drain(stage=0)
                    group = self.groups.group_of[group]
            previous = group

    def _sweeps(self, group: int, value: Value) -> bool:
        form = self.forms[group]
        return isinstance(form, Map | Rows) and form.space == value.type.extents

    def _are_siblings(self, first: int, second: int) -> bool:
        members = self.groups.members
        if first not in members or second not in members or first == second:
            return False
        small = len(members[first]) + len(members[second]) <= GROUP_LIMIT
        return small and (type(self.forms[first]), type(self.forms[second])) in _SIBLINGS

    # What a join would be

    def _form(self, members: list[int]) -> Form | None:
        first = self.units[members[0]].node
        if len(members) == 1 and (isinstance(first.op.kind, Call | Scan) or is_view(first, self.cheap)):
            return None
        return classify(Graph("", (), (), self._nodes(members), tuple(self._outputs(members))))

    def _nodes(self, members: list[int]) -> tuple[Node, ...]:
        found = {node for member in members for node in (*self.units[member].cheap, self.units[member].node)}
        return tuple(sorted(found, key=self.number.__getitem__))

    def _outputs(self, members: list[int]) -> list[Value]:
        """The values that others read, in order."""
        inside = set(members)
        made = (value for member in sorted(members) for value in self.units[member].node.outputs)
        return [value for value in made if self._leaves(value, inside)]

    def _leaves(self, value: Value, inside: set[int]) -> bool:
        readers = self.readers.get(value, ())
        return value in self.results or len(readers) > len(inside) or not inside.issuperset(readers)

    def _joined(self, one: _Traffic, other: _Traffic, inside: set[int]) -> _Traffic:
        """What two groups, whose members are `inside`, read and make together."""
        made = (*one.leaving, *other.leaving)
        leaving = tuple(value for value in made if self._leaves(value, inside))
        inner = sum(value.type.nbytes for value in set(made).difference(leaving))
        return _Traffic(one.reads | other.reads, one.made | other.made, leaving, one.inner + other.inner + inner)

    def _saved(self, first: int, second: int) -> int:
        """Bytes that need not be stored or loaded once two groups are one."""
        producer, consumer = self.traffic[first], self.traffic[second]
        inside = {*self.groups.members[first], *self.groups.members[second]}
        shared = (producer.reads & consumer.reads) - producer.made - consumer.made
        passed = [value for value in producer.leaving if value in consumer.reads]
        gone = [value for value in passed if not self._leaves(value, inside)]
        return producer.inner + sum(value.type.nbytes for value in (*shared, *passed, *gone))

    def _pays(self, first: int, second: int, form: Form, saved: int) -> bool:
        """Whether what is saved outweighs what must be computed more than once."""
        made = self.groups.members[first]
        work = sum(cost(node) for node in self._nodes(made))
        if isinstance(form, Contract | Opaque) and not self._is_light_prologue(made, form):
            return False
        placed: Mapping[Value, object] = {} if isinstance(form, Map | Opaque) else form.placements
        readers = [self.units[member] for member in self.groups.members[second]]
        extra = 0
        for value in (value for member in made for value in self.units[member].node.outputs if value not in placed):
            reads = sum(unit.reads.get(value, 0) for unit in readers)
            reads += size(value) * any(value in unit.direct for unit in readers)
            extra += max(0, reads - size(value)) * work
        return extra <= saved + LAUNCH_BYTES

    def _walks_badly(self, members: list[int], form: Form) -> bool:
        """Whether rows across memory, walked more than once, would also have to be added up among each other."""
        if not isinstance(form, Rows) or not form.accumulations or not lies_across(form):
            return False
        nodes = self._nodes(members)
        operands = dict.fromkeys(value for node in nodes for value in node.inputs if value.node not in nodes)
        body = Graph("", tuple(operands), (), nodes, tuple(self._outputs(members)))
        return bool(form.reductions) and not is_single_phase(body, form)

    def _is_light_prologue(self, members: list[int], form: Contract | Opaque) -> bool:
        """Whether those of the units that feed the barrier's operands are cheap enough to be repeated."""
        above = frozenset(form.prologue) if isinstance(form, Contract) else None
        fed = [self.units[m] for m in members if above is None or self.units[m].node in above]
        if not fed:
            return True
        loads = sum(value.type.nbytes for value in {value for unit in fed for value in unit.reads})
        stores = sum(unit.node.output.type.nbytes for unit in fed)
        return sum(cost(unit.node) for unit in fed) <= PROLOGUE_COST and loads <= 2 * stores

    # What to store

    def _store_less(self, group: int) -> None:
        """Let the readers of a group recompute what is cheaper to compute than to store."""
        if self.forms[group] is None:
            return
        members = [self.units[member] for member in self.groups.members[group]]
        light = {unit.node.output: unit for unit in members if 0 < work(unit) <= _recomputed(unit.node.output)[0]}
        outputs = self._outputs(self.groups.members[group])
        stored = {value for value in outputs if self._must_store(value, group)}
        if all(value in stored or value not in light for value in outputs):
            return
        wanted = [value for value in outputs if any(map(self._can_compute, self._readers_outside(value, group)))]
        # Reading again what is stored anyway costs a load, anything else of the group a store as well.
        weights = {value: value.type.nbytes for unit in members for value in unit.reads}
        weights |= {value: value.type.nbytes * 2 for unit in members for value in unit.node.outputs}
        weights |= {value: 0 if value in wanted else value.type.nbytes for value in stored}
        cut = cheapest_cut(weights, {value: unit.reads for value, unit in light.items()}, wanted)
        between = self._between(wanted, cut, light)
        saved = sum(weights[v] for v in wanted if v not in cut) - sum(weights[v] for v in cut if v not in wanted)
        price = max((_recomputed(value)[1] for value in wanted), default=0)
        if between and sum(work(unit) * size(value) for value, unit in between.items()) <= price * saved:
            self._recompute(group, between, [value for value in wanted if value in between])

    def _between(self, wanted: Iterable[Value], cut: set[Value], light: Mapping[Value, Unit]) -> dict[Value, Unit]:
        """What must be computed to have the wanted values where a cut is known."""
        found: dict[Value, Unit] = {}
        stack = [value for value in wanted if value not in cut]
        while stack:
            value = stack.pop()
            if value not in found and value not in cut:
                found[value] = light[value]
                stack.extend(light[value].reads)
        return found

    def _recompute(self, group: int, made: Mapping[Value, Unit], wanted: list[Value]) -> None:
        """Make some values of a group cheap, unless a kernel would lose its form."""
        cheap = self.cheap | {unit.node: Cone(0, frozenset(unit.reads)) for unit in made.values()}
        old = {reader: self.units[reader] for value in wanted for reader in self.readers[value]}
        self._replace({reader: unit_of(unit.node, cheap, self.number) for reader, unit in old.items()})
        forms = {g: self._form(self.groups.members[g]) for g in {group, *(self.groups.group_of[r] for r in old)}}
        if None in forms.values():
            self._replace(old)
        else:
            self.cheap = cheap
            self.forms |= forms

    def _replace(self, new: Mapping[int, Unit]) -> None:
        for reader, unit in new.items():
            for value in self.units[reader].reads:
                self.readers[value].remove(reader)
            for value in unit.reads:
                self.readers.setdefault(value, []).append(reader)
            self.units[reader] = unit

    def _readers_outside(self, value: Value, group: int) -> list[int]:
        return [reader for reader in self.readers.get(value, ()) if self.groups.group_of[reader] != group]

    def _must_store(self, value: Value, group: int) -> bool:
        """Whether a value is a result, or one of its readers outside its group cannot compute it."""
        return value in self.results or not all(map(self._can_compute, self._readers_outside(value, group)))

    def _can_compute(self, reader: int) -> bool:
        """Whether elementwise work may be added to what a unit reads: it is not on the way into a contraction."""
        match self.forms[self.groups.group_of[reader]]:
            case Map() | Rows():
                return True
            case Contract(contraction=contraction, prologue=prologue):
                return self.units[reader].node not in (contraction, *prologue)
        return False

    # The result

    def _emit(self) -> Graph:
        new: dict[Value, Value] = {}
        for group in self.groups.order():
            members = self.groups.members[group]
            form = self.forms[group]
            node = self.units[members[0]].node
            if form is not None:
                make_kernel(self._nodes(members), self._outputs(members), form, new)
            elif isinstance(node.op.kind, Call | Scan) or node.op.name == "reshape":
                clone((node,) if node.outputs[0] not in new else (), new)
            else:
                raise PassError(f"no kernel form holds {node.op.name} on its own", node.location)
        return with_results(self.graph, [new.get(value, value) for value in self.graph.results])


def _recomputed(value: Value) -> tuple[float, float]:
    """The work of a node that is recomputed rather than stored, and all of it for each byte that is not stored."""
    is_far = value.type.nbytes >= FAR
    return (FAR_COST, FAR_OPERATIONS_PER_BYTE) if is_far else (RECOMPUTE_COST, OPERATIONS_PER_BYTE)
