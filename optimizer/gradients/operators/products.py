"""Products."""

from __future__ import annotations

import torch

from .operator import Inputs, Operator, Place, Tensor, input_of


def _matmul(_place: Place, inputs: Inputs) -> Tensor:
    return torch.matmul(inputs[0], inputs[1])


def _gemm(place: Place, inputs: Inputs) -> Tensor:
    a = inputs[0].T if place.whole("transA", 0) else inputs[0]
    b = inputs[1].T if place.whole("transB", 0) else inputs[1]
    alpha, beta, c = place.number("alpha", 1.0), place.number("beta", 1.0), input_of(inputs, 2)
    product = torch.matmul(a, b)
    product = product if alpha == 1 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)


def _einsum(place: Place, inputs: Inputs) -> Tensor:
    return torch.einsum(place.text("equation", ""), *inputs)


PRODUCTS: dict[str, Operator] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
