"""The scales of all rounded weights, trained together on the outputs of the float model.

Codes stay as a method found them; scales move so that the whole model gives what the float model does: of a language
model the least Kullback-Leibler divergence of its predictions, of others the least squared error of their outputs. That
is DWQ, distilled weight quantization, as mlx-lm has it (https://github.com/ml-explore/mlx-lm, LEARNED_QUANTS.md), which
trains scales and offsets; zero points are codes here and stay. Every eighth batch is kept apart to judge by.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...calibration import Data
from ...calibration.kept import Kept
from ...calibration.segments import MEMORY
from ...calibration.windows import MASK, predicts_tokens
from ...errors import OnnxpressError, UsageError, first_line
from ...evaluation.language import logits_of
from ...graph.constants import release
from ...planning.lazy_weight import LazyWeight
from ...planning.result import Progress
from ...quantization.quantized_weight import QuantizedWeight
from ...runtime.feeds import Feeds, is_float
from ...settings.budget import seconds_of
from ...settings.recipe import Recipe
from .products import Job
from .results import Results, Store, Trained

if TYPE_CHECKING:
    import torch

    from ...gradients.descent import State
    from ...gradients.graph import TorchGraph, Weights
    from ...gradients.rounded import RoundedWeight

NAME = "dwq"
_STEPS = 200
_RATE = 4e-3
_APART = 8
_FILE = "training"
_ROWS = 1 << 13
"""Output channels that are measured at a time."""


class Distillation:
    """A model of which the scales can be trained.

    Args:
        model: The float model, with its constants marked; it is not changed.
        readers: Names of the nodes of its main graph that read rounded weights, by the weights' identities.
        data: At least two batches.

    Raises:
        UsageError: There is one batch alone.
        OnnxpressError: The model has operators that no gradient goes through, or no output of floats.
    """

    def __init__(self, model: ir.Model, readers: dict[tuple[object, ...], list[ir.Node]], data: Data) -> None:
        from ...gradients.graph import TorchGraph

        self._is_language = predicts_tokens(model)
        floats = [value for value in model.graph.outputs if value.dtype is None or is_float(value.dtype.numpy())]
        names = [logits_of(model)] if self._is_language else [value.name or "" for value in floats]
        if not names:
            raise OnnxpressError(f"no output of the model is of floats, which {NAME} needs to compare")
        self._readers, self._names = readers, names
        nodes = [node.name or "" for each in readers.values() for node in each]
        self._graph: TorchGraph = TorchGraph(model, names, nodes)
        self._batches = list(data)
        if len(self._batches) < 2:
            raise UsageError(
                f"{data.name}: holds one batch, and {NAME} needs two, to learn by and to judge by; give more samples, "
                "or a smaller batch"
            )

    def train(self, jobs: list[Job], results: Results, recipe: Recipe, progress: Progress, store: Store) -> Results:
        """Train the scales of what was rounded.

        Args:
            jobs: The weights.
            results: How they are rounded.
            recipe: With the steps, the rate, and how long it may take.
            progress: Told how the work goes on.
            store: Where the state and the weights are kept.

        Returns:
            The results, with what was trained.

        Raises:
            OnnxpressError: A node cannot be computed, or results cannot be kept.
        """
        from ...gradients.descent import Descent

        begin = time.perf_counter()
        rounded = [job for job in jobs if job.weight.identity in results]
        weights = {job.index: _weight(job.weight, results) for job in rounded}
        given = {
            node.name or "": functools.partial(_as_read, node, weights[job.index])
            for job in rounded
            for node in self._readers[job.weight.identity]
        }
        apart = list(range(0, len(self._batches), _APART))
        learned = [index for index in range(len(self._batches)) if index not in apart]
        moving = [weight.change for weight in weights.values() if weight.change.requires_grad]
        steps, rate = recipe.steps or _STEPS, recipe.learning_rate or _RATE
        wanted = Kept(MEMORY)
        try:
            self._run_float(wanted, progress)
            descent = Descent(moving, self._loss_by(given, wanted), learned, apart, steps, rate)
            if store.files.has(_FILE):
                descent.go_on(store.files.read(_FILE, descent.arrays()))
            deadline = float("inf") if recipe.search_time is None else begin + seconds_of(recipe.search_time)
            ended = descent.run(functools.partial(progress, NAME), deadline, functools.partial(_keep, store))
        except RuntimeError as error:  # as PyTorch has it for too little memory, too
            raise OnnxpressError(f"{NAME}: PyTorch cannot go on: {first_line(error)}") from error
        finally:
            wanted.close()
        made = Results(results)
        for job in rounded:
            result = results[job.weight.identity]
            facts = dataclasses.replace(result.rounded, method=f"{result.rounded.method}+{NAME}")
            found = _measured(job.weight, weights[job.index].result())
            made[job.weight.identity] = store.keep(f"trained{job.index}", found, facts)
        unit = "nats per token" if self._is_language else "of the outputs' squares"
        made.trained = Trained(NAME, ended.start, ended.best, unit, ended.steps)
        return made

    def _run_float(self, wanted: Kept, progress: Progress) -> None:
        """Keep what the float model gives."""
        import torch

        for batch, feeds in enumerate(self._batches):
            progress("outputs", batch, len(self._batches))
            with torch.no_grad():
                for name, value in zip(self._names, self._graph.run(feeds), strict=True):
                    wanted.put(batch, name, value.numpy())

    def _loss_by(self, given: Weights, wanted: Kept) -> Callable[[int], torch.Tensor]:
        import torch

        from ...gradients.losses import divergence, squared_error

        measure = divergence if self._is_language else squared_error

        def loss(batch: int) -> torch.Tensor:
            feeds = self._batches[batch]
            found = self._graph.run(feeds, given)
            pairs = zip(found, (torch.from_numpy(wanted.get(batch, name)) for name in self._names), strict=True)
            mask = _mask(feeds)
            return torch.stack([measure(here, there, mask) for here, there in pairs]).sum()

        return loss


def _keep(store: Store, state: State) -> None:
    store.files.keep(_FILE, *state)


def _mask(feeds: Feeds) -> torch.Tensor | None:
    """Which tokens are none of padding; None where no input says so."""
    import torch

    mask = feeds.get(MASK)
    if not isinstance(mask, np.ndarray) or mask.ndim != 2:
        return None
    ids = feeds.get("input_ids")
    if ids is not None and ids.shape != mask.shape:  # it has a past, too
        mask = mask[:, mask.shape[1] - ids.shape[1] :]
    return torch.from_numpy(mask != 0)


def _weight(weight: LazyWeight, results: Results) -> RoundedWeight:
    from ...gradients.rounded import RoundedWeight

    has_factor = weight.factor and not weight.scheme.takes_factors
    return RoundedWeight(results[weight.identity].read(), weight.factor if has_factor else 1.0)


def _measured(weight: LazyWeight, found: QuantizedWeight) -> QuantizedWeight:
    """The rounded weight with its squared error as it is now."""
    given = weight.rows()
    rows = given if weight.weight.transposed else given.T
    parts = [slice(begin, begin + _ROWS) for begin in range(0, len(rows), _ROWS)]
    error = sum(float(np.square(found.part(part).rows() - rows[part], dtype=np.float64).sum()) for part in parts)
    del given, rows
    release(weight.weight.tensor)
    return dataclasses.replace(found, error=dataclasses.replace(found.error, error=error))


def _as_read(node: ir.Node, weight: RoundedWeight) -> torch.Tensor:
    """The weight in the layout of a node's second input."""
    rows = weight.rows()
    return rows if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else rows.T
