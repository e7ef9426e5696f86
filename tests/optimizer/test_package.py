"""The names of `onnxpress` itself."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import onnxpress
import pytest
from onnxpress import ep
from onnxpress.optimizer import Recipe, optimize


def test_all_names_are_there():
    for name in onnxpress.__all__:
        assert getattr(onnxpress, name) is not None
    assert set(dir(onnxpress)) == set(onnxpress.__all__)
    assert onnxpress.optimize is optimize
    assert onnxpress.Recipe is Recipe
    assert onnxpress.__version__ == importlib.metadata.version("onnxpress")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxpress.nothing


def test_importing_it_imports_nothing_else():
    heavy = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "typer", "rich", "matplotlib"}
    code = f"import sys, onnxpress; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_that_name_does_not_hide_it(tmp_path):
    (tmp_path / "onnxpress" / "optimizer").mkdir(parents=True)
    command = [sys.executable, "-c", "import onnxpress; print(onnxpress.Recipe().scheme)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "int4"


def test_errors_of_the_execution_provider_are_ours():
    assert issubclass(ep.EpError, onnxpress.OnnxpressError)
    assert issubclass(ep.EpError, RuntimeError)
