"""What a seal costs: the demo with and without `--sealed`, by turns, in processes of their own.

    python benchmarks/seal.py [--turns 5] [--flags "--images-seen 30000"]

Prints seconds of both, the ratio of the medians, and whether the students are equal.
"""

import argparse
import shlex
import statistics
import tempfile
import time
from pathlib import Path

from rows import command, spread

from synthkd.core.files import sha256_of


def seconds(out: Path, flags: list[str]) -> float:
    """Wall clock of a whole command."""
    began = time.perf_counter()
    command("distill", *flags, "--quiet", "--out", out)
    return time.perf_counter() - began


def main() -> None:
    """Runs both by turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--flags", default="--images-seen 30000")
    given = parser.parse_args()
    flags = shlex.split(given.flags)
    found: dict[str, list[float]] = {"plain": [], "sealed": []}
    students = set()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns):
            for kind, more in (("plain", []), ("sealed", ["--sealed"])):
                out = Path(folder) / f"{kind}-{turn}"
                found[kind].append(seconds(out, [*flags, *more]))
                students.add(sha256_of(out / "student.safetensors"))
            print(f"turn {turn}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in found.items()),
                  flush=True)  # fmt: skip
    ratio = statistics.median(found["sealed"]) / statistics.median(found["plain"])
    for kind, times in found.items():
        print(f"{kind}: {spread(times, 2)} s")
    print(f"ratio of the medians {ratio:.3f}; students: {len(students)} different")


if __name__ == "__main__":
    main()
