"""Rounded weights, in files: a run that is interrupted has one for each weight that it had rounded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...calibration.statistics import fingerprint
from ...graph.constants import release
from ...planning.lazy_weight import LazyWeight
from ...quantization.quantized_weight import QuantizedWeight, WeightError
from ...quantization.schemes import WeightScheme
from ...runtime.feeds import Feeds, arrays_of
from ..kept_files import Files

_FORMAT = 2
"""Of the files: a run with those of another begins anew."""
_ARRAYS = ("packed", "scales", "zero_points")


@dataclasses.dataclass(frozen=True)
class Rounded:
    """What was done to a weight.

    Attributes:
        method: That it was rounded by.
        cost: What it adds to its product's squares, on rows that the method has not seen; before scales were trained.
        plain: The same of rounding to nearest, as without data.
        energy: The squares of the product on these rows.
    """

    method: str
    cost: float
    plain: float
    energy: float


@dataclasses.dataclass(frozen=True)
class Result:
    """A rounded weight: what was done, and what reads it.

    Raises:
        OnnxpressError: `read` cannot read it.
    """

    rounded: Rounded
    read: Callable[[], QuantizedWeight]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training by gradients of the whole model brought.

    Attributes:
        method: That trained.
        start: What was lost on batches kept apart, before.
        lost: The same after it.
        unit: Of what was lost.
        steps: That were taken.
    """

    method: str
    start: float
    lost: float
    unit: str
    steps: int


class Results(dict[tuple[object, ...], Result]):
    """By `LazyWeight.identity`.

    Attributes:
        trained: What training brought, in its order.
    """

    trained: Sequence[Trained] = ()


def take_results(weights: Iterable[LazyWeight], results: Results) -> None:
    """Let weights that were rounded be what they became; the others are rounded when they are written."""
    for weight in weights:
        if weight.identity in results:
            weight.take(results[weight.identity].read, results[weight.identity].rounded.method)


class Store:
    """Results in files; the arguments are those of `Files`.

    Attributes:
        files: Them, for what else an interrupted run goes on from.
    """

    def __init__(self, folder: Path | None, run: str) -> None:
        self.files = Files(folder, run)

    def known(self, name: str) -> Result | None:
        """The result that an interrupted run left for a weight, by the name of its file."""
        return self._result(name) if self.files.has(name) else None

    def keep(self, name: str, weight: QuantizedWeight, rounded: Rounded) -> Result:
        """Write the result for a weight.

        Raises:
            OnnxpressError: As `Files.keep`.
        """
        facts = {
            "rounded": dataclasses.asdict(rounded), "error": dataclasses.asdict(weight.error),
            "scheme": dataclasses.asdict(weight.scheme), "shape": weight.shape, "axis": weight.axis,
        }  # fmt: skip
        self.files.keep(name, facts, {each: getattr(weight, each) for each in _ARRAYS})
        return self._result(name)

    def _result(self, name: str) -> Result:
        files = self.files

        def read() -> QuantizedWeight:  # which keeps a folder of its own for as long as what reads it
            facts, arrays = files.read(name, _ARRAYS)
            scheme, error = WeightScheme(**facts["scheme"]), WeightError(**facts["error"])
            packed, scales, zeros = (arrays[name] for name in _ARRAYS)
            return QuantizedWeight(scheme, tuple(facts["shape"]), facts["axis"], packed, scales, zeros, error)

        return Result(Rounded(**files.read(name, ())[0]["rounded"]), read)


def describe(model: Any, weights: Sequence[LazyWeight], methods: Sequence[str], data: Iterable[Feeds]) -> str:
    """What tells a run from others: the model's shape, weights and how they are rounded, and all data."""
    digest = hashlib.sha256()
    for feeds in data:
        for name in sorted(feeds):
            for array in arrays_of(feeds[name]):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else b"")
    for weight in weights:
        digest.update(np.ascontiguousarray(weight.rows()).data)
        release(weight.weight.tensor)
    settings = [(weight.name, str(weight.scheme), weight.nodes) for weight in weights]
    values = {
        "format": _FORMAT,
        "model": fingerprint(model),
        "weights": settings,
        "methods": methods,
        "contents": digest.hexdigest(),
    }
    return json.dumps(values, indent=1)
