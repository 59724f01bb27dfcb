"""A small network at every stage, from the graph that was written to machine code.

python examples/ir_tour.py [stage ...]
"""

from __future__ import annotations

import sys

import graphc as gx
from graphc import nn, optim

STAGES = ("graph", "bind", "simplify", "fold", "cse", "dce", "fused", "plan", "loops", "llvm", "assembly")
LONGEST = 60  # lines of a stage that are shown when all are


def build() -> gx.Function:
    """The training step of a 4-8-3 network."""
    gx.manual_seed(0)
    x = gx.placeholder("x", ("batch", 4))
    label = gx.placeholder("label", ("batch",), gx.int64)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    loss = nn.CrossEntropyLoss()(net(x), label)
    return gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), lr=0.1).minimize(loss))


def main() -> None:
    """Print the stages that are asked for, or the beginning of each."""
    step = build()
    for stage in sys.argv[1:] or STAGES:
        lines = step.ir(stage, batch=16).splitlines()
        shown = lines if len(sys.argv) > 1 else lines[:LONGEST]
        print(f"==== {stage} " + "=" * (72 - len(stage)))
        print("\n".join(shown))
        if len(shown) < len(lines):
            print(f"... {len(lines) - len(shown)} more lines: python examples/ir_tour.py {stage}")
        print()


if __name__ == "__main__":
    main()
