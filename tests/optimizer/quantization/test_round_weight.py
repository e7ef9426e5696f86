"""Weights of any shape come back of their codes, and the search for scales of int8 wins what it is for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fuzzing import SETTINGS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from int8 import int8_weight
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization.affine import LEAST_SCALE, AffineParameters
from onnxpress.optimizer.quantization.round_weight import round_weight

WEIGHTS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)


@SETTINGS
@given(WEIGHTS, st.booleans(), st.booleans(), st.data())
def test_weights_come_back(weight, reduce_range, search, data):
    axis, per_channel = data.draw(st.sampled_from(range(weight.ndim))), data.draw(st.booleans())
    most = 63 if reduce_range else 127
    scheme = {"reduce_range": reduce_range, "per_channel": per_channel}
    rounded, plain = (int8_weight(weight, axis, search=each, **scheme) for each in (search, False))
    codes = rounded.integers()
    assert codes.shape == weight.shape
    assert np.abs(codes.astype(int)).max() <= most
    assert rounded.scale.shape == ((weight.shape[axis],) if per_channel else ())
    assert rounded.stored == weight.size + rounded.scale.nbytes
    assert np.isfinite(rounded.scale).all()
    assert (rounded.scale >= LEAST_SCALE).all()
    meaning = AffineParameters(rounded.scale, np.zeros(rounded.scale.shape, np.int8))
    back = meaning.dequantize(codes, axis)
    np.testing.assert_array_equal(rounded.values(), back)
    wrong = float(np.square(back.astype(np.float64) - weight).sum())
    assert rounded.error.error == pytest.approx(wrong, rel=1e-3, abs=1e-5 * rounded.error.energy + 1e-36)
    assert plain.error.cost == plain.error.baseline == rounded.error.baseline
    assert rounded.error.cost <= plain.error.cost
    if not search:
        steps = meaning._spread(rounded.scale, weight.ndim, axis)
        assert (np.abs(back - weight.astype(np.float64)) <= steps * (0.5 + most * 2.0**-22)).all()


def test_the_search_gains_on_tails():
    weight = np.random.default_rng(0).standard_normal((3, 65536)).astype(np.float32)
    searched, plain = (int8_weight(weight, 0, reduce_range=True, search=search) for search in (True, False))
    assert searched.error.baseline == plain.error.baseline == plain.error.cost
    assert searched.error.cost < 0.95 * plain.error.cost
    assert searched.error.error < 0.9 * plain.error.error
    columns = int8_weight(np.ascontiguousarray(weight.T), 1, reduce_range=True)
    np.testing.assert_array_equal(columns.integers().T, searched.integers())
    np.testing.assert_array_equal(columns.scale, searched.scale)


def test_the_search_keeps_an_outlier():
    """In squares, to cut an outlier of six to five costs 1; steps for six cost 12.2 in all, those for five 8.5.

    As its error counts for what it is, it loses no more than the first of the shorter scales takes.
    """
    weight = np.clip(np.random.default_rng(0).standard_normal((3, 65536)), -4, 4).astype(np.float32)
    weight[:, 7] = 6
    rounded = int8_weight(weight, 0)
    assert (rounded.integers()[:, 7] * rounded.scale >= 0.965 * 6).all()


def test_channels_of_zeros_take_the_scale_of_others():
    weight = np.array([[0, 0], [1, -2], [0.5, 0.25]], np.float32)
    scale = int8_weight(weight, 0, search=False).scale
    np.testing.assert_allclose(scale * 127, [0.5, 2, 0.5], rtol=1e-6)
    assert int8_weight(np.zeros((2, 3), np.float32), 0).scale.tolist() == [1, 1]
    assert int8_weight(np.zeros((2, 0), np.float32), 0).integers().shape == (2, 0)


@pytest.mark.parametrize("scheme", ["int3", "int4", "nf4", "fp8", "mxfp4", "fp8-static"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_weight_of_any_shape_is_its_channels_as_rows(scheme, axis):
    """Number by number: where each lies in its channel, and by which block that is decoded."""
    scheme = Recipe(scheme=scheme).settings("", "MatMul").weight
    weight = np.random.default_rng(3).standard_normal((4, 6, 15)).astype(np.float32)
    found = round_weight(weight, axis, scheme)
    channels = np.moveaxis(weight, axis, 0)
    N, K = len(channels), weight.size // len(channels)
    as_rows = round_weight(np.ascontiguousarray(channels.reshape(N, K)), 0, scheme)
    np.testing.assert_array_equal(found.packed, as_rows.packed)
    block = scheme.block_size or K
    codes = reference.unpack_codes(found.packed, scheme.bits, block, K)
    values, form = found.values(), scheme.number_format.values
    assert values.shape == found.codes().shape == weight.shape
    for place in np.ndindex(*weight.shape):
        n, rest = place[axis], place[:axis] + place[axis + 1 :]
        k = np.ravel_multi_index(rest, channels.shape[1:])
        zero = form[found.zero_points[n, k // block]] if scheme.integer else 0
        assert found.codes()[place] == codes[n, k]
        assert values[place] == (form[codes[n, k]] - zero) * found.scales[n, k // block]
    part = found.part(slice(1, 3))
    np.testing.assert_array_equal(part.values(), np.take(values, [1, 2], axis))
    assert dataclasses.replace(part, shape=found.shape).error == found.error
