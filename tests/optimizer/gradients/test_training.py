"""Scales of rounded weights as parameters, losses, and the descent."""

from __future__ import annotations

import copy
import functools
import math

import graphs
import numpy as np
import pytest
from onnxpress.optimizer.graph.constants import mark_constants
from onnxpress.optimizer.quantization.rtn import quantize_rtn
from onnxpress.optimizer.quantization.schemes import weight_scheme

torch = pytest.importorskip("torch")

from onnxpress.optimizer.gradients.descent import Descent  # noqa: E402
from onnxpress.optimizer.gradients.graph import TorchGraph  # noqa: E402
from onnxpress.optimizer.gradients.losses import divergence, squared_error  # noqa: E402
from onnxpress.optimizer.gradients.rounded import RoundedWeight  # noqa: E402

RNG = np.random.default_rng(0)


def rounded(scheme="int3", block=16, K=40, N=6, **other):
    settings = {"symmetric": None, "search": True, "scale_type": None, "per_channel": True, **other}
    rows = RNG.standard_normal((N, K)).astype(np.float32)
    return quantize_rtn(rows, weight_scheme(scheme, block, **settings), True)


@pytest.mark.parametrize(("scheme", "block", "other"), [
    ("int3", 16, {}), ("int4", 32, {"symmetric": True}), ("int4", 32, {"scale_type": "float16"}), ("nf4", 16, {}),
    ("fp8", 0, {}), ("fp8", 0, {"per_channel": False}), ("mxfp4", 32, {}),
])  # fmt: skip
def test_the_weight_that_it_stands_for(scheme, block, other):
    weight = rounded(scheme, block, **other)
    trained = RoundedWeight(weight)
    np.testing.assert_allclose(trained.rows().detach(), weight.rows(), rtol=1e-6)
    np.testing.assert_allclose(RoundedWeight(weight, 4.0).rows().detach() * 4, weight.rows(), rtol=1e-6)
    assert trained.change.requires_grad == (scheme != "mxfp4" and other.get("per_channel", True))
    if not trained.change.requires_grad:
        return
    with torch.no_grad():
        trained.change += 0.1 * torch.from_numpy(RNG.standard_normal(weight.scales.shape).astype(np.float32))
    changed = trained.result()
    np.testing.assert_allclose(trained.rows().detach(), changed.rows(), rtol=1e-6)
    assert not np.array_equal(changed.scales, weight.scales)
    if other.get("scale_type") == "float16":
        np.testing.assert_array_equal(changed.scales, changed.scales.astype(np.float16))


def test_zero_scales_stay():
    weight = quantize_rtn(np.zeros((2, 32), np.float32), weight_scheme("int4", 16, None, True, None, True), True)
    weight.scales[:] = 0
    trained = RoundedWeight(weight)
    assert not trained.rows().any()
    assert not trained.result().scales.any()


def test_slopes_are_those_of_finite_differences():
    weight = rounded()
    trained = RoundedWeight(weight)
    x, y = (torch.from_numpy(RNG.standard_normal(size).astype(np.float32)) for size in ((50, 40), (50, 6)))
    squared_error(torch.tanh(x @ trained.rows().T), y).backward()
    for channel, block in ((0, 0), (3, 1), (5, 2)):
        losses = []
        for step in (1e-3, -1e-3):
            scales = weight.scales.astype(np.float64)
            scales[channel, block] *= 1 + step
            w = np.repeat(scales, 16, axis=1)[:, :40] * (weight.rows() / np.repeat(weight.scales, 16, axis=1)[:, :40])
            losses.append(np.square(np.tanh(x.numpy() @ w.T) - y.numpy()).sum() / np.square(y.numpy()).sum())
        slope = (losses[0] - losses[1]) / 2e-3
        assert trained.change.grad[channel, block] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_slopes_of_a_graph_are_those_of_finite_differences(monkeypatch):
    """Through a block with attention, that is cut into segments."""
    monkeypatch.setattr("onnxpress.optimizer.gradients.graph._PRODUCTS", 2)
    b = graphs.Builder(18)
    x = b.input("x", [None, 8])
    names = ("q", "k", "v", "out", "up", "down")
    sizes = dict.fromkeys(names, (8, 8)) | {"up": (8, 16), "down": (16, 8)}
    weights = {name: RNG.standard_normal(size).astype(np.float32) / 3 for name, size in sizes.items()}
    held = {name: b.constant(name, weight) for name, weight in weights.items()}
    ones = b.constant("ones", np.ones(8, np.float32))
    h = b.op("LayerNormalization", x, ones)
    q, k, v = (b.op("MatMul", h, held[name], name=f"{name}_product") for name in "qkv")
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k)))
    h = b.op("Add", x, b.op("MatMul", b.op("MatMul", scores, v), held["out"], name="out_product"))
    inner = b.op("Erf", b.op("MatMul", b.op("LayerNormalization", h, ones), held["up"], name="up_product"))
    b.output(b.op("Add", h, b.op("MatMul", inner, held["down"], name="down_product")), [None, 8])
    model = b.model()
    mark_constants(model)
    graph = TorchGraph(model, [model.graph.outputs[0].name], [f"{name}_product" for name in names])
    assert len(graph._segments) == 3
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    tensors = {name: torch.from_numpy(weight).requires_grad_() for name, weight in weights.items()}

    def loss(given):
        makers = {f"{name}_product": functools.partial(lambda each: each, each) for name, each in given.items()}
        return graph.run({"x": x}, makers)[0].sin().sum()

    loss(tensors).backward()
    for name, tensor in tensors.items():
        ends = []
        for step in (1e-2, -1e-2):
            changed = {**tensors, name: tensor.detach().clone()}
            changed[name][1, 2] += step
            with torch.no_grad():
                ends.append(float(loss(changed)))
        assert tensor.grad[1, 2] == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-2, abs=2e-3), name
    with torch.no_grad():  # the weights of the graph itself
        assert float(graph.run({"x": x})[0].sin().sum()) == pytest.approx(float(loss(tensors)), rel=1e-6)


def test_divergence(monkeypatch):
    monkeypatch.setattr("onnxpress.optimizer.gradients.losses._PIECE", 20)  # two rows at a time
    x, y = (RNG.standard_normal((2, 3, 10)).astype(np.float32) * 3 for _ in range(2))
    y[0, 0, 4] = -np.inf
    mask = torch.tensor([[True, True, False], [True, False, True]])
    logits = torch.from_numpy(x).requires_grad_()
    found = divergence(logits, torch.from_numpy(y), mask)
    found.backward()
    nats, slopes = 0.0, np.zeros_like(x)
    for at in zip(*np.nonzero(mask.numpy()), strict=True):
        p, q = (np.exp(each[at] - np.log(np.exp(each[at]).sum())) for each in (y, x))
        nats += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0) / 4
        slopes[at] = (q - p) / 4
    assert float(found.detach()) == pytest.approx(nats, rel=1e-5)
    np.testing.assert_allclose(logits.grad, slopes, atol=1e-6)
    assert float(divergence(logits, logits).detach()) == 0


def test_squared_error():
    x, y = (torch.from_numpy(RNG.standard_normal((2, 3, 4)).astype(np.float32)) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, False, True]])
    wanted = float(((x - y)[mask] ** 2).sum() / (y[mask] ** 2).sum())
    assert float(squared_error(x, y, mask)) == pytest.approx(wanted, rel=1e-6)
    assert float(squared_error(x[:, 0, 0], y[:, 0, 0], mask)) == pytest.approx(
        float(((x - y)[:, 0, 0] ** 2).sum() / (y[:, 0, 0] ** 2).sum()), rel=1e-6
    )
    assert float(squared_error(x, x)) == 0


def descent(steps=40, rate=0.05, loss=None, apart=(0, 4)):
    """Of a point towards those of some batches, with the point."""
    point = torch.zeros(3, requires_grad=True)
    goals = torch.from_numpy(1 + 0.1 * np.random.default_rng(3).standard_normal((8, 3)).astype(np.float32))
    train = [index for index in range(8) if index not in apart]
    found = Descent([point], loss or (lambda batch: (point - goals[batch]).square().sum()), train, apart, steps, rate)
    return point, found


def test_it_descends():
    point, found = descent()
    told = []
    ended = found.run(lambda *done: told.append(done))
    assert ended.best < 0.2 * ended.start
    assert ended.steps == 40
    assert (point - 1).abs().max() < 0.2
    assert told == [(step, 40) for step in range(41)]


def test_the_best_stays_where_all_becomes_worse():
    point, found = descent(rate=1e3)
    ended = found.run(lambda *_: None)
    assert ended.best == ended.start
    assert not point.detach().any()


def test_adam_is_that_of_pytorch():
    point, found = descent(steps=7, rate=0.01)
    twin = torch.zeros(3, requires_grad=True)
    seen = []
    found._loss = lambda batch: seen.append(batch) or (point - batch).square().sum()
    optimizer = torch.optim.Adam([twin], lr=0.01, eps=1e-12)
    for step in range(7):
        found._step()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 7)
        optimizer.zero_grad()
        (twin - seen[step]).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(point, twin)
    assert set(seen[:6]) == {1, 2, 3, 5, 6, 7}


def test_it_goes_on_to_the_same_numbers():
    states = []
    point, whole = descent()
    ended = whole.run(lambda *_: None, keep=lambda state: states.append(copy.deepcopy(state)))
    assert len(states) == 10
    other, second = descent()
    facts, arrays = states[4]
    second.go_on((facts, {name: arrays[name] for name in second.arrays()}))
    assert second.run(lambda *_: None) == ended
    assert torch.equal(point, other)


def test_a_deadline_ends_it():
    point, found = descent()
    ended = found.run(lambda *_: None, deadline=0.0)
    assert ended.steps == 0
    assert ended.best == ended.start
    assert not point.detach().any()
