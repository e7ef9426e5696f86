"""Seconds by node, from ONNX Runtime's own profiler, and products whose int8 form is the slower one.

Nodes are timed where they are: in the whole model, as ONNX Runtime optimized it. A model of one layer would lie: its
conversions and changes of layout depend on the neighbours, and its data would always be in the cache. What hangs on a
product is counted with it, as `attribution` says: the conversions of its operands and results, and operators that
follow it, such as an Add that its float form has fused and its int8 form has not. What both models run alike is left
out, as its noise would be larger than what many a product gains. So

    slower:  t(product in int8) + t(what hangs on it) > t(product in float) + t(what hangs on it)

Timed are medians of both models in turns, each turn after a pause and an uncounted run, as in `bench`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..model_io import reading
from .attribution import Attribution
from .feeds import Feeds
from .profiled_session import ProfiledSession
from .session import session_options, uses_our_ops
from .temporary import written

_DATA_KEY = "session.optimized_model_external_initializers_file_name"

# A product in float between two in int8 needs conversions that it does not need in int8.
_MARGIN = 1.05


@dataclasses.dataclass(frozen=True)
class Profile:
    """A model as it was run.

    Attributes:
        graph: What ONNX Runtime made of it; weights are not there.
        attribution: Its nodes against the model's.
        seconds: Median of each node by its name in the graph.
    """

    graph: ir.Graph
    attribution: Attribution
    seconds: dict[str, float]


def seconds_by_node(
    model: ir.Model, feeds: Feeds, *, rounds: int = 5, threads: int | None = None
) -> dict[str, float]:  # fmt: skip
    """Median seconds of each node of the main graph.

    Args:
        model: The model; it stays as it is.
        feeds: Its inputs.
        rounds: Turns of three counted runs.
        threads: Intra-op threads; None leaves the choice to ONNX Runtime.

    Returns:
        Seconds by name: of the model's nodes where the optimized graph's tell what they come from, a fused product
        being the product, else of the optimized graph's nodes. Nodes that are folded into others are not there.

    Raises:
        OnnxpressError: ONNX Runtime cannot load or run the model.
    """
    (profile,) = profiles([model], feeds, rounds, threads)
    total: dict[str, float] = defaultdict(float)
    for node in profile.graph:
        name = node.name or ""
        total[profile.attribution.origin(node) or name] += profile.seconds.get(name, 0.0)
    return dict(total)


def slower_in_int8(
    float_model: ir.Model, int8_model: ir.Model, nodes: Sequence[str], feeds: Feeds, *, rounds: int = 5,
    threads: int | None = None,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Products whose int8 form is measured slower than their float form, by more than 5 %.

    Args:
        float_model: The model before its nodes were quantized.
        int8_model: The model after it; products bear the same names. Both stay as they are.
        nodes: Names of the products to judge.
        feeds: Inputs of both.
        rounds: Turns of three counted runs of each.
        threads: Intra-op threads; None leaves the choice to ONNX Runtime.

    Returns:
        Seconds in float and in int8 by name, with what hangs on the product. A product is not there where it is as fast
        or faster, or where one of the optimized graphs has no node that stands for it.

    Raises:
        OnnxpressError: ONNX Runtime cannot load or run a model.
    """
    pairs = seconds_of_products(*profiles([float_model, int8_model], feeds, rounds, threads))
    return {name: pairs[name] for name in nodes if name in pairs and pairs[name][1] > _MARGIN * pairs[name][0]}


def seconds_of_products(first: Profile, second: Profile) -> dict[str, tuple[float, float]]:
    """Seconds of the products of both, each with what hangs on it, but for nodes that both run alike."""
    alike = _works(first) & _works(second)
    sums = [_sums(profile, alike) for profile in (first, second)]
    common = first.attribution.products() & second.attribution.products()
    return {name: (sums[0][name], sums[1][name]) for name in sums[0] if name in common}


def _works(profile: Profile) -> set[tuple[str, str, str]]:
    works = {profile.attribution.work(node) for node in profile.graph}
    return {work for work in works if work is not None}


def _sums(profile: Profile, alike: set[tuple[str, str, str]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for node in profile.graph:
        if profile.attribution.work(node) in alike:
            continue
        for name, share in profile.attribution.shares(node).items():
            total[name] += share * profile.seconds.get(node.name or "", 0.0)
    return total


def profiles(models: Sequence[ir.Model], feeds: Feeds, rounds: int = 5, threads: int | None = None) -> list[Profile]:
    """Profiles of models that run in turns on the same inputs.

    Raises:
        OnnxpressError: ONNX Runtime cannot load or run a model.
    """
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(_profiled(model, threads)) for model in models]
        for _ in range(rounds):
            for run in runs:
                run.session.turn(feeds)
        return [run.end() for run in runs]


@contextlib.contextmanager
def _profiled(model: ir.Model, threads: int | None) -> Iterator[_Run]:
    with written(model) as path:
        target = path.with_name("optimized.onnx")
        options = session_options(
            threads=threads, ours=uses_our_ops(model), config={_DATA_KEY: f"{target.name}.data"}
        )  # fmt: skip
        options.optimized_model_filepath = str(target)
        name = model.graph.name or "model"
        run = _Run(model, ProfiledSession(path, options, name, path.with_name("profile")), target)
        try:
            yield run
        finally:
            run.session.stop()


class _Run:
    """A session that is profiled, and the graph that it runs."""

    def __init__(self, model: ir.Model, session: ProfiledSession, target: Path) -> None:
        self._model, self.session, self._optimized = model, session, reading.load(target)

    def end(self) -> Profile:
        times: dict[str, list[float]] = defaultdict(list)
        for event in self.session.end():
            times[event.name].append(event.seconds)
        seconds = {
            node.name: float(
                np.median([t for t, counts in zip(times[node.name], self.session.counted, strict=False) if counts])
            )
            for node in self._optimized.graph
            if node.name in times
        }
        return Profile(self._optimized.graph, Attribution(self._model, self._optimized), seconds)
