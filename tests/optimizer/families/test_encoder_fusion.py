"""Encoders are fused by the schemes that round weights alone, once these are rounded, and by `float`."""

from __future__ import annotations

import encoders
import grouped_encoder
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from encoders import Encoder
from grouped_encoder import GroupedEncoder
from onnxpress import ep
from onnxpress.optimizer import Recipe, optimize
from sessions import KNOWS_WHO_RUNS_WHAT, options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def counts(path):
    found: dict[str, int] = {}
    for node in onnx.load(path).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def run(path, fed, level=LEVELS[1]):
    return ort.InferenceSession(str(path), options(graph_optimization_level=level)).run(None, fed)[0]


def saved(encoder, folder):
    ir.save(encoder.model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads(kv_heads, heads_first, tmp_path):
    source = saved(GroupedEncoder(kv_heads, heads_first), tmp_path)
    report = optimize(source, Recipe(scheme="float"), tmp_path / "out.onnx")
    assert report.rewritten == {"Softmax": 1}
    found = counts(tmp_path / "out.onnx")
    assert (found["MultiHeadAttention"], found["RotaryEmbedding"], found["SimplifiedLayerNormalization"]) == (1, 2, 6)
    assert "Softmax" not in found
    assert "Sqrt" not in found
    made = onnx.load(tmp_path / "out.onnx").graph.value_info
    repeated = [value.type.tensor_type.shape.dim[2].dim_value for value in made if value.name.endswith("_repeated")]
    assert set(repeated) <= {grouped_encoder.HEADS * grouped_encoder.SIZE}
    for sizes in ((3, 7), (1, 40)):
        fed = grouped_encoder.feeds(*sizes)
        want, real = run(source, fed), fed["mask"].astype(bool)
        for level in LEVELS:
            np.testing.assert_allclose(run(tmp_path / "out.onnx", fed, level)[real], want[real], atol=2e-5)


def test_beside_dynamic_products(tmp_path):
    source = saved(GroupedEncoder(2), tmp_path)
    report = optimize(source, Recipe(scheme="int8-dynamic"), tmp_path / "out.onnx")
    assert ("attention", "1 fused") in report.rows
    found = counts(tmp_path / "out.onnx")
    assert (found["MultiHeadAttention"], found["SimplifiedLayerNormalization"]) == (1, 6)
    optimize(source, Recipe(scheme="int8-dynamic", fuse=False), tmp_path / "plain.onnx")
    fed = grouped_encoder.feeds()
    real = fed["mask"].astype(bool)
    plain, fused = (run(tmp_path / f"{name}.onnx", fed)[real] for name in ("plain", "out"))
    exact = run(source, fed)[real]
    assert np.linalg.norm(fused - exact) < 1.2 * np.linalg.norm(plain - exact) + 1e-3


@pytest.mark.parametrize("scheme", ["int4", "int3", "fp8"])
def test_weights_are_what_they_are_without(scheme, tmp_path):
    source = saved(GroupedEncoder(2), tmp_path)
    recipe = {"scheme": scheme, "accuracy_level": 0}
    optimize(source, Recipe(fuse=False, **recipe), tmp_path / "plain.onnx")
    report = optimize(source, Recipe(**recipe), tmp_path / "fused.onnx")
    assert ("attention", "1 fused") in report.rows
    assert report.details["attention"] == {"fused": 1, "left": {}}
    assert report.details["norms"] == 6
    assert "MultiHeadAttention" in counts(tmp_path / "fused.onnx")
    assert "Softmax" in counts(tmp_path / "plain.onnx")
    fed = grouped_encoder.feeds()
    real = fed["mask"].astype(bool)
    plain, fused = (ep.session(tmp_path / f"{name}.onnx", options()) for name in ("plain", "fused"))
    if KNOWS_WHO_RUNS_WHAT:
        assert sum("MultiHeadAttention" in name for name in ep.assigned_nodes(fused)[ep.NAME]) == 1
    np.testing.assert_allclose(fused.run(None, fed)[0][real], plain.run(None, fed)[0][real], atol=3e-5)


def test_int4_products_are_merged(tmp_path):
    report = optimize(saved(GroupedEncoder(), tmp_path), Recipe(scheme="int4", block_size=32), tmp_path / "out.onnx")
    assert report.details["merged_products"] == {"made": 2, "of": 5}
    assert counts(tmp_path / "out.onnx")["MatMulNBits"] == 4


@pytest.mark.parametrize("mask", ["added", "where", "none", "relative"])
def test_heads_of_their_own(mask, tmp_path):
    encoder = Encoder(mask, "div", "constant", "once")
    source = saved(encoder, tmp_path)
    report = optimize(source, Recipe(scheme="int4", accuracy_level=0, block_size=16), tmp_path / "fused.onnx")
    assert ("attention", "1 fused") in report.rows
    optimize(source, Recipe(scheme="int4", accuracy_level=0, block_size=16, fuse=False), tmp_path / "plain.onnx")
    fed = encoders.feeds([value.name for value in encoder.model.graph.inputs], 0)
    want = run(tmp_path / "plain.onnx", fed)
    np.testing.assert_allclose(run(tmp_path / "fused.onnx", fed)[:2], want[:2], atol=3e-5)


class RotatedValues(GroupedEncoder):
    def shared(self, x, name):
        return super().shared(self.turned(x) if name == "value" else x, name)


def test_what_is_no_attention_is_left_with_the_reason(tmp_path):
    source = saved(RotatedValues(), tmp_path)
    report = optimize(source, Recipe(scheme="int4", block_size=32), tmp_path / "out.onnx")
    ((name, reason),) = report.passes["FuseHeads"].items()
    assert name == "softmax"
    assert "values are scaled or rotated" in reason
    found = counts(tmp_path / "out.onnx")
    assert found["Softmax"] == 1
    assert found["MatMulNBits"] == 7
    assert "attention" not in report.details


def test_no_fuse_leaves_all_as_it_is(tmp_path):
    report = optimize(saved(GroupedEncoder(), tmp_path), Recipe(scheme="int4", fuse=False), tmp_path / "out.onnx")
    found = counts(tmp_path / "out.onnx")
    assert found["Softmax"] == 1
    assert "SimplifiedLayerNormalization" not in found
    assert "attention" not in report.details
