"""The way from Python into native code: a builtin function, as the interpreter calls it (`METH_FASTCALL`).

    PyObject *builtin(PyObject *self, PyObject *const *args, Py_ssize_t count)

`self` is a bytes object of the words below. Writes the addresses of the arguments to OBJECTS, runs FUNCTION on ARGUMENT
and returns what NONE is the address of, or where that returns another number than 0 the number. While BUSY's word is
not 0 it does nothing, and returns IN_USE. One of two functions lets go of the interpreter while FUNCTION runs.
"""

from __future__ import annotations

from graphc.codegen.llvm import word

FUNCTION, ARGUMENT, OBJECTS, BUSY, NONE = range(5)
WORDS = 5
KEEPING, LETTING_GO = "keeping", "letting_go"  # names of the two
IN_USE = -2
API = ("PyBytes_AsString", "Py_IncRef", "PyLong_FromLongLong", "PyEval_SaveThread", "PyEval_RestoreThread")
"""What they call, of Python's stable interface."""


def emit() -> str:
    """A module with both, which are the same for all that is called through them."""
    apart = "%thread = call ptr @PyEval_SaveThread()", "call void @PyEval_RestoreThread(ptr %thread)"
    return f"""declare ptr @PyBytes_AsString(ptr)
declare void @Py_IncRef(ptr)
declare ptr @PyLong_FromLongLong(i64)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
{_function(KEEPING)}{_function(LETTING_GO, *apart)}"""


def _function(name: str, before: str = "", after: str = "") -> str:
    return f"""define ptr @{name}(ptr %self, ptr %args, i64 %count) {{
entry:
  %block = call ptr @PyBytes_AsString(ptr %self)
{word("function", "block", FUNCTION, "ptr")}
{word("argument", "block", ARGUMENT, "ptr")}
{word("objects", "block", OBJECTS, "ptr")}
{word("busy", "block", BUSY, "ptr")}
{word("none", "block", NONE, "ptr")}
  %users = load i64, ptr %busy
  %free = icmp eq i64 %users, 0
  br i1 %free, label %object, label %number
object:
  %n = phi i64 [ 0, %entry ], [ %n1, %more ]
  %left = icmp slt i64 %n, %count
  br i1 %left, label %more, label %run
more:
  %from = getelementptr ptr, ptr %args, i64 %n
  %to = getelementptr ptr, ptr %objects, i64 %n
  %address = load ptr, ptr %from
  store ptr %address, ptr %to
  %n1 = add i64 %n, 1
  br label %object
run:
  {before}
  %status = call i64 %function(ptr %argument)
  {after}
  %done = icmp eq i64 %status, 0
  br i1 %done, label %nothing, label %number
nothing:
  call void @Py_IncRef(ptr %none)
  ret ptr %none
number:
  %code = phi i64 [ {IN_USE}, %entry ], [ %status, %run ]
  %result = call ptr @PyLong_FromLongLong(i64 %code)
  ret ptr %result
}}
"""
