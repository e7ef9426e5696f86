"""Of nodes that compute the same of the same one is read, and what differs stays apart."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.passes.merge_equal_nodes import merge_equal_nodes

FEW, MANY = np.zeros(3, np.float32), np.zeros(40, np.float32)


def chains(first, second):
    """What two chains of the same nodes make, whose constants and attributes are given."""
    b = graphs.Builder()
    x = b.input("x", [1, 1])
    ends = []
    for at, (array, axis) in enumerate((first, second)):
        y = b.op("Softmax", b.op("Add", x, b.constant(f"c{at}", array)), axis=axis)
        ends.append(b.op("Relu", y))
        b.output(b.op("Identity", ends[-1]), [None, None])
    return b.model(), ends


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ((FEW, 1), (FEW, 1), True),
        ((FEW, 1), (FEW + 1, 1), False),
        ((FEW, 1), (FEW, 0), False),
        ((FEW, 1), (FEW[None], 1), False),
        ((MANY, 1), (MANY, 1), False),  # another tensor, whose numbers are not read
    ],
)
def test_equal_nodes_are_one(first, second, merged):
    model, ends = chains(first, second)
    merge_equal_nodes(model.graph, ends)
    read = {id(value.producer().inputs[0]) for value in model.graph.outputs}
    assert len(read) == (1 if merged else 2)


def test_what_draws_and_what_the_caller_sees_stay():
    b = graphs.Builder()
    x = b.input("x", [2, 2])
    ends = [b.op("Add", b.op("RandomNormalLike", x), x) for _ in range(2)]
    seen = [b.op("Neg", x) for _ in range(2)]
    for value in seen:
        b.output(value, [2, 2])
    ends += [b.op("Add", value, x) for value in seen]
    for value in ends:
        b.output(b.op("Identity", value), [2, 2])
    model = b.model()
    before = [list(node.inputs) for node in model.graph]
    merge_equal_nodes(model.graph, ends)
    assert [list(node.inputs) for node in model.graph] == before


def test_tensors_of_texts_are_not_compared():
    b = graphs.Builder()
    x = b.input("x", [1], ir.DataType.STRING)
    ends = [b.op("Equal", x, b.constant(f"c{at}", np.array(["a"], object))) for at in range(2)]
    for value in ends:
        b.output(b.op("Not", value), [1], ir.DataType.BOOL)
    merge_equal_nodes(b.graph, ends)
    assert ends[1].uses()
