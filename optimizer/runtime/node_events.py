"""What ONNX Runtime's profiler writes of each run of a node."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EVENT = "_kernel_time"  # behind the name of a node


@dataclasses.dataclass(frozen=True)
class NodeEvent:
    """A node in one run.

    Attributes:
        name: Of the node, in the graph that ONNX Runtime made.
        op_type: Its operator; of what an execution provider compiled, a name that the provider has for it.
        provider: Name of the execution provider that ran it.
        seconds: That it took.
        reads_numbers: Whether its first input is of integers of 32 or 64 bits, such as tokens are.
        inputs: Shapes of its inputs; weights that a kernel keeps in a form of its own are left out.
        outputs: Shapes of its outputs.
    """

    name: str
    op_type: str
    provider: str
    seconds: float
    reads_numbers: bool
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def node_events(path: Path) -> Iterator[NodeEvent]:
    """The nodes of all runs, in their order.

    Args:
        path: The file that a session with `enable_profiling` wrote.
    """
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") != "Node" or not event["name"].endswith(_EVENT):
            continue
        facts = event.get("args", {})
        yield NodeEvent(
            event["name"].removesuffix(_EVENT),
            facts.get("op_name", ""),
            facts.get("provider", ""),
            1e-6 * event["dur"],
            any(key in ("int32", "int64") for entry in (facts.get("input_type_shape") or [])[:1] for key in entry),
            _shapes(facts.get("input_type_shape")),
            _shapes(facts.get("output_type_shape")),
        )


def _shapes(listed: Any) -> tuple[tuple[int, ...], ...]:
    """Of {type: shape} each; of what is no tensor there is none."""
    return tuple(tuple(shape) for entry in listed or () for shape in entry.values())
