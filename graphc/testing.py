"""For a user's own tests: compiled against interpreted functions, gradients against differences.

from graphc import testing

def test_my_step():
    testing.assert_matches_interpreter(step, images, labels)
    testing.check_gradients(lambda x, w: my_loss(x @ w), [x, w])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import compare, reference
from graphc.autodiff import grad
from graphc.compiler import Function, trace
from graphc.errors import ArgumentError, MismatchError
from graphc.frontend import functional as F
from graphc.frontend.tensor import Tensor, constant, placeholder
from graphc.ir.graph import topological

Array = np.ndarray[Any, Any]
STEP = 1e-3  # of the differences; their error is of the order of its fourth power
TOLERANCE = 1e-7  # relative to the largest term of the slope


def assert_matches_interpreter(function: Function, *args: Any, **named: Any) -> None:
    """Hold a native function against the interpreter on these feeds; the state stays as it is.

    Outputs and next states must agree within the tolerances of `graphc.compare`, in units of the last place, or as far
    as rounding can move them. Raises MismatchError; it names the first kernel that differs when it is given the same
    operands, and the user's line.
    """
    compilation = function.compilation_for(*args, **named)
    arrays, state = function.feeds(*args, **named), [holder.data.copy() for holder in function.state]
    bound, feeds = compilation.stages["bind"], [*arrays, *(array.copy() for array in state)]
    wanted, following = reference.run(bound, feeds)
    compare.require_equal_kernels(compilation.executable, feeds)
    found = compilation.executable(arrays, tuple(state))
    place = dict(zip(bound.state, state, strict=True))
    found += [place[value] for value, _ in bound.next]
    names = [f"output {n}" for n in range(len(bound.outputs))] + [value.name for value, _ in bound.next]
    compare.require_all_close(names, found, [*wanted, *following], bound, feeds)


def check_gradients(
    function: Callable[..., Tensor],
    arrays: Sequence[Any],
    *,
    order: int = 2,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> None:
    """Check the derivatives of `function` at `arrays`, up to `order`, against differences along a random direction.

    function  takes float64 tensors of the arrays' shapes, returns a tensor; one that is no scalar is weighed at random
    arrays    the point; near it the function must be smooth

    Each order is checked as in Griewank and Walther, Evaluating Derivatives (2008): the symbolic slope along v against
    (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h. Raises MismatchError with both numbers.
    """
    random = np.random.default_rng(seed)
    point = [np.asarray(array, np.float64) for array in arrays]
    if not point:
        raise ArgumentError("check_gradients needs at least one array")
    inputs = [placeholder(f"x{n}", array.shape, "float64") for n, array in enumerate(point)]
    y = function(*inputs)
    if y.shape != ():
        y = F.sum(y * constant(random.standard_normal(y.type.extents)))
    for level in range(1, order + 1):
        direction = [random.standard_normal(array.shape) for array in point]
        read = {value for node in topological([y.value]) for value in node.inputs}  # a slope may be flat along some
        along = [(x, v) for x, v in zip(inputs, direction, strict=True) if level == 1 or x.value in read]
        slope = _slope(y, along)
        wanted = _difference(_evaluator(y, inputs), point, direction)
        found = _evaluator(slope, inputs)(point)
        if not abs(found - wanted) <= tolerance * max(1.0, abs(wanted)) * 10 ** (level - 1):
            raise MismatchError(f"derivative {level}: the graph says {found:.12g}, differences say {wanted:.12g}")
        y = slope


def _slope(y: Tensor, along: Sequence[tuple[Tensor, Array]]) -> Tensor:
    gradients = grad(y.value, [x.value for x, _ in along])
    total = constant(0.0, "float64")
    for gradient, (_, v) in zip(gradients, along, strict=True):
        total = total + F.sum(Tensor(gradient) * constant(v))
    return total


def _evaluator(y: Tensor, inputs: Sequence[Tensor]) -> Callable[[Sequence[Array]], float]:
    graph, state = trace(inputs, [y], {}, "f")
    kept = [holder.data for holder in state]
    return lambda point: float(reference.evaluate(graph, [*point, *kept])[0][0])


def _difference(f: Callable[[Sequence[Array]], float], point: Sequence[Array], direction: Sequence[Array]) -> float:
    def at(step: float) -> float:
        return f([x + step * v for x, v in zip(point, direction, strict=True)])

    return (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)
