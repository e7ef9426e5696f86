"""The library from C and from Node, without Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoder_layers import Decoder
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


def compiled(name, folder):
    """The program of a file in C, and ONNX Runtime's shared object, which it loads."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = ["-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run([compiler, *flags, NATIVE / f"{name}.c", "-ldl", "-o", folder / name], check=True)
    (runtime,) = Path(ort.__file__).parent.glob("capi/libonnxruntime.so*")
    return folder / name, runtime


@pytest.mark.real
@pytest.mark.unsanitized  # the program is not
def test_c(model, expected, tmp_path):
    program, runtime = compiled("encode", tmp_path)
    output = tmp_path / "output"
    call = [program, runtime, custom_ops.library_path(), model, str(TOKENS), output]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ort.__version__ in done.stdout
    np.testing.assert_array_equal(np.fromfile(output, np.float32).reshape(expected.shape), expected)

    call[2] = runtime  # a library, but no execution provider
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("encode: ")


def continued(path, tokens, count):
    """What a session of ours says after some tokens, each time the likeliest."""
    ours = options()
    ep.append(ours)
    session, said = ort.InferenceSession(path, ours), list(tokens)
    sizes = {value.name: value.shape for value in session.get_inputs() if len(value.shape) == 4}
    past = {name: np.zeros((1, heads, 0, width), np.float32) for name, (_, heads, _, width) in sizes.items()}
    new = said
    while len(said) < len(tokens) + count:
        fed = {
            "input_ids": np.int64([new]),
            "attention_mask": np.ones((1, len(said)), np.int64),
            "position_ids": np.arange(len(said) - len(new), len(said))[None],
        }
        logits, *present = session.run(None, {**fed, **past})
        past = dict(zip(past, present, strict=True))
        new = [int(logits[0, -1].argmax())]
        said += new
    return said[len(tokens) :]


@pytest.mark.unsanitized  # the program is not
@pytest.mark.parametrize("last_logits", [False, True])
def test_a_decoder_in_c(tmp_path, last_logits):
    program, runtime = compiled("generate", tmp_path)
    decoder = Decoder(layers=2)
    for value in (*decoder.graph.inputs, *decoder.graph.outputs):
        value.name = value.name.replace("past.", "past_key_values.")
    decoder.graph.outputs[0].name = "logits"
    ir.save(decoder.made, tmp_path / "model.onnx")
    made = tmp_path / "model.int4.onnx"
    optimize(tmp_path / "model.onnx", Recipe(scheme="int4", last_logits=last_logits), made)

    call = [program, runtime, custom_ops.library_path(), made, "2", "2", "16", "12", "3", "14", "15"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [int(line) for line in done.stdout.split()]
    assert said == continued(made, [3, 14, 15], 12)
    assert len(set(said)) > 3

    call[4] = "3"  # layers, of which it has two
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("generate: ")


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
