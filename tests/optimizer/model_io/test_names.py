"""Names that conversions give are nobody else's, at any depth."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxpress import custom_ops
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.graph.rewriting import SharedArrays, add_array, insert_before, replace
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.model_io.names import copy_of, names_kept_apart, names_of, settle_names
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.raise_opset import RaiseOpset

node = helper.make_node


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def info(name: str, shape=None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


DENSE = (
    17,
    [
        node("MatMul", ["x", "W"], ["a"], name="product"), node("Add", ["a", "b"], ["s"], name="bias"),
        node("Relu", ["s"], ["h"], name="clamp"),
        node("Gemm", ["h", "V", "b"], ["g"], name="gemm", alpha=0.5, beta=2.0, transA=0),
        node("Sigmoid", ["g"], ["gate"], name="sigmoid"), node("Mul", ["gate", "g"], ["y"], name="scaled"),
    ],
    {"x": noise(4, 64)},
    {"W": noise(64, 64), "b": noise(64), "V": noise(64, 64, seed=1)},
)  # fmt: skip
IMAGE = (
    11,
    [
        node("Conv", ["x", "K"], ["c"], pads=[1] * 4, name="conv"), node("HardSigmoid", ["c"], ["hs"], name="hard"),
        node("Mul", ["hs", "c"], ["w"], name="swish"), node("LRN", ["w"], ["l"], size=3, name="lrn"),
        node("ConvTranspose", ["l", "T"], ["t"], strides=[2, 2], name="grow"),
        node("Transpose", ["t"], ["p"], perm=[0, 2, 3, 1], name="move"), node("Softmax", ["p"], ["q"], name="soft"),
        node("MatMul", ["q", "W"], ["y"], name="product"),
    ],
    {"x": noise(1, 8, 8, 8)},
    {"K": noise(16, 8, 3, 3), "T": noise(16, 16, 2, 2), "W": noise(16, 64)},
)  # fmt: skip
TABLE = (
    17,
    [node("Gather", ["E", "x"], ["e"], name="table"), node("MatMul", ["e", "W"], ["y"], name="product")],
    {"x": np.int64([1, 5, 7])},
    {"E": noise(8192, 64), "W": noise(64, 64)},
)
SCHEMES: dict[str, dict[str, object]] = {
    "int4": {}, "int4 qdq": {"form": "qdq", "scale_type": "float16"}, "int4 embeddings": {"embeddings": True},
    "int3": {}, "fp8": {}, "fp8 qdq": {"form": "qdq"}, "int8-dynamic": {}, "int8-static": {}, "fp8-dynamic": {},
    "fp8-static": {}, "sparse": {"sparsity": 0.1}, "sparse int8": {"sparsity": 0.1, "dtype": "int8"},
}  # fmt: skip
CASES = {
    **{f"dense {scheme}": (DENSE, scheme) for scheme in SCHEMES if "embeddings" not in scheme},
    **{f"image {scheme}": (IMAGE, scheme) for scheme in ("int4 qdq", "int8-static", "int8-dynamic", "fp8-static")},
    **{f"table {scheme}": (TABLE, scheme) for scheme in ("int4 embeddings", "fp8-dynamic")},
}


def model_of(of, nodes=(), inputs=(), outputs=(), constants=()) -> onnx.ModelProto:
    opset, own, feeds, held = of
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    graph = helper.make_graph(
        [*own, *nodes], "g", [*(info(name, feeds[name].shape, kinds[name]) for name in feeds), *inputs],
        [info("y"), *outputs], [*(constant(*item) for item in held.items()), *constants],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(path, feeds, *, ours: bool = False) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if ours:
        custom_ops.register(options)
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(None, feeds)


def converted(model: onnx.ModelProto, scheme: str, feeds, folder) -> onnx.ModelProto:
    onnx.save(model, folder / "m.onnx")
    recipe = Recipe(scheme=scheme.split()[0], **SCHEMES[scheme])
    data = Calibration([feeds]) if "static" in scheme else None
    optimize(folder / "m.onnx", recipe, folder / "o.onnx", calibration=data)
    return onnx.load(folder / "o.onnx")


def names_in(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Of values and of nodes of the main graph."""
    made = {name for each in model.graph.node for name in each.output if name}
    given = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    return made | given, {each.name for each in model.graph.node}


def as_values(names):
    nodes = [node("Neg", ["y"], [name], name=f"u{i}") for i, name in enumerate(names)]
    return {"nodes": [*nodes, node("Sum", names, ["sum"], name="usum")], "outputs": [info("sum")]}


def as_outputs(names):
    nodes = [node("Neg", ["y"], [name], name=f"u{i}") for i, name in enumerate(names)]
    return {"nodes": nodes, "outputs": [info(name) for name in names]}


def as_inputs(names):
    nodes = [node("Mul", ["y", name], [f"user{i}"], name=f"u{i}") for i, name in enumerate(names)]
    outputs = [info(f"user{i}") for i in range(len(names))]
    return {"nodes": nodes, "inputs": [info(name, [1]) for name in names], "outputs": outputs}


def as_constants(names):
    return {**as_inputs(names), "inputs": [], "constants": [constant(name, noise(1)) for name in names]}


def as_inner_values(names):
    def branch(op_type: str) -> onnx.GraphProto:
        nodes = [node("Neg", ["y"], [name], name=f"{op_type}{i}") for i, name in enumerate(names)]
        nodes.append(node("Sum", names, [f"t{op_type}"], name=f"{op_type}sum"))
        return helper.make_graph(nodes, op_type, [], [info(f"t{op_type}")])

    choice = node("If", ["choice"], ["z"], name="if", then_branch=branch("p"), else_branch=branch("q"))
    return {"nodes": [choice], "inputs": [info("choice", [], TensorProto.BOOL)], "outputs": [info("z")]}


PLACES = (as_values, as_outputs, as_inputs, as_constants, as_inner_values)


@pytest.mark.parametrize("case", CASES)
def test_conversions_keep_away_from_every_name_that_they_would_give(tmp_path, case):
    of, scheme = CASES[case]
    feeds = of[2]
    source = model_of(of)
    plain = converted(source, scheme, feeds, tmp_path)
    (want,) = run(tmp_path / "o.onnx", feeds, ours=True)
    values, nodes = (sorted(new - old) for new, old in zip(names_in(plain), names_in(source), strict=True))
    assert values
    for place in PLACES:
        more = place(values)
        given = {**feeds, **{value.name: noise(1) for value in more.get("inputs", [])}}
        given |= {"choice": np.array(True)} if "choice" in given else {}
        model = model_of(of, **more)
        converted(model, scheme, given, tmp_path)
        got = run(tmp_path / "o.onnx", given, ours=True)
        np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-4 * np.abs(want).max(), err_msg=place.__name__)
        signature = [[value.name for value in part] for part in (model.graph.input, model.graph.output)]
        written = onnx.load(tmp_path / "o.onnx").graph
        assert signature == [[value.name for value in part] for part in (written.input, written.output)]
    taken = [node("Neg", ["y"], [f"user{i}"], name=name) for i, name in enumerate(nodes)]
    model = model_of(of, taken, outputs=[info(f"user{i}") for i in range(len(nodes))])
    written = converted(model, scheme, feeds, tmp_path)
    got = run(tmp_path / "o.onnx", feeds, ours=True)
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    every = [each.name for each in written.graph.node]
    assert len(every) == len(set(every))
    assert {each.output[0]: each.name for each in written.graph.node if each.output[0].startswith("user")} == {
        f"user{i}": name for i, name in enumerate(nodes)
    }


def nested() -> ir.Model:
    """An If within an If; each inner value has a name of an outer one or of a sibling."""

    def branch(name: str, nodes) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [info("t")])

    inner = [branch(name, [node(op, ["x"], ["t"], name=name)]) for name, op in (("third", "Abs"), ("fourth", "Neg"))]
    then = branch("p", [node("Relu", ["x"], ["u"], name="first"), node("Exp", ["u"], ["t"], name="second")])
    other = branch("q", [node("If", ["c"], ["t"], name="inner", then_branch=inner[0], else_branch=inner[1])])
    nodes = [
        node("If", ["c"], ["y"], name="outer", then_branch=then, else_branch=other),
        node("Neg", ["y"], ["u"], name="last"),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [info("x", [4]), info("c", [], TensorProto.BOOL)], [info("u")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8))


def value_names(model: ir.Model) -> list[str]:
    return [value.name for each in model.graph.all_nodes() for value in each.outputs]


def test_names_are_unique_over_all_graphs():
    model = nested()
    before = ir.to_proto(model)
    assert settle_names(model)
    names = value_names(model)
    assert len(names) == len(set(names))
    assert [value.name for value in model.graph.outputs] == ["u"]
    assert not settle_names(model)
    for flag in (True, False):
        feeds = {"x": noise(4), "c": np.array(flag)}
        want, got = (
            ort.InferenceSession(proto.SerializeToString()).run(None, feeds) for proto in (before, ir.to_proto(model))
        )
        np.testing.assert_array_equal(got, want)


def test_one_allocator_knows_all_graphs():
    """Whichever of them asks."""
    model = nested()
    settle_names(model)
    graphs = [model.graph, *model.graph.subgraphs()]
    assert len({id(names_of(graph)) for graph in graphs}) == 1
    taken = set(value_names(model))
    given = [names_of(graph).value(name) for graph in graphs for name in ("t", "u", "x", "fresh")]
    assert len(given) == len(set(given))
    assert not taken & set(given)
    assert names_of(graphs[-1]).node("outer") == "outer_1"


def test_a_clone_has_names_of_its_own():
    model = nested()
    settle_names(model)
    first, second = copy_of(model), copy_of(model)
    assert [names_of(each.graph).value("fresh") for each in (first, second, model)] == ["fresh"] * 3
    inner = next(iter(first.graph.subgraphs()))
    assert names_of(inner) is names_of(first.graph)
    assert names_of(inner).value("u") == "u_2"  # the outer one and one of a branch


def test_values_that_were_there_keep_their_names_when_others_add_some():
    model = nested()
    settle_names(model)
    before = value_names(model)
    with names_kept_apart(model):
        graph = model.graph
        for name in ("t", "u", "free"):
            made = ir.node("Abs", [graph.inputs[0]], name="outer")
            made.outputs[0].name = name
            graph.insert_before(graph[0], made)
    names = value_names(model)
    assert len(names) == len(set(names))
    assert set(before) < set(names)
    assert "free" in names
    nodes = [each.name for each in model.graph]
    assert len(nodes) == len(set(nodes))
    assert next(each.name for each in model.graph if each.op_type == "If") == "outer"


def test_functions_have_names_for_themselves():
    body = helper.make_function("local", "F", ["x"], ["y"], [node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 17)])
    graph = helper.make_graph([node("F", ["x"], ["y"], domain="local")], "g", [info("x", [2])], [info("y")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = ir.from_proto(helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=8))
    assert not settle_names(model)
    (function,) = model.functions.values()
    assert names_of(function.graph) is not names_of(model.graph)


def test_new_nodes_and_constants_get_free_names():
    model = nested()
    settle_names(model)
    last = next(each for each in model.graph if each.name == "last")
    names = [add_array(model.graph, "t", noise(1)).name for _ in range(2)]
    assert not set(names) & set(value_names(model))
    inserted = insert_before(last, "Abs", [last.inputs[0]], None, suffix="_abs")
    again = insert_before(last, "Abs", [last.inputs[0]], None, suffix="_abs")
    assert [inserted.name, again.name] == ["u_abs", "u_abs_1"]
    replace(last, inserted)
    assert inserted.name == "u"
    assert names_of(model.graph).value("u_abs") == "u_abs"  # which is free again


def test_arrays_of_one_name_are_shared_where_they_are_equal():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17})
    shared = SharedArrays(graph)
    first, same, other = (shared.add("a", np.float32([value])) for value in (1, 1, 2))
    assert first is same
    assert (first.name, other.name) == ("a", "a_1")
    assert shared.first("a") is first


@pytest.mark.parametrize("opset", [11, 21])
def test_branches_whose_tensors_have_one_name_are_told_apart(tmp_path, opset):
    def branch(name: str, weight: str) -> onnx.GraphProto:
        nodes = [node("MatMul", ["x", weight], ["t"], name=name), node("Softmax", ["t"], ["s"], name=f"{name}_soft")]
        return helper.make_graph(nodes, name, [], [info("s")])

    choice = node("If", ["c"], ["y"], then_branch=branch("first", "A"), else_branch=branch("second", "B"))
    flip = node("Not", ["d"], ["c"])
    graph = helper.make_graph(
        [flip, choice], "g", [info("x", ["N", 64]), info("d", [], TensorProto.BOOL)], [info("y")],
        [constant("A", noise(64, 64)), constant("B", noise(64, 64, seed=1))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    for kept, taken in (("first", "second"), ("second", "first")):
        report = optimize(tmp_path / "m.onnx", Recipe(form="qdq", exclude=(kept,)), tmp_path / "o.onnx")
        assert [name for weight in report.weights for name in weight.nodes] == [taken]


def test_steps_of_libraries_leave_no_name_twice(tmp_path):
    """A fused node has a constant that is called like a value of a branch."""
    for name in ("K_1", "conv_bias", "c_bias", "bn_bias", "val_0", "node_Conv_0", "K_fused", "K_scaled"):
        then = helper.make_graph([node("Neg", ["y"], [name]), node("Abs", [name], ["t"])], "p", [], [info("t")])
        other = helper.make_graph([node("Neg", ["y"], ["t"])], "q", [], [info("t")])
        nodes = [
            node("Conv", ["x", "K"], ["c"], name="conv"),
            node("BatchNormalization", ["c", *"sbmv"], ["y"], name="bn"),
            node("If", ["choice"], ["z"], then_branch=then, else_branch=other),
        ]
        graph = helper.make_graph(
            nodes, "g", [info("x", [1, 2, 4, 4]), info("choice", [], TensorProto.BOOL)], [info("z")],
            [constant("K", noise(3, 2, 1, 1)), *(constant(each, np.abs(noise(3)) + 0.5) for each in "sbmv")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / "m.onnx")
        loaded = storage.load(tmp_path / "m.onnx")
        CleanUp()(loaded)
        RaiseOpset(21)(loaded)
        storage.save(loaded, tmp_path / "o.onnx")
        feeds = {"x": noise(1, 2, 4, 4), "choice": np.array(True)}
        want, got = (run(tmp_path / f"{each}.onnx", feeds)[0] for each in "mo")
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
