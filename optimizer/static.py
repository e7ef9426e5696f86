"""Calibrated INT8: which passes run in which order, and what is measured between them.

    prepare: float rewrites -> collect: what tensors hold -> plan -> place QDQ -> restore moments
          -> ask ONNX Runtime what it made of it -> leave in float what it would, what hurts and what is slower

Everything that is tried is built from the same float graph, which is changed in place only when all is decided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from .analysis.int8_kernels import fallbacks, operators, optimized
from .analysis.machine import products_saturate
from .analysis.metrics import Metric, choose_metric
from .analysis.sensitivity import MixedPrecision, search_mixed_precision
from .calibration import Data, Statistics, Wanted
from .calibration.collect import collect
from .calibration.patches import Covariances
from .calibration.ranges import activation_range, unusable
from .errors import OnnxpressError, UsageError
from .faster import prove_faster, slower_layers
from .outcome import Outcome, Progress
from .passes import Decision
from .passes.equalize_channels import EqualizeChannels
from .passes.int8_operators import Role
from .passes.place_qdq import Floats, PlaceQdq, Range
from .passes.plan_int8 import Int8Plan, plan_int8
from .passes.restore_moments import restore_in_order
from .passes.smooth_matmul import SmoothMatMul, smoothable
from .preparation import prepare
from .quantization.affine import AffineParameters, QuantizedTensor, quantize_weight
from .quantization.bias_correction import bias_shift
from .quantization.compensated import compensate
from .quantization.rtn import decibels
from .recipe import Recipe
from .report import WeightReport

_MEASURED = 16  # batches on which models are compared and moments restored
_ROUNDS = 3  # of asking ONNX Runtime: what stays in float changes what its neighbours can be
_FOR_THE_BOUND = "kept in float for the bound on the metric's drop"
_SKIPPED = {
    "smooth": "smoothing", "compensate": "compensated rounding", "restore_moments": "restoring of moments",
}  # fmt: skip
"""What is done by default, but not without data."""
_HISTOGRAMS = ("percentile", "entropy", "mse")


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float graph and what is known of its tensors.

    Attributes:
        model: After `prepare`, and after scales were moved between its channels.
        statistics: Of each tensor that may be rounded.
        data: The calibration data; empty where only statistics were given.
    """

    model: ir.Model
    statistics: Statistics
    data: Iterable[Any] = ()


def wanted(model: ir.Model, recipe: Recipe) -> dict[str, Wanted]:
    """What to collect of a prepared model, by tensor."""
    plan = plan_int8(model, recipe)
    smoothed = set() if recipe.smooth is False else smoothable(model, insert=recipe.smooth is True)
    histogram = recipe.range_method in _HISTOGRAMS
    found = {value.name or "": Wanted(histogram=histogram) for value in plan.tensors()}
    for operator in plan.operators.values():
        if not operator.is_product or operator.constant is None:
            continue
        name = operator.node.inputs[0].name or ""  # type: ignore[union-attr]
        axis = 1 if operator.role is Role.CONV else -1
        gram = found[name].gram or (operator.role is Role.MATMUL and name in smoothed)
        found[name] = dataclasses.replace(found[name], channel_axis=axis, gram=gram)
        if operator.role is Role.CONV and recipe.equalize:
            result = operator.node.outputs[0].name or ""
            found[result] = dataclasses.replace(found.get(result, Wanted(histogram=False)), channel_axis=1)
    return found


def calibrate(model: ir.Model, recipe: Recipe, data: Data | Statistics, progress: Progress) -> Calibrated:
    """Collect what a recipe needs of a prepared model, and let channels exchange scales where it asks for that."""
    if isinstance(data, Statistics):
        data.check(model)
        return Calibrated(model, data)
    statistics = collect(model, data, wanted(model, recipe), progress=progress)
    moved = False
    if recipe.equalize:
        moved |= EqualizeChannels(statistics)(model)
    if recipe.smooth is not False:
        moved |= SmoothMatMul(statistics, insert=recipe.smooth is True)(model)
    if moved:
        again = {name: dataclasses.replace(what, gram=False) for name, what in wanted(model, recipe).items()}
        statistics = collect(model, data, again, progress=progress)
    return Calibrated(model, statistics, data)


def convert(model: ir.Model, recipe: Recipe, data: Data | Statistics, progress: Progress) -> Outcome:
    """Convert a model, which CleanUp went over, in place.

    Args:
        model: The float model.
        recipe: Of kind "static".
        data: What to calibrate with.
        progress: Told how the work goes on.

    Raises:
        UsageError: The recipe asks for what runs models on data, and there are only statistics.
        OnnxpressError: ONNX Runtime cannot run the model, a metric fails, or the model has to be faster and is not.
    """
    if isinstance(data, Statistics):
        _refuse_statistics(recipe)
    decisions = decide(model, recipe)
    if not any(decision.taken for decision in decisions):
        return Outcome(decisions, tuple)
    builder = Builder(calibrate(model, recipe, data, progress), recipe)
    kept = _kept_by_runtime(builder)
    if recipe.only_if_faster:
        kept |= slower_layers(builder, kept)
    metric = choose_metric(recipe.metric, builder.model, builder.feeds) if builder.feeds else None
    search = None
    if metric is not None and recipe.max_drop is not None:
        search = _search(builder, kept, metric, recipe.max_drop, progress)
        kept |= {name: _FOR_THE_BOUND for name in search.kept if name not in kept}
    seconds = prove_faster(builder, kept) if recipe.only_if_faster else None
    restore = _restores(builder, kept, metric)
    plan = builder.place(model, kept)
    if restore:
        builder.restore(model)
    return _outcome(builder, model, plan, metric, search, seconds)


def decide(model: ir.Model, recipe: Recipe) -> list[Decision]:
    """What `convert` would decide of a model, which CleanUp went over, before it sees data; it is prepared for that.

    Raises:
        OnnxpressError: The opset is too old and cannot be raised.
    """
    prepare(model)
    return plan_int8(model, recipe).decisions


def _refuse_statistics(recipe: Recipe) -> None:
    asked = [name for name in (*_SKIPPED, "equalize", "only_if_faster") if getattr(recipe, name)]
    asked += ["max_drop"] if recipe.max_drop is not None else []
    if asked:
        raise UsageError(
            f"{', '.join(asked)}: runs models on data; statistics alone are too little: give --calibration"
        )


class Builder:
    """INT8 models of one float model."""

    def __init__(self, calibrated: Calibrated, recipe: Recipe) -> None:
        self.model, self.recipe = calibrated.model.clone(), recipe
        self.feeds = list(islice(calibrated.data, _MEASURED))
        self._statistics = calibrated.statistics
        self._unusable = {
            name: reason for name, tensor in self._statistics.items() if (reason := unusable(tensor)) is not None
        }
        self._covariances = _covariances(self.model, calibrated.data, recipe) if self.feeds else None
        self._rounded: dict[tuple[str, bytes], QuantizedTensor] = {}
        self._ranges: dict[str, Range] = {}
        self._moments: Statistics | None = None
        self._reduce_range = products_saturate() if recipe.reduce_range is None else recipe.reduce_range
        self.weights: dict[str, QuantizedTensor] = {}
        self.readers: dict[str, tuple[str, ...]] = {}

    def plan(self, model: ir.Model, kept: Mapping[str, str]) -> Int8Plan:
        """What becomes of the model with nodes of these names in float."""
        plan = plan_int8(model, self.recipe, self._unusable, kept)
        lacking = [value.name or "" for value in plan.tensors() if value.name not in self._statistics]
        if lacking:
            raise OnnxpressError(
                f"the calibration knows nothing of {', '.join(lacking[:3])}; calibrate this model, with the same recipe"
            )
        return plan

    def place(self, model: ir.Model, kept: Mapping[str, str]) -> Int8Plan:
        """Make the model an INT8 one."""
        import onnx_ir.passes.common as common

        plan = self.plan(model, kept)
        self.weights.clear()
        place = PlaceQdq(
            {value.name or "": self._range(value.name or "") for value in plan.tensors()},
            self._round,
            dtype=np.dtype(self.recipe.activation_type),
            symmetric=bool(self.recipe.symmetric),
            shift=self._shift,
        )
        place(model, plan)
        self.readers = {name: place.readers(name) for name in self.weights}
        common.RemoveUnusedNodesPass()(model)
        return plan

    def unrestored(self, kept: Mapping[str, str]) -> tuple[ir.Model, list[str]]:
        """An INT8 model of its own and its products on codes; weights that stay in float are shared."""
        model = self.model.clone()
        return model, _products(self.place(model, kept))

    def restored(self, kept: Mapping[str, str]) -> ir.Model:
        """The same with moments restored."""
        model, _ = self.unrestored(kept)
        self.restore(model)
        return model

    def restore(self, model: ir.Model) -> None:
        """Give channels of an INT8 model their moments back."""
        wanted = Wanted(histogram=False, channel_axis=1)
        names = [node.outputs[0].name or "" for node in self.model.graph if node.op_type in ("Conv", "Gemm")]
        if self._moments is None:
            self._moments = collect(self.model, self.feeds, dict.fromkeys(names, wanted))
        restore_in_order(
            model, self._moments, lambda changed, names: collect(changed, self.feeds, dict.fromkeys(names, wanted))
        )

    def _range(self, name: str) -> Range:
        if name not in self._ranges:
            self._ranges[name] = activation_range(
                self._statistics[name], self.recipe.range_method,
                percentile=self.recipe.percentile, symmetric=bool(self.recipe.symmetric),
            )  # fmt: skip
        return self._ranges[name]

    def _round(self, node: ir.Node, name: str, weight: Floats, axis: int, least: Floats | None) -> QuantizedTensor:
        """A weight's codes; the search for its scales is not repeated while its bias asks for the same."""
        channels = axis if self.recipe.per_channel else None
        if channels is None and least is not None:
            least = least.max(initial=0)
        key = name, b"" if least is None else least.tobytes()
        if key not in self._rounded:
            rounded = quantize_weight(
                weight, channels, reduce_range=self._reduce_range, search=self.recipe.search,
                least_scale=least,
            )  # fmt: skip
            covariance = self._covariances.get(node.name or "") if self._covariances is not None else None
            if covariance is not None:
                rounded = compensate(weight, axis, rounded, covariance, reduce_range=self._reduce_range)
            self._rounded[key] = rounded
        self.weights[name] = self._rounded[key]
        return self._rounded[key]

    def _shift(self, node: ir.Node, weight: Floats, rounded: QuantizedTensor) -> Floats | None:
        if not self.recipe.correct_bias:
            return None
        # By now the input is decoded from codes; these still bear the name of what was observed.
        mean = self._statistics[_observed(node)].channel_mean
        if mean is None:
            return None
        is_conv = node.op_type == "Conv"
        axis = 0 if is_conv else 1
        decoded = AffineParameters(rounded.scale, rounded.zero_point).dequantize(rounded.codes, axis)
        groups = node.attributes.get_int("group", 1)
        return -(bias_shift(weight, decoded, mean, groups) if is_conv else bias_shift(weight.T, decoded.T, mean))


def _covariances(model: ir.Model, data: Iterable[Any], recipe: Recipe) -> Covariances | None:
    if recipe.compensate is False:
        return None
    operators = plan_int8(model, recipe).operators.values()
    nodes = [operator.node for operator in operators if operator.is_product and operator.constant is not None]
    return Covariances(model, nodes, data, centred=recipe.correct_bias)


def _observed(node: ir.Node) -> str:
    """The name under which the input of a placed product was observed."""
    decoder = node.inputs[0].producer()  # type: ignore[union-attr]
    assert decoder is not None
    return (decoder.name or "").removesuffix("_dequantize")


def _kept_by_runtime(builder: Builder) -> dict[str, str]:
    """Products that ONNX Runtime would compute in float between two conversions."""
    kept: dict[str, str] = {}
    for _ in range(_ROUNDS):
        model, products = builder.unrestored(kept)
        found = fallbacks(optimized(model), products)
        if not found:
            break
        kept |= {name: f"ONNX Runtime makes {ran} of its int8 form" for name, ran in found.items()}
    return kept


def _products(plan: Int8Plan) -> list[str]:
    return [operator.node.name or "" for operator in plan.operators.values() if operator.is_product]


def _search(
    builder: Builder, kept: Mapping[str, str], metric: Metric, max_drop: float, progress: Progress
) -> MixedPrecision:
    """The fewest products in float with which the metric is within the bound."""
    nodes = _products(builder.plan(builder.model.clone(), kept))
    return search_mixed_precision(
        lambda chosen: builder.unrestored({**dict.fromkeys(chosen, _FOR_THE_BOUND), **kept})[0], metric, nodes,
        reference=metric.reference, max_drop=max_drop, always=kept, progress=progress,
    )  # fmt: skip


def _restores(builder: Builder, kept: Mapping[str, str], metric: Metric | None) -> bool:
    """Whether channels get their moments back.

    They are those of the calibration data, so on other data that can harm, too: a metric that was given decides.
    """
    asked = builder.recipe.restore_moments
    if asked is not None or not builder.feeds:
        return bool(asked)
    if metric is None or builder.recipe.metric is None:
        return True
    return metric(builder.restored(kept)) > metric(builder.unrestored(kept)[0])


def _outcome(
    builder: Builder, model: ir.Model, plan: Int8Plan, metric: Metric | None, search: MixedPrecision | None,
    seconds: tuple[float, float] | None,
) -> Outcome:  # fmt: skip
    kernels = operators(optimized(model))
    details: dict[str, Any] = {"kernels": kernels}
    rows = [("ONNX Runtime runs", ", ".join(f"{count} {op}" for op, count in kernels.items()))]
    warnings = []
    if metric is not None:
        value = metric(model)
        details["metric"] = {"name": metric.name, "float32": metric.reference, "int8": value}
        rows.append(("accuracy", f"{metric.name} {value:.5f}, float32 {metric.reference:.5f}"))
    if seconds is not None:
        details["seconds"] = dict(zip(("float32", "int8"), seconds, strict=True))
        rows.append(("run", f"{1e3 * seconds[1]:.2f} ms, float32 {1e3 * seconds[0]:.2f} ms"))
    if not builder.feeds:
        skipped = [what for name, what in _SKIPPED.items() if getattr(builder.recipe, name) is None]
        listed = " and ".join(filter(None, (", ".join(skipped[:-1]), *skipped[-1:])))
        rows += [("skipped", f"{listed}, for which there must be data")] if skipped else []
    if search is not None:
        details["mixed_precision"] = dataclasses.asdict(search)
        rows.append(("tried", f"{len(search.trials)} mixtures, {len(search.kept)} products stay in float"))
        if not search.met:
            warnings.append("the bound on the metric's drop was not met; this is the best mixture that was tried")
    weights = tuple(
        WeightReport(
            name, builder.readers[name], "int8", rounded.codes.size, decibels(rounded.energy, rounded.error), 0.0
        )
        for name, rounded in builder.weights.items()
    )
    return Outcome(plan.decisions, lambda: weights, warnings=warnings, details=details, rows=rows)
