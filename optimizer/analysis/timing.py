"""Seconds of runs, taken in turns.

The order changes every round, so that a machine whose speed drifts is fair to all. ONNX Runtime's threads go on
spinning for some 20 ms after a run; another session's run beside them was seen to take twice its time. So each turn
begins with a pause and an uncounted run. OpenVINO's threads, which do the same, are no different: neither runtime was
measured slower beside the other than alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from .feeds import Feeds
from .temporary import temporary_session

_PAUSE = 0.06  # seconds, three times what the threads were seen to spin
_TURN = 0.15  # seconds of counted runs in a turn


def take_turns(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[list[float]]:
    """Seconds of each counted run of each callable, taken in turns that start with another one every round."""
    samples: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        for step in range(len(runs)):
            which = (turn + step) % len(runs)
            sleep(_PAUSE)
            runs[which]()
            spent = 0.0
            while spent < _TURN:
                start = clock()
                runs[which]()
                elapsed = clock() - start
                samples[which].append(elapsed)
                spent += elapsed
            progress("bench", turn * len(runs) + step + 1, rounds * len(runs))
    return samples


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
