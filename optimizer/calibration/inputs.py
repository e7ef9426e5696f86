"""What a graph takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ..runtime.token_limits import token_limits


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        name: Its name.
        dtype: Of its elements; object for strings.
        shape: A size each: a number, a name, or None where the size is free; None where even their number is.
        has_default: Whether it need not be given.
        kind: What it is where it is no tensor; such a value is handed on to ONNX Runtime as it is.
        limit: Of integers that index a table, its rows.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None
    has_default: bool = False
    kind: str = ""
    limit: int | None = None

    @property
    def has_free_batch(self) -> bool:
        """Whether the leading size is free."""
        return self.shape is None or (bool(self.shape) and not isinstance(self.shape[0], int))

    def describe(self) -> str:
        """Type and shape for a message."""
        return self.kind or f"{self.dtype} {'of any shape' if self.shape is None else list(self.shape)}"


def inputs_of(model: ir.Model) -> list[Input]:
    """Inputs of the main graph; those that are initializers as well have a default."""
    limits = token_limits(model)
    found = [_input(value) for value in model.graph.inputs]
    return [dataclasses.replace(entry, limit=limits.get(entry.name)) for entry in found]


def needed(inputs: Iterable[Input]) -> list[Input]:
    """Inputs that have to be given."""
    return [entry for entry in inputs if not entry.has_default]


def _input(value: ir.Value) -> Input:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        kind = "map or another type" if value.type is None else str(value.type).lower()
        return Input(name, np.dtype(object), None, value.is_initializer(), kind)
    dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else np.dtype(value.dtype.numpy())
    if value.shape is None:
        return Input(name, dtype, None, value.is_initializer())
    shape = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return Input(name, dtype, shape, value.is_initializer())
