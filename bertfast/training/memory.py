"""Memory that training frees and asks for again at every step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 1 << 30  # bytes; glibc's own bound is 32 MiB


def keep_freed_memory() -> bool:
    """Lets this process keep the large blocks that it frees, for the next step; returns whether the
    C library can.

    By default glibc gives blocks above 32 MiB back to the system at once. Each step would then have
    a vocabulary-sized gradient's pages mapped and zeroed anew. The process holds on to its peak in
    exchange.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None
        and bool(mallopt(M_MMAP_THRESHOLD, LARGEST))
        and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
    )
