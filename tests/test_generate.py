"""`synthkd generate` from end to end, and what its data set and a run are good for afterwards."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import DONE, main, status
from torchvision.datasets import ImageFolder

import synthkd
from synthkd.core.images import to_float
from synthkd.data.store import open_store
from synthkd.jobs.generation import Generation, used
from synthkd.recipe import Recipe, TeacherTable
from synthkd.runs.checkpoints import Checkpoints
from synthkd.specs import load_teacher

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SMALL = shlex.split(
    "--pipeline gan "
    "--images-seen 2000 --generator.width 8 --run.threads 1 --stage.pregenerate.fresh 16 "
    "--stage.pregenerate.synthesis-batch 50"
)
STUDENT = shlex.split(
    "--student resnet8-w4 --images-seen 96 --training.batch 32 --run.threads 1 --quiet "
    "--memory.capacity 300 --val-data none"
)
COUNT = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data set made by a process of its own, and what it printed."""
    folder = tmp_path_factory.mktemp("generate")
    done = subprocess.run(
        [sys.executable, "-m", "synthkd", "generate", *SMALL,
         "--count", str(COUNT), "--out", "set"],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "set", done.stdout


def manifest_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return data


def test_it_writes_images_labels_logits_a_sheet_and_a_manifest(made: tuple[Path, str]) -> None:
    folder, out = made
    found = manifest_of(folder)
    assert found["count"] + sum(found["classes_not_filled"].values()) == COUNT
    assert (found["real_images_read"], found["promise_level"]) == (0, 0)
    assert found["teacher_sha256"] == load_teacher(TeacherTable()).digest
    assert found["training"]["images"] == 2000
    assert found["count"] / found["drawn"] <= found["agreed_share"] <= 1
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 16
    assert "real images read" in out and f"{found['count']} in set" in out


def test_every_label_is_the_teachers_vote(made: tuple[Path, str]) -> None:
    store = open_store(made[0], verify=True)
    logits = load_teacher(TeacherTable())(to_float(store.pixels))
    assert torch.equal(logits.argmax(1), store.labels)
    assert torch.allclose(logits, store.logits.float(), rtol=1e-2, atol=0.2)
    assert int(store.labels.bincount(minlength=10).max()) <= -(-COUNT // 10)


def test_it_opens_with_image_folder(made: tuple[Path, str]) -> None:
    store = open_store(made[0])
    folder = ImageFolder(str(made[0]), allow_empty=True)
    assert len(folder) == len(store)
    assert len(folder.classes) == 10
    for path, label in folder.samples:
        row = int(Path(path).stem)
        assert int(store.labels[row]) == label
    path, _ = folder.samples[0]
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), store.pixels[int(Path(path).stem), 0].numpy())


def test_evaluate_scores_the_set(
    made: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", "--images", str(made[0]), "--run.threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)["images"]
    assert "scores" in found
    main(["evaluate", "--images", str(made[0]), "--run.threads", "1"])
    assert "votes" in capsys.readouterr().out


def test_distill_learns_from_the_set_and_nothing_else(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    main(["distill", *STUDENT, "--synthetic", str(made[0]), "--out", str(out)])
    found = json.loads((out / "summary.json").read_text())
    assert (found["images_seen"], found["images_synthesized"]) == (96, 0)
    assert (found["real_images_read"], found["promise_level"]) == (0, 0)
    opened = manifest_of(out)["data"]["synthetic"]
    assert opened["images"] == len(open_store(made[0]))
    assert not (out / "generator.safetensors").exists()


@pytest.mark.parametrize("level", [None, "abc", [], 7, 2])
def test_the_promise_of_a_set_is_passed_on_and_nothing_better(
    made: tuple[Path, str], tmp_path: Path, level: object
) -> None:
    copy = tmp_path / "set"
    copy.mkdir()
    for path in made[0].iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest_of(made[0]) | {"promise_level": level}))
    main(["distill", *STUDENT, "--synthetic", str(copy), "--out", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["promise_level"] == (2 if level == 2 else 3)


@pytest.mark.slow
def test_a_set_of_another_teacher_is_an_outside_prior(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    main(["distill", *STUDENT, "--synthetic", str(made[0]), "--out", str(tmp_path / "first")])
    main(["distill", *STUDENT, "--synthetic", str(made[0]), "--out", str(tmp_path / "second"),
          "--teacher", str(tmp_path / "first")])  # fmt: skip
    levels = [manifest_of(tmp_path / name)["promise_level"] for name in ("first", "second")]
    assert levels == [0, 1]


def test_a_set_for_another_teacher_is_refused(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))\n"
    )
    contract = shlex.split(
        "--image-size 16 --channels 1 --teacher-mean 0.5 --teacher-std 0.5 --trust-code --anyway"
    )
    with pytest.raises(SystemExit) as stopped:
        main([
            "distill", *STUDENT, "--teacher", f"{tmp_path / 'net.py'}:make", *contract,
            "--synthetic", str(made[0]), "--out", str(tmp_path / "run"),
        ])  # fmt: skip
    assert stopped.value.code == 2
    assert "has 10 classes, the teacher 4" in capsys.readouterr().err


def test_a_loaded_generator_draws_the_same_images_without_training(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "again"
    main([
        "generate", "--generator-from", str(made[0]), "--count", str(COUNT), "--out", str(out),
        "--run.threads", "1", "--quiet",
    ])  # fmt: skip
    found = manifest_of(out)
    assert found["training"] == {"from": str(made[0]), "images": 0, "seconds": 0.0}
    assert torch.equal(open_store(out).pixels, open_store(made[0]).pixels)


@pytest.mark.slow
def test_the_generator_of_a_distill_run_makes_a_set_and_its_student_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tiny = shlex.split(
        "--pipeline gan --generator.width 8 --stage.pregenerate.fresh 64 --stage.joint.fresh 32"
    )
    main(["distill", *STUDENT, *tiny, "--out", str(run)])
    main([
        "generate", "--generator-from", str(run), "--count", "20", "--out", str(tmp_path / "set"),
        "--run.threads", "1", "--quiet", "--dataset.folders", "false",
    ])  # fmt: skip
    assert len(open_store(tmp_path / "set")) >= 1
    assert not [path for path in (tmp_path / "set").iterdir() if path.is_dir()]
    main(["evaluate", "--student", str(run), "--run.threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)["comparison"]
    assert found["n"] == 539
    assert found["teacher_accuracy"] > 0.95
    assert 0 <= found["student_accuracy"] <= 1


# Diffusion: real images that are allowed, stop and resume, a model that is kept and borrowed

IMAGINED = shlex.split(
    "--pipeline diffusion --run.stages learn,imagine --real-data demo:seen --images-seen 3000 "
    "--diffusion.width 8 --diffusion.steps 2 --diffusion.batch 64 --count 1000 --dataset.shard 300 "
    "--stage.learn.synthesis-steps 2 --stage.learn.synthesis-batch 16 --stage.imagine.fresh 16 "
    "--run.threads 1 --run.checkpoint-seconds 0.2"
)


def begun(folder: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "synthkd", "generate", *argv],
        cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def hit(process: subprocess.Popen[str], out: Path, number: int, *, writing: bool) -> str:
    """Sends a signal as soon as a checkpoint shows that training, or writing, is under way."""

    def done() -> int:
        """Rounds of training, or batches of writing; 0 in the other phase."""
        try:
            _, state = Checkpoints(out / "checkpoints").newest() or (0, None)
        except FileNotFoundError:  # removed by the other process between two looks
            return 0
        if state is None:
            return 0
        if (state["writer"] is not None) != writing:
            return 0
        return int(state["cursor"]["batch"] if writing else state["lab"]["progress"]["round"])

    before, end = done(), time.monotonic() + 280
    while time.monotonic() < end:
        time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        if done() > before:
            process.send_signal(number)
            break
    said, errors = process.communicate(timeout=280)
    assert (process.returncode, errors) == ((-9, "") if number == 9 else (128 + number, ""))
    return said


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


@pytest.fixture(scope="module")
def imagined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two equal data sets: one unbroken, one stopped in training, killed and stopped in writing."""
    folder = tmp_path_factory.mktemp("imagined")
    whole = begun(folder, *IMAGINED, "--out", "whole", "--save-generator", "model", "--quiet")
    assert whole.communicate(timeout=280) == ("", "") and whole.returncode in DONE
    stopped = folder / "stopped"
    keep = ("--save-generator", "kept")
    said = hit(begun(folder, *IMAGINED, *keep, "--out", "stopped"), stopped, 15, writing=False)
    assert "go on with: synthkd generate --resume stopped --save-generator kept" in said
    shutil.copytree(stopped, folder / "in training")
    hit(begun(folder, "--resume", "stopped", *keep), stopped, 9, writing=True)
    hit(begun(folder, "--resume", "stopped", *keep), stopped, 2, writing=True)
    last = begun(folder, "--resume", "stopped", *keep)
    assert last.communicate(timeout=280)[1] == "" and last.returncode in DONE
    return folder


@pytest.mark.slow
def test_a_set_that_was_stopped_thrice_is_that_of_an_unbroken_call(imagined: Path) -> None:
    whole, stopped = shards(imagined / "whole"), shards(imagined / "stopped")
    assert len(whole) >= 3 * 2 and whole == stopped
    assert not (imagined / "stopped" / "checkpoints").exists()
    one, two = (manifest_of(imagined / name) for name in ("whole", "stopped"))
    for key in ("count", "per_class", "drawn", "agreed_share", "classes_not_filled", "shards"):
        assert one[key] == two[key], key
    store = open_store(imagined / "stopped", verify=True)
    folders = ImageFolder(str(imagined / "stopped"), allow_empty=True)
    assert len(folders) == len(store)


@pytest.mark.slow
def test_the_model_of_a_set_that_was_stopped_is_kept_as_well(imagined: Path) -> None:
    one, two = (imagined / name / "unet" for name in ("model", "kept"))
    name = "diffusion_pytorch_model.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
def test_a_set_is_not_resumed_with_another_recipe_or_other_images(
    imagined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(imagined / "in training", tmp_path / "set")
    recipe = tmp_path / "set/recipe.toml"
    told, checkpoints = recipe.read_text(), Checkpoints(tmp_path / "set/checkpoints")
    number, state = checkpoints.newest() or (0, {})

    def refused() -> str:
        assert status("generate", "--resume", str(tmp_path / "set")) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        return errors

    recipe.write_text(told.replace("seed = 0", "seed = 1"))
    assert "its recipe.toml was changed" in refused()
    recipe.write_text(told)
    checkpoints.save(state | {"real": "others"}, number + 1)
    assert "the real images are not those it was begun with" in refused()
    checkpoints.save(state | {"writer": {"rows": []}}, number + 2)
    assert "its checkpoint does not fit it" in refused()
    (tmp_path / "set/checkpoint.safetensors").write_bytes(b"of an earlier version")
    assert "begun by another version of synthkd" in refused()


@pytest.mark.slow
def test_real_images_show_in_the_promise(imagined: Path) -> None:
    found = manifest_of(imagined / "whole")
    assert (found["promise_level"], found["generator"]) == (2, "diffusion")
    assert found["real_images_read"] > 1000


@pytest.mark.slow
def test_a_kept_model_is_borrowed_with_its_promise(imagined: Path, tmp_path: Path) -> None:
    flags = shlex.split(
        "--pipeline diffusion --run.stages imagine --count 20 --diffusion.steps 2 --run.threads 1 "
        "--quiet --diffusion.teacher_guidance 2"
    )
    main(["generate", *flags, "--generator-from", str(imagined / "model"),
          "--out", str(tmp_path / "set")])  # fmt: skip
    found = manifest_of(tmp_path / "set")
    assert (found["promise_level"], found["real_images_read"]) == (2, 0)
    assert found["training"]["images"] == 0
    assert any("generator borrowed" in line for line in found["plan"])


@pytest.mark.parametrize(
    ("more", "levels"), [("--diffusion.teacher_guidance 0 --run.precision float32", 1), ("", 8)],
    ids=["alone", "steered, in bfloat16"],
)  # fmt: skip
@pytest.mark.slow
def test_a_set_is_the_same_whatever_the_batch(
    imagined: Path, tmp_path: Path, more: str, levels: int
) -> None:
    """A hundred images, denoised 1, 7 and 100 at a time: equal but for the last rounding, which the
    teacher's gradient widens to a few of 255 levels in one pixel of a hundred."""
    flags = shlex.split(
        "--pipeline diffusion --run.stages imagine --count 100 --diffusion.steps 3 --run.threads 1 "
        f"--quiet --dataset.folders false {more}"
    )
    sets = []
    for batch in ("1", "7", "100"):
        out = tmp_path / batch
        main(["generate", *flags, "--generator-from", str(imagined / "model"),
              "--diffusion.batch", batch, "--out", str(out)])  # fmt: skip
        sets.append(open_store(out))
    for other in sets[1:]:
        assert torch.equal(other.labels, sets[0].labels)
        gap = (other.pixels.int() - sets[0].pixels.int()).abs()
        assert int(gap.max()) <= levels and float((gap > 0).float().mean()) < 0.01


@pytest.mark.slow
def test_resuming_what_is_finished_or_nothing_is_said(
    imagined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, said in ((imagined / "whole", "is finished"), (tmp_path, "no data set was begun")):
        with pytest.raises(SystemExit) as stopped:
            main(["generate", "--resume", str(folder)])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_only_a_diffusion_model_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", *SMALL, "--save-generator", str(tmp_path / "x")])
    assert "only a diffusion model that is trained here" in capsys.readouterr().err


@pytest.mark.slow
def test_diffusion_takes_its_share_of_a_run_and_leaves_a_folder(tmp_path: Path) -> None:
    flags = shlex.split(
        "distill --pipeline diffusion --student resnet8-w4 --images-seen 256 --training.batch 64 "
        "--diffusion.width 8 --diffusion.steps 2 --stage.draw.fresh 128 "
        "--stage.refine.synthesis-steps 1 --stage.refine.synthesis-batch 64 "
        "--stage.refine.fresh 64 --stage.learn.synthesis-steps 1 "
        "--stage.learn.synthesis-batch 16 --stage.imagine.fresh 32 --run.threads 1 --quiet"
    )
    done = subprocess.run(  # of its own, in which nothing is imported yet
        [sys.executable, "-m", "synthkd", *flags, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode in DONE, done.stderr
    (opened,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["opened"]
    assert (opened["sockets"], opened["findings"]) == ([], [])
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"draw", "refine", "learn", "imagine", "study"}
    assert any("denoising" in line for line in lines) and any("accepted" in line for line in lines)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["promise_level"], summary["real_images_read"]) == (0, 0)
    assert (tmp_path / "run" / "diffusion" / "model_index.json").is_file()
    told = json.loads((tmp_path / "run" / "diffusion" / "synthkd.json").read_text())
    assert told["promise_level"] == 0


@pytest.mark.slow
def test_a_set_of_nothing_is_one_line(
    imagined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = shlex.split(
        "--pipeline diffusion --run.stages imagine --count 10 --diffusion.steps 1 --run.threads 1 "
        "--quiet --diffusion.confidence 0.9 --trust-code --image-size 16 --channels 1 "
        "--teacher-mean 0.5 --teacher-std 0.5 --anyway --teacher-answers logits"
    )
    (tmp_path / "net.py").write_text(
        "import numpy as np\n\n\ndef unsure():\n"
        "    return lambda images: np.tile(np.arange(10.0) / 10, (len(images), 1))\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *flags, "--teacher", f"{tmp_path / 'net.py'}:unsure",
              "--generator-from", str(imagined / "model"),
              "--out", str(tmp_path / "set")])  # fmt: skip
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: the teacher agrees with none of") and text.count("\n") == 1


@pytest.mark.slow
def test_a_denoiser_learns_all_the_time_that_is_given_for_learning(imagined: Path) -> None:
    """`imagine` is what writing does: it takes nothing of the budget."""
    found = manifest_of(imagined / "whole")
    assert found["training"]["images"] == pytest.approx(3000, abs=64)
    assert 0 < found["seconds_writing"] < found["wall_seconds"]
    both = manifest_of(imagined / "stopped")
    assert both["training"]["images"] == found["training"]["images"]
    assert 0 < both["seconds_writing"] < both["wall_seconds"]


# What is asked for


class Together(torch.nn.Module):
    """Independent classes: light images are of class 0, rather light ones of 0 and 1; of 2 none."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = 40 * images.mean((1, 2, 3))
        return torch.stack([light - 8, light - 9, torch.full_like(light, -50.0)], 1)


@pytest.mark.slow
def test_of_independent_classes_an_image_is_kept_where_its_class_is_not_the_likeliest(
    tmp_path: Path,
) -> None:
    made = synthkd.generate(
        Together(), image_size=16, channels=1, mean=0.4, std=0.25, count=30, out=tmp_path / "set",
        images=200,
        settings={
            "teacher.answers": "multilabel-logits", "stage.draw.fresh": 200, "run.threads": 1,
            "generator.kind": "pixels", "stage.refine.synthesis_steps": 10,
            "stage.refine.synthesis_batch": 24,
        },
    )  # fmt: skip
    store = open_store(made.path)
    logits = torch.as_tensor(store.logits)
    counts = store.labels.bincount(minlength=3).tolist()
    assert counts[:2] == [10, 10] and counts[2] == 0
    of_second = logits[store.labels == 1]
    assert (of_second[:, 1] > 0).sum() >= 5  # all that were asked to be of it
    assert (of_second.argmax(1) == 0).all()


def test_of_many_classes_those_are_asked_for_that_are_missing() -> None:
    flags = {
        "stage.draw.fresh": 64, "stage.refine.synthesis_steps": 1, "dataset.count": 30,
        "stage.refine.synthesis_batch": 12, "run.threads": 1,
    }  # fmt: skip
    job = Generation(used(Recipe.of(flags)))

    def labels(seed: int) -> torch.Tensor:
        return job._offer(torch.Generator().manual_seed(seed)).labels

    assert int(labels(0).bincount(minlength=10).max()) <= 2  # twelve of ten classes
    job.quota = [0] * 8 + [3, 1]
    for seed in range(3):
        assert labels(seed).bincount(minlength=10).tolist() == [0] * 8 + [6, 6]
    job.asked = [0] * 8 + [0, 8]  # the last one was asked for often: it has had its part
    assert labels(3).bincount(minlength=10).tolist() == [0] * 8 + [10, 2]


def test_a_set_of_some_of_many_classes_is_full_after_few_batches(tmp_path: Path) -> None:
    """One image of each of five classes, of ten, four at a time."""
    made = synthkd.generate(
        count=5, out=tmp_path / "set", images=256,
        settings={
            "stage.draw.fresh": 256, "stage.refine.synthesis_steps": 15, "run.threads": 1,
            "stage.refine.synthesis_batch": 4,
        },
    )  # fmt: skip
    assert made.count == 5 and made.manifest["drawn"] <= 16
