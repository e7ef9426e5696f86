"""The function body of DequantizeMiniFloat: exact, folded when the session is made, and what it refuses."""

from __future__ import annotations

import itertools

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from minifloats import FORMATS, SCALE_TYPES, make_weight
from onnxpress import ep
from onnxpress.custom_ops import functions, reference, register
from sessions import options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
WAYS = list(itertools.product(LEVELS, (lambda _: None, register, ep.append)))
pytestmark = pytest.mark.unsanitized  # what computes is ONNX Runtime
SHAPES = [(7, 5, 3, 3), (4, 1, 3, 3), (33, 70), (6, 130, 1), (5,)]


def decoded(weights, opset=18):
    """A model whose outputs are weights: (format, shape, block size, codes, scales) each."""
    b = graphs.Builder(opset)
    model = b.model(10)
    for index, (format, shape, block_size, codes, scales) in enumerate(weights):
        body = functions.dequantize_minifloat(format=format, scale=ir.DataType.from_numpy(scales.dtype), opset=opset)
        model.functions[body.identifier()] = body
        y = b.op(
            "DequantizeMiniFloat", b.constant(f"c{index}", codes), b.constant(f"s{index}", scales),
            name=f"decode{index}", domain="onnxpress", format=format, shape=list(shape), block_size=block_size,
        )  # fmt: skip
        y.producer().overload = body.overload
        b.output(y, list(shape))
    b.graph.opset_imports["onnxpress"] = 1
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def random_weight(format, shape, block_size, scale_type, seed=0):
    K = int(np.prod(shape[1:]))
    return (
        format,
        shape,
        block_size,
        *make_weight(np.random.default_rng(seed), format, block_size, K, shape[0], scale_type),
    )


def expected(weight):
    format, shape, block_size, codes, scales = weight
    return reference.dequantize_minifloat_tensor(codes, scales, format=format, shape=shape, block_size=block_size)


def same(got, weights):
    for each, weight in zip(got, weights, strict=True):
        want = expected(weight)
        assert each.dtype == want.dtype
        assert each.shape == want.shape
        np.testing.assert_array_equal(each.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("block_size", [0, 16, 32])
def test_one_function_for_all_sizes(format, block_size):
    """To the bit, with and without our library and execution provider, which do not know the operator.

    Each type of scales in some of these ways, and in all of them over the formats.
    """
    for index, scale_type in enumerate(SCALE_TYPES, FORMATS.index(format) + block_size // 16):
        weights = [random_weight(format, shape, block_size, scale_type) for shape in SHAPES]
        model = decoded(weights)
        for level, add in WAYS[index % len(SCALE_TYPES) :: len(SCALE_TYPES)]:
            chosen = options(graph_optimization_level=level)
            add(chosen)
            same(ort.InferenceSession(model, chosen, enable_fallback=0).run(None, {}), weights)


@pytest.mark.parametrize("format", FORMATS)
def test_every_code(format):
    values = reference.MINIFLOATS[format]
    codes = np.arange(values.size, dtype=np.uint8)
    packed = reference.pack_codes(codes[None, None], reference.minifloat_bits(format))
    weight = (format, (1, codes.size), 0, packed, np.ones((1, 1), np.float32))
    (got,) = ort.InferenceSession(decoded([weight]), options()).run(None, {})
    np.testing.assert_array_equal(got[0], values)
    np.testing.assert_array_equal(np.signbit(got[0]), np.signbit(values))


@pytest.mark.skipif(ort.__version__.startswith("1.23."), reason="it takes the first of several functions of a name")
def test_several_formats():
    weights = [random_weight(format, (9, 4, 3), 16, np.float32) for format in FORMATS]
    weights += [random_weight("e2m1", (9, 4, 3), 16, np.uint8)]
    same(ort.InferenceSession(decoded(weights), options()).run(None, {}), weights)


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
def test_opsets(opset):
    weights = [random_weight("e2m3", (7, 5, 3), 32, np.float16)]
    same(ort.InferenceSession(decoded(weights, opset), options()).run(None, {}), weights)


def test_it_is_folded(tmp_path):
    """Nothing of it is left in the graph that runs."""
    weight = random_weight("e4m3fn", (6, 3, 3, 3), 0, np.float32)
    model = ir.from_proto(onnx.load_from_string(decoded([weight])))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 3, 9, 9]))
    model.graph.inputs.append(x)
    conv = ir.node("Conv", [x, model.graph.outputs[0]], name="conv")
    conv.outputs[0].name, conv.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(conv)
    model.graph.outputs[:] = conv.outputs
    for add in (lambda _: None, register):
        chosen = options(optimized_model_filepath=str(tmp_path / "optimized.onnx"))
        chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        add(chosen)
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), chosen)
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        assert [node.op_type for node in graph.node] == ["Conv"]
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        np.testing.assert_array_equal(stored[graph.node[0].input[1]], expected(weight))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (7, 5, 3, 4)}, {"shape": (8, 5, 3, 3)}, {"shape": (7, -5, 3, 3)}, {"shape": (7, 2**62, 2**62)},
        {"block_size": 16}, {"block_size": -3}, {"block_size": 2**62}, {"shape": (7, 2**32, 2**31), "block_size": -1},
        {"scales": np.ones((7, 2), np.float32)}, {"scales": np.ones((6, 1), np.float32)},
        {"codes": np.zeros((7, 1, 20), np.uint8)}, {"codes": np.zeros((7, 1, 46), np.uint8)},
        {"codes": np.zeros((7, 2, 45), np.uint8), "scales": np.ones((7, 2), np.float32)},
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(change):
    """By the standard operators in the body, in every session."""
    format, shape, block_size, codes, scales = random_weight("e4m3fn", (7, 5, 3, 3), 0, np.float32)
    proto = onnx.load_from_string(decoded([(format, shape, block_size, codes, scales)]))
    proto.graph.output[0].ClearField("type")
    node = proto.graph.node[0]
    for attribute in node.attribute:
        if attribute.name == "shape" and "shape" in change:
            attribute.ints[:] = change["shape"]
        if attribute.name == "block_size" and "block_size" in change:
            attribute.i = change["block_size"]
    for tensor in proto.graph.initializer:
        name = {"c0": "codes", "s0": "scales"}[tensor.name]
        if name in change:
            tensor.CopyFrom(onnx.numpy_helper.from_array(change[name], tensor.name))
    for level in LEVELS:
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            ort.InferenceSession(proto.SerializeToString(), options(graph_optimization_level=level)).run(None, {})
