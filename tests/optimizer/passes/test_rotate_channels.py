"""Channels that are rotated: the same outputs, what is turned, and why the rest is not."""

from __future__ import annotations

import decoder_layers
import graphs
import numpy as np
import onnx_ir as ir
import pytest
from decoder_layers import Decoder
from onnxpress import models
from onnxpress.optimizer.conversion.infer_types import infer_types
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.model_io.names import copy_of, values_of
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.rotate_channels import RotateChannels
from rewrites import LEVELS, op_types, real_feeds, rewritten, run

KEPT = "values are kept for later, where others would read them turned"
K = 24
FORMS = {
    "groups": {},
    "biases": {"bias": True, "layers": 2},
    "centred": {"norms": "layer", "bias": True},
    "packed": {"norms": "reciprocal", "products": "packed"},
    "by head": {"products": "by head", "shared": 4},
    "heads with norms": {"head_norms": "after", "hidden": 36},
    "no Hadamard matrix": {"hidden": 34},
    "no past": {"cached": False},
    "tiles without a past": {"cached": False, "bias": True, "repeat": "tile", "layers": 2},
    "one head each": {"cached": False, "shared": 4, "norms": "layer", "bias": True, "width": 12},
    "tied": {"tied": True},
}


def prepared(model):
    CleanUp()(model)
    infer_types(model)
    return model


def decoder(**form):
    return prepared(Decoder(**form).made)


@pytest.mark.parametrize("form", FORMS)
def test_the_model_computes_the_same(form):
    model = decoder(**FORMS[form])
    given = decoder_layers.Form(**FORMS[form])
    past = 3 if given.cached else 0
    feeds = decoder_layers.feeds(model, 2, 5, past, [0, 2])
    before, rotate = op_types(model), RotateChannels()
    assert rewritten(model, rotate, feeds, depth=64) == before  # no node more
    (stream, matrix), layers = rotate.rotated[0], given.layers
    assert (stream.size, stream.sums, len(stream.norms)) == (given.hidden, 2 * layers, 2 * layers + 1)
    per_layer = (1 if given.products != "apart" else 3) + 2
    assert len(stream.reads) == per_layer * layers + 1
    assert len(stream.writes) == (4 if given.bias else 2) * layers + 1
    assert matrix.is_hadamard == (given.hidden != 34)
    assert (matrix.mirror is not None) == (given.norms == "layer")
    assert rotate.attentions == (0 if given.cached else layers)
    assert set(rotate.left.values()) == ({KEPT} if given.cached else set())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_called_as_before_holds_the_same(form):
    model = decoder(**FORMS[form])
    feeds = decoder_layers.feeds(model, 2, 5, 3 if decoder_layers.Form(**FORMS[form]).cached else 0, [0, 2])
    rotated, found = copy_of(model), []
    RotateChannels()(rotated)
    kept = {value.name for value in values_of(rotated.graph)}
    for each in (model, rotated):
        inner = [value for node in each.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        each.graph.outputs[:] = [value for value in inner if value.name in kept]
        found.append(dict(zip((value.name for value in each.graph.outputs), run(each, feeds), strict=True)))
    assert {"0/query/MatMul_out", "0/gate/MatMul_out"} <= found[0].keys() or "packed" in form or "by head" in form
    assert not any(name.endswith("_rotated") for name in found[0])
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=0, atol=1e-4 * np.abs(array[np.isfinite(array)]).max())


def outliers(array):
    """The largest number of a tensor over its root mean square."""
    return np.abs(array).max() / np.sqrt(np.square(array).mean())


def test_outliers_vanish():
    form = Decoder(norms="layer", hidden=64)
    table = next(value for value in form.graph.initializers.values() if list(value.shape) == [40, 64])
    array = table.const_value.numpy().copy()
    array[:, 5] *= 50
    table.const_value = ir.tensor(array, name=table.name)
    model = prepared(form.made)
    stream = next(node for node in model.graph if node.op_type == "Gather" and node.outputs[0].dtype == 1)
    assert outliers(stream.inputs[0].const_value.numpy()) > 15
    assert RotateChannels()(model)
    assert outliers(stream.inputs[0].const_value.numpy()) < 8


def test_it_is_the_same_each_time():
    found = []
    for _ in range(2):
        model = decoder(bias=True)
        RotateChannels()(model)
        found.append({name: value.const_value.tobytes() for name, value in model.graph.initializers.items()})
    assert found[0] == found[1]


class Block(graphs.Builder):
    """x + W norm(x) of a table, with what somebody else has to do with it."""

    def __init__(self, norm="LayerNormalization"):
        super().__init__()
        self.ids = self.input("ids", ["batch", 5], ir.DataType.INT64)
        self.norm_type = norm
        self.table = self.constant("table", graphs.weight(16, K, 1))
        self.x = self.op("Gather", self.table, self.ids, name="embedding")

    def norm(self, x, name, scale=None, shift=None):
        scale = np.linspace(0.5, 2, K) if scale is None else scale
        more = [] if shift is None else [self.constant(f"{name}_shift", np.float32(shift))]
        return self.op(
            self.norm_type, x, self.constant(f"{name}_scale", np.float32(scale)), *more, name=name, axis=-1,
        )  # fmt: skip

    def product(self, x, name, N=K, seed=2):
        return self.op("MatMul", x, self.constant(f"W_{name}", graphs.weight(K, N, seed)), name=name)

    def end(self, value, size=K):
        self.output(value, ["batch", 5, size])
        return prepared(self.model())


def tail(b, x):
    return b.end(b.product(b.norm(x, "last"), "head", 7), 7)


def plain(b):
    return b.op("Add", b.x, b.product(b.norm(b.x, "first"), "layer"), name="sum")


def case(name):
    b = Block()
    if name == "norm behind the sum":
        return tail(b, b.norm(plain(b), "after"))
    if name == "norm ahead of the sum":
        return tail(b, b.op("Add", b.x, b.norm(b.product(b.norm(b.x, "first"), "layer"), "second")))
    if name == "activation":
        return tail(b, b.op("Relu", plain(b), name="relu"))
    if name == "reader":
        x = plain(b)
        b.output(b.op("Tanh", x, name="tanh"), ["batch", 5, K])
        return tail(b, x)
    if name == "output":
        x = plain(b)
        b.output(x, ["batch", 5, K])
        return tail(b, x)
    if name == "last norm":
        return b.end(b.norm(plain(b), "last"))
    if name == "input":
        x = b.input("x", ["batch", 5, K])
        return tail(b, b.op("Add", x, plain(b), name="sum of input"))
    if name == "factors":
        factors = b.constant("factors", np.linspace(1, 2, K).astype(np.float32))
        return tail(b, b.op("Mul", plain(b), factors, name="scale"))
    if name == "zero":
        scale = np.ones(K)
        scale[3] = 0
        y = b.product(b.norm(b.x, "first", scale, np.ones(K)), "layer")
        return tail(b, b.op("Add", b.x, y, name="sum"))
    one = b.constant("one", np.ones(1, np.float32))
    return tail(b, b.op("Add", plain(b), one, name="one for all"))


STAYS = {
    "norm behind the sum": {"last": "LayerNormalization reads what a norm makes of the residual stream"},
    "norm ahead of the sum": {
        "second": "what a norm makes is added to the residual stream, so that its scale cannot move on",
    },
    "activation": {"relu": "Relu reads the residual stream"},
    "reader": {"tanh": "Tanh reads the residual stream"},
    "output": {"sum_out": "the residual stream is an output of the graph"},
    "last norm": {"last_out": "what a norm makes of the residual stream is an output of the graph"},
    "input": {"x": "the residual stream is an input or a constant of the graph"},
    "factors": {"scale": "Mul reads the residual stream"},
    "zero": {"first": "a norm adds to channels whose scale is 0"},
    "one number": {"one for all": "what Add reads beside the residual stream is of shape [1]"},
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_and_why(name):
    model, rotate = case(name), RotateChannels()
    before = {key: value.const_value.tobytes() for key, value in model.graph.initializers.items()}
    assert not rotate(model)
    assert rotate.left == STAYS[name]
    assert {key: value.const_value.tobytes() for key, value in model.graph.initializers.items()} == before


IDS = {"ids": np.random.default_rng(0).integers(0, 16, (2, 5))}


def test_a_norm_of_onnx_runtime():
    b = Block("SimplifiedLayerNormalization")
    model = tail(b, plain(b))
    wanted, rotate = run(model, IDS)[0], RotateChannels()
    assert rotate(model)
    assert rotate.rotated[0][1].mirror is None
    for level in LEVELS:
        np.testing.assert_allclose(run(model, IDS, level)[0], wanted, rtol=0, atol=1e-5)


def test_positions_numbers_moves_and_gemm():
    """What is added to all tokens, scaled by one number, reshaped for a Gemm, and read without a norm."""
    b = Block()
    x = b.op("Mul", b.x, b.constant("root", np.array(3.0, np.float32)))
    x = b.op("Add", b.constant("positions", graphs.weight(5, K, 3)), x)
    y = b.norm(x, "first", shift=np.linspace(-1, 1, K))
    y = b.op("Reshape", y, b.constant("rows", np.array([-1, K])))
    W, c = b.constant("W", graphs.weight(K, K, 4)), b.constant("c", graphs.weight(1, K, 5)[0])
    y = b.op("Gemm", y, W, c, name="gemm", transB=1, alpha=0.5, beta=2.0)
    x = b.op("Add", x, b.op("Reshape", y, b.constant("tokens", np.array([-1, 5, K]))), name="sum")
    logits = b.op("Add", b.product(x, "direct", 7, 6), b.product(b.norm(x, "last"), "head", 7))
    model, rotate = b.end(logits, 7), RotateChannels()
    rewritten(model, rotate, IDS, depth=4 * K)
    ((stream, _),) = rotate.rotated
    assert (len(stream.reads), len(stream.writes), stream.sums) == (3, 4, 1)
    assert not rotate.left


def test_a_weight_that_others_read_is_copied():
    b = Block()
    x = plain(b)
    other = b.input("other", ["batch", 5, K])
    b.output(b.op("MatMul", other, b.graph.initializers["W_layer"], name="beside"), ["batch", 5, K])
    model, rotate = tail(b, x), RotateChannels()
    before = model.graph.initializers["W_layer"].const_value.tobytes()
    rewritten(model, rotate, {**IDS, "other": np.ones((2, 5, K), np.float32)}, depth=K)
    assert model.graph.initializers["W_layer"].const_value.tobytes() == before
    assert rotate.copied >= K * K * 4


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_table_that_is_the_last_weight_is_copied_for_the_scale_of_the_last_norm(scale):
    b = Block()
    y = b.product(b.norm(b.x, "first"), "layer")
    x = b.norm(b.op("Add", b.x, y), "last", np.full(K, scale))
    x = b.op("Reshape", x, b.constant("rows", np.array([-1, K])))
    y = b.op("Gemm", x, b.table, name="head", transB=1)
    b.output(y, [None, 16])
    model, rotate = prepared(b.model()), RotateChannels()
    rewritten(model, rotate, IDS, depth=K)
    assert rotate.copied == (0 if scale == 1 else 16 * K * 4)
    nodes = {node.name: node for node in model.graph}
    assert (nodes["head"].inputs[1] is nodes["embedding"].inputs[0]) == (scale == 1)


def test_values_that_others_see_stay():
    model = decoder(cached=False)
    value = next(node for node in model.graph if node.name == "0/value/MatMul").outputs[0]
    model.graph.outputs.append(value)
    rotate = RotateChannels()
    rotate(model)
    assert rotate.attentions == 0
    assert set(rotate.left.values()) == {"others read the values too"}
    model = decoder(cached=False, products="packed")
    rotate = RotateChannels()
    rotate(model)
    assert set(rotate.left.values()) == {"values are not made by a product with a matrix of float32"}


@pytest.mark.real
def test_minilm_has_values_alone():
    model, rotate = prepared(storage.load(models.path("minilm"))), RotateChannels()
    feeds = real_feeds("minilm", 2)
    wanted = run(storage.load(models.path("minilm")), feeds)[0]
    assert rotate(model)
    assert rotate.attentions == 6
    assert not rotate.rotated
    assert any("Add reads what a norm makes" in why for why in rotate.left.values())
    np.testing.assert_allclose(run(model, feeds)[0], wanted, atol=2e-5 * np.abs(wanted).max())
