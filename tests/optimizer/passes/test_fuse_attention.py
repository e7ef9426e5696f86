"""Attention is fused where it is wholly understood, and then means the same."""

from __future__ import annotations

import encoders
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from encoders import HIDDEN, Encoder
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.fuse_attention import FuseAttention
from onnxpress.optimizer.passes.fuse_heads import FuseHeads
from onnxpress.optimizer.passes.separate_layer_norm import SeparateLayerNorm
from sessions import options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def run(model, feeds, level=LEVELS[0]):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), options(graph_optimization_level=level))
    return session.run(None, feeds)[0]


def fused(encoder):
    CleanUp()(encoder.model)
    fuse = FuseAttention()
    fuse(encoder.model)
    return fuse


def fused_heads(encoder):
    CleanUp()(encoder.model)
    fuse = FuseHeads()
    fuse(encoder.model)
    return fuse


def operators(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("mask", ["added", "lowest", "where", "none"])
@pytest.mark.parametrize("scale", ["div", "mul", "query", "both"])
@pytest.mark.parametrize(("make", "products_left"), [(fused, 1), (fused_heads, 4)])
def test_means_the_same(mask, scale, make, products_left):
    shapes, key = ("computed", "twice") if scale in ("query", "mul") else ("constant", "once")
    encoder = Encoder(mask, scale, shapes, key)
    names = [value.name for value in encoder.model.graph.inputs]
    batches = [encoders.feeds(names, seed) for seed in range(2)]
    before = [run(encoder.model, feeds) for feeds in batches]
    fuse = make(encoder)
    assert not fuse.left
    if make is fused:
        ((node, products),) = fuse.fused.items()
        assert [product.name for product in products] == ["query/MatMul", "key/MatMul", "value/MatMul"]
    else:
        (node,) = fuse.cores
    assert node.domain == "com.microsoft"
    found = operators(encoder.model)
    assert found.count("MatMul") == products_left
    assert not {"Softmax", "Transpose", "Reshape"} & set(found)
    for level in LEVELS:
        for feeds, want in zip(batches, before, strict=True):
            got = run(encoder.model, feeds, level)
            where = np.isfinite(want)  # a softmax of -inf alone, where all is padding, gave NaN
            assert where[:2].all()
            np.testing.assert_allclose(got[:2], want[:2], atol=3e-5)
            np.testing.assert_allclose(got[where], want[where], atol=1e-2)  # scores about -10000 are 2^-10 apart
            assert np.isfinite(got).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": "sizes", "shapes": "computed"},
        {"scale": "both", "shapes": "of x", "mask": "none"},
        {"key": "matrices", "scale": "query", "shapes": "as is"},
        {"key": "matrices", "scale": "sizes", "shapes": "as is", "mask": "lowest"},
    ],
    ids=str,
)
def test_as_torch_writes_it(settings):
    """Factors computed of sizes; a width that only the weights tell; keys turned as matrices of three axes."""
    encoder = Encoder(**settings)
    feeds = encoders.feeds([value.name for value in encoder.model.graph.inputs])
    want = run(encoder.model, feeds)
    assert not fused(encoder).left
    assert operators(encoder.model).count("Attention") == 1
    for level in LEVELS:
        np.testing.assert_allclose(run(encoder.model, feeds, level)[:2], want[:2], atol=3e-5)


@pytest.mark.parametrize("packed", ["axes", "picked", "by head", "columns", "slices"])
@pytest.mark.parametrize("settings", [{}, {"scale": "query", "shapes": "computed", "key": "twice"}], ids=str)
def test_heads_of_one_product(packed, settings):
    encoder = Encoder(packed=packed, **settings)
    feeds = encoders.feeds([value.name for value in encoder.model.graph.inputs])
    want = run(encoder.model, feeds)
    fuse = fused(encoder)
    assert not fuse.left
    ((product,),) = fuse.fused.values()
    assert product.name == "qkv/MatMul"
    assert operators(encoder.model).count("MatMul") == 1
    for level in LEVELS:
        np.testing.assert_allclose(run(encoder.model, feeds, level)[:2], want[:2], atol=3e-5)


@pytest.mark.parametrize("read", ["qkv/MatMul", "turned"])
def test_one_product_that_others_read_is_left(read):
    encoder = Encoder(packed="axes")
    made = next(n for n in encoder.model.graph if n.name == read or (read == "turned" and n.op_type == "Split"))
    value = made.outputs[0]
    relu = ir.node("Relu", [value], name="other")
    relu.outputs[0].name = "read"
    encoder.model.graph.insert_after(made, relu)
    encoder.b.output(relu.outputs[0], [None] * (3 if read == "qkv/MatMul" else 5))
    fuse = FuseAttention()
    assert not fuse(encoder.model)
    assert fuse.left["softmax"].startswith("query, key and value: ")


def rename_all(model):
    """Names that say nothing, but for inputs and outputs."""
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        for at, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"v{index}_{at}"


def check_core(encoder, rotations=0, more=()):
    """Fused to MultiHeadAttention with all products left, and the same for several lengths and paddings."""
    names = [value.name for value in encoder.model.graph.inputs]
    batches = [encoders.feeds(names, seed, length) for seed, length in enumerate((encoders.SEQUENCE, *more))]
    before = [run(encoder.model, feeds) for feeds in batches]
    rename_all(encoder.model)
    fuse = fused(encoder)
    assert not fuse.left
    assert not fuse.fused
    (node,) = fuse.cores
    assert (node.op_type, node.domain) == ("MultiHeadAttention", "com.microsoft")
    found = operators(encoder.model)
    assert "Softmax" not in found
    assert found.count("RotaryEmbedding") == rotations
    for level in LEVELS:
        for feeds, want in zip(batches, before, strict=True):
            np.testing.assert_allclose(run(encoder.model, feeds, level)[:2], want[:2], atol=3e-5)
    return node


@pytest.mark.parametrize("scale", ["div", "both"])
@pytest.mark.parametrize(
    ("mask", "lengths"),
    [("scores", (3,)), ("causal", ()), ("relative", (1, 4)), ("window", (1, 5)), ("table", ())],
)
def test_what_else_is_added_to_scores_is_a_bias(mask, lengths, scale):
    node = check_core(Encoder(mask, scale), more=lengths)
    assert len(node.inputs) == 6
    assert node.inputs[4] is None
    assert node.attributes.get_int("num_heads", 0) == encoders.HEADS


def test_masks_of_windows_are_repeated_for_all_images():
    encoder = Encoder("windows")
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((n, encoders.SEQUENCE, HIDDEN)).astype(np.float32)} for n in (2, 6)]
    for feeds in batches:
        feeds["attention_mask"] = np.ones((len(feeds["x"]), encoders.SEQUENCE), np.int64)
    before = [run(encoder.model, feeds) for feeds in batches]
    fuse = fused(encoder)
    assert not fuse.left
    assert operators(encoder.model).count("MultiHeadAttention") == 1
    for level in LEVELS:
        for feeds, want in zip(batches, before, strict=True):
            np.testing.assert_allclose(run(encoder.model, feeds, level), want, atol=3e-5)


def test_a_bias_of_all_entries_is_not_repeated_for_the_batch():
    node = check_core(Encoder("relative"), more=(4,))
    parts = [node.inputs[5].producer()]
    assert parts[0].op_type == "Add"
    assert all(value.producer().op_type != "Expand" for value in parts[0].inputs)


@pytest.mark.parametrize("mask", ["none", "added", "window"])
@pytest.mark.parametrize("packed", ["", "axes", "by head"])
def test_rotated_heads(mask, packed):
    check_core(Encoder(mask, rotated=True, packed=packed), rotations=2, more=(1, 4) if mask != "none" else ())


def test_heads_of_one_product_are_cut_where_its_result_is_needed():
    encoder = Encoder(packed="axes")
    feeds = encoders.feeds([value.name for value in encoder.model.graph.inputs])
    want = run(encoder.model, feeds)
    assert not fused_heads(encoder).left
    assert operators(encoder.model).count("Split") == 1
    np.testing.assert_allclose(run(encoder.model, feeds)[:2], want[:2], atol=3e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"other": True}, "of different tensors"),
        ({"keep_keys": True}, "key: no projection, or others read it"),
    ],
)
def test_left_with_the_reason(settings, reason):
    encoder = Encoder(**settings)
    before = operators(encoder.model)
    fuse = FuseAttention()
    assert not fuse(encoder.model)
    assert not fuse.fused
    assert reason in fuse.left["softmax"]
    assert operators(encoder.model) == before


def test_mask_of_one_entry_for_the_whole_batch_is_a_bias():
    encoder = Encoder()
    encoder.m.shape = ir.Shape([1, "sequence"])
    feeds = encoders.feeds(["x", "attention_mask"])
    feeds["attention_mask"] = feeds["attention_mask"][1:2]
    want = run(encoder.model, feeds)
    assert fused(encoder).cores
    for level in LEVELS:
        np.testing.assert_allclose(run(encoder.model, feeds, level), want, atol=3e-5)


def test_a_bias_of_another_batch_is_left():
    encoder = Encoder("scores")
    encoder.m.shape = ir.Shape(["entries", 1, "sequence", "sequence"])
    fuse = fused(encoder)
    assert "not known to be [batch, heads, queries, keys]" in fuse.left["softmax"]


def test_scores_that_are_more_than_a_sum_are_left():
    encoder = Encoder("table")
    (softmax,) = [node for node in encoder.model.graph if node.op_type == "Softmax"]
    cap = ir.node("Add", [softmax.inputs[0], softmax.inputs[0]], name="doubled")
    cap.outputs[0].name = "twice"
    encoder.model.graph.insert_before(softmax, cap)
    softmax.replace_input_with(0, cap.outputs[0])
    fuse = fused(encoder)
    assert fuse.left == {"softmax": "what is done to the scores is no sum with a mask or a bias"}


def test_heads_rotated_by_other_pairs_than_any_operator_are_left():
    encoder = Encoder("added", rotated=True)
    (neg, *_) = [node for node in encoder.model.graph if node.op_type == "Neg"]
    relu = ir.node("Relu", [neg.inputs[0]], name="relu")
    relu.outputs[0].name = "rectified"
    encoder.model.graph.insert_before(neg, relu)
    neg.replace_input_with(0, relu.outputs[0])
    fuse = fused(encoder)
    assert "by tries: " in fuse.left["softmax"]


def test_refused_products_stay():
    encoder = Encoder()
    fuse = FuseAttention(lambda node: "wanted in float" if node.name == "key/MatMul" else None)
    assert not fuse(encoder.model)
    assert fuse.left == {"softmax": "key: wanted in float"}


def test_comparison_of_tokens_is_the_mask_itself():
    """Tokens are not 0 and 1: the mask must start from what the comparison says of them."""
    encoder = Encoder("where")
    (equal,) = [node for node in encoder.model.graph if node.op_type == "Equal"]
    equal.replace_input_with(1, encoder.whole(1))
    feeds = encoders.feeds(["x", "attention_mask"])
    feeds["attention_mask"] = np.array([[5, 1, 9, 1, 2, 3, 0], [1, 8, 1, 2, 2, 0, 0], [4, 4, 4, 4, 4, 4, 4]])
    want = run(encoder.model, feeds)
    assert fused(encoder).fused
    np.testing.assert_allclose(run(encoder.model, feeds), want, atol=3e-5)


def test_heads_split_along_the_wrong_axis_are_no_heads():
    encoder = Encoder()
    for node in encoder.model.graph:
        if node.op_type == "Reshape" and node.inputs[0].producer().op_type == "Add":
            node.replace_input_with(1, encoder.whole(-1, 1, encoders.HEADS, encoders.WIDTH))
    fuse = FuseAttention()
    assert not fuse(encoder.model)
    assert "tells too little" in fuse.left["softmax"]


def test_nodes_without_their_inputs_are_passed_over():
    for op_type in ("MatMul", "Add", "Reshape", "Transpose"):
        encoder = Encoder()
        for node in encoder.model.graph:
            if node.op_type == op_type:
                node.replace_input_with(0, None)
                break
        assert not FuseAttention()(encoder.model)


def test_residual_sum_is_kept_from_the_fused_normalization():
    encoder = Encoder()
    feeds = encoders.feeds(["x", "attention_mask"])
    want = run(encoder.model, feeds)
    assert SeparateLayerNorm()(encoder.model)
    found = operators(encoder.model)
    assert found.count("Sum") == 1
    assert found.count("Add") == 4  # biases and the mask
    for level in LEVELS:
        np.testing.assert_allclose(run(encoder.model, feeds, level), want, atol=2e-5)
    assert not SeparateLayerNorm()(encoder.model)


def test_weights_are_merged_in_order():
    encoder = Encoder(scale="query")
    weights = {name: value.const_value.numpy() for name, value in encoder.model.graph.initializers.items()}
    (node,) = fused(encoder).fused
    merged = node.inputs[1].const_value.numpy()
    assert merged.shape == (HIDDEN, 3 * HIDDEN)
    expected = np.concatenate([weights[f"{name}.W"] for name in ("query", "key", "value")], axis=1)
    np.testing.assert_allclose(merged, expected, rtol=1e-6)
