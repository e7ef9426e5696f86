"""A converted model computes the same whatever ONNX Runtime folds and fuses, and fails where the float model does."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import rewrites
from onnxpress import ep
from onnxpress.optimizer import Recipe, optimize
from sessions import needs

ALL = ort.GraphOptimizationLevel
LEVELS = (ALL.ORT_DISABLE_ALL, ALL.ORT_ENABLE_BASIC, ALL.ORT_ENABLE_EXTENDED, ALL.ORT_ENABLE_ALL)
RECIPES = [
    *(Recipe(scheme=scheme, scale_type="float16", symmetric=symmetric, accuracy_level=level)
      for scheme in ("int2", "int4", "int8") for symmetric in (True, False) for level in (0, 4)),
    *(Recipe(scheme=scheme, form=form) for scheme in ("bfp8", "bfp4") for form in ("qoperator", "qdq")),
    Recipe(scheme="int4", form="qdq", scale_type="float16"),
]  # fmt: skip


def sessions(path):
    """On ONNX Runtime alone and beside our execution provider, at each level."""
    for level in LEVELS:
        for provider in (False, True):
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            if provider:
                ep.register()
                ep.append(options)
            yield ort.InferenceSession(str(path), options)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=[needs("two bits")] if recipe.scheme == "int2" else []) for recipe in RECIPES],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 5])
def test_scales_behind_a_cast(recipe, rows, tmp_path):
    model = graphs.matmul_model(bias=True, opset=21)
    model.ir_version = 10
    optimize(model, recipe, tmp_path / "out.onnx")
    x = np.random.default_rng(1).standard_normal((rows, 64)).astype(np.float32)
    found = [session.run(None, {"x": x})[0] for session in sessions(tmp_path / "out.onnx")]
    for other in found:
        np.testing.assert_allclose(other, found[-1], atol=0.02 * np.abs(found[-1]).max())


def test_scales_and_codes_are_folded_together(tmp_path):
    """The Identity costs nothing: it is gone where anything is folded, and codes are stored once."""
    optimize(graphs.matmul_model(), Recipe(scheme="int4", scale_type="float16"), tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert {"Identity", "Cast"} <= {node.op_type for node in written.graph.node}
    options = ort.SessionOptions()
    options.graph_optimization_level = ALL.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(tmp_path / "out.onnx"), options)
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["MatMulNBits"]
    optimize(graphs.matmul_model(), Recipe(scheme="int4"), tmp_path / "plain.onnx")
    assert "Identity" not in {node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node}


@pytest.mark.parametrize("opset", [7, 11, 17, 21])
@pytest.mark.parametrize("kind", [ir.DataType.INT64, ir.DataType.INT32])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_ids_beyond_a_table_fail(opset, kind, scheme, tmp_path):
    b = graphs.Builder(opset)
    rows = b.op("Gather", b.constant("E", graphs.weight(300, 64)), b.input("ids", ["n"], kind), name="embed")
    b.output(b.op("MatMul", rows, b.constant("W", graphs.weight(64, 64)), name="product"), ["n", 64])
    model = b.model(8)
    ir.save(model, tmp_path / "m.onnx")
    optimize(model, Recipe(scheme=scheme, embeddings=True, accuracy_level=0), tmp_path / "out.onnx")
    ids = np.array([0, 299, -1, -300, 7], kind.numpy())
    wanted = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"ids": ids})[0]
    for session in sessions(tmp_path / "out.onnx"):
        np.testing.assert_allclose(session.run(None, {"ids": ids})[0], wanted, atol=0.2 * np.abs(wanted).max())
        for beyond in (300, -301, 2**31 - 1):
            with pytest.raises(Exception, match="out of data bounds"):
                session.run(None, {"ids": np.array([beyond], kind.numpy())})


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("level", ALL.__members__.values())
def test_float16_products_at_accuracy_level_4(level, alone, symmetric, tmp_path):
    """Between casts of ours: with fewer than all optimizations ONNX Runtime's own would hide the scales."""
    b = graphs.Builder()
    x = b.input("x", [4, 96], ir.DataType.FLOAT16)
    x = x if alone else b.op("Erf", x)  # which has no float16 kernel
    weights = {"W": (96, 32), "bias": (1, 32), "V": (96, 32), "C": (4, 32)}
    W, bias, V, C = (b.constant(name, graphs.weight(*shape, dtype=np.float16)) for name, shape in weights.items())
    products = [b.op("Gemm", x, W, bias, name="biased"), b.op("Gemm", x, V, C, name="added", beta=2.0)]
    y = b.op("Concat", *(each if alone else b.op("Erf", each) for each in products), axis=1)
    b.output(y, [4, 64], ir.DataType.FLOAT16)
    feeds = {"x": np.random.default_rng(7).standard_normal((4, 96)).astype(np.float16)}

    def run(level, **settings):
        written, report = rewrites.emitted(b.model(), Recipe(symmetric=symmetric, **settings), tmp_path)
        assert not report.warnings
        assert [(node.domain, node.op_type) for node in written.graph.node].count(("com.microsoft", "MatMulNBits")) == 2
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        return ort.InferenceSession(report.output, options).run(None, feeds)[0]

    got, want = run(level), run(ALL.ORT_ENABLE_ALL, accuracy_level=0)
    assert got.dtype == np.float16
    assert np.linalg.norm(got.astype(np.float32) - want) <= 0.03 * np.linalg.norm(want.astype(np.float32))
