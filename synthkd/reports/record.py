"""What a run directory says of a run: read without torch, and without trusting a byte of it.

A run may be finished, going on, interrupted or damaged: what cannot be read is missing here, and
`problems` says why.
"""

import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from synthkd.core import files
from synthkd.core.errors import InputError, plain, quoted
from synthkd.recipe.toml import plain_toml

POINTS = 300  # of a curve, at most twice as many
MOST_CURVES = 64
MOST_SPANS = 200  # stages one after the other, in a run of many cycles
LINE_BYTES = 1 << 16  # of metrics.jsonl; a longer line is none of ours
RECIPE_BYTES = 1 << 20
PICTURE_BYTES = 32 << 20
PICTURE_PIXELS = 40_000_000
MOST_PICTURES = 40
MOMENTS = ("first", "middle", "latest")  # of a stage, of which a sheet is drawn
CHOSEN = ("memory", "disagreed", "hardest")  # sheets of a whole run
LARGEST = 1e30  # of a number; with larger ones nothing can be drawn
SHARES = (
    "agreement",
    "balance",
    "confidence",
    "target_class_rate",
    "difficulty",
)  # which lie in 0..1


@dataclass(frozen=True)
class Curve:
    """A measured value against the minutes that a run had worked."""

    minutes: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Span:
    """A stage, and when it began and ended, in minutes."""

    stage: str
    start: float
    end: float


@dataclass(frozen=True)
class Picture:
    """A contact sheet of a run, and what was known of its images when it was drawn."""

    name: str
    content: bytes  # PNG
    width: int
    height: int
    caption: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run, as its files tell it. What is missing is empty."""

    path: Path
    state: str  # finished, running, interrupted or unreadable
    manifest: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # of synthkd evaluate, if kept here
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the recipe says
    rounds: int = 0
    latest: Mapping[str, Any] = field(default_factory=dict)  # the last line of metrics.jsonl
    curves: Mapping[str, Curve] = field(default_factory=dict)
    spans: Sequence[Span] = ()
    pictures: Sequence[Picture] = ()
    problems: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.absolute().name


class Thinned:
    """A series of any length in at most `2 * points` means of neighbours, in constant memory.

    >>> series = Thinned(points=2)
    >>> for x in range(8):
    ...     series.add(float(x), 10.0 * x)
    >>> series.curve().minutes, series.curve().values
    ((0.5, 2.5, 4.5, 6.5), (5.0, 25.0, 45.0, 65.0))
    """

    def __init__(self, points: int = POINTS) -> None:
        self._points, self._width = points, 1
        self._sums: list[tuple[float, float, int]] = []

    def add(self, x: float, y: float) -> None:
        """One more value, in the order of x."""
        if self._sums and self._sums[-1][2] < self._width:
            a, b, n = self._sums[-1]
            self._sums[-1] = (a + x, b + y, n + 1)
            return
        if len(self._sums) == 2 * self._points:
            pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
            self._sums = [(a + c, b + d, n + m) for (a, b, n), (c, d, m) in pairs]
            self._width *= 2
        self._sums.append((x, y, 1))

    def curve(self) -> Curve:
        """The means."""
        return Curve(tuple(a / n for a, _, n in self._sums), tuple(b / n for _, b, n in self._sums))


def rates(curve: Curve) -> Curve:
    """How fast a total grows: its differences per second, between the points of its curve.

    >>> rates(Curve((0.0, 1.0, 3.0), (0.0, 600.0, 600.0)))
    Curve(minutes=(0.5, 2.0), values=(10.0, 0.0))
    """
    minutes, values = [], []
    points = list(zip(curve.minutes, curve.values, strict=True))
    for (then, before), (now, after) in pairwise(points):
        if now > then:
            minutes.append((then + now) / 2)
            values.append((after - before) / (60 * (now - then)))
    return Curve(tuple(minutes), tuple(values))


def is_run(path: Path) -> bool:
    """Whether this looks like a run directory."""
    return any(files.is_plain(path / name) for name in ("manifest.json", "recipe.toml"))


def read_run(path: Path, *, pictures: bool = True) -> RunRecord:
    """Reads a run directory, whatever its state. Raises InputError where there is none."""
    if not path.is_dir():
        raise InputError(f"{quoted(path)}: there is no such directory")
    if not is_run(path):
        raise InputError(f"{quoted(path)}: this is not a run directory")
    problems: list[str] = []
    manifest = _table(path / "manifest.json", problems)
    finished = os.path.lexists(path / "summary.json")
    summary = _table(path / "summary.json", problems) if finished else {}
    details = _table(path / "details.json", problems) if finished else {}
    evaluation = _table(path / "evaluation" / "evaluation.json", problems)
    state = "finished" if summary else "running" if is_held(path) else "interrupted"
    if not manifest and not summary:
        state = "unreadable"
    recipe = ""
    try:
        recipe = files.read_bytes(path / "recipe.toml", RECIPE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        problems.append(f"recipe.toml cannot be read: {error.strerror}")
    settings: dict[str, Any] = {}
    if files.is_plain(path / "recipe.toml"):
        with suppress(InputError):  # the text is shown as it is
            settings = plain_toml(path / "recipe.toml")
    rounds, latest, curves, spans = _curves(path / "metrics.jsonl", problems)
    return RunRecord(
        path, state, manifest, summary, details, evaluation, recipe, settings, rounds, latest,
        curves, spans,
        tuple(_pictures(path / "samples", [span.stage for span in spans], problems))
        if pictures else (), tuple(problems),
    )  # fmt: skip


def is_held(path: Path) -> bool:
    """Whether a process works in this directory now."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def _table(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object, or nothing and a problem."""
    try:
        return files.read_table(path, quoted(path.name))
    except InputError as error:
        if os.path.lexists(path):
            problems.append(str(error))
        return {}


def lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON objects; how many are none is a problem."""
    if not files.is_plain(path):
        return
    damaged = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES):
                if not line.endswith(b"\n"):  # torn by a crash, being written, or none of ours
                    damaged += len(line) == LINE_BYTES
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict):
                    yield found
                else:
                    damaged += 1
    except OSError as error:
        problems.append(f"{quoted(path.name)} cannot be read: {error.strerror}")
    if damaged:
        problems.append(f"{quoted(path.name)}: {damaged:,} damaged lines were left out")


def number(value: object) -> float | None:
    """A number out of a foreign file; None where it is none, or none that a run measures."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if abs(found) <= LARGEST else None  # of NaN neither


def _curves(
    path: Path, problems: list[str]
) -> tuple[int, dict[str, Any], dict[str, Curve], tuple[Span, ...]]:
    """Rounds, the last line, the curve of everything that was measured, and the stages."""
    series: dict[str, Thinned] = {}
    spans: list[Span] = []
    count, latest, before = 0, dict[str, Any](), 0.0
    for line in lines(path, problems):
        seconds = number(line.get("seconds"))
        if seconds is None or seconds < 0:
            continue
        count, latest, now = count + 1, line, seconds / 60
        stage = plain(str(line.get("stage", "")))[:60]
        if spans and spans[-1].stage == stage:
            spans[-1] = Span(stage, spans[-1].start, now)
        elif len(spans) < MOST_SPANS:
            spans.append(Span(stage, before, now))
        before = now
        for key, value in line.items():
            measured = number(value)
            if measured is None or key in ("round", "seconds", "share"):
                continue
            if key not in series:
                if len(series) == MOST_CURVES or len(key) > 60:
                    continue
                series[key] = Thinned()
            series[key].add(now, measured)
    curves = {plain(key): found.curve() for key, found in series.items()}
    return count, latest, curves, tuple(spans)


def _pictures(folder: Path, stages: Sequence[str], problems: list[str]) -> Iterator[Picture]:
    """The contact sheets: of the stages in their order, then those of the whole run, whatever the
    clock says of the files: a copy gives the same report."""
    if folder.is_symlink() or not folder.is_dir():
        return
    order = [f"{stage}-{moment}" for stage in dict.fromkeys(stages) for moment in MOMENTS]
    places = {name: place for place, name in enumerate([*order, *CHOSEN])}
    found = [path for path in folder.glob("*.png") if files.is_plain(path)]
    found.sort(key=lambda one: (places.get(one.stem, len(places)), one.name))
    for path in found[:MOST_PICTURES]:
        try:
            content = files.read_bytes(path, PICTURE_BYTES)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                if picture.width * picture.height > PICTURE_PIXELS:
                    raise ValueError("too many pixels")
                picture.load()
                size, told = picture.size, picture.info.get("synthkd", "")
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
            problems.append(f"samples/{path.name} cannot be read")
            continue
        caption: Any = {}
        with suppress(ValueError, TypeError, RecursionError):
            caption = json.loads(told)
        yield Picture(
            path.stem, content, *size, caption=caption if isinstance(caption, dict) else {}
        )
