"""What a way of storing 100,000 small images costs: `python benchmarks/storage.py [DATA_PATH]`.

Each way runs in a process of its own with one thread and writes into a temporary folder of the
current one (give another by TMPDIR). Images are smooth noise, or those of DATA_PATH (any data path
of synthkd, trusted) repeated. Prints a Markdown table:

    write s     until the call returns (for PNG the system may still be writing)
    CPU s       of it, the processor's time (does not count waiting, nor other jobs)
    flush s     os.sync() after it: what the system still had to write
    read s      CPU time for every image into one uint8 tensor, from the system's cache; shards
                with their SHA-256 compared
    gather ms   256 random images as uint8, median of 50
    disk MB     blocks taken, 10^6 bytes
    fsyncs      calls of os.fsync
    peak MB     growth of the resident memory while writing, beyond imports and one batch of images
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from synthkd.core.images import ImageSpec
from synthkd.data import store
from synthkd.data.sources import load_images
from synthkd.engine.machine import peak_memory_mb

CLASSES, BATCH = 10, 500
WAYS = {
    "PNG, an fsync each": "png-synced",
    "PNG": "png",
    "npy shards": "npy",
    "npy shards + PNG": "both",
}


def images(count: int, size: int, path: str) -> Iterator[Tensor]:
    """Batches of uint8 images [B, 3, H, W]."""
    if path:
        spec = ImageSpec(3, size, size, (0.0,) * 3, (1.0,) * 3)
        real = load_images(path, spec, classes=None, labelled=False, trust_code=True).pixels
        for first in range(0, count, BATCH):
            yield real[torch.arange(first, min(first + BATCH, count)) % len(real)]
        return
    rng = torch.Generator().manual_seed(0)
    for first in range(0, count, BATCH):
        batch = min(BATCH, count - first)
        coarse = torch.rand(batch, 3, 6, 6, generator=rng)
        smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        noisy = smooth + 0.02 * torch.randn(smooth.shape, generator=rng)
        yield noisy.mul(255).clamp(0, 255).to(torch.uint8)


def peak() -> float:
    """The largest resident memory so far, in MB."""
    return peak_memory_mb(torch.device("cpu"))


def measure(way: str, count: int, size: int, path: str, out: Path) -> dict[str, float]:
    """One row of the table."""
    fsyncs, real_fsync = 0, os.fsync

    def counted(handle: int) -> None:
        nonlocal fsyncs
        fsyncs += 1
        real_fsync(handle)

    os.fsync = counted
    spec = ImageSpec(3, size, size, (0.0,) * 3, (1.0,) * 3)
    rng = torch.Generator().manual_seed(1)
    batches = images(count, size, path)
    waiting = next(batches)
    before, spent, worked = peak(), 0.0, 0.0

    def rest() -> Iterator[Tensor]:
        yield waiting
        yield from batches

    if way.startswith("png"):
        folders = [out / str(label) for label in range(CLASSES)]
        for folder in folders:
            folder.mkdir(parents=True)
        row = 0
        for pixels in rest():
            start, work = time.perf_counter(), time.process_time()
            for image in pixels.permute(0, 2, 3, 1).numpy():
                with (folders[row % CLASSES] / f"{row:08d}.png").open("wb") as file:
                    Image.fromarray(image).save(file, format="PNG", compress_level=1)
                    if way == "png-synced":
                        file.flush()
                        os.fsync(file.fileno())
                row += 1
            spent += time.perf_counter() - start
            worked += time.process_time() - work
    else:
        writer = store.Writer(out, spec, CLASSES, folders=way == "both")
        for pixels in rest():
            labels = (writer.count + torch.arange(len(pixels))) % CLASSES
            logits = torch.randn(len(pixels), CLASSES, generator=rng)
            start, work = time.perf_counter(), time.process_time()
            writer.add(pixels, labels, logits)
            spent += time.perf_counter() - start
            worked += time.process_time() - work
        start, work = time.perf_counter(), time.process_time()
        writer.close({})
        spent += time.perf_counter() - start
        worked += time.process_time() - work
    grown = peak() - before
    start = time.perf_counter()
    os.sync()
    flushed = time.perf_counter() - start
    disk = sum(p.lstat().st_blocks * 512 for p in out.rglob("*")) / 1e6
    rows = [torch.randint(count, (256,), generator=rng) for _ in range(50)]
    gathers = []
    work = time.process_time()
    if way.startswith("png"):
        folder = ImageFolder(out)
        result = np.empty((count, size, size, 3), dtype=np.uint8)
        for row in range(count):
            result[row] = np.asarray(folder[row][0])
        read = time.process_time() - work
        for chosen in rows[:5]:
            start = time.perf_counter()
            np.stack([np.asarray(folder[row][0]) for row in chosen.tolist()])
            gathers.append(time.perf_counter() - start)
    else:
        opened = store.open_store(out, verify=True)
        assert len(opened.pixels) == count
        read = time.process_time() - work
        for chosen in rows:
            start = time.perf_counter()
            opened.gather(chosen)
            gathers.append(time.perf_counter() - start)
    return {
        "images": count,
        "write s": spent,
        "CPU s": worked,
        "flush s": flushed,
        "read s": read,
        "gather ms": 1000 * statistics.median(gathers),
        "disk MB": disk,
        "fsyncs": fsyncs,
        "peak MB": grown,
    }


def main() -> None:
    """Measures every way and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="", help="images to repeat (default: noise)")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--synced-count", type=int, default=2_000, help="for an fsync per image")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--way", choices=sorted(WAYS.values()), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        torch.set_num_threads(1)
        row = measure(options.way, options.count, options.size, options.data, options.out)
        print(json.dumps(row))
        return
    head: list[str] = []
    for title, way in WAYS.items():
        count = options.synced_count if way == "png-synced" else options.count
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
            command = [sys.executable, __file__, *([options.data] if options.data else [])]
            command += ["--count", str(count), "--size", str(options.size)]
            command += ["--way", way, "--out", f"{folder}/set"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout)
        if not head:
            head = list(row)
            print("| way | " + " | ".join(head) + " |\n|---" + "|---:" * len(head) + "|")
        cells = [
            f"{row[k]:,.0f}" if row[k] >= 100 or k == "fsyncs" else f"{row[k]:.2g}" for k in head
        ]
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
