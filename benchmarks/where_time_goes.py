"""Where the time of a run goes, and what part of the machine's arithmetic it uses.

    python benchmarks/where_time_goes.py MINUTES [CONFIG.toml] [KEY=VALUE ...]

Runs a recipe (`pipeline=gan`, `teacher.spec=demo`, `student.spec=resnet8`, …) for so long (nothing
is written), counts the
multiplications and additions of the three kinds of work on one batch each, and compares with what
matrix products of this machine reach. "The rest" is memory, augmentation's bookkeeping and records.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from synthkd import recipe as recipes
from synthkd.engine.build import build
from synthkd.engine.loop import Lab, rounds
from synthkd.synthesis.resolution import mean_area


def operations(work: Any) -> float:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def attainable(seconds: float = 2.0) -> dict[str, float]:
    """GFLOP/s of products of 1024 x 1024 matrices, by arithmetic."""
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(kind)
        a @ a
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            a @ a
            count += 1
        passed = time.perf_counter() - started
        found[str(kind).removeprefix("torch.")] = 2 * 1024**3 * count / passed / 1e9
    return found


def costs(lab: Lab) -> dict[str, float]:
    """Operations per image: the teacher's answer, its gradient to the image, a student's step."""
    images = torch.rand(8, *lab.teacher.spec.shape, device=lab.device)
    assert lab.learner is not None
    student = lab.learner.student

    def gradient() -> None:
        moved = images.clone().requires_grad_()
        lab.teacher.forward_network(moved).sum().backward()

    return {
        "answer": operations(lambda: lab.teacher.forward_network(images)) / 8,
        "gradient": operations(gradient) / 8,
        "step": operations(lambda: student(images).sum().backward()) / 8,
    }


def main(minutes: str, settings: list[str]) -> None:
    """Prints two tables."""
    config = next((Path(setting) for setting in settings if "=" not in setting), None)
    flags: dict[str, Any] = {"budget": {"minutes": minutes}}
    for setting in settings:
        key, given, value = setting.partition("=")
        table, _, leaf = key.rpartition(".")
        if given:
            (flags.setdefault(table, {}) if table else flags)[leaf] = value
    lab = build(recipes.load_recipe(config, flags))
    reach = attainable()
    per_image = costs(lab)
    trained = 0
    started = time.perf_counter()
    lab.limit(60 * float(minutes))
    for round_ in rounds(lab):
        stage = next(s for s in lab.stages if s.name == round_.stage)
        if stage.generator == "pixels":
            trained += stage.synthesis_steps * stage.synthesis_batch
    wall = time.perf_counter() - started
    seconds = lab.seconds | {"the rest": wall - sum(lab.seconds.values())}
    seen, synthesized = lab.progress.images_seen, lab.progress.synthesized
    table = lab.recipe.training
    answered = seen / table.repeats + synthesized
    done = {  # smaller images take their share of the area
        "synthesis": trained * per_image["gradient"] * mean_area(lab.recipe.pixels.scales),
        "labelling": answered * per_image["answer"],
        "student": seen * per_image["step"] * mean_area(table.scales),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {wall:.0f} s")
    print(", ".join(f"{kind} {speed:.0f} GFLOP/s attainable" for kind, speed in reach.items()))
    print(f"{trained:,} image steps of synthesis, {synthesized:,} synthesized, {seen:,} learned")
    print(f"{answered / max(1, seen):.2f} answers of the teacher for a learned image\n")
    print("| part | seconds | share | GFLOP/s |\n|---|---:|---:|---:|")
    for part, spent in seconds.items():
        rate = f"{done[part] / spent / 1e9:.0f}" if done.get(part) and spent else ""
        print(f"| {part} | {spent:.1f} | {spent / wall:.1%} | {rate} |")
    print(f"| all | {wall:.1f} | 100 % | {sum(done.values()) / wall / 1e9:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
