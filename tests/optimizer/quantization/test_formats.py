"""Formats round as ml_dtypes casts do; searches find better scales than the rule; all types of scales hold."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnxpress.custom_ops import reference
from onnxpress.optimizer.quantization import schemes
from onnxpress.optimizer.quantization.formats import FORMATS, SCALE_TYPES, MiniFloat, find_scales

RNG = np.random.default_rng(11)
KINDS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m4": ml_dtypes.float8_e3m4,
    "e3m2": ml_dtypes.float6_e3m2fn, "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
HUGE, TINY = np.float32(3e38), np.float32(1e-45)


def around(values):
    """Numbers, the middles between them, and their next neighbours in float32, beside random ones of all sizes."""
    values = np.sort(values[np.isfinite(values)])
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    edges = np.concatenate([values, middles])
    spread = RNG.standard_normal(20000) * np.exp(3 * RNG.standard_normal(20000))
    parts = [edges, np.nextafter(edges, HUGE), np.nextafter(edges, -HUGE), spread, [0.0, -0.0, TINY, -TINY, 1e-39]]
    return np.concatenate(parts).astype(np.float32)


def test_each_minifloat_has_a_type_to_be_held_against():
    assert KINDS.keys() == {name for name, each in FORMATS.items() if isinstance(each, MiniFloat)}


@pytest.mark.parametrize("name", KINDS)
def test_codes_are_those_of_ml_dtypes(name):
    each = FORMATS[name]
    x = around(each.values)
    inside = x[np.abs(x) <= each.max]
    np.testing.assert_array_equal(each.encode(inside), inside.astype(KINDS[name]).view(np.uint8))
    beyond = np.array([each.max * 1.5, 1e30, np.inf], np.float32)
    np.testing.assert_array_equal(each.decode(each.encode(beyond)), [each.max] * 3)
    np.testing.assert_array_equal(each.decode(each.encode(-beyond)), [each.min] * 3)


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_numbers(name):
    each = FORMATS[name]
    x = around(each.values)
    codes = each.encode(x)
    assert codes.dtype == np.uint8
    got = each.decode(codes)
    np.testing.assert_array_equal(got, each.round(x))
    numbers = np.sort(each.values[np.isfinite(each.values)]).astype(np.float64)
    nearest = np.abs(x[:, None].astype(np.float64) - numbers).min(axis=1)
    np.testing.assert_array_equal(np.abs(x - got.astype(np.float64)), nearest)
    inside = (x <= each.max) & (x >= each.min)
    assert (nearest[inside] <= each.step(x)[inside] / 2).all()


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_of_every_code(name):
    each = FORMATS[name]
    codes = np.flatnonzero(np.isfinite(each.values)).astype(np.uint8)
    np.testing.assert_array_equal(each.encode(each.decode(codes)), codes)
    assert each.values.shape == (2**each.bits,)
    assert each.decode(np.uint8(each.zero)) == 0
    assert each.encode(np.zeros(1, np.float32)) == each.zero


def test_steps_are_gaps():
    step = FORMATS["e2m1"].step(np.float32([0, 0.3, 0.6, 1, 1.9, 2, 3.5, 4, 5, 9]))
    np.testing.assert_array_equal(step, [0.5, 0.5, 0.5, 0.5, 0.5, 1, 1, 2, 2, 2])
    assert FORMATS["int4"].step(np.float32([3.7])) == 1
    np.testing.assert_allclose(
        FORMATS["nf4"].step(np.float32([0.04, -0.01, 2])), [0.0795803, 0.0910501, 0.2770432], 1e-5
    )


@pytest.mark.parametrize("shape", [(0,), (3, 1), (2, 3, 4)])
def test_any_shape(shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    for each in FORMATS.values():
        assert each.encode(x).shape == each.round(x).shape == each.step(x).shape == shape


@pytest.mark.parametrize("name", SCALE_TYPES)
def test_scales_are_of_their_type(name):
    kind, wide = SCALE_TYPES[name], FORMATS["e5m2"]
    scales = np.exp(RNG.uniform(-87, 88, 1000)).astype(np.float32)
    scales = np.append(scales, [TINY, HUGE])
    got = kind.round(scales, wide)
    stored = kind.store(got)
    assert stored.dtype == kind.stored
    back = reference.E8M0[stored] if stored.dtype == np.uint8 else stored.astype(np.float32)
    np.testing.assert_array_equal(back, got)
    assert (got > 0).all()
    assert np.isfinite(got * np.float32(wide.max)).all()
    np.testing.assert_array_equal(kind.round(got, wide), got)
    within = (scales > 2 * kind.least) & (scales < min(kind.most, 2.0**112))
    ratio = got[within] / scales[within]
    if kind.power_of_two:
        assert (np.frexp(got)[0] == 0.5).all()
        assert (np.abs(np.log2(ratio)) <= 0.5 + 1e-6).all()
    else:
        if name == "half":
            with np.errstate(over="ignore"):
                halves = scales[within].astype(np.float16).astype(np.float32)
            normal = (halves >= 2.0**-14) & (halves <= 65504)
            np.testing.assert_array_equal(got[within], np.where(normal, halves, scales[within]))
        normal = scales[within] > 2.0**-14 if name == "float16" else np.isfinite(ratio)
        assert (np.abs(ratio - 1)[normal] <= 2.0**-8).all()


def error(x, scale, each):
    return np.square((x - each.round(x / scale[:, None]) * scale[:, None]).astype(np.float64)).sum(axis=1)


@pytest.mark.parametrize("kind", SCALE_TYPES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("convolution", [False, True])
def test_searched_scales_are_better(convolution, name, kind):
    each = FORMATS[name]
    x = RNG.standard_t(4, (200, 32)).astype(np.float32)
    found = find_scales(x, each, SCALE_TYPES[kind], convolution=convolution)
    plain = find_scales(x, each, SCALE_TYPES[kind], convolution=convolution, search=False)
    np.testing.assert_array_equal(plain.cost, plain.baseline)
    np.testing.assert_array_equal(plain.cost, found.baseline)
    for each_found in (found, plain):
        np.testing.assert_allclose(each_found.error, error(x, each_found.scales, each), rtol=1e-4)
        np.testing.assert_allclose(each_found.cost, cost(x, each_found.scales, each, convolution), rtol=1e-4)
    assert (found.cost <= plain.cost).all()
    # Of powers of two, and numbers close to each other, there is hardly a better one than the first.
    assert found.cost.sum() < (1 if SCALE_TYPES[kind].power_of_two else 0.999) * plain.cost.sum()


def cost(x, scale, each, convolution):
    """What is minimised, in float64: squares of a convolution's errors; of a product's, large weights first."""
    x = x.astype(np.float64)
    wrong = each.decode(each.encode((x / scale[:, None]).astype(np.float32))).astype(np.float64) * scale[:, None] - x
    if convolution:
        return np.square(wrong).sum(axis=1)
    growth = 1 / (reference.LEAST_COUNT * np.square(x).mean(axis=1, keepdims=True))
    return (np.square(wrong) * (1 + growth * np.square(x))).sum(axis=1)


def test_rule_of_microscaling():
    x = np.float32([[447.9], [448], [449], [511.9], [512], [0.75]])
    scale = find_scales(x, FORMATS["e4m3fn"], SCALE_TYPES["e8m0"], search=False).scales
    np.testing.assert_array_equal(scale, [1, 1, 1, 1, 2, 2.0**-9])
    scale = find_scales(x[3:4], FORMATS["e4m3fn"], SCALE_TYPES["e8m0"]).scales
    np.testing.assert_array_equal(scale, [2])  # 512, not 448


@pytest.mark.parametrize("kind", SCALE_TYPES)
@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "nf4", "int8", "e5m2"])
def test_extreme_blocks(name, kind):
    """Zeros, numbers too small and too large for a scale: finite always, and exact zeros with the scale 1."""
    each = FORMATS[name]
    x = np.clip(RNG.standard_normal((1, 32)), -3, 3).astype(np.float32)
    x = np.concatenate([x * np.float32(s) for s in (0, 1e-44, 1e-38, 1e-30, 1e-4, 1e4, 1e30, 1e38)])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        result = find_scales(x, each, SCALE_TYPES[kind])
    scale, found = result.scales, result.error
    assert scale[0] == 1
    assert found[0] == 0
    assert (scale > 0).all()
    assert np.isfinite(found).all()
    assert np.isfinite(result.cost).all()
    with np.errstate(over="ignore"):
        weight = each.decode(each.encode(x / scale[:, None])) * scale[:, None]
    assert np.isfinite(weight).all()
    assert (weight[0] == 0).all()
    usable = [4, 5] if kind == "float16" else [3, 4, 5, 6]
    energy = np.square(x[usable].astype(np.float64)).sum(axis=1)
    assert (found[usable] < 0.02 * energy).all()


def test_recipes_know_the_types_of_scales():
    assert tuple(SCALE_TYPES) == schemes.SCALE_TYPES
    assert {preset.format for preset in schemes.SCHEMES.values() if preset.family != "float"} <= FORMATS.keys()


def test_only_names_make_minifloats_differ():
    assert MiniFloat("e4m3fn") == FORMATS["e4m3fn"]
    assert hash(MiniFloat("e4m3fn")) == hash(FORMATS["e4m3fn"])
    assert MiniFloat("e4m3fn") != FORMATS["e5m2"]
