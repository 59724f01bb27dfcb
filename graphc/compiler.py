"""`compile`: from tensors to something that can be called.

A `Function` keeps the graph, and compiles it once for each set of sizes of its named dimensions. It holds no numbers of
its own: parameters and other state live in the front end's tensors, so several functions share them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat as forever
from typing import Any

import numpy as np

from graphc import compare, pipeline, reference, settings
from graphc.errors import ArgumentError, FeedError, GraphcError
from graphc.frontend.state import State, followers
from graphc.frontend.tensor import Tensor
from graphc.ir import graph as ir
from graphc.ir.binding import bind, names_of, sizes_of
from graphc.ir.graph import Graph, Value, topological
from graphc.pipeline import Compilation
from graphc.plan import Plan
from graphc.runtime import profile as profiling
from graphc.runtime.batches import Batches, Result, Shapes, cut
from graphc.runtime.bound import Bound, native_run, outputs_of
from graphc.runtime.entrance import Entrance, entrance
from graphc.runtime.epoch import Loop, in_batch
from graphc.runtime.feeds import bindable, conform, examples, ordered
from graphc.runtime.state import Held

Array = np.ndarray[Any, Any]
MODES = ("native", "interpret", "check")


def compile(
    inputs: Tensor | Iterable[Tensor],
    outputs: Tensor | Sequence[Tensor],
    updates: Mapping[State, Tensor] | None = None,
    *,
    mode: str = "native",
    threads: int | None = None,
    name: str = "step",
) -> Function:
    """A function that computes `outputs` from arrays for `inputs` and then sets every state in `updates`.

    inputs   placeholders, in the order of the call's arguments
    outputs  one tensor, or a sequence of them: a call returns an array (a NumPy scalar for shape ()), or a tuple
    updates  parameter or buffer -> its next value, as `optimizer.minimize(loss)` gives; all are set at once, after
             everything has been computed, or not at all
    mode     "native"; "interpret": NumPy, unoptimised; "check": both, compared on every call
    threads  native threads, by default GRAPHC_THREADS, or all processors for what is large enough to be shared; one
             where nothing can be; results have the same bits for any number

    Raises ArgumentError for a placeholder that is needed and not among `inputs`, and for what is no tensor.
    """
    if mode not in MODES:
        raise ArgumentError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"a function's name is a string that is not empty, not {name!r}")
    threads = threads if threads is not None else settings.threads()
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= settings.MOST_THREADS):
        raise ArgumentError(f"threads must be a number from 1 to {settings.MOST_THREADS}, not {threads!r}")
    graph, state = trace(_listed(inputs), _listed(outputs), updates or {}, name)
    return Function(graph, state, mode=mode, threads=threads, single=isinstance(outputs, Tensor))


def _listed(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    if not isinstance(tensors, Iterable):
        raise ArgumentError(f"compile takes tensors, not {type(tensors).__name__}")
    return list(tensors)


def trace(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], updates: Mapping[State, Tensor], name: str
) -> tuple[Graph, tuple[State, ...]]:
    """The graph behind tensors, and the holders of its state in the graph's order."""
    if not isinstance(updates, Mapping) or not all(isinstance(target, State) for target in updates):
        raise ArgumentError("updates give parameters and buffers their next values, as {weight: weight - slope}")
    for tensor in (*inputs, *outputs, *updates.values()):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"compile takes tensors, not {type(tensor).__name__}")
        if isinstance(tensor, State) and any(tensor is given for given in inputs):
            raise ArgumentError(f"{tensor.name or 'a state'} is read from its own array and cannot be an input")
    values = [tensor.value for tensor in inputs]
    if len(set(values)) < len(values) or any(value.node is not None for value in values):
        raise ArgumentError("inputs must be distinct placeholders")
    found = followers(topological(tensor.value for tensor in (*outputs, *updates.values())))
    updates = {**found, **updates}
    results = [tensor.value for tensor in (*outputs, *updates.values())]
    reached = [v for node in topological(results) for v in node.inputs if v.node is None]
    reached += [value for value in results if value.node is None]
    holders: dict[Value, State] = {}
    for value in dict.fromkeys(reached):
        holder = State.holding(value)
        if holder is not None:
            holders[value] = holder
        elif value not in values:
            raise ArgumentError(f"placeholder {value.name}: {value.type} is needed, but is not among the inputs")
    for target in updates:
        holders.setdefault(target.value, target)
    _name_apart([*values, *holders])
    following = [(target.value, tensor.value) for target, tensor in updates.items()]
    for value, update in following:
        if value.type != update.type:
            raise ArgumentError(f"{value.name} is {value.type}; its update is {update.type}")
    graph = ir.build(name, values, [tensor.value for tensor in outputs], following, holders)
    return graph, tuple(holders[value] for value in graph.state)


def _name_apart(values: Iterable[Value]) -> None:
    """Give each value a name that no other has: its own, or with a number behind it."""
    taken: set[str] = set()
    for value in values:
        stem, number = value.name or "state", 1
        value.name = stem
        while value.name in taken:
            number += 1
            value.name = f"{stem}_{number}"
        taken.add(value.name)


class Function:
    """A compiled graph. Call it with arrays, positionally or by name."""

    def __init__(
        self,
        graph: Graph,
        state: Sequence[State],
        *,
        mode: str = "native",
        threads: int | None = None,
        single: bool = False,
    ) -> None:
        self.graph, self.state, self.mode, self.threads = graph, tuple(state), mode, threads
        self._single = single
        self._dtypes = [value.dtype.numpy for value in graph.inputs]
        self._held = Held(graph, self.state)
        self._graphs: dict[Shapes, Graph] = {}
        self._compiled: dict[Shapes, Compilation] = {}
        self._latest: Compilation | None = None
        self._entrances: dict[Shapes, Entrance | None] = {}
        self._enter: Entrance | None = None  # to the latest

    def __call__(self, *args: Any, **named: Any) -> Any:
        """One step: the outputs, with every update done.

        Raises FeedTypeError and FeedError for arrays that do not fit, StateError when a parameter has changed its type
        since, and IndexRangeError for an index (a label) outside its range; the state then is as it was.
        """
        enter = self._enter
        if enter is not None and not named:
            found = enter(args)
            if found is not None:
                return found
        fits = not named and self._fit(args)
        arrays = args if fits else self.feeds(*args, **named)
        state = self._held.arrays()
        if self.mode == "interpret":
            results = self._interpret(arrays, state)
        else:
            shapes = tuple([array.shape for array in arrays])
            compilation = self._compilation(shapes)
            other = self._entrance(shapes, compilation) if fits else None  # the next call may be like this one
            found = other(args) if other is not None and other is not enter else None
            self._enter = other
            if found is not None:
                return found
            results = self._native(compilation, arrays, state)
        if self._single:
            return results[0] if results[0].ndim else results[0][()]
        return tuple([array if array.ndim else array[()] for array in results])

    def bind(self, *args: Any, out: Array | Sequence[Array] | None = None, **named: Any) -> Bound:
        """The function on these arrays: `run = step.bind(x, label)`, then `run()` is a step on what they hold by then.

        Nothing is copied: write the next batch into the bound arrays (`x[...] = batch`). The outputs are written to
        `out` (an array for each), or to arrays that the result makes once: every call returns the same arrays with new
        numbers, a scalar as one of shape (). A parameter's array that is replaced is noticed.

        Raises FeedTypeError and FeedError for arrays that would have to be converted or do not fit, and for inputs that
        share memory with a state that the step updates.
        """
        values = self.graph.inputs
        arrays = [bindable(value, a) for value, a in zip(values, ordered(values, args, named), strict=True)]
        shapes = tuple(array.shape for array in arrays)
        state = self._held.arrays()
        self._require_apart(arrays)
        types = [value.type for value in self._bound(shapes).outputs]
        outputs = outputs_of(types, out, [*arrays, *state])
        if self.mode == "native":
            run = native_run(self._compilation(shapes).executable, self._held, arrays, outputs)
        else:
            run = partial(self._into, outputs, arrays)
        return Bound(
            {value.name: array for value, array in zip(values, arrays, strict=True)}, outputs, self._single, run
        )

    def epoch(
        self, *args: Any, batch_size: int | None = None, seed: Any = None, drop_last: bool = False, **named: Any
    ) -> Any:
        """A step for each batch of a data set, in one native loop: `losses = step.epoch(images, labels, batch_size=64)`

        Inputs are arrays for the whole data set. Those that begin with the batch dimension are cut along their first
        axis into batches of `batch_size` rows, the others are given whole to each step. The batch dimension is the
        first named dimension that an input begins with, or without one the first extent of the first input, which then
        is the `batch_size`.

        seed        None: rows are used in order, where they lie; otherwise in that of
                    `numpy.random.default_rng(seed).permutation(rows)`
        drop_last   leave out the last batch where it is smaller; otherwise the step is compiled for its size, too

        Returns for each output an array with a row for each step, or, where the output begins with the (named) batch
        dimension, with a row for each row of the data in the order of their use.

        Raises ArgumentError, FeedTypeError and FeedError, before the first step, for arguments that do not fit. When a
        step raises (IndexRangeError), the error names its batch, counted from 0, and the state is as the step before
        left it. An interrupt (Ctrl-C) comes through between two steps within about a tenth of a second.
        """
        values = self.graph.inputs
        batches = cut(values, ordered(values, args, named), batch_size, seed, drop_last)
        self._held.arrays()
        self._require_apart(batches.arrays)
        bound = [self._bound(batches.shapes(part)) for part in batches.parts]
        results = batches.results(self.graph.outputs, [[value.type for value in graph.outputs] for graph in bound])
        if self.mode == "native":
            executables = [self._compilation(batches.shapes(part)).executable for part in batches.parts]
            for part, executable in zip(batches.parts, executables, strict=True):
                Loop(executable, self._held, batches, part, results).run()
        else:
            self._epoch_by_steps(batches, results)
        arrays = [result.array for result in results]
        return arrays[0] if self._single else tuple(arrays)

    def ir(self, stage: str = "graph", **sizes: int) -> str:
        """A stage as text: `graph`, `bind`, each pass, `fused`, `plan`, `loops`, `llvm`, `assembly`.

        `sizes` gives numbers to named dimensions; without them it is the version that ran last.
        """
        if stage not in pipeline.STAGES:
            raise ArgumentError(f"there is no stage {stage!r}; there are {', '.join(pipeline.STAGES)}")
        return str(self.graph) if stage == "graph" else self.compilation(**sizes).text(stage)

    @property
    def plan(self) -> Plan:
        """The memory plan of the version that ran last."""
        return self.compilation().plan

    def profile(self, *args: Any, repeat: int = 20, **named: Any) -> profiling.Profile:
        """Time of each call of the step on these feeds, by default on random ones of the sizes that ran last.

        The state stays as it is.
        """
        if args or named:
            arrays, compilation = self.feeds(*args, **named), self.compilation_for(*args, **named)
        else:
            compilation = self.compilation()
            arrays = examples(compilation.stages["bind"])[: len(self.graph.inputs)]
        return profiling.measure(compilation.executable, arrays, self._held.arrays(), repeat)

    def compilation(self, **sizes: int) -> Compilation:
        """Everything that was made for the given sizes of named dimensions, or for those that ran last."""
        if not sizes and self._latest is not None:
            return self._latest
        for dimension, size in sizes.items():
            if not isinstance(size, int | np.integer) or size < 0:
                raise ArgumentError(f"{dimension} must be a whole number from 0 on, not {size!r}")
        names = names_of((*self.graph.inputs, *self.graph.state))
        for dimension in sizes.keys() - names:
            raise ArgumentError(f"{self.graph.name} has no dimension {dimension}, only {', '.join(sorted(names))}")
        missing = sorted(names - set(sizes))
        if missing:
            raise ArgumentError(f"say how large {missing[0]} is ({missing[0]}=64), or call the function first")
        bound = bind(self.graph, sizes)
        return self._compilation(tuple(value.type.extents for value in bound.inputs))

    def compilation_for(self, *args: Any, **named: Any) -> Compilation:
        """Everything that was made for the sizes of these feeds."""
        return self._compilation(tuple(array.shape for array in self.feeds(*args, **named)))

    def feeds(self, *args: Any, **named: Any) -> list[Array]:
        """The arrays of a call as the native step reads them: in order, contiguous, of the inputs' dtypes."""
        values = self.graph.inputs
        return [conform(value, given) for value, given in zip(values, ordered(values, args, named), strict=True)]

    def __reduce__(self) -> Any:
        raise ArgumentError(
            f"{self.graph.name} holds machine code, which is not copied or pickled: pickle modules and optimisers, and "
            "compile again"
        )

    def __repr__(self) -> str:
        inputs = ", ".join(f"{value.name}: {value.type}" for value in self.graph.inputs)
        return f"<graphc function {self.graph.name}({inputs}), {self.mode}, {len(self.state)} states>"

    # Arrays ----------------------------------------------------------------------------------------------------

    def _fit(self, args: tuple[Any, ...]) -> bool:
        """Whether the feeds are arrays that the native step can read as they are, but for their shapes."""
        if len(args) != len(self._dtypes):
            return False
        for array, dtype in zip(args, self._dtypes):
            if type(array) is not np.ndarray or array.dtype is not dtype or not array.flags.carray:
                return False
        return True

    def _bound(self, shapes: Shapes) -> Graph:
        """The graph for inputs of these shapes."""
        found = self._graphs.get(shapes)
        if found is None:
            found = self._graphs[shapes] = bind(self.graph, sizes_of(self.graph.inputs, shapes))
        return found

    def _compilation(self, shapes: Shapes) -> Compilation:
        found = self._compiled.get(shapes)
        if found is None:
            found = pipeline.build(self.graph, sizes_of(self.graph.inputs, shapes), self.threads)
            self._compiled[shapes] = found
        if found is not self._latest:
            self._latest, self._enter = found, None
        return found

    def _entrance(self, shapes: Shapes, compilation: Compilation) -> Entrance | None:
        if self.mode != "native":
            return None
        if shapes not in self._entrances:
            self._entrances[shapes] = entrance(compilation.executable, self._held, self._single)
        return self._entrances[shapes]

    def _require_apart(self, arrays: Sequence[Array]) -> None:
        """Raises FeedError for an input in the memory of a state that steps overwrite while they read it."""
        for value, array in zip(self.graph.inputs, arrays, strict=True):
            state = self._held.overlap(array) if self.graph.next else None
            if state is not None:
                raise FeedError(f"input {value.name} shares memory with {state.name}, which {self.graph.name} updates")

    # Running ---------------------------------------------------------------------------------------------------

    def _epoch_by_steps(self, batches: Batches, results: Sequence[Result]) -> None:
        for part in batches.parts:
            for step in range(part.count):
                try:
                    self._into([result.at(part, step) for result in results], batches.inputs(part, step))
                except GraphcError as error:
                    raise in_batch(error, part.first + step) from None

    def _into(self, outputs: Sequence[Array], arrays: Sequence[Array]) -> None:
        """A step whose outputs are copied."""
        found = self(*arrays)
        for output, array in zip(outputs, [found] if self._single else found, strict=True):
            output[...] = array

    def _native(self, compilation: Compilation, arrays: Sequence[Array], state: tuple[Array, ...]) -> list[Array]:
        if self.graph.next:
            arrays = [array if self._held.overlap(array) is None else array.copy() for array in arrays]
        if self.mode != "check":
            return compilation.executable(arrays, state)
        before = [array.copy() for array in state]
        wanted, following = reference.run(compilation.stages["bind"], [*arrays, *before])
        found = compilation.executable(arrays, state)
        try:
            names = [f"output {n}" for n in range(len(found))] + [s.name for s, _ in self.graph.next]
            results = [*found, *self._next(state)], [*wanted, *following]
            compare.require_all_close(names, *results, compilation.stages["bind"], [*arrays, *before])
        except Exception:
            self._commit(state, before)
            compare.require_equal_kernels(compilation.executable, [*arrays, *before])
            raise
        return found

    def _interpret(self, arrays: Sequence[Array], state: tuple[Array, ...]) -> list[Array]:
        graph = self._bound(tuple([array.shape for array in arrays]))
        results, following = reference.run(graph, [*arrays, *state])
        outputs = [array.copy() for array in results]
        self._commit(self._next(state), [array.copy() for array in following])
        return outputs

    def _next(self, state: tuple[Array, ...]) -> list[Array]:
        """The arrays of the states that a step updates."""
        place = dict(zip(self.graph.state, state, strict=True))
        return [place[value] for value, _ in self.graph.next]

    @staticmethod
    def _commit(targets: Sequence[Array], sources: Sequence[Array]) -> None:
        """Copy all, in one call that an interrupt cannot divide."""
        deque(map(np.ndarray.__setitem__, targets, forever(...), sources), maxlen=0)
