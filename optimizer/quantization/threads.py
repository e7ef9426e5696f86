"""How many threads there are to share work; what comes out does not depend on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

_LIMIT: ContextVar[int | None] = ContextVar("_LIMIT", default=None)


def threads() -> int:
    """As many as cores, unless `limited` says otherwise."""
    return _LIMIT.get() or len(os.sched_getaffinity(0))


def limit() -> int | None:
    """What `limited` says, if anything does."""
    return _LIMIT.get()


@contextlib.contextmanager
def limited(count: int) -> Iterator[None]:
    """Work on so many threads, where others have the rest of the machine."""
    token = _LIMIT.set(count)
    try:
        yield
    finally:
        _LIMIT.reset(token)
