"""EfficientNet-Lite0 as ONNX, built from its PyTorch checkpoint without torch.

The network is EfficientNet-B0 (Tan and Le, 2019, arXiv:1905.11946, table 1) in the form that Google published for
phones: no squeeze-and-excitation, and ReLU6 in place of swish. A block widens its input, filters each channel, and
narrows the result (Sandler et al., 2018, arXiv:1801.04381, figure 3d); the last step has no activation. The weights
were trained in TensorFlow, so that a convolution of stride 2 pads what "SAME" does there: of the k - s that an even
size needs, the smaller half in front.

Modules carry the names of the checkpoint's tensors, as in `minilm`. BatchNormalization nodes stay, as in an exported
model: folding them is a pass's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from .building import load_weights, name_nodes
from .torch_checkpoint import read_state_dict

OPSET = 17
SIDE = 224
CLASSES = 1000
_IR_VERSION = 8  # the one that came with opset 17
_EPSILON = 1e-3
_STEM, _HEAD = 32, 1280  # channels

# Of each stage: blocks, kernel, stride of the first block, widening, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _Conv(nn.Module):
    """A convolution without bias; every size that it halves is even."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter([outputs, inputs // groups, kernel, kernel])
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.attributes = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [before, before, after, after],
            "group": groups,
        }

    def forward(self, op: Any, x: Any) -> Any:
        return op.Conv(x, self.weight, **self.attributes)


class _BatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([channels])
        self.bias = nn.Parameter([channels])
        self.running_mean = nn.Parameter([channels])
        self.running_var = nn.Parameter([channels])

    def forward(self, op: Any, x: Any) -> Any:
        return op.BatchNormalization(x, self.weight, self.bias, self.running_mean, self.running_var, epsilon=_EPSILON)


def _relu6(op: Any, x: Any) -> Any:
    return op.Clip(x, 0.0, 6.0)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = inputs * widening
        self.widens, self.adds = widening != 1, stride == 1 and inputs == outputs
        if self.widens:
            self._expand_conv = _Conv(inputs, wide)
            self._bn0 = _BatchNorm(wide)
        self._depthwise_conv = _Conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _BatchNorm(wide)
        self._project_conv = _Conv(wide, outputs)
        self._bn2 = _BatchNorm(outputs)

    def forward(self, op: Any, x: Any) -> Any:
        wide = _relu6(op, self._bn0(op, self._expand_conv(op, x))) if self.widens else x
        filtered = _relu6(op, self._bn1(op, self._depthwise_conv(op, wide)))
        narrow = self._bn2(op, self._project_conv(op, filtered))
        return op.Add(narrow, x) if self.adds else narrow


class _Classifier(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter([classes, inputs])
        self.bias = nn.Parameter([classes])

    def forward(self, op: Any, x: Any) -> Any:
        return op.Gemm(x, self.weight, self.bias, transB=1)


def _blocks() -> list[nn.Module]:
    blocks: list[nn.Module] = []
    inputs = _STEM
    for count, kernel, stride, widening, outputs in _STAGES:
        for index in range(count):
            blocks.append(_Block(inputs, outputs, kernel, 1 if index else stride, widening))
            inputs = outputs
    return blocks


class _EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Conv(3, _STEM, 3, 2)
        self._bn0 = _BatchNorm(_STEM)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head = _Conv(_STAGES[-1][-1], _HEAD)
        self._bn1 = _BatchNorm(_HEAD)
        self._fc = _Classifier(_HEAD, CLASSES)

    def forward(self, op: Any, x: Any) -> Any:
        x = _relu6(op, self._bn0(op, self._conv_stem(op, x)))
        for block in self._blocks:
            x = block(op, x)
        x = _relu6(op, self._bn1(op, self._conv_head(op, x)))
        return self._fc(op, op.Flatten(op.GlobalAveragePool(x)))


def build(weights: Mapping[str, np.ndarray[Any, Any]]) -> ir.Model:
    """Build the classifier.

    Args:
        weights: float32 tensors under the checkpoint's names, such as "_blocks.0._bn1.running_mean".
            Others are ignored.

    Returns:
        A model with the float32 input `images` [batch, 3, 224, 224], RGB as `preprocess` scales it, and the float32
        output `logits` [batch, 1000] of the ImageNet classes.

    Raises:
        OnnxpressError: A weight is missing or has another shape or type.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="efficientnet-lite0")
    builder = GraphBuilder(graph)
    images = builder.input("images", ir.DataType.FLOAT, ["batch", 3, SIDE, SIDE])
    network = _EfficientNet()
    load_weights(network, weights)
    logits = network(builder.op, images)
    name_nodes(graph)
    logits.shape = ir.Shape(["batch", CLASSES])
    builder.add_output(logits, "logits")
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="onnxpress")


def build_files(checkpoint: Path, target: Path) -> None:
    """Write the ONNX model of a checkpoint.

    Raises:
        OnnxpressError: As `read_state_dict` and `build`.
    """
    ir.save(build(read_state_dict(checkpoint)), target)
