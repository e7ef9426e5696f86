"""Nodes that stay in float because ONNX Runtime refuses the model with their rounded form.

Its fusions have faults of their own, which no list of rules foresees. Where it cannot load or run a model, the fewest
nodes are searched that it runs it without: from all of them, larger and smaller parts are given back as long as it does
(as delta debugging does, Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...errors import OnnxpressError
from ...runtime.temporary import temporary_session
from .builder import Builder

_REFUSED = "ONNX Runtime refuses the model with its rounded form"


def refused_by_runtime(builder: Builder[Any], known: Mapping[str, str]) -> dict[str, str]:
    """Names of the nodes to keep in float so that ONNX Runtime runs the model, and why.

    Args:
        builder: Of the model.
        known: What was found for another model of the same graph, which is tried first.

    Raises:
        OnnxpressError: It refuses the float model as well.
    """
    error = _error(builder, known)
    if error is None:
        return dict(known)
    operators = builder.plan(builder.model.clone(), {}).operators.values()
    # Products are given back first: they are what the conversion is for.
    ordered = sorted(operators, key=lambda operator: not operator.is_product)
    names = [operator.node.name or "" for operator in ordered]
    if _error(builder, dict.fromkeys(names, _REFUSED)) is not None:
        raise error
    reason = f"{_REFUSED}: {_message(error)}"
    fewest = _fewest(names, lambda kept: _error(builder, dict.fromkeys(kept, _REFUSED)) is None)
    return dict.fromkeys(fewest, reason)


def _error(builder: Builder[Any], kept: Mapping[str, str]) -> OnnxpressError | None:
    """Why ONNX Runtime does not run the model with nodes of these names in float."""
    model: ir.Model = builder.unrestored(kept)[0]
    try:
        with temporary_session(model, model.graph.name or "the model") as session:
            for feeds in builder.feeds[:1]:
                session.run(None, feeds)
    except OnnxpressError as error:
        return error
    except Exception as error:  # ONNX Runtime raises a type for each of its status codes
        return OnnxpressError(f"the model cannot run: {' '.join(str(error).split())}")
    return None


def _fewest(names: Sequence[str], suffice: Callable[[Sequence[str]], bool]) -> list[str]:
    """A part of names, which suffice together, none of which can be left out."""
    kept, size = list(names), len(names)
    while size > 0:
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if suffice(rest):
                kept = rest
            else:
                start += size
        size //= 2
    return kept


def _message(error: OnnxpressError) -> str:
    return str(error).rpartition("[ONNXRuntimeError]")[2].lstrip(" :")[:120]
