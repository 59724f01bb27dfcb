"""Optimisers: pure functions from gradients to next values, with torch.optim's semantics.

`minimize(loss)` gives the updates for `compile(updates=)`: every parameter, and the optimiser's own state, with what it
becomes. `lr` is state as well: `optimizer.lr = 0.001` takes effect at the next call, without compiling again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from graphc.errors import ArgumentError
from graphc.frontend import functional as F
from graphc.frontend.differentiate import grad
from graphc.frontend.state import Buffer, Parameter, State
from graphc.frontend.tensor import Tensor, convert

Updates = dict[State, Tensor]


class Optimizer:
    """Parameters and a learning rate."""

    def __init__(self, params: Iterable[Parameter], lr: float) -> None:
        if not isinstance(params, Iterable):
            raise ArgumentError(f"an optimiser takes parameters, as net.parameters(), not {type(params).__name__}")
        self.params = list(params)
        if not self.params:
            raise ArgumentError("an optimiser needs at least one parameter")
        for parameter in self.params:
            if not isinstance(parameter, Parameter):
                raise ArgumentError(f"an optimiser trains parameters, not {type(parameter).__name__}")
        if len(set(map(id, self.params))) < len(self.params):
            raise ArgumentError("a parameter is given twice")
        self._lr = Buffer(np.float32(_at_least(0.0, lr=lr)), "lr")

    @property
    def lr(self) -> float:
        """The learning rate, read by every call of a step that was compiled with `minimize`."""
        return float(self._lr.data)

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr.data[...] = _at_least(0.0, lr=lr)

    def minimize(self, loss: Tensor) -> Updates:
        """The next value of every parameter (and of the optimiser's state) for one step down the gradient of `loss`.

        Raises GradientError when `loss` is no scalar, or does not depend on a parameter.
        """
        return self.step(grad(loss, self.params))

    def step(self, gradients: Iterable[Tensor]) -> Updates:
        """The updates for given gradients, one per parameter."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with torch.optim.SGD's formulas (Sutskever et al., 2013, for nesterov).

        g = gradient (negated if maximize) + weight_decay * p
        buf = g at the first step, then momentum * buf + (1 - dampening) * g
        g = g + momentum * buf if nesterov else buf        (when momentum is not 0)
        p = p - lr * g

    Raises ArgumentError for a negative lr, momentum or weight_decay, and for nesterov without momentum or with
    dampening.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr)
        self.momentum, self.dampening = _at_least(0.0, momentum=momentum), dampening
        self.weight_decay = _at_least(0.0, weight_decay=weight_decay)
        self.nesterov, self.maximize = nesterov, maximize
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ArgumentError("nesterov needs a momentum and no dampening")
        named = [(p, f"{p.name or f'param{n}'}.momentum") for n, p in enumerate(self.params)]
        self.buffers = [Buffer(np.zeros_like(p.data), name) for p, name in named] if momentum else []
        self.started = Buffer(np.zeros((), np.bool_), "momentum.started")

    def step(self, gradients: Iterable[Tensor]) -> Updates:
        """The updates for given gradients, one per parameter."""
        updates: Updates = {}
        for number, (parameter, gradient) in enumerate(zip(self.params, gradients, strict=True)):
            g = -gradient if self.maximize else gradient
            if self.weight_decay:
                g = g + self.weight_decay * parameter
            if self.momentum:
                buffer = self.buffers[number]
                moved = self.momentum * buffer + (1 - self.dampening) * g
                updates[buffer] = F.where(self.started, moved, g) if self.dampening else moved
                g = g + self.momentum * updates[buffer] if self.nesterov else updates[buffer]
            updates[parameter] = parameter - convert(self._lr, parameter.dtype) * g
        if self.momentum and self.dampening:
            updates[self.started] = F.ones((), np.bool_)
        return updates


class Adam(Optimizer):
    """Adam with torch.optim.Adam's formulas (Kingma and Ba, 2015); AMSGrad's denominator is not offered.

        g = gradient (negated if maximize) + weight_decay * p
        m = beta1 * m + (1 - beta1) * g;   v = beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)        at step t, from 1

    Raises ArgumentError for a negative lr, eps or weight_decay, and for betas outside [0, 1).
    """

    decoupled = False  # whether the weights decay by themselves, and not through their gradients

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr)
        if len(betas) != 2 or not all(isinstance(beta, int | float) and 0.0 <= beta < 1.0 for beta in betas):
            raise ArgumentError(f"betas must be two numbers in [0, 1), not {betas}")
        self.betas, self.eps, self.maximize = betas, _at_least(0.0, eps=eps), maximize
        self.weight_decay = _at_least(0.0, weight_decay=weight_decay)
        self.steps = Buffer(np.zeros((), np.float64), "adam.steps")  # 1 - beta**t needs more than float32
        names = [parameter.name or f"param{number}" for number, parameter in enumerate(self.params)]
        zeros = [np.zeros_like(parameter.data) for parameter in self.params]
        self.means = [Buffer(zero, f"{name}.mean") for zero, name in zip(zeros, names, strict=True)]
        self.squares = [Buffer(zero, f"{name}.square") for zero, name in zip(zeros, names, strict=True)]

    def step(self, gradients: Iterable[Tensor]) -> Updates:
        """The updates for given gradients, one per parameter."""
        count = self.steps + 1.0
        updates: Updates = {self.steps: count}
        beta1, beta2 = self.betas
        size = convert(self._lr, count.dtype) / _reached(beta1, count)
        root = F.sqrt(_reached(beta2, count))
        for parameter, gradient, mean, square in zip(self.params, gradients, self.means, self.squares, strict=True):
            g = -gradient if self.maximize else gradient
            kept: Tensor = parameter
            if self.weight_decay and self.decoupled:
                kept = parameter * (1.0 - convert(self._lr, parameter.dtype) * self.weight_decay)
            elif self.weight_decay:
                g = g + self.weight_decay * parameter
            updates[mean] = beta1 * mean + (1 - beta1) * g
            updates[square] = beta2 * square + (1 - beta2) * (g * g)
            spread = F.sqrt(updates[square]) / convert(root, parameter.dtype) + self.eps
            updates[parameter] = kept - convert(size, parameter.dtype) * updates[mean] / spread
        return updates


class AdamW(Adam):
    """Adam whose weights decay by lr * weight_decay * p at each step (Loshchilov and Hutter, 2019), as torch's."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)


def _reached(beta: float, count: Tensor) -> Tensor:
    """1 - beta**count, exact where it is small."""
    return F.ones_like(count) if beta == 0.0 else -F.expm1(count * math.log(beta))


def _at_least(low: float, **named: Any) -> float:
    ((name, value),) = named.items()
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number < math.inf:
        raise ArgumentError(f"{name} must be a number of at least {low}, not {value!r}")
    return number
