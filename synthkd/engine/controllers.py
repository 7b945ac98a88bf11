"""Controllers: values that move during a run by what its rounds show.

A controller is asked once a round, after the student's turn, and its value is recorded with the
round. Signals are the round's measures ("loss", "agreement" on held-out images, "confidence",
"balance", "term.NAME" of the synthesis, …) and "progress", the share of the training that is done.
What follows the clock alone (the learning rate, a curriculum) is a schedule, not a controller:
schedules.py. Where assistants learn first, each network has controllers of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from synthkd import schedules
from synthkd.networks.slimmable import SHARES
from synthkd.recipe import Recipe
from synthkd.students.weighting import answers_share


class Controller(Protocol):
    """One value, moved by signals; its state is saved with the run."""

    @property
    def value(self) -> float:
        """What holds for the next round."""

    def update(self, signals: Mapping[str, float]) -> float:
        """Takes notice of a round; returns the new value. Signals may be missing."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""


class Stepping:
    """A state that a step moves by one signal, and the value that it tells: what follows a run
    among `schedules`."""

    def __init__(
        self, signal: str, step: Callable[[Any, float], Any], state: Any,
        told: Callable[[Any], float],
    ) -> None:  # fmt: skip
        self.signal, self.step, self.state, self.told = signal, step, state, told

    @property
    def value(self) -> float:
        """What the state tells."""
        return self.told(self.state)

    def update(self, signals: Mapping[str, float]) -> float:
        """A step; a round without the signal changes nothing."""
        if self.signal in signals:
            self.state = self.step(self.state, signals[self.signal])
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The fields of the state."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.state = type(self.state)(**state)


class Following:
    """A value that is a function of one signal, which is smoothed: a ← k · a + (1 − k) · signal."""

    def __init__(
        self, signal: str, value: Callable[[float], float], first: float, kept: float = 0.0
    ) -> None:
        self.signal, self.of, self.kept = signal, value, kept
        self.seen: float | None = None
        self.value = first

    def update(self, signals: Mapping[str, float]) -> float:
        """The value for what the signal says; a round without it changes nothing."""
        if self.signal in signals:
            now = signals[self.signal]
            self.seen = now if self.seen is None else self.kept * self.seen + (1 - self.kept) * now
            self.value = self.of(self.seen)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The value and the smoothed signal."""
        return {"value": self.value, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.value, self.seen = float(state["value"]), state["seen"]


GAIN, DIVERGENCE, COST = 10.0, 0.1, 0.1  # weights of a reward's three parts
FADING = 0.98  # by which a round counts less for each that came after it


class TeacherChoice:
    """Which of several teachers teaches the next round: a bandit with upper confidence bounds.

        reward = 10 · (gain in agreement) − 0.1 · KL − 0.1 · cost
        value = argmax over m of  mean reward + √(2 ln n / n_m),   older rounds fading by 0.98

    UCB1 (Auer, Cesa-Bianchi & Fischer 2002, https://doi.org/10.1023/A:1013689704352), discounted
    since what a teacher is worth changes as the student learns. Agreement and KL, at temperature 1,
    are those on held-out images, which all teachers labelled together. `costs` are their sizes over
    the largest one's.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self.costs = tuple(costs)
        self.counts, self.sums = [0.0] * len(costs), [0.0] * len(costs)
        self.agreement: float | None = None
        self.value = 0.0

    def update(self, signals: Mapping[str, float]) -> float:
        """Rewards the teacher of this round and chooses the next; a round without agreement changes
        nothing."""
        if "agreement" not in signals:
            return self.value
        now, chosen = signals["agreement"], int(self.value)
        if self.agreement is not None:
            gain = now - self.agreement
            reward = GAIN * gain - DIVERGENCE * signals.get("kl", 0.0) - COST * self.costs[chosen]
            self.counts = [FADING * count for count in self.counts]
            self.sums = [FADING * total for total in self.sums]
            self.counts[chosen] += 1
            self.sums[chosen] += reward
        self.agreement = now
        self.value = float(self._best())
        return self.value

    def _best(self) -> int:
        for place, count in enumerate(self.counts):
            if count == 0:
                return place
        rounds = max(1.0, sum(self.counts))
        bounds = [
            total / count + math.sqrt(2 * math.log(rounds) / count)
            for total, count in zip(self.sums, self.counts, strict=True)
        ]
        return bounds.index(max(bounds))

    def state_dict(self) -> dict[str, Any]:
        """Rewards so far, and the choice."""
        return {
            "counts": list(self.counts), "sums": list(self.sums), "agreement": self.agreement,
            "value": self.value,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.counts, self.sums = list(state["counts"]), list(state["sums"])
        self.agreement, self.value = state["agreement"], float(state["value"])


def _difficulty(recipe: Recipe) -> Controller:
    table = recipe.difficulty
    step = partial(schedules.step_difficulty, table=table)
    return Stepping("agreement", step, schedules.Difficulty(table.start), lambda s: s.level)


def _temperature(recipe: Recipe) -> Controller | None:
    table = recipe.training
    if table.temperature_schedule != "adaptive":
        return None
    step = partial(schedules.step_temperature, table=table)
    return Stepping("kl", step, schedules.Temperature(table.temperature), lambda s: s.value)


def _answers_share(recipe: Recipe) -> Controller | None:
    if recipe.training.weighting != "agreement":
        return None
    return Following("agreement", answers_share, answers_share(0.0), kept=0.9)


def _need(share: float, recipe: Recipe) -> Controller | None:
    if recipe.training.widths != "needed":
        return None
    return Following(f"need.{share:g}", float, 0.0, kept=0.9)


# What moves, by the name that the loop asks for; None where a recipe does not want it to.
#   difficulty      how difficult synthetic images shall be, 0..1
#   temperature     of the student's soft targets; without it, by the schedule of [training]
#   answers_share   of the terms that compare answers in the student's loss, 0..1
#   need.SHARE      of a slimmable student's widths between the narrowest and the full one: how much
#                   of its gradient the full width's leaves over (`students.sandwich`)
CONTROLLERS: dict[str, Callable[[Recipe], Controller | None]] = {
    "difficulty": _difficulty,
    "temperature": _temperature,
    "answers_share": _answers_share,
    **{f"need.{share:g}": partial(_need, share) for share in SHARES[1:-1]},
}


def controllers_of(recipe: Recipe) -> dict[str, Controller]:
    """The controllers that a recipe wants, at their beginning, by name."""
    made = {name: new(recipe) for name, new in CONTROLLERS.items()}
    return {name: controller for name, controller in made.items() if controller is not None}
