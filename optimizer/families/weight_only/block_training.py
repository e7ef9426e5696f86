"""Rounding of all weights of a block, trained together on what the block makes.

The graph is cut into blocks of about a layer, where few tensors are alive. Each is given what the rounded blocks before
it make, and offsets of rounding and ranges of its weights are trained so that it makes what it does in the float model
(SignRound, Cheng et al. 2023, arXiv 2309.05516, whose loss this is), from the codes that other methods found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...calibration.kept import Kept
from ...calibration.segments import MEMORY
from ...planning.lazy_weight import LazyWeight
from ...planning.result import Progress
from ...settings.recipe import Recipe
from .products import Job
from .results import Results, Store, Trained
from .training import STEPS, Setup, as_read, deadline_of, factor_of, float_rows, measured, with_method

if TYPE_CHECKING:
    import torch

    from ...gradients.graph import Weights
    from ...gradients.offsets import OffsetWeight

NAME = "signround-blocks"
_MOST = 1 << 25
"""Numbers of a weight that is trained: some arrays of its size are in memory."""

Values = list[tuple["torch.Tensor", ...]]
"""By batch what is alive before a block."""


class BlockTraining:
    """The blocks of a model, one after the other.

    Args:
        setup: The model and its data.
        jobs: The weights.
        recipe: With the steps, and how long they may take.
        progress: Told how the work goes on.
        store: Where results are kept.
    """

    def __init__(self, setup: Setup, jobs: Sequence[Job], recipe: Recipe, progress: Progress, store: Store) -> None:
        self._setup, self._graph = setup, setup.graph
        self._jobs, self._progress, self._store = jobs, progress, store
        self._steps = recipe.steps or STEPS
        self._deadline = deadline_of(recipe)

    def train(self, results: Results) -> Results:
        """Train all blocks.

        Args:
            results: How the weights are rounded.

        Returns:
            The results, with what was trained.

        Raises:
            OnnxpressError: A node cannot be computed, or results cannot be kept.
        """
        import torch

        made = Results(results)
        floats = [self._graph.begin(feeds) for feeds in self._setup.batches]
        rounded = list(floats)
        lost: list[tuple[float, float]] = []
        for block in range(self._graph.segments):
            self._progress(NAME, block, self._graph.segments)
            names = set(self._graph.trained_in(block))
            inside = [job for job in self._jobs if names & set(self._nodes(job)) and job.weight.identity in made]
            moving = [job for job in inside if self._moves(job.weight) and made[job.weight.identity] is
                      results[job.weight.identity]]  # fmt: skip
            wanted = Kept(MEMORY)
            try:
                with torch.no_grad():
                    floats = [self._advance_float(block, batch, values, wanted) for batch, values in enumerate(floats)]
                if moving:
                    lost.append(self._train(block, moving, inside, rounded, wanted, made))
            finally:
                wanted.close()
            if block + 1 < self._graph.segments:
                fixed = self._fixed(inside, made)
                with torch.no_grad():
                    rounded = [self._graph.advance(block, values, fixed) for values in rounded]
        self._progress(NAME, self._graph.segments, self._graph.segments)
        start, best = (sum(each) for each in zip(*lost, strict=True)) if lost else (0.0, 0.0)
        unit = f"of the squares of what {len(lost)} blocks make, summed,"
        made.trained = [*results.trained, Trained(NAME, float(start), float(best), unit, self._steps)]
        return made

    def _nodes(self, job: Job) -> list[str]:
        return [node.name or "" for node in self._setup.readers[job.weight.identity]]

    def _moves(self, weight: LazyWeight) -> bool:
        """Whether a weight is trained: of integers with scales in between, and not too large."""
        return weight.scheme.has_kernel and weight.weight.tensor.size <= _MOST

    def _advance_float(
        self, block: int, batch: int, values: Sequence[torch.Tensor], wanted: Kept
    ) -> tuple[torch.Tensor, ...]:
        """What the float model has behind a block; kept, and given back where there is another block."""
        found = self._graph.advance(block, values, {})
        for index, each in enumerate(found):
            wanted.put(batch, str(index), each.numpy())
        return found if block + 1 < self._graph.segments else ()

    def _fixed(self, inside: Sequence[Job], made: Results) -> dict[str, Callable[[], torch.Tensor]]:
        """Weights that are as they are."""
        import torch

        from ...gradients.rounded import RoundedWeight

        def read(node: ir.Node, weight: RoundedWeight) -> torch.Tensor:
            with torch.no_grad():
                return as_read(node, weight)

        given: dict[str, Callable[[], torch.Tensor]] = {}
        for job in inside:
            weight = RoundedWeight(made[job.weight.identity].read(), factor_of(job.weight))
            for node in self._setup.readers[job.weight.identity]:
                given[node.name or ""] = functools.partial(read, node, weight)
        return given

    def _train(
        self, block: int, moving: Sequence[Job], inside: Sequence[Job], rounded: Values, wanted: Kept, made: Results
    ) -> tuple[float, float]:
        """Train a block, and put what came of it into the results; the losses before and after."""
        from ...gradients.descent import SignDescent

        name = f"block{block}"
        names = [f"{name}-{job.index}" for job in moving]
        if self._store.files.has(name):
            start, best = self._store.files.read(name, ())[0]
        else:
            weights = [_offsets(job.weight, made) for job in moving]
            given = self._fixed([job for job in inside if job not in moving], made)
            for job, weight in zip(moving, weights, strict=True):
                for node in self._setup.readers[job.weight.identity]:
                    given[node.name or ""] = functools.partial(as_read, node, weight)
            descent = SignDescent(
                [each for weight in weights for each in weight.parameters],
                self._loss_of(block, rounded, given, wanted), self._setup.learned, self._setup.apart, self._steps,
                [each for weight in weights for each in weight.lengths],
            )  # fmt: skip
            ended = descent.run(lambda *_: None, self._deadline)
            start, best = ended.start, ended.best
            for job, weight, file in zip(moving, weights, names, strict=True):
                result = made[job.weight.identity]
                facts = with_method(result.rounded, NAME) if best < start else result.rounded
                self._store.keep(file, measured(job.weight, weight.result()), facts)
            self._store.files.keep(name, [start, best], {})
        if best < start:
            for job, file in zip(moving, names, strict=True):
                found = self._store.known(file)
                assert found is not None
                made[job.weight.identity] = found
        return start, best

    def _loss_of(
        self, block: int, rounded: Values, given: Weights, wanted: Kept
    ) -> Callable[[int], torch.Tensor]:  # fmt: skip
        import torch

        from ...gradients.losses import squared_error

        depends = [each.requires_grad for each in self._graph.advance(block, rounded[0], given)]

        def loss(batch: int) -> torch.Tensor:
            found = self._graph.advance(block, rounded[batch], given)
            mask = self._setup.mask(batch)
            pairs = [
                (each, torch.from_numpy(wanted.get(batch, str(index))))
                for index, each in enumerate(found)
                if depends[index]
            ]
            return torch.stack([squared_error(here, there, mask) for here, there in pairs]).sum()

        return loss


def _offsets(weight: LazyWeight, results: Results) -> OffsetWeight:
    import numpy as np

    from ...gradients.offsets import OffsetWeight

    rows = np.array(float_rows(weight), np.float32)
    return OffsetWeight(results[weight.identity].read(), rows, factor_of(weight))
