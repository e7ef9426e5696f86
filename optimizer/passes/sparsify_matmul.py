"""MatMul and Gemm with a constant weight become products with the blocks of it that are kept.

    act(A W + b) = BlockSparseMatMul(A, values, indices, offsets, scales, b)

Values of int8 have a scale a column; A is then rounded a row at a time, or, where it has a scale from a calibration, to
uint8 by that. A product whose output only such products read, each by the same codes, makes these codes itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..graph.constants import constant_of
from ..graph.matching import activation_behind
from ..graph.product_bias import add_scaled, find_bias
from ..graph.rewriting import add_array, insert_before, replace
from ..model_io.names import names_of
from ..planning.block_weights import OP, TRANSPOSED_KEY, WEIGHT_KEY
from ..quantization.affine import AffineParameters
from ..sparsity import Block, Compressed
from .base import GraphPass
from .declare_functions import add_function

Singles = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class SparseLayer:
    """What takes the place of a product's weight.

    Attributes:
        blocks: What is kept, float32 or int8.
        block: Sizes of a block.
        scales: float32 [N], of int8 values.
        shift: float32 [N] that is added to the bias, or None.
        activation: Codes of A, uint8, where a calibration says; None rounds each row by itself.
        weight: Name of the weight.
        transposed: Whether it is [N, K].
        shape: K and N.
    """

    blocks: Compressed
    block: Block
    scales: Singles | None
    shift: Singles | None
    activation: AffineParameters | None
    weight: str
    transposed: bool
    shape: tuple[int, int]


class SparsifyMatMul(GraphPass):
    """Rewrite products of the main graph.

    Cases: MatMul and Gemm; a bias that is a constant vector, as Gemm's C or in an Add behind; other C (Mul and Add);
    Relu and Gelu behind that, by erf or tanh, of the standard domain or ONNX Runtime's.

    Args:
        layers: What each MatMul or Gemm gets; a Gemm's alpha is in its weight already.
    """

    def __init__(self, layers: Mapping[ir.Node, SparseLayer]) -> None:
        self._layers = layers

    def rewrite(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        self._graph = model.graph
        self._parameters: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._stored: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        made = {self._rewrite(node, layer): layer for node, layer in self._layers.items()}
        for node, layer in made.items():
            self._pass_codes(node, layer, made)
        for node, layer in made.items():
            self._declare(model, node, layer)
        return bool(self._layers)

    def _rewrite(self, node: ir.Node, layer: SparseLayer) -> ir.Node:
        a = node.inputs[0]
        assert a is not None
        last, bias, added = find_bias(self._graph, node, layer.shape[1])
        end, activation = (last, "") if added is not None else activation_behind(last)
        inputs = [a, *self._blocks(layer), self._bias(node, layer, bias)]
        if layer.activation is not None:
            inputs += self._codes_of(a, layer.activation)
        while inputs[-1] is None:
            inputs.pop()
        sizes = {"K": layer.shape[0], "N": layer.shape[1], "block_k": layer.block.k, "block_n": layer.block.n}
        y = insert_before(
            end, OP, inputs, end.outputs[0], domain=functions.DOMAIN, suffix="",
            attributes={**sizes, "activation": activation},
        )  # fmt: skip
        made = y.producer()
        assert made is not None
        made.name = node.name
        made.metadata_props[WEIGHT_KEY] = layer.weight
        if layer.transposed:
            made.metadata_props[TRANSPOSED_KEY] = "1"
        if added is not None:
            y.name = names_of(self._graph).value(f"{end.outputs[0].name}_product")
            y = add_scaled(self._graph, node, y, added)
        replace(end, y)
        for before in dict.fromkeys((last, node)):
            if before is not end:
                self._graph.remove(before, safe=True)
        return made

    def _blocks(self, layer: SparseLayer) -> list[ir.Value | None]:
        name, blocks = layer.weight, layer.blocks
        values: list[ir.Value | None] = [
            self._store(f"{name}_values", blocks.values),
            self._store(f"{name}_indices", blocks.indices),
            self._store(f"{name}_offsets", blocks.offsets),
        ]
        scales = layer.scales
        return [*values, self._store(f"{name}_scales", scales) if scales is not None else None]

    def _store(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """The constant of these numbers: what is left of one weight that several nodes read may be the same."""
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self._stored:
            self._stored[key] = add_array(self._graph, name, array)
        return self._stored[key]

    def _bias(self, node: ir.Node, layer: SparseLayer, bias: ir.Value | None) -> ir.Value | None:
        if layer.shift is None:
            return bias
        tensor = constant_of(bias)
        total = layer.shift if tensor is None else layer.shift + tensor.numpy()
        return add_array(self._graph, f"{node.name}_bias", total.astype(np.float32))

    def _codes_of(self, a: ir.Value, codes: AffineParameters) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a tensor, made once for all that read it."""
        name = a.name or ""
        if name not in self._parameters:
            self._parameters[name] = (
                add_array(self._graph, f"{name}_scale", np.asarray(codes.scale, np.float32)),
                add_array(self._graph, f"{name}_zero_point", np.asarray(codes.zero_point, np.uint8)),
            )
        return self._parameters[name]

    def _pass_codes(self, node: ir.Node, layer: SparseLayer, made: Mapping[ir.Node, SparseLayer]) -> None:
        """Let a product write the codes that its readers want."""
        y = node.outputs[0]
        readers = [(reader, index) for reader, index in y.uses()]
        if layer.scales is None or y.is_graph_output() or not readers:
            return
        if all(index == 0 and reader in made and made[reader].activation is not None for reader, index in readers):
            scale, zero_point = readers[0][0].inputs[6:8]
            node.resize_inputs(10)
            node.replace_input_with(8, scale)
            node.replace_input_with(9, zero_point)
            y.type = ir.TensorType(ir.DataType.UINT8)

    def _declare(self, model: ir.Model, node: ir.Node, layer: SparseLayer) -> None:
        """Give the node its meaning in standard ops, added to the model once a variant."""
        a = node.inputs[0]
        static = layer.activation is not None
        function = functions.block_sparse_matmul(
            K=layer.shape[0], N=layer.shape[1], block_k=layer.block.k, block_n=layer.block.n,
            values=ir.DataType.FLOAT if layer.scales is None else ir.DataType.INT8,
            a=ir.DataType.UINT8 if a is not None and a.dtype == ir.DataType.UINT8 else ir.DataType.FLOAT,
            activation=node.attributes.get_string("activation", ""),
            bias=len(node.inputs) > 5 and node.inputs[5] is not None,
            static=static, quantized_output=len(node.inputs) == 10, opset=model.graph.opset_imports[""],
        )  # fmt: skip
        node.overload = add_function(model, function).overload
