"""Sessions in a process of their own: what is sent there and comes back, and what becomes of it when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphs import Builder, matmul_model, weight
from onnxpress.optimizer import OnnxpressError
from onnxpress.optimizer.conversion import session_process
from onnxpress.optimizer.conversion.checker import bare
from onnxpress.optimizer.conversion.session_process import SessionProcess
from onnxpress.optimizer.model_io import storage


@pytest.fixture
def process():
    process = SessionProcess()
    yield process
    process.stop()


def opened(process, model, **more):
    made = bare(model)
    return process.open(made.proto.SerializeToString(), "m", ours=False, weights=made.weights, **more)


def product(K=64, N=48):
    """x @ W, a weight that is fed."""
    return matmul_model(K, N)


@pytest.mark.parametrize("optimized", [False, True])
def test_weights_of_memory_are_fed(process, optimized):
    loaded = opened(process, product(), optimized=optimized)
    assert [entry.name for entry in loaded.inputs] == ["x"]
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    (y,) = process.run(loaded.outputs, {"x": x})
    np.testing.assert_allclose(y, x @ weight(64, 48), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["same", "other"])
def test_weights_that_are_there_are_not_sent_again(process, model, monkeypatch):
    first = product()
    opened(process, first)
    sent = []
    ask = SessionProcess._ask
    monkeypatch.setattr(
        SessionProcess, "_ask", lambda self, *r, bodies=(): sent.extend(bodies) or ask(self, *r, bodies=bodies)
    )
    loaded = opened(process, first if model == "same" else product())
    assert len(sent) == (model == "other")
    x = np.ones((1, 64), np.float32)
    np.testing.assert_allclose(process.run(loaded.outputs, {"x": x})[0], x @ weight(64, 48), rtol=1e-5, atol=1e-5)


def test_a_tensor_that_two_weights_share_comes_once(process):
    b = Builder()
    x, shared = b.input("x", ["m", 64]), weight(64, 64)
    first, second = b.constant("V", shared), b.constant("W", shared)
    second.const_value = first.const_value
    b.output(b.op("MatMul", b.op("MatMul", x, first), second), ["m", 64])
    process.start()
    late = threading.Timer(60, process._process.kill)  # or it waits for ever for what does not come
    late.start()
    try:
        loaded = opened(process, b.model())
        (y,) = process.run(loaded.outputs, {"x": np.ones((1, 64), np.float32)})
    finally:
        late.cancel()
    np.testing.assert_allclose(y, np.ones((1, 64), np.float32) @ shared @ shared, rtol=1e-4, atol=1e-4)


def test_weights_of_files_are_mapped_there(process, tmp_path, monkeypatch):
    storage.save(product(), tmp_path / "m.onnx", external=True)
    monkeypatch.setattr(ir.ExternalTensor, "numpy", lambda _: pytest.fail("read here"))
    monkeypatch.chdir(tmp_path)
    loaded = opened(process, storage.load("m.onnx"))
    x = np.ones((1, 64), np.float32)
    np.testing.assert_allclose(process.run(loaded.outputs, {"x": x})[0], x @ weight(64, 48), rtol=1e-5, atol=1e-5)


def test_a_model_that_is_refused_leaves_the_process_there(process):
    with pytest.raises(OnnxpressError, match="m: ONNX Runtime cannot load the model"):
        process.open(b"no model", "m", ours=False)
    loaded = opened(process, product())
    with pytest.raises(OnnxpressError, match="cannot run it"):
        process.run(loaded.outputs, {"x": np.ones((1, 63), np.float32)})
    assert process.run(loaded.outputs, {"x": np.ones((1, 64), np.float32)})[0].shape == (1, 48)


def test_it_starts_anew_after_a_crash(process):
    opened(process, product())
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(OnnxpressError, match="ONNX Runtime ended with signal SIGKILL"):
        process.run(["y"], {"x": np.ones((1, 64), np.float32)})
    assert not process.is_alive
    assert opened(process, product()).outputs


def test_types_that_numpy_does_not_know(process):
    b = Builder(13)
    x = b.input("x", ["n", 64])
    constant = b.constant("W", weight(64, 48).astype(ml_dtypes.bfloat16))
    b.output(b.op("MatMul", x, b.op("Cast", constant, to=1)), ["n", 48])
    loaded = opened(process, b.model())
    assert process.run(loaded.outputs, {"x": np.ones((1, 64), np.float32)})[0].shape == (1, 48)


def test_modules_beside_the_models_are_not_imported(tmp_path):
    """The current folder is where strangers' files lie."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "from onnxpress.optimizer.conversion.session_process import SessionProcess\n"
        "p = SessionProcess()\n"
        "try: p.open(b'none', 'm', ours=False)\n"
        "except Exception as error: print(error)\n"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run([sys.executable, "-c", code, *path], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "ONNX Runtime cannot load the model" in done.stdout


def number_of(process):
    """That of the process, once it holds a model."""
    opened(process, product())
    return process._process.pid


def test_the_process_serves_the_next():
    session_process._SPARE.end()
    first, second = SessionProcess(), SessionProcess()
    number = number_of(first)
    first.release()
    assert not first.is_alive
    assert number_of(second) == number
    assert number_of(first) != number
    first.stop()
    second.release()
    session_process._SPARE.end()
    assert number_of(first) != number
    first.stop()


def resident(number):
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_it_gives_memory_back():
    session_process._SPARE.end()
    process = SessionProcess()
    number = number_of(process)
    before = resident(number)
    loaded = opened(process, product(2048, 2048))
    process.run(loaded.outputs, {"x": np.ones((1, 2048), np.float32)})
    assert resident(number) > before + (12 << 20)
    process.release()
    assert resident(number) < before + (4 << 20)
    process.stop()


def test_one_that_was_started_early_serves():
    session_process._SPARE.end()
    session_process.start_early()
    number = session_process._SPARE._kept[1].pid
    process = SessionProcess()
    assert number_of(process) == number
    process.stop()


def test_one_that_died_does_not():
    session_process._SPARE.end()
    process = SessionProcess()
    number = number_of(process)
    os.kill(number, signal.SIGKILL)
    process.release()
    assert number_of(process) != number
    process.stop()


def test_it_waits_for_some_time_and_for_this_path_alone(monkeypatch):
    monkeypatch.setattr(session_process, "_SPARE_SECONDS", 0.1)
    process = SessionProcess()
    number_of(process)
    waiting = process._process
    process.release()
    waiting.wait(20)
    monkeypatch.undo()
    number = number_of(process)
    process.release()
    monkeypatch.syspath_prepend("elsewhere")
    assert number_of(process) != number
    process.stop()
