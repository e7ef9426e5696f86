"""Work on a Ray cluster: what comes out is what comes out alone."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from encoder_layers import LayerModel
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.format_study import study_formats
from onnxpress.optimizer.errors import OnnxpressError, SettingError, UsageError, command_line, option
from onnxpress.optimizer.families import length_search
from onnxpress.optimizer.quantization.blas import blas_threads
from onnxpress.optimizer.quantization.threads import threads
from onnxpress.optimizer.runtime.executor import executor_at

ray = pytest.importorskip("ray")

WIDTH = 96


@pytest.fixture(scope="module")
def cluster():
    """Two workers, to which this process is connected."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers cannot import
    yield "auto"
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three products of one input, and two of what they make."""
    b = graphs.Builder(18)
    x = b.input("x", [None, WIDTH])
    first = [b.op("MatMul", x, b.constant(f"A{i}", graphs.weight(WIDTH, WIDTH, i)), name=f"a{i}") for i in range(3)]
    h = b.op("Relu", b.op("Add", b.op("Add", *first[:2]), first[2]))
    for i in range(2):
        h = b.op("Gemm", h, b.constant(f"B{i}", graphs.weight(WIDTH, WIDTH, 9 + i)), transB=1, name=f"b{i}")
    b.output(h, [None, WIDTH])
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    ir.save(b.model(), path)
    np.savez(path.with_name("rows.npz"), x=np.random.default_rng(1).standard_normal((256, WIDTH)).astype(np.float32))
    return path


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "int4", "method": "gptq"},
        {"scheme": "int3", "method": "gptq,signround", "sequential": False},
        {"scheme": "int3", "method": "gptq", "rank": 8},
        {"scheme": "int4", "budget": "4.5bits"},
        {"scheme": "int3", "max_drop": 0.0005},
    ],
)
def test_the_same_bytes(settings, cluster, model, tmp_path):
    data = Calibration(model.with_name("rows.npz"))
    made = []
    for at in (None, cluster):
        report = optimize(model, Recipe(check=False, **settings), tmp_path / f"{at}.onnx", calibration=data, ray=at)
        made.append((sha(report.output), [weight.sqnr for weight in report.weights], report.recipe))
    assert made[0] == made[1]


def test_the_same_study(cluster, model):
    other = model.with_name("other.onnx")
    ir.save(graphs.matmul_model(64, 48), other)
    asked = [str(model), str(other)], ("int8", "fp4", "nf4", "fp8-static")
    data = {str(model): str(model.with_name("rows.npz"))}
    alone, spread = (study_formats(*asked, data=data, ray=at) for at in (None, cluster))
    assert alone.verdicts == spread.verdicts
    assert len({verdict.value for verdict in alone.verdicts}) > 4
    assert any("calibration" in verdict.reason for verdict in spread.verdicts)


def test_the_same_lengths(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(length_search, "_timed", lambda *_: [4.0, 3.25, 2.5, 2.05, 1.75, 1.45, 1.15])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_metric.py").write_text(
        "import numpy as np\n"
        f"FEEDS = {{name: np.array(value, kind) for name, value, kind in {_written(LayerModel(layers=4))}}}\n"
        "def judged(session):\n    return float(np.square(session.run(None, FEEDS)[0][:, 0]).mean())\n"
    )
    recipe = Recipe(scheme="int8-dynamic", lengths="search", metric="its_metric:judged", max_drop=0.3)
    trails = []
    for at in (None, cluster):
        report = optimize(LayerModel(layers=4).model(), recipe, tmp_path / "o.onnx", ray=at)
        trails.append([(each.recipe, each.value, each.accepted) for each in report.trail])
    assert trails[0] == trails[1]
    assert len(trails[0]) > 20


def _written(case):
    return [(name, value.tolist(), str(value.dtype)) for name, value in case.feeds((40, 25)).items()]


def doubled(x):
    return 2 * x


def raises(kind):
    raise SettingError("max-drop", 3, f", {option('max-drop')}") if kind == "setting" else UsageError(option("dim"))


def fails(_x):
    return 1 // 0


def dies_once(folder):
    """The process of the first who comes is killed."""
    marker = Path(folder) / "was here"
    if not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def dies(_x):
    os.kill(os.getpid(), signal.SIGKILL)


def made(folder):
    (Path(folder) / f"made {time.time_ns()}").write_text("")
    return folder


def uses(shared, x):
    return Path(shared.get()).name, x, threads(), blas_threads()


def waits(folder):
    """Until it is stopped, and tells so."""
    (Path(folder) / f"began {os.getpid()}").write_text("")
    try:
        for _ in range(600):  # a call that lasts is not interrupted
            time.sleep(0.1)
    finally:
        (Path(folder) / f"ended {os.getpid()}").write_text("")


def test_in_order(cluster):
    with executor_at(cluster) as executor:
        assert list(executor.map(doubled, ((x,) for x in range(20)), 20)) == [2 * x for x in range(20)]
        assert list(executor.map(doubled, [], 0)) == []


def test_what_is_made_once_by_each_process(cluster, tmp_path):
    with executor_at(cluster) as executor:
        shared = executor.share_made(str(tmp_path), made)
        found = list(executor.map(uses, ((shared, x) for x in range(8)), 8))
    assert found == [(tmp_path.name, x, 1, blas_threads()) for x in range(8)]
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


@pytest.mark.parametrize("kind", ["setting", "usage"])
def test_an_error_arrives_as_it_was_raised(kind, cluster):
    with command_line(), executor_at(cluster) as executor:
        with pytest.raises(OnnxpressError) as here:
            raises(kind)
        with pytest.raises(OnnxpressError) as there:
            list(executor.map(raises, [(kind,)], 1))
    assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
    assert "--" in str(there.value)


def test_a_fault_of_ours_is_one(cluster):
    with executor_at(cluster) as executor, pytest.raises(ZeroDivisionError):
        list(executor.map(fails, [(0,)], 1))


def test_the_part_of_a_lost_worker_is_done_again(cluster, tmp_path):
    with executor_at(cluster) as executor:
        assert next(executor.map(dies_once, [(str(tmp_path),)], 1)) > 0


def test_a_part_that_is_lost_each_time(cluster):
    with executor_at(cluster) as executor, pytest.raises(OnnxpressError, match="part of the work was lost 4 times"):
        list(executor.map(dies, [(0,)], 1))


def test_what_nobody_waits_for_is_stopped(cluster, tmp_path, monkeypatch):
    def stop():
        while len(list(tmp_path.glob("began *"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=stop).start()
        with pytest.raises(KeyboardInterrupt), executor_at(cluster) as executor:
            list(executor.map(waits, [(str(tmp_path),)] * 2, 2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(list(tmp_path.glob("ended *"))) == 2


def test_machines_that_are_unlike_this_one(cluster, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "numpy" else version(name))
    told = r"machine \S+ is not like this one: numpy \S+ in place of 0\.1"
    with pytest.raises(OnnxpressError, match=told), executor_at(cluster):
        pass


def test_no_cluster_runs_here(tmp_path):
    code = "from onnxpress.optimizer.runtime.executor import executor_at\nexecutor_at('127.0.0.1:1').__enter__()\n"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert time.perf_counter() - began < 15
    assert done.stderr.splitlines()[-1].endswith("or of its client server after ray:// (10001)")


def test_interrupted(model, tmp_path):
    """A process that is interrupted while workers work ends at once, with nothing of it left."""
    folder = tmp_path / "place"
    folder.mkdir()
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from onnxpress.optimizer import cli
from onnxpress.optimizer.runtime import ray_cluster
result = ray_cluster._Cluster._result
def interrupted(self, reference):
    os.kill(os.getpid(), signal.SIGINT)
    return result(self, reference)
ray_cluster._Cluster._result = interrupted
sys.argv[1:] = [{str(model)!r}, "-o", {str(folder / "o.onnx")!r}, "--method", "gptq", "--scheme", "int3",
                "--calibration", {str(model.with_name("rows.npz"))!r}, "--ray", "local"]
cli.optimize_main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted; nothing was written")
    assert "ray" not in done.stderr.lower()
    assert os.listdir(folder) == []
