"""The way into a step: NumPy's arrays are looked at, their addresses entered in the table, and the step is run.

    i64 enter(ptr call)       MISFIT where an array is not what the step was compiled for; nothing has been done then.
                              Else what the step returns, or 0 where it has yet to be run.

`call` is a block of words (the numbers below). Objects are read as NumPy's C interface lays them out; `offsets` says
where. An array fits when it is NumPy's own type (no subclass), of the dtype and the extents that it should be,
contiguous, aligned and writeable, and in no memory of a state, where states are updated. Nobody may give it another
shape while it is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

from graphc.codegen.llvm import word

INPUTS, OUTPUTS, STATES, RECORDS, RANGES, KIND, TABLE, OBJECTS = range(8)
"""
    INPUTS    how many arrays are given
    OUTPUTS   how many more are for results, which are new and not looked at
    STATES    how many entries of the table are between those of both
    RECORDS   address of a record for each input, one behind the other
    RANGES    address of where each state's memory begins and where it has ended, or 0: no state is updated
    KIND      address of NumPy's type
    TABLE     address of the table
    OBJECTS   from here on: the addresses of the objects, inputs then outputs
"""

DTYPE, BYTES, RANK, EXTENTS = range(4)
"""
    DTYPE     address of the dtype's object
    BYTES     of the array
    RANK      how many extents follow
"""

NAME = "enter"
MISFIT = -1
FLAGS = 0x501  # NumPy's bits: C-contiguous, aligned, writeable


class Offsets(NamedTuple):
    """Bytes from the start of an array's object to its fields."""

    kind: int
    data: int
    rank: int
    extents: int
    dtype: int
    flags: int


def offsets_behind(head: int) -> Offsets:
    """Those of `PyArrayObject_fields` (numpy/ndarraytypes.h) behind what every object begins with, its type last."""
    return Offsets(kind=head - 8, data=head, rank=head + 8, extents=head + 16, dtype=head + 40, flags=head + 48)


def emit(offsets: Offsets, *, runs: bool) -> str:
    """The function's text, for a module with the step, which it runs or not."""
    run = "%status = call i64 @step(ptr %table)\n  ret i64 %status" if runs else "ret i64 0"
    return f"""define i64 @{NAME}(ptr %call) {{
entry:
{word("inputs", "call", INPUTS)}
{word("outputs", "call", OUTPUTS)}
{word("states", "call", STATES)}
{word("records", "call", RECORDS, "ptr")}
{word("ranges", "call", RANGES, "ptr")}
{word("kind", "call", KIND, "ptr")}
{word("table", "call", TABLE, "ptr")}
  %objects = getelementptr i64, ptr %call, i64 {OBJECTS}
  %updated = icmp ne ptr %ranges, null
  %apart.from = select i1 %updated, i64 %states, i64 0
  br label %input
input:
  %n = phi i64 [ 0, %entry ], [ %n1, %fits ]
  %record = phi ptr [ %records, %entry ], [ %record1, %fits ]
  %is.input = icmp ult i64 %n, %inputs
  br i1 %is.input, label %object, label %output
object:
  %slot = getelementptr ptr, ptr %objects, i64 %n
  %array = load ptr, ptr %slot
{_field("found.kind", offsets.kind, "ptr")}
  %is.array = icmp eq ptr %found.kind, %kind
  br i1 %is.array, label %fields, label %misfit
fields:
{word("dtype", "record", DTYPE, "ptr")}
{word("bytes", "record", BYTES)}
{word("rank", "record", RANK)}
{_field("found.dtype", offsets.dtype, "ptr")}
{_field("found.rank", offsets.rank, "i32")}
{_field("found.flags", offsets.flags, "i32")}
{_field("found.extents", offsets.extents, "ptr")}
{_field("start", offsets.data, "i64")}
  %wide.rank = zext i32 %found.rank to i64
  %some.flags = and i32 %found.flags, {FLAGS}
  %same.dtype = icmp eq ptr %found.dtype, %dtype
  %same.rank = icmp eq i64 %wide.rank, %rank
  %same.flags = icmp eq i32 %some.flags, {FLAGS}
  %same.both = and i1 %same.dtype, %same.rank
  %same = and i1 %same.both, %same.flags
  %extents = getelementptr i64, ptr %record, i64 {EXTENTS}
  %record1 = getelementptr i64, ptr %extents, i64 %rank
  br i1 %same, label %axis, label %misfit
axis:
  %a = phi i64 [ 0, %fields ], [ %a1, %extent ]
  %is.axis = icmp ult i64 %a, %rank
  br i1 %is.axis, label %extent, label %apart
extent:
  %wanted.place = getelementptr i64, ptr %extents, i64 %a
  %wanted = load i64, ptr %wanted.place
  %given.place = getelementptr i64, ptr %found.extents, i64 %a
  %given = load i64, ptr %given.place
  %a1 = add i64 %a, 1
  %same.extent = icmp eq i64 %given, %wanted
  br i1 %same.extent, label %axis, label %misfit
apart:
  %end = add i64 %start, %bytes
  br label %state
state:
  %s = phi i64 [ 0, %apart ], [ %s1, %memory ]
  %is.state = icmp ult i64 %s, %apart.from
  br i1 %is.state, label %memory, label %fits
memory:
  %range = getelementptr [2 x i64], ptr %ranges, i64 %s
{word("first", "range", 0)}
{word("last", "range", 1)}
  %s1 = add i64 %s, 1
  %before = icmp ule i64 %end, %first
  %behind = icmp uge i64 %start, %last
  %is.apart = or i1 %before, %behind
  br i1 %is.apart, label %state, label %misfit
fits:
  %entry.place = getelementptr i64, ptr %table, i64 %n
  store i64 %start, ptr %entry.place
  %n1 = add i64 %n, 1
  br label %input
output:
  %o = phi i64 [ 0, %input ], [ %o1, %result ]
  %is.output = icmp ult i64 %o, %outputs
  br i1 %is.output, label %result, label %run
result:
  %m = add i64 %inputs, %o
  %result.slot = getelementptr ptr, ptr %objects, i64 %m
  %result.array = load ptr, ptr %result.slot
{_field("result.start", offsets.data, "i64", block="result.array")}
  %t = add i64 %m, %states
  %result.place = getelementptr i64, ptr %table, i64 %t
  store i64 %result.start, ptr %result.place
  %o1 = add i64 %o, 1
  br label %output
run:
  {run}
misfit:
  ret i64 {MISFIT}
}}
"""


def _field(name: str, offset: int, kind: str, block: str = "array") -> str:
    return f"  %{name}.at = getelementptr i8, ptr %{block}, i64 {offset}\n  %{name} = load {kind}, ptr %{name}.at"
