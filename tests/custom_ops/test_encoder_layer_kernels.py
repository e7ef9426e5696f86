"""The encoder layer on every instruction set of this CPU, against the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from encoder_layers import made_layer as layer
from onnxpress.custom_ops import _kernels, reference

RNG = np.random.default_rng(3)
ISAS = _kernels.supported_isas()


def run(x, mask, layer, isa):
    return both(x, mask, layer, isa)[0]


def both(x, mask, layer, isa, significance=False):
    """What the layer makes, and the significance."""
    parts = (dataclasses.astuple(each) for each in (layer.qkv, layer.out, layer.up, layer.down))
    y, received, ran = _kernels.encoder_layer(
        x, mask, *parts, layer.norm1, layer.norm2, heads=layer.heads, scale=layer.scale, epsilon=layer.epsilon,
        activation=layer.activation, norm_first=layer.norm_first, significance=significance, isa=isa,
    )  # fmt: skip
    assert ran == _kernels.kernels(isa)["encoder"][0]
    return y, received


def tokens(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(got, want, steps=2.0):
    """Up to codes that differ by one: a number that lies between two, rounded this way here and that way there."""
    assert np.abs(got - want).max() <= steps * np.abs(want).max() / 127
    # Few do: most numbers are equal but for the order of float sums.
    assert np.linalg.norm(got - want) <= 2e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 1), {}),
        ((2, 7), {}),
        ((1, 37), {"H": 40, "heads": 2, "width": 20, "F": 33}),
        ((3, 16), {"H": 7, "heads": 1, "width": 5, "F": 3}),
        ((1, 70), {"H": 64, "heads": 2, "width": 32, "F": 200}),
        ((2, 65), {"H": 24, "heads": 1, "width": 68, "F": 30}),
    ],
)
@pytest.mark.parametrize("norm_first", [False, True])
def test_sizes(shape, sizes, norm_first, isa):
    made = layer(**sizes, norm_first=norm_first)
    x = tokens(*shape, made.qkv.codes.shape[0])
    close(run(x, None, made, isa), reference.encoder_layer(x, None, made))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
def test_activations(activation, isa):
    made = layer(activation=activation)
    x = tokens(2, 9, 48)
    close(run(x, None, made, isa), reference.encoder_layer(x, None, made))


@pytest.mark.parametrize("isa", ISAS)
def test_padding_costs_and_changes_nothing(isa):
    """Wherever it is, and whatever else is in the batch, a token gets the same bits."""
    made = layer()
    text = tokens(11, 48)
    alone = run(text[None], None, made, isa)[0]
    mask = np.zeros((5, 30), np.int32)
    mask[0, :11] = mask[1, 19:] = mask[2, 3:25:2] = mask[4] = 1
    x = np.full((5, 30, 48), np.nan, np.float32)
    x[4] = tokens(30, 48)
    for row in range(3):
        x[row, mask[row] != 0] = text
    y = run(x, mask, made, isa)
    for row in range(3):
        np.testing.assert_array_equal(y[row, mask[row] != 0], alone)
    assert (y[mask == 0] == 0).all()  # also of the fourth, of which no token counts
    close(y[4], reference.encoder_layer(x[4:], None, made)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_makes_a_sequence_nan(bad, isa):
    made = layer()
    x = tokens(2, 19, 48)
    x[0, 4, 5] = bad
    y = run(x, None, made, isa)
    assert np.isnan(y[0]).all()
    close(y[1], reference.encoder_layer(x[1:], None, made)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e15])
def test_magnitudes(scale, isa):
    made = layer(norm_first=True)
    x = tokens(1, 10, 48) * np.float32(scale)
    y = run(x, None, made, isa)
    assert np.isfinite(y).all()
    if scale > 1e-30:
        close(y, reference.encoder_layer(x, None, made))


@pytest.mark.parametrize("isa", ISAS)
def test_one_token_far_above_all_others(isa):
    """Its score is the largest by so much that all else is rounded to nothing."""
    made = layer()
    x = tokens(1, 40, 48)
    x[0, 7] *= 1000
    close(run(x, None, made, isa), reference.encoder_layer(x, None, made))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (40, 0, 7), (150,), (33,) * 30], ids=str)
def test_significance(lengths, norm_first, isa):
    """In all ways in which rows are shared out; what the layer makes is the same to the bit with it and without."""
    made = layer(norm_first=norm_first)
    x, mask = tokens(len(lengths), max(lengths), 48), np.arange(max(lengths)) < np.array(lengths)[:, None]
    mask = mask.astype(np.int32)
    y, got = both(x, mask, made, isa, significance=True)
    np.testing.assert_array_equal(y, run(x, mask, made, isa))
    want = reference.encoder_significance(x, mask, made)
    np.testing.assert_allclose(got, want, rtol=0.02, atol=1e-3)
    assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want)
    assert (got[mask == 0] == 0).all()
    np.testing.assert_allclose(got.sum(1), 3 * np.array(lengths), rtol=2e-5)  # all that the queries of 3 heads have


@pytest.mark.parametrize("isa", ISAS)
def test_significance_is_that_of_a_text_alone(isa):
    made, text = layer(), tokens(37, 48)
    alone = both(text[None], None, made, isa, significance=True)[1][0]
    mask = np.zeros((9, 60), np.int32)
    mask[:4, :53] = mask[4, 3:40] = mask[5:] = 1
    x = tokens(9, 60, 48)
    x[4, 3:40] = text
    got = both(x, mask, made, isa, significance=True)[1]
    np.testing.assert_array_equal(got[4, 3:40], alone)
    x[5, 2, 7] = np.nan
    again = both(x, mask, made, isa, significance=True)[1]
    assert np.isnan(again[5]).all()
    np.testing.assert_array_equal(np.delete(again, 5, 0), np.delete(got, 5, 0))


def test_empty():
    made = layer()
    assert run(tokens(0, 5, 48), None, made, ISAS[-1]).shape == (0, 5, 48)
    assert run(tokens(2, 0, 48), np.ones((2, 0), np.int32), made, ISAS[-1]).shape == (2, 0, 48)


def test_wrong_sizes_are_errors():
    made = layer()
    with pytest.raises(ValueError, match="qkv has the wrong shape"):
        run(tokens(1, 3, 47), None, made, None or ISAS[0])
    with pytest.raises(ValueError, match="mask has the wrong shape"):
        run(tokens(1, 3, 48), np.ones((1, 4), np.int32), made, ISAS[0])
    with pytest.raises(ValueError, match="heads do not fit"):
        run(tokens(1, 3, 48), None, dataclasses.replace(made, heads=5), ISAS[0])
