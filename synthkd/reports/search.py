"""What the directory of a search says of it: read without torch, and without trusting a byte of it.

    search.json      what was asked for
    trials.jsonl     a line for each candidate
    front.json       what was chosen, and its time when it was measured again
    student/         the run of the chosen one

A search may be finished, going on, interrupted or damaged: what cannot be read is missing, and
`problems` says why.
"""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthkd.core import files
from synthkd.core.errors import InputError, plain, quoted
from synthkd.reports.charts import new_figure
from synthkd.reports.record import is_held, lines, number
from synthkd.students.pareto import Point, front

SEARCH, TRIALS, FRONT, STUDENT = "search.json", "trials.jsonl", "front.json", "student"
MOST_DRAWN = 1000  # candidates


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried."""

    student: str
    seconds: float  # of learning
    agreement: float  # on held-out images of the set, 0..1; 0 where it was too slow to be tried
    milliseconds: float  # of one image
    parameters: int
    generation: int
    images: int = 0  # that it learned from, in this generation

    @property
    def point(self) -> Point:
        """Its two aims."""
        return self.agreement, self.milliseconds


@dataclass(frozen=True)
class SearchRecord:
    """A search, as its files tell it. What is missing is empty."""

    path: Path
    state: str  # finished, running or interrupted
    teacher: str = ""
    minutes: float | None = None
    sampler: str = ""
    limit: float | None = None  # milliseconds of an image
    trials: Sequence[Trial] = ()
    front: Sequence[Trial] = ()
    chosen: Trial | None = None
    milliseconds: float | None = None  # of the chosen one, measured again at the end
    longer: Mapping[str, float] = field(default_factory=dict)  # of those that were timed for longer
    conditions: str = ""  # of these times
    problems: Sequence[str] = ()


def is_search(path: Path) -> bool:
    """Whether this looks like the directory of a search."""
    return files.is_plain(path / SEARCH)


def trial_of(told: object) -> Trial | None:
    """A candidate out of a foreign table; None where it is none.

    >>> trial_of({"student": "a", "seconds": 3, "agreement": 0.5, "milliseconds": 2.0,
    ...           "parameters": 7, "generation": 0, "params": {}}).point
    (0.5, 2.0)
    """
    if not isinstance(told, Mapping) or not isinstance(told.get("student"), str):
        return None
    seconds, agreement, ms, size, generation = (
        number(told.get(key))
        for key in ("seconds", "agreement", "milliseconds", "parameters", "generation")
    )
    if seconds is None or agreement is None or ms is None or size is None or generation is None:
        return None
    images = number(told.get("images")) or 0.0
    if min(seconds, agreement, size, generation, images) < 0 or agreement > 1 or ms <= 0:
        return None
    return Trial(
        told["student"], seconds, agreement, ms, int(size), int(generation), int(images)
    )  # fmt: skip


def read_trials(folder: Path, problems: list[str]) -> list[tuple[Trial, dict[str, Any]]]:
    """The candidates that were tried, each with the parameters that it was proposed by. Lines that
    are damaged are left out."""
    found = []
    for told in lines(folder / TRIALS, problems):
        trial, params = trial_of(told), told.get("params")
        if trial is None:
            problems.append(f"{TRIALS}: a candidate is damaged")
        else:
            found.append((trial, params if isinstance(params, dict) else {}))
    return found


def best_of(trials: Sequence[Trial]) -> list[Trial]:
    """The front of all candidates, each by its last training, the fastest first; empty where
    none was tried. One that learned less than others is not left out: it would only agree more
    often if it had learned longer.

    >>> [t.agreement for t in best_of([Trial("a", 4, 0.5, 2, 9, 1), Trial("a", 2, 0.9, 2, 9, 0),
    ...                                Trial("b", 2, 0.4, 1, 9, 0), Trial("c", 2, 0.4, 3, 9, 0)])]
    [0.4, 0.5]
    """
    last: dict[str, Trial] = {}
    for trial in trials:
        if trial.seconds and trial.generation >= last.get(trial.student, trial).generation:
            last[trial.student] = trial
    some = list(last.values())
    return [some[place] for place in front([t.point for t in some])]


def read_search(folder: Path) -> SearchRecord:
    """Reads the directory of a search, whatever its state. Raises InputError where there is
    none."""
    if not is_search(folder):
        raise InputError(f"{quoted(folder)}: this is not the directory of a search")
    asked = files.read_table(folder / SEARCH, quoted(folder))
    problems: list[str] = []
    trials = [trial for trial, _ in read_trials(folder, problems)]
    told: dict[str, Any] = {}
    if files.is_plain(folder / FRONT):
        try:
            told = files.read_table(folder / FRONT, quoted(folder))
        except InputError as error:
            problems.append(str(error))
    done = bool(told) and files.is_plain(folder / STUDENT / "summary.json")
    recipe: Any = {}
    with suppress(ValueError, TypeError, RecursionError):
        recipe = json.loads(asked.get("recipe", ""))
    return SearchRecord(
        folder, "finished" if done else "running" if is_held(folder) else "interrupted",
        teacher=plain(str(_inside(recipe, "teacher", "spec") or ""))[:200],
        minutes=number(_inside(recipe, "budget", "minutes")),
        sampler=plain(str(asked.get("sampler", "")))[:40], limit=number(asked.get("limit")),
        trials=trials, front=best_of(trials), chosen=trial_of(told.get("chosen")),
        milliseconds=number(told.get("milliseconds")), longer=_times(told.get("timed_for_longer")),
        conditions=plain(str(told.get("conditions", "")))[:200], problems=problems,
    )  # fmt: skip


def _times(told: object) -> dict[str, float]:
    """Milliseconds by student out of a foreign table; what is none is left out."""
    found = {name: number(ms) for name, ms in told.items()} if isinstance(told, Mapping) else {}
    return {str(name): ms for name, ms in found.items() if ms is not None and ms > 0}


def _inside(data: Any, table: str, key: str) -> Any:
    """A value of a table in a table, where both are there."""
    inner = data.get(table) if isinstance(data, dict) else None
    return inner.get(key) if isinstance(inner, dict) else None


def draw(
    trials: Sequence[Trial], best: Sequence[Trial], taken: Trial | None, limit: float | None = None
) -> bytes:
    """Agreement against milliseconds of all candidates as a PNG; the front is a line, and so is the
    limit."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """0.2 in place of 2e-01, at the same ticks."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    figure = new_figure(7, 4.5, 130)
    axes = figure.add_subplot()
    tried = [t for t in trials if t.seconds][:MOST_DRAWN]
    best = best[:MOST_DRAWN]
    most = max(1, *(t.images for t in tried)) if tried else 1
    axes.scatter(
        [t.milliseconds for t in tried], [100 * t.agreement for t in tried],
        s=[12 + 40 * t.images / most for t in tried], color="0.6",
    )  # fmt: skip
    axes.plot([t.milliseconds for t in best], [100 * t.agreement for t in best], "o-", color="C0")
    if taken is not None:
        axes.plot(taken.milliseconds, 100 * taken.agreement, "D", color="C3")
    if limit is not None:
        axes.axvline(limit, linestyle=":", color="0.4")
    for t in best[:40]:
        axes.annotate(plain(t.student)[:40], (t.milliseconds, 100 * t.agreement), fontsize=7,
                      xytext=(4, -8), textcoords="offset points", parse_math=False)  # fmt: skip
    axes.set(
        xlabel="milliseconds of one image", ylabel="agreement, held-out synthetic, %",
        title="larger dots learned from more images" + ("; the diamond was chosen" if taken else "")
        + ("; dotted: the limit" if limit is not None else ""),
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(Plain())
    axes.xaxis.set_minor_formatter(Plain())
    axes.grid(color="0.92")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(content, format="png")
    return content.getvalue()
