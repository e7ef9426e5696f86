"""What clean-up computes ahead, of constants, and of shapes as far as they are known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cleaning import X, check, cleaned, info, model_of, node
from onnxpress.optimizer.passes.fold_constants import _ARITHMETIC, _MOVES
from rewrites import run

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("opset", [7, 12, 18])
@pytest.mark.parametrize("op_type", sorted(_MOVES | _ARITHMETIC))
def test_what_is_folded_is_what_onnx_runtime_computes(op_type, opset):
    kinds = (np.float32, np.float64, np.float16, np.int32, np.int64, np.int8, np.bool_)
    for kind in kinds:
        for inputs, attributes in _calls(op_type, opset, kind):
            constants = {f"k{index}": array for index, array in enumerate(inputs)}
            model = model_of(
                [node(op_type, list(constants), ["r"], **attributes), node("Identity", ["r"], ["y"])],
                constants=constants,
                opset=opset,
            )
            model.graph.outputs[0].type = None
            try:
                wanted = run(model, {})
            except Exception:  # not of this opset, or not of this type
                continue
            (got,), (y,) = run(cleaned(model), {}), wanted
            assert (got.dtype, got.shape) == (y.dtype, y.shape)
            np.testing.assert_allclose(got, y, rtol=1e-5 if kind != np.float16 else 1e-3)


def _numbers(kind, shape=(4, 6), positive=False):
    numbers = RNG.normal(size=shape) * 3
    numbers = np.abs(numbers) + 1 if positive else numbers
    return numbers > 0 if kind == np.bool_ else numbers.astype(kind)


def _calls(op_type, opset, kind):
    """Inputs and attributes for an operator."""
    x, row = _numbers(kind), _numbers(kind, (6,), positive=True)
    if op_type in ("Gather", "GatherElements", "GatherND"):
        index = {"Gather": [0, -1], "GatherElements": [[0, -1, 1, 0, 0, 0]], "GatherND": [[0, 1], [3, -1]]}[op_type]
        return [((x, np.array(index)), {})]
    if op_type == "Range":
        return [((np.array(1, kind), np.array(9, kind), np.array(2, kind)), {})]
    if op_type == "Where":
        return [((_numbers(np.bool_), x, row), {})]
    if op_type == "Concat":
        return [((x, x), {"axis": 1})]
    if op_type in ("Expand", "Tile", "Reshape"):
        return [
            ((_numbers(kind, (1, 6)), np.array({"Expand": [4, 1], "Tile": [2, 3], "Reshape": [0, -1, 2]}[op_type])), {})
        ]
    if op_type == "Slice" and opset < 10:
        return [((x,), {"starts": [1, -3], "ends": [9, -1]})]
    if op_type == "Slice":
        return [((x, np.array([-1]), np.array([-99]), np.array([1]), np.array([-2])), {})]
    if op_type in ("Unsqueeze", "Squeeze"):
        x = _numbers(kind, (1, 4, 1))
        return [((x,), {"axes": [0]})] if opset < 13 else [((x, np.array([0])), {})]
    if op_type.startswith("Reduce"):
        axes = {"axes": [-1]} if opset < (13 if op_type == "ReduceSum" else 18) else {}
        return [((x, *([] if axes else [np.array([-1])])), {**axes, "keepdims": kept}) for kept in (0, 1)]
    if op_type in (
        "Abs",
        "Ceil",
        "Exp",
        "Floor",
        "Flatten",
        "Identity",
        "Neg",
        "Not",
        "Reciprocal",
        "Shape",
        "Size",
        "Transpose",
    ):
        return [((x,), {})]
    if op_type in ("Log", "Sqrt"):
        return [((_numbers(kind, positive=True),), {})]
    return [((x, row), {}), ((x, row if kind == np.bool_ else -row), {})]


@pytest.mark.parametrize("opset", [9, 11, 12, 17])
def test_shapes_become_constants_of_the_opset(opset):
    """Lists of numbers as attributes came with opset 12."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Reshape", ["u", "s"], ["y"]),
        node("Size", ["x"], ["n"]),
        node("Cast", ["n"], ["z"], to=1),
    ]
    model = model_of(nodes, ("y", "z"), inputs=[info("u", [24])], opset=opset)
    check(model, {**X, "u": np.arange(24, dtype=np.float32)})


PARTIAL = {
    "a difference of sizes": [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i"], ["g"], axis=0),
        node("Add", ["g", "m"], ["d"]),
        node("Abs", ["d"], ["y"]),
    ],
    "a new axis": [
        node("SequenceConstruct", ["x", "x"], ["q"]),
        node("ConcatFromSequence", ["q"], ["y"], axis=0, new_axis=1),
    ],
    "pieces": [node("SplitToSequence", ["x", "two"], ["q"], axis=1), node("SequenceAt", ["q", "one"], ["y"])],
    "pieces without the axis": [
        node("SplitToSequence", ["x", "ones"], ["q"], axis=1, keepdims=0),
        node("SequenceAt", ["q", "one"], ["y"]),
    ],
}


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
@pytest.mark.parametrize("name", PARTIAL)
def test_partial_evaluation(name, opset):
    constants = {
        "i": np.array([0]),
        "m": np.array([-9]),
        "one": np.array(1),
        "two": np.array(2),
        "ones": np.ones(6, np.int64),
    }
    model = model_of(PARTIAL[name], constants=constants, opset=opset)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.INT64 if name.startswith("a diff") else ir.DataType.FLOAT)
    model.graph.inputs[0].shape = ir.Shape(["N", 6])
    check(model)


@pytest.mark.parametrize("op_type", ["Reshape", "Expand"])
def test_sizes_of_one_name_may_differ(op_type):
    model = model_of([node("Shape", ["u"], ["s"]), node(op_type, ["x", "s"], ["y"])], inputs=[info("u", ["?", "?"])])
    model.graph.inputs[0].shape = ir.Shape(["?", "?"])
    x, u = ((4, 6), (6, 4)) if op_type == "Reshape" else ((1, 6), (4, 6))
    check(model, {"x": np.ones(x, np.float32), "u": np.ones(u, np.float32)})
