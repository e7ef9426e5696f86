"""Which weights are kept, as a file of masks: out of a model for its trainer, and back into one.

An .npz file holds a bool array a weight, under the name of the model's initializer and with its shape and axes (inputs
x outputs for MatMul and Gemm, outputs x inputs for Gemm with transB), true where it is kept. Of a model that was made
sparse the masks are those of the model it was made from, in whole blocks: a weight that was rounded to zero within a
block that is kept is kept.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from . import storage
from .already_quantized import evidence, quantized_nodes
from .analysis.feeds import read_arrays
from .calibration.archive import write_npz
from .errors import OnnxpressError, UsageError
from .passes import plan
from .passes.block_weights import is_block_sparse, mask_of
from .passes.constants import release
from .recipe import Recipe
from .sources import resolve
from .sparsity.blocks import Mask

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class MaskReport:
    """What `export_mask` wrote.

    Attributes:
        source: The model.
        output: The .npz file.
        sparsity: Share of zeros of each weight, by name.
    """

    source: str
    output: str
    sparsity: dict[str, float]

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def print(self, console: Console) -> None:
        """A line a weight."""
        console.print(f"{self.source}: {len(self.sparsity)} masks -> {self.output}")
        for name, share in self.sparsity.items():
            console.print(f"{100 * share:5.1f} % zero  {name}")


def export_mask(model: str | Path, output: str | Path) -> MaskReport:
    """Write masks of the weights of MatMul and Gemm that hold zeros.

    Args:
        model: A file, a folder or a name of the catalogue: one that scheme sparse made, or a float model.
        output: The .npz file to write.

    Raises:
        UsageError: Nothing can be written there.
        OnnxpressError: The model cannot be read, or no weight of it holds zeros.
    """
    path = resolve(model)
    target = storage.check_target(output)
    loaded = storage.load(path)
    storage.check_apart(target, path, loaded)
    masks = masks_of(loaded)
    if not masks:
        raise OnnxpressError(f"{path}: {_why_none(loaded)}")
    write_npz(target, masks)
    return MaskReport(str(path), str(target), {name: 1 - float(mask.mean()) for name, mask in masks.items()})


def _why_none(model: ir.Model) -> str:
    node = next(quantized_nodes(model), None)
    if node is not None:
        return f"{evidence(node)}, and codes have no mask; export those of the float model that it was made of"
    return "no weight of a MatMul or Gemm holds zeros, so there is no mask to write"


def masks_of(model: ir.Model) -> dict[str, Mask]:
    """Masks by weight, of those that hold zeros."""
    found = {}
    for node in model.graph:
        if is_block_sparse(node):
            name, mask = mask_of(node)
            found[name] = mask
    for decision in plan(model, Recipe()):
        if decision.taken and decision.weight is not None and decision.op_type != "Gather":
            mask = decision.weight.tensor.numpy() != 0
            release(decision.weight.tensor)
            if not mask.all():
                found[decision.weight.value.name or ""] = mask
    return found


def apply_masks(model: ir.Model, path: str | Path) -> int:
    """Set weights to zero where a file of masks does not keep them.

    Args:
        model: The model, changed in place.
        path: The .npz file.

    Returns:
        How many weights were set to zero that were not.

    Raises:
        OnnxpressError: The file cannot be read.
        UsageError: A mask is of no weight of the model, or of another shape or type.
    """
    zeroed = 0
    for name, mask in _read(path).items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise UsageError(f"{path}: the model has no initializer '{name}'; onnxpress export-mask names them")
        tensor = value.const_value
        if tuple(tensor.shape.numpy()) != mask.shape:
            raise UsageError(f"{path}: {name} has shape {list(mask.shape)}, the weight {list(tensor.shape.numpy())}")
        array = tensor.numpy()
        zeroed += int(np.count_nonzero(array[~mask]))
        value.const_value = ir.tensor(np.where(mask, array, array.dtype.type(0)), name=name)
        release(tensor)
    return zeroed


def _read(path: str | Path) -> dict[str, Mask]:
    arrays = read_arrays(path, " of masks")
    if not arrays:
        raise UsageError(f"{path}: holds no masks")
    for name, array in arrays.items():
        if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
            raise UsageError(f"{path}: {name} holds other values than true and false, or 1 and 0")
    return {name: array.astype(np.bool_) for name, array in arrays.items()}
