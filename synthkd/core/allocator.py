"""Whether memory that was freed is kept for the next tensor, on a CPU."""

import ctypes
import sys
from contextlib import suppress
from typing import Any

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
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    mapped = mallopt(MMAP_MAX, 0 if keep else MAPPED)
    return bool(mapped and mallopt(TRIM_THRESHOLD, KEPT if keep else USUALLY_KEPT))


def give_back_freed_memory() -> bool:
    """Has glibc give the system all memory that this process has freed and that was kept, once;
    whether it could be told. What a process is said to hold is then what it uses."""
    trim = _of_glibc("malloc_trim")
    if trim is None:
        return False
    trim(0)
    return True


def _of_glibc(name: str) -> Any:
    """A function of the C library, or None where it has none of that name."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError):
        return getattr(ctypes.CDLL(None), name, None)
    return None
