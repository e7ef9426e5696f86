"""One layer on its way to a sparse one: which of its blocks stay, and what they hold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibration import TensorStatistics
from ...calibration.ranges import activation_range, unusable
from ...graph.constants import release
from ...graph.rewriting import required
from ...passes.sparsify_matmul import SparseLayer
from ...planning.plan import Decision
from ...planning.report import WeightReport
from ...quantization.affine import AffineParameters, parameters_of_range
from ...quantization.input_moments import InputMoments
from ...quantization.round_weight import round_weight
from ...quantization.schemes import int8_weights
from ...settings.recipe import Recipe
from ...sparsity import (
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
)
from ...sparsity.blocks import Mask
from ...sparsity.criteria import Scores

_LEAST_SPARSITY = 0.5
"""Share of zero blocks from which on a weight that is sparse already is taken: below it a dense product is as fast."""

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        node: Its name.
        weight: Name of its weight.
        shape: K and N.
        sparsity: Share of its weights that lie in blocks left out.
        error: Mean squared error of its output over the output's variance, where a calibration tells, what layers
            before it lost included if weights were moved in order; else the squared change of the weight over its
            square.
        measured: Whether a calibration told the error.
        pruned: Whether blocks of it were chosen; else the weight is what masks or a trainer left of it.
        criterion: By which they were chosen, else "zeros".
        stored: Bytes of the blocks that are kept, and of their places and scales.
    """

    node: str
    weight: str
    shape: tuple[int, int]
    sparsity: float
    error: float
    measured: bool
    pruned: bool
    criterion: str
    stored: int

    @property
    def size(self) -> int:
        """Weights."""
        return self.shape[0] * self.shape[1]

    def line(self) -> str:
        """For a person."""
        what = "change of the weight" if self.pruned else "change of what is kept"
        what = "error of the output" if self.measured else what
        shape = f"{self.shape[0]} x {self.shape[1]}"
        return f"{100 * self.sparsity:5.1f} % zero, {what} {100 * self.error:.1f} %  {self.node} ({shape})"

    def as_weight(self, dtype: str) -> WeightReport:
        """For the list of the largest errors."""
        decibels = -10 * math.log10(self.error) if self.error > 0 else math.inf
        scheme = f"{dtype}, {100 * self.sparsity:.1f} % zero"
        return WeightReport(self.weight, (self.node,), scheme, self.size, decibels, 0.0, self.criterion, self.stored)


class Layer:
    """A product that is to become sparse.

    Attributes:
        decision: The plan's.
        node: Its node.
        block: Sizes of a block.
        sparsity: Share of blocks to remove.
        criterion: By which its blocks are chosen.
        scores: Of its blocks, until they are chosen; None where the pattern is given.
        mask: Blocks that stay.
        energy: Of its output, in the units of the scores.
        found: The weight as it became, [K, N].
        report: What became of it.
    """

    def __init__(self, decision: Decision, block: Block, statistics: TensorStatistics | None, recipe: Recipe) -> None:
        assert decision.weight is not None
        assert decision.settings is not None
        self.decision, self.node, self.block = decision, decision.node, block
        self.criterion = recipe.criterion or "magnitude"
        self.sparsity = decision.settings.sparsity if decision.settings.sparsity is not None else share_of(recipe)
        self._statistics, self._recipe = statistics, recipe
        self.scores: Scores | None = None
        self.mask: Mask | None = None
        self.energy = 0.0
        self.found: Floats = np.zeros((0, 0), np.float32)
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
            if self._recipe.mask is not None:
                return None if zeros else f"the masks leave all of its blocks of {self.block}"
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
        moments = required(self.moments())
        covariance, mean = moments.second[0], required(moments.mean)[0]
        energy = output_error(weight, covariance)
        if self.criterion == "wanda":
            return wanda_scores(weight, covariance + np.outer(mean, mean), self.block), energy
        return obs_scores(weight, covariance, self.block), energy

    @property
    def moves(self) -> bool:
        """Whether weights that are kept change."""
        return self.scores is not None and self.criterion == "obs"

    def moments(self) -> InputMoments | None:
        """Of its input in the float model, about the mean, float64; None where they are not known."""
        statistics = self._statistics
        if statistics is None or statistics.gram is None:
            return None
        mean, count = required(statistics.channel_mean), max(1, statistics.rows)
        return InputMoments((statistics.gram / count - np.outer(mean, mean))[None], count, mean=mean[None])

    def pattern(self, dtype: np.dtype) -> npt.NDArray[Any]:
        """Ones in the blocks that stay and zeros elsewhere, [K, N]: all that the speed depends on."""
        assert self.mask is not None
        assert self.decision.weight is not None
        shape = self.decision.weight.K, self.decision.weight.N
        return expand(self.mask, self.block, shape).astype(dtype)

    def finish(self, moments: InputMoments | None) -> SparseLayer:
        """What takes the weight's place.

        Args:
            moments: Of the input, float64, where they are known.
        """
        assert self.mask is not None
        assert self.decision.weight is not None
        weight, name = read_weight(self.decision), self.decision.weight.value.name or "weight"
        kept = self._kept(weight, moments)
        codes = scales = None
        self.found = kept
        if self._recipe.dtype == "int8":
            rounded = round_weight(kept, 1, int8_weights(search=self._recipe.search))
            codes, scales = rounded.integers(), rounded.scale
            self.found = rounded.values()
        shift = None
        if moments is not None and self.scores is not None:
            now = required(moments.mean)[0]
            before = now if moments.float_mean is None else moments.float_mean[0]
            shift = (before @ weight - now @ self.found).astype(np.float32)
        if moments is not None:
            W, V = weight.T.astype(np.float64), self.found.T.astype(np.float64)
            error = _ratio(moments.cost(V, W), moments.energy(W))
        else:
            change, energy = (np.square(each, dtype=np.float64).sum() for each in (self.found - weight, weight))
            error = _ratio(change, energy)
        zeros = 1 - float(expand(self.mask, self.block, weight.shape).mean())
        blocks, pruned = encode(kept if codes is None else codes, self.mask, self.block), self.scores is not None
        self.report = LayerReport(
            self.decision.node.name or "", name, weight.shape, zeros, error, moments is not None, pruned,
            self.criterion if pruned else "zeros", blocks.nbytes + (0 if scales is None else scales.nbytes),
        )  # fmt: skip
        return SparseLayer(
            blocks, self.block, scales, shift, self._activation(), name, self.decision.weight.transposed, weight.shape
        )

    def _kept(self, weight: Floats, moments: InputMoments | None) -> Floats:
        assert self.mask is not None
        if self.scores is None:
            return weight
        if self.moves and moments is not None:
            cross = None if moments.cross is None else moments.cross[0]
            return reconstruct(weight, moments.second[0], self.mask, self.block, cross)
        return np.where(expand(self.mask, self.block, weight.shape), weight, np.float32(0))

    def _activation(self) -> AffineParameters | None:
        recipe, statistics = self._recipe, self._statistics
        if recipe.activations == "dynamic" or recipe.dtype != "int8" or statistics is None:
            return None
        low, high = activation_range(statistics, recipe.ranges, percentile=recipe.percentile)
        return parameters_of_range(low, high, np.uint8)


def share_of(recipe: Recipe) -> float:
    """The share of all blocks to remove; magnitudes tell too little for more than half."""
    return recipe.sparsity if recipe.sparsity is not None else 0.5 if recipe.criterion == "magnitude" else 0.8


def share_out(layers: list[Layer], recipe: Recipe) -> None:
    """Choose the blocks that stay in every layer with scores: of each its share, or of all together."""
    scored = {str(index): layer for index, layer in enumerate(layers) if layer.scores is not None}
    together = {} if recipe.allocation == "uniform" else {
        name: layer for name, layer in scored.items() if layer.sparsity == share_of(recipe)
    }  # fmt: skip
    weights = {name: 1 / max(layer.energy, np.finfo(np.float64).tiny) for name, layer in together.items()}
    scores = {name: layer.scores for name, layer in together.items() if layer.scores is not None}
    for name, mask in allocate(scores, weights, share_of(recipe)).items():
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
