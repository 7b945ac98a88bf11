"""Wrong labels: are they caught, and is the right order of the classes proposed?

    python benchmarks/labels.py [SETTINGS.toml …] [--votes DIR]

Each TOML has a [teacher] and [data] val, as `synthkd evaluate --config` takes them (code is
trusted); without any, the embedded demo on its unseen digits. The teacher votes once; then its
labels are turned into ten wrong ones, and `label_check.check_labels` looks at each, and at the
right ones. A row for each: accuracy as given and by the order proposed, the share of images whose
label is put right by it, seconds. `--votes` keeps the votes.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.data.sources import load_images
from synthkd.evaluation.compare import votes_of
from synthkd.labels.check import check_labels
from synthkd.labels.class_names import known_names
from synthkd.recipe import Recipe, read_toml, validated
from synthkd.specs import load_teacher

Case = tuple[str, Tensor, Tensor, Tensor]  # what was done, votes, wrong labels, right labels


def names_of(classes: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The teacher's names; where it has none, ImageNet's or numbers in Latin."""
    if known_names(names):
        return names
    if classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return tuple(info.index_to_description(k) for k in range(classes))
    tens = " decem viginti triginta quadra quinqua sexa septua octo nona"
    ones = "nullus unus duo tres quattuor quinque sex septem octo novem"
    return tuple(
        f"{tens.split(' ')[k // 10]} {ones.split()[k % 10]}".strip() for k in range(classes)
    )


def cases(votes: Tensor, truth: Tensor, classes: int, names: tuple[str, ...]) -> Iterator[Case]:
    """The ten wrong mappings, as far as there are classes for them."""
    rng = np.random.default_rng(0)
    present = truth.unique()

    def through(name: str, image: Tensor) -> Case:
        return name, votes, image[truth], truth

    yield "as they are", votes, truth, truth
    every = torch.arange(classes)
    if classes > 2:
        yield through("1 too large, turning over", (every + 1) % classes)
        yield through("1 too small, turning over", (every - 1) % classes)
    kept = truth < truth.max()
    yield "from 1, a class absent", votes[kept], truth[kept] + 1, truth[kept]
    yield through("backwards", every.flip(0))
    if classes > 2:
        yield through("at random", torch.from_numpy(rng.permutation(classes)))
        a, b = (int(k) for k in truth.bincount().topk(2).indices)
        swapped = every.clone()
        swapped[[a, b]] = every[[b, a]]
        yield through("two exchanged", swapped)
        by_name = torch.tensor(sorted(range(classes), key=lambda k: names[k].casefold()))
        yield through("names by alphabet", by_name.argsort())
        gap = present[len(present) // 2]
        kept = truth != gap
        low = torch.where(truth > gap, truth - 1, truth)
        yield "one left out, renumbered", votes[kept], low[kept], truth[kept]
    if classes > 10:
        texts = sorted(map(str, range(classes)))
        ranks = torch.tensor([texts.index(str(k)) for k in range(classes)])
        yield through("numbers sorted as texts", ranks)
        yield through("the other way round", ranks.argsort())
    if 2 < len(present) < classes:
        yield "a few, numbered in a row", votes, torch.searchsorted(present, truth), truth


def voted(recipe: Recipe, folder: Path | None) -> tuple[str, Tensor, Tensor, int, tuple[str, ...]]:
    """Votes and labels, and what is known of the classes."""
    teacher = load_teacher(recipe.teacher, trust_code=True)
    data = recipe.data.val or "demo:unseen"
    name = f"{Path(recipe.teacher.weights or recipe.teacher.spec).stem}, {data.rpartition(':')[2]}"
    images = load_images(
        data, teacher.spec, classes=teacher.classes, labelled=True, trust_code=True,
        names=teacher.names, table=recipe.data,
    )  # fmt: skip
    assert images.labels is not None
    kept = folder / f"{name}.npy" if folder else None
    votes = torch.from_numpy(np.load(kept)) if kept and kept.exists() else votes_of(teacher, images)
    if kept and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, votes.numpy())
    return name, votes, images.labels, teacher.classes, names_of(teacher.classes, teacher.names)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", type=Path)
    parser.add_argument("--votes", type=Path)
    given = parser.parse_args()
    print("| teacher, set | n, classes | labels | right | proposed | put right | found | s |")
    print("|---|---|---|---|---|---|---|---|")
    for path in given.settings or [None]:
        recipe = validated({} if path is None else read_toml(path))
        name, votes, truth, classes, names = voted(recipe, given.votes)
        for what, seen, wrong, right in cases(votes, truth, classes, names):
            began = time.perf_counter()
            found = check_labels(seen, wrong, classes, names=names)
            took = time.perf_counter() - began
            mended, better = "", ""
            if found.order is not None:
                image = torch.tensor(found.order.classes)
                mended = f"{float((image[wrong] == right).double().mean()):.1%}"
                better = f"{found.better:.1%}"
            codes = ", ".join(finding.code for finding in found.findings) or "none"
            print(
                f"| {name} | {len(seen):,}, {classes} | {what} | {found.accuracy:.1%} | {better} | "
                f"{mended} | {codes} | {took:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
