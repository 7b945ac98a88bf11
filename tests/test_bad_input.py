"""Bad input at the command line: one clear line, exit code 2, no traceback, nothing executed.

Every case is a process of its own. Those that need torch are forked from one that has imported it,
so that a case costs milliseconds instead of seconds.
"""

import fcntl
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.networks import build_network
from synthkd.recipe import load_recipe, to_toml

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases are forked processes")

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

_FORKING = """
import json, os, sys, traceback
import torch._dynamo  # which torch imports when the first optimizer is made, in 1 s
import synthkd.commands.distill, synthkd.commands.evaluate, synthkd.commands.generate
from synthkd.cli import main

for line in sys.stdin:
    argv, folder, before = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.argv, code = ["synthkd", *argv], 1
        try:
            exec(before)
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking torch apart again costs a second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

DONE = ((0, ""), (3, ""))  # 3: the student of so short a run is of no use

# what a bare grey network of 16 pixels must be told, and a run that would end in a second
CONTRACT = shlex.split("--image-size 16 --channels 1 --teacher-mean 0.5 --teacher-std 0.25")
SHORT = shlex.split(
    "--student resnet8-w4 --images-seen 32 --training.batch 16 --generator.width 4 --run.threads 1 "
    "--pipeline gan "
    "--memory.capacity 200 --stage.pregenerate.fresh 32 --stage.pregenerate.synthesis-batch 16 "
    "--stage.joint.synthesis-batch 16 --stage.joint.fresh 32 --run.stages pregenerate,joint"
)


@pytest.fixture(scope="module")
def forking() -> Iterator[tuple[IO[str], IO[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKING],
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    yield process.stdin, process.stdout
    process.stdin.close()
    assert process.wait(30) == 0


class Place:
    """A folder to run commands in."""

    def __init__(self, folder: Path, forking: tuple[IO[str], IO[str]]) -> None:
        self.folder = folder
        self.forking = forking

    def run(self, *argv: str, before: str = "") -> tuple[int, str]:
        """Exit code and stderr of one command line, in a process that runs `before` first."""
        self.forking[0].write(json.dumps([argv, str(self.folder), before]) + "\n")
        self.forking[0].flush()
        code = int(self.forking[1].readline())
        return code, (self.folder / "stderr").read_text()

    def refused(self, *argv: str, words: str | tuple[str, ...]) -> str:
        """The one line with which a command line is refused."""
        line = is_one_line(*self.run(*argv))
        for word in (words,) if isinstance(words, str) else words:
            assert word in line, line
        return line

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


def is_one_line(code: int, stderr: str) -> str:
    assert code == 2, (code, stderr)
    assert stderr.startswith("error: "), stderr
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert "Traceback" not in stderr
    assert stderr[:-1].isprintable(), stderr
    return stderr[:-1]


@pytest.fixture
def place(tmp_path: Path, forking: tuple[IO[str], IO[str]]) -> Place:
    return Place(tmp_path, forking)


def weights(place: Place, name: str = "resnet8-w4", file: str = "weights.pth") -> str:
    path = place.folder / file
    torch.manual_seed(0)
    torch.save(build_network(name, channels=1, size=16, classes=10).state_dict(), path)
    return str(path)


def pictures(place: Place, classes: int = 10) -> Path:
    folder = place.folder / "pictures"
    rng = np.random.default_rng(0)
    for k in range(classes):
        (folder / str(k)).mkdir(parents=True)
        for i in range(2):
            array = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(array).save(folder / str(k) / f"{i}.png")
    return folder


# The line of commands, flags and settings: refused before torch is imported


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["distil"], ["distil", "distill"]),
        (["distill", "--anyway", "true"], ["'true' belongs to no flag: --anyway takes no value"]),
        (["distill", "--seed=3", "5"], ["'5' belongs to no flag: give values after their flag"]),
        (["export", "a", "b", "c"], ["'b', 'c' belong to no flag", "synthkd export --help"]),
        (["distill", "--mixratio", "1"], ["--mixratio", "Did you mean --mix-ratio?"]),
        (["distill", "--mix-ratio", "1.3"], ["mix_ratio", "less than or equal to 1", "1.3"]),
        (
            ["distill", "--pipeline", "gan", "--stage.joit.share", "1"],
            ["joit", "did you mean 'joint'?"],
        ),
        (
            ["distill", "--config", "wrong.toml"],
            ["wrong.toml", "capasity", "did you mean 'capacity'?"],
        ),
    ],
)
def test_a_wrong_setting_is_refused_at_once(
    tmp_path: Path, argv: list[str], words: list[str]
) -> None:
    (tmp_path / "wrong.toml").write_text("[memory]\ncapasity = 5\n")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "synthkd", *argv],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stderr.splitlines(keepends=True)
    imported = [line for line in lines if line.startswith("import time:")]
    line = is_one_line(done.returncode, "".join(x for x in lines if x not in imported))
    assert all(word in line for word in words), line
    assert not any(x.rstrip().endswith(" torch") for x in imported)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "wrong.toml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("distill --mix-ratio 0.5", ("mix ratio 0.5 needs real images", "--real-data")),
        ("distill --mix-ratio nan", "mix_ratio"),
        ("distill --mix-ratio -0.1", "mix_ratio"),
        ("distill --mix-ratio", "--mix-ratio"),
        ("distill --minutes 1 --images-seen 5", "--minutes or --images-seen, not both"),
        ("distill --minutes 0", "budget.minutes"),
        ("distill --images-seen ten", ("budget.images", "'ten'")),
        ("distill --pipeline gan --stage.joint.shair 1", ("shair", "did you mean 'share'?")),
        (
            "distill --pipeline gan --stage.joint.terms.statistic 1",
            ("statistic", "did you mean 'statistics'?"),
        ),
        ("distill --pipeline gan --stage.joint.share", "share"),
        (
            "distill --pipeline gan --stage.joint.terms 5 --stage.joint.terms.statistics 2",
            ("--stage.joint.terms.statistics", "as a whole"),
        ),
        ("distill --stage.joint", "--stage.NAME.KEY VALUE"),
        ("distill --pipeline gan --run.stages joit", ("joit", "did you mean 'joint'?")),
        (
            "distill --pipeline gan --run.stages pregenerate",
            "no stage of this pipeline trains the student",
        ),
        ("distill --pipeline synhtkd", ("synhtkd", "did you mean 'synthkd'?")),
        ("distill --pipeline ./none.toml", "no such file"),
        ("distill --config none.toml", "no such file"),
        ("distill --memory.capacity 1000000000000", ("memory.capacity", "too many images")),
        ("distill --teacher-std 0", "--teacher-std must be positive"),
        ("distill --run.device cuda:99", "there is no such GPU"),
        ("distill --student resnet9", ("resnet9", "did you mean")),
        ("distill --resume none --seed 1", "give no other settings"),
        ("distill --resume none", "not a run directory"),
        ("distill --synthetic none", "no such data set folder"),
        ("distill --synthetic .", "not a synthetic data set"),
        ("distill --generator-from .", "no generator.safetensors"),
        ("distill --val-data nowhere", ("--val-data", "no such file or folder")),
        ("distill --val-data code.py:make", ("--val-data", "--trust-code")),
        ("distill --mix-ratio 0.5 --real-data nowhere", "no such file or folder"),
        ("distill --classes 2", ("--classes 2", "10 classes")),
        ("distill --teacher demo --teacher-weights x.pth", "brings its own weights"),
        ("generate --count 0", "dataset.count"),
        ("generate --generator-from nowhere", "no generator.safetensors"),
        ("evaluate", "nothing to evaluate"),
        ("evaluate --student . --val-data demo:unseen", "no student.safetensors"),
        ("evaluate --images nowhere", "no such file or folder"),
        ("evaluate --mix-ratio 1", "--mix-ratio"),
    ],
)
def test_bad_settings(place: Place, argv: str, words: str | tuple[str, ...]) -> None:
    place.refused(*argv.split(), words=words)
    left = {path.name for path in place.folder.rglob("*")} - {"stdout", "stderr"}
    assert left <= {"runs", "demo-resnet8-w12-s0"}  # at most the empty directory of the run


def test_a_foreign_string_reaches_the_terminal_without_its_escape_codes(place: Place) -> None:
    place.refused("distill", "--teacher", "\x1b[31mred\n", words="red")
    place.refused("distill", "--\x1b[31mred", words="red")
    place.refused("distill", "--stage.\x1b[31mred.share", "1", words="red")
    place.refused("distill", "--seed", "\x1b[31mred", words="red")


# Teachers


def test_a_missing_teacher_file(place: Place) -> None:
    place.refused(
        "distill", "--teacher", "resnet8-w4", "--teacher-weights", "none.pth", *CONTRACT,
        words=("none.pth", "no such file"),
    )  # fmt: skip
    place.refused(
        "distill", "--teacher", "none.py:make", *CONTRACT, words=("none.py", "there is no file")
    )


def test_weights_of_another_architecture(place: Place) -> None:
    place.refused(
        "distill", "--teacher", "resnet14-w4", "--teacher-weights", weights(place), *CONTRACT,
        words=("weights.pth", "does not fit this architecture: missing 'layer1.1"),
    )  # fmt: skip


def test_two_classes_of_a_teacher_that_has_ten(place: Place) -> None:
    place.refused(
        "distill", "--teacher", "resnet8-w4", "--teacher-weights", weights(place), *CONTRACT,
        "--classes", "2", words=("--classes 2", "has 10 classes"),
    )  # fmt: skip


class Payload:
    """Unpickled, it writes a file named `ran` into the working directory."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("open('ran', 'w').close()",)


@pytest.mark.parametrize("form", ["torch.save", "pickle", "among weights"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    place: Place, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.folder / "weights.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif form == "torch.save":
        torch.save(Payload(), path)
    else:
        weights(place)
        torch.save(torch.load(path, weights_only=True) | {"extra": Payload()}, path)
    ran = place.folder / "ran"
    line = place.refused(
        "distill", "--teacher", "resnet8-w4", "--teacher-weights", str(path), *CONTRACT,
        words=("not plain weights", "safetensors"),
    )  # fmt: skip
    assert "weights_only=False" not in line  # torch's own text advises it
    assert not ran.exists()
    monkeypatch.chdir(place.folder)
    if form == "pickle":
        pickle.loads(path.read_bytes())  # noqa: S301
    else:
        torch.load(path, weights_only=False)
    assert ran.exists()  # so the payload was armed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b'{"message": "Not Found"}', "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer"),
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 100, "not plain weights"),
        (b"\x80\x02}q\x00.", "not plain weights"),
    ],
)
def test_what_was_downloaded_instead_of_weights(place: Place, content: bytes, words: str) -> None:
    path = place.file("weights.pth", content)
    place.refused(
        "distill", "--teacher", "resnet8-w4", "--teacher-weights", path, *CONTRACT, words=words
    )


@pytest.mark.parametrize("cut", [0, 4, 100, 5000])
def test_a_cut_safetensors_file(place: Place, cut: int) -> None:
    whole = (ROOT / "assets" / "demo_teacher.safetensors").read_bytes()
    path = place.file("weights.safetensors", whole[:cut])
    place.refused(
        "distill", "--teacher", "resnet14", "--teacher-weights", path, *CONTRACT,
        words="not a readable safetensors file" if cut else "is empty",
    )  # fmt: skip
    place.file("run/student.safetensors", whole[:cut])
    place.refused("distill", "--teacher", "run", words="not a network saved by synthkd")


def test_a_suffix_that_is_no_file_of_weights(place: Place) -> None:
    path = place.file("weights.zip", b"PK")
    place.refused(
        "distill", "--teacher", "resnet8-w4", "--teacher-weights", path, *CONTRACT,
        words="not plain weights",
    )  # fmt: skip


CODE = """
import torch
from torch import nn
open("ran", "w").close()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        return self.linear(x.flatten(1)) * float("nan")

def stop():
    raise RuntimeError("first line\\nsecond line")
"""


def test_a_teacher_that_answers_nan(place: Place) -> None:
    path = place.file("net.py", CODE)
    argv = ["distill", "--teacher", f"{path}:Net", "--trust-code", *CONTRACT]
    place.refused(*argv, words="NaN")


def test_code_that_is_not_trusted_does_not_run(place: Place) -> None:
    path = place.file("net.py", CODE)
    for flags in (["--teacher", f"{path}:Net", *CONTRACT], ["--student", f"{path}:Net"]):
        place.refused("distill", *flags, words=("net.py", "--trust-code"))
        assert not (place.folder / "ran").exists()
    place.refused(
        "distill",
        "--mix-ratio",
        "0.5",
        "--real-data",
        f"{path}:stop",
        words=("net.py", "--trust-code"),
    )
    assert not (place.folder / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("raise RuntimeError('out of\\nluck')", ("RuntimeError", "luck")),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import no_such_package", "no_such_package"),
        ("x = (", "SyntaxError"),
        ("def make(): return 5", "must return a torch.nn.Module; got int"),
        ("make = 5", "no callable 'make'"),
    ],
)
def test_a_teacher_whose_code_fails(
    place: Place, content: str, words: str | tuple[str, ...]
) -> None:
    path = place.file("net.py", content + "\n")
    argv = ["distill", "--teacher", f"{path}:make", "--trust-code", *CONTRACT]
    place.refused(*argv, words=words)


# Images


@pytest.mark.slow
def test_a_folder_without_images(place: Place) -> None:
    (place.folder / "empty").mkdir()
    argv = ["--mix-ratio", "0.5", "--real-data", "empty"]
    place.refused("distill", *argv, words=("'empty'", "there is no image"))
    place.refused("evaluate", "--images", "empty", words=("'empty'", "there is no image"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_corrupt_image_among_good_ones_is_named(place: Place, damage: bytes) -> None:
    folder = pictures(place)
    (folder / "3" / "1.png").write_bytes(damage)
    line = place.refused(
        "distill", "--mix-ratio", "0.5", "--real-data", str(folder), words="1 of 20 images cannot"
    )
    assert str(Path("3") / "1.png") in line


def test_labels_that_the_teacher_does_not_have(place: Place) -> None:
    np.savez(place.folder / "x.npz", x=np.zeros((4, 16, 16), np.uint8), y=np.array([0, 1, 2, 10]))
    place.refused(
        "evaluate", "--student", "demo", "--val-data", "x.npz", words="labels must lie in 0..9"
    )


@pytest.mark.slow
def test_a_corrupt_validation_image_does_not_cost_the_run(place: Place) -> None:
    folder = pictures(place)
    (folder / "3" / "1.png").write_bytes(b"damaged")
    line = place.refused(
        "distill", *SHORT, "--val-data", str(folder), "--out", "run",
        words=("1 of 20 images cannot", "the run is finished, but not scored"),
    )  # fmt: skip
    assert "synthkd evaluate" in line
    summary = json.loads((place.folder / "run" / "summary.json").read_text())
    assert summary["student_accuracy"] is None
    assert summary["images_seen"] == 32
    (folder / "3" / "1.png").unlink()
    code, stderr = place.run("evaluate", "--student", "run", "--val-data", str(folder))
    assert (code, stderr) in DONE


# Run directories


@pytest.mark.slow
def test_a_full_run_directory_is_refused_and_left_alone(place: Place) -> None:
    place.file("run/thesis.txt", "precious")
    for word in ("distill", "generate"):
        place.refused(word, "--out", "run", words=("'run'", "not empty"))
    place.refused("evaluate", "--student", "demo", "--out", "run", words="not an empty directory")
    assert [path.name for path in (place.folder / "run").iterdir()] == ["thesis.txt"]
    place.refused("distill", "--out", "run/thesis.txt", words="this is a file, not a directory")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, forking: tuple[IO[str], IO[str]]) -> Path:
    """A finished run, killed before it removed its checkpoints."""
    place = Place(tmp_path_factory.mktemp("started"), forking)
    return with_checkpoints(place, SHORT, "run")


def with_checkpoints(place: Place, words: list[str], out: str) -> Path:
    """Runs these words of `synthkd distill` in a process that does not come to its last act."""
    options = ["--val-data", "none", "--run.checkpoint-seconds", "1e-6", "--out", out, "--quiet"]
    patched = "from synthkd.runs.directory import Run; Run._clear_checkpoints = lambda self: None"
    assert place.run("distill", *words, *options, before=patched) in DONE
    return place.folder / out


@pytest.fixture
def broken_off(place: Place, started: Path) -> Path:
    """A run that broke off after a checkpoint: a finished one without its summary."""
    run = place.folder / "run"
    for path in started.rglob("*"):
        if path.is_file() and path.name != "summary.json":
            place.file(str(Path("run") / path.relative_to(started)), path.read_bytes())
    return run


BUSY = "another synthkd is using it"


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Holds the lock of a directory, as a process that works in it does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(place: Place, started: Path) -> None:
    place.refused("distill", "--resume", str(started), words="this run is finished")


@pytest.mark.slow
def test_the_broken_off_run_itself_is_resumed(place: Place, broken_off: Path) -> None:
    assert place.run("distill", "--resume", str(broken_off), "--quiet") in DONE


def test_a_run_in_which_another_process_works_is_left_alone(place: Place, broken_off: Path) -> None:
    with working_in(broken_off):
        before = (broken_off / "metrics.jsonl").read_bytes()
        place.refused("distill", "--resume", str(broken_off), words=BUSY)
        assert (broken_off / "metrics.jsonl").read_bytes() == before
    assert place.run("distill", "--resume", str(broken_off), "--quiet") in DONE


@pytest.mark.slow
def test_a_data_set_on_which_another_process_works_is_left_alone(place: Place) -> None:
    recipe = load_recipe(flags={
        "dataset": {"count": 20}, "generator": {"kind": "procedural"}, "budget": {"images": 64},
    })  # fmt: skip
    path = Path(place.file("set/recipe.toml", to_toml(recipe))).parent
    with working_in(path):
        place.refused("generate", "--resume", "set", words=BUSY)
    assert place.run("generate", "--resume", "set", "--quiet") in DONE


@pytest.mark.slow
@pytest.mark.parametrize("word", ["distill", "generate"])
def test_an_empty_directory_that_another_process_has_claimed_is_refused(
    place: Place, word: str
) -> None:
    (place.folder / "claimed").mkdir()
    with working_in(place.folder / "claimed"):
        place.refused(word, "--out", "claimed", words=BUSY)
        assert list((place.folder / "claimed").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.toml", b"[memory\n", "not valid TOML"),
        ("recipe.toml", b"\xff\xfe", "cannot be read as text"),
        ("recipe.toml", b"[memory]\ncapasity = 4\n", "did you mean 'capacity'?"),
        ("recipe.toml", b"[budget]\nimages = 50\n", "no stage"),
        ("manifest.json", b"{", "missing or damaged"),
        ("manifest.json", b"[]", "missing or damaged"),
        ("manifest.json", b"{}", "was made by another version of synthkd"),
        ("manifest.json", b'{"format": 2}', "the teacher is not the one"),
    ],
)
def test_a_damaged_run_is_not_resumed(
    place: Place, broken_off: Path, name: str, content: bytes, words: str
) -> None:
    (broken_off / name).write_bytes(content)
    place.refused("distill", "--resume", str(broken_off), words=words)


def test_a_run_of_a_strangers_calls_nothing(place: Place, broken_off: Path) -> None:
    path, fired = broken_off / "recipe.toml", place.folder / "fired"
    harm = f'spec = "subprocess:run"\nargs = {{ args = "touch {fired}", shell = "true" }}'
    text = path.read_text().replace('[teacher]\nspec = "demo"', f"[teacher]\n{harm}")
    assert harm in text
    path.write_text(text.replace("args = {}\n", "", 1))
    place.refused("distill", "--resume", str(broken_off), words="would be called")
    assert not fired.exists()


@pytest.mark.parametrize("name", ["recipe.toml", "manifest.json"])
def test_a_run_that_lacks_a_file_is_not_resumed(place: Place, broken_off: Path, name: str) -> None:
    (broken_off / name).unlink()
    words = ("not a run directory", "remove the directory")
    place.refused("distill", "--resume", str(broken_off), words=words)


def test_a_run_whose_recipe_was_changed_is_not_resumed(place: Place, broken_off: Path) -> None:
    text = (broken_off / "recipe.toml").read_text()
    (broken_off / "recipe.toml").write_text(text.replace("seed = 0", "seed = 1"))
    place.refused("distill", "--resume", str(broken_off), words="recipe.toml")


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(place: Place, broken_off: Path) -> None:
    wider = ["resnet8-w6" if word == "resnet8-w4" else word for word in SHORT]
    other = with_checkpoints(place, wider, "other")
    shutil.rmtree(broken_off / "checkpoints")
    shutil.copytree(other / "checkpoints", broken_off / "checkpoints")
    place.refused("distill", "--resume", str(broken_off), words="does not fit its recipe")


@pytest.mark.parametrize("cut", [0, 9, 2000])
def test_a_damaged_generator_is_refused(place: Place, started: Path, cut: int) -> None:
    whole = (started / "generator.safetensors").read_bytes()
    place.file("run/generator.safetensors", whole[:cut])
    for word in ("generate", "distill"):
        place.refused(word, "--generator-from", "run", words=("generator.safetensors", "damaged"))


@pytest.mark.slow
@pytest.mark.parametrize(("out", "kept"), [("made", "made"), ("made/set", "made")])
def test_a_model_is_not_kept_where_the_data_set_goes(place: Place, out: str, kept: str) -> None:
    place.refused(
        "generate", "--pipeline", "diffusion", "--out", out, "--save-generator", kept,
        words="the data set goes there",
    )  # fmt: skip
    assert not (place.folder / "made").exists()


@pytest.mark.slow
def test_a_diffusion_model_wants_something_to_learn_from(place: Place) -> None:
    place.refused(
        "generate", "--pipeline", "diffusion", "--run.stages", "learn,imagine", "--count", "20",
        "--diffusion.width", "8", words=("stage learn", "nothing to learn from", "--real-data"),
    )  # fmt: skip


@pytest.mark.parametrize("pipeline", ["dfad", "zskt"])
def test_a_generator_that_goes_by_a_student_alone_is_refused_without_one(
    place: Place, pipeline: str
) -> None:
    place.refused(
        "generate",
        "--pipeline",
        pipeline,
        words="without a student its generator has nothing to go by",
    )


def test_a_bench_takes_only_what_its_runs_understand(place: Place) -> None:
    for table, words in (
        ("[dataset]\ncount = 5", "dataset.count: the runs of a bench have no such setting"),
        ('[teacher]\nargs = { kinds = "a,b" }', "teacher.args.kinds: bench cannot pass on"),
    ):
        place.file("bench.toml", table)
        place.refused("bench", "--config", "bench.toml", "--minutes", "1", "--out", "arena",
                      words=words)  # fmt: skip
    assert not (place.folder / "arena").exists()


def test_a_damaged_bench_is_not_reported(place: Place) -> None:
    place.file("arena/bench.json", json.dumps({"settings": {"minutes": 1}}))
    place.refused("bench", "--report", "--out", "arena", words="bench.json is damaged")


@pytest.mark.slow
def test_a_generator_for_another_teacher_is_refused(place: Place, started: Path) -> None:
    argv = ["--teacher", "resnet8-w4", "--teacher-weights", weights(place), "--anyway"]
    contract = ["32" if word == "16" else word for word in CONTRACT]
    for word in ("generate", "distill"):
        place.refused(
            word, *argv, *contract, "--generator-from", str(started),
            words=("it makes 10 classes of [1, 16, 16] images", "[1, 32, 32]"),
        )  # fmt: skip
