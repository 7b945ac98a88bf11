"""One thread a process, so that two workers share two cores and sums come out the same."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when torch is imported
    os.environ[name] = "1"

import time
from collections.abc import Callable

import hypothesis
import pytest
import torch
from torch import nn

from synthkd.networks import build_network

torch.set_num_threads(1)
hypothesis.settings.register_profile("synthkd", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("synthkd")
BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes", type=float, default=float("inf"),
        help="after so long the tests marked slow that are left are skipped; all others are run",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGAN] = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones last, in each half of the tests: a half is what a worker begins with."""
    middle = len(items) // 2
    for half in (slice(middle), slice(middle, None)):
        items[half] = sorted(items[half], key=lambda item: "slow" in item.keywords)


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if "slow" in item.keywords and time.monotonic() - item.config.stash[BEGAN] > 60 * minutes:
        pytest.skip(f"{minutes:g} minutes are over: plain pytest runs it, however long it takes")


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
