"""Masks out of models and back, from Python and from the command line."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import call
from graphs import Builder, weight
from onnxpress.optimizer import OnnxpressError, Recipe, UsageError, optimize
from onnxpress.optimizer.families.sparse.masks import export_mask
from onnxpress.optimizer.planning.block_weights import sparsity_of


def model():
    b = Builder()
    y = b.op("MatMul", b.input("x", ["m", 30]), b.constant("a/W", weight(30, 50)), name="a")
    turned = b.constant("b/W", np.ascontiguousarray(weight(50, 64, 1).T))
    b.output(b.op("Gemm", y, turned, b.constant("c", weight(1, 64, 2)[0]), transB=1, name="b"), ["m", 64])
    return b.model()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.onnx"
    ir.save(model(), file)
    return file


def arrays(path):
    with np.load(path) as archive:
        return dict(archive)


def test_a_pattern_goes_to_a_trainer_and_back(path, tmp_path):
    """Two models from the same masks, one of them with weights that a trainer changed since, have the same pattern."""
    optimize(path, Recipe(scheme="sparse", sparsity=0.7, dtype="float32", block="4x1"), tmp_path / "sparse.onnx")
    done = call("export-mask", tmp_path / "sparse.onnx", "-o", tmp_path / "masks.npz")
    assert done.returncode == 0, done.stderr
    assert "2 masks" in done.stdout
    masks = arrays(tmp_path / "masks.npz")
    assert {name: mask.shape for name, mask in masks.items()} == {"a/W": (30, 50), "b/W": (64, 50)}
    assert all(mask.dtype == np.bool_ for mask in masks.values())
    trained = model()
    for name, mask in masks.items():
        value = trained.graph.initializers[name]
        value.const_value = ir.tensor(
            np.where(mask, 2 * value.const_value.numpy() + 1, 5).astype(np.float32), name=name
        )
    ir.save(trained, tmp_path / "trained.onnx")
    done = call("optimize", tmp_path / "trained.onnx", "--scheme", "sparse", "--dtype", "float32", "--block", "4x1",
                "--mask", tmp_path / "masks.npz", "-o", tmp_path / "back.onnx")  # fmt: skip
    assert done.returncode == 0, done.stderr
    export_mask(tmp_path / "back.onnx", tmp_path / "again.npz")
    again = arrays(tmp_path / "again.npz")
    for name, mask in masks.items():
        np.testing.assert_array_equal(again[name], mask)
    before, after = (onnx.load(tmp_path / f"{name}.onnx") for name in ("sparse", "back"))
    for name in ("a/W_values", "b/W_values"):
        first, second = (
            next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)
            for proto in (before, after)
        )
        np.testing.assert_array_equal(second, np.where(first != 0, 2 * first + 1, 0))


def test_a_block_that_is_kept_is_kept_whole(tmp_path):
    """Whatever of it int8 rounds to zero."""
    b = Builder()
    W = weight(64, 64)
    W[:4, :4] = np.array([[5, 1e-6, 1e-6, 1e-6]] * 4)
    b.output(b.op("MatMul", b.input("x", ["m", 64]), b.constant("W", W), name="a"), ["m", 64])
    ir.save(b.model(), tmp_path / "model.onnx")
    report = optimize(tmp_path / "model.onnx", Recipe(scheme="sparse", sparsity=0.5), tmp_path / "sparse.onnx")
    masks = export_mask(tmp_path / "sparse.onnx", tmp_path / "masks.npz")
    mask = arrays(tmp_path / "masks.npz")["W"]
    blocks = mask.reshape(16, 4, 16, 4)
    assert (blocks.any(axis=(1, 3)) == blocks.all(axis=(1, 3))).all()
    assert blocks.all(axis=(1, 3))[0, 0]
    assert masks.sparsity["W"] == pytest.approx(report.details["layers"][0]["sparsity"]) == 0.5


def test_the_report_says_what_masks_did(path, tmp_path, capsys):
    from onnxpress.optimizer.commands.terminal import console

    kept = np.kron(np.eye(16, 26), np.ones((2, 2)))[:30, :50] > 0
    np.savez(tmp_path / "masks.npz", **{"a/W": kept})
    recipe = Recipe(scheme="sparse", block="2x2", mask=str(tmp_path / "masks.npz"))
    report = optimize(path, recipe, tmp_path / "o.onnx")
    report.print(console())
    shown = " ".join(capsys.readouterr().out.split())
    assert f"masks.npz, which set {(~kept).sum():,} weights to zero that were not" in shown
    assert "change of what is kept 0.0 %" in shown


def test_masks_of_a_float_model(tmp_path):
    pruned = model()
    W = pruned.graph.initializers["a/W"]
    W.const_value = ir.tensor(np.where(np.arange(50) % 2, W.const_value.numpy(), 0), name="a/W")
    ir.save(pruned, tmp_path / "pruned.onnx")
    report = export_mask(tmp_path / "pruned.onnx", tmp_path / "masks.npz")
    assert report.sparsity == {"a/W": 0.5}
    assert json.loads(report.to_json())["sparsity"] == {"a/W": 0.5}
    assert (arrays(tmp_path / "masks.npz")["a/W"] == (np.arange(50) % 2 == 1)).all()


def test_no_zeros_no_masks(path, tmp_path):
    done = call("export-mask", path, "-o", tmp_path / "masks.npz")
    assert done.returncode == 1
    assert "holds zeros" in done.stderr
    assert not (tmp_path / "masks.npz").exists()


@pytest.mark.parametrize("scheme", ["int4", "int8-dynamic", "fp8"])
def test_codes_have_no_masks(scheme, path, tmp_path):
    optimize(path, Recipe(scheme=scheme), tmp_path / "low.onnx")
    with pytest.raises(OnnxpressError, match=r"already quantized, as node .* shows.* of the float model"):
        export_mask(tmp_path / "low.onnx", tmp_path / "masks.npz")
    assert not (tmp_path / "masks.npz").exists()


def test_what_is_compiled_has_no_masks(tmp_path):
    b = Builder()
    b.output(b.op("EPContext", b.input("x", ["m", 64]), domain="com.microsoft", name="packed"), ["m", 64])
    ir.save(b.model(), tmp_path / "m.ctx.onnx")
    with pytest.raises(OnnxpressError, match=r"already compiled, as node 'packed' .* shows"):
        export_mask(tmp_path / "m.ctx.onnx", tmp_path / "masks.npz")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"gone": np.ones((3, 3), bool)}, "no initializer 'gone'"),
        ({"a/W": np.ones((50, 30), bool)}, "has shape [50, 30], the weight [30, 50]"),
        ({"a/W": np.full((30, 50), 0.5)}, "other values than true and false"),
        ({"a/W": np.full((30, 50), np.nan)}, "other values than true and false"),
        ({}, "holds no masks"),
    ],
)
def test_masks_that_do_not_fit(path, tmp_path, masks, message):
    np.savez(tmp_path / "masks.npz", **masks)
    with pytest.raises(UsageError) as error:
        optimize(path, Recipe(scheme="sparse", mask=str(tmp_path / "masks.npz")), tmp_path / "o.onnx")
    assert message in str(error.value)
    assert not (tmp_path / "o.onnx").exists()


def test_files_that_are_no_masks(path, tmp_path):
    (tmp_path / "text.npz").write_text("no")
    np.save(tmp_path / "one.npy", np.ones(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"a/W": np.array([{}], object)})
    for name in ("text.npz", "one.npy", "pickled.npz", "gone.npz"):
        with pytest.raises(OnnxpressError, match=name):
            optimize(path, Recipe(scheme="sparse", mask=str(tmp_path / name)), tmp_path / "o.onnx")


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.inputs[2].const_value.numpy().__setitem__(0, 99),
        lambda node: node.inputs[3].const_value.numpy().__setitem__(-1, 999),
        lambda node: node.attributes.__setitem__("K", ir.AttrInt64("K", 1 << 60)),
        lambda node: node.attributes.__setitem__("block_k", ir.AttrInt64("block_k", 0)),
        lambda node: node.attributes.__setitem__("N", ir.AttrInt64("N", -4)),
    ],
)
def test_damaged_models(path, tmp_path, change):
    optimize(path, Recipe(scheme="sparse"), tmp_path / "sparse.onnx")
    damaged = ir.load(tmp_path / "sparse.onnx")
    node = next(node for node in damaged.graph if node.op_type == "BlockSparseMatMul")
    for value in node.inputs[1:4]:
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    change(node)
    ir.save(damaged, tmp_path / "sparse.onnx")
    with pytest.raises(OnnxpressError, match="damaged"):
        export_mask(tmp_path / "sparse.onnx", tmp_path / "masks.npz")
    with pytest.raises(OnnxpressError, match="damaged"):
        sparsity_of(node)
