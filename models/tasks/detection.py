"""Finding lines of text on rendered pages, whose places are known.

A detector of the PP-OCR family gives each pixel the probability that it belongs to the core of a line. A box is made of
each connected region above a threshold, as Liao et al. do (2020, arXiv:1911.08947, section 3.5): the core was shrunk in
training, so that the box grows again by its area times a ratio over its perimeter. Lines here are level: a box has four
numbers, and the region's own is the smallest box around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import pages
from .task import Score, Task

if TYPE_CHECKING:
    import onnxruntime as ort

Boxes = npt.NDArray[np.float64]

_PAGES = 40  # with some 200 lines
_SEED = 0
_THRESHOLD, _BOX_THRESHOLD, _GROWTH = 0.3, 0.5, 1.6  # as the package that ships the model sets them
_LEAST = 3  # pixels of a side; less is speckle
_OVERLAP = 0.5


def detection(session: ort.InferenceSession, _model: Path) -> Score:
    """F1 of the boxes found on 40 pages, one being right that shares half of its union with a line's."""
    name = session.get_inputs()[0].name
    found = lines = right = 0
    for pixels, truth in pages.pages(_PAGES, _SEED, "test"):
        boxes = boxes_of(session.run(None, {name: pages.preprocess(pixels)})[0][0, 0])
        found, lines, right = found + len(boxes), lines + len(truth), right + matches(boxes, truth)
    return Score(
        2 * right / max(1, found + lines),
        {"pages": _PAGES, "lines": lines, "precision": right / max(1, found), "recall": right / max(1, lines)},
    )


def boxes_of(probability: npt.NDArray[np.float32]) -> Boxes:
    """Boxes of the text in a map of probabilities [height, width]: left, top, right, bottom, [boxes, 4]."""
    boxes = []
    for rows, columns in regions(probability > _THRESHOLD):
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        wide, tall = right - left, bottom - top
        if min(wide, tall) < _LEAST or probability[rows, columns].mean() < _BOX_THRESHOLD:
            continue
        growth = _GROWTH * wide * tall / (2 * (wide + tall))
        boxes.append((left - growth, top - growth, right + growth, bottom + growth))
    return np.array(boxes, np.float64).reshape(-1, 4)


def regions(mask: npt.NDArray[np.bool_]) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Connected regions of a mask, corners counted as touching: rows and columns of the pixels of each.

    Every pixel starts with a number of its own and takes the largest around it, along whole runs of a row and then of a
    column, until none changes.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        grown = np.pad(labels, 1)
        rows, columns = labels.shape
        around = [grown[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        spread = np.where(mask, np.maximum.reduce(around), 0)
        spread = _along_runs(_along_runs(spread).T).T
        if np.array_equal(spread, labels):
            break
        labels = spread
    rows_of, columns_of = np.nonzero(mask)
    order = np.argsort(labels[rows_of, columns_of], kind="stable")
    sorted_labels = labels[rows_of, columns_of][order]
    cuts = np.flatnonzero(np.diff(sorted_labels)) + 1
    if not len(order):
        return []
    return list(zip(np.split(rows_of[order], cuts), np.split(columns_of[order], cuts), strict=True))


def _along_runs(labels: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The largest label of each unbroken run of a row, at all of it."""
    padded = np.pad(labels, ((0, 0), (0, 1)))  # runs end with the row
    flat = padded.ravel()
    starts = np.flatnonzero(np.diff((flat > 0).astype(np.int8), prepend=0))
    if not len(starts):
        return labels
    largest = np.maximum.reduceat(flat, starts)
    runs = np.diff(starts, append=len(flat))
    filled = np.concatenate([np.zeros(starts[0], flat.dtype), np.repeat(largest, runs)])
    return filled.reshape(padded.shape)[:, :-1]


def matches(found: Boxes, truth: Boxes) -> int:
    """Boxes found that share at least half of the union with one of the truth; each counts once."""
    overlaps = _overlaps(found, truth)
    count = 0
    while overlaps.size and overlaps.max() >= _OVERLAP:
        one, other = np.unravel_index(overlaps.argmax(), overlaps.shape)
        overlaps[one, :] = overlaps[:, other] = 0
        count += 1
    return count


def _overlaps(a: Boxes, b: Boxes) -> Boxes:
    """Intersection over union of each with each, [len(a), len(b)]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    overlaps: Boxes = shared / np.maximum(areas_a[:, None] + areas_b[None] - shared, 1e-9)
    return overlaps


def fits(session: ort.InferenceSession) -> bool:
    """Whether the model gives a picture of any size a map of one channel."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 4:
        return False
    return inputs[0].shape[1] == 3 and outputs[0].shape[1] == 1 and not isinstance(inputs[0].shape[2], int)


TASK = Task(
    "detection",
    "F1",
    "lines of text found on rendered pages",
    "one picture of any size [batch, 3, height, width] as input and one map [batch, 1, height, width] as output",
    fits,
    detection,
)
