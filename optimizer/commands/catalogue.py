"""Commands on the catalogue: its models and its tasks."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..evaluation.names import check_task
from ..evaluation.texts import COMPARING
from ..sources import check_there
from .peers import Nncf, NncfData, NncfImages, NncfSamples, OpenVino, nncf_data
from .terminal import Claim, Json, console
from .text_options import Stride, TextFile, Tokenizer, Tokens, Window, text_of


def models(
    name: Annotated[str | None, typer.Argument(help="Print the path of this one, fetched if it is not yet.")] = None,
    json_: Json = False,
) -> None:
    """List the models that can be named instead of a file."""
    import json

    from onnxpress.models import catalogue
    from rich.table import Table

    if name is not None:
        path = str(catalogue.path(name))
        print(json.dumps({"name": name, "path": path}) if json_ else path)
        return
    entries = [catalogue.entry(known) for known in catalogue.names()]
    if json_:
        print(json.dumps([e.to_mapping() for e in entries], indent=2))
        return
    table = Table("name", "cached", "download", "licence", "task", "what it is", box=None)
    for e in entries:
        cached = "yes" if e.is_cached else "no"
        table.add_row(e.name, cached, f"{e.package.megabytes} MB", e.package.licence, e.task or "", e.description)
    console().print(table)


def evaluate(
    model: Annotated[list[str], typer.Argument(help="Files or catalogue names, judged side by side.")],
    task: Annotated[
        str | None,
        typer.Option(
            help="lee, wordsim353, simlex999, sentiment, probe, reading, detection, agreement (of the catalogue's "
            "classifiers with float32) or speech; perplexity, kl or embeddings, of a --text; the first that fits by "
            "default."
        ),
    ] = None,
    ep: Annotated[bool, typer.Option("--ep", help="Each model a second time, on our execution provider.")] = False,
    claim: Claim = None,
    openvino: OpenVino = False,
    nncf: Nncf = False,
    calibration: NncfData = None,
    samples: NncfSamples = None,
    images: NncfImages = None,
    text: TextFile = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    stride: Stride = None,
    tokens: Tokens = None,
    json_: Json = False,
) -> None:
    """Judge models by a task with labels, or on a text; the first is what the others are compared with."""
    passage = text_of(text, tokenizer if text is not None or not nncf else None, window, stride, tokens)
    data = nncf_data(nncf, calibration, samples, images, tokenizer if nncf else None)
    if data is not None:
        data.check_files()
    given: dict[str, Any] = {} if passage is None else {"text": passage, "reference": model[0]}
    check_task(task, passage)
    if task in COMPARING and not (len(model) > 1 or ep or claim is not None or openvino or nncf):
        raise UsageError(f"{task} compares with a float model: name that first, and behind it what was made of it")
    check_there(*model)
    import dataclasses
    import json

    from rich.table import Table

    from ..analysis.evaluate import Failure, TaskResult, check, check_peers, evaluate_with_provider
    from ..analysis.evaluate import evaluate as run

    for name in model:
        check(name, task, ep or claim is not None, **given)
    if openvino or data is not None:
        check_peers(nncf=data is not None)
    results: list[TaskResult | Failure] = []
    for name in model:
        on_provider = ep or claim is not None
        results += evaluate_with_provider(name, task, claim, **given) if on_provider else [run(name, task, **given)]
    if openvino or data is not None:
        from ..analysis.evaluate import evaluate_in_openvino

        results += evaluate_in_openvino(model if openvino else [], task, (model[0], data) if data else None, **given)
    if json_:
        print(json.dumps([_finite(dataclasses.asdict(result)) for result in results], indent=2))
        return
    table = Table("model", "task", "metric", "value", "change", "also", box=None)
    judged = [result for result in results if isinstance(result, TaskResult)]
    for result in judged:
        same = result is not judged[0] and result.task == judged[0].task
        change = f"{result.value - judged[0].value:+.4f}" if same else ""
        details = {name: value for name, value in result.details.items() if name != result.metric.lower()}
        also = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in details.items())
        table.add_row(result.model, result.task, result.metric, f"{result.value:.4f}", change, also)
    console().print(table)
    for failure in (result for result in results if isinstance(result, Failure)):
        console().print(f"cannot be judged: {failure.model}: {failure.error}", soft_wrap=True)


def _finite(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
