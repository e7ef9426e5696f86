"""How good a converted model is, as one number: by its outputs, by a task, or by a function of the user."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import OnnxpressError, UsageError
from ..model_io import storage
from ..runtime.feeds import Feeds, arrays_of
from ..runtime.session import open_session, session_options, uses_our_ops
from ..runtime.temporary import temporary_session
from ..sources import resolve
from ..user_functions import load_function, written_as
from .language import text_judge
from .names import UserMetric, check_metric_name
from .outputs import measure
from .sensitivity import relative_drop
from .texts import EMBEDDINGS, KL, PERPLEXITY, TEXT_TASKS, TextMetric

if TYPE_CHECKING:
    import onnxruntime as ort

_NOWHERE = Path(os.devnull) / "model.onnx"  # no tokenizer lies beside it

COSINE = "cosine of outputs"
"""Name of the metric that needs neither labels nor a function."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of models.

    Attributes:
        name: What it is called.
        reference: Its value for the float model.
        judge: Its value for an open session; raises OnnxpressError.
        less_is_better: As of a perplexity; else more is.
        in_nats: Whether a loss is told as it is, in nats per token, and not as a share.
    """

    name: str
    reference: float
    judge: Callable[[ort.InferenceSession], float]
    less_is_better: bool = False
    in_nats: bool = False

    def __call__(self, model: ir.Model) -> float:
        """Its value for a model in memory.

        Raises:
            OnnxpressError: ONNX Runtime cannot load or run the model, or the user's function fails.
        """
        with temporary_session(model, "candidate") as session:
            return self.judge(session)

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value is better than another; NaN is not."""
        return value < other if self.less_is_better else value > other

    def loss(self, value: float) -> float:
        """What a model of this value loses: a share of the float model's, or nats per token; infinite for NaN."""
        if self.in_nats:
            return math.inf if math.isnan(value) else value - self.reference
        sign = -1 if self.less_is_better else 1
        return relative_drop(sign * self.reference, sign * value)


def loss_text(loss: float, *, in_nats: bool) -> str:
    """A loss for a person: in percent, or in nats per token."""
    return f"{loss:.4f} nats" if in_nats else f"{round(100 * loss, 2) + 0.0:.2f} %"


def choose_metric(
    name: UserMetric | None,
    original: ir.Model | Path,
    feeds: Sequence[Feeds],
    source: str | None = None,
    threads: int | None = None,
) -> Metric:
    """The metric that a user means, and its value for the float model.

    Args:
        name: A name of `onnxpress.models.tasks.TASKS`; a function, or its name as "module:function", called with an
            `onnxruntime.InferenceSession` for a number, more being better; or None for the likeness to the float model:
            the mean, over feeds and outputs, of the cosine of the two as vectors, and for outputs that are no floats
            of the share of equal elements; NaN where an output has another shape, such as audio of another length. A
            task on a text is a `TextMetric`.
        original: The float model, or its path, beside which a task finds the tokenizer.
        feeds: Inputs for the likeness; the others bring their own.
        source: What to call the float model in an error; its path by default.
        threads: That run the float model; None leaves the choice to ONNX Runtime.

    Raises:
        UsageError: There is no such task or function, the task does not fit the model, or there are no feeds.
        OnnxpressError: The float model cannot be run, or has no finite value.
    """
    path = original if isinstance(original, Path) else None
    model = storage.load(resolve(original)) if isinstance(original, Path) else original
    source = source or str(path or "the float model")
    with _opened(model, path, source, threads) as session:
        if name is None:
            return Metric(COSINE, 1.0, _Likeness(session, feeds, source))
        if name == KL:  # of itself: both sides of it would be the same
            return Metric(KL, 0.0, _OnText(name, session, model, path, source), less_is_better=True, in_nats=True)
        if name == EMBEDDINGS:
            return Metric(EMBEDDINGS, 1.0, _OnText(name, session, model, path, source))
        judge = _judge(name, session, model, path, source)
        reference = judge(session)
    if not math.isfinite(reference):
        raise OnnxpressError(
            f"metric {written_as(name)}: gives {reference} for the float model; nothing can be judged by it"
        )
    return Metric(written_as(name), reference, judge, less_is_better=name == PERPLEXITY)


@contextlib.contextmanager
def _opened(model: ir.Model, path: Path | None, source: str, threads: int | None) -> Iterator[ort.InferenceSession]:
    """A session of a model, from its file where it has one."""
    if path is None:
        with temporary_session(model, source, threads) as session:
            yield session
        return
    options = session_options(threads=threads, ours=uses_our_ops(model))
    yield open_session(resolve(path), options, source)


def check_metric(name: UserMetric, model: ir.Model, source: str) -> None:
    """Refuse at once what `choose_metric` would refuse of a name, before there is data.

    Raises:
        UsageError: There is no such task or function, or the task does not fit the model.
        OnnxpressError: ONNX Runtime cannot load the model.
    """
    with temporary_session(model, source) as session:
        _judge(name, session, model, None, source)


def _judge(
    name: UserMetric, session: ort.InferenceSession, model: ir.Model, path: Path | None, source: str
) -> _Function | _Task | _OnText:
    if isinstance(name, str) and name in TEXT_TASKS:
        return _OnText(name, session, model, path, source)
    if isinstance(name, str) and ":" not in name:
        return _Task(name, session, path, source)
    return _Function(name)


class _Likeness:
    """Outputs against those of the float model, which are computed once."""

    def __init__(self, session: ort.InferenceSession, feeds: Sequence[Feeds], source: str) -> None:
        if not feeds:
            raise UsageError("no inputs to compare outputs on; give calibration data, or a metric that has its own")
        self._feeds = feeds
        self._wanted = [_run(session, inputs, source) for inputs in feeds]
        for sample, outputs in enumerate(self._wanted):
            for node, output in zip(session.get_outputs(), outputs, strict=True):
                for array in arrays_of(output):
                    self._check(node.name, array, sample)

    @staticmethod
    def _check(name: str, output: npt.NDArray[Any], sample: int) -> None:
        if np.issubdtype(output.dtype, np.floating) and output.size and np.isnan(output).all():
            raise OnnxpressError(
                f"output {name} of the float model is NaN on sample {sample}; give other data or another metric"
            )

    def __call__(self, session: ort.InferenceSession) -> float:
        found = [_run(session, inputs, "the candidate") for inputs in self._feeds]
        values = [
            likeness
            for wanted, outputs in zip(self._wanted, found, strict=True)
            for a, b in zip(wanted, outputs, strict=True)
            for likeness in _likenesses(arrays_of(a), arrays_of(b))
        ]
        return float(np.mean(values))


def _likenesses(wanted: list[npt.NDArray[Any]], found: list[npt.NDArray[Any]]) -> list[float]:
    if len(wanted) != len(found):
        return [-1.0]
    return [_likeness(a, b) for a, b in zip(wanted, found, strict=True)]


def _likeness(wanted: npt.NDArray[Any], output: npt.NDArray[Any]) -> float:
    """1 where equal; -1, the least that a cosine can be, where the output holds NaN; NaN where it has another shape.

    Elements that are NaN in float tell nothing.
    """
    if wanted.shape != output.shape:
        return math.nan
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(wanted == output)) if wanted.size else 1.0
    told = ~np.isnan(wanted)
    cosine = measure(wanted[told], output[told])[1]
    return -1.0 if math.isnan(cosine) else cosine


def _run(session: ort.InferenceSession, inputs: Feeds, who: str) -> list[Any]:
    try:
        outputs: list[Any] = session.run(None, inputs)
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        raise OnnxpressError(f"{who} cannot run: {_first_line(error)}") from error
    return outputs


class _Function:
    """A function of the user's."""

    def __init__(self, function: UserMetric) -> None:
        self._name = written_as(function)
        self._function = load_function(function) if isinstance(function, str) else function

    def __call__(self, session: ort.InferenceSession) -> float:
        try:
            value = self._function(session)
        except Exception as error:  # the user's code
            raise OnnxpressError(f"metric {self._name}: raises {type(error).__name__}: {_first_line(error)}") from error
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if not isinstance(value, numbers.Real):
            raise OnnxpressError(f"metric {self._name}: returns a {type(value).__name__}; it has to return a number")
        if not math.isfinite(value):
            raise OnnxpressError(f"metric {self._name}: returns {value}; it has to return a finite number")
        return float(value)


class _Task:
    """A task with labels. NaN is its value for a model whose outputs no longer depend on the inputs."""

    def __init__(self, name: str, session: ort.InferenceSession, path: Path | None, source: str) -> None:
        from onnxpress.models.tasks import choose

        check_metric_name(name)
        self._name, self._source = name, source
        self._path = resolve(path) if path is not None else _NOWHERE
        try:
            self._task = choose(session, name, source)
        except UsageError as error:
            raise UsageError(f"{error}; with no metric it is the {COSINE}") from error

    def __call__(self, session: ort.InferenceSession) -> float:
        try:
            score = self._task.evaluate(session, self._path)
        except OnnxpressError:
            raise
        except Exception as error:
            # ONNX Runtime raises a type for each of its status codes, with no common base.
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise OnnxpressError(f"{self._source} fails in the task '{self._name}': {_first_line(error)}") from error
        return score.value


class _OnText:
    """A task on a text; for kl and embeddings the session stays open."""

    def __init__(
        self, name: str, session: ort.InferenceSession, model: ir.Model, path: Path | None, source: str
    ) -> None:
        text = name.text if isinstance(name, TextMetric) else None
        self._judge = text_judge(name, text, model, path, source, lambda: session)

    def __call__(self, session: ort.InferenceSession) -> float:
        return self._judge(session).value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
