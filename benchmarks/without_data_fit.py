"""From the students of without_data.py to an estimate: which answers on probes tell the agreement
on real images, leaving out one teacher at a time.

    python benchmarks/without_data_fit.py OUT

OUT is the folder of without_data.py. Every row is judged by a rule that never saw its teacher. The
rules: the agreement on one family of probes alone; a ridge regression of the log-odds of the
agreement on those of the families; and, for comparison, the agreement on held-out images.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.linear_model import Ridge

FAMILIES: dict[str, str] = {  # a family of probes, and how the names of its sets begin
    "drawings": "drawings.", "blended drawings": "drawings.blends",
    "refined from drawings": "refined.drawings.", "the same, blended": "refined.drawings.blends",
    "refined from noise": "refined.noise.", "the same, blended (noise)": "refined.noise.blends",
}  # fmt: skip
COVERED = 0.9  # of the students' agreements shall lie in the interval
Floats = NDArray[np.float64]
Rule = Callable[[Floats, Floats], Callable[[Floats], Floats]]  # fits features to a truth


def odds(shares: Floats | Sequence[float]) -> Floats:
    """The log-odds of shares, which are kept off 0 and 1."""
    return np.asarray(special.logit(np.clip(shares, 0.005, 0.995)), dtype=np.float64)


def families(row: dict[str, Any]) -> list[float]:
    """The mean agreement on the sets of each family; blends are a family of their own."""
    found = []
    for name, start in FAMILIES.items():
        told = [
            p["agreement"] for p in row["probes"]
            if p["name"].startswith(start) and ("blend" in name or ".blends" not in p["name"])
        ]  # fmt: skip
        found.append(float(np.mean(told)) if told else float("nan"))
    return found


def ridge(features: Floats, truth: Floats) -> Callable[[Floats], Floats]:
    """A ridge regression."""
    model = Ridge(alpha=1.0).fit(features, truth)
    return lambda new: np.asarray(model.predict(new), dtype=np.float64)


def alone(place: int) -> Rule:
    """A line through one feature."""

    def fit(features: Floats, truth: Floats) -> Callable[[Floats], Floats]:
        line = stats.linregress(features[:, place], truth)
        return lambda new: line.intercept + line.slope * new[:, place]

    return fit


def left_out(rows: Sequence[dict[str, Any]], features: Floats, rule: Rule) -> tuple[Floats, Floats]:
    """For each student the estimate of a rule that was fitted without its teacher, and half of the
    interval: the quantile of the errors that a rule makes on the other teachers when each of these
    is left out in turn. Both are shares."""
    teachers = np.array([row["teacher"] for row in rows])
    truth = odds([row["agreement"] for row in rows])
    guess, reach = np.zeros(len(rows)), np.zeros(len(rows))
    for teacher in dict.fromkeys(teachers):
        test = teachers == teacher
        fitted = rule(features[~test], truth[~test])
        guess[test] = special.expit(fitted(features[test]))
        errors = []
        for other in dict.fromkeys(teachers[~test]):
            inner = ~test & (teachers != other)
            asked = ~test & (teachers == other)
            told = special.expit(rule(features[inner], truth[inner])(features[asked]))
            errors += np.abs(told - special.expit(truth[asked])).tolist()
        reach[test] = np.quantile(errors, COVERED)
    return guess, reach


def main() -> None:
    """Prints a line for each rule, and for the ridge one for each teacher."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    rows = []
    for path in sorted(given.out.glob("*.json")):
        rows += [row | {"teacher": path.stem} for row in json.loads(path.read_text())]
    features = odds(np.nan_to_num(np.array([families(row) for row in rows]), nan=0.5))
    held_out = odds([row["held_out"] for row in rows])[:, None]
    truth = np.array([row["agreement"] for row in rows])
    teachers = np.array([row["teacher"] for row in rows])
    rules: dict[str, tuple[Floats, Rule]] = {
        "held-out agreement": (held_out, alone(0)),
        **{name: (features, alone(k)) for k, name in enumerate(FAMILIES)},
        "ridge of the families": (features, ridge),
    }

    def spearman(guess: Floats) -> float:
        each = [stats.spearmanr(guess[teachers == t], truth[teachers == t]).statistic
                for t in dict.fromkeys(teachers)]  # fmt: skip
        return float(np.nanmean(each))

    print(f"{len(rows)} students of {len(set(teachers))} teachers; a constant guess, the mean of "
          f"the other teachers' students, is off by "
          f"{100 * np.mean([abs(truth[i] - truth[teachers != teachers[i]].mean()) for i in range(len(rows))]):.1f}")  # noqa: E501  # fmt: skip
    print("| rule | mean absolute error, points | Spearman within a teacher | covered | ± |")
    print("|---|---|---|---|---|")
    for name, (given_features, rule) in rules.items():
        guess, reach = left_out(rows, given_features, rule)
        inside = np.abs(guess - truth) <= reach
        print(f"| {name} | {100 * np.abs(guess - truth).mean():.1f} | {spearman(guess):.2f} "
              f"| {inside.mean():.0%} | {100 * reach.mean():.1f} |")  # fmt: skip
    guess, reach = left_out(rows, features, ridge)
    print("\n| teacher left out | students | agreement, least to most | error | covered |")
    print("|---|---|---|---|---|")
    for teacher in dict.fromkeys(teachers):
        one = teachers == teacher
        error = np.abs(guess - truth)[one]
        print(f"| {teacher} | {one.sum()} | {truth[one].min():.0%} to {truth[one].max():.0%} "
              f"| {100 * error.mean():.1f} | {(error <= reach[one]).mean():.0%} |")  # fmt: skip


if __name__ == "__main__":
    main()
