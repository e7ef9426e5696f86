"""Why passes over floats left a node reaches the report: under --verbose, and as JSON."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from command_line import runner
from graphs import Builder
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.commands.terminal import console

RNG = np.random.default_rng(0)
SQUARE = "its kernel is no square"


def network() -> ir.Model:
    b = Builder()
    x = b.input("x", ["n", 4, 8, 8])
    y = b.op("Conv", x, b.constant("w", RNG.standard_normal((8, 4, 3, 3), np.float32)), name="first")
    y = b.op("ConvTranspose", y, b.constant("v", RNG.standard_normal((8, 4, 2, 3), np.float32)), name="wide")
    y = b.op("Conv", y, b.constant("u", RNG.standard_normal((8, 4, 1, 1), np.float32)), name="last")
    b.output(y, ["n", 8, 7, 8])
    return b.model()


@pytest.fixture
def data():
    return [{"x": RNG.standard_normal((2, 4, 8, 8), np.float32)} for _ in range(4)]


def test_python(tmp_path, data, capsys):
    recipe = Recipe(scheme="int8-static", exclude=("last",), restore_moments=True)
    report = optimize(network(), recipe, tmp_path / "o.onnx", calibration=Calibration(data))
    assert report.passes["SplitConvTranspose"] == {"wide": SQUARE}
    assert set(report.passes["RestoreMoments"]) == {"last"}
    assert json.loads(report.to_json())["passes"] == report.passes
    report.print(console(), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    for name, left in report.passes.items():
        (at,) = [index for index, line in enumerate(lines) if line.strip().startswith(f"left by {name} ")]
        for line, (node, reason) in zip(lines[at:], left.items(), strict=False):
            assert line.strip().endswith(f"{node}: {reason}")
    report.print(console())
    assert "left by" not in capsys.readouterr().out


def test_command_line(tmp_path, data, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ir.save(network(), "m.onnx")
    np.savez("d.npz", x=np.concatenate([each["x"] for each in data]))
    run = runner(monkeypatch, capsys)
    options = ["m.onnx", "--scheme", "int8-static", "--calibration", "d.npz", "--batch", "2"]
    code, out, err = run("optimize", *options, "--verbose")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "left by SplitConvTranspose" in line]
    assert line.strip().endswith(f"wide: {SQUARE}")
    assert "left by" not in run("optimize", *options)[1]
    report = json.loads(run("optimize", *options, "--json")[1])
    assert report["passes"]["SplitConvTranspose"] == {"wide": SQUARE}
