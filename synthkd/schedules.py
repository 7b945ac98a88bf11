"""Schedules: numbers in, a number out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from synthkd.recipe import DifficultyTable, TrainingTable


def one_cycle(progress: float, *, warmup: float = 0.1) -> float:
    """The learning rate's factor: up a straight line during `warmup`, then half a cosine down to 0.

    `progress` and `warmup` are shares of the run, 0..1. After Smith & Topin 2018
    (https://arxiv.org/abs/1708.07120).

    >>> [round(one_cycle(p, warmup=0.5), 2) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    p = min(1.0, max(0.0, progress))
    if p < warmup:
        return p / warmup
    return 0.5 * (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))) if warmup < 1 else 1.0


def steps(progress: float, *, milestones: Sequence[float] = (0.4, 0.8)) -> float:
    """The learning rate's factor: a tenth from each milestone on; milestones are shares of the run.

    >>> [round(steps(p), 3) for p in (0.0, 0.39, 0.4, 0.9)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return float(0.1 ** sum(progress >= milestone for milestone in milestones))


def rate(progress: float, table: TrainingTable) -> float:
    """The student's learning rate after a share `progress` of the run, by `table.schedule`."""
    if table.schedule == "constant":
        return table.learning_rate
    if table.schedule == "steps":
        return table.learning_rate * steps(progress, milestones=table.milestones)
    return table.learning_rate * one_cycle(progress, warmup=table.warmup)


def scale(progress: float, scales: Mapping[float, float]) -> float:
    """The side of the images, as a share of the full side, after a share `progress` of all steps.

    `scales` gives to each side its share of the steps, and they are taken from small to large
    (progressive resizing). 1 where there are none.

    >>> [scale(p, {0.5: 0.7, 1.0: 0.3}) for p in (0.0, 0.69, 0.7, 1.0)]
    [0.5, 0.5, 1.0, 1.0]
    """
    end = 0.0
    for side in sorted(scales):
        end += scales[side]
        if progress < end - 1e-9:
            return side
    return max(scales, default=1.0)


def crop(share: float, *, smallest: float) -> float:
    """The smallest area that a random crop may have, as a share of the image: it falls from 1 to
    `smallest` along a cosine, as the share of the steps that is done goes from 0 to 1.

        smallest + (1 − smallest) · (1 + cos π·share) / 2

    The curriculum of CDA (Yin & Shen 2023, https://arxiv.org/abs/2311.18838).

    >>> [round(crop(share, smallest=0.2), 6) for share in (0, 0.5, 1)]
    [1.0, 0.6, 0.2]
    """
    return smallest + (1 - smallest) * (1 + math.cos(math.pi * share)) / 2


def ema_decay(step: int, *, longest: float = 0.999) -> float:
    """The decay of a running average that starts young: min(longest, (1 + n) / (10 + n)).

    >>> ema_decay(0), ema_decay(10**6)
    (0.1, 0.999)
    """
    return min(longest, (1 + step) / (10 + step))


def share(done: int, count: int, ratio: float) -> int:
    """How many of the next `count` items are of a kind that shall be `ratio` of all, after `done`
    items.

        floor((done + count) · ratio) − floor(done · ratio)

    Each answer is within 1 of count · ratio, and the sum never strays further: the ratio is exact.

    >>> [share(i * 4, 4, 0.3) for i in range(5)]
    [1, 1, 1, 1, 2]
    """
    exact = 1e-9  # 0.3 · 10 is 3, whatever binary fractions say
    return math.floor((done + count) * ratio + exact) - math.floor(done * ratio + exact)


LOW, HIGH = 0.7, 0.85  # agreement under which the difficulty falls, over which it rises
DOWN, UP = 0.8, 1.2  # the factors by which it does
FLOOR = 0.1  # the smallest difficulty; 0 could not be left by a factor
PATIENCE = 2  # rounds in a row beyond a threshold before it moves


@dataclass(frozen=True)
class Difficulty:
    """The state of the difficulty scheduler."""

    level: float  # 0..1
    agreement: float | None = None  # smoothed
    above: int = 0  # rounds in a row over HIGH
    below: int = 0  # rounds in a row under LOW


def step_difficulty(state: Difficulty, agreement: float, table: DifficultyTable) -> Difficulty:
    """The state after a round in which student and teacher agreed on a share `agreement` of
    held-out images.

    The share is smoothed, a ← 0.9 a + 0.1 agreement. After PATIENCE rounds over HIGH the level
    grows by the factor UP, at most to `table.ceiling`; after as many under LOW it shrinks by DOWN,
    at least to FLOOR.

    >>> table = DifficultyTable(enabled=True, start=0.5)
    >>> step_difficulty(Difficulty(0.5, above=1), 1.0, table).level
    0.6
    """
    smooth = agreement if state.agreement is None else 0.9 * state.agreement + 0.1 * agreement
    above = state.above + 1 if smooth > HIGH else 0
    below = state.below + 1 if smooth < LOW else 0
    level = state.level
    if table.enabled and above >= PATIENCE:
        level, above = min(table.ceiling, level * UP), 0
    elif table.enabled and below >= PATIENCE:
        level, below = max(FLOOR, level * DOWN), 0
    return replace(state, level=level, agreement=smooth, above=above, below=below)
