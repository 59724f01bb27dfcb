"""ONNX Runtime's side: inference of the small network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def build(
    variant: str, family: str, sizes: Sequence[int], kind: str, given: Mapping[str, Any], state: Any, threads: int
) -> Callable[[], Any]:
    """One call."""
    if family != "infer":
        raise ModuleNotFoundError(f"no {family} for ONNX Runtime")
    ready = session(given["x"], state, threads)
    return lambda: ready.run(None, {"x": given["x"]})[0]


def session(x: Any, state: Mapping[str, Any], threads: int) -> onnxruntime.InferenceSession:
    """The network on arrays like `x`."""
    nodes, source = [], "x"
    for n in range(0, len(state), 2):  # a weight and a bias for each layer, and a relu between two
        nodes += [helper.make_node("Relu", [source], [f"r{n}"])] * (n > 0)
        source = f"r{n}" if n else source
        nodes.append(helper.make_node("Gemm", [source, f"{n}.weight", f"{n}.bias"], [f"h{n}"], transB=1))
        source = f"h{n}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info(source, TensorProto.FLOAT, (len(x), len(state[f"{len(state) - 2}.bias"])))]
    weights = [numpy_helper.from_array(array, key) for key, array in state.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "infer", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
