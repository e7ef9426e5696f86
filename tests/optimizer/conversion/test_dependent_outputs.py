"""Operators that need outputs which nobody reads keep them; calibration knows values that are no tensors, or empty."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.compare import compare
from onnxpress.optimizer.calibration.statistics import Statistics
from onnxpress.optimizer.conversion.calibrate import calibrate
from schemes import CALIBRATED, ONE_A_FAMILY
from sessions import needs, runnable

NODE = helper.make_node
SCHEMES = runnable(*ONE_A_FAMILY)
STATIC = runnable(*CALIBRATED)
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def built(nodes, inputs, outputs, opset=21):
    """A product with W, these nodes from a to b, and a product with V."""
    nodes = [NODE("MatMul", ["x", "W"], ["a"], name="first"), *nodes, NODE("MatMul", ["b", "V"], ["y"], name="last")]
    weights = [numpy_helper.from_array(floats(64, 64) / 8, name) for name in ("W", "V")]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", None), *outputs], weights)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version={21: 10, 23: 11, 24: 12}[opset])


PASTS = [info("pk", ["N", 4, "P", 16]), info("pv", ["N", 4, "P", 16])]
PRESENTS = [info("nk", None), info("nv", None)]
LENGTHS = [info("lengths", ["N"], TensorProto.INT32), info("total", [], TensorProto.INT32)]


def with_past(kind: str, past: int, shown: bool):
    """A model and its inputs; `shown`: the presents are outputs of the model and not only of the node."""
    feeds = {"x": floats(2, 1, 64), "pk": floats(2, 4, past, 16), "pv": floats(2, 4, past, 16)}
    x, made = info("x", ["N", "L", 64]), ["b", "nk", "nv"]
    outputs = PRESENTS if shown else []
    if kind == "GroupQueryAttention":
        read = ["a", "a", "a", "pk", "pv", "lengths", "total"]
        node = NODE(kind, read, made, domain="com.microsoft", num_heads=4, kv_num_heads=4)
        feeds |= {"lengths": np.full(2, past, np.int32), "total": np.array(past + 1, np.int32)}
        return built([node], [x, *PASTS, *LENGTHS], outputs), feeds
    if kind == "MultiHeadAttention":
        node = NODE(kind, ["a", "a", "a", "", "", "", "pk", "pv"], made, domain="com.microsoft", num_heads=4)
        return built([node], [x, *PASTS], outputs), feeds
    node = NODE("Attention", ["a", "a", "a", "", "pk", "pv"], made, q_num_heads=4, kv_num_heads=4)
    return built([node], [x, *PASTS], outputs, opset=int(kind)), feeds


def run(path, feeds, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    from onnxpress import custom_ops

    options = ort.SessionOptions()
    options.graph_optimization_level = level
    custom_ops.register(options)
    return ort.InferenceSession(str(path), options).run(None, feeds)


def converted(model, feeds, scheme, folder):
    onnx.save(model, folder / "m.onnx")
    data = Calibration([feeds]) if scheme in CALIBRATED else None
    keys = {"first_and_last": True} if scheme == "fp8-static" else {}
    optimize(folder / "m.onnx", Recipe(scheme=scheme, **keys), folder / "out.onnx", calibration=data)
    return folder / "out.onnx"


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("23", marks=needs("kernels of opset 22")),
        pytest.param("24", marks=needs("opset 24")),
        "GroupQueryAttention",
        "MultiHeadAttention",
    ],
)
def test_attention_keeps_its_presents(kind, past, shown, tmp_path):
    model, feeds = with_past(kind, past, shown)
    for scheme in SCHEMES:
        path = converted(model, feeds, scheme, tmp_path)
        wanted = run(tmp_path / "m.onnx", feeds)
        for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            found = run(path, feeds, level)
            if scheme != "sparse":
                assert all(np.abs(a - b).max() <= 0.2 * np.abs(a).max() for a, b in zip(wanted, found, strict=True))
    report = calibrate(tmp_path / "m.onnx", [feeds], tmp_path / "s.npz", gram=True)
    assert report.tensors >= 4
    np.savez(tmp_path / "d.npz", **feeds)
    assert compare(tmp_path / "m.onnx", tmp_path / "out.onnx", data=tmp_path / "d.npz").outputs


def test_by_products_go(tmp_path):
    nodes = [NODE("Dropout", ["a"], ["b", "mask"])]
    path = converted(built(nodes, [info("x", ["N", 64])], []), {"x": floats(4, 64)}, "int8-static", tmp_path)
    assert all(len(node.output) == 1 for node in onnx.load(path).graph.node)


SEQUENCE = helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, None)
MAYBE = helper.make_value_info("q", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None)))
OTHERS = {
    "sequence": ([NODE("SplitToSequence", ["a"], ["q"], axis=0), NODE("ConcatFromSequence", ["q"], ["b"], axis=0)], []),
    "sequence as output": ([NODE("SequenceConstruct", ["a", "x"], ["q"]), NODE("Relu", ["a"], ["b"])], [SEQUENCE]),
    "optional": ([NODE("Optional", ["a"], ["q"]), NODE("OptionalGetElement", ["q"], ["b"])], []),
    "optional as output": ([NODE("Optional", ["a"], ["q"]), NODE("Relu", ["a"], ["b"])], [MAYBE]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_values_that_are_no_tensors(case, tmp_path):
    model, feeds = built(OTHERS[case][0], [info("x", ["N", 64])], OTHERS[case][1]), {"x": floats(4, 64)}
    for scheme in STATIC:
        run(converted(model, feeds, scheme, tmp_path), feeds)
    calibrate(tmp_path / "m.onnx", [feeds], tmp_path / "s.npz")
    assert "q" not in Statistics.load(tmp_path / "s.npz")
    assert {"x", "a", "y"} <= set(Statistics.load(tmp_path / "s.npz"))
    np.savez(tmp_path / "d.npz", **feeds)
    names = [
        tensor.name for tensor in compare(tmp_path / "m.onnx", tmp_path / "out.onnx", data=tmp_path / "d.npz").outputs
    ]
    assert "y" in names


@pytest.mark.parametrize("scheme", STATIC)
def test_a_product_of_no_rows_stays_in_float(scheme, tmp_path):
    """Of the second product no sample has rows, so nothing is known of its input."""
    nodes = [NODE("Compress", ["a", "keep"], ["b"], axis=0)]
    model = built(nodes, [info("x", ["N", 64]), info("keep", ["N"], TensorProto.BOOL)], [])
    feeds = {"x": floats(4, 64), "keep": np.zeros(4, bool)}
    path = converted(model, feeds, scheme, tmp_path)
    feeds["keep"][:2] = True
    assert run(path, feeds)[0].shape == (2, 64)
