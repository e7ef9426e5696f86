"""What this machine's ONNX Runtime does with products of uint8 and int8, and what reports say of it: on both kinds."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from command_line import runner
from onnxpress.optimizer import Calibration, Recipe, UsageError, optimize
from onnxpress.optimizer.runtime import machine
from sessions import options

FEEDS = [{"x": np.ones((2, 64), np.float32) * sign} for sign in (-1, 1)]


@pytest.fixture(params=[False, True], ids=["exact", "saturating"])
def saturates(monkeypatch, request):
    """A machine of each kind."""
    monkeypatch.setattr(machine, "products_saturate", lambda: request.param)
    return request.param


def convert(tmp_path, scheme, **settings):
    data = Calibration(FEEDS) if scheme == "int8-static" else None
    report = optimize(graphs.matmul_model(), Recipe(scheme=scheme, **settings), tmp_path / "o.onnx", calibration=data)
    made = ir.load(report.output)
    constants = [value.const_value.numpy() for value in made.graph.initializers.values()]
    (codes,) = (array for array in constants if array.dtype == np.int8 and array.ndim == 2)
    return np.abs(codes.astype(int)).max(), report


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"target": "any"}, 63),
        ({"target": "any", "reduce_range": True}, 63),
        ({"reduce_range": True}, 63),
        ({"reduce_range": False}, 127),
        ({}, None),
    ],
)
def test_weights_for_the_target(saturates, tmp_path, scheme, settings, most):
    found, report = convert(tmp_path, scheme, **settings)
    assert found == (most or (63 if saturates else 127))
    assert dict(report.rows)["made for"] == report.details["made_for"]
    assert ("any CPU" in report.details["made_for"]) == (found == 63)
    assert ("--target any" in report.details["made_for"]) == (found == 127)
    assert any("saturate on this CPU" in line for line in report.warnings) == (saturates and found == 127)


def test_a_target_of_any_and_the_full_range_exclude_each_other(monkeypatch, capsys, tmp_path):
    with pytest.raises(UsageError, match='target is "any", which needs weights of 7 bits'):
        Recipe(scheme="int8-dynamic", target="any", reduce_range=False)
    monkeypatch.chdir(tmp_path)
    ir.save(graphs.matmul_model(), "m.onnx")
    run = runner(monkeypatch, capsys)
    code, _, err = run("optimize", "m.onnx", "--scheme", "int8-dynamic", "--target", "any", "--full-range")
    assert (code, err) == (2, 'error: --target is "any", which needs weights of 7 bits; leave out the full range\n')
    code, _, err = run("optimize", "m.onnx", "--scheme", "int8-dynamic", "--target", "avx2")
    assert code == 2
    assert "must be one of this, any" in err


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_weights_for_any_cpu_are_exact_here(tmp_path, level):
    """Beside a session that computes exactly on any CPU."""
    _, report = convert(tmp_path, "int8-dynamic", target="any")
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    exact, plain = options(), options(graph_optimization_level=getattr(ort.GraphOptimizationLevel, level))
    exact.add_session_config_entry(machine.EXACT, "1")
    want, got = (ort.InferenceSession(report.output, each).run(None, feeds)[0] for each in (exact, plain))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_was_measured_is_so():
    K = 64
    b = graphs.Builder(13)
    x = b.input("x", ["m", K], ir.DataType.UINT8)
    # With zero points: without them ONNX Runtime 1.23 aborts where it is told to be exact.
    zeros = b.constant("zx", np.array(0, np.uint8)), b.constant("zw", np.array(0, np.int8))
    product = b.op("MatMulInteger", x, b.constant("W", np.full((K, 16), 127, np.int8)), *zeros)
    b.output(product, ["m", 16], ir.DataType.INT32)
    proto = ir.to_proto(b.model(8)).SerializeToString()
    exact = options()
    exact.add_session_config_entry(machine.EXACT, "1")
    feeds = {"x": np.full((3, K), 255, np.uint8)}
    assert (ort.InferenceSession(proto, exact).run(None, feeds)[0] == 255 * 127 * K).all()
    stock = ort.InferenceSession(proto, options()).run(None, feeds)[0]
    assert (stock == 255 * 127 * K).all() is np.bool_(not machine.products_saturate())


def test_times_beside_a_saturating_runtime_say_so(saturates):
    (*_, note) = ["", *machine.saturation_note()]
    assert ("weights have 7 bits" in note) == saturates
