"""What stands around a product in a transformer: the norm before it, a gated linear unit or a residual behind it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from contexts import compiled
from contexts import run as run_file
from onnxpress import ep
from products import K, Layer, M, N, check, run, taken
from sessions import options

NORMS = {"SimplifiedLayerNormalization": 20, "RMSNormalization": 23}


def norm(layer, x, name="SimplifiedLayerNormalization", scale=None, **attributes):
    values = np.random.default_rng(5).uniform(0.5, 2, K).astype(np.float32) if scale is None else scale
    return layer.b.op(name, x, layer.b.constant("norm.scale", values), **{"axis": -1, "epsilon": 1e-3, **attributes})


def halves(layer, x, activation="silu", half=0, sizes=None, axis=-1):
    """A gated linear unit of one of the halves of a value."""
    given = layer.b.constant("sizes", np.array(sizes or [N, N], np.int64))
    parts = layer.b.op("Split", x, given, axis=axis, outputs=2)
    y = layer.silu(parts[half]) if activation == "silu" else layer.b.op(activation, parts[half])
    return layer.b.op("Mul", y, parts[1 - half])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("axis", [-1, 2])
def test_a_norm(name, axis):
    layer = Layer(opset=NORMS[name])
    product = layer.product("product", "Add", norm(layer, layer.x, name, axis=axis))
    check(layer.model(product), ["MatMulNBits", "Add", name])


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("activation", ["silu", "Gelu", "Relu"])
def test_a_gated_linear_unit(half, activation):
    layer = Layer()
    product = layer.product("gate_up", "Add" if half else None, N=2 * N)
    model = layer.model(halves(layer, product, activation, half))
    expected = ["Sigmoid", "Mul"] if activation == "silu" else [activation]
    check(model, ["MatMulNBits", "Split", "Mul", *expected, *(["Add"] if half else [])])


@pytest.mark.parametrize("op", ["Add", "Sum"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual(op, swapped):
    layer = Layer()
    residual = layer.b.input("residual", ["batch", "sequence", N])
    values = [layer.product("product", "Add"), residual]
    model = layer.model(layer.b.op(op, *(values[::-1] if swapped else values)))
    check(model, ["MatMulNBits", "Add", op], more=["residual"])


def transformer_mlp(layer):
    """norm, gate and up, gated, down, residual: what a decoder has between its attentions."""
    wide = layer.product("gate_up", None, norm(layer, layer.x), N=2 * N)
    x = halves(layer, wide)
    narrow = layer.b.op("Split", x, layer.b.constant("parts", np.array([32, N - 32], np.int64)), axis=-1, outputs=2)
    y = layer.product("down", None, narrow[0], K=32, N=K)
    return layer.b.op("Sum", layer.x, y)


def test_all_of_it(tmp_path):
    """Also in int8, and from a context."""
    layer = Layer()
    model = layer.model(transformer_mlp(layer), columns=K)
    expected = ["MatMulNBits", "MatMulNBits", "Mul", "Mul", "Sigmoid", "SimplifiedLayerNormalization", "Split", "Sum"]
    check(model, expected, rows=[(1, 1), (2, 5), (1, 200)])
    check(model, expected, tolerance=2e-2, accuracy_level=4)
    path, context, _ = compiled(tmp_path, ir.from_proto(onnx.load_from_string(model)))
    np.testing.assert_array_equal(run_file(context), run_file(path))
    np.testing.assert_array_equal(run_file(context, verify=1), run_file(path))


def test_results_do_not_depend_on_threads():
    layer = Layer()
    model = layer.model(transformer_mlp(layer), columns=K)
    one, two = (ep.session(model, options(intra_op_num_threads=threads), accuracy_level=4) for threads in (1, 2))
    (together,) = run(one, (7, 30))
    np.testing.assert_array_equal(run(two, (7, 30))[0], together)


@pytest.mark.parametrize("what", ["norm", "glu", "glu second", "residual"])
def test_verify(what, capfd):
    layer = Layer()
    if what == "norm":
        y = layer.product("product", None, norm(layer, layer.x))
    elif what == "residual":
        y = layer.b.op("Add", layer.product("product"), layer.b.input("up", ["batch", "sequence", N]))
    else:
        y = halves(layer, layer.product("product", N=2 * N), half=int(what == "glu second"))
    session = ep.session(layer.model(y), options(log_severity_level=2), verify=1)
    run(session, (2, 5), more=[("up", (2, 5, N))] if what == "residual" else ())
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "verify: " in line)
    words = line.split("largest error ")[1].removesuffix("\x1b[m").replace(",", "").split()
    assert 0 <= float(words[0]) < 1e-5 * float(words[3])


def test_a_residual_whose_shape_is_not_what_the_model_says():
    layer = Layer()
    y = layer.b.op("Add", layer.product("product"), layer.b.input("residual", ["batch", "sequence", N]))
    session = ep.session(layer.model(y), options())
    message = r"'product': its output of shape \[2, 5, 48\] is added to a tensor of shape \[1, 5, 48\]"
    with pytest.raises(Exception, match=message):
        run(session, (2, 5), more=[("residual", (1, 5, N))])


def read_twice(layer):
    x = norm(layer, layer.x)
    return layer.b.op("Add", layer.product("product", None, x), layer.b.op("ReduceSum", x, keepdims=1))


def scale_is_an_input(layer):
    x = layer.b.op("SimplifiedLayerNormalization", layer.x, layer.b.input("scale", [K]), axis=-1)
    return layer.product("product", None, x)


def norm_of_two_axes(layer):
    scale = np.ones((5, K), np.float32)
    return layer.product("product", None, norm(layer, layer.x, scale=scale, axis=1))


def residual_of_another_shape(layer):
    return layer.b.op("Add", layer.product("product"), layer.b.input("residual", ["batch", "other", N]))


def half_read_twice(layer):
    parts = layer.b.op("Split", layer.product("product", N=2 * N), axis=-1, num_outputs=2, outputs=2)
    y = layer.b.op("Mul", layer.b.op("Relu", parts[0]), parts[1])
    return layer.b.op("Add", y, layer.b.op("ReduceSum", parts[1], keepdims=1))


LEFT = {
    "a norm that is read twice": read_twice,
    "the scale is an input": scale_is_an_input,
    "a norm over two axes": norm_of_two_axes,
    "a residual of another shape": residual_of_another_shape,
    "a half that is read twice": half_read_twice,
    "a product added to itself": lambda layer: layer.b.op("Add", *[layer.product("product")] * 2),
    "three are added": lambda layer: layer.b.op("Sum", layer.product("product"), *_inputs(layer, "a", "b")),
    "halves along another axis": lambda layer: halves(layer, layer.product("product"), "Relu", axis=1, sizes=[3, 3]),
    "parts that differ": lambda layer: layer.b.op(
        "Relu", layer.b.op("Split", layer.product("product", N=64), _sizes(layer, N, 16), axis=-1, outputs=2)[0]
    ),
}


def _inputs(layer, *names):
    return [layer.b.input(name, ["batch", "sequence", N]) for name in names]


def _sizes(layer, *sizes):
    return layer.b.constant("sizes", np.array(sizes, np.int64))


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left(what):
    layer = Layer()
    model = layer.model(LEFT[what](layer))
    session = ep.session(model, options())
    assert taken(session) in (None, ["MatMulNBits"])
    stock = ort.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    rows = (2, 6) if what == "halves along another axis" else (2, 5)
    shapes = {"scale": (K,)}
    more = [(i.name, shapes.get(i.name, (*rows, N))) for i in session.get_inputs()[1:]]
    (got,), (want,) = run(session, rows, more=more), run(stock, rows, more=more)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_float16_is_left():
    """There each node rounds."""
    layer = Layer(np.float16)
    y = layer.b.op("Add", layer.product("product"), layer.b.input("up", ["batch", "sequence", N], layer.kind))
    check(layer.model(y), ["MatMulNBits"], dtype=np.float16, tolerance=4e-3, more=["up"])


def test_quick_gelu_of_a_half():
    layer = Layer()
    parts = layer.b.op("Split", layer.product("product", N=2 * N), axis=-1, num_outputs=2, outputs=2)
    y = layer.b.op("Mul", layer.b.op("QuickGelu", parts[0], domain=M, alpha=1.0), parts[1])
    check(layer.model(y), ["MatMulNBits", "Split", "QuickGelu", "Mul"])
