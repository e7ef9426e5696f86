from __future__ import annotations

import sys

import numpy as np
import pytest
from onnxpress.models import catalogue, photographs
from onnxpress.optimizer.errors import OnnxpressError, UsageError

pytest.importorskip("PIL")


@pytest.fixture
def gradients(monkeypatch):
    """Photographs whose red is the row and green the column, so that a crop tells where it is from."""
    rows, columns = np.indices((200, 250), np.uint8)
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    shown: list[str] = []
    monkeypatch.setattr(photographs, "photograph", lambda name: shown.append(name) or pixels)
    return shown


def test_crops_keep_their_proportions_and_lie_inside(gradients):
    for crop in photographs.crops(40, (48, 96), 0, "test"):
        assert crop.shape == (48, 96, 3)
        assert crop.dtype == np.uint8
        red, green = crop[:, 0, 0].astype(int), crop[0, :, 1].astype(int)
        tall, wide = red[-1] - red[0], abs(green[-1] - green[0])
        assert 250 / 2 * 0.9 < wide <= 249  # half the largest crop's side, at least
        assert tall / wide == pytest.approx(47 / 95, abs=0.03)


def test_some_are_mirrored(gradients):
    mirrored = [int(crop[0, 0, 1]) > int(crop[0, -1, 1]) for crop in photographs.crops(40, 32, 0, "test")]
    assert 10 < sum(mirrored) < 30


def test_seeds_and_turns(gradients):
    first, again, other = (np.stack(list(photographs.crops(12, 32, seed, "test"))) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert gradients[:12] == [*photographs._SPLITS["test"]] * 2


def test_splits_share_no_photograph_and_packages_have_all():
    calibration, test = map(set, photographs._SPLITS.values())
    assert not calibration & test
    entries = (catalogue.PHOTOGRAPHS, catalogue.MORE_PHOTOGRAPHS)
    fetched = {name for entry in entries for name in entry.members.values()}
    assert calibration | test == fetched | {"grace_hopper.jpg"}


def test_photograph_that_matplotlib_brings():
    pixels = photographs.photograph("grace_hopper.jpg")
    assert pixels.shape == (600, 512, 3)
    assert not pixels.flags.writeable


def test_unknown_split():
    with pytest.raises(UsageError, match="no split 'train' of the photographs; there are calibration, test"):
        next(photographs.crops(1, 32, 0, "train"))


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    photographs.photograph.cache_clear()
    with pytest.raises(OnnxpressError, match=r'pip install "onnxpress\[models\]"'):
        next(photographs.crops(1, 32, 0, "test"))
