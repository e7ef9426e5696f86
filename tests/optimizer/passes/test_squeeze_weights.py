"""A weight with leading axes of one is a matrix, in every scheme; what is left says why."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import OnnxpressError, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.squeeze_weights import SqueezeWeights
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Recipe
from rewrites import LEVELS, op_types, rewritten

W = graphs.weight(64, 48)


def noise(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def product(rank, shape, opset=17, override=False):
    b = graphs.Builder(opset)
    weight = b.constant("W", W.reshape(model_shape(rank)))
    if override:
        b.graph.inputs.append(weight)
    x = b.input("x", shape)
    b.output(
        b.op("MatMul", x, weight, name="product"), list(np.matmul(np.ones(shape), np.ones(model_shape(rank))).shape)
    )
    return b.model()


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (3, 5, 64), (2, 3, 5, 64), (2, 2, 3, 5, 64)])
def test_results_keep_their_axes(shape, rank, opset):
    kinds = ["Reshape", "MatMul"] if len(shape) >= rank else ["Unsqueeze", "Reshape", "MatMul"]
    model = product(rank, shape, opset)
    assert rewritten(model, SqueezeWeights(), {"x": noise(*shape)}, depth=64) == kinds
    assert not SqueezeWeights()(model)


def test_what_is_left():
    assert not SqueezeWeights()(product(3, [3, 5, 64], override=True))
    b = graphs.Builder()
    b.output(b.op("MatMul", b.input("x", [3, 5, 64]), b.constant("W", np.stack([W, W, W]))), [3, 5, 48])
    assert not SqueezeWeights()(b.model())


def test_an_operand_of_unknown_axes_is_told():
    model = product(3, [3, 5, 64])
    model.graph.inputs[0].shape = None
    with pytest.raises(OnnxpressError, match="weight of 3 axes beside an operand whose number of axes is not known"):
        optimize(model, Recipe(scheme="int8", clean_up=False))


def test_one_matrix_for_all_its_readers():
    b = graphs.Builder()
    x, weight = b.input("x", [2, 5, 64]), b.constant("W", W[None])
    for name, operand in (("a", x), ("b", b.op("Relu", x))):
        b.output(b.op("MatMul", operand, weight, name=name), [2, 5, 48])
    model = b.model()
    report = optimize(model, Recipe(scheme="int8"))
    assert report.rewritten == {"MatMul": 2}
    assert [name for name in model.graph.initializers if "codes" in name] == ["W_matrix_int8_codes"]


def test_within_a_branch():
    inner = graphs.Builder()
    weight = inner.constant("W", W[None])
    b = graphs.Builder()
    x, chosen = b.input("x", [2, 5, 64]), b.input("chosen", [], ir.DataType.BOOL)
    inner.output(inner.op("MatMul", x, weight, name="product"), [2, 5, 48])
    other = graphs.Builder()
    ends = [other.constant(f"n{i}", np.array([n])) for i, n in enumerate((0, 48, 2))]
    other.output(other.op("Slice", x, *ends), [2, 5, 48])
    b.output(b.op("If", chosen, then_branch=inner.graph, else_branch=other.graph, name="choice"), [2, 5, 48])
    model = b.model()
    report = optimize(model, Recipe(scheme="int8"))
    assert report.rewritten == {"MatMul": 1}
    (choice,) = (node for node in model.graph if node.op_type == "If")
    assert "W" not in choice.attributes["then_branch"].as_graph().initializers


SCHEMES = [
    Recipe(scheme="int8"), Recipe(scheme="int8", form="qdq"), Recipe(scheme="int5"), Recipe(scheme="fp8"),
    Recipe(scheme="int8-dynamic", reduce_range=True), Recipe(scheme="int8-static", reduce_range=True),
    Recipe(scheme="fp8-static", first_and_last=True), Recipe(scheme="fp8-dynamic", first_and_last=True),
    Recipe(scheme="sparse", prune=False, block="1x1"),
]  # fmt: skip


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("recipe", SCHEMES, ids=lambda recipe: f"{recipe.scheme}-{recipe.form}")
def test_every_scheme_takes_it(recipe, rank, tmp_path):
    model, feeds = product(rank, [2, 5, 64]), {"x": noise(2, 5, 64)}
    model.graph.initializers["W"].const_value = ir.tensor(np.where(np.abs(W) < 0.1, 0, W).reshape(model_shape(rank)))
    storage.save(model, tmp_path / "m.onnx")
    want = feeds["x"] @ np.where(np.abs(W) < 0.1, 0, W).reshape(model_shape(rank))
    data = Calibration([feeds]) if recipe.scheme.endswith("static") else None
    report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=data)
    assert report.rewritten["MatMul"] == 1
    assert report.left == {}
    proto = onnx.load(tmp_path / "out.onnx")
    assert all(tensor.name != "W" for tensor in proto.graph.initializer)
    for level in LEVELS:
        chosen = session_options(ours=True)
        chosen.graph_optimization_level = level
        got = open_session(tmp_path / "out.onnx", chosen).run(None, feeds)[0]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 0.12 * np.abs(want).max()


def model_shape(rank):
    return (*[1] * (rank - 2), 64, 48)


def test_what_is_not_taken_still_runs():
    model = product(3, [5, 64])
    assert SqueezeWeights()(model)
    assert op_types(model)[-1] == "MatMul"
