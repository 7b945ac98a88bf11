"""Controllers: values that move during a run by what its rounds show.

A controller is asked once a round, after the student's turn, and its value is recorded with the
round. Signals are the round's measures ("loss", "agreement" on held-out images, "confidence",
"balance", "term.NAME" of the synthesis, …) and "progress", the share of the training that is done.
What follows the clock alone (the learning rate) is a schedule, not a controller: schedules.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from synthkd import schedules
from synthkd.recipe import DifficultyTable, Recipe


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


class DifficultyController:
    """How difficult synthetic images shall be, 0..1, by the agreement of student and teacher on
    held-out images: `schedules.step_difficulty`."""

    def __init__(self, table: DifficultyTable) -> None:
        self.table = table
        self.state = schedules.Difficulty(table.start)

    @property
    def value(self) -> float:
        """The level."""
        return self.state.level

    def update(self, signals: Mapping[str, float]) -> float:
        """A step; a round without agreement changes nothing."""
        if "agreement" in signals:
            self.state = schedules.step_difficulty(self.state, signals["agreement"], self.table)
        return self.state.level

    def state_dict(self) -> dict[str, Any]:
        """Level, smoothed agreement, rounds in a row."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.state = schedules.Difficulty(**state)


# What moves, by the name that the loop asks for: "difficulty", "temperature" (of the student's
# soft targets; without a controller it stays at training.temperature).
CONTROLLERS: dict[str, Callable[[Recipe], Controller]] = {
    "difficulty": lambda recipe: DifficultyController(recipe.difficulty),
}
