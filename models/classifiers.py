"""The catalogue's classifiers of images: how each wants its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnxruntime as ort

SIDE = 224
_BLUE_GREEN_RED = np.array(
    [104, 117, 123], np.float32
)  # means of ImageNet, as Caffe's models of the time subtract them


@dataclass(frozen=True)
class Classifier:
    """A model of the catalogue that gives each class of an image a score.

    Attributes:
        name: In the catalogue.
        input: Name of its input.
        classes: How many.
        preprocess: RGB pixels uint8 [224, 224, 3] -> float32 as the model takes it, with a batch axis of 1.
    """

    name: str
    input: str
    classes: int
    preprocess: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

    def is_behind(self, session: ort.InferenceSession) -> bool:
        """Whether a model has this one's input and classes, as all that is made from it has."""
        inputs, shape = session.get_inputs(), session.get_outputs()[0].shape
        return [node.name for node in inputs] == [self.input] and shape[-1:] == [self.classes]


def _lite(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """NCHW, (x - 127) / 128: as EfficientNet-Lite was trained, so that its inputs are codes of 8 bits."""
    scaled: npt.NDArray[np.float32] = ((pixels.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(scaled)


def _open_nsfw(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """NHWC, blue first, less the mean of each channel."""
    result: npt.NDArray[Any] = pixels[None, :, :, ::-1].astype(np.float32) - _BLUE_GREEN_RED
    return np.ascontiguousarray(result, np.float32)


CLASSIFIERS = (
    Classifier("efficientnet-lite0", "images", 1000, _lite),
    Classifier("resnet-nsfw", "input:0", 2, _open_nsfw),
)
"""All of them."""
