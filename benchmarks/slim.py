"""One student of four widths against a student for each width, in the same time; resumes.

    python benchmarks/slim.py OUT --data DIR [--only digits-slim-s0,digits-0.5-s0]
    python benchmarks/slim.py OUT --table

A task (`digits`, the embedded teacher; `cifar10`, a third-party ResNet-20) has T minutes: one
slimmable ResNet-20 learns for all of them, or four plain ones of its widths for a quarter each.
`slim` learns at all widths in every step, `slim-one` and `slim-needed` at one less, chosen evenly
or by the width controller (`training.widths`). Each width is exported, and the export is scored on
real images and compared with the network that it was cut from. DIR holds CIFAR-10's teacher and
images (`data/`). `--minutes` gives every task another T; OUT is for one choice of it.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from curves import judges
from jobs import CIFAR_20, distil, places_of
from rows import begun_with, complete, spread

import synthkd
from synthkd.commands import export
from synthkd.core.files import write_json
from synthkd.core.images import to_float
from synthkd.evaluation.compare import compare
from synthkd.networks.slimmable import SHARES, Slimmable

NETWORK, WIDTH = "resnet20", 16
SLIM = {"slim": "two", "slim-one": "one", "slim-needed": "needed"}  # arms, and training.widths


class Task(NamedTuple):
    """A teacher, and how long it teaches."""

    words: str  # of `synthkd distill`
    minutes: float  # T
    seeds: int
    arms: tuple[str, ...]  # with a slimmable student


TASKS = {
    "digits": Task("--val-data demo:unseen ", 4, 3, tuple(SLIM)),
    "cifar10": Task(CIFAR_20, 40, 1, ("slim", "slim-one")),
}


def jobs_of(name: str, minutes: float | None) -> dict[str, str]:
    """The words of `synthkd distill` for every run of a task."""
    task, found = TASKS[name], {}
    whole = minutes or task.minutes
    for seed in range(task.seeds):
        for arm in task.arms:
            found[f"{name}-{arm}-s{seed}"] = (
                f"{task.words}--student slim:{NETWORK} --training.widths {SLIM[arm]} "
                f"--minutes {whole:g} --seed {seed}"
            )
        for share in SHARES:
            found[f"{name}-{share:g}-s{seed}"] = (
                f"{task.words}--student {NETWORK}-w{round(WIDTH * share)} "
                f"--minutes {whole / len(SHARES):g} --seed {seed}"
            )
    return found


def run(folder: Path, words: str) -> bool:
    """One run from where it was left, and the scores of each of its widths in a file beside it;
    whether there are any."""
    told = scores_of(folder)
    if told.is_file():
        return True
    if not (folder / "summary.json").is_file():
        distil(folder, words.split(), str(Path(synthkd.__file__).resolve().parents[1]))
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        print(f"{folder.name}: no result; see its log", flush=True)
        return False
    scores = {f"{share:g}": exported(folder, share) for share in SHARES} if summary["widths"] else {
        folder.name.split("-")[1]: {"accuracy": summary["student_accuracy"]}
    }  # fmt: skip
    write_json(told, {"widths": scores, "seconds": summary["wall_seconds"],
                      "images_seen": summary["images_seen"]})  # fmt: skip
    print(folder.name, json.dumps(scores), flush=True)
    return True


def scores_of(folder: Path) -> Path:
    """Where the scores of a run lie."""
    return folder.with_name(f"{folder.name}.json")


@torch.no_grad()
def exported(folder: Path, share: float) -> dict[str, Any]:
    """A width of a slimmable student, exported: its accuracy on real images, and the largest
    difference of a logit to the student at this width."""
    place = folder.with_name(f"{folder.name}-at-{share:g}")
    if not (place / "export.json").is_file():
        shutil.rmtree(place, ignore_errors=True)  # half of an export
        export.run(folder, formats="safetensors", width=share, out=place, quiet=True)
    teacher, images = judges(folder)
    whole, narrow = (synthkd.load_student(f, trust_code=True) for f in (folder, place))
    assert isinstance(whole.body, Slimmable)
    whole.body.use(share)
    largest = max(
        float((narrow(part) - whole(part)).abs().max())
        for part in map(to_float, torch.split(images.pixels, 256))
    )
    accuracy = compare(narrow, teacher, images).student_accuracy
    return {"accuracy": accuracy, "largest_difference": largest}


def told(values: list[float]) -> str:
    """Mean, deviation and count."""
    return f"{spread(values, 2)} ({len(values)})" if values else "-"


def read(out: Path, task: str, arm: str) -> dict[int, Any]:
    """The scores of an arm by seed, of the runs that are done."""
    paths = {s: scores_of(out / f"{task}-{arm}-s{s}") for s in range(TASKS[task].seeds)}
    return {s: json.loads(path.read_text()) for s, path in paths.items() if path.is_file()}


def table(out: Path) -> None:
    """Accuracy of every width: learned apart, and in one network with the difference to it; then
    what all four took."""
    print("Accuracy in %, and in brackets n; a gap is that of runs of the same seed, in points.\n")
    print("| task | width | apart |", " | ".join(f"{arm} | gap" for arm in SLIM), "| export |")
    print("|---|---|---|" + "---|---|" * len(SLIM) + "---|")
    for task in TASKS:
        apart = {f"{share:g}": read(out, task, f"{share:g}") for share in SHARES}
        slim = {arm: read(out, task, arm) for arm in SLIM}
        if not any(apart.values()) and not any(slim.values()):
            continue
        for width, alone in apart.items():
            own = {s: 100 * one["widths"][width]["accuracy"] for s, one in alone.items()}
            cells, differences = [told(list(own.values()))], []
            for runs in slim.values():
                at = {s: one["widths"][width] for s, one in runs.items()}
                scores = {s: 100 * one["accuracy"] for s, one in at.items()}
                cells.append(told(list(scores.values())))
                cells.append(told([scores[s] - own[s] for s in scores if s in own]))
                differences += [one["largest_difference"] for one in at.values()]
            largest = f"within {max(differences):.1g}" if differences else "-"
            print(f"| {task} | {width} | {' | '.join(cells)} | {largest} |")
        for what, scale in (("seconds", 1.0), ("images_seen", 1e-3)):
            sums = [
                scale * sum(one[s][what] for one in apart.values())
                for s in range(TASKS[task].seeds) if all(s in one for one in apart.values())
            ]  # fmt: skip
            cells = [told(sums)]
            for runs in slim.values():
                cells += [told([scale * one[what] for one in runs.values()]), ""]
            named = "seconds" if what == "seconds" else "thousand images"
            print(f"| {task} | {named}, all widths | {' | '.join(cells)} | |")


def main() -> None:
    """Runs what is not done yet, or prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="third-party")
    parser.add_argument("--only", default="", help="names of runs (default: all)")
    parser.add_argument("--minutes", type=float, help="T of every task")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table(given.out)
        return
    every = {n: words for task in TASKS for n, words in jobs_of(task, given.minutes).items()}
    chosen = given.only.split(",") if given.only else list(every)
    if unknown := [name for name in chosen if name not in every]:
        parser.error(f"--only {unknown[0]}: known are {', '.join(every)}")
    begun_with(given.out / "begun.json", {"minutes": given.minutes})
    places = places_of(given.data, "chest.pt")
    complete([name for name in chosen if not run(given.out / name, every[name].format(**places))])


if __name__ == "__main__":
    main()
