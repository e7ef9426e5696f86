"""How images become inputs, as users say it."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OnnxpressError, UsageError, suggestion

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = ("RGB", "BGR", "GRAY")
_MOST_SIDE = 16384


@dataclasses.dataclass(frozen=True)
class ImageRecipe:
    """How an image becomes an input.

    Attributes:
        size: Height and width; the input's own where None, or 224 where that is free.
        crop: Share of the shorter side that is cut out of the middle; None resizes the whole image to the size,
            whatever its proportions.
        layout: "NCHW" or "NHWC"; None takes the one that the input's number of channels shows.
        channels: "RGB", "BGR" or "GRAY".
        scale: What bytes are multiplied by first.
        mean: What is then subtracted, of each channel in the order of `channels`, or of all.
        std: What is then divided by, likewise.
    """

    size: tuple[int, int] | None = None
    crop: float | None = 0.875
    layout: str | None = None
    channels: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: A value is out of its range.
        """
        if self.layout is not None and self.layout not in LAYOUTS:
            raise UsageError(f"layout is {self.layout!r}, must be one of {', '.join(LAYOUTS)}")
        if self.channels not in CHANNELS:
            raise UsageError(f"channels is {self.channels!r}, must be one of {', '.join(CHANNELS)}")
        if self.size is not None and not all(0 < side <= _MOST_SIDE for side in self.size):
            raise UsageError(f"size is {list(self.size)}, sides must be from 1 to {_MOST_SIDE}")
        if self.crop is not None and not 0.05 <= self.crop <= 1:
            raise UsageError(f"crop is {self.crop}, must be from 0.05 to 1")
        for name, numbers in (("mean", self.mean), ("std", self.std), ("scale", (self.scale,))):
            if name != "scale" and len(numbers) not in (1, self.planes):
                raise UsageError(f"{name} has {len(numbers)} numbers, {self.channels} needs {self.planes}")
            if not all(map(math.isfinite, numbers)) or (name != "mean" and 0 in numbers):
                raise UsageError(f"{name} is {list(numbers)}, must be finite and, but for mean, not zero")

    @property
    def planes(self) -> int:
        """How many channels there are."""
        return 1 if self.channels == "GRAY" else 3

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> ImageRecipe:
        """A recipe from keys and values; "size" may be one number, and so may "mean" and "std".

        Raises:
            UsageError: A key is unknown, or a value of another type.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(f'{source}: unknown key "{key}"; {suggestion(key, known, "known keys:")}')
        try:
            return cls(**{key: _value(key, value) for key, value in values.items()})
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error

    @classmethod
    def from_toml(cls, path: str | Path) -> ImageRecipe:
        """A recipe from a TOML file.

        Raises:
            OnnxpressError: The file cannot be read.
            UsageError: It is no TOML, or as `from_mapping`.
        """
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except OSError as error:
            raise OnnxpressError(f"{path}: cannot read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not a TOML file: {error}") from error
        return cls.from_mapping(values, str(path))


PRESETS = {
    "imagenet": ImageRecipe(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "caffe": ImageRecipe(channels="BGR", scale=1.0, mean=(104.0, 117.0, 123.0)),
    "tensorflow": ImageRecipe(scale=1 / 127.5, mean=(1.0,)),
    "unit": ImageRecipe(),
    "bytes": ImageRecipe(scale=1.0),
}
"""Recipes by name: torchvision's, Caffe's means in BGR, -1 to 1, 0 to 1, and bytes as they are."""


def _value(key: str, value: Any) -> Any:
    def numbers(kind: type | tuple[type, ...]) -> tuple[Any, ...]:
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not items or not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
            raise UsageError(f"{key} is {value!r}, must be a number or a list of numbers")
        return items

    if key in ("layout", "channels"):
        if not isinstance(value, str):
            raise UsageError(f"{key} is {value!r}, must be a string")
        return value
    if key == "size":
        sides = numbers(int)
        if len(sides) > 2:
            raise UsageError(f"size is {value!r}, must be one number, or height and width")
        return (sides[0], sides[-1])
    if key == "crop" and value in (None, False):  # TOML has no null
        return None
    floats = tuple(map(float, numbers((int, float))))
    return floats if key in ("mean", "std") else floats[0]


def recipe_of(images: str | Path | ImageRecipe) -> ImageRecipe:
    """The recipe that a preset's name or a TOML file means.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(images, ImageRecipe):
        return images
    if str(images) in PRESETS:
        return PRESETS[str(images)]
    if not Path(images).exists():
        hint = suggestion(str(images), PRESETS, "the presets are")
        raise UsageError(f'images "{images}": no such file, and no preset; {hint}')
    return ImageRecipe.from_toml(images)
