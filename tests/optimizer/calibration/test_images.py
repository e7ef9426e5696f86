"""Images: recipes, and pixels that arrive where they should."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnxpress.optimizer.calibration.data import open_data
from onnxpress.optimizer.calibration.image_recipe import PRESETS, ImageRecipe
from onnxpress.optimizer.calibration.images import read_image
from onnxpress.optimizer.calibration.inputs import Input
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from PIL import Image

NCHW = Input("image", np.dtype(np.float32), (None, 3, 8, 8))
NHWC = Input("image", np.dtype(np.float32), (None, 8, 8, 3))
RAW = ImageRecipe(size=(8, 8), crop=None, scale=1.0)


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        path = tmp_path / f"class{index // 3}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), (10 * index, 100, 200), np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_channels_layout_and_scale(folder):
    file = folder / "class0" / "1.png"
    rgb = read_image(file, RAW)
    assert rgb.shape == (1, 3, 8, 8)
    assert rgb[0, :, 0, 0].tolist() == [10, 100, 200]
    assert read_image(file, dataclasses.replace(RAW, channels="BGR"))[0, :, 0, 0].tolist() == [200, 100, 10]
    assert read_image(file, dataclasses.replace(RAW, layout="NHWC")).shape == (1, 8, 8, 3)
    assert read_image(file, dataclasses.replace(RAW, channels="GRAY")).shape == (1, 1, 8, 8)
    scaled = read_image(file, dataclasses.replace(RAW, scale=0.1, mean=(1, 2, 3), std=(2.0,)))
    np.testing.assert_allclose(scaled[0, :, 0, 0], [0, 4, 8.5], rtol=1e-5, atol=1e-6)
    assert read_image(file, RAW, np.uint8).dtype == np.uint8


def test_the_middle_is_cut_out(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[25:75, 75:125] = 255  # the middle half of the shorter side
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png", dataclasses.replace(RAW, crop=0.5))
    assert (whole[0, :, 1:-1, 1:-1] == 255).all()  # the border is mixed with what lies beside it
    assert whole.min() > 127
    border = read_image(tmp_path / "a.png", dataclasses.replace(RAW, crop=1.0))
    assert border[0, 0, 0, 0] == 0
    assert border[0, 0, 4, 4] == 255
    np.testing.assert_allclose(border.mean(), 255 / 4, rtol=0.05)


def test_size_and_layout_follow_the_input(folder):
    for entry, shape in ((NCHW, (1, 3, 8, 8)), (NHWC, (1, 8, 8, 3))):
        data = open_data(folder, [entry], images="imagenet")
        assert data.samples == 6
        assert [feeds["image"].shape for feeds in data] == [shape] * 6
    free = Input("image", np.dtype(np.float32), (None, 3, None, None))
    assert next(iter(open_data(folder, [free], images="unit")))["image"].shape == (1, 3, 224, 224)
    assert next(iter(open_data(folder, [NCHW], images="unit", batch=4)))["image"].shape == (4, 3, 8, 8)


def test_samples_are_taken_evenly(folder):
    data = open_data(folder, [NCHW], images=RAW, samples=2)
    assert [feeds["image"][0, 0, 0, 0] for feeds in data] == [0, 30]


def test_toml(folder, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('size = 8\ncrop = false\nchannels = "BGR"\nscale = 1\nmean = [1, 2, 3]\nstd = 2\nlayout = "NCHW"')
    expected = ImageRecipe((8, 8), None, "NCHW", "BGR", 1.0, (1.0, 2.0, 3.0), (2.0,))
    assert ImageRecipe.from_toml(path) == expected
    assert len(list(open_data(folder, [NCHW], images=path))) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sice = 8", 'unknown key "sice"; did you mean "size"'),
        ("size = [1, 2, 3]", "must be one number, or height and width"),
        ("size = 0", "sides must be from 1"),
        ("size = 1.5", "must be a number"),
        ('mean = "red"', "must be a number or a list"),
        ("mean = [1, 2]", "mean has 2 numbers, RGB needs 3"),
        ("std = [1, 0, 1]", "std is .* not zero"),
        ("scale = nan", "must be finite"),
        ('layout = "CHW"', "must be one of NCHW, NHWC"),
        ('channels = "RGBA"', "must be one of RGB, BGR, GRAY"),
        ("crop = 2", "must be from 0.05 to 1"),
        ("crop = [0.5", "not a TOML file"),
    ],
)
def test_wrong_recipes(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        ImageRecipe.from_toml(path)
    assert str(error.value).startswith(f"{path}: ")


def test_wrong_images(folder, tmp_path):
    two = [NCHW, Input("size", np.dtype(np.int64), (2,))]
    for inputs, images, message in (
        (two, "imagenet", "one input has four axes; this one takes image float32"),
        ([NCHW], "imagenot", 'no such file, and no preset; did you mean "imagenet"'),
        ([NCHW], "mine.toml", "no such file, and no preset; the presets are imagenet"),
    ):
        with pytest.raises(UsageError, match=message):
            open_data(folder, inputs, images=images)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no folder that holds images"):
        open_data(empty, [NCHW], images="imagenet")
    (empty / "a.png").write_bytes(b"no image")
    with pytest.raises(OnnxpressError, match=r"a\.png: not a readable image"):
        list(open_data(empty, [NCHW], images="imagenet"))


def test_a_recipe_that_the_model_does_not_take(folder):
    with pytest.raises(UsageError, match=r"sample 0: input 'image': has shape \[1, 3, 9, 9\]"):
        list(open_data(folder, [NCHW], images=dataclasses.replace(RAW, size=(9, 9))))


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [
        ("imagenet", -2.1179, 2.64),
        ("caffe", -123.0, 151.0),
        ("tensorflow", -1.0, 1.0),
        ("unit", 0.0, 1.0),
        ("bytes", 0.0, 255.0),
    ],
)
def test_presets_span_what_their_models_expect(tmp_path, preset, low, high):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", dataclasses.replace(PRESETS[preset], size=(14, 14)))
    assert (image.min(), image.max()) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
