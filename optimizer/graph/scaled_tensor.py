"""A constant times a vector along one of its axes, multiplied when it is read where the constant waits in a file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .constants import copy_of

Doubles = npt.NDArray[np.float64]
Shape = tuple[int, ...]


class ScaledTensor(ir.LazyTensor):
    """A tensor times some factors, which nobody holds in memory; float32.

    Args:
        base: The tensor.
        factors: By the shape that each has to be multiplied.
        name: Of the constant.
    """

    def __init__(self, base: ir.TensorProtocol, factors: dict[Shape, Doubles], name: str | None) -> None:
        self.base, self.factors = base, factors
        shape = np.broadcast_shapes(tuple(base.shape.numpy()), *factors)

        def evaluate() -> ir.TensorProtocol:
            array = copy_of(base)
            for factor in factors.values():
                array = multiplied(array, factor)
            return ir.Tensor(array, name=name)

        super().__init__(evaluate, ir.DataType.FLOAT, ir.Shape(shape), name=name)


def scaled_tensor(tensor: ir.TensorProtocol, factor: Doubles, name: str | None) -> ir.TensorProtocol:
    """A tensor of float32 times a factor, which broadcasts against it.

    What is in memory stays there; what waits in a file, or to be computed, goes on to.

    Args:
        tensor: Of float32.
        factor: Numbers.
        name: Of the result.
    """
    if isinstance(tensor, ScaledTensor):
        factors = dict(tensor.factors)
        factors[factor.shape] = factors[factor.shape] * factor if factor.shape in factors else factor
        return ScaledTensor(tensor.base, factors, name)
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return ScaledTensor(tensor, {factor.shape: factor}, name)
    return ir.tensor(multiplied(copy_of(tensor), factor), name=name)


def multiplied(array: npt.NDArray[np.float32], factor: Doubles) -> npt.NDArray[np.float32]:
    """An array times a factor, rounded once; in place where it keeps its shape."""
    shape = np.broadcast_shapes(array.shape, factor.shape)
    product = array if shape == array.shape else np.empty(shape, np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is found by who runs the model
        np.multiply(array, factor, out=product, casting="unsafe")  # a few numbers at a time in float64
    return product
