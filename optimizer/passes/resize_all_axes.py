"""Resize of some axes as one of all of them.

    Resize(x, sizes [a], axes) = Resize(x, ScatterElements(Shape(x), axes, sizes))        and scales alike, among ones

Between convolutions on codes ONNX Runtime moves axes across a Resize, and loses which of them `axes` names: it then
cannot load or run the model, whether the Resize is on codes or not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .constants import array_of
from .matching import exact_rank, input_of, is_standard
from .rewriting import add_array, insert_before, required

_ROI, _SCALES, _SIZES = 1, 2, 3


class ResizeAllAxes:
    """Rewrite Resizes of the main graph.

    Cases: scales and sizes, constant or not, each with a region or without.
    Left: inputs whose number of axes is not known, and sizes that are to keep the ratio of the axes that are named.
    """

    def __call__(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        found = [node for node in model.graph if is_standard(node, "Resize") and "axes" in node.attributes]
        return sum(_rewrite(model.graph, node) for node in found) > 0


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    rank, named = exact_rank(node.inputs[0]), node.attributes.get_ints("axes", [])
    if not rank or node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    axes = np.array([axis % rank for axis in named], np.int64)
    scales, sizes, roi = (input_of(node, index) for index in (_SCALES, _SIZES, _ROI))
    if scales is not None and _is_there(scales):
        node.replace_input_with(_SCALES, _among(graph, node, "scales", np.ones(rank, np.float32), axes, scales))
    elif sizes is not None:
        node.replace_input_with(_SIZES, _sizes(graph, node, rank, axes, sizes))
    else:
        return False
    if roi is not None and _is_there(roi):
        kind = np.float32 if roi.dtype is None else roi.dtype.numpy()
        whole = np.repeat(np.array([0, 1], kind), rank)
        node.replace_input_with(_ROI, _among(graph, node, "roi", whole, np.append(axes, axes + rank), roi))
    del node.attributes["axes"]
    return True


def _is_there(value: ir.Value) -> bool:
    """Whether an input is not the empty tensor that stands for none."""
    return value.shape is None or value.shape.numpy() != (0,)


def _sizes(graph: ir.Graph, node: ir.Node, rank: int, axes: np.ndarray, sizes: ir.Value) -> ir.Value:
    x = required(node.inputs[0])
    others = [None if axis in axes else x.shape[axis] if x.shape is not None else "" for axis in range(rank)]
    if all(size is None or isinstance(size, int) for size in others):
        return _among(graph, node, "sizes", np.array([size or 0 for size in others], np.int64), axes, sizes)
    shape = insert_before(node, "Shape", [x], None, suffix="_shape")
    shape.type, shape.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([rank])
    return _scattered(graph, node, "sizes", shape, axes, sizes)


def _among(
    graph: ir.Graph, node: ir.Node, name: str, whole: np.ndarray, places: np.ndarray, part: ir.Value
) -> ir.Value:
    """`whole` with a part of it in its places, as a constant where the part is one."""
    array = array_of(part)
    if array is not None and array.shape == places.shape:
        whole[places] = array
        return add_array(graph, f"{node.name}_{name}", whole)
    return _scattered(graph, node, name, add_array(graph, f"{node.name}_{name}_whole", whole), places, part)


def _scattered(
    graph: ir.Graph, node: ir.Node, name: str, whole: ir.Value, places: np.ndarray, part: ir.Value
) -> ir.Value:
    inputs = [whole, add_array(graph, f"{node.name}_{name}_places", places), part]
    return insert_before(node, "ScatterElements", inputs, whole, suffix=f"_{name}")
