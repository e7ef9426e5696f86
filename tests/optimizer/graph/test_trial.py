"""Sizes that a graph does not state are followed, and none is made up."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.graph.trial import Trial, UnknownError


def sum_with(*sizes):
    """Something of four axes that nothing is known of, and a constant."""
    b = graphs.Builder()
    unknown = b.op("Einsum", b.input("x", ["batch", 4]), equation="bh->bh")
    y = b.op("Add", unknown, b.constant("mask", np.zeros(sizes, np.float32)))
    y.shape = ir.Shape([None] * 4)
    return y


def test_an_axis_of_one_is_that_of_what_is_not_known():
    trial = Trial(18, {"batch": 2})
    assert trial.sizes(sum_with(2, 4, 3, 5)) == [2, 4, 3, 5]
    with pytest.raises(UnknownError, match="the sizes of a tensor are not known"):
        trial.sizes(sum_with(1, 1, 3, 5))


def test_products_of_two_activations_have_the_columns_of_the_second():
    b = graphs.Builder()
    x, y = b.input("x", ["batch", 4, "sequence", 16]), b.input("y", ["batch", 4, 16, "keys"])
    product = b.op("MatMul", x, y)
    assert Trial(18, {"batch": 2, "sequence": 3, "keys": 7}).sizes(product) == [2, 4, 3, 7]
