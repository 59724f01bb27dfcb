"""What threads of a team need beside the step: a barrier, work to claim, and loops that wait for steps and share them.

    void barrier(ptr team)                          wait for all threads of the team
    i64  claim(ptr team, i64 tid, i64 loop, i64 extent)
                                                    iterations of a parallel loop that nobody else runs: the first in
                                                    the upper half, the one behind the last in the lower; 0: none left
    i64  work(ptr team, i64 tid, i64 seen, i64 patience)
                                                    run every step that is posted after number `seen`; return the
                                                    last one's when none has come for `patience` looks
    void post(ptr team, ptr step, ptr table)        the next step
    i64  share(ptr team)                            thread 0's part of the posted step; its result

The team is a block of memory, each counter in a cache line of its own.

**Claims.** Each thread has a piece of a loop, the same as last time, so that its data is near. It claims a part of it
after the other; when nothing is left it claims from the others' pieces: where one is held up, since other processes
take its processor, the others do its work. A thread's word in the team says which loop its piece is of (upper bits) and
how many parts of it are taken (the lowest `COUNT` bits). The loop is numbered by the generation of the barrier and, as
`loop`, by its place among the loops since then; a word of 2**43 barriers ago would be taken for a newer one. A thread
goes to a next loop only when all of the last one is claimed; whoever comes there first numbers the words anew, and
whoever is late finds that nothing was left. All threads must meet between two loops of one number.

A thread that waits for work spins, and offers its processor to others now and then.

One that waits at a barrier spins for longer than threads on processors of their own are apart, as a rule: to sleep and
be woken costs more than most of those waits. Who has to wait longer waits for a thread that does not run, since other
processes leave the team less than a processor each. It sleeps, so that the other can have its processor; and so do the
next `NAPS` that wait, almost at once. Then they spin for long again: only who spins finds out that the others are gone.
"""

from __future__ import annotations

ARRIVED, GENERATION, THREADS, POSTED, STEP, TABLE, CLAIMS = 0, 128, 256, 384, 512, 520, 640
PITCH = 128  # bytes from one thread's word to the next
LOOPS = 16  # loops between two barriers that have numbers of their own
FEWEST = 8  # iterations that are claimed; a loop of fewer is over sooner than a thread that is held up comes back
PARTS = 6  # binary logarithm of the claims that a loop is cut into
COUNT = 16  # bits of a word that count parts: a piece has less than 2**(PARTS + 1)
SPINS = 4096  # looks at a counter between two offers of the processor
LONG, SHORT = 16384, 64  # looks at a barrier before sleep: some 300 µs, and one
NAPS = 32  # times that threads sleep after few looks
YIELD, SYSTEM_CALL = "sched_yield", "syscall"
FUTEX = {"x86_64": 202, "aarch64": 98}  # Linux's number of the system call
_FUTEX_WAIT, _FUTEX_WAKE, _EVERYONE = 128, 129, 2**31 - 1  # both private to the process

_FIELDS = {
    "arrived": ARRIVED,
    "generation": GENERATION,
    "sleepers": GENERATION + 8,
    "patience": GENERATION + 16,  # looks before the next sleep: LONG, or SHORT and how many naps are left; 0 at first
    "threads": THREADS,
    "posted": POSTED,
    "step": STEP,
    "table": TABLE,
    "claims": CLAIMS,
}


def size(threads: int) -> int:
    """Bytes of a team."""
    return CLAIMS + PITCH * threads


def _field(name: str) -> str:
    return f"  %{name} = getelementptr i8, ptr %team, i64 {_FIELDS[name]}"


PAUSE = {  # the intrinsic that tells a processor of a spin loop, and its arguments
    "x86_64": ("llvm.x86.sse2.pause", "", ""),
    "aarch64": ("llvm.aarch64.hint", "i32", "i32 1"),
}


def _sleep(futex: int | None) -> str:
    """`doze`: sleep while the low half of a counter is that of `seen`, or offer the processor; `rouse`: wake all."""
    if futex is None:
        return f"""define internal void @doze(ptr %counter, i64 %seen) {{
entry:
  %ignored = call i32 @{YIELD}()
  ret void
}}

define internal void @rouse(ptr %counter) {{
entry:
  ret void
}}"""
    call = f"call i64 (i64, ...) @{SYSTEM_CALL}(i64 {futex}, ptr %counter"
    return f"""declare i64 @{SYSTEM_CALL}(i64, ...)

define internal void @doze(ptr %counter, i64 %seen) {{
entry:
  %low = trunc i64 %seen to i32
  %ignored = {call}, i32 {_FUTEX_WAIT}, i32 %low, ptr null)
  ret void
}}

define internal void @rouse(ptr %counter) {{
entry:
  %ignored = {call}, i32 {_FUTEX_WAKE}, i32 {_EVERYONE})
  ret void
}}"""


def emit(architecture: str, futex: int | None = None) -> str:
    """The module's text; `futex` is the number of the system call, None where there is none."""
    intrinsic = PAUSE.get(architecture)
    declaration = f"declare void @{intrinsic[0]}({intrinsic[1]})" if intrinsic else ""
    relax = f"  call void @{intrinsic[0]}({intrinsic[2]})" if intrinsic else ""
    return f"""declare i32 @{YIELD}()
declare i64 @llvm.umin.i64(i64, i64)
{declaration}

{_sleep(futex)}

define void @relax(i64 %count) alwaysinline {{
entry:
{relax}
  %rest = and i64 %count, {SPINS - 1}
  %tired = icmp eq i64 %rest, {SPINS - 1}
  br i1 %tired, label %offer, label %done
offer:
  %ignored = call i32 @{YIELD}()
  br label %done
done:
  ret void
}}

define void @barrier(ptr %team) {{
entry:
{_field("arrived")}
{_field("generation")}
{_field("sleepers")}
{_field("patience")}
{_field("threads")}
  %before = load atomic i64, ptr %generation acquire, align 8
  %n = load i64, ptr %threads
  %others = atomicrmw add ptr %arrived, i64 1 acq_rel
  %mine = add i64 %others, 1
  %last = icmp eq i64 %mine, %n
  br i1 %last, label %open, label %wait
open:
  store atomic i64 0, ptr %arrived monotonic, align 8
  %ignored = atomicrmw add ptr %generation, i64 1 seq_cst
  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8
  %some = icmp ne i64 %asleep, 0
  br i1 %some, label %wake, label %done
wake:
  call void @rouse(ptr %generation)
  ret void
wait:
  %count = phi i64 [ 0, %entry ], [ %more, %again ], [ 0, %sleep ]
  %now = load atomic i64, ptr %generation acquire, align 8
  %opened = icmp ne i64 %now, %before
  br i1 %opened, label %done, label %closed
closed:
  %limit = load atomic i64, ptr %patience monotonic, align 8
  %enough = icmp uge i64 %count, %limit
  br i1 %enough, label %sleep, label %again
again:
{relax}
  %more = add i64 %count, 1
  br label %wait
sleep:
  %awake = icmp eq i64 %limit, {LONG}
  %fewer = sub i64 %limit, 1
  %short = select i1 %awake, i64 {SHORT + NAPS}, i64 %fewer
  %over = icmp slt i64 %short, {SHORT}
  %next = select i1 %over, i64 {LONG}, i64 %short
  store atomic i64 %next, ptr %patience monotonic, align 8
  %in = atomicrmw add ptr %sleepers, i64 1 seq_cst
  call void @doze(ptr %generation, i64 %before)
  %out = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %wait
done:
  ret void
}}

define i64 @claim(ptr %team, i64 %tid, i64 %loop, i64 %extent) {{
entry:
{_field("generation")}
{_field("threads")}
{_field("claims")}
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

define i64 @work(ptr %team, i64 %tid, i64 %first, i64 %patience) {{
entry:
{_field("threads")}
{_field("posted")}
{_field("step")}
{_field("table")}
  br label %look
look:
  %seen = phi i64 [ %first, %entry ], [ %seen, %again ], [ %now, %run ]
  %count = phi i64 [ 0, %entry ], [ %more, %again ], [ 0, %run ]
  %now = load atomic i64, ptr %posted acquire, align 8
  %new = icmp ne i64 %now, %seen
  br i1 %new, label %run, label %idle
run:
  %function = load ptr, ptr %step
  %memory = load ptr, ptr %table
  %n = load i64, ptr %threads
  %ignored = call i64 %function(ptr %memory, ptr %team, i64 %tid, i64 %n)
  call void @barrier(ptr %team)
  br label %look
idle:
  %enough = icmp uge i64 %count, %patience
  br i1 %enough, label %done, label %again
again:
  call void @relax(i64 %count)
  %more = add i64 %count, 1
  br label %look
done:
  ret i64 %seen
}}

define void @post(ptr %team, ptr %function, ptr %memory) {{
entry:
{_field("posted")}
{_field("step")}
{_field("table")}
  store ptr %function, ptr %step
  store ptr %memory, ptr %table
  %ignored = atomicrmw add ptr %posted, i64 1 release
  ret void
}}

define i64 @share(ptr %team) {{
entry:
{_field("threads")}
{_field("step")}
{_field("table")}
  %function = load ptr, ptr %step
  %memory = load ptr, ptr %table
  %n = load i64, ptr %threads
  %status = call i64 %function(ptr %memory, ptr %team, i64 0, i64 %n)
  call void @barrier(ptr %team)
  ret i64 %status
}}
"""
