"""Options of the command line: which schemes take them, and what is refused before a model is read."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing

import graphs
import onnx_ir as ir
import pytest
from command_line import runner
from onnxpress.optimizer.commands import convert
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.quantization.schemes import SCHEMES
from onnxpress.optimizer.settings.families import FAMILY_SETTINGS
from onnxpress.optimizer.settings.groups import Judging
from onnxpress.optimizer.settings.recipe import Override, Recipe
from onnxpress.optimizer.settings.setting import settings_of
from schemes import ONE_A_FAMILY

VALUES = {
    "search": False, "clean_up": False, "freeze_inputs": True, "check": False, "include": ["a"], "exclude": ["a"],
    "block_size": 64,
    "scale_type": "float16", "form": "qdq", "accuracy_level": 0, "embeddings": True,
    "symmetric": True, "per_channel": True,
    "range_method": "minmax", "percentile": 99.0, "activation_type": "int8", "reduce_range": True, "target": "any",
    "equalize": True, "smooth": True, "method": "gptq", "correct_bias": False, "restore_moments": True,
    "max_drop": 0.1, "metric": "lee", "only_if_faster": True, "weight_format": "e5m2", "activation_format": "e5m2",
    "coverage": "extended", "first_and_last": True, "fuse": False, "sparsity": 0.5, "block": "4x1", "dtype": "float32",
    "criterion": "obs", "allocation": "uniform", "activations": "static", "sequential": True, "prune": True,
    "mask": "m.npz", "expected_rows": 8, "max_kl": 0.02, "text": "t.txt", "window": 8, "stride": 4, "tokens": 64,
    "fuse_layers": True, "lengths": "0.9,64", "length_budget": 0.5, "budget": "3.5bits", "search_time": "30m",
    "transform": "hadamard", "last_logits": True, "steps": 20, "learning_rate": 0.01, "rank": 16,
}  # fmt: skip
"""One of each key, which some scheme of each kind that reads the key takes."""

BESIDE = {key: {"metric": "perplexity"} for key in ("text", "window", "stride", "tokens")}
BESIDE["search_time"] = {"max_drop": 0.1}
BESIDE |= {key: {"method": "dwq"} for key in ("steps", "learning_rate")}
"""What some are read with alone."""

SEARCHED = {"lengths": "search", "metric": "lee", "max_drop": 0.1}
"""With which int8-dynamic reads what judges a model."""

NO_KEYS = {
    "context", "model", "output", "scheme", "recipe", "json_", "quiet", "calibration", "samples", "batch", "images",
    "tokenizer", "length", "checkpoint", "statistics", "verbose", "report", "save_recipe", "genai",
    "expect_m", "compensate", "dim", "ray",
}  # fmt: skip


def panels() -> dict[str, str | None]:
    """The group of each option of `optimize`."""
    hints = typing.get_type_hints(convert.optimize, include_extras=True)
    names = list(inspect.signature(convert.optimize).parameters)
    return {name: typing.get_args(hints[name])[1].rich_help_panel for name in names if name != "context"}


def test_each_key_has_an_option_and_a_value_here():
    assert VALUES.keys() | NO_KEYS == {*panels(), "context"}


def test_help_tells_defaults(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "2000")
    _, text, _ = runner(monkeypatch, capsys)("optimize", "--help")
    shown = dict(re.findall(r"(--[a-z-]+)[^\n]*\[default: \(([^)]+)\)\]", text))
    assert shown["--form"] == "qoperator"
    assert shown["--prune"] == "--prune"
    assert shown["--equalize"] == "--no-equalize"
    told = {key for key in settings_of(Recipe) if getattr(Recipe, key) not in (None, ())}
    assert len(shown) == len(told)


@pytest.mark.parametrize("scheme", ONE_A_FAMILY)
@pytest.mark.parametrize("key", VALUES)
def test_options_are_listed_with_the_schemes_that_take_them(key, scheme):
    (title,) = (each.title for each in FAMILY_SETTINGS if each.name == SCHEMES[scheme].family)
    panel = panels()[key]
    judged = SEARCHED if scheme == "int8-dynamic" and key in settings_of(Judging) else {}
    values = {"scheme": scheme, **judged, **BESIDE.get(key, {}), key: VALUES[key]}
    if judged and key == "max_kl":
        values = {**values, "metric": "kl", "max_drop": None}
    values = {name: value for name, value in values.items() if value is not None}
    built = functools.partial(Recipe.from_mapping, values)
    if panel is None or title in re.split(", | and ", panel.removeprefix("Of ")):
        assert built() == Recipe(**values)
    else:
        with pytest.raises(UsageError, match=f"not read by scheme {scheme}"):
            built()
        if VALUES[key] != getattr(Recipe(), key):
            with pytest.raises(UsageError, match=f"not read by scheme {scheme}"):
                Recipe(**values)


def test_a_value_in_python_is_refused_as_in_a_file():
    for wrong in (
        {"scheme": "int4", "sparsity": 0.5}, {"block_size": 17}, {"block_size": True}, {"search": 1}, {"include": "a"},
        {"scheme": "nope"}, {"percentile": 20.0}, {"overrides": ({"match": "a"},)},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            Recipe(**wrong)
    for wrong in ({"block_size": 17}, {"scheme": "nope"}, {"match": 3}, {"keep_float": 1}, {}):
        with pytest.raises(UsageError):
            Override(**{"match": "a", **wrong} if wrong else {})


def test_overrides_hold_all_that_is_settled_by_node():
    own = {"match", "op_type", "keep_float"}
    settled = {key for key, what in settings_of(Recipe).items() if what.per_node}
    assert {field.name for field in dataclasses.fields(Override)} - own == settled


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


def test_inspect_takes_the_options_that_its_reasons_advise(run):
    b = graphs.Builder()
    y = b.op("MatMul", b.input("x", ["m", 64]), b.constant("w0", graphs.weight(64, 64)), name="first")
    y = b.op("LayerNormalization", b.op("Relu", y), b.constant("gain", graphs.weight(1, 64)[0]), name="norm")
    b.output(b.op("MatMul", y, b.constant("w1", graphs.weight(64, 64)), name="last"), ["m", 64])
    ir.save(b.model(), "m.onnx")
    ask = ("inspect", "m.onnx", "--scheme", "fp8-static")
    _, out, _ = run(*ask, "--no-first-and-last")
    assert "--first-and-last takes it" in out
    assert "--coverage extended takes it" in out
    assert "fp8-static takes  0 nodes" in out
    _, out, _ = run(*ask, "--first-and-last", "--coverage", "extended")
    assert "fp8-static takes  3 nodes" in out
    assert "takes it" not in out
    code, _, err = run("inspect", "m.onnx", "--coverage", "extended")
    assert (code, err) == (2, "error: --coverage: not read by scheme int4\n")
    assert run("inspect", "m.onnx", "--embeddings")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scheme", "int4", "--method", "rtn", "--calibration", "d.npz"],
            "--calibration: scheme int4 reads no calibration data with these settings: --method\n",
        ),
        (["--scheme", "nf4", "--method", "gptq"], "this has to see data: give --calibration"),
        (["--scheme", "nf4", "--samples", "8"], "this has to see data: give --calibration"),
        (["--scheme", "nf4", "--statistics", "s.npz"], "--statistics: scheme nf4 learns from data: give --calibration"),
        (
            ["--scheme", "int8-dynamic", "--samples", "8"],
            "--samples: scheme int8-dynamic reads no calibration data with these settings\n",
        ),
        (["--scheme", "fp8-dynamic", "--statistics", "s.npz"], "--statistics: scheme fp8-dynamic reads no"),
        (
            ["--scheme", "sparse", "--criterion", "magnitude", "--images", "imagenet"],
            "--images: scheme sparse reads no calibration data with these settings: --criterion\n",
        ),
        (["--scheme", "int8-static"], "this has to see data: give --calibration"),
        (["--scheme", "fp8-static", "--samples", "8"], "this has to see data: give --calibration"),
        (
            ["--scheme", "int8-static", "--calibration", "d.npz", "--statistics", "s.npz"],
            "--calibration, --statistics: give one of them, not both",
        ),
        (
            ["--scheme", "sparse", "--calibration", "d.npz", "--statistics", "s.npz"],
            "--calibration, --statistics: give one of them, not both",
        ),
        (
            ["--scheme", "int8-static", "--statistics", "s.npz", "--max-drop", "1%"],
            "error: --max-drop: runs models on data",
        ),
        (["--scheme", "fp8-static", "--calibration", "d.npz", "--metric", "le"], 'did you mean "lee"?'),
        (["--scheme", "fp8-static", "--calibration", "d.npz", "--metric", "no_such_module:f"], "cannot import no_such"),
        (["--scheme", "int8-static", "--calibration", "d", "--images", "imagenot"], 'did you mean "imagenet"?'),
        (
            ["--scheme", "sparse", "--activations", "static"],
            'error: --activations is "static", which needs a calibration',
        ),
        (["--scheme", "sparse", "--criterion", "obs"], 'error: --criterion is "obs", which needs a calibration'),
    ],
)
def test_requests_that_no_model_meets_are_refused_before_one_is_read(run, monkeypatch, options, message):
    ir.save(graphs.matmul_model(), "m.onnx")
    monkeypatch.setattr(storage, "load", lambda _path: pytest.fail("the model is read"))
    code, out, err = run("optimize", "m.onnx", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_without_a_model_is_called_one(run, tmp_path):
    for name in (".", str(tmp_path)):
        assert run("optimize", name)[1:] == ("", f"error: {name}: the folder holds no .onnx file\n")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('scheme = "sparse"\nactivations = "static"\n', [], 'r.toml: activations is "static", which needs'),
        ('scheme = "sparse"\ncriterion = "obs"\n', ["--criterion", "wanda"], '--criterion is "wanda", which needs'),
        (
            'scheme = "int8-static"\nmax_drop = 0.01\n',
            ["--metric", "lee", "--statistics", "s.npz"],
            "--metric, r.toml: max_drop: runs models on data",
        ),
        (
            'scheme = "int4"\nmethod = "rtn"\n',
            ["--batch", "2"],
            "--batch: scheme int4 reads no calibration data with these settings: r.toml: method\n",
        ),
    ],
)
def test_settings_are_called_what_they_are_where_they_were_written(run, tmp_path, text, options, message):
    ir.save(graphs.matmul_model(), "m.onnx")
    (tmp_path / "r.toml").write_text(text)
    code, _, err = run("optimize", "m.onnx", "--recipe", "r.toml", *options)
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_options_of_old_work_with_a_warning(run):
    code, _, errors = run("optimize", "p.onnx", "--scheme", "sparse", "--criterion", "magnitude", "--expect-m", "0")
    assert code == 2
    assert "warning: expect_m is deprecated" in errors
    assert "must be a whole number from 1" in errors
