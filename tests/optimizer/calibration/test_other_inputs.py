"""Calibrated schemes of models whose inputs are sequences, maps or optional: what ONNX Runtime takes can be given."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxpress.optimizer import optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.settings.recipe import Recipe
from sessions import RUNS_FLOAT8_PRODUCTS

NODE = helper.make_node
FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 64])
KINDS = {
    "sequence": helper.make_sequence_type_proto(FLOATS),
    "map": helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])),
    "optional": helper.make_optional_type_proto(FLOATS),
}
READ = {
    "sequence": [NODE("Constant", [], ["last"], value_int=-1), NODE("SequenceAt", ["s", "last"], ["e"], name="at")],
    "map": [NODE("CastMap", ["s"], ["e"], "cast", domain="ai.onnx.ml", map_form="SPARSE", max_map=64)],
    "optional": [NODE("OptionalGetElement", ["s"], ["e"], name="get")],
}


def model(kind, path):
    inputs = [helper.make_value_info("s", KINDS[kind]), helper.make_value_info("x", FLOATS)]
    nodes = [
        *READ[kind], NODE("Add", ["e", "x"], ["h"], "sum"), NODE("MatMul", ["h", "W"], ["p"], "first"),
        NODE("Relu", ["p"], ["r"], "relu"), NODE("MatMul", ["r", "V"], ["y"], "second"),
    ]  # fmt: skip
    weights = [numpy_helper.from_array(graphs.weight(64, 64, seed), name) for seed, name in enumerate("WV")]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_value_info("y", FLOATS)], weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def samples(kind):
    arrays = np.random.default_rng(0).standard_normal((4, 1, 64)).astype(np.float32)
    given = {"sequence": lambda x: [2 * x, x], "map": lambda x: dict(enumerate(x[0].tolist())), "optional": np.array}
    return [{"s": given[kind](x), "x": x} for x in arrays]


@pytest.mark.parametrize("scheme", ["int8-static", "fp8-static", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_calibrated(kind, scheme, tmp_path):
    settings = {"activations": "static"} if scheme == "sparse" else {}
    path = model(kind, tmp_path / "m.onnx")
    report = optimize(path, Recipe(scheme=scheme, **settings), calibration=Calibration(samples(kind)))
    # Before 1.32 ONNX Runtime refuses one of the two products of FLOAT8, which then stays in float.
    assert report.rewritten == {"MatMul": 2 if RUNS_FLOAT8_PRODUCTS or scheme != "fp8-static" else 1}
    assert report.details["check"]["run_on"] == "calibration data"
    assert report.details["check"]["outputs"][0]["sqnr"] > 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_file_holds(kind, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 1, 64), np.float32))
    path = model(kind, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=f"input 's' is no tensor .{kind}.*give module:function"):
        optimize(path, Recipe(scheme="int8-static"), calibration=Calibration(tmp_path / "d.npz"))
    with pytest.raises(UsageError, match=r"is no tensor .*use a batch of 1"):
        optimize(path, Recipe(scheme="int8-static"), calibration=Calibration(samples(kind), batch=2))
