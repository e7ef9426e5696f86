from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.models import efficientnet
from onnxpress.optimizer.errors import OnnxpressError


def random_weights() -> dict[str, np.ndarray]:
    """Such that activations keep their scale, and no two channels of a BatchNormalization are alike."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, parameter in efficientnet._EfficientNet().named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) > 1:
            weights[name] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith(("running_var", "weight")):
            weights[name] = rng.uniform(0.5, 1.5, shape)
        else:
            weights[name] = rng.normal(0, 0.3, shape)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def same_padding_conv(x, w, stride, groups):
    """The definition of TensorFlow's "SAME": ceil(size / stride) outputs, the odd row of padding behind."""
    size, kernel = x.shape[1], w.shape[2]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    x = np.pad(x, ((0, 0), *[(total // 2, total - total // 2)] * 2))
    out = -(-size // stride)
    result = np.zeros((w.shape[0], out, out))
    for i in range(kernel):
        for j in range(kernel):
            part = x[:, i : i + stride * out : stride, j : j + stride * out : stride][:, :out, :out]
            if groups == 1:
                result += np.tensordot(w[:, :, i, j], part, 1)
            else:
                result += w[:, 0, i, j, None, None] * part
    return result


def forward(w, image):
    """The network in float64, by the tables of the papers."""

    def step(x, conv, norm, stride=1, groups=1, active=True):
        x = same_padding_conv(x, w[f"{conv}.weight"].astype(np.float64), stride, groups)
        mean, var, gain, bias = (
            w[f"{norm}.{part}"].astype(np.float64)[:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / np.sqrt(var + 1e-3) * gain + bias
        return np.clip(x, 0, 6) if active else x

    x = step(image, "_conv_stem", "_bn0", 2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        block = f"_blocks.{i}"
        y = step(x, f"{block}._expand_conv", f"{block}._bn0") if i else x
        y = step(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, len(y))
        y = step(y, f"{block}._project_conv", f"{block}._bn2", active=False)
        x = x + y if stride == 1 and len(x) == len(y) else y
    x = step(x, "_conv_head", "_bn1").mean((1, 2))
    return w["_fc.weight"] @ x + w["_fc.bias"]


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def proto(weights) -> onnx.ModelProto:
    return ir.to_proto(efficientnet.build(weights))


def test_equals_the_equations(proto, weights):
    image = np.random.default_rng(1).normal(0, 1, (3, 224, 224)).astype(np.float32)
    (logits,) = ort.InferenceSession(proto.SerializeToString()).run(["logits"], {"images": image[None]})
    expected = forward(weights, image.astype(np.float64))
    assert logits.shape == (1, 1000)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_graph_is_that_of_an_exported_model(proto):
    onnx.checker.check_model(proto, full_check=True)
    counts = Counter(node.op_type for node in proto.graph.node)
    assert (counts["Conv"], counts["BatchNormalization"], counts["Clip"], counts["Add"]) == (49, 49, 33, 9)
    assert proto.opset_import[0].version == 17
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    assert "/_blocks.3/_depthwise_conv/Conv" in names
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        224,
        224,
    ]


def test_missing_weight_is_named(weights):
    with pytest.raises(OnnxpressError, match=r"no tensor '_blocks.2._bn1.bias'"):
        efficientnet.build({name: array for name, array in weights.items() if name != "_blocks.2._bn1.bias"})
