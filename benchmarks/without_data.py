"""How well can a student's accuracy on real images be told without any? Runs on purpose, good and
bad, and what their students answer on a panel of probes.

    python benchmarks/without_data.py OUT --data DIR --chest chest.pt [--only digits,cifar10]

DIR holds third-party teachers and labelled images (`data/` and `larger/`). Each run is a directory
in OUT with snapshots on its way, and each snapshot is a student; OUT/TEACHER.json has for every
student the truth (accuracy and agreement on real images) and the answers on the probes. What is
there is kept.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jobs import CHEST, CIFAR_20, CIFAR_56, CIFAR_100, FER, LUNGS, MOBILENET, VWW, distil, places_of
from rows import complete
from safetensors.torch import load_file

import synthkd
from synthkd.core.files import write_json
from synthkd.core.images import to_float
from synthkd.engine.build import images_for
from synthkd.evaluation.compare import compare
from synthkd.evaluation.probes import probe_panel, score_probes
from synthkd.recipe import Recipe, read_toml, trusted, validated
from synthkd.runs.directory import Run
from synthkd.specs import load_teacher

SNAPSHOTS = 4
MNIST = (
    "--teacher lenet5 --teacher-weights {data}/data/mnist_lenet5_khushbujpatel.pt --image-size 32 "
    "--channels 1 --teacher-mean .1307 --teacher-std .3081 --trust-code "
    "--val-data {data}/data/read.py:load:mnist_test "
)
TEACHERS: dict[str, str] = {
    "digits": "--teacher demo --val-data demo:unseen ", "mnist": MNIST,
    "cifar10": CIFAR_20, "cifar10-56": CIFAR_56, "cifar100": CIFAR_100, "fer": FER, "vww": VWW,
    "lungs": LUNGS, "chest": CHEST, "imagenet": MOBILENET,
}  # fmt: skip
SMALL: dict[str, tuple[str, ...]] = {
    "digits": ("resnet8-w4", "resnet8-w12"), "mnist": ("lenet5-half",),
    "cifar10": ("resnet8", "resnet8-w8"),
    "cifar10-56": ("resnet8", "resnet20"),
}  # fmt: skip
PIPELINES = ("synthkd", "shaders", "leaves", "noise", "deepinversion", "dafl", "fast-5")


def runs_of(teacher: str) -> dict[str, str]:
    """Runs by name: budgets from seconds to minutes, pipelines and students."""
    found = {}
    for student in SMALL.get(teacher, ("",)):
        given = f"--student {student} " if student else ""
        word = student or "default"
        for minutes in (0.25, 1, 3) if teacher not in ("chest", "imagenet") else (2, 5):
            found[f"{word}-{minutes:g}"] = f"{given}--minutes {minutes}"
        if not teacher.startswith(("chest", "imagenet")):
            for pipeline in PIPELINES[1:]:
                found[f"{word}-{pipeline}"] = f"{given}--pipeline {pipeline} --minutes 0.75"
    return found


def finished(name: str, flags: str, folder: Path, places: dict[str, str]) -> bool:
    """Makes a run, or goes on with it; whether it is finished."""
    if (folder / "summary.json").is_file():
        return True
    words = (TEACHERS[name].format(**places) + flags).split()
    folder.parent.mkdir(parents=True, exist_ok=True)
    more = ["--run.snapshots", str(SNAPSHOTS), "--anyway", "--no-report"]
    distil(folder, [*words, *more], str(Path(__file__).resolve().parents[1]))
    return (folder / "summary.json").is_file()


def measured(folder: Path, panel: list[Any], teacher: Any, images: Any) -> list[dict[str, Any]]:
    """A row for each student of a run: its snapshots and the one that it left."""
    student = synthkd.load_student(folder, trust_code=True)
    last = {k: v.clone() for k, v in student.state_dict().items()}
    states = {told["share"]: told["file"] for told in Run(folder).snapshots()}
    summary = json.loads((folder / "summary.json").read_text())
    rows = []
    for share, file in [*states.items(), (1.0, "")]:
        student.load_state_dict(load_file(folder / "snapshots" / file) if file else last)
        truth = compare(student, teacher, images)
        scores = []
        with torch.no_grad():
            for probes in panel:
                parts = torch.split(probes.images, 128)
                answers = torch.cat([student(to_float(part)).float() for part in parts])
                scores.append(asdict(score_probes(answers, probes)))
        rows.append({
            "run": folder.name, "share": share, "accuracy": truth.student_accuracy,
            "teacher_accuracy": truth.teacher_accuracy, "agreement": truth.agreement,
            "balanced_agreement": truth.balanced_agreement, "images": truth.n,
            "classes": teacher.classes, "held_out": summary["held_out_agreement"],
            "probes": scores,
        })  # fmt: skip
    return rows


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run."""
    return trusted(validated(read_toml(folder / "recipe.toml")), trust_code=True, anyway=True)


def collect(name: str, out: Path, places: dict[str, str]) -> list[str]:
    """All runs of a teacher, and what their students answer to the panel, which is refined by the
    recipe of the first of them; returns the runs that have no result."""
    path = out / f"{name}.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    runs, done = runs_of(name), {row["run"] for row in rows}
    first = out / name / next(iter(runs))
    panel: list[Any] = []
    missing = []
    for run, flags in runs.items():
        folder = out / name / run
        if run in done:
            continue
        there = finished(name, flags, folder, places)
        if not there or not (first / "recipe.toml").is_file():
            missing.append(f"{name}/{run}")
            continue
        recipe = recipe_of(folder)
        teacher = load_teacher(recipe.teacher, trust_code=True)
        images = images_for(recipe, recipe.data.val, teacher, labelled=True)
        panel = panel or list(probe_panel(recipe_of(first), teacher))
        rows += measured(folder, panel, teacher, images)
        write_json(path, rows)
        print(f"{name} {run}: {100 * rows[-1]['agreement']:.1f} % agreement", flush=True)
    return missing


def main() -> None:
    """Collects what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="third-party")
    parser.add_argument("--chest", default="chest.pt")
    parser.add_argument("--only", default=",".join(TEACHERS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    places = places_of(given.data, given.chest)
    complete([run for name in given.only.split(",") for run in collect(name, given.out, places)])


if __name__ == "__main__":
    main()
