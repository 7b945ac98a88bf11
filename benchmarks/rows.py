"""What benchmarks share: rows that are kept, the numbers they were begun with, commands, means.

A row is a line of JSON in OUT/rows.jsonl; one that is there is not made again. Commands run in OUT,
by the checkout that this file is in.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthkd.core.files import append_line, finite, write_json
from synthkd.core.findings import EXIT_USELESS

Row = dict[str, Any]
CODE = Path(__file__).resolve().parents[1]
SYNTHKD = ("-m", "synthkd")
MARK = "SYNTHKD_BENCHMARK"  # in the environment of what was started, by which it is found


class Rows:
    """The rows in a folder, by name."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "rows.jsonl"
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        self.by_name: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}

    def make(self, name: str, work: Callable[[], Row]) -> Row:
        """A row by name: made, added and printed if it is not there."""
        if name not in self.by_name:
            row = {"name": name, **work()}
            append_line(self.path, json.dumps(finite(row)))
            print(json.dumps(finite(row)), flush=True)
            self.by_name[name] = row
        return self.by_name[name]

    def like(self, beginning: str) -> list[Row]:
        """The rows whose names begin so, in the order in which they were made."""
        return [row for name, row in self.by_name.items() if name.startswith(beginning)]


def begun_with(path: Path, numbers: Mapping[str, object]) -> None:
    """Notes in a file what a benchmark is begun with. Where that was something else it ends: rows
    of different numbers would not be comparable."""
    now = json.loads(json.dumps(numbers, default=str))
    before = json.loads(path.read_text()) if path.is_file() else now
    if before != now:
        told = ", ".join(
            f"{key} {before.get(key)!r}, now {now.get(key)!r}"
            for key in {**before, **now} if before.get(key) != now.get(key)
        )  # fmt: skip
        raise SystemExit(f"{path}: begun with other numbers ({told}): choose another OUT")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def complete(missing: Sequence[str]) -> None:
    """Ends a benchmark with an error that names what has no result, where that is anything."""
    if missing:
        raise SystemExit(f"no result, see their logs: {', '.join(missing)}")


def command(*words: object) -> None:
    """A command of ours, of which no more is shown than its errors; a result of no use is a result.
    Another exit code ends the benchmark."""
    line = [sys.executable, *SYNTHKD, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    done = subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, EXIT_USELESS):
        raise SystemExit(f"{' '.join(line[1:])}: exit code {done.returncode}")


def fresh(out: Path, name: str) -> Path:
    """The place of a run in a folder, without what an interrupted benchmark left there."""
    shutil.rmtree(out / name, ignore_errors=True)
    for log in out.glob(f"{name}.*log"):
        log.unlink()
    return out / name


def start(
    words: Sequence[str], log: Path, *, processes: int = 1, mark: str = ""
) -> subprocess.Popen[bytes]:
    """Python with these words in the folder of its log: so many `processes` of it by torchrun."""
    launcher = (
        "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
    ) if processes > 1 else ()  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1", MARK: mark}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, *words], cwd=log.parent, env=environment, stdout=file,
            stderr=file,
        )  # fmt: skip


def by_turns(
    kinds: Mapping[str, Callable[[Path], float]], turns: int, outcome: Callable[[Path], object]
) -> tuple[dict[str, list[float]], int]:
    """The same work of several kinds by turns, so that what else the machine does falls on all:
    seconds of each, and how many different outcomes there were. A kind is given a place that is
    not there yet. Prints each turn, and the ratio of the medians to that of the first kind."""
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    outcomes = set()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for kind, work in kinds.items():
                out = Path(folder) / f"{kind}-{turn}"
                found[kind].append(work(out))
                outcomes.add(outcome(out))
            told = ", ".join(f"{kind} {times[-1]:.1f} s" for kind, times in found.items())
            print(f"turn {turn}: {told}", flush=True)
    first = statistics.median(next(iter(found.values())))
    for kind, times in found.items():
        ratio = statistics.median(times) / first
        print(f"{kind}: {spread(times, 2)} s, ratio of the medians {ratio:.3f}")
    return found, len(outcomes)


def table_of(path: Path) -> Row:
    """A JSON file that a command should have left; without it the benchmark ends."""
    if not path.is_file():
        raise SystemExit(f"{path} was not written; see {path.parent}.log")
    found: Row = json.loads(path.read_text())
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation (of the sample, where there are two values or more)."""
    if not values:
        return "-"
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{more}"


def difference(values: Sequence[float], others: Sequence[float], digits: int = 2) -> str:
    """Difference of two means ± its standard error, √(s²/n + t²/m)."""
    if min(len(values), len(others)) < 2:
        return "-"
    error = sum(statistics.variance(some) / len(some) for some in (values, others)) ** 0.5
    gap = statistics.fmean(values) - statistics.fmean(others)
    return f"{gap:+.{digits}f} ± {error:.{digits}f}"


def show(titles: str, lines: Iterable[Sequence[object]]) -> None:
    """Prints a Markdown table; `titles` are divided by |."""
    heads = titles.split("|")
    print(f"\n| {' | '.join(head.strip() for head in heads)} |\n{'|---' * len(heads)}|")
    for cells in lines:
        print(f"| {' | '.join(map(str, cells))} |")
