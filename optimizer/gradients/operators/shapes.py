"""Operators on shapes: those that make, move, cut and join tensors."""

from __future__ import annotations

import math
from typing import Any

import torch

from .operator import Inputs, Operator, Place, Tensor, input_of, listed_of, width_of


def _shape(place: Place, inputs: Inputs) -> Tensor:
    end = place.node.attributes.get_int("end")
    return torch.tensor(list(inputs[0].shape)[place.whole("start", 0) : end], dtype=torch.int64)


def _reshape(place: Place, inputs: Inputs) -> Tensor:
    x = inputs[0]
    sizes = place.listed("shape", inputs, 1) or []
    if not place.whole("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _transpose(place: Place, inputs: Inputs) -> Tensor:
    x = inputs[0]
    return x.permute(place.numbers("perm") or list(range(x.ndim))[::-1])


def _concat(place: Place, inputs: Inputs) -> Tensor:
    return torch.cat(list(inputs), place.whole("axis", 1))


def _slice(place: Place, inputs: Inputs) -> Tensor:
    x = inputs[0]
    starts, ends = place.listed("starts", inputs, 1) or [], place.listed("ends", inputs, 2) or []
    axes = place.listed("axes", inputs, 3) or list(range(len(starts)))
    steps = place.listed("steps", inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:  # ends beyond the tensor, either way, are cut off as Python does
            first, last, _ = slice(start, end, step).indices(size)
            index = [slice(None)] * x.ndim
            index[axis] = slice(first, max(first, last), step)
            x = x[tuple(index)]
        else:
            end = end if end >= -size else -size - 1
            x = x.index_select(axis % x.ndim, torch.tensor(range(size)[start:end:step], dtype=torch.int64))
    return x


def _split(place: Place, inputs: Inputs) -> Any:
    x, axis = inputs[0], place.whole("axis", 0)
    sizes = place.listed("split", inputs, 1)
    if sizes is None:
        part = -(-x.shape[axis] // len(place.node.outputs))
        return torch.split(x, part, axis)
    return torch.split(x, sizes, axis)


def _unsqueeze(place: Place, inputs: Inputs) -> Tensor:
    x = inputs[0]
    axes = place.listed("axes", inputs, 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(place: Place, inputs: Inputs) -> Tensor:
    x = inputs[0]
    axes = place.listed("axes", inputs, 1)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _expand(_place: Place, inputs: Inputs) -> Tensor:
    x = inputs[0]
    return x.expand(torch.broadcast_shapes(x.shape, tuple(listed_of(inputs[1]))))


def _tile(_place: Place, inputs: Inputs) -> Tensor:
    return inputs[0].repeat(listed_of(inputs[1]))


def _constant_of_shape(place: Place, inputs: Inputs) -> Tensor:
    attribute = place.node.attributes.get("value")
    if attribute is None:
        return torch.zeros(listed_of(inputs[0]))
    value = attribute.as_tensor()
    return torch.full(listed_of(inputs[0]), value.numpy().item(), dtype=width_of(value.dtype))


def _range(_place: Place, inputs: Inputs) -> Tensor:
    start, limit, step = (each.item() for each in inputs)
    return torch.arange(start, limit, step, dtype=inputs[0].dtype)


def _flatten(place: Place, inputs: Inputs) -> Tensor:
    x, axis = inputs[0], place.whole("axis", 1)
    axis = axis if axis >= 0 else axis + x.ndim
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _size(_place: Place, inputs: Inputs) -> Tensor:
    return torch.tensor(inputs[0].numel(), dtype=torch.int64)


def _dropout(place: Place, inputs: Inputs) -> Any:
    """That of inference."""
    training = input_of(inputs, 2)
    if training is not None and bool(training):
        raise NotImplementedError("Dropout in training mode")
    return inputs[0], torch.ones_like(inputs[0], dtype=torch.bool)


SHAPES: dict[str, Operator] = {
    "Concat": _concat, "ConstantOfShape": _constant_of_shape, "Dropout": _dropout, "Expand": _expand,
    "Flatten": _flatten, "Range": _range, "Reshape": _reshape, "Shape": _shape, "Size": _size, "Slice": _slice,
    "Split": _split, "Squeeze": _squeeze, "Tile": _tile, "Transpose": _transpose, "Unsqueeze": _unsqueeze,
}  # fmt: skip
