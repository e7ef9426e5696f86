"""A conversion that was interrupted goes on to the same bytes."""

from __future__ import annotations

import gc
from pathlib import Path

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.families.weight_only import products
from onnxpress.optimizer.families.weight_only.results import Files

WIDTH = 48


def network(path, seed=0):
    b = graphs.Builder(18)
    h = b.input("x", [None, WIDTH])
    for index in range(4):
        weight = b.constant(f"W{index}", graphs.weight(WIDTH, WIDTH, seed + index))
        h = b.op("Tanh", b.op("MatMul", h, weight, name=f"layer{index}"))
    b.output(h, [None, WIDTH])
    ir.save(b.model(), path)
    return path


def rows(seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((40, WIDTH)).astype(np.float32)} for _ in range(3)]


def convert(path, folder, data=None, progress=lambda *_: None, **settings):
    recipe = Recipe(**{"scheme": "int3", **settings})
    calibration = Calibration(data or rows(), checkpoint=folder)
    return Path(optimize(path, recipe, path.with_name("out.onnx"), calibration=calibration, progress=progress).output)


class InterruptionError(Exception):
    """Stands for a process that ends."""


def interrupt(stage, done, _total):
    if stage == "round" and done == 2:
        raise InterruptionError


@pytest.fixture
def interrupted(tmp_path):
    """A model, and the folder that its interrupted conversion left."""
    path, folder = network(tmp_path / "m.onnx"), tmp_path / "kept"
    with pytest.raises(InterruptionError):
        convert(path, folder, progress=interrupt)
    assert len(list(folder.glob("*.npz"))) == 2
    return path, folder


def test_it_goes_on_to_the_same_bytes(interrupted, monkeypatch):
    path, folder = interrupted
    observed = []
    sums = products.MomentSums
    monkeypatch.setattr(products, "MomentSums", lambda node, **other: observed.append(node.name) or sums(node, **other))
    went_on = convert(path, folder).read_bytes()
    assert observed == ["layer2", "layer3"]
    assert convert(path, None).read_bytes() == went_on
    observed.clear()
    assert convert(path, folder).read_bytes() == went_on
    assert not observed


@pytest.mark.parametrize("other", ["data", "weights", "scheme", "method", "block"])
def test_of_another_run(interrupted, other):
    path, folder = interrupted
    settings = {"scheme": {"scheme": "int4"}, "method": {"method": "search"}, "block": {"block_size": 16}}
    if other == "weights":
        network(path, seed=9)
    with pytest.raises(UsageError, match="another model, other settings or other data"):
        convert(path, folder, data=rows(2) if other == "data" else None, **settings.get(other, {}))


def test_folders_that_are_none(interrupted, tmp_path):
    path, folder = interrupted
    (folder / "weight0.npz").write_bytes(b"PK no archive")
    with pytest.raises(OnnxpressError, match=r"weight0.npz: holds nothing that a run left"):
        convert(path, folder)
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not empty"):
        convert(path, full)
    with pytest.raises(UsageError, match="not empty"):
        convert(path, full / "letter.txt")
    with pytest.raises(OnnxpressError, match="cannot be written to"):
        convert(path, full / "letter.txt" / "below")


def test_schemes_that_do_not_go_on(tmp_path):
    with pytest.raises(UsageError, match="checkpoint: scheme int8-static does not go on"):
        convert(network(tmp_path / "m.onnx"), tmp_path / "kept", scheme="int8-static")


def test_the_search_for_a_recipe_goes_on_too(tmp_path):
    path, folder = network(tmp_path / "m.onnx"), tmp_path / "kept"
    with pytest.raises(InterruptionError):
        convert(path, folder, progress=interrupt, max_drop=1e-6)
    went_on = convert(path, folder, max_drop=1e-6).read_bytes()
    assert {each.name for each in folder.iterdir()} >= {"tried 1", "tried 2"}
    assert convert(path, None, max_drop=1e-6).read_bytes() == went_on


def test_a_folder_of_its_own_goes_with_its_last_reader(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = Files(None, "run")
    files.keep("one", {"a": 1}, {"b": np.arange(3)})
    assert files.read("one", ["b"])[0] == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1
    del files
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert not [each for each in recwarn if str(tmp_path) in str(each.message)]
