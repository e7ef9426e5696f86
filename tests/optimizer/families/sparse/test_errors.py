"""What scheme sparse leaves, with the reason, and what it refuses."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from graphs import Builder, weight
from onnxpress.optimizer import OnnxpressError, Recipe, UsageError
from pruning import K, N, converted, product, samples, sparse_nodes


def test_dense_weights_are_not_taken_without_pruning():
    with pytest.raises(OnnxpressError, match="0 % of its blocks of 4x4 are zero"):
        converted(product(), prune=False)


def shared():
    b = Builder()
    W = b.constant("W", weight(K, K))
    b.output(b.op("MatMul", b.op("MatMul", b.input("x", ["m", K]), W, name="one"), W, name="two"), ["m", K])
    return b.model()


def transposed_input():
    b = Builder()
    b.output(b.op("Gemm", b.input("x", [K, "m"]), b.constant("W", weight(K, N)), transA=1), ["m", N])
    return b.model()


def two_inputs():
    b = Builder()
    b.output(b.op("MatMul", b.input("x", ["m", K]), b.input("w", [K, N])), ["m", N])
    return b.model()


def convolution():
    b = Builder()
    b.output(b.op("Conv", b.input("x", [1, 3, 8, 8]), b.constant("W", np.ones((4, 3, 3, 3), np.float32))), [1, 4, 6, 6])
    return b.model()


@pytest.mark.parametrize(
    ("make", "values", "reason"),
    [
        (shared, {}, "another node reads the weight, too"),
        (transposed_input, {}, "reads its input transposed"),
        (two_inputs, {}, "no constant weight"),
        (convolution, {}, "scheme sparse does not take Conv"),
        (product, {"block": "64x4"}, "a block of 64x4 is larger than the weight of 62 x 48"),
        (lambda: graphs.matmul_model(65794, 4), {}, "K of 65794 is beyond 65793"),
        (lambda: graphs.matmul_model(4, 4), {}, "fewer than 1024 weights"),
        (lambda: graphs.matmul_model(dtype=np.float16), {}, "computes on float16"),
        (product, {"exclude": ("product",)}, "excluded by the recipe"),
    ],
)
def test_left_with_the_reason(make, values, reason):
    model = make()
    with pytest.raises(OnnxpressError, match=reason):
        converted(model, **values)
    assert not sparse_nodes(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0, must be a number from 0 up to but not 1"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": "0.8"}, 'sparsity is "0.8"'),
        ({"sparsity": True}, "sparsity is true"),
        ({"block": "4"}, 'block is "4"'),
        ({"block": "0x4"}, 'block is "0x4"'),
        ({"block": "4x65"}, 'block is "4x65"'),
        ({"block": 4}, "block is 4, must be a string of inputs x outputs"),
        ({"block": (4, 4)}, "block is (4, 4), must be a string of inputs x outputs"),
        ({"dtype": "int4"}, 'dtype is "int4"'),
        ({"criterion": "abs"}, 'criterion is "abs"; did you mean'),
        ({"allocation": "even"}, "must be one of uniform, sensitivity"),
        ({"activations": "none"}, "must be one of dynamic, static"),
        ({"expected_rows": 0}, "expected_rows is 0, must be a whole number from 1"),
        ({"expected_rows": 1.5}, "expected_rows is 1.5"),
        ({"prune": 1}, "prune is 1, must be true or false"),
        ({"range_method": "x"}, "range_method"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(UsageError) as error:
        Recipe.from_mapping({"scheme": "sparse", **values})
    assert message in str(error.value)


def test_keys_of_other_schemes_are_refused():
    with pytest.raises(UsageError, match="block_size: not read by scheme sparse"):
        Recipe.from_mapping({"scheme": "sparse", "block_size": 32})
    with pytest.raises(UsageError, match="sparsity: not read by scheme int4"):
        Recipe.from_mapping({"sparsity": 0.5})


@pytest.mark.parametrize("values", [{"prune": False}, {"criterion": "magnitude"}])
def test_data_that_nothing_reads_is_refused(values):
    with pytest.raises(UsageError, match="sparse reads no calibration data with these settings"):
        converted(product(), samples(), **values)


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [("criterion", "wanda", "magnitude"), ("criterion", "obs", "magnitude"), ("activations", "static", "dynamic")],
)
def test_without_data_what_needs_it_is_refused(key, value, other):
    with pytest.raises(UsageError, match=f'{key} is "{value}", which needs a calibration: .*or take "{other}"'):
        converted(product(), **{key: value})


def test_without_data_nothing_moves_at_once():
    with pytest.raises(UsageError, match="sequential is false, but without a calibration no weights move"):
        converted(product(), sequential=False)
