"""`synthkd distill` from end to end: stop and resume, what it reports, what it counts."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from short_runs import DONE, main

from synthkd.core.errors import InputError
from synthkd.jobs.distillation import Distillation
from synthkd.recipe import Recipe, load_recipe
from synthkd.specs import load_teacher, read_card

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SMALL = shlex.split(
    "--student resnet8-w4 --training.batch 32 --generator.width 4 --run.threads 1 "
    "--pipeline gan "
    "--memory.capacity 300 --stage.pregenerate.fresh 64 --stage.pregenerate.synthesis-batch 16 "
    "--stage.joint.synthesis-batch 16 --stage.joint.fresh 32 --stage.joint.student-steps 2"
)
SHORT = [*SMALL, "--images-seen", "96", "--val-data", "none"]


def distilled(out: Path, *argv: str) -> dict[str, Any]:
    """The summary of a short run in this process; `argv` goes over its flags."""
    flags = dict(zip(SHORT[::2], SHORT[1::2], strict=True)) | dict(
        zip(argv[::2], argv[1::2], strict=True)
    )
    main(
        [
            "distill",
            "--quiet",
            "--out",
            str(out),
            *(word for pair in flags.items() for word in pair),
        ]
    )
    return summary_of(out)


def summary_of(run: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return data


def manifest_of(run: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return data


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


# Stop and resume. One run is left alone; the other is stopped by SIGTERM in its second stage, by
# SIGINT in its third, and then killed outright.

LONG = [
    *SMALL, "--images-seen", "1600", "--stage.finetune.student-steps", "1",
    "--stage.finetune.share", "0.5",
    "--stage.joint.share", "0.5", "--val-data", "none", "--run.checkpoint-seconds", "0.2",
]  # fmt: skip


def started(folder: Path, *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "synthkd", "distill", *argv]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def hit(
    process: subprocess.Popen[str],
    run: Path,
    number: int,
    moment: Callable[[list[dict[str, Any]]], bool],
) -> tuple[int, str, str]:
    """Sends a signal as soon as the metrics say that it is the moment; waits for the end."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.003)
        try:
            if moment(metrics(run)):
                process.send_signal(number)
                break
        except (OSError, ValueError):  # not there yet, or a line half written
            assert process.poll() is None, process.communicate()
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


class Stopped:
    """What was seen of an unbroken run and of one that was stopped three times."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.unbroken, self.run = folder, folder / "unbroken", folder / "stopped"
        self.stages: list[str] = []
        whole = started(folder, *LONG, "--out", "unbroken", "--quiet")
        assert whole.communicate(timeout=100)[1] == ""

        begun = started(folder, *LONG, "--out", "stopped")
        self.term = self._hit(begun, signal.SIGTERM, "finetune", 3)
        resumed = ("--resume", "stopped")
        self.interrupt = self._hit(started(folder, *resumed), signal.SIGINT, "joint", 1)
        self.rounds_when_interrupted = len(metrics(self.run))
        self.kill = self._hit(started(folder, *resumed), signal.SIGKILL, "joint", 6)
        self.rounds_when_killed = (self.run / "metrics.jsonl").read_text().count("\n")
        last = started(folder, *resumed)
        self.out, self.err = last.communicate(timeout=100)
        self.code = last.returncode

    def _hit(
        self, process: subprocess.Popen[str], number: int, stage: str, least: int
    ) -> tuple[int, str, str]:
        def moment(lines: list[dict[str, Any]]) -> bool:
            return sum(line["stage"] == stage for line in lines) >= least

        result = hit(process, self.run, number, moment)
        self.stages.append(metrics(self.run)[-1]["stage"])
        return result


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    return Stopped(tmp_path_factory.mktemp("stopped"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
class TestStopAndResume:
    def test_sigterm_in_the_second_stage_saves_and_says_how_to_go_on(
        self, stopped: Stopped
    ) -> None:
        code, out, err = stopped.term
        assert (code, err) == (143, "")
        assert "synthkd distill --resume stopped" in out.splitlines()[-1]
        assert stopped.stages[0] == "finetune"

    def test_sigint_saves_and_says_how_to_go_on(self, stopped: Stopped) -> None:
        code, out, err = stopped.interrupt
        assert (code, err) == (130, "")
        assert "synthkd distill --resume stopped" in out.splitlines()[-1]
        assert stopped.stages[1] == "joint"

    def test_a_killed_run_leaves_no_summary_and_a_checkpoint(self, stopped: Stopped) -> None:
        assert stopped.kill[0] == -signal.SIGKILL
        assert stopped.rounds_when_killed > stopped.rounds_when_interrupted

    def test_the_resumed_run_ends_as_if_nothing_had_happened(self, stopped: Stopped) -> None:
        assert stopped.code in DONE and stopped.err == ""
        for name in ("student.safetensors", "generator.safetensors"):
            assert sha256(stopped.run / name) == sha256(stopped.unbroken / name)
        assert summary_of(stopped.run)["student_sha256"] == sha256(
            stopped.run / "student.safetensors"
        )

    def test_the_metrics_have_no_gap_and_no_repeat(self, stopped: Stopped) -> None:
        lines = metrics(stopped.run)
        assert [line["round"] for line in lines] == list(range(1, len(lines) + 1))
        assert lines == metrics(stopped.unbroken)

    def test_the_summary_counts_all_sittings(self, stopped: Stopped) -> None:
        one, other = summary_of(stopped.run), summary_of(stopped.unbroken)
        timed = {"wall_seconds", "seconds", "peak_memory_mb", "proof", "proof_level"}
        # the list of what a sitting opened is lost with its process
        assert (one["proof_level"], other["proof_level"]) == (0, 1)
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }
        assert one["images_seen"] == 1600
        seconds = [json.loads(x)["seconds"] for x in (stopped.run / "metrics.jsonl").open()]
        assert seconds == sorted(seconds)
        assert one["wall_seconds"] >= seconds[-1]

    def test_no_checkpoints_and_no_leftovers_of_stops(self, stopped: Stopped) -> None:
        assert not (stopped.run / "checkpoints").exists()
        assert not [p for p in stopped.run.iterdir() if p.suffix == ".tmp"]


def test_an_interrupt_before_the_run_begins_leaves_no_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from synthkd import cli, recipe\nimport signal\n"
         # who starts a job in the background has it ignore SIGINT
         "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
         "recipe.load_recipe = lambda *_: signal.raise_signal(signal.SIGINT)\n"
         "cli.main()", "distill"],
        cwd=tmp_path, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


# What a run reports


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-free run that names real data which are not there; scored on the demo's digits."""
    out = tmp_path_factory.mktemp("finished") / "run"
    main([
        "distill", *SMALL, "--images-seen", "500", "--real-data", "/nowhere/at/all",
        "--out", str(out), "--seed", "3", "--quiet",
    ])  # fmt: skip
    return out


def test_the_summary_has_all_its_keys_with_sane_values(finished: Path) -> None:
    found = summary_of(finished)
    assert 0 <= found["student_accuracy"] <= 1
    assert 0 <= found["agreement"] <= 1
    assert found["teacher_accuracy"] > 0.95
    assert found["val_data"] == "demo:unseen"
    assert found["val_images"] == 539
    assert found["seed"] == 3
    assert found["images_seen"] == 500
    assert found["synthetic_share"] == 1.0
    assert found["real_images_read"] == 0
    assert found["promise_level"] == 0
    assert 50 < found["peak_memory_mb"] < 100_000
    parts = found["seconds"]
    assert set(parts) == {"synthesis", "labelling", "student", "evaluation", "rest"}
    assert all(value >= 0 for value in parts.values())
    assert sum(parts.values()) == pytest.approx(found["wall_seconds"], abs=0.05)
    assert found["student_parameters"] * 4 < found["teacher_parameters"]
    assert found["weights"] in ("averaged", "last")
    assert found["held_out_agreement"] == max(
        found["held_out_agreement_last"], found["held_out_agreement_averaged"]
    )


def test_the_manifest_tells_what_was_read_and_by_whom(finished: Path) -> None:
    found = manifest_of(finished)
    assert found["state"] == "finished"
    assert found["data"] == {}
    assert (found["promise_level"], found["real_images_read"], found["seed"]) == (0, 0, 3)
    assert found["teacher_sha256"] == load_teacher(load_recipe().teacher).digest
    assert found["recipe_sha256"] == sha256(finished / "recipe.toml")
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["platform"] and found["plan"] and found["command"]


def test_the_student_carries_the_card_that_rebuilds_it(finished: Path) -> None:
    card = read_card(finished / "student.safetensors")
    assert (card.network, card.classes, card.height) == ("resnet8-w4", 10, 16)
    weights = load_file(finished / "student.safetensors")
    assert (
        sum(v.numel() for k, v in weights.items() if "running" not in k and "num_b" not in k)
        == (summary_of(finished)["student_parameters"])
    )


@pytest.mark.slow
def test_the_recipe_of_a_run_gives_the_same_student_again(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    main(["distill", "--config", str(finished / "recipe.toml"), "--out", str(out), "--quiet"])
    assert sha256(out / "student.safetensors") == sha256(finished / "student.safetensors")


def test_another_seed_gives_another_student(tmp_path: Path) -> None:
    first = distilled(tmp_path / "a")
    assert distilled(tmp_path / "b")["student_sha256"] == first["student_sha256"]
    assert distilled(tmp_path / "c", "--seed", "1")["student_sha256"] != first["student_sha256"]


def test_validation_data_never_influence_the_student(tmp_path: Path) -> None:
    scored = distilled(tmp_path / "a", "--val-data", "demo:seen")
    assert scored["student_accuracy"] is not None
    assert distilled(tmp_path / "b")["student_sha256"] == scored["student_sha256"]


def test_named_but_unused_real_data_do_not_influence_the_student(tmp_path: Path) -> None:
    real = distilled(tmp_path / "a", "--real-data", "demo:seen")
    assert real["real_images_read"] == 0
    assert distilled(tmp_path / "b")["student_sha256"] == real["student_sha256"]


# Mixed with real images


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("npz") / "real.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 256, (60, 20, 20), dtype=np.uint8))
    return str(path)


@pytest.mark.parametrize(("ratio", "made"), [("0.25", 24), ("0.5", 48), ("0.01", 0), ("0.99", 95)])
def test_the_share_of_synthetic_images_is_counted_exactly(
    tmp_path: Path, npz: str, ratio: str, made: int
) -> None:
    found = distilled(tmp_path / "run", "--mix-ratio", ratio, "--real-data", npz)
    assert found["images_seen"] == 96
    assert found["synthetic_share"] * 96 == pytest.approx(made, abs=1e-9)
    assert found["real_images_read"] == 60
    assert found["promise_level"] == 2


def test_mix_ratio_zero_learns_from_real_images_alone(tmp_path: Path, npz: str) -> None:
    found = distilled(tmp_path / "run", "--mix-ratio", "0", "--real-data", npz)
    assert (found["images_seen"], found["images_synthesized"], found["synthetic_share"]) == (
        96,
        0,
        0.0,
    )
    assert found["held_out_images"] == 3  # a twentieth
    assert manifest_of(tmp_path / "run")["data"]["real"]["images"] == 60
    assert not (tmp_path / "run" / "generator.safetensors").exists()


def test_mix_ratio_zero_needs_only_a_few_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=np.full((3, 16, 16), 99, np.uint8))
    found = distilled(
        tmp_path / "run", "--mix-ratio", "0", "--real-data", str(tmp_path / "few.npz")
    )
    assert (found["real_images_read"], found["held_out_images"]) == (3, 0)


# Other beginnings


@pytest.mark.slow
def test_a_generator_is_taken_over_from_an_earlier_run(finished: Path, tmp_path: Path) -> None:
    fresh = distilled(tmp_path / "a")
    taken = distilled(tmp_path / "b", "--generator-from", str(finished))
    assert taken["student_sha256"] != fresh["student_sha256"]


@pytest.mark.slow
def test_a_student_goes_on_from_an_earlier_run_and_can_be_a_teacher(
    finished: Path, tmp_path: Path
) -> None:
    distilled(tmp_path / "a", "--student", str(finished))
    assert read_card(tmp_path / "a" / "student.safetensors").network == "resnet8-w4"
    found = distilled(tmp_path / "b", "--teacher", str(tmp_path / "a"), "--student", "resnet8-w2")
    assert found["teacher_parameters"] == summary_of(finished)["student_parameters"]


@pytest.mark.slow
def test_without_out_runs_get_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["distill", *SHORT, "--seed", "5", "--quiet"])
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["demo-resnet8-w4-s5", "demo-resnet8-w4-s5-2"]


@pytest.mark.slow
def test_no_round_begins_once_a_budget_in_minutes_is_spent(tmp_path: Path) -> None:
    timed = [*SMALL, "--minutes", "0.05", "--val-data", "none", "--quiet"]
    main(["distill", *timed, "--out", str(tmp_path / "run")])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ends = [json.loads(line)["seconds"] for line in lines]
    assert all(end < 3 for end in ends[:-1])
    assert summary_of(tmp_path / "run")["images_seen"] > 0


def test_minutes_that_are_over_before_the_first_round_are_refused(tmp_path: Path) -> None:
    settings = {"training.batch": 32, "student.spec": "resnet8-w4", "run.threads": 1}
    recipe = Recipe.of({**settings, "budget.minutes": 0.5, "run.out": str(tmp_path / "run")})
    job = Distillation(recipe, started=time.perf_counter() - 90)
    with pytest.raises(InputError, match=r"--minutes 0.5: they were over .* give --minutes 8"):
        job.start()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distilled(tmp_path / "run")
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_what_is_printed_is_plain_when_it_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["distill", *SHORT, "--out", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert err == ""
    assert "embedded demo" in out
    assert "plan: teacher demo" in out
    assert "real images read" in out
    assert "\x1b" not in out


def test_a_part_of_an_archive_is_validation_data(tmp_path, capsys):
    digits = np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_test=digits, y_test=np.arange(20) % 10)
    main(["distill", "--dry-run", "--quiet", "--val-data", f"{tmp_path / 'd.npz'}:test"])
    assert "d.npz:test" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["distill", "--dry-run", "--quiet", "--val-data", "demo:unsen"])
    assert "demo:unsen" in capsys.readouterr().err


def test_a_config_that_comes_by_a_pipe_is_read_once(tmp_path, capsys):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as file:
        file.write("[memory]\ncapacity = 20000\n")
    main(["generate", "--dry-run", "--quiet", "--config", f"/dev/fd/{reader}"])
    os.close(reader)
    assert "capacity = 20000" in capsys.readouterr().out
