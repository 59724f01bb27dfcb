"""Optimisers: pure functions from gradients to next values, with torch.optim's semantics.

`minimize(loss)` gives the updates for `compile(updates=)`: every parameter, and the optimiser's own state, with what it
becomes. `lr` is state as well: `optimizer.lr = 0.001` takes effect at the next call, without compiling again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphc.errors import ArgumentError
from graphc.frontend import functional as F
from graphc.frontend.differentiate import grad
from graphc.frontend.tensor import Buffer, Parameter, State, Tensor, convert

Updates = dict[State, Tensor]


class Optimizer:
    """Parameters and a learning rate."""

    def __init__(self, params: Iterable[Parameter], lr: float) -> None:
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


def _at_least(low: float, **named: float) -> float:
    ((name, value),) = named.items()
    if not value >= low:
        raise ArgumentError(f"{name} must be at least {low}, not {value}")
    return value
