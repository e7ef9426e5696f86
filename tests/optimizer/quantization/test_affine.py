"""Codes of 8 bits: what comes back of numbers, at the edges of float32 too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from fuzzing import SETTINGS
from graphs import Builder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxpress.optimizer.quantization.affine import (
    LEAST_SCALE,
    AffineParameters,
    least_weight_scale,
    parameters_of_range,
    quantize_bias,
    quantize_weight,
)

BOUNDS = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)


@SETTINGS
@given(BOUNDS, BOUNDS, st.sampled_from([np.uint8, np.int8]), st.booleans())
def test_a_range_comes_back_within_half_a_scale(a, b, dtype, symmetric):
    low, high = min(a, b), max(a, b)
    parameters = parameters_of_range(low, high, dtype, symmetric)
    assert np.isfinite(parameters.scale)
    assert parameters.scale >= LEAST_SCALE
    assert parameters.zero_point.dtype == dtype
    x = np.append(np.linspace(min(low, 0), max(high, 0), 33), [low, high]).astype(np.float32)
    back = parameters.dequantize(parameters.quantize(x))
    # The quotient in float32 is off by up to 2^-24 of 255 codes.
    assert (np.abs(back - x.astype(np.float64)) <= float(parameters.scale) * (0.5 + 256 * 2.0**-23)).all()
    assert parameters.dequantize(parameters.quantize(np.zeros(1, np.float32)))[0] == 0
    if symmetric:
        assert parameters.zero_point == (128 if dtype == np.uint8 else 0)


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.inf), (1, 0)])
def test_what_is_no_range(low, high):
    with pytest.raises(ValueError, match="a range from"):
        parameters_of_range(low, high, np.uint8)


@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_are_those_of_onnx_runtime(symmetric):
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32) * 3
    parameters = parameters_of_range(-4.0, 7.0, np.uint8, symmetric)
    b = Builder()
    operands = [b.constant("s", parameters.scale), b.constant("z", parameters.zero_point)]
    codes = b.op("QuantizeLinear", b.input("x", [1000]), *operands)
    b.output(codes, [1000], ir.DataType.UINT8)
    b.output(b.op("DequantizeLinear", codes, *operands), [1000])
    session = ort.InferenceSession(ir.to_proto(b.model()).SerializeToString(), providers=["CPUExecutionProvider"])
    got, back = session.run(None, {"x": x})
    np.testing.assert_array_equal(parameters.quantize(x), got)
    np.testing.assert_array_equal(parameters.dequantize(got), back)


@SETTINGS
@given(WEIGHTS, st.booleans(), st.booleans(), st.data())
def test_weights_come_back(weight, reduce_range, search, data):
    axis = data.draw(st.sampled_from([None, *range(weight.ndim)]))
    most = 63 if reduce_range else 127
    rounded = quantize_weight(weight, axis, reduce_range=reduce_range, search=search)
    plain = quantize_weight(weight, axis, reduce_range=reduce_range, search=False)
    assert rounded.codes.shape == weight.shape
    assert np.abs(rounded.codes.astype(int)).max() <= most
    assert rounded.scale.shape == rounded.zero_point.shape == (() if axis is None else (weight.shape[axis],))
    assert np.isfinite(rounded.scale).all()
    assert (rounded.scale >= LEAST_SCALE).all()
    back = AffineParameters(rounded.scale, rounded.zero_point).dequantize(rounded.codes, axis)
    wrong = float(np.square(back.astype(np.float64) - weight).sum())
    assert rounded.error == pytest.approx(wrong, rel=1e-3, abs=1e-5 * rounded.energy + 1e-36)
    assert plain.cost == plain.baseline == rounded.baseline
    assert rounded.cost <= plain.cost
    if not search:
        steps = AffineParameters(rounded.scale, rounded.zero_point)._spread(rounded.scale, weight.ndim, axis)
        assert (np.abs(back - weight.astype(np.float64)) <= steps * (0.5 + most * 2.0**-22)).all()


def test_the_search_gains_on_tails():
    weight = np.random.default_rng(0).standard_normal((3, 65536)).astype(np.float32)
    searched, plain = (quantize_weight(weight, 0, reduce_range=True, search=search) for search in (True, False))
    assert searched.baseline == plain.baseline == plain.cost
    assert searched.cost < 0.95 * plain.cost
    assert searched.error < 0.9 * plain.error
    columns = quantize_weight(np.ascontiguousarray(weight.T), 1, reduce_range=True)
    np.testing.assert_array_equal(columns.codes.T, searched.codes)
    np.testing.assert_array_equal(columns.scale, searched.scale)


def test_the_search_keeps_an_outlier():
    """In squares, to cut an outlier of six to five costs 1; steps for six cost 12.2 in all, those for five 8.5.

    As its error counts for what it is, it loses no more than the first of the shorter scales takes.
    """
    weight = np.clip(np.random.default_rng(0).standard_normal((3, 65536)), -4, 4).astype(np.float32)
    weight[:, 7] = 6
    rounded = quantize_weight(weight, 0)
    assert (rounded.codes[:, 7] * rounded.scale >= 0.965 * 6).all()


def test_channels_of_zeros_take_the_scale_of_others():
    weight = np.array([[0, 0], [1, -2], [0.5, 0.25]], np.float32)
    scale = quantize_weight(weight, 0, search=False).scale
    np.testing.assert_allclose(scale * 127, [0.5, 2, 0.5], rtol=1e-6)
    assert quantize_weight(np.zeros((2, 3), np.float32), 0).scale.tolist() == [1, 1]
    assert quantize_weight(np.zeros((2, 0), np.float32), 0).codes.shape == (2, 0)


@SETTINGS
@given(
    st.lists(st.floats(-(2.0**66), 2.0**66, width=32), min_size=1, max_size=5),
    st.floats(2.0**-60, 1e10, width=32),
    st.floats(0, 1.0, width=32),
)
def test_biases_fit_with_the_least_scales(bias, x_scale, size):
    bias = np.array(bias, np.float32)
    weight = np.full((len(bias), 3), size, np.float32)
    rounded = quantize_weight(weight, 0, least_scale=least_weight_scale(bias, x_scale))
    codes, scale = quantize_bias(bias, x_scale, rounded.scale)
    assert codes.dtype == np.int32
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, np.float32(x_scale) * rounded.scale)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 * (1 + 2.0**-22)
    assert (np.abs(codes * scale.astype(np.float64) - bias) <= 0.5 * scale).all()


def test_biases_that_do_not_fit():
    scale = np.array([1e-6], np.float32)
    with pytest.raises(ValueError, match="does not fit int32"):
        quantize_bias(np.array([3e3], np.float32), 1e-6, scale)
    with pytest.raises(ValueError, match="no product in float32"):
        quantize_bias(np.array([0], np.float32), 1e-35, scale)
