"""Recurrent networks: a scan over time, whose step is ordinary graph."""

from __future__ import annotations

from graphc.frontend import functional as F
from graphc.frontend.control import scan
from graphc.frontend.tensor import Tensor

States = tuple[Tensor, Tensor]  # h and c, [N, hidden] each


def lstm_cell(gates: Tensor, cell: Tensor) -> States:
    """The next (h, c) from the gates' sums [N, 4 hidden], in the order input, forget, cell, output (torch's).

    c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c)        (Hochreiter and Schmidhuber, 1997)
    """
    size = cell.shape[-1]
    i, f, g, o = (gates[..., n * size : (n + 1) * size] for n in range(4))
    following = F.sigmoid(f) * cell + F.sigmoid(i) * F.tanh(g)
    return F.sigmoid(o) * F.tanh(following), following


def lstm(
    input: Tensor,
    state: States,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, States]:
    """One layer in one direction: input [N, T, I], weights [4 H, I] and [4 H, H], bias [4 H] -> h at every t [N, T, H].

    What the input adds to the gates is one product for all t.
    """

    def step(state: States, sums: Tensor) -> tuple[States, Tensor]:
        hidden, cell = lstm_cell(sums + F.linear(state[0], weight_hh), state[1])
        return (hidden, cell), hidden

    sums = F.linear(F.swapaxes(input, 0, 1), weight_ih, bias)
    state, outputs = scan(step, state, sums, reverse=reverse)
    return F.swapaxes(outputs, 0, 1), state
