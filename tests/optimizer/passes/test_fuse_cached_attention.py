"""The attention of decoders is fused however it is written, and then means the same for padded rows, too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoder_layers import Decoder, feeds, renamed
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.fuse_cached_attention import FuseCachedAttention
from onnxpress.optimizer.passes.name_nodes import NameNodes
from onnxpress.optimizer.passes.recognise_rms_norms import RecogniseRmsNorms
from sessions import options

CASES = ((1, 5, 0, [0]), (2, 6, 0, [0, 3]), (2, 1, 7, [0, 4]), (1, 4, 6, [0]))
"""Batch, new tokens, past, and how many tokens each row is padded by on the left."""
FORMS = {
    "llama": {"layers": 2},
    "bias": {"bias": True, "norms": "reciprocal", "shared": 4, "mask": "added", "scale": "both"},
    "norms before": {"head_norms": "before", "shared": 1, "mask": "window"},
    "norms after": {"head_norms": "after", "cap": 1.5, "repeat": "tile"},
    "neighbours": {"rotary": "pairs", "mask": "chosen"},
    "angles picked": {"rotary": "picked"},
    "elements": {"rotary": "elements"},
    "not doubled": {"rotary": "once", "products": "packed"},
    "by head": {"products": "by head", "shared": 4, "rotary": "part", "bias": True, "norms": "layer"},
    "table": {"rotary": "table", "scale": "sizes"},
    "sizes of parts": {"rotary": "part", "scale": "sizes", "norms": "layer", "layers": 2},
    "counted": {"rotary": "range", "cap": 1.5, "scale": "both"},
    "groups": {"products": "groups", "shared": 4, "rotary": "part", "scale": "masked", "mask": "added"},
    "unsqueezed": {"products": "unsqueezed", "shared": 1, "bias": True, "rotary": "none", "scale": "both"},
    "two masks": {"mask": "table", "scale": "none", "rotary": "none", "shared": 4, "layers": 3},
    "distances": {"mask": "chosen", "distance": "table", "rotary": "none", "products": "packed", "layers": 2},
    "counted distances": {"distance": "counted", "rotary": "none", "repeat": "tile", "scale": "masked"},
    "flat": {"flat": True, "distance": "counted", "mask": "added", "rotary": "none", "shared": 4, "layers": 2},
    "flat and rotated": {"flat": True, "cap": 1.5, "scale": "both"},
    "no rotation": {"rotary": "none", "norms": "layer", "products": "packed"},
}


LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)


def run(model, fed, level=LEVELS[0]):
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options(graph_optimization_level=level))
    return session.run(None, fed)


def fused(model, norms=True):
    NameNodes()(model)
    CleanUp()(model)
    if norms:
        RecogniseRmsNorms()(model)
    fuse = FuseCachedAttention()
    fuse(model)
    return fuse


def operators(model):
    return [node.op_type for node in model.graph]


def same(model, others, case, level=LEVELS[0]):
    """Real tokens' logits, and the keys and values kept of them, as they were."""
    _, sequence, past, padding = case
    fed = feeds(model, *case)
    real = np.arange(past + sequence) >= np.array(padding)[:, None]
    for want, got in zip(others(fed), run(model, fed, level), strict=True):
        assert want.shape == got.shape
        assert np.isfinite(got).all()
        rows = real[:, past:] if want.ndim == 3 else real
        turned = (each if want.ndim == 3 else each.transpose(0, 2, 1, 3) for each in (got, want))
        np.testing.assert_allclose(*(each[rows] for each in turned), atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_means_the_same(form):
    model = Decoder(**FORMS[form]).made
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options())
    signature = [(value.name, value.dtype, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
    fuse = fused(model)
    assert not fuse.left
    assert len(fuse.fused) == FORMS[form].get("layers", 1)
    rotated = FORMS[form].get("rotary") != "none"
    assert operators(model).count("RotaryEmbedding") == 2 * rotated * len(fuse.fused)
    assert not {"Softmax", "Tile", "Tanh", "IsNaN", "Neg"} & set(operators(model))
    assert [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == signature
    for case, level in zip(CASES, LEVELS * 2, strict=True):
        same(model, lambda fed: session.run(None, fed), case, level)


@pytest.mark.parametrize("form", ["two masks", "distances", "flat"])
def test_layers_share_their_mask(form):
    model = Decoder(**FORMS[form]).made
    fuse = fused(model)
    assert len({id(node.inputs[10]) for node in fuse.fused}) == 1
    assert len({id(node.inputs[6]) for node in fuse.fused}) == 1
    fed = {value.name for node in model.graph if node.op_type in ("Shape", "Transpose") for value in node.inputs}
    assert not any(name.startswith("present") for name in fed)


@pytest.mark.parametrize("form", ["llama", "by head", "groups", "unsqueezed", "two masks", "distances", "flat"])
def test_names_do_not_matter(form):
    plain, other = Decoder(**FORMS[form]).made, renamed(Decoder(**FORMS[form]).made)
    fused(plain)
    assert not fused(other).left
    assert sorted(operators(other)) == sorted(operators(plain))
    fed = feeds(plain, *CASES[1])
    for want, got in zip(run(plain, fed), run(other, fed), strict=True):
        np.testing.assert_array_equal(got, want)


def test_sizes_may_have_a_name_for_each_input():
    decoder = Decoder(layers=2)
    session = ort.InferenceSession(ir.to_proto(decoder.made).SerializeToString(), options())
    for at, value in enumerate(decoder.graph.inputs):
        new = [f"s{at}_{axis}" if not isinstance(dim, int) else dim for axis, dim in enumerate(value.shape)]
        if value.name != "attention_mask":
            new[0] = "b"
        value.shape = ir.Shape(["b", "s", *new[2:]] if value.name in ("input_ids", "position_ids") else new)
    for value in (*decoder.graph.outputs, *(value for node in decoder.graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([
                {"batch": "b", "sequence": "s"}.get(dim.value) if isinstance(dim, ir.SymbolicDim) else dim
                for dim in value.shape
            ])  # fmt: skip
    assert len(fused(decoder.made).fused) == 2
    for case in CASES:
        same(decoder.made, lambda fed: session.run(None, fed), case)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"mask": "future"}, "queries see keys behind them"),
        ({"mask": "types"}, "queries see keys behind them"),
        ({"mask": "none"}, "no mask: queries see keys behind them"),
        ({"mask": "future", "distance": "counted"}, "queries see keys behind them"),
        ({"mask": "future", "distance": "counted", "flat": True}, "queries see keys behind them"),
        ({"reads": True}, "others read the keys or values that are kept for later"),
        ({"width": 12}, "heads of 12 numbers, which is no multiple of 8"),
        ({"head_norms": "before"}, "heads are not of one tensor, rotated by one table of cosines and one of sines"),
    ],
)
def test_what_is_left_has_its_reason(form, reason):
    model = Decoder(**form).made
    before = operators(model)
    fuse = fused(model, norms=False)
    assert fuse.left == {"0/softmax": reason}
    assert not fuse.fused
    assert "GroupQueryAttention" not in operators(model)
    assert before.count("Softmax") == operators(model).count("Softmax")


def test_old_opsets_and_other_types_are_left():
    model = Decoder().made
    model.graph.opset_imports[""] = 12
    fuse = FuseCachedAttention()
    fuse(model)
    assert fuse.left == {"0/softmax": "opset 12 is older than 13"}
    model = Decoder().made
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    softmax.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    fuse = FuseCachedAttention()
    fuse(model)
    assert fuse.left == {"0/softmax": "computes on other numbers than float32"}


def test_a_number_that_counts_in_place_of_scores_is_left():
    decoder = Decoder(mask="chosen")
    (softmax,) = (node for node in decoder.graph if node.op_type == "Softmax")
    softmax.inputs[0].producer().replace_input_with(2, decoder.one(-20.0))
    assert set(fused(decoder.made).left.values()) == {"scores are chosen or else something that is no low number"}


def test_distances_alone_are_left():
    decoder = Decoder(mask="chosen", distance="table")
    (softmax,) = (node for node in decoder.graph if node.op_type == "Softmax")
    softmax.replace_input_with(0, softmax.inputs[0].producer().inputs[1])
    assert set(fused(decoder.made).left.values()) == {"what is added to the scores is no [batch, heads, queries, keys]"}


def test_scores_that_are_split_otherwise_are_left():
    decoder = Decoder(flat=True, mask="added", rotary="none")
    (split,) = (node for node in decoder.graph if node.name == "0/split")
    batch, heads, sequence, rest = split.inputs[1].producer().inputs
    other = ir.node("Concat", [heads, batch, sequence, rest], attributes={"axis": 0}, name="other")
    other.outputs[0].name = "other"
    decoder.graph.insert_before(split, other)
    split.replace_input_with(1, other.outputs[0])
    assert set(fused(decoder.made).left.values()) == {"scores are split into other axes than batch and heads"}


def test_masks_that_are_unlike_far_from_each_other_stay_apart():
    """All that is tried is near."""
    decoder = Decoder(mask="table", layers=2, rotary="none", scale="none", shared=4)
    (table,) = (value for name, value in decoder.graph.initializers.items() if name == "near")
    every = np.tri(*table.shape.numpy()[2:], dtype=bool)
    cuts = [node for node in decoder.graph if node.op_type == "Slice" and node.inputs[0] is table]
    for cut, far in zip(cuts, (20, 30), strict=True):
        near = decoder.constant(f"near_{far}", (every & ~np.tri(len(every), k=-far, dtype=bool))[None, None])
        cut.replace_input_with(0, near)
    session = ort.InferenceSession(ir.to_proto(decoder.made).SerializeToString(), options())
    fuse = fused(decoder.made)
    assert len({id(node.inputs[10]) for node in fuse.fused}) == 2
    same(decoder.made, lambda fed: session.run(None, fed), (2, 40, 0, [0, 3]))


def test_angles_that_differ_within_a_pair_are_left():
    decoder = Decoder(rotary="table")
    table = decoder.graph.initializers["cos"]
    table.const_value = ir.tensor(np.random.default_rng(0).random(table.shape.numpy(), np.float32), name="cos")
    assert set(fused(decoder.made).left.values()) == {"the numbers of a pair are rotated by different angles"}


def test_a_past_of_a_fixed_size_is_left():
    decoder = Decoder()
    for value in decoder.graph.inputs[3:]:
        value.shape = ir.Shape(["batch", 2, 8, 16])
    assert set(fused(decoder.made).left.values()) == {"the past has a fixed size"}


@pytest.mark.parametrize("parts", [["key"], ["value"], ["key", "value"]])
def test_what_is_between_heads_and_past_stays(parts):
    decoder = Decoder(rotary="none")
    for part in parts:
        (kept,) = (
            node for node in decoder.graph if node.op_type == "Concat" and node.inputs[0].name == f"past.0.{part}"
        )
        relu = ir.node("Relu", [kept.inputs[1]], name=f"clamp {part}")
        relu.outputs[0].name = f"clamped {part}"
        decoder.graph.insert_before(kept, relu)
        kept.replace_input_with(1, relu.outputs[0])
    session = ort.InferenceSession(ir.to_proto(decoder.made).SerializeToString(), options())
    fuse = fused(decoder.made)
    assert len(fuse.fused) == 1
    assert {"Relu", "GroupQueryAttention"} <= set(operators(decoder.made))
    for case in CASES:
        same(decoder.made, lambda fed: session.run(None, fed), case)


@pytest.mark.parametrize(("form", "where"), [("llama", "Reshape"), ("no rotation", "GroupQueryAttention")])
def test_an_empty_batch_is_refused(form, where):
    """ONNX Runtime's operator would end the process."""
    model = Decoder(**FORMS[form]).made
    fused(model)
    with pytest.raises(Exception, match=f"running {where} node"):
        run(model, feeds(model, 0, 3, 2, []))
