"""The images of `model-compression-toolkit` (Sony) beside ours: equal seconds, equal students.

    python benchmarks/peer_images.py OUT --teacher FLAGS --student FLAGS --minutes 5 --learn 5

Its data generation makes images from any network with BatchNorm, to calibrate integers by; it knows
no classes and no student. Both makers get `--minutes` on the same teacher, with their own defaults;
a student then learns from each set of images alone, `--learn` minutes, by the teacher's answers to
them. FLAGS are those of `synthkd distill`: what describes the teacher, and the student with the
validation images.

It needs an environment with both packages (`pip install model-compression-toolkit==2.6.1`). What is
done is not done again; OUT is for one choice of everything but the seeds.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import begun_with, command
from torch import nn

from synthkd.core.files import write_json

TRIED, STEPS = 64, 10  # images and steps of the trial that tells how many images fit
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the toolkit's images are scaled by


def peer(
    teacher: nn.Module, size: int, seconds: float, seed: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Images [N, C, H, W] in 0..1 that the toolkit makes in so many seconds, its defaults
    otherwise, and what there is to tell."""
    import model_compression_toolkit as mct

    generation = mct.data_generation
    torch.manual_seed(seed)
    steps = generation.get_pytorch_data_generation_config().n_iter

    def make(count: int, steps: int) -> tuple[torch.Tensor, float]:
        config = generation.get_pytorch_data_generation_config(
            n_iter=steps, data_gen_batch_size=min(count, 128)
        )
        began = time.perf_counter()
        made = generation.pytorch_data_generation_experimental(
            model=teacher, n_images=count, output_image_size=size, data_generation_config=config
        )
        images = torch.cat([image.reshape(-1, *image.shape[-3:]).cpu() for image in made])
        return images.float(), time.perf_counter() - began

    make(TRIED, 2)
    _, took = make(TRIED, STEPS)
    count = max(TRIED, int(seconds / (took / TRIED / STEPS * steps)))
    images, took = make(count, steps)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    images = (images * std + mean).clamp(0, 1)
    return images, {"images": len(images), "steps": steps, "seconds": round(took, 1)}


def ours(words: list[str], minutes: float, folder: Path, seed: int) -> dict[str, Any]:
    """A data set of ours in the same time, by its defaults."""
    trial = folder.with_name(folder.name + "-trial")
    took = {}
    for count in (256, 512):
        shutil.rmtree(f"{trial}-{count}", ignore_errors=True)
        began = time.perf_counter()
        command("generate", *words, "--count", count, "--quiet", "--out", f"{trial}-{count}")
        took[count] = time.perf_counter() - began
    each = (took[512] - took[256]) / 256
    count = int((60 * minutes - took[256]) / each) + 256
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    command("generate", *words, "--count", count, "--seed", seed, "--dataset.folders", "true",
            "--quiet", "--out", folder)  # fmt: skip
    return {"images": count, "seconds": round(time.perf_counter() - began, 1)}


def theirs(words: list[str], minutes: float, path: Path, seed: int) -> dict[str, Any]:
    """What the toolkit makes of the same teacher."""
    from synthkd.recipe import Recipe
    from synthkd.specs import load_teacher

    named = subprocess.run(
        [sys.executable, "-m", "synthkd", "distill", *words, "--dry-run"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    import tomllib

    recipe = Recipe.model_validate(tomllib.loads(named[named.index("[") :]))
    teacher = load_teacher(recipe.teacher, trust_code=True)
    images, told = peer(teacher.classifier.body, teacher.spec.height, 60 * minutes, seed)
    pixels = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(path, x=pixels, y=np.zeros(len(pixels), dtype=np.int64))
    return told


def row(maker: str, seed: int, given: argparse.Namespace) -> str:
    """A line of the table."""
    images = given.out / (f"{maker}-{seed}" + ("" if maker == "synthkd" else ".npz"))
    told = given.out / f"{maker}-{seed}.json"
    if not told.exists():
        make = ours if maker == "synthkd" else theirs
        write_json(told, make(given.teacher.split(), given.minutes, images, seed))
    found = json.loads(told.read_text())
    student = given.out / f"{maker}-{seed}-student"
    if not (student / "summary.json").exists():
        shutil.rmtree(student, ignore_errors=True)
        command("distill", *given.teacher.split(), *given.student.split(), "--pipeline", "real",
                "--real-data", images, "--minutes", given.learn, "--seed", seed, "--quiet",
                "--out", student)  # fmt: skip
    summary = json.loads((student / "summary.json").read_text())
    return (
        f"| {maker} | {seed} | {found['images']:,} | {found['seconds']:.0f} "
        f"| {100 * summary['student_accuracy']:.2f} | {100 * summary['agreement']:.2f} |"
    )


def main() -> None:
    """One row each for both makers and every seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", default="", help="flags that describe the teacher")
    parser.add_argument("--student", default="", help="flags of student and validation images")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--learn", type=float, default=5)
    parser.add_argument("--seeds", default="0")
    given = parser.parse_args()
    keys = ("teacher", "student", "minutes", "learn")
    begun_with(given.out / "begun.json", {key: getattr(given, key) for key in keys})
    print("| maker | seed | images | seconds | student % | agreement % |")
    print("|---|---|---|---|---|---|")
    for seed in given.seeds.split(","):
        for maker in ("synthkd", "model-compression-toolkit"):
            print(row(maker, int(seed), given), flush=True)


if __name__ == "__main__":
    main()
