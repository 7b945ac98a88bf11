"""Memory that is freed and taken again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from synthkd.core.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16_000_000)  # 64 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
keep_freed_memory(False)
usual = faults()
told = keep_freed_memory()
faults(), faults()
print(told, usual, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc to be told")
def test_freed_memory_is_not_cleared_again() -> None:
    """64 MB are 15,625 pages of 4 kB: a fault for each page, four times, or hardly any."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    told, usual, kept = found.stdout.split()
    assert told == "True" and int(usual) > 4 * 15_000 and int(kept) < 1_000, found.stdout


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of a C library that has no such function."""
    from synthkd.core import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
