"""Models that are quantized, sparse or compiled already, by us or by others, and that no scheme takes again.

A second conversion would round what was rounded, or take apart what runs fast: functions of our domain are inlined when
an opset is raised. So the question is asked once for all schemes, of the model as it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
from onnxpress.custom_ops import functions

from ..errors import OnnxpressError
from ..graph.constants import is_computation, stored_constant
from ..graph.rewriting import result_name
from .plan import MIN_ELEMENTS

_OPERATORS = frozenset({
    "BlockSparseMatMul", "ConvInteger", "DequantizeBFP", "DequantizeMiniFloat", "DequantizeWithOrder", "EncoderLayer",
    "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EPContext", "GatherBlockQuantized",
    "GemmFloat8", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat",
    "MatMulMiniFloat", "MulInteger", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE", "RoundMiniFloat",
})  # fmt: skip
_FAMILIES = ("MatMulBlockQuantized", "MatMulNBits", "QLinear", "QOrdered")  # QLinearConv, QLinearMatMul, ...
_DOMAINS = frozenset({"", "com.microsoft", "com.ms.internal.nhwc", functions.DOMAIN})
"""Where these names mean that; others' operators may be called anything, and compute in float."""
_WEIGHTS = {
    "MatMul": (0, 1), "Gemm": (0, 1), "FusedMatMul": (0, 1), "FusedGemm": (0, 1), "Einsum": (0, 1, 2), "Conv": (1,),
    "ConvTranspose": (1,), "FusedConv": (1,), "Attention": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
"""Which inputs of products may be weights."""
_MOVES = ("Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_UNPACK = ("BitShift", "BitwiseAnd")
_NARROW = 8  # bits
Calls = Mapping[ir.Value, ir.Value]
"""What inputs of functions are where these are called."""


def check_not_quantized(model: ir.Model, source: str) -> None:
    """Refuse a model that was converted before.

    Args:
        model: As it was read.
        source: What to call it.

    Raises:
        OnnxpressError: It names the first node that shows it, and what to do.
    """
    node = next(quantized_nodes(model), None)
    if node is None:
        return
    raise OnnxpressError(f"{source}: {evidence(node)}; convert the float model that it was made of")


def evidence(node: ir.Node) -> str:
    """That a model is quantized or compiled, as one of its `quantized_nodes` shows."""
    name = node.name or result_name(node) or ""
    done = "compiled" if node.op_type == "EPContext" else "quantized"
    return f"the model is already {done}, as node '{name}' ({_form(node)}) shows"


def quantized_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that compute on codes, decode weights or round activations.

    Graphs inside nodes count, and so do bodies of functions that are called, but for those of our own nodes. Products
    count whose weight is computed of integers of 8 bits or fewer, or unpacked or looked up by others: what a
    DequantizeLinear does, by hand. A DequantizeLinear of what the model is given, such as the bytes of an image, is no
    sign of anything, nor is a Cast of it.
    """
    bodies: list[ir.Graph | ir.Function] = [model.graph]
    called: set[ir.OperatorIdentifier] = set()
    calls: dict[ir.Value, ir.Value] = {}
    varying: set[ir.Value] = set()
    for body in bodies:  # which grow
        for node in body.all_nodes():
            key = node.op_identifier()
            if key in model.functions and node.domain != functions.DOMAIN:  # its body says it, not its name
                if key not in called:
                    called.add(key)
                    bodies.append(model.functions[key])
                    given = zip(model.functions[key].inputs, node.inputs, strict=False)
                    calls.update((formal, actual) for formal, actual in given if actual is not None)
            elif _is_quantized(node, model.graph) or _decodes_by_hand(node, calls, varying):
                yield node


def _is_quantized(node: ir.Node, graph: ir.Graph) -> bool:
    if node.domain not in _DOMAINS:
        return False
    if node.op_type == "DequantizeLinear":
        return not _decodes_input(node, graph)
    return node.op_type in _OPERATORS or node.op_type.startswith(_FAMILIES)


def _decodes_input(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether codes are an input of the model, perhaps moved; else they are constant or of a QuantizeLinear."""
    value, seen = _first(node), set[ir.Value]()
    while value is not None and value not in seen and not value.is_initializer():
        seen.add(value)
        producer = value.producer()
        if producer is None:
            return value in graph.inputs
        value = _first(producer) if producer.op_type != "QuantizeLinear" else None
    return False


def _decodes_by_hand(node: ir.Node, calls: Calls, varying: set[ir.Value]) -> bool:
    """Whether a product reads a weight that is made of codes, or rows of a table of codes are scaled.

    Args:
        node: Of any operator.
        calls: What inputs of functions are.
        varying: Values that no product reads as a weight, to which those that this one reads are added.
    """
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
        readers = {reader.op_type for reader, _ in node.outputs[0].uses()}
        return bool(readers & {"Mul", "Div", "Sub"}) and _reads_table(node, calls)
    weights = _WEIGHTS.get(node.op_type, ())
    return any(_is_made_of_codes(node.inputs[index], calls, varying) for index in weights if index < len(node.inputs))


def _reads_table(node: ir.Node, calls: Calls) -> bool:
    """Whether a Cast makes floats of rows that are gathered from a large constant of narrow integers."""
    gathered, value = False, _first(node)
    while value is not None and (maker := value.producer()) is not None and maker.op_type in _MOVES:
        gathered = gathered or maker.op_type.startswith("Gather")
        value = calls.get(first, first) if (first := _first(maker)) is not None else None
    tensor = stored_constant(value) if value is not None else None
    to_float = ir.DataType(node.attributes.get_int("to", 1)).is_floating_point()
    return gathered and to_float and tensor is not None and _are_codes(tensor)


def _is_made_of_codes(value: ir.Value | None, calls: Calls, varying: set[ir.Value]) -> bool:
    """Whether a value is computed of constants alone, and of more codes than floats: a mask of a weight is none.

    `varying` are those known to be computed of others, too: of layers one behind the other each is looked through once.
    """
    stack, seen = [value], set[ir.Value]()
    codes = integers = floats = 0
    unpacks = False
    while stack:
        last = stack.pop()
        if last is None or last in seen:
            continue
        seen.add(last)
        tensor, maker = stored_constant(last), last.producer()
        if tensor is not None:
            codes = max(codes, tensor.size if _are_codes(tensor) else 0)
            integers = max(integers, tensor.size if tensor.dtype.is_integer() else 0)
            floats = max(floats, tensor.size if tensor.dtype.is_floating_point() and not _are_codes(tensor) else 0)
        elif last in calls:
            stack.append(calls[last])
        elif last in varying or maker is None or not is_computation(maker):
            if value is not None:
                varying.add(value)
            return False
        else:
            unpacks = unpacks or maker.op_type in _UNPACK or _looks_up(maker)
            stack.extend(maker.inputs)
    return codes > floats or (unpacks and integers > floats and 8 * integers >= MIN_ELEMENTS)


def _are_codes(tensor: ir.TensorProtocol) -> bool:
    narrow = tensor.dtype not in (ir.DataType.BOOL, ir.DataType.STRING) and tensor.dtype.bitwidth <= _NARROW
    return narrow and tensor.size >= MIN_ELEMENTS


def _looks_up(node: ir.Node) -> bool:
    """Whether a node gathers many numbers from few: codes from a book."""
    if node.op_type != "Gather" or None in node.inputs:
        return False
    book, codes = (stored_constant(value) for value in node.inputs if value is not None)
    return book is not None and codes is not None and codes.size >= max(MIN_ELEMENTS, book.size)


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if node.inputs else None


def _form(node: ir.Node) -> str:
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    codes = _first(node)
    if node.op_type == "DequantizeLinear" and codes is not None and codes.dtype is not None:
        return f"{operator} of {codes.dtype.name}"
    if node.op_type in _WEIGHTS:
        return f"{operator} of a weight made of codes"
    return f"{operator} of codes" if node.op_type == "Cast" else operator
