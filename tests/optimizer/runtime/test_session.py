"""What is told of models that ONNX Runtime refuses."""

from __future__ import annotations

import graphs
import onnx
import pytest
from onnxpress.optimizer.conversion.compile import compile_context
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.runtime.session import open_session, session_options
from onnxpress.optimizer.settings.recipe import Recipe

COMPILED = "is compiled for our execution provider, on which alone it runs: give --ep"


@pytest.fixture
def compiled(tmp_path):
    optimize(graphs.matmul_model(), Recipe(), tmp_path / "a.onnx")
    compile_context(tmp_path / "a.onnx", tmp_path / "c.onnx")
    return tmp_path / "c.onnx"


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_compiled_model_is_told_by_its_nodes(compiled, monkeypatch, as_bytes):
    """Whatever a version of ONNX Runtime says."""
    import onnxruntime as ort

    def refuse(*_given):
        raise RuntimeError("no")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    source = compiled.read_bytes() if as_bytes else compiled
    with pytest.raises(OnnxpressError, match=COMPILED):
        open_session(source, session_options())


def test_a_compiled_model_is_told_by_this_version(compiled):
    with pytest.raises(OnnxpressError, match=f"c.onnx: {COMPILED}"):
        open_session(compiled, session_options())


@pytest.mark.parametrize("attribute", ["domain", "source"])
def test_a_node_of_another_provider_is_not_ours(compiled, attribute):
    proto = onnx.load(compiled, load_external_data=False)
    for node in proto.graph.node:
        if attribute == "domain":
            node.domain = "com.example"
        else:
            next(each for each in node.attribute if each.name == "source").s = b"OtherExecutionProvider"
    if attribute == "domain":
        proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(proto, compiled)
    with pytest.raises(OnnxpressError, match=r"c\.onnx: ONNX Runtime cannot load the model: "):
        open_session(compiled, session_options())


@pytest.mark.parametrize("source", [b"", b"no model"])
def test_what_is_no_model(source):
    with pytest.raises(OnnxpressError, match="m: ONNX Runtime cannot load the model: "):
        open_session(source, session_options(), "m")
