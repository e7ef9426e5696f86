"""What a model says beside what it computes is in the converted one, or a warning tells that it is not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import weight
from onnx import TensorProto, helper, numpy_helper
from onnxpress.optimizer import Calibration, Recipe, optimize
from schemes import ROUNDING

SCHEMES = [*ROUNDING, "int3", "fp8"]


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def say(thing):
    """In all the ways that a part of a model has."""
    thing.doc_string = f"about {thing.name}"
    thing.metadata_props.add(key="k", value=thing.name)


def annotated(opset=17, location=None):
    """Relu, MatMul and Add, everything with words of its own."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="relu"),
        helper.make_node("MatMul", ["h", "W"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"], name="sum"),
    ]
    ends = [info("x", ["n", 64]), info("y", ["n", 64])]
    constants = [numpy_helper.from_array(weight(64, 64), "W"), numpy_helper.from_array(weight(1, 64, 1)[0], "b")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants, value_info=[info("h", ["n", 64])])
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        say(part)
    graph.input[0].type.denotation = "TENSOR"
    graph.output[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model.doc_string, model.domain, model.model_version, model.producer_name = "all", "org.example", 3, "me"
    model.metadata_props.add(key="k", value="model")
    return model


def converted(model, scheme, tmp_path, **settings):
    onnx.save(model, tmp_path / "m.onnx")
    data = Calibration([{"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}])
    recipe = Recipe(scheme=scheme, **settings)
    report = optimize(tmp_path / "m.onnx", recipe, calibration=data if "static" in scheme else None)
    return onnx.load(report.output), " ".join(report.warnings)


def words(part):
    return part.doc_string, {entry.key: entry.value for entry in part.metadata_props}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kept_or_told(tmp_path, scheme):
    model = annotated()
    made, told = converted(model, scheme, tmp_path)
    for before, after in ((model, made), (model.graph, made.graph)):
        said = words(after)
        assert said[0] == before.doc_string
        assert words(before)[1].items() <= said[1].items()
    assert (made.domain, made.model_version, made.producer_name) == ("org.example", 3, "me")
    assert made.graph.input == model.graph.input
    assert words(made.graph.output[0]) == words(model.graph.output[0])
    assert made.graph.output[0].type == model.graph.output[0].type
    nodes = {node.name: words(node) for node in made.graph.node}
    for node in model.graph.node:
        text, metadata = nodes.get(node.name, ("", {}))
        if text != node.doc_string or metadata.get("k") != node.name:
            assert f"node {node.name}" in told
    assert nodes["relu"][0] == "about relu"
    assert nodes["product"][0] == "about product" or nodes["sum"][0] == "about sum"
    assert "initializer W" in told


def test_external_constants_keep_theirs(tmp_path):
    model = annotated()
    second = numpy_helper.from_array(weight(64, 64, 2), "V")
    say(second)
    model.graph.initializer.append(second)
    model.graph.node.append(helper.make_node("MatMul", ["y", "V"], ["z"], name="kept"))
    model.graph.output.append(info("z", ["n", 64]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    report = optimize(tmp_path / "m.onnx", Recipe(exclude=("kept",)))
    kept = {each.name: words(each) for each in onnx.load(report.output).graph.initializer}
    assert kept["V"] == ("about V", {"k": "V"})


@pytest.mark.parametrize("scheme", ["int4", "int8-static"])
def test_what_no_output_can_hold_is_told(tmp_path, scheme):
    model = annotated()
    model.training_info.add().algorithm.name = "algorithm"
    note = model.graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="W")
    made, told = converted(model, scheme, tmp_path)
    assert not made.training_info
    assert "training_info is not kept" in told
    assert not made.graph.quantization_annotation
    assert "quantization_annotation is not kept of h" in told


def test_annotations_of_what_is_there_stay(tmp_path):
    model = annotated()
    note = model.graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    made, told = converted(model, "int4", tmp_path)
    assert made.graph.quantization_annotation == model.graph.quantization_annotation
    assert "annotation" not in told


def test_words_of_functions_that_are_inlined(tmp_path):
    model = annotated()
    body = [helper.make_node("Relu", ["a"], ["c"], name="inner")]
    function = helper.make_function("own", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    function.doc_string = "what it does"
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(helper.make_node("Twice", ["x"], ["h"], name="call", domain="own"))
    _, told = converted(model, "int4", tmp_path)
    assert "doc_string is not kept of function own::Twice" in told


def test_branches_that_use_the_same_names_keep_their_own(tmp_path):
    branches = []
    for index in range(2):
        node = helper.make_node("MatMul", ["x", f"W{index}"], ["o"], name="product")
        node.doc_string = f"branch {index}"
        branches.append(helper.make_graph([node], f"b{index}", [], [info("o", ["n", 64])]))
    choice = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1])
    constants = [numpy_helper.from_array(weight(64, 64, index), f"W{index}") for index in range(2)]
    ends = [info("x", ["n", 64]), info("c", [], TensorProto.BOOL)], [info("y", ["n", 64])]
    graph = helper.make_graph([choice], "graph", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    made, told = converted(model, "int4", tmp_path)
    inner = {attribute.name: attribute.g.node[-1] for attribute in made.graph.node[-1].attribute}
    assert [inner[name].doc_string for name in ("then_branch", "else_branch")] == ["branch 0", "branch 1"]
    assert "not kept" not in told


@pytest.mark.skipif(not hasattr(onnx.ModelProto(), "configuration"), reason="onnx before 1.18 has no plans for devices")
def test_plans_for_devices(tmp_path):
    model = annotated()
    model.ir_version = 11
    model.configuration.add(name="two", num_devices=2)
    for node, tensor in zip(model.graph.node, ("x", "W", "p"), strict=True):
        plan = node.device_configurations.add(configuration_id="two", pipeline_stage=1)
        plan.sharding_spec.add(tensor_name=tensor)
    made, told = converted(model, "int4", tmp_path)
    assert [each.name for each in made.configuration] == ["two"]
    (relu,) = (node for node in made.graph.node if node.name == "relu")
    assert relu.device_configurations == model.graph.node[0].device_configurations
    assert "device_configurations" in told
    assert "product" in told
