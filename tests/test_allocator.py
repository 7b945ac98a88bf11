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


GIVEN_BACK = """
import resource
import torch
from synthkd.core.allocator import give_back_freed_memory, keep_freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

keep_freed_memory()
whole = torch.ones(64_000_000)  # 256 MB
while_used = held()
small = torch.ones(1)
del whole
kept = held()
told = give_back_freed_memory()
print(told, while_used, kept, held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc to be told")
def test_kept_memory_can_be_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True)
    told, *held = found.stdout.split()
    while_used, kept, left = map(int, held)
    assert told == "True" and while_used - kept < 50e6 and kept - left > 200e6, found.stdout


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
    assert not allocator.keep_freed_memory() and not allocator.give_back_freed_memory()
