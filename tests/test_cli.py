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

from synthkd import __version__, commands
from synthkd.cli import COMMANDS, Command, Positional, Switch, main
from synthkd.cli.flags import take_stage_flags
from synthkd.networks import build_network
from synthkd.recipe import load_recipe, settings

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


def test_the_help_names_every_command(tmp_path: Path) -> None:
    done = synthkd(tmp_path, "--help")
    assert done.returncode == 0
    assert all(name in done.stdout and c.help in done.stdout for name, c in COMMANDS.items())


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


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    main(argv)
    return capsys.readouterr().out


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][\w.-]*", text))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_names_its_daily_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, name, "--help")
    lines = out.splitlines()
    assert len(lines) <= 40
    assert [line for line in lines if len(line) > 80] == []
    command = COMMANDS[name]
    assert command.help in out
    daily = {s.flag for s in command.settings() if s.flag} | {s.flag for s in command.switches}
    assert daily <= flags_in(out)
    if command.tables:
        assert f"synthkd {name} --help-all" in out
        assert "docs/settings.md" in out


def test_the_help_of_distill_leaves_out_the_flags_of_other_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {setting.flag for setting in settings() if setting.flag}
    assert flags - flags_in(printed(capsys, "distill", "--help")) == {
        "--count", "--images", "--reference", "--extractor", "--extractor-weights",
        "--no-data",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_shows_every_setting_that_the_command_takes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = printed(capsys, name, "--help-all")
    command = COMMANDS[name]
    dotted = {f"--{setting.key}" for setting in command.settings() if setting.table}
    assert dotted | {switch.flag for switch in command.switches} <= flags_in(out)
    if name == "distill":
        assert len(dotted) > 80
        assert "--dataset.count" not in out


def test_a_command_is_a_file_and_an_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial command with settings, a positional that is a setting, and a switch of its own."""
    (tmp_path / "trial.py").write_text(
        "def run(recipe, *, shout=False, given=()):\n"
        "    share = recipe.stage[0].share\n"
        "    text = f'{recipe.teacher.spec} {recipe.run.seed} {share} {sorted(given)}'\n"
        "    print(text.upper() if shout else text)\n"
        "    return {'verdict': 'useless' if recipe.run.seed == 13 else 'ok'}\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    trial = Command(
        "Show what was given.",
        tables=("", "teacher", "run"),
        without=("teacher.spec",),
        positionals=(Positional("spec", str, "SPEC of a network", setting="teacher.spec"),),
        switches=(Switch("shout", "--shout", bool, False, "in capitals"),),
        context=("given",),
    )
    monkeypatch.setitem(COMMANDS, "trial", trial)
    flags = ["--run.seed", "4", "--pipeline", "gan", "--stage.pregenerate.share", "0.25"]
    assert printed(capsys, "trial", "demo", "--shout", *flags) == (
        "DEMO 4 0.25 ['PIPELINE', 'RUN.SEED', 'STAGE.PREGENERATE', 'TEACHER.SPEC']\n"
    )
    assert "Show what was given." in printed(capsys, "--help")
    assert {"--shout", "--seed", "--teacher-weights"} <= flags_in(
        printed(capsys, "trial", "--help")
    )
    assert "--run.threads" in printed(capsys, "trial", "--help-all")
    with pytest.raises(SystemExit) as ended:
        main(["trial", "demo", "--seed", "13"])
    assert ended.value.code == 3
    with pytest.raises(SystemExit) as ended:
        main(["trial", "demo", "--student", "auto"])
    assert ended.value.code == 2


def test_a_command_without_a_recipe_is_called_with_its_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "listing.py").write_text(
        "def run(path, images, *, top=3):\n    print(path.name, [i.name for i in images], top)\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    listing = Command(
        "List files.",
        positionals=(
            Positional("path", Path, "a folder"),
            Positional("images", Path, "its files", several=True),
        ),
        switches=(Switch("top", "--top", int, 3, "how many"),),
    )
    monkeypatch.setitem(COMMANDS, "listing", listing)
    assert printed(capsys, "listing", "a/b", "x.png", "y.png", "--top", "2") == (
        "b ['x.png', 'y.png'] 2\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["listing", "a", "x", "--stage.study.share", "0.5"])
    assert ended.value.code == 2


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
    recipe = load_recipe(Path("again.toml"))
    assert (recipe.run.seed, recipe.stage[-1].share) == (7, 0.25)
    assert planned(capsys, "--config", "again.toml") == text


@pytest.mark.slow
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
    assert found["budget"] == {"minutes": 2.0, "cycles": 1}
    found = tomllib.loads(planned(capsys, "--config", str(config), "--images-seen", "99"))
    assert found["budget"] == {"images": 99, "cycles": 1}


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


def test_every_setting_has_a_dotted_flag_that_some_command_takes() -> None:
    taken = {setting.key for command in COMMANDS.values() for setting in command.settings()}
    assert {setting.key for setting in settings()} == taken


@pytest.mark.parametrize(
    ("flag", "value"),
    [(f"--{s.key}", s.flag) for s in settings() if s.flag and s.table in ("teacher", "data")],
)
def test_a_dotted_name_is_the_short_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    """`--teacher.spec` once was taken for a part of `--teacher`."""
    assert take_stage_flags([flag, "x"]) == ([value, "x"], {})


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--training.unnormalised=0.3", "now called --training.lr_factor_without_norm"),
        ("--diffusion.guide-clip", "this setting is gone"),
    ],
)
def test_the_flag_of_a_renamed_or_removed_setting_says_so(
    capsys: pytest.CaptureFixture[str], flag: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--dry-run", flag, "1"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


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
