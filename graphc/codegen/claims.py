"""Parallel loops whose iterations threads claim.

    i64 claim(ptr team, i64 tid, i64 loop, i64 extent)
                                    iterations of a loop that nobody else runs: the first in the upper half, the one
                                    behind the last in the lower; 0: none left

Each thread has a piece of a loop, the same as last time, so that its data is near. It claims a part of it
after the other; when nothing is left it claims from the others' pieces: where one is held up, since other processes
take its processor, the others do its work. A thread's word in the team says which loop its piece is of (upper bits) and
how many parts of it are taken (the lowest `COUNT` bits). The loop is numbered by the generation of the barrier and, as
`loop`, by its place among the loops since then; a word of 2**43 barriers ago would be taken for a newer one. A thread
goes to a next loop only when all of the last one is claimed; whoever comes there first numbers the words anew, and
whoever is late finds that nothing was left. All threads must meet between two loops of one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from graphc.codegen.llvm import Body
from graphc.codegen.team import PITCH, field

LOOPS = 16  # loops between two barriers that have numbers of their own
FEWEST = 8  # iterations that are claimed; a loop of fewer is over sooner than a thread that is held up comes back
PARTS = 6  # binary logarithm of the claims that a loop is cut into
COUNT = 16  # bits of a word that count parts: a piece has less than 2**(PARTS + 1)


@contextmanager
def claims(body: Body, loop: int, extent: int) -> Iterator[tuple[str, str]]:
    """Runs what is written inside for each part of a loop that this thread claims: its first iteration, and the one
    behind its last. `loop` counts the loops since the last barrier."""
    body.module.declare("declare i64 @claim(ptr, i64, i64, i64)")
    head, some, none = (body.label(hint) for hint in ("claim", "claimed", "none"))
    body.void(f"br label %{head}")
    body.start(head)
    part = body.emit(f"call i64 @claim(ptr %team, i64 %tid, i64 {loop}, i64 {extent})")
    body.void(f"br i1 {body.emit(f'icmp eq i64 {part}, 0')}, label %{none}, label %{some}")
    body.start(some)
    yield body.emit(f"lshr i64 {part}, 32"), body.emit(f"and i64 {part}, {2**32 - 1}")
    body.void(f"br label %{head}")
    body.start(none)


def emit() -> str:
    """The text of `claim`."""
    return f"""declare i64 @llvm.umin.i64(i64, i64)

define i64 @claim(ptr %team, i64 %tid, i64 %loop, i64 %extent) {{
entry:
{field("generation")}
{field("threads")}
{field("claims")}
  %now = load atomic i64, ptr %generation acquire, align 8
  %n = load i64, ptr %threads
  %base = mul i64 %now, {LOOPS}
  %number = add i64 %base, %loop
  %above = add i64 %number, 1
  %name = shl i64 %above, {COUNT}
  %alone = icmp eq i64 %n, 1
  %shift = select i1 %alone, i64 0, i64 {PARTS}
  %parts = lshr i64 %extent, %shift
  %none.whole = icmp eq i64 %parts, 0
  %part = select i1 %none.whole, i64 1, i64 %parts
  br label %piece
piece:
  %hop = phi i64 [ 0, %entry ], [ %hop1, %following ]
  %sum = add i64 %tid, %hop
  %round = icmp uge i64 %sum, %n
  %less = sub i64 %sum, %n
  %owner = select i1 %round, i64 %less, i64 %sum
  %next.owner = add i64 %owner, 1
  %below = mul i64 %owner, %extent
  %start = udiv i64 %below, %n
  %up.to = mul i64 %next.owner, %extent
  %stop = udiv i64 %up.to, %n
  %skip = mul i64 %owner, {PITCH}
  %word = getelementptr i8, ptr %claims, i64 %skip
  %found = load atomic i64, ptr %word acquire, align 8
  br label %look
look:
  %seen = phi i64 [ %found, %piece ], [ %other, %take ]
  %its = and i64 %seen, {-1 << COUNT}
  %lead = sub i64 %its, %name
  %over = icmp sgt i64 %lead, 0
  br i1 %over, label %nothing, label %current
current:
  %same = icmp eq i64 %lead, 0
  %count = and i64 %seen, {(1 << COUNT) - 1}
  %gone = select i1 %same, i64 %count, i64 0
  %distance = mul i64 %gone, %part
  %first = add i64 %start, %distance
  %left = icmp ult i64 %first, %stop
  br i1 %left, label %take, label %following
take:
  %behind = add i64 %first, %part
  %end = call i64 @llvm.umin.i64(i64 %behind, i64 %stop)
  %more.gone = add i64 %gone, 1
  %new = or i64 %name, %more.gone
  %pair = cmpxchg ptr %word, i64 %seen, i64 %new acq_rel acquire
  %other = extractvalue {{ i64, i1 }} %pair, 0
  %taken = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %taken, label %done, label %look
done:
  %upper = shl i64 %first, 32
  %claimed = or i64 %upper, %end
  ret i64 %claimed
following:
  %hop1 = add i64 %hop, 1
  %more = icmp ult i64 %hop1, %n
  br i1 %more, label %piece, label %nothing
nothing:
  ret i64 0
}}
"""
