"""Zero points by half-quadratic splitting, against the equations written out weight by weight."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization.formats import FORMATS
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem
from onnxpress.optimizer.quantization.methods import hqq as module
from onnxpress.optimizer.quantization.methods.hqq import real_zeros
from onnxpress.optimizer.quantization.threads import limited

RNG = np.random.default_rng(8)


def problem(rows, **settings):
    """What its inputs hold is not read."""
    scheme = Recipe(**settings).settings("", "MatMul").weight
    nothing = InputMoments(np.zeros((1, rows.shape[1], rows.shape[1]), np.float32), 1)
    return Problem(rows, scheme, nothing, nothing)


def code(x, zero, bits):
    return min(max(round(x + zero), 0), 2**bits - 1)


def damage(weights, zero, bits):
    return sum(abs(x - code(x, zero, bits) + zero) ** 0.7 for x in weights)


def by_turns(weights, zero, bits):
    """One block in floats of 64 bits: the least damage met, and the zero point that has it."""
    met, beta = [(damage(weights, zero, bits), zero)], 10.0
    for _ in range(20):
        moved = 0.0
        for x in weights:
            error = x - code(x, zero, bits) + zero
            stays = max(abs(error) - abs(error) ** -0.3 / beta, 0.0) if error else 0.0
            moved += code(x, zero, bits) - x + math.copysign(stays, error)
        zero = moved / len(weights)
        beta *= 1.01
        met.append((damage(weights, zero, bits), zero))
    return min(met)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_real_zero_points_are_those_of_the_equations(bits):
    form, middle = FORMATS[f"int{bits}"], 2 ** (bits - 1)
    scaled = (RNG.standard_normal((6, 16)) * middle / 2 + RNG.uniform(-1, 1, (6, 1))).astype(np.float32)
    scaled[:, 13:] = 0  # padding, which counts for nothing
    counted = np.arange(16) < 13
    start = np.round(-scaled.mean(1, keepdims=True)).astype(np.float32)
    found = real_zeros(scaled, start, counted, form)
    gained = 0
    for block, first, zero in zip(scaled.astype(float), start.astype(float), found, strict=True):
        least, wanted = by_turns(block[:13], first[0] + middle, bits)
        assert damage(block[:13], float(zero[0]) + middle, bits) == pytest.approx(least, rel=1e-4)
        assert zero[0] + middle == pytest.approx(wanted, abs=1e-3)
        gained += least < damage(block[:13], first[0] + middle, bits)
    assert gained >= 3


@pytest.mark.parametrize("scheme", ["int2", "int3", "int4", "int8"])
def test_a_zero_point_is_taken_where_it_damages_less(scheme, monkeypatch):
    """Those of odd rows are wrong at first, and what is found lies a code below all."""
    rows = RNG.standard_normal((10, 72)).astype(np.float32)
    given = problem(rows, scheme=scheme, symmetric=False, block_size=32)
    plain, weights = METHODS["rtn"].round(given), given.scheme
    zeros = plain.zero_points.copy()
    zeros[1::2] += 1
    monkeypatch.setattr(module, "quantize_rtn", lambda *_, **__: dataclasses.replace(plain, zero_points=zeros))
    monkeypatch.setattr(module, "real_zeros", lambda _scaled, zeros, _counted, _form: zeros - np.float32(0.9))
    found = METHODS["hqq"].round(given)
    np.testing.assert_array_equal(found.scales, plain.scales)
    moved = found.zero_points != zeros
    assert moved[1::2].sum() >= 5
    for row, block in np.ndindex(10, 3):
        scaled = rows[row, 32 * block : 32 * block + 32].astype(float) / found.scales[row, block]
        below, at = (damage(scaled, zeros[row, block] - shift, weights.bits) for shift in (1.0, 0.0))
        assert below < at if moved[row, block] else below > at - 1e-4
    np.testing.assert_array_equal(zeros[moved], found.zero_points[moved] + 1)
    error = np.square(found.rows() - rows).sum()
    assert found.error.error == pytest.approx(error, rel=1e-5)
    padding = reference.unpack_codes(found.packed, weights.bits, 32, 96)[:, 72:]
    np.testing.assert_array_equal(padding, np.repeat(found.zero_points[:, 2:], 24, axis=1))


@pytest.mark.parametrize(
    "settings", [{"scheme": "int4", "symmetric": True}, {"scheme": "nf4"}, {"scheme": "mxfp4"}, {"scheme": "bfp4"}]
)
def test_without_zero_points_it_is_rounding_to_nearest(settings):
    given = problem(RNG.standard_normal((6, 64)).astype(np.float32), **settings)
    found, plain = METHODS["hqq"].round(given), METHODS["rtn"].round(given)
    np.testing.assert_array_equal(found.packed, plain.packed)
    np.testing.assert_array_equal(found.scales, plain.scales)


def test_zeros_and_the_number_of_threads():
    rows = RNG.standard_normal((600, 64)).astype(np.float32)
    rows[:, 32:] = 0
    given = problem(rows, scheme="int3")
    made = []
    for threads in (1, 2):
        with limited(threads):
            made.append(METHODS["hqq"].round(given))
    assert (made[0].rows()[:, 32:] == 0).all()
    np.testing.assert_array_equal(made[0].packed, made[1].packed)
    np.testing.assert_array_equal(made[0].zero_points, made[1].zero_points)
