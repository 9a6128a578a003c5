"""What the C library does with memory that a step gives back."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for the next step, instead of returning it to the system page by page.

    A training step on a CPU, or the next sound through a network, frees and takes again the same hundreds of megabytes;
    by default each time costs a page fault per 4 kB. The process's peak stays the same, but it holds on to it.

    Returns:
        Whether this C library does it; nothing changes elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))
