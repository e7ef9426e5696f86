"""Scheme sparse on a real encoder."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress import custom_ops, models
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.compare import compare
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.families.sparse.masks import export_mask
from onnxpress.optimizer.planning.block_weights import sparsity_of
from sessions import options

pytestmark = pytest.mark.real


def converted(path, samples=None, **values):
    given = Calibration(samples=samples) if samples else None
    return optimize("minilm", Recipe(scheme="sparse", **values), path, calibration=given)


def feeds(batch=3, sequence=24):
    rng = np.random.default_rng(1)
    ids = rng.integers(1000, 20000, (batch, sequence))
    mask = (np.arange(sequence) < np.array([[sequence], [sequence // 2], [3]])).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.mark.skipif(
    ort.__version__.startswith("1.23."), reason="ONNX Runtime 1.23 takes one overload of a function for all"
)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_with_and_without_our_library_it_means_the_same(dtype, tmp_path):
    report = converted(tmp_path / "sparse.onnx", sparsity=0.5, dtype=dtype, criterion="magnitude")
    assert report.rewritten == {"MatMul": 36}
    assert all(what.startswith("Gather: ") for what in report.left)
    onnx.checker.check_model(tmp_path / "sparse.onnx", full_check=True)
    ours = options()
    custom_ops.register(ours)
    results = [ort.InferenceSession(tmp_path / "sparse.onnx", each).run(None, feeds())[0] for each in (options(), ours)]
    real = feeds()["attention_mask"].astype(bool)
    np.testing.assert_allclose(results[0][real], results[1][real], atol=2e-2 if dtype == "int8" else 1e-4)


def test_nothing_removed_is_the_model_itself(tmp_path):
    """Only the fusions remain, which ONNX Runtime makes otherwise."""
    converted(tmp_path / "sparse.onnx", sparsity=0.0, dtype="float32", criterion="magnitude")
    want = ort.InferenceSession(models.path("minilm"), options()).run(None, feeds())[0]
    ours = options()
    custom_ops.register(ours)
    got = ort.InferenceSession(tmp_path / "sparse.onnx", ours).run(None, feeds())[0]
    real = feeds()["attention_mask"].astype(bool)
    np.testing.assert_allclose(got[real], want[real], atol=2e-4)


def embeddings(path):
    """Of texts that no calibration here saw, of length 1."""
    ours = options()
    custom_ops.register(ours)
    session = ort.InferenceSession(path, ours)
    means = np.array([session.run(None, feed)[0][0].mean(axis=0) for feed in [*models.calibration("minilm", 24)][8:]])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_second_order_keeps_what_magnitude_loses(tmp_path):
    """Few samples, large blocks and six products, for time's sake."""
    some = {"sparsity": 0.8, "block": "4x16", "include": ("*/layer.[03]/attention/self/*",)}
    want = embeddings(models.path("minilm"))
    lost = {}
    for criterion, samples in (("magnitude", None), ("obs", 8)):
        report = converted(tmp_path / f"{criterion}.onnx", samples, criterion=criterion, **some)
        assert report.details["sparsity"] == pytest.approx(0.8, abs=1e-3)
        lost[criterion] = 1 - (embeddings(tmp_path / f"{criterion}.onnx") * want).sum(axis=1).mean()
    assert 0 < lost["obs"] < min(0.1, 0.75 * lost["magnitude"])
    tensors = compare("minilm", tmp_path / "obs.onnx").tensors
    assert sum(tensor.sparsity is not None and tensor.sparsity > 0.3 for tensor in tensors) >= 4


def test_pruned_by_a_trainer_it_is_converted_exactly(tmp_path):
    model = ir.load(models.path("minilm"))
    for node in model.graph:
        if "intermediate/dense/MatMul" in (node.name or ""):
            weight = node.inputs[1].const_value.numpy()
            keep = np.kron(np.random.default_rng(0).random((96, 1536)) < 0.3, np.ones((4, 1))) > 0
            node.inputs[1].const_value = ir.tensor(np.where(keep, weight, 0), name=node.inputs[1].name)
    ir.save(model, tmp_path / "pruned.onnx")
    report = optimize(
        tmp_path / "pruned.onnx", Recipe(scheme="sparse", prune=False, dtype="float32"), tmp_path / "sparse.onnx"
    )
    assert report.rewritten == {"MatMul": 6}
    assert report.details["block"] == "4x1"
    products = [what for what in report.left if not what.startswith("Gather: ")]
    assert products == ["MatMul: 0 % of its blocks of 4x1 are zero: a dense product is as fast"]
    wanted = ort.InferenceSession(tmp_path / "pruned.onnx", options()).run(None, feeds())[0]
    ours = options()
    custom_ops.register(ours)
    got = ort.InferenceSession(tmp_path / "sparse.onnx", ours).run(None, feeds())[0]
    real = feeds()["attention_mask"].astype(bool)
    np.testing.assert_allclose(got[real], wanted[real], atol=2e-4)
    first, second = (export_mask(tmp_path / f"{name}.onnx", tmp_path / f"{name}.npz") for name in ("pruned", "sparse"))
    assert first.sparsity == second.sparsity
    shares = [share for node in ir.load(tmp_path / "sparse.onnx").graph if (share := sparsity_of(node))]
    assert len(shares) == 6
