"""Crops of photographs that packages bring: inputs for classifiers, without labels.

The two splits are of different photographs, so that what a model was calibrated on never judges it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.errors import OnnxpressError, UsageError, lacking

from . import catalogue
from .fetch import provide

Pixels = npt.NDArray[np.uint8]

_SPLITS = {
    "calibration": (
        *("rocket.jpg", "retina.jpg", "brick.png", "grass.png", "gravel.png", "moon.png"),
        *("china.jpg", "flower.jpg", "grace_hopper.jpg"),
    ),
    "test": ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "camera.png", "coins.png"),
}
_LEAST_PART = 0.5  # of the side of the largest crop that a photograph has


def crops(count: int, size: int | tuple[int, int], seed: int, split: str) -> Iterator[Pixels]:
    """Parts of photographs, each photograph in its turn, every second one mirrored on average.

    Args:
        count: How many.
        size: Height and width of each, or the side of a square.
        seed: Of what is cut out.
        split: "calibration" or "test".

    Yields:
        RGB images, uint8 [height, width, 3].

    Raises:
        UsageError: There is no such split.
        OnnxpressError: The extra "models" is not installed, or the photographs cannot be had.
    """
    if split not in _SPLITS:
        raise UsageError(f"no split '{split}' of the photographs; there are {', '.join(_SPLITS)}")
    names = _SPLITS[split]
    height, width = (size, size) if isinstance(size, int) else size
    generator = np.random.default_rng(seed)
    for index in range(count):
        yield _crop(photograph(names[index % len(names)]), height, width, generator)


@lru_cache
def photograph(name: str) -> Pixels:
    """One whole photograph, RGB uint8 [height, width, 3].

    Raises:
        OnnxpressError: The extra "models" is not installed, or the photograph cannot be had.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise OnnxpressError(lacking("a photograph", "pillow", "models")) from error
    pixels = np.asarray(Image.open(_file(name)).convert("RGB"))
    pixels.setflags(write=False)
    return pixels


def _file(name: str) -> Path:
    if name == "grace_hopper.jpg":
        import matplotlib

        return Path(matplotlib.get_data_path()) / "sample_data" / name
    entries = (catalogue.PHOTOGRAPHS, catalogue.MORE_PHOTOGRAPHS)
    return next(provide(entry) / name for entry in entries if name in entry.members.values())


def _crop(pixels: Pixels, height: int, width: int, generator: np.random.Generator) -> Pixels:
    from PIL import Image

    rows, columns = pixels.shape[:2]
    scale = min(rows / height, columns / width) * generator.uniform(_LEAST_PART, 1)
    top, left = (generator.uniform(0, whole - part * scale) for whole, part in ((rows, height), (columns, width)))
    box = (left, top, left + width * scale, top + height * scale)
    part = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
    result = np.asarray(part)
    return result[:, ::-1] if generator.random() < 0.5 else result
