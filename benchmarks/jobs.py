"""Runs the jobs that people have, and resumes: images of 32 to 224 pixels, 2 to 1,000 classes.

    python benchmarks/jobs.py OUT --data DIR --chest chest.pt [--only hospital-10,fer-30]
    python benchmarks/jobs.py OUT --table

DIR holds third-party teachers and labelled images with readers (`data/` and `larger/`); chest.pt is
made by benchmarks/chest_teacher.py. Each job is a run directory in OUT; one that is finished is not
run again, one that was interrupted goes on. Images with labels only report. `--code` runs another
checkout's synthkd, for a before and an after.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rows import complete

CIFAR = (
    "--image-size 32 --channels 3 --teacher-mean .485,.456,.406 --teacher-std .229,.224,.225 "
    "--augment.flip true --val-data {data}/data/read.py:load:cifar10_test --trust-code "
)
CIFAR_20 = "--teacher resnet20 --teacher-weights {data}/data/resnet20-12fca82f.th " + CIFAR
CIFAR_56 = "--teacher resnet56 --teacher-weights {data}/data/resnet56-4bfd9763.th " + CIFAR
LARGER = "--trust-code --augment.flip true --val-data {data}/larger/read.py:load:"
NETS = "{data}/larger/nets/"
IMAGENET_MEAN = "--teacher-mean .485,.456,.406 --teacher-std .229,.224,.225 "
CIFAR_100 = (
    f"--teacher {NETS}cifar100_micronet.py:make --teacher-weights {NETS}cifar100_micronet.pt "
    "--image-size 32 --channels 3 --teacher-mean .5071,.4867,.4408 --teacher-std .2675,.2565,.2761 "
    f"--student resnet20 {LARGER}cifar100_test:5000:10000 "
)
FER = (
    f"--teacher {NETS}kerasnet.py:make_fer2013_mini_XCEPTION_64 "
    f"--teacher-weights {NETS}fer2013_mini_XCEPTION_64.pt --image-size 64 --channels 1 "
    f"--teacher-mean .5 --teacher-std .5 {LARGER}fer2013_test "
)
VWW = (
    f"--teacher {NETS}vww96.py:make --teacher-weights {NETS}vww96.pt --image-size 96 --channels 3 "
    f"--teacher-mean 0 --teacher-std 1 {LARGER}vww96 "
)
PLANT = (
    f"--teacher {NETS}plant_modified_v3.py:make --teacher-weights {NETS}plant_modified_v3.pth "
    f"--image-size 224 --channels 3 {IMAGENET_MEAN}{LARGER}plantvillage38 "
)
MOBILENET = (
    f"--teacher {NETS}kerasnet.py:make_mobilenet_025_imagenet "
    f"--teacher-weights {NETS}mobilenet_v1_0.25_224.pt --image-size 224 --channels 3 "
    f"--teacher-mean .5 --teacher-std .5 {LARGER}imagenet_nips2017 "
)
CHEST = (
    "--teacher {here}/chest_teacher.py:network --teacher-weights {chest} --image-size 224 "
    "--channels 1 --teacher-mean .5 --teacher-std .25 --trust-code --augment.flip true "
    "--val-data {tested} "
)

LUNGS = (
    "--teacher {here}/others.py:Lungs "
    "--teacher-weights {data}/data/pneumonia_cnn_speedgotfried.pth --image-size 128 --channels 3 "
    f"{IMAGENET_MEAN}--trust-code --val-data {{data}}/data/read.py:load:pneumonia_test "
)


PUBLISHED = ("shaders", "leaves", "fast-5", "fast-10", "nayer", "cmi")  # the best of docs/bench
CURVES = ("cifar10-", "cifar100-")  # jobs whose students are kept on their way: curves.py


def _every(count: int) -> str:
    """So many of 1,000 classes, evenly spaced, for --only."""
    return ",".join(str(k) for k in range(0, 1000, 1000 // count))


JOBS: dict[str, str] = {
    **{f"cifar10-{m}-s{s}": f"{CIFAR_20}--student resnet8 --minutes {m} --seed {s}"
       for m, seeds in ((2, 1), (10, 3), (30, 1), (60, 1), (90, 1)) for s in range(seeds)},
    "cifar10-56-20-60": f"{CIFAR_56}--student resnet20 --minutes 60",
    "cifar10-real-60": f"{CIFAR_20}--student resnet8 --pipeline real --minutes 60 --real-data "
                       "{data}/data/read.py:load:cifar10_train",
    "cifar100-30": f"{CIFAR_100}--minutes 30",
    "cifar100-60": f"{CIFAR_100}--minutes 60",
    "cifar100-real-30": f"{CIFAR_100}--pipeline real --minutes 30 --real-data "
                        "{data}/larger/read.py:load:cifar100_test:0:5000",
    "fer-30": f"{FER}--minutes 30",
    "vww-30": f"{VWW}--minutes 30",
    "lungs-30": f"{LUNGS}--minutes 30",
    "hospital-3": f"{CHEST}--minutes 3",
    "hospital-mobilenet-3": f"{CHEST}--minutes 3 --student timm:mobilenetv3_small_050",
    "hospital-10": f"{CHEST}--minutes 10",
    "hospital-30": f"{CHEST}--minutes 30",
    "plant-30": f"{PLANT}--minutes 30",
    "imagenet-60": f"{MOBILENET}--minutes 60",
    "imagenet-120": f"{MOBILENET}--minutes 120",
    "imagenet-only10-30": f"{MOBILENET}--minutes 30 --only {_every(10)}",
    "imagenet-only100-60": f"{MOBILENET}--minutes 60 --only {_every(100)}",
}  # fmt: skip
# published pipelines beside ours: two minutes of each, then the best for as long as ours
BESIDE: dict[str, str] = {
    **{f"cifar100-{p}-{m}": f"{CIFAR_100}--pipeline {p} --minutes {m}"
       for p in PUBLISHED for m in (2, 30)},
    **{f"fer-{p}-{m}": f"{FER}--student prune:0.4 --pipeline {p} --minutes {m}"
       for p in PUBLISHED for m in (2, 30)},
}  # fmt: skip


def run(name: str, out: Path, places: dict[str, str], code: str) -> bool:
    """One job, from where it was left; whether it has a result."""
    folder = out / name
    if (folder / "summary.json").is_file():
        return True
    words = (JOBS | BESIDE)[name].format(**places).split()
    snapshots = ["--run.snapshots", "12"] if name.startswith(CURVES) else []
    distil(folder, [*words, *snapshots], code)
    print(row(folder), flush=True)
    return (folder / "summary.json").is_file()


def distil(folder: Path, words: list[str], code: str, threads: int = 2) -> int:
    """The run of a run directory, from where it was left; what it says goes into a log beside.
    Returns the exit code."""
    command = ["distill", *words, "--run.threads", str(threads), "--out", str(folder)]
    if (folder / "manifest.json").is_file():
        anyway = ["--anyway"] if "--anyway" in words else []
        command = ["distill", "--resume", str(folder), "--trust-code", *anyway]
    else:  # it may have been killed while it made the directory
        shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": code}
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        return subprocess.run(
            [sys.executable, "-m", "synthkd", *command], env=environment, stdout=log, stderr=log,
            check=False,
        ).returncode  # fmt: skip


def row(folder: Path) -> str:
    """A line of the table, or that there is nothing to say."""
    path = folder / "summary.json"
    if not path.is_file():
        return f"| {folder.name} | no result; see its log |"
    found = json.loads(path.read_text())
    shares = ("student_accuracy", "teacher_accuracy", "constant_accuracy", "agreement",
              "held_out_agreement")  # fmt: skip
    values = [f"{100 * found[key]:.1f}" if found.get(key) is not None else "-" for key in shares]
    if top := found.get("top5"):
        values[0] += f" ({100 * top['student']:.1f} in five)"
        values[3] += f" ({100 * top['agreement']:.1f} in five)"
    counts = [f"{found['images_seen']:,}", f"{found['wall_seconds']:.0f}",
              f"{found['peak_memory_mb']:,.0f}", found["verdict"]]  # fmt: skip
    return f"| {folder.name} | {' | '.join(values + counts)} |"


def places_of(data: str, chest: str) -> dict[str, str]:
    """What stands for the words in braces of a job."""
    return {
        "data": data, "chest": chest, "here": str(Path(__file__).resolve().parent),
        "tested": str(Path(chest).with_suffix(".test.npz")),
    }  # fmt: skip


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="third-party")
    parser.add_argument("--chest", default="chest.pt")
    parser.add_argument("--only", default=",".join(JOBS))
    parser.add_argument("--code", default=str(Path(__file__).resolve().parents[1]))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print("| job | student % | teacher | constant | agreement | held-out | images | s | MB | |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    if given.table:
        for name in (*JOBS, *BESIDE):
            if (given.out / name).is_dir():
                print(row(given.out / name))
        return
    places = places_of(given.data, given.chest)
    names = given.only.split(",")
    complete([name for name in names if not run(name, given.out, places, given.code)])


if __name__ == "__main__":
    main()
