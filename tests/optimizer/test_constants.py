"""What nodes compute of constants is a constant: products take it, and the graph stays as it is where nobody does."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress import models
from onnxpress.optimizer import OnnxpressError, optimize, storage
from onnxpress.optimizer.analysis.session import open_session, session_options
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.passes import CleanUp
from onnxpress.optimizer.passes.constants import (
    array_of,
    constant_of,
    is_constant,
    mark_constants,
    sources_of,
    why_unread,
)
from onnxpress.optimizer.passes.int8_operators import Operator, understand
from onnxpress.optimizer.recipe import Recipe
from rewrites import LEVELS, run

RNG = np.random.default_rng(0)
DATA = [{"x": RNG.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]
V = graphs.weight(64, 128)
EXPERTS = np.stack([graphs.weight(64, 64, seed) for seed in range(4)])


def numbers(b, *values, name=None):
    return b.constant(name or f"n{len(b.graph.initializers)}", np.array(values))


def cut(b):
    return b.op("Squeeze", b.op("Gather", b.constant("E", EXPERTS), numbers(b, 2)), numbers(b, 0))


def sliced(b):
    part = b.op("Slice", b.constant("E", EXPERTS), numbers(b, 1), numbers(b, 2), numbers(b, 0))
    return b.op("Reshape", part, numbers(b, 64, 64))


def split(b):
    return b.op("Split", b.constant("V", V), numbers(b, 64, 64), outputs=2, axis=1)[1]


def joined(b):
    return b.op("Concat", *(b.constant(f"V{i}", graphs.weight(64, 32, i)) for i in range(2)), axis=1)


def doubled(b):
    value = b.constant("V", V)
    return b.op("Concat", value, value, axis=1)


def scaled(b):
    return b.op("Mul", b.constant("V", V), b.constant("k", np.float32(2)))


def normalized(b):
    direction = b.constant("V", V)
    length = b.op("ReduceL2", direction, axes=[0], keepdims=1)
    return b.op("Mul", b.op("Div", direction, length), b.constant("g", np.full((1, 128), 0.5, np.float32)))


def adapted(b):
    low_rank = b.op("MatMul", b.constant("A", graphs.weight(64, 16, 1)), b.constant("B", graphs.weight(16, 128, 2)))
    return b.op("Add", b.constant("V", V), low_rank)


def padded(b):
    return b.op("Pad", b.constant("V", V), numbers(b, 0, 0, 0, 8))


def masked(b):
    return b.op("Where", b.constant("kept", V > 0), b.constant("V", V), b.constant("zero", np.float32(0)))


def half(b):
    return b.op("Cast", b.op("Mul", b.constant("V", V.astype(np.float16)), b.constant("k", np.float16(2))), to=1)


EXPRESSIONS = (cut, sliced, split, joined, doubled, scaled, normalized, adapted, padded, masked, half)


def product(make, opset=13):
    b = graphs.Builder(opset)
    b.output(b.op("MatMul", b.input("x", ["m", 64]), make(b), name="product"), ["m", None])
    return b.model()


def output(path, level):
    chosen = session_options(ours=True)
    chosen.graph_optimization_level = level
    return open_session(path, chosen).run(None, DATA[0])[0]


@pytest.mark.parametrize(
    ("scheme", "bound"),
    [("int8", 0.03), ("int8-dynamic", 0.06), ("int8-static", 0.08), ("fp8-static", 0.15), ("sparse", 2.0)],
)
@pytest.mark.parametrize(
    ("make", "clean_up"), [*((make, True) for make in EXPRESSIONS), (split, False), (scaled, False)]
)
def test_a_computed_weight_is_taken(make, scheme, bound, clean_up, tmp_path):
    model = product(make)
    storage.save(model, tmp_path / "m.onnx")
    want = run(model, DATA[0])[0]
    settings = {"fp8-static": {"first_and_last": True}, "int8": {}, "sparse": {}}.get(scheme, {"reduce_range": True})
    recipe = Recipe(scheme=scheme, clean_up=clean_up, **settings)
    data = Calibration(DATA) if scheme.endswith("static") else None
    report = optimize(tmp_path / "m.onnx", recipe, tmp_path / "out.onnx", calibration=data)
    assert report.rewritten == {"MatMul": 1}
    assert not any("stays in float" in warning for warning in report.warnings)
    proto = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    if scheme != "sparse":
        left = [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 2]
        assert not left
        assert not {"Concat", "Split", "Slice", "Pad", "Where"} & {node.op_type for node in proto.graph.node}
    for level in LEVELS:
        got = output(tmp_path / "out.onnx", level)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= bound * np.abs(want).max()


@pytest.mark.parametrize("dtype", [ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "fp8"])
def test_a_weight_stored_in_a_type_that_schemes_do_not_take_is_what_it_is_cast_to(scheme, dtype, tmp_path):
    b = graphs.Builder()
    stored = b.constant("W", V)
    stored.const_value = ir.Tensor(V.astype(dtype.numpy()), name="W")
    stored.type = ir.TensorType(dtype)
    weight = b.op("Transpose", b.op("Transpose", b.op("Cast", stored, to=1)))
    b.output(b.op("MatMul", b.input("x", ["n", 64]), weight), ["n", 128])
    expected = run(b.model(), DATA[0])[0]
    report = optimize(b.model(), Recipe(scheme=scheme), tmp_path / "out.onnx")
    assert (report.rewritten, report.warnings) == ({"MatMul": 1}, ())
    assert "W" not in {tensor.name for tensor in onnx.load(report.output).graph.initializer}
    found = open_session(report.output, session_options()).run(None, DATA[0])[0]
    assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


def test_the_graph_stays_where_nobody_takes_the_constant():
    model = product(scaled)
    before = list(model.graph)
    with pytest.raises(OnnxpressError, match="excluded by the recipe"):
        optimize(model, Recipe(scheme="int8", exclude=("product",), clean_up=False))
    assert list(model.graph) == before


def test_one_of_two_experts_stays_in_float(tmp_path):
    b = graphs.Builder(13)
    x, experts = b.input("x", ["m", 64]), b.constant("E", EXPERTS)
    for index in (1, 3):
        weight = b.op("Squeeze", b.op("Gather", experts, numbers(b, index), name=f"pick_{index}"), numbers(b, 0))
        b.output(b.op("MatMul", x, weight, name=f"expert_{index}"), ["m", 64])
    report = optimize(b.model(), Recipe(scheme="int8", exclude=("expert_3",)), tmp_path / "out.onnx")
    assert report.rewritten == {"MatMul": 1}
    assert report.warnings == ("E also stays in float: node 'pick_3' (Gather) reads it",)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-static"])
def test_what_repeats_a_small_constant_is_left_with_that_reason(scheme):
    def repeated(b):
        return b.op("Expand", b.constant("row", V[:1]), numbers(b, 2048, 128))

    b = graphs.Builder(13)
    b.output(b.op("MatMul", b.input("x", ["m", 2048]), repeated(b)), ["m", 128])
    data = Calibration([{"x": np.ones((2, 2048), np.float32)}])
    with pytest.raises(OnnxpressError, match="no stored constant: it is computed from constants that are much smaller"):
        optimize(
            b.model(), Recipe(scheme=scheme, clean_up=False), calibration=data if scheme == "int8-static" else None
        )


def test_what_a_caller_may_override_and_what_is_random_varies():
    b = graphs.Builder(13)
    value, shape = b.constant("V", V), numbers(b, 64, 64)
    b.graph.inputs.append(value)
    made = [
        b.op("Mul", value, b.constant("k", np.float32(2))), b.op("RandomNormal", shape=[64, 64]),
        b.op("Reshape", b.input("x", [64, 64]), shape), b.op("Gather", value, numbers(b, 0), domain="custom"),
    ]  # fmt: skip
    mark_constants(b.model())
    assert not any(map(is_constant, made))


def test_nodes_that_are_wrong_are_told():
    b = graphs.Builder(13)
    wrong = [b.op("Reshape", b.constant("V", V), numbers(b, 7, 7)), b.op("Gather", b.constant("U", V), numbers(b, 900))]
    mark_constants(b.model())
    for value in wrong:
        assert constant_of(value) is None
        assert why_unread(value)


def test_numbers_are_computed_when_they_are_read_and_not_kept():
    b = graphs.Builder(13)
    large = b.constant("large", np.ones((512, 512), np.float32))
    value = b.op("Add", b.op("Mul", large, large), b.op("Neg", large))
    mark_constants(b.model())
    tensor = constant_of(value)
    assert isinstance(tensor, ir.LazyTensor)
    assert constant_of(value) is tensor
    assert sources_of(value) == (large,)
    assert not array_of(value).any()
    large.const_value = ir.tensor(np.full((512, 512), 3, np.float32))
    mark_constants(b.model())
    assert (array_of(value) == 6).all()


def test_a_clone_shares_what_was_computed():
    model = product(normalized)
    mark_constants(model)
    computed = constant_of(model.graph[-1].inputs[1])
    clone = model.clone()
    mark_constants(clone)
    assert constant_of(clone.graph[-1].inputs[1]) is computed
    assert sources_of(clone.graph[-1].inputs[1])[0] is clone.graph.initializers["V"]


def test_a_constant_operand_is_not_calibrated():
    """Of a sum within codes, too."""
    b = graphs.Builder(13)
    x = b.input("x", [4, 64])
    y = b.op("MatMul", x, b.constant("W", graphs.weight(64, 64)))
    y = b.op("Add", y, b.op("Mul", b.constant("row", V[:1, :64]), b.constant("k", np.float32(2))))
    b.output(b.op("MatMul", y, b.constant("U", graphs.weight(64, 64, 1))), [4, 64])
    model = b.model()
    optimize(model, Recipe(scheme="int8-static", clean_up=False), calibration=Calibration(DATA))
    rounded = [node.inputs[0] for node in model.graph if node.op_type == "QuantizeLinear"]
    assert not any(map(is_constant, rounded))


@pytest.mark.real
def test_the_classifier_of_inception_has_a_weight():
    model = storage.load(models.path("light-inception-v1"))
    CleanUp()(model)
    mark_constants(model)
    (gemm,) = (node for node in model.graph if node.op_type == "Gemm")
    operator = understand(gemm)
    assert isinstance(operator, Operator)
    assert operator.parameters == 1024 * 1000


OPERATORS = {
    "Einsum": ((V,), {"equation": "ij,ij->ij"}), "Trilu": ((), {}), "Sin": ((), {}), "LeakyRelu": ((), {}),
    "LayerNormalization": ((np.ones(128, np.float32),), {}), "HardSwish": ((), {}), "Dropout": ((), {}),
    "PRelu": ((np.float32(0.1),), {}), "LpNormalization": ((), {"axis": 0}), "Softsign": ((), {}),
    "Pow": ((np.float32(2),), {}), "Tile": ((np.array([1, 1]),), {}), "ReduceLogSumExp": ((), {"keepdims": 0}),
    "Expand": ((np.array([1, 64, 128]),), {}),
}  # fmt: skip


@pytest.mark.parametrize("op_type", OPERATORS)
def test_what_operators_make_of_constants(op_type):
    more, attributes = OPERATORS[op_type]
    b = graphs.Builder(18)
    inputs = [b.constant(f"c{index}", np.asarray(array)) for index, array in enumerate((V, *more))]
    value = b.op(op_type, *inputs, **attributes)
    b.output(value, [])
    value.shape = None
    model = b.model()
    mark_constants(model)
    assert is_constant(value)
    np.testing.assert_array_equal(array_of(value), run(model, {})[0])


@pytest.mark.parametrize("op_type", ["RandomNormalLike", "Bernoulli", "Dropout"])
def test_what_is_drawn_is_no_constant(op_type):
    b = graphs.Builder(18)
    more = [None, b.constant("training", np.array(True))] if op_type == "Dropout" else []
    value = b.op(op_type, b.constant("V", V), *more)
    b.output(value, [64, 128])
    model = b.model()
    mark_constants(model)
    assert not is_constant(value)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-static", "fp8-dynamic"])
def test_a_weight_that_einsum_makes_of_constants(scheme, tmp_path):
    def joined(b):
        return b.op("Einsum", b.constant("V", V), b.constant("M", graphs.weight(128, 96, 1)), equation="ij,jk->ik")

    want = run(product(joined), DATA[0])[0]
    data = Calibration(DATA) if scheme.endswith("static") else None
    report = optimize(product(joined), Recipe(scheme=scheme), tmp_path / "out.onnx", calibration=data)
    assert report.rewritten == {"MatMul": 1}
    assert np.abs(output(tmp_path / "out.onnx", LEVELS[1]) - want).max() < 0.12 * np.abs(want).max()
