"""The names of `onnxpress` itself; the build puts this file in as its `__init__`.

import onnxpress

onnxpress.optimize("model.onnx", onnxpress.Recipe(scheme="int4"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress import custom_ops, ep, models, optimizer
    from onnxpress.optimizer.analysis.bench import bench
    from onnxpress.optimizer.analysis.compare import compare
    from onnxpress.optimizer.analysis.evaluate import evaluate
    from onnxpress.optimizer.analysis.inspect import inspect
    from onnxpress.optimizer.analysis.page import write_page
    from onnxpress.optimizer.calibration import Calibration
    from onnxpress.optimizer.conversion.calibrate import calibrate
    from onnxpress.optimizer.conversion.compile import compile_context as compile  # noqa: A004
    from onnxpress.optimizer.conversion.pipeline import optimize
    from onnxpress.optimizer.errors import OnnxpressError, UsageError
    from onnxpress.optimizer.evaluation.texts import Text
    from onnxpress.optimizer.settings.override import Override
    from onnxpress.optimizer.settings.recipe import Recipe

    __version__: str

__all__ = [
    "Calibration", "OnnxpressError", "Override", "Recipe", "Text", "UsageError", "__version__", "bench", "calibrate",
    "compare", "compile", "custom_ops", "ep", "evaluate", "inspect", "models", "optimize", "optimizer", "write_page",
]  # fmt: skip

_PLACES = {
    "bench": "analysis.bench:bench",
    "calibrate": "conversion.calibrate:calibrate",
    "compare": "analysis.compare:compare",
    "compile": "conversion.compile:compile_context",
    "evaluate": "analysis.evaluate:evaluate",
    "inspect": "analysis.inspect:inspect",
    "Text": "evaluation.texts:Text",
    "write_page": "analysis.page:write_page",
}
"""What `onnxpress.optimizer` does not have by these names."""


def __getattr__(name: str) -> Any:
    # ONNX and its tools take a second to import; who runs a session with our operators needs none of them.
    if name == "__version__":
        from importlib.metadata import version

        return version("onnxpress")
    if name in ("custom_ops", "ep", "models", "optimizer"):
        return importlib.import_module(f"onnxpress.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES.get(name, f":{name}").partition(":")
    return getattr(importlib.import_module(f"onnxpress.optimizer.{module}".rstrip(".")), attribute)


def __dir__() -> list[str]:
    return __all__
