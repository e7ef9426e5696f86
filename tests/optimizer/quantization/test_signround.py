"""Rounding learned by signed gradient descent, against a naive one, and never worse than its start."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.custom_ops import reference
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.quantization.formats import FORMATS
from onnxpress.optimizer.quantization.input_moments import InputMoments
from onnxpress.optimizer.quantization.methods import METHODS, Problem
from onnxpress.optimizer.quantization.methods import signround as module
from onnxpress.optimizer.quantization.methods.signround import _Learned
from onnxpress.optimizer.quantization.threads import limited

RNG = np.random.default_rng(9)
SETTINGS = [
    {"scheme": "int2"}, {"scheme": "int3"}, {"scheme": "int4"}, {"scheme": "int4", "symmetric": True},
    {"scheme": "int4", "scale_type": "float16"}, {"scheme": "int8"}, {"scheme": "bfp4"}, {"scheme": "nf4"},
    {"scheme": "fp4"}, {"scheme": "fp6"}, {"scheme": "fp6-e3m2", "block_size": 32}, {"scheme": "fp8-e5m2"},
    {"scheme": "fp8", "per_channel": False}, {"scheme": "mxfp4"}, {"scheme": "mxfp8"},
]  # fmt: skip


def second(groups, size, rank=None):
    """Moments of inputs that vary much together."""
    rows = RNG.standard_normal((groups, rank or 4 * size, size)) @ (
        RNG.standard_normal((groups, size, size)) + np.eye(size)
    )
    return np.float32(rows.transpose(0, 2, 1) @ rows / rows.shape[1])


def problem(rows, inputs, convolution=False, **settings):
    scheme = Recipe(**settings).settings("", "MatMul").weight
    moments = InputMoments(inputs, 1)
    return Problem(rows, scheme, moments, moments, convolution)


def losses(problem, found):
    """Of each output, in floats of 64 bits."""
    inputs, K = problem.moments.second.astype(float), problem.rows.shape[1]
    lost = (found.rows().astype(float) - problem.rows).reshape(len(inputs), -1, K)
    return np.einsum("gnk,gkl,gnl->gn", lost, inputs, lost).ravel()


def test_it_is_a_method_of_recipes():
    for name in METHODS:
        assert Recipe(method=name).method == name


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: "-".join(map(str, each.values())))
def test_no_output_is_worse_than_the_start_and_the_whole_is_better(settings, groups):
    """With a last block that is not full, and an input that is always zero."""
    rows, inputs = RNG.standard_normal((12, 80)).astype(np.float32), second(groups, 80)
    inputs[:, 5] = inputs[:, :, 5] = 0
    given = problem(rows, inputs, **settings)
    start, found = METHODS["search"].round(given), METHODS["signround"].round(given)
    before, after = losses(given, start), losses(given, found)
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.95 * before.sum()
    scheme, padded = given.scheme, given.scheme.blocks(80) * given.scheme.codes_per_block(80)
    padding = reference.unpack_codes(found.packed, scheme.bits, scheme.codes_per_block(80), padded)[:, 80:]
    np.testing.assert_array_equal(padding, np.broadcast_to(found.zero_points[:, -1:], padding.shape))
    error = np.square(found.rows() - rows, dtype=float).sum()
    assert found.error.error == pytest.approx(error, rel=1e-5)
    if scheme.scale_type == "float16":
        np.testing.assert_array_equal(found.scales, found.scales.astype(np.float16))
    if scheme.scale_type in ("e8m0", "pow2") or not scheme.per_channel:
        np.testing.assert_array_equal(found.scales, start.scales)


@pytest.mark.parametrize("inputs", ["nothing", "one number", "few rows"])
def test_moments_without_an_inverse(inputs):
    given = {"nothing": np.zeros((1, 64, 64), np.float32), "one number": np.ones((1, 64, 64), np.float32),
             "few rows": second(1, 64, 5)}[inputs]  # fmt: skip
    given = problem(RNG.standard_normal((8, 64)).astype(np.float32), given, scheme="int3")
    start, found = METHODS["search"].round(given), METHODS["signround"].round(given)
    assert (losses(given, found) <= losses(given, start) * (1 + 1e-4) + 1e-6).all()
    if inputs == "nothing":
        np.testing.assert_array_equal(found.packed, start.packed)


@pytest.mark.parametrize("scheme", ["int4", "nf4", "fp8"])
def test_zeros_stay_and_weights_may_be_huge_or_tiny(scheme):
    rows = RNG.standard_normal((6, 64)).astype(np.float32) * np.float32([[1], [1e30], [1e-30], [1e-42], [0], [1]])
    rows[5, 32:] = 0
    given = problem(rows, second(1, 64), scheme=scheme, symmetric=True)
    start, found = METHODS["search"].round(given), METHODS["signround"].round(given)
    decoded = found.rows()
    assert np.isfinite(decoded).all()
    assert (decoded[4] == 0).all()
    before, after = losses(given, start), losses(given, found)
    assert (after <= before * (1 + 1e-4)).all()
    if scheme != "fp8":  # whose blocks are whole rows
        assert (decoded[5, 32:] == 0).all()


def test_the_threads_and_the_pieces_change_nothing(monkeypatch):
    given = problem(RNG.standard_normal((600, 48)).astype(np.float32), second(2, 48), scheme="int3")
    monkeypatch.setattr(module, "_STEPS", 20)
    made = []
    for threads in (1, 2):
        with limited(threads):
            made.append(METHODS["signround"].round(given))
    np.testing.assert_array_equal(made[0].packed, made[1].packed)
    np.testing.assert_array_equal(made[0].scales, made[1].scales)
    np.testing.assert_array_equal(made[0].zero_points, made[1].zero_points)


def learned(rows, inputs, scheme, scales, zeros):
    flat = np.zeros_like(rows)
    return _Learned(rows[None], inputs, scheme, flat[None], scales[None], zeros[None])


@pytest.mark.parametrize("name", ["int4", "int3"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_first_step_goes_against_the_slope_of_a_smooth_loss(name, symmetric):
    """The loss where what rounding takes and gives is held: w~ = s (w / s + z + v + c - z), or an end of the codes."""
    scheme = Recipe(scheme=name, symmetric=symmetric, block_size=16).settings("", "MatMul").weight
    form, rows, inputs = FORMATS[name], RNG.standard_normal((3, 32)), second(1, 32)
    scales = np.float32(RNG.uniform(0.2, 0.4, (3, 2)) * (8 / 2**scheme.bits) * (-1 if symmetric else 1))
    zeros = np.float32(np.zeros((3, 2)) if symmetric else RNG.integers(-2, 2, (3, 2)))
    state = learned(np.float32(rows), inputs, scheme, scales, zeros)
    rate, least, most = np.float32(1e-3), form.min, form.max
    state._step(rate)
    wide = np.repeat(zeros, 16, 1) + rows / np.repeat(scales, 16, 1)
    held = (wide > least - 0.5) & (wide < most + 0.5)
    assert 0 < (~held).sum() < held.size / 2
    constant = np.clip(np.rint(wide), least, most) - wide

    def loss(offsets, above, below):
        """`above` and `below` by block; zero points move by what is not yet rounded."""
        if symmetric:
            scale, zero = scales * above, zeros.astype(float)
        else:
            low, high = (least - zeros) * scales * below, (most - zeros) * scales * above
            scale = (high - low) / (most - least)
            zero = least - low / scale
        s, z = (np.repeat(each, 16, 1) for each in (scale, zero))
        numbers = np.where(held, rows / s + z + offsets + constant, np.where(wide > 0, most, least))
        lost = (numbers - z) * s - rows
        return np.einsum("nk,kl,nl->", lost, inputs[0].astype(float), lost)

    def slope(which, shape):
        found, parts = np.zeros(shape), [np.zeros((3, 32)), np.ones((3, 2)), np.ones((3, 2))]
        for index in np.ndindex(shape):
            ends = []
            for step in (1e-5, -1e-5):
                parts[which][index] += step
                ends.append(loss(*parts))
                parts[which][index] -= step
            found[index] = ends[0] - ends[1]
        return found

    moved = state._offsets.reshape(3, 32)
    np.testing.assert_array_equal(np.sign(moved), -np.sign(np.where(held, slope(0, (3, 32)), 0)))
    np.testing.assert_allclose(np.abs(moved[held]), rate)
    ranges = state._ranges
    np.testing.assert_array_equal(np.sign(ranges._above.reshape(3, 2) - 1), -np.sign(slope(1, (3, 2))))
    if not symmetric:
        np.testing.assert_array_equal(np.sign(ranges._below.reshape(3, 2) - 1), -np.sign(slope(2, (3, 2))))


@pytest.mark.parametrize("scheme", ["mxfp4", "bfp4"])
def test_offsets_alone_against_a_naive_descent(scheme, monkeypatch):
    """Scales that are powers of two stay, so that the offsets are all there is to learn."""
    monkeypatch.setattr(module, "_STEPS", 50)
    rows, inputs = RNG.standard_normal((4, 64)).astype(np.float32), second(1, 64)
    given = problem(rows, inputs, scheme=scheme)
    start, form = METHODS["search"].round(given), given.scheme.number_format
    scales, H = np.repeat(start.scales, 32, axis=1)[:, :64].astype(float), inputs[0].astype(float)
    values, scaled = np.unique(form.ascending).astype(float), rows / scales
    offsets, least = np.zeros((4, 64)), np.full(4, np.inf)
    for step in range(51):
        numbers = np.empty((4, 64))
        steps = np.empty((4, 64))
        for index, x in np.ndenumerate(scaled):
            at = min(max(np.searchsorted(values, x, side="right"), 1), len(values) - 1)
            steps[index] = values[at] - values[at - 1]
            distances = np.abs(values - (x + offsets[index] * steps[index]))
            numbers[index] = values[distances.argmin()]
        lost = numbers * scales - rows
        slope = lost @ H
        least = np.minimum(least, np.einsum("nk,nk->n", lost, slope))
        shifted = scaled + offsets * steps
        inside = (shifted <= values[-1] + (values[-1] - values[-2]) / 2) & (
            shifted >= values[0] - (values[1] - values[0]) / 2
        )
        offsets = np.clip(offsets - (1 - step / 50) / 50 * np.sign(slope) * inside, -0.5, 0.5)
    np.testing.assert_allclose(losses(given, METHODS["signround"].round(given)), least, rtol=2e-2)
    assert least.sum() < 0.9 * losses(given, start).sum()
