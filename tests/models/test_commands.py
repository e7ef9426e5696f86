from __future__ import annotations

import json
import sys
from pathlib import Path

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from command_line import runner
from onnxpress.models import catalogue
from onnxpress.models.tasks.task import Score
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis import evaluate
from onnxpress.optimizer.analysis.evaluate import TaskResult
from onnxpress.optimizer.conversion.compile import compile_context
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from sessions import KNOWS_WHO_RUNS_WHAT


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line where two models and data are; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx", "x.npz"):
        (tmp_path / name).touch()
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return runner(monkeypatch, capsys)


def test_models_lists_what_there_is_and_fetches_nothing(run, tmp_path):
    code, out, _ = run("models")
    assert code == 0
    for name in catalogue.names():
        assert name in out
    assert not (tmp_path / "cache").exists()


def test_models_as_json(run):
    rows = json.loads(run("models", "--json")[1])
    assert [row["name"] for row in rows] == catalogue.names()
    assert rows[0]["path"] is None
    assert rows[0]["licence"] == "MIT"


def test_models_prints_the_path_of_one(run, tmp_path):
    file = catalogue.entry("silero-vad").folder / "model.onnx"
    file.parent.mkdir(parents=True)
    file.touch()
    assert run("models", "silero-vad") == (0, f"{file}\n", "")


def test_unknown_model_is_a_usage_error(run):
    code, out, err = run("models", "silero")
    assert (code, out) == (2, "")
    assert err == 'error: no model "silero" in the catalogue; did you mean "silero-vad"?\n'


@pytest.fixture
def scores(monkeypatch):
    values = {"a.onnx": 0.75, "b.onnx": 0.5}
    monkeypatch.setattr(
        evaluate, "evaluate", lambda m, t: TaskResult(m, t or "lee", "Pearson", values[m], {"pairs": 3, "also": 0.25})
    )
    monkeypatch.setattr(evaluate, "check", lambda *_given: None)
    monkeypatch.setattr(evaluate, "check_peers", lambda nncf: None)


def test_evaluate_compares_with_the_first(run, scores):
    code, out, _ = run("evaluate", "a.onnx", "b.onnx")
    assert code == 0
    first, second = out.splitlines()[-2:]
    assert first.split() == ["a.onnx", "lee", "Pearson", "0.7500", "pairs", "3,", "also", "0.2500"]
    assert second.split()[:5] == ["b.onnx", "lee", "Pearson", "0.5000", "-0.2500"]


def test_evaluate_as_json(run, scores):
    rows = json.loads(run("evaluate", "a.onnx", "--task", "simlex999", "--json")[1])
    assert rows == [
        {
            "model": "a.onnx",
            "task": "simlex999",
            "metric": "Pearson",
            "value": 0.75,
            "details": {"pairs": 3, "also": 0.25},
        }
    ]


def test_evaluate_puts_openvino_beside(run, scores, monkeypatch):
    asked = []
    monkeypatch.setattr(
        evaluate,
        "evaluate_in_openvino",
        lambda *given: asked.append(given) or [TaskResult("a.onnx in OpenVINO", "lee", "Pearson", 0.5, {})],
    )
    code, out, _ = run("evaluate", "a.onnx", "--openvino")
    assert code == 0
    assert out.splitlines()[-1].split()[:6] == ["a.onnx", "in", "OpenVINO", "lee", "Pearson", "0.5000"]
    run("evaluate", "a.onnx", "b.onnx", "--nncf", "--calibration", "x.npz")
    assert asked == [(["a.onnx"], None, None), ([], None, ("a.onnx", Calibration("x.npz")))]


class Mean:
    """A task for any model of one input: the mean of its output on ones."""

    name, metric = "mean", "Mean"

    def evaluate(self, session, _path):
        (x,) = session.get_inputs()
        (y,) = session.run(None, {x.name: np.ones((2, x.shape[1]), np.float32)})
        return Score(float(y.mean()), {})


@pytest.fixture
def int4(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "choose", lambda *_given: Mean())
    optimize(graphs.matmul_model(128, 64, bias=True), Recipe(), tmp_path / "int4.onnx")
    return str(tmp_path / "int4.onnx")


def test_evaluate_on_the_execution_provider_too(run, int4, tmp_path):
    compile_context(int4, tmp_path / "c.onnx")
    compiled = str(tmp_path / "c.onnx")
    code, _, err = run("evaluate", int4, compiled)
    assert code == 1
    assert err.startswith(f"error: {compiled}: is compiled for our execution provider")
    assert "give --ep" in err
    assert "EPContext" not in err
    rows = json.loads(run("evaluate", int4, compiled, "--ep", "--json")[1])
    assert [row["model"] for row in rows] == [int4, f"{int4} + ep", f"{compiled} + ep"]
    assert rows[0]["value"] == pytest.approx(rows[1]["value"], rel=0.05)
    assert rows[1]["value"] == rows[2]["value"]
    code, out, _ = run("evaluate", compiled, "--ep")
    assert code == 0
    assert out.splitlines()[-1].split()[1:5] == ["+", "ep", "mean", "Mean"]


@pytest.mark.skipif(not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 refuses FLOAT4E2M1 before a provider sees it")
def test_evaluate_tells_which_way_cannot_be_judged(run, int4, tmp_path):
    fp4 = str(tmp_path / "fp4.onnx")
    optimize(graphs.matmul_model(128, 64, bias=True), Recipe(scheme="mxfp4", form="qdq"), fp4)
    code, out, _ = run("evaluate", int4, fp4, "--ep")
    assert code == 0
    assert out.splitlines()[-2].split()[1:5] == ["+", "ep", "mean", "Mean"]
    assert out.splitlines()[-1].startswith(f"cannot be judged: {fp4}: {fp4}: ONNX Runtime cannot load the model")


def test_evaluate_goes_on_after_a_model_that_openvino_cannot_compile(run, scores, monkeypatch, tmp_path):
    def compiled(path):
        if path.name == "b.onnx":
            raise OnnxpressError(f"{path}: OpenVINO cannot compile the model: no such operator")

    monkeypatch.setattr(evaluate.openvino, "OpenVinoSession", compiled)
    monkeypatch.setattr(evaluate, "resolve", Path)
    values = {"a.onnx": 0.75, "b.onnx": 0.5}
    monkeypatch.setattr(evaluate, "evaluate", lambda m, t, session=None: TaskResult(m, "lee", "Pearson", values[m], {}))
    code, out, _ = run("evaluate", "b.onnx", "a.onnx", "--openvino")
    assert code == 0
    assert out.splitlines()[-2].split()[:6] == ["a.onnx", "in", "OpenVINO", "lee", "Pearson", "0.7500"]
    told = "b.onnx: OpenVINO cannot compile the model: no such operator"
    assert out.splitlines()[-1] == f"cannot be judged: b.onnx in OpenVINO: {told}"
    rows = json.loads(run("evaluate", "b.onnx", "a.onnx", "--openvino", "--json")[1])
    assert rows[2] == {"model": "b.onnx in OpenVINO", "error": told}
    assert rows[3]["value"] == 0.75


@pytest.mark.parametrize("peer", ["openvino", "nncf"])
def test_evaluate_asks_for_what_is_not_installed_first(run, monkeypatch, peer):
    for name in ("openvino", "nncf"):
        monkeypatch.setitem(sys.modules, name, None if name == peer else ir)
    monkeypatch.setattr(evaluate, "check", lambda *_given: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_given: pytest.fail("measured"))
    code, _, err = run("evaluate", "a.onnx", f"--{peer}")
    assert code == 2
    assert err.startswith(f'error: this comparison needs the package {peer}: pip install "onnxpress[peers]"')


def test_evaluate_in_openvino_needs_it(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    ir.save(graphs.matmul_model(), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"onnxpress\[peers\]"):
        evaluate.evaluate_in_openvino([str(tmp_path / "a.onnx")])


def test_evaluate_of_nothing_names_the_file(run):
    code, _, err = run("evaluate", "absent.onnx")
    assert code == 1
    assert err.startswith("error: absent.onnx: no such file")
    assert err.count("\n") == 1


def test_evaluate_looks_at_all_files_before_it_measures(run, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_given: pytest.fail("measured"))
    monkeypatch.setattr(evaluate, "choose", lambda _session, _task, _model: None)
    ir.save(graphs.matmul_model(), tmp_path / "a.onnx")
    code, _, err = run("evaluate", str(tmp_path / "a.onnx"), "absent.onnx")
    assert (code, err) == (1, "error: absent.onnx: no such file\n")


def test_evaluate_refuses_a_model_of_no_task(run, tmp_path):
    ir.save(graphs.matmul_model(), tmp_path / "a.onnx")
    code, _, err = run("evaluate", str(tmp_path / "a.onnx"))
    assert code == 2
    assert "a.onnx: no task fits this model" in err


@pytest.mark.parametrize("command", [
    ("compare", "MODEL", "MODEL"), ("bench", "MODEL"), ("bench-kernels",), ("study-sparsity", "MODEL", "--folder", "f"),
    ("study-lengths", "MODEL", "--folder", "f", "--task", "lee"),
])  # fmt: skip
def test_where_a_plot_goes_is_looked_at_first(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ir.save(graphs.matmul_model(), tmp_path / "m.onnx")
    code, out, err = run(*("m.onnx" if word == "MODEL" else word for word in command), "--plot", "nodir/x.png")
    assert (code, out) == (2, "")
    assert err == "error: nodir/x.png: the folder nodir does not exist; create it first\n"
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("size", ["0", "-1", "1.5", ""])
def test_sizes_of_nothing_are_refused(run, size):
    code, _, err = run("bench", "m.onnx", "--dim", f"n={size}")
    assert code == 2
    assert err.startswith(f'error: --dim "n={size}": ')


def test_export_without_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    code, _, err = run("export", "some/model")
    assert code == 1
    assert 'pip install "onnxpress[export]"' in err
