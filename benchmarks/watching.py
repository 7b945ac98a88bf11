"""What `synthkd watch` costs the run that it watches: the demo watched and not watched, by turns.

    python benchmarks/watching.py [--turns 3] [--flags "--images-seen 100000"]

Each run is a process of its own; the watching one has a terminal (a pty), begins once the run has
its directory, and ends with it. Prints seconds of both, the ratio of the medians, the watching
process's own processor time as a share of all that there was (seconds times cores), and whether
the runs' students and metrics, but for their times, are equal.
"""

import argparse
import json
import os
import pty
import shlex
import statistics
import sys
import threading
import time
from functools import partial
from pathlib import Path

from rows import CODE, SYNTHKD, by_turns, start

from synthkd.core.files import sha256_of
from synthkd.core.findings import EXIT_USELESS

TIMES = ("seconds", "_per_second", "rss", "memory")  # in names of what the clock decides


def watch(run: Path, found: list[float]) -> None:
    """Watches a run in a pty until both end; adds its processor time."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(CODE)
        os.execv(sys.executable, [sys.executable, *SYNTHKD, "watch", str(run)])
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # the other end is closed: it has ended
        pass
    _, status, used = os.wait4(child, 0)
    assert status == 0, status
    found.append(used.ru_utime + used.ru_stime)


def ran(out: Path, flags: list[str], used: list[float] | None) -> float:
    """Wall clock of a whole command."""
    began = time.perf_counter()
    words = [*SYNTHKD, "distill", *flags, "--quiet", "--out", str(out)]
    process = start(words, out.with_name(f"{out.name}.log"))
    beside = None
    if used is not None:
        while not (out / "manifest.json").is_file() and process.poll() is None:
            time.sleep(0.02)
        beside = threading.Thread(target=watch, args=(out, used))
        beside.start()
    if process.wait() not in (0, EXIT_USELESS):
        raise SystemExit(f"exit code {process.returncode}")
    seconds = time.perf_counter() - began
    if beside:
        beside.join()
    return seconds


def told(out: Path) -> str:
    """The run's metrics without what the clock decides."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not any(t in k for t in TIMES)} for line in lines]
    return json.dumps(kept)


def main() -> None:
    """Runs both by turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--flags", default="--images-seen 100000")
    given = parser.parse_args()
    flags = shlex.split(given.flags)
    used: list[float] = []
    found, outcomes = by_turns(
        {"alone": partial(ran, flags=flags, used=None),
         "watched": partial(ran, flags=flags, used=used)},
        given.turns, lambda out: (sha256_of(out / "student.safetensors"), told(out)),
    )  # fmt: skip
    there = statistics.median(found["watched"]) * (os.cpu_count() or 1)
    print(f"watching used {statistics.median(used):.2f} s of processor time, "
          f"{statistics.median(used) / there:.2%} of the processors; "
          f"{outcomes} different students and metrics")  # fmt: skip


if __name__ == "__main__":
    main()
