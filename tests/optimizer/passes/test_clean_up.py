"""Clean-up as a whole: what it folds, merges, inlines and removes, what stays, and what becomes of steps that fail."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cleaning import X, branch, check, cleaned, function, info, model_of, node
from graphs import Builder, weight
from onnx import helper, numpy_helper
from onnxpress.optimizer import optimize
from onnxpress.optimizer.model_io.normalise import normalise
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.inline_functions import InlineFunctions
from onnxpress.optimizer.passes.merge_equal import MergeEqual
from onnxpress.optimizer.runtime.session import open_session, session_options
from rewrites import op_types, run

RNG = np.random.default_rng(3)


# What a caller may override


OVERRIDABLE = {
    "shape of Expand": ([node("Expand", ["x", "d"], ["y"])], [4, 6], None),
    "condition": (
        [
            node(
                "If",
                ["d"],
                ["y"],
                then_branch=branch([node("Abs", ["x"], ["a"])], "a"),
                else_branch=branch([node("Neg", ["x"], ["n"])], "n"),
            )
        ],
        True,
        False,
    ),
    "through Identity and Not": (
        [
            node("Identity", ["d"], ["i"]),
            node("Not", ["i"], ["k"]),
            node(
                "If",
                ["k"],
                ["y"],
                then_branch=branch([node("Abs", ["x"], ["a"])], "a"),
                else_branch=branch([node("Neg", ["x"], ["n"])], "n"),
            ),
        ],
        True,
        False,
    ),
    "number added": ([node("Add", ["x", "d"], ["y"])], np.float32(0), np.float32(2)),
    "number in a body": (
        [
            node(
                "If",
                ["t"],
                ["y"],
                then_branch=branch([node("Mul", ["x", "d"], ["a"])], "a"),
                else_branch=branch([node("Neg", ["x"], ["n"])], "n"),
            )
        ],
        np.float32(1),
        np.float32(3),
    ),
    "weight": (
        [node("Transpose", ["d"], ["w"], perm=[1, 0]), node("MatMul", ["x", "w"], ["y"])],
        weight(5, 6),
        weight(5, 6, 1),
    ),
    "reshaped weight": (
        [node("Reshape", ["d", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
        weight(5, 6),
        weight(5, 6, 1),
    ),
    "ratio of Dropout": ([node("Dropout", ["x", "d"], ["y"])], np.float32(0.5), np.float32(0.9)),
    "training of Dropout": ([node("Dropout", ["x", "", "d"], ["y"])], False, None),
    "end of a Slice": ([node("Slice", ["x", "zero", "d", "zero"], ["y"])], [4], [2]),
    "nothing": ([node("Abs", ["x"], ["y"])], np.float32(1), np.float32(2)),
}


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_a_default_stays_and_can_be_overridden(name):
    nodes, default, other = OVERRIDABLE[name]
    default = np.asarray(default)
    kind = helper.np_dtype_to_tensor_dtype(default.dtype)
    constants = {"d": default, "t": np.array(True), "s": np.array([6, 5]), "zero": np.array([0])}
    model = model_of(nodes, inputs=[info("d", default.shape, kind)], constants=constants)
    result = check(model, X, *([] if other is None else [{**X, "d": np.asarray(other, default.dtype)}]))
    assert [value.name for value in result.graph.inputs] == ["x", "d"]
    assert "d" in result.graph.initializers


def test_inputs_keep_their_shapes():
    nodes = [
        node("Identity", ["x"], ["i"]),
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["y"], to=1),
        node("Abs", ["i"], ["z"]),
    ]
    model = model_of(nodes, ("y", "z"))
    model.graph.inputs[0].shape = ir.Shape(["N", 6])
    model.graph[0].outputs[0].shape = ir.Shape([1, 6])  # stated, and wrong for other batches
    result = check(model)
    assert list(result.graph.inputs[0].shape) == ["N", 6]


# What draws numbers, or might


DRAWS = {
    "Bernoulli": [node("Bernoulli", ["p"], ["a"]), node("Bernoulli", ["p"], ["b"])],
    "Dropout that trains": [node("Dropout", ["p", "r", "t"], ["a"]), node("Dropout", ["p", "r", "t"], ["b"])],
    "RandomNormal": [node("RandomNormal", [], ["a"], shape=[4, 6]), node("RandomNormal", [], ["b"], shape=[4, 6])],
    "RandomUniformLike": [node("RandomUniformLike", ["p"], ["a"]), node("RandomUniformLike", ["p"], ["b"])],
    "in a branch": [
        node(
            "If",
            ["t"],
            ["a"],
            then_branch=branch([node("Bernoulli", ["p"], ["c"])], "c"),
            else_branch=branch([node("Neg", ["p"], ["d"])], "d"),
        ),
        node("Bernoulli", ["p"], ["b"]),
    ],
    "in a function": [node("Draw", ["p"], ["a"], domain="my"), node("Draw", ["p"], ["b"], domain="my")],
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_stay_draws(name):
    body = [node("Bernoulli", ["q"], ["r"])]
    function = helper.make_function("my", "Draw", ["q"], ["r"], body, [helper.make_opsetid("", 17)])
    constants = {"p": np.full((64, 64), 0.5, np.float32), "r": np.float32(0.5), "t": np.array(True)}
    model = model_of(DRAWS[name], ("a", "b"), constants=constants, functions=[function], domains=["my"])
    session = open_session(ir.to_proto(cleaned(model)).SerializeToString(), session_options())
    (a, b), (again, _) = (session.run(None, X) for _ in range(2))
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, again)


def test_what_only_a_library_knows_is_neither_merged_nor_removed():
    nodes = [node("Sample", ["x"], [name], domain="my") for name in ("a", "b", "unread")]
    model = cleaned(model_of([*nodes, node("Add", ["a", "b"], ["y"])], domains=["my"]))
    assert op_types(model) == ["Sample", "Sample", "Sample", "Add"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_dropout_of_inference_goes():
    model = model_of(
        [node("Dropout", ["x", "r", "t"], ["d", "m"]), node("Abs", ["d"], ["y"]), node("Cast", ["m"], ["z"], to=1)],
        ("y", "z"),
        constants={"r": np.float32(0.5), "t": np.array(False)},
    )
    assert "Dropout" not in op_types(check(model))


# Equal nodes


def test_equal_nodes_are_merged():
    nodes = [
        node("Abs", ["x"], ["a"]),
        node("Abs", ["x"], ["b"]),
        node("LeakyRelu", ["a"], ["c"], alpha=0.5),
        node("LeakyRelu", ["b"], ["d"], alpha=0.5),
        node("Add", ["c", "d"], ["y"]),
    ]
    assert op_types(check(model_of(nodes))) == ["Abs", "LeakyRelu", "Add"]


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (np.zeros(6, np.float32), np.zeros(6, np.float32), True),
        (np.zeros(6, np.float32), np.ones(6, np.float32), False),
        (np.zeros(6, np.float32), np.zeros((1, 6), np.float32), False),
        (np.zeros((4, 6), np.float32), np.zeros((4, 6), np.float32), False),  # of too many numbers to read
    ],
)
def test_nodes_that_read_the_same_few_numbers_are_merged(first, second, merged):
    nodes = [node("Add", ["x", "p"], ["a"]), node("Add", ["x", "q"], ["b"]), node("Mul", ["a", "b"], ["y"])]
    model = model_of(nodes, constants={"p": first, "q": second})
    assert MergeEqual()(model.clone()).modified == merged
    check(model)


@pytest.mark.parametrize(
    "nodes",
    [
        [
            node("LeakyRelu", ["x"], ["a"], alpha=0.5),
            node("LeakyRelu", ["x"], ["b"], alpha=0.25),
            node("Add", ["a", "b"], ["y"]),
        ],
        [
            node("Constant", [], ["p"], value_float=0.0),
            node("Constant", [], ["q"], value_float=-0.0),
            node("Div", ["x", "p"], ["a"]),
            node("Div", ["x", "q"], ["b"]),
            node("Max", ["a", "b"], ["y"]),
        ],
        [node("Sub", ["x", "w"], ["a"]), node("Sub", ["w", "x"], ["b"]), node("Mul", ["a", "b"], ["y"])],
    ],
)
def test_unlike_nodes_stay(nodes):
    model = model_of(nodes, constants={"w": np.float32(2)})
    assert not MergeEqual()(model.clone())
    check(model)


def test_outputs_of_the_model_stay_apart():
    model = model_of(
        [
            node("Abs", ["x"], ["y"]),
            node("Abs", ["x"], ["z"]),
            node("Identity", ["x"], ["w"]),
            node("Identity", ["x"], ["v"]),
        ],
        ("y", "z", "w", "v"),
    )
    assert [value.name for value in check(model).graph.outputs] == ["y", "z", "w", "v"]


# Branches


RETURNED = {
    "of a node": ([node("Abs", ["x"], ["r"])], "r", []),
    "its own constant": ([], "r", [numpy_helper.from_array(X["x"] * 2, "r")]),
    "of a constant node": ([node("Constant", [], ["r"], value=numpy_helper.from_array(X["x"] * 3))], "r", []),
    "folded": ([node("Mul", ["w", "w"], ["m"]), node("Mul", ["x", "m"], ["r"])], "r", []),
    "an outer value": ([node("Identity", ["x"], ["r"])], "r", []),
}


@pytest.mark.parametrize("name", RETURNED)
@pytest.mark.parametrize("constant", [True, False])
def test_branches(name, constant):
    nodes, output, constants = RETURNED[name]
    other = branch([node("Neg", ["x"], ["o"])], "o")
    choose = node("If", ["c"], ["h"], then_branch=branch(nodes, output, constants), else_branch=other)
    for outputs, more in ((("h",), []), (("y",), [node("Mul", ["h", "w"], ["y"])])):
        inputs = [] if constant else [info("c", [], onnx.TensorProto.BOOL)]
        held = {"w": np.float32(2), **({"c": np.array(True)} if constant else {})}
        model = model_of([choose, *more], outputs, inputs=inputs, constants=held)
        result = check(model, *([X] if constant else [{**X, "c": np.array(value)} for value in (True, False)]))
        assert ("If" in op_types(result)) is not constant


@pytest.mark.parametrize("condition", [True, None])
@pytest.mark.parametrize("returned", ["x", "w"])
def test_a_branch_that_returns_an_outer_value_gets_a_node_for_it(condition, returned):
    """ONNX Runtime refuses it as it is."""
    choose = node(
        "If", ["c"], ["h"], then_branch=branch([], returned), else_branch=branch([node("Neg", ["x"], ["o"])], "o")
    )
    held = {"w": X["x"] * 2, **({"c": np.array(True)} if condition else {})}
    inputs = [] if condition else [info("c", [], onnx.TensorProto.BOOL)]
    model = model_of([choose, node("Abs", ["h"], ["y"])], inputs=inputs, constants=held)
    normalise(model, "model")
    clean_up = CleanUp()
    clean_up(model)
    assert not clean_up.warnings
    (y,) = run(model, {**X, **({} if condition else {"c": np.array(True)})})
    np.testing.assert_array_equal(y, np.abs(X["x"] if returned == "x" else held["w"]))


def test_what_a_loop_carries_changes_its_shape():
    body = helper.make_graph(
        [
            node("Identity", ["c"], ["c_out"]),
            node("Shape", ["a"], ["s"]),
            node("Gather", ["s", "zero"], ["g"], axis=0),
            node("Slice", ["a", "zero", "four", "zero", "one"], ["f"]),
            node("Concat", ["a", "f"], ["a_out"], axis=0),
        ],
        "body",
        [info("i", [], onnx.TensorProto.INT64), info("c", [], onnx.TensorProto.BOOL), info("a", [4, 6])],
        [info("c_out", [], onnx.TensorProto.BOOL), info("a_out"), info("g", [1], onnx.TensorProto.INT64)],
    )
    loop = node("Loop", ["n", "t", "x"], ["y", "sizes"], body=body)
    constants = {
        "n": np.array(3),
        "t": np.array(True),
        "zero": np.array([0]),
        "four": np.array([4]),
        "one": np.array([1]),
    }
    model = model_of([loop, node("Cast", ["sizes"], ["z"], to=1)], ("y", "z"), constants=constants)
    check(model)


# Steps that fail


def _raise(*_, **__):
    raise ValueError("cannot do that")


@pytest.mark.parametrize(("owner", "name"), [(InlineFunctions, "inlining"), (MergeEqual, "merging of equal nodes")])
def test_a_step_that_raises_is_left_out(monkeypatch, owner, name, tmp_path):
    def spoil(self, model):
        model.graph.remove(model.graph[-1])
        _raise()

    monkeypatch.setattr(owner, "__call__", spoil)
    b = Builder(17)
    h = b.op("Relu", b.op("Relu", b.input("x", [4, 64])))
    b.output(b.op("MatMul", h, b.constant("W", weight(64, 64))), [4, 64])
    model = b.model()
    before = model.clone()
    report = optimize(model, output=tmp_path / "out.onnx")
    assert f"clean-up went without {name}: ValueError: cannot do that" in report.warnings
    clean_up = CleanUp()
    assert clean_up(before)
    assert op_types(before) == ["Relu", "MatMul"]


def test_a_rule_that_raises_is_left_out(monkeypatch):
    from onnxscript.rewriter.rules import common

    monkeypatch.setattr(common.successive_relu_rule, "try_rewrite", _raise)
    model = model_of(
        [node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["b", "zero"], ["y"])],
        constants={"zero": np.float32(0)},
    )
    clean_up = CleanUp()
    clean_up(model)
    assert clean_up.warnings == ["clean-up went without successive_relu_rule: ValueError: cannot do that"]
    assert op_types(model) == ["Relu", "Relu", "Identity"]


def _call(name, *inputs, **attributes):
    return node(name, list(inputs), ["h"], **attributes)


WRONG = {
    "a function that calls itself": _call("Loops", "x", domain="my"),
    "a function of fewer inputs": _call("One", "x", "x", domain="my"),
    "a function that gets a graph": _call("One", "x", domain="my", body=branch([node("Neg", ["x"], ["n"])], "n")),
    "an attribute of another type": _call("Transpose", "t", perm=1.5),
    "axes that are not there": _call("Transpose", "t", perm=[0, 2, 1]),
    "a size that is not there": _call("Reshape", "x", "far"),
    "a type that is not there": _call("Cast", "x", to=99),
    "a bound of strings": _call("Clip", "c", "text", "one"),
    "no inputs": _call("Identity"),
    "a branch that is no graph": _call(
        "If", "yes", then_branch=3, else_branch=branch([node("Neg", ["x"], ["n"])], "n")
    ),
    "fewer results": node(
        "If",
        ["yes"],
        ["h", "h2"],
        then_branch=branch([node("Neg", ["x"], ["n"])], "n"),
        else_branch=branch([node("Abs", ["x"], ["m"])], "m"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_is_wrong_stays_so_without_an_exception(name):
    functions = [
        function("Loops", ["b"], [node("Loops", ["a"], ["b"], domain="my")]),
        function("One", ["b"], [node("Neg", ["a"], ["b"])]),
    ]
    ahead = [
        node("Transpose", ["x"], ["t"], perm=[1, 0]),
        node("Clip", ["x", "text", "one"], ["c"]),
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "seven"], ["far"], axis=0),
    ]
    constants = {"yes": np.array(True), "text": np.array(["a"], object), "one": np.float32(1), "seven": np.array([7])}
    nodes = [*ahead, WRONG[name], node("Abs", ["h"], ["y"])]
    model = model_of(nodes, constants=constants, functions=functions, domains=["my"])
    CleanUp()(model)
    assert [value.name for value in model.graph.outputs] == ["y"]
    ir.to_proto(model)
