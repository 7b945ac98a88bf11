"""The command line: help, version, the plan before a run, settings from three places."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from synthkd import __version__, cli
from synthkd.cli import WORDS, main
from synthkd.networks import build_network
from synthkd.recipe import build, settings

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def synthkd(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synthkd", *argv],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The recipe that a dry run prints."""
    main(["distill", "--dry-run", "--quiet", "--run.threads", "1", *argv])
    return capsys.readouterr().out


def test_the_version(tmp_path: Path) -> None:
    done = synthkd(tmp_path, "--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, __version__, "")


def test_the_help_names_every_word(tmp_path: Path) -> None:
    done = synthkd(tmp_path, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout and meaning in done.stdout for word, meaning in WORDS.items())


def test_help_comes_at_once(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom synthkd.cli import main\n"
        "try: main(['distill', '--help'])\n"
        "finally: print(sorted({'torch', 'kornia', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("word", WORDS)
def test_the_help_of_a_word_explains_all_of_its_flags(
    word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main([word, "--help"])
    out = capsys.readouterr().out
    assert WORDS[word] in out
    flags = {setting.flag for setting in settings() if setting.flag}
    shown = set(re.findall(r"--[a-z][\w.-]*", out))
    daily = {
        "generate": {"--teacher", "--count", "--out", "--generator-from", "--seed", "--dry-run",
                     "--real-data", "--generator", "--save-generator", "--resume"},
        "distill": {
            "--teacher", "--student", "--mix-ratio", "--real-data", "--synthetic", "--val-data",
            "--pipeline", "--minutes", "--images-seen", "--seed", "--out", "--resume", "--dry-run",
        },
        "evaluate": {"--student", "--val-data", "--images", "--reference", "--extractor", "--json"},
        "bench": {
            "--teacher", "--student", "--val-data", "--also", "--minutes", "--seeds", "--pipelines",
            "--real-data", "--out", "--report", "--dry-run",
        },
        "inspect": {"--teacher-weights", "--image-size", "--teacher-access", "--json"},
        "export": {"--format", "--int8", "--out", "--json"},
        "predict": {"--top", "--json", "--trust-code"},
    }[word]  # fmt: skip
    assert daily <= shown
    if word == "distill":
        assert flags - shown == {
            "--count", "--images", "--reference", "--extractor", "--extractor-weights"
        }  # fmt: skip


def test_a_dry_run_prints_a_recipe_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = planned(
        capsys, "--pipeline", "gan", "--seed", "7", "--stage.joint.share", "0.25",
        "--real-data", "/nowhere",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    Path("again.toml").write_text(text)
    recipe = build(Path("again.toml"))
    assert (recipe.run.seed, recipe.stage[-1].share) == (7, 0.25)
    assert planned(capsys, "--config", "again.toml") == text


def test_a_dry_run_tells_the_plan_first(capsys: pytest.CaptureFixture[str]) -> None:
    main(["distill", "--dry-run", "--run.threads", "1"])
    out = capsys.readouterr().out
    assert out.index("plan: teacher demo") < out.index("refine") < out.index("[teacher]")
    tomllib.loads(out[out.index("pipeline = ") :])


def test_a_dry_run_of_generate_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["generate", "--dry-run", "--quiet", "--count", "50", "--run.threads", "1"])
    assert tomllib.loads(capsys.readouterr().out)["dataset"]["count"] == 50
    assert list(tmp_path.iterdir()) == []


def test_flags_go_over_the_file_and_the_file_over_the_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[run]\nseed = 4\n[budget]\nminutes = 2\n[memory]\ncapacity = 300\n")
    found = tomllib.loads(planned(capsys, "--config", str(config), "--memory.capacity", "200"))
    assert (found["run"]["seed"], found["memory"]["capacity"]) == (4, 200)
    assert found["budget"] == {"minutes": 2.0}
    found = tomllib.loads(planned(capsys, "--config", str(config), "--images-seen", "99"))
    assert found["budget"] == {"images": 99}


@pytest.mark.parametrize(
    "argv",
    [
        ["--memory.capacity", "200", "--training.learning-rate", "0.5"],
        ["--memory.capacity=200", "--training.learning_rate=0.5"],
    ],
)
def test_dotted_names_take_dashes_underscores_and_equals_signs(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = tomllib.loads(planned(capsys, *argv))
    assert (found["memory"]["capacity"], found["training"]["learning_rate"]) == (200, 0.5)


def test_a_short_flag_and_its_dotted_name_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--seed", "9") == planned(capsys, "--run.seed", "9")


def test_every_setting_has_a_dotted_flag_that_some_word_takes() -> None:
    tables = {table for word in cli._TABLES.values() for table in word}
    assert {setting.table for setting in settings()} <= tables


@pytest.mark.parametrize(
    ("flag", "value"),
    [(f"--{s.key}", s.flag) for s in settings() if s.flag and s.table in ("teacher", "data")],
)
def test_a_dotted_name_is_the_short_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    """`--teacher.spec` once was taken for a part of `--teacher`."""
    assert cli._take_stage_flags([flag, "x"]) == [value, "x"]


def test_stages_are_changed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--stage.joint.terms.statistics=2", "--stage.joint.student-steps", "3"]
    found = tomllib.loads(planned(capsys, "--pipeline", "gan", *flags))
    changed = {stage["name"]: stage for stage in found["stage"]}["joint"]
    assert (changed["terms"]["statistics"], changed["student_steps"]) == (2.0, 3)
    assert changed["terms"]["one_hot"] == 0.5
    again = tomllib.loads(planned(capsys, "--pipeline", "gan"))
    terms = {stage["name"]: stage["terms"] for stage in again["stage"]}
    assert terms["joint"]["statistics"] == 10.0


def test_a_negative_mean_is_a_value_and_not_a_flag(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    body = build_network("resnet8-w4", channels=1, size=16, classes=10)
    torch.save(body.state_dict(), tmp_path / "w.pt")
    teacher = shlex.split(
        f"--teacher resnet8-w4 --teacher-weights {tmp_path}/w.pt --image-size 16 --channels 1 "
        "--teacher-std 0.5 --val-data demo:unseen --anyway"
    )
    found = tomllib.loads(planned(capsys, *teacher, "--teacher-mean", "-0.5"))
    assert found["teacher"]["mean"] == [-0.5]


def test_what_files_say_reaches_the_terminal_without_its_escape_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from synthkd.commands.display import Display

    display = Display()
    display.say("a\x1b]0;title\x07")
    display.table("t", ("name",), [["b\x1b[31m"]])
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\x07" not in text
    assert "a\\x1b]0;title\\x07" in text and "b\\x1b[31m" in text
