"""Which arithmetic and memory layout pay: one generator step and one student step, as ratios.

    python benchmarks/precision.py

For the demo teacher, a LeNet-5 and a ResNet-20, the last two with random weights (the time is the
same). Variants take turns and the best of several rounds counts. Run it on a quiet machine.
"""

import sys
import time
from collections.abc import Callable

import torch

from synthkd.core.images import ImageSpec
from synthkd.engine.loop import Lab, rounds
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage, TeacherTable
from synthkd.specs import load_teacher
from synthkd.teachers.frozen import FrozenTeacher

TERMS = {"one_hot": 0.5, "statistics": 5.0, "prototype": 0.1, "consistency": 0.1}
ROUNDS = 3


def fresh(name: str, channels: int, size: int) -> Classifier:
    """A network with random weights behind a normalisation."""
    spec = ImageSpec(channels, size, size, (0.5,) * channels, (0.5,) * channels)
    return Classifier(build_network(name, channels=channels, size=size, classes=10), spec, 10)


def round_(
    teacher: Callable[[], FrozenTeacher],
    student: Callable[[], Classifier],
    bfloat16: bool,
    last: bool,
) -> dict[str, float]:
    """Milliseconds of a generator step and a student step on 128 images: the best of some
    rounds."""
    stage = Stage(
        name="joint", generator="gan", synthesis_steps=2, fresh=128, student_steps=4, terms=TERMS
    )
    recipe = Recipe.model_validate({"budget": {"images": 128 * 4 * ROUNDS}, "stage": [stage]})
    lab = Lab(recipe, [stage], teacher(), student(), bfloat16=bfloat16)
    if not last:
        for network in (lab.teacher, lab.learner.student, lab.generators["gan"].decoder):
            network.to(memory_format=torch.contiguous_format)
    best = {"synthesis": float("inf"), "student": float("inf")}
    before = dict(lab.seconds)
    for _ in rounds(lab):
        spent = {k: lab.seconds[k] - before[k] for k in before}
        before = dict(lab.seconds)
        best["synthesis"] = min(best["synthesis"], spent["synthesis"] / 2)
        best["student"] = min(best["student"], (spent["student"] + spent["labelling"]) / 4)
    return {k: 1000 * v for k, v in best.items()}


def main() -> None:
    """Prints a table: milliseconds, and how many times faster than float32 in the usual layout."""
    pairs = {
        "demo -> resnet8-w8": (
            lambda: load_teacher(TeacherTable()),
            lambda: fresh("resnet8-w8", 1, 16),
        ),
        "lenet5 -> half": (
            lambda: FrozenTeacher(fresh("lenet5", 1, 32)),
            lambda: fresh("lenet5-half", 1, 32),
        ),
        "resnet20 -> resnet8": (
            lambda: FrozenTeacher(fresh("resnet20", 3, 32)),
            lambda: fresh("resnet8", 3, 32),
        ),
    }
    variants = [(False, False), (False, True), (True, False), (True, True)]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, 128 images, "
        "ms per step (times faster)"
    )
    for name, (teacher, student) in pairs.items():
        results: dict[tuple[bool, bool], dict[str, float]] = {}
        for variant in variants:
            results[variant] = round_(teacher, student, *variant)
        base = results[variants[0]]
        for (bfloat16, last), found in results.items():
            layout = "channels_last" if last else "NCHW"
            kind = f"{'bfloat16' if bfloat16 else 'float32':8} {layout:13}"
            cells = "  ".join(f"{k} {v:7.1f} (x{base[k] / v:.2f})" for k, v in found.items())
            print(f"{name:20} {kind} {cells}", flush=True)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
