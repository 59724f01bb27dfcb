"""Native functions as builtin functions of Python: a call takes a twentieth of a microsecond; by ctypes, a quarter.

Invariants:
 1. while one runs that keeps the interpreter, no other Python thread does anything: what it works on needs no lock
    against others that keep it, and a word, `busy`, against those that let go of it;
 2. they are called with as many arguments as there is room for.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

from graphc.codegen import builtin as code
from graphc.codegen.jit import Compiled, compile
from graphc.runtime.memory import OFFSETS

ONE_AT_A_TIME = OFFSETS is not None and getattr(sys, "_is_gil_enabled", lambda: True)()  # of threads in the interpreter
_FASTCALL = 0x80


class _Method(ctypes.Structure):
    """`PyMethodDef` of Python's C interface."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)


_FREE = ctypes.c_int64(0)


def builtin(
    function: int, argument: int, objects: int = 0, *, busy: ctypes.c_int64 | None = None, keeps: bool = True
) -> Callable[..., int | None]:
    """The native function at an address, `i64 function(ptr)`, on an argument: None for 0, else what it returns.

    What it is called with goes to `objects`: the address of each. IN_USE while `busy` is not 0: nothing has been done
    then. `keeps` the interpreter while it runs, or lets go of it. Whoever calls it keeps alive what is at all these
    addresses, and `busy`.
    """
    words = (ctypes.c_uint64 * code.WORDS)()
    for place, value in {
        code.FUNCTION: function,
        code.ARGUMENT: argument,
        code.OBJECTS: objects,
        code.BUSY: ctypes.addressof(_FREE if busy is None else busy),
        code.NONE: id(None),
    }.items():
        words[place] = value
    made: Callable[..., int | None] = _make(ctypes.addressof(_method(keeps)), bytes(words), None)
    return made


@functools.cache
def _method(keeps: bool) -> Any:
    """How Python calls all of a kind. It and the code live for ever: longer than this module, when Python ends."""
    name = code.KEEPING if keeps else code.LETTING_GO
    method = _Method(name.encode(), _compiled().address(name), _FASTCALL, None)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(method))
    return method


@functools.cache
def _compiled() -> Compiled:
    addresses = {name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in code.API}
    compiled = compile(code.emit(), addresses)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(compiled))
    return compiled
