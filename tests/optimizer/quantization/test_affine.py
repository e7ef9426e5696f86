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
from int8 import int8_weight
from onnxpress.optimizer.quantization.affine import (
    LEAST_SCALE,
    least_weight_scale,
    parameters_of_range,
    quantize_bias,
)

BOUNDS = st.floats(-(2.0**100), 2.0**100, width=32)


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
@given(
    st.lists(st.floats(-(2.0**66), 2.0**66, width=32), min_size=1, max_size=5),
    st.floats(2.0**-60, 1e10, width=32),
    st.floats(0, 1.0, width=32),
)
def test_biases_fit_with_the_least_scales(bias, x_scale, size):
    bias = np.array(bias, np.float32)
    weight = np.full((len(bias), 3), size, np.float32)
    rounded = int8_weight(weight, 0, least_scale=least_weight_scale(bias, x_scale))
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
