"""LLVM text to machine code in this process.

Invariants:
 1. the code lives as long as its `Compiled`;
 2. vectors and unrolling are written in the text: LLVM does not vectorise or unroll by itself, and no fast-math flag
    exists for it to use;
 3. nothing is initialised before the first `compile`.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from graphc import settings
from graphc.errors import LoweringError
from graphc.loops.target import Target, from_features

# The optimiser's level: 2 costs 1.5 times as long to compile and runs no faster, 0 leaves locals in memory.
SPEED_LEVEL = 1


@dataclass(frozen=True, eq=False)
class Compiled:
    """Functions in memory."""

    engine: llvm.ExecutionEngine
    module: llvm.ModuleRef
    machine: llvm.TargetMachine

    def address(self, name: str) -> int:
        """Where the function starts; raises LoweringError when there is none of that name."""
        found = self.engine.get_function_address(name)
        if not found:
            raise LoweringError(f"no function {name} was compiled")
        return int(found)

    @property
    def optimized_llvm(self) -> str:
        return str(self.module)

    def assembly(self) -> str:
        return str(self.machine.emit_assembly(self.module))


def host_target() -> Target:
    """What kernels are scheduled for: the processor of GRAPHC_TARGET, by default this one."""
    return from_features(_features(settings.target()), platform.machine())


def compile(text: str, symbols: dict[str, int] | None = None) -> Compiled:
    """Machine code for this process. `symbols` are addresses of functions that the text declares.

    Raises LoweringError with LLVM's message for malformed text.
    """
    machine = _machine(settings.target())
    for name, address in (symbols or {}).items():
        llvm.add_symbol(name, address)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise LoweringError(f"malformed LLVM text: {error}") from error
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    optimize(module, machine, SPEED_LEVEL)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return Compiled(engine, module, machine)


def optimize(module: llvm.ModuleRef, machine: llvm.TargetMachine, level: int) -> None:
    """Run LLVM's passes on a module."""
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
