"""Memory of files that are mapped."""

from __future__ import annotations

import mmap


def drop_pages(pages: mmap.mmap) -> None:
    """Let go of the pages of a map that were read, until they are read again, where the system can.

    Resident pages count as memory of the process, though the system can take them back at any time.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
