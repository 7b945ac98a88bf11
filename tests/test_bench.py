"""`synthkd bench`: what it runs, what it refuses, how it goes on; the statistics and the plot."""

import csv
import fcntl
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from short_runs import main

import synthkd
from synthkd.commands import bench
from synthkd.commands.display import Display
from synthkd.core.errors import InputError
from synthkd.data.sources import load_images
from synthkd.evaluation.compare import compare
from synthkd.recipe import StudentTable, TeacherTable, load_recipe
from synthkd.reports import bench as reports
from synthkd.reports.bench import (
    CurvePoint,
    Point,
    mean_curve,
    mean_sd,
    pipeline_results,
    place_labels,
    time_to,
)
from synthkd.runs.directory import Run
from synthkd.specs import load_classifier, load_teacher

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

pytestmark = pytest.mark.timeout(400)  # five runs in a fixture, on machines that are shared

TINY = """
[generator]
width = 8
[training]
batch = 32
[[stage]]
name = "fill"
synthesis_batch = 32
fresh = 64
share = 0.1
student_steps = 0
terms = { one_hot = 0.5, statistics = 10.0 }
[[stage]]
name = "joint"
generator = "gan"
synthesis_batch = 32
fresh = 64
share = 0.9
student_steps = 3
terms = { one_hot = 0.5, statistics = 10.0 }
"""
BAD = '[[stage]]\nname = "joint"\ngenerator = "none"\nfresh = 0\n'  # nothing to learn from


# The statistics


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    found = mean_sd([0.60, 0.62, 0.67])
    assert found.mean == pytest.approx(0.63)
    assert found.sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))


def test_one_value_has_no_deviation() -> None:
    assert mean_sd([0.6]) == reports.Spread(0.6, None)


@pytest.mark.parametrize(
    ("accuracy", "minutes"),
    [
        (0.3, 1.5),  # half way from 0.2 to 0.4
        (0.4, 2.0),
        (0.45, 3.5),  # a dip lies before it: from 0.3 at 3 to 0.6 at 4
        (0.1, 1.0),  # it starts above: at most its first point
        (0.61, None),
    ],
)
def test_time_to_an_accuracy_is_read_off_the_curve(accuracy: float, minutes: float | None) -> None:
    curve = [
        CurvePoint(1, 0.2, 0),
        CurvePoint(2, 0.4, 0),
        CurvePoint(3, 0.3, 0),
        CurvePoint(4, 0.6, 0),
    ]
    assert time_to(curve, accuracy) == (None if minutes is None else pytest.approx(minutes))


def test_the_mean_curve_interpolates_seeds_whose_points_lie_elsewhere() -> None:
    one = [Point(0.2, 1.0, 0.1), Point(0.6, 3.0, 0.5), Point(1.0, 5.0, 0.5)]
    two = [Point(0.4, 2.2, 0.4), Point(1.0, 5.2, 0.7)]
    # at 0.4 the first is half way to (3, 0.5); at 0.6 the second is a third of the way to its end
    expected = [
        (2.1, 0.35, 0.1 / math.sqrt(2)), (3.1, 0.5, 0.0), (5.1, 0.6, 0.2 / math.sqrt(2)),
    ]  # fmt: skip
    found = mean_curve([one, two])
    assert len(found) == len(expected)
    for level, (minutes, accuracy, sd) in zip(found, expected, strict=True):
        assert (level.minutes, level.accuracy) == pytest.approx((minutes, accuracy))
        assert level.sd == pytest.approx(sd, abs=1e-12)


def test_the_mean_curve_of_one_seed_is_its_own_curve() -> None:
    curve = [Point(0.25, 1.0, 0.1), Point(1.0, 5.0, 0.5)]
    assert mean_curve([curve]) == (CurvePoint(1.0, 0.1, 0.0), CurvePoint(5.0, 0.5, 0.0))


def finished(pipeline: str, seed: int, *accuracy: float, real: int = 0) -> dict[str, Any]:
    """The record of a run of four minutes with an accuracy after each of them."""
    curve = [
        {"share": minute / 4, "seconds": 60.0 * minute, "images_seen": 9, "accuracy": value}
        for minute, value in enumerate(accuracy[:-1], start=1)
    ]
    summary = {
        "student_accuracy": accuracy[-1], "teacher_accuracy": 0.9, "agreement": 0.5,
        "wall_seconds": 240.0, "images_seen": 1000 + seed, "images_synthesized": 500,
        "promise_level": 2 if real else 0, "real_images_read": real, "seconds": {"student": 200.0},
        "val_images": 1017, "student_parameters": 1, "teacher_parameters": 4,
    }  # fmt: skip
    return {
        "pipeline": pipeline, "seed": seed, "state": "finished", "minutes": 4.0, "threads": 2,
        "device": "cpu", "load": 0.5, "code": "c0de", "probe": {"float32": 100.0},
        "others": {"jpeg": 0.25}, "curve": curve, "summary": summary,
    }  # fmt: skip


FAILED = {
    "pipeline": "broken", "seed": 0, "state": "failed", "minutes": 4.0, "threads": 2,
    "device": "cpu", "load": 0.5, "code": "c0de", "probe": {"float32": 90.0}, "error": "no stage",
}  # fmt: skip
RECORDS = [
    FAILED,
    finished("slow", 0, 0.10, 0.20, 0.30, 0.40),
    finished("ours", 0, 0.2, 0.5, 0.6, 0.7),
    finished("ours", 1, 0.4, 0.7, 0.7, 0.6),
    finished("real", 0, 0.5, 0.6, 0.7, 0.8, real=50),
]
SETTINGS = {
    "teacher": "resnet20", "student": "resnet8", "val": "test.npz", "minutes": 4.0, "threads": 2,
    "device": "cpu", "precision": "float32",
}  # fmt: skip


def test_the_standing_of_a_pipeline_against_the_best_other_and_the_ceiling() -> None:
    real, ours, slow = pipeline_results(RECORDS)
    assert [s.pipeline for s in (real, ours, slow)] == ["real", "ours", "slow"]
    assert (ours.n, ours.accuracy.mean) == (2, pytest.approx(0.65))
    assert ours.others["jpeg"].mean == 0.25
    # the best other reads no real image, and is somebody else
    assert (ours.rival, slow.rival, real.rival) == ("slow", "ours", "ours")
    # the means of ours are 0.3, 0.6, 0.65, 0.65: 0.4 is a third of the way from minute 1 to 2
    assert ours.rival_minutes == pytest.approx(1 + 1 / 3)
    assert slow.rival_minutes is None
    assert real.rival_minutes == pytest.approx(2.5)
    assert ours.over_real == pytest.approx(0.15)
    assert slow.over_real == pytest.approx(0.4)


def test_without_others_there_is_no_best_other_and_no_ceiling() -> None:
    (alone,) = pipeline_results(RECORDS[1:2])
    assert (alone.rival, alone.rival_minutes, alone.over_real) == (None, None, None)


def test_the_csv_has_one_row_per_run_and_the_failed_one_its_error() -> None:
    rows = list(csv.DictReader(io.StringIO(reports.to_csv(RECORDS))))
    assert [(r["pipeline"], r["seed"], r["state"]) for r in rows[:2]] == [
        ("broken", "0", "failed"), ("slow", "0", "finished"),
    ]  # fmt: skip
    assert (rows[0]["error"], rows[0]["accuracy"], rows[0]["accuracy_jpeg"]) == ("no stage", "", "")
    assert (rows[3]["accuracy"], rows[3]["accuracy_jpeg"]) == ("0.6", "0.25")
    assert (rows[3]["seconds_student"], rows[3]["gflops_float32"]) == ("200.0", "100.0")


def test_the_table_is_sorted_and_says_how_it_was_measured() -> None:
    text = reports.to_markdown(SETTINGS, pipeline_results(RECORDS), RECORDS)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == ["| `real`", "| `ours`", "| `slow`"]
    assert rows[1][1:4] == ["65.00 ± 7.07", "2", "25.00 ± 0.00"]
    assert "1.3 min, 33% of the time (`slow`, 40.00)" in rows[1]
    assert "+15.00" in rows[1]
    assert "–" in rows[0]
    assert "resnet20 → resnet8, 4 minutes, 2 threads; float32 on cpu." in text
    assert "1,017 images of test.npz" in text
    assert "same code" not in text
    mixed = [*RECORDS[:-1], RECORDS[-1] | {"code": "0ther"}]
    assert "same code: 0ther, c0de" in reports.to_markdown(SETTINGS, pipeline_results(mixed), mixed)
    assert "Failed: `broken`, seed 0: no stage" in text


def test_a_table_of_mixed_recipes_or_images_says_so() -> None:
    def table(*changes: dict[str, Any]) -> str:
        whole = {"memory": {"capacity": 9}, "stage": [{"name": "a"}]}
        records = [
            finished("mine", seed, 0.5) | {"recipe": whole | {"run": {"seed": seed}}} | change
            for seed, change in enumerate(changes)
        ]
        return reports.to_markdown(SETTINGS, pipeline_results(records), records)

    said = "Not all runs of `mine` are of one recipe and the same images."
    assert said not in table({}, {}, {})
    older = {"recipe": {"run": {"seed": 1, "out": "x"}, "stage": [{"name": "a", "share": 1.0}]}}
    assert said not in table({}, older)  # it knows fewer settings
    assert said in table({}, {"recipe": {"memory": {"capacity": 8}}})
    assert said in table({}, {"recipe": {"stage": [{"name": "b"}]}})
    assert said in table({"real_sha256": "a"}, {"real_sha256": "b"})
    assert said not in table({"real_sha256": "a"}, {})
    capacity = [{"recipe": {"memory": {"capacity": number}}} for number in (8, 9)]
    assert said in table(older, *capacity)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_labels_keep_their_order_their_distance_and_inside(values: list[float]) -> None:
    places = place_labels(values, 4.0, -5.0, 105.0)
    order = sorted(range(len(values)), key=lambda i: (values[i], -i))
    assert all(places[b] - places[a] >= 4 - 1e-6 for a, b in pairwise(order))
    assert -5 - 1e-6 <= min(places) <= max(places) <= 105 + 1e-6


def test_labels_that_have_room_stay_where_they_are() -> None:
    assert place_labels([50.0, 10.0, 20.0], 4.0, 0.0, 100.0) == [50.0, 10.0, 20.0]


@pytest.mark.parametrize("best", [0.7, 0.99])
def test_the_plot_is_a_picture_of_the_expected_size_with_lines_in_it(best: float) -> None:
    names = ("a$b_{", "ours", "a name that is longer than any that a pipeline should have")
    records = [finished(name, 0, 0.1, 0.2, 0.3, best - i / 50) for i, name in enumerate(names)]
    picture = Image.open(io.BytesIO(reports.draw(pipeline_results([*records, *RECORDS]), SETTINGS)))
    assert picture.format == "PNG"
    assert picture.size == (1440, 960)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert (208, 0, 0) in colours  # the best
    assert len(colours) > 50


def test_the_probe_measures_a_speed_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PROBE_SECONDS", 0.02)
    found = bench.probe(torch.device("cpu"))
    assert set(found) == {"float32", "bfloat16"}
    assert all(speed > 0.1 for speed in found.values())


# Snapshots of a run

SHORT = [
    "distill", "--quiet", "--run.threads", "1", "--val-data", "none", "--student", "resnet8-w4",
    "--images-seen", "640",
]  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept three snapshots."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.toml").write_text(TINY)
    flags = ["--pipeline", str(folder / "tiny.toml"), "--run.snapshots", "3"]
    main([*SHORT, *flags, "--out", str(folder / "run")])
    return folder / "run"


def summary_of(run: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return data


@pytest.mark.slow
def test_snapshots_change_nothing(kept: Path, tmp_path: Path) -> None:
    pipeline = str(kept.with_name("tiny.toml"))
    main([*SHORT, "--pipeline", pipeline, "--out", str(tmp_path / "plain")])
    assert not (tmp_path / "plain" / "snapshots").exists()
    plain = summary_of(tmp_path / "plain")
    assert plain["student_sha256"] == summary_of(kept)["student_sha256"]


def test_snapshots_come_evenly(kept: Path) -> None:
    lines = Run(kept).snapshots()
    assert [line["file"][:5] for line in lines] == ["00001", "00002", "00003"]
    for number, line in enumerate(lines, start=1):
        assert number / 4 <= line["share"] < (number + 1) / 4
    seconds = [0.0, *(line["seconds"] for line in lines), summary_of(kept)["wall_seconds"]]
    assert seconds == sorted(seconds)
    seen = [line["images_seen"] for line in lines]
    assert seen == sorted(seen)
    assert seen[-1] < 640
    early, late = (load_file(kept / "snapshots" / f"0000{n}.safetensors") for n in (1, 3))
    assert set(early) == set(late)
    assert any(not early[key].equal(late[key]) for key in early)


def test_the_curve_has_the_accuracy_of_every_snapshot(kept: Path) -> None:
    teacher = load_teacher(TeacherTable())
    val = load_images("demo:unseen", teacher.spec, classes=10, labelled=True)
    job = bench.Bench(
        kept,
        load_recipe(),
        torch.device("cpu"),
        teacher,
        val,
        {"again": val},
        {},
        Display(quiet=True),
    )
    entry = bench.Entry("tiny", 0, load_recipe(), (), kept)
    summary = summary_of(kept)
    with pytest.raises(InputError, match="it was not scored"):
        bench._scored(job, entry)
    (kept / "summary.json").write_text(json.dumps(summary | {"student_accuracy": 0.1}))
    found = bench._scored(job, entry)
    (kept / "summary.json").write_text(json.dumps(summary))
    student = load_classifier(StudentTable(spec=str(kept)), TeacherTable())[0]
    assert found["others"] == {"again": compare(student, teacher, val).student_accuracy}
    assert [point["share"] for point in found["curve"]] == [
        s["share"] for s in Run(kept).snapshots()
    ]
    for number, point in enumerate(found["curve"], start=1):
        weights = load_file(kept / "snapshots" / f"0000{number}.safetensors")
        student.load_state_dict(weights)
        assert point["accuracy"] == compare(student, teacher, val).student_accuracy


def test_a_finished_run_is_tidied_of_what_only_an_unfinished_one_needs(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_recipe(), {})
    for name in ("checkpoints/000000001", "student"):
        (run.path / f"{name}.safetensors").write_bytes(b"")
    run.tidy()
    assert [path.name for path in run.path.rglob("*.safetensors")] == ["student.safetensors"]


def test_of_a_snapshot_written_twice_the_last_counts(tmp_path: Path) -> None:
    lines = [{"file": "1", "share": 0.2}, {"file": "2", "share": 0.4}, {"file": "2", "share": 0.5}]
    (tmp_path / "snapshots.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert Run(tmp_path).snapshots() == [lines[0], lines[2]]


# A whole bench: stopped in its second run, gone on with, a pipeline added.


def command(folder: Path, *argv: str) -> list[str]:
    flags = {
        "--pipelines": f"gan,{folder / 'tiny.toml'}", "--seeds": "0,1",
        "--student": "resnet8-w4", "--minutes": "0.03", "--run.threads": "1",
        "--also": "seen=demo:seen", "--out": str(folder / "out"),
    }  # fmt: skip
    flags |= dict(zip(argv[::2], argv[1::2], strict=True))
    return ["bench", *(word for pair in flags.items() for word in pair)]


class Benched:
    """What was seen of a bench."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "tiny.toml").write_text(TINY)
        (folder / "bad.toml").write_text(BAD)
        patch.setattr(bench, "PROBE_SECONDS", 0.02)
        self.stopped, self.left = self._stopped()
        self.code, self.text = self.call()
        pipelines = f"{folder / 'bad.toml'},{folder / 'tiny.toml'}"
        self.added = self.call("--pipelines", pipelines, "--seeds", "0")

    def _stopped(self) -> tuple[subprocess.CompletedProcess[str], bool]:
        """SIGTERM as soon as the second run has begun; whether that was left unfinished."""
        process = subprocess.Popen(
            [sys.executable, "-m", "synthkd", *command(self.folder)], cwd=self.folder,
            env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        while process.poll() is None and not (self.out / "runs/tiny-s0/recipe.toml").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        left = not (self.out / "runs/tiny-s0/summary.json").exists()
        return subprocess.CompletedProcess("", process.returncode, out, err), left

    def call(self, *argv: str) -> tuple[int, str]:
        """Exit code and output of the bench in this process."""
        text, code = io.StringIO(), 0
        before, sys.stdout = sys.stdout, text
        try:
            main(command(self.folder, *argv))
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stdout = before
        return code, text.getvalue()

    def record(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.out / "runs" / f"{name}.json").read_text())
        return data

    def summaries(self) -> dict[str, int]:
        """When each run ended."""
        paths = sorted((self.out / "runs").glob("*/summary.json"))
        return {path.parent.name: path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Benched:
    with pytest.MonkeyPatch.context() as patch:
        return Benched(tmp_path_factory.mktemp("bench"), patch)


@pytest.mark.slow
class TestBench:
    def test_stopped_it_ends_its_run_and_leaves_whole_tables(self, benched: Benched) -> None:
        assert benched.stopped.returncode == 143
        assert benched.stopped.stderr == ""
        assert "1/4 gan-s0: " in benched.stopped.stdout
        assert "the same command again" in benched.stopped.stdout
        assert benched.left

    def test_gone_on_with_it_skips_what_is_done_and_does_the_unfinished_anew(
        self, benched: Benched
    ) -> None:
        assert benched.code == 0
        assert "1 of 4 runs are done already" in benched.text
        assert "tiny-s0: it was not finished and is done again" in benched.text
        assert "gan-s0: " not in benched.text

    def test_every_pipeline_has_its_first_seed_before_any_has_its_second(
        self, benched: Benched
    ) -> None:
        lines = [line for line in benched.text.splitlines() if line.endswith("left for all")]
        assert [line.split()[1] for line in lines] == ["tiny-s0:", "gan-s1:", "tiny-s1:"]

    def test_an_added_pipeline_that_fails_is_recorded_and_stops_nothing(
        self, benched: Benched
    ) -> None:
        code, text = benched.added
        assert code == 1
        assert "1 of 2 runs are done already" in text
        assert "failed: bad-s0;" in text
        record = benched.record("bad-s0")
        assert record["state"] == "failed"
        assert "before any stage has synthesized an image" in record["error"]
        assert "summary" not in record

    def test_runs_are_scored_on_all_sets(self, benched: Benched) -> None:
        for name in ("gan-s0", "gan-s1", "tiny-s0", "tiny-s1"):
            record = benched.record(name)
            assert record["state"] == "finished"
            assert record["summary"]["val_images"] == 539
            assert 0 <= record["others"]["seen"] <= 1
            curve = reports.curve_of(record)
            assert 1 <= len(curve) <= bench.SNAPSHOTS + 1  # fewer where a round takes a second
            assert all(a.share < b.share and a.minutes <= b.minutes for a, b in pairwise(curve))
            assert all(0 <= point.accuracy <= 1 for point in curve)
            assert record["process_seconds"] > record["summary"]["wall_seconds"]
            assert set(record["probe"]) == {"float32", "bfloat16"}
            assert record["code"] == bench._code()

    def test_the_code_of_a_run_is_all_of_it(self, tmp_path: Path, monkeypatch) -> None:
        copy = tmp_path / "synthkd"
        shutil.copytree(Path(synthkd.__file__).parent, copy)
        monkeypatch.setattr(bench.synthkd, "__file__", str(copy / "__init__.py"))
        before = bench._code()
        with (copy / "engine" / "loop.py").open("a") as file:
            file.write("# another\n")
        assert bench._code() != before

    def test_what_a_finished_run_no_longer_needs_is_gone(self, benched: Benched) -> None:
        kept = {path.name for path in (benched.out / "runs/tiny-s0").rglob("*.safetensors")}
        assert kept == {"student.safetensors", "generator.safetensors"}

    def test_the_results_are_those_of_the_runs(self, benched: Benched) -> None:
        rows = list(csv.DictReader((benched.out / "results.csv").open()))
        assert [(r["pipeline"], r["seed"]) for r in rows] == [
            ("bad", "0"), ("gan", "0"), ("gan", "1"), ("tiny", "0"), ("tiny", "1"),
        ]  # fmt: skip
        data = json.loads((benched.out / "results.json").read_text())
        found = {s["pipeline"]: s for s in data["pipelines"]}
        for name in ("gan", "tiny"):
            values = [float(r["accuracy"]) for r in rows if r["pipeline"] == name]
            assert found[name]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
            assert found[name]["n"] == 2
        table = (benched.out / "table.md").read_text()
        assert "| `gan` |" in table
        assert "Failed: `bad`, seed 0" in table
        assert Image.open(benched.out / "accuracy.png").size == (1440, 960)

    def test_called_again_it_runs_nothing_that_is_done(self, benched: Benched) -> None:
        before = benched.summaries()
        code, text = benched.call()
        assert (code, benched.summaries()) == (0, before)
        assert "4 of 4 runs are done already" in text
        assert json.loads((benched.out / "bench.json").read_text())["pipelines"] == [
            "gan", "tiny", "bad",
        ]  # fmt: skip

    def test_the_report_comes_from_what_lies_there(self, benched: Benched) -> None:
        before = (benched.out / "results.csv").read_bytes()
        for name in ("results.csv", "results.json", "table.md", "accuracy.png"):
            (benched.out / name).unlink()
        main(["bench", "--report", "--quiet", "--out", str(benched.out)])
        assert (benched.out / "results.csv").read_bytes() == before
        assert (benched.out / "accuracy.png").exists()

    @pytest.mark.parametrize(
        ("flag", "value", "words"),
        [
            ("--minutes", "0.06", "budget.minutes '0.03', not '0.06'"),
            ("--student", "resnet8-w2", "student.spec 'resnet8-w4', not 'resnet8-w2'"),
            ("--run.threads", "2", "run.threads '1', not '2'"),
            ("--val-data", "demo:seen", "data.val left out, not 'demo:seen'"),
            ("--augment.flip", "true", "augment.flip left out, not 'True'"),
            ("--also", "other=demo:seen", "sha256 of --also other left out"),
        ],
    )
    def test_other_settings_in_the_same_directory_are_refused(
        self, benched: Benched, flag: str, value: str, words: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        before = benched.summaries()
        threads = torch.get_num_threads()
        code, _ = benched.call(flag, value)
        torch.set_num_threads(threads)
        assert code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"this bench was begun with {words}" in err
        assert benched.summaries() == before

    def test_a_second_bench_at_the_same_time_is_refused(
        self, benched: Benched, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (benched.out / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert benched.call()[0] == 2
        assert "another bench, or a run that it left behind, is at work" in capsys.readouterr().err

    def test_a_recipe_that_has_changed_is_noticed(self, benched: Benched) -> None:
        def entry(*changes: tuple[str, dict[str, Any]]) -> bench.Entry:
            recipe = load_recipe(flags={
                "pipeline": str(benched.folder / "tiny.toml"), "budget": {"minutes": 0.03},
                "student": {"spec": "resnet8-w4"},
                "run": {"threads": 1, "device": "cpu", "snapshots": 12, "out": "elsewhere",
                        "precision": benched.record("tiny-s0")["recipe"]["run"]["precision"]},
                **dict(changes),
            })  # fmt: skip
            return bench.Entry("tiny", 0, recipe, (), benched.out / "runs" / "tiny-s0")

        assert bench._done(entry())
        assert not bench._done(entry(("training", {"learning_rate": 0.2})))
        assert not bench._done(entry(("student", {"spec": "resnet8-w2"})))


# What is refused, or left out


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[list[str], list[str]]:
    """The notes and the runs of a dry run."""
    main(["bench", "--dry-run", "--minutes", "1", "--out", "nowhere", "--run.threads", "1", *argv])
    lines = capsys.readouterr().out.splitlines()
    runs = [line for line in lines if ": synthkd distill " in line]
    return [line for line in lines if line not in runs], runs


def test_all_means_every_shipped_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pipelines").mkdir()
    for name in ("gan", "tiny", "other"):
        (tmp_path / "pipelines" / f"{name}.toml").write_text(TINY)
    (tmp_path / "pipelines" / "real.toml").write_text("[data]\nmix_ratio = 0\n" + TINY)
    monkeypatch.setattr(bench.resources, "shipped", lambda kind: tmp_path / kind)
    notes, runs = plan(capsys, "--seeds", "4,2")
    assert notes == ["real is left out: it needs --real-data"]
    names = [line.split(":")[0] for line in runs]
    assert names == ["gan-s4", "other-s4", "tiny-s4", "gan-s2", "other-s2", "tiny-s2"]
    notes, runs = plan(capsys, "--real-data", "demo:seen")
    assert notes == []
    told = {line.split(":")[0]: "--real-data=demo:seen" in line for line in runs}
    assert told == {"gan-s0": False, "other-s0": False, "real-s0": True, "tiny-s0": False}


def test_settings_reach_every_run_as_they_were_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "common.toml"
    config.write_text("[teacher]\nmean = [0.5]\nstd = [0.25]\n[generator]\nwidth = 8\n")
    _, runs = plan(
        capsys, "--pipelines", "gan", "--config", str(config), "--augment.flip", "true",
        "--teacher-mean", "-0.5", "--trust-code",
    )  # fmt: skip
    words = runs[0].split()
    assert words[2:4] == ["distill", "--teacher-mean=-0.5"]
    expected = {
        "--teacher-std=0.25", "--generator.width=8", "--augment.flip=true", "--minutes=1.0",
        "--trust-code", "--run.threads=1", "--pipeline=gan", "--seed=0", "--run.snapshots=12",
    }  # fmt: skip
    assert expected <= set(words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--minutes", "1"], "give --out DIR"),
        (["--out", "x"], "give --minutes M"),
        (["--out", "x", "--minutes", "0"], "budget.minutes: input should be greater than 0"),
        (["--out", "x", "--minutes", "1", "--seeds", "0,b"], "whole numbers"),
        (["--out", "x", "--minutes", "1", "--seeds", ""], "--seeds is empty"),
        (["--out", "x", "--minutes", "1", "--pipelines", "shadres"], "did you mean 'shaders'?"),
        (["--out", "x", "--minutes", "1", "--pipelines", "no.toml"], "there is no such file"),
        (["--out", "x", "--minutes", "1", "--pipelines", ","], "--pipelines: there is none"),
        (
            ["--out", "x", "--minutes", "1", "--pipelines", "gan,mine/gan.toml"],
            "two of them are called 'gan'",
        ),
        (
            ["--out", "x", "--minutes", "1", "--pipelines", "half.toml"],
            "pipeline half: mix ratio 0.5 needs real images: give --real-data",
        ),
        (["--out", "x", "--minutes", "1", "--also", "a.npz"], "give NAME=PATH"),
        (["--out", "x", "--minutes", "1", "--also", "a=/no.npz"], "/no.npz"),
        (
            ["--out", "x", "--minutes", "1", "--also", "a=b", "--also", "a=c"],
            "this name was given already",
        ),
        (["--out", "x", "--minutes", "1", "--val-data", "/no.npz"], "/no.npz"),
        (["--out", "x", "--minutes", "1", "--val-data", "none"], "give --val-data PATH"),
        (
            ["--out", "x", "--minutes", "1", "--teacher", "resnet20", "--teacher-weights", "w.pt"],
            "give --val-data PATH",
        ),
        (["--out", "x", "--minutes", "1", "--config", "seed.toml"], "run.seed: each pipeline"),
        (["--out", "x", "--minutes", "1", "--stage.joint.share", "1"], "change them in its TOML"),
        (["--out", "x", "--report"], "no bench has run here"),
        (["--out", "full", "--minutes", "1"], "this directory holds something else"),
        (["--out", "seed.toml", "--minutes", "1"], "seed.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(
    argv: list[str], words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "seed.toml").write_text("[run]\nseed = 3\n")
    (tmp_path / "half.toml").write_text("[data]\nmix_ratio = 0.5\n" + TINY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "gan.toml").write_text(TINY)
    with pytest.raises(SystemExit) as stop:
        pipelines = [] if "--pipelines" in argv else ["--pipelines", "gan"]
        main(["bench", "--run.threads", "1", *pipelines, *argv])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "x").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
