"""Layers that scheme sparse treats in ways of their own: by overrides, by speed, by the zeros that are there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from graphs import Builder, weight
from onnxpress.optimizer.families.sparse import convert as sparse
from onnxpress.optimizer.runtime.sparse_cost import SparseCost
from onnxpress.optimizer.settings.recipe import Override
from pruning import (
    K,
    N,
    batch,
    converted,
    dense,
    expected,
    one_product,
    pruned,
    run,
    samples,
    sparse_nodes,
    three_layers,
)


def test_overrides_by_layer():
    report = converted(
        three_layers(),
        sparsity=0.75,
        overrides=(Override(match="layer1", sparsity=0.5), Override("layer2", keep_float=True)),
    )
    assert {layer["node"]: layer["sparsity"] for layer in report.details["layers"]} == {"layer0": 0.75, "layer1": 0.5}
    assert list(report.left) == ["MatMul: kept in float by an override of the recipe"]


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_layers_that_are_faster_dense_stay_whole(dtype, monkeypatch):
    """The first is fastest sparse, the second as dense int8 where there is that, the third as float32."""
    whole = dtype == "float32"
    costs = [SparseCost(1, 9, None if whole else 2), SparseCost(3, 2 if whole else 9, None if whole else 2),
             SparseCost(3, 1, None if whole else 2)]  # fmt: skip
    seen = []

    def measure(found, block, rows):
        seen.append((found.dtype, found.shape, round(1 - (found != 0).mean(), 2), str(block), rows))
        return costs[len(seen) - 1]

    monkeypatch.setattr(sparse, "measure", measure)
    model = three_layers()
    report = converted(model, sparsity=0.75, dtype=dtype, allocation="uniform", expected_rows=7)
    assert seen == [(np.dtype(dtype), (64, 64), 0.75, "4x4", 7)] * 3
    assert list(sparse_nodes(model)) == ["layer0"]
    second = "float32" if whole else "int8"
    assert list(report.left) == [
        f"MatMul: dense {second} is as fast with 7 rows: 2000000 us against 3000000",
        "MatMul: dense float32 is as fast with 7 rows: 1000000 us against 3000000",
    ]
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulInteger") == (0 if whole else 1)
    assert kinds.count("MatMul") == (2 if whole else 1)
    x = batch(columns=64)
    want = expected(sparse_nodes(model)["layer0"], x) @ weight(64, 64, 1) @ weight(64, 64, 2)
    got = run(model, {"x": x})[0]
    assert np.square(got - want).sum() < 1e-3 * np.square(want).sum()


def test_expected_rows_are_measured():
    """Large enough a product of so few blocks is faster than a dense one on any machine."""
    b = Builder()
    b.output(b.op("MatMul", b.input("x", ["m", 1024]), b.constant("W", weight(1024, 1024)), name="large"), ["m", 1024])
    model = b.model()
    converted(model, sparsity=0.99, expected_rows=32)
    assert list(sparse_nodes(model)) == ["large"]


@pytest.mark.parametrize("block", [(4, 4), (4, 1), (1, 4), (1, 16)])
def test_sparse_weights_are_converted_exactly_by_the_block_found(block):
    W = pruned(block)
    model = one_product(W)
    report = converted(model, prune=False, dtype="float32")
    assert report.details["block"] == f"{block[0]}x{block[1]}"
    np.testing.assert_array_equal(dense(sparse_nodes(model)["product"]), W)
    assert report.details["layers"][0]["error"] == 0


def test_a_layer_that_is_sparse_enough_is_left_as_it_is():
    """Also where others are pruned by second order."""
    W = pruned(share=0.8, shape=(64, 64))
    b = Builder()
    y = b.op("MatMul", b.input("x", ["m", 64]), b.constant("W", W), name="ready")
    b.output(b.op("MatMul", y, b.constant("V", weight(64, 64)), name="whole"), ["m", 64])
    model = b.model()
    converted(model, samples(64), sparsity=0.7, dtype="float32")
    np.testing.assert_array_equal(dense(sparse_nodes(model)["ready"]), W)
    assert (dense(sparse_nodes(model)["whole"]) == 0).mean() == pytest.approx(0.7, abs=0.01)


def test_the_share_that_goes_where_nobody_says():
    """Magnitudes say less than data does."""
    assert converted(three_layers()).details["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert converted(three_layers(), samples(64)).details["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert converted(three_layers(), samples(64), criterion="wanda").details["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert converted(three_layers(), sparsity=0.8).details["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_a_layer_that_loses_nearly_all_is_told():
    assert converted(three_layers(), sparsity=0.9).warnings == ()
    (warning,) = converted(three_layers(), sparsity=0.99).warnings
    assert re.match(r"layer0 loses 9[89]\.\d % of its weights, and 2 more lose nearly all of theirs: ", warning)
    assert warning.endswith(
        ": judge the model by a task, or remove less, or choose by data (calibration), or remove the same share of "
        "each layer (allocation uniform)"
    )


def test_a_mask_that_leaves_next_to_nothing_is_told(tmp_path):
    mask = np.zeros((K, N), np.bool_)
    mask[0, 0] = True
    np.savez(tmp_path / "m.npz", W=mask)
    (warning,) = converted(one_product(weight(K, N)), mask=str(tmp_path / "m.npz")).warnings
    assert warning == "product loses 99.9 % of its weights: judge the model by a task, or remove less"


@pytest.mark.parametrize(("settings", "block"), [
    ({"sparsity": 0.05}, "4x1"), ({"sparsity": 0.1}, "4x4"), ({}, "4x4"), ({"sparsity": 0.05, "block": "1x4"}, "1x4"),
])  # fmt: skip
def test_where_little_goes_blocks_are_fine(settings, block):
    report = converted(three_layers(), criterion="magnitude", **settings)
    assert list(report.schemes) == [f"sparse int8 in blocks of {block}"]


def test_few_blocks_change_little():
    """Of random weights the smallest blocks of 4x4 are far from zero."""
    errors = {}
    for block in (None, "4x4"):
        model = three_layers()
        (wanted,) = run(model, {"x": batch(columns=64)})
        converted(model, sparsity=0.01, criterion="magnitude", block=block, dtype="float32")
        (found,) = run(model, {"x": batch(columns=64)})
        errors[block] = np.linalg.norm(found - wanted)
    assert errors[None] < errors["4x4"], errors
