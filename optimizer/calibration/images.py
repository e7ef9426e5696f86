"""Images of a folder as inputs, by a recipe.

The shorter side is resized (bilinear) to size / crop, the middle is cut out, and each channel becomes
(scale byte - mean) / std.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OnnxpressError, UsageError, suggestion
from ..runtime.feeds import Feeds
from .inputs import Input

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = ("RGB", "BGR", "GRAY")
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
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


def image_samples(
    folder: Path, inputs: Sequence[Input], images: str | Path | ImageRecipe, samples: int | None
) -> tuple[Callable[[], Iterable[Feeds]], int]:
    """What starts to go through the images below a folder, in the order of their names, and how many there are.

    Args:
        folder: With images, in folders of their own or not.
        inputs: What the model takes: one image.
        images: As `recipe_of`.
        samples: The most images, which are taken evenly.

    Raises:
        UsageError: The model takes something else, or there are no images.
    """
    recipe = _fitted(recipe_of(images), inputs)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not folder.is_dir() or not files:
        raise UsageError(f"{folder}: is no folder that holds images ({', '.join(sorted(_SUFFIXES))})")
    if samples is not None and samples < len(files):
        files = [files[index * len(files) // samples] for index in range(samples)]
    entry = inputs[0]
    return lambda: ({entry.name: read_image(file, recipe, entry.dtype)} for file in files), len(files)


def _fitted(recipe: ImageRecipe, inputs: Sequence[Input]) -> ImageRecipe:
    """The recipe with size and layout as the model's input has them."""
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4:
        listed = ", ".join(f"{entry.name} {entry.describe()}" for entry in inputs)
        raise UsageError(f"images need a model whose one input has four axes; this one takes {listed}; give an .npz")
    layout = recipe.layout or ("NHWC" if shape[3] == recipe.planes != shape[1] else "NCHW")
    height, width = shape[2:] if layout == "NCHW" else shape[1:3]
    own = (height if isinstance(height, int) else 224, width if isinstance(width, int) else 224)
    return dataclasses.replace(recipe, layout=layout, size=recipe.size or own)


def read_image(path: str | Path, recipe: ImageRecipe, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """One image as a batch of one.

    Args:
        path: The file.
        recipe: With its size; layout NCHW where it has none.
        dtype: Of the result; whole numbers are rounded and held within their type.

    Returns:
        [1, C, H, W] or [1, H, W, C].

    Raises:
        OnnxpressError: The file is no image, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise OnnxpressError('images need Pillow: pip install "onnxpress[models]"') from error
    height, width = recipe.size or (224, 224)
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if recipe.channels == "GRAY" else "RGB")
    except Exception as error:  # Pillow raises many types for a damaged file
        raise OnnxpressError(f"{path}: not a readable image: {error}") from error
    box = _box(image.size, (width, height), recipe.crop)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image, np.float32).reshape(height, width, recipe.planes)
    if recipe.channels == "BGR":
        pixels = pixels[..., ::-1]
    pixels = (pixels * np.float32(recipe.scale) - np.array(recipe.mean, np.float32)) / np.array(recipe.std, np.float32)
    if recipe.layout != "NHWC":
        pixels = pixels.transpose(2, 0, 1)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        pixels = np.clip(np.rint(pixels), limits.min, limits.max)
    return np.ascontiguousarray(pixels[np.newaxis].astype(kind))


def _box(have: tuple[int, int], size: tuple[int, int], crop: float | None) -> tuple[float, float, float, float]:
    """The part of an image of `have` (width, height) that is resized to `size`: resizing and cutting in one step."""
    if crop is None:
        return 0.0, 0.0, float(have[0]), float(have[1])
    unit = min(have[0] / size[0], have[1] / size[1]) * crop
    width, height = size[0] * unit, size[1] * unit
    left, top = (have[0] - width) / 2, (have[1] - height) / 2
    return left, top, left + width, top + height
