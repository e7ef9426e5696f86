"""Whole models in PyTorch beside ONNX Runtime, as exporters wrote them and cleaned up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_layers import Decoder, feeds
from onnxpress import models
from onnxpress.optimizer.graph.constants import is_constant, mark_constants
from onnxpress.optimizer.passes.clean_up import CleanUp
from rewrites import real_feeds, run

pytest.importorskip("torch")

import torch
from onnxpress.optimizer.gradients.graph import TorchGraph

FORMS = [
    {}, {"layers": 3, "mask": "added", "repeat": "tile"}, {"rotary": "pairs", "norms": "layer", "bias": True},
    {"rotary": "table", "norms": "reciprocal", "products": "packed"}, {"rotary": "range", "mask": "window"},
    {"rotary": "part", "mask": "chosen", "cap": 5.0}, {"rotary": "once", "head_norms": "before", "scale": "both"},
    {"mask": "future", "scale": "sizes", "products": "by head", "shared": 4}, {"rotary": "none", "mask": "none"},
]  # fmt: skip


def compare(model, given):
    wanted = run(model, given)
    mark_constants(model)
    trained = [node.name for node in model.graph if node.op_type == "MatMul" and is_constant(node.inputs[1])]
    graph = TorchGraph(model, [value.name for value in model.graph.outputs], trained)
    with torch.no_grad():
        found = graph.run(given)
    for here, there in zip(found, wanted, strict=True):
        np.testing.assert_allclose(here.numpy(), there, rtol=0, atol=1e-5 * np.abs(there).max())
    return graph


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("clean", [False, True], ids=["", "cleaned"])
def test_decoders_with_a_past(form, clean):
    model = Decoder(**form).made
    given = feeds(model, 2, 4, 3, [0, 2])
    if clean:
        CleanUp()(model)
    compare(model, given)


@pytest.mark.real
def test_minilm():
    model = ir.load(models.path("minilm"))
    CleanUp()(model)
    compare(model, real_feeds("minilm", 2))
