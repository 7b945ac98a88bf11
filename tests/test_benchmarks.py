"""The benchmarks can be read and started; what they measure is in docs/log.md."""

import doctest
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from synthkd.engine.estimate import RoundCost
from synthkd.recipe import Stage

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


@pytest.mark.parametrize("name", ["scaling", "diffusion", "slim", "search"])
def test_a_benchmark_tells_how_it_is_used(name):
    path = next(path for path in FILES if path.stem == name)
    said = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True
    )
    assert "usage:" in said.stdout


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(FILES[0].parent))
    return importlib.import_module


def test_a_row_that_is_there_is_not_made_again(script, tmp_path):
    made = []
    for _ in range(2):
        rows = script("rows").Rows(tmp_path / "out")
        assert rows.make("a-1", lambda: made.append(1) or {"value": 2.5}) == {
            "name": "a-1", "value": 2.5,
        }  # fmt: skip
    assert made == [1] and rows.like("a-") == [rows.by_name["a-1"]] and not rows.like("b")


def test_means_with_their_spread(script):
    rows = script("rows")
    assert rows.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert (rows.spread([2.0]), rows.spread([])) == ("2.0", "-")
    # variances 1 and 4, three values each: the root of 5/3
    assert rows.difference([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]) == "+0.00 ± 1.29"


LAPS = """a 0 2.0 100 0
a 1 5.0 200 0
b 2 8.0 200 64
b 3 11.0 200 128
b 4 12.5 200 160"""


def test_what_a_round_costs_is_read_from_a_run_and_foretells_others(script, tmp_path):
    """Rounds of 2.5 s that make 100 images, and of 3 s that learn 64, of which the last is a
    half."""
    costs = script("cost_model")
    keys = ("stage", "round", "seconds", "synthesized", "images_seen")
    rows = [dict(zip(keys, [stage, *map(float, rest)], strict=True))
            for stage, *rest in map(str.split, LAPS.splitlines())]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = [
        Stage(name="a", share=0.5, student_steps=0, synthesis_steps=0),
        Stage(name="b", share=0.5, student_steps=2),
    ]
    found = costs.costs_of(tmp_path, stages)
    assert found == {
        "a": RoundCost(2.5, 0.0, 0.0, 100.0, 0.0), "b": RoundCost(0.0, 0.0, 3.0, seen=64.0),
    }  # fmt: skip
    given = {"repeats": 1, "whole": 2}
    # 160 images: two rounds of a, two and a half of b
    alone = costs.predicted(stages, found, 160, count=1, exchange=0.0, **given)
    assert alone == pytest.approx(2 * 2.5 + 2.5 * 3.0)
    two = costs.predicted(stages, found, 160, count=2, exchange=0.1, **given)
    assert two == pytest.approx(1 * 2.5 + 2.5 * (1.5 + 2 * 0.1))
    four = costs.predicted(stages, found, 160, count=4, exchange=0.1, **given)  # at half the speed
    assert four == pytest.approx(1 * 5.0 + 2.5 * (1.5 + 2 * 0.1))


def test_seconds_of_shards_by_several_workers(script):
    by_workers = script("cost_model").by_workers
    assert by_workers(100.0, 80.0, 8, 1) == 100.0
    assert by_workers(100.0, 80.0, 8, 2) == 20.0 + 40.0
    assert by_workers(100.0, 80.0, 8, 3) == 20.0 + 30.0  # two workers have three shards
