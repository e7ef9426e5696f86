"""Kinds of steps, how many operations they are, and sums over runs."""

from __future__ import annotations

import json
import time

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import OnnxpressError, Recipe, optimize
from onnxpress.optimizer.analysis.bench import bench
from onnxpress.optimizer.analysis.plots import plot_benchmark
from onnxpress.optimizer.analysis.steps import Profiled, kind_of, operations_of, step_times
from onnxpress.optimizer.runtime import profiled_session
from onnxpress.optimizer.runtime.node_events import NodeEvent

OURS = "OnnxpressExecutionProvider"


def event(op_type, inputs, output, provider="CPUExecutionProvider", numbers=False):
    return NodeEvent("n", op_type, provider, 1.0, numbers, tuple(inputs), (output,))


@pytest.mark.parametrize(("what", "kind", "operations"), [
    (event("MatMul", [(2, 5, 8)], (2, 5, 3)), "products", 2 * 10 * 8 * 3),
    (event("MatMul", [(2, 5, 8), (8, 3)], (2, 5, 3)), "products", 2 * 10 * 8 * 3),
    (event("MatMul", [(7, 8), (2, 8, 3)], (2, 7, 3)), "products", 2 * 14 * 8 * 3),
    (event("Gemm", [(8, 5), (8, 3), (3,)], (5, 3)), "products", 2 * 5 * 8 * 3),
    (event("QLinearMatMul", [(1, 4, 6, 8), (), (), (1, 4, 8, 6)], (1, 4, 6, 6)), "attention", 2 * 4 * 6 * 6 * 8),
    (event("FusedMatMul", [(1, 4, 6, 8), (1, 4, 8, 6)], (1, 4, 6, 6)), "attention", 2 * 4 * 6 * 6 * 8),
    (event("MatMulNBits", [(1, 1, 64), (32, 2, 16), (64,)], (1, 1, 32)), "products", 2 * 64 * 32),
    (event("Onnxpress_7_1", [(1, 3, 64)], (1, 3, 16), OURS), "products", 2 * 3 * 64 * 16),
    (event("Onnxpress_7_2", [(1, 3)], (1, 3, 16), OURS, numbers=True), "tables", 0),
    (event("Conv", [(1, 4, 9, 9), (6, 2, 3, 3), (6,)], (1, 6, 7, 7)), "convolutions", 2 * 6 * 49 * 18),
    (event("QLinearConv", [(1, 4, 9, 9), (), (), (6, 4, 1, 1)], (1, 6, 9, 9)), "convolutions", 2 * 6 * 81 * 4),
    (event("Attention", [(2, 5, 8), (8, 24)], (2, 5, 8)), "attention", 2 * 10 * 8 * 24 + 4 * 2 * 25 * 8),
    (event("EncoderLayer", [(2, 5, 8), (8, 24), (24,), (8, 8), (8, 16), (16, 8), (2, 5)], (2, 5, 8)), "whole layers",
     2 * 10 * (8 * 24 + 64 + 2 * 128) + 4 * 2 * 25 * 8),
    (event("LSTM", [(5, 1, 8), (1, 32, 8)], (5, 1, 1, 8)), "products", 0),
    (event("MatMul", [(0, 8)], (0, 3)), "products", 0),
    (event("MatMul", [(8,), (8,)], ()), "products", 0),
    (event("Softmax", [(1, 4, 6, 6)], (1, 4, 6, 6)), "attention", 0),
    (event("BiasGelu", [(1, 6)], (1, 6)), "activations", 0),
    (event("Add", [(1, 6)], (1, 6)), "others, element by element", 0),
    (event("SequenceEmpty", [], ()), "others, element by element", 0),
])  # fmt: skip
def test_kinds_and_operations(what, kind, operations):
    assert kind_of(what) == kind
    assert operations_of(what) == operations


def profiled(path, **feeds):
    return Profiled("m", path, {"threads": 1}, feeds)


def two_kinds(path):
    b = graphs.Builder(18)
    h = b.op("MatMul", b.input("x", ["n", 64]), b.constant("W", graphs.weight(64, 48)))
    for _ in range(3):
        h = b.op("Tanh", h)
    b.output(h, ["n", 48])
    ir.save(b.model(), path)
    return path


def test_a_model_by_kind(tmp_path):
    path = two_kinds(tmp_path / "m.onnx")
    (found,) = step_times([profiled(path, x=np.ones((5, 64), np.float32))], tmp_path, peak=1e9, rounds=2)
    assert {step.kind: step.nodes for step in found.steps} == {"products": 1, "activations": 3}
    assert found.seconds == pytest.approx(sum(step.seconds for step in found.steps))
    assert [step.seconds for step in found.steps] == sorted((step.seconds for step in found.steps), reverse=True)
    product = next(step for step in found.steps if step.kind == "products")
    assert product.operations == 2 * 5 * 64 * 48
    assert product.peak_share == pytest.approx(product.operations / product.seconds / 1e9)


def test_the_median_of_counted_runs_is_summed(tmp_path, monkeypatch):
    """Of a body that runs twice in each run, both; of runs behind a pause, none."""
    written = tmp_path / "p.json"
    runs = [100, 1, 2, 3] * 2
    written.write_text(json.dumps([
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": 1e6 * seconds,
         "args": {"op_name": "Tanh", "provider": "CPUExecutionProvider"}}
        for seconds in runs for name in ("once", "twice", "twice")
    ]))  # fmt: skip

    class Session:
        def run(self, *_):
            pass

        def end_profiling(self):
            return str(written)

    monkeypatch.setattr(profiled_session, "open_session", lambda *_: Session())
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (found,) = step_times([profiled(tmp_path / "m.onnx")], tmp_path, peak=1.0, rounds=2)
    (step,) = found.steps
    assert (step.nodes, step.seconds) == (2, pytest.approx(2 + 2 * 2))


def test_a_model_that_fails(tmp_path):
    path = two_kinds(tmp_path / "m.onnx")
    with pytest.raises(OnnxpressError, match="m: cannot run"):
        step_times([profiled(path, x=np.ones((5, 63), np.float32))], tmp_path, peak=1.0, rounds=1)


@pytest.mark.usefixtures("probe_within_process")
def test_a_benchmark_with_steps(tmp_path, capsys):
    from onnxpress.optimizer.commands.terminal import console

    path = two_kinds(tmp_path / "m.onnx")
    optimize(path, Recipe(), tmp_path / "b.onnx")
    models = [str(path), str(tmp_path / "b.onnx")]
    result = bench(models, dims={"n": 5}, threads=1, rounds=1, provider=True, profile=True)
    values = json.loads(result.to_json())
    assert [each["model"] for each in values["steps"]] == [t["model"] for t in values["timings"]]
    assert {step["kind"] for each in values["steps"] for step in each["steps"]} >= {"products", "activations"}
    result.print(console())
    assert "activations" in capsys.readouterr().out
    plot_benchmark(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert not bench(models, dims={"n": 5}, threads=1, rounds=1).steps
