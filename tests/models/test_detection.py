from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnxpress.models import pages
from onnxpress.models.tasks import detection


def flooded(mask):
    """Regions by flood fill, a pixel at a time."""
    left, found = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            row, column = stack.pop()
            region.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack += near
        found.append(frozenset((int(row), int(column)) for row, column in region))
    return set(found)


@pytest.mark.parametrize("density", [0, 0.1, 0.3, 0.5, 1])
def test_regions_are_those_of_a_flood_fill(density):
    mask = np.random.default_rng(0).random((25, 40)) < density
    found = detection.regions(mask)
    as_sets = {frozenset(zip(rows.tolist(), columns.tolist(), strict=True)) for rows, columns in found}
    assert len(as_sets) == len(found)
    assert as_sets == flooded(mask)


def test_a_spiral_is_one_region():
    mask = np.zeros((9, 9), bool)
    mask[0], mask[:, 8], mask[8], mask[2:, 0], mask[2, :7], mask[2:7, 6], mask[6, 2:7] = (True,) * 7
    assert len(detection.regions(mask)) == 1


def test_a_shrunk_core_grows_back():
    """A line of 20 x 100 shrunk by the paper's d = area (1 - 0.4^2) / perimeter = 7 leaves 6 x 86."""
    probability = np.zeros((60, 200), np.float32)
    probability[27:33, 57:143] = 0.9
    probability[5:7, 5:50] = 0.9  # too flat
    probability[50:56, 50:90] = 0.4  # not sure enough
    (box,) = detection.boxes_of(probability)
    growth = 1.6 * 6 * 86 / (2 * 92)
    np.testing.assert_allclose(box, [57 - growth, 27 - growth, 143 + growth, 33 + growth])
    assert detection.matches(box[None], np.array([[50.0, 20, 150, 40]])) == 1


def test_each_box_counts_once():
    truth = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    found = np.array([[0.0, 0, 10, 9], [0, 1, 10, 10], [20, 0, 30, 4], [40, 0, 50, 6]])
    assert detection.matches(found, truth) == 2
    assert detection.matches(found, truth[:0]) == detection.matches(found[:0], truth) == 0


def test_score(monkeypatch):
    truth = np.array([[57.0, 20, 143, 40], [0, 0, 30, 10]])
    monkeypatch.setattr(
        pages, "pages", lambda count, _seed, _split: [(np.zeros((60, 200, 3), np.uint8), truth)] * count
    )
    probability = np.zeros((1, 1, 60, 200), np.float32)
    probability[..., 25:35, 60:140] = 1
    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x")], run=lambda *_: [probability])
    score = detection.detection(session, Path("m.onnx"))
    assert score.details == {"pages": 40, "lines": 80, "precision": 1, "recall": 0.5}
    assert score.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("taken", "given", "fits"),
    [
        (["n", 3, "h", "w"], ["n", 1, "h", "w"], True),
        (["n", 3, 224, 224], ["n", 1, "h", "w"], False),
        (["n", 3, "h", "w"], ["n", 1000], False),
        (["n", "h", "w", 3], ["n", "h", "w", 1], False),
    ],
)
def test_fits(taken, given, fits):
    session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(shape=taken)], get_outputs=lambda: [SimpleNamespace(shape=given)]
    )
    assert detection.fits(session) == fits
