"""What training is promised: the same bits however it runs, the same numbers on other processors, loops that fly."""

from __future__ import annotations

import platform
import re
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest
from assembly import hottest
from networks import NETWORKS, Training
from test_contract import feed, operands

import graphc as gx
from graphc import ops, pipeline, testing
from graphc.codegen import jit, team
from graphc.codegen.emit import emit
from graphc.codegen.step import emit_entry, emit_kernels, scratch_bytes
from graphc.errors import ArgumentError
from graphc.ir.graph import Graph, Value, build
from graphc.ir.index import Index
from graphc.ir.types import DType, TensorType
from graphc.loops import interpret, schedule, tiling
from graphc.loops.contract import grid
from graphc.loops.ir import Function, If, Prefetch
from graphc.loops.lower import lower
from graphc.loops.roles import assign, axes_of
from graphc.loops.target import AARCH64, AVX2, AVX512, Target
from graphc.loops.verify import verify
from graphc.loops.walk import statements
from graphc.passes import manager
from graphc.passes.forms import Contract, classify
from graphc.plan import make
from graphc.reference import evaluate

every_network = pytest.mark.parametrize("name", NETWORKS)


# The same bits ---------------------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("steps", [12, pytest.param(200, marks=pytest.mark.fuzz)])
def test_training_gives_the_same_bits_on_one_thread_on_two_and_again(name: str, steps: int) -> None:
    trainings = [Training(name, threads) for threads in (1, 2, 2)]
    first, second, again = (training.run(steps) for training in trainings)
    assert re.search(r"for \w+ parallel (?!1 )\d", trainings[1].step.ir("loops"))  # there is something to share
    for key, array in first.items():
        assert np.isfinite(array).all()
        assert array.tobytes() == second[key].tobytes() == again[key].tobytes(), key
    before = Training(name).run(0)
    assert all(array.tobytes() != before[key].tobytes() for key, array in first.items() if array.ndim > 1)


# Other processors ------------------------------------------------------------------------------------------------


def use(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile for that target from here on; skip where it cannot run."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("needs an x86-64 processor")
    monkeypatch.setenv("GRAPHC_TARGET", target)
    try:
        jit.host_target()
    except ArgumentError as error:
        pytest.skip(str(error))


@every_network
@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
def test_other_targets_compute_the_same_step(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = Training(name).run(3)
    use(target, monkeypatch)
    training = Training(name)
    testing.assert_matches_interpreter(training.step, *training.feeds)
    for key, array in training.run(3).items():
        # sums in another order, three steps long: some units in the last place of numbers of the order of one
        np.testing.assert_allclose(array, native[key], rtol=1e-4, atol=2e-5, err_msg=key)


def aarch64(text: str) -> str:
    """LLVM text as AArch64 assembly."""
    try:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError as error:
        pytest.skip(f"this LLVM cannot compile for AArch64: {error}")
    machine = target.create_target_machine(cpu="neoverse-n1", opt=2)
    module = llvm.parse_assembly(text)
    module.verify()
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    jit.optimize(module, machine)
    return str(machine.emit_assembly(module))


@every_network
def test_a_step_compiles_for_aarch64(name: str) -> None:
    graph = Training(name).step.graph
    fused, _ = manager.run(graph, pipeline.passes_for(graph))
    kernels = pipeline.lower_kernels(fused, AARCH64)
    plan = make(fused, {node: scratch_bytes(kernel) for node, kernel in kernels.items()})
    modules = [*emit_kernels(set(kernels.values()), AARCH64, threaded=True), emit_entry(plan, kernels, threaded=True)]
    assembly = "".join(map(aarch64, modules))
    assert re.search(r"^\tfmla\tv\d+\.4s", assembly, re.MULTILINE)
    assert "barrier" in assembly


def test_the_team_compiles_for_aarch64() -> None:
    for futex in (team.FUTEX["aarch64"], None):
        assert re.search(r"^\thint\t|^\tyield$", aarch64(team.emit("aarch64", futex)), re.MULTILINE)


PRODUCTS = {"nn": "mk,kn->mn", "nt": "mk,nk->mn", "tn": "km,kn->mn", "stacked": "bmk,bkn->bmn"}
every_product = pytest.mark.parametrize("form", PRODUCTS)
every_float = pytest.mark.parametrize("dtype", [DType.F32, DType.F64])


def product(form: str, dtype: DType, m: int, n: int, k: int) -> tuple[Graph, Contract]:
    a, b = operands(PRODUCTS[form], {"m": m, "n": n, "k": k, "b": 2}, dtype)
    body = build("body", [a, b], [ops.contract(a, b, spec=PRODUCTS[form])])
    form_of_body = classify(body)
    assert isinstance(form_of_body, Contract)
    return body, form_of_body


@every_product
@every_float
def test_a_tile_for_aarch64_fits_its_registers_and_adds_up_right(form: str, dtype: DType) -> None:
    body, contract = product(form, dtype, 13, 21, 7)
    chosen = tiling.choose(body, contract, AARCH64)
    assert chosen.lanes <= AARCH64.lanes(dtype.itemsize)
    assert chosen.vectors * chosen.rows < AARCH64.registers
    function = lower(body, "body", AARCH64)
    verify(function)
    feeds = [feed(x) for x in body.inputs]
    (found,), (wanted,) = interpret.run(function, feeds), evaluate(body, feeds)[0]
    tolerance = 2e-5 if dtype is DType.F32 else 1e-12
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=tolerance, atol=tolerance)
    wide = f"{chosen.lanes}{'s' if dtype is DType.F32 else 'd'}"
    hot = hottest(aarch64(emit(function, AARCH64)))
    assert re.search(rf"^\tfmla\tv\d+\.{wide}", hot.text, re.MULTILINE)
    assert hot.stack == []


# Hot loops -------------------------------------------------------------------------------------------------------

HOT = [  # target, class of its registers, shape
    ("x86-64-v4", "zmm", (256, 1024, 784)),
    ("x86-64-v4", "zmm", (64, 128, 784)),
    ("x86-64-v4", "zmm", (128, 784, 8192)),
    ("x86-64-v4", "zmm", (7744, 64, 288)),
    ("x86-64-v4", "zmm", (64, 64, 64)),
    ("x86-64-v3", "ymm", (64, 128, 784)),
    ("x86-64-v3", "ymm", (32, 1024, 256)),
    ("x86-64-v3", "ymm", (2048, 64, 128)),  # tn: four vectors by three rows would need seventeen registers
]


@pytest.mark.parametrize("form", ["nn", "nt", "tn"])
@every_float
@pytest.mark.parametrize(
    ("target", "register", "shape"), HOT, ids=lambda part: str(part).replace(", ", "x").strip("()")
)
def test_hot_loops_of_products_are_packed_multiply_adds_in_registers(
    form: str, dtype: DType, target: str, register: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(target, monkeypatch)
    processor = jit.host_target()
    body, contract = product(form, dtype, *shape)
    chosen = tiling.choose(body, contract, processor)
    hot = hottest(jit.compile(emit(lower(body, "body", processor), processor)).assembly())
    assert len(hot.packed(register)) == len(hot.multiply_adds) >= 8  # four cycles of latency, two units
    assert len(hot.multiply_adds) == chosen.rows * chosen.vectors * chosen.unroll
    assert hot.stack == hot.stores == []


def test_spills_are_seen() -> None:
    """The test above can fail: more accumulators than registers go through memory."""
    if not jit.host_target().fma:
        pytest.skip("needs fused multiply-adds")
    processor = jit.host_target()
    body, contract = product("nn", DType.F32, 64, 128, 784)
    chosen = tiling.choose(body, contract, processor)
    crowded = replace(chosen, rows=8, vectors=processor.registers // 4)
    assert hottest(jit.compile(emit(lower(body, "body", processor, crowded), processor)).assembly()).stack


@every_product
@every_float
def test_columns_that_fill_no_vector_cost_no_blend(form: str, dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    use("x86-64-v4", monkeypatch)
    processor = jit.host_target()
    body, contract = product(form, dtype, 64, 10, 64)
    chosen = tiling.choose(body, contract, processor)
    hot = hottest(jit.compile(emit(lower(body, "body", processor), processor)).assembly())
    assert len(hot.packed("zmm")) == len(hot.multiply_adds) == chosen.rows * chosen.vectors
    assert len(re.findall(r"\{%k\d\}", hot.text)) <= 1  # the load of what the last vector holds of the panel
    assert not re.search("blend|expand", hot.text)
    assert hot.stack == hot.stores == []


@pytest.mark.parametrize("channels", [1, 3])
def test_all_places_of_a_filter_share_each_vector(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of one row of the filter would have three sums for each vector, too few for the latency."""
    use("x86-64-v4", monkeypatch)
    image, cotangent = Value(TensorType(DType.F32, (4, channels, 10, 10))), Value(TensorType(DType.F32, (4, 8, 8, 32)))
    windows = ops.windows(image, axes=(2, 3), size=(3, 3), stride=(1, 1), dilation=(1, 1))
    body = build("body", [cotangent, image], [ops.contract(cotangent, windows, spec="nyxo,ncyxij->ocij")])
    processor = jit.host_target()
    function = lower(body, "body", processor)
    hot = hottest(jit.compile(emit(function, processor)).assembly())
    assert len(hot.packed("zmm")) == len(hot.multiply_adds) == 9 * 32 // 16
    assert hot.stack == hot.stores == []
    feeds = [feed(x) for x in body.inputs]
    (found,), (wanted,) = interpret.run(function, feeds), evaluate(body, feeds)[0]
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=2e-5, atol=2e-4)  # sums of 256 products


# Schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "pack"),
    [
        ((64, 1760, 1760), schedule.PACK_NEVER),  # rows of the panel lie apart, but not in each other's place
        ((64, 2048, 2048), schedule.PACK_NEVER),  # they compete, for too few tiles
        ((256, 2048, 2048), schedule.PACK_EACH),
        ((2048, 1760, 1760), schedule.PACK_EACH),  # each strip is fetched once for every part of the rows
    ],
)
def test_a_dense_panel_is_packed_where_it_is_read_often(shape: tuple[int, int, int], pack: int) -> None:
    assert tiling.choose(*product("nn", DType.F32, *shape), AVX512).pack == pack


def test_a_deep_sum_is_cut_into_steps_where_what_is_read_again_would_leave_the_cache() -> None:
    assert tiling.choose(*product("nn", DType.F32, 32, 2048, 2048), AVX512).steps > 1  # lines compete
    assert tiling.choose(*product("nn", DType.F32, 32, 2000, 2048), AVX512).steps == 1
    assert tiling.choose(*product("tn", DType.F32, 150, 700, 2048), AVX512).steps > 1  # 150 rows of 2048 fill it


@pytest.mark.parametrize(
    ("shape", "rows", "piece"),
    [
        ((1024, 320, 1600), 4, 170),
        ((768, 320, 1024), 8, 512),
        ((512, 512, 2048), 4, 341),
        ((1024, 256, 1600), 16, 170),
        ((768, 192, 1024), 16, 512),
    ],
    ids=["a page apart", "in few each other's places", "half a page apart", "a page, narrow", "narrow"],
)
def test_a_large_operand_across_a_deep_sum_is_fetched_once(shape: tuple[int, int, int], rows: int, piece: int) -> None:
    """The rows of one of its lines pass over all strips; pieces of the sum are as long as the cache has places for.

    One tile has all of a line's rows where those of the panel stand close.
    """
    chosen = tiling.choose(*product("tn", DType.F32, *shape), AVX512)
    assert (chosen.axis, chosen.pack, chosen.rows) == (1, schedule.PACK_NEVER, rows)
    assert chosen.rows * chosen.strip == 16
    assert shape[2] // (chosen.parts * chosen.steps) <= piece < 2 * shape[2] // (chosen.parts * chosen.steps)


def test_whole_lines_are_fetched_where_vectors_are_full_and_the_panel_is_near() -> None:
    """Of a product whose larger operand is a megabyte, or which has to be stored transposed, too."""
    rows = {
        shape: tiling.choose(*product("tn", DType.F32, *shape), AVX512).rows
        for shape in ((128, 128, 2048), (128, 112, 2048), (128, 65, 2048), (128, 128, 1024), (128, 512, 2048))
    }
    assert list(rows.values()) == [16, 16, 6, 8, 16]
    assert tiling.choose(*product("tn", DType.F64, 512, 128, 2048), AVX512).rows == 8


def test_lines_of_the_left_operand_are_asked_for_where_they_lie_across_the_sum() -> None:
    """Not where it is dense along the sum, nor where the first-level cache holds it."""
    ahead = {
        (form, m): tiling.choose(*product(form, DType.F32, m, 784, 256), AVX512).ahead
        for form, m in (("tn", 1024), ("nt", 1024), ("tn", 16))
    }
    assert ahead == {("tn", 1024): 16, ("nt", 1024): 0, ("tn", 16): 0}
    assert tiling.choose(*product("tn", DType.F64, 1024, 784, 256), AVX512).ahead == 8


def asked(function: Function) -> dict[str, set[str]]:
    """The places that a kernel asks for beforehand, by buffer; loop variables without their numbers."""
    found: dict[str, set[str]] = {}
    for stmt in statements(function.body):
        if isinstance(stmt, Prefetch):
            found.setdefault(stmt.buffer.name, set()).add(re.sub(r"([a-z])\d+", r"\1", str(stmt.index[0])))
    return found


@pytest.mark.parametrize(("form", "deep", "buffers"), [("tn", 256, "0 2"), ("nn", 256, "2"), ("nn", 64, "")])
def test_a_tile_asks_for_what_it_will_read(form: str, deep: int, buffers: str) -> None:
    """For the next rows' lines once for each term, and for each of its vectors of an input as large as the result."""
    body, _ = product(form, DType.F32, 64, 48, deep)
    weight, scale = Value(TensorType(DType.F32, (64, 48))), Value(TensorType(DType.F32, ()))
    step = ops.mul(ops.broadcast(scale, shape=(64, 48), axes=()), body.outputs[0])
    function = lower(build("body", [*body.inputs, weight, scale], [ops.sub(weight, step)]), "body", AVX512)
    found = asked(function)
    assert set(found) == {f"in{number}" for number in buffers.split()}
    if "in0" in found:
        assert found["in0"] == {"24*b+64*r+8*t+16"}  # the line behind the one that the tile's 8 rows share
    assembly = jit.compile(emit(function, jit.host_target())).assembly()
    assert ("prefetcht0" in assembly) == bool(found) or platform.machine() != "x86_64"


def test_a_tile_asks_for_what_the_epilogue_reads_through_other_work() -> None:
    """As Adam's moments are, which are scaled before the product comes in; but not for what all rows share."""
    body, _ = product("nn", DType.F32, 64, 48, 256)
    moment, turned, bias = (Value(TensorType(DType.F32, shape)) for shape in ((64, 48), (48, 64), (48,)))
    rest = ops.add(ops.transpose(turned, perm=(1, 0)), ops.broadcast(bias, shape=(64, 48), axes=(1,)))
    result = ops.add(ops.sub(ops.neg(moment), body.outputs[0]), rest)
    function = lower(build("body", [*body.inputs, moment, turned, bias], [result]), "body", AVX512)
    assert set(asked(function)) == {"in2"}


def test_only_the_last_step_of_a_sum_asks_for_what_the_epilogue_reads() -> None:
    body, _ = product("nn", DType.F32, 64, 48, 256)
    weight = Value(TensorType(DType.F32, (64, 48)))
    body = build("body", [*body.inputs, weight], [ops.sub(weight, body.outputs[0])])
    chosen = replace(tiling.choose(*product("nn", DType.F32, 64, 48, 256), AVX512), steps=2, parts=1)
    around = [
        str(stmt.conditions[0])
        for stmt in statements(lower(body, "body", AVX512, chosen).body)
        if isinstance(stmt, If) and any(isinstance(inner, Prefetch) for inner in statements(stmt.body))
    ]
    assert any(re.fullmatch(r"s\d+-1>=0", condition) for condition in around)


def test_an_operand_that_is_the_same_for_all_terms_has_no_lines_to_ask_for() -> None:
    """The distance of its lines is 0: once a division by it."""
    x, y = gx.placeholder("x", (1024,)), gx.placeholder("y", (1600, 64))
    function = gx.compile([x, y], gx.matmul(gx.broadcast_to(x, (1600, 1024)).T, y))
    assert np.all(function(np.ones(1024, np.float32), np.ones((1600, 64), np.float32)) == 1600)


@pytest.mark.parametrize(
    ("form", "shape", "dtype", "target"),
    [
        ("tn", (512, 513, 2048), DType.F32, AVX512),  # wider than high
        ("tn", (512, 512, 1024), DType.F32, AVX512),  # the left operand is no larger than twice the cache
        ("tn", (4096, 512, 512), DType.F32, AVX512),  # a sum of one piece
        ("tn", (1024, 1024, 1600), DType.F32, AVX512),  # the panel's piece fits the cache
        ("tn", (1040, 1040, 1600), DType.F32, AVX512),  # it does not: lines compete less, and more terms are kept
        ("nt", (1024, 256, 1600), DType.F32, AVX512),
        ("tn", (1024, 256, 1600), DType.F32, AVX2),  # vectors are shorter than a line
        ("tn", (1024, 256, 1600), DType.I32, AVX512),
    ],
)
def test_which_products_go_by_lines(form: str, shape: tuple[int, int, int], dtype: DType, target: Target) -> None:
    roles = assign(axes_of(*product(form, dtype, *shape)), 1)
    found = tiling._goes_by_lines(roles, dtype.itemsize, target)
    assert found == (form == "tn" and target is AVX512 and shape in ((1024, 1024, 1600), (1024, 256, 1600)))


def test_a_small_operand_across_a_deep_sum_is_fetched_for_every_strip() -> None:
    assert tiling.choose(*product("tn", DType.F32, 512, 2048, 1024), AVX512).pack == schedule.PACK_EACH


def test_tiles_are_wide_where_the_lines_of_their_rows_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = product("tn", DType.F32, 1024, 1024, 256)
    wide = tiling.choose(*gradient, AVX512).vectors
    monkeypatch.setattr(tiling, "ALIASED_WALK", tiling.PAGE_WALK)
    assert tiling.choose(*gradient, AVX512).vectors < wide


@pytest.mark.parametrize(
    ("rows", "steps", "cuts"),
    [(8, 1, 8), (8, 2, 1), (64, 1, 1)],
    ids=["for more blocks", "a piece of the panel should stay in the cache", "a strip of few tiles is not worth it"],
)
def test_rows_are_cut_for_more_blocks(rows: int, steps: int, cuts: int) -> None:
    roles = assign(axes_of(*product("nt", DType.F32, 192, 64, 64)), 1)
    assert tiling._row_parts(roles, rows, 64, schedule.PACK_FIRST, 8, steps) == cuts


def test_products_of_few_columns_are_blocks_for_many_threads() -> None:
    """Strips of columns alone would be four, and there is no batch."""
    body, form = product("nt", DType.F32, 2048, 128, 128)
    axes = axes_of(body, form)
    chosen = tiling.choose(body, form, AVX512)
    assert grid(assign(axes, chosen.axis), chosen, chosen.blocks).blocks >= 16


def test_a_thread_reads_its_part_of_the_larger_operand() -> None:
    """Blocks that follow each other are of the same rows, or of the same columns where rows are longer."""
    first, second = Index(0), Index(1)
    for extents, shared in (((4096, 256, 256), 1), ((256, 4096, 256), 2)):
        body, form = product("nn", DType.F32, *extents)
        chosen = replace(tiling.choose(body, form, AVX512), pack=schedule.PACK_FIRST, strip=4, blocks=1024)
        cut = grid(assign(axes_of(body, form), chosen.axis), chosen, chosen.blocks)
        assert min(cut.parts[1:]) > 1 and cut.place(first)[shared] == cut.place(second)[shared]


def test_matrices_times_vectors_side_by_side_are_dot_products() -> None:
    """Vectors along the stack would gather every element of both operands."""
    a, b = operands("zmk,zkn->zmn", {"z": 100, "m": 64, "n": 1, "k": 64})
    body = build("body", [a, b], [ops.contract(a, b, spec="zmk,zkn->zmn")])
    form = classify(body)
    assert isinstance(form, Contract)
    assert tiling.choose(body, form, AVX512).axis == 3
