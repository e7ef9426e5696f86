"""A model that runs piece by piece gives what it gives as a whole, and what changes behind a piece counts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder
from onnxpress.optimizer.calibration import observe
from onnxpress.optimizer.calibration.piecewise import Piecewise
from onnxpress.optimizer.runtime.session import open_session, session_options

RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((n, 8)).astype(np.float32)} for n in (3, 1, 4)]


def network() -> ir.Model:
    """Products p0 to p3 in a row with codes between them, a residual around two, and a size that is read late."""
    b = Builder(18)
    x = b.input("x", ["n", 8])
    size = b.op("Shape", x, name="size")
    y = x
    kept = None
    for number in range(4):
        y = b.op(
            "MatMul", y, b.constant(f"w{number}", RNG.standard_normal((8, 8)).astype(np.float32)), name=f"p{number}"
        )
        scale, zero = b.constant(f"s{number}", np.float32(0.2)), b.constant(f"z{number}", np.uint8(128))
        codes = b.op("QuantizeLinear", b.op("Tanh", y, name=f"t{number}"), scale, zero, name=f"q{number}")
        y = b.op("DequantizeLinear", codes, scale, zero, name=f"d{number}")
        kept = y if number == 0 else kept
    y = b.op("Reshape", b.op("Add", y, kept, name="sum"), size, name="shaped")
    b.output(b.op("MatMul", y, b.constant("w4", RNG.standard_normal((8, 8)).astype(np.float32)), name="p4"), ["n", 8])
    return b.model()


def whole(model, names):
    """The same from one run of all."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names]
    session = open_session(ir.to_proto(copy).SerializeToString(), session_options())
    return [dict(zip(names, session.run(names, feeds), strict=True)) for feeds in FEEDS]


NAMES = [f"p{number}_out" for number in range(5)]


@pytest.mark.parametrize(
    "groups", [[NAMES[:1], NAMES[1:2], NAMES[2:3], NAMES[3:4], NAMES[4:]], [NAMES[1:2], NAMES[4:]]]
)
def test_pieces_give_what_the_whole_gives(groups):
    model = network()
    pieces = Piecewise(model, [name for group in groups for name in group], FEEDS)
    for group in groups:
        for found, wanted in zip(pieces.run(group), whole(model, group), strict=True):
            for name in group:
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_changes_count_in_the_pieces_behind():
    model = network()
    pieces = Piecewise(model, NAMES, FEEDS)
    for name in NAMES:
        found, wanted = list(pieces.run([name])), whole(model, [name])
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)
        weight = model.graph.initializers[f"w{name[1]}"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(0.5), name=weight.name)


def test_each_node_runs_twice_at_most(monkeypatch):
    ran: dict[str, int] = {}
    original = observe.Observer.__init__

    def noted(self, model, names, **keys):
        for node in model.graph:
            ran[node.name] = ran.get(node.name, 0) + 1
        original(self, model, names, **keys)

    monkeypatch.setattr(observe.Observer, "__init__", noted)
    pieces = Piecewise(network(), NAMES, FEEDS)
    for name in NAMES:
        list(pieces.run([name]))
    assert {name for name in ran if name[0] in "pqt"} == {f"{k}{n}" for k in "pqt" for n in range(4)} | {"p4"}
    assert max(count for name, count in ran.items() if name[0] == "p") == 2
    assert max(count for name, count in ran.items() if name[0] in "qt") == 1
