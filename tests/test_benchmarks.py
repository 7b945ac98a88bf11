"""The benchmarks can be read and started; what they measure is in docs/log.md."""

import doctest
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


def test_there_are_benchmarks():
    assert len(FILES) >= 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    assert runpy.run_path(str(path), run_name="imported")["__doc__"]


@pytest.mark.parametrize("name", ["pruned_families", "search"])
def test_the_examples_of_a_benchmark_hold(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FILES[0].parent))
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", ["scaling", "diffusion", "without_batchnorm", "answers", "search"])
def test_a_benchmark_tells_how_it_is_used(name):
    path = next(path for path in FILES if path.stem == name)
    said = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True
    )
    assert "usage:" in said.stdout
