"""Rendered pages: lines of text on plain ground or on photographs, and where they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from . import photographs
from .tasks.reading import compose, font

HEIGHT, WIDTH = 480, 640

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float64]

_LINES = 8  # tried; one that finds no free place is left out
_GAP = 12  # free pixels around a line, or two lines are one to a detector


def pages(count: int, seed: int, split: str) -> Iterator[tuple[Pixels, Boxes]]:
    """Pages of a seed, every second one on average over a photograph of a split, else on a plain colour.

    Yields:
        RGB pixels uint8 [480, 640, 3], and of each line of text left, top, right and bottom, [lines, 4].

    Raises:
        UsageError: There is no such split.
        OnnxpressError: The extra "models" is not installed, or the photographs cannot be had.
    """
    generator = np.random.default_rng(seed)
    for photograph in photographs.crops(count, (HEIGHT, WIDTH), seed, split):
        plain = np.full_like(photograph, generator.integers(0, 256, 3))
        yield _write(photograph if generator.random() < 0.5 else plain, generator)


def _write(ground: Pixels, generator: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Put lines on a page where they find room, in black or white with an edge of the other."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(_LINES):
        text, face = compose(generator), font(generator, 16, 40)
        left, top, right, bottom = (round(edge) for edge in draw.textbbox((0, 0), text, font=face))
        x, y = (int(generator.integers(0, max(1, room))) for room in (WIDTH - right, HEIGHT - bottom))
        box = (left + x, top + y, right + x, bottom + y)
        if right > WIDTH or any(_touch(box, other) for other in boxes):
            continue
        boxes.append(box)
        shades = [(20,) * 3, (240,) * 3]
        ink, edge = shades if np.asarray(image.crop(box).convert("L")).mean() >= 128 else reversed(shades)
        draw.text((x, y), text, font=face, fill=ink, stroke_width=1, stroke_fill=edge)
    return np.asarray(image), np.array(boxes, np.float64).reshape(-1, 4)


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] - _GAP < b[2] and b[0] - _GAP < a[2] and a[1] - _GAP < b[3] and b[1] - _GAP < a[3]


def preprocess(pixels: Pixels) -> npt.NDArray[np.float32]:
    """As the PP-OCR detector takes pictures: blue first, scaled to [-1, 1], float32 [1, 3, height, width]."""
    scaled = pixels[None, :, :, ::-1].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    return np.ascontiguousarray(scaled, np.float32)
