"""What ONNX Runtime loads is read, in one form, and written so that it loads again."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from odd_models import PRODUCT, RELU, WEIGHT, X, check, info, model_of, node, noise, run
from onnx import TensorProto, helper, numpy_helper
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.analysis.compare import compare
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.model_io import storage
from sessions import needs


def sparse(values, indices, dims, name="S") -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        dims=dims, values=numpy_helper.from_array(np.asarray(values), name),
        indices=numpy_helper.from_array(np.asarray(indices), "indices"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("indices", "kind"),
    [
        ([1, 33, 1023], np.int64),
        ([1, 33, 1023], np.int32),
        ([[0, 1], [1, 1], [31, 31]], np.int64),
        (np.zeros(0), np.int64),
    ],
)
def test_sparse_constants(tmp_path, indices, kind):
    values = np.float32([1, -2, 0.5])[: len(indices)]
    model = model_of([node("MatMul", ["x", "S"], ["p"]), node("Add", ["p", "x"], ["h"]), PRODUCT])
    model.graph.sparse_initializer.append(sparse(values, np.asarray(indices, kind), [32, 32]))
    check(model, X, tmp_path)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.int64])
def test_sparse_constants_of_other_types(tmp_path, kind):
    nodes = [node("Cast", ["S"], ["s"], to=TensorProto.FLOAT), node("Add", ["x", "s"], ["h"]), PRODUCT]
    model = model_of(nodes)
    model.graph.sparse_initializer.append(sparse(np.array([1, 2], kind), [3, 30], [32]))
    check(model, X, tmp_path, ["int8"])


def branches(then_nodes, else_nodes=None, **then_more):
    """An If whose branches give "t"."""
    then = helper.make_graph(then_nodes, "then", [], [info("t")], **then_more)
    other = helper.make_graph(else_nodes or [node("Abs", ["x"], ["t"])], "else", [], [info("t")])
    return node("If", ["c"], ["h"], name="if", then_branch=then, else_branch=other)


CHOICE = [info("x", ["N", 32]), info("c", [], TensorProto.BOOL)]
CHOSEN = {**X, "c": np.array(True)}


def test_sparse_constants_inside_nodes(tmp_path):
    constant = node("Constant", [], ["k"], sparse_value=sparse(np.float32([2, 3]), [0, 40], [32, 32], "value"))
    choice = branches([constant, node("MatMul", ["x", "k"], ["t"])])
    check(model_of([choice, PRODUCT], inputs=CHOICE), CHOSEN, tmp_path, ["int4", "int8-dynamic"])


@pytest.mark.parametrize(
    ("values", "indices", "dims", "message"),
    [
        ([1.0, 2.0], [0, 1024], [32, 32], "indices that do not fit"),
        ([1.0, 2.0], [0, -1], [32, 32], "indices that do not fit"),
        ([1.0, 2.0], [0], [32, 32], "indices that do not fit"),
        ([1.0], [[0, 40]], [32, 32], "indices that do not fit"),
        ([1.0], [0], [-32, 32], "impossible shape"),
        ([1.0], [0], [1 << 20, 1 << 20], "2 GiB and more"),
        ([1.0], [0], [1 << 62, 1 << 62], "2 GiB and more"),
    ],
)
def test_impossible_sparse_constants_are_named(tmp_path, values, indices, dims, message):
    model = model_of([node("MatMul", ["x", "S"], ["h"]), PRODUCT])
    model.graph.sparse_initializer.append(sparse(np.float32(values), np.int64(indices), dims))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(OnnxpressError, match=f"m.onnx: sparse tensor 'S' .*{message}"):
        storage.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("opsets", [[("ai.onnx", 17)], [("", 11), ("ai.onnx", 17)], [("ai.onnx", 11), ("", 17)]])
def test_the_standard_domain_has_two_names(tmp_path, opsets):
    """The import that comes last counts: Unsqueeze of opset 17 has its axes as an input."""
    axes = numpy_helper.from_array(np.int64([0]), "axes")
    nodes = [node("Relu", ["x"], ["r"], domain="ai.onnx"), node("Unsqueeze", ["r", "axes"], ["h"]), PRODUCT]
    check(model_of(nodes, constants=[WEIGHT, axes], opsets=opsets), X, tmp_path)


@pytest.mark.parametrize("name", ["", "ai.onnx"])
def test_functions_may_call_the_standard_domain_so(tmp_path, name):
    """Which ONNX Runtime does not load itself."""
    body = [node("Relu", ["a"], ["b"], domain=name)]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("ai.onnx", 17)])
    call = node("F", ["x"], ["h"], domain="local")
    model = model_of([call, PRODUCT], opsets=[("", 17), ("local", 1)], functions=[function])
    onnx.save(model, tmp_path / "m.onnx")
    for scheme, clean_up in itertools.product(("int8", "fp8"), (True, False)):
        optimize(tmp_path / "m.onnx", Recipe(scheme=scheme, clean_up=clean_up), tmp_path / "o.onnx")
        want = np.maximum(X["x"], 0) @ numpy_helper.to_array(WEIGHT)
        assert np.abs(run(tmp_path / "o.onnx", X)[0] - want).max() < 0.1 * np.abs(want).max()


def test_a_standard_domain_that_nobody_imports_is_the_newest(tmp_path):
    model = model_of([RELU, PRODUCT], opsets=[("ai.onnx.ml", 3)])
    written = check(model, X, tmp_path)
    assert {entry.domain for entry in written.opset_import} >= {""}


def maps(name: str) -> onnx.ValueInfoProto:
    of_map = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(of_map))


ML = [("", 17), ("ai.onnx.ml", 3)]
ZIP = node("ZipMap", ["y"], ["m"], name="zip", domain="ai.onnx.ml", classlabels_int64s=list(range(32)))


@pytest.mark.parametrize("external", [True, False])
def test_maps_are_outputs(tmp_path, external):
    model = model_of([RELU, PRODUCT, ZIP], outputs=[info("y"), maps("m")], opsets=ML)
    written = check(model, X, tmp_path)
    assert written.graph.output[1] == maps("m")
    if external:
        onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
        optimize(tmp_path / "e.onnx", Recipe(scheme="int8"), tmp_path / "o.onnx")
        assert onnx.load(tmp_path / "o.onnx").graph.output[1] == maps("m")
    compare(tmp_path / "m.onnx", tmp_path / "o.onnx")


def test_maps_are_inner_tensors(tmp_path):
    """Of the main graph and of a branch."""
    check(model_of([RELU, PRODUCT, ZIP], opsets=ML, value_info=[maps("m")]), X, tmp_path)
    inner = node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=list(range(32)))
    choice = branches([inner, node("Neg", ["x"], ["t"])], value_info=[maps("p")])
    check(model_of([choice, PRODUCT], inputs=CHOICE, opsets=ML), CHOSEN, tmp_path, ["int4", "fp8-dynamic"])


def test_maps_are_inputs(tmp_path):
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    entry = helper.make_value_info("m", kind)
    fill = node("DictVectorizer", ["m"], ["h"], domain="ai.onnx.ml", int64_vocabulary=list(range(32)))
    feeds = {"m": {index: index / 32 for index in range(32)}}
    model = model_of([fill, PRODUCT], inputs=[entry], opsets=ML)
    written = check(model, feeds, tmp_path, ["int4", "int8-dynamic"])
    assert written.graph.input[0] == entry
    report = optimize(tmp_path / "m.onnx", Recipe(scheme="int8-static"), calibration=Calibration([feeds]))
    assert report.rewritten == {"MatMul": 1}


def test_sequences_and_optional_values(tmp_path):
    rows = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 32])
    join = node("ConcatFromSequence", ["s"], ["h"], axis=0)
    model = model_of([join, PRODUCT], inputs=[helper.make_value_info("s", helper.make_sequence_type_proto(rows))])
    check(model, {"s": [X["x"], X["x"]]}, tmp_path, ["int4", "int8-dynamic"])
    given = helper.make_value_info("o", helper.make_optional_type_proto(rows))
    model = model_of([node("OptionalGetElement", ["o"], ["h"]), PRODUCT], inputs=[given])
    check(model, {"o": X["x"]}, tmp_path, ["int4", "int8-dynamic"])


def test_metadata_that_looks_like_ours_is_dropped(tmp_path):
    """A file cannot smuggle a type in."""
    model = model_of([RELU, PRODUCT])
    model.graph.output[0].metadata_props.add(key="onnxpress.type", value="no type")
    check(model, X, tmp_path, ["int8"])


def test_nodes_in_any_order(tmp_path):
    check(model_of([PRODUCT, RELU]), X, tmp_path)
    again = [node("Add", ["h", "x"], ["g"]), node("MatMul", ["g", "W"], ["y"]), RELU]
    check(model_of(again), X, tmp_path)


def test_branches_may_read_what_is_made_later(tmp_path):
    late = branches([node("MatMul", ["later", "W"], ["t"])])
    model = model_of([PRODUCT, late, node("Relu", ["x"], ["later"])], inputs=CHOICE)
    check(model, CHOSEN, tmp_path, ["int4", "int8-dynamic", "int8-static"])


def test_nodes_of_inner_graphs_and_functions_in_any_order(tmp_path):
    """Which ONNX Runtime does not load itself."""
    choice = branches([node("Neg", ["a"], ["t"]), node("MatMul", ["x", "W"], ["a"])])
    body = [node("Relu", ["c"], ["b"]), node("Neg", ["a"], ["c"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    call = node("F", ["y"], ["z"], domain="local")
    more = {"opsets": [("", 17), ("local", 1)], "functions": [function], "outputs": [info("z")]}
    onnx.save(model_of([choice, PRODUCT, call], inputs=CHOICE, **more), tmp_path / "m.onnx")
    assert optimize(tmp_path / "m.onnx", Recipe(scheme="int8"), tmp_path / "o.onnx").rewritten == {"MatMul": 2}
    want = np.maximum(-(-(X["x"] @ numpy_helper.to_array(WEIGHT)) @ numpy_helper.to_array(WEIGHT)), 0)
    assert np.abs(run(tmp_path / "o.onnx", CHOSEN)[0] - want).max() < 0.05 * want.max()


def test_an_order_that_exists_stays(tmp_path):
    nodes = [node("Neg", ["x"], ["b"]), node("Relu", ["x"], ["a"]), node("Add", ["a", "b"], ["h"]), PRODUCT]
    onnx.save(model_of(nodes), tmp_path / "m.onnx")
    assert [each.op_type for each in storage.load(tmp_path / "m.onnx").graph] == ["Neg", "Relu", "Add", "MatMul"]


def test_cycles_are_named(tmp_path):
    nodes = [node("Add", ["x", "b"], ["a"]), node("Add", ["x", "a"], ["b"]), node("MatMul", ["a", "W"], ["y"])]
    onnx.save(model_of(nodes), tmp_path / "m.onnx")
    with pytest.raises(OnnxpressError, match=r"m.onnx: nodes of the graph wait for each other's results, in a cycle"):
        storage.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("where", ["a node", "a branch", "an output"])
def test_what_is_read_and_nowhere_is_named(where, tmp_path):
    product = node("MatMul", ["h", "W"], ["y"])
    if where == "a branch":
        branches = {
            f"{which}_branch": helper.make_graph([node("Neg", [read], [which])], which, [], [info(which)])
            for which, read in (("then", "lost"), ("else", "x"))
        }
        choice = numpy_helper.from_array(np.array(True), "choice")
        model = model_of([node("If", ["choice"], ["h"], **branches), product], constants=[WEIGHT, choice])
    else:
        outputs = [info("y", None), info("lost", None)] if where == "an output" else None
        model = model_of([node("Neg", ["x" if outputs else "lost"], ["h"]), product], outputs=outputs)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(OnnxpressError, match=r"m.onnx: .* 'lost', which no node makes and no input is"):
        optimize(tmp_path / "m.onnx", Recipe(), tmp_path / "o.onnx")


def function_model(name: str, nodes) -> onnx.ModelProto:
    body = helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    call = node(name, ["x"], ["h"], domain="local")
    return model_of([call, PRODUCT], opsets=[("", 17), ("local", 1)], functions=[body])


@pytest.mark.parametrize("name", ["QLinearThing", "DequantizeLinear", "MatMulNBits", "DynamicQuantizeLinear"])
def test_functions_of_floats_may_be_called_anything(tmp_path, name):
    check(function_model(name, [node("Relu", ["a"], ["b"])]), X, tmp_path)


def test_what_a_function_computes_counts(tmp_path):
    rounded = [
        node("QuantizeLinear", ["a", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["b"]),
    ]  # fmt: skip
    constants = [
        node("Constant", [], ["s"], value_float=0.1),
        node("Constant", [], ["z"], value=numpy_helper.from_array(np.uint8(128), "z")),
    ]
    onnx.save(function_model("Plain", [*constants, *rounded]), tmp_path / "m.onnx")
    with pytest.raises(OnnxpressError, match="already quantized"):
        optimize(tmp_path / "m.onnx", Recipe(), tmp_path / "o.onnx")


def test_operators_of_unknown_domains_may_be_called_anything(tmp_path):
    nodes = [node("QLinearThing", ["x"], ["h"], domain="elsewhere"), PRODUCT]
    onnx.save(model_of(nodes, opsets=[("", 17), ("elsewhere", 1)]), tmp_path / "m.onnx")
    assert optimize(tmp_path / "m.onnx", Recipe(scheme="int8"), tmp_path / "o.onnx").rewritten == {"MatMul": 1}


def test_constants_of_strings(tmp_path):
    words = numpy_helper.from_array(np.array(["a", "bb"], object), "words")
    first = numpy_helper.from_array(np.int64([1]), "first")
    nodes = [RELU, PRODUCT, node("Gather", ["words", "first"], ["s"])]
    outputs = [info("y"), info("s", None, TensorProto.STRING)]
    check(model_of(nodes, outputs=outputs, constants=[WEIGHT, words, first]), X, tmp_path)


KINDS = ("INT2", "UINT2", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2", "BFLOAT16", "FLOAT16")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[needs("opset 24")] if kind.endswith("INT2") else [])  # of opset 25
        for kind in KINDS
        if hasattr(TensorProto, kind)
    ],
)
def test_constants_of_few_bits(tmp_path, kind):
    ones = helper.make_tensor("q", getattr(TensorProto, kind), [32], [1.0] * 32)
    nodes = [node("Cast", ["q"], ["f"], to=TensorProto.FLOAT), node("Add", ["x", "f"], ["h"]), PRODUCT]
    model = model_of(nodes, constants=[WEIGHT, ones], opsets=[("", 21 if "2" not in kind else 25)], ir_version=10)
    model.ir_version = 10 if "2" not in kind else 13
    try:
        run(model, X)
    except Exception as error:
        pytest.skip(f"ONNX Runtime has no Cast of it: {error}")
    check(model, X, tmp_path, ["int4", "int8-dynamic", "int8-static"])


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((32, 32), np.float32), "W"))


def unread(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(noise(3), "unread"))


def output_of_input(model: onnx.ModelProto) -> None:
    model.graph.output.append(info("x", ["N", 32]))


def output_of_constant(model: onnx.ModelProto) -> None:
    model.graph.output.append(info("W", [32, 32]))


def output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(info("y"))


def untyped_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(onnx.ValueInfoProto(name="h"))


def of_nothing(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(info("nobody", [9, 9]))


def untyped(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(onnx.ValueInfoProto(name="h"))


def without_names(model: onnx.ModelProto) -> None:
    model.graph.ClearField("name")
    for each in model.graph.node:
        each.ClearField("name")


def left_out_results(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Dropout", ["y"], ["z", ""]))
    model.graph.output.append(info("z"))


def empty(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 32), np.float32), "nothing"))
    model.graph.node.append(node("Concat", ["y", "nothing"], ["z"], axis=0))
    model.graph.output.append(info("z"))


def unimported(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    model.graph.output.append(info("z"))


ODD = (
    twice, unread, output_of_input, output_of_constant, output_twice, untyped_output, of_nothing, untyped,
    without_names, left_out_results, empty, unimported,
)  # fmt: skip


@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__)
def test_odd_models_that_load(tmp_path, change):
    model = model_of([RELU, PRODUCT])
    change(model)
    check(model, X, tmp_path, ["int8", "int8-static", "int8-dynamic", "fp8-dynamic"])


def test_models_in_memory_are_normalised(tmp_path):
    """They are what onnx-ir makes of a file, as the user reads it."""
    model = model_of([PRODUCT, RELU], inputs=[info("x", [-1, 32]), info("W", [32, 32])], ir_version=3)
    loaded = ir.from_proto(model)
    report = optimize(loaded, Recipe(scheme="int8-static"), tmp_path / "o.onnx", calibration=Calibration([X]))
    assert report.rewritten == {"MatMul": 1}
    assert run(tmp_path / "o.onnx", X)[0].shape == (2, 32)


def test_what_is_converted_reads_again(tmp_path):
    """In one form: reading it changes nothing."""
    for sizes, external in itertools.product(([-1, 32], ["N", 32]), (True, False)):
        model = model_of([PRODUCT, RELU, ZIP], inputs=[info("x", sizes)], outputs=[info("y"), maps("m")], opsets=ML)
        onnx.save(model, tmp_path / "m.onnx")
        storage.save(storage.load(tmp_path / "m.onnx"), tmp_path / "a.onnx", external=external)
        storage.save(storage.load(tmp_path / "a.onnx"), tmp_path / "b.onnx", external=external)
        first, second = (onnx.load(tmp_path / f"{name}.onnx", load_external_data=False) for name in "ab")
        for proto in (first, second):
            for tensor in proto.graph.initializer:
                del tensor.external_data[:]
        assert first == second
