"""The scales of all rounded weights, trained together on the outputs of the float model.

Codes stay as a method found them; scales move so that the whole model gives what the float model does: of a language
model the least Kullback-Leibler divergence of its predictions, of others the least squared error of their outputs. That
is DWQ, distilled weight quantization, as mlx-lm has it (https://github.com/ml-explore/mlx-lm, LEARNED_QUANTS.md), which
trains scales and offsets; zero points are codes here and stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...calibration.kept import Kept
from ...calibration.segments import MEMORY
from ...planning.result import Progress
from ...settings.recipe import Recipe
from .products import Job
from .results import Results, Store, Trained
from .training import STEPS, Setup, as_read, deadline_of, factor_of, measured, with_method

if TYPE_CHECKING:
    import torch

    from ...gradients.descent import State
    from ...gradients.graph import Weights

NAME = "dwq"
_RATE = 4e-3
_FILE = "training"


def distill(
    setup: Setup, jobs: Sequence[Job], results: Results, recipe: Recipe, progress: Progress, store: Store
) -> Results:
    """Train the scales of what was rounded.

    Args:
        setup: The model and its data.
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
    from ...gradients.rounded import RoundedWeight

    deadline = deadline_of(recipe)
    rounded = [job for job in jobs if job.weight.identity in results]
    weights = {job.index: RoundedWeight(results[job.weight.identity].read(), factor_of(job.weight)) for job in rounded}
    given = {
        node.name or "": functools.partial(as_read, node, weights[job.index])
        for job in rounded
        for node in setup.readers[job.weight.identity]
    }
    moving = [weight.change for weight in weights.values() if weight.change.requires_grad]
    steps, rate = recipe.steps or STEPS, recipe.learning_rate or _RATE
    wanted = Kept(MEMORY)
    try:
        _run_float(setup, wanted, progress)
        descent = Descent(moving, _loss_by(setup, given, wanted), setup.learned, setup.apart, steps, rate)
        if store.files.has(_FILE):
            descent.go_on(store.files.read(_FILE, descent.arrays()))
        ended = descent.run(functools.partial(progress, NAME), deadline, functools.partial(_keep, store))
    finally:
        wanted.close()
    made = Results(results)
    for job in rounded:
        found = measured(job.weight, weights[job.index].result())
        facts = with_method(results[job.weight.identity].rounded, NAME)
        made[job.weight.identity] = store.keep(f"trained{job.index}", found, facts)
    unit = "nats per token" if setup.is_language else "of the outputs' squares"
    made.trained = [*results.trained, Trained(NAME, ended.start, ended.best, unit, ended.steps)]
    return made


def _run_float(setup: Setup, wanted: Kept, progress: Progress) -> None:
    """Keep what the float model gives."""
    import torch

    for batch, feeds in enumerate(setup.batches):
        progress("outputs", batch, len(setup.batches))
        with torch.no_grad():
            for name, value in zip(setup.outputs, setup.graph.run(feeds), strict=True):
                wanted.put(batch, name, value.numpy())


def _loss_by(setup: Setup, given: Weights, wanted: Kept) -> Callable[[int], torch.Tensor]:
    import torch

    from ...gradients.losses import divergence, squared_error

    measure = divergence if setup.is_language else squared_error

    def loss(batch: int) -> torch.Tensor:
        found = setup.graph.run(setup.batches[batch], given)
        pairs = zip(found, (torch.from_numpy(wanted.get(batch, name)) for name in setup.outputs), strict=True)
        mask = setup.mask(batch)
        return torch.stack([measure(here, there, mask) for here, there in pairs]).sum()

    return loss


def _keep(store: Store, state: State) -> None:
    store.files.keep(_FILE, *state)
