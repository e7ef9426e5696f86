from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import onnx
import pytest
from onnxpress.models.export import export
from onnxpress.optimizer.errors import OnnxpressError, UsageError


@pytest.fixture
def optimum(monkeypatch):
    """A stand-in for optimum that records its calls and runs `behave`."""
    stand_in = SimpleNamespace(calls=[], behave=lambda folder: (folder / "model.onnx").write_bytes(b"x"))

    def main_export(model, output, task, opset):
        from pathlib import Path

        stand_in.calls.append((model, task, opset))
        stand_in.behave(Path(output))

    for name in ("optimum", "optimum.exporters"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", SimpleNamespace(main_export=main_export))
    return stand_in


def test_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(OnnxpressError, match=r'pip install "onnxpress\[export\]"'):
        export("some/model", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_hub_model_goes_to_a_folder_of_its_name(tmp_path, monkeypatch, optimum):
    monkeypatch.chdir(tmp_path)
    folder = export("some/model", task="fill-mask", opset=17)
    assert folder.resolve() == tmp_path / "model-onnx"
    assert [p.name for p in tmp_path.rglob("*")] == ["model-onnx", "model.onnx"]
    assert optimum.calls == [("some/model", "fill-mask", 17)]


def test_failed_export_leaves_nothing(tmp_path, optimum):
    def fail(folder):
        (folder / "model.onnx").write_bytes(b"half")
        raise ValueError("no such architecture\nand more")

    optimum.behave = fail
    with pytest.raises(OnnxpressError, match=r"^some/model: optimum cannot .*: no such architecture$"):
        export("some/model", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_holds_something_is_kept(tmp_path, optimum):
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="is there already; name another folder"):
        export("some/model", tmp_path)
    with pytest.raises(UsageError, match="does not exist; create it first"):
        export("some/model", tmp_path / "absent" / "out")
    assert optimum.calls == []


def test_export_of_a_saved_model(tmp_path):
    """The task comes from the class that config.json names."""
    pytest.importorskip("optimum.exporters.onnx")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    source = tmp_path / "bert"
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **sizes)).save_pretrained(source)
    folder = export(str(source), tmp_path / "out", opset=17)
    model = onnx.load(folder / "model.onnx")
    assert model.opset_import[0].version == 17
    assert model.graph.output[0].name == "last_hidden_state"

    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(UsageError, match="does not tell the task; name it with --task"):
        export(str(source), tmp_path / "other")
