"""What operators of ONNX compute, in PyTorch, by domain and name."""

from __future__ import annotations

from .elementwise import ELEMENTWISE
from .operator import Operator, Place
from .products import PRODUCTS
from .reductions import REDUCTIONS
from .selection import SELECTION
from .shapes import SHAPES

__all__ = ["OPERATORS", "Operator", "Place"]

OPERATORS: dict[str, Operator] = {**ELEMENTWISE, **PRODUCTS, **REDUCTIONS, **SELECTION, **SHAPES}
"""By name; that they are of the standard domain or of `com.microsoft` is checked by `TorchGraph`."""
