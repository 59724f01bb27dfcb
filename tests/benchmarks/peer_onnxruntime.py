"""ONNX Runtime's side: inference of the small network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def build(variant: str, name: str, kind: str, given: Mapping[str, Any], state: Any, threads: int) -> Callable[[], Any]:
    """One call."""
    if name != "mlp_infer1":
        raise ModuleNotFoundError(f"no {name} for ONNX Runtime")
    ready = session(name, given["x"], state, threads)
    return lambda: ready.run(None, {"x": given["x"]})[0]


def session(name: str, x: Any, state: Mapping[str, Any], threads: int) -> onnxruntime.InferenceSession:
    """The network on arrays like `x`."""
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10))]
    weights = [numpy_helper.from_array(array, key) for key, array in state.items()]
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
