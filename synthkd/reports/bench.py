"""What a bench measured -> statistics, tables, a plot.

`bench.json` in the bench's folder says what all its runs share. `runs/P-sS.json` is the record of
one run of pipeline P with seed S; `report` makes everything else from these and writes it again.
"""

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synthkd.core import files
from synthkd.core.errors import InputError, plain, quoted
from synthkd.core.findings import OF_NO_USE
from synthkd.reports.charts import new_figure

SETTINGS = ("teacher", "student", "val", "minutes", "threads", "device", "precision")
REAL = "real"  # the pipeline that learns from real images: the ceiling
LATER = ("constant_accuracy", "verdict")  # which records of 0.1.0 lack
WIDTH, HEIGHT, DPI = 9.0, 6.0, 160  # of the plot, in inches and pixels per inch
CROWDED_TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b3fa0", "#a0522d",
    "#e69f00", "#2f4f8f", "#5a8f29", "#c2185b", "#008b8b", "#8c8c00",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for a single value)."""

    mean: float
    sd: float | None


class Point(NamedTuple):
    """A student's accuracy at one moment of a run."""

    share: float  # of the run's budget, 0..1
    minutes: float  # wall clock
    accuracy: float


@dataclass(frozen=True)
class CurvePoint:
    """A point of the curve averaged over seeds."""

    minutes: float
    accuracy: float
    sd: float  # 0 for a single seed


@dataclass(frozen=True)
class PipelineResult:
    """One pipeline over all its finished seeds. Accuracies are shares, 0..1."""

    pipeline: str
    n: int
    accuracy: Spread
    others: dict[str, Spread]  # accuracy on the other sets
    agreement: Spread
    minutes: float  # wall clock, mean
    images_seen: float
    images_synthesized: float
    real_images_read: int
    curve: tuple[CurvePoint, ...]
    rival: str | None  # the best other pipeline that reads no real image
    rival_minutes: float | None  # when the curve reached the rival's final accuracy, if it did
    over_real: float | None  # error minus the error of `real`
    constant: float | None = None  # accuracy of a constant classifier, where it is told
    useless: int = 0  # runs whose student is of no use


def mean_sd(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation, sqrt(Σ(x - mean)² / (n - 1)).

    >>> mean_sd([1.0, 2.0, 6.0])
    Spread(mean=3.0, sd=2.6457513110645907)
    >>> mean_sd([4.0])
    Spread(mean=4.0, sd=None)
    """
    known = list(values)
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def mean_curve(curves: Sequence[Sequence[Point]]) -> tuple[CurvePoint, ...]:
    """The mean over seeds, at every share of the budget that one of them has a point at.

    Between the points of a seed, time and accuracy are interpolated linearly. The mean begins where
    every seed has begun, and ends with the mean of the ends.

    >>> one = [Point(0.5, 1.0, 0.2), Point(1.0, 2.0, 0.4)]
    >>> two = [Point(0.5, 3.0, 0.4), Point(1.0, 4.0, 0.6)]
    >>> [(round(x.minutes, 6), round(x.accuracy, 6)) for x in mean_curve([one, two])]
    [(2.0, 0.3), (3.0, 0.5)]
    """
    start = max(curve[0].share for curve in curves)
    shares = sorted({p.share for curve in curves for p in curve if p.share >= start})
    levels = []
    for share in shares:
        at = [_interpolated(curve, share) for curve in curves]
        accuracy = mean_sd(p.accuracy for p in at)
        minutes = statistics.fmean(p.minutes for p in at)
        levels.append(CurvePoint(minutes, accuracy.mean, accuracy.sd or 0.0))
    return tuple(levels)


def _interpolated(curve: Sequence[Point], share: float) -> Point:
    shares, minutes, accuracy = zip(*curve, strict=True)
    return Point(
        share, float(np.interp(share, shares, minutes)), float(np.interp(share, shares, accuracy))
    )


def time_to(curve: Sequence[CurvePoint], accuracy: float) -> float | None:
    """Minutes until a curve first reaches an accuracy, by linear interpolation; None: never.

    A curve that starts above it gives its first point: the time is at most that.

    >>> time_to([CurvePoint(1, 0.2, 0), CurvePoint(3, 0.6, 0)], 0.5)
    2.5
    """
    before: CurvePoint | None = None
    for now in curve:
        if now.accuracy >= accuracy:
            if before is None:
                return now.minutes
            way = (accuracy - before.accuracy) / (now.accuracy - before.accuracy)
            return before.minutes + way * (now.minutes - before.minutes)
        before = now
    return None


def pipeline_results(records: Sequence[Mapping[str, Any]]) -> list[PipelineResult]:
    """The pipelines that have finished a run, the most accurate first."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["state"] == "finished":
            runs.setdefault(record["pipeline"], []).append(record)
    accuracy = {name: mean_sd(_of(group, "student_accuracy")) for name, group in runs.items()}
    free = [n for n, group in runs.items() if not group[0]["summary"]["real_images_read"]]
    found = []
    for name, group in runs.items():
        rivals = [other for other in free if other != name]
        rival = max(rivals, key=lambda other: accuracy[other].mean, default=None)
        curve = mean_curve([curve_of(record) for record in group])
        found.append(
            PipelineResult(
                pipeline=name,
                n=len(group),
                accuracy=accuracy[name],
                others={
                    k: mean_sd(r["others"][k] for r in group)
                    for k in group[0]["others"]
                    if all(k in r["others"] for r in group)
                },
                agreement=mean_sd(_of(group, "agreement")),
                minutes=statistics.fmean(_of(group, "wall_seconds")) / 60,
                images_seen=statistics.fmean(_of(group, "images_seen")),
                images_synthesized=statistics.fmean(_of(group, "images_synthesized")),
                real_images_read=max(_of(group, "real_images_read")),
                curve=curve,
                rival=rival,
                rival_minutes=time_to(curve, accuracy[rival].mean) if rival else None,
                over_real=accuracy[REAL].mean - accuracy[name].mean if REAL in accuracy else None,
                constant=_constant(group),
                useless=sum(r["summary"].get("verdict") == OF_NO_USE for r in group),
            )
        )
    return sorted(found, key=lambda s: -s.accuracy.mean)


def _of(group: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return [record["summary"][key] for record in group]


def _constant(group: Iterable[Mapping[str, Any]]) -> float | None:
    told = [r["summary"].get("constant_accuracy") for r in group]
    known = [float(value) for value in told if _is_number(value, 1)]
    return statistics.fmean(known) if known else None


def curve_of(record: Mapping[str, Any]) -> list[Point]:
    """A finished run's accuracy against time; its last point is the student it left."""
    summary = record["summary"]
    points = [Point(p["share"], p["seconds"] / 60, p["accuracy"]) for p in record["curve"]]
    last = Point(1.0, summary["wall_seconds"] / 60, summary["student_accuracy"])
    return [*(p for p in points if p.share < 1), last]


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """One run as a flat row, for CSV. A run that failed has its error and no scores."""
    summary = record.get("summary") or {}
    kept = (
        "agreement", "teacher_accuracy", "images_seen", "images_synthesized", "promise_level",
        "real_images_read", "constant_accuracy", "verdict",
    )  # fmt: skip
    return {
        "pipeline": record["pipeline"],
        "seed": record["seed"],
        "minutes": record["minutes"],
        "wall_seconds": summary.get("wall_seconds"),
        "process_seconds": record.get("process_seconds"),
        "accuracy": summary.get("student_accuracy"),
        **{f"accuracy_{name}": value for name, value in record.get("others", {}).items()},
        **{key: summary.get(key) for key in kept if key in summary or key not in LATER},
        **{f"seconds_{part}": value for part, value in summary.get("seconds", {}).items()},
        **{f"gflops_{kind}": value for kind, value in record["probe"].items()},
        "load": record["load"],
        "threads": record["threads"],
        "device": record["device"],
        "code": record["code"],
        "state": record["state"],
        "error": record.get("error", ""),
    }


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """One line per run, under a line of column names."""
    rows = [row(record) for record in records]
    # the fullest row first: the columns that others lack keep their place
    columns = dict.fromkeys(key for r in sorted(rows, key=len, reverse=True) for key in r)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(
    settings: Mapping[str, Any],
    table: Sequence[PipelineResult],
    records: Sequence[Mapping[str, Any]],
) -> str:
    """The table of results, the most accurate pipeline first, and how it was measured."""
    others = list(dict.fromkeys(name for s in table for name in s.others))
    told = any(s.constant is not None for s in table)
    header = (
        "pipeline", "accuracy, %", *(("a constant, %",) if told else ()), "n",
        *(f"on {_text(name)}, %" for name in others),
        "agreement, %", "minutes", "reached the best other's accuracy",
        "error over `real`'s, points",
        "images seen", "synthesized", "real images",
    )  # fmt: skip
    rows = [header, ("---", *["---:"] * (len(header) - 1))]
    final = {s.pipeline: s.accuracy.mean for s in table}
    for s in table:
        reached = "–"
        if s.rival and s.rival_minutes is not None:
            share = s.rival_minutes / s.minutes
            goal = f"{_code(s.rival)}, {100 * final[s.rival]:.2f}"
            reached = f"{s.rival_minutes:.1f} min, {share:.0%} of the time ({goal})"
        over = s.over_real if s.pipeline != REAL else None
        rows.append((
            _code(s.pipeline), _percent(s.accuracy),
            *((_share(s.constant),) if told else ()), str(s.n),
            *(_percent(s.others.get(name)) for name in others), _percent(s.agreement),
            f"{s.minutes:.1f}", reached, "–" if over is None else f"{100 * over:+.2f}",
            f"{s.images_seen:,.0f}", f"{s.images_synthesized:,.0f}", f"{s.real_images_read:,}",
        ))  # fmt: skip
    lines = [f"| {' | '.join(cells)} |" for cells in rows] if table else ["No run has finished."]
    failed = [r for r in records if r["state"] == "failed"]
    return "\n".join([
        *lines, "", _measured(settings, records),
        *(
            f"\nOf no use: {s.useless} of {s.n} students of {_code(s.pipeline)}."
            for s in table if s.useless
        ),
        *(
            f"\nFailed: {_code(r['pipeline'])}, seed {r['seed']}: {_text(r.get('error'))}"
            for r in failed
        ), "",
    ])  # fmt: skip


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _text(foreign: object) -> str:
    """A foreign string in Markdown: shown as it is, neither a mark nor HTML."""
    kept = plain(str(foreign)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_#\[\]])", r"\\\1", kept)


def _code(foreign: object) -> str:
    """A foreign string between the marks of code, in a table."""
    kept = plain(str(foreign)).replace("`", "'").replace("|", "\\|")
    return f"`{kept}`"


def _percent(value: Spread | None, digits: int = 2) -> str:
    """A share in percent; without a deviation where there is one value.

    >>> _percent(Spread(0.6123, 0.008))
    '61.23 ± 0.80'
    """
    if value is None:
        return "–"
    sd = "" if value.sd is None else f" ± {100 * value.sd:.{digits}f}"
    return f"{100 * value.mean:.{digits}f}{sd}"


def _measured(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """How the table came to be, in a few sentences."""
    done = [r for r in records if r["state"] == "finished"]
    where = f"{_text(settings['precision'])} on {_text(settings['device'])}"
    text = [f"{_text(title(settings))}; {where}."]
    for summary in [r["summary"] for r in done[:1]]:
        small, large = summary["student_parameters"], summary["teacher_parameters"]
        share = f", the student {small / large:.1%} of its parameters" if large else ""
        text.append(
            "The last weights or their running average, whichever agreed better with the teacher "
            "on held-out images that nobody learned from; scored on "
            f"{summary['val_images']:,} images of {_text(settings['val'])}; "
            f"the teacher has {summary['teacher_accuracy']:.2%}{share}."
        )
        text.append("± is the sample standard deviation over seeds.")
    codes = sorted({r["code"] for r in done})
    if len(codes) > 1:
        text.append(
            f"Not all runs are of the same code: {', '.join(map(_text, codes))} (see results.csv)."
        )
    mixed = [_code(name) for name in sorted({r["pipeline"] for r in done}) if _mixed(name, done)]
    if mixed:
        text.append(f"Not all runs of {', '.join(mixed)} are of one recipe and the same images.")
    for kind in done[0]["probe"] if done else ():
        speeds = [r["probe"][kind] for r in done]
        text.append(
            f"Speed probe, {_text(kind)}: {min(speeds):,.0f} to {max(speeds):,.0f} GFLOP/s."
        )
    return " ".join(text)


def _mixed(name: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the runs of a pipeline differ in more than their seed."""
    told = [
        {"recipe": _lasting(r.get("recipe", {}))}
        | ({"real": r["real_sha256"]} if r.get("real_sha256") else {})
        for r in records
        if r["pipeline"] == name
    ]
    return not all(_agree(a, b) for a, b in combinations(told, 2))


def _lasting(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what differs from run to run, or changes no result."""
    fleeting = ("seed", "out", "trust_code", "anyway")
    run = {k: v for k, v in recipe.get("run", {}).items() if k not in fleeting}
    return {k: v for k, v in recipe.items() if k != "pipeline"} | {"run": run}


def _agree(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, but for settings that one of them is too old to know."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_agree(a[key], b[key]) for key in a.keys() & b.keys())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
    return bool(a == b)


def title(settings: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    threads = settings["threads"]
    return (
        f"{settings['teacher']} → {settings['student']}, {settings['minutes']:g} minutes, "
        f"{threads} thread{'s' if threads != 1 else ''}"
    )


def draw(table: Sequence[PipelineResult], settings: Mapping[str, Any]) -> bytes:
    """Accuracy against wall-clock minutes as a PNG: a line per pipeline, its mean over seeds.

    The band is one standard deviation on each side, the dot is the student that was left, the best
    pipeline without real images is drawn thick, `real` dashed. Names stand at the ends of the
    lines. Where 95 % is passed the axis is that of log(p / (1 - p)), as the end would be crowded.
    """
    figure = new_figure(WIDTH, HEIGHT, DPI)
    axes = figure.add_axes((0.075, 0.085, 0.7, 0.815))
    best = next((s.pipeline for s in table if not s.real_images_read), None)
    plain = sorted({s.pipeline for s in table} - {best, REAL})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(plain)}
    colours |= {REAL: "0.3"} | ({best: "#d00000"} if best else {})
    crowded = max(level.accuracy for s in table for level in s.curve) > 0.95

    def height(share: float) -> float:
        inside = min(max(share, 0.001), 0.9999)
        return math.log(inside / (1 - inside)) if crowded else 100 * share

    edges = [height(x.accuracy + d * x.sd) for s in table for x in s.curve for d in (-1, 1)]
    edges += [height(s.constant) for s in table if s.constant is not None]
    margin = 0.04 * (max(edges) - min(edges)) or 1.0
    low, high = min(edges) - margin, max(edges) + margin
    end = max(s.curve[-1].minutes for s in table)
    axes.set(xlim=(0, 1.01 * end), ylim=(low, high))
    if crowded:
        ticks = [t for t in CROWDED_TICKS if low <= height(t / 100) <= high]
        axes.set_yticks([height(t / 100) for t in ticks], [f"{t:g}" for t in ticks])
    axes.set_xlabel("wall clock, minutes")
    axes.set_ylabel(f"accuracy on {settings['val']}, %", parse_math=False)
    axes.grid(color="0.92", linewidth=0.8)
    constant = next((s.constant for s in table if s.constant is not None), None)
    if constant is not None:
        axes.axhline(height(constant), color="0.5", linewidth=1, linestyle=":")
        axes.text(
            0.01 * end, height(constant), "a constant classifier", color="0.4", fontsize=8,
            va="bottom",
        )  # fmt: skip
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.075, 0.955, title(settings), fontsize=12, parse_math=False)
    note = "mean ± standard deviation (number of seeds); the dot is the student that was left"
    figure.text(0.075, 0.92, note, fontsize=9, color="0.4")

    places = place_labels([height(s.accuracy.mean) for s in table], 0.034 * (high - low), low, high)
    widest = 0.0
    for s, place in zip(table, places, strict=True):
        colour, first = colours[s.pipeline], s.pipeline == best
        front = 4 if first else 3
        x = [level.minutes for level in s.curve]
        y = [height(level.accuracy) for level in s.curve]
        style = "--" if s.pipeline == REAL else "-"
        axes.plot(x, y, style, color=colour, linewidth=2.6 if first else 1.4, zorder=front)
        if s.n > 1:
            lower = [height(level.accuracy - level.sd) for level in s.curve]
            upper = [height(level.accuracy + level.sd) for level in s.curve]
            axes.fill_between(x, lower, upper, color=colour, alpha=0.13, linewidth=0, zorder=2)
        axes.plot(x[-1], y[-1], "o", color=colour, markersize=6 if first else 4.5, zorder=front)
        axes.plot([x[-1], 1.035 * end], [y[-1], place], color=colour, linewidth=0.6, clip_on=False)
        value = _percent(s.accuracy, 2 if crowded else 1)
        name = axes.text(
            1.042 * end, place, f"{s.pipeline}  {value}" + (f" ({s.n})" if s.n > 1 else ""),
            color=colour, va="center", fontsize=9, fontweight="bold" if first else "normal",
            parse_math=False,
        )  # fmt: skip
        widest = max(widest, name.get_window_extent().width / (WIDTH * DPI))
    axes.set_position((0.075, 0.085, max(0.3, (0.915 - widest) / 1.032), 0.815))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def place_labels(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places in low..high nearest to `values` (least squares) that lie at least `gap` apart.

    They keep the order of the values; of equal ones, the first gets the highest place.

    >>> place_labels([5.0, 5.0, 0.0], 1.0, 0.0, 9.0)
    [5.5, 4.5, 0.0]
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], -i))
    # less `rank * gap`, the places only have to rise: pool neighbours that fall, then clip
    groups: list[tuple[float, int]] = []  # sum and count
    for rank, i in enumerate(order):
        total, count = values[i] - rank * gap, 1
        while groups and groups[-1][0] / groups[-1][1] >= total / count:
            total, count = total + groups[-1][0], count + groups[-1][1]
            groups.pop()
        groups.append((total, count))
    highest = high - (len(values) - 1) * gap
    means = [max(low, min(highest, total / n)) for total, n in groups for _ in range(n)]
    places = [0.0] * len(values)
    for rank, i in enumerate(order):
        places[i] = means[rank] + rank * gap
    return places


def read_settings(folder: Path) -> dict[str, Any]:
    """What bench.json says; InputError where it is not what a bench writes."""
    data = _read(folder / "bench.json") or {}
    settings, fixed = data.get("settings"), data.get("fixed", {})
    good = isinstance(settings, dict) and isinstance(fixed, dict)
    if good:
        assert isinstance(settings, dict)
        texts = all(isinstance(settings.get(k), str) for k in SETTINGS if k not in _NUMBERS)
        good = texts and all(_is_number(settings.get(key)) for key in _NUMBERS)
        good = good and all(isinstance(data.get(k, []), list) for k in ("pipelines", "seeds"))
        good = good and all(isinstance(name, str) for name in data.get("pipelines", []))
        good = good and all(type(seed) is int for seed in data.get("seeds", []))
    if not good:
        raise InputError(f"{quoted(folder)}: no bench has run here, or its bench.json is damaged")
    return {"fixed": {}, "pipelines": [], "seeds": []} | data


_NUMBERS = ("minutes", "threads")
_WHOLE = {
    "pipeline": str, "seed": int, "state": str, "minutes": float, "threads": float, "device": str,
    "load": float, "probe": dict, "code": str,
}  # fmt: skip
_SCORED = (
    "student_accuracy", "teacher_accuracy", "agreement", "wall_seconds", "images_seen",
    "images_synthesized", "real_images_read", "student_parameters", "teacher_parameters",
    "val_images",
)  # fmt: skip
STATES = ("running", "finished", "failed")


def _read(path: Path) -> dict[str, Any] | None:
    """A table of JSON without NaN; None where there is none."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        data = json.loads(files.read_bytes(path, _MOST_BYTES), parse_constant=refuse)
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


_MOST_BYTES = 64 << 20


def _is_number(value: object, most: float = 1e15) -> bool:
    return type(value) in (int, float) and 0 <= value <= most  # type: ignore[operator]


def _is_kind(value: object, kind: type) -> bool:
    return _is_number(value) if kind is float else type(value) is kind


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a run; None where there is none, or none that can be read."""
    data = _read(path)
    return None if data is None or damage(data) else data


def damage(record: Mapping[str, Any]) -> str:
    """The first entry of a record that is not as a bench writes it; nothing if it is whole."""
    for key, kind in _WHOLE.items():
        if not _is_kind(record.get(key), kind):
            return key
    if record["state"] not in STATES:
        return "state"
    tables = {key: record.get(key, {}) for key in ("probe", "others", "recipe")}
    summary = record.get("summary") or {}
    if wrong := next((k for k, v in tables.items() if not isinstance(v, dict)), ""):
        return wrong
    if not isinstance(summary, dict) or not isinstance(summary.get("seconds", {}), dict):
        return "summary"
    numbers = {"probe": tables["probe"], "seconds": summary.get("seconds", {})}
    if wrong := next((k for k, v in numbers.items() if not all(map(_is_number, v.values()))), ""):
        return wrong
    if not isinstance(tables["recipe"].get("run", {}), dict):
        return "recipe"
    if not all(_is_number(value, 1) for value in tables["others"].values()):
        return "others"
    if record["state"] != "finished":
        return ""
    if wrong := next((key for key in _SCORED if not _is_number(summary.get(key))), ""):
        return f"summary.{wrong}"
    shares = ("student_accuracy", "teacher_accuracy", "agreement")
    if not summary["wall_seconds"] or any(summary[key] > 1 for key in shares):
        return "summary"
    curve = record.get("curve")
    points = curve if isinstance(curve, list) else [None]
    for point in points:
        if not isinstance(point, dict) or not _is_number(point.get("seconds")):
            return "curve"
        if not all(_is_number(point.get(key), 1) for key in ("share", "accuracy")):
            return "curve"
    return ""


def read(folder: Path, *, strict: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings of a bench, and the records of its runs that have ended, by name and seed.

    Records that are damaged are left out; `strict`: they are an InputError that names the file."""
    settings = read_settings(folder)["settings"]
    records = []
    for path in sorted((folder / "runs").glob("*.json")):
        data = _read(path)
        wrong = damage(data) if data is not None else "no JSON"
        if wrong and strict:
            raise InputError(f"{quoted(path)} is damaged: {wrong}; remove it, or run it again")
        if data is not None and not wrong and data["state"] != "running":
            records.append(data)
    return settings, sorted(records, key=lambda record: (record["pipeline"], record["seed"]))


def report(folder: Path, *, strict: bool = False) -> list[PipelineResult]:
    """Writes results.csv, results.json, table.md and accuracy.png again from the records, as `read`
    gives them."""
    settings, records = read(folder, strict=strict)
    table = pipeline_results(records)
    files.write_atomic(folder / "results.csv", to_csv(records))
    runs = [row(record) | {"curve": record.get("curve", [])} for record in records]
    data = {"settings": settings, "pipelines": [asdict(s) for s in table], "runs": runs}
    files.write_json(folder / "results.json", data)
    files.write_atomic(folder / "table.md", to_markdown(settings, table, records))
    if table:
        files.write_atomic(folder / "accuracy.png", draw(table, settings))
    return table
