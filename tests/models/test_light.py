from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.models import light
from onnxpress.optimizer.errors import OnnxpressError


@pytest.fixture(scope="module", params=["resnet50", "inception_v1", "densenet121"])
def model(request) -> ir.Model:
    return light.build(request.param)


def test_activations_keep_their_scale(model):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    names = [node.output[0] for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "Sum", "Concat")]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(proto.SerializeToString())
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    for name, value in zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True):
        assert 0.1 < value.std() < 30, name  # the last is a mean over 49 positions: smaller


def test_weights_are_plain_initializers(model):
    assert len(model.graph.inputs) == 1
    assert not [node for node in model.graph if node.op_type == "ConstantOfShape" or not node.name]
    for name, value in model.graph.initializers.items():
        array = value.const_value.numpy()
        assert value.uses(), name
        assert array.dtype == np.int64 or array.std() > 0, name


def test_seed_is_fixed():
    first, second = (light.build("inception_v1").graph.initializers["conv1/7x7_s2_w_0"] for _ in range(2))
    assert np.array_equal(first.const_value.numpy(), second.const_value.numpy())
    assert first.const_value.numpy().std() == pytest.approx((2 / (3 * 7 * 7)) ** 0.5, rel=0.03)


def test_unknown_topology():
    with pytest.raises(OnnxpressError, match=r"onnx has no light_transformer\.onnx"):
        light.build("transformer")
