"""What threads of a team need beside the step: a barrier, a loop that waits for work, and the call that shares a step.

    void barrier(ptr team)                          wait for all threads of the team
    i64  work(ptr team, i64 tid, i64 seen, i64 patience)
                                                    run every step that is posted after number `seen`; return the
                                                    last one's when none has come for `patience` looks
    void post(ptr team, ptr step, ptr table)        the next step
    i64  share(ptr team)                            thread 0's part of the posted step; its result
    ptr  part(ptr team, i64 number, i64 count)      one of the teams into which this one divides, of `count` threads:
                                                    they all ask for it, and may use it when the whole team has met

The team is a block of memory, each counter in a cache line of its own. A thread that
waits for work spins, and offers its processor to others now and then.

Behind a team's memory is room for as many teams as it has threads, into which it may divide for a while. Each uses what
the one before left there, so that barriers and claims go on counting. A team that is a part has no room to divide.

One that waits at a barrier spins for longer than threads on processors of their own are apart, as a rule: to sleep and
be woken costs more than most of those waits. Who has to wait longer waits for a thread that does not run, since other
processes leave the team less than a processor each. It sleeps, so that the other can have its processor; and so do the
next `NAPS` that wait, almost at once. Then they spin for long again: only who spins finds out that the others are gone.
"""

from __future__ import annotations

ARRIVED, GENERATION, THREADS, POSTED, STEP, TABLE, CLAIMS = 0, 128, 256, 384, 512, 520, 640
PITCH = 128  # bytes from the word in which one thread claims (`codegen.claims`) to the next one's
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
    """Bytes of a team that does not divide."""
    return CLAIMS + PITCH * threads


def divisible_size(threads: int) -> int:
    """Bytes of a team and of those into which it may divide."""
    return (1 + threads) * size(threads)


def field(name: str) -> str:
    """The line that gives a field's address its name."""
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


def _relax(relax: str) -> str:
    return f"""define void @relax(i64 %count) alwaysinline {{
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
}}"""


def _barrier(relax: str) -> str:
    return f"""define void @barrier(ptr %team) {{
entry:
{field("arrived")}
{field("generation")}
{field("sleepers")}
{field("patience")}
{field("threads")}
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
}}"""


def _steps() -> str:
    return f"""define i64 @work(ptr %team, i64 %tid, i64 %first, i64 %patience) {{
entry:
{field("threads")}
{field("posted")}
{field("step")}
{field("table")}
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
{field("posted")}
{field("step")}
{field("table")}
  store ptr %function, ptr %step
  store ptr %memory, ptr %table
  %ignored = atomicrmw add ptr %posted, i64 1 release
  ret void
}}

define i64 @share(ptr %team) {{
entry:
{field("threads")}
{field("step")}
{field("table")}
  %function = load ptr, ptr %step
  %memory = load ptr, ptr %table
  %n = load i64, ptr %threads
  %status = call i64 %function(ptr %memory, ptr %team, i64 0, i64 %n)
  call void @barrier(ptr %team)
  ret i64 %status
}}"""


def _part() -> str:
    return f"""define ptr @part(ptr %team, i64 %number, i64 %count) {{
entry:
{field("threads")}
  %n = load i64, ptr %threads
  %words = mul i64 %n, {PITCH}
  %size = add i64 %words, {CLAIMS}
  %place = add i64 %number, 1
  %behind = mul i64 %place, %size
  %part = getelementptr i8, ptr %team, i64 %behind
  %its.threads = getelementptr i8, ptr %part, i64 {THREADS}
  store atomic i64 %count, ptr %its.threads monotonic, align 8
  ret ptr %part
}}"""


def emit(architecture: str, futex: int | None = None) -> str:
    """The module's text; `futex` is the number of the system call, None where there is none."""
    intrinsic = PAUSE.get(architecture)
    declaration = f"declare void @{intrinsic[0]}({intrinsic[1]})" if intrinsic else ""
    relax = f"  call void @{intrinsic[0]}({intrinsic[2]})" if intrinsic else ""
    declared = f"declare i32 @{YIELD}()\n{declaration}"
    return "\n\n".join([declared, _sleep(futex), _relax(relax), _barrier(relax), _steps(), _part()]) + "\n"
