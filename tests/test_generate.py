"""`synthkd generate` from end to end, and what its data set and a run are good for afterwards."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from synthkd.cli import main
from synthkd.images import to_float
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher
from synthkd.store import open_store

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
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=110,
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
    assert (found["images_seen"], found["images_invented"]) == (96, 0)
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


def test_a_set_for_another_teacher_is_refused(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))\n"
    )
    contract = shlex.split(
        "--image-size 16 --channels 1 --teacher-mean 0.5 --teacher-std 0.5 --trust-code"
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
