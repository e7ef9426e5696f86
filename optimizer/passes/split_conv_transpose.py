"""A ConvTranspose whose blocks of outputs do not overlap is a Conv, and a move of its results into their places.

    y[m, k h + i, k w + j] = b[m] + sum_c W[c, m, i, j] x[c, h, w]

for a kernel of k x k that strides by k: a 1x1 Conv to the channels (i, j, m), and DepthToSpace. ONNX Runtime has a Conv
of 8 bits, and moves 8-bit codes, but has no such ConvTranspose. The Conv stands for it in recipes and reports.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.constants import constant_of
from ..graph.matching import Floats, fixed, input_of, is_fixed, is_standard
from ..graph.rewriting import add_array, insert_before, replace, required, settings_of, take_over_name
from ..settings.node_settings import Kept
from ..settings.recipe import Recipe
from .base import GraphPass
from .remove_unused import remove_unused


class SplitConvTranspose(GraphPass):
    """Write a ConvTranspose of float32 as Conv and DepthToSpace, where its kernel is as large as its strides.

    Args:
        recipe: Whose patterns keep some as they are.

    Attributes:
        left: The others, by name, and why.
    """

    def __init__(self, recipe: Recipe | None = None) -> None:
        self._recipe = recipe or Recipe()

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite the main graph; whether anything changed."""
        changed = False
        for node in list(model.graph):
            if not is_standard(node, "ConvTranspose"):
                continue
            settings = settings_of(self._recipe, node)
            reason = settings if isinstance(settings, Kept) else _refuse(node)
            if reason is not None:
                self.left[node.name or ""] = reason
                continue
            _split(model.graph, node)
            changed = True
        if changed:
            remove_unused(model)
        return changed


def _refuse(node: ir.Node) -> str | None:
    weight, bias = input_of(node, 1), input_of(node, 2)
    if not is_fixed(weight) or not (bias is None or is_fixed(bias)):
        return "its weight or bias is no constant of float32"
    size = required(constant_of(required(weight))).shape.numpy()[2:]
    attributes = node.attributes
    if len(size) != 2 or size[0] != size[1]:
        return "its kernel is no square"
    if size[0] < 2 or list(attributes.get_ints("strides", (1, 1))) != list(size):
        return "its blocks of outputs overlap or leave gaps"
    if attributes.get_int("group", 1) != 1:
        return "it has groups"
    if any(dilation != 1 for dilation in attributes.get_ints("dilations", ())):
        return "it is dilated"
    if "output_shape" in attributes or any(attributes.get_ints("output_padding", ())):
        return "it chooses the size of its output"
    # Without overlap, automatic padding comes to none.
    if attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and any(attributes.get_ints("pads", ())):
        return "it cuts its output"
    return None


def _split(graph: ir.Graph, node: ir.Node) -> None:
    weight, bias = fixed(node.inputs[1]), fixed(input_of(node, 2))
    assert weight is not None
    inputs, outputs, size, _ = weight.shape
    name = node.outputs[0].name
    kernel: Floats = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, inputs, 1, 1))
    operands = [node.inputs[0], add_array(graph, f"{name}_blocks_weight", kernel)]
    if bias is not None:
        operands.append(add_array(graph, f"{name}_blocks_bias", np.tile(bias, size * size)))
    blocks = insert_before(node, "Conv", operands, None, attributes={"kernel_shape": [1, 1]}, suffix="_blocks")
    blocks.type = node.outputs[0].type
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is not None and len(shape) == 4:
        blocks.shape = ir.Shape([shape[0], outputs * size * size, shape[2], shape[3]])
    take_over_name(required(blocks.producer()), node)
    moved = insert_before(
        node, "DepthToSpace", [blocks], node.outputs[0], attributes={"blocksize": size}, suffix="_moved"
    )
    replace(node, moved)
