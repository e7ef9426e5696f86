"""Constants: initializers, Constant nodes, and what other nodes compute of nothing but these.

Exporters cut weights from larger tensors, join, scale and reshape them by nodes, which ONNX Runtime runs once, when it
loads the model. What they compute is a constant like any other, but in no file: `mark_constants` finds such values, and
`constant_of` lets ONNX Runtime compute them, each time when their numbers are read. So the graph stays as it is where
nothing takes the constant, and no more than one of them is in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import OnnxpressError

_KEY = "onnxpress.computed"
_SMALL = 1 << 16
"""Elements up to which what was computed is kept."""
_MOST_TIMES = 4
"""As large, beside the constants that it is made of, as a constant may be: codes of 8 bits are as small again."""
_DROPOUT_OF_INFERENCE = 2
"""Inputs of a Dropout that hands on what it reads: the third one may ask it to draw."""
_COMPUTE = frozenset({
    # What moves, cuts and joins,
    "CenterCropPad", "Col2Im", "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "Pad", "Reshape", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "TensorScatter", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze",
    "Where",
    # what makes,
    "AffineGrid", "BlackmanWindow", "Constant", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow",
    "MelWeightMatrix", "NonZero", "OneHot", "Range", "Shape", "Size",
    # what sums,
    "ArgMax", "ArgMin", "AveragePool", "Conv", "ConvTranspose", "CumProd", "CumSum", "DFT", "Det", "Einsum", "Gemm",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample", "LpPool", "MatMul", "MaxPool", "Mean",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Resize", "RoiAlign", "STFT", "Sum", "Upsample",
    # what normalizes,
    "BatchNormalization", "GroupNormalization", "Hardmax", "InstanceNormalization", "LRN", "LayerNormalization",
    "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "Softmax",
    # and what maps each number.
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not",
    "Or", "PRelu", "Pow", "Reciprocal", "Relu", "RotaryEmbedding", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Xor",
})  # fmt: skip


@dataclasses.dataclass
class _Computed:
    """A value that depends on constants alone.

    Attributes:
        opset: Of the model.
        sources: The stored constants that it is made of.
        tensors: What these held when it was marked.
        result: Its tensor, or why there is none; None while nobody has asked.
    """

    opset: int
    sources: tuple[ir.Value, ...]
    tensors: tuple[ir.TensorProtocol, ...]
    result: ir.TensorProtocol | str | None = None


def stored_constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node's output; None where a caller may override it."""
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain in ("", "ai.onnx"):
        attribute = producer.attributes.get("value")
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor: ir.TensorProtocol = attribute.value  # `as_tensor` looks for each member of the protocol, slowly
            return tensor
    return None


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a stored constant, or of one that `mark_constants` found and that can be computed."""
    if value is None:
        return None
    stored = stored_constant(value)
    if stored is not None:
        return stored
    result = _result(value)
    return None if isinstance(result, str) else result


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant, though it may be one that nobody can read here."""
    return value is not None and (stored_constant(value) is not None or _KEY in value.meta)


def why_unread(value: ir.Value) -> str | None:
    """Why a constant has no tensor; None for any other value."""
    result = _result(value) if stored_constant(value) is None else None
    return result if isinstance(result, str) else None


def is_computation(node: ir.Node) -> bool:
    """Whether what a node makes depends on nothing but what it reads, and constants of it are worth to be computed."""
    draws = node.op_type == "Dropout" and len(node.inputs) > _DROPOUT_OF_INFERENCE
    return node.domain in ("", "ai.onnx") and node.op_type in _COMPUTE and not draws


def sources_of(value: ir.Value) -> tuple[ir.Value, ...]:
    """The stored constants that a constant is made of, which may be itself."""
    return value.meta[_KEY].sources if _KEY in value.meta else (value,)


def array_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """A copy of the numbers that a constant holds; None where the value is none."""
    tensor = constant_of(value)
    return None if tensor is None else copy_of(tensor)


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds."""
    tensor = constant_of(value)
    if tensor is None or tensor.size != 1 or not np.issubdtype(tensor.dtype.numpy(), np.number):
        return None
    return float(tensor.numpy().reshape(-1)[0])


def copy_of(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """The numbers of a tensor, which is unmapped again."""
    array = np.array(tensor.numpy())
    release(tensor)
    return array


def release(tensor: ir.TensorProtocol) -> None:
    """Unmap a tensor of external data; resident pages of a map count as memory of the process."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):  # somebody holds an array of it
            tensor.release()


def mark_constants(model: ir.Model) -> None:
    """Note which values of a model are computed of constants that no caller can override. Nothing is computed yet."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    for node in model.graph.all_nodes():
        sources = _sources(node)
        for value in node.outputs:
            if sources is None or stored_constant(value) is not None:
                value.meta.pop(_KEY, None)
                continue
            tensors = tuple(tensor for source in sources if (tensor := stored_constant(source)) is not None)
            known = value.meta.get(_KEY)  # perhaps of the value that this one is a clone of
            same = known is not None and list(map(id, known.tensors)) == list(map(id, tensors))
            value.meta[_KEY] = _Computed(opset, sources, tensors, known.result if known is not None and same else None)


def _sources(node: ir.Node) -> tuple[ir.Value, ...] | None:
    """The stored constants that a node computes from; None where it does something else."""
    if not is_computation(node) or any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    found: dict[ir.Value, None] = {}
    for value in node.inputs:
        if value is None:
            continue
        tensor = stored_constant(value)
        if tensor is not None and tensor.dtype != ir.DataType.STRING:
            found[value] = None
        elif _KEY in value.meta:
            found.update(dict.fromkeys(value.meta[_KEY].sources))
        else:
            return None
    return tuple(found)


def _result(value: ir.Value) -> ir.TensorProtocol | str | None:
    known: _Computed | None = value.meta.get(_KEY)
    if known is None:
        return None
    if known.result is None:
        known.result = _Body(value, known.opset).tensor()
    if isinstance(known.result, ir.TensorProtocol) and (value.shape is None or value.dtype is None):
        value.type, value.shape = ir.TensorType(known.result.dtype), ir.Shape(known.result.shape.numpy())
    return known.result


def copied(node: ir.Node, values: dict[ir.Value, ir.Value], number: int) -> ir.Node:
    """A standard operator in another graph, whose names say its number.

    Args:
        node: The original.
        values: What stands there for its inputs; its outputs are added.
        number: Of the node.
    """
    inputs = [None if each is None else values[each] for each in node.inputs]
    attributes = list(node.attributes.values())
    copy = ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=f"n{number}")
    for index, output in enumerate(node.outputs):
        copy.outputs[index].name = f"n{number}_{index}"
        values[output] = copy.outputs[index]
    return copy


class _Body:
    """The nodes that compute a value, as a model of their own: they may be gone from the graph when it is read."""

    def __init__(self, value: ir.Value, opset: int) -> None:
        stored, computing = _parts(value)
        values: dict[ir.Value, ir.Value] = {}
        within: list[ir.Value] = []
        self._fed: list[tuple[str, ir.TensorProtocol]] = []
        for index, (source, tensor) in enumerate(stored.items()):
            shape = ir.Shape(tensor.shape.numpy())
            values[source] = inner = ir.Value(name=f"c{index}", type=ir.TensorType(tensor.dtype), shape=shape)
            if tensor.size <= _SMALL:  # where shapes are inferred from numbers
                inner.const_value = ir.Tensor(copy_of(tensor), dtype=tensor.dtype, name=inner.name)
                within.append(inner)
            else:
                self._fed.append((f"c{index}", tensor))
        nodes: list[ir.Node] = []
        for old in computing:
            nodes.append(copied(old, values, len(nodes)))
        graph = ir.Graph(
            [inner for inner in values.values() if inner.producer() is None and inner.const_value is None],
            [values[value]], nodes=nodes, initializers=within, opset_imports={"": opset}, name="constant",
        )  # fmt: skip
        self._model = ir.Model(graph, ir_version=10)
        self._most = max(_SMALL, _MOST_TIMES * sum(tensor.size for tensor in stored.values()))

    def tensor(self) -> ir.TensorProtocol | str:
        """What is computed, once more whenever its numbers are read where they are many; or why it cannot be."""
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(ir.to_proto(self._model), data_prop=True).graph
        except Exception as error:  # whatever inference makes of nodes that are wrong
            return f"the nodes that compute it are wrong: {error!s:.80}"
        shapes = [_sizes(each) for each in (*inferred.value_info, *inferred.output)]
        if len(shapes) < len(self._model.graph) or any(shape is None for shape in shapes):
            return "the size of what computes it from constants is not known"
        if max(math.prod(shape) for shape in shapes if shape is not None) > self._most:
            return "it is computed from constants that are much smaller than it"
        result = inferred.output[0].type.tensor_type
        dtype, shape = ir.DataType(result.elem_type), ir.Shape(_sizes(inferred.output[0]) or [])
        if math.prod(shape.numpy()) > _SMALL:
            return ir.LazyTensor(lambda: ir.Tensor(self._run(), dtype=dtype), dtype, shape)
        try:
            return ir.Tensor(self._run(), dtype=dtype)
        except OnnxpressError as error:
            return f"it is computed from constants, but not here: {error!s:.80}"

    def _run(self) -> npt.NDArray[Any]:
        """Raises OnnxpressError."""
        import onnxruntime as ort

        from ..runtime.session import open_session, session_options

        session = open_session(ir.to_proto(self._model).SerializeToString(), session_options(threads=1))
        feeds: dict[str, Any] = {}
        try:
            feeds.update((name, _fed(ort, tensor)) for name, tensor in self._fed)
            array: npt.NDArray[Any] = session.run_with_ort_values(None, feeds)[0].numpy()
        except Exception as error:  # ONNX Runtime raises a type for each of its status codes
            raise OnnxpressError(f"a weight cannot be computed: {' '.join(str(error).split())}") from error
        finally:
            feeds.clear()  # what is mapped is unmapped only when nobody holds it
            for _, tensor in self._fed:
                release(tensor)
        return array


def _parts(value: ir.Value) -> tuple[dict[ir.Value, ir.TensorProtocol], list[ir.Node]]:
    """The stored constants that a value is computed of, and the nodes that do it, in order."""
    stored: dict[ir.Value, ir.TensorProtocol] = {}
    nodes: dict[ir.Node, None] = {}
    stack = [value]
    while stack:
        last, node = stack[-1], stack[-1].producer()
        tensor = stored_constant(last)
        if tensor is not None:
            stored[last] = tensor
        elif node is not None and node not in nodes:
            waiting = [each for each in node.inputs if each is not None and each not in stored]
            waiting = [each for each in waiting if each.producer() not in nodes]
            if waiting:
                stack.extend(waiting)
                continue
            nodes[node] = None
        stack.pop()
    return stored, list(nodes)


def _sizes(info: Any) -> list[int] | None:
    """The shape that a ValueInfoProto tells, None where it is not known."""
    kind = info.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return [dim.dim_value for dim in kind.shape.dim]


def _fed(ort: Any, tensor: ir.TensorProtocol) -> Any:
    array = np.ascontiguousarray(tensor.numpy())
    if tensor.dtype == ir.DataType.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), int(tensor.dtype))
    return ort.OrtValue.ortvalue_from_numpy(array)
