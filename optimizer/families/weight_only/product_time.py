"""How long products take with the weights that a recipe would give them, measured on this machine."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from ...model_io.storage import initializers
from ...runtime.session import open_session, session_options
from ...runtime.temporary import written
from ...runtime.timing import take_turns
from ...settings.recipe import Recipe
from .compensation import add_unread
from .rewrite import decide, rewrite

_COLD = 1 << 26
"""Bytes of weights that a model reads, so that they come from memory as they do in a large one, if nodes suffice."""
_MOST_NODES = 64
_ROUNDS = 2


def product_time(K: int, N: int, recipe: Recipe) -> float:
    """Median milliseconds of the product of one row with a weight, with our library and execution provider.

    Args:
        K: Inputs.
        N: Outputs.
        recipe: That rounds the weight.

    Raises:
        OnnxpressError: ONNX Runtime refuses the product.
    """
    row = {"A": np.random.default_rng(0).standard_normal((1, K), dtype=np.float32)}
    model, count = _products(K, N, recipe)
    with written(model) as path:
        session = open_session(path, session_options(ours=True, provider={}), "a product")
        (samples,) = take_turns([partial(session.run, None, row)], _ROUNDS)
    return 1e3 * float(np.median(samples)) / count


def _products(K: int, N: int, recipe: Recipe) -> tuple[ir.Model, int]:
    """A model of equal products of one input, whose codes are any numbers, and how many they are."""
    (weight,) = rewrite(one := _float_products(K, N, 1), decide(one, recipe)).weights
    count = min(_MOST_NODES, -(-_COLD // weight.stored))
    model = _float_products(K, N, count)
    add_unread(model, rewrite(model, decide(model, recipe)), recipe.form)
    generator = np.random.default_rng(0)
    for value in initializers(model):
        tensor = value.const_value
        if tensor is not None and tensor.size > 1:
            shape, kind = tensor.shape.numpy(), tensor.dtype.numpy()
            most = 256 if tensor.dtype == ir.DataType.UINT8 else 8
            is_scale = tensor.dtype.is_floating_point() and tensor.dtype.itemsize > 1
            numbers = generator.uniform(0.5, 1, shape) if is_scale else generator.integers(0, most, shape)
            value.const_value = ir.tensor(numbers.astype(kind), name=value.name)
    return model, count


def _float_products(K: int, N: int, count: int) -> ir.Model:
    zeros = np.zeros((K, N), np.float32)
    row = ir.Value(name="A", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["m", K]))
    graph = ir.Graph([row], [], nodes=[], opset_imports={"": 21}, name="products")
    for index in range(count):
        weight = ir.Value(name=f"W{index}", const_value=ir.tensor(zeros, name=f"W{index}"))
        graph.register_initializer(weight)
        node = ir.node("MatMul", [row, weight], name=f"product{index}")
        (output,) = node.outputs
        output.name, output.type = f"Y{index}", ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["m", N])
        graph.append(node)
        graph.outputs.append(output)
    return ir.Model(graph, ir_version=10)
