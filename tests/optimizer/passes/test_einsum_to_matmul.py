"""Sums over labelled axes that are products with a matrix: all orders, what is left and why, and that it is rounded."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from onnxpress.optimizer import Override, Recipe
from onnxpress.optimizer.passes.einsum_to_matmul import EinsumToMatMul
from rewrites import emitted, rewritten, run

SIZES = {"a": 2, "b": 3, "c": 16, "d": 4, "e": 8, "f": 6}


def model(equation, constant=1, x_shape=None):
    """One sum of an input x and a constant W, sizes by label."""
    b = graphs.Builder(13)
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = [[SIZES[label] for label in term.replace("...", "ab")] for term in terms]
    rng = np.random.default_rng(3)
    weight = b.constant("W", rng.standard_normal(sizes[constant]).astype(np.float32))
    x = b.input("x", x_shape or ["n", *sizes[1 - constant][1:]])
    operands = [x, weight] if constant else [weight, x]
    y = b.op("Einsum", *operands, equation=equation, name="sum")
    feeds = {"x": rng.standard_normal(sizes[1 - constant]).astype(np.float32)}
    both = [feeds["x"], weight.const_value.numpy()]
    rank = np.einsum(equation.replace(" ", ""), *both[:: 1 if constant else -1]).ndim
    b.output(y, [f"size{axis}" for axis in range(rank)])
    return b.model(), feeds


@pytest.mark.parametrize(
    ("equation", "types"),
    [
        ("abc,ce->abe", ["MatMul"]),
        ("abc,ec->abe", ["Transpose", "MatMul"]),
        ("abc,cde->abde", ["Reshape", "MatMul", "Reshape"]),
        ("abc,cde->adbe", ["Reshape", "MatMul", "Reshape", "Transpose"]),
        ("abde,dec->abc", ["Reshape", "Reshape", "MatMul"]),
        ("adbe,dec->abc", ["Transpose", "Reshape", "Reshape", "MatMul"]),
        ("abde,edc->cba", ["Reshape", "Transpose", "Reshape", "MatMul", "Transpose"]),
        ("abcd,cdef->abef", ["Reshape", "Reshape", "MatMul", "Reshape"]),
        ("acb,ce->abe", ["Transpose", "MatMul"]),
        ("ac,ce", ["MatMul"]),
        ("ba,bc", ["Transpose", "MatMul"]),
        (" a b c , c e -> a b e ", ["MatMul"]),
        ("...c,ce->...e", ["MatMul"]),
        ("...c,cde->...de", ["Reshape", "MatMul", "Reshape"]),
        ("...c,ce", ["MatMul"]),
        ("c...,ce->e...", ["Transpose", "MatMul", "Transpose"]),
    ],
)
def test_products(equation, types):
    found, feeds = model(equation)
    assert rewritten(found, EinsumToMatMul(), feeds, depth=256) == types
    (product,) = [node for node in found.graph if node.op_type == "MatMul"]
    assert product.name == "sum"
    assert not EinsumToMatMul()(found)


def test_the_constant_may_be_first():
    found, feeds = model("ce,abc->abe", constant=0, x_shape=["n", 3, 16])
    assert rewritten(found, EinsumToMatMul(), feeds, depth=64) == ["MatMul"]


def test_no_rows():
    """Sizes are copied from what is read, also those that are 0."""
    found, _ = model("abc,cde->abde")
    EinsumToMatMul()(found)
    (y,) = run(found, {"x": np.zeros((0, 3, 16), np.float32)})
    assert y.shape == (0, 3, 4, 8)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("abc,ce->ae", "not every label is in two"),  # b is summed over in x alone
        ("abc,ace->abe", "not every label is in two"),  # a product for each a
        ("abc,cde->abe", "not every label is in two"),  # d is summed over in W alone
        ("ab,ce->abce", "not every label is in two"),
        ("c,c->", "not every label is in two"),
        ("aac,ce->ae", "a label stands for two axes"),
        ("abc,...c->ab...", "an ellipsis stands for axes of the constant"),
    ],
)
def test_left_with_the_reason(equation, reason):
    found, feeds = model(equation, x_shape=[SIZES[label] for label in equation.split(",")[0]])
    step = EinsumToMatMul()
    assert rewritten(found, step, feeds, depth=64, changes=False) == ["Einsum"]
    assert reason in step.left["sum"]


def test_an_ellipsis_of_unknown_length_is_left():
    found, _ = model("...c,ce->...e")
    found.graph.inputs[0].shape = None
    step = EinsumToMatMul()
    assert not step(found)
    assert step.left == {"sum": "an ellipsis stands for a number of axes that is not known"}


def test_sums_of_two_tensors_and_of_whole_numbers_stay():
    b = graphs.Builder(13)
    x, y = b.input("x", ["n", 3, 8]), b.input("y", ["n", 8, 3])
    b.output(b.op("Einsum", x, y, equation="abc,acd->abd"), ["n", 3, 3])
    step = EinsumToMatMul()
    assert not step(b.model())
    assert not step.left


def test_is_rounded_under_its_own_name(tmp_path):
    """As int4 by default, and kept in float where an override says so."""
    b = graphs.Builder(17)
    x = b.input("x", ["n", "t", 64])
    heads = b.op("Einsum", x, b.constant("Wq", graphs.weight(64, 64).reshape(64, 4, 16)), equation="btc,chd->bhtd",
                 name="query")  # fmt: skip
    y = b.op("Einsum", heads, b.constant("Wo", graphs.weight(64, 64, 1).reshape(4, 16, 64)), equation="bhtd,hdc->btc",
             name="output")  # fmt: skip
    b.output(y, ["n", "t", 64])
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)}
    (want,) = run(b.model(), feeds)
    proto, report = emitted(b.model(), Recipe(accuracy_level=0), tmp_path)
    assert [node.op_type for node in proto.graph.node if node.op_type == "MatMulNBits"] == ["MatMulNBits"] * 2
    assert {name for weight in report.weights for name in weight.nodes} == {"query", "output"}
    (got,) = run(proto.SerializeToString(), feeds)
    assert np.linalg.norm(got - want) < 0.2 * np.linalg.norm(want)
    kept = Recipe(overrides=(Override(match="query", keep_float=True),))
    _, report = emitted(b.model(), kept, tmp_path)
    assert {name for weight in report.weights for name in weight.nodes} == {"output"}
