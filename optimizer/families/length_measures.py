"""What a search of lengths measured, in files: an interrupted one measures the rest, and ends with the same lengths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..calibration.files import TOKENIZER
from ..calibration.statistics import fingerprint
from ..evaluation.texts import Text, TextMetric
from ..graph.constants import release
from ..planning.length_evolution import Lengths
from ..settings.recipe import Recipe
from .kept_files import Files

_FORMAT = 1
"""Of the files: a search with those of another begins anew."""


class Measures:
    """By name and lengths, each measured once."""

    def __init__(self, folder: Path | None, model: ir.Model, recipe: Recipe) -> None:
        """Begin, or go on.

        Args:
            folder: Of the user's; None for one that goes with this.
            model: The float model, cleaned up.
            recipe: Of the search.

        Raises:
            UsageError: The folder is that of another run.
            OnnxpressError: It cannot be written to.
        """
        self._files = Files(folder, "" if folder is None else _described(model, recipe))

    def once(self, name: str, lengths: Lengths, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gives, or gave before an interruption.

        Raises:
            OnnxpressError: A file is damaged, or cannot be written.
        """
        known = self.known(name, lengths)
        return self.keep(name, lengths, measure()) if known is None else known

    def known(self, name: str, lengths: Lengths) -> dict[str, Any] | None:
        """What was measured before an interruption.

        Raises:
            OnnxpressError: A file is damaged.
        """
        if self._files.has(name):
            facts: dict[str, Any] = self._files.read(name, ())[0]
            if facts["lengths"] == list(lengths):  # not so where a metric gives another number each time
                return facts
        return None

    def keep(self, name: str, lengths: Lengths, measured: dict[str, Any]) -> dict[str, Any]:
        """What was measured, which a file has from now on.

        Raises:
            OnnxpressError: It cannot be written.
        """
        facts = {"lengths": lengths, **measured}
        self._files.keep(name, facts, {})
        return facts


def _described(model: ir.Model, recipe: Recipe) -> str:
    """What tells a search from others: the model, the settings, and the text that it judges by."""
    digest = hashlib.sha256()
    for part in _contents(model):
        digest.update(part)
    settings = recipe.to_mapping()
    metric = recipe.judged_by
    if isinstance(metric, TextMetric) and metric.text is not None:
        settings["text"] = [_digest(path) for path in _files_of(metric.text)]
    values = {"format": _FORMAT, "model": fingerprint(model), "settings": settings, "contents": digest.hexdigest()}
    return json.dumps(values, indent=1)


def _contents(model: ir.Model) -> Iterator[bytes]:
    """Nodes and constants of a model, one after the other."""
    for node in model.graph:
        yield ir.to_proto(node).SerializeToString(deterministic=True)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        yield f"{name} {value.dtype} {value.shape}".encode()
        if tensor is not None and tensor.dtype == ir.DataType.STRING:
            yield repr(tensor.numpy().tolist()).encode()
        elif tensor is not None:
            yield tensor.tobytes()
            release(tensor)


def _files_of(text: Text) -> list[Path]:
    tokenizer = [] if text.tokenizer is None else [Path(text.tokenizer)]
    return [Path(text.path), *(path / TOKENIZER if path.is_dir() else path for path in tokenizer)]


def _digest(path: Path) -> str:
    """Of a file; none where there is none, which others tell."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
