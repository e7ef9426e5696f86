"""OpenVINO beside ONNX Runtime: models compiled by it behind the calls of a session, and NNCF's int8 for it.

Both are of the extra `peers` and imported only here. Models are compiled to compute as precisely as in ONNX Runtime:
where a CPU has bfloat16, OpenVINO would take it for float32. `INFERENCE_PRECISION_HINT=bf16` lets it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration import Calibration, Statistics
from ..calibration.inputs import Input, inputs_of, needed
from ..errors import OnnxpressError, UsageError, lacking, option
from ..model_io import storage
from ..runtime.feeds import Feeds, random_feeds, type_name
from ..runtime.session import open_session, session_options
from ..sources import resolve

_CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoSession:
    """A model compiled by OpenVINO, with the calls of ONNX Runtime's session that are made here.

    Args:
        path: An ONNX file, or an .xml file of OpenVINO's that was made of one.
        onnx: The ONNX file that says what inputs and outputs are called; `path` itself by default.
        threads: None leaves the choice to OpenVINO.
        dims: Compile for the shapes that `random_feeds` makes of these sizes; None leaves symbolic sizes open.
        shapes: Compile for these shapes by input instead.
        config: Properties of OpenVINO's CPU plugin, over those that are set here.

    Raises:
        UsageError: OpenVINO is not installed.
        OnnxpressError: It cannot compile the model.
    """

    def __init__(
        self,
        path: Path,
        *,
        onnx: str | Path | None = None,
        threads: int | None = None,
        dims: Mapping[str, int] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        core = import_peer("openvino").Core()
        described = storage.load(onnx or path)
        self._path, self._metadata = path, dict(described.metadata_props)
        self._inputs = [_node(entry) for entry in needed(inputs_of(described))]
        self._names = [value.name or "" for value in described.graph.outputs]
        count = {} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)}
        try:
            model = core.read_model(str(path))
            if shapes is None and dims is not None:
                shapes = {name: x.shape for name, x in random_feeds(self._inputs, dims).items()}
            if shapes is not None:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._outputs = [_output(name, out) for name, out in zip(self._names, model.outputs, strict=True)]
            self._request = core.compile_model(
                model, "CPU", {**_CONFIG, **count, **(config or {})}
            ).create_infer_request()
        except RuntimeError as error:
            raise OnnxpressError(f"{path}: OpenVINO cannot compile the model: {_reason(error)}") from error

    def get_inputs(self) -> list[types.SimpleNamespace]:
        """What the model takes: name, type and shape each."""
        return self._inputs

    def get_outputs(self) -> list[types.SimpleNamespace]:
        """What it returns."""
        return self._outputs

    def get_modelmeta(self) -> types.SimpleNamespace:
        """Its metadata."""
        return types.SimpleNamespace(custom_metadata_map=self._metadata)

    def run(self, names: Sequence[str] | None, feeds: Feeds) -> list[np.ndarray]:
        """The outputs of these names, or all.

        Raises:
            OnnxpressError: OpenVINO fails.
        """
        try:
            found = self._request.infer(feeds, share_inputs=True)
        except RuntimeError as error:
            raise OnnxpressError(f"{self._path}: OpenVINO cannot run the model: {_reason(error)}") from error
        return [found[self._names.index(name)] for name in names or self._names]


def import_peer(name: str) -> Any:
    """A module of the extra `peers`.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{lacking('this comparison', f'the package {name}', 'peers')} ({error})") from error


def open_any(path: Path, options: Mapping[str, Any]) -> Any:
    """A session of ONNX Runtime, or of OpenVINO where the options have `onnx`.

    Args:
        path: The model.
        options: Of `session_options` or `OpenVinoSession`.

    Raises:
        OnnxpressError: The runtime refuses the model.
    """
    if "onnx" in options:
        return OpenVinoSession(path, **options)
    return open_session(path, session_options(**options))


def quantize(model: str | Path, calibration: Calibration, folder: Path) -> Path:
    """NNCF's post-training quantization of a model, as an .xml file for OpenVINO.

    Args:
        model: A float model: a file, a folder or a name of the catalogue.
        calibration: Data; a model of the catalogue has its own.
        folder: Where to write.

    Raises:
        UsageError: NNCF or OpenVINO is not installed, or the data does not fit.
        OnnxpressError: One of them fails.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it tells a server of its use
    openvino, nncf = import_peer("openvino"), import_peer("nncf")
    path = resolve(model)
    data = calibration.open(storage.load(path), None if Path(model).exists() else str(model), path)
    if isinstance(data, Statistics):
        raise UsageError(f"NNCF has to see data: give {option('calibration')}, not statistics")
    samples = list(data)
    # As its documentation asks for encoders, which it then treats in another way.
    reads_words = all(array.dtype.kind == "i" for array in samples[0].values())
    nncf.set_log_level(logging.ERROR)
    target = folder / f"{path.stem}.xml"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            rounded = nncf.quantize(
                openvino.Core().read_model(str(path)),
                nncf.Dataset(samples),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER if reads_words else None,
            )
        openvino.save_model(rounded, str(target), compress_to_fp16=False)
    except Exception as error:  # NNCF raises types of its own
        raise OnnxpressError(f"{model}: NNCF cannot quantize the model: {_reason(error)}") from error
    return target


def setup(config: Mapping[str, str]) -> str:
    """OpenVINO's version and configuration."""
    version = str(import_peer("openvino").__version__).split("-")[0]
    return ", ".join([f"OpenVINO {version}", *(f"{key}={value}" for key, value in {**_CONFIG, **config}.items())])


def _node(entry: Input) -> types.SimpleNamespace:
    return types.SimpleNamespace(name=entry.name, type=type_name(entry.dtype), shape=list(entry.shape or []))


def _output(name: str, output: Any) -> types.SimpleNamespace:
    sizes = output.partial_shape
    shape = None if sizes.rank.is_dynamic else [size.get_length() if size.is_static else None for size in sizes]
    return types.SimpleNamespace(name=name, type=type_name(np.dtype(output.element_type.to_dtype())), shape=shape)


def _reason(error: Exception) -> str:
    """The last line that says something: the first ones are places in OpenVINO's source."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1] if lines else type(error).__name__
