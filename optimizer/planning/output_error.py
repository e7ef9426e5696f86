"""How far one output of a converted model is from the original's, and below which bound little is left of it."""

from __future__ import annotations

import dataclasses

LEAST_SQNR = 3.0
"""Decibels of an output below which a conversion has ruined it: the noise is then 70 % of the signal."""
MOST_DROWNED = 0.15
"""Share of the channels of the last axis that may have more noise than signal. Those that hold least have it after good
conversions, too: up to 11 % of a page detector in fp8 on random numbers, where nf4 ruins 27 % of a text recogniser."""
LEAST_EQUAL = 0.5
"""Share of equal elements of an output that is no float."""


@dataclasses.dataclass(frozen=True)
class OutputError:
    """One output beside the original's.

    Attributes:
        name: The output.
        sqnr: Signal to noise ratio in dB, infinite where equal; None where it is no float or of another shape.
        channel: The channel of the last axis that has the lowest; None where there are fewer than eight rows.
        channel_sqnr: Its ratio.
        drowned: Share of the channels that have more noise than signal.
        equal: Share of equal elements of an output that is no float.
        shapes: The original's shape and its own, where these differ.
    """

    name: str
    sqnr: float | None = None
    channel: int | None = None
    channel_sqnr: float | None = None
    drowned: float = 0.0
    equal: float | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def is_ruined(self) -> bool:
        """Whether it is below a bound of this module, or holds NaN."""
        noisy = self.sqnr is not None and not self.sqnr >= LEAST_SQNR
        return noisy or self.drowned > MOST_DROWNED or (self.equal is not None and self.equal < LEAST_EQUAL)

    def __str__(self) -> str:
        """A line for a person."""
        if self.shapes is not None:
            was, now = ("x".join(map(str, shape)) or "a number" for shape in self.shapes)
            return f"{self.name} is of another length, {now}, in the original {was}: it cannot be compared"
        if self.equal is not None:
            return f"{self.name} {100 * self.equal:.1f} % equal"
        worst = "" if self.channel is None else f", channel {self.channel} of the last axis {self.channel_sqnr:.1f} dB"
        return f"{self.name} {self.sqnr:.1f} dB{worst}"
