"""A past and a present in one buffer: the same tokens as apart, and models that are left."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoder_layers import Decoder
from onnx import helper
from onnxpress import Recipe, ep, optimize
from onnxpress.optimizer.conversion.shared_buffers import share_buffers
from sessions import options

SIZE = 16  # tokens of a buffer


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    ir.save(Decoder(layers=2).made, folder / "model.onnx")
    optimize(folder / "model.onnx", Recipe(scheme="float"), folder / "fused.onnx")
    return onnx.load(folder / "fused.onnx")


def opset(model):
    return next(each.version for each in model.opset_import if not each.domain)


def copy_of(model):
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


@pytest.fixture(scope="module")
def shared(fused):
    model = copy_of(fused)
    assert share_buffers(model.graph, opset(model))
    return model


def sessions(model):
    data = model.SerializeToString()
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        yield ort.InferenceSession(data, options(graph_optimization_level=level), providers=["CPUExecutionProvider"])
    yield ep.session(data, options())


def prompts(padding):
    """Two rows of five tokens, of which the first of one are padding, then a token of each at a time."""
    ids = np.random.default_rng(0).integers(3, 20, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[1, :padding] = 0
    for begin, end in ((0, 5), (5, 6), (6, 7), (7, 9)) if padding == 0 else ((0, 5), (5, 6), (6, 7)):
        at = np.maximum(np.cumsum(mask, 1) - 1, 0)
        yield {"input_ids": ids[:, begin:end], "attention_mask": mask[:, :end], "position_ids": at[:, begin:end]}


def apart(session, rows, padding):
    """Logits of each step, each present the next past."""
    past = {
        value.name: np.zeros((rows, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs() if len(value.shape) == 4
    }  # fmt: skip
    for feeds in prompts(padding):
        logits, *present = session.run(None, {name: each[-rows:] for name, each in feeds.items()} | past)
        past = dict(zip(past, present, strict=True))
        yield logits


def together(session, rows, padding):
    """The same in buffers that are bound once, and full of other numbers at first."""
    past = [value for value in session.get_inputs() if len(value.shape) == 4]
    full = [np.full((rows, value.shape[1], SIZE, value.shape[3]), 7, np.float32) for value in past]
    buffers = {value.name: ort.OrtValue.ortvalue_from_numpy(each) for value, each in zip(past, full, strict=True)}
    outputs = [value.name for value in session.get_outputs()]
    for feeds in prompts(padding):
        binding = session.io_binding()
        for name, each in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(each[-rows:]))
        for (name, buffer), present in zip(buffers.items(), outputs[1:], strict=True):
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_output(outputs[0])
        session.run_with_iobinding(binding)
        yield binding.get_outputs()[-1].numpy()


@pytest.mark.parametrize(("rows", "padding"), [(1, 0), (1, 3), (2, 3)])
def test_the_same_logits(fused, shared, rows, padding):
    for before, after in zip(sessions(fused), sessions(shared), strict=True):
        want = list(apart(before, rows, padding))
        for way in (apart, together):
            for got, each in zip(way(after, rows, padding), want, strict=True):
                np.testing.assert_allclose(got, each, atol=2e-5 * np.abs(each).max())


def test_without_it_a_buffer_is_read_to_its_end(fused):
    """What the test above would find."""
    session = next(sessions(fused))
    with pytest.raises(Exception, match="broadcast an axis"):
        list(together(session, 1, 0))


def past_of(model):
    return next(value.name for value in model.graph.input if len(value.type.tensor_type.shape.dim) == 4)


def test_parts_of_a_shape(shared, fused):
    model = copy_of(fused)
    name = past_of(model)
    for number, (start, end) in enumerate([(2, 3), (-2, None), (0, 2), (3, 3)]):
        ends = {} if end is None else {"end": end}
        model.graph.node.append(
            helper.make_node("Shape", [name], [f"part{number}"], f"part{number}", start=start, **ends)
        )
        model.graph.output.append(helper.make_tensor_value_info(f"part{number}", onnx.TensorProto.INT64, [None]))
    model.graph.node.append(helper.make_node("Identity", ["input_ids"], ["past_length"], "past_length"))
    assert share_buffers(model.graph, opset(model))
    session = next(sessions(model))
    feeds = {name: each[:1] for name, each in next(iter(prompts(0))).items()}
    past = {
        value.name: np.zeros((1, value.shape[1], 4, value.shape[3]), np.float32)
        for value in session.get_inputs() if len(value.shape) == 4
    }  # fmt: skip
    feeds["attention_mask"] = np.ones((1, 9), np.int64)
    width = past[name].shape[3]
    parts = session.run([f"part{number}" for number in range(4)], feeds | past)
    assert [part.tolist() for part in parts] == [[4], [4, width], [1, past[name].shape[1]], []]


def other_reader(model):
    model.graph.node.append(helper.make_node("Identity", [past_of(model)], ["other"], "other"))


def inner_reader(model):
    branch = helper.make_graph(
        [helper.make_node("Shape", [past_of(model)], ["inner"])], "branch", [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.INT64, [4])],
    )  # fmt: skip
    node = helper.make_node("If", ["condition"], ["chosen"], "if", then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def present_is_no_output(model):
    kept = [value for value in model.graph.output if "present.0.key" not in value.name]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def no_mask(model):
    kept = [value for value in model.graph.input if value.name != "attention_mask"]
    del model.graph.input[:]
    model.graph.input.extend(kept)


@pytest.mark.parametrize("change", [other_reader, inner_reader, present_is_no_output, no_mask])
def test_what_is_left(fused, change):
    model = copy_of(fused)
    change(model)
    before = model.SerializeToString()
    assert not share_buffers(model.graph, opset(model))
    assert model.SerializeToString() == before


def test_models_before_opset_15_are_left(fused):
    assert not share_buffers(copy_of(fused).graph, 14)
