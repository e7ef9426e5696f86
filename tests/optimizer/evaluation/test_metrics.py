"""Metrics of converted models."""

from __future__ import annotations

import math
import os
import sys
import tempfile

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.evaluation import metrics
from onnxpress.optimizer.evaluation.metrics import choose_metric
from onnxpress.optimizer.sources import resolve


def model(noise=0.0, angle=0.0, tokens=False):
    """y = x W, turned by an angle where W is of two columns; and the place of the largest."""
    b = graphs.Builder()
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    y = b.op("MatMul", b.input("x", ["batch", 2]), b.constant("W", (turn * (1 + noise)).astype(np.float32)))
    b.output(y, ["batch", 2])
    if tokens:
        b.output(b.op("ArgMax", y, axis=1, keepdims=0), ["batch"], ir.DataType.INT64)
    return b.model()


def feeds(*rows):
    return [{"x": np.array([row], np.float32)} for row in rows]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Nothing is left among the temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


@pytest.fixture
def function(tmp_path, monkeypatch):
    """The name of a function of that body in a module of the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(body):
        name = f"own_metric_{abs(hash(body))}"
        (tmp_path / f"{name}.py").write_text(f"def score(session):\n    {body}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return f"{name}:score"

    return write


def test_with_no_name_it_is_the_cosine_and_no_task_of_that_name():
    metric = choose_metric(None, model(), feeds([1, 0], [3, 4]))
    assert (metric.name, metric.reference) == ("cosine of outputs", 1.0)
    assert metric(model()) == pytest.approx(1, abs=1e-6)
    assert metric(model(noise=0.5)) == pytest.approx(1, abs=1e-6)
    assert metric(model(angle=math.pi / 3)) == pytest.approx(0.5, abs=1e-6)
    assert metric(model(angle=math.pi)) == pytest.approx(-1, abs=1e-6)


def test_equal_integers_are_counted():
    metric = choose_metric(None, model(tokens=True), feeds([1, 0.1], [1, 0.9], [0.9, 1], [0, 1]))
    assert metric(model(tokens=True)) == pytest.approx(1, abs=1e-6)
    # Turned by 20 degrees, [1, 0.9] is nearer to the second axis.
    expected = (math.cos(math.radians(20)) + 0.75) / 2
    assert metric(model(angle=math.radians(20), tokens=True)) == pytest.approx(expected, abs=1e-6)


def test_float_outputs_are_computed_once(monkeypatch):
    runs = []
    run = metrics._run
    monkeypatch.setattr(metrics, "_run", lambda session, inputs, who: runs.append(who) or run(session, inputs, who))
    metric = choose_metric(None, model(), feeds([1, 2], [3, 4]))
    metric(model(0.1))
    metric(model(0.2))
    assert runs == ["the float model"] * 2 + ["the candidate"] * 4


def test_broken_outputs():
    metric = choose_metric(None, model(), feeds([1, 0]))
    assert metric(model(noise=math.nan)) == -1
    b = graphs.Builder()
    b.output(b.op("Concat", *[b.input("x", ["batch", 2])] * 2, axis=1), ["batch", 4])
    assert math.isnan(metric(b.model()))  # of another shape: nothing can be said


def test_nan_of_the_float_model_is_said():
    with pytest.raises(OnnxpressError, match=r"output MatMul_0_out of the float model is NaN on sample 1"):
        choose_metric(None, model(), feeds([1, 2], [math.nan, 1]))


def test_elements_that_are_nan_in_float_are_left_out():
    def logarithm(scale):
        b = graphs.Builder()
        b.output(
            b.op("Log", b.op("Mul", b.input("x", ["batch", 2]), b.constant("s", np.float32([scale])))), ["batch", 2]
        )
        return b.model()

    metric = choose_metric(None, logarithm(1), feeds([2, -1]))
    assert metric(logarithm(1)) == 1
    assert metric(logarithm(-1)) == -1


def test_it_needs_inputs_that_fit():
    with pytest.raises(UsageError, match="no inputs to compare"):
        choose_metric(None, model(), [])
    with pytest.raises(OnnxpressError, match="the float model cannot run"):
        choose_metric(None, model(), [{"x": np.zeros((1, 3), np.float32)}])


def test_errors_name_the_file_and_tell_the_default():
    with pytest.raises(UsageError, match=r"m\.onnx: the task 'agreement' does not fit.*no metric.*cosine of outputs"):
        choose_metric("agreement", model(), [], "m.onnx")
    with pytest.raises(OnnxpressError, match=r"m\.onnx cannot run"):
        choose_metric(None, model(), [{"x": np.zeros((1, 3), np.float32)}], "m.onnx")


def test_own_function(function):
    name = function("import numpy as np; return np.float32(session.run(None, {'x': np.ones((1, 2), 'f')})[0].sum())")
    metric = choose_metric(name, model(), [])
    assert metric.name == name
    assert metric.reference == pytest.approx(2)
    assert metric(model(noise=0.5)) == pytest.approx(3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return float('nan')", "returns nan"),
        ("return 'high'", "returns a str; it has to return a number"),
        ("pass", "returns a NoneType"),
        ("return [1.0]", "returns a list"),
        ("raise KeyError('x')", "raises KeyError: 'x'"),
        ("raise ValueError", "raises ValueError: no message"),
    ],
)
def test_own_functions_that_fail(function, body, message):
    name = function(body)
    with pytest.raises(OnnxpressError, match=message) as caught:
        choose_metric(name, model(), [])
    assert name in str(caught.value)


def test_names_that_are_nothing(function):
    with pytest.raises(UsageError, match='no metric "simlex"; did you mean "simlex999"'):
        choose_metric("simlex", model(), [])
    with pytest.raises(UsageError, match=r'no metric "top-1"; there are lee, .*, module:function'):
        choose_metric("top-1", model(), [])
    with pytest.raises(UsageError, match="does not fit this model"):
        choose_metric("lee", model(), [])
    with pytest.raises(UsageError, match="no_such_module"):
        choose_metric("no_such_module:score", model(), [])
    with pytest.raises(UsageError, match="nothing"):
        choose_metric(function("pass").replace("score", "nothing"), model(), [])


def test_models_beside_their_weights(tmp_path):
    """A model whose weights lie in a file is judged as it is, and stays as it is."""
    path = tmp_path / "big.onnx"
    ir.save(model(angle=math.pi / 3), path, external_data="big.data", size_threshold_bytes=0)
    metric = choose_metric(None, path, feeds([1, 0]))
    loaded = ir.load(path)
    assert metric(loaded) == pytest.approx(1, abs=1e-6)
    assert isinstance(loaded.graph.initializers["W"].const_value, ir.ExternalTensor)
    assert sorted(os.listdir(tmp_path)) == ["big.data", "big.onnx", "temporary"]


@pytest.mark.real
def test_tasks_by_name():
    from pathlib import Path

    from onnxpress.optimizer.model_io import storage

    path = Path(resolve("minilm"))
    metric = choose_metric("wordsim353", path, [])
    assert metric.reference == pytest.approx(0.729, abs=0.001)
    assert metric(storage.load(path)) == pytest.approx(metric.reference, abs=1e-6)
