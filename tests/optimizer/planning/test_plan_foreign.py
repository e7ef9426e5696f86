"""Operators with weights that no scheme knows are in the report, and are no reason to leave others out."""

from __future__ import annotations

import json

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from command_line import runner
from onnxpress.optimizer import Calibration, OnnxpressError, Recipe, optimize
from schemes import ROUNDING
from sessions import options

SCHEMES = [*ROUNDING, "fp8"]


def image_model():
    b = graphs.Builder(17)
    weight = graphs.weight(32, 32 * 9).reshape(32, 32, 3, 3)
    y = b.op("Conv", b.input("x", ["n", 32, 8, 8]), b.constant("C", weight), pads=[1, 1, 1, 1], name="conv")
    y = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", y)))
    b.output(b.op("MatMul", y, b.constant("W", graphs.weight(32, 64)), name="product"), ["n", 64])
    return b.model()


def saved_by_runtime(tmp_path, level):
    ir.save(image_model(), tmp_path / "m.onnx")
    ort.InferenceSession(
        tmp_path / "m.onnx",
        options(
            graph_optimization_level=getattr(ort.GraphOptimizationLevel, level),
            optimized_model_filepath=str(tmp_path / "s.onnx"),
        ),
    )
    return tmp_path / "s.onnx"


def left(path, scheme, tmp_path):
    data = Calibration([{"x": np.random.default_rng(0).standard_normal((2, 32, 8, 8)).astype(np.float32)}])
    recipe = Recipe(scheme=scheme)
    report = optimize(path, recipe, tmp_path / "o.onnx", calibration=data if "static" in scheme else None)
    assert sum(report.rewritten.values()) >= 1
    return report.left


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_products_that_onnx_runtime_made(tmp_path, level, scheme):
    path = saved_by_runtime(tmp_path, level)
    foreign = [node for node in onnx.load(path).graph.node if node.domain]
    (conv,) = (node for node in foreign if "Conv" in node.op_type)
    found = left(path, scheme, tmp_path)
    advice = "convert the model as it was before ONNX Runtime optimized it"
    assert found[f"{conv.op_type}: of domain {conv.domain}, which no scheme takes; {advice}"] == 1


def custom(domain, op_type="Mystery"):
    """A node of another domain with a matrix and a vector, beside a product."""
    b = graphs.Builder()
    x = b.input("x", ["m", 64])
    b.output(b.op("MatMul", x, b.constant("W", graphs.weight(64, 48)), name="product"), ["m", 48])
    table, vector = b.constant("T", graphs.weight(64, 4)), b.constant("v", graphs.weight(1, 64)[0])
    b.output(b.op(op_type, x, table, name="mine", domain=domain), ["m", 4])
    b.output(b.op(op_type, x, vector, name="no_matrix", domain=domain), ["m", 4])
    b.graph.opset_imports[domain] = 1
    return b.model()


def test_any_other_domain(tmp_path):
    report = optimize(custom("org.example"), Recipe(), tmp_path / "o.onnx")
    assert report.left == {"Mystery: of domain org.example, which no scheme takes": 1}


def test_calls_of_functions_that_are_not_inlined(tmp_path):
    model = custom("org.example")
    a, t = ir.Value(name="a"), ir.Value(name="t")
    node = ir.node("MatMul", [a, t])
    node.outputs[0].name = "c"
    body = ir.Graph([a, t], node.outputs, nodes=[node], opset_imports={"": 18})
    function = ir.Function("org.example", "Mystery", "", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    report = optimize(model, Recipe(clean_up=False), tmp_path / "o.onnx")
    assert report.left["Mystery: a call of a function of domain org.example; clean-up inlines functions"] == 1


def test_a_model_of_nothing_else(tmp_path):
    model = custom("com.microsoft", "FusedMatMul")
    with pytest.raises(OnnxpressError, match=r"nothing to quantize.*1 FusedMatMul: of domain com\.microsoft"):
        optimize(model, Recipe(exclude=("product",)), tmp_path / "o.onnx")


def test_they_are_listed_and_known_to_patterns(tmp_path, monkeypatch, capsys):
    ir.save(custom("org.example"), tmp_path / "m.onnx")
    run = runner(monkeypatch, capsys)
    _, out, _ = run("inspect", str(tmp_path / "m.onnx"), "--json")
    assert ["mine", "Mystery", "of domain org.example, which no scheme takes"] in json.loads(out)["left"]
    assert optimize(tmp_path / "m.onnx", Recipe(exclude=("mine",))).warnings == ()
