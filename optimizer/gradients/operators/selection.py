"""Operators that pick numbers out of tensors, or put them there, by their places."""

from __future__ import annotations

from typing import Any

import torch

from .operator import Inputs, Operator, Place, Tensor, input_of


def _gather(place: Place, inputs: Inputs) -> Tensor:
    x, places = inputs
    axis = place.whole("axis", 0) % x.ndim
    places = _counted(places, x.shape[axis])
    picked = x.index_select(axis, places.reshape(-1))
    return picked.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _gather_elements(place: Place, inputs: Inputs) -> Tensor:
    x, places = inputs
    axis = place.whole("axis", 0)
    return torch.gather(x, axis, _counted(places, x.shape[axis]))


def _gather_nd(place: Place, inputs: Inputs) -> Tensor:
    x, places = inputs
    if place.whole("batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[_by_axis(places, x)]


def _scatter_nd(place: Place, inputs: Inputs) -> Tensor:
    x, places, values = inputs
    _refuse_reduction(place)
    return x.index_put(_by_axis(places, x), values)


def _scatter_elements(place: Place, inputs: Inputs) -> Tensor:
    x, places, values = inputs
    _refuse_reduction(place)
    axis = place.whole("axis", 0)
    return x.scatter(axis, _counted(places, x.shape[axis]), values)


def _by_axis(places: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Places [..., axes] as one tensor an axis."""
    return tuple(_counted(each, size) for each, size in zip(places.unbind(-1), x.shape, strict=False))


def _refuse_reduction(place: Place) -> None:
    if place.text("reduction", "none") != "none":
        raise NotImplementedError(f"{place.node.op_type} with a reduction")


def _trilu(place: Place, inputs: Inputs) -> Tensor:
    k = input_of(inputs, 1)
    cut = torch.triu if place.whole("upper", 1) else torch.tril
    return cut(inputs[0], 0 if k is None else int(k))


def _top(place: Place, inputs: Inputs) -> Any:
    k, axis = int(inputs[1]), place.whole("axis", -1)
    return torch.topk(inputs[0], k, axis, bool(place.whole("largest", 1)), True)


def _nonzero(_place: Place, inputs: Inputs) -> Tensor:
    return torch.nonzero(inputs[0]).T


def _counted(places: Tensor, size: int) -> Tensor:
    """Places that may count from the end, from the beginning."""
    places = places.to(torch.int64)
    return torch.where(places < 0, places + size, places)


SELECTION: dict[str, Operator] = {
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "NonZero": _nonzero,
    "ScatterElements": _scatter_elements, "ScatterND": _scatter_nd, "TopK": _top, "Trilu": _trilu,
}  # fmt: skip
