"""Load one model in a process of its own and print how long it took and what memory it needs, as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from ..runtime.feeds import read_arrays
from .openvino import import_peer, open_any


def resident() -> int:
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(path: str, options: dict[str, Any], feeds: str) -> None:
    """Print {"load_seconds", "memory"}: memory is what the process gained by loading and one run.

    `options` is what `open_any` takes, `feeds` an .npz file of the inputs.
    """
    import_peer("openvino" if "onnx" in options else "onnxruntime")
    before = resident()
    start = time.perf_counter()
    session = open_any(Path(path), options)
    seconds = time.perf_counter() - start
    session.run(None, read_arrays(feeds))
    print(json.dumps({"load_seconds": seconds, "memory": resident() - before}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
