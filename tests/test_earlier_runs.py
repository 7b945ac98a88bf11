"""Run directories of earlier versions: a finished one can be used, an interrupted one says what it
is.

`data/run-0.1.0` was written by version 0.1.0: `synthkd distill --student resnet8-w4
--images-seen 6000 --memory.capacity 60 --seed 3 --stage.draw.fresh 64 --val-data none`, once to the
end and once stopped in its fifth round; contact sheets and one of two checkpoints are left out.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from synthkd.cli import main

DATA = Path(__file__).parent / "data" / "run-0.1.0"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "finished", tmp_path / "run"))


@pytest.mark.slow
def test_a_finished_run_is_exported(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "shipped"
    main(["export", str(run), "--format", "safetensors,onnx", "--int8", "--out", str(out),
          "--quiet"])  # fmt: skip
    assert {path.name for path in out.iterdir()} >= {"student.onnx", "student.int8.onnx"}


def test_a_finished_run_predicts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (16, 16), 90).save(tmp_path / "a.png")
    main(["predict", str(run), str(tmp_path / "a.png"), "--json"])
    [found] = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found["classes"]} <= set("0123456789")


def test_a_finished_run_is_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It saw few images, and is told to be of no use."""
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--student", str(run), "--run.threads", "1", "--json"])
    assert left.value.code == 3
    found = json.loads(capsys.readouterr().out)["comparison"]
    assert 0 < found["student_accuracy"] < found["teacher_accuracy"]


def test_a_finished_run_begins_another(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(["distill", "--student", str(run), "--images-seen", "64", "--training.batch", "32",
              "--pipeline", "leaves", "--val-data", "none", "--run.threads", "1", "--quiet",
              "--out", str(tmp_path / "next")])  # fmt: skip
    assert left.value.code == 3  # of no use after two steps, and told so
    assert json.loads((tmp_path / "next" / "summary.json").read_text())["student"] == str(run)


def test_an_interrupted_run_names_the_version_that_made_it_and_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(DATA / "interrupted", tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as left:
        main(["distill", "--resume", str(run)])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "was made by synthkd '0.1.0'" in said
    assert "finish it with that version, or start a new run" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_fixture_tells_nothing_of_the_machine_and_is_small() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    texts = [path.read_text() for path in files if path.suffix in (".json", ".toml", ".jsonl")]
    assert len(texts) == 7
    assert not [text for text in texts if re.search(r'"/\w', text)]  # no absolute path
