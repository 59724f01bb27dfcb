"""TensorFlow's side of the workloads: one tf.function per step, as a graph or compiled by XLA; images channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

LR = 0.01


def build(
    variant: str, family: str, sizes: Sequence[int], kind: str, given: Mapping[str, Any], state: Any, threads: int
) -> Callable[[], Any]:
    """One step; `variant` is "graph" or "xla"."""
    p = {}
    for key, array in state.items():
        if array.dtype.kind == "f" and "running" not in key:
            p[key] = tf.Variable(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
    arrays = {key: tf.constant(a.transpose(0, 2, 3, 1) if a.ndim == 4 else a) for key, a in given.items()}

    def linear(x: Any, key: str) -> Any:
        flat = tf.reshape(x, (-1, x.shape[-1]))
        product = tf.nn.bias_add(tf.matmul(flat, p[f"{key}.weight"], transpose_b=True), p[f"{key}.bias"])
        return tf.reshape(product, (*x.shape[:-1], product.shape[-1]))

    def mlp(x: Any) -> Any:
        for n in range(len(sizes) - 1):
            x = linear(x if n == 0 else tf.nn.relu(x), str(2 * n))
        return x

    def entropy(scores: Any, label: Any) -> Any:
        flat = tf.reshape(scores, (-1, scores.shape[-1]))
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.reshape(label, (-1,)), logits=flat)
        )

    def conv(x: Any, key: str, stride: int = 1, padding: str = "SAME") -> Any:
        w = p[f"{key}.weight"]
        if w.shape[0] == 3:
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]) if stride > 1 else x
        return tf.nn.conv2d(x, w, stride, padding if stride == 1 else "VALID")

    def cnn(x: Any) -> Any:
        last = 3 * (len(sizes) - 4)
        for key in range(0, last, 3):
            x = tf.nn.max_pool2d(
                tf.nn.relu(tf.nn.bias_add(conv(x, f"{key}", 1, "VALID"), p[f"{key}.bias"])), 2, 2, "VALID"
            )
        x = tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (x.shape[0], -1))  # torch's order
        return linear(tf.nn.relu(linear(x, f"{last + 1}")), f"{last + 3}")

    def norm(x: Any, key: str) -> Any:
        return tf.compat.v1.nn.fused_batch_norm(x, p[f"{key}.weight"], p[f"{key}.bias"], epsilon=1e-5)[0]

    def resnet(x: Any) -> Any:
        x = tf.nn.relu(norm(conv(x, "stem"), "bn"))
        for n in range(len(sizes)):
            stride = 1 + (n > 0)
            key = f"blocks.{n}"
            y = tf.nn.relu(norm(conv(x, f"{key}.conv1", stride), f"{key}.bn1"))
            y = norm(conv(y, f"{key}.conv2"), f"{key}.bn2")
            if n:
                x = norm(conv(x, f"{key}.short", stride), f"{key}.bn3")
            x = tf.nn.relu(x + y)
        return linear(tf.reduce_mean(x, (1, 2)), "fc")

    def mobile(x: Any) -> Any:
        x = tf.nn.relu6(norm(conv(x, "stem"), "bn"))
        for n in range(len(sizes) - 1):
            stride = 1 + (n > 0)
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]) if stride > 1 else x
            w = tf.transpose(p[f"deep.{n}.weight"], (0, 1, 3, 2))
            x = tf.nn.depthwise_conv2d(x, w, (1, stride, stride, 1), "SAME" if stride == 1 else "VALID")
            x = tf.nn.relu6(norm(conv(tf.nn.relu6(norm(x, f"bn1.{n}")), f"wide.{n}"), f"bn2.{n}"))
        return linear(tf.reduce_mean(x, (1, 2)), "fc")

    def dense(x: Any) -> Any:
        x = conv(x, "stem")
        for n in range(sizes[2]):
            x = tf.concat([x, conv(tf.nn.relu(norm(x, f"bn.{n}")), f"conv.{n}")], 3)
        return linear(tf.reduce_mean(x, (1, 2)), "fc")

    def layer_norm(x: Any, key: str) -> Any:
        mean, var = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(var + 1e-5) * p[f"{key}.weight"] + p[f"{key}.bias"]

    def gpt(x: Any) -> Any:
        layers, width, heads, *_ = sizes
        x = tf.gather(p["tokens.weight"], x) + p["places.weight"]
        batch, length, _ = x.shape
        mask = tf.linalg.band_part(tf.ones((length, length)), -1, 0) > 0
        for n in range(layers):
            key = f"blocks.{n}"
            parts = tf.reshape(linear(layer_norm(x, f"{key}.ln1"), f"{key}.qkv"), (batch, length, 3, heads, -1))
            q, k, v = tf.unstack(tf.transpose(parts, (2, 0, 3, 1, 4)))
            scores = tf.matmul(q, k, transpose_b=True) * (width // heads) ** -0.5
            seen = tf.matmul(tf.nn.softmax(tf.where(mask, scores, -float("inf"))), v)
            x = x + linear(tf.reshape(tf.transpose(seen, (0, 2, 1, 3)), (batch, length, width)), f"{key}.proj")
            hidden = tf.nn.gelu(linear(layer_norm(x, f"{key}.ln2"), f"{key}.fc1"), approximate=True)
            x = x + linear(hidden, f"{key}.fc2")
        return linear(layer_norm(x, "ln"), "head")

    def lstm(x: Any) -> Any:
        """Written out in a graph; a loop for XLA, whose compiler takes minutes for it otherwise."""
        sums = linear_ih(x)
        hidden = cell = tf.zeros((x.shape[0], sizes[1]))
        outputs = tf.TensorArray(tf.float32, x.shape[1], element_shape=hidden.shape)
        for t in tf.range(x.shape[1]) if variant == "xla" else range(x.shape[1]):
            now = sums[:, t] + tf.matmul(hidden, p["lstm.weight_hh_l0"], transpose_b=True)
            i, f, g, o = tf.split(now, 4, -1)
            cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(g)
            hidden = tf.sigmoid(o) * tf.tanh(cell)
            outputs = outputs.write(t, hidden)
        return linear(tf.transpose(outputs.stack(), (1, 0, 2)), "head")

    def linear_ih(x: Any) -> Any:
        product = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), p["lstm.weight_ih_l0"], transpose_b=True)
        return tf.reshape(product + p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"], (*x.shape[:2], -1))

    def elementwise(d: Any) -> Any:
        return tf.reduce_sum(tf.tanh(d["a"] * d["b"] + d["d"]) * tf.sigmoid(d["e"]) + tf.exp(-d["a"] * d["a"]))

    def classified(net: Any) -> Any:
        return lambda d: entropy(net(d["x"]), d["label"])

    value = {
        "mlp": classified(mlp),
        "infer": lambda d: mlp(d["x"]),
        "cnn": classified(cnn),
        "resnet": classified(resnet),
        "mobile": classified(mobile),
        "dense": classified(dense),
        "gpt": classified(gpt),
        "lstm": classified(lstm),
        "elementwise": elementwise,
        "layernorm": lambda d: tf.reduce_sum(tf.nn.gelu(layer_norm(d["x"], "ln"), approximate=True) * d["w"]),
    }[family]
    compiled = tf.function(jit_compile=variant == "xla")
    if kind == "infer":
        forward = compiled(lambda d: value(d))
        if family == "infer":
            return lambda: forward({"x": tf.constant(given["x"])}).numpy()
        return lambda: float(forward(arrays))
    names = list(p)

    if kind == "gradients":

        @compiled
        def gradients(d: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(d["x"])
                total = value(d)
            return [total, *tape.gradient(total, [*(p[key] for key in names), d["x"]])]

        return lambda: [float(part) if n == 0 else part for n, part in enumerate(gradients(arrays))]

    @compiled
    def update(d: Any) -> Any:
        with tf.GradientTape() as tape:
            total = value(d)
        for key, g in zip(names, tape.gradient(total, [p[key] for key in names]), strict=True):
            p[key].assign_sub(LR * tf.convert_to_tensor(g))
        return total

    return lambda: float(update(arrays))
