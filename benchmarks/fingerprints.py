"""Whether a change of the code changed what it makes: SHA-256 of students, bit for bit.

    python benchmarks/fingerprints.py OUT [--only NAME,NAME] [--against FILE.json]

Eleven short jobs on the embedded teacher, each a process of its own with one thread, as a user
would start it: the main pipeline with three seeds, five published ones, a hybrid of real and
synthetic images, one from a data set on disk, one that is stopped and resumed. Writes
OUT/fingerprints.json; what OUT has already is not run again. With `--against` it says which
differ, and exits with 1 if any does. The sums depend on the machine and on torch: compare two
versions of the code on one.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open

SMALL = "--stage.{}.synthesis_steps 2 --stage.{}.synthesis_batch 64"
JOBS = {
    "demo-0": "--images-seen 20000 --seed 0",
    "demo-1": "--images-seen 20000 --seed 1",
    "demo-2": "--images-seen 20000 --seed 2",
    "gan": "--pipeline gan --images-seen 6000",
    "fast-5": "--pipeline fast-5 --images-seen 6000 --stage.joint.student_steps 10",
    "nayer": "--pipeline nayer --images-seen 6000 --stage.joint.student_steps 10",
    "dfad": "--pipeline dfad --images-seen 6000",
    "diffusion": "--pipeline diffusion --images-seen 6000",
    "hybrid": "--mix-ratio 0.5 --real-data demo:seen --images-seen 10000",
    "synthetic": "--synthetic {out}/data --images-seen 10000",
    "resumed": "--images-seen 20000 --seed 0 --run.checkpoint_seconds 0.01",
}


def synthkd(*arguments: str) -> subprocess.Popen[bytes]:
    """Starts the command of the checkout that Python imports."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "synthkd", *arguments], env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits; a result of no use (3) is a result."""
    if process.wait() not in (0, 3):
        raise SystemExit(f"{' '.join(map(str, process.args))}: exit code {process.returncode}")


def fingerprint(path: Path) -> str:
    """SHA-256 over names and bytes of all tensors of a safetensors file, whatever its header."""
    found = hashlib.sha256()
    with safe_open(path, "pt") as tensors:
        for name in sorted(tensors.keys()):
            found.update(name.encode())
            found.update(tensors.get_tensor(name).contiguous().numpy().tobytes())
    return found.hexdigest()


def data_set(out: Path) -> None:
    """800 images by the main pipeline."""
    if not (out / "data" / "manifest.json").is_file():
        shutil.rmtree(out / "data", ignore_errors=True)
        finish(synthkd(
            "generate", "--count", "800", "--images-seen", "400", "--run.threads", "1", "--quiet",
            "--out", str(out / "data"),
        ))  # fmt: skip


def interrupted(run: Path, arguments: list[str]) -> None:
    """Stops a run after its third round, as Ctrl-C does, and goes on with it."""
    process = synthkd(*arguments)
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 3:
        if process.poll() is not None:
            raise SystemExit("the run ended before it could be stopped")
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait()
    finish(synthkd("distill", "--resume", str(run), "--quiet"))


def student_of(name: str, out: Path) -> str:
    """The fingerprint of one job's student."""
    run = out / name
    flags = JOBS[name].format(out=out).split()
    arguments = [
        "distill", *flags, "--run.threads", "1", "--val-data", "none", "--quiet", "--out", str(run)
    ]  # fmt: skip
    shutil.rmtree(run, ignore_errors=True)  # it was interrupted
    if name == "synthetic":
        data_set(out)
    if name == "resumed":
        interrupted(run, arguments)
    else:
        finish(synthkd(*arguments))
    return fingerprint(run / "student.safetensors")


def main() -> None:
    """Runs what is missing and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(JOBS))
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "fingerprints.json"
    found = json.loads(table.read_text()) if table.is_file() else {}
    for name in options.only.split(","):
        if name not in found:
            started = time.perf_counter()
            found[name] = student_of(name, options.out)
            table.write_text(json.dumps(found, indent=1) + "\n")
            print(
                f"{name:10} {found[name][:16]} {time.perf_counter() - started:6.1f} s", flush=True
            )
    before = json.loads(options.against.read_text()) if options.against else {}
    differ = [name for name, value in found.items() if before.get(name, value) != value]
    print(f"{len(found)} students" + (f"; differ: {', '.join(differ)}" if before else ""))
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
