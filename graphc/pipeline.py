"""The whole pipeline on one page: a graph and the sizes of its named dimensions in, machine code out.

    graph -> bind -> passes -> plan -> loops -> LLVM -> Executable

Nothing here decides anything; each stage is a value that can be printed (`Compilation.text`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from graphc import settings
from graphc.codegen import step as code
from graphc.codegen.jit import Compiling, host_target
from graphc.errors import ArgumentError
from graphc.ir.binding import bind
from graphc.ir.graph import Graph, Node
from graphc.ir.op import Call, Scan
from graphc.ir.signature import signature
from graphc.loops import text as loop_text
from graphc.loops.ir import Function, Loop, LoopKind
from graphc.loops.lower import lower
from graphc.loops.target import Target
from graphc.passes import manager  # with all passes
from graphc.plan import Plan, make, shares_of
from graphc.runtime.builtin import ONE_AT_A_TIME
from graphc.runtime.executable import Executable, symbols
from graphc.runtime.memory import OFFSETS
from graphc.runtime.team import available

PASSES = (
    "merge_scans",  # first: a scan, and the one that saves values for its gradient, are equal until they are rewritten
    "simplify",  # early: what it rewrites (log of softmax, broadcasts) would hide behind folded constants and kernels
    "split_phases",  # after simplify has made convolutions of their gradients, and of slices of them
    "layout",  # after simplify has made convolutions of their gradients, before windows are gone
    "unroll",  # of what simplify would gather again
    "fold",  # what simplify leaves of constants: literals that are moved or put together
    "cse",  # folding makes equal constants equal nodes
    "tile_batch",  # of what is left to compute, and before the passes on loops: it makes one
    "tile_pairs",  # of what tile_batch leaves whole, in its loops, too
    "block_weights",  # of the products that fuse will meet
    "hoist",  # after block_weights: in a loop of loops, what it puts before the inner one is the same in each round
    "slim_scans",  # cse has made equal results one value, and the passes above have left operands that nobody reads
    "dce",  # what the others left behind must not be fused
    "fuse",  # last: kernels are opaque to all of the above
)


STAGES = ("graph", "bind", *PASSES, "fused", "plan", "loops", "llvm", "assembly")  # that can be printed


@dataclass(frozen=True, eq=False)
class Compilation:
    """Everything that was made of a graph for one set of sizes. `stages`: the graph after each pass, by its name."""

    stages: Mapping[str, Graph]
    ledger: manager.Ledger
    plan: Plan
    functions: Mapping[Node, Function]
    executable: Executable

    def text(self, stage: str) -> str:
        """A stage as text: `graph`, `bind`, a pass, `plan`, `loops`, `llvm` (optimised) or `assembly`."""
        makers: dict[str, Callable[[], str]] = {
            **{name: graph.__str__ for name, graph in self.stages.items()},
            "fused": lambda: str(self.plan.graph),
            "plan": lambda: str(self.plan),
            "loops": lambda: "\n".join(map(loop_text.print_function, self.kernels.values())),
            "llvm": lambda: self.executable.compiled.optimized_llvm,
            "assembly": self.executable.compiled.assembly,
        }
        if stage not in makers:
            raise ArgumentError(f"there is no stage {stage!r}; there are {', '.join(makers)}")
        return makers[stage]()

    @property
    def kernels(self) -> dict[str, Function]:
        """The distinct kernels by name."""
        return {function.name: function for function in self.functions.values()}


# Seconds of a step on one processor from which all share it. Where another process keeps one of two processors busy, a
# shared step of ten kernels loses some 0.2 ms: as much as it gains where both are free.
WORTH_SHARING = 0.5e-3
BRIEF = 100e-6  # of a step that keeps the interpreter, as letting go of it takes longer than others would gain
_OPERATIONS, _BYTES = 100e9, 20e9  # that one processor does and moves in a second, about


def build(graph: Graph, sizes: Mapping[str, int], threads: int | None = 1) -> Compilation:
    """Compile `graph` for the given sizes of its named dimensions, to be run by so many threads (None: as it pays)."""
    target = host_target()
    stages = {"graph": graph, "bind": bind(graph, sizes)}
    fused, ledger = manager.run(stages["bind"], passes_for(stages["bind"]), observe=stages.__setitem__)
    seconds = _seconds(manager.work(fused))
    if threads is None:
        threads = available() if seconds >= WORTH_SHARING else 1
    functions: dict[Node, Function] = {}
    kernels = lowered(fused, target, functions)
    if threads > 1 and not any(isinstance(node.op.kind, Scan) and shares_of(node, threads) > 1 for node in fused.nodes):
        is_shared, kernels = _look_ahead(is_divided, kernels)
        threads = threads if is_shared else 1
    brief = threads == 1 and seconds < BRIEF and ONE_AT_A_TIME
    with Compiling(available()) as compiling:  # others begin with the first kernels while the next are being lowered
        for text in code.emit_kernels(kernels, target, threaded=threads > 1):
            compiling.add(text)
        plan = make(fused, {node: code.scratch_bytes(function) for node, function in functions.items()}, threads)
        compiling.add(code.emit_entry(plan, functions, threaded=threads > 1, offsets=OFFSETS, runs=brief))
        team = symbols(threads)  # which are compiled at their first use: while others are still busy
    compiled = compiling.link(team)
    executable = Executable(plan, functions, compiled, threads, brief)
    found = Compilation(stages, ledger, plan, functions, executable)
    _report(found, "".join(f".{name}{size}" for name, size in sizes.items()))
    return found


def _seconds(work: manager.Work) -> float:
    """About how long one processor takes."""
    return work.operations / _OPERATIONS + work.bytes / _BYTES


def _look_ahead(wanted: Callable[[Function], bool], functions: Iterator[Function]) -> tuple[bool, Iterator[Function]]:
    """Whether any of the functions is wanted, of which no more are made than it takes to know; and all of them."""
    seen = []
    for function in functions:
        seen.append(function)
        if wanted(function):
            return True, chain(seen, functions)
    return False, iter(seen)


def is_divided(function: Function) -> bool:
    """Whether a kernel has parts that threads can share."""
    return any(
        isinstance(stmt, Loop) and stmt.kind is LoopKind.PARALLEL and stmt.var.extent > 1 for stmt in function.body
    )


def passes_for(graph: Graph) -> tuple[str, ...]:
    """All passes; none for a graph that is fused already (a dump read back), so that it runs as it is written."""
    if not any(True for _ in _kernels(graph)):
        return PASSES
    return () if _is_fused(graph) else ("inline", *PASSES)


def _is_fused(graph: Graph) -> bool:
    loose = [node for node in graph.nodes if node.op.name not in ("kernel", "reshape", "constant")]
    return all(isinstance(node.op.kind, Scan) and _is_fused(node.attrs["body"]) for node in loose)


def lower_kernels(graph: Graph, target: Target) -> dict[Node, Function]:
    """The loops of every kernel node, also in the steps of scans. Kernels with equal bodies share one function."""
    found: dict[Node, Function] = {}
    for _ in lowered(graph, target, found):
        pass
    return found


def lowered(graph: Graph, target: Target, found: dict[Node, Function]) -> Iterator[Function]:
    """The distinct functions of `lower_kernels`, one after the other; `found` is what it returns in the end."""
    known: dict[Hashable, Function] = {}
    taken: dict[str, int] = {}
    for node in _kernels(graph):
        key = signature(node.attrs["body"])
        if key in known:
            found[node] = known[key]
            continue
        found[node] = known[key] = lower(node.attrs["body"], _unique(node.attrs["name"], taken), target)
        yield known[key]


def _kernels(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        match node.op.kind:
            case Call():
                yield node
            case Scan():
                yield from _kernels(node.attrs["body"])


def _unique(name: str, taken: dict[str, int]) -> str:
    """A name for a native function: the kernel's, numbered from its second use."""
    name = re.sub(r"\W", "_", name)
    taken[name] = taken.get(name, 0) + 1
    return f"k_{name}" if taken[name] == 1 else f"k_{name}_{taken[name]}"


def _report(compilation: Compilation, sizes: str) -> None:
    """What GRAPHC_DEBUG and GRAPHC_DUMP ask for."""
    level, directory = settings.debug(), settings.dump_directory()
    if level >= 1:
        print(f"graphc: compiled {compilation.plan!r}, {len(compilation.kernels)} kernels")
    if level >= 2:
        print(compilation.ledger)
    if level >= 3:
        print(compilation.text("fused"))
    if level >= 4:
        print(compilation.text("loops"))
    if directory is not None:
        name = settings.file_name(f"{compilation.plan.graph.name}{sizes}")
        for number, stage in enumerate((*compilation.stages, "plan", "loops", "llvm", "assembly")):
            kind = "gc" if stage in compilation.stages else "txt"
            (directory / f"{name}.{number:02}.{stage}.{kind}").write_text(compilation.text(stage))
