"""A tensor joined of unlike parts is not rounded as a whole; one of parts that are alike is."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.passes.constants import mark_constants
from onnxpress.optimizer.passes.joined_parts import joined_parts
from onnxpress.optimizer.recipe import Recipe
from rewrites import LEVELS, run

RNG = np.random.default_rng(0)
DATA = [{"x": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
STATIC = Recipe(scheme="int8-static", reduce_range=True)


def ints(b, *values):
    return b.constant(f"n{len(b.graph.initializers)}", np.array(values))


def head(largest=300.0):
    """Boxes from `largest` on, and scores up to 1, each of four channels."""
    b = graphs.Builder(13)
    x = b.input("x", [1, 8, 6, 6])
    kernels = [b.constant(name, 0.2 * RNG.standard_normal((4, 8, 1, 1)).astype(np.float32)) for name in ("B", "S")]
    boxes = b.op("Conv", x, kernels[0], b.constant("b", np.full(4, largest, np.float32)), name="boxes")
    return b, boxes, b.op("Sigmoid", b.op("Conv", x, kernels[1], name="logits"), name="scores")


def concat(b, boxes, scores):
    return b.op("Concat", boxes, scores, axis=1, name="joined")


def moved(b, boxes, scores):
    return b.op("Transpose", b.op("Reshape", concat(b, boxes, scores), ints(b, 1, 8, 6, 6)), perm=[0, 1, 3, 2])


def nested(b, boxes, scores):
    return b.op("Concat", b.op("Concat", scores, boxes, axis=1), scores, axis=1)


def chosen(b, boxes, scores):
    which = b.constant("which", np.arange(144).reshape(1, 4, 6, 6) % 2 == 0)
    return b.op("Where", which, boxes, scores)


def scattered(b, boxes, scores):
    places = b.constant("places", np.array([[[0, 1]]]))
    row = b.op("Slice", scores, ints(b, 0), ints(b, 2), ints(b, 1))
    return b.op(
        "ScatterND",
        boxes,
        places,
        b.op("Reshape", b.op("Slice", row, ints(b, 0), ints(b, 1), ints(b, 1)), ints(b, 1, 1, 6, 6)),
    )


def summed(b, boxes, scores):
    joined = concat(b, boxes, scores)
    return b.op("Add", joined, b.op("Concat", boxes, scores, axis=1))


def scaled(b, boxes, scores):
    return b.op("Mul", b.op("Relu", concat(b, boxes, scores)), b.constant("k", np.float32(2)))


def model_of(join, largest=300.0):
    b, boxes, scores = head(largest)
    y = join(b, boxes, scores)
    mark_constants(b.model())
    size = {nested: 12, chosen: 4, scattered: 4}.get(join, 8)
    last = b.op("Conv", y, b.constant("I", np.eye(size, dtype=np.float32)[:, :, None, None]), name="last")
    b.output(last, [1, size, 6, 6])
    return b.model()


JOINS = [concat, moved, nested, chosen, summed, scaled]


@pytest.mark.parametrize("join", JOINS, ids=lambda join: join.__name__)
def test_unlike_parts_stay_in_float(join):
    model = model_of(join)
    want = run(model, DATA[0])[0]
    report = optimize(model, STATIC, calibration=Calibration(DATA))
    assert report.rewritten["Conv"] == 2
    assert any("holds scores_out, up to" in reason for reason in report.left)
    small = np.abs(want) < 3
    for level in LEVELS:
        got = run(model, DATA[0], level)[0]
        assert np.abs(got - want)[small].max() <= 0.1
        assert np.abs(got - want).max() <= 4


@pytest.mark.parametrize("join", JOINS, ids=lambda join: join.__name__)
def test_parts_that_are_alike_are_taken(join):
    report = optimize(model_of(join, 2.0), STATIC, calibration=Calibration(DATA))
    assert report.rewritten["Conv"] == 3


def test_parts_and_their_factors():
    b, boxes, scores = head()
    joined = concat(b, boxes, scores)
    half = b.op("Div", joined, b.constant("two", np.float32(2)))
    lone = b.op("Add", half, boxes)
    updated = scattered(b, boxes, scores)
    mark_constants(b.model())
    found = joined_parts(b.graph)
    assert found[joined] == {boxes: 1.0, scores: 1.0}
    assert found[half] == {boxes: 0.5, scores: 0.5}
    assert lone not in found
    assert boxes in found[updated]
    assert all(isinstance(part, ir.Value) for part in found[updated])


def choosing(largest, within):
    """Of two branches one makes scores up to 1, the other one numbers from `largest` on, in itself or around it."""
    b, boxes, scores = head(largest)
    branches = []
    for made, name in ((boxes, "boxes of"), (scores, "scores of")):
        branch = graphs.Builder(13)
        branch.output(branch.op("Relu" if within else "Identity", made, name=name), [1, 4, 6, 6])
        branches.append(branch.graph)
    y = b.op("If", b.input("c", [], ir.DataType.BOOL), name="if", then_branch=branches[0], else_branch=branches[1])
    y = b.op("Transpose", y, perm=[0, 1, 3, 2])
    last = b.op("Conv", y, b.constant("I", np.eye(4, dtype=np.float32)[:, :, None, None]), name="last")
    b.output(last, [1, 4, 6, 6])
    return b.model()


@pytest.mark.parametrize("within", [True, False])
def test_results_of_branches_are_parts(within):
    data = [each | {"c": np.array(index % 2 == 0)} for index, each in enumerate(DATA)]
    model = choosing(300.0, within)
    want = [run(model, each)[0] for each in data[:2]]
    report = optimize(model, STATIC, calibration=Calibration(data))
    assert report.rewritten["Conv"] == 2
    assert any("holds scores" in reason and "beside numbers up to 3" in reason for reason in report.left)
    for level in LEVELS:
        for each, wanted, bound in zip(data, want, (4, 0.05), strict=False):
            assert np.abs(run(model, each, level)[0] - wanted).max() <= bound
    assert optimize(choosing(2.0, within), STATIC, calibration=Calibration(data)).rewritten["Conv"] == 3


def test_sparse_products_with_static_activations_ask_for_parts():
    b = graphs.Builder(17)
    x = b.input("x", ["n", 64])
    boxes = b.op("Add", b.op("Tanh", x), b.constant("far", np.float32(300)), name="boxes")
    y = b.op("Concat", boxes, b.op("Sigmoid", x, name="scores"), axis=1)
    y = b.op("MatMul", y, b.constant("W", graphs.weight(128, 64)), name="of both")
    b.output(b.op("MatMul", b.op("Tanh", y), b.constant("V", graphs.weight(64, 64)), name="last"), ["n", 64])
    data = [{"x": RNG.standard_normal((32, 64)).astype(np.float32)} for _ in range(4)]
    recipe = Recipe(scheme="sparse", activations="static", sparsity=0.5)
    report = optimize(b.model(), recipe, calibration=Calibration(data))
    assert report.rewritten == {"MatMul": 1}
    assert any("holds scores_out, up to" in reason for reason in report.left)
