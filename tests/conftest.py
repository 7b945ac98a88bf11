"""One thread a process, so that two workers share two cores and sums come out the same."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when torch is imported
    os.environ[name] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("synthkd", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("synthkd")


@pytest.fixture(autouse=True)
def _the_same_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _torch_in_docstrings(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
