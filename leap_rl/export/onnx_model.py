"""Writes the network of a run as an ONNX graph, which runs without torch and without leap_rl.

The graph is written node by node: it has eight or nine. torch's exporter needs onnxscript as well, and loads torch's
compiler; the one that it replaced is deprecated.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from leap_rl.processes.a2c.network import Encoder
from leap_rl.processes.layers import CONVOLUTIONS, NUM_FEATURES
from leap_rl.types import Tensors

OPSET, FILE_VERSION = 17, 8  # of 2022: what reads today's files reads these
PIXELS, FEATURES, LOGITS = "pixels", "features", "logits"


def onnx_model(encoder: Encoder, screen_size: int, policy: "Tensors | None") -> bytes:
    """Returns the file of a network: uint8 [N, C, H, W] → float32 features [N, 256], and logits of the ``policy``, a
    linear layer's ``weight`` and ``bias``, if given."""
    weights = {name: value.detach() for name, value in encoder.named_parameters()}
    weights["conv1.weight"] = weights["conv1.weight"] / 255  # as the encoder itself does
    first, second = (convolution.stride for convolution in CONVOLUTIONS)
    nodes = [
        helper.make_node("Cast", [PIXELS], ["inputs"], to=TensorProto.FLOAT),
        _layer("Conv", "inputs", "conv1", strides=[first, first]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        _layer("Conv", "relu1", "conv2", strides=[second, second]),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        helper.make_node("Flatten", ["relu2"], ["flat"]),
        _layer("Gemm", "flat", "linear", transB=1),
        helper.make_node("Relu", ["linear"], [FEATURES]),
    ]
    outputs = [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", NUM_FEATURES])]
    if policy is not None:
        weights |= {f"{LOGITS}.{end}": value for end, value in policy.items()}
        nodes.append(_layer("Gemm", FEATURES, LOGITS, transB=1))
        outputs.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", len(policy["bias"])]))
    shape = ["N", weights["conv1.weight"].shape[1], screen_size, screen_size]
    graph = helper.make_graph(
        nodes, "leap_rl", [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, shape)], outputs,
        [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, producer_name="leap_rl", ir_version=FILE_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _layer(kind: str, given: str, name: str, **attributes: Any) -> Any:
    return helper.make_node(kind, [given, f"{name}.weight", f"{name}.bias"], [name], **attributes)


def run_onnx(data: bytes, frames: Tensor) -> dict[str, Tensor]:
    """Returns what ONNX Runtime computes of frames, uint8 [N, C, H, W], by the name of the output."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {PIXELS: np.ascontiguousarray(frames.numpy())})
    return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}
