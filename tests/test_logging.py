"""Rounds for others: several reporters at once, event files read back by TensorBoard itself, and
the reporter that the page shows."""

import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import main, status

import synthkd
from synthkd.engine.loop import Round
from synthkd.engine.progress import Progress
from synthkd.engine.reporter import Reporter, Several, Silent
from synthkd.runs.directory import Run
from synthkd.runs.tensorboard import TensorBoard, next_step

ROOT = Path(__file__).parent.parent
SHORT = shlex.split(
    "distill --student resnet8-w4 --images-seen 600 --training.batch 32 --memory.capacity 300 "
    "--stage.draw.fresh 64 --stage.refine.synthesis-batch 20 --stage.refine.synthesis-steps 2 "
    "--stage.study.student-steps 3 --run.threads 1 --val-data none --quiet"
)


# --- several reporters


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.told.append((name, given, named))


def test_each_of_several_reporters_hears_everything_in_turn() -> None:
    heard = [Heard(), Heard()]
    several = Several(heard)  # type: ignore[arg-type]
    methods = [name for name in vars(Reporter) if not name.startswith("_")]
    assert len(methods) >= 10
    wanted = []
    for name in methods:
        parameters = list(inspect.signature(getattr(Silent, name)).parameters.values())[1:]
        given = [(p.name,) for p in parameters if p.kind is not p.KEYWORD_ONLY]
        named = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        getattr(several, name)(*given, **named)
        wanted.append((name, tuple(given), named))
    assert heard[0].told == heard[1].told == wanted


def test_findings_that_can_be_read_once_reach_each() -> None:
    heard = [Heard(), Heard()]
    Several(heard).findings(finding for finding in ())  # type: ignore[arg-type]
    Several(heard).findings(iter(["a", "b"]))  # type: ignore[arg-type]
    assert [told[1][0] for told in heard[1].told] == [(), ("a", "b")]


# --- the page


def test_the_reporter_on_the_page_hands_every_round_to_a_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/how-to/logging.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown, _, rest = code.partition("class Printed:")
    assert "Tracked(Printed())" in rest
    space: dict[str, Any] = {}
    exec(compile(shown, "logging.md", "exec"), space)

    class Kept:
        """A tracker that keeps what it gets."""

        def __init__(self) -> None:
            self.rounds: dict[int, dict[str, float]] = {}

        def log(self, values: dict[str, float], step: int) -> None:
            self.rounds[step] = values

    tracker = Kept()
    with pytest.warns(synthkd.UselessResult):
        made = synthkd.distill(
            images=300, out=tmp_path / "run", val_data="none", progress=space["Tracked"](tracker),
            settings={"training.batch": 32, "memory.capacity": 300, "stage.draw.fresh": 64,
                      "stage.refine.synthesis_batch": 20, "stage.refine.synthesis_steps": 2},
        )  # fmt: skip
    lines = [json.loads(line) for line in (made.run / "metrics.jsonl").open()]
    assert list(tracker.rounds) == [line["round"] for line in lines]
    assert tracker.rounds[lines[-1]["round"]]["images_seen"] == 300


# --- TensorBoard


@pytest.fixture
def board() -> Any:
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )


def scalars(board: Any, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of each curve: (step, value)."""
    read = board.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def recorded(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that metrics.jsonl tells of, on the axis of images seen."""
    found: dict[str, list[tuple[int, float]]] = {}
    step = -1
    names = {"seconds": "run/seconds", "synthesized": "run/images synthesized",
             "share": "run/share"}  # fmt: skip
    for line in map(json.loads, (run / "metrics.jsonl").open()):
        step = max(step + 1, line["images_seen"])
        for key, value in line.items():
            if key not in ("round", "stage", "images_seen"):
                name = names.get(key, key.replace(".", "/"))
                found.setdefault(name, []).append((step, value))
    return found


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, curve in theirs.items():
        assert [step for step, _ in ours[name]] == [step for step, _ in curve], name
        rough = {"rel": 1e-4, "abs": 1e-3}  # of float32; seconds are rounded in metrics.jsonl
        values = [[value for _, value in some] for some in (ours[name], curve)]
        assert values[0] == pytest.approx(values[1], nan_ok=True, **rough), name


@pytest.mark.slow
def test_every_round_of_a_run_is_in_tensorboard_at_the_images_seen(
    board: Any, tmp_path: Path
) -> None:
    main([*SHORT, "--tensorboard", "--out", str(tmp_path / "run")])
    shown = scalars(board, tmp_path / "run" / "tensorboard")
    assert_alike(shown, recorded(tmp_path / "run"))
    steps = [step for step, _ in shown["run/share"]]
    assert steps == sorted(set(steps)) and steps[-1] == 600
    read = board.EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}
    )
    read.Reload()
    assert {"images/draw", "images/refine"} <= set(read.Tags()["images"])
    (picture, *_) = read.Images("images/draw")
    assert picture.encoded_image_string.startswith(b"\x89PNG") and picture.height > 100


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["0.05", "1000"])
def test_a_resumed_run_goes_on_without_a_step_twice(
    board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    """Broken off after a round was written and before its checkpoint; with rare checkpoints there
    is none, and all is done again."""
    run = tmp_path / "run"

    def breaking(_: Run, round_: Round, classes: int) -> None:
        if round_.progress.images_seen > 300:
            raise RuntimeError("in the middle")

    words = [*SHORT, "--tensorboard", "--run.checkpoint-seconds", seconds, "--out", str(run)]
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="in the middle"):
        patched.setattr(Run, "samples", breaking)
        main(words)
    before = scalars(board, run / "tensorboard")["run/share"]
    assert before[-1][0] > 300
    assert bool(list((run / "checkpoints").iterdir())) == (seconds == "0.05")
    main(["distill", "--resume", str(run), "--tensorboard", "--quiet"])
    assert len(list((run / "tensorboard").iterdir())) == 2  # a file a sitting
    shown = scalars(board, run / "tensorboard")
    assert_alike(shown, recorded(run))
    steps = [step for step, _ in shown["run/share"]]
    assert steps == sorted(set(steps)) and steps[-1] == 600


def test_events_after_the_last_checkpoint_are_purged(board: Any, tmp_path: Path) -> None:
    """By hand: four rounds, of which the first two are in the checkpoint."""

    def told(number: int, seen: int, value: float) -> Round:
        progress = Progress(round=number, images_seen=seen)
        return Round(progress, "study", 0.5, {"loss": value}, None, None)

    first = TensorBoard(tmp_path / "events", 10)
    for number, seen in enumerate((0, 0, 0, 64), start=1):
        first.follow(told(number, seen, float(number)))
    first.stop()
    assert scalars(board, tmp_path / "events")["loss"] == [(0, 1), (1, 2), (2, 3), (64, 4)]
    second = TensorBoard(tmp_path / "events", 10, seen=[0, 0])
    second.follow(told(3, 32, 30.0))
    second.follow(told(4, 64, 40.0))
    second.stop()
    assert scalars(board, tmp_path / "events")["loss"] == [(0, 1), (1, 2), (32, 30), (64, 40)]


def test_a_round_is_in_the_file_at_once(board: Any, tmp_path: Path) -> None:
    events = TensorBoard(tmp_path / "events", 10)
    images = torch.randint(256, (4, 1, 16, 16), dtype=torch.uint8)
    progress = Progress(round=1, images_seen=64)
    events.follow(Round(progress, "draw", 0.5, {"a.b": 1.0}, images, torch.arange(4)))
    assert scalars(board, tmp_path / "events")["a/b"] == [(64, 1.0)]  # not closed yet
    events.stop()
    events.stop()  # a second time does no harm


def test_steps_never_stand_still_and_are_the_images_seen_where_these_grow() -> None:
    seen = [0, 0, 0, 32, 64, 64, 64, 128]
    steps, step = [], -1
    for images in seen:
        step = next_step(step, images)
        steps.append(step)
    assert steps == [0, 1, 2, 32, 64, 65, 66, 128]


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("synthkd.runs.tensorboard.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert status(*SHORT, "--tensorboard", "--out", "run") == 2
    said = capsys.readouterr().err
    assert "pip install 'synthkd[tensorboard]'" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_the_package_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as where it is missing
    with pytest.raises(synthkd.InputError, match="needs the extra tensorboard"):
        TensorBoard(tmp_path / "events", 10)
