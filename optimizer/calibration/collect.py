"""Statistics of a model's tensors, from one pass of the data through ONNX Runtime.

Tensors that together would take more than a bound of memory are observed in groups, each with a pass over the data of
its own on the part of the model that it needs. How large tensors are is asked of the model, with the largest of the
samples: the data is gone through once before, without the model, which also finds a bad sample before hours of work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import OnnxpressError, UsageError
from ..planning.result import Progress
from ..runtime.feeds import Feeds, bytes_of, is_float
from .observe import Observer, check_names, in_order
from .statistics import Statistics, StatisticsSpec, TensorStatistics, fingerprint

MEMORY = 256_000_000
"""Bytes of observed values that one run may make, by default."""
_MOST_BYTES = 4  # of an element


def collect(
    model: ir.Model,
    data: Iterable[Feeds],
    wanted: Mapping[str, StatisticsSpec],
    *,
    progress: Progress = lambda _stage, _done, _total: None,
    memory: int = MEMORY,
) -> Statistics:
    """Run a model on data and keep statistics of its tensors.

    Args:
        model: The model, which is not changed.
        data: Batches of inputs, which can be gone through several times.
        wanted: What to keep of which tensors: inputs of the main graph, outputs of its nodes, or what branches of its
            If nodes hand out.
        progress: Told how the work goes on.
        memory: Bytes of observed tensors that one run may make. One tensor alone may take more.

    Raises:
        OnnxpressError: A tensor cannot be observed, or the model cannot be run.
        UsageError: The data does not fit.
    """
    check_names(model, list(wanted))
    see = _Observed({name: TensorStatistics(settings) for name, settings in wanted.items()})
    total, largest = survey(data, progress)
    inputs = {value.name or "": value for value in model.graph.inputs if value.name in wanted}
    inner = [name for name in in_order(model) if name in wanted and name not in inputs]
    groups = in_groups(inner, sizes_of(model, inner, largest), memory) if inner else [[]]
    name = getattr(data, "name", "calibration data")
    for index, group in enumerate(groups):
        observer = Observer(model, group) if group else None
        for batch, feeds in enumerate(data):
            progress("calibrate", index * total + batch, len(groups) * total)
            if index == 0:
                see({key: feeds[key] if key in feeds else _default(value) for key, value in inputs.items()})
            if observer is not None:
                try:
                    values = observer.run(feeds)
                except OnnxpressError as error:
                    raise OnnxpressError(f"{name}: batch {batch}: {error}") from error
                see(dict(zip(group, values, strict=True)))
    see.finish()
    progress("calibrate", len(groups) * total, len(groups) * total)
    return Statistics(fingerprint(model), see.found)


def _default(value: ir.Value) -> npt.NDArray[Any] | None:
    return None if value.const_value is None else value.const_value.numpy()


def survey(data: Iterable[Feeds], progress: Progress) -> tuple[int, Feeds]:
    """How many batches there are, and the largest of them; raises UsageError for none."""
    count, most, largest = 0, -1, {}
    for count, feeds in enumerate(data, 1):
        size = bytes_of(feeds)
        if size > most:
            most, largest = size, feeds
        progress("check data", count, count)
    if count == 0:
        raise UsageError("the calibration data holds no samples")
    return count, largest


def sizes_of(model: ir.Model, names: list[str], feeds: Feeds) -> list[int]:
    """Bytes that tensors of these names take at most, for these inputs."""
    return [_MOST_BYTES * int(size) for size in Observer(model, names, sizes=True).run(feeds)]


def in_groups(names: list[str], sizes: list[int], memory: int) -> list[list[str]]:
    """Runs of names, each of which fits into memory or is one alone."""
    groups: list[list[str]] = []
    used = 0
    for name, size in zip(names, sizes, strict=True):
        if not groups or used + size > memory:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


class _Observed:
    """Statistics that see values.

    Rows of X'X wait until they are as many as there are channels: the product of few costs as much as that of many.

    Attributes:
        found: The statistics.
    """

    def __init__(self, found: Mapping[str, TensorStatistics]) -> None:
        self.found = found
        self._waiting: dict[str, list[npt.NDArray[np.float32]]] = {}

    def __call__(self, values: Mapping[str, Any]) -> None:
        """See one batch of values of some tensors."""
        for name, value in values.items():
            try:
                rows = self.found[name].update(_floats(value), gram=False)
                if rows is not None:
                    self._wait(name, rows)
            except ValueError as error:
                raise OnnxpressError(f"tensor '{name}': {error}") from error

    def finish(self) -> None:
        """Multiply what still waits."""
        for name in list(self._waiting):
            self._multiply(name)

    def _wait(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        waiting = self._waiting.setdefault(name, [])
        if waiting and waiting[0].shape[1] != rows.shape[1]:
            raise ValueError(f"it has {rows.shape[1]} channels, and had {waiting[0].shape[1]} before")
        waiting.append(rows.copy())
        if sum(map(len, waiting)) >= rows.shape[1]:
            self._multiply(name)

    def _multiply(self, name: str) -> None:
        self.found[name].add_products(np.concatenate(self._waiting.pop(name)))


def _floats(value: Any) -> npt.NDArray[np.float32]:
    if not isinstance(value, np.ndarray) or not (is_float(value.dtype) or value.dtype.kind in "iub"):
        raise ValueError("is no tensor of numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is told as such
        return value.astype(np.float32, copy=False)
