"""JAX's side of the workloads: one jitted function per step, parameters donated; images channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as np
from jax import lax

LR = 0.01


def build(
    variant: str, family: str, sizes: Sequence[int], kind: str, given: Mapping[str, Any], state: Any, threads: int
) -> Callable[[], Any]:
    """One step."""

    def linear(p: Any, x: Any, key: str) -> Any:
        return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    def mlp(p: Any, x: Any) -> Any:
        for n in range(len(sizes) - 1):
            x = linear(p, x if n == 0 else jax.nn.relu(x), str(2 * n))
        return x

    def entropy(scores: Any, label: Any) -> Any:
        logs = jax.nn.log_softmax(scores.reshape(-1, scores.shape[-1]))
        return -np.mean(np.take_along_axis(logs, label.reshape(-1, 1), 1))

    def conv(x: Any, w: Any, stride: int = 1, pad: int = 1) -> Any:
        layout, groups = ("NHWC", "HWIO", "NHWC"), x.shape[3] // w.shape[2]
        pads = [(pad, pad)] * 2
        return lax.conv_general_dilated(
            x, w, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups
        )

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def cnn(p: Any, x: Any) -> Any:
        last = 3 * (len(sizes) - 4)
        for key in range(0, last, 3):
            x = pool(jax.nn.relu(conv(x, p[f"{key}.weight"], 1, 0) + p[f"{key}.bias"]))
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # torch's order
        return linear(p, jax.nn.relu(linear(p, x, f"{last + 1}")), f"{last + 3}")

    def norm(p: Any, x: Any, key: str) -> Any:
        mean = x.mean((0, 1, 2))
        var = np.square(x - mean).mean((0, 1, 2))
        return (x - mean) * lax.rsqrt(var + 1e-5) * p[f"{key}.weight"] + p[f"{key}.bias"]

    def resnet(p: Any, x: Any) -> Any:
        x = jax.nn.relu(norm(p, conv(x, p["stem.weight"]), "bn"))
        for n in range(len(sizes)):
            stride = 1 + (n > 0)
            key = f"blocks.{n}"
            y = jax.nn.relu(norm(p, conv(x, p[f"{key}.conv1.weight"], stride), f"{key}.bn1"))
            y = norm(p, conv(y, p[f"{key}.conv2.weight"]), f"{key}.bn2")
            if n:
                x = norm(p, conv(x, p[f"{key}.short.weight"], stride, 0), f"{key}.bn3")
            x = jax.nn.relu(x + y)
        return linear(p, x.mean((1, 2)), "fc")

    def mobile(p: Any, x: Any) -> Any:
        x = jax.nn.relu6(norm(p, conv(x, p["stem.weight"]), "bn"))
        for n in range(len(sizes) - 1):
            x = jax.nn.relu6(norm(p, conv(x, p[f"deep.{n}.weight"], 1 + (n > 0)), f"bn1.{n}"))
            x = jax.nn.relu6(norm(p, conv(x, p[f"wide.{n}.weight"], 1, 0), f"bn2.{n}"))
        return linear(p, x.mean((1, 2)), "fc")

    def dense(p: Any, x: Any) -> Any:
        x = conv(x, p["stem.weight"])
        for n in range(sizes[2]):
            x = np.concatenate([x, conv(jax.nn.relu(norm(p, x, f"bn.{n}")), p[f"conv.{n}.weight"])], 3)
        return linear(p, x.mean((1, 2)), "fc")

    def layer_norm(p: Any, x: Any, key: str) -> Any:
        mean = x.mean(-1, keepdims=True)
        var = np.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * lax.rsqrt(var + 1e-5) * p[f"{key}.weight"] + p[f"{key}.bias"]

    def gpt(p: Any, x: Any) -> Any:
        layers, width, heads, *_ = sizes
        x = p["tokens.weight"][x] + p["places.weight"]
        batch, length, _ = x.shape
        mask = np.tril(np.ones((length, length), bool))
        for n in range(layers):
            key = f"blocks.{n}"
            parts = linear(p, layer_norm(p, x, f"{key}.ln1"), f"{key}.qkv").reshape(batch, length, 3, heads, -1)
            q, k, v = (parts[:, :, m].transpose(0, 2, 1, 3) for m in range(3))
            scores = np.where(mask, q @ k.transpose(0, 1, 3, 2) * (width // heads) ** -0.5, -np.inf)
            seen = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)
            x = x + linear(p, seen, f"{key}.proj")
            hidden = jax.nn.gelu(linear(p, layer_norm(p, x, f"{key}.ln2"), f"{key}.fc1"), approximate=True)
            x = x + linear(p, hidden, f"{key}.fc2")
        return linear(p, layer_norm(p, x, "ln"), "head")

    def lstm(p: Any, x: Any) -> Any:
        w = p["lstm.weight_hh_l0"].T
        sums = x @ p["lstm.weight_ih_l0"].T + p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"]

        def cell(carry: Any, now: Any) -> Any:
            h, c = carry
            i, f, g, o = np.split(now + h @ w, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * np.tanh(g)
            h = jax.nn.sigmoid(o) * np.tanh(c)
            return (h, c), h

        zero = np.zeros((x.shape[0], w.shape[0]), x.dtype)
        _, outputs = lax.scan(cell, (zero, zero), sums.transpose(1, 0, 2), unroll=5)
        return linear(p, outputs.transpose(1, 0, 2), "head")

    def elementwise(p: Any, d: Any) -> Any:
        return np.sum(np.tanh(d["a"] * d["b"] + d["d"]) * jax.nn.sigmoid(d["e"]) + np.exp(-d["a"] * d["a"]))

    def classified(net: Any) -> Any:
        return lambda p, d: entropy(net(p, d["x"]), d["label"])

    value = {
        "mlp": classified(mlp),
        "infer": lambda p, d: mlp(p, d["x"]),
        "cnn": classified(cnn),
        "resnet": classified(resnet),
        "mobile": classified(mobile),
        "dense": classified(dense),
        "gpt": classified(gpt),
        "lstm": classified(lstm),
        "elementwise": elementwise,
        "layernorm": lambda p, d: np.sum(jax.nn.gelu(layer_norm(p, d["x"], "ln"), approximate=True) * d["w"]),
    }[family]
    p = {
        key: np.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
        for key, array in state.items()
        if array.dtype.kind == "f" and "running" not in key
    }
    arrays = {key: np.asarray(a.transpose(0, 2, 3, 1) if a.ndim == 4 else a) for key, a in given.items()}
    if kind == "infer":
        function = jax.jit(value)
        if family == "infer":
            return lambda: __import__("numpy").asarray(function(p, given))
        return lambda: float(function(p, arrays))
    if kind == "gradients":
        gradients = jax.jit(jax.value_and_grad(lambda p, x, d: value(p, {**d, "x": x}), (0, 1)))
        return lambda: jax.block_until_ready(gradients(p, arrays["x"], arrays))

    @partial(jax.jit, donate_argnums=0)
    def update(p: Any, d: Any) -> Any:
        total, g = jax.value_and_grad(value)(p, d)
        return total, {key: p[key] - LR * g[key] for key in p}

    box = [p]

    def train() -> Any:
        total, box[0] = update(box[0], arrays)
        return float(total)

    return train
