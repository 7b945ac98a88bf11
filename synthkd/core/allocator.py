"""Whether memory that was freed is kept for the next tensor, on a CPU."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of glibc's mallopt, as its malloc.h numbers them
KEPT, USUALLY_KEPT = 2**31 - 1, 128 * 1024  # bytes at the end of the heap that are not given back
MAPPED = 65536  # blocks that may have a mapping of their own, usually


def keep_freed_memory(keep: bool = True) -> bool:
    """Has glibc keep the memory that this process frees, or (False) do as it usually does; whether
    it could be told.

    Usually each tensor of more than 32 MiB is mapped anew and given back when it is freed, so that
    the system clears every page of it again: up to a third of the time of a training step whose
    feature maps are large. What is kept serves the next step; the peak stays nearly the same. With
    another C library, or another system, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(MMAP_MAX, 0 if keep else MAPPED)
    return bool(mapped and mallopt(TRIM_THRESHOLD, KEPT if keep else USUALLY_KEPT))
