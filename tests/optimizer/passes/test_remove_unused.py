"""What nothing reads leaves all graphs, and with it the float form of rounded weights of branches and loops."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxpress.optimizer import optimize
from onnxpress.optimizer.model_io import storage
from onnxpress.optimizer.passes.remove_unused import remove_unused
from onnxpress.optimizer.settings.recipe import Recipe

SIZE = [64, 64]


def stored(b, index):
    return b.constant(f"W{index}", graphs.weight(64, 64, index))


def constant_node(b, index):
    return b.op("Constant", value=ir.tensor(graphs.weight(64, 64, index), name=f"W{index}"))


def turned(b, index):
    return b.op("Transpose", stored(b, index), perm=[1, 0])


def cast(b, index):
    half = b.constant(f"W{index}", graphs.weight(64, 64, index).astype(np.float16))
    return b.op("Cast", half, to=1)


def reshaped(b, index):
    flat = b.constant(f"W{index}", graphs.weight(64, 64, index).reshape(-1))
    return b.op("Reshape", flat, b.constant(f"shape{index}", np.array(SIZE)))


def branches(weight):
    """An If with a product in both branches."""
    b = graphs.Builder(21)
    x, chosen = b.input("x", ["n", 64]), b.input("chosen", [], ir.DataType.BOOL)
    inner = []
    for index in range(2):
        inner.append(graphs.Builder(21))
        inner[-1].output(inner[-1].op("MatMul", x, weight(inner[-1], index), name=f"product_{index}"), ["n", 64])
    b.output(b.op("If", chosen, then_branch=inner[0].graph, else_branch=inner[1].graph, name="choice"), ["n", 64])
    return b.model()


def body(weight):
    """A Scan with a product in its body, whose weight is outside."""
    b, inner = graphs.Builder(21), graphs.Builder(21)
    start, x = b.input("start", [64]), b.input("x", ["n", 64])
    outer = weight(b, 0)
    state, row = inner.input("state", [64]), inner.input("row", [64])
    total = inner.op("Add", inner.op("MatMul", row, outer, name="product"), state)
    inner.output(total, [64])
    inner.output(inner.op("Identity", total), [64])
    b.output(b.op("Scan", start, x, body=inner.graph, num_scan_inputs=1, outputs=2)[1], ["n", 64])
    return b.model()


def large_floats(graph):
    """Sizes of what is stored in float, in all graphs."""
    found = [t for t in graph.initializer if t.data_type in (1, 10) and np.prod(t.dims) >= 4096]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and attribute.t.data_type == 1:
                found += [attribute.t] if np.prod(attribute.t.dims) >= 4096 else []
            found += large_floats(attribute.g)
    return [tensor.name for tensor in found]


@pytest.mark.parametrize("clean_up", [True, False])
@pytest.mark.parametrize("weight", [stored, constant_node, turned, cast, reshaped], ids=lambda weight: weight.__name__)
@pytest.mark.parametrize("build", [branches, body], ids=lambda build: build.__name__)
@pytest.mark.parametrize(
    "recipe",
    [Recipe(scheme="int4"), Recipe(scheme="int4", form="qdq"), Recipe(scheme="fp8"), Recipe(scheme="int8-dynamic")],
    ids=lambda recipe: f"{recipe.scheme}-{recipe.form}",
)
def test_the_float_form_leaves_the_file(recipe, build, weight, clean_up, tmp_path):
    storage.save(build(weight), tmp_path / "m.onnx")
    report = optimize(tmp_path / "m.onnx", recipe_with(recipe, clean_up), tmp_path / "out.onnx")
    assert sum(report.rewritten.values()) == (2 if build is branches else 1)
    assert not any("float" in warning for warning in report.warnings)
    proto = onnx.load(tmp_path / "out.onnx")
    assert large_floats(proto.graph) == []
    onnx.checker.check_model(proto, full_check=True)


def recipe_with(recipe, clean_up):
    import dataclasses

    return dataclasses.replace(recipe, clean_up=clean_up)


def test_inputs_and_outputs_of_graphs_stay():
    b = graphs.Builder()
    overridable, result, unused = (b.constant(name, np.ones(2, np.float32)) for name in ("given", "result", "unused"))
    b.graph.inputs.append(overridable)
    b.graph.outputs.append(result)
    model = b.model()
    assert remove_unused(model)
    assert list(model.graph.initializers) == ["given", "result"]
    assert not remove_unused(model)
    assert unused.name == "unused"


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "sparse"])
def test_a_weight_that_somebody_else_reads_is_told_with_the_reader(scheme, tmp_path):
    b = graphs.Builder()
    x = b.input("x", ["n", 64])
    weight = b.op("Mul", b.constant("W", graphs.weight(64, 64)), b.constant("k", np.float32(2)))
    b.output(b.op("MatMul", x, weight, name="product"), ["n", 64])
    b.output(b.op("ReduceSum", b.graph.initializers["W"], name="norm", keepdims=0), [])
    report = optimize(b.model(), Recipe(scheme=scheme, clean_up=False), tmp_path / "out.onnx")
    assert "W also stays in float: node 'norm' (ReduceSum) reads it" in report.warnings


def test_an_output_is_told():
    b = graphs.Builder()
    weight = b.constant("W", graphs.weight(64, 64))
    b.output(b.op("MatMul", b.input("x", ["n", 64]), weight), ["n", 64])
    b.graph.outputs.append(weight)
    assert optimize(b.model(), Recipe(scheme="int8")).warnings == ("W also stays in float: it is an output",)


def never_taken():
    """An If whose condition is constant; its other branch reads W1 and, made outside, x W2."""
    model = branches(stored)
    main, node = model.graph, next(iter(model.graph))
    condition = main.inputs.pop(1)
    condition.const_value = ir.tensor(np.array(True))
    main.register_initializer(condition)
    b = graphs.Builder(21)
    other = node.attributes["else_branch"].as_graph()
    outer = b.op("MatMul", main.inputs[0], stored(b, 2), name="outer")
    other.node(0).replace_input_with(0, outer)
    weight, product = b.graph.initializers.pop("W2"), outer.producer()
    b.graph.remove(product)
    main.register_initializer(weight)
    main.insert_before(node, product)
    main.register_initializer(other.initializers.pop("W1"))
    return model


@pytest.mark.parametrize("scheme", ["int4", "int8-dynamic", "fp8"])
def test_what_only_a_branch_that_is_never_taken_reads_leaves_the_file(scheme, tmp_path):
    report = optimize(never_taken(), Recipe(scheme=scheme), tmp_path / "out.onnx")
    assert report.rewritten == {"MatMul": 1}
    proto = onnx.load(tmp_path / "out.onnx")
    assert not any(tensor.name.startswith(("W1", "W2")) for tensor in proto.graph.initializer)
    assert large_floats(proto.graph) == []


def test_a_node_that_goes_reads_nothing_from_inside():
    model = never_taken()
    node = next(node for node in model.graph if node.op_type == "If")
    model.graph.outputs.clear()
    assert remove_unused(model)
    assert list(model.graph) == []
    assert not model.graph.initializers
    assert list(node.attributes["else_branch"].as_graph().node(0).inputs) == [None, None]
