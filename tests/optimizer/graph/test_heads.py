"""Heads that groups share are known by their columns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer.graph.rotary import Heads


@pytest.mark.parametrize(
    ("heads", "once"),
    [("aa", "a"), ("aabb", "ab"), ("ab", "ab"), ("aab", "aab"), ("abab", "abab"), ("aaabbb", "ab"), ("", "")],
)
def test_each_once_where_all_are_there_as_often(heads, once):
    def columns(names):
        return np.array([np.arange(4) + 4 * ord(name) for name in names], np.int64).reshape(-1, 4)

    made = Heads(ir.Value(name="x"), columns(heads), False, 1.0, None).once()
    np.testing.assert_array_equal(made.columns, columns(once))
