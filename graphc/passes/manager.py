"""Passes: functions from a graph to a graph, in a table, run one after the other under supervision.

A pass is also run on the bodies of all scans, before it is run on the graph around them.

Every pass that `run` runs
 1. leaves a graph that `ir.verify` accepts;
 2. returns the very graph that it was given when it changes nothing;
 3. leaves a row in the ledger: its time, and nodes, operations and bytes moved before and after.

A pass that fails raises PassError, which names it and how to replay it from text.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from graphc import settings
from graphc.errors import ArgumentError, GraphcError, PassError
from graphc.ir.graph import Graph, Node, Value, copy_node, make_node, rebuild
from graphc.ir.op import Call, Contraction, Elementwise, Reduction, Scan
from graphc.ir.verify import verify

Pass = Callable[[Graph], Graph]
Observer = Callable[[str, Graph], None]

PASSES: dict[str, Pass] = {}


def graph_pass(function: Pass) -> Pass:
    """Enter a function from Graph to Graph in the table, under its name."""
    name = function.__name__
    if name in PASSES:
        raise ValueError(f"pass {name} is defined twice")
    PASSES[name] = function
    return function


@dataclass(frozen=True, slots=True)
class Row:
    """What one pass did."""

    name: str
    seconds: float
    graphs: tuple[Graph, Graph]  # before and after

    @property
    def work(self) -> tuple[Work, Work]:
        """Before and after: counted when it is asked for."""
        before, after = self.graphs
        first = work(before)
        return first, first if after is before else work(after)


@dataclass(frozen=True, slots=True)
class Work:
    """Size of a graph: nodes, scalar operations (fma counts 2), bytes that its nodes read and write."""

    nodes: int
    operations: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of one run; `str` is a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        cells = [("pass", "ms", "nodes", "MFLOP", "MB moved")]
        for row in self.rows:
            before, after = row.work
            nodes = _change(before.nodes, after.nodes)
            operations = _change(before.operations / 1e6, after.operations / 1e6)
            moved = _change(before.bytes / 1e6, after.bytes / 1e6)
            cells.append((row.name, f"{row.seconds * 1e3:.1f}", nodes, operations, moved))
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        lines = ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in cells]
        return "\n".join(lines)


def run(graph: Graph, names: Iterable[str], observe: Observer = lambda name, graph: None) -> tuple[Graph, Ledger]:
    """The graph after the named passes, and their ledger. `observe(name, graph)` sees it after each.

    Raises ArgumentError for a name that is not in PASSES and PassError where a pass fails.
    """
    rows = []
    for name in names:
        if name not in PASSES:
            raise ArgumentError(f"there is no pass {name!r}; there are {', '.join(PASSES)}")
        start = time.perf_counter()
        found = _run_one(name, graph)
        seconds = time.perf_counter() - start
        rows.append(Row(name, seconds, (graph, found)))
        graph = found
        observe(name, graph)
    return graph, Ledger(tuple(rows))


def _run_one(name: str, graph: Graph) -> Graph:
    try:
        found = everywhere(PASSES[name], graph)
        if found is not graph:
            verify(found)
    except Exception as error:
        file = _save(graph, name)
        location = error.location if isinstance(error, GraphcError) else None
        reason = error.message if isinstance(error, GraphcError) else f"{type(error).__name__}: {error}"
        raise PassError(
            f"pass {name} failed: {reason}\n  replay: graphc opt --passes={name} {file}", location
        ) from error
    return found


def everywhere(transform: Pass, graph: Graph) -> Graph:
    """The graph after a pass on the bodies of its scans, the innermost first, and then on itself.

    Scans that share a body do so afterwards.
    """
    done: dict[Graph, Graph] = {}

    def everything(graph: Graph) -> Graph:
        if graph not in done:
            has_scans = any(isinstance(node.op.kind, Scan) for node in graph.nodes)
            done[graph] = transform(rebuild(graph, inside) if has_scans else graph)
        return done[graph]

    def inside(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        if not isinstance(node.op.kind, Scan):
            return copy_node(node, inputs)
        body = everything(node.attrs["body"])
        if body is node.attrs["body"]:
            return copy_node(node, inputs)
        return make_node(node.op, inputs, {**node.attrs, "body": body}).outputs

    return everything(graph)


def _save(graph: Graph, name: str) -> Path:
    directory = settings.dump_directory() or Path(tempfile.mkdtemp(prefix="graphc-"))
    file = directory / settings.file_name(f"{graph.name}.before-{name}.gc")
    file.write_text(str(graph))
    return file


def work(graph: Graph) -> Work:
    """Nodes, operations and bytes of a graph; named dimensions count as 1, the work of a scan once for each step."""
    parts = [work_of(node) for node in graph.nodes]
    return Work(*(sum(getattr(part, name) for part in parts) for name in ("nodes", "operations", "bytes")))


def work_of(node: Node) -> Work:
    """Operations and bytes of one node."""
    if isinstance(node.op.kind, Scan):
        step, length = work(node.attrs["body"]), _size((node.attrs["length"],))
        return Work(1 + step.nodes, length * step.operations, length * step.bytes)
    return Work(1, _operations(node), sum(_size(v.shape) * v.dtype.itemsize for v in (*node.inputs, *node.outputs)))


def _operations(node: Node) -> int:
    match node.op.kind:
        case Call():
            return sum(_operations(inner) for inner in node.attrs["body"].nodes)
        case Contraction():
            first, second = node.attrs["spec"].split("->")[0].split(",")
            sizes = dict(zip(first + second, node.inputs[0].shape + node.inputs[1].shape, strict=True))
            return 2 * _size(tuple(sizes.values()))
        case Reduction():
            return _size(node.inputs[0].shape)
        case Elementwise():
            return _size(node.output.shape)
        case _:
            return 0


def _size(shape: tuple[object, ...]) -> int:
    return prod(d for d in shape if isinstance(d, int))


def _change(before: float, after: float) -> str:
    digits = 0 if isinstance(before, int) else 2
    return f"{before:.{digits}f}" if before == after else f"{before:.{digits}f} -> {after:.{digits}f}"
