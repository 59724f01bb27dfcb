"""LLVM text to machine code in this process.

Invariants:
 1. the code lives as long as its `Compiled`;
 2. vectors and unrolling are written in the text: LLVM neither vectorises nor unrolls by itself, and finds no
    fast-math flag;
 3. LLVM starts at the first call, not at import.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import llvmlite.binding as llvm

from graphc import settings
from graphc.errors import ArgumentError, LoweringError
from graphc.loops.target import Target, from_features

_AVX2 = ("avx", "avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
LEVELS = {"x86-64": (), "x86-64-v2": ("sse4.2", "popcnt"), "x86-64-v3": _AVX2, "x86-64-v4": _AVX512}


@dataclass(frozen=True, eq=False, slots=True)
class Compiled:
    """Functions in memory."""

    engine: llvm.ExecutionEngine
    machine: llvm.TargetMachine
    bitcode: bytes  # the optimised module

    def address(self, name: str) -> int:
        """Where a function starts; raises LoweringError when there is none of that name."""
        found = self.engine.get_function_address(name)
        if not found:
            raise LoweringError(f"no function {name} was compiled")
        return int(found)

    @property
    def optimized_llvm(self) -> str:
        """The module after LLVM's optimiser, as text."""
        return str(llvm.parse_bitcode(self.bitcode))

    def assembly(self) -> str:
        """The machine code, as text."""
        return str(self.machine.emit_assembly(llvm.parse_bitcode(self.bitcode)))


def host_target() -> Target:
    """What kernels are scheduled for: the processor that GRAPHC_TARGET names, by default this one."""
    _, features = _processor(settings.target())
    return from_features(features, platform.machine())


def compile(text: str, symbols: Mapping[str, int] | None = None) -> Compiled:
    """Machine code for this process. `symbols` are the addresses of functions that the text only declares.

    Raises LoweringError with LLVM's message when the text is malformed.
    """
    machine = _machine(settings.target())
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise LoweringError(f"malformed LLVM text: {error}") from error
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    optimize(module, machine)
    bitcode = module.as_bitcode()
    engine = llvm.create_mcjit_compiler(module, machine)
    for name, address in (symbols or {}).items():
        if any(function.name == name for function in module.functions):
            engine.add_global_mapping(module.get_function(name), address)
    engine.finalize_object()
    return Compiled(engine, machine, bitcode)


def optimize(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """Run LLVM's passes on a module.

    The text has its common subexpressions and loop invariants where they belong (`codegen.numbers`), and loops that
    end in their test. What is left to do takes an eighth of the time of -O1, for hot loops that are the same.
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
