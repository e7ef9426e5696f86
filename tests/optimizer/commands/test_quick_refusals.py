"""Wrong command lines are refused at once: nothing is imported that takes longer than the answer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SLOW = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")

WRONG = (
    "optimize m.onnx --bogus", "optimize gone.onnx", "optimize m.onnx --scheme int9", "optimize m.onnx --dim batch",
    "optimize m.onnx --scheme int4 --sparsity 0.5", "optimize m.onnx -o gone/o.onnx", "optimize m.onnx -o m.onnx",
    "optimize m.onnx --recipe r.toml", "optimize m.onnx --scheme int8-static",
    "optimize m.onnx --scheme int8-static --calibration gone.npz",
    "optimize m.onnx --scheme int8-static --calibration d.npz --statistics d.npz",
    "optimize m.onnx --scheme int8-static --statistics gone.npz",
    "optimize m.onnx --scheme int8-static --calibration . --images gone",
    "optimize m.onnx --scheme int8-static --calibration t.txt --tokenizer gone.json",
    "optimize m.onnx --scheme int8-dynamic --calibration d.npz", "optimize m.onnx --scheme sparse --criterion obs",
    "optimize m.onnx --metric lee", "optimize m.onnx --metric bogus --max-drop 1%", "optimize m.onnx --max-kl 0.1",
    "optimize m.onnx --max-kl 0.1 --text gone.txt", "optimize m.onnx --scheme int8-dynamic --checkpoint c",
    "optimize m.onnx --ray nowhere", "optimize m.onnx --ray local", "study m.onnx --ray host",
    "study-sparsity m.onnx --folder f --ray 1", "study-lengths m.onnx --folder f --task lee --ray host:",
    "inspect m.onnx --scheme int9", "inspect gone.onnx",
    "compare m.onnx gone.onnx", "compare m.onnx m.onnx --plot p.jpg", "compare m.onnx m.onnx --dim x=y",
    "compare m.onnx m.onnx --task bogus", "compare m.onnx m.onnx --text gone.txt",
    "bench gone.onnx", "bench m.onnx --ort-option a", "bench m.onnx --data gone.npz", "bench m.onnx --samples 3",
    "compile gone.onnx", "compile m.onnx --accuracy-level 5", "compile m.onnx -o gone/o.onnx",
    "export-mask gone.onnx -o m.npz", "export-mask m.onnx -o gone/m.npz",
    "calibrate gone.onnx -o s.npz", "calibrate m.onnx m.onnx -o s.npz", "calibrate m.onnx -o s.npz",
    "calibrate m.onnx -o s.npz --data gone.npz", "calibrate m.onnx -o gone/s.npz --data d.npz",
    "calibrate --merge d.npz -o s.npz", "calibrate --merge d.npz gone.npz -o s.npz",
    "evaluate gone.onnx", "evaluate m.onnx --task bogus", "evaluate m.onnx --task perplexity",
    "evaluate m.onnx --task kl --text t.txt", "evaluate m.onnx --task lee --text t.txt",
    "evaluate m.onnx --text t.txt --window 1", "evaluate m.onnx --calibration d.npz", "evaluate m.onnx --window 9",
    "study gone --max-drop x", "study gone.onnx", "study m.onnx --schemes int9", "study m.onnx --task bogus",
    "study m.onnx --task kl", "study m.onnx m.onnx", "study m.onnx --calibration gone.npz", "study m.onnx --max-kl 0",
    "study-sparsity gone.onnx --folder f", "study-sparsity m.onnx --folder f --criterion bogus",
    "study-sparsity m.onnx --folder f --block 5", "study-sparsity m.onnx --folder f --task bogus",
    "study-lengths gone.onnx --folder f --task lee", "study-lengths m.onnx --folder f --task bogus",
    "study-lengths m.onnx --folder f --task embeddings", "study-lengths m.onnx --folder f --task lee --text t.txt",
    "study-lengths m.onnx --folder f --task lee --max-drop 2", "optimize m.onnx --scheme int8-dynamic --lengths 2,3",
    "optimize m.onnx --scheme int8-dynamic --lengths search --metric lee", "optimize m.onnx --lengths 0.5",
    "bench-kernels --op bogus", "bench-kernels --shape 5", "bench-kernels --bits 3", "bench-kernels --block-size 7",
    "bench-kernels --op minifloat --format bogus",
    "bench-sparse --dtype bogus", "bench-sparse --block 5", "bench-sparse --shape 5", "bench-sparse --sparsity 2",
    "models gone",
)  # fmt: skip


FILES = ("d.npz", "m.onnx", "t.txt")
SCRIPT = f"""
import contextlib, gc, json, os, sys
from onnxpress.optimizer import cli
sys.argv = ["onnxpress", "optimize", "--bogus"]
with contextlib.suppress(SystemExit):
    cli.main()  # what all of them import is imported once, and NumPy, which many do
import numpy
assert len(os.listdir("/proc/self/task")) == 1
gc.freeze()
for number, line in enumerate({WRONG}):
    os.mkdir(str(number))
    if os.fork():
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        continue
    os.chdir(str(number))
    for name in {FILES}:
        open(name, "w").close()
    os.dup2(os.open(f"../{{number}}.err", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(2, 1)
    sys.argv = ["onnxpress", *line.split()]
    try:
        cli.main()
    finally:
        with open(f"../{{number}}.json", "w") as file:
            json.dump([name for name in {SLOW} if name in sys.modules], file)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder where a process that has read one command line was forked for each, and exit codes."""
    folder = tmp_path_factory.mktemp("wrong")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=folder, check=True)
    return folder, list(map(int, done.stdout.split()))


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_command_lines_are_refused_before_anything_slow_is_imported(ended, arguments):
    folder, codes = ended
    number = WRONG.index(arguments)
    told = (folder / f"{number}.err").read_text()
    assert codes[number] in (1, 2), told
    assert told
    assert "Traceback" not in told
    assert json.loads((folder / f"{number}.json").read_text()) == []
    assert sorted(path.name for path in (folder / str(number)).iterdir()) == sorted(FILES)


def test_all_commands_are_there():
    from onnxpress.optimizer.commands.app import app

    assert {line.split()[0] for line in WRONG} | {"export"} == {command.name for command in app.registered_commands}
