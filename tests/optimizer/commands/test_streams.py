"""Standard streams that are closed or full, and signals at any time: one line at most, and never a traceback."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import graphs
import onnx
import onnx_ir as ir
import pytest

OPTIMIZE = ["optimize", "m.onnx", "-o", "o.onnx"]
COMMANDS = [OPTIMIZE, ["inspect", "m.onnx", "--json"], ["--help"]]


@pytest.fixture
def run(forks, tmp_path):
    """Runs `onnxpress` with these arguments and streams in a folder with a model."""
    ir.save(graphs.matmul_model(), tmp_path / "m.onnx")
    return functools.partial(forks.run, "cli.main()", folder=tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_that_is_closed_or_full(run, command, tmp_path):
    done = run(*command, out="closed")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    done = run(*command, out="/dev/full")
    assert done.returncode == 1
    written = "; o.onnx is written" if command is OPTIMIZE else ""
    wanted = f"error: standard output cannot be written: No space left on device{written}"
    assert done.stderr.splitlines()[-1] == wanted
    assert "Traceback" not in done.stderr
    done = run(*command, *["--quiet"][: command is OPTIMIZE], out="unread")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if command is OPTIMIZE:
        onnx.checker.check_model(tmp_path / "o.onnx")


def test_the_place_that_nobody_named_is_told_where_output_cannot_be(forks, run, tmp_path):
    done = forks.run("cli.optimize_main()", tmp_path / "m.onnx", folder=tmp_path, out="/dev/full")
    assert done.returncode == 1
    assert f"{tmp_path / 'm.int4.onnx'} is written" in done.stderr
    assert (tmp_path / "m.int4.onnx").exists()


@pytest.mark.parametrize("stream", ["closed", "/dev/full"])
def test_errors_and_progress_that_nobody_can_read(run, stream):
    done = run(*OPTIMIZE, "--json", err=stream)
    assert done.returncode in (0, 120)
    assert json.loads(done.stdout)["rewritten"] == {"MatMul": 1}
    done = run("inspect", "gone.onnx", err=stream)
    assert (done.returncode, done.stdout) == (1, "")


def test_files_do_not_take_the_place_of_closed_streams(tmp_path):
    """From the start of the interpreter on."""
    ir.save(graphs.matmul_model(), tmp_path / "m.onnx")
    code = "from onnxpress.optimizer import cli; cli.main()"
    command = f'{sys.executable} -c "{code}" {" ".join(OPTIMIZE)} <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False).returncode == 0
    onnx.checker.check_model(tmp_path / "o.onnx")
    assert onnx.load(tmp_path / "o.onnx").graph.node[0].op_type == "MatMulNBits"


@pytest.mark.parametrize(
    ("module", "name", "status"),
    [("typer", "SIGINT", 130), ("numpy", "SIGINT", 130), ("onnxpress.optimizer.conversion.pipeline", "SIGTERM", 143)],
)
def test_a_signal_within_an_import(module, name, status, tmp_path):
    ir.save(graphs.matmul_model(), tmp_path / "m.onnx")
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without it
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.{name})
            except BaseException:
                pass  # as callbacks of the interpreter do
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["optimize", "m.onnx", "--scheme", "int8-dynamic", "--quiet"]
from onnxpress.optimizer import cli
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "interrupted; nothing was written\n")
    assert os.listdir(tmp_path) == ["m.onnx"]
