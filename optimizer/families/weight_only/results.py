"""Rounded weights, in files: a run that is interrupted has one for each weight that it had rounded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibration.statistics import fingerprint
from ...graph.constants import release
from ...planning.lazy_weight import LazyWeight
from ...quantization.low_rank import LowRank
from ...quantization.quantized_weight import QuantizedWeight, WeightError
from ...quantization.schemes import WeightScheme
from ...runtime.feeds import Feeds, arrays_of
from ..kept_files import Files

_FORMAT = 3
"""Of the files: a run with those of another begins anew."""
_ARRAYS = ("packed", "scales", "zero_points")
_FACTORS = ("inner", "outer")


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
class Compensated:
    """What a product of low rank gives back.

    Attributes:
        rank: Of it.
        before: What the weight costs its product without it, on rows that nothing was fitted to; where there is no
            data, the squares of the weight's error.
        after: The same with it.
        energy: The squares of the product on these rows, or of the weight.
        by_data: Whether there is data.
    """

    rank: int
    before: float
    after: float
    energy: float
    by_data: bool

    @property
    def helps(self) -> bool:
        """Whether it is added."""
        return self.after < self.before


@dataclasses.dataclass(frozen=True)
class Result:
    """A rounded weight: what was done, and what reads it.

    Attributes:
        rounded: What was done.
        read: Gives it; raises OnnxpressError where it cannot be read.
        compensated: What was tried to be added to it, if anything was.
        read_low_rank: Gives that, if it helps, in the same way.
    """

    rounded: Rounded
    read: Callable[[], QuantizedWeight]
    compensated: Compensated | None = None
    read_low_rank: Callable[[], LowRank] | None = None


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

    def keep(
        self, name: str, weight: QuantizedWeight, rounded: Rounded, compensated: Compensated | None = None,
        low_rank: LowRank | None = None,
    ) -> Result:  # fmt: skip
        """Write the result for a weight.

        Raises:
            OnnxpressError: As `Files.keep`.
        """
        facts = {"rounded": dataclasses.asdict(rounded), **_facts(weight)}
        arrays = {each: getattr(weight, each) for each in _ARRAYS}
        if compensated is not None:
            facts["compensated"] = dataclasses.asdict(compensated)
        if low_rank is not None:
            for factor in _FACTORS:
                found = getattr(low_rank, factor)
                facts[factor] = _facts(found)
                arrays |= {f"{factor}_{each}": getattr(found, each) for each in _ARRAYS}
        self.files.keep(name, facts, arrays)
        return self._result(name)

    def _result(self, name: str) -> Result:
        files = self.files

        def read() -> QuantizedWeight:  # which keeps a folder of its own for as long as what reads it
            return _weight(*files.read(name, _ARRAYS))

        def read_low_rank() -> LowRank:
            facts, arrays = files.read(name, [f"{factor}_{each}" for factor in _FACTORS for each in _ARRAYS])
            return LowRank(*(_weight(facts[factor], arrays, f"{factor}_") for factor in _FACTORS))

        facts = files.read(name, ())[0]
        compensated = Compensated(**facts["compensated"]) if "compensated" in facts else None
        return Result(Rounded(**facts["rounded"]), read, compensated, read_low_rank if _FACTORS[0] in facts else None)


def _facts(weight: QuantizedWeight) -> dict[str, Any]:
    return {
        "error": dataclasses.asdict(weight.error), "scheme": dataclasses.asdict(weight.scheme), "shape": weight.shape,
        "axis": weight.axis,
    }  # fmt: skip


def _weight(facts: Any, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> QuantizedWeight:
    scheme, error = WeightScheme(**facts["scheme"]), WeightError(**facts["error"])
    packed, scales, zeros = (arrays[f"{prefix}{name}"] for name in _ARRAYS)
    return QuantizedWeight(scheme, tuple(facts["shape"]), facts["axis"], packed, scales, zeros, error)


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
