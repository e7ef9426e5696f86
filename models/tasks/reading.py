"""Reading rendered lines of text: labels that make themselves, for a recogniser of characters.

Lines of words and numbers are drawn from a fixed seed with the DejaVu fonts that matplotlib brings, in several sizes,
grey levels and amounts of noise, and read the way PP-OCR recognisers are meant to: 48 pixels high, scaled to [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.errors import OnnxpressError, lacking

from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort
    from PIL import ImageFont

_LINES = 200
_HEIGHT = 48  # of the recogniser's input
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
_WORDS = (
    "amber", "anchor", "basket", "bridge", "candle", "carbon", "castle", "circle", "copper", "cotton", "desert",
    "dragon", "engine", "fabric", "falcon", "forest", "garden", "glacier", "hammer", "harbor", "island", "jacket",
    "kernel", "ladder", "lantern", "magnet", "marble", "meadow", "mirror", "mountain", "needle", "orange", "oxygen",
    "palace", "pencil", "planet", "pocket", "quartz", "rabbit", "river", "rocket", "saddle", "shadow", "silver",
    "spiral", "summer", "tablet", "temple", "thunder", "tunnel", "valley", "velvet", "violet", "walnut", "window",
    "winter", "yellow", "zephyr",
)  # fmt: skip


def accuracy(session: ort.InferenceSession, _model: Path) -> Score:
    """Share of 200 rendered lines that are read without error; spaces do not count, as the model drops many."""
    characters = _characters(session)
    generator = np.random.default_rng(0)
    name = session.get_inputs()[0].name
    lines = errors = total = 0
    for _ in range(_LINES):
        text = compose(generator)
        read = decode(session.run(None, {name: render(text, generator)})[0][0], characters)
        wrong = edit_distance(read.replace(" ", ""), text.replace(" ", ""))
        lines += wrong == 0
        errors += wrong
        total += len(text.replace(" ", ""))
    return Score(lines / _LINES, {"lines": _LINES, "character accuracy": 1 - errors / total})


def fits(session: ort.InferenceSession) -> bool:
    """Whether the model is a PP-OCR recogniser: an image in, and the characters listed in its metadata."""
    shape = session.get_inputs()[0].shape
    return len(session.get_inputs()) == 1 and len(shape) == 4 and bool(_listed(session))


def _listed(session: ort.InferenceSession) -> str:
    return str(session.get_modelmeta().custom_metadata_map.get("character", ""))


def _characters(session: ort.InferenceSession) -> list[str]:
    """The meaning of each class: first the blank of CTC, last the space that the metadata leaves out."""
    return ["", *_listed(session).splitlines(), " "]


def compose(generator: np.random.Generator) -> str:
    """A line of one to three words, capitalised or not, and a number."""
    words = [str(word) for word in generator.choice(_WORDS, generator.integers(1, 4))]
    words = [word.capitalize() if generator.random() < 0.5 else word for word in words]
    return " ".join([*words, str(generator.integers(10, 10_000))])


def font(generator: np.random.Generator, least: int, most: int) -> ImageFont.FreeTypeFont:
    """One of the fonts, in a size of so many pixels."""
    import matplotlib
    from PIL import ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{generator.choice(_FONTS)}.ttf"
    return ImageFont.truetype(str(file), int(generator.integers(least, most + 1)))


def render(text: str, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """The image of a line, float32 [1, 3, 48, width] in [-1, 1].

    Raises:
        OnnxpressError: The extra "models" is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise OnnxpressError(lacking("this task", "pillow", "models")) from error
    face = font(generator, 14, 40)
    left, top, right, bottom = (int(edge) for edge in face.getbbox(text))
    margin = int(generator.integers(3, 9))
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    image = Image.new("L", size, int(generator.integers(180, 256)))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=face, fill=int(generator.integers(0, 100)))
    width = max(1, round(size[0] * _HEIGHT / size[1]))
    pixels = np.asarray(image.resize((width, _HEIGHT), Image.Resampling.BILINEAR), np.float32)
    noisy = pixels + generator.normal(0, generator.uniform(0, 16), pixels.shape)
    scaled = (np.clip(noisy, 0, 255) / 127.5 - 1).astype(np.float32)
    channels: npt.NDArray[np.float32] = np.broadcast_to(scaled, (1, 3, *scaled.shape)).copy()
    return channels


def decode(scores: npt.NDArray[np.float32], characters: list[str]) -> str:
    """The most likely path, repeats merged and blanks (class 0) dropped.

    Best path decoding of connectionist temporal classification (Graves et al., 2006, section 3.2).

    Args:
        scores: Of each class at each step, [steps, classes].
        characters: The meaning of each class.

    Raises:
        OnnxpressError: There are more classes than characters.
    """
    if scores.shape[1] > len(characters):
        raise OnnxpressError(
            f"the model has {scores.shape[1]} classes, its metadata names {len(characters)} characters"
        )
    best = scores.argmax(axis=1)
    kept = best[(best != 0) & np.concatenate(([True], best[1:] != best[:-1]))]
    return "".join(characters[i] for i in kept)


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and substitutions of one character that turn one string into the other."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


TASK = Task(
    "reading",
    "lines read",
    "share of rendered lines of text that are read without error",
    "one image as input and the list 'character' in its metadata",
    fits,
    accuracy,
)
