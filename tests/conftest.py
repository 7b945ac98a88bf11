"""One thread a process, so that two workers share two cores and sums come out the same."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when torch is imported
    os.environ[name] = "1"

from collections.abc import Callable

import hypothesis
import pytest
import torch
from torch import nn

from synthkd.networks import build_network

torch.set_num_threads(1)
hypothesis.settings.register_profile("synthkd", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("synthkd")


@pytest.fixture(autouse=True)
def _the_same_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _torch_in_docstrings(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture
def network() -> Callable[[str], nn.Module]:
    """Builds a network for grey images of 8 (LeNet: 32) pixels and three classes, whose BatchNorm
    layers have seen something."""

    def built(name: str) -> nn.Module:
        size = 32 if name.startswith("lenet") else 8
        body = build_network(name, channels=1, size=size, classes=3).train()
        for _ in range(2):
            body(torch.randn(8, 1, size, size))
        return body.eval()

    return built
