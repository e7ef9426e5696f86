"""Collecting: one pass, groups, halves that add up, and models that are not changed."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.calibration import observe
from onnxpress.optimizer.calibration.collect import collect
from onnxpress.optimizer.calibration.data import open_data
from onnxpress.optimizer.calibration.inputs import inputs_of
from onnxpress.optimizer.calibration.statistics import Statistics, StatisticsSpec
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.model_io import storage

EVERYTHING = StatisticsSpec(channel_axis=-1, gram=True)
WANTED = {"x": EVERYTHING, "first_out": EVERYTHING, "relu_out": EVERYTHING, "second_out": EVERYTHING}


def chain() -> ir.Model:
    """Two products with a Relu between them."""
    b = graphs.Builder()
    y = b.op("MatMul", b.input("x", ["batch", 24]), b.constant("W", graphs.weight(24, 32)), name="first")
    y = b.op("MatMul", b.op("Relu", y, name="relu"), b.constant("V", graphs.weight(32, 8, 1)), name="second")
    b.output(y, ["batch", 8])
    return b.model()


def samples(count=12, scale=1.0) -> np.ndarray:
    return (np.random.default_rng(count).standard_normal((count, 24)) * scale).astype(np.float32)


def values(x: np.ndarray) -> dict[str, np.ndarray]:
    first = x @ graphs.weight(24, 32)
    relu = np.maximum(first, 0)
    return {"x": x, "first_out": first, "relu_out": relu, "second_out": relu @ graphs.weight(32, 8, 1)}


def collected(x, wanted=WANTED, model=None, batch=1, **options) -> Statistics:
    model = model or chain()
    return collect(model, open_data(list(x[:, np.newaxis]), inputs_of(model), batch=batch), wanted, **options)


@pytest.mark.parametrize("batch", [1, 5])
def test_statistics_are_those_of_the_values(batch):
    x = samples()
    found = collected(x, batch=batch)
    for name, expected in values(x).items():
        tensor, exact = found[name], expected.astype(np.float64)
        # Products of 32 terms differ between NumPy and ORT by roundings of float32.
        close = {"rtol": 1e-5, "atol": 1e-5}
        assert tensor.count == expected.size
        np.testing.assert_allclose([tensor.low, tensor.high], [expected.min(), expected.max()], **close)
        np.testing.assert_allclose(tensor.channel_absmax, np.abs(exact).max(axis=0), **close)
        np.testing.assert_allclose(tensor.channel_mean, exact.mean(axis=0), **close)
        np.testing.assert_allclose(tensor.channel_std, exact.std(axis=0), **close)
        np.testing.assert_allclose(tensor.gram, exact.T @ exact, **close)
        assert tensor.rows == len(x)
        assert tensor.finite
        assert tensor.histogram.counts.sum() == expected.size
    assert found["relu_out"].histogram.zeros == (values(x)["relu_out"] == 0).sum()


def test_halves_add_up_to_the_whole():
    x = np.concatenate([samples(7), samples(9, 30.0)])  # the second half needs wider bins
    whole = collected(x)
    for first, second in ((x[:7], x[7:]), (x[7:], x[:7])):
        merged = collected(first).merge(collected(second))
        assert merged.model == whole.model
        for name, tensor in whole.items():
            other = merged[name]
            assert (other.count, other.low, other.high, other.rows) == (tensor.count, tensor.low, tensor.high, 16)
            assert (other.histogram.exponent, other.histogram.zeros) == (
                tensor.histogram.exponent, tensor.histogram.zeros,
            )  # fmt: skip
            np.testing.assert_array_equal(other.histogram.counts, tensor.histogram.counts)
            np.testing.assert_array_equal(other.channel_absmax, tensor.channel_absmax)
            np.testing.assert_allclose(other.channel_mean, tensor.channel_mean, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(other.channel_std, tensor.channel_std, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(other.gram, tensor.gram, rtol=1e-12, atol=1e-10)


def test_groups_give_the_same(monkeypatch):
    opened = []

    class Counted(observe.Observer):
        def __init__(self, model, names, **options):
            opened.append(list(names))
            super().__init__(model, names, **options)

    monkeypatch.setattr("onnxpress.optimizer.calibration.collect.Observer", Counted)
    x = samples()
    whole = collected(x)
    assert opened == [["first_out", "relu_out", "second_out"]] * 2
    opened.clear()
    split = collected(x, memory=4 * 40)
    assert opened == [["first_out", "relu_out", "second_out"], ["first_out"], ["relu_out", "second_out"]]
    for name in WANTED:
        np.testing.assert_array_equal(split[name].histogram.counts, whole[name].histogram.counts)
        assert split[name].count == whole[name].count


def test_the_model_stays_as_it_is_and_external_data_where_it_is(tmp_path):
    path = tmp_path / "m.onnx"
    ir.save(chain(), path, external_data="m.data")
    before = sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir())
    model = storage.load(path)
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    found = collected(samples(), model=model)
    assert found["second_out"].high == collected(samples())["second_out"].high
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    assert sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir()) == before


def branches() -> ir.Model:
    b = graphs.Builder()
    x = b.input("x", ["batch", 4])
    flag = b.op("Greater", b.op("ReduceSum", x, keepdims=0), b.constant("zero", np.float32(0)))
    graph = []
    for name, op_type in (("inner", "Relu"), ("other", "Neg")):
        node = ir.node(op_type, [x], name=name)
        node.outputs[0].name = f"{name}_out"
        end = ir.node("Identity", node.outputs, name=f"{name}_end")
        end.outputs[0].name = f"{name}_end"
        end.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(ir.Graph([], list(end.outputs), nodes=[node, end], name=name))
    b.output(b.op("If", flag, then_branch=graph[0], else_branch=graph[1], name="choice"), ["batch", 4])
    return b.model()


def test_tensors_that_cannot_be_observed():
    with pytest.raises(OnnxpressError, match="inside nodes cannot be observed: inner_out, other_out"):
        collect(
            branches(),
            [],
            {"inner_out": StatisticsSpec(), "choice_out": StatisticsSpec(), "other_out": StatisticsSpec()},
        )
    with pytest.raises(OnnxpressError, match="no tensor named gone"):
        collect(chain(), [], {"gone": StatisticsSpec()})


def test_around_a_subgraph():
    model = branches()
    x = np.array([[1, 2, 3, -4], [-1, -2, -3, 5]], np.float32)
    found = collect(
        model, open_data([x[:1], x[1:]], inputs_of(model)), {"choice_out": StatisticsSpec(), "x": StatisticsSpec()}
    )
    assert (found["choice_out"].low, found["choice_out"].high) == (-5.0, 3.0)
    assert (found["x"].low, found["x"].high) == (-4.0, 5.0)


def test_nan_and_infinity_within_the_model():
    b = graphs.Builder()
    x = b.input("x", ["batch", 2])
    b.output(b.op("Log", x, name="log"), ["batch", 2])
    model = b.model()
    data = [np.array([[1, np.e]], np.float32), np.array([[-1, 0]], np.float32)]
    found = collect(model, data_of(model, data), {"log_out": StatisticsSpec(channel_axis=-1, gram=True)})["log_out"]
    assert not found.finite
    assert found.count == 4
    assert (found.low, found.high) == (0.0, pytest.approx(1.0))
    assert np.isfinite(found.gram).all()
    assert np.isfinite(found.channel_std).all()


def data_of(model, arrays):
    return open_data(arrays, inputs_of(model))


def test_a_run_that_fails_names_the_batch():
    b = graphs.Builder()
    x = b.input("x", ["batch", 4])
    y = b.op("Add", x, b.constant("three", np.ones((3, 4), np.float32)))
    b.output(y, ["batch", 4])
    model = b.model()
    data = data_of(model, [np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32)])
    with pytest.raises(OnnxpressError, match=r"calibration data: batch 1: ONNX Runtime cannot run it"):
        collect(model, data, {y.name: StatisticsSpec()})


def test_no_data():
    with pytest.raises(UsageError, match="holds no samples"):
        collect(chain(), [], {"x": StatisticsSpec()})


def test_an_axis_that_is_not_there():
    with pytest.raises(OnnxpressError, match=r"tensor 'relu_out': it has no axis 2: its shape is \[1, 32\]"):
        collected(samples(), {"relu_out": StatisticsSpec(channel_axis=2)})


def test_progress_ends_at_the_whole():
    seen = []
    collected(samples(), progress=lambda *step: seen.append(step), memory=1)
    assert seen[-1] == ("calibrate", 36, 36)
    assert [step[1] for step in seen if step[0] == "calibrate"] == list(range(37))


def test_statistics_of_another_model_are_refused():
    found = collected(samples())
    found.check(chain(), WANTED)
    other = chain()
    other.graph.inputs[0].shape = ir.Shape(["batch", 25])
    same_ends = chain()
    same_ends.graph.node("relu").outputs[0].shape = ir.Shape(["batch", 33])
    for model in (other, same_ends, graphs.matmul_model(24, 8)):
        with pytest.raises(UsageError, match="another model"):
            found.check(model)
    with pytest.raises(UsageError, match="lack tensor 'gone'"):
        found.check(chain(), ["x", "gone"])


def test_a_rewritten_model_is_still_the_same():
    found = collected(samples())
    model = chain()
    relu = model.graph.node("relu")
    ir.convenience.replace_all_uses_with(relu.outputs[0], relu.inputs[0])
    model.graph.remove(relu, safe=True)
    found.check(model, ["first_out"])


def test_statistics_of_different_things_do_not_merge():
    with pytest.raises(UsageError, match="different models"):
        collected(samples()).merge(collected(samples(), {"x": EVERYTHING}))
    with pytest.raises(UsageError, match="'x' cannot be merged: different statistics"):
        collected(samples(), {"x": EVERYTHING}).merge(collected(samples(), {"x": StatisticsSpec()}))


def test_of_an_input_with_a_default_the_default_is_seen_where_nothing_else_is_given():
    b = graphs.Builder()
    x, scale = b.input("x", ["batch", 24]), b.constant("scale", np.full(24, 3, np.float32))
    b.graph.inputs.append(scale)
    b.output(b.op("Mul", x, scale, name="scaled"), ["batch", 24])
    model = b.model()
    given = [{"x": row[np.newaxis]} for row in samples(2)]
    given[1]["scale"] = np.full(24, 5, np.float32)
    wanted = {"scale": StatisticsSpec(), "scaled_out": StatisticsSpec()}
    found = collect(model, open_data(given, inputs_of(model)), wanted)
    assert (found["scale"].low, found["scale"].high) == (3, 5)
    assert found["scaled_out"].absmax == max(3 * np.abs(given[0]["x"]).max(), 5 * np.abs(given[1]["x"]).max())


def test_a_weight_that_only_a_branch_behind_what_is_observed_reads():
    b, inner = graphs.Builder(), graphs.Builder()
    W = b.constant("W", graphs.weight(24, 24))
    x, chosen = b.input("x", ["batch", 24]), b.input("chosen", [], ir.DataType.BOOL)
    seen = b.op("Relu", x, name="seen")
    inner.output(inner.op("MatMul", seen, W), ["batch", 24])
    other = graphs.Builder()
    other.output(other.op("Neg", seen), ["batch", 24])
    b.output(b.op("If", chosen, then_branch=inner.graph, else_branch=other.graph), ["batch", 24])
    given = [{"x": row[np.newaxis], "chosen": np.array(True)} for row in samples(2)]
    found = collect(b.model(), given, {"seen_out": StatisticsSpec()})
    assert found["seen_out"].count == 48


def test_what_branches_hand_out():
    model = branches()
    x = np.array([[1, 2, 3, -4], [-1, -2, -3, 5], [1, 1, 1, 7]], np.float32)
    data = open_data([x[:1], x[1:2], x[2:]], inputs_of(model))
    found = collect(
        model, data, {"inner_end": StatisticsSpec(), "choice_out": StatisticsSpec(), "other_end": StatisticsSpec(False)}
    )
    assert (found["inner_end"].low, found["inner_end"].high, found["inner_end"].count) == (0, 7, 8)
    assert (found["other_end"].low, found["other_end"].high, found["other_end"].count) == (-5, 3, 4)
    assert (found["choice_out"].low, found["choice_out"].high) == (-5, 7)
