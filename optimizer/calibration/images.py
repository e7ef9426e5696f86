"""Images of a folder as inputs, by a recipe.

The shorter side is resized (bilinear) to size / crop, the middle is cut out, and each channel becomes
(scale byte - mean) / std.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import OnnxpressError, UsageError, lacking
from ..runtime.feeds import Feeds
from .files import IMAGES
from .image_recipe import ImageRecipe, recipe_of
from .inputs import Input


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
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
    if not folder.is_dir() or not files:
        raise UsageError(f"{folder}: is no folder that holds images ({', '.join(sorted(IMAGES))})")
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
        raise OnnxpressError(lacking("an image", "Pillow", "models")) from error
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
