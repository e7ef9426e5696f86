"""Judging a model file by a task, with labels or on a text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress import custom_ops
from onnxpress.models.tasks import Task, choose

from ..calibration.files import TOKENIZER
from ..errors import OnnxpressError, UsageError
from ..evaluation.language import text_judge
from ..evaluation.names import is_on_text
from ..evaluation.texts import COMPARING, EMBEDDINGS, PERPLEXITY, TEXT_TASKS, Text
from ..model_io import storage
from ..runtime import session as sessions
from ..sources import resolve
from . import openvino

if TYPE_CHECKING:
    import onnxruntime as ort

    from ..calibration import Calibration


@dataclass(frozen=True)
class TaskResult:
    """One model on one task.

    Attributes:
        model: As the caller named it.
        task: Name of the task.
        metric: What `value` is.
        value: More is better, except of perplexity and kl.
        details: Other figures by name.
    """

    model: str
    task: str
    metric: str
    value: float
    details: Mapping[str, float | int | str]


@dataclass(frozen=True)
class Failure:
    """A model that could not be judged.

    Attributes:
        model: As the caller named it, and where it was to run.
        error: Why.
    """

    model: str
    error: str


def evaluate(
    model: str | Path,
    task: str | None = None,
    session_options: ort.SessionOptions | None = None,
    session: Any = None,
    *,
    text: Text | None = None,
    reference: str | Path | None = None,
) -> TaskResult:
    """Run a task on a model.

    Args:
        model: A file, a folder or a name of the catalogue.
        task: A name of `tasks.TASKS`, perplexity, kl or embeddings; None takes the first that fits the model, or
            perplexity where there is a text.
        session_options: For ONNX Runtime. The custom ops are registered with them where the model uses them.
        session: Judged in place of the one that these options make, such as an `OpenVinoSession` of the model, or of
            what became of it.
        text: What perplexity, kl and embeddings read.
        reference: The float model of kl and embeddings, in the forms of `model`; its tokenizer serves where none lies
            beside `model`.

    Raises:
        UsageError: There is no such task, none fits, or it lacks the text or the reference, or reads none.
        OnnxpressError: The model or the task's data cannot be had, or the model does not run.
    """
    path = resolve(model)
    plain = session is None and session_options is None
    session = session or _open(path, session_options or sessions.session_options())
    original = None if reference is None else resolve(reference)
    opened: Callable[[], Any] | None = None
    if original is not None:
        opened = (
            (lambda: session) if plain and original == path else partial(_open, original, sessions.session_options())
        )
    chosen = _chosen(session, task, path, str(model), text, original, opened)
    try:
        score = chosen.evaluate(session, path)
    except OnnxpressError:
        raise
    except Exception as error:
        # ONNX Runtime raises a type for each of its status codes, with no common base.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise OnnxpressError(f"{model}: fails in the task '{chosen.name}': {str(error).splitlines()[0]}") from error
    return TaskResult(str(model), chosen.name, chosen.metric, score.value, score.details)


def _chosen(
    session: Any, task: str | None, path: Path, shown: str, text: Text | None,
    original: Path | None, opened: Callable[[], Any] | None,
) -> Task:  # fmt: skip
    """The task, of one on a text bound to that, and to the float model of those that compare."""
    if not is_on_text(task, text):
        return choose(session, task, shown)
    known = TEXT_TASKS[task or PERPLEXITY]
    read_by = original if known.name in COMPARING and original is not None else path
    judge = text_judge(known.name, text, storage.load(read_by), _with_tokenizer(path, original), shown, opened)
    return Task(known.name, known.name, known.description, known.needs, lambda _: True, lambda one, _: judge(one))


def _with_tokenizer(path: Path, original: Path | None) -> Path:
    """Of a model and the one that it was made of, that beside which a tokenizer lies."""
    return path if original is None or path.with_name(TOKENIZER).is_file() else original


def evaluate_with_provider(
    model: str | Path,
    task: str | None = None,
    claim: str | None = None,
    *,
    text: Text | None = None,
    reference: str | Path | None = None,
) -> list[TaskResult | Failure]:
    """Run a task on a model as it is, unless it is compiled, and on our execution provider.

    Args:
        model: As `evaluate` takes it.
        task: As `evaluate` takes it.
        claim: Families of nodes that the execution provider takes, see `ep.append`.
        text: As `evaluate` takes it, and so is `reference`.
        reference: Of kl and embeddings.

    Returns:
        A result, or the reason why there is none, of each.

    Raises:
        UsageError: There is no such task, none fits, or `claim` names no family.
        OnnxpressError: The model runs in neither way.
    """
    path = resolve(model)
    shown_claim = f" ({claim})" if claim is not None else ""
    ways = {str(model): None, f"{model} + ep{shown_claim}": sessions.provider_options(True, claim)}
    if sessions.is_compiled(storage.load(path)):
        del ways[str(model)]
    given = _given(text, reference)
    results = [
        _tried(str(model), shown, task, partial(_open, path, sessions.session_options(provider=provider)), **given)
        for shown, provider in ways.items()
    ]
    if all(isinstance(result, Failure) for result in results):
        raise OnnxpressError("; ".join(result.error for result in results if isinstance(result, Failure)))
    return results


def check(
    model: str | Path,
    task: str | None = None,
    provider: bool = False,
    *,
    text: Text | None = None,
    reference: str | Path | None = None,
) -> None:
    """Refuse at once what `evaluate`, or `evaluate_with_provider`, could not begin with.

    Raises:
        UsageError: There is no such task, none fits, or it lacks a text.
        OnnxpressError: The model cannot be had or loaded, or the text or its tokenizer cannot be read.
    """
    path = resolve(model)
    if is_on_text(task, text):
        original = None if reference is None else resolve(reference)
        # What kl needs of a model and a text, perplexity needs, too.
        name = EMBEDDINGS if task == EMBEDDINGS else PERPLEXITY
        tokenized = _with_tokenizer(path, original)
        text_judge(name, text, storage.load(path), tokenized, str(model), lambda: _look(path))
        return
    try:
        choose(_look(path), task, str(model))
    except UsageError:
        raise
    except OnnxpressError:
        if not provider:
            raise
        choose(_open(path, sessions.session_options(provider={})), task, str(model))


def _look(path: Path) -> ort.InferenceSession:
    """A session of which only inputs and outputs are looked at."""
    import onnxruntime as ort

    options = sessions.session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _open(path, options)


def check_peers(*, nncf: bool) -> None:
    """Refuse at once what `evaluate_in_openvino` could not begin with.

    Raises:
        UsageError: OpenVINO, or NNCF where it is to be used, is not installed.
    """
    for name in ("openvino", "nncf") if nncf else ("openvino",):
        openvino.import_peer(name)


def evaluate_in_openvino(
    models: Sequence[str],
    task: str | None = None,
    nncf: tuple[str, Calibration] | None = None,
    *,
    text: Text | None = None,
    reference: str | Path | None = None,
) -> list[TaskResult | Failure]:
    """Run a task on models in OpenVINO; of one that it cannot compile or run, the reason.

    Args:
        models: Files, folders or names of the catalogue.
        task: As `evaluate` takes it.
        nncf: A model and data, from which NNCF makes one more.
        text: As `evaluate` takes it, and so is `reference`.
        reference: Of kl and embeddings.

    Raises:
        UsageError: There is no such task, none fits, or OpenVINO or NNCF is not installed.
        OnnxpressError: A model cannot be had.
    """
    results = []
    given = _given(text, reference)
    for name in models:
        begin = partial(openvino.OpenVinoSession, resolve(name))
        results.append(_tried(name, f"{name} in OpenVINO", task, begin, **given))
    if nncf is not None:
        name, data = nncf
        path = resolve(name)
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:

            def rounded() -> openvino.OpenVinoSession:
                return openvino.OpenVinoSession(openvino.quantize(name, data, Path(folder)), onnx=path)

            results.append(_tried(name, f"{name} by NNCF in OpenVINO", task, rounded, **given))
    return results


def _open(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    if sessions.uses_our_ops(storage.load(path)):
        custom_ops.register(options)
    return sessions.open_session(path, options)


def _given(text: Text | None, reference: str | Path | None) -> dict[str, Any]:
    """What `evaluate` is told of a text."""
    return {key: value for key, value in (("text", text), ("reference", reference)) if value is not None}


def _tried(
    model: str, shown: str, task: str | None, open_session: Callable[[], Any], **given: Any
) -> TaskResult | Failure:
    try:
        return replace(evaluate(model, task, session=open_session(), **given), model=shown)
    except UsageError:
        raise
    except OnnxpressError as error:
        return Failure(shown, str(error))
