"""Native code against the loop interpreter: the same bits, kernel by kernel."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from graphc.codegen import jit
from graphc.codegen.emit import emit, emit_module, returns_status
from graphc.errors import ArgumentError, LoweringError
from graphc.loops.interpret import CheckFailed, run
from graphc.loops.ir import Buffer, Function
from graphc.loops.target import AARCH64, AVX2, AVX512, X86_64, Target
from graphc.loops.text import parse_function
from graphc.loops.verify import verify
from graphc.runtime.executable import symbols
from graphc.runtime.team import members

Array = np.ndarray[Any, Any]
GUARD = 16  # elements on either side of an output that must stay as they are


def native(function: Function, inputs: Sequence[Array], threads: int = 0) -> tuple[tuple[Array, ...], int]:
    """Outputs and status of the compiled function. `threads` > 0: by that many threads at once."""
    compiled = jit.compile(emit(function, jit.host_target(), threaded=threads > 0), symbols(2))
    guarded = [_guarded(buffer) for buffer in (*function.outputs, *function.scratch)]
    given = [np.ascontiguousarray(a, b.dtype.numpy) for a, b in zip(inputs, function.inputs, strict=True)]
    pointers = [a.ctypes.data for a in given]
    pointers += [a.ctypes.data + GUARD * a.itemsize for a in guarded]
    before = [a.copy() for a in guarded]
    status = _call(compiled.address(function.name), returns_status(function), pointers, threads)
    for array, old in zip(guarded, before, strict=True):
        assert array[:GUARD].tobytes() == old[:GUARD].tobytes()
        assert array[-GUARD:].tobytes() == old[-GUARD:].tobytes()
    outputs = guarded[: len(function.outputs)]
    return tuple(a[GUARD:-GUARD].reshape(b.shape) for a, b in zip(outputs, function.outputs, strict=True)), status


def _guarded(buffer: Buffer) -> Array:
    """Room for a buffer, poisoned as the interpreter does, between guards."""
    size = int(np.prod(buffer.shape)) + 2 * GUARD
    dtype = buffer.dtype.numpy
    poison = np.nan if buffer.dtype.is_float else np.iinfo(dtype).min if buffer.dtype.is_int else True
    return np.full(size, poison, dtype)


def _call(address: int, status: bool, pointers: list[int], threads: int) -> int:
    team = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64] if threads else []
    kind = ctypes.CFUNCTYPE(ctypes.c_int64 if status else None, *[ctypes.c_void_p] * len(pointers), *team)
    function = kind(address)
    if not threads:
        return int(function(*pointers) or 0)
    found, team = [0] * threads, members(threads)

    def work(number: int) -> None:
        found[number] = int(function(*pointers, team.ctypes.data, number, threads) or 0)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(found)


def same(a: Array, b: Array) -> bool:
    """Equal bits, any NaN being like another."""
    both_nan = (a != a) & (b != b)
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.where(both_nan, 0, a).tobytes() == np.where(both_nan, 0, b).tobytes()
    )


def sample(function: Function, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    found: list[Array] = []
    for buffer in function.inputs:
        match buffer.dtype.value:
            case "f32" | "f64":
                array = generator.standard_normal(buffer.shape)
            case "bool":
                array = generator.random(buffer.shape) < 0.7
            case _:
                array = generator.integers(-3, 12, buffer.shape)
        found.append(array.astype(buffer.dtype.numpy))
    return found


def agree(text: str, *inputs: Array, threads: int = 0) -> tuple[Array, ...]:
    """The outputs of a kernel, after verifying it and running it both ways."""
    function = parse_function(text)
    verify(function)
    given = list(inputs) or sample(function)
    outputs, status = native(function, given, threads)
    assert status == 0
    for ours, theirs in zip(outputs, run(function, given), strict=True):
        assert same(ours, theirs), f"native {ours}\ninterpreted {theirs}"
    return outputs


KERNELS = {
    "scalars": """
        kernel f(x: f32[5] in, y: f32[5] out) {
          for i 5 {
            let t = mul(x[i], x[4-1*i])
            y[i] = add(t, 0.5:f32)
          }
        }""",
    "vectors with a tail": """
        kernel f(x: f32[42] in, y: f32[42] out) {
          for i 2 {
            for v vector 16 lanes 16 {
              y[16*i+v] = mul(x[16*i+v], x[0])
            }
          }
          for v vector 10 lanes 16 {
            y[v+32] = neg(x[v+32])
          }
        }""",
    "a vector loop of one lane": """
        kernel f(x: f32[4] in, y: f32[4] out) {
          for i 4 {
            for v vector 1 lanes 1 {
              y[i+v] = neg(x[i+v])
            }
          }
        }""",
    "one iteration of a wide vector": """
        kernel f(x: f32[4] in, y: f32[4] out) {
          for i 4 {
            for v vector 1 lanes 8 {
              y[i+v] += neg(x[i+v])
            }
          }
        }""",
    "strided loads and stores": """
        kernel f(x: f32[5,13] in, y: f32[13,5] out) {
          for i 5 {
            for v vector 13 lanes 16 {
              y[v, i] = x[i, v]
            }
          }
        }""",
    "reversed": """
        kernel f(x: f64[13] in, y: f64[13] out) {
          for v vector 13 lanes 16 {
            y[v] = x[12-1*v]
          }
        }""",
    "division and remainder of the lane": """
        kernel f(x: f32[7] in, y: f32[3,14] out, z: i64[14] out) {
          for i 3 {
            for v vector 14 lanes 16 {
              y[i, v] = x[(i+v)%7]
            }
          }
          for v vector 14 lanes 16 {
            z[v] = position((v-5)/3+10*(v-20)%4):i64
          }
        }""",
    "division and remainder of a counter": """
        kernel f(x: f32[7] in, y: f32[14] out, z: i32[14] out) {
          for i 14 {
            y[i] = x[(i+3)%7]
            z[i] = position((i-5)/3+10*(i-20)%4):i32
          }
        }""",
    "padding along the lanes": """
        kernel f(x: f32[9] in, y: f32[16] out, z: f32[2,16] out) {
          for v vector 16 lanes 16 {
            y[v] = x[v-3] if v-3>=0 and 11-1*v>=0 else -1.5
          }
          for i 2 {
            for v vector 16 lanes 16 {
              z[i, v] = x[v+i-4] if i+v-4>=0 and 12-1*i-1*v>=0 else 0.0
            }
          }
        }""",
    "padding across the lanes": """
        kernel f(x: f32[3,16] in, y: f32[6,16] out, z: f32[6] out) {
          for i 6 {
            for v vector 16 lanes 16 {
              y[i, v] = x[i-1, v] if i-1>=0 and 3-1*i>=0 else 2.5
            }
            z[i] = x[i-2, 3] if i-2>=0 and 4-1*i>=0 else inf
          }
        }""",
    "an element that some lanes read": """
        kernel f(x: f32[3] in, y: f32[4,16] out) {
          for i 4 {
            for v vector 16 lanes 16 {
              y[i, v] = x[i] if v-5>=0 and 2-1*i>=0 else 7.0
            }
          }
        }""",
    "every second element, dilated": """
        kernel f(x: f32[5] in, y: f32[2,12] out) {
          for i 2 {
            for v vector 12 lanes 16 {
              y[i, v] = x[(i+v)/2] if (i+v)%2==0 and 9-1*i-1*v>=0 else 0.0
            }
          }
        }""",
    "lines that are asked for, also where there are none": """
        kernel f(x: f32[5,16] in, y: f32[5,16] out) {
          for i parallel 5 {
            prefetch x[i+1, 0]
            for v vector 16 lanes 16 {
              prefetch x[i+900, v]
              y[i, v] = x[i, v]
            }
          }
        }""",
    "transposed squares": """
    kernel f(x: f32[16,16] in, n: i64[4,4] in, b: bool[4,4] in, y: f32[16,16] out, m: i64[4,4] out, c: bool[4,4] out) {
          local square: f32[16,16]
          for v vector 16 lanes 16 {
            for u unrolled 16 {
              square[u, v] = x[u, v]
            }
          }
          transpose square
          for v vector 16 lanes 16 {
            for u unrolled 16 {
              y[u, v] = square[u, v]
            }
          }
          local small: i64[4,4]
          for v vector 4 lanes 4 {
            for u unrolled 4 {
              small[u, v] = n[u, v]
            }
          }
          transpose small
          for v vector 4 lanes 4 {
            for u unrolled 4 {
              m[u, v] = small[u, v]
            }
          }
          local flags: bool[4,4]
          for v vector 4 lanes 4 {
            for u unrolled 4 {
              flags[u, v] = b[u, v]
            }
          }
          transpose flags
          for v vector 4 lanes 4 {
            for u unrolled 4 {
              c[u, v] = flags[u, v]
            }
          }
        }""",
    "unrolled padding": """
        kernel f(x: f32[4] in, y: f32[6] out) {
          for i unrolled 6 {
            y[i] = x[i-1] if i-1>=0 and 4-1*i>=0 else 9.0
          }
        }""",
    "serial inside a vector": """
        kernel f(x: f32[12,9] in, y: f32[12] out, z: f32[9] out) {
          local kept: f32[144]
          for u 9 {
            z[u] = 0.0:f32
          }
          for v vector 12 lanes 16 {
            y[v] = 0.0:f32
            for i 9 {
              let t = x[v, i]
              kept[16*i+v] = abs(t)
              y[v] += t
            }
            let sum = y[v]
            for j 9 {
              let k = kept[16*j+v]
              z[j] += div(k, sum)
            }
          }
        }""",
    "unrolled inside a vector": """
        kernel f(x: f32[4,16] in, y: f32[4,16] out) {
          for v vector 12 lanes 16 {
            for i unrolled 4 {
              y[i, v] = x[i, v]
            }
          }
        }""",
    "a sum over lanes": """
        kernel f(x: f32[40] in, y: f32[] out) {
          y[] = 0.0:f32
          for i 2 {
            for v vector 16 lanes 16 {
              y[] += x[16*i+v]
            }
          }
          for v vector 7 lanes 16 {
            y[] += x[v+32]
          }
        }""",
    "all reductions": """
        kernel f(x: f32[11] in, n: i64[11] in, p: bool[11] in, y: f32[4] out, m: i64[4] out, q: bool[4] out) {
          for i 4 {
            y[i] = 1.0:f32
            m[i] = 1:i64
          }
          q[0] = true
          q[1] = false
          q[2] = true
          q[3] = false
          for v vector 11 lanes 16 {
            y[0] += x[v]
            y[1] *= x[v]
            y[2] max= x[v]
            y[3] min= x[v]
            m[0] += n[v]
            m[1] *= n[v]
            m[2] max= n[v]
            m[3] min= n[v]
            q[0] and= p[v]
            q[1] or= p[v]
            q[2] min= p[v]
            q[3] max= p[v]
          }
        }""",
    "a reduction whose lanes meet": """
        kernel f(x: f32[16] in, y: f32[4] out, z: f32[30] out) {
          for i 4 {
            y[i] = 0.0:f32
          }
          for i 30 {
            z[i] = 0.0:f32
          }
          for v vector 15 lanes 16 {
            y[(v)/4] += x[v]
            z[2*v] += x[v]
          }
        }""",
    "a register tile with a tail": """
        kernel f(a: f32[3,5] in, b: f32[5,24] in, c: f32[3,24] out) {
          local acc: f32[3,32]
          for i unrolled 3 {
            for v vector 16 lanes 16 {
              acc[i, v] = 0.0:f32
            }
            for v vector 8 lanes 16 {
              acc[i, v+16] = 0.0:f32
            }
          }
          for k 5 {
            for i unrolled 3 {
              for v vector 16 lanes 16 {
                acc[i, v] = fma(a[i, k], b[k, v], acc[i, v])
              }
              for v vector 8 lanes 16 {
                acc[i, v+16] = fma(a[i, k], b[k, v+16], acc[i, v+16])
              }
            }
          }
          for i unrolled 3 {
            for v vector 16 lanes 16 {
              c[i, v] = acc[i, v]
            }
            for v vector 8 lanes 16 {
              c[i, v+16] = acc[i, v+16]
            }
          }
        }""",
    "a dense local under a masked vector": """
        kernel f(x: f32[3,10] in, y: f32[3,10] out) {
          local t: f32[3,10]
          for i 3 {
            for v vector 10 lanes 16 {
              t[2-1*i, v] = x[i, v]
            }
          }
          for i 3 {
            for v vector 10 lanes 16 {
              y[i, v] = t[i, v]
            }
          }
        }""",
    "gathers": """
        kernel f(x: f32[4,6,3] in, n: i64[16] in, m: i32[4] in, y: f32[4,16] out, z: f32[4,3] out, s: f32[16] out) {
          for i 4 {
            for v vector 16 lanes 16 {
              let at = n[v]
              y[i, v] = x[i, @at, 1]
            }
            for v vector 3 lanes 4 {
              z[i, v] = x[3-1*i, @m[i], v]
            }
          }
          for i 16 {
            s[i] = x[0, @n[i], 2]
          }
        }""",
    "gathers from what is flat": """
        kernel f(x: f32[9] in, n: i64[20] in, y: f32[20] out) {
          for v vector 16 lanes 16 {
            y[v] = x[@n[v]]
          }
          for v vector 4 lanes 16 {
            y[v+16] = x[@n[v+16]]
          }
        }""",
    "scattered additions": """
        kernel f(x: f32[16,5] in, n: i64[16] in, y: f32[2,6,5] out, z: f32[6] out) {
          for i 12 {
            for v vector 5 lanes 8 {
              y[(i)/6, (i)%6, v] = 0.0:f32
            }
          }
          for i 6 {
            z[i] = 0.0:f32
          }
          for i 16 {
            for v vector 5 lanes 8 {
              y[1, @n[i], v] += x[i, v]
            }
            y[0, @n[i], 2] += x[i, 0]
          }
          for v vector 13 lanes 16 {
            z[@n[v]] += x[v, 1]
          }
        }""",
    "conditions around statements": """
        kernel f(x: f32[8,16] in, y: f32[8,16] out, z: f32[8] out) {
          for i 8 {
            z[i] = 0.0:f32
            for v vector 16 lanes 16 {
              y[i, v] = 0.0:f32
            }
            if i-2>=0 {
              for v vector 16 lanes 16 {
                y[i, v] = 1.0:f32
              }
            }
            for v vector 13 lanes 16 {
              if v-1*i>=0 and 5-1*i>=0 {
                y[i, v] = x[i, v-1*i]
                z[i] += x[i+2, v-1*i]
              }
              if v-12>=0 {
                z[i] = 5.0:f32
              }
              if v-1*i-9>=0 {
                z[i] = x[i, 4]
              }
            }
          }
        }""",
    "scattered additions under a condition": """
        kernel f(x: f32[16] in, n: i32[16] in, y: f32[6] out) {
          for i 6 {
            y[i] = 0.0:f32
          }
          for i 4 {
            for v vector 16 lanes 16 {
              if v-2*i>=0 {
                y[@n[v]] += x[v]
              }
            }
          }
        }""",
    "selections": """
        kernel f(x: f32[6,16] in, y: f32[6,16] out, z: f32[6] out) {
          for i 6 {
            for v vector 16 lanes 16 {
              let t = select(v-1*i-2>=0, x[i, v], 3.0:f32)
              let u = select(i-3>=0, t, x[i, 0])
              let w = select(v-4>=0 and i==0, u, t)
              y[i, v] = select(v-8>=0, w, x[i, 3])
            }
            z[i] = select(i-2>=0 and 4-1*i>=0, x[i, 1], 4.0:f32)
          }
        }""",
    "positions as numbers": """
        kernel f(y: f32[3,16] out, n: i64[3,16] out, b: bool[16] out) {
          for i 3 {
            for v vector 16 lanes 16 {
              y[i, v] = position(100000*i+3*v-7):f32
              n[i, v] = position(5000000000*i+v):i64
            }
          }
          for v vector 16 lanes 16 {
            b[v] = greater(position(v):i32, 4:i32)
          }
        }""",
    "all types": """
        kernel f(a: f64[9] in, b: i32[9] in, c: bool[9] in, d: f64[9] out, e: i64[9] out, g: bool[9] out) {
          for v vector 9 lanes 16 {
            let t = where(c[v], a[v], convert(b[v]):f64)
            d[v] = sqrt(abs(t))
            e[v] = floor_div(convert(b[v]):i64, 0:i64)
            g[v] = logical_and(c[v], less(b[v], 4:i32))
          }
        }""",
    "blocks for threads": """
        kernel f(x: f32[5,40] in, y: f32[40] out, z: f32[] out, part: f32[5] scratch) {
          for p parallel 5 {
            local acc: f32[16]
            for v vector 16 lanes 16 {
              acc[v] = 0.0:f32
            }
            for i 2 {
              for v vector 16 lanes 16 {
                acc[v] += x[p, 16*i+v]
              }
            }
            part[p] = 0.0:f32
            for v vector 16 lanes 16 {
              part[p] += acc[v]
            }
          }
          let first = part[0]
          z[] = add(first, part[1])
          for i 3 {
            z[] += part[i+2]
          }
          let total = z[]
          for p parallel 8 {
            for v vector 5 lanes 8 {
              y[5*p+v] = mul(x[0, 5*p+v], total)
            }
          }
        }""",
}


@pytest.mark.parametrize("name", KERNELS)
def test_native_code_computes_the_same_bits_as_the_interpreter(name: str) -> None:
    agree(KERNELS[name])


@pytest.mark.parametrize("name", ["blocks for threads", "gathers", "scattered additions", "all reductions"])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_computes_the_same_bits(name: str, threads: int) -> None:
    agree(KERNELS[name], threads=threads)


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("name", ["a register tile with a tail", "padding along the lanes", "gathers", "all types"])
def test_an_older_processor_computes_the_same_bits(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_TARGET", level)
    agree(KERNELS[name])


def test_maxima_keep_nan_and_sums_keep_the_sign_of_zero() -> None:
    text = """
        kernel f(x: f32[11] in, y: f32[2] out) {
          y[0] = -inf:f32
          y[1] = -0.0:f32
          for v vector 11 lanes 16 {
            y[0] max= x[v]
            y[1] += mul(x[v], 0.0:f32)
          }
        }"""
    x = -np.ones(11, np.float32)
    (y,) = agree(text, x)
    assert y[0] == -1 and np.signbit(y[1])
    x[9] = np.nan
    (y,) = agree(text, x)
    assert np.isnan(y[0])


def test_a_load_whose_condition_all_lanes_share_is_not_masked() -> None:
    """Masked loads from addresses that do not exist took 65 times as long: concatenations, padded images."""
    text = """
        kernel f(x: f32[2,20] in, y: f32[4,20] out) {
          for r 4 {
            for v vector 16 lanes 16 {
              y[r, v] = x[r-1, v] if r-1>=0 and -1*r+2>=0 else -1.5
            }
            for v vector 4 lanes 16 {
              y[r, v+16] = x[r-1, v+16] if r-1>=0 and -1*r+2>=0 else -1.5
            }
          }
        }"""
    x = np.arange(40, dtype=np.float32).reshape(2, 20)
    (y,) = agree(text, x)
    assert np.array_equal(y, np.pad(x, ((1, 1), (0, 0)), constant_values=-1.5))
    whole = emit(parse_function(text), jit.host_target())
    assert len(re.findall("call .*@llvm.masked.load", whole)) == 1  # of the tail


def test_a_transposed_square_has_columns_for_rows() -> None:
    x, n = np.arange(256, dtype=np.float32).reshape(16, 16), np.arange(16).reshape(4, 4)
    y, m, c = agree(KERNELS["transposed squares"], x, n, n % 3 == 0)
    assert np.array_equal(y, x.T) and np.array_equal(m, n.T) and np.array_equal(c, (n % 3 == 0).T)


def test_a_failed_check_is_the_status_and_stops_the_kernel() -> None:
    function = parse_function("""
        kernel f(n: i64[20] in, y: i64[] out) {
          local fine: bool[]
          fine[] = true
          for v vector 16 lanes 16 {
            fine[] and= less(n[v], 9:i64)
          }
          for v vector 4 lanes 16 {
            fine[] and= less(n[v+16], 9:i64)
          }
          check fine[] code 3
          y[] = 1:i64
        }""")
    verify(function)
    good, bad = np.arange(20) % 9, np.arange(20) % 11
    outputs, status = native(function, [good])
    assert status == 0 and outputs[0] == 1
    outputs, status = native(function, [bad])
    assert status == 3 and outputs[0] != 1
    with pytest.raises(CheckFailed) as failure:
        run(function, [bad])
    assert failure.value.code == 3


NEST = """
    kernel f(x: f32[600] in, y: f32[600] out) {
      for i 5 {
        for j 10 {
          for k 12 {
            y[120*i+12*j+k] = x[120*(i+2)%5+12*(j)/2+k+60]
          }
        }
      }
    }"""


def test_what_a_loop_does_not_change_is_computed_before_it() -> None:
    agree(NEST)
    text = emit(parse_function(NEST), jit.host_target())
    blocks = re.split(r"^(?=loop)", text, flags=re.MULTILINE)
    computed = [[word for word in ("mul", "udiv", "urem") if word in block] for block in blocks[1:]]
    assert computed == [["mul", "urem"], ["mul", "udiv"], []]


def test_one_module_holds_many_functions_and_what_calls_them() -> None:
    first = parse_function("kernel one(x: f32[] in, y: f32[] out) {\n  y[] = sqrt(x[])\n}")
    second = parse_function("kernel two(x: f32[] in, y: f32[] out) {\n  y[] = sqrt(x[])\n}")
    step = """define void @step(ptr %x, ptr %y) {
          call void @one(ptr %x, ptr %y)
          call void @two(ptr %y, ptr %y)
          ret void
        }"""
    compiled = jit.compile(emit_module([first, second], jit.host_target(), step))
    x, y = np.array([16.0], np.float32), np.zeros(1, np.float32)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(compiled.address("step"))(x.ctypes.data, y.ctypes.data)
    assert y[0] == 2.0


def test_modules_call_each_other_and_are_the_same_for_any_number_of_threads() -> None:
    texts = [f"define i64 @f{n}(i64 %x) {{\n  %y = add i64 %x, {n}\n  ret i64 %y\n}}" for n in range(5)]
    calls = "".join(f"  %x{n + 1} = call i64 @f{n}(i64 %x{n})\n" for n in range(5))
    declared = "".join(f"declare i64 @f{n}(i64)\n" for n in range(5))
    texts.append(f"{declared}define i64 @all(i64 %x0) {{\n{calls}  ret i64 %x5\n}}")
    made = [jit.compile_all(iter(texts), processors=count) for count in (1, 2, 4)]
    assert len({compiled.assembly() for compiled in made}) == 1
    for compiled in made:
        assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(compiled.address("all"))(100) == 110
    with pytest.raises(LoweringError, match="malformed"):
        jit.compile_all([*texts, "define void @f() { oops }"], processors=3)


FORTY_TWO = "define i64 @f() {\n  ret i64 42\n}"


def test_an_error_while_modules_are_made_is_the_one_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a helper before it; what is still waiting is not made, and no thread stays."""
    made, threads = [], threading.active_count()

    def fail(module: Any, *_: object) -> None:
        made.append(module)
        raise LoweringError("a helper's")

    monkeypatch.setattr(jit._Module, "emit", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with pytest.raises(ValueError, match="the reason"), jit.Compiling(2) as compiling:
        for _ in range(20):
            compiling.add(FORTY_TWO)
        raise ValueError("the reason")
    assert len(made) < 20 and threading.active_count() == threads
    assert all(module.reference.closed for module in compiling.modules)  # before its context, which then is closed, too


def test_fewer_threads_compile_where_no_more_are_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def first(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", first)
    compiled = jit.compile_all([FORTY_TWO], processors=4)
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(compiled.address("f"))() == 42
    assert not started[0].is_alive()


def test_malformed_text_and_unknown_names_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoweringError, match="malformed LLVM text"):
        jit.compile("define void @f() { oops }")
    with pytest.raises(LoweringError, match="no function g"):
        jit.compile("define void @f() {\n  ret void\n}").address("g")
    monkeypatch.setenv("GRAPHC_TARGET", "z80")
    with pytest.raises(ArgumentError, match="z80"):
        jit.host_target()


MICRO_KERNEL = """
    kernel sgemm(a: f32[16,30] in, b: f32[2,30,48] in, c: f32[16,96] out) {
      for n 2 {
        for r 2 {
          local acc: f32[8,48]
          for i unrolled 8 {
            for j unrolled 3 {
              for v vector 16 lanes 16 {
                acc[i, 16*j+v] = 0.0:f32
              }
            }
          }
          for k 30 {
            for i unrolled 8 {
              for j unrolled 3 {
                for v vector 16 lanes 16 {
                  acc[i, 16*j+v] = fma(a[i+8*r, k], b[n, k, 16*j+v], acc[i, 16*j+v])
                }
              }
            }
          }
          for i unrolled 8 {
            for j unrolled 3 {
              for v vector 16 lanes 16 {
                c[i+8*r, 16*j+48*n+v] = acc[i, 16*j+v]
              }
            }
          }
        }
      }
    }"""


def test_a_register_tiled_product_equals_numpy() -> None:
    a = np.random.default_rng(0).standard_normal((16, 30)).astype(np.float32)
    b = np.random.default_rng(1).standard_normal((30, 96)).astype(np.float32)
    packed = b.reshape(30, 2, 48).transpose(1, 0, 2)
    (c,) = agree(MICRO_KERNEL, a, packed)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jit.host_target().lanes_f32 < 16, reason="needs 32 registers of 16 lanes")
def test_the_hot_loop_of_a_register_tile_is_packed_fma_without_stores() -> None:
    assembly = jit.compile(emit(parse_function(MICRO_KERNEL), jit.host_target())).assembly()
    loops = [block for block in re.split(r"^\.LBB\w+:", assembly, flags=re.MULTILINE) if "vfmadd" in block]
    (hot,) = loops
    hot = hot[: re.search(r"\n\tj\w+\t", hot).end()]  # type: ignore[union-attr]
    packed = re.findall(r"vfmadd\w+ps\s.*%zmm", hot)
    assert len(packed) == 24
    assert len(re.findall(r"vmovups\t[^%]*\(.*\), %zmm", hot)) == 3
    assert not re.findall(r"vmov\w+\t%[xyz]mm\d+, .*\(", hot)
    assert "%rsp" not in hot


@pytest.mark.parametrize(("target", "hidden"), [(AVX512, True), (AVX2, False), (X86_64, False), (AARCH64, False)])
def test_counters_are_hidden_where_vectors_are_long(target: Target, hidden: bool) -> None:
    text = "kernel k(in0: f32[64] in, out0: f32[64] out) {\n  for i0 64 {\n    out0[i0] = in0[i0]\n  }\n}\n"
    assert ("llvm.expect" in emit(parse_function(text), target)) == hidden
