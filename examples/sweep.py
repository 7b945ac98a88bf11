"""A sweep: the same distillation with several settings and seeds, mean and deviation of each.

    python examples/sweep.py

The choice among settings goes by agreement on held-out synthetic images, for which no real image is
needed; the accuracy beside it is only looked at.
"""

from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import mkdtemp

import synthkd


def main(images: int = 20_000, seeds: int = 2, out: str | None = None) -> dict[float, list[float]]:
    """Runs every pair of temperature and seed; returns agreement by temperature."""
    folder = Path(out or mkdtemp())
    agreement: dict[float, list[float]] = {}
    accuracy: dict[float, list[float]] = {}
    for temperature, seed in product((2.0, 8.0), range(seeds)):
        result = synthkd.distill(
            "demo",
            "resnet8-w8",
            images=images,
            seed=seed,
            val_data="demo:unseen",
            out=folder / f"t{temperature:g}-s{seed}",
            settings={"training.temperature": temperature},
        )
        agreement.setdefault(temperature, []).append(result.summary["held_out_agreement"])
        accuracy.setdefault(temperature, []).append(result.summary["student_accuracy"])
    for temperature, found in agreement.items():
        real = accuracy[temperature]
        print(
            f"temperature {temperature:g}: agreement {mean(found):.1%} ± {stdev(found):.1%}, "
            f"accuracy {mean(real):.1%} ± {stdev(real):.1%}, n = {seeds}"
        )
    return agreement


if __name__ == "__main__":
    main()
