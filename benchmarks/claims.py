"""Everything that docs/claims.md rests on, in order; what is done is kept, what was interrupted
goes on.

    python benchmarks/claims.py OUT --data DIR [--only terms-cifar10,mix-200]
    python benchmarks/claims.py OUT --list
    python benchmarks/claims.py OUT --table [--only terms-cifar10]
    python benchmarks/claims.py OUT --plot mix.png

DIR holds third-party teachers and labelled images with readers (`data/` and `larger/`). Data sets
are written once by `synthkd generate`, so that most rows cost the student alone; a row is a group
of variants.py with a teacher, a data set and so many seconds, in OUT/NAME.json. Labelled images
only report. All rows take some thirteen hours of two slow cores: --list tells which are done.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jobs import CIFAR_20, CIFAR_56, CIFAR_100, places_of
from rows import CODE, command, complete
from teacher_quality import teachers, write_teachers
from variants import GROUPS, leading
from without_data import MNIST

from synthkd.core.images import ImageSpec
from synthkd.data.sources import load_images
from synthkd.reports.charts import new_figure
from synthkd.teachers.ensemble import RULES

COPIES = 5000  # JPEG copies of test images, which cost the teacher ten points
REAL = (200, 1000, 5000)  # images that somebody may have
DEMO = "--teacher demo "
VIT = (
    "--teacher {here}/others.py:Transformer --teacher-weights {data}/data/cifar10_vit_amebett1.pth "
    "--image-size 32 --channels 3 --teacher-mean .5 --teacher-std .5 --augment.flip true "
    "--trust-code "
)


def without(words: str, flag: str) -> str:
    """Words without a flag and its value.

    >>> without("--teacher a --val-data b --trust-code ", "--val-data")
    '--teacher a --trust-code '
    """
    parts = words.split()
    place = parts.index(flag)
    return " ".join(parts[:place] + parts[place + 2 :]) + " "


RESNET_20, RESNET_56 = (without(words, "--val-data") for words in (CIFAR_20, CIFAR_56))
LENET = without(MNIST, "--val-data")
MICRONET = without(without(CIFAR_100, "--val-data"), "--student")

# data sets: words of `synthkd generate`
SETS = {
    "cifar10": f"{RESNET_20}--count 20000 --minutes 10",
    "vit": f"{VIT}--count 20000 --minutes 10",
    "cifar100": f"{MICRONET}--count 40000 --run.stages draw --minutes 10",
    "digits": f"{DEMO}--count 10000 --minutes 3",
    "mnist": f"{LENET}--count 10000 --minutes 3",
}
FROM_SET, TO_8 = "--synthetic {sets}/", "--student resnet8 "
CIFAR_TEST = "{data}/data/read.py:load:cifar10_test"
CIFAR_COPIES = "{sets}/cifar10-copies.npz"
MNIST_TEST = "{data}/data/read.py:load:mnist_test"
FEW_TERMS = ("soft_targets", "standardized_targets", "decoupled", "correlations", "logit_l1",
             "+ attention", "+ hint", "+ 10 hint", "+ transport", "+ projection",
             "+ 10 projection", "+ similarity")  # fmt: skip


class Row(NamedTuple):
    """A group of variants, taught the same way for the same time."""

    group: str
    words: str  # of `synthkd distill`
    test: str = CIFAR_TEST
    seconds: float = 45
    copies: str = CIFAR_COPIES
    best: int | None = None  # variants that get more than one seed
    only: tuple[str, ...] = ()  # variants


ROWS: dict[str, Row] = {
    "terms-cifar10": Row("terms", f"{RESNET_20}{FROM_SET}cifar10 {TO_8}", seconds=60, best=7),
    **{f"mix-{n}": Row("mix", f"{RESNET_20}{FROM_SET}cifar10 {TO_8}--real-data "
                              f"{{sets}}/cifar10-real-{n}.npz", seconds=60)
       for n in REAL},
    "terms-vit": Row("terms", f"{VIT}{FROM_SET}vit {TO_8}", seconds=60, best=7),
    "ablation-demo": Row("ablation", f"{DEMO}--pipeline adaptive", "demo:unseen", 120, ""),
    "terms-cifar100": Row(
        "terms", f"{MICRONET}{FROM_SET}cifar100 --student resnet20",
        "{data}/larger/read.py:load:cifar100_test:5000:10000", 90, "", best=4, only=FEW_TERMS,
    ),
    "terms-real": Row(
        "terms", f"{RESNET_20}--pipeline real --real-data {{sets}}/cifar10-real-5000.npz {TO_8}",
        best=7, only=FEW_TERMS,
    ),
    "terms-mobilenet": Row(
        "terms", f"{RESNET_20}{FROM_SET}cifar10 --student mobilenet", best=4, only=FEW_TERMS,
    ),
    **{name: Row(name, f"{RESNET_20}{FROM_SET}cifar10 {TO_8}")
       for name in ("weights", "temperature", "replay")},
    "teaching": Row("teaching", f"{RESNET_20}{FROM_SET}cifar10 {TO_8}", seconds=120),
    **{f"two-{rule}": Row("plain", f"--teacher ensemble:{{sets}}/{rule}.toml --augment.flip true "
                                   f"--trust-code {FROM_SET}cifar10 {TO_8}", seconds=120)
       for rule in RULES},
    "chain": Row("teaching", f"{RESNET_56}{FROM_SET}cifar10 {TO_8}", seconds=240,
                 only=("teacher", "assistant of 20 layers")),
    "generation-demo": Row("generation", f"{DEMO}--pipeline gan", "demo:unseen", 120, ""),
    "stages-demo": Row("stages", f"{DEMO}--pipeline adaptive", "demo:unseen", 120, ""),
    "terms-digits": Row(
        "terms", f"{DEMO}{FROM_SET}digits --student resnet8-w8", "demo:unseen", 30, "", best=4,
        only=FEW_TERMS,
    ),
    "terms-mnist": Row(
        "terms", f"{LENET}{FROM_SET}mnist --student lenet5-half", MNIST_TEST, 30, "", best=4,
        only=FEW_TERMS,
    ),
}  # fmt: skip


def real_images(out: Path, data: str) -> None:
    """Files of labelled images: copies to report on, and as many of each class as make up REAL."""
    spec = ImageSpec(3, 32, 32, (0.0,) * 3, (1.0,) * 3)

    def found(name: str) -> tuple[np.ndarray, np.ndarray]:
        images = load_images(f"{data}/data/read.py:load:{name}", spec, classes=10, labelled=True,
                             trust_code=True)  # fmt: skip
        assert images.labels is not None
        return images.pixels.permute(0, 2, 3, 1).numpy(), images.labels.numpy()

    def kept(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
        part = path.with_suffix(".part.npz")
        np.savez(part, x=pixels, y=labels)
        part.replace(path)

    if not (copies := out / "cifar10-copies.npz").exists():
        pixels, labels = found("cifar10_test_jpeg")
        kept(copies, pixels[:COPIES], labels[:COPIES])
    for count in REAL:
        if not (path := out / f"cifar10-real-{count}.npz").exists():
            pixels, labels = found("cifar10_train")
            first = np.concatenate([np.flatnonzero(labels == k)[: count // 10] for k in range(10)])
            kept(path, pixels[first], labels[first])


def prepare(out: Path, data: str, places: dict[str, str], wanted: set[str]) -> None:
    """What the rows read: labelled images, files of two teachers, data sets."""
    out.mkdir(parents=True, exist_ok=True)
    real_images(out, data)
    both = {k: v for k, v in teachers(out, data).items() if k in ("resnet20", "resnet56")}
    for rule in RULES:
        write_teachers(out / f"{rule}.toml", both, rule)
    for name in wanted:
        if not (out / name / "manifest.json").exists():
            begun = ["--resume", out / name] if (out / name).exists() else ["--out", out / name]
            words = SETS[name].format(**places).split()
            command("generate", *(words if begun[0] == "--out" else ["--trust-code"]), *begun,
                    "--run.threads", 2)  # fmt: skip


def left_to_run(out: Path, name: str, seeds: int) -> str:
    """How many runs of a row are done."""
    path = out / f"{name}.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    row = ROWS[name]
    names = [v for v in GROUPS[row.group] if not row.only or v in row.only]
    runs = sum(len(done.get(v, {})) for v in names)
    whole = [v for v in leading(done, names, row.best) if f" {seeds - 1}" in "".join(done[v])]
    return f"{name}: {runs} runs, {len(whole)} variants with {seeds} seeds"


def picture(out: Path, path: Path) -> None:
    """Accuracy against the share of synthetic images, a line for each number of real ones."""
    figure = new_figure(6.5, 4, 130)
    axes, missing = figure.subplots(), []
    for count in REAL:
        found = out / f"mix-{count}.json"
        if not found.is_file():
            missing.append(found.stem)
            continue
        points = []
        for name, runs in json.loads(found.read_text()).items():
            scores = [100 * run["accuracy"] for run in runs.values() if "accuracy" in run]
            if scores:
                sd = statistics.stdev(scores) if len(scores) > 1 else 0.0
                points.append((float(name.split()[0]), statistics.fmean(scores), sd))
        shares, means, errors = zip(*sorted(points), strict=True)
        axes.errorbar(
            shares, means, yerr=errors, marker="o", capsize=3, label=f"{count:,} real images"
        )
    axes.set(xlabel="share of synthetic images in every batch (--mix-ratio)",
             ylabel="accuracy on test images, %")  # fmt: skip
    axes.grid(color="0.9")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    complete(missing)


def main() -> None:
    """Runs what is not done yet, or tells of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="third-party")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, help="a PNG of what mixing real images in brings")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else list(ROWS)
    if unknown := [name for name in chosen if name not in ROWS]:
        parser.error(f"--only {unknown[0]}: known are {', '.join(ROWS)}")
    if given.plot:
        picture(given.out, given.plot)
        return
    if given.list:
        print("\n".join(left_to_run(given.out, name, given.seeds) for name in chosen))
        return
    sets = given.out / "sets"
    places = {**places_of(str(Path(given.data).resolve()), "chest.pt"), "sets": str(sets)}
    if not given.table:
        read = "".join(ROWS[name].words for name in chosen).split()
        wanted = {name for name in SETS if f"{FROM_SET}{name}".split()[1] in read}
        prepare(sets, places["data"], places, wanted)
    for name in chosen:
        row = ROWS[name]
        own = ["--seconds", f"{row.seconds:g}", "--seeds", str(given.seeds)]
        own += ["--best", str(row.best)] if row.best is not None else []
        own += ["--only", ",".join(row.only)] if row.only else []
        own += ["--table"] if given.table else [
            "--test", row.test.format(**places), "--copies", row.copies.format(**places),
        ]  # fmt: skip
        print(f"\n{name}", flush=True)
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("variants.py")),
             str(given.out / f"{name}.json"), row.group, *own, "--",
             *row.words.format(**places).split()],
            env={**os.environ, "PYTHONPATH": str(CODE)}, check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
