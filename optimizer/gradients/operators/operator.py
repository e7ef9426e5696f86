"""What an operator is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

Tensor: TypeAlias = torch.Tensor
Inputs = Sequence[Any]
"""Tensors, None where one is left out."""

_WIDTHS = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A node, and the opset that says what it means."""

    node: ir.Node
    opset: int

    def whole(self, name: str, default: int) -> int:
        """An attribute."""
        return int(self.node.attributes.get_int(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        return float(self.node.attributes.get_float(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        return str(self.node.attributes.get_string(name, default))

    def numbers(self, name: str) -> list[int] | None:
        """An attribute, None where it is left out."""
        found = self.node.attributes.get_ints(name)
        return None if found is None else [int(each) for each in found]

    def listed(self, name: str, inputs: Inputs, index: int) -> list[int] | None:
        """Whole numbers of an input, or of the attribute that older opsets have in its place; None without either."""
        found = input_of(inputs, index)
        return self.numbers(name) if found is None else listed_of(found)


Operator = Callable[[Place, Inputs], Any]
"""(a node, its inputs) -> its output, or all of them."""


def input_of(inputs: Inputs, index: int) -> Any:
    """An input, None where it is left out."""
    return inputs[index] if index < len(inputs) else None


def listed_of(tensor: Tensor) -> list[int]:
    """The whole numbers of a tensor."""
    return [int(each) for each in tensor.reshape(-1).tolist()]


def width_of(dtype: ir.DataType) -> Any:
    """The type of PyTorch in which numbers of a type are computed; float32 for all floats that are narrower.

    Raises:
        KeyError: There is none.
    """
    return _WIDTHS[dtype]
