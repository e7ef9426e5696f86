"""What has to be done to nodes of the standard domain so that they mean the same in a newer opset.

Operators change between opsets in three ways: not at all but for types (most), in how they are written, or in what they
compute. The first are listed, the second have an adapter here, and of the others nothing is promised. What ONNX Runtime
(1.32) computes in either opset is what counts, where the text of ONNX leaves a choice, such as the pixel that nearest
neighbours take: the list and the adapters are tested against it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .matching import exact_rank, fixed, input_of
from .rewriting import add_array, insert_before, replace, required, take_over_name

TESTED = 24
"""The newest opset that the list and the adapters were tested for."""

SAME = frozenset({
    "Abs", "Acos", "Acosh", "Add", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat", "Constant", "ConstantOfShape",
    "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DFT", "DeformConv", "DepthToSpace", "DequantizeLinear", "Det",
    "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
    "Loop", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "MaxRoiPool", "MaxUnpool", "Mean",
    "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Multinomial", "Neg", "NegativeLogLikelihoodLoss",
    "NonMaxSuppression", "NonZero", "OneHot", "OptionalGetElement", "OptionalHasElement", "PRelu", "Pad", "Pow",
    "QLinearMatMul", "QuantizeLinear", "RNN", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "RoiAlign", "Round", "Scan", "Scatter",
    "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax",
    "SoftmaxCrossEntropyLoss", "Softplus", "Softsign", "SpaceToDepth", "Split", "SplitToSequence", "Sqrt", "Squeeze",
    "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where",
})  # fmt: skip
"""Operators whose versions from opset 7 on mean the same, but for what `STEPS` does."""


@dataclasses.dataclass(frozen=True)
class Rise:
    """From one opset to another.

    Attributes:
        current: The one that nodes are written in.
        target: The newer one.
        constants: The graph that holds new constants; None in a function, where they are nodes.
    """

    current: int
    target: int
    constants: ir.Graph | None

    def constant(self, node: ir.Node, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A new constant for a node, called after it."""
        if self.constants is not None:
            return add_array(self.constants, f"{node.outputs[0].name}_{name}", array)
        return insert_before(node, "Constant", [], None, suffix=f"_{name}", attributes={"value": ir.tensor(array)})


Edit = Callable[[], None]
Step = Callable[[ir.Node, Rise], "Edit | str | None"]
"""What to do to a node that crosses a version: nothing where None, or why that is not known."""


def edits(node: ir.Node, rise: Rise) -> list[Edit] | str:
    """All that makes a node mean the same in the newer opset, to be carried out in order, or why that is not known."""
    found: list[Edit] = []
    for version, step in STEPS.get(node.op_type, ()):
        if rise.current < version <= rise.target:
            edit = step(node, rise)
            if isinstance(edit, str):
                return edit
            found += [edit] if edit is not None else []
    return found


def _given(node: ir.Node, *names: str) -> dict[str, ir.Attr] | str:
    """Those attributes that a node has; of one that the caller of a function gives, nothing is known."""
    found = {name: node.attributes[name] for name in names if name in node.attributes}
    outside = [name for name, attribute in found.items() if attribute.is_ref()]
    return f"the caller of its function gives '{outside[0]}'" if outside else found


def _as_inputs(**places: int) -> Step:
    """Attributes of whole numbers become inputs."""

    def step(node: ir.Node, rise: Rise) -> Edit | str | None:
        given = _given(node, *places)
        return given if isinstance(given, str) else lambda: _move(node, rise, given, places, np.dtype(np.int64))

    return step


def _move(
    node: ir.Node, rise: Rise, given: dict[str, ir.Attr], places: dict[str, int], dtype: npt.DTypeLike,
    scalar: bool = False,
) -> None:  # fmt: skip
    for name, attribute in given.items():
        array = np.array(attribute.value, dtype)
        _set_input(node, places[name], rise.constant(node, name, array if scalar else np.atleast_1d(array)))
        del node.attributes[name]


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, value)


def _numbers_as_inputs(**places: int) -> Step:
    """Attributes that are one number of the type of the first input become inputs; defaults need none."""

    def step(node: ir.Node, rise: Rise) -> Edit | str | None:
        given = _given(node, *places)
        if isinstance(given, str):
            return given
        kept = {name: each for name, each in given.items() if not _is_default(each)}
        x = input_of(node, 0)
        if kept and (x is None or x.dtype is None):
            return "the type of its input is not known"
        dtype = required(x).dtype.numpy() if kept else np.float32  # type: ignore[union-attr]

        def edit() -> None:
            for name in given.keys() - kept.keys():
                del node.attributes[name]
            _move(node, rise, kept, places, dtype, scalar=True)

        return edit

    return step


def _is_default(attribute: ir.Attr) -> bool:
    """Whether a number bounds nothing, or fills with zeros."""
    most = float(np.finfo(np.float32).max)
    return attribute.as_float() == {"min": -most, "max": most}.get(attribute.name, 0.0)


def _spatial(node: ir.Node, rise: Rise) -> Edit | str | None:
    given = _given(node, "spatial")
    if isinstance(given, str) or "spatial" not in given:
        return given if isinstance(given, str) else None
    return (lambda: _drop(node, "spatial")) if given["spatial"].as_int() == 1 else "it normalises each element apart"


def _drop(node: ir.Node, name: str) -> None:
    node.attributes.pop(name, None)


def _one_result(node: ir.Node, rise: Rise) -> Edit | str | None:
    """What only training asks for went."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "more than its first result is read"

    def edit() -> None:
        node.resize_outputs(1)
        _drop(node, "ratio")

    return edit


def _parts(node: ir.Node, rise: Rise) -> Edit | None:
    """Equal parts were told by the number of results."""
    if "split" in node.attributes or input_of(node, 1) is not None:
        return None
    return lambda: node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _along_last_axis(node: ir.Node, rise: Rise) -> Edit | str | None:
    """All axes from one on were taken together: y = reshape(f(flatten(x, axis)), shape of x)."""
    given = _given(node, "axis")
    if isinstance(given, str):
        return given
    axis = node.attributes.get_int("axis", 1)
    if axis == -1 or axis + 1 == exact_rank(input_of(node, 0)):
        return lambda: node.attributes.add(ir.AttrInt64("axis", -1))

    def edit() -> None:
        x, like = input_of(node, 0), node.outputs[0]  # as it is by now: what made it may have been rewritten
        shape = insert_before(node, "Shape", [x], None, suffix="_shape")
        flat = insert_before(node, "Flatten", [x], None, suffix="_flat", attributes={"axis": axis})
        rows = insert_before(node, node.op_type, [flat], None, suffix="_rows", attributes={"axis": -1})
        shape.type, flat.type, rows.type = ir.TensorType(ir.DataType.INT64), like.type, like.type
        whole = insert_before(node, "Reshape", [rows, shape], like, suffix="_whole")
        take_over_name(required(rows.producer()), node)
        replace(node, whole)

    return edit


def _resize(node: ir.Node, rise: Rise) -> Edit | str | None:
    """Pixels lay at whole coordinates; the nearest one was that below, or that above where a picture shrinks."""
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    scales = fixed(input_of(node, 1))
    if nearest and (scales is None or (scales.min() < 1 < scales.max())):
        return "which pixel is the nearest depends on scales that are not constant, or some of which shrink"
    return lambda: _as_newer_resize(node, rise, "ceil" if nearest and required(scales).min() < 1 else "floor")


def _sizes_alone(node: ir.Node, rise: Rise) -> Edit | None:
    """Beside sizes stood scales without numbers, which newer versions leave out."""
    if input_of(node, 2) is None or input_of(node, 3) is None:
        return None
    return lambda: node.replace_input_with(2, None)


def _as_newer_resize(node: ir.Node, rise: Rise, nearest: str) -> None:
    if rise.target >= 11:
        scales = node.inputs[1]
        node.resize_inputs(3)
        node.replace_input_with(2, scales)
        node.replace_input_with(1, None if rise.target >= 13 else rise.constant(node, "roi", np.zeros(0, np.float32)))
        node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
        node.attributes.add(ir.AttrString("nearest_mode", nearest))
    node.op_type = "Resize"


def _scales(node: ir.Node, rise: Rise) -> Edit | str | None:
    given = _given(node, "scales")
    return given if isinstance(given, str) else lambda: _move(node, rise, given, {"scales": 1}, np.dtype(np.float32))


def _upsample(node: ir.Node, rise: Rise) -> Edit:
    """It became Resize; it never shrinks."""
    return lambda: _as_newer_resize(node, rise, "floor")


def _renamed(op_type: str) -> Step:
    return lambda node, rise: lambda: setattr(node, "op_type", op_type)


def _default_was(name: str, value: str) -> Step:
    """A mode that was the only one is no default."""
    return lambda node, rise: lambda: node.attributes.add(ir.AttrString(name, value))


def _grid_modes(node: ir.Node, rise: Rise) -> Edit | None:
    new = {"bilinear": "linear", "bicubic": "cubic"}.get(node.attributes.get_string("mode", "") or "")
    return (lambda: node.attributes.add(ir.AttrString("mode", new))) if new is not None else None


def _transformed_axis(node: ir.Node, rise: Rise) -> Edit | str | None:
    given = _given(node, "axis")
    if isinstance(given, str):
        return given
    given = given or {"axis": ir.AttrInt64("axis", 1)}
    node_has = "axis" in node.attributes

    def edit() -> None:
        if not node_has:
            node.attributes.add(given["axis"])
        _move(node, rise, given, {"axis": 2}, np.int64, scalar=True)

    return edit


def _channels_of_groups(node: ir.Node, rise: Rise) -> Edit | str | None:
    """Scales and biases of groups become those of channels."""
    x, parts = required(input_of(node, 0)), [fixed(each) for each in node.inputs[1:]]
    channels = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
    if not isinstance(channels, int) or any(part is None for part in parts):
        return "its channels, scales or biases are not constant"

    def edit() -> None:
        for index, part in enumerate(parts, 1):
            each = np.repeat(required(part), channels // len(required(part)))
            node.replace_input_with(index, rise.constant(node, f"channels_{index}", each))

    return edit


def _unknown(reason: str) -> Step:
    return lambda node, rise: reason


def _reductions() -> Iterator[tuple[str, tuple[tuple[int, Step], ...]]]:
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
        yield f"Reduce{name}", ((18, _as_inputs(axes=1)),)


_no_kernel = _unknown("ONNX Runtime has no such operator of a newer opset")
_WITHOUT_KERNEL = (
    "GlobalLpPool", "MaxRoiPool", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip

STEPS: dict[str, tuple[tuple[int, Step], ...]] = {
    "BatchNormalization": ((9, _spatial), (14, _one_result)),
    "Clip": ((11, _numbers_as_inputs(min=1, max=2)),),
    "DFT": ((20, _transformed_axis),),
    "Dropout": ((12, _one_result),),
    "GridSample": ((20, _grid_modes),),
    "GroupNormalization": ((21, _channels_of_groups),),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), ((13, _along_last_axis),)),
    "Pad": ((11, _as_inputs(pads=1)), (11, _numbers_as_inputs(value=2))),
    **dict(_reductions()),
    **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), ((13, _as_inputs(axes=1)),)),
    "Resize": ((11, _resize), (13, _sizes_alone)),
    **dict.fromkeys(_WITHOUT_KERNEL, ((22, _no_kernel),)),
    "RoiAlign": ((16, _default_was("coordinate_transformation_mode", "output_half_pixel")), (22, _no_kernel)),
    "Scan": ((9, _unknown("it went over batches on its own")),),
    "Scatter": ((11, _renamed("ScatterElements")),),
    "Slice": ((10, _as_inputs(starts=1, ends=2, axes=3)),),
    "Split": ((13, _as_inputs(split=1)), (18, _parts)),
    "TopK": ((10, _as_inputs(k=1)),),
    "Upsample": ((9, _scales), (10, _upsample)),
}
"""What to do to a node that comes from an opset before one of these."""
