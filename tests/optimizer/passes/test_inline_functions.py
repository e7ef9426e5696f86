"""Functions of a model become nodes where clean-up can inline them."""

from __future__ import annotations

import onnx
import pytest
from cleaning import branch, check, function, model_of, node
from onnx import helper
from rewrites import op_types


def by_slope(slope):
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    return function("F", ["b"], [leaky], attribute_protos=[helper.make_attribute("slope", slope)])


CALLS = {
    "twice": (
        [function("F", ["b"], [node("Neg", ["a"], ["t"]), node("Exp", ["t"], ["b"])])],
        [node("F", ["x"], ["t"], domain="my"), node("F", ["t"], ["y"], domain="my")],
    ),
    "names that are there": (
        [function("F", ["b"], [node("Neg", ["a"], ["t"]), node("Add", ["t", "a"], ["b"])])],
        [node("Abs", ["x"], ["t"]), node("F", ["t"], ["u"], domain="my"), node("Mul", ["u", "t"], ["y"])],
    ),
    "of another opset": (
        [function("F", ["b"], [node("Relu", ["a"], ["b"])], opset=13)],
        [node("F", ["x"], ["y"], domain="my")],
    ),
    "without an input": (
        [function("F", ["b"], [node("Clip", ["a", "", "c"], ["b"])], inputs=("a", "c"))],
        [node("F", ["x"], ["y"], domain="my")],
    ),
    "a default": ([by_slope(0.25)], [node("F", ["x"], ["y"], domain="my")]),
    "an attribute": ([by_slope(0.25)], [node("F", ["x"], ["y"], domain="my", slope=0.5)]),
    "in a branch": (
        [function("F", ["b"], [node("Neg", ["a"], ["t"]), node("Exp", ["t"], ["b"])])],
        [
            node("Abs", ["x"], ["t"]),
            node("Cast", ["t"], ["c"], to=9),
            node("ReduceMax", ["t"], ["m"], keepdims=0),
            node("Cast", ["m"], ["k"], to=9),
            node(
                "If",
                ["k"],
                ["y"],
                then_branch=branch([node("F", ["t"], ["q"], domain="my")], "q"),
                else_branch=branch([node("F", ["x"], ["p"], domain="my")], "p"),
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_are_inlined(name):
    functions, nodes = CALLS[name]
    result = check(model_of(nodes, functions=functions, domains=["my"]))
    assert not result.functions


def test_a_function_in_the_name_of_an_operator_is_none():
    """ONNX Runtime takes its own operator."""
    shadow = function("Relu", ["b"], [node("Neg", ["a"], ["b"])], domain="")
    result = check(model_of([node("Relu", ["x"], ["y"])], functions=[shadow], domains=["my"]))
    assert op_types(result) == ["Relu"]
