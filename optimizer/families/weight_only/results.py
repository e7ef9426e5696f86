"""What was found, in files: for as long as it is needed, or in a folder of the user's, where a run goes on later.

A run that is interrupted has a file for each weight that it had rounded. The folder also says what run that was; what
was rounded is only taken up by a run of the same model, settings and data, which then gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibration.statistics import fingerprint
from ...errors import OnnxpressError, UsageError
from ...graph.constants import release
from ...planning.lazy_weight import LazyWeight
from ...quantization.quantized_weight import QuantizedWeight, WeightError
from ...quantization.schemes import WeightScheme
from ...runtime.feeds import Feeds, arrays_of

_RUN = "run.json"
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


class Files:
    """Arrays in files, by number, with some facts beside each.

    Args:
        folder: Of the user's; None for one that goes when nobody needs the files any more.
        run: What tells the run from others, see `describe`.

    Raises:
        UsageError: The folder holds another run's files, or something else.
        OnnxpressError: It cannot be written to.
    """

    def __init__(self, folder: Path | None, run: str) -> None:
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxpress-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = folder
            _claim(folder, run)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._path(name).is_file()

    def keep(self, name: str, facts: object, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write a file.

        Raises:
            OnnxpressError: The disk is full, or another error of the operating system.
        """
        path = self._path(name)
        part = path.with_suffix(".part")
        everything: dict[str, Any] = {"facts": json.dumps(facts), **arrays}
        try:
            with open(part, "wb") as file:
                np.savez(file, **everything)
            os.replace(part, path)
        except OSError as error:
            raise OnnxpressError(f"{self._folder}: cannot keep what was found: {error.strerror}") from error

    def read(self, name: str, arrays: Iterable[str]) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
        """The facts and some arrays of a file.

        Raises:
            OnnxpressError: It is damaged.
        """
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as parts:
                return json.loads(str(parts["facts"])), {each: parts[each] for each in arrays}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise OnnxpressError(f"{path}: holds nothing that a run left; delete the folder and begin anew") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


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


def _claim(folder: Path, run: str) -> None:
    """Say which run a folder belongs to."""
    path = folder / _RUN
    try:
        if path.is_file():
            if path.read_text(encoding="utf-8") != run:
                raise UsageError(
                    f"{folder}: holds what a run with another model, other settings or other data left; give another "
                    "folder, or delete it"
                )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: is no folder of an interrupted run, and not empty; give another")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(run, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OnnxpressError(f"{folder}: cannot be written to: {error}") from error


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
