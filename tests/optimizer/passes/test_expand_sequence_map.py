"""Products in the graph of a SequenceMap, which ONNX Runtime makes a Loop of before it runs it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxpress import custom_ops, ep
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.passes.expand_sequence_map import ExpandSequenceMap

NODE = helper.make_node
RNG = np.random.default_rng(0)
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


X, Z = floats(4, 64), floats(4, 64)


def model(within_if: bool = False) -> onnx.ModelProto:
    """Of elements e of a sequence, f of another and a tensor g: (e W + f + g) and e as two sequences, joined."""
    body = helper.make_graph(
        [NODE("MatMul", ["e", "W"], ["p"], name="product"), NODE("Add", ["p", "f"], ["q"], name="first_sum"),
         NODE("Add", ["q", "g"], ["r"], name="second_sum")],
        "body", [info("e", ["N", 64]), info("f", ["N", 64]), info("g", ["N", 64])],
        [info("r", ["N", 64]), info("e", ["N", 64])],
    )  # fmt: skip
    nodes = [
        NODE("SequenceConstruct", ["x", "z"], ["s"], name="s"), NODE("SequenceConstruct", ["z", "x"], ["t"], name="t"),
        NODE("SequenceMap", ["s", "t", "z"], ["u", "v"], name="map", body=body),
        NODE("ConcatFromSequence", ["u"], ["made"], axis=0, name="join"),
        NODE("ConcatFromSequence", ["v"], ["same"], axis=0, name="join_too"),
    ]  # fmt: skip
    outputs = [info("made", None), info("same", None)]
    if within_if:
        branch = helper.make_graph(nodes, "then", [], outputs)
        other = [NODE("Identity", ["x"], ["made_too"]), NODE("Identity", ["z"], ["same_too"])]
        otherwise = helper.make_graph(other, "else", [], [info("made_too", None), info("same_too", None)])
        nodes = [NODE("If", ["c"], ["y", "w"], name="if", then_branch=branch, else_branch=otherwise)]
        outputs = [info("y", None), info("w", None)]
    inputs = [info("x", ["N", 64]), info("z", ["N", 64])] + ([info("c", [], TensorProto.BOOL)] if within_if else [])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(floats(64, 64) / 8, "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def feeds(within_if):
    return {"x": X, "z": Z} | ({"c": np.array(True)} if within_if else {})


@pytest.mark.parametrize("within_if", [False, True])
@pytest.mark.parametrize(
    ("scheme", "form"),
    [("int8", "qoperator"), ("int8", "qdq"), ("int8", "onnxpress"), ("int3", "qoperator"), ("fp8", "qoperator")],
)
def test_it_runs_everywhere(scheme, form, within_if, tmp_path):
    onnx.save(model(within_if), tmp_path / "m.onnx")
    wanted = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, feeds(within_if))
    optimize(tmp_path / "m.onnx", Recipe(scheme=scheme, form=form), tmp_path / "out.onnx")
    for level in LEVELS:
        for register in _registrations():
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            register(options)
            found = ort.InferenceSession(str(tmp_path / "out.onnx"), options).run(None, feeds(within_if))
            for a, b in zip(wanted, found, strict=True):
                np.testing.assert_allclose(b, a, atol=(0.4 if scheme == "int3" else 0.1) * np.abs(a).max())


def _registrations():
    def provider(options):
        ep.register()
        ep.append(options)

    return (lambda _options: None), custom_ops.register, provider


def test_others_stay():
    loaded = ir.from_proto(model())
    assert not ExpandSequenceMap()(loaded)
    assert [node.op_type for node in loaded.graph].count("SequenceMap") == 1
