"""The diffusion generator measured: curriculum, memory, guidance, steps, sizes.

    python benchmarks/diffusion.py OUT WHAT [--seeds 0,1,2] [--minutes M]

Everything runs by the commands a user has, on the embedded demo (scikit-learn's digits, 16 pixels),
or on a --teacher (flags of `synthkd distill` in one word) with images --seen and --unseen:

curriculum  a denoiser learns from 1,000 real digits with and without curriculum, and a GAN beside
            it whose critic sees the same digits, M minutes each; 10,000 images of each
memory      without any real image, M minutes in all: students of procedural and refined images, of
            these and samples of a denoiser that learned from them (guided by the teacher, or not),
            and of the samples alone
guidance    a denoiser is borrowed and steered by the teacher at several strengths: one of the 1,000
            real digits (2,000 images each), or one of --prior (500, images of another world, e.g.
            grey natural ones)
steps       images a second, agreement and Frechet distance at 50, 20, 8 and 4 steps
sizes       for a --teacher of larger images: denoisers that work at 32, 48, 64 and 96 pixels, M
            minutes of training each on 1,000 real images; 300 images of each, steered

Frechet distances are torch-fidelity's, on features of a second classifier that learned from the
real digits; students are scored on digits that nobody saw. Rows that are done are kept; OUT is for
one choice of teacher, images, student and minutes.
"""

import argparse
import json
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rows import begun_with
from rows import command as call

from synthkd.core.files import write_json
from synthkd.data.sources import load_images

Row = dict[str, Any]


UNSTEERED = ("--pipeline", "diffusion", "--diffusion.teacher_guidance", 0)


class Bench:
    """A folder of rows, the second classifier and the real digits in it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.folder, self.minutes = given.out, given.minutes
        self.teacher = shlex.split(given.teacher)
        self.seen, self.unseen, self.pupil = given.seen, given.unseen, given.student
        folder = self.folder
        self.real = folder / "real.npz"
        if not self.real.exists():
            seen = load_images(self.seen, None, classes=None, labelled=True, trust_code=True)
            assert seen.labels is not None
            x = seen.pixels[:1000].permute(0, 2, 3, 1).numpy()
            np.savez(self.real, x=x, y=seen.labels[:1000].numpy())
        self.second = folder / "second"
        if not (self.second / "summary.json").exists():
            shutil.rmtree(self.second, ignore_errors=True)
            call("distill", *self.teacher, "--pipeline", "real", "--mix-ratio", 0, "--real-data",
                 self.seen, "--student", "resnet8-w16", "--student.start", "new", "--minutes", 1,
                 "--val-data", self.unseen, "--trust-code", "--out", self.second)  # fmt: skip

    def row(self, name: str, make: Callable[[Path], Row]) -> Row:
        """A row by name, made in a folder of its own if it is not there."""
        record = self.folder / f"{name}.json"
        if not record.exists():
            place = self.folder / name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            write_json(record, make(place))
            print(f"{name}: {record.read_text()}", file=sys.stderr, flush=True)
        found: Row = json.loads(record.read_text())
        return found

    def generated(self, place: Path, count: int, *flags: object) -> Row:
        """A data set, its agreement and speed, and its Frechet distance to the real digits."""
        call("generate", *self.teacher, "--count", count, "--out", place / "set", *flags)
        manifest = json.loads((place / "set" / "manifest.json").read_text())
        call("evaluate", "--images", place / "set", "--reference", self.seen,
             "--extractor", self.second, "--out", place / "scores", "--trust-code",
             "--quiet")  # fmt: skip
        scores = json.loads((place / "scores" / "evaluation.json").read_text())["images"]["scores"]
        return {
            "agreement": manifest["agreed_share"],
            "fid": scores["fid"]["value"],
            "per_second": manifest["drawn"] / manifest["seconds_writing"],
            "training": manifest["training"]["seconds"],
            "learned": manifest["training"]["images"],
        }

    def student(self, place: Path, seed: int, *flags: object) -> float:
        """Accuracy of a student on digits that nobody saw."""
        call("distill", *self.teacher, "--student", self.pupil, "--val-data", self.unseen,
             "--trust-code", "--seed", seed, "--out", place / "run", *flags)  # fmt: skip
        summary = json.loads((place / "run" / "summary.json").read_text())
        return float(summary["student_accuracy"])

    def learned(self, place: Path, seed: int) -> float:
        """Accuracy of a student of the data set of this place."""
        return self.student(place, seed, "--synthetic", place / "set", "--images-seen", 100_000)


def curriculum(bench: Bench, seeds: list[int]) -> list[tuple[str, list[Row]]]:
    """Denoisers with and without curriculum, and a GAN."""
    common = ("--real-data", bench.real, "--minutes", bench.minutes)
    learn = (*common, *UNSTEERED, "--run.stages", "learn")
    ways: dict[str, tuple[object, ...]] = {
        "diffusion": learn,
        "diffusion, curriculum": (*learn, "--diffusion.curriculum", "linear"),
        "GAN": (*common, "--pipeline", "gan", "--stage.pregenerate.terms.realism", 1.0),
    }

    def make(way: str, seed: int) -> Callable[[Path], Row]:
        def made(place: Path) -> Row:
            row = bench.generated(place, 10_000, "--seed", seed, *ways[way])
            return row | {"student": bench.learned(place, seed)}

        return made

    return [
        (way, [bench.row(f"{way.replace(', ', '-')}-s{s}", make(way, s)) for s in seeds])
        for way in ways
    ]


def memory(bench: Bench, seeds: list[int]) -> list[tuple[str, list[Row]]]:
    """What a denoiser that learned from the memory adds to it."""
    base = ("--minutes", bench.minutes)
    ways: dict[str, tuple[object, ...]] = {
        "procedural and refined": base,
        "these and diffusion": (*base, *UNSTEERED),
        "these and guided diffusion": (
            *base, "--pipeline", "diffusion", "--diffusion.teacher_guidance", 2,
        ),
        "diffusion alone": (
            *base, *UNSTEERED, "--memory.shares", "diffusion=1.0",
        ),
    }  # fmt: skip

    def make(way: str, seed: int) -> Callable[[Path], Row]:
        return lambda place: {"student": bench.student(place, seed, *ways[way])}

    return [
        (way, [bench.row(f"memory-{way.replace(' ', '-')}-s{s}", make(way, s)) for s in seeds])
        for way in ways
    ]


def denoiser(bench: Bench, name: str, images: object, *flags: object) -> Path:
    """A denoiser of the bench's minutes, trained once and kept as a folder of diffusers."""
    kept: Path = bench.folder / name
    if not kept.exists():
        places = [bench.folder / f"{name}-{part}" for part in ("set", "part")]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        call("generate", *bench.teacher, "--pipeline", "diffusion", "--run.stages", "learn",
             "--real-data", images, "--trust-code", "--minutes", bench.minutes, "--count", 100,
             *flags, "--out", places[0], "--save-generator", places[1])  # fmt: skip
        places[1].rename(kept)
    return kept


def guidance(bench: Bench, seeds: list[int], prior: str) -> list[tuple[str, list[Row]]]:
    """A denoiser, of the teacher's world or of another, steered."""
    # that of another world learns no class: without one is how it is sampled
    unasked = ("--diffusion.guidance_scale", 0) if prior else ()
    name = "world" if prior else "own"
    world = (
        denoiser(bench, name, prior, "--diffusion.label_dropout", 1.0, *unasked)
        if prior
        else denoiser(bench, name, bench.real)
    )
    count, steps = (500, 8) if prior else (2_000, 20)
    scales = (0.0, 0.25, 1.0, 4.0, 16.0) if prior else (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    def make(scale: float, seed: int) -> Callable[[Path], Row]:
        def made(place: Path) -> Row:
            row = bench.generated(
                place, count, "--seed", seed, "--pipeline", "diffusion", "--run.stages", "imagine",
                "--generator-from", world, "--diffusion.teacher_guidance", scale,
                "--diffusion.steps", steps, *unasked,
            )  # fmt: skip
            return row | {"student": bench.learned(place, seed)}

        return made

    return [
        (
            f"{scale:g}",
            [bench.row(f"guidance-{name}-{scale:g}-s{s}", make(scale, s)) for s in seeds],
        )
        for scale in scales
    ]


def steps(bench: Bench, seeds: list[int]) -> list[tuple[str, list[Row]]]:
    """Fewer steps, and what they cost."""
    own = denoiser(bench, "own", bench.real)

    def make(solver: str, count: int, seed: int) -> Callable[[Path], Row]:
        return lambda place: bench.generated(
            place, 2_000, "--seed", seed, *UNSTEERED, "--run.stages", "imagine",
            "--generator-from", own, "--diffusion.steps", count, "--diffusion.solver", solver,
            "--dataset.folders", "false",
        )  # fmt: skip

    return [
        (f"{solver}, {n}", [bench.row(f"steps-{solver}-{n}-s{s}", make(solver, n, s))
                            for s in seeds])
        for solver in ("ddim", "dpm")
        for n in (50, 20, 8, 4)
    ]  # fmt: skip


def sizes(bench: Bench, seeds: list[int]) -> list[tuple[str, list[Row]]]:
    """At how many pixels to denoise, where the teacher wants many."""

    def make(size: int, seed: int) -> Callable[[Path], Row]:
        return lambda place: bench.generated(
            place, 300, "--seed", seed, "--pipeline", "diffusion", "--run.stages", "learn",
            "--real-data", bench.real, "--minutes", bench.minutes, "--diffusion.size", size,
            "--diffusion.teacher_guidance", 2, "--dataset.folders", "false",
        )  # fmt: skip

    return [
        (str(size), [bench.row(f"size-{size}-s{s}", make(size, s)) for s in seeds])
        for size in (32, 48, 64, 96)
    ]


TABLES = {"curriculum": curriculum, "memory": memory, "steps": steps, "sizes": sizes}


def plotted(table: list[tuple[str, list[Row]]], path: Path) -> None:
    """Agreement, Frechet distance and the student's accuracy against the strength of the guide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scales = [name for name, _ in table]
    figure, places = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for place, (key, text, best) in zip(places, (
        ("agreement", "teacher sees what was asked for, %", max), ("fid", "Fréchet distance", min),
        ("student", "student's accuracy, %", max),
    ), strict=True):  # fmt: skip
        share = 1 if key == "fid" else 100
        values = [share * statistics.fmean(row[key] for row in rows) for _, rows in table]
        where = values.index(best(values))
        place.plot(scales, values, marker="o")  # names, so equally far apart
        place.plot(where, values[where], marker="*", markersize=16)
        title = f"{text}\nbest {values[where]:.4g} at {scales[where]}"
        place.set(xlabel="guidance", title=title)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Makes the rows that are not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=["guidance", *TABLES])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--prior", default="", help="for guidance: images of another world")
    parser.add_argument("--teacher", default="", help="flags of synthkd distill, in one word")
    parser.add_argument("--student", default="resnet8-w12")
    parser.add_argument("--seen", default="demo:seen")
    parser.add_argument("--unseen", default="demo:unseen")
    given = parser.parse_args()
    keys = ("teacher", "seen", "unseen", "student", "minutes")
    begun_with(given.out / "begun.json", {key: getattr(given, key) for key in keys})
    if given.prior:
        begun_with(given.out / "prior.json", {"prior": given.prior})
    bench, seeds = Bench(given), [int(s) for s in given.seeds.split(",")]
    if given.what == "guidance":
        table = guidance(bench, seeds, given.prior)
        name = "world" if given.prior else "own"
        plotted(table, given.out / f"guidance-{name}.png")
    else:
        table = TABLES[given.what](bench, seeds)
    keys = list(table[0][1][0])
    print(f"| {given.what} | n | {' | '.join(keys)} |")
    print("|---" * (len(keys) + 2) + "|")
    for name, rows in table:
        cells = []
        for key in keys:
            values = [row[key] for row in rows]
            sd = f" ± {statistics.stdev(values):.4g}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4g}{sd}")
        print(f"| {name} | {len(rows)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
