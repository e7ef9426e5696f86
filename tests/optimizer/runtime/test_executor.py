"""What does independent pieces of work, alone; how errors travel; addresses that are none."""

from __future__ import annotations

import importlib.util
import pickle
import socket
import threading
import time

import pytest
from command_line import call
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.errors import OnnxpressError, SettingError, SettingsError, UsageError, command_line
from onnxpress.optimizer.runtime import ray_cluster
from onnxpress.optimizer.runtime.executor import ALONE, executor_at


def test_alone_it_is_done_when_it_is_asked_for():
    done = []
    shared = ALONE.share_made(3, lambda value: done.append("made") or value)
    found = ALONE.map(lambda each, x: done.append(x) or each.get() * x, ((shared, x) for x in (1, 2)), 2)
    assert done == []
    assert next(found) == 3
    assert done == [1, "made"]
    assert list(found) == [6]
    assert done == [1, "made", 2]
    assert ALONE.share("it").get() == "it"


@pytest.mark.parametrize(
    "error",
    [
        OnnxpressError("m.onnx: is none"),
        UsageError("wrong"),
        SettingError("bits", 9, ", must be less", ("bits", 8)),
        SettingsError(["a", "b"], ": not both", ["c"]),
    ],
)
def test_errors_are_pickled_as_they_are(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "http://host:1", "host:123456", ""])
def test_what_is_no_address(address):
    with pytest.raises(UsageError, match=r'ray ".*": write auto, local, HOST:PORT of a cluster, or ray://HOST:PORT'):
        ray_cluster.check_ray(address)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_not_installed(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    done = call("optimize", path, "--ray", "local", "--method", "gptq", "--calibration", "d.npz")
    assert done.returncode == 2
    assert done.stderr == 'error: --ray needs ray: pip install "onnxpress[ray]"\n'
    with pytest.raises(UsageError, match="ray needs ray"), executor_at("auto"):
        pass


def test_a_conversion_that_has_no_work_for_others(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    with pytest.raises(SettingsError, match="ray: scheme int4 has no work for other machines with these settings"):
        optimize("minilm", Recipe(scheme="int4"), ray="local")


def refusing():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_nobody_is_there():
    with pytest.raises(OnnxpressError, match=r"ray 127\.0\.0\.1:\d+: Connection refused; see that the cluster runs"):
        ray_cluster._look(f"127.0.0.1:{refusing()}")
    with command_line(), pytest.raises(OnnxpressError, match=r"--ray ray://no\.such\.host\.invalid:1: "):
        ray_cluster._look("ray://no.such.host.invalid:1")


@pytest.mark.parametrize(("answer", "problem"), [
    (b"HTTP/1.1 400 Bad Request\r\n", "what answers there is not Ray"), (None, "nobody answers"),
])  # fmt: skip
def test_somebody_else_is_there(answer, problem, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            there, _ = server.accept()
            with there:
                there.sendall(answer) if answer else time.sleep(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(OnnxpressError, match=problem):
            ray_cluster._look(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
