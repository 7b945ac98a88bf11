"""How much memory there is, and how to do with less."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from synthkd.core.errors import is_out_of_memory

T = TypeVar("T")

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def machine_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or what its control group (that of
    a container, say) allows where that is less. Infinite where the system does not tell."""
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError):
        return float("inf")
    return min((whole, *limits()))


def limits(own: Path = OWN, groups: Path = GROUPS) -> Iterator[float]:
    """Limits in bytes of the control groups that a process is in, and of those around them: `own`
    lists them, in the form of /proc/self/cgroup, and `groups` is where they are told, by version 2
    (memory.max) or 1 (memory.limit_in_bytes)."""
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        here = Path(path.strip("/"))
        for place in (here, *here.parents):
            try:
                yield float(int((root / place / name).read_text(encoding="ascii")))
            except (OSError, ValueError):  # not told here, or "max"
                continue


def in_fitting_parts(
    work: Callable[[int], T], parts: int, most: int, undo: Callable[[], None]
) -> tuple[T, int]:
    """`work(parts)`, done in so many parts that each fits into memory: where there is none left,
    `undo` is called and twice as many are tried, up to `most`. Returns also the number of parts.

    >>> def refusing(parts):
    ...     if parts < 3:
    ...         raise MemoryError
    ...     return f"done in {parts}"
    >>> in_fitting_parts(refusing, 1, 8, lambda: print("again"))
    again
    again
    ('done in 4', 4)
    """
    while True:
        try:
            return work(parts), parts
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or 2 * parts > most:
                raise
        undo()  # outside of `except`, where the error holds what is to be given up
        parts *= 2
