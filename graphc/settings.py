"""Every GRAPHC_* environment variable, read once per use so that tests and notebooks may change them.

| variable       | meaning                                                              |
|----------------|----------------------------------------------------------------------|
| GRAPHC_DEBUG   | 0 silent; 1 one line per compilation; 2 ledger; 3 fused IR; 4 loops  |
| GRAPHC_DUMP    | directory that receives every stage of every compilation as text     |
| GRAPHC_THREADS | default of `compile(threads=)`                                       |
| GRAPHC_TARGET  | `native` (default), or an LLVM CPU name such as `x86-64-v3`          |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from graphc.errors import ArgumentError

MOST_THREADS = 256  # of a step; beyond, systems run out of threads before graphc can say so


def debug() -> int:
    """Verbosity, 0 to 4."""
    text = os.environ.get("GRAPHC_DEBUG") or "0"
    if text not in ("0", "1", "2", "3", "4"):
        raise ArgumentError(f"GRAPHC_DEBUG must be 0, 1, 2, 3 or 4, not {text!r}")
    return int(text)


def dump_directory() -> Path | None:
    """Where stages are written, made if it is not there; None for nowhere."""
    text = os.environ.get("GRAPHC_DUMP", "")
    if not text:
        return None
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"GRAPHC_DUMP: {text!r} cannot be a directory: {error.strerror}") from None
    return Path(text)


def file_name(text: str) -> str:
    """A name for a dump: whatever a function is called, it stays inside its directory."""
    return re.sub(r"[^\w.-]", "_", text)[-200:]


def threads() -> int | None:
    """Default thread count, or None to let the compiler choose."""
    text = os.environ.get("GRAPHC_THREADS", "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise ArgumentError(f"GRAPHC_THREADS must be a number from 1 to {MOST_THREADS}, not {text!r}")
    return int(text)


def target() -> str:
    """CPU to generate code for."""
    return os.environ.get("GRAPHC_TARGET", "native") or "native"
