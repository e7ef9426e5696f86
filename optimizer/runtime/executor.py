"""Pieces of work that do not depend on each other: done here one after the other, or by many machines.

What has such pieces hands them to an `Executor` and takes the results in order, the same ones whoever made them. A
piece alone has all threads of this machine, so `ALONE` begins none before the last is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Shared(Protocol[R_co]):
    """What several pieces of work read."""

    def get(self) -> R_co:
        """It, where the work is done."""


class Executor(Protocol):
    """What does pieces of work."""

    def share(self, value: T) -> Shared[T]:
        """Make something known to pieces of work that is handed over once; it can be pickled."""

    def share_made(self, value: T, make: Callable[[T], R]) -> Shared[R]:
        """Make known what each process that works on such pieces has to make for itself, as a session.

        Args:
            value: What it is made of; can be pickled.
            make: A function of a module, called once by each process, and again where that made another such thing
                since.
        """

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], count: int) -> Iterator[R]:
        """What a function gives for each of some arguments, in their order.

        Args:
            function: Of a module; what it gives depends on its arguments alone.
            calls: Arguments, which can be pickled. They are asked for as they are needed: each may take work, and
                memory.
            count: How many there are, at most.

        Raises:
            OnnxpressError: As the function; or the work was lost, again and again.
        """


class Alone:
    """Does the work itself, when it is asked for the result."""

    def share(self, value: T) -> Shared[T]:
        """As `Executor` says."""
        return _Made(lambda: value)

    def share_made(self, value: T, make: Callable[[T], R]) -> Shared[R]:
        """As `Executor` says."""
        return _Made(lambda: make(value))

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], count: int) -> Iterator[R]:
        """As `Executor` says."""
        for call in calls:
            result = function(*call)
            del call  # which may hold much that the next one does not need
            yield result


ALONE = Alone()


@dataclasses.dataclass(frozen=True)
class Means:
    """What long work is done with.

    Attributes:
        executor: Does what does not depend on each other.
        checkpoint: A folder where work that was interrupted goes on; None where nothing is kept.
    """

    executor: Executor = ALONE
    checkpoint: Path | None = None


PLAIN_MEANS = Means()
"""Done here, and nothing is kept."""


class _Made(Generic[R]):
    """Made when it is first asked for."""

    def __init__(self, make: Callable[[], R]) -> None:
        self._make: Callable[[], R] | None = make
        self._found: list[R] = []

    def get(self) -> R:
        if self._make is not None:
            self._found, self._make = [self._make()], None
        return self._found[0]


@contextlib.contextmanager
def executor_at(ray: str | None) -> Iterator[Executor]:
    """What does the work: the Ray cluster at an address, or this process where there is none.

    Raises:
        UsageError: Ray is not installed, or this is no address.
        OnnxpressError: There is no cluster that takes the work.
    """
    if ray is None:
        yield ALONE
        return
    from .ray_cluster import connected

    with connected(ray) as cluster:
        yield cluster
