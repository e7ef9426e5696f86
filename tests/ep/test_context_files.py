"""Files of compiled weights, as several processes, threads and versions of a model meet them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from contexts import compiled, nbits_model, run
from onnxpress.optimizer import compile_context

SCRIPT = """
import sys; sys.path[:0] = {folders!r}
from pathlib import Path
import numpy as np
from contexts import feeds_of
from onnxpress import ep
from sessions import options
session = ep.session({path!r}, options())
np.save({out!r}, session.run(None, feeds_of(session))[0])
"""

HOLD = """
print("ready", flush=True)
sys.stdin.read()
"""

PAGES = """
found, wanted = {}, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    first, *rest = line.split()
    if not first.endswith(":"):
        wanted = ".weights" in line
    elif wanted and rest[-1] == "kB":
        found[first] = found.get(first, 0) + int(rest[0])
print(*(found[f"{kind}_Clean:"] + found[f"{kind}_Dirty:"] for kind in ("Shared", "Private")))
"""


def script(path, out, *more):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    return [sys.executable, "-c", SCRIPT.format(folders=folders, path=str(path), out=str(out)) + "".join(more)]


FULL = """
import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from onnxpress.optimizer import OnnxpressError, compile_context
try:
    compile_context({path!r})
except OnnxpressError as error:
    print(error)
"""


def test_a_disk_that_is_full(tmp_path):
    """As far as a limit of sizes is one: an error, and no file but the model."""
    ir.save(nbits_model(), tmp_path / "model.onnx")
    command = [sys.executable, "-c", FULL.format(path=str(tmp_path / "model.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write: File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_another_process(tmp_path):
    path, context, _ = compiled(tmp_path, nbits_model(level=4))
    subprocess.run(script(context, tmp_path / "y.npy"), check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), run(path))


@pytest.mark.unsanitized
def test_processes_share_their_pages(tmp_path):
    _, context, _ = compiled(tmp_path, nbits_model(K=2048, N=4096))
    first = subprocess.Popen(script(context, tmp_path / "1.npy", HOLD), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"ready\n"
    done = subprocess.run(script(context, tmp_path / "2.npy", PAGES), capture_output=True, text=True, check=True)
    first.communicate()
    shared, own = map(int, done.stdout.split())
    assert shared > 4096  # KiB: all that was read of 4 MiB of codes and their scales
    assert own == 0


def test_many_at_once(tmp_path):
    """Two models of one name, many times: whichever comes last is whole."""
    wanted = []
    for bits in (4, 8):
        ir.save(nbits_model(bits), tmp_path / f"{bits}.onnx")
        wanted.append(run(tmp_path / f"{bits}.onnx"))
    target = tmp_path / "out.ctx.onnx"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: compile_context(tmp_path / f"{4 + 4 * (i % 2)}.onnx", target), range(8)))
    got = run(target)
    assert any((got == want).all() for want in wanted)
    assert not list(tmp_path.glob(".*"))
    with ThreadPoolExecutor(4) as pool:
        for each in pool.map(lambda _: run(target), range(8)):
            np.testing.assert_array_equal(each, got)


def test_compiling_again_removes_the_old_weights(tmp_path):
    first = compiled(tmp_path, nbits_model(4))[2]
    path, context, second = compiled(tmp_path, nbits_model(8))
    assert not first.exists()
    np.testing.assert_array_equal(run(context), run(path))
    assert compiled(tmp_path, nbits_model(8))[2] == second
    assert second.exists()
