"""Accuracy on real images and held-out agreement against time, of the runs of jobs.py: one plot.

    python benchmarks/curves.py OUT PLOT.png --jobs cifar10-10-s0,cifar10-30-s0,cifar10-60-s0

OUT is the folder of jobs.py. The accuracy of each snapshot is measured once and kept in the run as
curve.json; it decides nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rows import complete
from safetensors.torch import load_file

import synthkd
from synthkd.core.files import write_json
from synthkd.data.sources import Images
from synthkd.engine.build import images_for
from synthkd.evaluation.compare import compare
from synthkd.recipe import read_toml, trusted, validated
from synthkd.reports.charts import new_figure
from synthkd.reports.record import read_run
from synthkd.runs.directory import Run
from synthkd.specs import load_teacher
from synthkd.teachers.protocol import Teacher


def curve_of(folder: Path) -> list[dict[str, Any]]:
    """Minutes, accuracy and agreement on real images of each snapshot, and of the student left."""
    path = folder / "curve.json"
    if path.is_file():
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found
    teacher, images = judges(folder)
    student = synthkd.load_student(folder, trust_code=True)
    points = []
    for told in Run(folder).snapshots():
        student.load_state_dict(load_file(folder / "snapshots" / told["file"]))
        score = compare(student, teacher, images)
        points.append(
            {"minutes": told["seconds"] / 60, "accuracy": score.student_accuracy,
             "agreement": score.agreement}
        )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    points.append(
        {"minutes": summary["wall_seconds"] / 60, "accuracy": summary["student_accuracy"],
         "agreement": summary["agreement"]}
    )  # fmt: skip
    write_json(path, points)
    return points


def judges(folder: Path) -> tuple[Teacher, Images]:
    """The teacher of a run, and the labelled images that it was scored on."""
    recipe = trusted(validated(read_toml(folder / "recipe.toml")), trust_code=True, anyway=True)
    teacher = load_teacher(recipe.teacher, trust_code=True)
    return teacher, images_for(recipe, recipe.data.val, teacher, labelled=True)


def main() -> None:
    """Draws the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("plot", type=Path)
    parser.add_argument("--jobs", required=True)
    given = parser.parse_args()
    figure = new_figure(9, 4.5, 130)
    left, right = figure.subplots(1, 2)
    missing = []
    for place, name in enumerate(given.jobs.split(",")):
        colour, folder = f"C{place}", given.out / name
        if not (folder / "summary.json").is_file():
            missing.append(name)
            continue
        points = curve_of(folder)
        minutes = [p["minutes"] for p in points]
        left.plot(minutes, [100 * p["accuracy"] for p in points], "o-", color=colour, label=name,
                  markersize=3)  # fmt: skip
        right.plot(minutes, [100 * p["agreement"] for p in points], "o-", color=colour,
                   markersize=3)  # fmt: skip
        held = read_run(folder, pictures=False).curves.get("agreement")
        if held:
            shown = [100 * v for v in held.values]
            right.plot(held.minutes, shown, ":", color=colour, linewidth=1)
    left.set(xlabel="minutes", ylabel="accuracy on real images, %")
    right.set(xlabel="minutes", ylabel="agreement with the teacher, %")
    right.set_title("real images (lines), held-out synthetic (dotted)", fontsize=9)
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(color="0.9")
    figure.tight_layout()
    given.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.plot)
    complete(missing)


if __name__ == "__main__":
    main()
