"""The benchmark's structure; never a speed."""

from __future__ import annotations

import json

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.bench import bench
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.analysis.plots import plot_benchmark, shorten
from onnxpress.optimizer.conversion.compile import compile_context
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.runtime.feeds import fitted, random_feeds
from onnxpress.optimizer.runtime.timing import take_turns
from sessions import KNOWS_WHO_RUNS_WHAT

within_process = pytest.mark.usefixtures("probe_within_process")


def test_models_take_turns_and_the_first_changes():
    order, now = [], [0.0]

    def run(which):
        def call():
            order.append(which)
            now[0] += 0.1 * (which + 1)

        return call

    slept = []
    samples = take_turns([run(0), run(1), run(2)], 3, clock=lambda: now[0], sleep=slept.append)
    turns = [w for i, w in enumerate(order) if i == 0 or order[i - 1] != w]
    # A turn of the last model is followed by one of the next round's first, which is another one.
    assert turns[:3] == [0, 1, 2]
    assert order.count(0) > order.count(2) > 0
    assert len(slept) == 9
    assert all(s == pytest.approx(0.1) for s in samples[0])
    # The first run of each turn is not counted.
    assert sum(len(s) for s in samples) == len(order) - 9


def test_benchmark_of_two_models(tmp_path):
    first = tmp_path / "a.onnx"
    ir.save(graphs.matmul_model(), first)
    optimize(first, Recipe(form="onnxpress"), tmp_path / "b.onnx")
    result = bench([str(first), str(tmp_path / "b.onnx")], dims={"batch": 3}, threads=1, rounds=1)
    values = json.loads(result.to_json())
    assert [t["ours"] for t in values["timings"]] == [False, True]
    assert values["inputs"] == {"x": [3, 64]}
    assert values["timings"][0]["ratio"] == 1
    for timing in values["timings"]:
        assert timing["low"] <= timing["median"] <= timing["high"]
        assert timing["runs"] > 0
        assert timing["load_seconds"] > 0
    assert "1 threads" in result.setup
    plot_benchmark(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@within_process
def test_each_model_on_the_execution_provider_too(tmp_path):
    optimize(graphs.matmul_model(), Recipe(), tmp_path / "a.onnx")
    result = bench([str(tmp_path / "a.onnx")], dims={"batch": 3}, threads=1, rounds=1, provider=True)
    assert [t.model for t in result.timings] == [str(tmp_path / "a.onnx"), f"{tmp_path / 'a.onnx'} + ep"]
    assert [t.ours for t in result.timings] == [False, True]


@within_process
def test_which_nodes_the_execution_provider_takes(tmp_path):
    model = str(tmp_path / "a.onnx")
    optimize(graphs.matmul_model(), Recipe(scheme="int8-dynamic"), model)
    for claim, ours in (("dynamic_matmul", True), ("matmul_nbits,gather", False)):
        result = bench([model], dims={}, threads=1, rounds=1, claim=claim)
        assert [(t.model, t.ours) for t in result.timings] == [
            (model, False), (f"{model} + ep ({claim})", ours if KNOWS_WHO_RUNS_WHAT else True),
        ]  # fmt: skip
    with pytest.raises(UsageError, match="claim has 'gemm', there is matmul_nbits"):
        bench([model], dims={}, claim="gemm")


def test_models_that_cannot_be_timed(tmp_path):
    broken = tmp_path / "broken.onnx"
    b = graphs.Builder()
    b.output(b.op("NoSuchOp", b.input("x", ["m", 4])), ["m", 4])
    ir.save(b.model(), broken)
    with pytest.raises(OnnxpressError, match=r"broken\.onnx: ONNX Runtime cannot load the model"):
        bench([str(broken)], dims={})


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 refuses FLOAT4E2M1 before a provider sees it")
@within_process
def test_what_one_way_of_running_cannot_do_is_told(tmp_path):
    """No ONNX Runtime has a DequantizeLinear of FLOAT4E2M1; the execution provider takes it with the product."""
    model, fp4 = tmp_path / "a.onnx", str(tmp_path / "b.onnx")
    ir.save(graphs.matmul_model(), model)
    optimize(model, Recipe(scheme="mxfp4", form="qdq"), fp4)
    with pytest.raises(OnnxpressError, match=r"b\.onnx: ONNX Runtime cannot load the model: .*NOT_IMPLEMENTED"):
        bench([str(model), fp4], dims={}, rounds=1)
    result = bench([fp4], dims={}, rounds=1, provider=True)
    assert [(t.model, t.ours) for t in result.timings] == [(f"{fp4} + ep", True)]
    (left,) = result.left
    assert left.startswith(f"{fp4}: ONNX Runtime cannot load the model: ")


@within_process
def test_a_compiled_model_runs_on_the_execution_provider_alone(tmp_path):
    optimize(graphs.matmul_model(), Recipe(), tmp_path / "a.onnx")
    compile_context(tmp_path / "a.onnx", tmp_path / "c.onnx")
    with pytest.raises(OnnxpressError, match=r"c\.onnx: is compiled for our execution provider, .*: give --ep") as told:
        bench([str(tmp_path / "c.onnx")], dims={}, rounds=1)
    assert "EPContext" not in str(told.value)
    models = [str(tmp_path / name) for name in ("a.onnx", "c.onnx")]
    result = bench(models, dims={}, rounds=1, provider=True)
    assert [timing.model for timing in result.timings] == [models[0], f"{models[0]} + ep", f"{models[1]} + ep"]
    assert result.left == []
    written = {path.suffix: path.stat().st_size for path in tmp_path.glob("c.onnx*")}
    assert result.timings[-1].size == written[".onnx"] + written[".weights"]
    assert inspect(models[1]).size == result.timings[-1].size


@within_process
def test_inputs_from_data(tmp_path):
    model = tmp_path / "a.onnx"
    ir.save(graphs.matmul_model(), model)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for batch in (1, 3):
        result = bench(
            [str(model)], dims={}, rounds=1, data=Calibration(tmp_path / "x.npz", samples=batch, batch=batch)
        )
        assert result.inputs == {"x": [batch, 64]}
    half = tmp_path / "half.onnx"
    ir.save(graphs.matmul_model(dtype=np.float16), half)
    for models in ([model, half], [half, model]):
        both = bench([str(each) for each in models], dims={}, rounds=1, data=Calibration([{"x": x}]))
        assert len(both.timings) == 2
    with pytest.raises(UsageError, match="has 5 samples, too few for a batch of 8"):
        bench([str(model)], dims={}, data=Calibration(tmp_path / "x.npz", samples=8, batch=8))
    with pytest.raises(UsageError, match="sample 0: lacks input 'x'"):
        bench([str(model)], dims={}, data=Calibration([{"z": x}]))


def test_data_of_another_models_inputs(tmp_path):
    with pytest.raises(UsageError, match="m: the data is for the inputs x; x, z differ"):
        fitted({"x": np.zeros(3)}, [Input("z", "tensor(float)", [3])], "m")


@within_process
def test_models_of_other_inputs_are_not_timed_beside_each_other(tmp_path):
    def saved(name, x, sizes, kind=ir.DataType.FLOAT):
        b = graphs.Builder()
        b.output(b.op("Relu", b.input(x, sizes, kind)), sizes, kind)
        ir.save(b.model(), tmp_path / name)
        return str(tmp_path / name)

    first = saved("a.onnx", "x", ["m", 4])
    for other, message in (
        (saved("b.onnx", "z", ["m", 4]), r"b\.onnx: has the inputs z, .*a\.onnx has x"),
        (saved("c.onnx", "x", [3, 4]), r"c\.onnx: input 'x' is float32 \[3, 4\], in .*a\.onnx it is float32 \[1, 4\]"),
        (saved("d.onnx", "x", ["m", 4], ir.DataType.INT32), r"d\.onnx: input 'x' is int32"),
    ):
        with pytest.raises(UsageError, match=message):
            bench([first, other], dims={}, rounds=1)
    half = saved("e.onnx", "x", ["m", 4], ir.DataType.FLOAT16)
    assert len(bench([first, half], dims={}, rounds=1).timings) == 2


def test_unknown_session_option_value(tmp_path):
    model = tmp_path / "a.onnx"
    ir.save(graphs.matmul_model(), model)
    with pytest.raises((UsageError, OnnxpressError), match="session option"):
        bench([str(model)], dims={}, config={"": "1"})


class Input:
    def __init__(self, name, kind, shape):
        self.name, self.type, self.shape = name, kind, shape


def test_inputs_that_are_made_up():
    feeds = random_feeds(
        [
            Input("input_ids", "tensor(int64)", ["batch_size", "sequence_length"]),
            Input("attention_mask", "tensor(int64)", ["batch_size", "past_sequence_length + sequence_length"]),
            Input("mask_of_a_total", "tensor(int64)", ["batch_size", "total_sequence_length"]),
            Input("position_ids", "tensor(int64)", ["batch_size", "sequence_length"]),
            Input("past.0", "tensor(float)", ["batch_size", 2, "past_sequence_length", 8]),
            Input("image", "tensor(float)", [None, 3, "h", None]),
            Input("sound", "tensor(float)", [None, None]),
            Input("flag", "tensor(bool)", []),
        ],
        {"batch": 2, "sequence": 5, "past": 7, "h": 48, "sound:1": 512},
    )
    assert feeds["input_ids"].shape == (2, 5)
    assert feeds["attention_mask"].shape == (2, 12)
    assert feeds["attention_mask"].all()
    assert feeds["mask_of_a_total"].shape == (2, 12)
    assert feeds["position_ids"][1].tolist() == [0, 1, 2, 3, 4]
    assert feeds["past.0"].shape == (2, 2, 7, 8)
    assert feeds["image"].shape == (1, 3, 48, 224)
    assert feeds["sound"].shape == (1, 512)
    assert feeds["flag"].shape == ()
    assert random_feeds([Input("x", "tensor(float)", [None, "n"])], {"x:1": 4})["x"].shape == (1, 4)
    with pytest.raises(UsageError, match=r"the model's symbolic sizes: .*x:0.*n"):
        random_feeds([Input("x", "tensor(float)", [None, "n"])], {"x:2": 4})
    with pytest.raises(OnnxpressError, match="too large"):
        random_feeds([Input("x", "tensor(float)", ["n"])], {"n": 2**40})
    with pytest.raises(OnnxpressError, match="cannot be made up"):
        random_feeds([Input("x", "tensor(string)", [1])], {})


def test_long_names_keep_both_ends():
    name = "/model/layers.0/" + "x" * 80 + "/MatMul"
    assert len(shorten(name)) == 44
    assert shorten(name).startswith("/model/layers.0/")
    assert shorten(name).endswith("/MatMul")
    assert shorten("short") == "short"


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("tensor(string)", "; give data$"), ("seq(tensor(float))", ", nor be given: it is no tensor$")],
)
def test_what_cannot_be_made_up_is_told_with_what_helps(kind, advice):
    class Input:
        name, type, shape = "words", kind, [2]

    with pytest.raises(OnnxpressError, match=rf"^input words of type .* cannot be made up{advice}"):
        random_feeds([Input], {})
