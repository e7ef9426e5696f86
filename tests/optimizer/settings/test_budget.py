"""Budgets and times as users write them."""

from __future__ import annotations

import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.errors import UsageError
from onnxpress.optimizer.settings.budget import Budget, budget_of, seconds_of


@pytest.mark.parametrize(
    ("text", "most", "unit"),
    [
        ("300MB", 300e6, "bytes"), ("0.3 gb", 300e6, "bytes"), ("1MiB", 2**20, "bytes"), ("3.5bits", 3.5, "bits"),
        ("4 bit", 4, "bits"), ("12ms", 12, "ms"),
    ],
)  # fmt: skip
def test_budgets(text, most, unit):
    assert budget_of(text) == Budget(most, unit)


@pytest.mark.parametrize("text", ["", "300", "MB", "-3bits", "0MB", "nanbits", "infbits", "3 cows", "3,5bits", "1e3MB"])
def test_what_is_no_budget(text):
    with pytest.raises(UsageError, match=r'budget is ".*", must be a size such as 300MB'):
        Recipe(budget=text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("2min", 120)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0s", "3 days"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match=r'search_time is ".*", must be a time such as'):
        Recipe(max_drop=0.01, search_time=text)


def test_a_budget_beside_a_bound():
    with pytest.raises(UsageError, match="budget: not read with a bound on a metric"):
        Recipe(max_drop=0.01, budget="3bits")
    with pytest.raises(UsageError, match="search_time: not read without a bound"):
        Recipe(budget="3bits", search_time="1m")
    with pytest.raises(UsageError, match="not read by scheme int8-static"):
        Recipe(scheme="int8-static", budget="3bits")
