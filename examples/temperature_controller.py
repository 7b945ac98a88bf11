"""A controller of your own: the temperature of the soft targets follows the student's loss.

    python examples/temperature_controller.py

While the loss is high the targets are soft and easy; as it falls they harden, from `highest` down
to `lowest`. A controller is one small object with a value; what it holds is saved with the run, and
its value stands in metrics.jsonl with every round.
"""

from collections.abc import Mapping
from typing import Any

import synthkd
from synthkd.engine.controllers import CONTROLLERS
from synthkd.recipe import Recipe


class TemperatureByLoss:
    """temperature = lowest + (highest − lowest) · min(1, loss / first loss), the loss smoothed."""

    def __init__(self, highest: float, lowest: float = 1.0) -> None:
        self.highest, self.lowest = highest, lowest
        self.first: float | None = None
        self.loss: float | None = None

    @property
    def value(self) -> float:
        """The temperature for the next round."""
        if self.first is None or self.loss is None:
            return self.highest
        return self.lowest + (self.highest - self.lowest) * min(1.0, self.loss / self.first)

    def update(self, signals: Mapping[str, float]) -> float:
        """Takes notice of a round; one without a student changes nothing."""
        if "loss" in signals:
            loss = signals["loss"]
            self.loss = loss if self.loss is None else 0.8 * self.loss + 0.2 * loss
            self.first = self.first or self.loss
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {"first": self.first, "loss": self.loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.first, self.loss = state["first"], state["loss"]


CONTROLLERS["temperature"] = lambda recipe: TemperatureByLoss(recipe.training.temperature)


def main(images: int = 40_000) -> list[float]:
    """One run with it; returns the temperatures."""
    recipe: Recipe = synthkd.Recipe.of({
        "budget.images": images, "training.repeats": 1,  # shorter rounds: it is heard more often
    })  # fmt: skip
    temperatures = []
    for round in synthkd.build(recipe):
        temperatures.append(round.measures["temperature"])
        print(f"{round.stage} {round.share:.0%} temperature {temperatures[-1]:.2f}")
    return temperatures


if __name__ == "__main__":
    main()
