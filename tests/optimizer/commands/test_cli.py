"""The command line: options, outputs, exit codes."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys

import command_line
import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import UsageError, optimize
from onnxpress.optimizer.commands.terminal import kept_in
from onnxpress.optimizer.planning.report import Report

call = functools.partial(command_line.call, entry="optimize_main")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    ir.save(graphs.matmul_model(128, 64, bias=True), path)
    return path


def test_default_output_and_summary(model):
    done = call(model)
    assert done.returncode == 0, done.stderr
    assert "1 MatMul as int4" in done.stdout
    assert "scale search" in done.stdout
    assert "lowest SQNR" in done.stdout
    assert re.search(r"\d\d\.\d KB -> \d\.\d KB \(\d\.\dx smaller\)", done.stdout)
    assert model.with_name("model.int4.onnx").exists()
    assert done.stderr.split("\n") == ["clean-up ...", "quantize and write ...", ""]
    assert call(model, "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("sizes", "text"),
    [((300_000, 100_000), "300.0 KB -> 100.0 KB (3.0x smaller)"), ((999, 2500), "999 bytes -> 2.5 KB (2.5x larger)"),
     ((2_000_000, 2_010_000), "2.0 MB -> 2.0 MB\n")],
)  # fmt: skip
def test_sizes_in_the_summary(sizes, text, capsys):
    from onnxpress.optimizer.commands.terminal import console

    report = Report("a", "b", {}, {"MatMul": 1}, {"int4": 1}, {}, (), 0.0, *sizes, {}, 0)
    report.print(console())
    shown = capsys.readouterr().out
    assert text in shown
    assert " \n" not in shown


def test_progress_off_a_terminal(capsys):
    from onnxpress.optimizer.commands.terminal import progress_lines

    now = [0.0]
    update = progress_lines(clock=lambda: now[0])
    for done in range(5):
        update("calibrate", done, 4)
        now[0] += 6
    update("check data", 1, 1)
    now[0] += 11
    update("check data", 2, 2)  # the whole is not known
    assert capsys.readouterr().err.splitlines() == [
        "calibrate ...", "calibrate: 2 of 4 (50 %), 12 s", "calibrate: 4, 24 s",
        "check data ...", "check data: 2, 11 s",
    ]  # fmt: skip


def test_worst_weights_are_told_by_the_node_that_a_pattern_matches(tmp_path):
    b = graphs.Builder()
    y = b.input("x", ["m", 64])
    for index in range(7):
        W = graphs.weight(64, 64, index)
        W[index, :] *= 10.0**index  # one large row takes the scale of its block
        y = b.op("MatMul", y, b.constant(f"W{index}", W), name=f"layer{index}")
    b.output(y, ["m", 64])
    path = tmp_path / "model.onnx"
    ir.save(b.model(), path)
    shown = [line for line in call(path).stdout.splitlines() if " dB  " in line]
    assert len(shown) == 5
    report = json.loads(call(path, "--json").stdout)
    by_node = {node: weight["sqnr"] for weight in report["weights"] for node in weight["nodes"]}
    worst = sorted(by_node, key=by_node.__getitem__)[:5]
    assert [line.split("dB  ")[1].split()[0] for line in shown] == worst
    assert report["worst"] == worst


INTERRUPTED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without it
save = pipeline.storage.save
def interrupted(*arguments, **options):
    if not {folder!r} or os.listdir({folder!r}):
        os.kill(os.getpid(), signal.{name})
    return save(*arguments, **options)
pipeline.storage.save = interrupted
cli.main()
"""
"""Where a file is written, or the first after one that is in the folder."""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted(name, status, model, forks, tmp_path):
    done = forks.run(INTERRUPTED.format(name=name, folder=""), "optimize", model, "-o", "out.onnx", folder=tmp_path)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == "interrupted; nothing was written"
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("folder", [None, "kept"])
def test_what_a_checkpoint_keeps_is_told(folder):
    with pytest.raises(SystemExit) as stop, kept_in(folder):
        raise SystemExit(143)
    kept = "kept keeps what was finished, and the same command goes on from there"
    assert (stop.value.code, getattr(stop.value, "kept", None)) == (143, folder and kept)


def test_a_checkpoint_without_data(model):
    done = call(model, "--checkpoint", "kept")
    assert done.returncode == 2
    assert "--checkpoint: without data there is nothing to keep: give --calibration or --method" in done.stderr


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_study_keeps_what_was_finished(name, status, model, forks, tmp_path):
    folder = tmp_path / "kept"
    code = INTERRUPTED.format(name=name, folder=str(folder))
    done = forks.run(code, "study", model, "--schemes", "fp8,fp4", "--folder", folder, folder=tmp_path)
    assert done.returncode == status
    last = done.stderr.splitlines()[-1]
    assert last == f"interrupted; {folder} keeps what was finished, and the same command goes on from there"
    (kept,) = folder.iterdir()
    assert ".fp8." in kept.name
    onnx.checker.check_model(str(kept))


def test_versions():
    """In a process of its own, as all others are not."""
    command = [sys.executable, "-c", "from onnxpress.optimizer import cli; cli.main()", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("onnxpress ")
    assert "ONNX Runtime" in done.stdout


def test_both_commands_are_the_same(model, tmp_path):
    for entry, words in (("optimize_main", []), ("main", ["optimize"])):
        done = call(*words, model, "-o", tmp_path / f"{entry}.onnx", "--scheme", "int8", entry=entry)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "main.onnx").read_bytes() == (tmp_path / "optimize_main.onnx").read_bytes()


def test_json(model, tmp_path):
    done = call(model, "--json", "--scheme", "int3", "--no-search", "-o", tmp_path / "o.onnx")
    report = json.loads(done.stdout)
    assert report["rewritten"] == {"MatMul": 1}
    assert report["recipe"]["scheme"] == "int3"
    assert report["size_after"] < report["size_before"]
    assert report["weights"][0]["gain"] == 0
    assert report["peak_memory"] > 1e6


def test_options_override_the_recipe(model, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('scheme = "int8"\nblock_size = 64\n')
    done = call(model, "--recipe", recipe, "--scheme", "int4", "--json", "-o", tmp_path / "o.onnx")
    stored = json.loads(done.stdout)["recipe"]
    assert (stored["scheme"], stored["block_size"]) == ("int4", 64)
    (node,) = onnx.load(tmp_path / "o.onnx").graph.node
    assert {a.name: a.i for a in node.attribute}["block_size"] == 64


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["MODEL", "--scheme", "int9"], 2, '--scheme is "int9"'),
        (["MODEL", "--scheme", "INT4"], 2, '--scheme is "INT4"; did you mean "int4"?'),
        (["MODEL", "--block-size", "512"], 2, "error: --block-size is 512; must be one of 0, 16"),
        (["MODEL", "--form", "qoperater"], 2, 'did you mean "qoperator"'),
        (["MODEL", "--scheme", "fp8", "--asymmetric"], 2, "error: --asymmetric, but fp8 has no zero points"),
        (["MODEL", "--scheme", "sparse", "--mask", "m.npz", "--no-prune"], 2, "error: --mask, --no-prune: the masks"),
        (
            ["MODEL", "--scheme", "fp8-dynamic", "--max-drop", "1%"],
            2,
            "error: --max-drop: not read by scheme fp8-dyn",
        ),
        (["MODEL", "--nonsense"], 2, "nonsense"),
        (["MODEL", "-o", "nowhere/out.onnx"], 2, "does not exist"),
        (["MODEL", "-o", "."], 2, "is a folder"),
        (["MODEL", "--recipe", "gone.toml"], 1, "cannot read the recipe"),
        (["gone.onnx"], 1, "gone.onnx: no such file"),
        (["MiniLM"], 1, 'no model of the catalogue; did you mean "minilm"?'),
        (["MODEL", "--tokenizer", "t.json"], 2, "this has to see data: give --calibration"),
        (["MODEL", "--exclude", "*"], 1, "nothing to quantize"),
    ],
)
def test_errors_are_one_line_and_exit_codes_tell_their_kind(model, tmp_path, arguments, code, message):
    done = call(*[model if a == "MODEL" else a for a in arguments], cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    if "Usage" not in done.stderr:
        assert len([line for line in done.stderr.splitlines() if not line.endswith(" ...")]) == 1  # stages before it
    assert not (tmp_path / "model.int4.onnx").exists()


@pytest.fixture
def int4(model):
    assert call(model, "-o", model.with_name("int4.onnx")).returncode == 0
    return model.with_name("int4.onnx")


def test_compile(int4, tmp_path):
    done = call("compile", int4, entry="main")
    assert done.returncode == 0, done.stderr
    assert "1 nodes" in done.stdout
    written = {path.name for path in tmp_path.iterdir()} - {"model.onnx", "int4.onnx"}
    assert "int4.ctx.onnx" in written
    (weights,) = written - {"int4.ctx.onnx"}
    assert weights in done.stdout
    done = call("compile", int4, "-o", tmp_path / "o.onnx", "--accuracy-level", 0, "--claim", "matmul_nbits", "--json",
                entry="main")  # fmt: skip
    report = json.loads(done.stdout)
    assert report["compiled"] == 1
    assert report["size_after"] == sum((tmp_path / name).stat().st_size for name in ("o.onnx", report["weights"]))
    assert call("compile", int4, "--quiet", entry="main").stdout == ""


def test_which_nodes_the_execution_provider_takes(int4):
    done = call("compare", int4, int4, "--claim", "matmul_nbits", entry="main")
    assert done.returncode == 0, done.stderr
    for words in (["bench", int4], ["compare", int4, int4]):
        done = call(*words, "--claim", "gemm", entry="main")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: OnnxpressExecutionProvider: claim has 'gemm', there is")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["INT4", "-o", "INT4"], 2, "is the model itself"),
        (["INT4", "-o", "nowhere/out.onnx"], 2, "does not exist"),
        (["INT4", "--accuracy-level", "2"], 2, "accuracy_level is '2'"),
        (["INT4", "--claim", "gemm"], 2, "claim has 'gemm'"),
        (["INT4", "--claim", "dequantized_matmul"], 1, "nothing to compile, nothing written"),
        (["MODEL"], 1, "nothing to compile, nothing written"),
        (["gone.onnx"], 1, "gone.onnx: no such file"),
    ],
)
def test_errors_of_compile(int4, model, tmp_path, arguments, code, message):
    before = sorted(tmp_path.iterdir())
    names = {"INT4": int4, "MODEL": model}
    done = call("compile", *[names.get(a, a) for a in arguments], cwd=tmp_path, entry="main")
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_compiling_twice_is_refused(int4, tmp_path):
    assert call("compile", int4, entry="main").returncode == 0
    done = call("compile", tmp_path / "int4.ctx.onnx", entry="main")
    assert done.returncode == 1
    assert "is compiled already" in done.stderr


def test_traceback_on_request(tmp_path):
    done = call(tmp_path / "gone.onnx", env={"ONNXPRESS_TRACEBACK": "1"})
    assert "Traceback" in done.stderr


def test_help_is_quick_to_import():
    heavy = ("onnx", "onnxruntime", "matplotlib")
    code = f"import sys; from onnxpress.optimizer import cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimize", "m.onnx", "--scheme", "int8-static", "--calibration", "d.npz", "-o", "d.npz"],
        ["optimize", "m.onnx", "--scheme", "sparse", "--mask", "d.npz", "-o", "./d.npz"],
        ["calibrate", "m.onnx", "--data", "d.npz", "-o", "d.npz"],
        ["calibrate", "m.onnx", "--data", "d.npz", "-o", "m.onnx"],
        ["export-mask", "m.onnx", "-o", "m.onnx"],
        ["compare", "m.onnx", "m.onnx", "--plot", "m.onnx"],
        ["optimize", "m.onnx", "-o", "m.data"],
        ["optimize", "m.onnx", "--recipe", "r.toml", "-o", "r.toml"],
        ["compile", "m.onnx", "-o", "m.data"],
        ["export-mask", "m.onnx", "-o", "m.data"],
        ["calibrate", "m.onnx", "--data", "d.npz", "-o", "m.data"],
    ],
)
def test_what_is_read_is_never_written(tmp_path, arguments):
    ir.save(graphs.matmul_model(256, 128), tmp_path / "m.onnx", external_data="m.data")
    np.savez(tmp_path / "d.npz", x=np.ones((2, 256), np.float32))
    (tmp_path / "r.toml").write_text('scheme = "fp8"\n')
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = call(*arguments, entry="main", cwd=tmp_path)
    assert done.returncode == 2
    assert ("would be lost" in done.stderr) or ("ends in .png" in done.stderr)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_arguments_of_other_types_are_refused(model):
    for wrong, message in (
        ({"recipe": "int8"}, r"Recipe expected, not 'int8'; write Recipe\(\.\.\.\)"),
        ({"calibration": "d.npz"}, "Calibration expected, not 'd.npz'"),
    ):
        with pytest.raises(UsageError, match=message):
            optimize(model, **wrong)
