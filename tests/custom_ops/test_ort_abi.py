"""The declared slots of ONNX Runtime's C ABI against the official headers, where those are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "custom_ops"
INCLUDES = [
    os.environ.get("ORT_INCLUDE", ""),
    "/usr/include/onnxruntime",
    "/usr/include/onnxruntime/core/session",
]


def header():
    for folder in filter(None, INCLUDES):
        path = Path(folder) / "onnxruntime_c_api.h"
        if path.exists():
            return path
    pytest.skip("no official header: install libonnxruntime-dev or set ORT_INCLUDE to its folder")


def test_slots_and_structs_match_the_official_header(tmp_path):
    path = header()
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    text = (SOURCES / "ort" / "abi.h").read_text()
    names = re.findall(r"X\((\d+), (\w+),", text)
    assert len(names) > 25
    struct = re.search(r"struct CustomOp \{(.*?)\n\};", text, re.DOTALL).group(1)
    members = re.findall(r"\(\*(\w+)\)\(", struct)
    assert len(members) == 25
    official = path.read_text()
    lines = [f'#include "{path}"', '#include "ort/abi.h"', "#include <cstddef>"]
    lines += [f"static_assert(offsetof(OrtApi, {name}) == {slot} * sizeof(void*));" for slot, name in names]
    lines += [
        f"static_assert(offsetof(OrtCustomOp, {name}) == offsetof(onnxpress::ort::CustomOp, {name}));"
        for name in ["version", *members]
        if name in official  # an older header may end earlier
    ]
    source = tmp_path / "slots.cc"
    source.write_text("\n".join(lines))
    subprocess.run(["g++", "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", f"-I{SOURCES}", source], check=True)


def test_slots_are_listed_once_and_in_order():
    text = (SOURCES / "ort" / "abi.h").read_text()
    first, second = text.split("#define ONNXPRESS_ORT_API_OTHER")
    for part in (first, second):
        slots = [int(slot) for slot, _ in re.findall(r"X\((\d+), (\w+),", part)]
        assert slots == sorted(set(slots))
