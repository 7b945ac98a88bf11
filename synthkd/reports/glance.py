"""A run at a glance, from the ends of its files: at once, however long they are."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.reports.record import is_held, is_run, number

WHOLE = 1 << 18  # bytes up to which metrics.jsonl is read whole
TAIL = 1 << 16  # bytes read of its end, where it is longer,
PLACES = 60  # and so many lines from all over it
WINDOW = 60.0  # seconds over which speeds are measured
BARS = "▁▂▃▄▅▆▇█"
CURVES = ("agreement", "loss", "balance", "confidence", "difficulty")


@dataclass(frozen=True)
class Glance:
    """What a run is doing."""

    state: str  # finished, running or interrupted
    stage: str
    round: int
    share: float  # of the run that is done, 0..1
    seconds: float  # worked, over all sittings
    left: float | None  # seconds, by the speed of the last minute
    learned: float | None  # images a second, over the last minute
    synthesized: float | None
    latest: dict[str, float]  # what was measured last
    curves: dict[str, tuple[float, ...]]
    summary: dict[str, Any]


def glance(path: Path) -> Glance:
    """Looks at a run directory; nothing in it is changed. Raises InputError where there is none."""
    if not path.is_dir() or not is_run(path):
        raise InputError(f"{quoted(path)}: this is not a run directory")
    summary: dict[str, Any] = {}
    if files.is_plain(path / "summary.json"):
        summary = files.read_table(path / "summary.json", quoted(path))
    state = "finished" if summary else "running" if is_held(path) else "interrupted"
    sampled, tail = read_ends(path / "metrics.jsonl")
    last = tail[-1] if tail else {}
    window = [line for line in tail if _of(line, "seconds") >= _of(last, "seconds") - WINDOW]
    window = window if len(window) > 1 else tail[-2:]
    latest: dict[str, float] = {}
    for line in tail:
        latest |= {key: v for key, value in line.items() if (v := number(value)) is not None}
    share, speed = _of(last, "share"), _rate(window, "share")
    return Glance(
        state, str(last.get("stage", "")), int(_of(last, "round")), share, _of(last, "seconds"),
        (1 - share) / speed if speed and state == "running" else None,
        _rate(window, "images_seen"), _rate(window, "synthesized"), latest,
        {key: _series(sampled, key) for key in CURVES if key in latest}, summary,
    )  # fmt: skip


def read_ends(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines from all over a file of JSON objects, in their order, and its last ones; the same where
    it is short. What is no whole line is passed over."""
    if not files.is_plain(path):
        return [], []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            found = _parsed(file.read(WHOLE).split(b"\n"))
            return found, found
        sampled = []
        for place in range(PLACES):
            file.seek(place * (size - TAIL) // PLACES)
            if place:
                file.readline(TAIL)  # the rest of a line
            sampled += _parsed([file.readline(TAIL)])
        file.seek(size - TAIL)
        tail = _parsed(file.read(TAIL).split(b"\n")[1:])
    return [*sampled, *tail[-1:]], tail


def _parsed(rows: Sequence[bytes]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def _of(line: dict[str, Any], key: str) -> float:
    return number(line.get(key)) or 0.0


def _rate(window: Sequence[dict[str, Any]], key: str) -> float | None:
    """How fast a total grew, a second."""
    if len(window) < 2:
        return None
    passed = _of(window[-1], "seconds") - _of(window[0], "seconds")
    return (_of(window[-1], key) - _of(window[0], key)) / passed if passed > 0 else None


def _series(sampled: Sequence[dict[str, Any]], key: str) -> tuple[float, ...]:
    return tuple(v for line in sampled if (v := number(line.get(key))) is not None)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A series as one line of bars, from its least to its greatest value.

    >>> sparkline([0.0, 1.0, 2.0, 7.0], width=4), sparkline([3.0, 3.0]), sparkline([])
    ('▁▂▃█', '▁▁', '')
    """
    if not values:
        return ""
    count = min(width, len(values))
    means = []
    for place in range(count):
        part = values[place * len(values) // count : (place + 1) * len(values) // count]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    step = (high - low) / (len(BARS) - 1)
    return "".join(BARS[round((mean - low) / step) if step else 0] for mean in means)
