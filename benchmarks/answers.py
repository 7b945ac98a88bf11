"""How fast a frozen teacher answers where no gradient is asked for: float32, bfloat16, folded.

    python benchmarks/answers.py [--rounds N] [--images SPEC] CONFIG...

A CONFIG is a TOML file as for `synthkd distill --config`, with a table [teacher]; without any it is
the embedded demo. The three ways take turns on the same batches of 512, and the best of N rounds
counts; agreement is the share of images on which a way votes as float32 does. Run it on a quiet
machine.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from synthkd.checks.inspection import drawings
from synthkd.core.images import to_float
from synthkd.data.sources import load_images
from synthkd.recipe import TeacherTable, read_toml
from synthkd.specs import load_teacher
from synthkd.teachers.frozen import FrozenTeacher

BATCH = 512


def ways(teacher: FrozenTeacher) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same answers by three roads."""

    def forward_network(low: bool) -> Callable[[Tensor], Tensor]:
        def answer(images: Tensor) -> Tensor:
            teacher.low_precision = low
            return teacher.forward_network(images)

        return answer

    def quick(images: Tensor) -> Tensor:
        teacher.low_precision = True
        return teacher(images)

    return {
        "float32": forward_network(False),
        "bfloat16": forward_network(True),
        "folded bfloat16": quick,
    }


@torch.no_grad()
def main() -> None:
    """Prints a table for every teacher."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", help="images to agree on, in place of drawings")
    given = parser.parse_args()
    print("| teacher | way | images/s | times float32 | same votes, % | what was tested first |")
    print("|---|---|---:|---:|---:|---|")
    tables = [TeacherTable(**read_toml(path)["teacher"]) for path in given.configs]
    for table in tables or [TeacherTable()]:
        teacher = load_teacher(table, trust_code=True)
        rng = torch.Generator().manual_seed(0)
        images = drawings(teacher.spec, 4096, rng)
        if given.images:
            found = load_images(
                given.images, teacher.spec, classes=None, labelled=False, trust_code=True
            )
            images = to_float(found.pixels)
        best: dict[str, float] = {}
        votes: dict[str, Tensor] = {}
        for _ in range(given.rounds):
            for name, answer in ways(teacher).items():
                started = time.perf_counter()
                logits = torch.cat([answer(part) for part in images.split(BATCH)])
                spent = time.perf_counter() - started
                best[name] = min(best.get(name, spent), spent)
                votes[name] = logits.argmax(1)
        for name, spent in best.items():
            alike = float((votes[name] == votes["float32"]).float().mean())
            note = teacher.folded_reason if name.startswith("folded") else ""
            print(
                f"| {teacher.described} | {name} | {len(images) / spent:,.0f} "
                f"| {best['float32'] / spent:.2f} | {100 * alike:.2f} | {note} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
