"""`synthkd search` against candidates proposed by chance and `--student auto`, at equal times.

    python benchmarks/search.py OUT --data DIR [--minutes 20] [--seeds 0,1,2] [--only demo,cifar10]
        [--ways nsga2,halving,chance,auto,killed]
    python benchmarks/search.py OUT --table

DIR holds the third-party teacher and images of CIFAR-10, as for jobs.py. The ways:

    nsga2     `synthkd search`, as it is
    halving   candidates proposed by chance (`--sampler random`), tried as a search tries them
    chance    candidates proposed by chance, each learning about as long as a last generation
    auto      `synthkd distill --student auto` for as long as a whole search
    killed    a search that is killed (SIGKILL) amid its candidates, and started again

Candidates of a seed learn from the same images, those of its search, and for 25 % of --minutes; so
halving and chance are run after nsga2, and stop before a student is trained for long. All keep one
limit, a share --limit of the teacher's own milliseconds by ONNX Runtime, measured first. A front is
worth the area that it dominates (`pareto.hypervolume`), from a constant classifier's agreement 1/K
and the limit, as a share of what there could be. Students are exported and timed again in the end,
three times, of which the least counts. A way and seed is a line of OUT/rows.jsonl; those that are
there are not run again, and what was interrupted goes on. OUT is for one choice of --minutes and
--limit.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jobs import CIFAR_20, distil, places_of
from pruned_families import ENVIRONMENT, refusal
from rows import CODE, Rows, begun_with, complete, spread
from variants import flags_of

import synthkd
from synthkd.core.files import write_json
from synthkd.jobs.search import GENERATIONS, LONGER, MAKING, POPULATION, TRYING, Search, places
from synthkd.reports.search import Trial, best_of, read_search
from synthkd.specs import load_teacher
from synthkd.students import latency
from synthkd.students.pareto import Point, hypervolume

JOBS = {"demo": "--teacher demo --val-data demo:unseen ", "cifar10": CIFAR_20}
WAYS = ("nsga2", "halving", "chance", "auto", "killed")
THREADS, CLASSES = 2, 10
# as many candidates as learn for as long as a search's last generation in its time
ALONE = sum(
    many * LONGER**place for place, many in enumerate(places(POPULATION, GENERATIONS))
) // LONGER ** (GENERATIONS - 1)
TIMES, SECONDS = 3, 3  # that a student is timed again, and for how long each
MARGIN = 1.1  # of the limit


def area(points: Sequence[Point], limit: float, classes: int) -> float:
    """The share, 0..1, of the agreements above chance and the milliseconds below the limit that
    points dominate: their hypervolume from (1 / classes, limit), over (1 − 1 / classes) · limit.

    >>> round(area([(0.55, 1.0)], 2.0, 10), 6)
    0.25
    """
    chance = 1 / classes
    return hypervolume(points, (chance, limit)) / ((1 - chance) * limit)


def points_of(trials: Sequence[Trial]) -> list[Point]:
    """The two aims of the front of some candidates."""
    return [trial.point for trial in best_of(trials)]


class Bench:
    """The runs of one set of data."""

    def __init__(self, data: str, given: argparse.Namespace) -> None:
        self.data, self.given = data, given
        self.words = JOBS[data].format(**places_of(given.data, "chest.pt")).split()
        self.settings = {
            **flags_of(self.words), "run.trust_code": True, "run.threads": THREADS,
        }  # fmt: skip
        self.limit = self._limit()

    def _limit(self) -> float:
        """Milliseconds, measured once."""
        path = self.given.out / f"{self.data}-limit.json"
        if not path.exists():
            teacher = load_teacher(synthkd.Recipe.of(self.settings).teacher, trust_code=True)
            ms = min(
                latency.network_ms(teacher.network, seconds=SECONDS, threads=THREADS, final=True)
                for _ in range(TIMES)
            )
            write_json(path, {"teacher_ms": ms, "limit": float(f"{self.given.limit * ms:.3g}")})
        return float(json.loads(path.read_text())["limit"])

    def place(self, way: str, seed: int) -> Path:
        """The directory of a run."""
        found: Path = self.given.out / f"{self.data}-{way}-s{seed}"
        return found

    def waits(self, way: str, seed: int) -> bool:
        """Whether a way needs the images of a search that is not there yet."""
        if way not in ("halving", "chance") or (self._images(seed) / "manifest.json").exists():
            return False
        print(f"{self.place(way, seed).name}: run nsga2 first, whose images it needs", flush=True)
        return True

    def _images(self, seed: int) -> Path:
        """Those of the search of a seed."""
        return self.place("nsga2", seed) / "set"

    def row(self, way: str, seed: int) -> dict[str, Any]:
        """What came of a way."""
        began = time.perf_counter()
        row: dict[str, Any] = {
            "data": self.data, "way": way, "seed": seed, "minutes": self.given.minutes,
            "limit": self.limit, "machine": str(latency.conditions(THREADS)),
        }  # fmt: skip
        try:
            found = self._measured(way, seed)
        except synthkd.InputError as error:
            found = {"refused": str(error)}
        return row | found | {"seconds": time.perf_counter() - began}

    def _measured(self, way: str, seed: int) -> dict[str, Any]:
        place = self.place(way, seed)
        if way in ("halving", "chance"):
            trials = self._explored(place, seed, self._images(seed), alone=way == "chance")
            return self._front(trials)
        if way == "auto":
            self._distilled(place, seed)
            return self._student(place)
        killed = self._killed(place, seed) if way == "killed" else {}
        self._searched(place, seed)
        found = read_search(place)
        row = killed | self._front(found.trials) | self._student(place / "student")
        row |= {"measured": found.milliseconds, "report": (place / "report.html").is_file()}
        if way == "killed":
            row["kept"] = (place / "trials.jsonl").read_text().startswith(row.pop("before"))
        return row

    def _front(self, trials: Sequence[Trial]) -> dict[str, Any]:
        return {
            "hypervolume": area(points_of(trials), self.limit, CLASSES),
            "front": [(t.student, *t.point) for t in best_of(trials)],
            "trainings": sum(t.seconds > 0 for t in trials),
            "candidates": len({t.student for t in trials}),
        }  # fmt: skip

    def _explored(self, place: Path, seed: int, images: Path, *, alone: bool) -> list[Trial]:
        """Candidates proposed by chance."""
        recipe = synthkd.Recipe.of({
            **self.settings, "run.seed": seed, "budget.minutes": self.given.minutes,
        })  # fmt: skip
        schedule = {"population": ALONE, "generations": 1} if alone else {}
        job = Search(recipe, place, limit=self.limit, sampler="random", **schedule)
        return job.explore(images)[0]

    def _command(self, place: Path, seed: int) -> list[str]:
        return [
            sys.executable, "-m", "synthkd", "search", *self.words, "--minutes",
            str(self.given.minutes), "--max-latency-ms", str(self.limit), "--seed", str(seed),
            "--run.threads", str(THREADS), "--quiet", "--out", str(place),
        ]  # fmt: skip

    def _searched(self, place: Path, seed: int) -> None:
        if (place / "student" / "summary.json").exists():
            return
        with place.with_suffix(".log").open("a") as log:
            code = subprocess.run(
                self._command(place, seed), env=ENVIRONMENT, stdout=log, stderr=log, check=False
            ).returncode
        ended(code, place, place / "student")

    def _killed(self, place: Path, seed: int) -> dict[str, Any]:
        """Starts a search and kills it amid its candidates; what it had done."""
        note = place.with_suffix(".killed.json")
        if not note.exists():
            began, trials = time.monotonic(), place / "trials.jsonl"
            middle = 60 * self.given.minutes * (MAKING + TRYING / 2)
            with place.with_suffix(".log").open("a") as log:
                process = subprocess.Popen(
                    self._command(place, seed), env=ENVIRONMENT, stdout=log, stderr=log
                )
                while process.poll() is None and (
                    time.monotonic() - began < middle
                    or not (trials.is_file() and trials.stat().st_size)
                ):
                    time.sleep(0.2)
                process.kill()
                process.wait()
            before = trials.read_text() if trials.is_file() else ""
            write_json(note, {
                "before": before, "killed_after": time.monotonic() - began,
                "killed_trials": before.count("\n"), "killed": process.returncode == -9,
            })  # fmt: skip
        found: dict[str, Any] = json.loads(note.read_text())
        return found

    def _distilled(self, place: Path, seed: int) -> None:
        if (place / "summary.json").exists():
            return
        words = [
            *self.words, "--student", "auto", "--max-latency-ms", str(self.limit), "--minutes",
            str(self.given.minutes), "--seed", str(seed), "--quiet",
        ]  # fmt: skip
        ended(distil(place, words, str(CODE)), place, place)

    def _student(self, run: Path) -> dict[str, Any]:
        """The student that was left, and its time by the file that `synthkd export` writes."""
        summary = json.loads((run / "summary.json").read_text())
        student = synthkd.load_student(run, trust_code=True)
        again = [
            latency.network_ms(student, seconds=SECONDS, threads=THREADS, final=True)
            for _ in range(TIMES)
        ]  # fmt: skip
        kept = ("student", "student_parameters", "student_accuracy", "teacher_accuracy",
                "agreement", "images_seen", "verdict")  # fmt: skip
        return {key: summary[key] for key in kept} | {"again": again}


def ended(code: int, place: Path, run: Path) -> None:
    """Raises what a command refused, or ends the benchmark, where it left no student."""
    if not (run / "summary.json").exists():
        raise synthkd.InputError(refusal(code, place.with_suffix(".log").read_text()))


def table(rows: list[dict[str, Any]]) -> None:
    """Markdown: the fronts, the students, the searches that were killed."""
    print("| data | way | n | hypervolume | trainings | candidates |")
    print("|---|---|---|---|---|---|")
    for data in JOBS:
        for way in WAYS:
            some = [r for r in rows if (r["data"], r["way"]) == (data, way) and "hypervolume" in r]
            if some:
                cells = [spread([r[key] for r in some], digits) for key, digits in
                         (("hypervolume", 4), ("trainings", 1), ("candidates", 1))]  # fmt: skip
                print(f"| {data} | {way} | {len(some)} | {' | '.join(cells)} |")
    print("\n| data | way | seed | student | weights | accuracy % | agreement % | teacher % | "
          "ms again | of the limit | within 10 % | s | report |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in (r for r in rows if "student" in r):
        ms = min(row["again"])  # other programs only ever make it slower
        print(
            f"| {row['data']} | {row['way']} | {row['seed']} | {row['student']} "
            f"| {row['student_parameters']:,} | {100 * row['student_accuracy']:.2f} "
            f"| {100 * row['agreement']:.2f} | {100 * row['teacher_accuracy']:.2f} "
            f"| {' '.join(f'{one:.3g}' for one in row['again'])} | {ms / row['limit']:.2f} "
            f"| {'yes' if ms <= MARGIN * row['limit'] else 'no'} | {row['seconds']:.0f} "
            f"| {'yes' if row.get('report') else '-'} |"
        )
    for row in (r for r in rows if "refused" in r):
        print(f"\n{row['data']}, {row['way']}, seed {row['seed']}: {row['refused']}")
    for row in (r for r in rows if "kept" in r):
        print(
            f"\n{row['data']}, seed {row['seed']}: killed after {row['killed_after']:.0f} s with "
            f"{row['killed_trials']} trainings ({'SIGKILL' if row['killed'] else 'it had ended'}), "
            f"which are {'kept' if row['kept'] else 'lost'}; {row['trainings']} in the end, "
            f"{row['seconds']:.0f} s in all of {60 * row['minutes']:.0f}."
        )


def main() -> None:
    """Runs what is not there yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="third-party")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=float, default=0.75, help="share of the teacher's time")
    parser.add_argument("--only", default=",".join(JOBS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    rows, missing = Rows(given.out), []
    if not given.table:
        begun_with(given.out / "begun.json", {"minutes": given.minutes, "limit": given.limit})
        torch.set_num_threads(THREADS)
        seeds = [int(seed) for seed in given.seeds.split(",")]
        for data in given.only.split(","):
            bench = Bench(data, given)
            for seed in seeds:
                for way in WAYS:
                    more = way == "killed" and seed != seeds[0]  # one is enough
                    if way not in given.ways.split(",") or more:
                        continue
                    name = bench.place(way, seed).name
                    if name not in rows.by_name and bench.waits(way, seed):
                        missing.append(name)
                    else:
                        rows.make(name, partial(bench.row, way, seed))
    table(list(rows.by_name.values()))
    complete(missing)


if __name__ == "__main__":
    main()
