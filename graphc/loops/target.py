"""The processor that kernels are scheduled for: a few numbers, nothing else.

Sizes are in bytes. A schedule made for one target is correct on every other; only its speed differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Vector width in f32 lanes, vector registers, whether a fused multiply-add is an instruction, and caches."""

    name: str
    lanes_f32: int
    registers: int
    fma: bool
    l1: int = 32 * 1024
    l2: int = 512 * 1024

    def lanes(self, itemsize: int) -> int:
        """Elements of `itemsize` bytes that fill one register."""
        return max(1, self.lanes_f32 * 4 // max(itemsize, 4))


X86_64 = Target("x86-64", lanes_f32=4, registers=16, fma=False)
AVX2 = Target("avx2", lanes_f32=8, registers=16, fma=True)
AVX512 = Target("avx512", lanes_f32=16, registers=32, fma=True, l2=1024 * 1024)
AARCH64 = Target("aarch64", lanes_f32=4, registers=32, fma=True, l1=64 * 1024)

TARGETS: dict[str, Target] = {target.name: target for target in (X86_64, AVX2, AVX512, AARCH64)}


def from_features(features: Mapping[str, bool], architecture: str) -> Target:
    """The target for a processor's features (LLVM's names) and architecture (as in `platform.machine()`)."""
    if architecture.lower() in ("aarch64", "arm64"):
        return AARCH64
    if all(features.get(name, False) for name in ("avx512f", "avx512vl", "avx512dq", "avx512bw")):
        return AVX512
    if features.get("avx2", False) and features.get("fma", False):
        return AVX2
    return X86_64
