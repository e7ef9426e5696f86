"""Inspection: counts, subgraphs, reasons."""

from __future__ import annotations

import json

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.errors import OnnxpressError


def test_counts_and_reasons(tmp_path):
    b = graphs.Builder()
    x = b.input("x", ["m", 64])
    y = b.op("MatMul", x, b.constant("W", graphs.weight(64, 64)), name="product")
    y = b.op("MatMul", y, b.op("Transpose", y, perm=[1, 0]), name="scores")
    inner = graphs.Builder()
    inner.output(inner.op("Relu", x, name="inner"), ["m", 64])
    inner.graph.opset_imports.clear()
    other = graphs.Builder()
    other.output(other.op("Neg", x, name="other"), ["m", 64])
    other.graph.opset_imports.clear()
    condition = b.constant("condition", np.array(True))
    b.op("If", condition, name="if", then_branch=inner.graph, else_branch=other.graph)
    b.output(y, ["m", "m"])
    path = tmp_path / "m.onnx"
    ir.save(b.model(), path, external_data="m.data")
    found = inspect(path)
    assert found.operators == {"MatMul": 2, "Transpose": 1, "If": 1, "Relu": 1, "Neg": 1}
    assert found.parameters == 64 * 64 + 1
    assert found.dtypes["float"] == 64 * 64 * 4
    assert found.external >= 64 * 64 * 4
    assert found.size == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    assert found.opsets == {"": 18}
    assert found.inputs == ["x float [m, 64]"]
    assert found.taken == [("product", "MatMul", 4096)]
    assert found.left == [("scores", "MatMul", "no constant weight")]
    assert found.recipe is None
    assert json.loads(found.to_json())["scheme"] == "int4"


def test_the_stored_recipe_is_shown(tmp_path):
    optimize(graphs.matmul_model(), Recipe(scheme="int5"), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert found.recipe["scheme"] == "int5"
    assert found.left == [("product", "MatMulNBits", "already quantized")]
    assert "onnxpress::MatMulNBits" in found.operators


def test_a_broken_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(OnnxpressError, match="not an ONNX model"):
        inspect(tmp_path / "m.onnx")
