"""LLVM text to machine code in this process.

    texts -> modules, parsed and optimised -> object files, by several threads -> linked into one engine

Invariants:
 1. the code lives as long as its `Compiled`, and does not depend on how many threads made it;
 2. vectors and unrolling are written in the text: LLVM neither vectorises nor unrolls by itself, and finds no
    fast-math flag;
 3. LLVM starts at the first call, not at import.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import queue
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from graphc import settings
from graphc.errors import ArgumentError, LoweringError
from graphc.loops.target import Target, from_features

_AVX2 = ("avx", "avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_EMIT = getattr(ffi.lib.LLVMPY_TargetMachineEmitToMemory, "_cfn", ffi.lib.LLVMPY_TargetMachineEmitToMemory)  # no lock
LEVELS = {"x86-64": (), "x86-64-v2": ("sse4.2", "popcnt"), "x86-64-v3": _AVX2, "x86-64-v4": _AVX512}


@dataclass(frozen=True, eq=False, slots=True)
class Compiled:
    """Functions in memory."""

    engine: llvm.ExecutionEngine
    target: str
    modules: tuple[bytes, ...]  # optimised, as bitcode

    def address(self, name: str) -> int:
        """Where a function starts; raises LoweringError when there is none of that name."""
        found = self.engine.get_function_address(name)
        if not found:
            raise LoweringError(f"no function {name} was compiled")
        return int(found)

    @property
    def optimized_llvm(self) -> str:
        """The modules after LLVM's optimiser, as text."""
        return "\n".join(str(llvm.parse_bitcode(module)) for module in self.modules)

    def assembly(self) -> str:
        """The machine code, as text."""
        machine = _machine(self.target)
        return "\n".join(str(machine.emit_assembly(llvm.parse_bitcode(module))) for module in self.modules)


def host_target() -> Target:
    """What kernels are scheduled for: the processor that GRAPHC_TARGET names, by default this one."""
    _, features = _processor(settings.target())
    return from_features(features, platform.machine())


def compile(text: str, symbols: Mapping[str, int] | None = None) -> Compiled:
    """Machine code for this process. `symbols` are the addresses of functions that the text only declares.

    Raises LoweringError with LLVM's message when the text is malformed.
    """
    return compile_all([text], symbols)


def compile_all(texts: Iterable[str], symbols: Mapping[str, int] | None = None, processors: int = 1) -> Compiled:
    """Machine code of modules that may call each other, made by so many threads, this one included.

    The others begin while `texts` are still being written. Raises LoweringError as `compile` does.
    """
    with Compiling(processors) as compiling:
        for text in texts:
            compiling.add(text)
    return compiling.link(symbols or {})


class Compiling:
    """Modules that are made machine code by so many threads: this one, while it adds more, is one of them at the end.

    with Compiling(2) as compiling:
        compiling.add(text)
    compiling.link({}).address("f")
    """

    def __init__(self, processors: int) -> None:
        self.target = settings.target()
        self.modules: list[_Module] = []
        self.objects: list[bytes] = []
        self.waiting: queue.SimpleQueue[_Module | None] = queue.SimpleQueue()
        self.wanted, self.helpers = processors - 1, list[threading.Thread]()

    def __enter__(self) -> Compiling:
        for _ in range(self.wanted):
            helper = threading.Thread(target=_emit_all, args=(self.waiting,), daemon=True)
            try:
                helper.start()
            except RuntimeError:  # there are no more threads to be had, so fewer do the work
                break
            self.helpers.append(helper)
        return self

    def add(self, text: str) -> None:
        """Take one more module. Raises LoweringError with LLVM's message when the text is malformed."""
        self.modules.append(_Module(text, self.target))
        self.waiting.put(self.modules[-1])

    def __exit__(self, failed: object, *rest: object) -> None:
        while failed and not self.waiting.empty():  # nobody will ask for it
            with contextlib.suppress(queue.Empty):
                self.waiting.get_nowait()
        for _ in range(len(self.helpers) + 1):
            self.waiting.put(None)
        _emit_all(self.waiting)
        for helper in self.helpers:
            helper.join()
        try:
            self.objects = [] if failed else [module.object_file() for module in self.modules]
        finally:
            for module in self.modules:
                module.close()

    def link(self, symbols: Mapping[str, int]) -> Compiled:
        """All modules together, once they are made; `symbols` as in `compile`."""
        engine = _engine(symbols, self.target)
        for data in self.objects:
            engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        engine.finalize_object()
        return Compiled(engine, self.target, tuple(module.bitcode for module in self.modules))


class _Module:
    """An optimised module on its way to an object file. A context of its own makes it independent of the others."""

    def __init__(self, text: str, target: str) -> None:
        self.machine = _machine(target)
        self.context = llvm.create_context()
        self.reference = _parsed(text, self.machine, self.context)
        optimize(self.reference, self.machine)
        self.bitcode: bytes = self.reference.as_bitcode()
        self.buffer: int | None = None
        self.failure = "no machine code: a thread failed"

    def emit(self) -> None:
        """Make the machine code, outside of llvmlite's lock.

        llvmlite lets one thread at a time into LLVM, which asks for that only within a context.
        """
        with ffi.OutputString() as error:
            self.buffer = _EMIT(self.machine, self.reference, 1, error)
            if not self.buffer:
                self.failure = f"no machine code: {error}"

    def object_file(self) -> bytes:
        """The object file. Raises LoweringError where there is none."""
        if not self.buffer:
            raise LoweringError(self.failure)
        start, size = ffi.lib.LLVMPY_GetBufferStart(self.buffer), ffi.lib.LLVMPY_GetBufferSize(self.buffer)
        return ctypes.string_at(start, size)

    def close(self) -> None:
        """Give back LLVM's memory."""
        if self.buffer:
            ffi.lib.LLVMPY_DisposeMemoryBuffer(self.buffer)
            self.buffer = None
        self.reference.close()
        self.context.close()  # after the module, which the garbage collector would not know


def _emit_all(waiting: queue.SimpleQueue[_Module | None]) -> None:
    """Make machine code until told that there is no more to come."""
    while (module := waiting.get()) is not None:
        module.emit()


def _engine(symbols: Mapping[str, int], target: str) -> llvm.ExecutionEngine:
    """Memory for machine code, which may call the functions at some addresses."""
    machine = _machine(target)
    module = _parsed("".join(f"declare void @{name}()\n" for name in symbols), machine, None)
    engine = llvm.create_mcjit_compiler(module, machine)
    for name, address in symbols.items():
        engine.add_global_mapping(module.get_function(name), address)
    return engine


def _parsed(text: str, machine: llvm.TargetMachine, context: llvm.ContextRef | None) -> llvm.ModuleRef:
    """The module of a text; without a context in the global one, which outlives everything."""
    try:
        module = llvm.parse_assembly(text, context)
        module.verify()
    except RuntimeError as error:
        raise LoweringError(f"malformed LLVM text: {error}") from error
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    return module


def optimize(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """Run LLVM's passes on a module.

    The text has its common subexpressions and loop invariants where they belong (`codegen.numbers`), and loops that
    end in their test. What is left to do took an eighth of the time of -O1 on a transformer's step (57 ms for 489).
    """
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()  # register tiles
    passes.add_instruction_combine_pass()  # what the vector functions test of constants
    passes.add_simplify_cfg_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1)))


def _machine(name: str) -> llvm.TargetMachine:
    """A new machine for each engine, which takes it over."""
    cpu, features = _processor(name)
    text = ",".join(f"{'+' if on else '-'}{feature}" for feature, on in features.items()) if name == "native" else ""
    return _target().create_target_machine(cpu=cpu, features=text, opt=2, jit=True)


@functools.cache
def _target() -> llvm.Target:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


@functools.cache
def _processor(name: str) -> tuple[str, dict[str, bool]]:
    """LLVM's name of a processor, and its features; raises ArgumentError for what cannot run here."""
    host = dict(llvm.get_host_cpu_features())
    if name == "native":
        return llvm.get_host_cpu_name(), host
    if name not in LEVELS:
        raise ArgumentError(f"GRAPHC_TARGET must be native or one of {', '.join(LEVELS)}, not {name!r}")
    missing = [feature for feature in LEVELS[name] if not host.get(feature, False)]
    if missing:
        raise ArgumentError(f"GRAPHC_TARGET is {name}, but this processor has no {', '.join(missing)}")
    return name, dict.fromkeys(LEVELS[name], True)
