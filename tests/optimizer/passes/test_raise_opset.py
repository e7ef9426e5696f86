"""Nodes of older opsets compute in ONNX Runtime what they computed, once their model is of a newer one."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.calibration import Calibration
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.graph.opset_steps import SAME, STEPS, TESTED
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.model_io.names import settle_names
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.raise_opset import RaiseOpset
from published_nodes import published_nodes
from sessions import RUNS_FLOAT8_PRODUCTS, runs

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
NEWEST = 24 if runs("opset 24") else 23
NEWER = (8, 9, 10, 11, 12, 13, 14, 16, 18, 19, 20, 21, 22, 23, 24)
LAST_WITH_KERNEL = {} if runs("kernels of opset 22") else {"LpNormalization": 21, "QuantizeLinear": 22}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def info(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


Y = {"y": TensorProto.FLOAT}


def model_of(nodes, opset: int, feeds, constants=None, functions=(), outputs=Y, **more) -> onnx.ModelProto:
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in feeds.items()]
    graph = helper.make_graph(
        nodes, "g", inputs, [info(name, kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *more.get("imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def run(model: onnx.ModelProto, feeds, level=LEVELS[0]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    loaded = ir.from_proto(model)
    settle_names(loaded)
    RaiseOpset(opset)(loaded)
    proto = ir.to_proto(loaded)
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {entry.domain: entry.version for entry in proto.opset_import}
    for node in proto.graph.node:
        if not any(attribute.HasField("g") for attribute in node.attribute):
            onnx.checker.check_node(node, context)
    return proto


def check(model: onnx.ModelProto, feeds, least: int, *, targets=NEWER) -> None:
    """Raised to each newer opset that runs, the outputs are the same ones, or differ by the order of sums."""
    want = run(model, feeds)
    for target in targets:
        if not least < target <= NEWEST:
            continue
        proto = raised(model, target)
        (version,) = (entry.version for entry in proto.opset_import if entry.domain == "")
        assert version == target
        for level in LEVELS:
            for a, b in zip(want, run(proto, feeds, level), strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


SQUARE = {"x": noise(2, 3, 8, 8)}
LIMITS = np.concatenate([noise(20), [np.inf, -np.inf, 3.4e38]]).astype(np.float32)
ADAPTED = {
    "clip both": ("Clip", 7, {"x": LIMITS}, {"min": -0.5, "max": 0.5}, {}),
    "clip one": ("Clip", 7, {"x": LIMITS}, {"max": 0.25}, {}),
    "clip none": ("Clip", 7, {"x": LIMITS}, {}, {}),
    "pad": ("Pad", 7, SQUARE, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 1.5}, {}),
    "pad reflect": ("Pad", 7, SQUARE, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "mode": "reflect"}, {}),
    "pad edge": ("Pad", 7, SQUARE, {"pads": [0, 0, 1, -2, 0, 0, 0, 1], "mode": "edge"}, {}),
    "slice": ("Slice", 7, SQUARE, {"starts": [1, -3], "ends": [9, -1], "axes": [2, 3]}, {}),
    "slice without axes": ("Slice", 7, SQUARE, {"starts": [1, 0], "ends": [2, 2]}, {}),
    "split": ("Split", 7, SQUARE, {"axis": 2, "split": [3, 5]}, {}),
    "split evenly": ("Split", 7, SQUARE, {"axis": 3}, {}),
    "squeeze": ("Squeeze", 7, {"x": noise(1, 3, 1)}, {"axes": [0]}, {}),
    "squeeze all": ("Squeeze", 7, {"x": noise(1, 3, 1)}, {}, {}),
    "unsqueeze": ("Unsqueeze", 7, {"x": noise(3, 2)}, {"axes": [0, 2]}, {}),
    "top k": ("TopK", 7, SQUARE, {"k": 3, "axis": 1}, {}),
    "dropout": ("Dropout", 7, SQUARE, {"ratio": 0.3}, {}),
    "batch normalization": (
        "BatchNormalization", 7, SQUARE, {"epsilon": 1e-3, "spatial": 1},
        {"s": noise(3), "b": noise(3), "m": noise(3), "v": np.abs(noise(3))},
    ),
    "upsample": ("Upsample", 7, SQUARE, {"scales": [1.0, 1.0, 2.0, 2.5], "mode": "nearest"}, {}),
    "upsample linear": ("Upsample", 7, SQUARE, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}, {}),
    "upsample 9": ("Upsample", 9, SQUARE, {"mode": "linear"}, {"s": np.float32([1, 1, 1.5, 2])}),
    "resize 10 grows": ("Resize", 10, SQUARE, {}, {"s": np.float32([1, 1, 2, 1.7])}),
    "resize 10 shrinks": ("Resize", 10, SQUARE, {}, {"s": np.float32([1, 1, 0.625, 0.6])}),
    "resize 10 linear": ("Resize", 10, SQUARE, {"mode": "linear"}, {"s": np.float32([1, 1, 0.6, 2.5])}),
    "scatter": ("Scatter", 9, {"x": noise(3, 3)}, {"axis": 1}, {"i": np.int64([[0, 2]]), "u": noise(1, 2)}),
    "roi": (
        "RoiAlign", 10, SQUARE, {"output_height": 2, "output_width": 3},
        {"r": np.float32([[0, 1, 5, 6]]), "i": np.int64([1])},
    ),
    "grid bilinear": ("GridSample", 16, SQUARE, {"mode": "bilinear"}, {"g": noise(2, 4, 4, 2)}),
    "grid bicubic": ("GridSample", 16, SQUARE, {"mode": "bicubic"}, {"g": noise(2, 4, 4, 2)}),
    "grid default": ("GridSample", 16, SQUARE, {}, {"g": noise(2, 4, 4, 2)}),
    "groups": (
        "GroupNormalization", 18, {"x": noise(2, 4, 5)}, {"num_groups": 2, "epsilon": 1e-3},
        {"s": noise(2), "b": noise(2)},
    ),
    "dft": ("DFT", 17, {"x": noise(2, 5, 6, 1)}, {}, {}),
    "dft axis": ("DFT", 17, {"x": noise(2, 5, 6, 1)}, {"axis": 2, "onesided": 1}, {}),
    **{
        f"{op_type} axis {axis}": (op_type, 7, {"x": noise(3, 4, 5)}, {} if axis is None else {"axis": axis}, {})
        for op_type, axis in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (None, 0, 1, 2))
    },
    "softmax counted from the end": ("Softmax", 11, {"x": noise(3, 4, 5)}, {"axis": -2}, {}),
    **{
        f"Reduce{name} {attributes}": (f"Reduce{name}", 7, {"x": np.abs(noise(3, 4, 5))}, attributes, {})
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        for attributes in ({}, {"axes": [1], "keepdims": 0}, {"axes": [0, 2]})
    },
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTED)
def test_what_is_written_otherwise(case):
    op_type, opset, feeds, attributes, constants = ADAPTED[case]
    second = {"Split": TensorProto.FLOAT, "TopK": TensorProto.INT64}.get(op_type)
    outputs = Y if second is None else {**Y, "z": second}
    node = helper.make_node(op_type, [*feeds, *constants], outputs, name="n", **attributes)
    without_kernel = {"RoiAlign": range(22, 25), "GroupNormalization": range(18, 21)}.get(op_type, ())
    targets = [target for target in NEWER if target not in without_kernel]
    check(model_of([node], opset, feeds, constants, outputs=outputs), feeds, opset, targets=targets)


@functools.cache
def published():
    """The single nodes that ONNX tests its operators by."""
    found: dict[str, list[tuple[onnx.ModelProto, dict[str, np.ndarray]]]] = {}
    for case in published_nodes():
        if case.model is None or len(case.model.graph.node) != 1 or not case.data_sets:
            continue
        arrays = case.data_sets[0][0]
        if all(isinstance(array, np.ndarray) for array in arrays):
            feeds = {info.name: array for info, array in zip(case.model.graph.input, arrays, strict=False)}
            found.setdefault(case.model.graph.node[0].op_type, []).append((case.model, feeds))
    return found


def versions(op_type: str) -> list[onnx.defs.OpSchema]:
    every = onnx.defs.get_all_schemas_with_history()
    return sorted((s for s in every if s.name == op_type and s.domain == ""), key=lambda schema: schema.since_version)


def as_of(model: onnx.ModelProto, schema: onnx.defs.OpSchema) -> onnx.ModelProto | None:
    """A model of one node as that version of the operator knows it, None where it does not."""
    (node,) = model.graph.node
    known = all(attribute.name in schema.attributes for attribute in node.attribute)
    if schema.deprecated or not known or not schema.min_input <= len(node.input) <= schema.max_input:
        return None
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.ir_version = 10
    for entry in older.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(7, schema.since_version)
    return older


RANDOM = ("Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


@pytest.mark.parametrize("op_type", sorted(SAME - set(RANDOM)))
def test_what_is_the_same(op_type):
    """The published cases of an operator, as each version of it: the first raised to all later ones, others to one."""
    every = [schema for schema in versions(op_type) if schema.since_version <= TESTED]
    newest = LAST_WITH_KERNEL.get(op_type, NEWEST)
    assert len(every) > 1
    for index, (model, feeds) in enumerate(published().get(op_type, [])[:12]):
        for schema in every:
            older = as_of(model, schema)
            try:
                want = run(older, feeds) if older is not None else None
            except Exception:  # of a type that ONNX Runtime has no kernel for
                continue
            if older is None or want is None:
                continue
            least = max(7, schema.since_version)
            later = [s.since_version for s in every if least < s.since_version <= newest]
            for target in later if index == 0 else later[index % max(1, len(later)) :][:1]:
                try:
                    proto = raised(older, target)
                except OnnxpressError:
                    assert op_type in STEPS
                    continue
                for a, b in zip(want, run(proto, feeds), strict=True):
                    for one, other in zip(*((a, b) if isinstance(a, list) else ([a], [b])), strict=True):
                        if isinstance(one, np.ndarray) and one.dtype.kind == "f":
                            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
                        else:
                            np.testing.assert_array_equal(other, one)


@pytest.mark.skipif(not RUNS_FLOAT8_PRODUCTS, reason="before opset 19, older versions average pools otherwise")
def test_operators_of_many_attributes_are_the_same():
    """Pools and sizes, which the published cases try one attribute at a time."""
    x = {"x": noise(1, 2, 9, 10)}
    for ceil, pads, strides, auto in itertools.product(
        (0, 1), (None, [1, 0, 1, 1]), (None, [3, 2]), (None, "SAME_LOWER")
    ):
        some = {"pads": pads, "strides": strides, "auto_pad": auto}
        attributes = {name: value for name, value in some.items() if value is not None}
        if pads is not None and auto is not None:
            continue
        for op_type, more in (("AveragePool", {"count_include_pad": 1}), ("AveragePool", {}), ("MaxPool", {})):
            node = helper.make_node(op_type, ["x"], ["y"], kernel_shape=[3, 2], ceil_mode=ceil, **attributes, **more)
            check(model_of([node], 10, x), x, 10, targets=(11, 13, 19, 22))
    sizes = {"roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32), "sizes": np.int64([1, 2, 14, 7])}
    # ONNX knows the last one before opset 13 alone, ONNX Runtime still does.
    coordinates = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn")
    for mode, coordinate in itertools.product(("nearest", "linear", "cubic"), coordinates):
        node = helper.make_node("Resize", ["x", *sizes], ["y"], mode=mode, coordinate_transformation_mode=coordinate)
        check(model_of([node], 11, x, sizes), x, 11, targets=(13, 18, 19, 24))


BODY = helper.make_graph(
    [helper.make_node("Add", ["s", "xi"], ["so"]), helper.make_node("Identity", ["so"], ["yo"])], "body",
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("s", "xi")],
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("so", "yo")],
)  # fmt: skip
LEFT = {
    "scan over batches": (
        8, helper.make_node("Scan", ["", "s0", "x"], ["f", "y"], name="n", body=BODY, num_scan_inputs=1),
        {"x": noise(1, 3, 4)}, {"s0": np.zeros((1, 4), np.float32)}, "batches",
    ),
    "statistics of each element": (
        7, helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"], name="n", spatial=0),
        {"x": noise(2, 3)}, {name: np.ones(3, np.float32) for name in "sbmv"}, "each element",
    ),
    "mask of a dropout": (10, helper.make_node("Dropout", ["x"], ["h", "y"], name="n"), SQUARE, {}, "first result"),
    "nearest both ways": (
        10, helper.make_node("Resize", ["x", "s"], ["y"], name="n"), SQUARE, {"s": np.float32([1, 1, 2, 0.5])},
        "nearest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_known_is_left(case):
    opset, node, feeds, constants, reason = LEFT[case]
    model = ir.from_proto(model_of([node], opset, feeds, constants))
    before = ir.to_proto(model)
    assert reason in (RaiseOpset(21).obstacle(model) or "")
    with pytest.raises(OnnxpressError, match=f"opset {opset} cannot be raised to 21: node 'n'"):
        RaiseOpset(21)(model)
    assert ir.to_proto(model) == before


def test_no_opset_is_promised_beyond_those_that_were_tested():
    model = ir.from_proto(model_of([helper.make_node("Cast", ["x"], ["y"], to=1)], 19, SQUARE))
    assert RaiseOpset(TESTED + 1).obstacle(model) is not None
    assert RaiseOpset(TESTED).obstacle(model) is None


def test_graphs_inside_nodes_are_raised():
    def branch(name: str, axis: int) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Softmax", ["x"], [name], axis=axis),
            helper.make_node("Squeeze", [name], [f"o{name}"]),
        ]
        return helper.make_graph(nodes, name, [], [info(f"o{name}")])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a", 1), else_branch=branch("b", 0))
    for flag in (True, False):
        feeds = {"x": noise(3, 4, 1), "c": np.array(flag)}
        check(model_of([node], 11, feeds), feeds, 11, targets=(13, 21))


def test_functions_are_raised_with_the_model():
    """Where constants of a body are nodes."""
    body = helper.make_function(
        "local", "Low", ["a"], ["b"],
        [helper.make_node("Clip", ["a"], ["c"], max=0.5), helper.make_node("ReduceSum", ["c"], ["b"], axes=[1])],
        [helper.make_opsetid("", 10)],
    )  # fmt: skip
    feeds = {"x": noise(3, 4)}
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Low", ["r"], ["y"], domain="local")]
    model = model_of(nodes, 10, feeds, functions=[body], imports=[helper.make_opsetid("local", 1)])
    loaded = ir.from_proto(model)
    assert "not known" in (RaiseOpset(13).obstacle(loaded) or "it was raised")  # which type its Clip has
    body.node[0].CopyFrom(helper.make_node("Squeeze", ["a"], ["c"], axes=[0]))
    feeds = {"x": noise(1, 3, 4)}
    model = model_of(nodes, 10, feeds, functions=[body], imports=[helper.make_opsetid("local", 1)])
    check(model, feeds, 10, targets=(11, 13, 21))


def test_nodes_stay_themselves():
    """What is noted of them is noted still, and names of a replaced one go to what computes the same."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], name="soft", axis=1),
        helper.make_node("Relu", ["s"], ["y"], name="r"),
    ]
    model = ir.from_proto(model_of(nodes, 11, SQUARE))
    before = {node.name: node for node in model.graph}
    RaiseOpset(13)(model)
    assert [node for node in model.graph if node is before["r"]]
    assert [node.name for node in model.graph if node.op_type == "Softmax"] == ["soft"]
    assert [value.name for value in model.graph.outputs] == ["y"]


SAVED = {"Upsample": {"scales": [1.0, 1.0, 2.0, 2.0]}, "Hardmax": {"axis": 1}, "Pad": {"pads": [0] * 6 + [1, 1]}}


@pytest.mark.parametrize("scheme", ["int8", "int8-static", "int8-dynamic", "fp8"])
@pytest.mark.parametrize("op_type", SAVED)
def test_conversions_of_old_models(tmp_path, op_type, scheme):
    feeds = {"x": noise(1, 1, 8, 8)}
    nodes = [
        helper.make_node(op_type, ["x"], ["h"], name="first", **SAVED[op_type]),
        helper.make_node("MatMul", ["h", "W"], ["y"], name="product"),
    ]
    width = run(model_of(nodes[:1], 8, feeds, outputs={"h": TensorProto.FLOAT}), feeds)[0].shape[-1]
    model = model_of(nodes, 8, feeds, {"W": noise(width, 128)})
    onnx.save(model, tmp_path / "m.onnx")
    data = Calibration([feeds]) if scheme == "int8-static" else None
    form = {} if scheme.startswith("int8-") else {"form": "qdq"}
    optimize(tmp_path / "m.onnx", Recipe(scheme=scheme, **form), tmp_path / "o.onnx", calibration=data)
    (want,), (got,) = run(model, feeds), run(onnx.load(tmp_path / "o.onnx"), feeds, LEVELS[1])
    assert np.abs(got - want).max() < 0.06 * np.abs(want).max()


def test_nodes_whose_form_needs_a_newer_opset_are_left_with_the_reason(tmp_path):
    opset, scan, feeds, constants, _ = LEFT["scan over batches"]
    nodes = [scan, helper.make_node("MatMul", ["y", "W"], ["z"], name="product")]
    onnx.save(
        model_of(nodes, opset, feeds, {**constants, "W": noise(4, 256)}, outputs={"z": TensorProto.FLOAT}),
        tmp_path / "m.onnx",
    )
    with pytest.raises(OnnxpressError, match="1 MatMul: opset 8 cannot be raised to 21: node 'n' \\(Scan\\)"):
        optimize(tmp_path / "m.onnx", Recipe(scheme="int4", form="qdq", block_size=16), tmp_path / "o.onnx")
    assert optimize(tmp_path / "m.onnx", Recipe(scheme="int4", block_size=16), tmp_path / "o.onnx").rewritten
    assert run(onnx.load(tmp_path / "o.onnx"), feeds)[0].shape == (1, 3, 256)


def test_a_cleaned_up_model_knows_its_types(tmp_path):
    """A Clip behind a product has bounds of the type that is inferred."""
    feeds = {"x": noise(4, 8)}
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Clip", ["h"], ["y"], max=0.1)]
    onnx.save(model_of(nodes, 9, feeds, {"W": noise(8, 8)}), tmp_path / "m.onnx")
    model = storage.load(tmp_path / "m.onnx")
    CleanUp()(model)
    RaiseOpset(13)(model)
    np.testing.assert_allclose(run(ir.to_proto(model), feeds)[0], run(onnx.load(tmp_path / "m.onnx"), feeds)[0])


def test_each_of_a_chain_reads_what_the_one_before_it_became():
    kinds, names, feeds = ("LogSoftmax", "Softmax", "Hardmax"), ("x", "v", "w", "y"), {"x": noise(2, 3, 4)}
    ends = zip(kinds, names, names[1:], strict=False)
    nodes = [helper.make_node(kind, [x], [y], name=y, axis=1) for kind, x, y in ends]
    check(model_of(nodes, 11, feeds), feeds, 11)


@pytest.mark.parametrize("through", [(), ("Identity",)])
@pytest.mark.parametrize("opset", [11, 12])
def test_sizes_stand_alone(opset, through):
    """Scales without numbers, which ONNX Runtime refuses from 13 on where it sees no constant."""
    nodes = [helper.make_node(kind, ["s"], ["t"], name="same") for kind in through]
    nodes.append(helper.make_node("Resize", ["x", "r", "t" if through else "s", "z"], ["y"], name="n"))
    empty = np.zeros(0, np.float32)
    check(model_of(nodes, opset, SQUARE, {"r": empty, "s": empty, "z": np.int64([2, 3, 12, 5])}), SQUARE, opset)
