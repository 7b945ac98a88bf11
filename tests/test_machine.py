"""What a run says about the machine that it ran on."""

import subprocess
import sys

import pytest
import torch

from synthkd.commands.machine import peak_memory_mb

LARGE = 1_500_000_000
ASKED = """
import torch
from synthkd.commands.machine import peak_memory_mb
print(peak_memory_mb(torch.device("cpu")))
"""


def test_peak_memory_knows_what_was_freed() -> None:
    held = bytearray(LARGE)
    del held
    assert peak_memory_mb(torch.device("cpu")) > LARGE / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc tells")
def test_peak_memory_is_that_of_this_process_alone() -> None:
    held = bytearray(LARGE)
    told = subprocess.run(
        [sys.executable, "-c", ASKED], capture_output=True, text=True, check=True
    ).stdout
    assert 50 < float(told) < len(held) / 1e6
