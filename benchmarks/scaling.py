"""Cost and accuracy against the size of images, of the teacher, and the number of classes.

    python benchmarks/scaling.py OUT --train SPEC --test SPEC [--minutes M] [--lesson M] ROW...

A ROW is SIZE:TEACHER:DIGITS, e.g. 64:resnet20:1. The teacher is trained here on --train for
--lesson minutes (one-cycle SGD, labels), beginning from --weights where the shapes fit. DIGITS n
sets n training images side by side in one picture, so that K classes become K^n. Then `synthkd
distill` works for --minutes, once per row, and the student is scored on --test. Rows that are done
are kept: the same call goes on. OUT is for one choice of everything but the rows.
"""

import argparse
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rows import begun_with, command
from safetensors.torch import save_file
from torch import Tensor, nn

from synthkd.core.files import write_json
from synthkd.core.images import ImageSpec, fitted, to_float
from synthkd.data.sources import load_images
from synthkd.engine.machine import fast_bfloat16
from synthkd.images.augment import mirrored
from synthkd.networks import build_network
from synthkd.networks.layout import may_learn_channels_last
from synthkd.networks.modes import plain_means
from synthkd.schedules import one_cycle
from synthkd.specs import read_weights

STATISTICS = 10  # batches, of which a teacher's BatchNorm statistics are means


def joined(pixels: Tensor, labels: Tensor, times: int, classes: int) -> tuple[Tensor, Tensor]:
    """`times` random images side by side, and the number that their labels spell."""
    rng = torch.Generator().manual_seed(0)
    orders = [torch.arange(len(labels))] + [
        torch.randperm(len(labels), generator=rng) for _ in range(times - 1)
    ]
    spelt = sum(labels[order] * classes**i for i, order in enumerate(reversed(orders)))
    assert isinstance(spelt, Tensor)
    return torch.cat([pixels[order] for order in orders], dim=3), spelt


def read(path: str, size: int, times: int) -> tuple[Tensor, Tensor, int]:
    """Images [N, C, size, size], labels [N] and the number of classes."""
    found = load_images(path, None, classes=None, labelled=True, trust_code=True)
    assert found.labels is not None
    classes = int(found.labels.max()) + 1
    pixels, labels = joined(found.pixels, found.labels, times, classes)
    spec = ImageSpec(pixels.shape[1], size, size, (0.5,), (0.5,))
    return fitted(pixels, spec), labels, classes**times


def taught(
    name: str,
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    start: Path | None,
    minutes: float,
    flip: bool,
    mean: float,
    std: float,
) -> nn.Module:
    """A network trained on labels: one-cycle SGD, shifts, mirror images, in bfloat16."""
    torch.manual_seed(0)
    size = pixels.shape[2]
    network = build_network(name, channels=pixels.shape[1], size=size, classes=classes)
    peak = 0.1
    if start is not None:
        own = network.state_dict()
        fit = {k: v for k, v in read_weights(start).items() if k in own and v.shape == own[k].shape}
        network.load_state_dict(fit, strict=False)
        peak = 0.02
    optimizer = torch.optim.SGD(
        network.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return trained(network, optimizer, pixels, labels, minutes, flip=flip, mean=mean, std=std)


def trained(
    network: nn.Module, optimizer: torch.optim.Optimizer, pixels: Tensor, labels: Tensor,
    minutes: float, *, flip: bool, mean: float, std: float,
) -> nn.Module:  # fmt: skip
    """Trains a network on uint8 images [N, C, S, S] and labels [N]: one cycle of the optimizer's
    rate, shifts by an eighth, mirror images, in bfloat16 where the machine is fast at it. Its
    BatchNorm statistics are those of some batches in the end: running ones lag behind where time
    allows few steps."""
    size, (group,) = pixels.shape[2], optimizer.param_groups
    last = may_learn_channels_last(network)
    form = torch.channels_last if last else torch.contiguous_format
    peak, network = group["lr"], network.to(memory_format=form).train()
    rng = torch.Generator().manual_seed(1)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16(torch.device("cpu")))

    def answers() -> tuple[Tensor, Tensor]:
        """Logits of a batch, and its labels."""
        chosen = torch.randint(len(labels), (128,), generator=rng)
        images = (to_float(pixels[chosen]) - mean) / std
        images = mirrored(images, rng) if flip else images
        room = size // 8
        x, y = (int(n) for n in torch.randint(2 * room + 1, (2,), generator=rng))
        images = F.pad(images, [room] * 4, value=-mean / std)[:, :, y : y + size, x : x + size]
        with precision:
            logits = network(images.contiguous(memory_format=form))
        if isinstance(logits, tuple):  # beside it what other heads say
            logits = logits[0]
        return logits.float(), labels[chosen]

    started = time.perf_counter()
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        group["lr"] = peak * one_cycle(share)
        logits, truth = answers()
        optimizer.zero_grad()
        F.cross_entropy(logits, truth, label_smoothing=0.05).backward()
        optimizer.step()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad(), plain_means(norms):
        for _ in range(STATISTICS if norms else 0):
            answers()
    return network.eval()


def main() -> None:
    """Makes every row that is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--lesson", type=float, default=3)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--flip", action="store_true")
    given = parser.parse_args()
    numbers = {key: value for key, value in vars(given).items() if key not in ("out", "rows")}
    begun_with(given.out / "begun.json", numbers)
    for row in given.rows:
        record = given.out / f"{row.replace(':', '-')}.json"
        if not record.exists():
            write_json(record, measured(row, given))
    print("| row | classes | teacher, % | student, % | agreement, % | images seen | synthesized |"
          " ms per refined image | ms per learned image | peak MB |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in given.rows:
        r = json.loads((given.out / f"{row.replace(':', '-')}.json").read_text())
        print(
            f"| {row} | {r['classes']:,} | {100 * r['teacher_accuracy']:.2f} "
            f"| {100 * r['student_accuracy']:.2f} | {100 * r['agreement']:.2f} "
            f"| {r['images_seen']:,} | {r['images_synthesized']:,} "
            f"| {r['ms_per_refined']:.2f} | {r['ms_per_learned']:.2f} "
            f"| {r['peak_memory_mb']:,.0f} |"
        )


def measured(row: str, given: argparse.Namespace) -> dict[str, object]:
    """FrozenTeacher, data and one run of `synthkd distill` for a row."""
    size, name, times = row.split(":")
    tag = row.replace(":", "-")
    place = given.out
    weights, test = place / f"{tag}.safetensors", place / f"test-{size}-{times}.npz"
    x, y, classes = read(given.test, int(size), int(times))
    channels = x.shape[1]
    mean, std = (round(float(v), 4) for v in (to_float(x).mean(), to_float(x).std()))
    np.savez(test, x=x.permute(0, 2, 3, 1).numpy(), y=y.numpy())
    if not weights.exists():
        x, y, _ = read(given.train, int(size), int(times))
        network = taught(name, x, y, classes, given.weights, given.lesson, given.flip, mean, std)
        part = weights.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part)
        part.replace(weights)
    del x, y
    run = place / tag
    shutil.rmtree(run, ignore_errors=True)
    command(
        "distill", "--teacher", name, "--teacher-weights", weights, "--image-size", size,
        "--channels", channels, "--classes", classes, f"--teacher-mean={mean}",
        f"--teacher-std={std}", "--student", given.student, "--val-data", test, "--minutes",
        given.minutes, "--augment.flip", str(given.flip).lower(), "--out", run,
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    return summary | {
        "classes": classes,
        "row": row,
        "ms_per_refined": milliseconds(run, "refine", "synthesized"),
        "ms_per_learned": milliseconds(run, "study", "images_seen"),
    }


def milliseconds(run: Path, stage: str, what: str) -> float:
    """What an image cost in a stage, by the clock of its rounds."""
    laps = [{"seconds": 0.0, what: 0}]
    laps += [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = [(b["seconds"] - a["seconds"], b[what] - a[what])
             for a, b in pairwise(laps) if b.get("stage") == stage]  # fmt: skip
    return 1e3 * sum(s for s, _ in spent) / max(1, sum(n for _, n in spent))


if __name__ == "__main__":
    main()
