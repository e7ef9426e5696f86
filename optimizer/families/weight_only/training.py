"""What methods that train share: the model as a function of its weights, and batches to learn and to judge by."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...calibration import Data
from ...calibration.windows import MASK, predicts_tokens
from ...errors import OnnxpressError, UsageError
from ...evaluation.language import logits_of
from ...graph.constants import release
from ...planning.lazy_weight import LazyWeight
from ...quantization.quantized_weight import QuantizedWeight
from ...runtime.feeds import is_float
from ...settings.budget import seconds_of
from ...settings.recipe import Recipe
from .results import Rounded

if TYPE_CHECKING:
    import torch

STEPS = 200
_APART = 8
_ROWS = 1 << 13
"""Output channels that are measured at a time."""


class Setup:
    """A model that can be trained, and its data.

    Args:
        model: The float model, with its constants marked; it is not changed.
        readers: The nodes of its main graph that read rounded weights, by the weights' identities.
        data: At least two batches.
        method: That trains, for messages.

    Attributes:
        graph: Its function, of the outputs that count.
        outputs: Their names.
        is_language: Whether that is the logits of a language model.
        batches: All data.
        learned: Numbers of batches to learn by.
        apart: Of those to judge by: every eighth.

    Raises:
        UsageError: There is one batch alone.
        OnnxpressError: The model has operators that no gradient goes through, or no output of floats.
    """

    def __init__(
        self, model: ir.Model, readers: dict[tuple[object, ...], list[ir.Node]], data: Data, method: str
    ) -> None:
        from ...gradients.graph import TorchGraph

        self.readers = readers
        self.is_language = predicts_tokens(model)
        floats = [value for value in model.graph.outputs if value.dtype is None or is_float(value.dtype.numpy())]
        self.outputs = [logits_of(model)] if self.is_language else [value.name or "" for value in floats]
        if not self.outputs:
            raise OnnxpressError(f"no output of the model is of floats, which {method} needs to compare")
        nodes = [node.name or "" for each in readers.values() for node in each]
        self.graph: TorchGraph = TorchGraph(model, self.outputs, nodes)
        self.batches = list(data)
        if len(self.batches) < 2:
            raise UsageError(
                f"{data.name}: holds one batch, and {method} needs two, to learn by and to judge by; give more "
                "samples, or a smaller batch"
            )
        self.apart = list(range(0, len(self.batches), _APART))
        self.learned = [index for index in range(len(self.batches)) if index not in self.apart]

    def mask(self, batch: int) -> torch.Tensor | None:
        """Which tokens of a batch are none of padding; None where no input says so."""
        import torch

        feeds = self.batches[batch]
        mask = feeds.get(MASK)
        if not isinstance(mask, np.ndarray) or mask.ndim != 2:
            return None
        ids = feeds.get("input_ids")
        if ids is not None and ids.shape != mask.shape:  # it has a past, too
            mask = mask[:, mask.shape[1] - ids.shape[1] :]
        return torch.from_numpy(mask != 0)


def factor_of(weight: LazyWeight) -> float:
    """By which the nodes that read a weight multiply still, and that its rounded numbers have in them."""
    return weight.factor if weight.factor and not weight.scheme.takes_factors else 1.0


class HasRows(Protocol):
    """A weight that is trained, or was."""

    def rows(self) -> torch.Tensor:
        """It as it is now, [N, K]."""


def as_read(node: ir.Node, weight: HasRows) -> torch.Tensor:
    """A weight in the layout of a node's second input."""
    rows = weight.rows()
    return rows if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else rows.T


def deadline_of(recipe: Recipe) -> float:
    """By `time.perf_counter`, where training that begins now has to end."""
    return math.inf if recipe.search_time is None else time.perf_counter() + seconds_of(recipe.search_time)


def with_method(rounded: Rounded, method: str) -> Rounded:
    """The same with a method that trained."""
    return dataclasses.replace(rounded, method=f"{rounded.method}+{method}")


def float_rows(weight: LazyWeight) -> npt.NDArray[Any]:
    """What a weight is rounded from, [N, K]; a view where the model has it in memory."""
    rows = weight.rows()
    return rows if weight.weight.transposed else rows.T


def measured(weight: LazyWeight, found: QuantizedWeight) -> QuantizedWeight:
    """A rounded weight with its squared error as it is now."""
    rows = float_rows(weight)
    parts = [slice(begin, begin + _ROWS) for begin in range(0, len(rows), _ROWS)]
    error = sum(float(np.square(found.part(part).rows() - rows[part], dtype=np.float64).sum()) for part in parts)
    del rows
    release(weight.weight.tensor)
    return dataclasses.replace(found, error=dataclasses.replace(found.error, error=error))
