"""What a checkpoint costs with a full replay memory: `python benchmarks/checkpoint.py`.

    python benchmarks/checkpoint.py [--against CHECKOUT] [--checkpoints N]

Fills a memory with noise of a size, then N times adds a twentieth as many new images and saves a
checkpoint; a process of its own, with one thread, for every size. `--against` does the same with a
checkout of version 0.1.0, alternately. The folder is a temporary one of the current folder (give
another by TMPDIR). Prints a Markdown table:

    first s     the first checkpoint, of everything
    later s     the mean and standard deviation of the others, read back as always
    written MB  by one of the others, 10^6 bytes, mean and the most
    kept MB     of files, after the last
    peak MB     growth of the resident memory by all of them
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {"20,000 x 1x32x32": (20_000, 1, 32), "20,000 x 3x32x32": (20_000, 3, 32),
         "2,000 x 3x224x224": (2_000, 3, 224)}  # fmt: skip
CLASSES = 10


def peak() -> float:
    """The most resident memory until now, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def one(name: str, checkpoints: int) -> dict[str, Any]:
    """Measures one size with the synthkd that Python imports."""
    import torch

    origin: str | int
    try:
        from synthkd.replay import Memory
        from synthkd.runs.directory import Run

        origin = "pixels"
    except ImportError:  # version 0.1.0
        from synthkd.memory import Memory

        from synthkd.runs import Run

        origin = 1
    torch.set_num_threads(1)
    capacity, channels, size = SIZES[name]
    shape, rng = (channels, size, size), torch.Generator().manual_seed(0)
    memory = Memory(capacity, shape, CLASSES)

    def add(count: int) -> None:
        for start in range(0, count, 500):
            few = min(500, count - start)
            images = torch.randint(256, (few, *shape), dtype=torch.uint8, generator=rng)
            logits = torch.randn(few, CLASSES, generator=rng)
            memory.add(images, torch.zeros(few, dtype=torch.int64), logits, origin)

    add(capacity)
    seconds, written = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints"
        folder.mkdir()
        run, before = Run(Path(place)), peak()
        for number in range(1, checkpoints + 2):
            if number > 1:
                add(capacity // 20)
            known = {(path.name, path.stat().st_ino) for path in folder.iterdir()}
            state = {"memory": memory.state_dict(), "progress": {"round": number}}
            started = time.perf_counter()
            run.checkpoint(state, number)
            seconds.append(time.perf_counter() - started)
            files = [(path.name, path.stat()) for path in folder.iterdir()]
            written.append(sum(s.st_size for n, s in files if (n, s.st_ino) not in known) / 1e6)
        kept = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return {"seconds": seconds, "written": written, "kept": kept, "peak": peak() - before}


def main() -> None:
    """Measures every size, with every version, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--one", choices=SIZES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.checkpoints < 2:
        parser.error("--checkpoints: 2 or more")
    if options.one:
        print(json.dumps(one(options.one, options.checkpoints)))
        return
    versions = {"now": Path(__file__).resolve().parent.parent}
    if options.against:
        versions["before"] = options.against.resolve()
    print("| memory | version | first s | later s | written MB (most) | kept MB | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for name in SIZES:
        for version, checkout in reversed(versions.items()):
            told = subprocess.run(
                [sys.executable, __file__, "--one", name,
                 "--checkpoints", str(options.checkpoints)],
                env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(told.stdout)
            first, *later = found["seconds"]
            bytes_ = found["written"][1:]
            print(
                f"| {name} | {version} | {first:.2f} | {statistics.mean(later):.2f} "
                f"± {statistics.stdev(later):.2f} | {statistics.mean(bytes_):.1f} "
                f"({max(bytes_):.1f}) | {found['kept']:.0f} | {found['peak']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
