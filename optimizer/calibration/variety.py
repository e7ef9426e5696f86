"""Whether calibration data varies: ranges of what never changes say nothing about other data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..analysis.feeds import Feeds
from .statistics import TensorStatistics


class Variety:
    """What all samples have in common.

    Whole numbers may well be the same everywhere, as masks and types of tokens are; only all inputs together may not.
    """

    def __init__(self) -> None:
        self._count, self._first, self._same = 0, Feeds(), True
        self._constant: dict[str, float] = {}

    def see(self, feeds: Feeds) -> None:
        """See a sample; of what is no tensor nothing is known."""
        feeds = {name: value for name, value in feeds.items() if isinstance(value, np.ndarray)}
        if not self._count:
            self._first = feeds
            self._constant = {name: x.flat[0] for name, x in feeds.items() if x.dtype.kind in "fV" and x.size}
        self._constant = {
            name: value
            for name, value in self._constant.items()
            if name in feeds and bool((feeds[name] == value).all())
        }
        self._same = self._same and feeds.keys() == self._first.keys()
        self._same = self._same and all(np.array_equal(feeds[name], x) for name, x in self._first.items())
        self._count += 1

    def doubts(self) -> list[str]:
        """What is odd about the samples."""
        if self._constant:
            return [
                f"input '{name}' is {float(value):g} everywhere in all {self._count} samples: what was learned from it "
                "does not hold for other data"
                for name, value in self._constant.items()
            ]
        if self._same and self._count > 1:
            return [f"all {self._count} samples are the same: what was learned from them is of one sample"]
        return []


def constant_tensors(statistics: Mapping[str, TensorStatistics]) -> list[str]:
    """The warning about tensors that held one value alone, if there are any."""
    names = [name for name, tensor in statistics.items() if tensor.count > 1 and tensor.low == tensor.high]
    if not names:
        return []
    what = f"tensor '{names[0]}' holds" if len(names) == 1 else f"{len(names)} tensors, such as '{names[0]}', hold"
    return [f"{what} one value in all of the calibration data, so no range is known of what other data makes of it"]
