"""A session under ONNX Runtime's profiler, whose counted runs follow a pause and one that is not counted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OnnxpressError
from .feeds import Feeds
from .node_events import NodeEvent, node_events
from .session import open_session

if TYPE_CHECKING:
    import onnxruntime as ort

_PAUSE = 0.06  # seconds; threads of the other session go on spinning for some 20 ms
_RUNS = 3  # counted ones in a turn


class ProfiledSession:
    """A model that takes turns with others.

    Args:
        path: The model.
        options: Of its session; they become such as profile.
        name: What to call it in an error.
        prefix: Of the file that the profiler writes, and of its folder.

    Attributes:
        counted: Of each run so far, whether it counts.

    Raises:
        OnnxpressError: ONNX Runtime refuses the model.
    """

    def __init__(self, path: Path, options: ort.SessionOptions, name: str, prefix: Path) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        self._name, self._session = name, open_session(path, options, name)
        self.counted: list[bool] = []
        self._is_over = False

    def turn(self, feeds: Feeds) -> None:
        """Run it some times; raises OnnxpressError where that fails."""
        time.sleep(_PAUSE)
        for index in range(1 + _RUNS):
            try:
                self._session.run(None, feeds)
            except Exception as error:  # ONNX Runtime raises a type for each of its status codes
                raise OnnxpressError(f"{self._name}: cannot run: {str(error).splitlines()[0]}") from error
            self.counted.append(index > 0)

    def stop(self) -> Path | None:
        """Otherwise ONNX Runtime would write the profile when the session goes, after its folder."""
        if self._is_over:
            return None
        self._is_over = True
        return Path(self._session.end_profiling())

    def end(self) -> list[NodeEvent]:
        """The nodes of all runs, in their order; there are no runs after it."""
        path = self.stop()
        assert path is not None
        return list(node_events(path))
