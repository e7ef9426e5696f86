"""Constant folding of onnxscript, held to what it is right on.

It computes a node of constants by ONNX's reference implementation, and has partial evaluators for others, which it
applies to whatever it meets. What each is known to be wrong on is in the tables here; what is left, ONNX Runtime folds
when it loads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer._constant_folding import (
    DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
    DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
    FoldConstantsPass,
)

from ..graph.matching import is_standard, opset_of
from ..graph.rewriting import detach
from ..graph.rule_guards import is_same_size
from ..model_io.own_results import make_own

_MOVES = frozenset((
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Where",
))  # fmt: skip
"""Computed for all numbers: what they are does not matter."""
_ARITHMETIC = frozenset((
    "Abs", "Add", "And", "Ceil", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd",
    "ReduceSum", "Shape", "Size", "Sqrt", "Sub", "Xor",
))  # fmt: skip
"""Computed for these types, in which the reference rounds as ONNX Runtime does; halves it would widen."""
_TYPES = (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_WITH_VALUES = 12  # the opset from which a Constant has numbers as attributes
_UNSQUEEZE_BY_INPUT, _SPLIT_BY_COUNT = 13, 18


class FoldConstants(FoldConstantsPass):
    """Fold what `onnxscript.optimizer.fold_constants` folds, but for what it is wrong on.

    Functions that are left are not looked into: their opsets are their own.

    Attributes:
        failed: What an evaluator raised, by the operator that it was for, to be told to the user.
    """

    def __init__(self) -> None:
        super().__init__(
            shape_inference=True,
            input_size_limit=DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
            output_size_limit=DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
            should_fold=lambda node: None if _is_computed_right(node) else False,
        )
        self.failed: dict[str, str] = {}
        self._opset = 0

    def call(self, model: ir.Model) -> Any:
        """Fold, in place."""
        self._opset = opset_of(model)
        return super().call(model)

    def visit_function(self, function: ir.Function) -> None:
        """Nothing."""

    def process_node(self, node: ir.Node, is_function: bool) -> Any:
        """What replaces a node, None where nothing does."""
        if is_standard(node, "If"):
            for attribute in node.attributes.values():
                make_own(attribute.as_graph())
            return super().process_node(node, is_function)
        stated = node.outputs[0].shape if is_standard(node, "Identity") else None
        if stated is not None and node.inputs[0] is not None and node.inputs[0].shape is not None:
            node.outputs[0].shape = None  # or the input would get what is stated of the output, right or wrong
        try:
            replacement = super().process_node(node, is_function)
        except Exception as error:  # evaluators raise whatever they come across
            self.failed[node.op_type] = f"{type(error).__name__}: {error.__cause__ or error}"
            return None
        if stated is not None:
            node.outputs[0].shape = stated
        if replacement is None or self._is_right(node, replacement.new_nodes, replacement.new_outputs):
            return replacement
        for new in replacement.new_nodes:
            detach(new)
        for value in replacement.new_outputs:
            if value.is_initializer() and value not in node.inputs and value.graph is not None:
                value.graph.initializers.pop(value.name or "")
        return None

    def _is_right(self, node: ir.Node, nodes: Sequence[ir.Node], results: Sequence[ir.Value]) -> bool:
        for new in nodes:
            if self._opset < _WITH_VALUES and is_standard(new, "Constant"):
                _give_tensor(new)
        wrong = _WRONG.get(node.op_type)
        if wrong is not None and wrong(self._opset, node, nodes):
            return False
        stated, made = node.outputs[0].dtype, results[0].const_value
        return bool(nodes) or made is None or stated is None or made.dtype == stated


def _is_computed_right(node: ir.Node) -> bool:
    """Whether the reference implementation computes a node of constants as ONNX Runtime does."""
    if is_standard(node, *_MOVES):
        return all(value is None or value.dtype != ir.DataType.STRING for value in node.inputs)
    tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    if is_standard(node, "Cast"):
        return _is_cast_right(node, tensors[0])
    if not is_standard(node, *_ARITHMETIC) or any(tensor.dtype not in _TYPES for tensor in tensors):
        return False
    is_whole_quotient = node.op_type == "Div" and tensors[0].dtype != ir.DataType.FLOAT
    return not is_whole_quotient or bool((tensors[1].numpy() != 0).all())


def _is_cast_right(node: ir.Node, tensor: ir.TensorProtocol) -> bool:
    """Between types that NumPy has; fractions become whole numbers only where they are in range."""
    to = ir.DataType(node.attributes.get_int("to", 0))
    if not {to, tensor.dtype} <= {*_TYPES, ir.DataType.DOUBLE, ir.DataType.FLOAT16}:
        return False
    if to not in (ir.DataType.INT32, ir.DataType.INT64) or not tensor.dtype.is_floating_point():
        return True
    array, most = tensor.numpy(), 2.0 ** (to.itemsize * 8 - 1)
    return bool((np.isfinite(array) & (np.abs(np.nan_to_num(array)) < most)).all())


def _give_tensor(constant: ir.Node) -> None:
    for name in ("value_int", "value_ints"):
        attribute = constant.attributes.pop(name, None)
        if attribute is not None:
            constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array(attribute.value, np.int64)))


Wrong = Callable[[int, ir.Node, Sequence[ir.Node]], bool]


def _bound_by_axis(opset: int, node: ir.Node, _: Sequence[ir.Node]) -> bool:
    """A new axis, made by an Unsqueeze in the form of opset 13."""
    return node.attributes.get_int("new_axis", 0) == 1 and opset < _UNSQUEEZE_BY_INPUT


def _bound_by_split(opset: int, node: ir.Node, nodes: Sequence[ir.Node]) -> bool:
    """Split in the form of a newer opset; keepdims, which does not count where sizes are given."""
    counted = any("num_outputs" in new.attributes for new in nodes)
    return opset < (_SPLIT_BY_COUNT if counted else _UNSQUEEZE_BY_INPUT) or not node.attributes.get_int("keepdims", 1)


def _names_sizes(_: int, node: ir.Node, nodes: Sequence[ir.Node]) -> bool:
    """No change of shape where sizes have no proper names."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    same = shape is not None and all(is_same_size(size, size) for size in shape)
    return any(is_standard(new, "Identity") for new in nodes) and not same


_WRONG: dict[str, Wrong] = {
    "Abs": lambda *_: True,  # a difference of sizes may be negative
    "CastLike": lambda _, node, __: node.attributes.get_int("saturate", 1) == 0,  # which the Cast does not get
    "ConcatFromSequence": _bound_by_axis,
    "Expand": _names_sizes,
    "Reshape": _names_sizes,
    "SplitToSequence": _bound_by_split,
}
"""What partial evaluators are wrong on, by operator: the opset, the node, and what would replace it."""
