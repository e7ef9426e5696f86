"""Sessions with MatMulNBits on the execution provider: many at once, in threads, on each instruction set."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from nbits_models import make, rows
from onnxpress import custom_ops, ep
from onnxpress.custom_ops import _kernels
from sessions import options


@pytest.mark.parametrize("first", ["ep", "ops"])
def test_both_orders_with_the_custom_ops(first):
    chosen = options()
    steps = {"ep": lambda: ep.append(chosen), "ops": lambda: custom_ops.register(chosen)}
    steps.pop(first)()
    (rest,) = steps.values()
    rest()
    model, W, *_ = make(bits=3, domain="onnxpress")
    A = rows()
    (got,) = ort.InferenceSession(model, chosen).run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


def test_registering_twice_is_harmless():
    ep.register()
    ep.register()
    assert len([device for device in ort.get_ep_devices() if device.ep_name == ep.NAME]) == 1


def test_many_threads_and_sessions_at_once():
    model, *_ = make(level=4, zero_points="packed")
    alone = ep.session(model, options(intra_op_num_threads=1)).run(None, {"A": rows(70)})[0]
    shared = ep.session(model, options(intra_op_num_threads=2))

    def work(seed):
        own = ep.session(model, options(intra_op_num_threads=1 + seed % 3))
        for session in (shared, own):
            np.testing.assert_array_equal(session.run(None, {"A": rows(70)})[0], alone)
        del own
        gc.collect()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(24)))


def test_parallel_execution_mode():
    model, W, *_ = make()
    A = rows()
    chosen = options(execution_mode=ort.ExecutionMode.ORT_PARALLEL, inter_op_num_threads=2)
    (got,) = ep.session(model, chosen).run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


@pytest.mark.unsanitized
def test_equal_weights_of_many_sessions_are_held_once(tmp_path):
    done = script(
        f"path = {str(tmp_path / 'model.onnx')!r}"
        + """
def held():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024
b = graphs.Builder()
codes = np.random.default_rng(0).integers(0, 256, (8192, 128, 16), dtype=np.uint8)  # 16 MiB
inputs = b.input("A", ["m", 4096]), b.constant("B", codes), b.constant("scales", np.ones((8192, 128), np.float32))
y = b.op("MatMulNBits", *inputs, domain="com.microsoft", K=4096, N=8192, bits=4, block_size=32)
b.output(y, ["m", 8192])
b.graph.opset_imports["com.microsoft"] = 1
ir.save(b.model(10), path, external_data="data")  # mapped, so that what a session holds is what it packed
sessions, before = [], held()
for _ in range(4):
    sessions.append(ep.session(path, options()))
print(held() - before)
A = np.ones((1, 4096), np.float32)
assert all((s.run(None, {"A": A})[0] == sessions[0].run(None, {"A": A})[0]).all() for s in sessions)
"""
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3 * 20  # MiB: one packed copy takes 20, and four would take 80


def script(code):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    imports = "import graphs, onnx_ir as ir\nfrom test_matmul_nbits_sessions import *"
    prelude = f"import sys; sys.path[:0] = {folders!r}\n{imports}\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", _kernels.all_isas())
def test_instruction_sets(isa, monkeypatch):
    monkeypatch.setenv("ONNXPRESS_ISA", isa)
    model, W, *_ = make(level=4, zero_points="packed")
    if isa not in _kernels.supported_isas():
        with pytest.raises(Exception, match="this CPU lacks these instructions"):
            ep.session(model, options())
        return
    A = rows()
    (got,) = ep.session(model, options()).run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=0.03 * np.abs(A @ W).max())


@pytest.mark.parametrize("isa", _kernels.supported_isas())
def test_instruction_set_of_a_session(isa):
    model, W, *_ = make()
    A = rows()
    (got,) = ep.session(model, options(), isa=isa).run(None, {"A": A})
    np.testing.assert_allclose(got, A @ W, atol=1e-5 * np.abs(A @ W).max())


def test_unregistering_with_a_live_session():
    done = script("""
model, W, *_ = make()
session = ep.session(model, options())
ort.unregister_execution_provider_library(ep.NAME)
A = rows()
np.testing.assert_allclose(session.run(None, {"A": A})[0], A @ W, atol=1e-5 * np.abs(A @ W).max())
del session
gc.collect()
again = ep.session(model, options())
np.testing.assert_allclose(again.run(None, {"A": A})[0], A @ W, atol=1e-5 * np.abs(A @ W).max())
""")
    assert done.returncode == 0, done.stderr
