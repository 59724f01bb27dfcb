"""An epoch: one native loop that runs a step on one batch after the other.

    i64 epoch(ptr epoch)                                       for a step of one thread
    i64 epoch(ptr epoch, ptr team, i64 tid, i64 threads)       called by every thread of a team

`epoch` is a block of words (the numbers below). Each thread has a table of its own, in which the addresses of what
moves from step to step are set before each step. An input whose rows are taken in some `order` is gathered into a
staging buffer first, by all threads; what lies in order is not copied. The result is 0, or the number of the check that
failed; then `REACHED` is the number of its step, counted like `FIRST`.
"""

from __future__ import annotations

from graphc.codegen.llvm import word

STEP, TABLES, PITCH, MOVES, COUNT, ORDER, ROWS, FIRST, STOP, REACHED = range(10)
WORDS = 10
"""
    STEP      address of the step
    TABLES    address of the first thread's table; the others follow, PITCH bytes apart
    MOVES     address of COUNT moves
    ORDER     address of the numbers (i64) of the data set's rows in the order of their use, or 0: as they lie
    ROWS      rows of a batch
    FIRST     number of the first step to run, up to STOP
"""

ENTRY, BASE, STRIDE, ROW, STAGING = range(5)
MOVE_WORDS = 5
"""
    ENTRY     byte offset of the address in the table
    BASE      address of what step 0 reads or writes, or of row 0 where rows are gathered
    STRIDE    bytes from step to step
    ROW       bytes of a row
    STAGING   address of the rows that were gathered, or 0: not gathered
"""

NAME = "epoch"


def emit(*, threaded: bool) -> str:
    """The module's text."""
    parameters = ", ptr %team, i64 %tid, i64 %threads" if threaded else ""
    number, threads = ("%tid", "%threads") if threaded else ("0", "1")
    meet = "call void @barrier(ptr %team)" if threaded else ""
    return f"""declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
{"declare void @barrier(ptr)" if threaded else ""}

define i64 @{NAME}(ptr noalias %epoch{parameters}) {{
entry:
{word("step", "epoch", STEP, "ptr")}
{word("tables", "epoch", TABLES, "ptr")}
{word("pitch", "epoch", PITCH)}
{word("moves", "epoch", MOVES, "ptr")}
{word("count", "epoch", COUNT)}
{word("order", "epoch", ORDER, "ptr")}
{word("rows", "epoch", ROWS)}
{word("first", "epoch", FIRST)}
{word("stop", "epoch", STOP)}
  %reached = getelementptr i64, ptr %epoch, i64 {REACHED}
  %skip = mul i64 {number}, %pitch
  %table = getelementptr i8, ptr %tables, i64 %skip
  %below = mul i64 {number}, %rows
  %from = udiv i64 %below, {threads}
  %next = add i64 {number}, 1
  %above = mul i64 %next, %rows
  %to = udiv i64 %above, {threads}
  %ordered = icmp eq ptr %order, null
  br label %head
head:
  %n = phi i64 [ %first, %entry ], [ %n1, %passed ]
  %more = icmp slt i64 %n, %stop
  br i1 %more, label %begin, label %done
begin:
  %start = mul i64 %n, %rows
  %chosen = getelementptr i64, ptr %order, i64 %start
  br i1 %ordered, label %each, label %free
free:
  {meet}
  br label %each
each:
  %m = phi i64 [ 0, %begin ], [ 0, %free ], [ %m1, %moved ]
  %left = icmp slt i64 %m, %count
  br i1 %left, label %move, label %ready
move:
  %this = getelementptr [{MOVE_WORDS} x i64], ptr %moves, i64 %m
{word("offset", "this", ENTRY)}
{word("base", "this", BASE, "ptr")}
{word("stride", "this", STRIDE)}
{word("row", "this", ROW)}
{word("staging", "this", STAGING, "ptr")}
  %gathered = icmp ne ptr %staging, null
  br i1 %gathered, label %rows.head, label %advance
advance:
  %distance = mul i64 %n, %stride
  %address = getelementptr i8, ptr %base, i64 %distance
  %slot = getelementptr i8, ptr %table, i64 %offset
  store ptr %address, ptr %slot
  br label %moved
rows.head:
  %r = phi i64 [ %from, %move ], [ %r1, %copy ]
  %rest = icmp slt i64 %r, %to
  br i1 %rest, label %copy, label %moved
copy:
  %chosen.place = getelementptr i64, ptr %chosen, i64 %r
  %number = load i64, ptr %chosen.place
  %source.offset = mul i64 %number, %row
  %source = getelementptr i8, ptr %base, i64 %source.offset
  %target.offset = mul i64 %r, %row
  %target = getelementptr i8, ptr %staging, i64 %target.offset
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %source, i64 %row, i1 false)
  %r1 = add i64 %r, 1
  br label %rows.head
moved:
  %m1 = add i64 %m, 1
  br label %each
ready:
  br i1 %ordered, label %run, label %filled
filled:
  {meet}
  br label %run
run:
  %status = call i64 %step(ptr %table{parameters})
  %failed = icmp ne i64 %status, 0
  br i1 %failed, label %leave, label %passed
leave:
  %mine = icmp eq i64 {number}, 0
  br i1 %mine, label %tell, label %out
tell:
  store i64 %n, ptr %reached
  br label %out
out:
  ret i64 %status
passed:
  %n1 = add i64 %n, 1
  br label %head
done:
  ret i64 0
}}
"""
