"""Scales of inputs, found and folded into the float model before its weights are rounded.

One run of the model on the data, cut before the products that read a tensor, shows what each tensor holds that can be
divided, see `passes.fold_scales`. A transform finds scales for its channels; they stay where rounding to nearest, with
scales of blocks by data, loses less with them on rows kept apart. Then all are folded at once, and the folded model is
run beside the float model on a batch: where a product gives something else than rounding makes of it, what it reads is
not divided after all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...calibration import Data
from ...calibration.collect import survey
from ...calibration.inner_products import MomentSums, can_be_observed, rows_read
from ...calibration.segments import Segments
from ...evaluation.outputs import beyond_rounding
from ...graph.constants import mark_constants
from ...graph.rewriting import required
from ...model_io.names import copy_of
from ...passes.clean_up import put_in_place
from ...passes.fold_scales import Foldable, FoldScales, foldable
from ...planning.lazy_weight import LazyWeight
from ...planning.plan import Decision
from ...planning.result import Progress
from ...quantization.blas import one_thread_each
from ...quantization.quantized_weight import decibels
from ...quantization.transforms import TRANSFORMS, Group, Transform
from ...runtime.feeds import Feeds
from ...settings.recipe import Recipe
from ..kept_files import Files
from .products import problem_of
from .results import describe
from .rewrite import decide

Floats = npt.NDArray[np.float32]

_COMPARED = 1 << 23
"""Numbers of a tensor that are compared; the logits of a language model are many more."""
_NO_GAIN = "rounding loses no less with scales of its inputs, on data that they have not seen"
_DIFFERS = "the model computed otherwise with scales of its inputs"


@dataclasses.dataclass(frozen=True)
class Tried:
    """What scales of one tensor do to the products that read it, by rounding to nearest.

    Attributes:
        plain: What rounding costs without them, on rows kept apart.
        cost: The same with them.
        energy: The squares of the products on these rows.
        reason: Why there are no scales; "" where there are.
    """

    plain: float = 0.0
    cost: float = 0.0
    energy: float = 0.0
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Folds:
    """Scales that were folded.

    Attributes:
        name: Of the transform.
        scales: float32 [K], by name of the tensor that is divided.
        tried: By name of the tensor, of all that could be divided.
        left: Why the inputs of rounded nodes are not divided, by name of the node.
    """

    name: str
    scales: dict[str, Floats]
    tried: dict[str, Tried]
    left: dict[str, str]

    @property
    def gain(self) -> float:
        """By how much rounding loses less of the products that gain, each counting the same; dB."""
        found = [self.tried[name] for name in self.scales]
        plain, cost = (sum(getattr(each, what) / each.energy for each in found) for what in ("plain", "cost"))
        return decibels(plain, cost) if found else 0.0

    @property
    def row(self) -> tuple[str, str]:
        """For a person."""
        gain = f": rounding to nearest would lose {self.gain:.1f} dB less of what reads them" if self.scales else ""
        return "transformed", f"{len(self.scales)} of {len(self.tried)} inputs by {self.name}{gain}"

    @property
    def details(self) -> dict[str, object]:
        """As plain values."""
        tried = {name: {"folded": name in self.scales, **dataclasses.asdict(each)} for name, each in self.tried.items()}
        return {"transform": {"name": self.name, "gain": self.gain, "inputs": tried}}

    def apply(self, model: ir.Model, recipe: Recipe) -> None:
        """Fold them into another copy of the model that they were found on."""
        FoldScales(decide(model, recipe), self.scales)(model)


def transform(model: ir.Model, recipe: Recipe, data: Data, progress: Progress, stage: str = "") -> Folds:
    """Find scales for what products read, and fold them into a float model in place.

    Args:
        model: Which clean-up went over.
        recipe: With a transform.
        data: Batches of inputs; with a folder where an interrupted run goes on, if it says one.
        progress: Told how the work goes on.
        stage: Name of this run among those of one conversion, whose folders are apart.

    Returns:
        What was folded.

    Raises:
        UsageError: The folder is that of another run.
        OnnxpressError: ONNX Runtime cannot run the model, or results cannot be kept.
    """
    name, decisions = required(recipe.input_scales), decide(model, recipe)
    groups, left = foldable(model, decisions)
    if not groups:
        return Folds(name, {}, {}, left)
    survey(data, progress)
    searches = [_Search(group, decisions) for group in groups]
    described = "" if data.checkpoint is None else describe(model, _weights(searches), [name], data)
    files = Files(None if data.checkpoint is None else data.checkpoint / _folder(stage), described)
    scales, tried = _find(model, searches, TRANSFORMS[name], data, files, progress)
    chosen = {each: found for each, found in scales.items() if not tried[each].reason}
    _fold(model, recipe, groups, chosen, list(islice(iter(data), 1)))
    for search in searches:
        if search.name not in chosen:
            left.update(dict.fromkeys(search.nodes, tried[search.name].reason or _DIFFERS))
    return Folds(name, chosen, tried, left)


def _folder(stage: str) -> str:
    return f"{stage}-transform" if stage else "transform"


class _Search:
    """What scales of one tensor do, as far as the data is not needed to know."""

    def __init__(self, group: Foldable, decisions: Sequence[Decision]) -> None:
        readers = {reader.node for reader in group.readers}
        taken = [each for each in decisions if each.taken and each.node in readers]
        self.group, self.name, self.node = group, group.name, group.readers[0].node
        self.nodes = [each.node_name for each in taken]
        self.weights = [_weight(each) for each in taken]

    def run(self, segments: Segments, transform: Transform) -> tuple[Floats, Tried]:
        """Find scales, and judge them on all output channels by the rows kept apart."""
        none = np.ones(self.group.readers[0].channels, np.float32)
        if not can_be_observed(self.node):
            return none, Tried(reason="its inputs are too many to be observed together")
        sums, largest = MomentSums(self.node, cross=False), np.zeros_like(none)
        for batch in range(segments.batches):
            x, mask = segments.pair(self.name, batch)[0], segments.mask(batch)
            sums.add(x, x, mask)
            largest = np.maximum(largest, np.abs(rows_read(self.node, x, mask)).max(0, initial=0))
        moments = sums.moments()
        if moments is None:
            return none, Tried(reason="its inputs are too few, or not finite")
        whole = Group([problem_of(weight, *moments) for weight in self.weights], largest)
        with one_thread_each():
            scales = transform.find(whole)
        plain = cost = whole.cost(none, apart=True)
        if (scales != 1).any():
            cost = whole.cost(scales, apart=True)
        energy = sum(moments[1].energy(problem.rows) for problem in whole.problems)
        return scales, Tried(plain, cost, energy, "" if cost < plain else _NO_GAIN)


def _find(
    model: ir.Model, searches: Sequence[_Search], transform: Transform, data: Data, files: Files, progress: Progress
) -> tuple[dict[str, Floats], dict[str, Tried]]:
    """Scales, and what they do, by name of the tensor."""
    scales: dict[str, Floats] = {}
    tried: dict[str, Tried] = {}
    with Segments(model, data) as segments:
        ordered = sorted(searches, key=lambda search: segments.position(search.node.name or ""))
        missing = [index for index in range(len(ordered)) if not files.has(f"scales{index}")]
        for index, search in enumerate(ordered):
            progress("transform", index, len(ordered))
            if index <= max(missing, default=-1):
                segments.advance(search.node.name or "")  # a piece at a time, also where it is only run through
            if index in missing:
                found, judged = search.run(segments, transform)
                files.keep(f"scales{index}", dataclasses.asdict(judged), {"scales": found})
            facts, arrays = files.read(f"scales{index}", ["scales"])
            scales[search.name], tried[search.name] = arrays["scales"], Tried(**facts)
    progress("transform", len(searches), len(searches))
    return scales, tried


def _fold(
    model: ir.Model, recipe: Recipe, groups: Sequence[Foldable], scales: dict[str, Floats], sample: Sequence[Feeds]
) -> None:
    """Fold scales in place, but those with which the model computes otherwise, which are taken out."""
    checks = [check for group in groups for check in _checks(group, groups)]
    while scales:
        original = copy_of(model)
        FoldScales(decide(model, recipe), scales)(model)
        wrong = differing(original, model, checks, scales, sample)
        if wrong is None:
            return
        put_in_place(model, original)
        for name in wrong:
            del scales[name]


@dataclasses.dataclass(frozen=True)
class Check:
    """A product whose output tells whether scales were folded as they have to be.

    Attributes:
        node: Its name.
        output: Name of what it makes.
        reads: Name of the tensor that it reads, which is divided.
        makes: Name of the tensor for which its output is divided, too; "" for none.
    """

    node: str
    output: str
    reads: str
    makes: str


def _checks(group: Foldable, groups: Sequence[Foldable]) -> Iterable[Check]:
    for reader in group.readers:
        made = [other.name for other in groups if any(maker.node is reader.node for maker in other.makers)]
        yield Check(reader.node.name or "", reader.node.outputs[0].name or "", group.name, "".join(made[:1]))


def differing(
    original: ir.Model, folded: ir.Model, checks: Sequence[Check], scales: dict[str, Floats], sample: Sequence[Feeds]
) -> list[str] | None:
    """The tensor behind which a product gives something else first; all where only outputs do; None where none does.

    Args:
        original: The float model.
        folded: The same with scales folded.
        checks: Products.
        scales: float32 [K], by name of the tensor.
        sample: A batch of inputs.
    """
    for model in (original, folded):
        mark_constants(model)
    with Segments(original, sample, outputs=True) as one, Segments(folded, sample, outputs=True) as other:
        for check in sorted(checks, key=lambda check: one.position(check.node)):
            for segments in (one, other):
                segments.advance_over(check.node)
            wanted, found = (_some(segments.pair(check.output, 0)[0]) for segments in (one, other))
            same = beyond_rounding([check.output], [wanted], [found * scales.get(check.makes, np.float32(1))]) is None
            if check.reads in scales and not same:
                return [check.reads]
        names = one.finish()
        other.finish()
        outputs = [[_some(each.pair(name, 0)[0]) for name in names] for each in (one, other)]
        return None if beyond_rounding(names, *outputs) is None else list(scales)


def _some(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of a tensor, evenly spread, that hold about as many numbers as are compared; [n, size of the last axis]."""
    rows = array.reshape(-1, array.shape[-1] if array.ndim and array.size else 1)
    return rows[:: max(1, array.size // _COMPARED)]


def _weights(searches: Iterable[_Search]) -> list[LazyWeight]:
    return [weight for search in searches for weight in search.weights]


def _weight(decision: Decision) -> LazyWeight:
    """What is rounded of a node, but for the factor of a Gemm."""
    weight = required(decision.weight)
    lazy = LazyWeight(weight.value.name or "", weight, required(decision.form).scheme)
    lazy.readers.append(decision)
    return lazy
