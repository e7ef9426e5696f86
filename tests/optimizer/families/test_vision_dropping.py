"""Patches that leave a vision transformer on the way: norms are ahead, there is no mask, and the class token stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from dropped_tokens import Naive
from encoders import HIDDEN
from onnxpress.custom_ops import register
from onnxpress.optimizer import Recipe, optimize
from onnxpress.optimizer.errors import OnnxpressError
from onnxpress.optimizer.passes.base import run_all
from onnxpress.optimizer.passes.clean_up import CleanUp
from onnxpress.optimizer.passes.drop_tokens import DropTokens
from onnxpress.optimizer.passes.fold_affine import FoldAffine
from onnxpress.optimizer.passes.fuse_attention import FuseAttention
from onnxpress.optimizer.passes.recognise_activations import RecogniseActivations
from onnxpress.optimizer.passes.recognise_norms import RecogniseNorms
from sessions import options
from vision_encoders import PATCHES, TOKENS, VisionModel

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
POOLED, SIZES = ("class", "mean", "tokens"), ("known", "open")


def run(model, feeds, ours=False, level=LEVELS[1]):
    chosen = options(graph_optimization_level=level)
    if ours:
        register(chosen)
    return ort.InferenceSession(str(model) if not isinstance(model, bytes) else model, chosen).run(None, feeds)[0]


def output_of(case: VisionModel, tokens: np.ndarray) -> np.ndarray:
    """What the model makes of one image's tokens behind the last layer, in NumPy."""
    get = {name: value.const_value.numpy() for name, value in case.model().graph.initializers.items()}
    d = tokens - tokens.mean(1, keepdims=True)
    y = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-12) * get["last/norm.scale"] + get["last/norm.shift"]
    if case.pooled == "tokens":
        return y
    return (y[0] if case.pooled == "class" else y[1:].mean(0)) @ get["last/head.W"].T + get["last/head.b"]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("pooled", POOLED)
def test_as_images_alone(pooled, sizes):
    """In float32, so that only what dropping does is told apart; for any number of images."""
    case, lengths = VisionModel(layers=4, pooled=pooled, sizes=sizes), (0.6, 12, 9)
    model, fuse = case.model(), FuseAttention()
    run_all(model, (CleanUp(), RecogniseActivations(), RecogniseNorms(), fuse))
    assert len(fuse.fused) == 4
    DropTokens(lengths, list(fuse.fused))(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    dropped, naive = ir.to_proto(model).SerializeToString(), Naive(case)
    everything = ir.to_proto(case.model()).SerializeToString()
    for count in (1, 3):
        feeds = case.images(count)
        want = [output_of(case, naive(x, lengths)[-1]) for x in case.embedded(feeds["pixel_values"])]
        for level in LEVELS:
            np.testing.assert_allclose(run(dropped, feeds, level=level), want, atol=5e-5)
    assert np.abs(run(everything, feeds) - want).max() > 1e-2


def test_the_model_of_these_tests_is_the_one_in_numpy():
    case = VisionModel(layers=2)
    feeds = case.images(2)
    got = run(ir.to_proto(case.model()).SerializeToString(), feeds)
    want = [output_of(case, Naive(case)(x, ())[-1]) for x in case.embedded(feeds["pixel_values"])]
    np.testing.assert_allclose(got, want, atol=5e-5)


def test_one_product_for_queries_keys_and_values_is_as_three():
    packed = VisionModel(layers=3, packed=True).model()
    apart = VisionModel(layers=3).model()
    for name, value in apart.graph.initializers.items():
        scope, _, part = name.rpartition("/")
        source = {"q": 0, "key": 1, "v2": 2}.get(part.partition(".")[0])
        if source is not None:
            whole = packed.graph.initializers[f"{scope}/qkv.{part.partition('.')[2]}".lstrip("/")].const_value.numpy()
            array = whole[..., source * HIDDEN : (source + 1) * HIDDEN]
            value.const_value = ir.tensor(array, name=name)
    feeds, made = VisionModel().images(3), []
    for model in (packed, apart):
        fuse = FuseAttention()
        run_all(model, (CleanUp(), RecogniseActivations(), RecogniseNorms(), fuse))
        DropTokens((0.6, 12), list(fuse.fused))(model)
        made.append(run(ir.to_proto(model).SerializeToString(), feeds))
    np.testing.assert_allclose(*made, atol=5e-5)


@pytest.mark.parametrize("fuse_layers", [False, True])
@pytest.mark.parametrize("pooled", POOLED)
def test_in_int8(pooled, fuse_layers, tmp_path):
    case, path = VisionModel(layers=4, pooled=pooled), tmp_path / "out.onnx"
    recipe = Recipe(scheme="int8-dynamic", lengths="0.6,12", fuse_layers=fuse_layers)
    report = optimize(case.model(), recipe, path)
    assert report.details["attention"]["left"] == {}
    assert len([node for node in onnx.load(path).graph.node if node.op_type == "EncoderLayer"]) == 4 * fuse_layers
    feeds, naive = case.images(3), Naive(case)
    want = np.stack([output_of(case, naive(x, (0.6, 12))[-1]) for x in case.embedded(feeds["pixel_values"])])
    got = run(path, feeds, ours=True)
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


def test_lengths_with_each_image(tmp_path):
    case, path = VisionModel(layers=3, pooled="tokens"), tmp_path / "out.onnx"
    optimize(case.model(), Recipe(scheme="int8-dynamic", lengths="input", fuse_layers=True), path)
    feeds = case.images(2)
    everything = run(path, feeds, ours=True)
    few = run(path, {**feeds, "lengths": np.array([10, 8], np.float32)}, ours=True)
    assert few.shape == everything.shape == (2, TOKENS, HIDDEN)
    assert np.abs(few - everything).max() > 0.01
    all_by_number = run(path, {**feeds, "lengths": np.array([PATCHES + 1] * 2, np.float32)}, ours=True)
    np.testing.assert_allclose(all_by_number, everything, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, "0.6"])
def test_sums_that_are_scaled_before(lengths, tmp_path):
    """As in CaiT and DINOv2: the scale is one of the product before it."""
    case, path = VisionModel(layers=2, layer_scale=True), tmp_path / "out.onnx"
    report = optimize(case.model(), Recipe(scheme="int8-dynamic", lengths=lengths, fuse_layers=True), path)
    assert report.details["layers"] == {"fused": 2, "left": {}}
    feeds, want = case.images(3), case.model()
    if lengths is not None:
        fuse = FuseAttention()
        run_all(want, (CleanUp(), RecogniseActivations(), RecogniseNorms(), FoldAffine(all_chains=False), fuse))
        DropTokens((0.6,), list(fuse.fused))(want)
    want = run(ir.to_proto(want).SerializeToString(), feeds)
    assert np.linalg.norm(run(path, feeds, ours=True) - want) < 0.1 * np.linalg.norm(want)


def test_sums_that_are_scaled_by_what_a_product_cannot_take_are_left_with_the_reason(tmp_path):
    case = VisionModel(layers=2, layer_scale=True)
    model = case.model()
    for value in model.graph.initializers.values():
        if "gamma" in (value.name or ""):
            scale = np.broadcast_to(value.const_value.numpy(), (TOKENS, HIDDEN)) * np.linspace(0.5, 1, TOKENS)[:, None]
            value.const_value = ir.tensor(scale.astype(np.float32), name=value.name)
            value.shape = value.const_value.shape
    with pytest.raises(OnnxpressError, match=r"one behind the other: .* is not added to the input of the layer"):
        optimize(model, Recipe(scheme="int8-dynamic", lengths="0.5"), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
