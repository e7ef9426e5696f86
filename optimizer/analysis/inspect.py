"""What is in a model, and what a scheme would take of it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnxpress.custom_ops.functions import DOMAIN

from ..conversion.pipeline import METADATA_KEY, decide
from ..graph.constants import stored_constant
from ..graph.packed_weights import weights_in
from ..model_io import storage
from ..planning.report import group_reasons, size_text
from ..settings.recipe import Recipe
from ..sources import resolve

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Facts about a model.

    Attributes:
        model: The file.
        size: Bytes of the file and its external data.
        external: Bytes of its constants that are external data.
        parameters: Elements of its constants: initializers and Constant nodes. Packed codes count as the weights that
            they stand for, and neither their scales nor their zero points count.
        dtypes: Bytes of constants by element type.
        operators: Nodes by operator, subgraphs and functions' bodies included; other domains are written out.
        opsets: Versions by domain.
        ir_version: Of the format.
        producer: What wrote it; empty where the file does not say.
        inputs: Name, type and shape of each.
        outputs: The same.
        recipe: The recipe that an earlier conversion stored, or None.
        scheme: What was asked about.
        taken: Nodes the scheme would take once the model is cleaned up and prepared for it: name, operator, parameters.
        left: The other nodes that could have been taken: name, operator, reason.
    """

    model: str
    size: int
    external: int
    parameters: int
    dtypes: dict[str, int]
    operators: dict[str, int]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    inputs: list[str]
    outputs: list[str]
    recipe: dict[str, Any] | None
    scheme: str
    taken: list[tuple[str, str, int]]
    left: list[tuple[str, str, str]]

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console, *, nodes: bool = False) -> None:
        """A table for a person; `nodes` lists each node rather than counts."""
        from rich.table import Table

        table = Table(title=self.model, title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        external = f", of which {size_text(self.external)} external" if self.external else ""
        table.add_row("size", size_text(self.size) + external)
        table.add_row("parameters", f"{self.parameters:,}")
        table.add_row("types", ", ".join(f"{kind} {size_text(size)}" for kind, size in self.dtypes.items()))
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in self.opsets.items())
        producer = f"; by {self.producer}" if self.producer else ""
        table.add_row("opsets", f"{opsets}; IR {self.ir_version}{producer}")
        for label, values in (("input", self.inputs), ("output", self.outputs)):
            for value in values:
                table.add_row(label, value)
        table.add_row("operators", ", ".join(f"{count} {op}" for op, count in self.operators.items()))
        if self.recipe is not None:
            table.add_row("made by", f"onnxpress with {json.dumps(self.recipe)}")
        total = sum(size for _, _, size in self.taken)
        kinds = Counter(op for _, op, _ in self.taken).most_common()
        listed = f": {', '.join(f'{count} {op}' for op, count in kinds)}" if kinds else ""
        table.add_row(f"{self.scheme} takes", f"{len(self.taken)} nodes, {total:,} weights{listed}")
        if nodes:
            for name, op_type, size in self.taken:
                table.add_row("", f"{op_type} {name} ({size:,} weights)")
            for name, op_type, reason in self.left:
                table.add_row("leaves", f"{op_type} {name}: {reason}")
        else:
            for what, count in group_reasons([(op, reason) for _, op, reason in self.left]).items():
                table.add_row("leaves", f"{count} {what}")
        console.print(table)


def inspect(model: str | Path, recipe: Recipe | None = None) -> Inspection:
    """Look into a model, and ask what a conversion would take of it and leave; nothing is written.

    Args:
        model: A file, a folder or a name of the catalogue.
        recipe: What to ask about; int4 by default. What `optimize` measures or learns from data comes on top.

    Raises:
        OnnxpressError: The model cannot be read, or cannot be prepared for the scheme.
    """
    recipe = recipe or Recipe()
    path = resolve(model)
    loaded = storage.load(path)
    constants = list(_constants(loaded))
    tensors = [tensor for _, tensor in constants]
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype.name.lower()] += tensor.nbytes
    stored = loaded.metadata_props.get(METADATA_KEY)
    found = Inspection(
        model=str(path),
        size=storage.size_on_disk(path, loaded),
        external=sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor)),
        parameters=sum(weights_in(value, tensor.size) for value, tensor in constants),
        dtypes=dict(dtypes.most_common()),
        operators=dict(Counter(_operator(node) for node in _all_nodes(loaded)).most_common()),
        opsets=dict(loaded.opset_imports),
        ir_version=loaded.ir_version,
        producer=" ".join(filter(None, (loaded.producer_name, loaded.producer_version))),
        inputs=[_describe(value) for value in loaded.graph.inputs],
        outputs=[_describe(value) for value in loaded.graph.outputs],
        recipe=_parse(stored) if stored else None,
        scheme=recipe.scheme,
        taken=[],
        left=[],
    )
    decisions = decide(loaded, recipe)  # last: it rewrites the model
    found.taken.extend((d.node_name, d.op_type, d.parameters) for d in decisions if d.taken)
    found.left.extend((d.node_name, d.op_type, d.reason) for d in decisions if not d.taken)
    return found


def _parse(stored: str) -> dict[str, Any]:
    try:
        values = json.loads(stored)
    except json.JSONDecodeError:
        return {"unreadable": stored}
    return values if isinstance(values, dict) else {"unreadable": stored}


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in storage.initializers(model):
        if value.const_value is not None:
            yield value, value.const_value
    own = {node for function in model.functions.values() if function.domain == DOMAIN for node in function.all_nodes()}
    for node in _all_nodes(model):
        if node in own:  # which say what an operator of ours means
            continue
        for value in node.outputs if node.op_type == "Constant" else ():
            if (tensor := stored_constant(value)) is not None:
                yield value, tensor


def _all_nodes(model: ir.Model) -> list[ir.Node]:
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes.extend(function.all_nodes())
    return nodes


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _describe(value: ir.Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "?"
    shape = "?" if value.shape is None else ", ".join(str(dim) for dim in value.shape)
    return f"{value.name} {kind} [{shape}]"
