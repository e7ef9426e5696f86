"""Reading rendered lines of text: made labels for an optical character recogniser."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.errors import OnnxpressError

_LINES = 200
_HEIGHT = 48  # of the recogniser's input
_WORDS = (
    "amber anchor basket bridge candle carbon castle circle copper cotton desert dragon engine fabric falcon forest "
    "garden glacier hammer harbor island jacket kernel ladder lantern magnet marble meadow mirror mountain needle "
    "orange oxygen palace pencil planet pocket quartz rabbit river rocket saddle shadow silver spiral summer tablet "
    "temple thunder tunnel valley velvet violet walnut window winter yellow zephyr"
).split()


def accuracy(session: Any) -> float:
    """Share of rendered lines that a PP-OCR recogniser reads exactly, blanks aside.

    Lines are words and numbers in DejaVu Sans of several sizes, grey levels and noise, from a fixed seed.
    """
    characters = _characters(session)
    generator = random.Random(0)
    right = 0
    for _ in range(_LINES):
        text, image = render(generator)
        read = decode(session.run(None, {session.get_inputs()[0].name: image})[0][0], characters)
        right += read.replace(" ", "") == text.replace(" ", "")
    return right / _LINES


def _characters(session: Any) -> list[str]:
    listed = session.get_modelmeta().custom_metadata_map.get("character")
    if listed is None:
        raise OnnxpressError("the model's metadata lists no characters; the task reading is for PP-OCR recognisers")
    return ["", *listed.splitlines(), " "]


def render(generator: random.Random) -> tuple[str, npt.NDArray[np.float32]]:
    """A random line and its image, float32 [1, 3, 48, width] in [-1, 1].

    Raises:
        OnnxpressError: The extra "models" is not installed.
    """
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise OnnxpressError('this task needs pillow: pip install "onnxpress[models]"') from error
    words = [generator.choice(_WORDS).capitalize() for _ in range(generator.randint(1, 3))]
    text = " ".join([*words, str(generator.randint(10, 9999))])
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(file), generator.randint(14, 40))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    margin = generator.randint(3, 8)
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    image = Image.new("L", size, generator.randint(200, 255))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=generator.randint(0, 80))
    width = max(1, round(size[0] * _HEIGHT / size[1]))
    pixels = np.asarray(image.resize((width, _HEIGHT), Image.Resampling.BILINEAR), np.float32)
    noise = np.random.default_rng(generator.randint(0, 2**31)).normal(0, 6, pixels.shape)
    scaled = (np.clip(pixels + noise, 0, 255) / 127.5 - 1).astype(np.float32)
    return text, np.broadcast_to(scaled, (1, 3, *scaled.shape)).copy()


def decode(scores: npt.NDArray[np.float32], characters: list[str]) -> str:
    """Best path of connectionist temporal classification (Graves et al., 2006): merge repeats, drop blanks (0)."""
    best = scores.argmax(axis=1)
    kept = [int(c) for i, c in enumerate(best) if c != 0 and (i == 0 or c != best[i - 1])]
    return "".join(characters[c] for c in kept if c < len(characters))
