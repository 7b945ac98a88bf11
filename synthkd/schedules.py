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


def temperature(progress: float, table: TrainingTable) -> float:
    """The temperature of soft targets after a share `progress` of the training, by
    `training.temperature_schedule`: constant, or from `temperature` to `temperature_end` along a
    line or half a cosine.

    >>> table = TrainingTable(temperature=20, temperature_end=4, temperature_schedule="cosine")
    >>> [round(temperature(p, table), 2) for p in (0, 0.25, 0.5, 1)]
    [20.0, 17.66, 12.0, 4.0]
    """
    first, last = table.temperature, table.temperature_end
    if table.temperature_schedule == "linear":
        return first + (last - first) * progress
    if table.temperature_schedule == "cosine":
        return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
    return first


def competence(progress: float, *, least: float = 0.2) -> float:
    """The share of the remembered images, from the easiest on, that is drawn from after a share
    `progress` of the training:  √(p · (1 − c²) + c²), c the share at the beginning.

    Competence-based curriculum, Platanios et al. 2019 (https://arxiv.org/abs/1903.09848), eq. 7.

    >>> [round(competence(p), 3) for p in (0.0, 0.25, 1.0)]
    [0.2, 0.529, 1.0]
    """
    return math.sqrt(progress * (1 - least**2) + least**2)


LOW_KL, HIGH_KL = 0.1, 0.5  # nats under which the temperature falls, over which it rises
COOLER, WARMER = 0.9, 1.1  # the factors by which it does


@dataclass(frozen=True)
class Temperature:
    """The state of the adaptive temperature."""

    value: float
    kl: float | None = None  # smoothed


def step_temperature(state: Temperature, kl: float, table: TrainingTable) -> Temperature:
    """The state after a round in which the student's answers on held-out images were `kl` nats from
    the teacher's, at temperature 1.

    The divergence is smoothed, a ← 0.9 a + 0.1 kl. Over 0.5 the temperature rises by a tenth, under
    0.1 it falls by one, and it stays between `temperature_end` and `temperature`. Measured at
    temperature 1 it does not feed back on itself, as the loss would, which grows with T² and K.

    >>> table = TrainingTable(temperature=20, temperature_end=4)
    >>> [step_temperature(Temperature(10.0), kl, table).value for kl in (0.05, 0.3, 1.0)]
    [9.0, 10.0, 11.0]
    """
    smooth = kl if state.kl is None else 0.9 * state.kl + 0.1 * kl
    factor = COOLER if smooth < LOW_KL else WARMER if smooth > HIGH_KL else 1.0
    least, most = sorted((table.temperature_end, table.temperature))
    return Temperature(min(most, max(least, state.value * factor)), smooth)


def correction(progress: float, *, first: float) -> float:
    """The exponent β of the weights that make up for priorities, after a share `progress` of the
    training: from `first` to 1 along a line (Schaul et al. 2016, section 3.4).

    >>> correction(0.5, first=0.4)
    0.7
    """
    return first + (1 - first) * progress


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
FLOOR = 0.1  # under which the difficulty does not fall; a factor could not leave 0
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
    grows by the factor UP, at least to FLOOR and at most to `table.ceiling`; after as many under
    LOW it shrinks by DOWN, not under FLOOR. What begins under FLOOR waits there until it grows.

    >>> table = DifficultyTable(enabled=True, start=0.5)
    >>> step_difficulty(Difficulty(0.5, above=1), 1.0, table).level
    0.6
    """
    smooth = agreement if state.agreement is None else 0.9 * state.agreement + 0.1 * agreement
    above = state.above + 1 if smooth > HIGH else 0
    below = state.below + 1 if smooth < LOW else 0
    level, least = state.level, min(FLOOR, table.ceiling)
    if table.enabled and above >= PATIENCE:
        level, above = min(table.ceiling, max(least, level * UP)), 0
    elif table.enabled and below >= PATIENCE:
        level, below = min(level, max(least, level * DOWN)), 0
    return replace(state, level=level, agreement=smooth, above=above, below=below)
