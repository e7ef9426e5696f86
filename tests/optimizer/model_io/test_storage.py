"""Hostile models in, and nothing lost on the way out."""

from __future__ import annotations

import os

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.compare import compare
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.sources import resolve


@pytest.fixture
def external(tmp_path):
    """A model with external data, as (path, proto without data)."""
    path = tmp_path / "in.onnx"
    ir.save(graphs.matmul_model(256, 128), path, external_data="in.data")
    return path, onnx.load(path, load_external_data=False)


def rewrite(path, proto, **entries):
    """Change entries of the first external tensor; None removes one."""
    (tensor,) = (t for t in proto.graph.initializer if t.external_data)
    kept = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"hello, this is no model", "not an ONNX model"),
        (b"\x08\x08", "it has no graph"),
    ],
)
def test_not_a_model(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OnnxpressError, match=message) as error:
        storage.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_every_truncation_is_an_error_or_a_model(tmp_path):
    data = ir.to_proto(graphs.matmul_model(16, 4)).SerializeToString()
    path = tmp_path / "m.onnx"
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        try:
            optimize(path, Recipe(), tmp_path / "out.onnx")
        except OnnxpressError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_unknown_opset(tmp_path):
    proto = ir.to_proto(graphs.matmul_model())
    proto.opset_import[0].version = 999
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxpressError, match="opset 999 is unknown"):
        storage.load(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone.data"}, "is missing"),
        ({"location": "../in.data"}, "not below the model's folder"),
        ({"location": "/etc/passwd"}, "not below the model's folder"),
        ({"offset": "4096000"}, "ends at byte"),
        ({"offset": "-64"}, "offset '-64', not a size"),
        ({"length": "12"}, "needs 131072"),
        ({"length": "-1"}, "length '-1', not a size"),
        ({"offset": "4", "length": None}, "ends at byte"),
    ],
)
def test_external_data_that_is_not_right(external, entries, message):
    rewrite(*external, **entries)
    with pytest.raises(OnnxpressError, match=message) as error:
        storage.load(external[0])
    assert "'W'" in str(error.value)


def test_links_out_of_the_folder(external, tmp_path):
    path, proto = external
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "in.data").rename(outside / "in.data")
    inside = tmp_path / "inside"
    inside.mkdir()
    path = path.rename(inside / "in.onnx")
    (inside / "in.data").symlink_to(outside / "in.data")
    with pytest.raises(OnnxpressError, match="link that leaves"):
        storage.load(path)
    (inside / "folder").symlink_to(outside)
    rewrite(path, proto, location="folder/in.data")
    with pytest.raises(OnnxpressError, match="link that leaves"):
        storage.load(path)


def test_hard_links_of_a_cache(external, tmp_path):
    """A file of several names is read as one of a single name, and what replaces it replaces one name."""
    path, _ = external
    (blobs := tmp_path / "blobs").mkdir()
    for name in (path.name, "in.data"):
        os.link(tmp_path / name, blobs / name)
    before = {file: file.read_bytes() for file in blobs.iterdir()}
    out = tmp_path / "out.onnx"
    optimize(path, Recipe(scheme="int4"), out)
    assert compare(path, out).outputs[0].sqnr > 20
    model = storage.load(path)
    storage.save(model, path)
    optimize(path, Recipe(scheme="int4"), out)
    assert {file: file.read_bytes() for file in blobs.iterdir()} == before


def linked(external, tmp_path):
    """The model and its data as a cache has them: links in one folder to files without their names in another."""
    path, _ = external
    (blobs := tmp_path / "blobs").mkdir()
    (snapshot := tmp_path / "snapshots" / "1f" / "onnx").mkdir(parents=True)
    for name, blob in ((path.name, "a1"), ("in.data", "b2")):
        (tmp_path / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return snapshot / path.name, blobs


def test_weights_of_compiled_nodes_count(tmp_path):
    (tmp_path / "a.weights").write_bytes(bytes(1000))
    b = graphs.Builder()
    x, saved = b.input("x", [4]), {"domain": "com.microsoft", "embed_mode": 0, "source": "SomeProvider"}
    for name in ("a.weights", "a.weights", "missing", "../" * 9 + "etc/hostname", "n" * 5000, "nul\0", ""):
        x = b.op("EPContext", x, ep_cache_context=name, **saved)
    x = b.op("EPContext", x, ep_cache_context="a.weights", **{**saved, "embed_mode": 1})  # bytes, no name
    b.graph.opset_imports["com.microsoft"] = 1
    b.output(x, [4])
    path = tmp_path / "a.onnx"
    ir.save(b.model(), path)
    model = storage.load(path)
    assert storage.size_on_disk(path, model) == path.stat().st_size + 1000
    with pytest.raises(UsageError, match="holds weights of the model"):
        storage.check_apart(tmp_path / "a.weights", path, model)


def test_links_of_a_cache(external, tmp_path):
    want = storage.load(external[0]).graph.initializers["W"].const_value.numpy().copy()
    path, blobs = linked(external, tmp_path)
    before = {file: file.read_bytes() for file in blobs.iterdir()}
    model = storage.load(path)
    np.testing.assert_array_equal(model.graph.initializers["W"].const_value.numpy(), want)
    assert storage.size_on_disk(path, model) == sum(map(len, before.values()))
    with pytest.raises(UsageError, match="holds weights of the model"):
        storage.check_apart(blobs / "b2", path, model)
    out = path.with_name("out.onnx")
    optimize(path, Recipe(scheme="int4"), out)
    result = compare(path, out)
    assert result.outputs[0].sqnr > 20
    storage.save(model, path)  # takes the place of the link
    assert not path.is_symlink()
    assert {file: file.read_bytes() for file in blobs.iterdir()} == before
    np.testing.assert_array_equal(storage.load(path).graph.initializers["W"].const_value.numpy(), want)


def test_a_model_that_is_a_link(external, tmp_path):
    """Its data lie beside the file; those beside the link come first."""
    path, _ = external
    (use := tmp_path / "use").mkdir()
    (use / "model.onnx").symlink_to(path)
    assert storage.load(use / "model.onnx").graph.initializers["W"].const_value.path == str(tmp_path / "in.data")
    (use / "in.data").write_bytes((tmp_path / "in.data").read_bytes())
    assert storage.load(use / "model.onnx").graph.initializers["W"].const_value.path == str(use / "in.data")


@pytest.mark.parametrize("location", ["../blobs/b2", "/etc/passwd", "b2", "other"])
def test_locations_that_no_link_excuses(external, tmp_path, location):
    _, proto = external
    path, blobs = linked(external, tmp_path)
    (path.parent / "other").symlink_to("/etc/passwd")
    rewrite(blobs / "a1", proto, location=location, length=None)
    if location == "b2":  # below the folder that the model's file lies in
        storage.load(path)
        return
    with pytest.raises(OnnxpressError, match=r"is not below the model's folder|link that leaves"):
        storage.load(path)


def test_impossible_shape(external):
    path, proto = external
    (tensor,) = (t for t in proto.graph.initializer if t.external_data)
    tensor.dims[0] = -256
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxpressError, match="impossible shape"):
        storage.load(path)
    tensor.dims[0] = 2**62
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxpressError, match="holds 131072 bytes"):
        storage.load(path)


def test_folders(external, tmp_path):
    assert resolve(tmp_path) == external[0]
    (tmp_path / "other.onnx").write_bytes(b"x")
    with pytest.raises(OnnxpressError, match="several models"):
        resolve(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert resolve(tmp_path) == tmp_path / "model.onnx"
    (tmp_path / "empty").mkdir()
    with pytest.raises(OnnxpressError, match=r"no \.onnx file"):
        resolve(tmp_path / "empty")
    with pytest.raises(OnnxpressError, match="no model of the catalogue"):
        resolve("minilmm")
    with pytest.raises(OnnxpressError, match="no such file"):
        resolve("nowhere/model.onnx")


def test_targets(external, tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        optimize(external[0], Recipe(), tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        optimize(external[0], Recipe(), tmp_path / "nowhere" / "out.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(external, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="not writable"):
        optimize(external[0], Recipe(), locked / "out.onnx")


def outputs(path):
    import onnxruntime as ort

    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    return ort.InferenceSession(str(path)).run(None, {"x": x})[0]


def test_external_data_is_one_file_that_moves_with_the_model(external, tmp_path):
    target = tmp_path / "out.onnx"
    optimize(external[0], Recipe(), target)
    want = outputs(target)
    (data,) = tmp_path.glob("out.onnx.*.data")
    proto = onnx.load(target, load_external_data=False)
    offsets = [int(e.value) for t in proto.graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets
    assert all(offset % 64 == 0 for offset in offsets)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    data.rename(elsewhere / data.name)
    target.rename(elsewhere / "out.onnx")
    np.testing.assert_array_equal(outputs(elsewhere / "out.onnx"), want)


def test_large_tensors_begin_on_pages(tmp_path):
    model = graphs.matmul_model(512, 512)
    storage.save(model, tmp_path / "m.onnx", external=True)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    (offset,) = (int(e.value) for t in proto.graph.initializer for e in t.external_data if e.key == "offset")
    assert offset % 4096 == 0
    np.testing.assert_array_equal(
        storage.load(tmp_path / "m.onnx").graph.initializers["W"].const_value.numpy(), graphs.weight(512, 512)
    )


def test_same_input_same_bytes(external, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        optimize(external[0], Recipe(), tmp_path / name / "out.onnx")
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert files[0] == files[1]


def test_output_over_the_input(external, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    link = tmp_path / "link.onnx"
    os.link(external[0], link)
    for same in (external[0], os.path.relpath(external[0]), link):
        with pytest.raises(UsageError, match="is the model itself"):
            optimize(external[0], Recipe(), same)
    link.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_output_that_is_no_file(external, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is no regular file"):
        optimize(external[0], Recipe(), tmp_path / "pipe")


def test_old_data_goes_with_the_old_model(external, tmp_path):
    target = tmp_path / "out.onnx"
    optimize(external[0], Recipe(), target)
    (old,) = tmp_path.glob("out.onnx.*.data")
    optimize(external[0], Recipe(scheme="int8"), target)
    (new,) = tmp_path.glob("out.onnx.*.data")
    assert new != old


class Stop(BaseException):
    """Stands for an interruption of any kind."""


@pytest.mark.parametrize("which", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [Stop(), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_at_any_point(external, tmp_path, monkeypatch, which, call, error):
    """The target is the old model, whole, and no temporary file is left."""
    target = tmp_path / "out.onnx"
    optimize(external[0], Recipe(), target)
    before = outputs(target)
    real, count = getattr(os, which), 0

    def failing(*arguments, **keywords):
        nonlocal count
        count += 1
        if count == call:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, which, failing)
    expected = OnnxpressError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        optimize(external[0], Recipe(scheme="int8"), target)
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "untouched" in str(caught.value)
    np.testing.assert_array_equal(outputs(target), before)
    assert not list(tmp_path.glob(".*"))


def test_interrupted_while_quantizing(external, tmp_path):
    target = tmp_path / "out.onnx"

    def progress(stage, done, total):
        if stage == "quantize and write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize(external[0], Recipe(), target, progress=progress)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.data", "in.onnx"]


def test_constants_of_functions_leave_files_of_their_own(tmp_path):
    """ONNX Runtime looks for the external data of initializers alone."""
    model = graphs.matmul_model()
    storage.save(model, tmp_path / "a.onnx", external=True)
    tensor = storage.load(tmp_path / "a.onnx").graph.initializers["W"].const_value
    constant = ir.node("Constant", [], attributes={"value": tensor})
    inner = ir.Value(name="i")
    product = ir.node("MatMul", [inner, constant.outputs[0]])
    body = ir.Graph([inner], product.outputs, nodes=[constant, product], opset_imports={"": 18})
    function = ir.Function("here", "Product", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    storage.embed_attributes(model)
    assert isinstance(constant.attributes["value"].value, ir.Tensor)
