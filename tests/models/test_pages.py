from __future__ import annotations

import numpy as np
import pytest
from onnxpress.models import pages, photographs

pytest.importorskip("PIL")


@pytest.fixture
def grey(monkeypatch):
    """Photographs that are grey all over."""
    monkeypatch.setattr(
        photographs, "crops", lambda n, size, seed, split: (np.full((*size, 3), 77, np.uint8) for _ in range(n))
    )


def test_text_is_in_its_boxes_and_nowhere_else(grey):
    for pixels, boxes in pages.pages(6, 0, "test"):
        assert pixels.shape == (480, 640, 3)
        assert len(boxes) > 2
        ground = pixels[-1, -1]
        written = (pixels != ground).any(axis=2)
        for left, top, right, bottom in boxes.astype(int):
            inside = written[top:bottom, left:right]
            assert inside.mean() > 0.1
            assert inside.any(axis=1).mean() > 0.9
            written[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
        assert not written.any()


def test_boxes_keep_their_distance(grey):
    for _, boxes in pages.pages(6, 0, "test"):
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= (640, 480)).all()
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                gaps = np.maximum(one[:2] - other[2:], other[:2] - one[2:])
                assert gaps.max() >= 12


def test_half_are_photographs_and_seeds_are_fixed(grey):
    grounds = [pixels[-1, -1].tolist() == [77] * 3 for pixels, _ in pages.pages(30, 0, "test")]
    assert 8 < sum(grounds) < 22
    first, again, other = (next(pages.pages(1, seed, "test"))[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_preprocessing():
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[3, 4] = (255, 0, 51)
    made = pages.preprocess(pixels)
    assert made.shape == (1, 3, 480, 640)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0, :, 3, 4], [-0.6, -1, 1], rtol=1e-6)
