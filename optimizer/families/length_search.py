"""Lengths found for a model: judged by a metric on the model as it will be, at the cost that its layers have.

The model is converted once with its lengths as an input, so that judging others takes no other session. What was
measured may be kept in files, from which an interrupted search goes on: with the same figures it takes the same way.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import OnnxpressError, option
from ..evaluation.metrics import Metric, choose_metric, loss_text
from ..evaluation.names import UserMetric
from ..graph.rewriting import required
from ..model_io import storage
from ..model_io.names import copy_of
from ..model_io.reading import to_proto
from ..passes.drop_tokens import INPUT as LENGTHS
from ..planning.length_evolution import Found, Lengths, evolve, front_of, within
from ..planning.report import Accuracy, Attempt
from ..planning.result import Progress
from ..planning.token_lengths import lengths_text
from ..runtime.executor import Executor, Means, Shared
from ..runtime.temporary import temporary_session
from ..settings.lengths import INPUT
from ..settings.recipe import Recipe
from .length_measures import Measures

if TYPE_CHECKING:
    import onnxruntime as ort

_SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.05)
"""Of which layers are timed."""
_ROUNDS = 7


class AtLengths:
    """A session of a model whose lengths are an input, at some lengths; metrics take it for a session.

    Attributes:
        lengths: What each layer but the last hands on.
        longest: The inputs of the most elements that it ran on.
    """

    def __init__(self, session: ort.InferenceSession, lengths: Lengths) -> None:
        self._session, self.lengths = session, lengths
        self.longest: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """All else is the session's."""
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str] | None, feeds: dict[str, Any], *more: Any) -> Any:
        """As the session does."""
        if _elements(feeds) > _elements(self.longest):
            self.longest = dict(feeds)
        given = {**feeds, LENGTHS: np.array(self.lengths, np.float32)}
        return self._session.run(outputs, given, *more)


class LayerTimes:
    """What a layer costs by the share of the tokens that it reads, measured."""

    def __init__(self, seconds: Sequence[float], layers: int) -> None:
        """From how long the model takes where each layer hands on the same share, by share as in `SHARES`.

        The first layer reads all tokens always, and what is around the layers counts as part of each.
        """
        whole = seconds[0]
        of_layer = [(each - whole) / (layers - 1) + whole / layers for each in seconds]
        ascending = np.maximum.accumulate(np.maximum(of_layer[::-1], 0.0))  # noise aside, more tokens cost more
        self._shares, self._seconds = _SHARES[::-1], ascending
        self._layers = layers

    def __call__(self, lengths: Lengths) -> float:
        """The cost of all layers, as a share of what they cost with all tokens."""
        read = np.interp((1.0, *lengths), self._shares, self._seconds)
        return float(read.sum() / (self._layers * self._seconds[-1]))


@dataclasses.dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        lengths: The cheapest within the bound.
        accuracy: By the metric.
        trail: All that were judged.
        details: The best of them, for JSON.
        rows: For a person.
    """

    lengths: Lengths
    accuracy: Accuracy
    trail: list[Attempt]
    details: dict[str, Any]
    rows: list[tuple[str, str]]

    @property
    def text(self) -> str:
        """The lengths, as a recipe has them."""
        return text_of(self.lengths)


def search_lengths(
    model: ir.Model, recipe: Recipe, convert: Callable[[ir.Model, str], None], progress: Progress, source: str,
    means: Means,
) -> Searched:  # fmt: skip
    """Search lengths within the bound of a recipe.

    Args:
        model: The float model, cleaned up; it is not changed.
        recipe: Which has a metric, and how much of it may be lost.
        convert: Converts a copy with lengths as a recipe has them.
        progress: Told how it goes on.
        source: What to call the model in an error.
        means: Judge the lengths of a generation, whose times are taken here.

    Raises:
        UsageError: The folder is that of another run.
        OnnxpressError: The model loses more with all tokens than it may, or cannot be converted or judged; or what was
            measured cannot be kept or read.
    """
    search = _Search(model, recipe, convert, source, Measures(means.checkpoint, model, recipe), means.executor)
    found = search.run(lambda done, whole: progress("search lengths", done, whole))
    for rank, each in enumerate(within(found, search.most)):
        value = search.value_as_written(each.lengths, rank)
        if search.metric.loss(value) <= search.most:
            return search.told(each, found, value)
    bound = "max-kl" if search.metric.in_nats else "max-drop"
    loss = search.text_of(found[0].loss)
    raise OnnxpressError(
        f"{source}: loses {loss} of {search.metric.name} even where all tokens go on, more than {option(bound)} allows"
    )


class _Search:
    """On one model."""

    def __init__(
        self, model: ir.Model, recipe: Recipe, convert: Callable[[ir.Model, str], None], source: str,
        measures: Measures, executor: Executor,
    ) -> None:  # fmt: skip
        assert recipe.max_loss is not None
        self._model, self._convert, self._source, self._measures = model, convert, source, measures
        self.most = recipe.max_loss
        self.metric = choose_metric(recipe.judged_by, model, [], source)
        self._judged_by, self._executor = recipe.judged_by, executor
        self._trail: list[Attempt] = []

    def run(self, done: Callable[[int, int], None]) -> list[Found]:
        """All lengths that were judged, those of all tokens first."""
        candidate = copy_of(self._model)
        self._convert(candidate, INPUT)
        (lengths,) = (value for value in candidate.graph.inputs if value.name == LENGTHS)
        layers = required(lengths.const_value).size + 1
        with temporary_session(candidate, self._source) as session:
            everything = AtLengths(session, (1.0,) * (layers - 1))

            def begin() -> dict[str, Any]:
                judged = _judge(self.metric, everything)
                return {**judged, "times": _timed(session, everything.longest, layers)}

            begun = self._measures.once("all tokens", everything.lengths, begin)
            first = self._note(everything.lengths, begun)

            opened = _Opened(session, self.metric, candidate, self._model, self._judged_by, self._source)
            shared = self._executor.share_made(opened, _as_it_is)

            def judge(some: Sequence[Lengths]) -> Iterator[float]:
                others = [lengths for lengths in some if lengths != everything.lengths]
                names = {lengths: f"lengths {len(self._trail) + at}" for at, lengths in enumerate(others)}
                known = {lengths: self._measures.known(name, lengths) for lengths, name in names.items()}
                calls = [(shared, lengths) for lengths in others if known[lengths] is None]
                found = self._executor.map(_judge_at, calls, len(calls))
                for lengths in some:
                    if lengths == everything.lengths:
                        yield first
                        continue
                    judged = known[lengths] or self._measures.keep(names[lengths], lengths, next(found))
                    yield self._note(lengths, judged)

            return evolve(judge, LayerTimes(begun["times"], layers), layers, self.most, done=done)

    def value_as_written(self, lengths: Lengths, rank: int) -> float:
        """Of the metric, for a model that has these lengths alone, which are so far from the cheapest."""

        def judge() -> dict[str, Any]:
            candidate = copy_of(self._model)
            self._convert(candidate, text_of(lengths))
            return {"value": float(self.metric(candidate))}

        value: float = self._measures.once(f"written {rank}", lengths, judge)["value"]
        return value

    def text_of(self, loss: float) -> str:
        """For a person."""
        return loss_text(loss, in_nats=self.metric.in_nats)

    def told(self, best: Found, found: list[Found], value: float) -> Searched:
        """The result."""
        text = (
            f"{len(found)} lengths judged by {self.metric.name}; with these layers take {100 * best.cost:.3g}% of "
            f"their time, and {self.text_of(self.metric.loss(value))} is lost"
        )
        details = {"length_search": [dataclasses.asdict(each) for each in front_of(found)]}
        accuracy = Accuracy(self.metric.name, value, self.metric.reference)
        return Searched(best.lengths, accuracy, self._trail, details, [("searched", text)])

    def _note(self, lengths: Lengths, judged: Mapping[str, Any]) -> float:
        """What is lost of the metric, which goes into the trail."""
        value, seconds = judged["value"], judged["seconds"]
        loss, told = self.metric.loss(value), lengths_text(lengths)
        self._trail.append(Attempt(told, self.metric.name, value, loss <= self.most, seconds=seconds, loss=loss))
        return loss


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What judges lengths; another process, which it is sent to, opens its own session and metric.

    Attributes:
        session: Of the model whose lengths are an input.
        metric: Of models like the float model.
        candidate: The model of the session.
        model: The float model.
        judged_by: The metric, as in a recipe.
        source: What to call the model in an error.
    """

    session: ort.InferenceSession
    metric: Metric
    candidate: ir.Model
    model: ir.Model
    judged_by: UserMetric | None
    source: str

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            protos = [to_proto(each).SerializeToString() for each in (self.candidate, self.model)]
        except ValueError as error:
            raise OnnxpressError(f"{self.source}: too large to be handed to other machines as a whole") from error
        return _opened, (*protos, self.judged_by, self.source)


def _opened(candidate: bytes, model: bytes, judged_by: UserMetric | None, source: str) -> _Opened:
    """In a process that judges for another; the session ends with it."""
    ours, theirs = (storage.of_proto(onnx.load_from_string(each)) for each in (candidate, model))
    with temporary_session(ours, source) as session:
        return _Opened(session, choose_metric(judged_by, theirs, [], source), ours, theirs, judged_by, source)


def _as_it_is(opened: _Opened) -> _Opened:
    return opened


def _judge_at(shared: Shared[_Opened], lengths: Lengths) -> dict[str, Any]:
    opened = shared.get()
    return _judge(opened.metric, AtLengths(opened.session, lengths))


def _judge(metric: Metric, session: AtLengths) -> dict[str, Any]:
    """The metric, and how long it took."""
    began = time.perf_counter()
    value = float(metric.judge(session))
    return {"value": value, "seconds": time.perf_counter() - began}


def text_of(lengths: Lengths) -> str:
    """Lengths, as a recipe has them."""
    return ",".join(f"{length:g}" for length in lengths)


def _timed(session: ort.InferenceSession, feeds: dict[str, Any], layers: int) -> list[float]:
    """Medians of runs of the model where each layer hands on the same share, in turns, in seconds."""
    seconds: list[list[float]] = [[] for _ in _SHARES]
    for _ in range(_ROUNDS):
        for share, taken in zip(_SHARES, seconds, strict=True):
            at = AtLengths(session, (share,) * (layers - 1))
            began = time.perf_counter()
            at.run(None, feeds)
            taken.append(time.perf_counter() - began)
    return [float(np.median(taken)) for taken in seconds]


def _elements(feeds: dict[str, Any]) -> int:
    return sum(int(np.size(each)) for each in feeds.values())
