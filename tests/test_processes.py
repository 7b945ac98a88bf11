"""One student learned by several processes, as torchrun and accelerate start them; and a step that
is learned in parts where the memory is short."""

import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lessons import TABLE, lesson, plain_learner, student_of
from short_runs import main
from torch import Tensor, nn

from synthkd.core.seeds import generator_for
from synthkd.core.states import Rows
from synthkd.engine.estimate import RoundCost, predict, shared
from synthkd.engine.progress import Budget
from synthkd.recipe import Stage
from synthkd.runs.checkpoints import Checkpoints, newest_of_all
from synthkd.students.learner import Learner
from synthkd.students.objective import DistillationObjective

TESTS = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent),
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}  # fmt: skip
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
    "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
)  # fmt: skip
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
)  # fmt: skip
IMAGES = 4003
SMALL = shlex.split(
    f"distill --images-seen {IMAGES} --training.batch 33 --student resnet8-w4 --run.threads 1 "
    "--val-data none --stage.draw.fresh 128 --stage.refine.synthesis_batch 32 "
    "--stage.refine.fresh 32 --stage.refine.synthesis_steps 4 --memory.capacity 600 "
    "--stage.study.student_steps 2 --run.device cpu --run.precision float32 --training.repeats 1"
)
EVERY_ROUND = ("--run.checkpoint_seconds", "0.001")


def launched(
    folder: Path, launcher: Sequence[str], *words: str, seconds: float = 90
) -> tuple[int, str, str]:
    """Exit code, output and errors of `-m synthkd` with these words in two processes."""
    done = subprocess.run(
        [*launcher, "-m", "synthkd", *words], cwd=folder, env=ENVIRONMENT, text=True,
        capture_output=True, timeout=seconds,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def table(run: Path, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / f"{name}.json").read_text())
    return data


def rank_one_of(launcher: int) -> int:
    """The process of rank 1 that a launcher has started; 0 while there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"\0RANK=1\0" in (folder / "environ").read_bytes():
                return int(folder.name)
        except (OSError, ValueError):  # it has just ended
            continue
    return 0


def remembered(rows: Rows) -> set[bytes]:
    """The images of a replay memory."""
    parts = [columns["images"] for _, columns in rows.parts()]
    return {image.numpy().tobytes() for part in parts for image in part}


class Killed:
    """A run of two processes of which one is killed in the middle."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "killed"
        process = subprocess.Popen(
            [*TORCHRUN, "-m", "synthkd", *SMALL, *EVERY_ROUND, "--out", "killed"], cwd=folder,
            env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        metrics, end = self.run / "metrics.jsonl", time.monotonic() + 60
        while not metrics.is_file() or metrics.read_text().count("\n") < 12:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.01)
        os.kill(rank_one_of(process.pid), signal.SIGKILL)
        began = time.monotonic()
        self.out, self.err = process.communicate(timeout=60)
        self.seconds, self.code = time.monotonic() - began, process.returncode
        self.copy = folder / "copy"
        shutil.copytree(self.run, self.copy)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, err = launched(folder, TORCHRUN, *SMALL, "--out", "run")
    assert (folder / "run" / "summary.json").is_file(), (code, out, err)
    (folder / "run" / "out.txt").write_text(out)
    return folder / "run"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"))


def student(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


@pytest.mark.slow
class TestTwoProcesses:
    def test_the_budget_is_that_of_both_together(self, whole: Path) -> None:
        summary, manifest = table(whole, "summary"), table(whole, "manifest")
        assert summary["images_seen"] == IMAGES
        assert (summary["processes"], manifest["processes"]) == (2, 2)
        assert manifest["micro_batches"] == 1 and manifest["threads"] == 1
        lines = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
        assert lines[-1]["synthesized"] == summary["images_synthesized"]
        assert lines[0]["synthesized"] == 2 * 128  # a round's drawings of each
        assert summary["teacher_queries"] > summary["images_synthesized"] + IMAGES - 1

    def test_the_first_alone_prints(self, whole: Path) -> None:
        out = (whole / "out.txt").read_text()
        assert out.count("run directory: ") == 1 and out.count("student accuracy") == 1
        assert "2 processes learn one student" in out and "17 of the 33 of a step" in out

    def test_accelerate_starts_the_same_job_with_the_same_bytes(
        self, whole: Path, tmp_path: Path
    ) -> None:
        launched(tmp_path, ACCELERATE, *SMALL, "--quiet", "--no-report", "--out", "again")
        assert student(tmp_path / "again") == student(whole)

    def test_where_one_is_killed_the_other_ends_and_says_how_to_go_on(self, killed: Killed) -> None:
        assert killed.code != 0 and killed.seconds < 30
        assert not (killed.run / "summary.json").exists()
        assert "--nproc-per-node=2 -m synthkd distill --resume killed" in killed.out, killed.err
        assert "Traceback" not in killed.out

    def test_weights_are_alike_in_both_and_images_are_not(self, killed: Killed) -> None:
        folders = [killed.copy / "checkpoints", killed.copy / "checkpoints" / "rank-00001"]
        both = [Checkpoints(folder) for folder in folders]
        last = min(one.newest()[0] for one in both)  # type: ignore[index]
        states = [one.newest(last)[1] for one in both]  # type: ignore[index]
        first, second = (state["learner"] for state in states)
        for part in ("student", "average"):
            assert list(first[part]) == list(second[part])
            for name, value in first[part].items():
                assert torch.equal(value, second[part][name]), (part, name)
        assert states[0]["progress"] == states[1]["progress"]
        assert states[0]["controllers"] == states[1]["controllers"]
        own = [remembered(state["memory"]["rows"]) for state in states]
        assert all(len(images) > 100 for images in own)
        assert not own[0] & own[1]

    def test_a_resume_ends_with_the_bytes_of_the_unbroken_run(
        self, whole: Path, killed: Killed
    ) -> None:
        _, out, err = launched(killed.run.parent, TORCHRUN, "distill", "--resume", "killed")
        assert "going on after round" in out, err
        assert "not be that of an unbroken run" not in out
        assert student(killed.run) == student(whole)
        one, other = table(killed.run, "summary"), table(whole, "summary")
        for key in ("images_seen", "images_synthesized", "teacher_queries", "held_out_agreement"):
            assert one[key] == other[key]
        rounds = [json.loads(line)["round"] for line in (killed.run / "metrics.jsonl").open()]
        assert rounds == list(range(1, len(rounds) + 1))

    def test_one_process_goes_on_with_the_run_of_two_and_says_that_it_differs(
        self, killed: Killed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["distill", "--resume", str(killed.copy)])
        assert "begun by 2 and resumed by 1 processes" in capsys.readouterr().out
        summary = table(killed.copy, "summary")
        assert (summary["images_seen"], summary["processes"]) == (IMAGES, 1)

    def test_two_go_on_with_the_run_of_one_stop_together_and_go_on(self, tmp_path: Path) -> None:
        """The run of one is stopped by SIGTERM; two resume it, are stopped by a signal to their
        launcher, and finish it."""
        begun = subprocess.Popen(
            [sys.executable, "-m", "synthkd", *SMALL, *EVERY_ROUND, "--out", "run"], cwd=tmp_path,
            env=ENVIRONMENT, stdout=subprocess.PIPE,
        )  # fmt: skip
        metrics = tmp_path / "run" / "metrics.jsonl"

        def reached(lines: int, process: subprocess.Popen[Any]) -> None:
            end = time.monotonic() + 60
            while not metrics.is_file() or metrics.read_text().count("\n") < lines:
                assert process.poll() is None and time.monotonic() < end, process.communicate()
                time.sleep(0.01)

        reached(5, begun)
        begun.send_signal(signal.SIGTERM)
        begun.communicate(timeout=60)
        two = subprocess.Popen(
            [*TORCHRUN, "-m", "synthkd", "distill", "--resume", "run"], cwd=tmp_path,
            env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        reached(metrics.read_text().count("\n") + 5, two)
        two.send_signal(signal.SIGTERM)
        out, err = two.communicate(timeout=60)
        assert "begun by 1 and resumed by 2 processes" in out, err
        assert "stopped at " in out and "-m synthkd distill --resume run" in out, (out, err)
        places = [tmp_path / "run" / "checkpoints" / name for name in (".", "rank-00001")]
        saved = [Checkpoints(place).newest() for place in places]
        assert saved[0] and saved[1] and saved[0][0] == saved[1][0]
        _, out, err = launched(tmp_path, TORCHRUN, "distill", "--resume", "run", "--quiet")
        assert table(tmp_path / "run", "summary")["images_seen"] == IMAGES, (out, err)

    def test_a_run_by_the_clock_ends_in_time_with_one_student(self, tmp_path: Path) -> None:
        timed = [*SMALL[:1], "--minutes", "0.1", *SMALL[3:], "--quiet", "--out", "run"]
        _, out, err = launched(tmp_path, TORCHRUN, *timed)
        summary = table(tmp_path / "run", "summary")
        assert summary["processes"] == 2, (out, err)
        # 6 s, and what the end takes on a machine that does other things besides
        assert summary["wall_seconds"] < 60, (out, err)


@pytest.mark.slow
def test_what_two_processes_tell_one_another(tmp_path: Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, str(TESTS / "launched.py"), str(tmp_path)], env=ENVIRONMENT, text=True,
        capture_output=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (table(tmp_path, name) for name in ("0", "1"))
    assert first["means"] == [[1.5, 2.5], 0, [[0.5, 0.0], [0.0, 0.5]]]
    assert second["means"] == [[1.5, 2.5], 10, [[0.5, 0.0], [0.0, 0.5]]]
    assert first["weighted"] == second["weighted"] == [0.25 * 4 + 0.75 * 8]
    assert first["spread"] == second["spread"] == [[0.0, 0.0], 0]
    assert first["first"] == second["first"] == {"rank": 0, "infinite": float("inf"),
                                                 "third": 1 / 3}  # fmt: skip
    assert first["every"] == second["every"] == [[0, "é"], [1, 41 * "é"]]
    assert (first["part"], second["part"]) == ([0, 3], [3, 2])
    assert (first["leads"], second["leads"]) == (True, False)
    assert first["launcher"] == ["torchrun", "--nproc-per-node=2", "-m", "synthkd"]
    assert "another process of this job has ended" in first["lost"] and first["after"] < 20

    # a step that both learn together is that of one which learns the whole batch
    assert first["weights"] == second["weights"]
    alone = plain_learner()
    before = [p.detach().clone() for p in alone.student.parameters()]
    alone.step(*lesson(5), 0.3)
    for mine, theirs, old in zip(alone.student.parameters(), first["weights"], before, strict=True):
        assert torch.allclose(mine, torch.tensor(theirs), atol=1e-6)
        assert not torch.equal(mine, old)


# What a single process does with all this


def test_random_numbers_of_the_first_process_are_those_of_one_alone(tmp_path: Path) -> None:
    import synthkd
    from synthkd.engine.loop import Lab
    from synthkd.engine.processes import Processes

    lab = synthkd.build(synthkd.Recipe.of({"budget": {"images": 300}}))
    assert lab.processes.count == 1 and lab.processes.every(3) == [3]
    first = torch.rand(4, generator=lab.stream("round", 2))
    assert torch.equal(first, torch.rand(4, generator=generator_for(0, "round", 2)))
    other = copy.copy(lab)
    other.processes = Processes(rank=1, count=2)
    assert isinstance(other, Lab)
    assert not torch.equal(first, torch.rand(4, generator=other.stream("round", 2)))


def test_commands_of_one_process_refuse_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for word, hint in (("generate", "--shards N"), ("bench", "without torchrun")):
        with pytest.raises(SystemExit) as stop:
            main([word, "--out", str(tmp_path / word)])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert "3 were started" in said and hint in said and said.count("\n") == 1
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2 and "WORLD_SIZE='two'" in capsys.readouterr().err


class Beside:
    """Another process, whose newest rounds are known beforehand."""

    def __init__(self, rounds: Sequence[int]) -> None:
        self.rounds = list(rounds)

    def every(self, own: int) -> list[int]:
        return [own, self.rounds.pop(0)]


@pytest.mark.parametrize(
    ("theirs", "expected"), [([12], 12), ([8, 8], 8), ([10, 8], 8), ([0, 0], 0), ([12, 12], 12)]
)
def test_the_newest_round_is_the_newest_that_all_have(
    tmp_path: Path, theirs: list[int], expected: int
) -> None:
    own = Checkpoints(tmp_path)
    for round_ in (8, 12):
        own.save({"round": round_}, round_)
    found = newest_of_all(own, Beside([*theirs, expected]))  # type: ignore[arg-type]
    assert (found[0] if found else 0) == expected
    assert found is None or found[1] == {"round": expected}
    own.forget_after(8)
    assert own.newest() == (8, {"round": 8})


def test_the_seconds_of_several_processes_by_hand() -> None:
    """40 rounds of synthesis and 5 steps a round of study, by one and by four."""
    stages = [Stage(name="make", student_steps=0), Stage(name="study", student_steps=5)]
    budget = Budget(False, (4000.0, 6400.0), 6400.0)
    costs = {
        "make": RoundCost(2.0, 0.5, 0.0, synthesized=100.0),
        "study": RoundCost(0.0, 0.0, 4.0, seen=640.0),
    }
    seconds = sum(stage.seconds for stage in predict(stages, budget, costs))
    assert seconds == pytest.approx(40 * 2.5 + 10 * 4.0)
    of_four = {
        stage.name: shared(costs[stage.name], 4, steps=stage.student_steps, exchange=0.02)
        for stage in stages
    }
    seconds = sum(stage.seconds for stage in predict(stages, budget, of_four))
    assert seconds == pytest.approx(40 * 2.5 / 4 + 10 * 4.0 / 4 + 50 * 0.02)


# Steps in parts


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("count", "parts"), [(12, 2), (13, 4), (8, 4)])
def test_a_step_in_parts_is_the_step_of_the_whole(count: int, parts: int, weighted: bool) -> None:
    images, taught = lesson(count)
    weights = torch.linspace(0.1, 2.0, count) if weighted else None
    one, other = plain_learner(), plain_learner()
    other.parts = parts
    for _ in range(3):
        told = [
            learner.step(images, taught, 0.3, weights=weights, per_sample=True)
            for learner in (one, other)
        ]
    assert torch.allclose(told[0].loss, told[1].loss, atol=1e-6)
    for mine, theirs in zip(one.student.parameters(), other.student.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert told[0].per_sample is not None and told[1].per_sample is not None
    assert torch.allclose(told[0].per_sample, told[1].per_sample, atol=1e-5)


class Greedy(nn.Module):
    """Passes on at most so many images while it learns, after which there is no memory left."""

    def __init__(self, most: int, error: type[Exception]) -> None:
        super().__init__()
        self.most, self.error, self.refused = most, error, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.most:
            self.refused += 1
            raise self.error("out of memory: tried to allocate 9 GiB")
        return x


def greedy_learner(most: int, error: type[Exception] = torch.OutOfMemoryError) -> Learner:
    """BatchNorm, whose statistics a step moves, comes before the memory ends."""
    student = student_of(nn.BatchNorm2d(6), Greedy(most, error))
    return Learner(student, TABLE, DistillationObjective(TABLE, student))


def state_of(learner: Learner) -> dict[str, Tensor]:
    assert learner.average is not None
    average = {f"average.{name}": value for name, value in learner.average.items()}
    return {**learner.student.state_dict(), **average}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_step_without_memory_is_learned_in_halves_as_if_it_had_begun_so(
    error: type[Exception],
) -> None:
    short, parted = greedy_learner(5, error), greedy_learner(99, error)
    parted.parts = 4
    images, taught = lesson(20)
    for _ in range(2):
        short.step(images, taught, 0.3)
        parted.step(images, taught, 0.3)
    (layer,) = (m for m in short.student.modules() if isinstance(m, Greedy))
    assert (short.parts, layer.refused) == (4, 2)  # 20 and 10 were too many, in the first step
    for name, value in state_of(short).items():
        assert torch.equal(value, state_of(parted)[name]), name
    again = greedy_learner(5, error)
    again.load_state_dict(short.state_dict())
    assert again.parts == 4


def test_what_has_no_memory_for_two_images_ends_as_before_the_step() -> None:
    learner = greedy_learner(1)
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    with pytest.raises(torch.OutOfMemoryError):
        learner.step(*lesson(8), 0.3)
    assert learner.steps == 0
    weights = {name for name, _ in learner.student.named_parameters()}
    for name in weights:
        assert torch.equal(before[name], learner.student.state_dict()[name])


def test_another_error_is_no_want_of_memory() -> None:
    learner = greedy_learner(5, ValueError)
    with pytest.raises(ValueError):
        learner.step(*lesson(8), 0.3)
    assert learner.parts == 1
