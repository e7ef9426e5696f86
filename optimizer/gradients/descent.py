"""Gradient descent that keeps the best that it meets.

Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) on one batch a step, with a rate that falls to 0 in a straight
line. Batches come in an order drawn anew each time round, from a fixed seed. What is met is judged on batches kept
apart, at the beginning, at the end and between; the least loss wins, so that the result is never worse there than the
start. Between two judgements lies a state from which the same descent goes on to the same numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_BETAS = 0.9, 0.999
_EPSILON = 1e-12  # gradients of means are small
_JUDGED = 10
"""Times that it is judged after its start."""
_SEED = 0

State = tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]
"""Facts and arrays."""


@dataclasses.dataclass(frozen=True)
class Descended:
    """What became of it.

    Attributes:
        start: The loss on batches kept apart, before.
        best: The least.
        steps: That were taken.
    """

    start: float
    best: float
    steps: int


class Descent:
    """A descent, which may have begun before.

    Args:
        parameters: Tensors that are trained; `run` leaves the best in them.
        loss: That of a batch, by its number.
        train: Batches to learn by.
        apart: Batches to judge by.
        steps: To take.
        rate: Length of the first step; the same for all parameters, which Adam sees to.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], loss: Callable[[int], torch.Tensor], train: Sequence[int],
        apart: Sequence[int], steps: int, rate: float,
    ) -> None:  # fmt: skip
        self._parameters, self._loss, self._train, self._apart = list(parameters), loss, list(train), list(apart)
        self._steps, self._rate, self._done = steps, rate, 0
        self._means = [torch.zeros_like(each) for each in parameters]
        self._squares = [torch.zeros_like(each) for each in parameters]
        self._best = [each.detach().clone() for each in parameters]
        self._losses: list[float] = []

    def run(
        self, progress: Callable[[int, int], None], deadline: float = float("inf"),
        keep: Callable[[State], None] = lambda _state: None,
    ) -> Descended:  # fmt: skip
        """Take all steps.

        Args:
            progress: Told how many steps are done, of how many.
            deadline: By `time.perf_counter`, after which no step is begun.
            keep: Given what `go_on` takes, whenever there is something new to judge by.
        """
        every = max(1, self._steps // _JUDGED)
        if not self._losses:
            self._judge()
        while self._done < self._steps and time.perf_counter() < deadline:
            progress(self._done, self._steps)
            self._step()
            if self._done % every == 0 or self._done == self._steps:
                self._judge()
                keep(self._state())
        if self._done % every and self._done < self._steps:
            self._judge()
        progress(self._done, self._steps)
        with torch.no_grad():
            for parameter, best in zip(self._parameters, self._best, strict=True):
                parameter.copy_(best)
        return Descended(self._losses[0], min(self._losses), self._done)

    def go_on(self, state: State) -> None:
        """Take up a descent where it was kept."""
        facts, arrays = state
        self._done, self._losses = facts["done"], list(facts["losses"])
        with torch.no_grad():
            for name, tensors in self._named():
                for index, tensor in enumerate(tensors):
                    tensor.copy_(torch.from_numpy(arrays[f"{name}{index}"]))

    def arrays(self) -> list[str]:
        """Names of those of a state."""
        return [f"{name}{index}" for name, tensors in self._named() for index in range(len(tensors))]

    def _named(self) -> list[tuple[str, list[torch.Tensor]]]:
        return [("now", self._parameters), ("mean", self._means), ("square", self._squares), ("best", self._best)]

    def _state(self) -> State:
        arrays = {
            f"{name}{index}": tensor.detach().numpy()
            for name, tensors in self._named()
            for index, tensor in enumerate(tensors)
        }
        return {"done": self._done, "losses": list(self._losses)}, arrays

    def _step(self) -> None:
        rounds, index = divmod(self._done, len(self._train))
        order = np.random.default_rng((_SEED, rounds)).permutation(len(self._train))
        self._loss(self._train[order[index]]).backward()
        rate = self._rate * (1 - self._done / self._steps)
        self._done += 1
        with torch.no_grad():
            for index, parameter in enumerate(self._parameters):
                slope = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter -= rate * self._direction(index, slope)
                parameter.grad = None

    def _direction(self, index: int, slope: torch.Tensor) -> torch.Tensor:
        """That of Adam for a parameter."""
        mean, square = self._means[index], self._squares[index]
        mean.lerp_(slope, 1 - _BETAS[0])
        square.lerp_(slope.square(), 1 - _BETAS[1])
        fall, slow = (1 - beta**self._done for beta in _BETAS)
        return mean / fall / ((square / slow).sqrt() + _EPSILON)

    def _judge(self) -> None:
        """See what the loss is now, and keep what is best."""
        with torch.no_grad():
            loss = float(np.mean([float(self._loss(batch)) for batch in self._apart]))
            if self._losses and loss < min(self._losses):
                for best, parameter in zip(self._best, self._parameters, strict=True):
                    best.copy_(parameter)
        self._losses.append(loss)


class SignDescent(Descent):
    """A descent by the signs of slopes alone (SignSGD), which holds nothing but the best.

    Args:
        lengths: How far each parameter goes, as a multiple of the others.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], loss: Callable[[int], torch.Tensor], train: Sequence[int],
        apart: Sequence[int], steps: int, lengths: Sequence[float],
    ) -> None:  # fmt: skip
        super().__init__(parameters, loss, train, apart, steps, 1 / steps)
        self._means, self._squares, self._lengths = [], [], list(lengths)

    def _direction(self, index: int, slope: torch.Tensor) -> torch.Tensor:
        return slope.sign() * self._lengths[index]
