"""Fusion: the nodes of a graph are grouped into kernels.

Before: primitive nodes. After: every node is a `kernel` whose body has a form (`passes.forms`), a `reshape` between
kernels (a view, costs nothing), or a constant whose elements differ.

How groups form:
 1. *Cheap* nodes belong to no group. Scalars, positions, movement and a few operations on data smaller than their
    result are recomputed in every kernel that reads them.
 2. Each of the other nodes, together with the cheap nodes above it, is a `Unit`: one group at first.
 3. Groups are joined along edges, the most memory traffic saved first, while the union is convex, has a form and pays
    (`_pays`): elementwise work and reductions with each other, contractions with what follows them.
 4. Groups that read the same large value over one space are joined.
 5. Contractions are joined with the sums of their results, and last with stored work on their operands. These wait
    because a reduction belongs first to the row that it normalises, and elementwise work to the kernel that produces
    its operands, which runs it once.

Bodies name their inputs p0, p1, … and list nodes in the order in which the outputs need them, so that repeated layers
have equal text. Invariant: `inline` of the result computes the same values.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from graphc.errors import PassError
from graphc.ir import source
from graphc.ir.graph import Graph, Node, Value, build, copy_node, make_node, rebuild, topological
from graphc.ir.op import OPS, Call, Contraction, Elementwise, Generator, Movement
from graphc.passes.forms import Contract, Form, Map, Opaque, Rows, classify, is_splat_or_position
from graphc.passes.manager import graph_pass
from graphc.passes.partition import Partition
from graphc.passes.sink import is_squeeze, sink_reshapes

RECOMPUTE_COST = 4  # of a cheap node with all cheap nodes above it
PROLOGUE_COST = 4  # of stored work on a contraction's operands, which is repeated by every tile that packs them
GROUP_LIMIT = 96  # units in one kernel; bounds the cost of classifying the joins
LAUNCH_BYTES = 256  # memory traffic that takes about as long as starting one more kernel
NAME_LENGTH = 40

# Operations per element, an addition being 1.
_COSTS = {"div": 3, "floor_div": 6, "mod": 8, "sqrt": 4, "rsqrt": 6, "pow": 32}
_COSTS |= dict.fromkeys(("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf"), 12)

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
    _clone(body.nodes, new)
    return tuple(new[value] for value in body.outputs)


# Units ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """A node whose results are stored, and the cheap nodes that are computed with it."""

    node: Node
    cheap: tuple[Node, ...]
    reads: Mapping[Value, int]  # stored values and graph inputs, with the number of elements read through movement
    direct: frozenset[Value]  # those of them that are read in place


@dataclass(frozen=True, slots=True)
class _Cone:
    """What computing a cheap node takes."""

    cost: int
    leaves: frozenset[Value]


def units(graph: Graph) -> list[Unit]:
    """The units of a graph in topological order; views and calls are units without cheap nodes."""
    cheap = _cheap_nodes(graph)
    wanted = set(graph.results)
    stored: list[Node] = []
    for node in reversed(graph.nodes):
        if _is_table(node):
            continue
        if wanted.isdisjoint(node.outputs) and node in cheap:
            continue
        if _is_view(node, cheap):
            wanted.update(node.inputs)
        stored.append(node)
    number = {node: position for position, node in enumerate(graph.nodes)}
    return [_unit(node, cheap, number) for node in reversed(stored)]


def _cheap_nodes(graph: Graph) -> dict[Node, _Cone]:
    found: dict[Node, _Cone] = {}
    for node in graph.nodes:
        cones = [found.get(value.node) if value.node else None for value in dict.fromkeys(node.inputs)]
        leaves = [cone.leaves if cone else {value} for cone, value in zip(cones, dict.fromkeys(node.inputs))]
        cone = _Cone(_cost(node) + sum(c.cost for c in cones if c), frozenset[Value]().union(*leaves))
        if cone.cost <= RECOMPUTE_COST and _is_cheap(node, cone):
            found[node] = cone
    return found


def _is_cheap(node: Node, cone: _Cone) -> bool:
    match node.op.kind:
        case Generator():
            return not _is_table(node)
        case Movement():
            return node.op.name != "reshape" or not cone.leaves or is_squeeze(node)
        case Elementwise():
            return sum(leaf.type.nbytes for leaf in cone.leaves) < node.output.type.nbytes
    return False


def _is_table(node: Node) -> bool:
    """Whether a node is a constant that stays outside kernels."""
    return isinstance(node.op.kind, Generator) and not is_splat_or_position(node)


def _is_view(node: Node, cheap: Mapping[Node, _Cone]) -> bool:
    return node.op.name == "reshape" and (node not in cheap or bool(cheap[node].leaves))


def _unit(node: Node, cheap: Mapping[Node, _Cone], number: Mapping[Node, int]) -> Unit:
    if isinstance(node.op.kind, Call) or _is_view(node, cheap):
        return Unit(node, (), dict.fromkeys(node.inputs, 0), frozenset(node.inputs))
    reads: dict[Value, int] = {}
    direct: set[Value] = set()
    seen: dict[Node, None] = {}
    stack = [node]
    while stack:
        reader = stack.pop()
        for value in reader.inputs:
            if value.node is None or value.node not in cheap:
                moved = isinstance(reader.op.kind, Movement)
                reads[value] = reads.get(value, 0) + (_size(reader.output) if moved else 0)
                direct.update(() if moved else (value,))
            elif value.node not in seen:
                seen[value.node] = None
                stack.append(value.node)
    return Unit(node, tuple(sorted(seen, key=number.__getitem__)), reads, frozenset(direct))


def _cost(node: Node) -> int:
    return _COSTS.get(node.op.name, 1) if isinstance(node.op.kind, Elementwise) else 0


def _size(value: Value) -> int:
    return prod(value.type.extents)


# Groups --------------------------------------------------------------------------------------------------------


class _Fusion:
    """The groups of one graph while they are being joined."""

    def __init__(self, graph: Graph) -> None:
        nodes = topological(graph.results)
        self.graph = Graph(graph.name, graph.inputs, graph.state, nodes, graph.outputs, graph.next)
        self.units = units(self.graph)
        self.number = {node: position for position, node in enumerate(nodes)}
        self.results = set(graph.results)
        vertex = {value: v for v, unit in enumerate(self.units) for value in unit.node.outputs}
        self.readers: dict[Value, list[int]] = {}
        successors: list[set[int]] = [set() for _ in self.units]
        for reader, unit in enumerate(self.units):
            for value in unit.reads:
                self.readers.setdefault(value, []).append(reader)
                if value in vertex:
                    successors[vertex[value]].add(reader)
        self.groups = Partition(successors)
        self.forms = {v: self._form([v]) for v in range(len(self.units))}
        self.queue: list[tuple[int, int, int, int, int, int]] = []

    def run(self) -> Graph:
        self._offer(range(len(self.units)))
        self._drain(stage=0)
        for value in self.readers:
            self._join_siblings(value)
        self._drain(stage=2)
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
        if isinstance(producer, Contract) and not self._is_stored(second) and not self._vanishes(first, second):
            saved //= 4  # the result is stored all the same, and the consumer may vanish into its own consumers
        heapq.heappush(self.queue, (stage, -saved, first, second, *sizes))

    def _is_stored(self, group: int) -> bool:
        """Whether a result of a group is stored however the groups are joined along edges."""
        outputs = self._outputs(self.groups.members[group])
        if not self.results.isdisjoint(outputs):
            return True
        readers = {self.groups.group_of[reader] for value in outputs for reader in self.readers[value]}
        return any(not isinstance(self.forms[reader], Map | Rows) for reader in readers if reader != group)

    def _vanishes(self, first: int, second: int) -> bool:
        """Whether all that the second group reads of the first is read by nobody else."""
        members = self.groups.members
        inside = {*members[first], *members[second]}
        made = {value for member in members[first] for value in self.units[member].node.outputs}
        reads = {value for member in members[second] for value in self.units[member].reads}
        return not any(self._leaves(value, inside) for value in made & reads)

    def _join(self, first: int, second: int, saved: int) -> bool:
        members = self.groups.members[first] + self.groups.members[second]
        form = self._form(members)
        if form is None or not self._pays(first, second, form, saved):
            return False
        group = self.groups.join(first, second)
        if group is None:
            return False
        self.forms[group] = form
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
        if len(members) == 1 and (isinstance(first.op.kind, Call) or first.op.name == "reshape"):
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

    def _saved(self, first: int, second: int) -> int:
        """Bytes that need not be stored or loaded once two groups are one."""
        members = self.groups.members
        inside = {*members[first], *members[second]}
        reads = {value for member in members[second] for value in self.units[member].reads}
        made = [value for member in members[first] for value in self.units[member].node.outputs]
        shared = reads & {value for member in members[first] for value in self.units[member].reads}
        shared.difference_update(made, (value for m in members[second] for value in self.units[m].node.outputs))
        loads = sum(value.type.nbytes for value in (*shared, *made) if value in reads)
        return loads + sum(value.type.nbytes for value in made if not self._leaves(value, inside))

    def _pays(self, first: int, second: int, form: Form, saved: int) -> bool:
        """Whether what is saved outweighs what must be computed more than once."""
        made = self.groups.members[first]
        work = sum(_cost(node) for node in self._nodes(made))
        if isinstance(form, Contract | Opaque) and not self._is_light_prologue(made, form):
            return False
        placed: Mapping[Value, object] = {} if isinstance(form, Map | Opaque) else form.placements
        readers = [self.units[member] for member in self.groups.members[second]]
        extra = 0
        for value in (value for member in made for value in self.units[member].node.outputs if value not in placed):
            reads = sum(unit.reads.get(value, 0) for unit in readers)
            reads += _size(value) * any(value in unit.direct for unit in readers)
            extra += max(0, reads - _size(value)) * work
        return extra <= saved + LAUNCH_BYTES

    def _is_light_prologue(self, members: list[int], form: Contract | Opaque) -> bool:
        """Whether those of the units that feed the barrier's operands are cheap enough to be repeated."""
        above = frozenset(form.prologue) if isinstance(form, Contract) else None
        fed = [self.units[m] for m in members if above is None or self.units[m].node in above]
        if not fed:
            return True
        loads = sum(value.type.nbytes for value in {value for unit in fed for value in unit.reads})
        stores = sum(unit.node.output.type.nbytes for unit in fed)
        return sum(_cost(unit.node) for unit in fed) <= PROLOGUE_COST and loads <= 2 * stores

    # The result

    def _emit(self) -> Graph:
        new: dict[Value, Value] = {}
        for group in self.groups.order():
            members = self.groups.members[group]
            form = self.forms[group]
            node = self.units[members[0]].node
            if form is not None:
                self._emit_kernel(members, form, new)
            elif isinstance(node.op.kind, Call) or node.op.name == "reshape":
                _clone((node,) if node.outputs[0] not in new else (), new)
            else:
                raise PassError(f"no kernel form holds {node.op.name} on its own", node.location)
        graph = self.graph
        outputs = [new.get(value, value) for value in graph.outputs]
        next = [(state, new.get(value, value)) for state, value in graph.next]
        return build(graph.name, graph.inputs, outputs, next, graph.state)

    def _emit_kernel(self, members: list[int], form: Form, new: dict[Value, Value]) -> None:
        """Add the kernel of a group. Reshapes of its operands become views in front of it."""
        inside: dict[Value, Value] = {}
        origin: dict[Value, Value] = {}
        nodes = self._nodes(members)
        views = _leading_views(nodes)
        for node in nodes:
            if node in views:
                continue
            for value in node.inputs:
                if value not in inside:
                    inside[value] = Value(value.type)
                    origin[inside[value]] = value
            _clone((node,), inside)
        outputs = self._outputs(members)
        results = tuple(inside[value] for value in outputs)
        ordered = topological(results)
        inputs = tuple(dict.fromkeys(v for node in ordered for v in node.inputs if v.node is None))
        for position, value in enumerate(inputs):
            value.name = f"p{position}"
        name = _name(ordered)
        attrs = {"name": name, "body": Graph(name, inputs, (), ordered, results)}
        operands = [_outside(origin[value], new) for value in inputs]
        kernel = make_node(OPS["kernel"], operands, attrs, _main_node(form, outputs).location)
        new.update(zip(outputs, kernel.outputs, strict=True))


def _leading_views(nodes: Iterable[Node]) -> set[Node]:
    """The reshapes of a kernel's operands."""
    found: set[Node] = set()
    made: set[Value] = set()
    for node in nodes:
        if node.op.name == "reshape" and made.isdisjoint(node.inputs):
            found.add(node)
        else:
            made.update(node.outputs)
    return found


def _outside(value: Value, new: dict[Value, Value]) -> Value:
    """What stands for a value between the kernels; a reshape is made when it is first asked for."""
    if value not in new and value.node is not None and value.node.op.name == "reshape":
        operand = value.node.inputs[0]
        new[operand] = _outside(operand, new)
        _clone((value.node,), new)
    return new.get(value, value)


def _clone(nodes: Iterable[Node], new: dict[Value, Value]) -> None:
    """Make nodes again, on the operands that `new` has for theirs, and enter their outputs there."""
    for node in nodes:
        with source.located(node.location):
            copy = make_node(node.op, (new.get(value, value) for value in node.inputs), node.attrs)
        new.update(zip(node.outputs, copy.outputs, strict=True))


def _main_node(form: Form, outputs: list[Value]) -> Node:
    match form:
        case Contract(contraction=node) | Opaque(node=node):
            return node
        case Rows(reductions=(node, *_)) | Rows(accumulations=(node, *_)):
            return node
    (node, *_) = [value.node for value in reversed(outputs) if value.node is not None]
    return node


def _name(nodes: Iterable[Node]) -> str:
    """What a kernel does: its operations, each once, cut to a readable length."""
    named = [node for node in nodes if not isinstance(node.op.kind, Generator)]
    work = [node for node in named if not isinstance(node.op.kind, Movement) and node.op.name != "convert"]
    work.sort(key=lambda node: not isinstance(node.op.kind, Contraction))
    words = dict.fromkeys(node.op.name for node in work or named or nodes)
    name = ""
    for word in words:
        if name and len(name) + len(word) >= NAME_LENGTH:
            break
        name += f"_{word}" if name else word
    return name
