"""Attention against a cache on every instruction set of this CPU, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from isas import ISAS, best_kernels
from onnxpress.custom_ops import _kernels, reference
from pairs import all_pairs


def made(kept=(0,), tokens=1, heads=2, kv_heads=1, size=16, room=0, seed=0):
    """Inputs of rows of which so many tokens are kept, with room for more."""
    rng = np.random.default_rng(seed)
    batch, past = len(kept), max(kept) + room

    def floats(*shape):
        return rng.standard_normal(shape, np.float32)

    kept = np.array(kept, np.int64)
    new = [floats(batch, tokens, count, size) for count in (heads, kv_heads, kv_heads)]
    caches = [floats(batch, kv_heads, past, size) for _ in range(2)]
    return [*new, *caches, kept, kept + tokens], {"present_size": past + tokens, "scale": size**-0.5}


def check(arrays, settings):
    with np.errstate(invalid="ignore"):
        want = reference.cached_attention(*arrays, **settings)
    for isa in ISAS:
        *got, ran = _kernels.cached_attention(*arrays, **settings, isa=isa)
        rows = arrays[0].shape[1] * arrays[0].shape[2] // arrays[1].shape[2]
        assert ran == best_kernels(isa, "attention", but=() if rows >= 32 else ("amx",))
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5, err_msg=isa)
    return got


def test_every_instruction_set_has_its_own():
    ran = {isa: _kernels.kernels(isa)["attention"][0] for isa in ISAS}
    assert all(ran[isa] == isa for isa in ISAS if isa in ("scalar", "avx2", "avx512"))


@all_pairs(
    {
        "kept": [(0,), (1,), (17,), (300,), (0, 0), (5, 63, 2)],
        "tokens": [1, 2, 16, 70],
        "heads,kv_heads": [(1, 1), (2, 1), (6, 2), (7, 1), (8, 8)],
        "size": [8, 16, 20, 40, 64, 128],
    }
)
def test_sizes(kept, tokens, heads, kv_heads, size):
    check(*made(kept, tokens, heads, kv_heads, size, room=3))


@pytest.mark.parametrize("heads", [71, 150])
def test_many_heads_of_one(heads):
    check(*made((65,), 3, heads=heads, kv_heads=1))


@pytest.mark.parametrize("tokens", [2, 40])
def test_largest_head(tokens):
    check(*made((70,), tokens, size=256))


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("kept", [(0,), (9, 200), (600,)])
@pytest.mark.parametrize("changes", [{"window": 1}, {"window": 8}, {"window": 100}, {"softcap": 2.0}])
def test_windows_and_caps(tokens, kept, changes):
    arrays, settings = made(kept, tokens, 4, 2)
    check(arrays, settings | changes)


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("kept", [(3, 70), (600,)])
def test_sinks_and_biases(kept, tokens):
    arrays, settings = made(kept, tokens, 4, 2)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal((len(kept), 4, tokens, settings["present_size"]), np.float32)
    bias[..., 0] = np.finfo(np.float32).min
    check(arrays, settings | {"bias": bias, "sinks": rng.standard_normal(4, np.float32)})


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [4, 12, 16])
@pytest.mark.parametrize("given", [False, True])
def test_rotation(interleaved, half, given):
    arrays, settings = made((6, 2), 3, 4, 2, size=32)
    rng = np.random.default_rng(2)
    cosines, sines = rng.standard_normal((2, 9, half), np.float32)
    positions = rng.integers(0, 9, (2, 3)) if given else None
    check(arrays, settings | {"rotation": (cosines, sines, positions), "interleaved": interleaved})


@pytest.mark.parametrize("tokens", [5, 50])
def test_rows_padded_on_the_right(tokens):
    arrays, settings = made((0, 0), tokens)
    arrays[-1] = np.array([2, tokens], np.int64)
    check(arrays, settings)


@pytest.mark.parametrize("tokens", [4, 40])
def test_nan_and_infinity_reach_their_own_rows_alone(tokens):
    arrays, settings = made((20,), tokens, 4, 2)
    arrays[0][0, 1, 2, 0] = np.nan
    arrays[0][0, 2, 1] = np.inf
    y, *_ = check(arrays, settings)
    bad = np.isnan(y).any(-1)[0]
    assert bad[1, 2]
    assert bad[2, 1]
    assert bad.sum() == 2


@pytest.mark.parametrize("tokens", [2, 40])
def test_nan_in_a_bias(tokens):
    arrays, settings = made((80,), tokens)
    bias = np.zeros((1, 2, tokens, 80 + tokens), np.float32)
    bias[0, 1, 0, 70] = np.nan
    y, *_ = check(arrays, settings | {"bias": bias})
    assert np.isnan(y[0, 0, 1]).all()
    assert not np.isnan(y[0, 1]).any()


@pytest.mark.parametrize("sizes", [(0, 3), (2, 0)])
def test_nothing(sizes):
    batch, tokens = sizes
    arrays, settings = made((4,) * max(batch, 1), tokens)
    arrays = [each[:batch] for each in arrays]
    check(arrays, settings)


def test_what_lies_outside_is_refused():
    arrays, settings = made((4,), 2)
    for kept in (-1, 5):
        arrays[5] = np.array([kept], np.int64)
        with pytest.raises(ValueError, match="outside"):
            _kernels.cached_attention(*arrays, **settings)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("new_keys", [1, 7, 150])
@pytest.mark.parametrize("kept", [(0, 0), (3, 70)])
def test_all_keys_are_seen_where_it_is_not_causal(tokens, new_keys, kept):
    (query, *_), _ = made(kept, tokens, 4, 2)
    (_, key, value, *caches, kept, total), settings = made(kept, new_keys, 4, 2)
    check([query, key, value, *caches, kept, total], settings | {"causal": False})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [2, 40])
@pytest.mark.parametrize("size", [8, 20, 64])
def test_norms_of_heads(causal, tokens, size):
    arrays, settings = made((3, 70), tokens, 4, 2, size)
    rng = np.random.default_rng(5)
    scales = rng.uniform(0.5, 1, (2, size)).astype(np.float32)
    angles = rng.uniform(0, 6, (120, size // 2)).astype(np.float32)
    cosines, sines = np.cos(angles), np.sin(angles)
    check(arrays, settings | {"causal": causal, "norms": (*scales, 1e-6), "rotation": (cosines, sines, None)})
