"""The library from C and from Node, without Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnxpress import custom_ops, ep, models
from onnxpress.optimizer import Recipe, optimize
from sessions import options

NATIVE = Path(__file__).parent.parent / "native"
TOKENS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "minilm.int4.onnx"
    optimize(models.path("minilm"), Recipe(scheme="int4"), path)
    return path


@pytest.fixture(scope="module")
def expected(model):
    stock, ours = options(intra_op_num_threads=2), options(intra_op_num_threads=2)
    ep.append(ours)
    feeds = {
        "input_ids": 1000 + np.arange(TOKENS, dtype=np.int64)[None],
        "attention_mask": np.ones((1, TOKENS), np.int64),
        "token_type_ids": np.zeros((1, TOKENS), np.int64),
    }
    got, other = (ort.InferenceSession(model, each).run(["last_hidden_state"], feeds)[0] for each in (ours, stock))
    assert (got != other).any()  # so that equal bits below mean our kernels
    return got


@pytest.mark.real
@pytest.mark.unsanitized  # the program is not
def test_c(model, expected, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program, output = tmp_path / "encode", tmp_path / "output"
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", "-O1", NATIVE / "encode.c", "-ldl", "-o", program], check=True
    )
    (runtime,) = Path(ort.__file__).parent.glob("capi/libonnxruntime.so*")
    call = [program, runtime, custom_ops.library_path(), model, str(TOKENS), output]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ort.__version__ in done.stdout
    np.testing.assert_array_equal(np.fromfile(output, np.float32).reshape(expected.shape), expected)

    call[2] = runtime  # a library, but no execution provider
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("encode: ")


@pytest.mark.real
@pytest.mark.unsanitized  # node is not
def test_node(model, expected, tmp_path):
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("no node or npm")
    install = ["npm", "install", "--ignore-scripts", "--no-fund", "--no-audit", "onnxruntime-node", "koffi"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, check=False).returncode != 0:
        pytest.skip("npm cannot install onnxruntime-node and koffi")
    results = []
    for library in (custom_ops.library_path(), "-"):
        output = tmp_path / "output"
        call = ["node", NATIVE / "encode.mjs", library, model, str(TOKENS), output]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results.append(np.fromfile(output, np.float32).reshape(expected.shape))
    ours, stock = results
    assert (ours != stock).any()
    # Its ONNX Runtime may be another version, whose own nodes round in other ways; int8 activations multiply that.
    for result in results:
        assert np.linalg.norm(result - expected) < 0.05 * np.linalg.norm(expected)
