"""EncoderLayer inside ONNX Runtime: on our kernels, and as standard operators where they are missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from encoder_layers import made_layer, parts
from onnx import helper
from onnxpress.custom_ops import functions, reference, register
from onnxpress.custom_ops.functions.encoder_layer import INPUTS
from sessions import needs, options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
RNG = np.random.default_rng(5)


def model(
    layer,
    *,
    mask=True,
    opset=18,
    lead=("batch", "sequence"),
    function=True,
    changed=None,
    significance=False,
    **attributes,
):
    H, arrays = layer.qkv.codes.shape[0], dict(zip(INPUTS[1:], parts(layer), strict=False)) | (changed or {})
    kind = onnx.TensorProto
    given = {
        "num_heads": layer.heads, "scale": layer.scale, "epsilon": layer.epsilon, "activation": layer.activation,
        "norm_first": int(layer.norm_first), **attributes,
    }  # fmt: skip
    node = helper.make_node(
        "EncoderLayer", list(INPUTS[: None if mask else -1]), ["y", "received"][: 1 + significance],
        name="the layer", domain="onnxpress",
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", kind.FLOAT, [*lead, H])]
    inputs += [helper.make_tensor_value_info("mask", kind.INT32, list(lead))] if mask else []
    outputs = [helper.make_tensor_value_info("y", kind.FLOAT, [*lead, H])]
    outputs += [helper.make_tensor_value_info("received", kind.FLOAT, list(lead))] if significance else []
    graph = helper.make_graph(
        [node], "test", inputs, outputs,
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items() if name in node.input],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("onnxpress", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=10)
    if function:
        body = functions.encoder_layer(
            H=H, inner=layer.out.codes.shape[0], F=layer.up.codes.shape[1], heads=layer.heads, scale=layer.scale,
            epsilon=layer.epsilon, activation=layer.activation, norm_first=layer.norm_first, mask=mask,
            significance=significance, opset=opset,
        )  # fmt: skip
        node.overload = body.overload
        made.graph.node[0].overload = body.overload
        made.functions.append(ir.to_proto(body))
        onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def session(serialized, ours=True, level=LEVELS[1], **settings):
    chosen = options(graph_optimization_level=level, **settings)
    if ours:
        register(chosen)
    return ort.InferenceSession(serialized, chosen)


def feeds(H=48, lengths=(9, 3, 0)):
    x = RNG.standard_normal((len(lengths), max(lengths), H)).astype(np.float32)
    return {"x": x, "mask": (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)}


def distance(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_on_our_kernels(norm_first, mask, threads):
    layer = made_layer(norm_first=norm_first)
    given = feeds(lengths=(90, 33, 0) if mask else (90, 90))
    opened = session(model(layer, mask=mask), intra_op_num_threads=threads)
    x, marks = given["x"], given["mask"] if mask else None
    (got,) = opened.run(None, given if mask else {"x": x})
    assert distance(got, reference.encoder_layer(x, marks, layer)) < 2e-3
    assert not mask or (got[marks == 0] == 0).all()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_significance(mask, norm_first, level):
    """On our kernels, and as standard operators, whose scores are not rounded."""
    layer = made_layer(norm_first=norm_first)
    given = feeds(lengths=(40, 13, 0) if mask else (40, 40))
    marks = given["mask"] if mask else None
    serialized = model(layer, mask=mask, significance=True)
    want = reference.encoder_significance(given["x"], marks, layer)
    inputs = given if mask else {"x": given["x"]}
    for ours, error in ((True, 1e-3), (False, 0.03)):
        y, got = session(serialized, ours=ours, level=level).run(None, inputs)
        assert distance(got, want) < error
        assert not mask or (got[marks == 0] == 0).all()
        (alone,) = session(model(layer, mask=mask), ours=ours, level=level).run(None, inputs)
        np.testing.assert_allclose(y, alone, atol=1e-6)
    empty = {name: value[:0] for name, value in inputs.items()}
    assert [part.shape for part in session(serialized).run(None, empty)] == [(0, 40, 48), (0, 40)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("activation", "norm_first", "mask", "opset"),
    [
        ("gelu", False, True, 13), ("relu", True, False, 17), ("gelu_tanh", False, False, 18), ("gelu", True, True, 21)
    ],
)  # fmt: skip
def test_as_standard_operators(activation, norm_first, mask, opset, level):
    """The attention, which they leave in float, apart: with its codes they come close to the kernels."""
    layer = made_layer(activation=activation, norm_first=norm_first)
    given = feeds()
    given = given if mask else {"x": given["x"]}
    serialized = model(layer, mask=mask, opset=opset)
    (stock,) = session(serialized, ours=False, level=level).run(None, given)
    (ours,) = session(serialized).run(None, given)
    assert 0 < distance(stock, ours) < 0.03
    assert not mask or (stock[given["mask"] == 0] == 0).all()


def test_products_of_standard_operators_are_exact():
    """Where the values are one number, the attention gives that number whatever its weights: nothing is rounded."""
    layer = made_layer(heads=3, width=16)
    codes, scales, bias = (array.copy() for array in dataclasses.astuple(layer.qkv))
    codes[:, 96:], bias[96:] = 0, 127 * 2.0**-9
    layer = dataclasses.replace(layer, qkv=reference.Product(codes, scales, bias))
    given = feeds(lengths=(9, 9))
    (stock,) = session(model(layer), ours=False).run(None, given)
    assert distance(stock, reference.encoder_layer(given["x"], None, layer)) < 1e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 5}, r"num_heads=5 does not divide 48"),
        ({"num_heads": 0}, r"num_heads=0 does not divide"),
        ({"num_heads": -3}, r"num_heads=-3 does not divide"),
        ({"activation": "silu"}, r"activation is 'silu', must be relu, gelu or gelu_tanh"),
        ({"scale": float("nan")}, r"attribute scale must be a finite number from 0"),
        ({"epsilon": -1.0}, r"attribute epsilon must be a finite number from 0"),
        ({"scale": None}, r"attribute scale is missing"),
        ({"changed": {"up": np.zeros((47, 80), np.int8)}}, r"input up has shape \[47, 80\], must be \[48, 80\]"),
        ({"changed": {"qkv": np.zeros((48, 100), np.int8)}}, r"input qkv has shape .* must be \[48, 144\]"),
        ({"changed": {"down_bias": np.zeros(3, np.float32)}}, r"input down_bias has shape \[3\], must be \[48\]"),
        ({"changed": {"out": np.zeros(7, np.int8)}}, r"input out has shape \[7\], must be a matrix"),
        ({"changed": {"qkv": np.zeros((0, 144), np.int8)}}, r"input qkv has shape \[0, 144\], must be a matrix"),
    ],
)
def test_wrong_nodes_are_errors(changed, message):
    with pytest.raises(Exception, match=r"EncoderLayer node 'the layer'.*" + message):
        session(model(made_layer(), function=False, **changed))


def test_wrong_inputs_are_errors():
    opened = session(model(made_layer(), function=False, lead=(None, None)))
    given = feeds()
    with pytest.raises(Exception, match=r"'the layer'.*input mask has shape \[3, 4\], must be \[3, 9\]"):
        opened.run(None, {**given, "mask": given["mask"][:, :4].copy()})
    with pytest.raises(Exception, match=r"'the layer'.*sequences of 65537 tokens; it takes at most 65536"):
        opened.run(None, {"x": np.zeros((1, 65537, 48), np.float32), "mask": np.zeros((1, 65537), np.int32)})
    for shape in [(0, 4), (3, 0)]:
        empty = {"x": np.zeros((*shape, 48), np.float32), "mask": np.zeros(shape, np.int32)}
        assert opened.run(None, empty)[0].shape == (*shape, 48)


@needs("products of no rows")
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_an_empty_batch_as_standard_operators(shape):
    empty = {"x": np.zeros((*shape, 48), np.float32), "mask": np.zeros(shape, np.int32)}
    assert session(model(made_layer()), ours=False).run(None, empty)[0].shape == (*shape, 48)


@pytest.mark.skipif(ort.__version__.startswith("1.23."), reason="ONNX Runtime 1.23 gets no shape inference")
def test_shape_inference():
    proto = onnx.load_from_string(model(made_layer(), function=False))
    proto.graph.output[0].ClearField("type")
    (y,) = session(proto.SerializeToString()).get_outputs()
    assert (y.shape, y.type) == (["batch", "sequence", 48], "tensor(float)")
