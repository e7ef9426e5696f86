"""What several nodes read is written once, be it one value or, through a function that is called twice, several."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxpress import ep
from onnxpress.optimizer import Calibration, Recipe, optimize
from sessions import options

SIZES = {"MatMul": 64, "Gather": 1024}  # tables count from a million numbers on


def called_twice(path, op_type):
    """Two calls of a function that holds the weight: a product's, or a table's."""
    size = SIZES[op_type]
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    held = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(weight, "W"))
    inputs = ["a", "W"] if op_type == "MatMul" else ["W", "a"]
    body = [held, helper.make_node(op_type, inputs, ["p"], name="reads"), helper.make_node("Tanh", ["p"], ["o"])]
    opset = helper.make_opsetid("", 21)
    function = helper.make_function("local", "Layer", ["a"], ["o"], body, [opset])
    kind = onnx.TensorProto.FLOAT if op_type == "MatMul" else onnx.TensorProto.INT64
    shape = ["n", size] if op_type == "MatMul" else ["n"]
    names = ["x0", "x1"]
    graph = helper.make_graph(
        [helper.make_node("Layer", [name], [f"y{i}"], domain="local", name=f"call{i}") for i, name in enumerate(names)],
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, ["n", size]) for i in range(2)],
    )
    opsets = [opset, helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10), path)


def feeds_of(op_type):
    rng = np.random.default_rng(1)
    if op_type == "Gather":
        return {f"x{i}": rng.integers(0, SIZES[op_type], 9) for i in range(2)}
    return {f"x{i}": rng.standard_normal((9, SIZES[op_type])).astype(np.float32) for i in range(2)}


@pytest.mark.parametrize(
    ("op_type", "recipe"),
    [("MatMul", {"scheme": s}) for s in ("int4", "nf4", "int8-dynamic", "fp8-dynamic", "fp8-static", "sparse")]
    + [("MatMul", {"scheme": "fp8-e3m4-static"})]
    + [("Gather", {"scheme": s, "coverage": "extended"}) for s in ("fp8-dynamic", "fp8-static", "fp8-e3m4-static")],
)
def test_a_weight_of_a_function_that_is_called_twice(op_type, recipe, tmp_path):
    path, out, feeds = tmp_path / "model.onnx", tmp_path / "out.onnx", feeds_of(op_type)
    called_twice(path, op_type)
    data = Calibration([feeds]) if recipe["scheme"].endswith("static") else None
    optimize(path, Recipe(**recipe), out, calibration=data)
    large = [
        tensor.name for tensor in onnx.load(out).graph.initializer if np.prod(tensor.dims) > SIZES[op_type] ** 2 // 4
    ]
    assert len(large) == 1
    want, got = (ep.session(each, options()).run(None, feeds) for each in (path, out))
    for a, b in zip(want, got, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.5
