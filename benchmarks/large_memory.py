"""What a memory of many large images costs: resident bytes, checkpoints, going on.

    python benchmarks/large_memory.py OUT --images 20000 --side 224

Random images are remembered, 1,000 at a time, with a checkpoint after each; another process then
goes on from the newest one, and every image and answer is compared. Peak is what the system calls
the largest resident set of each process.
"""

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from synthkd.replay import Memory
from synthkd.runs.checkpoints import Checkpoints

CLASSES, AT_ONCE = 1000, 1000


def peak() -> float:
    """GB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def digest(memory: Memory) -> str:
    """Of every image and answer, in the order of the slots."""
    found = hashlib.sha256()
    for part in torch.split(torch.arange(len(memory)), 256):
        some = memory.everything().take(part)
        for tensor in (some.images, some.logits, some.votes):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def fill(out: Path, images: int, side: int) -> None:
    """Remembers and saves; prints a line per checkpoint."""
    rng = torch.Generator().manual_seed(0)
    memory = Memory(images, (3, side, side), CLASSES, out)
    folder = out / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    checkpoints = Checkpoints(folder)
    print(f"start: {peak():.2f} GB resident", flush=True)
    for round_ in range(-(-images // AT_ONCE) + 2):  # the last two replace older images
        for _ in range(AT_ONCE // 100):
            new = torch.randint(256, (100, 3, side, side), dtype=torch.uint8, generator=rng)
            logits = torch.randn(100, CLASSES, generator=rng)
            memory.add(new, logits.argmax(1), logits, "pixels")
        before = {path.name for path in folder.iterdir()}
        began = time.perf_counter()
        path = checkpoints.save({"memory": memory.state_dict()}, round_)
        took = time.perf_counter() - began
        new_bytes = sum(p.stat().st_size for p in folder.iterdir() if p.name not in before)
        began = time.perf_counter()
        for _ in range(20):
            memory.draw(64, rng)
        drawn = (time.perf_counter() - began) / 20
        whole = sum(p.stat().st_size for p in folder.iterdir())
        print(
            f"{len(memory):,} images: checkpoint {new_bytes / 1e6:.0f} MB new in {took:.2f} s "
            f"({whole / 1e9:.2f} GB in {len(list(folder.iterdir()))} files, newest {path.name}), "
            f"a batch of 64 drawn in {1000 * drawn:.1f} ms, peak {peak():.2f} GB", flush=True,
        )  # fmt: skip
    (out / "digest.json").write_text(json.dumps({"digest": digest(memory), "peak": peak()}))


def go_on(out: Path) -> None:
    """Reads the newest checkpoint and compares."""
    began = time.perf_counter()
    found = Checkpoints(out / "checkpoints").newest()
    assert found is not None
    memory = Memory(1, found[1]["memory"]["rows"].columns["images"].shape[1:], CLASSES, out)
    memory.load_state_dict(found[1]["memory"])
    took = time.perf_counter() - began
    same = digest(memory) == json.loads((out / "digest.json").read_text())["digest"]
    print(f"gone on in {took:.1f} s: {len(memory):,} images, equal: {same}, peak {peak():.2f} GB")
    sys.exit(not same)


def main() -> None:
    """Fills here, goes on in another process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--go-on", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.go_on:
        go_on(given.out)
        return
    fill(given.out, given.images, given.side)
    subprocess.run([sys.executable, __file__, str(given.out), "--go-on"], check=True)


if __name__ == "__main__":
    main()
