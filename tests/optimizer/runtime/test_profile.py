"""Nodes of optimized graphs against those of models, and what the products cost in either form."""

from __future__ import annotations

import math
import tempfile
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from int8 import converted
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.raise_opset import RaiseOpset
from onnxpress.optimizer.runtime import profile as profiling
from onnxpress.optimizer.runtime import profiled_session
from onnxpress.optimizer.runtime.profile import profiles, seconds_by_node, seconds_of_products, slower_in_int8
from onnxpress.optimizer.sources import resolve


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Nothing is left among the temporary files, and no test waits."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(profiled_session, "_PAUSE", 0)
    yield
    assert not list(folder.iterdir())


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(b, x, name, channels=8):
    return b.op("Conv", x, b.constant(f"{name}_w", noise(channels, 8, 3, 3)), name=name, pads=[1, 1, 1, 1])


def residual():
    """Convolutions with a Relu and a residual that the float form fuses, a Transpose, and a Gemm under its own name."""
    b = Builder(17)
    x = b.input("x", [1, 8, 12, 12])
    y = b.op("Relu", conv(b, x, "first"), name="relu")
    z = b.op("Add", conv(b, y, "second"), y, name="add")
    z = conv(b, z, "third_token_embedding")
    z = b.op("Transpose", b.op("Sin", z, name="sin"), name="Transpose", perm=[0, 2, 3, 1])
    z = b.op("MatMul", z, b.constant("w", noise(8, 4)), name="product")
    b.output(b.op("Add", z, b.constant("bias", noise(4)), name="bias_add"), [1, 12, 12, 4])
    return b.model(), {"x": noise(1, 8, 12, 12, seed=1)}


def attention():
    """Three products of one input, then two products of activations."""
    b = Builder(17)
    x = b.op("Tanh", b.input("x", [16, 32]), name="start")
    q, k, v = (b.op("MatMul", x, b.constant(f"{n}_w", noise(32, 32)), name=n) for n in "qkv")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[1, 0], name="turn"), name="scores")
    b.output(b.op("MatMul", b.op("Softmax", scores, name="softmax"), v, name="mix"), [16, 32])
    return b.model(), {"x": noise(16, 32, seed=1)}


RESIDUAL = {"first", "second", "third_token_embedding", "product"}


def both(made):
    model, feeds = made
    return profiles([model, converted(model, feeds)[0]], feeds, rounds=1)


def by_operator(profile, op_type):
    return [node for node in profile.graph if node.op_type == op_type]


def in_seconds(profile, **seconds):
    """The profile with these seconds by operator or name, and none of other nodes."""
    times = {n.name: seconds.get(n.op_type, seconds.get(n.name or "", 0.0)) for n in profile.graph}
    return profiling.Profile(profile.graph, profile.attribution, times)


@pytest.mark.parametrize(("made", "products"), [(residual, RESIDUAL), (attention, {"q", "k", "v", "scores", "mix"})])
def test_every_product_is_found_in_both_forms(made, products):
    for profile in both(made()):
        assert profile.attribution.products() == products
        assert profile.seconds.keys() == {node.name for node in profile.graph}
        assert sum(profile.seconds.values()) > 0
        for node in profile.graph:
            assert sum(profile.attribution.shares(node).values()) == pytest.approx(1)


def test_fused_nodes_are_the_products():
    first, second = both(residual())
    origins = {node.op_type: first.attribution.origin(node) for node in first.graph}
    assert origins.get("Gemm", "product") == "product"
    kernels = Counter(node.op_type for node in second.graph)
    assert kernels["QLinearConv"] == 3
    names = [second.attribution.origin(node) for node in by_operator(second, "QLinearConv")]
    assert names == ["first", "second", "third_token_embedding"]


def test_what_hangs_on_a_product():
    _, second = both(residual())
    (add,) = by_operator(second, "QLinearAdd")
    assert second.attribution.shares(add) == {"second": 1.0}
    quantized = [second.attribution.shares(node) for node in by_operator(second, "QuantizeLinear")]
    assert quantized == [{"first": 1.0}, {"product": 1.0}]
    decoded = [second.attribution.shares(node) for node in by_operator(second, "DequantizeLinear")]
    assert decoded[0] == {"third_token_embedding": 1.0}


def test_inserted_transposes_are_no_nodes_of_the_model():
    """The int8 convolutions of ONNX Runtime want channels last; the model has a node of the same name."""
    _, second = both(residual())
    turns = [node for node in by_operator(second, "Transpose") if node.name != "Transpose"]
    for node in turns:
        before = {"first"} if second.attribution.origin(node) is None else {"third_token_embedding"}
        assert set(second.attribution.shares(node)) <= before | RESIDUAL
    assert second.attribution.origin(turns[0]) is None
    assert second.attribution.shares(turns[0]) == {"first": 1.0}


def test_a_conversion_for_several_is_shared():
    _, second = both(attention())
    node = next(n for n in by_operator(second, "QuantizeLinear") if n.inputs[0].name == "start_out")
    shares = second.attribution.shares(node)
    assert shares == {name: pytest.approx(1 / 3) for name in "qkv"}


def test_what_both_run_alike_is_left_out():
    first, second = both(residual())
    assert by_operator(first, "Sin")
    assert by_operator(second, "Sin")
    pairs = seconds_of_products(in_seconds(first, Sin=5.0, Conv=1.0), in_seconds(second, Sin=7.0, QLinearConv=2.0))
    assert pairs == {
        "first": (1, 2), "second": (1, 2), "third_token_embedding": (1, 2), "product": (0, 0),
    }  # fmt: skip


def test_slower_products_are_told(monkeypatch):
    first, second = both(residual())
    forms = [
        in_seconds(first, Conv=1.0, Gemm=1.0, MatMul=1.0),
        in_seconds(second, QLinearConv=1.04, QLinearAdd=0.5, QuantizeLinear=0.005, QLinearMatMul=0.2, QGemm=0.2),
    ]
    monkeypatch.setattr(profiling, "profiles", lambda *_: forms)
    model, feeds = residual()
    found = slower_in_int8(model, model, [*RESIDUAL, "elsewhere"], feeds)
    assert found == {"second": (1.0, pytest.approx(1.54))}
    assert slower_in_int8(model, model, ["first"], feeds) == {}


def test_seconds_by_the_names_of_the_model():
    model, feeds = residual()
    seconds = seconds_by_node(model, feeds, rounds=1, threads=1)
    assert seconds.keys() >= {*RESIDUAL, "sin"}
    assert all(math.isfinite(value) and value >= 0 for value in seconds.values())
    changed, _, _ = converted(model, feeds)
    assert seconds_by_node(changed, feeds, rounds=1).keys() >= {*RESIDUAL, "sin", "add"}


def test_models_stay_as_they_are():
    model, feeds = residual()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    profiles([model], feeds, rounds=1)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_uncounted_runs_do_not_count():
    model, feeds = residual()
    with profiling._profiled(model, 1) as run:
        for _ in range(2):
            run.session.turn(feeds)
        assert run.session.counted == [False, True, True, True] * 2
        run.end()


def test_a_model_that_does_not_run():
    model, _ = residual()
    with pytest.raises(OnnxpressError, match=r"test: cannot run: .*[Ii]nvalid"):
        seconds_by_node(model, {"x": np.zeros((1, 8, 12), np.float32)})


@pytest.mark.real
@pytest.mark.parametrize(("name", "shape"), [("resnet-nsfw", (1, 224, 224, 3)), ("ppocr-det", (1, 3, 64, 96))])
def test_real_models_are_understood_wholly(name, shape):
    """Every product has its seconds in both forms, and every node hangs on one."""
    model = storage.load(resolve(name))
    CleanUp()(model)
    RaiseOpset(17)(model)
    feeds = {model.graph.inputs[0].name: np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    changed, plan, _ = converted(model, feeds)
    products = {operator.node.name for operator in plan.operators.values() if operator.is_product}
    assert len(products) > 50
    forms = profiles([model, changed], feeds, rounds=1)
    for form in forms:
        assert products <= form.attribution.products()
        assert all(sum(form.attribution.shares(node).values()) == pytest.approx(1) for node in form.graph)
    pairs = seconds_of_products(*forms)
    assert products <= pairs.keys()
    assert all(first > 0 and second > 0 for first, second in pairs.values())
