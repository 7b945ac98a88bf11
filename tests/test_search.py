"""A search for students: its front, its limit, its time, its resumption."""

import json
import os
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from short_runs import main, status

from synthkd.students.pareto import chosen, dominates, front, hypervolume

pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parents[1]
FLAGS = shlex.split(
    "search --minutes 0.35 --run.threads 1 --quiet --training.batch 64 "
    "--stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 64 --stage.refine.fresh 64"
)
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=12)


@given(POINTS)
def test_a_front_has_exactly_what_no_other_dominates(points) -> None:
    points = [(float(a), float(b)) for a, b in points]
    found = {points[k] for k in front(points)}
    best = {p for p in points if not any(dominates(q, p) for q in points)}
    assert found == best
    costs = [points[k][1] for k in front(points)]
    assert all(a < b for a, b in pairwise(costs))


@given(POINTS)
def test_the_hypervolume_is_the_area_of_the_cells_that_are_dominated(points) -> None:
    points = [(float(a), float(b)) for a, b in points]
    cells = sum(
        any(a >= height + 1 and cost <= place for a, cost in points)
        for height in range(6) for place in range(1, 8)
    )  # fmt: skip
    assert hypervolume(points, (0.0, 8.0)) == cells


def test_what_is_chosen_keeps_the_limit() -> None:
    points = [(0.99, 9.0), (0.985, 5.0), (0.5, 1.0)]
    assert chosen(points) == 1  # as good but for a point, and faster
    assert chosen(points, 10.0) == 0 and chosen(points, 2.0) == 2 and chosen(points, 0.5) is None


@pytest.mark.slow
def test_a_search_ends_with_a_front_and_a_trained_student(tmp_path: Path) -> None:
    out = tmp_path / "found"
    main([*FLAGS, "--out", str(out)])
    told = json.loads((out / "front.json").read_text())
    points = [(t["agreement"], t["milliseconds"]) for t in told["front"]]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(points))
    summary = json.loads((out / "student" / "summary.json").read_text())
    assert summary["student"] == told["chosen"]["student"]
    assert summary["images_seen"] > 0 and summary["real_images_read"] == 0
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "student" / "report.html").is_file()
    longest = max(t["seconds"] for t in told["trials"])
    assert all(t["seconds"] >= longest / 2 for t in told["front"])


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(tmp_path: Path, capsys) -> None:
    out = tmp_path / "found"
    process = subprocess.Popen(
        [sys.executable, "-m", "synthkd", *FLAGS, "--out", str(out)], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    trials = out / "trials.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (trials.is_file() and trials.stat().st_size):
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = trials.read_text()
    assert before and not (out / "front.json").exists()
    main([*FLAGS, "--out", str(out)])
    assert trials.read_text().startswith(before)
    assert (out / "front.json").is_file()
    assert status(*FLAGS, "--out", str(out)) == 2  # it is finished now
    assert status(*FLAGS, "--seed", "7", "--out", str(out)) == 2


def test_no_student_within_the_limit_is_one_line(tmp_path: Path, capsys) -> None:
    code = status(*FLAGS, "--max-latency-ms", "0.000001", "--out", str(tmp_path / "found"))
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_search_needs_minutes(tmp_path: Path, capsys) -> None:
    words = [w for w in FLAGS if w not in ("--minutes", "0.35")]
    assert status(*words, "--out", str(tmp_path / "found")) == 2
    assert "--minutes" in capsys.readouterr().err
