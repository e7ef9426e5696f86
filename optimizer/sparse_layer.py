"""One layer on its way to a sparse one: which of its blocks stay, and what they hold."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from .calibration import TensorStatistics
from .calibration.ranges import activation_range, unusable
from .passes import Decision
from .passes.plan import release
from .passes.sparsify_matmul import SparseLayer
from .quantization.affine import AffineParameters, parameters_of_range, quantize_weight
from .recipe import Recipe
from .report import WeightReport
from .sparsity import (
    Block,
    allocate,
    encode,
    expand,
    keep_best,
    magnitude_scores,
    obs_scores,
    occupied,
    output_error,
    reconstruct,
    wanda_scores,
)  # fmt: skip
from .sparsity.blocks import Mask
from .sparsity.criteria import Scores

_LEAST_SPARSITY = 0.5
"""Share of zero blocks from which on a weight that is sparse already is taken: below it a dense product is as fast."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        node: Its name.
        weight: Name of its weight.
        shape: K and N.
        sparsity: Share of its weights that lie in blocks left out.
        error: Mean squared error of its output over the output's variance, where a calibration tells; else the squared
            change of the weight over the square of it.
        measured: Whether a calibration told the error.
    """

    node: str
    weight: str
    shape: tuple[int, int]
    sparsity: float
    error: float
    measured: bool

    @property
    def size(self) -> int:
        """Weights."""
        return self.shape[0] * self.shape[1]

    def line(self) -> str:
        """For a person."""
        what = "error of the output" if self.measured else "change of the weight"
        shape = f"{self.shape[0]} x {self.shape[1]}"
        return f"{100 * self.sparsity:5.1f} % zero, {what} {100 * self.error:.1f} %  {self.node} ({shape})"

    def as_weight(self, dtype: str) -> WeightReport:
        """For the list of the largest errors."""
        decibels = -10 * math.log10(self.error) if self.error > 0 else math.inf
        scheme = f"{dtype}, {100 * self.sparsity:.1f} % zero"
        return WeightReport(self.weight, (self.node,), scheme, self.size, decibels, 0.0)


class Layer:
    """A product that is to become sparse.

    Attributes:
        decision: The plan's.
        criterion: By which its blocks are chosen.
        scores: Of its blocks, until they are chosen; None where the pattern is given.
        mask: Blocks that stay.
        energy: Of its output, in the units of the scores.
        report: What became of it.
    """

    def __init__(self, decision: Decision, block: Block, statistics: TensorStatistics | None, recipe: Recipe) -> None:
        assert decision.weight is not None
        assert decision.settings is not None
        self.decision, self.block, self.sparsity = decision, block, decision.settings.sparsity
        self.criterion = recipe.criterion or ("obs" if statistics is not None else "magnitude")
        self._statistics, self._recipe = statistics, recipe
        self.scores: Scores | None = None
        self.mask: Mask | None = None
        self.energy = 0.0
        self.report: LayerReport | None = None

    def choose(self) -> str | None:
        """Find the pattern where it is given, else scores to choose it by; the reason where the layer stays dense."""
        if self._statistics is not None and (reason := unusable(self._statistics)) is not None:
            return f"its input cannot be observed: {reason}"
        weight = read_weight(self.decision)
        there = occupied(weight, self.block)
        zeros = 1 - float(there.mean())
        if not self._recipe.prune:
            self.mask = there
            few = f"{100 * zeros:.0f} % of its blocks of {self.block} are zero: a dense product is as fast"
            return few if zeros < _LEAST_SPARSITY else None
        if zeros >= self.sparsity and zeros >= _LEAST_SPARSITY:
            self.mask = there  # sparse by its trainer: kept exactly
            return None
        self.scores, self.energy = self._score(weight)
        return None

    def _score(self, weight: Floats) -> tuple[Scores, float]:
        if self.criterion == "magnitude":
            return magnitude_scores(weight, self.block), float(np.square(weight, dtype=np.float64).sum())
        covariance, mean = self._moments()
        energy = output_error(weight, covariance)
        if self.criterion == "wanda":
            return wanda_scores(weight, covariance + np.outer(mean, mean), self.block), energy
        return obs_scores(weight, covariance, self.block), energy

    def _moments(self) -> tuple[Doubles, Doubles]:
        """C and m of the input."""
        statistics = self._statistics
        assert statistics is not None
        assert statistics.gram is not None
        mean = statistics.channel_mean
        assert mean is not None
        return statistics.gram / max(1, statistics.rows) - np.outer(mean, mean), mean

    def finish(self) -> SparseLayer:
        """What takes the weight's place."""
        assert self.mask is not None
        weight, decision = read_weight(self.decision), self.decision
        kept = self._values(weight)
        codes = scales = None
        decoded = kept
        if self._recipe.dtype == "int8":
            rounded = quantize_weight(kept, 1, search=self._recipe.search)
            codes, scales = rounded.codes, rounded.scale
            decoded = AffineParameters(rounded.scale, rounded.zero_point).dequantize(codes, 1)
        shift, error = self._effect(decoded - weight, weight)
        zeros = 1 - float(expand(self.mask, self.block, weight.shape).mean())
        assert decision.weight is not None
        name = decision.weight.value.name or "weight"
        measured = self._statistics is not None and self._statistics.gram is not None
        self.report = LayerReport(decision.node.name or "", name, weight.shape, zeros, error, measured)
        return SparseLayer(
            encode(kept if codes is None else codes, self.mask, self.block), self.block, scales, shift,
            self._activation(), name, decision.weight.transposed, weight.shape,
        )  # fmt: skip

    def _values(self, weight: Floats) -> Floats:
        assert self.mask is not None
        if self.scores is None:
            return weight
        if self.criterion == "obs":
            return reconstruct(weight, self._moments()[0], self.mask, self.block)
        return np.where(expand(self.mask, self.block, weight.shape), weight, np.float32(0))

    def _effect(self, change: Floats, weight: Floats) -> tuple[Floats | None, float]:
        """What the bias takes back of a change of the weight, and the relative error that is left."""
        if self._statistics is None or self._statistics.gram is None:
            return None, _ratio(np.square(change, dtype=np.float64).sum(), np.square(weight, dtype=np.float64).sum())
        covariance, mean = self._moments()
        shift = (-(mean @ change)).astype(np.float32) if self.scores is not None else None
        return shift, _ratio(output_error(change, covariance), output_error(weight, covariance))

    def _activation(self) -> AffineParameters | None:
        recipe, statistics = self._recipe, self._statistics
        if recipe.activations == "dynamic" or recipe.dtype != "int8" or statistics is None:
            return None
        low, high = activation_range(statistics, recipe.range_method, percentile=recipe.percentile)
        return parameters_of_range(low, high, np.uint8)


def share_out(layers: list[Layer], recipe: Recipe) -> None:
    """Choose the blocks that stay in every layer with scores: of each its share, or of all together."""
    scored = {str(index): layer for index, layer in enumerate(layers) if layer.scores is not None}
    together = {} if recipe.allocation == "uniform" else {
        name: layer for name, layer in scored.items() if layer.sparsity == recipe.sparsity
    }  # fmt: skip
    weights = {name: 1 / max(layer.energy, np.finfo(np.float64).tiny) for name, layer in together.items()}
    scores = {name: layer.scores for name, layer in together.items() if layer.scores is not None}
    for name, mask in allocate(scores, weights, recipe.sparsity).items():
        together[name].mask = mask
    for name, layer in scored.items():
        if name not in together and layer.scores is not None:
            layer.mask = keep_best(layer.scores, layer.sparsity)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


def read_weight(decision: Decision) -> Floats:
    """The weight of a node that is taken as float32 [K, N], a Gemm's alpha in it."""
    assert decision.weight is not None
    weight = decision.weight.tensor.numpy().astype(np.float32)
    release(decision.weight.tensor)
    alpha = decision.node.attributes.get_float("alpha", 1.0) if decision.op_type == "Gemm" else 1.0
    scaled: Floats = np.ascontiguousarray(weight.T if decision.weight.transposed else weight) * np.float32(alpha)
    return scaled
