"""Load one model in a process of its own and print how long it took and what memory it needs, as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from .. import storage
from .feeds import random_feeds
from .session import open_session, session_options, uses_our_ops


def resident() -> int:
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(path: str, threads: int, dims: dict[str, int], config: dict[str, str]) -> None:
    """Print {"load_seconds", "memory"}: memory is what the process gained by loading and one run."""
    options = session_options(threads=threads, ours=uses_our_ops(storage.load(path)), config=config)
    before = resident()
    start = time.perf_counter()
    session = open_session(path, options)
    seconds = time.perf_counter() - start
    session.run(None, random_feeds(session.get_inputs(), dims))
    print(json.dumps({"load_seconds": seconds, "memory": resident() - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4]))
