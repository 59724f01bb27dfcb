"""What does not fit is refused where it is written: one graphc error, with the user's line, and no NumPy traceback."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, optim
from graphc.errors import ArgumentError, DTypeError, FeedTypeError, GraphcError, ShapeError

X, I = gx.placeholder("x", ("n", 4)), gx.placeholder("i", ("n",), gx.int64)  # noqa: E741
SMALL = gx.placeholder("small", (2,), gx.int32)
BAD: dict[str, tuple[Any, type[GraphcError], str]] = {
    "a number that int32 has not": (lambda: SMALL + 2**40, ArgumentError, "i32 has no number 1099511627776"),
    "a number that int64 has not": (lambda: I * 2**70, ArgumentError, "i64 has no number 1180591620717411303424"),
    "a ragged list": (lambda: X * [1, [2]], DTypeError, "inhomogeneous"),
    "a ragged constant": (lambda: gx.constant([[1], [1, 2]]), ArgumentError, "not an array of numbers"),
    "a complex number": (lambda: X + 1j, DTypeError, "complex128"),
    "NaN as an integer": (lambda: gx.constant([np.nan], "int32"), ArgumentError, "i32 has no number nan"),
    "infinity as an integer": (lambda: gx.constant(-np.inf, "int64"), ArgumentError, "i64 has no number -inf"),
    "a wide integer as a narrow one": (lambda: gx.constant(np.array([1, 2**31]), "int32"), ArgumentError, "2147483648"),
    "text as a constant": (lambda: gx.constant("x", "float32"), DTypeError, "<U1 cannot become f32"),
    "nothing as a constant": (lambda: gx.constant(None), DTypeError, "object"),
    "full of text": (lambda: gx.full(2, "x"), ArgumentError, "value must be a number, not 'x'"),  # type: ignore[arg-type]
    "full of NaN, in integers": (lambda: gx.full(2, float("nan"), "int32"), ArgumentError, "i32 has no number nan"),
    "a ragged parameter": (lambda: gx.Parameter([[1.0], [2.0, 3.0]]), ArgumentError, "not an array of numbers"),
    "a parameter of integers": (lambda: gx.Parameter([1, 2]), DTypeError, "a parameter holds floats, not i64[2]"),
    "a parameter of a tensor": (lambda: gx.Parameter(X), ArgumentError, "no elements while the graph is built"),
    "NumPy of a tensor": (lambda: np.asarray(X), ArgumentError, "f32[n,4] has no elements while the graph is built"),
    "a matmul that does not fit": (lambda: X @ gx.zeros((3, 5)), ShapeError, "operand 0 f32[n,4] is %x"),
    "integers to a negative power": (lambda: I**-1, ArgumentError, "i64[n] has no power -1"),
    "exclusive or of integers": (lambda: I ^ I, DTypeError, "logical_xor takes bools"),
    "the largest of nothing": (
        lambda: gx.max(gx.zeros((3, 0)), 1),
        ShapeError,
        "smallest element needs 1 or more elements, not 0",
    ),
    "the place of the largest of nothing": (
        lambda: gx.argmax(gx.zeros(0)),
        ShapeError,
        "smallest element needs 1 or more elements, not 0",
    ),
    "a shape in two arguments": (lambda: gx.zeros(3, 4), ArgumentError, "a shape is one argument, (3, 4)"),
    "half a bound of a slice": (lambda: X[:1.5], ArgumentError, "begins and ends at whole numbers, not 1.5"),
    "a bool in an array": (lambda: X[np.array(True)], ArgumentError, "True and False are no positions"),
    "a beta of text": (
        lambda: optim.Adam([gx.Parameter([1.0])], betas=("a", 0.9)),  # type: ignore[arg-type]
        ArgumentError,
        "betas must be two numbers in [0, 1), not",
    ),
    "a step of 0": (lambda: X[::0], ArgumentError, "the step of a slice must not be 0"),
    "a module to an optimiser": (lambda: optim.SGD(nn.Linear(1, 1)), ArgumentError, "as net.parameters(), not Linear"),  # type: ignore[arg-type]
    "a learning rate of text": (
        lambda: optim.SGD([gx.Parameter([1.0])], lr="0.1"),  # type: ignore[arg-type]
        ArgumentError,
        "lr must be a number of at least 0.0, not '0.1'",
    ),
    "an infinite learning rate": (
        lambda: optim.SGD([gx.Parameter([1.0])], lr=np.inf),
        ArgumentError,
        "lr must be a number of at least 0.0, not inf",
    ),
    "half a feature": (lambda: nn.Linear(2, 2.5), ArgumentError, "out_features must be a whole number"),  # type: ignore[arg-type]
    "half a filter": (lambda: nn.Conv2d(2, 2, 2.5), ArgumentError, "kernel_size must be one or two whole"),  # type: ignore[arg-type]
    "a stride of 0": (lambda: nn.Conv2d(2, 2, 3, stride=0), ArgumentError, "stride must be one or two whole"),
    "groups that do not divide": (lambda: nn.GroupNorm(2, 3), ArgumentError, "3 channels cannot be parted in 2"),
    "too much smoothing": (
        lambda: gx.cross_entropy(X, I, label_smoothing=2.0),
        ArgumentError,
        "label_smoothing must be from 0 to 1, not 2.0",
    ),
    "half a state": (
        lambda: nn.LSTM(4, 3)(gx.zeros((5, 2, 4)), gx.zeros((1, 2, 3))),
        ArgumentError,
        "the state of an LSTM is a pair (h, c)",
    ),
    "a state of another shape": (
        lambda: nn.LSTM(4, 3)(gx.zeros((5, 2, 4)), (gx.zeros((1, 2, 3)), gx.zeros((1, 3, 2)))),
        ShapeError,
        "c of an LSTM must be [1,2,3], not f32[1,3,2]",
    ),
    "a seed of text": (
        lambda: gx.compile([X], X).epoch(np.zeros((4, 4), np.float32), batch_size=2, seed="a"),
        ArgumentError,
        "gives no random numbers",
    ),
    "a pickled function": (lambda: pickle.dumps(gx.compile([X], X)), ArgumentError, "step holds machine code"),
    "no stage": (lambda: gx.compile([X], X).ir("asm"), ArgumentError, "there is no stage 'asm'; there are graph"),
    "no dimension": (lambda: gx.compile([X], X).ir("bind", m=3), ArgumentError, "step has no dimension m, only n"),
    "a mask that is too short": (
        lambda: gx.zeros((5, 6))[np.array([True, False])],
        ArgumentError,
        "2 bools choose along axis 0 of 5",
    ),
    "a mask that is too long": (lambda: X[..., np.ones(5, bool)], ArgumentError, "5 bools choose along axis 0 of 4"),
    "half a dimension": (lambda: X.shape[0] * 0.5, ArgumentError, "n * 0.5 needs a number, and dimension n"),
    "a compared dimension": (lambda: X.shape[0] > 2, ArgumentError, "comparing n with 2 needs a number"),
    "a divided dimension": (lambda: 1 / X.shape[0], ArgumentError, "graphc.constant(x.shape[axis])"),
    "a range of a dimension": (lambda: range(X.shape[0]), ArgumentError, "int(n) needs a number"),
    "a dimension of nothing": (lambda: gx.placeholder("y", ("",)), ArgumentError, "not ''"),
    "half a sum of dimensions": (lambda: gx.placeholder("y", ("n+",)), ArgumentError, "not 'n+'"),
    "no dtype": (lambda: gx.placeholder("y", (2,), None), DTypeError, "unsupported dtype None"),
    "updates in a list": (lambda: gx.compile([X], X, updates=[1]), ArgumentError, "updates give parameters"),  # type: ignore[arg-type]
    "an update of a placeholder": (lambda: gx.compile([X], X, updates={X: X}), ArgumentError, "updates give"),  # type: ignore[dict-item]
    "a name that is no text": (lambda: gx.compile([X], X, name=3), ArgumentError, "name"),  # type: ignore[arg-type]
    "half a thread": (lambda: gx.compile([X], X, threads=1.5), ArgumentError, "threads must be a number"),  # type: ignore[arg-type]
    "very many threads": (
        lambda: gx.compile([X], X, threads=100_000),
        ArgumentError,
        "threads must be a number from 1 to 256, not 100000",
    ),
    "a size in text": (lambda: gx.compile([X], X).ir("bind", n="3"), ArgumentError, "n must be a whole number"),  # type: ignore[arg-type]
    "a negative size": (lambda: gx.compile([X], X).ir("bind", n=-3), ArgumentError, "n must be a whole number"),
}
# Words of messages of calls, which build no graph: the traceback shows the line.
CALLS = (
    "updates",
    "name",
    "threads",
    "whole",
    "lr must",
    "parameters()",
    "random",
    "machine",
    "stage",
    "only",
    "betas",
)


@pytest.mark.parametrize("what", BAD)
def test_mistakes_are_refused_at_the_users_line(what: str) -> None:
    make, error, message = BAD[what]
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    if "placeholder" not in what and not any(word in message for word in CALLS):
        assert "test_bad_input.py:" in str(caught.value)


def test_gradients_that_do_not_exist_are_refused_at_the_users_line() -> None:
    w = gx.Parameter([1.0], "w")
    for output, wanted in ((gx.sum(w), gx.Parameter([1.0], "v")), (w, w), (w * 2, w)):
        with pytest.raises(GraphcError, match=r"test_bad_input\.py:"):
            gx.grad(output, [wanted])


def test_a_parameter_among_the_inputs_is_refused() -> None:
    """It once was renamed, and a pass failed."""
    layer = nn.Linear(4, 2)
    with pytest.raises(ArgumentError, match=r"weight is read from its own array and cannot be an input"):
        gx.compile([X, layer.weight], layer(X))
    assert layer.weight.name == "weight"


@pytest.mark.parametrize("data", ["abc", None, np.ones(3, complex), [[1.0], [2.0, 3.0]], np.array([None])], ids=repr)
def test_a_parameter_keeps_its_array_when_another_is_refused(data: Any) -> None:
    w = gx.Parameter(np.arange(3.0), "w")
    with pytest.raises(GraphcError):
        w.data = data
    assert w.data.tolist() == [0, 1, 2]
    layer = nn.Linear(1, 3)
    before = layer.bias.data.copy()
    with pytest.raises(GraphcError):
        layer.load_state_dict({"weight": np.ones((3, 1)), "bias": data})
    assert np.array_equal(layer.bias.data, before)
    assert not np.array_equal(layer.weight.data, np.ones((3, 1)))


def test_a_tensor_cannot_be_fed() -> None:
    f = gx.compile([X], X * 2)
    with pytest.raises(FeedTypeError, match=r"input x .* no elements while the graph is built"):
        f(X)


def test_a_function_may_be_called_anything_and_its_dumps_stay_in_their_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHC_DUMP", str(tmp_path / "dumps"))
    gx.compile([X], X * 2, name="../../step ü\n")(np.ones((1, 4), np.float32))
    assert {path.name for path in tmp_path.iterdir()} == {"dumps"}
    monkeypatch.setenv("GRAPHC_DUMP", "/dev/null")
    with pytest.raises(ArgumentError, match="GRAPHC_DUMP: '/dev/null' cannot be a directory"):
        gx.compile([X], X * 3)(np.ones((1, 4), np.float32))


@pytest.mark.parametrize("text", ["0", "-1", "many", "²", "1.5", "99999"])
def test_thread_counts_that_are_none_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_THREADS", text)
    with pytest.raises(ArgumentError, match="GRAPHC_THREADS must be a number from 1 to 256"):
        gx.compile([X], X)


def test_numbers_that_fit_are_taken() -> None:
    assert (SMALL + (2**31 - 1)).dtype is gx.int32
    assert (X * 2**70).dtype is gx.float32
    assert gx.constant(np.float64(1e300), "float32").shape == ()
    optim.SGD([gx.Parameter([1.0])], lr=np.float32(0.1))
