"""What benchmarks share: rows that are kept, commands, means.

A row is a line of JSON in OUT/rows.jsonl; one that is there is not made again. Commands run in OUT,
by the checkout that this file is in.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from synthkd.core.files import append_line, finite

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
