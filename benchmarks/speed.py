"""What a refined and a learned image cost, lever by lever, by the size of images and the classes.

    python benchmarks/speed.py OUT.json [--sizes 32,96,224] [--classes 10,100,1000] [--teacher NAME]

Teachers have random weights: `resnet20` at 32 pixels, ResNet-18 of torchvision above, or a network
of torchvision that is named (`mobilenet_v2`, for its depthwise convolutions). Levers are switched
on one after the other, from what version 0.2.0 did, its default student included; with other
classes than ten the first and the last row alone. All rows are of one process, one after the
other, so that their ratios mean something. A refined image is timed over a few of its 40 steps, at
all of their sizes; a learned one over a whole short training, drawings alone. Rows that are done
are kept.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchvision import models

import synthkd
from synthkd.core.allocator import keep_freed_memory
from synthkd.core.files import write_json
from synthkd.engine.loop import Lab, rounds
from synthkd.engine.machine import peak_memory_mb
from synthkd.engine.synthesizing import synthesize
from synthkd.networks import build_network, depthwise

STEPS = 8  # of 40
LEARNED = {32: 20_000, 96: 3_000, 224: 1_200}  # images
DEPTHWISE, KEPT = "depthwise in float32", "freed memory kept"  # levers that are no settings
OLD: dict[str, Any] = {
    "stage.refine.synthesis_batch": 256, "training.batch": 256, "pixels.progressive": False,
    "training.repeats": 1, "student.spec": "mobilenet-0.5", DEPTHWISE: False, KEPT: False,
}  # fmt: skip
LEVERS: dict[str, tuple[str, ...]] = {
    "as in 0.2.0": (),
    "batches by size": ("stage.refine.synthesis_batch", "training.batch"),
    "refined small first": ("pixels.progressive",),
    "a student cut out of its teacher": ("student.spec",),
    "each answer four times": ("training.repeats",),
    "depthwise gradients in float32": (DEPTHWISE,),
    "freed memory kept": (KEPT,),
}
SMALL = ("as in 0.2.0", "each answer four times", "freed memory kept")  # what changes at 32 pixels


def teacher_of(size: int, classes: int, folder: Path, named: str = "") -> dict[str, Any]:
    """Settings of a teacher of random weights, which lie in a file of the folder."""
    small = size < 64 and not named
    name = named or ("resnet20" if small else "resnet18")
    path = folder / f"{name}-{classes}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        network = (
            build_network("resnet20", channels=3, size=size, classes=classes) if small
            else models.get_model(name, weights=None, num_classes=classes)
        )  # fmt: skip
        save_file(network.state_dict(), path)
    return {
        "teacher.spec": name if small else f"torchvision:{name}",
        "teacher.weights": str(path), "teacher.classes": classes, "teacher.image_size": size,
        "teacher.channels": 3, "teacher.mean": (0.5,) * 3, "teacher.std": (0.25,) * 3,
        **({"student.spec": "resnet8"} if small else {}),
    }  # fmt: skip


def lab_of(teacher: dict[str, Any], settings: dict[str, Any]) -> Lab:
    """A lab with this teacher, whatever the checks say of its weights."""
    given = {key: value for key, value in settings.items() if key not in (DEPTHWISE, KEPT)}
    recipe = synthkd.Recipe.of({**given, **teacher, "run.anyway": True, "run.threads": 2})
    torch.manual_seed(0)
    lab = synthkd.build(recipe)
    keep_freed_memory(settings.get(KEPT, True))
    return lab


@contextmanager
def depthwise_as_before(settings: dict[str, Any]) -> Iterator[None]:
    """In which depthwise convolutions are computed as autocast has it, where that is asked for."""
    usual = depthwise.gradients
    if not settings.get(DEPTHWISE, True):
        depthwise.gradients = lambda network: nullcontext()
    try:
        yield
    finally:
        depthwise.gradients = usual


def cost(size: int, teacher: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of a refined and a learned image, teacher passes of a learned one, peak memory."""
    teaching = {"run.stages": ("draw", "study"), "budget.images": LEARNED.get(size, 1_200)}
    refining = {
        "run.stages": ("draw", "refine", "study"), "budget.images": 4096,
        "stage.refine.synthesis_steps": STEPS,
    }  # fmt: skip
    made = lab_of(teacher, {**settings, **refining})
    stage = next(s for s in made.stages if s.name == "refine")
    draw = next(s for s in made.stages if s.name == "draw")
    rng = torch.Generator().manual_seed(0)
    drawn = synthesize(made, draw, rng)
    pixels = (255 * drawn.batch.images).byte().cpu()
    made.memory.add(pixels, drawn.batch.labels, made.label(pixels), "procedural")
    synthesize(made, stage.model_copy(update={"synthesis_steps": 1}), rng)  # caches
    began = time.perf_counter()
    found = synthesize(made, stage, rng)
    refined = (time.perf_counter() - began) / len(found.batch.images) * 40 / STEPS
    taught = lab_of(teacher, {**settings, **teaching})
    asked = 0
    for round_ in rounds(taught):
        if round_.stage == "draw":
            asked, before = taught.teacher.queries, dict(taught.seconds)
    seen = taught.progress.images_seen
    spent = sum(taught.seconds[k] - before[k] for k in ("labelling", "student"))
    return {
        "refined": refined, "learned": spent / seen,
        "passes": (taught.teacher.queries - asked) / seen, "peak_mb": peak_memory_mb(made.device),
    }  # fmt: skip


def table(given: argparse.Namespace, folder: Path) -> None:
    """Measures what is not there yet, with teachers in a folder, and prints it."""
    done = json.loads(given.out.read_text()) if given.out.exists() else {}
    print("| pixels | classes | lever | ms a refined image | ms a learned image | teacher passes |")
    print("|---|---|---|---|---|---|")
    for size in map(int, given.sizes.split(",")):
        for classes in map(int, given.classes.split(",")):
            settings = dict(OLD)
            levers = SMALL if size < 64 else tuple(LEVERS)
            for lever in levers:
                for key in LEVERS[lever]:
                    settings.pop(key)
                if classes != 10 and lever not in (levers[0], levers[-1]):
                    continue
                name = f"{given.teacher} {size} {classes} {lever}".lstrip()
                if name not in done:
                    teacher = teacher_of(size, classes, folder, given.teacher)
                    with depthwise_as_before(settings):
                        done[name] = cost(size, teacher, settings)
                    write_json(given.out, done)
                row = done[name]
                print(
                    f"| {size} | {classes} | {lever} | {1000 * row['refined']:.0f} "
                    f"| {1000 * row['learned']:.2f} | {row['passes']:.2f} |", flush=True,
                )  # fmt: skip


def main() -> None:
    """A table, a row for each lever and cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", default="32,96,224")
    parser.add_argument("--classes", default="10,100,1000")
    parser.add_argument("--teacher", default="", help="a network of torchvision")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        table(given, Path(folder))


if __name__ == "__main__":
    main()
