"""A run that is stopped in the middle of a round gives that round up, and goes on exactly."""

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from short_runs import main

from synthkd.commands.display import Display
from synthkd.runs import session

SMALL = (
    "distill --images-seen 1200 --training.batch 32 --student resnet8-w4 --run.threads 1 "
    "--val-data none --run.checkpoint_seconds 0.01 --stage.draw.fresh 128 "
    "--stage.refine.synthesis_batch 32 --stage.refine.fresh 32 --stage.refine.synthesis_steps 4 "
    "--memory.capacity 600 --out"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    main([*shlex.split(SMALL), str(folder)])
    return folder


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No round in hand is waited for."""
    monkeypatch.setattr(session, "GRACE", -1.0)
    yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "turn", "number"),
    [("pixels", 7, signal.SIGINT), ("student", 5, signal.SIGTERM), ("student", 23, signal.SIGINT)],
)
def test_a_round_that_is_given_up_is_done_again_alike(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], part: str, turn: int, number: signal.Signals,
) -> None:  # fmt: skip
    heard = 0

    def tick(self: Display, what: str, done: int, total: int) -> None:
        nonlocal heard
        heard += what == part
        if what == part and heard == turn:
            signal.raise_signal(number)

    monkeypatch.setattr(Display, "tick", tick)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        main([*shlex.split(SMALL), str(folder)])
    assert stopped.value.code == 128 + number
    said = capsys.readouterr().out
    assert "stopping: " in said and "are lost" in said and "distill --resume" in said
    monkeypatch.setattr(Display, "tick", lambda *_: None)
    main(["distill", "--resume", str(folder)])
    student = "student.safetensors"
    assert (folder / student).read_bytes() == (whole / student).read_bytes()
    rounds = [
        [json.loads(line)["round"] for line in (path / "metrics.jsonl").open()]
        for path in (folder, whole)
    ]
    assert rounds[0] == rounds[1]
