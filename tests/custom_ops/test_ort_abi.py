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


STRUCTS = [("CustomOp", 25, "api"), ("Ep", 12, "ep"), ("EpFactory", 13, "ep"), ("NodeComputeInfo", 3, "ep")]


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
    official = path.read_text()
    ep_header = path.with_name("onnxruntime_ep_c_api.h")
    lines = [f'#include "{path}"', '#include "ort/abi.h"', '#include "ort/ep_abi.h"', "#include <cstddef>"]
    lines += [f"static_assert(offsetof(OrtApi, {name}) == {slot} * sizeof(void*));" for slot, name in names]
    if "OrtModelEditorApi" in official:  # since 1.22
        lines.append("static_assert(offsetof(OrtModelEditorApi, CreateNode) == 6 * sizeof(void*));")
    for name, count, where in STRUCTS:
        declared = text + (SOURCES / "ort" / "ep_abi.h").read_text()
        body = re.search(rf"struct {name} \{{(.*?)\n\}};", declared, re.DOTALL).group(1)
        members = re.findall(r"\(\*(\w+)\)\(", body)
        assert len(members) == count
        # An older header may end earlier.
        known = official if where == "api" else ep_header.read_text() if ep_header.exists() else ""
        lines += [
            f"static_assert(offsetof(Ort{name}, {member}) == offsetof(onnxpress::ort::{name}, {member}));"
            for member in members
            if member in known
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
