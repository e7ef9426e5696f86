"""Layers of encoders become one operator where they are wholly understood, and then compute nearly the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from encoder_layers import LayerModel
from graphs import matmul_model
from onnxpress.custom_ops import register
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.errors import UsageError
from sessions import options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
RECIPE = {"scheme": "int8-dynamic", "fuse_layers": True}


def run(model, feeds, level=LEVELS[1], ours=False):
    chosen = options(graph_optimization_level=level)
    if ours:
        register(chosen)
    source = model if isinstance(model, str) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(source, chosen).run(None, feeds)[0]


def fused(case, tmp_path, **recipe):
    """The report of a conversion, and the operators of what was written."""
    report = optimize(case.model(), Recipe(**RECIPE, **recipe), tmp_path / "out.onnx")
    return report, [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]


def reasons(report):
    return report.passes.get("QuantizeEncoderLayers", {})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_first": True},
        {"activation": "relu", "bias": False, "turned": True},
        {"activation": "gelu_tanh", "norm_first": True, "turned": True, "opset": 20},
        {"mask": False},
        {"opset": 11},
        {"opset": 14, "reciprocal": True, "norm_first": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("level", LEVELS)
def test_computes_nearly_the_same(settings, level, tmp_path):
    case = LayerModel(**settings)
    report, operators = fused(case, tmp_path)
    assert operators.count("EncoderLayer") == 1
    assert not {"MatMul", "MatMulInteger", "Softmax", "LayerNormalization", "Attention"} & set(operators)
    assert report.rewritten == {"MatMul": 6}
    feeds = case.feeds()
    counted = feeds["attention_mask"] != 0 if case.mask else np.ones((3, 9), bool)
    want = run(case.model(), feeds, level)[counted]
    for ours in (False, True):
        got = run(str(tmp_path / "out.onnx"), feeds, level, ours)
        assert np.linalg.norm(got[counted] - want) <= 0.03 * np.linalg.norm(want)
        assert (got[~counted] == 0).all()


def test_found_by_structure_alone(tmp_path):
    """Whatever nodes and values are called."""
    model = LayerModel().model()
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    values = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    constants = list(model.graph.initializers.values())
    for value in constants:
        model.graph.initializers.pop(value.name)
    for index, value in enumerate([*values, *constants]):
        value.name = f"v{index}"
    for value in constants:
        model.graph.register_initializer(value)
    optimize(model, Recipe(**RECIPE), tmp_path / "out.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node].count("EncoderLayer") == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"activation": "tanh"}, "neither Relu nor Gelu between the products of the perceptron"),
        ({"shared": "hidden"}, "others read what is between attention and perceptron"),
        ({"shared": "hidden", "norm_first": True}, "others read what is between attention and perceptron"),
        ({"shared": "up"}, "neither Relu nor Gelu between the products of the perceptron"),
        ({"residual": "other"}, "the attention is not added to the input of the layer"),
        ({"epsilon": 1e-5}, "its norms have different epsilons"),
    ],
    ids=str,
)
def test_left_with_the_reason(settings, reason, tmp_path):
    report, operators = fused(LayerModel(**settings), tmp_path)
    assert "EncoderLayer" not in operators
    assert "QAttention" in operators  # which is what becomes of it then
    assert list(reasons(report).values()) == [reason]


@pytest.mark.parametrize("name", ["q/MatMul", "out/MatMul", "down/MatMul"])
def test_a_product_that_stays_in_float(name, tmp_path):
    report, operators = fused(LayerModel(), tmp_path, exclude=(name,))
    assert "EncoderLayer" not in operators
    assert "MatMul" in operators
    if name != "q/MatMul":  # without which there is no attention as one node to begin with
        assert list(reasons(report).values()) == ["a product of the layer stays in float"]


def test_only_where_it_is_wanted(tmp_path):
    report = optimize(LayerModel().model(), Recipe(scheme="int8-dynamic"), tmp_path / "out.onnx")
    assert "EncoderLayer" not in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert not reasons(report)


def test_is_not_converted_again(tmp_path):
    fused(LayerModel(), tmp_path)
    with pytest.raises(Exception, match="already quantized"):
        optimize(tmp_path / "out.onnx", Recipe(scheme="int4"), tmp_path / "again.onnx")


def test_what_the_report_says(tmp_path):
    """Of padding, of the machine, and of models without an attention."""
    rows = dict(fused(LayerModel(), tmp_path)[0].rows)
    assert rows["made for"] == "any CPU: sums of whole layers are exact"
    assert rows["padding"].startswith("is not computed")
    assert (rows["attention"], rows["layers"]) == ("1 fused", "1 fused")
    report = optimize(matmul_model(), Recipe(**RECIPE), tmp_path / "out.onnx")
    assert report.details["layers"] == {
        "fused": 0,
        "left": {"layers: the model has no self-attention to find them by": 1},
    }
    with pytest.raises(UsageError, match="fuse_layers: not read without fuse"):
        Recipe(**RECIPE, fuse=False)
