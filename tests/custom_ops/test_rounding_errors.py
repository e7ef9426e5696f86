"""What rounding to small floating-point numbers costs: the C++ against NumPy, the same on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from isas import ISAS, best_kernels
from minifloats import FORMATS
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs


@all_pairs(
    {
        "isa": ISAS,
        "format": FORMATS,
        "count,size": [(1, 1), (7, 15), (5, 16), (3, 33), (40, 32), (2, 4096), (2, 9001), (3, 0)],
    }
)
def test_sums(isa, format, count, size):
    rng = np.random.default_rng(count + size)
    x = rng.standard_t(4, (count, size)).astype(np.float32)
    scales = rng.uniform(0.05, 2, count).astype(np.float32)
    growth = rng.uniform(0, 3, count).astype(np.float32)
    got, ran = _kernels.rounding_errors(x, scales, growth, format, isa)
    assert ran == best_kernels(isa, "quantize")
    assert got.dtype == np.float32
    # Sums of numbers of both signs: bounded by their number, not by what is left of them.
    np.testing.assert_allclose(
        got, reference.rounding_errors(x, scales, growth, format), rtol=1e-5, atol=2e-6 * (5 + size)
    )
    np.testing.assert_array_equal(got, _kernels.rounding_errors(x, scales, growth, format, "scalar")[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_each_number_alone(isa, format):
    """All numbers, what lies halfway, and their neighbours; beyond the ends; infinite after division."""
    values = reference.MINIFLOATS[format]
    values = np.unique(values[np.isfinite(values)])
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    x = np.concatenate([values, middles, [1e30, -1e30, 3e38, 1e-30, -1e-40, 0]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(-np.inf)), np.nextafter(x, np.float32(np.inf))])
    x = x[np.isfinite(x)][:, None]
    for scale in (1, 0.25, 1e-20):
        scales = np.full(len(x), scale, np.float32)
        evenly = np.zeros(len(x), np.float32)
        sums, _ = _kernels.rounding_errors(x, scales, evenly, format, isa)
        want = reference.rounding_errors(x, scales, evenly, format)
        with np.errstate(over="ignore"):
            for column in (2, 3):  # x q and q q
                np.testing.assert_array_equal(sums[:, column], want[:, column].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "int4"}, "format is 'int4', must be"),
        ({"x": np.zeros(3, np.float32)}, "two axes"),
        ({"scales": np.ones(4, np.float32)}, "scales has the wrong shape"),
        ({"growth": np.ones(4, np.float32)}, "growth has the wrong shape"),
    ],
)
def test_wrong_arguments(change, message):
    given = {"x": np.zeros((3, 4), np.float32), "scales": np.ones(3, np.float32), "growth": np.zeros(3, np.float32)}
    given |= {"format": "nf4", **change}
    with pytest.raises(ValueError, match=message):
        _kernels.rounding_errors(**given)
