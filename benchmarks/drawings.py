"""How fast each kind of drawing is: images per second of CPU time, one thread.

    python benchmarks/drawings.py [kind ...]

The best of three rounds counts.
"""

import sys
import time

import torch

from synthkd.synthesis.drawings import DRAWINGS

SIZES = {(1, 28, 28): 1024, (3, 32, 32): 1024, (3, 96, 96): 128}


def speed(kind: str, shape: tuple[int, int, int], count: int) -> float:
    """Images per second."""
    rng = torch.Generator().manual_seed(0)
    DRAWINGS[kind](count // 4, *shape, rng)
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        DRAWINGS[kind](count, *shape, rng)
        best = min(best, time.process_time() - started)
    return count / best


def main(kinds: list[str]) -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    heads = ["×".join(map(str, shape)) for shape in SIZES]
    print(f"torch {torch.__version__}, 1 thread, images per second")
    print("| kind | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    for kind in kinds or DRAWINGS:
        cells = [f"{speed(kind, shape, count):,.0f}" for shape, count in SIZES.items()]
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
