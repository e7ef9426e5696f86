"""Running a rewrite of a float graph and comparing what ONNX Runtime computes before and after."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxpress.optimizer import optimize
from onnxpress.optimizer.runtime.session import open_session, session_options

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def run(model, feeds, level=LEVELS[0]):
    options = session_options()
    options.graph_optimization_level = level
    source = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    return open_session(source, options).run(None, feeds)


def emitted(model, recipe, tmp_path):
    """Optimize, check the file, and give what it holds and the report."""
    report = optimize(model, recipe, tmp_path / "out.onnx")
    proto = onnx.load(report.output)
    onnx.checker.check_model(proto, full_check=True)
    return proto, report


def number(b, name, value, shape=()):
    """A constant of one number, or of this shape full of it."""
    return b.constant(name, np.full(shape, value, np.float32))


def op_types(model):
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def rewritten(model, rewrite, feeds, *, depth, changes=True):
    """Apply a pass, and check its outputs at all levels of optimization against those before.

    Args:
        model: The model; it is changed.
        rewrite: The pass.
        feeds: Inputs.
        depth: Roundings on the way of one number, mostly the length of the longest sums: each may be off by half a
            unit in the last place of the largest number about, taken to be that of the outputs.
        changes: What the pass shall return.

    Returns:
        Types of the nodes that are there now.
    """
    wanted = run(model, feeds)
    assert bool(rewrite(model)) is changes
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    for level in LEVELS:
        for before, after in zip(wanted, run(proto.SerializeToString(), feeds, level), strict=True):
            assert before.shape == after.shape
            bound = depth * np.finfo(np.float32).eps * max(np.abs(before).max(), 1e-3)
            np.testing.assert_allclose(after, before, rtol=0, atol=bound)
    return op_types(model)


def real_feeds(name, batch=1):
    """Inputs of a model of the catalogue: dark text-like bars on a light ground, or word numbers."""
    rng = np.random.default_rng(5)
    if name == "minilm":
        ids = rng.integers(1000, 30000, (batch, 24))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    if name == "silero-vad":
        wave = np.sin(np.arange(576) * 0.2)[None].astype(np.float32) * 0.3
        return {"input": wave, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    height, width = {"ppocr-det": (160, 192), "ppocr-rec": (48, 160), "resnet-nsfw": (224, 224)}[name]
    image = np.full((batch, height, width, 3), 0.9) + rng.normal(0, 0.05, (batch, height, width, 3))
    image[:, height // 3 : height // 2, 10 : width - 10 : 7] = -0.8
    if name == "resnet-nsfw":
        return {"input:0": (image * 128).astype(np.float32)}
    return {"x": np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)}
