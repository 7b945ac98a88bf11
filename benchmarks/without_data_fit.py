"""From the students of without_data.py to a rule that estimates their agreement on real images from
their answers to probes, judged by teachers and data that it was not fitted with.

    python benchmarks/without_data_fit.py ROWS [ROWS…] [--save FILE.csv] [--plot FILE.png]

ROWS is the folder of without_data.py, or a file that --save wrote, as docs/bench/without-data.csv;
a teacher counts where it is named first. Every row is estimated by a rule
that never saw its data set, nor any teacher of it. The rules: the agreement on held-out images or
on some families of probes as it is; and lines fitted through both, on the scale of arcsin √share.
Each data set counts alike. Ends with REACH of synthkd/evaluation/without_data.py, from all data
sets together.
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from synthkd.evaluation.without_data import PROBES

SAME_DATA = {"cifar10-56": "cifar10"}  # teachers of the same images
COVERED = 0.9  # of the students' agreements shall lie in the interval
PENALTY = 0.01  # on the squares of what weights differ from an even share
PLAIN = ("run", "share", "accuracy", "teacher_accuracy", "agreement", "balanced_agreement",
         "images", "classes", "held_out")  # fmt: skip
REFINED = "refined.drawings."
CHOSEN = "in 40 steps, and blended 0.85 and 0.7: ours"
AS_THEY_ARE: dict[str, tuple[str, ...]] = {
    "held-out agreement of the run": ("held_out",),
    "drawings": ("drawings.leaves", "drawings.shaders", "drawings.fractals"),
    "drawings, blended evenly": ("drawings.blends.0.5",),
    "refined from drawings in 10 steps": (f"{REFINED}10",),
    "in 40 steps": (f"{REFINED}40",),
    "in 40 steps, from noise": ("refined.noise.40",),
    "in 40 steps, blended 0.85": (f"{REFINED}blends.0.85",),
    "in 40 steps, blended evenly": (f"{REFINED}blends.0.5",),
    "in 40 and in 10 steps": (f"{REFINED}40", f"{REFINED}10"),
    CHOSEN: PROBES,
}
FITTED: dict[str, tuple[str, ...]] = {
    "fitted: in 40 steps": (f"{REFINED}40",),
    "fitted: in 40 steps, and blended 0.85 and 0.7": PROBES,
    "fitted: in 40 and in 10 steps": (f"{REFINED}40", f"{REFINED}10"),
    "fitted: these, and drawings": (f"{REFINED}40", f"{REFINED}10", "drawings.blends.0.5"),
}
Floats = NDArray[np.float64]


class Line(NamedTuple):
    """A rule: the angle of the truth is offset + Σ weights · angles of shares."""

    offset: float
    weights: Floats

    def __call__(self, features: Floats) -> Floats:
        return np.asarray(self.offset + features @ self.weights, dtype=np.float64)


def angle(shares: Floats | Sequence[float]) -> Floats:
    """The angle whose squared sine is a share: a scale on which shares of n images have a variance
    of 1/4n wherever they lie."""
    return np.arcsin(np.sqrt(np.asarray(shares, dtype=np.float64)))


def share_of(angles: Floats) -> Floats:
    """The shares of angles; beyond 0 and a right angle, 0 and 1."""
    return np.asarray(np.sin(np.clip(angles, 0, np.pi / 2)) ** 2, dtype=np.float64)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a folder of without_data.py, or of a file of `save`."""
    if path.is_dir():
        rows = []
        for each in sorted(path.glob("*.json")):
            for row in json.loads(each.read_text()):
                probes = {p["name"]: p["agreement"] for p in row["probes"]}
                rows.append({"teacher": each.stem, **{k: row[k] for k in PLAIN}, **probes})
        return rows
    with path.open(newline="") as file:
        return [
            {k: v if k in ("teacher", "run") else float(v or "nan") for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those of a student that another run of its teacher had too: several begin
    with the same one."""
    own = [k for k in rows[0] if k not in ("run", "share", "held_out")] if rows else []
    return list({tuple(row[k] for k in own): row for row in reversed(rows)}.values())[::-1]


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes rows as CSV, shares with four digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(f"{v:.4g}" if isinstance(v, float) else v for v in row.values())


def data_of(rows: Sequence[dict[str, Any]]) -> NDArray[np.str_]:
    """The data set of each row's teacher."""
    return np.array([SAME_DATA.get(row["teacher"], row["teacher"]) for row in rows])


def even(data: NDArray[np.str_]) -> Floats:
    """Weights by which each data set counts alike; they add up to 1."""
    counts = {name: int((data == name).sum()) for name in set(data.tolist())}
    return np.array([1 / counts[name] for name in data.tolist()]) / len(counts)


def fit(features: Floats, truth: Floats, weights: Floats) -> Line:
    """The line of least weighted absolute error in angles, by weights that are not negative,
    drawn a little to even ones."""
    count = features.shape[1]

    def loss(at: Floats) -> float:
        error = at[0] + features @ at[1:] - truth
        smooth = np.sqrt(error**2 + 0.0001)  # a corner that can be differentiated
        return float(weights @ smooth + PENALTY * ((at[1:] - 1 / count) ** 2).sum())

    start = np.array([0.0, *[1 / count] * count])
    bounds = [(None, None), *[(0.0, None)] * count]
    found = optimize.minimize(loss, start, bounds=bounds).x
    return Line(float(found[0]), np.asarray(found[1:], dtype=np.float64))


def left_out(
    features: Floats, truth: Floats, data: NDArray[np.str_], rule: Callable[..., Line]
) -> tuple[Floats, Floats]:
    """In angles, for each student the estimate of a rule that was fitted without its data set,
    and half of the interval: the quantile of the errors that a rule makes on the other data sets
    when each of these is left out in turn."""
    guess, reach = np.zeros(len(truth)), np.zeros(len(truth))
    names = list(dict.fromkeys(data.tolist()))
    for name in names:
        test = data == name
        guess[test] = rule(features[~test], truth[~test], even(data[~test]))(features[test])
        errors, counts = [], []
        for other in names:
            if other == name:
                continue
            inner, asked = ~test & (data != other), data == other
            told = rule(features[inner], truth[inner], even(data[inner]))(features[asked])
            errors += np.abs(told - truth[asked]).tolist()
            counts += [1 / asked.sum()] * int(asked.sum())
        reach[test] = quantile(np.array(errors), np.array(counts))
    return guess, reach


def quantile(errors: Floats, weights: Floats) -> float:
    """The error under which COVERED of the weight lies.

    >>> float(quantile(np.arange(1.0, 11.0), np.ones(10)))
    9.0
    """
    order = np.argsort(errors)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(errors[order][np.searchsorted(below, COVERED - 1e-9)])


def as_it_is(features: Floats, truth: Floats, weights: Floats) -> Line:
    """No fit: the mean."""
    count = features.shape[1]
    return Line(0.0, np.full(count, 1 / count))


class Judged(NamedTuple):
    """What came of a rule."""

    guess: Floats  # shares
    low: Floats
    high: Floats
    error: float  # mean absolute, in points
    spearman: list[float]  # by teacher
    inside: NDArray[np.bool_]  # whether the truth lies in the interval


def judge(
    rows: Sequence[dict[str, Any]], names: Sequence[str], rule: Callable[..., Line]
) -> Judged:
    """A rule on the features of these names, every data set left out in turn."""
    shares = np.stack([[row[name] for row in rows] for name in names], axis=1)
    features = angle(shares.mean(1, keepdims=True)) if rule is as_it_is else angle(shares)
    truth = np.array([row["agreement"] for row in rows])
    data, teachers = data_of(rows), np.array([row["teacher"] for row in rows])
    guess, reach = left_out(features, angle(truth), data, rule)
    share, low, high = (share_of(guess + by * reach) for by in (0, -1, 1))
    inside = (truth >= low - 1e-9) & (truth <= high + 1e-9)
    return Judged(
        share, low, high, 100 * float(even(data) @ np.abs(share - truth)),
        [rank(share[teachers == t], truth[teachers == t])
         for t in dict.fromkeys(teachers.tolist())],
        inside,
    )  # fmt: skip


def rank(guess: Floats, truth: Floats) -> float:
    """Spearman's correlation; NaN of students that are all alike to one of both."""
    if len(set(guess.tolist())) < 2 or len(set(truth.tolist())) < 2:
        return float("nan")
    return float(stats.spearmanr(guess, truth).statistic)


def table(rows: Sequence[dict[str, Any]]) -> Judged:
    """Prints a line for each rule, and for the one of synthkd one for each teacher."""
    data, truth = data_of(rows), np.array([row["agreement"] for row in rows])
    mean = {name: truth[data != name].mean() for name in set(data.tolist())}
    blind = even(data) @ np.abs(truth - np.array([mean[name] for name in data.tolist()]))
    count = len({row["teacher"] for row in rows})
    print(f"{len(rows)} students of {count} teachers and {len(mean)} data sets; the mean of the "
          f"others as a guess is off by {100 * blind:.1f} points\n")  # fmt: skip
    print("| rule | mean absolute error, points | Spearman within a teacher: mean, least "
          "| truth inside the interval | its width, points |")  # fmt: skip
    print("|---|---:|---:|---:|---:|")
    rules = {name: judge(rows, found, as_it_is) for name, found in AS_THEY_ARE.items()}
    rules |= {name: judge(rows, found, fit) for name, found in FITTED.items()}
    for name, found in rules.items():
        width = 100 * float(even(data) @ (found.high - found.low))
        ranks = f"{np.nanmean(found.spearman):.2f}, {np.nanmin(found.spearman):.2f}"
        print(f"| {name} | {found.error:.1f} | {ranks} | {even(data) @ found.inside:.0%} "
              f"| {width:.0f} |")  # fmt: skip
    chosen = rules[CHOSEN]
    print("\n| teacher (its accuracy) | students | agreement, least to most | mean absolute error, "
          "points: all, those above 30 % | Spearman | truth inside the interval |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|")
    teachers = [row["teacher"] for row in rows]
    for teacher, ranked in zip(dict.fromkeys(teachers), chosen.spearman, strict=True):
        one = np.array([t == teacher for t in teachers])
        error, good = 100 * np.abs(chosen.guess - truth), one & (truth > 0.3)
        inside = chosen.inside[one].mean()
        above = f"{error[good].mean():.1f}" if good.any() else "none"
        accuracy = next(row["teacher_accuracy"] for row in rows if row["teacher"] == teacher)
        told = "" if accuracy is None or np.isnan(accuracy) else f" ({accuracy:.0%})"
        print(f"| {teacher}{told} | {one.sum()} | {truth[one].min():.0%} to {truth[one].max():.0%} "
              f"| {error[one].mean():.1f}, {above} | {ranked:.2f} | {inside:.0%} |")  # fmt: skip
    return chosen


def choosing(rows: Sequence[dict[str, Any]], guess: Floats) -> None:
    """What it would be worth to keep, of the students on the way of a run, the one with the highest
    estimate instead of the last."""
    gains = []
    for run in dict.fromkeys((row["teacher"], row["run"]) for row in rows):
        mine = [k for k, row in enumerate(rows) if (row["teacher"], row["run"]) == run]
        if len(mine) > 1:
            best = max(mine, key=lambda k: (guess[k], rows[k]["share"]))
            last = max(mine, key=lambda k: rows[k]["share"])
            gains.append(100 * (rows[best]["agreement"] - rows[last]["agreement"]))
    print(f"\nThe student of the highest estimate instead of the last of its run: "
          f"{np.mean(gains):+.2f} points of agreement (n = {len(gains)} runs, "
          f"{np.min(gains):+.1f} to {np.max(gains):+.1f})")  # fmt: skip


def plot(rows: Sequence[dict[str, Any]], found: Judged, path: Path) -> None:
    """Estimate against truth, a colour for each teacher, with the intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    truth, teachers = 100 * np.array([r["agreement"] for r in rows]), [r["teacher"] for r in rows]
    figure, axes = pyplot.subplots(figsize=(6.4, 6), layout="constrained")
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
    for k, teacher in enumerate(dict.fromkeys(teachers)):
        one = np.array([t == teacher for t in teachers])
        middle = 100 * found.guess[one]
        bars = np.abs(np.stack([100 * found.low[one], 100 * found.high[one]]) - middle)
        colour = matplotlib.colormaps["tab10"](k % 10)
        axes.errorbar(truth[one], middle, bars, fmt="o", markersize=3.5, elinewidth=0.3,
                      color=colour, label=teacher)  # fmt: skip
    axes.set(xlabel="agreement with the teacher on real images, %", xlim=(0, 100),
             ylabel="estimate without data, %", ylim=(0, 100))  # fmt: skip
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints the tables and the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in given.rows:
        known = {row["teacher"] for row in rows}
        rows += distinct([row for row in read(path) if row["teacher"] not in known])
    if given.save:
        save(rows, given.save)
        rows = read(given.save)
    found = table(rows)
    choosing(rows, found.guess)
    print(f"\nREACH = {np.ceil(100 * reach_of(rows)) / 100:.2f}")
    if given.plot:
        plot(rows, found, given.plot)


def reach_of(rows: Sequence[dict[str, Any]]) -> float:
    """The reach of the intervals of our rule: the quantile of its errors on all data sets."""
    shares = np.stack([[row[name] for row in rows] for name in PROBES], axis=1)
    errors = angle(shares.mean(1)) - angle([row["agreement"] for row in rows])
    return quantile(np.abs(errors), even(data_of(rows)))


if __name__ == "__main__":
    main()
