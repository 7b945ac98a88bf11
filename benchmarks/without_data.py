"""How well can a student's accuracy on real images be told without any? Runs on purpose, good and
bad, and what their students answer on a panel of probes.

    python benchmarks/without_data.py OUT --data DIR --chest chest.pt [--only digits,cifar10]
                                      [--threads 2]

DIR holds third-party teachers and labelled images (`data/` and `larger/`). Each run is a directory
in OUT with snapshots on its way, and each snapshot is a student; OUT/TEACHER.json has for every
student the truth (accuracy and agreement on real images) and the answers on the probes. What is
there is kept.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jobs import (
    CHEST,
    CIFAR_20,
    CIFAR_56,
    CIFAR_100,
    FER,
    LUNGS,
    MOBILENET,
    PLANT,
    VWW,
    distil,
    places_of,
)
from rows import complete
from safetensors.torch import load_file
from torch import Tensor

import synthkd
from synthkd.core.files import write_json
from synthkd.data.sources import Images
from synthkd.engine.build import images_for
from synthkd.evaluation.compare import answers_of
from synthkd.evaluation.probes import ProbeSet, probe_panel, score_probes
from synthkd.measures import agreement, class_balance
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
    "cifar10": CIFAR_20, "cifar10-56": CIFAR_56,
    "cifar100": CIFAR_100.replace("--student resnet20 ", ""), "fer": FER, "vww": VWW,
    "lungs": LUNGS, "plant": PLANT, "chest": CHEST, "imagenet": MOBILENET,
}  # fmt: skip
SMALL: dict[str, tuple[str, ...]] = {
    "digits": ("resnet8-w4", "resnet8-w12"), "mnist": ("lenet5-half",),
    "cifar10": ("resnet8", "resnet8-w8", "prune:0.6"), "cifar10-56": ("resnet20",),
    "cifar100": ("resnet20", "prune:0.6"),
}  # fmt: skip
TINY, LARGE = ("digits", "mnist"), ("plant", "chest", "imagenet")
# what is learned from alone, and published recipes, which need the time that tiny teachers leave
DRAWN, PUBLISHED = ("shaders", "leaves", "noise"), ("deepinversion", "dafl", "fast-5")


def runs_of(teacher: str) -> dict[str, str]:
    """Runs by name: budgets from seconds to minutes, pipelines and students."""
    budgets = (0.25, 1, 3) if teacher in TINY else (2, 5) if teacher in LARGE else (1, 3, 6)
    pipelines = {**dict.fromkeys(DRAWN, 0.75), **dict.fromkeys(PUBLISHED, 0.75)}
    if teacher not in TINY:
        pipelines = {} if teacher in LARGE else dict.fromkeys(DRAWN, 1.5)
    found = {}
    for student in SMALL.get(teacher, ("",)):
        given = f"--student {student} " if student else ""
        word = student.replace(":", "-") or "default"
        for minutes in budgets:
            found[f"{word}-{minutes:g}"] = f"{given}--minutes {minutes}"
        for pipeline, minutes in pipelines.items():
            found[f"{word}-{pipeline}"] = f"{given}--pipeline {pipeline} --minutes {minutes}"
    return found


def finished(name: str, flags: str, folder: Path, places: dict[str, str], threads: int) -> bool:
    """Makes a run, or goes on with it; whether it is finished."""
    if (folder / "summary.json").is_file():
        return True
    words = (TEACHERS[name].format(**places) + flags).split()
    folder.parent.mkdir(parents=True, exist_ok=True)
    more = ["--run.snapshots", str(SNAPSHOTS), "--anyway", "--no-report"]
    distil(folder, [*words, *more], str(Path(__file__).resolve().parents[1]), threads)
    return (folder / "summary.json").is_file()


@dataclass(frozen=True)
class Truth:
    """Real images, and what is so: their labels and the teacher's answers."""

    images: Images
    taught: Tensor  # [N, K]

    def accuracy(self, answers: Tensor) -> float | None:
        """The share of images that answers [N, K] name rightly."""
        labels = self.images.labels
        return None if labels is None else float((answers.argmax(1) == labels).double().mean())


def truth_of(recipe: Recipe, teacher: Any) -> Truth:
    """The labelled images of a recipe."""
    images = images_for(recipe, recipe.data.val, teacher, labelled=True)
    with teacher.exact():
        return Truth(images, answers_of(teacher, images.pixels, 256, "teacher"))


def panel_of(recipe: Recipe, teacher: Any, folder: Path) -> list[ProbeSet]:
    """The panel for a teacher, which is kept: it takes longer than a run."""
    kept = folder / "panel.pt"
    if not kept.is_file():
        torch.save([vars(each) for each in probe_panel(recipe, teacher)], kept)
    return [ProbeSet(**each) for each in torch.load(kept, weights_only=True)]


def measured(folder: Path, panel: list[ProbeSet], truth: Truth) -> list[dict[str, Any]]:
    """A row for each student of a run: its snapshots and the one that it left."""
    student = synthkd.load_student(folder, trust_code=True)
    last = {k: v.clone() for k, v in student.state_dict().items()}
    states = {told["share"]: told["file"] for told in Run(folder).snapshots()}
    summary = json.loads((folder / "summary.json").read_text())
    classes, rows, before = truth.taught.shape[1], [], None
    for share, file in [*states.items(), (1.0, "")]:
        student.load_state_dict(load_file(folder / "snapshots" / file) if file else last)
        learned = answers_of(student, truth.images.pixels, 256, "student")
        if before is not None and torch.equal(learned, before):
            continue  # it has not begun to learn
        before = learned
        told = [answers_of(student, probes.images, 128, "student") for probes in panel]
        scores = [score_probes(each, probes) for each, probes in zip(told, panel, strict=True)]
        balance = class_balance(learned.argmax(1), truth.taught.argmax(1), classes)
        rows.append({
            "run": folder.name, "share": share, "accuracy": truth.accuracy(learned),
            "teacher_accuracy": truth.accuracy(truth.taught),
            "agreement": agreement(learned, truth.taught), "balanced_agreement": balance.balanced,
            "images": len(learned), "classes": classes, "held_out": summary["held_out_agreement"],
            "probes": [asdict(each) for each in scores],
        })  # fmt: skip
    return rows


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run."""
    return trusted(validated(read_toml(folder / "recipe.toml")), trust_code=True, anyway=True)


def collect(name: str, out: Path, places: dict[str, str], threads: int) -> list[str]:
    """All runs of a teacher, and what their students answer to the panel, which is refined by the
    recipe of the first that has a result; returns the runs that have none."""
    path = out / f"{name}.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    runs, done = runs_of(name), {row["run"] for row in rows}
    panel: list[ProbeSet] = []
    truth: Truth | None = None
    missing = []
    for run, flags in runs.items():
        folder = out / name / run
        if run in done:
            continue
        if not finished(name, flags, folder, places, threads):
            missing.append(f"{name}/{run}")
            continue
        if truth is None:
            first = next(f for r in runs if ((f := out / name / r) / "summary.json").is_file())
            recipe = recipe_of(first)
            teacher = load_teacher(recipe.teacher, trust_code=True)
            panel, truth = panel_of(recipe, teacher, out / name), truth_of(recipe, teacher)
        rows += measured(folder, panel, truth)
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
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    places = places_of(given.data, given.chest)
    names = given.only.split(",")
    complete([run for name in names for run in collect(name, given.out, places, given.threads)])


if __name__ == "__main__":
    main()
