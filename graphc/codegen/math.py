"""The elementary functions as vector arithmetic."""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.llvm import Body
from graphc.ir.types import DType

FUNCTIONS: dict[str, Callable[[Body, list[str], DType, int], str]] = {}
