"""Seconds of whole models in memory, in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from .bench import take_turns
from .feeds import Feeds
from .temporary import temporary_session


def seconds_of_models(models: Sequence[ir.Model], feeds: Feeds, rounds: int = 5) -> list[float]:
    """Median seconds of a run of each.

    Args:
        models: All take the same inputs; they stay as they are.
        feeds: The inputs.
        rounds: Turns of each, as `take_turns` has them.

    Raises:
        OnnxpressError: ONNX Runtime cannot load a model.
    """
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(temporary_session(model)) for model in models]
        samples = take_turns([partial(session.run, None, feeds) for session in sessions], rounds)
    return [float(np.median(times)) for times in samples]
