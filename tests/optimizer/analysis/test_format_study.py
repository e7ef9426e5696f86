"""The study of formats on small models, with a metric of its own and with the default one."""

from __future__ import annotations

import io
import json
import sys
import types

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.analysis.compare import DEFAULT_DIMS
from onnxpress.optimizer.analysis.format_study import FormatStudy, Verdict, study_formats
from onnxpress.optimizer.analysis.plots import plot_formats
from onnxpress.optimizer.commands import app
from onnxpress.optimizer.errors import UsageError, command_line
from onnxpress.optimizer.evaluation.outputs import measure
from onnxpress.optimizer.runtime.feeds import random_feeds
from onnxpress.optimizer.runtime.session import open_session, session_options
from rich.console import Console
from typer.testing import CliRunner

VALUES = {"fp8": 1.99, "fp6": 2.5, "fp4": 1.96}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "product.onnx"
    ir.save(graphs.matmul_model(64, 48), path)
    return str(path)


@pytest.fixture
def bare(tmp_path):
    """A model without weights."""
    b = graphs.Builder()
    b.output(b.op("Relu", b.input("x", ["batch", 8])), ["batch", 8])
    path = tmp_path / "bare.onnx"
    ir.save(b.model(), path)
    return str(path)


@pytest.fixture
def quality(monkeypatch):
    """The name of a metric that knows the scheme: 2 for the float model, and VALUES."""

    def value(session):
        recipe = session.get_modelmeta().custom_metadata_map.get("onnxpress.recipe")
        return VALUES[json.loads(recipe)["scheme"]] if recipe else 2.0

    monkeypatch.setitem(sys.modules, "a_metric", types.SimpleNamespace(quality=value))
    return "a_metric:quality"


def invoke(*arguments):
    with command_line():
        return CliRunner().invoke(app.app, ["study", *map(str, arguments)])


def test_figures(model, bare, quality, tmp_path):
    schemes = ["fp8", "fp6", "fp4", "nf4", "int8-static"]
    study = study_formats([model, bare], schemes, metrics={model: quality, bare: quality})
    assert [v.scheme for v in study.verdicts] == ["float32", *schemes] * 2
    ours = {v.scheme: v for v in study.verdicts if v.model == model}
    assert (ours["float32"].value, ours["float32"].loss) == (2.0, 0.0)
    assert [ours[s].value for s in ("fp8", "fp6", "fp4")] == [1.99, 2.5, 1.96]
    assert [ours[s].loss for s in ("fp8", "fp6", "fp4")] == pytest.approx([0.005, -0.25, 0.02])
    assert [ours[s].passed for s in schemes] == [True, True, False, False, False]
    assert "raises KeyError" in ours["nf4"].reason
    assert "give calibration" in ours["int8-static"].reason
    assert ours["float32"].size > ours["fp8"].size > ours["fp4"].size > 64 * 48 / 2
    theirs = [v for v in study.verdicts if v.model == bare]
    assert theirs[0].value == 2.0
    assert all(v.value is None and not v.passed for v in theirs[1:])
    assert all("nothing to quantize" in v.reason for v in theirs[1:5])
    assert study.coverage == {"fp8": 0.5, "fp6": 0.5, "fp4": 0.0, "nf4": 0.0, "int8-static": 0.0}

    file = io.StringIO()
    study.print(Console(file=file, width=300))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert any(f"fp8 {quality} 1.99000 0.50 % yes" in line for line in lines)
    assert any(f"fp4 {quality} 1.96000 2.00 % no" in line for line in lines)
    assert "coverage: the models that lose 1 % at most" in lines
    assert "fp8 1 of 2 50.0 %" in lines
    plot_formats(study, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_number_is_null_and_is_plotted():
    failed = Verdict("a", "fp8", "m", float("nan"), float("inf"), size=1)
    study = FormatStudy([Verdict("a", "float32", "m", 1.0, 0.0, True, 1), failed], 0.0)
    (_, verdict) = json.loads(study.to_json())["verdicts"]
    assert verdict["value"] is verdict["loss"] is None
    plot_formats(study, io.BytesIO())


def test_bound(model, quality):
    study = study_formats([model], ["fp8", "fp4"], metrics={model: quality}, max_drop=0.004)
    assert study.coverage == {"fp8": 0.0, "fp4": 0.0}
    study = study_formats([model], ["fp8", "fp4"], metrics={model: quality}, max_drop=0.03)
    assert study.coverage == {"fp8": 1.0, "fp4": 1.0}


def test_cosine_and_kept_models(model, tmp_path):
    folder = tmp_path / "kept"
    study = study_formats([model], ["fp8", "fp4"], folder=folder, threads=1)
    files = {path.name.split(".")[1]: path for path in folder.iterdir()}
    float32, *others = study.verdicts
    assert (float32.metric, float32.value) == ("cosine of outputs", 1.0)
    sessions = [open_session(path, session_options(ours=True)) for path in (model, files["fp8"], files["fp4"])]
    feeds = [random_feeds(sessions[0].get_inputs(), DEFAULT_DIMS, seed) for seed in range(4)]
    for verdict, session in zip(others, sessions[1:], strict=True):
        cosine = np.mean([measure(sessions[0].run(None, f)[0], session.run(None, f)[0])[1] for f in feeds])
        assert verdict.value == pytest.approx(cosine, abs=1e-6)
        assert verdict.loss == pytest.approx(1 - cosine, abs=1e-6)
        assert verdict.size == files[verdict.scheme].stat().st_size
    assert others[0].loss < others[1].loss

    made = {path: path.stat().st_mtime_ns for path in files.values()}
    again = study_formats([model], ["fp8", "fp4", "nf4"], folder=folder)
    assert [v.value for v in again.verdicts[1:3]] == pytest.approx([v.value for v in others], abs=1e-6)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list(folder.iterdir())) == 3

    ir.save(graphs.matmul_model(64, 32), model)
    study_formats([model], ["fp8"], folder=folder)
    assert len(list(folder.glob("product.fp8.*.onnx"))) == 2


def test_data(model, tmp_path):
    x = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    study = study_formats([model], ["int8-static", "fp8"], data={model: str(tmp_path / "data.npz")})
    assert study.coverage == {"int8-static": 1.0, "fp8": 1.0}
    np.savez(tmp_path / "other.npz", y=x)
    with pytest.raises(UsageError, match=r"other\.npz"):
        study_formats([model], ["fp8"], data={model: str(tmp_path / "other.npz")})


def test_a_model_that_cannot_be_judged_is_no_end(model, tmp_path):
    b = graphs.Builder()
    b.output(b.op("Identity", b.input("x", ["n"], ir.DataType.STRING)), ["n"], ir.DataType.STRING)
    path = tmp_path / "text.onnx"
    ir.save(b.model(), path)
    study = study_formats([str(path), model], ["fp8"])
    assert [bool(v.reason) for v in study.verdicts] == [True, True, False, False]
    assert "cannot be made up" in study.verdicts[1].reason
    assert study.coverage == {"fp8": 0.5}


def test_a_reason_that_many_share_is_told_once(model, bare):
    done = invoke(model, bare, "--schemes", "int8-static,fp8-static,fp8")
    assert done.exit_code == 0, done.output
    told = [line for line in done.stdout.splitlines() if line.startswith("cannot be judged: ")]
    both = "as int8-static, fp8-static"
    assert told[0].startswith(f"cannot be judged: {model} {both}; {bare} {both}: this has to see data: give --calib")
    assert told[1].startswith(f"cannot be judged: {bare} as fp8: {bare}: nothing to quantize")
    assert len(told) == 2
    assert done.stdout.count("this has to see data") == 1


def test_command(model, bare, quality, tmp_path):
    plot = tmp_path / "study.png"
    done = invoke(
        model, bare, "--schemes", "fp8, fp4", "--task", quality, "--metric", f"{bare}={quality}", "--max-drop", "2.1%",
        "--plot", plot, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["coverage"] == {"fp8": 0.5, "fp4": 0.5}
    assert told["max_drop"] == pytest.approx(0.021)
    assert [v["model"] for v in told["verdicts"]] == [model] * 3 + [bare] * 3
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--schemes", "fp9"], 'scheme is "fp9"'),
        (["--schemes", "fp8,fp8"], "name each scheme once"),
        (["--schemes", ""], 'scheme is ""'),
        (["--max-drop", "-1"], "--max-drop"),
        (["--task", "le"], 'did you mean "lee"'),
        (["--task", "lee"], "does not fit this model"),
        (["--task", "other.onnx=lee"], "other.onnx is none of the models"),
        (["--task", "lee", "--task", "reading"], "is the second for all models"),
        (["--task", "no_such_module:f"], "cannot import no_such_module"),
        (["--calibration", "missing.npz"], "missing.npz: no such file"),
        (["--plot", "no/folder/x.png"], "does not exist"),
        (["--folder", "FILE"], "cannot make the folder"),
        (["FILE"], "name each model once"),
        (["missing.onnx"], "missing.onnx: no such file"),
    ],
)
def test_wrong_options_end_it_before_work_begins(model, options, text, monkeypatch):
    def never(*_arguments, **_options):
        raise AssertionError

    monkeypatch.setattr("onnxpress.optimizer.analysis.format_study.optimize", never)
    done = invoke(model, *(model if option == "FILE" else option for option in options))
    assert isinstance(done.exception, UsageError)
    assert text in str(done.exception)
