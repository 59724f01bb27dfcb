"""PyTensor's side: one function per step in its default mode (Numba), parameters and inputs in shared variables.

It has no convolution with a gradient here; networks that would need a page of code are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytensor
import pytensor.tensor as pt

LR = 0.01
pytensor.config.floatX = "float32"


def build(
    variant: str, family: str, sizes: Sequence[int], kind: str, given: Mapping[str, Any], state: Any, threads: int
) -> Callable[[], Any]:
    """One step."""
    p = {key: pytensor.shared(array, key, borrow=True) for key, array in state.items()}
    arrays = {key: pytensor.shared(array, key, borrow=True) for key, array in given.items()}

    def mlp(x: Any) -> Any:
        for n in range(len(sizes) - 1):
            x = (x if n == 0 else pt.maximum(x, 0)) @ p[f"{2 * n}.weight"].T + p[f"{2 * n}.bias"]
        return x

    def entropy(scores: Any, label: Any) -> Any:
        return -pt.mean(pt.special.log_softmax(scores, -1)[pt.arange(scores.shape[0]), label])

    def elementwise(d: Any) -> Any:
        return pt.sum(pt.tanh(d["a"] * d["b"] + d["d"]) * pt.sigmoid(d["e"]) + pt.exp(-d["a"] * d["a"]))

    def normed(d: Any) -> Any:
        x = d["x"]
        mean = x.mean(-1, keepdims=True)
        var = pt.sqr(x - mean).mean(-1, keepdims=True)
        y = (x - mean) / pt.sqrt(var + 1e-5) * p["ln.weight"] + p["ln.bias"]
        gelu = 0.5 * y * (1 + pt.tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)))
        return pt.sum(gelu * d["w"])

    value = {
        "mlp": lambda d: entropy(mlp(d["x"]), d["label"]),
        "elementwise": elementwise,
        "layernorm": normed,
    }.get(family)
    if family == "infer":
        x = pt.matrix("x", dtype="float32")
        forward = pytensor.function([x], mlp(x), trust_input=True)
        return partial(forward, given["x"])
    if value is None:
        raise ModuleNotFoundError(f"no {family} for PyTensor")
    total = value(arrays)
    if kind == "infer":
        return pytensor.function([], total)
    if kind == "gradients":
        wanted = [*p.values(), arrays["x"]]
        outputs = [pytensor.Out(part, borrow=True) for part in (total, *pytensor.grad(total, wanted))]
        return pytensor.function([], outputs)
    gradients = pytensor.grad(total, list(p.values()))
    steps = [(w, w - pt.constant(LR, dtype="float32") * g) for w, g in zip(p.values(), gradients, strict=True)]
    return pytensor.function([], total, updates=steps)
