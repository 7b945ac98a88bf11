"""What a seal costs: the demo with and without `--sealed`, by turns, in processes of their own.

    python benchmarks/seal.py [--turns 5] [--flags "--images-seen 30000"]

Prints seconds of both, the ratio of the medians, and whether the students are equal.
"""

import argparse
import shlex
import time
from functools import partial
from pathlib import Path

from rows import by_turns, command

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
    _, students = by_turns(
        {"plain": partial(seconds, flags=flags),
         "sealed": partial(seconds, flags=[*flags, "--sealed"])},
        given.turns, lambda out: sha256_of(out / "student.safetensors"),
    )  # fmt: skip
    print(f"students: {students} different")


if __name__ == "__main__":
    main()
