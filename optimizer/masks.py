"""Which weights are kept, as a file of masks: out of a model for its trainer, and back into one.

An .npz file holds a bool array a weight, of the shape and under the name of the model's initializer, true where it is
kept. Of a model that was made sparse the masks are in the shapes and under the names of the model it was made from.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import reference

from . import storage
from .calibration.archive import write_npz
from .errors import OnnxpressError, UsageError
from .passes import plan
from .passes.plan import constant_of, release
from .passes.sparsify_matmul import OP, TRANSPOSED_KEY, WEIGHT_KEY
from .recipe import Recipe
from .sparsity import Block, expand
from .sparsity.blocks import MOST

if TYPE_CHECKING:
    from rich.console import Console

Mask = npt.NDArray[np.bool_]

_MOST_WEIGHTS = 1 << 33


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
    target = storage.check_target(output)
    path = storage.resolve(model)
    masks = masks_of(storage.load(path))
    if not masks:
        raise OnnxpressError(f"{path}: no weight of a MatMul or Gemm holds zeros, so there is no mask to write")
    write_npz(target, masks)
    return MaskReport(str(path), str(target), {name: 1 - float(mask.mean()) for name, mask in masks.items()})


def masks_of(model: ir.Model) -> dict[str, Mask]:
    """Masks by weight, of those that hold zeros."""
    found = {}
    for node in model.graph:
        if node.op_type == OP and node.domain == "onnxpress":
            name, mask = _of_sparse(node)
            found[name] = mask
    for decision in plan(model, Recipe()):
        if decision.taken and decision.weight is not None and decision.op_type != "Gather":
            mask = decision.weight.tensor.numpy() != 0
            release(decision.weight.tensor)
            if not mask.all():
                found[decision.weight.value.name or ""] = mask
    return found


def sparsity_of(node: ir.Node) -> float | None:
    """Share of zeros of a node's constant weight, None where it has none; within blocks of a sparse one all count."""
    if node.op_type == OP and node.domain == "onnxpress":
        return 1 - float(_kept_blocks(node).mean())
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    tensor = constant_of(node.inputs[1])
    if tensor is None or len(tensor.shape) != 2:
        return None
    share = 1 - np.count_nonzero(tensor.numpy()) / max(1, tensor.size)
    release(tensor)
    return share


def _of_sparse(node: ir.Node) -> tuple[str, Mask]:
    """Name and mask of the weight that a sparse product was made from; zeros within blocks are no part of it."""
    block, shape = _sizes(node)
    values, indices, offsets = (_array(node, index) for index in (1, 2, 3))
    try:
        mask = reference.decode_blocks(values.reshape(-1, block.n, block.k), indices, offsets, *shape) != 0
    except (ValueError, IndexError) as error:
        raise _damaged(node) from error
    if node.metadata_props.get(TRANSPOSED_KEY) == "1":
        mask = np.ascontiguousarray(mask.T)
    return node.metadata_props.get(WEIGHT_KEY) or node.name or "", mask


def _kept_blocks(node: ir.Node) -> Mask:
    block, shape = _sizes(node)
    kept = np.zeros(block.grid(shape), np.bool_)
    try:
        kept[np.repeat(np.arange(len(kept)), np.diff(_array(node, 3))), _array(node, 2)] = True
    except (ValueError, IndexError) as error:
        raise _damaged(node) from error
    return expand(kept, block, shape)


def _sizes(node: ir.Node) -> tuple[Block, tuple[int, int]]:
    K, N, k, n = (node.attributes.get_int(key, 0) for key in ("K", "N", "block_k", "block_n"))
    if not (1 <= k <= MOST and 1 <= n <= MOST and K > 0 and N > 0 and K * N <= _MOST_WEIGHTS):
        raise _damaged(node)
    return Block(k, n), (K, N)


def _damaged(node: ir.Node) -> OnnxpressError:
    return OnnxpressError(f"node {node.name}: its sizes and its blocks do not fit each other; the file is damaged")


def _array(node: ir.Node, index: int) -> npt.NDArray[Any]:
    value = node.inputs[index]
    tensor = constant_of(value) if value is not None else None
    if tensor is None:
        raise OnnxpressError(f"node {node.name}: input {index} of {OP} is no constant; it was not made by this tool")
    return tensor.numpy()


def apply_masks(model: ir.Model, path: str | Path) -> int:
    """Set weights to zero where a file of masks does not keep them.

    Args:
        model: The model, changed in place.
        path: The .npz file.

    Returns:
        How many weights there were masks for.

    Raises:
        OnnxpressError: The file cannot be read.
        UsageError: A mask is of no weight of the model, or of another shape or type.
    """
    masks = _read(path)
    for name, mask in masks.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise UsageError(f"{path}: the model has no initializer '{name}'; onnxpress export-mask names them")
        tensor = value.const_value
        if tuple(tensor.shape.numpy()) != mask.shape:
            raise UsageError(f"{path}: {name} has shape {list(mask.shape)}, the weight {list(tensor.shape.numpy())}")
        array = tensor.numpy()
        value.const_value = ir.tensor(np.where(mask, array, array.dtype.type(0)), name=name)
        release(tensor)
    return len(masks)


def _read(path: str | Path) -> dict[str, Mask]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds one array without a name")
        with archive:
            arrays = dict(archive)
    except FileNotFoundError as error:
        raise OnnxpressError(f"{path}: no such file") from error
    except Exception as error:  # numpy raises many types for a file that is no .npz
        raise OnnxpressError(f"{path}: not a readable .npz file of masks: {error}") from error
    if not arrays:
        raise UsageError(f"{path}: holds no masks")
    for name, array in arrays.items():
        if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
            raise UsageError(f"{path}: {name} holds other values than true and false, or 1 and 0")
    return {name: array.astype(np.bool_) for name, array in arrays.items()}
