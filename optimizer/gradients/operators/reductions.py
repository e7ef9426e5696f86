"""Operators that sum along axes, and those that normalize by such sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .operator import Inputs, Operator, Place, Tensor, input_of

Sum = Callable[[Tensor, list[int], bool], Tensor]


def _reduced(function: Sum) -> Operator:
    """With axes as an input or an attribute; without any along all, or none if the node says so."""

    def reduce(place: Place, inputs: Inputs) -> Any:
        x = inputs[0]
        axes = place.listed("axes", inputs, 1)
        if not axes:
            if place.whole("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(place.whole("keepdims", 1)))

    return reduce


def _along_each(function: Callable[[Tensor, int, bool], Tensor]) -> Sum:
    """Of what PyTorch does along one axis at a time."""

    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
            x = function(x, axis, keep)
        return x

    return reduce


def _square_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.square(x).sum(axes, keepdim=keep)


def _norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _square_sum(x, axes, keep).sqrt()


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """Along one axis; before opset 13 along all from an axis on, by default the second."""

    def normalize(place: Place, inputs: Inputs) -> Any:
        x = inputs[0]
        if place.opset >= 13:
            return function(x, place.whole("axis", -1))
        axis = place.whole("axis", 1) % max(x.ndim, 1)
        rows = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(rows, -1).reshape(x.shape)

    return normalize


def _layer_normalization(place: Place, inputs: Inputs) -> Any:
    x, scale, bias = inputs[0], inputs[1], input_of(inputs, 2)
    axes = list(range(place.whole("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(torch.square(centred).mean(axes, keepdim=True) + place.number("epsilon", 1e-5))
    y = centred * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_normalization(place: Place, inputs: Inputs) -> Any:
    x, scale = inputs[0], inputs[1]
    axes = list(range(place.whole("axis", -1) % x.ndim, x.ndim))
    inverse = torch.rsqrt(torch.square(x).mean(axes, keepdim=True) + place.number("epsilon", 1e-5))
    return x * inverse * scale, inverse


def _cumulative(place: Place, inputs: Inputs) -> Tensor:
    x, axis = inputs[0], int(inputs[1])
    reverse = place.whole("reverse", 0)
    x = x.flip(axis) if reverse else x
    sums = x.cumsum(axis, dtype=x.dtype)
    sums = sums - x if place.whole("exclusive", 0) else sums
    return sums.flip(axis) if reverse else sums


def _most(function: Callable[..., Tensor]) -> Operator:
    """The place of the largest or smallest number; of equal ones the first, or the last if the node says so."""

    def find(place: Place, inputs: Inputs) -> Tensor:
        x, axis, keep = inputs[0], place.whole("axis", 0), bool(place.whole("keepdims", 1))
        if place.whole("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return function(x, dim=axis, keepdim=keep)

    return find


REDUCTIONS: dict[str, Operator] = {
    "ArgMax": _most(torch.argmax), "ArgMin": _most(torch.argmin), "CumSum": _cumulative,
    "LayerNormalization": _layer_normalization, "LogSoftmax": _softmax(torch.log_softmax),
    "RMSNormalization": _rms_normalization, "ReduceL2": _reduced(_norm),
    "ReduceMax": _reduced(lambda x, axes, keep: torch.amax(x, axes, keep)), "ReduceMean": _reduced(_mean),
    "ReduceMin": _reduced(lambda x, axes, keep: torch.amin(x, axes, keep)),
    "ReduceProd": _reduced(_along_each(lambda x, axis, keep: torch.prod(x, axis, keep, dtype=x.dtype))),
    "ReduceSum": _reduced(lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduced(_square_sum), "SimplifiedLayerNormalization": _rms_normalization,
    "Softmax": _softmax(torch.softmax),
}  # fmt: skip
