"""Recurrent networks: a step of the recurrence is ordinary graph, and time is unrolled while the graph is built."""

from __future__ import annotations

from graphc.errors import ShapeError
from graphc.frontend import functional as F
from graphc.frontend.tensor import Tensor
from graphc.ir import source

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

    What the input adds to the gates is one product for all t. Raises ShapeError when T is a named dimension.
    """
    length = input.shape[1]
    if not isinstance(length, int):
        raise ShapeError(f"an LSTM is unrolled in time and needs a number of steps, not {length}", source.here())
    sums = F.linear(input, weight_ih, bias)
    hidden, cell = state
    outputs = []
    for t in range(length)[:: -1 if reverse else 1]:
        hidden, cell = lstm_cell(sums[:, t] + F.linear(hidden, weight_hh), cell)
        outputs.append(hidden)
    return F.stack(outputs[:: -1 if reverse else 1], 1), (hidden, cell)
