"""What a generator is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from synthkd.core.images import Batch
from synthkd.recipe import AugmentTable, Stage
from synthkd.teachers.protocol import Teacher

HELD_BACK = 16  # of so many fresh images one is held out: the first of a batch


class Reference(Protocol):
    """Images that were there before, with the classes that the teacher sees in them."""

    def __call__(self, count: int, rng: torch.Generator) -> Batch | None:
        """A batch, or None while there are too few."""


def empty_source(count: int, rng: torch.Generator) -> Batch | None:
    """A reference without images."""
    return None


class Wanted(Protocol):
    """Images that were there before, for the classes that are asked for."""

    def __call__(self, labels: Tensor, rng: torch.Generator) -> Batch | None:
        """For each of the labels [B] an image in which the teacher sees this class, or the most of
        it, with the class that it sees; None while there are too few."""


def nothing_wanted(labels: Tensor, rng: torch.Generator) -> Batch | None:
    """A source of images by class without images."""
    return None


class Answers(Protocol):
    """A network that answers images with logits."""

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K]."""


def _no_tick(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class SynthesisContext:
    """Everything around a generator in one round."""

    teacher: Teacher
    student: Answers  # answers in eval mode, lets gradients through to the images only
    stage: Stage
    terms: Mapping[str, float]  # the weights after the plan and the difficulty
    augment: AugmentTable
    reference: Reference  # for the critic: real images where they are allowed, else the memory
    bfloat16: bool
    remembered: Reference = empty_source  # from the memory, by other generators if there are any
    material: Reference = empty_source  # to imitate: real ones where allowed, else as remembered
    nearest: Wanted = nothing_wanted  # the same by class, where images themselves are remembered
    counts: Callable[[], Tensor | None] = lambda: None  # [K] of this generator's, so far, by class
    share: float = 0.0  # of the run that is over, 0..1
    stage_share: float = 0.0  # of the stage that is over, 0..1
    difficulty: float = 0.0  # of the run, 0..1
    deadline: float = float("inf")  # by time.perf_counter: no step is begun after it
    tick: Callable[[int, int], None] = _no_tick  # hears of steps done, of how many; may raise


class SyntheticBatch(NamedTuple):
    """Fresh images and what is worth telling about their making."""

    batch: Batch  # [B, C, H, W] in 0..1 and the classes asked for
    trained: int  # images of the generator's training that the budget counts
    measures: dict[str, float]


def rarest_labels(counts: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` labels that make images per class `counts` [K] as even as can be, in random order;
    ties are drawn.

    >>> rarest_labels(torch.tensor([5, 0, 2]), 4, torch.Generator().manual_seed(0)).sort().values
    tensor([1, 1, 1, 2])
    """
    draw = torch.rand(len(counts), generator=rng)
    queue = list(zip(counts.tolist(), draw.tolist(), range(len(counts)), strict=True))
    heapify(queue)
    labels = []
    for _ in range(count):
        have, place, label = queue[0]
        heapreplace(queue, (have + 1, place, label))
        labels.append(label)
    return torch.tensor(labels, dtype=torch.int64)[torch.randperm(count, generator=rng)]


def even_labels(count: int, classes: int, rng: torch.Generator) -> Tensor:
    """`count` labels, every class as often as the others (± 1), in random order.

    >>> even_labels(6, 3, torch.Generator().manual_seed(0)).bincount().tolist()
    [2, 2, 2]
    """
    start = int(torch.randint(classes, (1,), generator=rng))
    return ((torch.arange(count) + start) % classes)[torch.randperm(count, generator=rng)]
