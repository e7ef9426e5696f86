"""What the weights of products hold, as blocks or in full: how much of them is zero, and which."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..errors import OnnxpressError
from ..graph.constants import constant_of, release
from ..sparsity import Block, expand
from ..sparsity.blocks import MOST, Mask

OP = "BlockSparseMatMul"
WEIGHT_KEY, TRANSPOSED_KEY = "onnxpress.weight", "onnxpress.transposed"
"""Keys of a node's metadata: the name of the weight it had, and "1" where that is [N, K]."""
_MOST_WEIGHTS = 1 << 33


def is_block_sparse(node: ir.Node) -> bool:
    """Whether a node is a product with blocks."""
    return node.op_type == OP and node.domain == functions.DOMAIN


def sparsity_of(node: ir.Node) -> float | None:
    """Share of zeros of a node's constant weight, None where it has none; within blocks of a sparse one all count."""
    if is_block_sparse(node):
        return 1 - float(_kept_blocks(node).mean())
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    tensor = constant_of(node.inputs[1])
    if tensor is None or len(tensor.shape) != 2:
        return None
    share = 1 - np.count_nonzero(tensor.numpy()) / max(1, tensor.size)
    release(tensor)
    return share


def mask_of(node: ir.Node) -> tuple[str, Mask]:
    """Name and mask of the weight that a sparse product was made from: whole blocks, whatever zeros are in them."""
    mask = _kept_blocks(node)
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
    tensor = constant_of(value)
    if tensor is None:
        raise OnnxpressError(f"node {node.name}: input {index} of {OP} is no constant; it was not made by this tool")
    return tensor.numpy()
