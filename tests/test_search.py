"""A search for students: its front, its limit, its time, its resumption."""

import json
import os
import shlex
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_runs import main, status

import synthkd
from synthkd.core.errors import InputError
from synthkd.engine import teaching
from synthkd.engine.reporter import Silent
from synthkd.jobs import search
from synthkd.jobs.distillation import Distillation
from synthkd.jobs.search import LONGER, MAKING, Search, fitting, places, shared_seconds, suggested
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import read_toml, validated
from synthkd.reports.search import Trial, best_of, read_search
from synthkd.runs.directory import Run
from synthkd.specs import load_teacher
from synthkd.students.learner import Learner
from synthkd.students.pareto import chosen, dominates, front, hypervolume

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parents[1]
FLAGS = shlex.split(
    "search --minutes 0.6 --run.threads 1 --quiet --training.batch 64 "
    "--stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 64 --stage.refine.fresh 64"
)
PARAMETERS = {"family", "ratio", "multiple", "depth", "width", "stem"}
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
    main([*FLAGS, "--max-latency-ms", "50", "--out", str(out)])
    told = json.loads((out / "front.json").read_text())
    assert told["limit"] == 50 and 0 < told["milliseconds"] < 50
    points = [(t["agreement"], t["milliseconds"]) for t in told["front"]]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(points))
    summary = json.loads((out / "student" / "summary.json").read_text())
    assert summary["student"] == told["chosen"]["student"]
    assert summary["images_seen"] > 0 and summary["real_images_read"] == 0
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "student" / "report.html").is_file()
    lines = map(json.loads, (out / "trials.jsonl").read_text().splitlines())
    assert {frozenset(line["params"]) for line in lines} == {frozenset(PARAMETERS)}
    images = {t["generation"]: t["images"] for t in told["trials"] if t["seconds"]}
    assert images[0] > 0 and list(images.values()) == sorted(images.values())
    assert told["trials"][0]["student"] == "prune:0.5"  # before anything is proposed
    assert validated(read_toml(out / "student" / "recipe.toml")).student.max_latency_ms is None
    manifest = json.loads((out / "student" / "manifest.json").read_text())
    assert manifest["begun_with"] and not (out / "weights").exists()
    found = read_search(out)
    assert found.state == "finished" and found.chosen in found.front
    html = (out / "report.html").read_text()
    assert all(trial.student in html for trial in found.trials)
    assert f"{100 * summary['student_accuracy']:.2f} %" in html

    recipe = synthkd.Recipe.of({"budget.minutes": 0.1, "run.threads": 1, "training.batch": 64})
    job = Search(recipe, tmp_path / "chance", sampler="random", population=2, generations=1)
    trials, best = job.explore(out / "set")
    assert 1 <= len(trials) <= 2 and {t.generation for t in trials} == {0}
    assert best == best_of(trials)
    assert not (tmp_path / "chance" / "set").exists()


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(tmp_path: Path, capsys) -> None:
    out = tmp_path / "found"
    trials, progress = out / "trials.jsonl", out / "progress.json"
    _killed_at(progress, out)  # the images are there
    made = (out / "set" / "manifest.json").stat().st_mtime_ns
    worked = json.loads(progress.read_text())["seconds"]
    assert worked > 0.6 * 60 * MAKING / 2 and not (out / "front.json").exists()
    (out / "optuna.journal.lock").unlink(missing_ok=True)
    (out / "optuna.journal.lock").symlink_to("gone")  # as it is left in the middle of a line
    assert read_search(out).state == "interrupted"
    _killed_at(trials, out)
    before = trials.read_text()
    assert (out / "set" / "manifest.json").stat().st_mtime_ns == made
    assert json.loads(progress.read_text())["seconds"] > worked
    _killed_at(out / "student" / "manifest.json", out)
    assert trials.read_text().startswith(before)
    taken = json.loads((out / "front.json").read_text())
    assert taken["milliseconds"] is None
    tried = trials.read_text()
    main([*FLAGS, "--out", str(out)])
    told = json.loads((out / "front.json").read_text())
    assert trials.read_text() == tried and told["chosen"] == taken["chosen"]
    assert told["milliseconds"] > 0
    summary = json.loads((out / "student" / "summary.json").read_text())
    assert summary["student"] == told["chosen"]["student"]
    assert status(*FLAGS, "--out", str(out)) == 2  # it is finished now
    assert status(*FLAGS, "--seed", "7", "--out", str(out)) == 2


def _killed_at(path: Path, out: Path) -> None:
    """Starts the search, and kills it as soon as a file has something in it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "synthkd", *FLAGS, "--out", str(out)], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 90
    while time.monotonic() < until and not (path.is_file() and path.stat().st_size):
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -9


def _point(student: str) -> list[float]:
    """Two aims that follow from the name alone."""
    told = zlib.crc32(student.encode())
    return [told % 100 / 100, 1.0 + told // 100 % 10]


def test_children_of_a_generation_inherit_whatever_their_family() -> None:
    """All parameters but a few mutated ones are those of two parents at most."""
    teacher = load_teacher(synthkd.Recipe().teacher)
    sampler = optuna.samplers.NSGAIISampler(population_size=8, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    inherited, families = 0, set()
    for number in range(32):
        trial = study.ask()
        student = suggested(trial, teacher)
        assert set(trial.params) == PARAMETERS
        generation = sampler.get_trial_generation(study, study.trials[number])
        assert generation == number // 8
        if generation:
            parents = [t.params for t in sampler.get_parent_population(study, generation)]
            families |= {parent["family"] for parent in parents}
            told = trial.relative_params
            assert told.items() <= trial.params.items()
            assert any(
                all(value in (a[name], b[name]) for name, value in told.items())
                for a in parents for b in parents
            )  # fmt: skip
            inherited += len(told)
        study.tell(trial, _point(student))
    assert len(families) > 1
    assert inherited > 0.6 * 24 * len(PARAMETERS)  # a fifth is mutated, on average


def test_a_candidate_that_is_tried_again_may_be_a_parent() -> None:
    teacher = load_teacher(synthkd.Recipe().teacher)
    sampler = optuna.samplers.NSGAIISampler(population_size=8, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    names = []
    for _ in range(2):
        trial = study.ask()
        names.append(suggested(trial, teacher))
        study.tell(trial, _point(names[-1]))
        study.enqueue_trial(trial.params)
    assert names[0] == names[1]
    assert [t.number for t in sampler.get_population(study, 0)] == [0, 1]


@given(st.floats(0, 1e4), st.floats(0, 10), st.integers(1, 9), st.integers(1, 5))
def test_what_all_candidates_take_is_the_time_that_they_share(seconds, beside, first, few) -> None:
    many = places(first, few)
    shared = shared_seconds(seconds, beside, many)
    whole = sum(count * (shared * LONGER**place + beside) for place, count in enumerate(many))
    assert whole == pytest.approx(seconds, abs=1e-6)


@given(st.integers(1, 12), st.integers(1, 5), st.floats(1, 1e4), st.floats(0.001, 10))
def test_there_are_as_many_candidates_as_leave_half_of_the_time_to_learn(
    most, generations, seconds, beside
) -> None:
    first = fitting(most, generations, seconds, beside)
    assert min(most, 2) <= first <= most

    def fits(count: int) -> bool:
        return shared_seconds(seconds, beside, places(count, generations)) >= (
            0.5 * shared_seconds(seconds, 0.0, places(count, generations)) - 1e-9
        )

    assert first <= 2 or fits(first)
    assert first == most or not fits(first + 1)


def test_candidates_learn_some_time_also_where_there_is_none_left(tmp_path: Path) -> None:
    job = Search(_recipe(1), tmp_path / "found")
    job._until = time.perf_counter() - 100
    assert job._first_seconds(1.0) > 0 and job._first == 2
    job._counts[0] = 64
    assert job._planned(1, [Trial("resnet8-w4", 1.0, 0.5, 1.0, 9, 0, 64)]) == 64


def test_later_generations_learn_as_much_as_the_time_allows(tmp_path: Path) -> None:
    """Two generations are left, of 6 and 4 candidates, for 180 seconds: 6 s + 4 · 3 s = 180."""
    job = Search(_recipe(1), tmp_path / "found")
    job._counts[0] = 640
    job._until = time.perf_counter() + 180
    trials = [
        Trial("resnet8-w4", 1.0, 0.5, 1.0, 9, 0, 640), Trial("prune:0.5", 3.0, 0.5, 1.0, 9, 0, 640),
        Trial("resnet8-w8", 0.0, 0.0, 9.0, 9, 0),
    ]  # fmt: skip
    assert job._planned(1, trials) == pytest.approx(10 * 320, rel=0.02)
    job._beside = [2.0, 4.0]
    assert job._planned(1, trials) == pytest.approx((180 - 30) / 18 * 320, rel=0.02)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set for the demo's teacher."""
    out = tmp_path_factory.mktemp("made") / "set"
    main(shlex.split(
        "generate --count 300 --images-seen 300 --run.threads 1 --quiet --stage.refine.fresh 64 "
        f"--stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 64 --out {out}"
    ))  # fmt: skip
    return out


def _recipe(minutes: float, **more: object) -> synthkd.Recipe:
    return synthkd.Recipe.of(
        {"budget.minutes": minutes, "run.threads": 1, "training.batch": 64, **more}
    )


@pytest.mark.parametrize("priority", [0.0, 0.5])
def test_the_teacher_labels_the_set_once_unless_candidates_change_priorities(
    priority, images, tmp_path, monkeypatch
) -> None:
    opened = []

    def counted(lab):
        opened.append(lab)
        return open_data(lab)

    open_data = search.open_data
    monkeypatch.setattr(search, "open_data", counted)
    minutes = 0.56  # of which 0.14 are for two candidates, on a slow machine too
    recipe = _recipe(minutes, **{"memory.priority": priority})
    shape = {"population": 2, "generations": 1}
    began = time.perf_counter()
    job = Search(recipe, tmp_path / "found", sampler="random", **shape)
    trials, _ = job.explore(images)
    took = time.perf_counter() - began
    assert len(trials) == 2 and len(opened) == (2 if priority else 1)
    assert min(trial.agreement for trial in trials) > 0
    told = tmp_path / "found" / "progress.json"
    spent = json.loads(told.read_text())["seconds"]  # with the share of the images
    assert took < spent <= took + MAKING * 60 * minutes
    Search(recipe, tmp_path / "found", sampler="random", **shape).explore(images)
    assert json.loads(told.read_text())["seconds"] < spent + took + 1  # which counts once


@pytest.mark.slow
def test_a_search_that_goes_on_tries_the_better_of_its_last_generation_again(
    images, tmp_path
) -> None:
    out, shape = tmp_path / "found", {"population": 2, "generations": 3}
    Search(_recipe(0.56), out, sampler="random", **shape).explore(images)
    given = {"ratio": 0.5, "multiple": "0.25", "depth": 8, "width": 4, "stem": 1}
    lines = [
        ({"family": "resnet"}, "resnet8-w4", 0.5, 0), ({"family": "prune"}, "prune:0.5", 0.4, 0),
        ({"family": "resnet"}, "resnet8-w4", 0.3, 1),
        ({"family": "mobilenet"}, "mobilenet-0.25", 0.9, 1),
    ]  # fmt: skip
    (out / "trials.jsonl").write_text("".join(
        json.dumps({
            "student": student, "seconds": 0.05 * 2**generation, "agreement": agreement,
            "milliseconds": 1.0, "parameters": 9, "generation": generation,
            "params": given | family, "images": 64 * 2**generation,
        }) + "\n"
        for family, student, agreement, generation in lines
    ))  # fmt: skip
    (out / "progress.json").unlink()
    trials, _ = Search(_recipe(0.56), out, sampler="random", **shape).explore(images)
    assert [trial.student for trial in trials[:4]] == [student for _, student, *_ in lines]
    assert (trials[4].student, trials[4].generation) == ("mobilenet-0.25", 2)
    assert trials[4].images >= 128  # as many as those before at least


@pytest.mark.slow
def test_a_candidate_that_is_tried_again_goes_on_from_what_it_has_learned(
    images, tmp_path, monkeypatch
) -> None:
    begun = []

    def kept(learner, weights):
        begun.append(weights)
        return begin_with(learner, weights)

    begin_with = Learner.begin_with
    monkeypatch.setattr(Learner, "begin_with", kept)
    out, shape = tmp_path / "found", {"population": 2, "generations": 3}
    job = Search(_recipe(0.8), out, sampler="random", **shape)
    trials, _ = job.explore(images)
    again = [t for t in trials if any(
        o.student == t.student and o.generation == t.generation - 1 for o in trials if o.seconds
    )]  # fmt: skip
    assert again and len(begun) == len(again)
    last = again[-1]
    before = job._learned_by(last.student, last.generation - 1)
    assert before is not None and before.keys() == begun[-1].keys()
    assert all(torch.equal(value, begun[-1][name]) for name, value in before.items())
    after = job._learned_by(last.student, last.generation)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert job._learned_by("resnet8-w3", 0) is None  # was not tried
    job._weights(last.student, last.generation).write_bytes(b"damaged")
    assert job._learned_by(last.student, last.generation) is None


def by_size(job: Search, network: Classifier, seconds: float) -> float:
    """Milliseconds that follow from the weights."""
    return sum(p.numel() for p in network.parameters()) / 1e4


@pytest.mark.slow
def test_candidates_that_are_too_slow_take_nobodys_place(images, tmp_path, monkeypatch) -> None:
    """Every generation tries as many as it should, none that is too slow is recorded twice or tried
    again, and ratios that cut to the same channels are one candidate."""
    monkeypatch.setattr(Search, "_time", by_size)
    shape = {"population": 3, "generations": 2}
    job = Search(_recipe(3), tmp_path / "found", sampler="random", limit=12.0, **shape)
    trials, best = job.explore(images)
    slow = [t.student for t in trials if not t.seconds]
    learned = [t for t in trials if t.seconds]
    assert slow and len(slow) == len(set(slow))
    assert not {t.student for t in learned} & set(slow)
    assert [sum(t.generation == g for t in learned) for g in range(2)] == [3, 2]
    assert all(t.milliseconds <= 12 for t in learned)
    assert all(t.milliseconds > 12 for t in trials if not t.seconds)
    pruned = {t.student: t.parameters for t in trials if t.student.startswith("prune")}
    assert len(set(pruned.values())) == len(pruned)
    again = Search(_recipe(3), tmp_path / "found", sampler="random", limit=12.0, **shape)
    assert again.explore(images) == (trials, best)  # all was there


def test_the_chosen_one_keeps_the_limit_when_it_is_timed_for_longer(tmp_path, monkeypatch) -> None:
    """It has 20,000 weights, the other one a quarter of them."""
    monkeypatch.setattr(Search, "_time", by_size)
    small, large = (
        Trial("resnet8-w4", 2.0, 0.8, 1.0, 1, 0), Trial("resnet8-w8", 2.0, 0.9, 1.5, 1, 0),
    )  # fmt: skip

    teacher = load_teacher(synthkd.Recipe().teacher)

    def taken(limit: float) -> Trial:
        job = Search(_recipe(1), tmp_path / "found", limit=limit)
        return job._chosen([], [small, large], teacher)

    assert taken(1.6) == small and taken(9.0) == large
    assert taken(1.0) == small  # the other one was over the limit from the first
    monkeypatch.setattr(Search, "_time", lambda job, network, seconds: 7.0)
    assert taken(2.0) in (small, large)  # all are over it
    with pytest.raises(InputError, match="no candidate could be tried"):
        taken(1e-9)


def test_a_network_is_timed_as_a_copy_on_the_processor(tmp_path) -> None:
    network = load_teacher(synthkd.Recipe().teacher).classifier
    network.train()
    job = Search(_recipe(1), tmp_path / "found")
    assert job._time(network, 0.05) > 0
    assert network.training


class Stopped(Silent):
    def expect(self, schedule) -> None:
        raise RuntimeError("stopped before the first round")


def test_a_student_that_began_with_weights_is_not_resumed_without_them(images, tmp_path) -> None:
    out = tmp_path / "student"
    recipe = synthkd.Recipe.of({
        "budget.images": 256, "run.threads": 1, "training.batch": 64, "run.stages": ("study",),
        "data.synthetic": str(images), "student.spec": "resnet8-w4", "run.out": str(out),
    })  # fmt: skip
    weights = {
        name: torch.full_like(value, 0.25)
        for name, value in Distillation(recipe).lab.learner.student.state_dict().items()
    }
    with pytest.raises(RuntimeError, match="stopped"):
        Distillation(recipe, begin_with=weights, report=Stopped()).start()
    told = json.loads((out / "manifest.json").read_text())["begun_with"]
    _, begun = Run.resume(out)
    with pytest.raises(InputError, match="run the same synthkd search again"):
        Distillation(begun).resume(out)
    job = Distillation(begun, begin_with=weights)
    assert all((p == 0.25).all() for p in job.lab.learner.student.parameters())
    assert job.resume(out).summary["images_seen"] == 256
    assert json.loads((out / "manifest.json").read_text())["begun_with"] == told


def test_a_pruned_student_that_goes_on_is_not_refitted(images, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(teaching, "refit", lambda *given: asked.append(given))
    recipe = synthkd.Recipe.of({
        "budget.images": 128, "run.threads": 1, "training.batch": 64, "run.stages": ("study",),
        "data.synthetic": str(images), "student.spec": "prune:0.5", "run.anyway": True,
        "run.out": str(tmp_path / "first"), "teacher.image_size": 16, "teacher.channels": 1,
        "teacher.mean": "0.3", "teacher.std": "0.3",
    })  # fmt: skip
    torch.manual_seed(0)
    teacher = build_network("mobilenet-0.25", channels=1, size=16, classes=10).eval()
    first = Distillation(recipe, teacher=teacher)
    first.start()
    assert len(asked) == 1
    learned = first.lab.learner.student.state_dict()
    run = recipe.run.model_copy(update={"out": str(tmp_path / "second")})
    again = recipe.model_copy(update={"run": run})
    second = Distillation(again, teacher=teacher, begin_with=learned)
    begun = second.lab.learner.begun
    second.start()
    assert len(asked) == 1
    assert all(torch.equal(value, begun[name]) for name, value in learned.items())


@pytest.mark.slow
def test_no_student_within_the_limit_is_one_line(tmp_path: Path, capsys) -> None:
    words = [*FLAGS, "--minutes", "0.1", "--max-latency-ms", "0.000001"]
    words.remove("0.6")
    words.remove("--minutes")
    assert status(*words, "--out", str(tmp_path / "found")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "candidates takes at most 1e-06 ms; the fastest" in said


def test_what_a_search_cannot_keep_is_refused(tmp_path: Path) -> None:
    recipe = synthkd.Recipe.of({"budget.minutes": 1})
    limited = synthkd.Recipe.of(
        {"budget.minutes": 1, "student.spec": "auto", "student.max_params": 9}
    )
    for wrong in ({"limit": 0.0}, {"limit": float("nan")}, {"sampler": "grid"}, {"population": 0}):
        with pytest.raises(InputError):
            Search(recipe, tmp_path / "found", **wrong)
    with pytest.raises(InputError, match="no limit but --max-latency-ms"):
        Search(limited, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_a_search_needs_minutes(tmp_path: Path, capsys) -> None:
    words = [w for w in FLAGS if w not in ("--minutes", "0.6")]
    assert status(*words, "--out", str(tmp_path / "found")) == 2
    assert "--minutes" in capsys.readouterr().err
