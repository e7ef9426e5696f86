"""Rewrites that come before recipes are asked: patterns and reports call an operator what the user's model calls it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Builder
from onnx import parser
from onnxpress.optimizer.analysis.inspect import inspect
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.conversion.pipeline import optimize
from onnxpress.optimizer.graph.rewriting import original_name, original_type, remember_name, take_over_name
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.raise_opset import RaiseOpset
from onnxpress.optimizer.settings.recipe import Override, Recipe
from schemes import ROUNDING


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(b: Builder, op_type: str, bias: np.ndarray | None = None, **attributes) -> ir.Value:
    """A product named "mine" of 32 inputs and outputs."""
    if op_type in ("Conv", "ConvTranspose"):
        x, w = b.input("x", [1, 32, 6, 6]), noise(32, 32, 3, 3) / 17
    else:
        x, w = b.input("x", [4, 32]), noise(32, 32) / 6
    more = [] if bias is None else [b.constant("b", bias)]
    return b.op(op_type, x, b.constant("w", w), *more, name="mine", **attributes)


def finished(b: Builder, y: ir.Value) -> ir.Model:
    b.output(y, [1])
    y.shape = None
    return b.model()


def normalized(op_type: str) -> ir.Model:
    b = Builder(17)
    y = product(b, op_type)
    parts = [b.constant(f"p{i}", abs(noise(32, seed=i)) + 1) for i in range(4)]
    return finished(b, b.op("BatchNormalization", y, *parts, name="norm"))


def scaled() -> ir.Model:
    b = Builder(17)
    y = b.op("Mul", product(b, "Conv", noise(32)), b.constant("scale", np.float32(2)), name="scaled")
    return finished(b, b.op("Add", y, b.constant("offset", np.float32(1)), name="moved"))


def padded() -> ir.Model:
    b = Builder(17)
    x = b.op("Pad", b.input("x", [1, 32, 6, 6]), b.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])), name="pad")
    return finished(b, b.op("Conv", x, b.constant("w", noise(32, 32, 3, 3) / 17), name="mine"))


def padded_to_be_the_same() -> ir.Model:
    b = Builder(17)
    return finished(b, product(b, "Conv", noise(32), auto_pad="SAME_UPPER"))


def with_no_bias(op_type: str) -> ir.Model:
    b = Builder(17)
    return finished(b, product(b, op_type, np.zeros(32, np.float32)))


def padded_and_normalized() -> ir.Model:
    """Two rules, one after the other."""
    b = Builder(17)
    x = b.op("Pad", b.input("x", [1, 32, 6, 6]), b.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])), name="pad")
    y = b.op("Conv", x, b.constant("w", noise(32, 32, 3, 3) / 17), name="mine")
    parts = [b.constant(f"p{i}", abs(noise(32, seed=i)) + 1) for i in range(4)]
    return finished(b, b.op("BatchNormalization", y, *parts, name="norm"))


def reshaped() -> ir.Model:
    b = Builder(17)
    x = b.op("Reshape", b.input("x", [4, 6, 32]), b.constant("flat", np.array([1, 24, 32])))
    y = b.op("MatMul", x, b.constant("w", noise(32, 32) / 6), name="mine")
    y = b.op("Reshape", y, b.constant("back", np.array([4, 6, 32])))
    b.output(y, [4, 6, 32])
    return b.model()


def biased() -> ir.Model:
    b = Builder(17)
    y = b.op("Add", product(b, "MatMul"), b.constant("b", noise(32)), name="bias")
    return finished(b, b.op("Relu", y))


CASES = {
    "Conv and BatchNormalization": (lambda: normalized("Conv"), "Conv"),
    "ConvTranspose and BatchNormalization": (lambda: normalized("ConvTranspose"), "ConvTranspose"),
    "Gemm and BatchNormalization": (lambda: normalized("Gemm"), "Gemm"),
    "Conv, Mul and Add": (scaled, "Conv"),
    "Pad and Conv": (padded, "Conv"),
    "Pad, Conv and BatchNormalization": (padded_and_normalized, "Conv"),
    "automatic padding": (padded_to_be_the_same, "Conv"),
    "a Conv whose bias is zero": (lambda: with_no_bias("Conv"), "Conv"),
    "a ConvTranspose whose bias is zero": (lambda: with_no_bias("ConvTranspose"), "ConvTranspose"),
    "a Gemm whose bias is zero": (lambda: with_no_bias("Gemm"), "Gemm"),
    "MatMul between Reshapes": (reshaped, "MatMul"),
    "MatMul and Add": (biased, "MatMul"),
}
SCHEMES = [*ROUNDING, "fp8"]
ENDS = {"fp8-static": {"first_and_last": True}, "fp8-dynamic": {"first_and_last": True}}


def takes(scheme: str, op_type: str) -> bool:
    """Whether a scheme takes an operator of a whole model."""
    left = {"Conv": ("int4", "int8-dynamic", "sparse"), "ConvTranspose": ("fp8",)}
    return (scheme in left[op_type]) == (op_type == "ConvTranspose") if op_type in left else True


TAKEN = [(name, scheme) for name, (_, op_type) in CASES.items() for scheme in SCHEMES if takes(scheme, op_type)]


def looked_at(folder, case: str, scheme: str, **settings):
    storage.save(CASES[case][0](), folder / "model.onnx")
    return inspect(folder / "model.onnx", Recipe(scheme=scheme, **ENDS.get(scheme, {}), **settings))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_a_product_is_called_what_it_was(tmp_path, case, scheme):
    found, op_type = looked_at(tmp_path, case, scheme), CASES[case][1]
    named = [row[:2] for row in (found.taken if takes(scheme, op_type) else found.left)]
    assert ("mine", op_type) in named
    assert sum(each[1] in ("Conv", "ConvTranspose", "Gemm", "MatMul") for each in named) == 1


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(("case", "scheme"), TAKEN)
def test_a_recipe_keeps_it_by_that(tmp_path, case, scheme, by_name):
    op_type = CASES[case][1]
    kept = {"exclude": ("mine",)} if by_name else {"overrides": (Override(op_type=op_type, keep_float=True),)}
    found = looked_at(tmp_path, case, scheme, **kept)
    assert "mine" not in [name for name, *_ in found.taken]
    (reason,) = [reason for name, kind, reason in found.left if (name, kind) == ("mine", op_type)]
    assert reason == ("excluded by the recipe" if by_name else "kept in float by an override of the recipe")


def perceptron() -> ir.Model:
    """Three MatMuls with biases."""
    b = Builder(17)
    y = b.input("x", ["batch", 32])
    for i in range(3):
        y = b.op("MatMul", y, b.constant(f"w{i}", noise(32, 32, seed=i) / 6), name=f"fc{i}")
        y = b.op("Relu", b.op("Add", y, b.constant(f"b{i}", noise(32, seed=i)), name=f"bias{i}"))
    b.output(y, ["batch", 32])
    return b.model()


def data() -> Calibration:
    return Calibration([{"x": noise(2, 32, seed=i)} for i in range(4)])


def test_reports_name_the_matmul(tmp_path):
    storage.save(perceptron(), tmp_path / "m.onnx")
    report = optimize(tmp_path / "m.onnx", Recipe(scheme="int8-static", exclude=("fc0",)), calibration=data())
    assert report.rewritten == {"MatMul": 2}
    assert report.left["MatMul: excluded by the recipe"] == 1
    assert {node for weight in report.weights for node in weight.nodes} == {"fc1", "fc2"}
    assert not report.warnings
    assert "w0" in {value.name for value in onnx.load(report.output).graph.initializer}


def test_one_kept_by_a_measurement_is_the_matmul(tmp_path):
    storage.save(perceptron(), tmp_path / "m.onnx")
    report = optimize(tmp_path / "m.onnx", Recipe(scheme="int8-static", max_drop=1e-9), calibration=data())
    kept = set(report.details["mixed_precision"]["kept"])
    assert kept
    assert kept <= {"fc0", "fc1", "fc2"}


CALLED_TWICE = """<ir_version: 9, opset_import: ["": 17, "own": 1]>
    g (float[4,64] x) => (float[4,64] y) { [one] a = own.block(x, w)  [two] y = own.block(a, w) }
    <domain: "own", opset_import: ["": 17]> block (x, w) => (z) { [inner] t = MatMul(x, w)  z = Relu(t) }"""
NESTED = """<ir_version: 9, opset_import: ["": 17, "own": 1]>
    g (float[4,64] x) => (float[4,64] y) { [one] y = own.outer(x, w) }
    <domain: "own", opset_import: ["": 17]> block (x, w) => (z) { [inner] t = MatMul(x, w)  z = Relu(t) }
    <domain: "own", opset_import: ["": 17, "own": 1]> outer (x, w) => (z) { [call] z = own.block(x, w) }"""
BRANCH = """<ir_version: 9, opset_import: ["": 17]>
    g (float[4,64] x) => (float[4,64] y) <bool c = {1}> {
        [branch] y = If(c) <then_branch = t () => (q) { [inner] p = MatMul(x, w)  q = Relu(p) },
                            else_branch = e () => (q) { [other] q = MatMul(x, w) }> }"""


def parsed(text: str, path) -> object:
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(noise(64, 64) / 8, "w"))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [(CALLED_TWICE, ["inner", "inner_2"]), (NESTED, ["inner"]), (BRANCH, ["inner"])],
    ids=["called twice", "nested", "branch"],
)
def test_nodes_of_functions_and_branches(tmp_path, text, names):
    path = parsed(text, tmp_path / "m.onnx")
    found = inspect(path, Recipe(scheme="int4"))
    assert [row[:2] for row in found.taken] == [(name, "MatMul") for name in names]
    kept = inspect(path, Recipe(scheme="int4", exclude=("inner*",)))
    assert [row for row in kept.left if row[1] == "MatMul"] == [
        (name, "MatMul", "excluded by the recipe") for name in names
    ]
    assert not kept.taken
    first = inspect(path, Recipe(scheme="int4", exclude=("inner",)))
    assert [name for name, op_type, _ in first.left if op_type == "MatMul"] == ["inner"]


def test_one_of_two_calls_is_kept_by_its_number(tmp_path):
    path = parsed(CALLED_TWICE, tmp_path / "m.onnx")
    report = optimize(path, Recipe(scheme="int4", exclude=("inner_2",)))
    assert report.rewritten == {"MatMul": 1}
    assert report.left == {"MatMul: excluded by the recipe": 1}
    assert report.warnings == ("w also stays in float: node 'inner_2' (MatMul) reads it",)


def test_a_function_that_is_called_once_has_no_number(tmp_path):
    report = optimize(parsed(NESTED, tmp_path / "m.onnx"), Recipe(scheme="int4", include=("inner",)))
    assert report.rewritten == {"MatMul": 1}
    assert not report.warnings


@pytest.mark.parametrize("op_type", ["Sum", "Gate", "HardSwish"])
def test_sums_and_products_of_two_tensors(tmp_path, op_type):
    """Those that extended coverage takes, in other forms than they were written in."""
    b = Builder(17)
    x = b.input("x", [1, 8, 4, 4])
    if op_type == "Sum":
        y = b.op("Sum", x, b.op("Tanh", x), name="mine")
    elif op_type == "HardSwish":
        y = b.op("HardSwish", b.op("Tanh", x), name="mine")
    else:
        gate = b.op("GlobalAveragePool", x, name="pool")
        gate.type, gate.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 8, 1, 1])
        y = b.op("Add", x, b.op("Mul", x, gate, name="scaled"), name="mine")
        op_type = "Add"
    b.output(y, [1, 8, 4, 4])
    storage.save(b.model(), tmp_path / "m.onnx")
    extended = {"scheme": "fp8-dynamic", "coverage": "extended"}
    assert [row[:2] for row in inspect(tmp_path / "m.onnx", Recipe(**extended)).taken] == [("mine", op_type)]
    for kept in ({"exclude": ("mine",)}, {"overrides": (Override(op_type=op_type, keep_float=True),)}):
        found = inspect(tmp_path / "m.onnx", Recipe(**extended, **kept))
        assert not found.taken
        assert ("mine", op_type) in [row[:2] for row in found.left]


def test_nodes_without_names_share_nothing():
    b = Builder(11)
    x = b.input("x", [4, 32])
    y = b.op("MatMul", b.op("Tanh", x), b.constant("w", noise(32, 32)))
    b.output(b.op("Relu", y), [4, 32])
    model = b.model()
    for node in model.graph:
        node.name = ""
    product = next(node for node in model.graph if node.op_type == "MatMul")
    product.meta.clear()
    remember_name(product)
    RaiseOpset(13)(model)
    assert [original_type(node) for node in model.graph] == ["Tanh", "MatMul", "Relu"]


def test_a_node_stands_for_what_another_stood_for():
    first, second, third = (ir.node(op_type, [], name=op_type.lower()) for op_type in ("MatMul", "Gemm", "Conv"))
    take_over_name(second, first)
    take_over_name(third, second)
    assert (third.name, original_name(third), original_type(third)) == ("matmul", "matmul", "MatMul")


def test_names_stay_unique():
    model = normalized("Conv")
    CleanUp()(model)
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names))
    assert "mine" in names
