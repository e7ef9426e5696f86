"""Rows of zeros ahead of a node, and none of them behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Builder
from onnxpress.optimizer.graph.empty_batch import EmptyBatch
from onnxpress.optimizer.graph.rewriting import insert_before, replace
from sessions import options


def model(size="batch"):
    b = Builder(11)
    x = b.input("x", [size, 3])
    y = b.input("y", [size], ir.DataType.FLOAT)
    b.output(b.op("Neg", b.op("Neg", x, name="first"), name="second"), [size, 3])
    b.output(b.op("Abs", y, name="third"), [size])
    return b.model()


def guarded(made):
    """The model with every node kept from an empty batch."""
    empty = EmptyBatch(made.graph)
    batch = made.graph.inputs[0]
    for node in list(made.graph):
        axes = 1 if node.op_type == "Abs" else 2
        x = empty.filled(node, node.inputs[0], batch, axes)
        y = insert_before(node, node.op_type, [x], node.outputs[0], suffix="_of_rows")
        replace(node, empty.emptied(node, y, batch))
    return made


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_each_node_has_a_row(rows):
    made = guarded(model())
    ahead = [node.outputs[0] for node in made.graph if node.op_type == "Pad"]
    made.graph.outputs.extend(ahead)
    for value in ahead:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    rng = np.random.default_rng(0)
    fed = {"x": rng.normal(size=(rows, 3)).astype(np.float32), "y": rng.normal(size=rows).astype(np.float32)}
    got = ort.InferenceSession(ir.to_proto(made).SerializeToString(), options()).run(None, fed)
    np.testing.assert_array_equal(got[0], fed["x"])
    np.testing.assert_array_equal(got[1], np.abs(fed["y"]))
    assert [len(array) for array in got[2:]] == [max(rows, 1)] * 3


def test_what_computes_on_the_batch_is_shared():
    operators = [node.op_type for node in guarded(model()).graph]
    assert operators.count("Shape") == operators.count("Equal") == 1
    assert operators.count("Pad") == operators.count("Slice") - 1 == 3


def test_a_batch_that_is_never_empty_stays():
    assert [node.op_type for node in guarded(model(2)).graph] == ["Neg", "Neg", "Abs"]
