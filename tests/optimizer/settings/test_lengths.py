"""Lengths as they are written."""

from __future__ import annotations

import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.settings.lengths import lengths_of, parts_of

DYNAMIC = {"scheme": "int8-dynamic"}


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("0.9,0.75,64", (0.9, 0.75, 64)),
        ("90%, 75%", (0.9, 0.75)),
        ("1", (1,)),
        ("100%,1.0,2", (1, 1, 2)),
        ("64,0.5,64,0.25", (64, 0.5, 64, 0.25)),  # which is less depends on the text
    ],
)
def test_lengths(text, lengths):
    assert lengths_of(text) == lengths
    assert Recipe(**DYNAMIC, lengths=text).lengths == text


@pytest.mark.parametrize("text", ["", "0.9,", "half", "-1", "0.9;0.8", "1e-2", "nan", "0.9, ,0.8", "output"])
def test_what_are_no_lengths(text):
    with pytest.raises(UsageError, match=r'lengths is ".*", must be a length for each layer but the last'):
        Recipe(**DYNAMIC, lengths=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.9,0", '"0" leaves nothing, but the first token stays'),
        ("0.00001", '"0.00001" leaves nothing'),
        ("1.5", '"1.5" is neither a share nor a whole number'),
        ("120%", '"120%" is neither'),
        ("0.8,0.9", "layer 2 hands on 0.9, layer 1 0.8; what is gone stays away"),
        ("0.8,64,65", "layer 3 hands on 65, layer 2 64"),
    ],
)
def test_lengths_that_cannot_be(text, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**DYNAMIC, lengths=text)


def test_parts():
    assert parts_of(0.7) == (7000, 8)
    assert parts_of(1.0) == (10000, 8)
    assert parts_of(64.0) == (0, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": "0.9", "length_budget": 0.5}, "length_budget: not read with lengths, which say it layer by layer"),
        ({"lengths": "0.9", "fuse": False}, "lengths: not read without fuse"),
        ({"length_budget": 0.5, "fuse": False}, "length_budget: not read without fuse"),
        ({"length_budget": 0.0}, "length_budget is 0.0, must be a number above 0"),
        ({"length_budget": 1.5}, "length_budget is 1.5, must be a number above 0"),
    ],
)
def test_what_does_not_go_together(settings, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**DYNAMIC, **settings)


def test_other_schemes_do_not_read_them():
    with pytest.raises(UsageError, match="lengths: not read by scheme int4"):
        Recipe(lengths="0.9")
    assert Recipe(**DYNAMIC, lengths="input", length_budget=0.5).length_budget == 0.5
