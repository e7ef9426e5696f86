"""INT8 models of small graphs: ranges observed on one set of inputs, and both forms through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
from onnxpress.optimizer.passes.place_qdq import PlaceQdq
from onnxpress.optimizer.planning.plan_int8 import Int8Plan, plan_int8
from onnxpress.optimizer.quantization.round_weight import round_weight
from onnxpress.optimizer.quantization.schemes import int8_weights
from onnxpress.optimizer.runtime.int8_kernels import optimized
from onnxpress.optimizer.runtime.machine import products_saturate
from onnxpress.optimizer.settings.recipe import Recipe

STATIC = Recipe(scheme="int8-static")


def run(model: ir.Model, feeds: dict[str, np.ndarray], level: str = "ALL", names: list[str] | None = None):
    """Outputs, or these tensors, with the optimizations of a level."""
    proto = ir.to_proto(model)
    if names is not None:
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, f"ORT_{'ENABLE' if level == 'ALL' else 'DISABLE'}_ALL"
    )
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)


def observed(model: ir.Model, plan: Int8Plan, feeds: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each tensor of a plan."""
    inner = [v.name for v in plan.tensors() if not v.is_graph_input()]
    values = dict(zip(inner, run(model, feeds, "NONE", inner), strict=True)) if inner else {}
    values |= {name: array for name, array in feeds.items() if name in {v.name for v in plan.tensors()}}
    return {name: (float(array.min()), float(array.max())) for name, array in values.items()}


def int8_weight(weight, axis, least_scale=None, **scheme):
    """A weight rounded as those beside activations of 8 bits."""
    return round_weight(weight, axis, int8_weights(**scheme), least_scale=least_scale)


def converted(
    model: ir.Model, feeds: dict[str, np.ndarray], recipe: Recipe = STATIC, reduce_range: bool | None = None, **settings
):  # fmt: skip
    """An INT8 form of a model, its plan, and the graph that ONNX Runtime makes of it.

    Weights are for this machine's ONNX Runtime, whose sums of others may saturate, where `reduce_range` does not say.
    """
    narrow = products_saturate() if reduce_range is None else reduce_range
    changed = model.clone()
    plan = plan_int8(changed, recipe)
    place = PlaceQdq(
        plan,
        observed(model, plan, feeds),
        lambda _node, _name, w, axis, least: int8_weight(w, axis, least_scale=least, reduce_range=narrow),
        **settings,
    )
    place(changed)
    common.RemoveUnusedNodesPass()(changed)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    return changed, plan, optimized(changed)


def decibels(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to noise."""
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))
