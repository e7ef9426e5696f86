"""Models with graphs inside nodes: what of them the execution provider runs, and what is saved."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from contexts import nbits_model
from onnxpress import ep
from onnxpress.optimizer import OnnxpressError, Recipe, compile_context, optimize
from sessions import KNOWS_WHO_RUNS_WHAT, options

SAVES_THEM = pytest.mark.skipif(
    not KNOWS_WHO_RUNS_WHAT, reason="ONNX Runtime 1.23 cannot save such a model on a provider like ours"
)


def with_branches(K, N):
    """The product in both branches of an If, which hold its weight, and outside of it."""
    model = ir.to_proto(nbits_model(K=K, N=N))
    branch = onnx.helper.make_graph([*model.graph.node], "branch", [], [model.graph.output[0]], model.graph.initializer)
    again = onnx.GraphProto.FromString(branch.SerializeToString())
    node = onnx.helper.make_node(
        "If", ["condition"], [model.graph.output[0].name], then_branch=branch, else_branch=again
    )
    outside = ir.to_proto(nbits_model(K=K, N=N)).graph
    for item in (*outside.node, *outside.initializer):
        item.name += "_outside"
    outside.node[0].input[1:3] = [name + "_outside" for name in outside.node[0].input[1:3]]
    outside.node[0].output[0] = outside.node[1].input[0] = "product_outside"
    outside.node[1].output[0] = "outside"
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([node, *outside.node])
    model.graph.initializer.extend(outside.initializer)
    model.graph.input.append(onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    model.graph.output.append(onnx.helper.make_tensor_value_info("outside", onnx.TensorProto.FLOAT, ["m", N]))
    return model


@pytest.mark.parametrize("branch", [True, False])
def test_nodes_in_several_graphs(branch, capfd):
    """All are taken, but for ONNX Runtime 1.23, which would give those of each graph the names of the last."""
    model = with_branches(96, 37).SerializeToString()
    feeds = {"A": np.random.default_rng(0).standard_normal((3, 96), np.float32), "condition": np.array(branch)}
    want = ort.InferenceSession(model, options()).run(None, feeds)
    capfd.readouterr()
    session = ep.session(model, options(log_severity_level=1))
    left = capfd.readouterr().err.count("runs compiled nodes of one graph of a model, and another one has some")
    assert left == (0 if KNOWS_WHO_RUNS_WHAT else 2)
    for a, b in zip(session.run(None, feeds), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def same_once_compiled(folder, model, external=False):
    """The nodes of the context model, which computes in both branches what the model does."""
    path, context = folder / "model.onnx", folder / "model.ctx.onnx"
    onnx.save(model, path, save_as_external_data=external, location="data", size_threshold=0)
    report = compile_context(path)
    assert report.inside
    assert all(line.endswith("inside If, where ONNX Runtime saves no compiled nodes") for line in report.inside)
    rows = np.random.default_rng(0).standard_normal((3, 96), np.float32)
    want, got = (ep.session(each, options()) for each in (path, context))
    for branch in (True, False):
        feeds = {"A": rows, "condition": np.array(branch)}
        for a, b in zip(got.run(None, feeds), want.run(None, feeds), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    proto = onnx.load(context)
    assert [value.name for value in proto.graph.output] == [value.name for value in model.graph.output]
    return sorted(node.op_type for node in proto.graph.node)


@SAVES_THEM
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("as_nodes", [False, True])
def test_constants_of_inner_graphs(tmp_path, external, as_nodes):
    """Large ones, which ONNX Runtime cannot save where they are."""
    model = with_branches(96, 37)
    for attribute in model.graph.node[0].attribute if as_nodes else ():
        for tensor in attribute.g.initializer:
            attribute.g.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        del attribute.g.initializer[:]
    assert same_once_compiled(tmp_path, model, external) == ["EPContext", "If", "Tanh"]


@SAVES_THEM
def test_what_inner_graphs_read_of_the_main_graph(tmp_path):
    """A weight that the main graph's product shares, one of their own, a folded constant, and the product itself."""
    model = with_branches(96, 37).graph
    outside = onnx.helper.make_node
    for attribute in model.node[0].attribute:
        branch, name = attribute.g, model.node[0].output[0]
        branch.node[0].input[1:3] = ["B0_outside", "scales_inside"]
        branch.node[1].output[0] = "before"
        nodes = [("Add", ["before", "folded"], "sum"), ("Add", ["sum", "product_outside"], name)]
        branch.node.extend(outside(op_type, inputs, [output]) for op_type, inputs, output in nodes)
        del branch.initializer[:]
    scales = next(tensor for tensor in model.initializer if tensor.name == "scales0_outside")
    again, row = onnx.TensorProto.FromString(scales.SerializeToString()), np.arange(37, dtype=np.float32)
    again.name = "scales_inside"
    model.initializer.extend([again, onnx.numpy_helper.from_array(row[:, None], "column")])
    branches = model.node[0]
    del model.node[0]
    model.node.extend([outside("Transpose", ["column"], ["folded"]), branches])
    proto = with_branches(96, 37)
    proto.graph.CopyFrom(model)
    same_once_compiled(tmp_path, proto)


@SAVES_THEM
def test_what_inner_graphs_compute_of_constants(tmp_path):
    """ONNX Runtime folds it when it loads the model, and could not save it."""
    model = with_branches(96, 37)
    branch = model.graph.node[0].attribute[0].g
    branch.initializer.append(onnx.numpy_helper.from_array(np.arange(37, dtype=np.float32)[:, None], "column"))
    branch.node.append(onnx.helper.make_node("Transpose", ["column"], ["row"]))
    branch.node[1].output[0] = "before"
    branch.node.append(onnx.helper.make_node("Add", ["before", "row"], [branch.output[0].name]))
    same_once_compiled(tmp_path, model)


@SAVES_THEM
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("how", ["initializer", "node", "computed", "read", "both"])
def test_constants_that_inner_graphs_return(tmp_path, how, external):
    """Larger ones, which have to be there, and which ONNX Runtime would compute ahead of what only moves them."""
    model = with_branches(96, 37)
    values = np.random.default_rng(1).standard_normal((3, 37), np.float32)
    for attribute in model.graph.node[0].attribute[: 2 if how == "both" else 1]:
        branch = attribute.g
        (result,) = branch.output
        del branch.node[:], branch.initializer[:]
        stored = onnx.numpy_helper.from_array(values, result.name)
        if how == "node":
            branch.node.append(onnx.helper.make_node("Constant", [], [result.name], value=stored))
        elif how == "computed":
            stored.name = "stored"
            branch.initializer.append(stored)
            branch.node.append(onnx.helper.make_node("Neg", ["stored"], [result.name]))
        else:
            branch.initializer.append(stored)
    if how == "read":
        for graph in (attribute.g for attribute in model.graph.node[0].attribute):
            negated = onnx.helper.make_tensor_value_info(f"{graph.output[0].name}_n", onnx.TensorProto.FLOAT, ["m", 37])
            graph.node.append(onnx.helper.make_node("Neg", [graph.output[0].name], [negated.name]))
            graph.output.append(negated)
        model.graph.node[0].output.append("second")
        model.graph.output.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, ["m", 37]))
    assert same_once_compiled(tmp_path, model, external) == ["EPContext", "If", "Tanh"]
    proto = onnx.load(tmp_path / "model.ctx.onnx")
    assert [value.name for value in proto.graph.input] == [value.name for value in model.graph.input]
    inner = [a.g for node in proto.graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    assert any(tensor.dims == [3, 37] for graph in inner for tensor in graph.initializer)


@SAVES_THEM
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_weights_that_are_packed_where_they_are_read(tmp_path, scheme):
    """ONNX Runtime makes a product of DequantizeLinear and MatMul, whose weight has to lie in the same graph."""
    b = graphs.Builder(21)
    outside = b.op("MatMul", b.input("A", ["m", 96]), b.constant("outside", graphs.weight(96, 64)), name="first")
    b.output(outside, ["m", 64])
    model = ir.to_proto(b.model(10))
    branches = {}
    for name in ("then_branch", "else_branch"):
        weight = onnx.numpy_helper.from_array(graphs.weight(64, 64, len(name)), f"{name}_weight")
        product = onnx.helper.make_node("MatMul", [outside.name, weight.name], [f"{name}_result"], name=name)
        result = onnx.helper.make_tensor_value_info(f"{name}_result", onnx.TensorProto.FLOAT, ["m", 64])
        branches[name] = onnx.helper.make_graph([product], name, [], [result], [weight])
    model.graph.node.append(onnx.helper.make_node("If", ["condition"], ["result"], **branches))
    model.graph.input.append(onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    model.graph.output.append(onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, ["m", 64]))
    onnx.save(model, tmp_path / "float.onnx")
    optimize(tmp_path / "float.onnx", Recipe(scheme=scheme, form="qdq"), tmp_path / "low.onnx")
    assert same_once_compiled(tmp_path, onnx.load(tmp_path / "low.onnx")) == ["EPContext", "If"]


def test_a_model_of_which_all_is_inside(tmp_path):
    model = with_branches(96, 37)
    del model.graph.node[1:], model.graph.output[1:]
    onnx.save(model, tmp_path / "model.onnx")
    why = r"takes no node; 2 MatMulNBits: inside If, where .* saves no compiled nodes; 2 Tanh: inside If"
    with pytest.raises(OnnxpressError, match=why):
        compile_context(tmp_path / "model.onnx")
