"""Inspection: counts, subgraphs, reasons."""

from __future__ import annotations

import json
from collections import Counter

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.planning.report import group_reasons
from schemes import ONE_A_FAMILY
from sessions import RUNS_FLOAT8_PRODUCTS


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


def mixed():
    """Some of everything: a convolution, products, a table, weights in Constant nodes, a product inside a branch."""
    b = graphs.Builder()
    x = b.input("x", [1, 8, 6, 6])
    y = b.op("Relu", b.op("Conv", x, b.constant("C", graphs.weight(16, 8 * 9).reshape(16, 8, 3, 3)), name="conv"))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    value = ir.tensor(graphs.weight(16, 64), name="inner")
    y = b.op("MatMul", y, b.op("Constant", value=value), name="first")
    y = b.op("Relu", b.op("Gemm", y, b.constant("W", graphs.weight(64, 64, 1)), name="second"))
    y = b.op("MatMul", y, b.op("Transpose", y, perm=[1, 0]), name="scores")
    b.output(y, [1, 1])
    return b.model()


@pytest.mark.parametrize("scheme", ONE_A_FAMILY)
def test_it_lists_what_the_conversion_takes_and_leaves(tmp_path, scheme):
    if scheme == "fp8-static" and not RUNS_FLOAT8_PRODUCTS:
        pytest.skip("ONNX Runtime before 1.32 refuses products of FLOAT8")
    ir.save(mixed(), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
    given = Calibration(data) if scheme in ("int8-static", "fp8-static", "sparse") else None
    found = inspect(tmp_path / "m.onnx", Recipe(scheme=scheme))
    report = optimize(tmp_path / "m.onnx", Recipe(scheme=scheme), tmp_path / "o.onnx", calibration=given)
    assert Counter(op for _, op, _ in found.taken) == report.rewritten
    assert group_reasons([(op, reason) for _, op, reason in found.left]) == report.left
    assert ("conv" in {name for name, _, _ in found.taken}) == (scheme == "int8-static")


def test_without_pruning_it_lists_what_is_sparse_enough(tmp_path):
    ir.save(mixed(), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx", Recipe(scheme="sparse", prune=False))
    assert not found.taken
    assert ("second", "Gemm", "0 % of its blocks of 4x4 are zero: a dense product is as fast") in found.left


def test_weights_in_constant_nodes_count(tmp_path):
    ir.save(mixed(), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert found.parameters == 16 * 8 * 9 + 16 * 64 + 64 * 64
    assert found.dtypes == {"float": 4 * found.parameters}


@pytest.mark.parametrize(
    "given",
    [
        {"scheme": "int4"}, {"scheme": "int4", "embeddings": True}, {"scheme": "int8", "embeddings": True},
        {"scheme": "int4", "symmetric": True}, {"scheme": "int3"}, {"scheme": "int4", "form": "qdq"},
        {"scheme": "int2", "form": "onnxpress"}, {"scheme": "fp6"}, {"scheme": "nf4"}, {"scheme": "mxfp4"},
    ],
    ids=str,
)  # fmt: skip
def test_a_converted_model_has_the_parameters_of_the_float_one(tmp_path, given):
    b = graphs.Builder()
    table = b.constant("table", graphs.weight(1 << 14, 64, 1))
    y = b.op("Gather", table, b.input("ids", ["m"], ir.DataType.INT64), name="table")
    y = b.op("Add", b.op("MatMul", y, b.constant("W", graphs.weight(64, 96))), b.constant("b", np.ones(96, np.float32)))
    b.output(y, ["m", 96])
    ir.save(b.model(), tmp_path / "m.onnx")
    report = optimize(tmp_path / "m.onnx", Recipe(**given), tmp_path / "o.onnx")
    assert len(report.weights) == 1 + given.get("embeddings", False)
    found = [inspect(tmp_path / name).parameters for name in ("m.onnx", "o.onnx")]
    rows = 1 if given.get("embeddings") else 0  # by which negative places are counted from the end
    assert found == [2**20 + 64 * 96 + 96, 2**20 + 64 * 96 + 96 + rows]


def test_a_model_that_does_not_say_who_wrote_it(tmp_path, capsys):
    from onnxpress.optimizer.commands.terminal import console

    for producer, ending in ((None, "IR 9"), ("pytorch", "IR 9; by pytorch")):
        model = graphs.matmul_model()
        model.producer_name = producer
        ir.save(model, tmp_path / "m.onnx")
        inspect(tmp_path / "m.onnx").print(console())
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("opsets")]
        assert line.strip().endswith(ending)


def test_sizes_are_told_in_what_suits_them(tmp_path, capsys):
    from onnxpress.optimizer.commands.terminal import console

    ir.save(mixed(), tmp_path / "m.onnx")
    inspect(tmp_path / "m.onnx").print(console())
    shown = capsys.readouterr().out
    assert "float 25.1 KB" in shown
    assert "external" not in shown
    assert "2 nodes, 5,120 weights: 1 MatMul, 1 Gemm" in shown
