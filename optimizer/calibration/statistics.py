"""What is kept of the values of tensors: sums that merge.

Count, range, histogram, magnitudes and sums of channels, and X'X add up in any order to what one run over all data
gives, sums within rounding in float64. Only the moving average depends on the order; when merged, each side weighs as
many batches as it saw.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import UsageError
from .histogram import Histogram

Array64 = npt.NDArray[np.float64]

_MOMENTUM = 0.9  # share of the old value in a moving average
_PIECE = 1 << 20  # elements summed at a time in float64


@dataclasses.dataclass(frozen=True)
class StatisticsSpec:
    """What to keep of a tensor besides count and range.

    Attributes:
        histogram: A histogram, which the methods "percentile", "entropy" and "mse" need.
        channel_axis: Magnitudes, means and deviations along this axis; may be negative.
        gram: X'X over the channels, the last axis unless `channel_axis` says another: 8 C^2 bytes.
    """

    histogram: bool = True
    channel_axis: int | None = None
    gram: bool = False


@dataclasses.dataclass
class Channels:
    """Sums along one axis.

    Attributes:
        absmax: float64 [C], largest magnitudes.
        total: float64 [C], sums.
        squares: float64 [C], sums of squares.
        count: Values of each channel.
    """

    absmax: Array64
    total: Array64
    squares: Array64
    count: int = 0

    @classmethod
    def of(cls, rows: npt.NDArray[np.float32]) -> Channels:
        """Those of rows [count, C]."""
        count, channels = rows.shape
        made = cls(np.zeros(channels), np.zeros(channels), np.zeros(channels), count)
        step = max(1, _PIECE // max(1, channels))
        for begin in range(0, count, step):
            piece = rows[begin : begin + step].astype(np.float64)
            made.total += piece.sum(axis=0)
            np.maximum(made.absmax, np.abs(piece).max(axis=0), out=made.absmax)
            made.squares += np.square(piece, out=piece).sum(axis=0)
        return made

    def merge(self, other: Channels) -> Channels:
        """Those of the values of both."""
        return Channels(
            np.maximum(self.absmax, other.absmax), self.total + other.total, self.squares + other.squares,
            self.count + other.count,
        )  # fmt: skip


@dataclasses.dataclass
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        wanted: What is kept.
        count: Values seen.
        low: The lowest finite value; infinity where none was seen.
        high: The highest finite value; minus infinity where none was seen.
        moving_low: Moving average of the lowest value of each batch.
        moving_high: Moving average of the highest.
        batches: Batches seen.
        finite: Whether no value was NaN or infinite. Such values count as zeros.
        histogram: Counts of values, where wanted.
        channels: Sums along an axis, where wanted.
        gram: float64 [C, C], the sum of X'X over rows, where wanted.
        rows: Rows in `gram`.
    """

    wanted: StatisticsSpec = StatisticsSpec()
    count: int = 0
    low: float = math.inf
    high: float = -math.inf
    moving_low: float = 0.0
    moving_high: float = 0.0
    batches: int = 0
    finite: bool = True
    histogram: Histogram | None = None
    channels: Channels | None = None
    gram: Array64 | None = None
    rows: int = 0

    @property
    def absmax(self) -> float:
        """The largest magnitude; 0 where no value was seen."""
        return max(abs(self.low), abs(self.high)) if self.count else 0.0

    @property
    def channel_absmax(self) -> Array64 | None:
        """float64 [C], where wanted."""
        return self.channels.absmax if self.channels else None

    @property
    def channel_mean(self) -> Array64 | None:
        """float64 [C], where wanted."""
        return self.channels.total / max(1, self.channels.count) if self.channels else None

    @property
    def channel_std(self) -> Array64 | None:
        """float64 [C], the deviation of the values themselves and not an estimate of others', where wanted."""
        if self.channels is None:
            return None
        count = max(1, self.channels.count)
        variance = self.channels.squares / count - np.square(self.channels.total / count)
        return np.sqrt(np.maximum(variance, 0))

    def update(self, values: npt.NDArray[np.float32], *, gram: bool = True) -> npt.NDArray[np.float32] | None:
        """See one batch of values.

        Args:
            values: float32 of any shape with the axes that are wanted; the number of channels is that of the batches
                before.
            gram: Add to X'X, where that is wanted.

        Returns:
            The rows [count, C] that `add_products` is then to see, where X'X is wanted and was not added to.

        Raises:
            ValueError: The axis or the number of channels is another.
        """
        if values.size == 0:
            return None
        low, high = float(values.min()), float(values.max())  # NaN goes through both
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            values = np.where(np.isfinite(values), values, np.float32(0))
            low, high = float(values.min()), float(values.max())
        self._see_range(low, high)
        self.count += values.size
        if self.wanted.histogram:
            self.histogram = self.histogram or Histogram()
            self.histogram.update(values, max(abs(low), abs(high)))
        if self.wanted.channel_axis is not None or self.wanted.gram:
            rows = _rows(values, -1 if self.wanted.channel_axis is None else self.wanted.channel_axis)
            self._see_rows(rows)
            if self.wanted.gram and gram:
                self.add_products(rows)
            elif self.wanted.gram:
                return rows
        return None

    def add_products(self, rows: npt.NDArray[np.float32]) -> None:
        """Add the products of rows [count, C] to X'X.

        Raises:
            ValueError: The number of channels is another than before.
        """
        if self.gram is not None and len(self.gram) != rows.shape[1]:
            raise ValueError(f"it has {rows.shape[1]} channels, and had {len(self.gram)} before")
        exact = rows.astype(np.float64)
        product = exact.T @ exact
        self.gram = product if self.gram is None else np.add(self.gram, product, out=self.gram)
        self.rows += len(rows)

    def _see_range(self, low: float, high: float) -> None:
        old = _MOMENTUM if self.batches else 0.0
        self.moving_low = old * self.moving_low + (1 - old) * low
        self.moving_high = old * self.moving_high + (1 - old) * high
        self.batches += 1
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _see_rows(self, rows: npt.NDArray[np.float32]) -> None:
        known = self.channels.absmax.size if self.channels else len(self.gram) if self.gram is not None else None
        if known not in (None, rows.shape[1]):
            raise ValueError(f"it has {rows.shape[1]} channels, and had {known} before")
        if self.wanted.channel_axis is not None:
            seen = Channels.of(rows)
            self.channels = self.channels.merge(seen) if self.channels else seen

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """What seeing the values of both gives.

        Raises:
            ValueError: They keep different things, or numbers of channels differ.
        """
        if self.wanted != other.wanted:
            raise ValueError("different statistics were kept of it")
        if not other.batches or not self.batches:
            seen = self if self.batches else other
            return dataclasses.replace(seen, finite=self.finite and other.finite)
        if self.gram is not None and other.gram is not None and self.gram.shape != other.gram.shape:
            raise ValueError(f"it has {len(self.gram)} channels, and {len(other.gram)} there")
        if self.channels and other.channels and self.channels.absmax.shape != other.channels.absmax.shape:
            raise ValueError(f"it has {self.channels.absmax.size} channels, and {other.channels.absmax.size} there")
        share = self.batches / (self.batches + other.batches)
        return TensorStatistics(
            self.wanted,
            self.count + other.count,
            min(self.low, other.low),
            max(self.high, other.high),
            share * self.moving_low + (1 - share) * other.moving_low,
            share * self.moving_high + (1 - share) * other.moving_high,
            self.batches + other.batches,
            self.finite and other.finite,
            self.histogram.merge(other.histogram) if self.histogram and other.histogram else None,
            self.channels.merge(other.channels) if self.channels and other.channels else None,
            self.gram + other.gram if self.gram is not None and other.gram is not None else None,
            self.rows + other.rows,
        )


def _rows(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """The values as [count, C], with the channels of an axis last."""
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"it has no axis {axis}: its shape is {list(values.shape)}")
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


class Statistics(Mapping[str, TensorStatistics]):
    """Statistics of a model's tensors, by name.

    Attributes:
        model: Which model they are of, as `fingerprint` gives it.
    """

    def __init__(self, model: str, tensors: Mapping[str, TensorStatistics]) -> None:
        self.model = model
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> TensorStatistics:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def merge(self, other: Statistics) -> Statistics:
        """What collecting the data of both gives.

        Raises:
            UsageError: They are of different models, or keep different things.
        """
        if self.model != other.model or self.keys() != other.keys():
            raise UsageError("statistics of different models, or of different tensors, cannot be merged")
        merged = {}
        for name, mine in self.items():
            try:
                merged[name] = mine.merge(other[name])
            except ValueError as error:
                raise UsageError(f"tensor '{name}' cannot be merged: {error}") from error
        return Statistics(self.model, merged)

    def check(self, model: ir.Model, names: Iterable[str] = ()) -> None:
        """Refuse a model that these are not of; it may have been rewritten since.

        Args:
            model: The model.
            names: Tensors of it whose statistics are needed.

        Raises:
            UsageError: Its inputs, outputs or channels are others, or some of the tensors were not observed.
        """
        shapes = {value.name: value.shape for node in model.graph for value in (*node.inputs, *node.outputs) if value}
        if fingerprint(model) != self.model or any(_differ(self[name], shapes.get(name)) for name in self):
            raise UsageError("the statistics were collected on another model: its inputs, outputs or shapes differ")
        if missing := [name for name in names if name not in self]:
            raise UsageError(f"the statistics lack tensor '{missing[0]}', which this needs; calibrate anew")

    def save(self, path: str | Path) -> None:
        """Write an .npz file, wholly or not at all.

        Raises:
            UsageError: Nothing can be written there.
            OnnxpressError: The disk is full or another error of the operating system.
        """
        from .archive import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            OnnxpressError: The file is missing, damaged or of another kind.
        """
        from .archive import load

        return load(path)


def fingerprint(model: ir.Model) -> str:
    """What tells a model from others and stays when passes rewrite it: inputs, with types and shapes, and outputs."""
    graph = model.graph
    inputs = [
        [value.name, str(value.dtype), [str(size) for size in value.shape or ()]]
        for value in graph.inputs
        if value.name not in graph.initializers
    ]
    text = json.dumps([inputs, [value.name for value in graph.outputs]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _differ(tensor: TensorStatistics, shape: ir.Shape | None) -> bool:
    """Whether a tensor of this shape has another number of channels than was seen."""
    axis = tensor.wanted.channel_axis
    if tensor.channels is None or axis is None or shape is None:
        return False
    fits = -len(shape) <= axis < len(shape)
    return not fits or (isinstance(shape[axis], int) and shape[axis] != tensor.channels.absmax.size)
