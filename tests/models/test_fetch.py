from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from onnxpress.models import fetch
from onnxpress.models.fetch import Entry, Installed, Package, provide
from onnxpress.optimizer.errors import OnnxpressError

CONTENT = b"the model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXPRESS_CACHE", str(folder))
    return folder


def make_wheel(folder: Path, members: dict[str, bytes], name: str = "tiny-1.0-py3-none-any.whl") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return path


def entry_of(wheel: Path, members: dict[str, str], **more) -> Entry:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = Package("tiny", "1.0", digest, 1, "MIT")
    return Entry("tiny", package, members, "model.onnx", "", **more)


def copies(wheel: Path):
    def download(_package, folder):
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    return download


def fails(*_):
    raise AssertionError("must not download again")


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path, {"tiny/model.bin": CONTENT, "tiny/other.bin": b"not asked for"})


def test_members_land_under_our_names_and_nothing_else_does(cache, wheel):
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"})
    assert not entry.is_cached
    folder = provide(entry, copies(wheel))
    assert folder == entry.folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"model.onnx": CONTENT}
    assert [p.name for p in cache.iterdir()] == [folder.name]
    assert entry.is_cached
    assert provide(entry, fails) == folder


def test_another_revision_is_another_folder(cache, wheel):
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"})
    provide(entry, copies(wheel))
    assert not dataclasses.replace(entry, revision=2).is_cached


def test_wrong_checksum_is_refused_and_leaves_nothing(cache, wheel):
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"})
    package = dataclasses.replace(entry.package, sha256="0" * 64)
    with pytest.raises(OnnxpressError, match=r"tiny-1.0.*sha256.*expected 0{64}") as caught:
        provide(dataclasses.replace(entry, package=package), copies(wheel))
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_members_that_climb_out_of_the_archive_are_not_followed(cache, tmp_path):
    wheel = make_wheel(tmp_path, {"../../evil": b"x", "/tmp/evil": b"x", "tiny/model.bin": CONTENT})
    folder = provide(entry_of(wheel, {"tiny/model.bin": "model.onnx", "../../evil": "tame"}), copies(wheel))
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "tame"]
    assert not list(tmp_path.rglob("evil"))


def test_missing_member_is_named(cache, wheel):
    with pytest.raises(OnnxpressError, match=r"tiny-1.0.*holds no tiny/weights"):
        provide(entry_of(wheel, {"tiny/weights": "model.onnx"}), copies(wheel))
    assert list(cache.iterdir()) == []


def test_build_makes_the_main_file(cache, wheel):
    def build(folder):
        (folder / "raw").rename(folder / "model.onnx")

    folder = provide(entry_of(wheel, {"tiny/model.bin": "raw"}, build=build), copies(wheel))
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]


def test_entry_of_an_installed_package_is_built_without_a_download(cache):
    def build(folder):
        (folder / "model.onnx").write_bytes(CONTENT)

    entry = Entry("tiny", Installed("numpy", "BSD"), {}, "model.onnx", "", build=build)
    folder = provide(entry, fails)
    assert folder.name == f"tiny-{np.__version__}-1"
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert entry.to_mapping()["megabytes"] == 0


@pytest.mark.parametrize("where", ["download", "build"])
def test_interrupted_fetch_leaves_nothing(cache, wheel, where):
    def interrupt(*arguments):
        if where == "download":  # half a file is there by then
            (arguments[1] / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    download = interrupt if where == "download" else copies(wheel)
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"}, build=interrupt if where == "build" else None)
    with pytest.raises(KeyboardInterrupt):
        provide(entry, download)
    assert list(cache.iterdir()) == []
    assert not entry.is_cached


def test_a_killed_fetch_is_not_taken_for_the_entry(cache, wheel):
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"})
    leftover = cache / ".fetch-dead" / "made"
    leftover.mkdir(parents=True)
    (leftover / "model.onnx").write_bytes(b"half")
    assert not entry.is_cached
    assert (provide(entry, copies(wheel)) / "model.onnx").read_bytes() == CONTENT


def test_two_at_once_both_get_the_entry(cache, wheel):
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"})
    both_are_downloading = Barrier(2, timeout=30)

    def download(package, folder):
        both_are_downloading.wait()
        copies(wheel)(package, folder)

    with ThreadPoolExecutor(2) as pool:
        folders = [done.result() for done in [pool.submit(provide, entry, download) for _ in range(2)]]
    assert folders == [entry.folder] * 2
    assert [p.name for p in cache.iterdir()] == [entry.folder.name]
    assert (entry.folder / "model.onnx").read_bytes() == CONTENT


def test_damaged_folder_is_named(cache, wheel):
    entry = entry_of(wheel, {"tiny/model.bin": "model.onnx"})
    entry.folder.mkdir(parents=True)
    (entry.folder / "something").touch()
    with pytest.raises(OnnxpressError, match=r"tiny-1.0-1: model.onnx is missing; delete this folder"):
        provide(entry, copies(wheel))


def test_cache_that_cannot_be_made(tmp_path, wheel, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OnnxpressError, match=r"tiny: cannot write to the cache .*ONNXPRESS_CACHE"):
        provide(entry_of(wheel, {"tiny/model.bin": "model.onnx"}), copies(wheel))


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ONNXPRESS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fetch.cache_folder() == tmp_path / ".cache" / "onnxpress"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert fetch.cache_folder() == tmp_path / ".cache" / "onnxpress"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.cache_folder() == tmp_path / "xdg" / "onnxpress"
    monkeypatch.setenv("ONNXPRESS_CACHE", "~/own")
    assert fetch.cache_folder() == tmp_path / "own"


# pip itself, with an index that is a folder


@pytest.fixture
def offline_pip(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    for key in list(os.environ):
        if key.startswith("PIP_"):
            monkeypatch.delenv(key)
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def test_pip_downloads_a_wheel_for_another_python(cache, offline_pip):
    metadata = b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Python: ==3.11.*\nRequires-Dist: absent\n"
    info = "tiny-1.0.dist-info"
    wheel = make_wheel(
        offline_pip,
        {
            "tiny/model.bin": CONTENT,
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux\n",
            f"{info}/RECORD": b"",
        },
        "tiny-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    )
    folder = provide(entry_of(wheel, {"tiny/model.bin": "model.onnx"}))
    assert (folder / "model.onnx").read_bytes() == CONTENT


def test_what_pip_says_is_in_the_error(cache, offline_pip, wheel):
    with pytest.raises(OnnxpressError, match=r"pip cannot fetch tiny 1.0: .*tiny==1.0.*index can be reached") as caught:
        provide(entry_of(wheel, {"tiny/model.bin": "model.onnx"}))
    assert "\n" not in str(caught.value)


def test_python_without_pip(cache, wheel, tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(OnnxpressError, match=r"needs pip.*ensurepip"):
        provide(entry_of(wheel, {"tiny/model.bin": "model.onnx"}))
