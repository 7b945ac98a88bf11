"""Data-free distillation from teachers without BatchNorm: what the plan chooses, and ablations.

    python benchmarks/without_batchnorm.py OUT --train SPEC --test SPEC [--minutes M] [--seeds 0]
        [--lenet WEIGHTS] [--only vit,groupnorm,lenet5] [--ways plan,logits,...]

Trains a small vision transformer and a GroupNorm network (networks.py) on --train, --lesson minutes
each, and distils both, and a LeNet-5 with WEIGHTS where they are given, without any data: as the
plan says; with its drawings not evolving; with drawings of scenes instead of strokes; with gradient
steps on pixels; by the teacher's logits alone; by its labels alone. Rows that are done are kept;
OUT is for one choice of images and minutes.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import begun_with, command
from safetensors.torch import save_file

from synthkd.core.images import ImageSpec, to_float
from synthkd.data.sources import load_images
from synthkd.schedules import one_cycle

sys.path.insert(0, str(Path(__file__).parent))
import networks

MEAN, STD = 0.1307, 0.3081
SIZE = 28
WAYS: dict[str, tuple[str, ...]] = {
    "plan": (),
    "not evolving": ("--procedural.evolve", "0"),
    "scenes": ("--procedural.kinds", "shaders,leaves,spectrum,polygons,fractals"),
    "pixels": ("--generator", "pixels"),
    "logits": ("--teacher-access", "logits"),
    "labels": ("--teacher-access", "labels"),
}


def taught(name: str, path: str, minutes: float, out: Path) -> None:
    """Trains a network of `networks` with labels: AdamW, one cycle, shifts of two pixels."""
    torch.manual_seed(0)
    spec = ImageSpec(1, SIZE, SIZE, (MEAN,), (STD,))
    data = load_images(path, spec, classes=None, labelled=True, trust_code=True)
    assert data.labels is not None
    network = getattr(networks, name)()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    rng = torch.Generator().manual_seed(1)
    started = time.perf_counter()
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        chosen = torch.randint(len(data.labels), (128,), generator=rng)
        images = (to_float(data.pixels[chosen]) - MEAN) / STD
        x, y = (int(n) for n in torch.randint(5, (2,), generator=rng))
        images = F.pad(images, [2] * 4, value=-MEAN / STD)[:, :, y : y + SIZE, x : x + SIZE]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * one_cycle(share)
        loss = F.cross_entropy(network(images), data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    part = out.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part)
    part.replace(out)


def main() -> None:
    """Makes the rows that are not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--lesson", type=float, default=2)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--lenet")
    parser.add_argument("--only", default="vit,groupnorm,lenet5", help="the teachers")
    parser.add_argument("--ways", default=",".join(WAYS))
    given = parser.parse_args()
    only, ways = given.only.split(","), given.ways.split(",")
    if unknown := [way for way in ways if way not in WAYS]:
        parser.error(f"--ways: no {unknown[0]!r}: {', '.join(WAYS)}")
    keys = ("train", "test", "minutes", "lesson", "lenet")
    begun_with(given.out / "begun.json", {key: getattr(given, key) for key in keys})
    contract = [f"--teacher-mean={MEAN}", f"--teacher-std={STD}", "--channels=1"]
    code = Path(__file__).with_name("networks.py")
    teachers: dict[str, list[str]] = {}
    for name in ("vit", "groupnorm"):
        if name not in only:
            continue
        weights = given.out / f"{name}.safetensors"
        if not weights.exists():
            taught(name, given.train, given.lesson, weights)
        teachers[name] = [
            "--teacher", f"{code}:{name}", "--teacher-weights", str(weights), "--trust-code",
            "--image-size", str(SIZE), *contract, "--student", "resnet8-w8",
        ]  # fmt: skip
    if given.lenet and "lenet5" in only:
        teachers["lenet5"] = [
            "--teacher", "lenet5", "--teacher-weights", given.lenet, "--trust-code",
            "--image-size", "32", *contract, "--student", "lenet5-half",
        ]  # fmt: skip
    seeds = given.seeds.split(",")
    print("| teacher | way | n | student, % | of the teacher's, % | agreement, % | queries |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, flags in teachers.items():
        for way in ways:
            found = []
            for seed in seeds:
                run = given.out / f"{name}-{way.replace(' ', '-')}-s{seed}"
                if not (run / "summary.json").exists():
                    shutil.rmtree(run, ignore_errors=True)
                    command(
                        "distill", *flags, *WAYS[way], "--seed", seed, "--minutes", given.minutes,
                        "--val-data", given.test, "--quiet", "--out", run,
                    )  # fmt: skip
                found.append(json.loads((run / "summary.json").read_text()))
            scores = [100 * r["student_accuracy"] for r in found]
            sd = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            mean = statistics.fmean(scores)
            whole = 100 * found[0]["teacher_accuracy"]
            alike = statistics.fmean(100 * r["agreement"] for r in found)
            asked = statistics.fmean(r["teacher_queries"] for r in found)
            print(
                f"| {name} ({whole:.2f}) | {way} | {len(found)} | {mean:.2f}{sd} "
                f"| {100 * mean / whole:.1f} | {alike:.2f} | {asked:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
