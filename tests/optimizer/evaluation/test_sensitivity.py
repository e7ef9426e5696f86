"""The search for layers to leave in float, on scores that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.evaluation.sensitivity import search_mixed_precision


class Model:
    """Layers whose drops add up, and more than that where a pair of them is int8 together."""

    def __init__(self, drops, pairs=None):
        self.names = [f"layer{i}" for i in range(len(drops))]
        self.drops, self.pairs = dict(zip(self.names, drops, strict=True)), pairs or {}
        self.built = []

    def build(self, kept):
        self.built.append(kept)
        return kept

    def score(self, kept):
        rounded = [name for name in self.names if name not in kept]
        both = sum(drop for pair, drop in self.pairs.items() if set(pair) <= set(rounded))
        return 1.0 - sum(self.drops[name] for name in rounded) - both

    def search(self, max_drop, **settings):
        return search_mixed_precision(self.build, self.score, self.names, reference=1.0, max_drop=max_drop, **settings)

    def fewest(self, max_drop):
        for count in range(len(self.names)):
            for kept in itertools.combinations(self.names, count):
                if 1.0 - self.score(set(kept)) <= max_drop:
                    return count
        return None


def test_one_trial_where_all_can_be_int8():
    model = Model([0.001] * 5)
    found = model.search(0.01, always=("layer3",))
    assert model.built == [frozenset({"layer3"})]
    assert (found.kept, found.met, found.reference, found.ranking) == (("layer3",), True, 1.0, ())
    assert found.best == pytest.approx(0.996)
    assert [(trial.step, trial.accepted) for trial in found.trials] == [("all", True)]
    assert found.trials[0].drop == pytest.approx(0.004)


@pytest.mark.parametrize("seed", range(20))
def test_additive_drops_give_the_fewest_layers(seed):
    generator = np.random.default_rng(seed)
    model = Model(generator.exponential(0.01, 9))
    bound = float(generator.uniform(0, sum(model.drops.values())))
    found = model.search(bound)
    fewest = model.fewest(bound)
    if fewest is None:
        assert not found.met
    else:
        assert found.met
        assert len(found.kept) == fewest
        assert 1.0 - model.score(found.kept) <= bound


@pytest.mark.parametrize("seed", range(20))
def test_no_layer_can_go_back_where_drops_do_not_add_up(seed):
    generator = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(8)]
    pairs = {pair: float(generator.exponential(0.02)) for pair in itertools.combinations(names, 2)}
    model = Model(generator.exponential(0.005, 8), pairs)
    bound = float(generator.uniform(0.02, 0.3))
    found = model.search(bound, budget=100)
    assert found.met == (model.fewest(bound) is not None)
    if found.met:
        assert 1.0 - model.score(found.kept) <= bound
        for name in found.kept:
            assert 1.0 - model.score(set(found.kept) - {name}) > bound


def test_what_the_ranking_misjudges_goes_back():
    """Alone both of a pair look worse than they are beside the other, and keeping the other is enough."""
    model = Model([0.02, 0.02, 0.001, 0.001], {("layer0", "layer1"): -0.02, ("layer2", "layer3"): 0.05})
    found = model.search(0.03)
    assert [name for name, _ in found.ranking] == ["layer0", "layer1", "layer2", "layer3"]
    assert found.kept in (("layer2",), ("layer3",))
    assert "release" in {trial.step for trial in found.trials}


def test_more_layers_in_float_may_do_harm():
    """Only exactly the most sensitive one in float is within the bound; the binary search looks above it."""

    def score(kept):
        return 1.0 if kept == {"layer0"} else 0.95 - 0.01 * ("layer0" not in kept)

    names = [f"layer{i}" for i in range(10)]
    found = search_mixed_precision(lambda kept: kept, score, names, reference=1.0, max_drop=0.02)
    assert (found.kept, found.met) == (("layer0",), True)


def test_the_bound_that_cannot_be_met_is_said():
    model = Model([0.1, 0.3, 0.2])
    found = model.search(0.05)
    assert not found.met
    assert found.kept == ("layer1", "layer2")
    assert found.best == pytest.approx(0.9)
    assert not any(trial.accepted for trial in found.trials)


@pytest.mark.parametrize("count", [1, 2, 3, 50, 400])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20, 40])
def test_the_budget_holds_and_nothing_is_made_twice(count, budget):
    drops = np.random.default_rng(count).exponential(0.01, count)
    model = Model(drops)
    found = model.search(0.5 * float(drops.sum()), budget=budget)
    assert len(model.built) == len(found.trials) <= budget
    assert len(set(model.built)) == len(model.built)
    assert all(len(kept) < count for kept in model.built)
    assert found.met == any(trial.accepted for trial in found.trials)
    final = [trial for trial in found.trials if trial.kept == found.kept]
    assert [(trial.value, trial.accepted) for trial in final] == [(found.best, found.met)]


@pytest.mark.parametrize("bad", [(0,), (199,), (77, 78), (3, 90, 160)])
def test_groups_find_the_few_bad_layers_of_many(bad):
    drops = np.full(200, 1e-5)
    drops[list(bad)] = 0.1
    model = Model(drops)
    found = model.search(0.01, budget=60)
    assert found.met
    assert found.kept == tuple(f"layer{i}" for i in bad)
    # The third is still in a group of neighbours when the trials for it end.
    assert set(found.kept) <= {name for name, _ in found.ranking[: 4 * len(bad)]}
    assert len(found.ranking) == 200


def test_layers_that_are_kept_for_nothing_go_back_in_groups():
    """Only the two least sensitive ones together are bad: 38 of 40 layers go back with few trials."""
    drops = [0.001 - 1e-5 * i for i in range(40)]
    model = Model(drops, {("layer38", "layer39"): 0.5})
    found = model.search(0.1, budget=75)
    assert found.met
    assert len(found.kept) == 1
    assert len([trial for trial in found.trials if trial.step == "release"]) < 30


def test_always_is_kept_and_counts_in_every_trial():
    model = Model([0.1, 0.1, 0.001, 0.2])
    found = model.search(0.02, always={"layer3", "elsewhere"})
    assert found.kept == ("layer0", "layer1", "layer3", "elsewhere")
    assert all({"layer3", "elsewhere"} <= kept for kept in model.built)
    assert {name for name, _ in found.ranking} == {"layer0", "layer1", "layer2"}


def test_equal_layers_stay_in_order_and_the_answer_is_the_same_again():
    drops = [0.01] * 30
    found = Model(drops).search(0.2001)
    assert found == Model(drops).search(0.2001)
    assert found.kept == tuple(f"layer{i}" for i in range(10))


def test_the_drop_is_relative():
    def search(reference, values):
        return search_mixed_precision(
            len, lambda kept: values[kept], ["a", "b"], reference=reference, max_drop=0.1
        ).trials[0].drop  # fmt: skip

    assert search(50.0, [49.0, 50.0]) == pytest.approx(0.02)
    assert search(-50.0, [-49.0, -50.0]) == pytest.approx(-0.02)
    assert search(0.0, [-0.1, 0.0]) == math.inf
    assert search(0.0, [0.1, 0.0]) == 0
    assert search(1.0, [math.nan, 1.0]) == math.inf


def test_progress_never_passes_the_budget():
    told = []
    Model([0.1] * 10).search(0.35, budget=12, progress=lambda *step: told.append(step))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("mixed precision", 12, 12)


def test_wrong_requests():
    with pytest.raises(UsageError, match="largest drop is -0"):
        Model([0.1]).search(-0.1)
    with pytest.raises(UsageError, match="largest drop is nan"):
        Model([0.1]).search(math.nan)
    with pytest.raises(UsageError, match="budget of 0"):
        Model([0.1]).search(0.1, budget=0)
    with pytest.raises(OnnxpressError, match="float model is nan"):
        search_mixed_precision(len, float, ["a"], reference=math.nan, max_drop=0.1)
