"""Which blocks scheme sparse removes, what it learns that from, and what is lost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder, weight
from onnxpress.optimizer import Recipe, UsageError, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.calibrate import calibrate
from pruning import K, N, batch, converted, product, run, samples, sparse_nodes

OLD = ort.__version__.startswith("1.23.")
GEMM_REASON = "not understood: with ONNX Runtime 1.23 a Gemm that adds an input gains nothing"


def test_criteria_differ_by_the_error_of_the_output():
    """On the data that they saw; the second order also moves what is kept, and the bias."""
    errors = {}
    data = samples()
    x = np.concatenate([sample["x"] for sample in data])
    want = x @ weight(K, N) + weight(1, N, 1)
    for criterion in ("magnitude", "wanda", "obs"):
        model = product()
        given = None if criterion == "magnitude" else data
        once = {"sequential": False} if criterion == "obs" else {}
        report = converted(model, given, dtype="float32", sparsity=0.6, criterion=criterion, **once)
        errors[criterion] = np.square(run(model, {"x": x})[0] - want).mean()
        if criterion != "magnitude":
            (layer,) = report.details["layers"]
            assert layer["measured"]
            power = (want.var(axis=0)).mean()
            assert layer["error"] == pytest.approx(errors[criterion] / power, rel=0.02)
    assert errors["obs"] < 0.7 * errors["wanda"] < 0.7 * errors["magnitude"]


def chain(layers=4, gemm=False):
    """Products with biases and Relus between; the second one is a Gemm with a C that no bias can hold."""
    b = Builder()
    y = b.input("x", ["m", K])
    for index in range(layers):
        W = b.constant(f"W{index}", weight(K, K, index) * 2)
        if index == 1:
            y = b.op("Gemm", y, W, b.input("c", ["m", 1]) if gemm else b.constant("c", weight(1, K)), name="layer1")
        else:
            y = b.op("Add", b.op("MatMul", y, W, name=f"layer{index}"), b.constant(f"b{index}", weight(1, K, index)[0]))
        y = b.op("Relu", y, name=f"relu{index}")
    b.output(y, ["m", K])
    return b.model()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("gemm", [pytest.param(True, marks=pytest.mark.xfail(OLD, reason=GEMM_REASON)), False])
def test_layers_make_up_for_those_before_them(gemm, dtype):
    data = [sample | ({"c": batch(20, 1)} if gemm else {}) for sample in samples(count=32)]
    want = np.concatenate([run(chain(gemm=gemm), sample)[0] for sample in data])
    errors = {}
    for sequential in (True, False):
        model = chain(gemm=gemm)
        report = converted(model, data, dtype=dtype, sparsity=0.6, block="4x1", sequential=sequential)
        got = np.concatenate([run(model, sample)[0] for sample in data])
        errors[sequential] = np.square(got - want).mean()
        told = [layer["error"] for layer in report.details["layers"]]
        if sequential:
            assert told[-1] > told[0]  # what was lost before counts
    assert errors[True] < 0.85 * errors[False]


def test_error_in_order_is_that_of_the_product():
    data, model = samples(), product()
    x = np.concatenate([sample["x"] for sample in data])
    told = converted(model, data, dtype="float32", sparsity=0.6).details["layers"][0]["error"]
    want = x @ weight(K, N) + weight(1, N, 1)
    got = run(model, {"x": x})[0]
    assert told == pytest.approx(np.square(got - want).mean() / want.var(axis=0).mean(), rel=1e-3)


def test_criterion_follows_the_data():
    assert converted(product()).details["criterion"] == "criterion magnitude"
    assert converted(product(), samples()).details["criterion"] == "criterion obs"


def test_statistics_in_place_of_data(tmp_path):
    path = tmp_path / "model.onnx"
    ir.save(product(), path)
    np.savez(tmp_path / "data.npz", x=np.stack([sample["x"] for sample in samples()]).reshape(-1, K))
    for gram in (True, False):
        calibrate(path, tmp_path / "data.npz", tmp_path / f"{gram}.npz", gram=gram)
    given = Calibration(statistics=tmp_path / "True.npz")
    for activations in ("dynamic", "static"):
        recipe = Recipe(scheme="sparse", activations=activations)
        assert optimize(path, recipe, tmp_path / "o.onnx", calibration=given).details["criterion"] == "criterion obs"
    with pytest.raises(UsageError, match="calibrate --gram"):
        optimize(path, Recipe(scheme="sparse"), calibration=Calibration(statistics=tmp_path / "False.npz"))


def test_layers_share_a_budget_by_what_they_lose():
    b = Builder()
    y = b.input("x", ["m", 64])
    flat = np.where(np.random.default_rng(0).random((64, 64)) < 0.2, weight(64, 64), weight(64, 64) * 0.02)
    y = b.op("MatMul", y, b.constant("W0", weight(64, 64)), name="dense")
    b.output(b.op("MatMul", y, b.constant("W1", flat.astype(np.float32)), name="peaked"), ["m", 64])
    shares = {}
    for allocation in ("uniform", "sensitivity"):
        model = ir.from_proto(ir.to_proto(b.model()))
        report = converted(model, sparsity=0.5, block="1x1", allocation=allocation, dtype="float32")
        shares[allocation] = {layer["node"]: layer["sparsity"] for layer in report.details["layers"]}
        assert report.details["sparsity"] == pytest.approx(0.5, abs=0.001)
    assert shares["uniform"] == {"dense": 0.5, "peaked": 0.5}
    assert shares["sensitivity"]["peaked"] > 0.7 > 0.3 > shares["sensitivity"]["dense"]


def test_the_key_that_needs_grams_is_named(tmp_path):
    """Static activations read ranges alone."""
    path = tmp_path / "model.onnx"
    ir.save(product(), path)
    np.savez(tmp_path / "data.npz", x=np.stack([sample["x"] for sample in samples()]).reshape(-1, K))
    calibrate(path, tmp_path / "data.npz", tmp_path / "plain.npz")
    given = Calibration(statistics=tmp_path / "plain.npz")
    static = Recipe(scheme="sparse", activations="static", criterion="magnitude")
    optimize(path, static, tmp_path / "o.onnx", calibration=given)
    assert len(sparse_nodes(ir.load(tmp_path / "o.onnx"))["product"].inputs) == 8
    for criterion, message in (("wanda", 'criterion "wanda" needs'), (None, 'criterion "obs", the default')):
        with pytest.raises(UsageError, match=f"{message}.*calibrate --gram"):
            optimize(path, Recipe(scheme="sparse", criterion=criterion), calibration=given)
