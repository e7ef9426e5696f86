"""Operators that map each number, or the numbers at the same place of some tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import onnx_ir as ir
import torch

from .operator import Inputs, Operator, Place, Tensor, input_of, width_of


def _of_one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _place, inputs: function(inputs[0])


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _place, inputs: function(inputs[0], inputs[1])


def _of_many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _place, inputs: reduce(function, inputs)


def _divide(_place: Place, inputs: Inputs) -> Tensor:
    x, y = inputs
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _power(_place: Place, inputs: Inputs) -> Tensor:
    """Whole exponents that are one number are taken as such: x ** 2 is x x also in derivatives at 0 and below."""
    x, y = inputs
    exponent = y.item() if y.numel() == 1 and y.ndim <= x.ndim else y
    return torch.pow(x, exponent).to(x.dtype)


def _modulo(place: Place, inputs: Inputs) -> Tensor:
    return torch.fmod(*inputs) if place.whole("fmod", 0) else torch.remainder(*inputs)


def _mean(_place: Place, inputs: Inputs) -> Tensor:
    total: Tensor = reduce(torch.add, inputs)
    return total / len(inputs)


def _clip(place: Place, inputs: Inputs) -> Tensor:
    low, high = input_of(inputs, 1), input_of(inputs, 2)
    x: Tensor = inputs[0]
    if place.opset < 11:
        return x.clamp(place.number("min", float("-inf")), place.number("max", float("inf")))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _cast(place: Place, inputs: Inputs) -> Tensor:
    return inputs[0].to(width_of(ir.DataType(place.whole("to", ir.DataType.FLOAT))))


def _cast_like(_place: Place, inputs: Inputs) -> Tensor:
    return inputs[0].to(inputs[1].dtype)


def _gelu(place: Place, inputs: Inputs) -> Tensor:
    return torch.nn.functional.gelu(inputs[0], approximate=place.text("approximate", "none"))


def _quick_gelu(place: Place, inputs: Inputs) -> Tensor:
    return inputs[0] * torch.sigmoid(place.number("alpha", 1.702) * inputs[0])


def _leaky(place: Place, inputs: Inputs) -> Tensor:
    return torch.nn.functional.leaky_relu(inputs[0], place.number("alpha", 0.01))


def _elu(place: Place, inputs: Inputs) -> Tensor:
    return torch.nn.functional.elu(inputs[0], place.number("alpha", 1.0))


def _hard_sigmoid(place: Place, inputs: Inputs) -> Tensor:
    return (place.number("alpha", 0.2) * inputs[0] + place.number("beta", 0.5)).clamp(0, 1)


def _infinite(place: Place, inputs: Inputs) -> Any:
    x = inputs[0]
    found = torch.zeros_like(x, dtype=torch.bool)
    found = found | torch.isposinf(x) if place.whole("detect_positive", 1) else found
    return found | torch.isneginf(x) if place.whole("detect_negative", 1) else found


ELEMENTWISE: dict[str, Operator] = {
    "Abs": _of_one(torch.abs), "Ceil": _of_one(torch.ceil), "Cos": _of_one(torch.cos), "Erf": _of_one(torch.erf),
    "Exp": _of_one(torch.exp), "Floor": _of_one(torch.floor), "Identity": _of_one(lambda x: x),
    "IsNaN": _of_one(torch.isnan), "Log": _of_one(torch.log), "Neg": _of_one(torch.neg),
    "Not": _of_one(torch.logical_not), "Reciprocal": _of_one(torch.reciprocal), "Relu": _of_one(torch.relu),
    "Round": _of_one(torch.round), "Sigmoid": _of_one(torch.sigmoid), "Sign": _of_one(torch.sign),
    "Sin": _of_one(torch.sin), "Softplus": _of_one(torch.nn.functional.softplus), "Sqrt": _of_one(torch.sqrt),
    "Tanh": _of_one(torch.tanh), "HardSwish": _of_one(torch.nn.functional.hardswish),
    "Mish": _of_one(torch.nn.functional.mish),
    "Add": _of_two(torch.add), "And": _of_two(torch.logical_and), "Equal": _of_two(torch.eq),
    "Greater": _of_two(torch.gt), "GreaterOrEqual": _of_two(torch.ge), "Less": _of_two(torch.lt),
    "LessOrEqual": _of_two(torch.le), "Mul": _of_two(torch.mul), "Or": _of_two(torch.logical_or),
    "Sub": _of_two(torch.sub), "Xor": _of_two(torch.logical_xor),
    "Max": _of_many(torch.maximum), "Min": _of_many(torch.minimum), "Sum": _of_many(torch.add),
    "Cast": _cast, "CastLike": _cast_like, "Clip": _clip, "Div": _divide, "Elu": _elu, "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid, "IsInf": _infinite, "LeakyRelu": _leaky, "Mean": _mean, "Mod": _modulo,
    "Pow": _power, "QuickGelu": _quick_gelu,
    "Where": lambda _place, inputs: torch.where(*inputs),
}  # fmt: skip
