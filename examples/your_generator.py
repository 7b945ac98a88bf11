"""A generator of your own: blurred noise, as blurred as the teacher likes it.

    python examples/your_generator.py

A generator is a class with `synthesize` and a line in `GENERATORS`; what it remembers is its state,
saved with the run. `options` of a stage are its settings.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

import synthkd
from synthkd.core.images import Batch
from synthkd.recipe import Stage
from synthkd.synthesis import GENERATORS, Abilities, Generator
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch


class BlurredNoise(Generator):
    """Noise blurred `passes` times, stretched to 0..1; one pass more or less after each round, by
    whether the teacher was surer of the blurrier half."""

    abilities = Abilities(options=("passes",))
    passes = 0

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """`stage.fresh` images; no class is asked for (−1), so the teacher's votes label them."""
        self.passes = self.passes or int(context.stage.options.get("passes", 3))
        shape = (context.stage.fresh, *self.teacher.spec.shape)
        images = torch.rand(shape, generator=rng)
        for step in range(self.passes + 2):
            blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
            if step >= self.passes:  # the first half is done
                blurred[: len(images) // 2] = images[: len(images) // 2]
            images = blurred
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-6)
        sure = self.teacher.probabilities(self.teacher(images.to(self.teacher.device))).amax(1)
        blurrier = bool(sure[len(sure) // 2 :].mean() > sure[: len(sure) // 2].mean())
        self.passes = max(1, self.passes + (1 if blurrier else -1))
        labels = torch.full((len(images),), -1)
        batch = Batch(images.to(self.teacher.device), labels.to(self.teacher.device))
        return SyntheticBatch(batch, 0, {"passes": float(self.passes)})

    def state_dict(self) -> dict[str, Any]:
        """How often it blurs."""
        return {"passes": self.passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.passes = int(state["passes"])


GENERATORS["blurred_noise"] = BlurredNoise  # the one line that makes it a generator

STAGE = Stage(
    name="joint", generator="blurred_noise", fresh=256, student_steps=10, options={"passes": 4}
)


def main(images: int = 20_000) -> synthkd.Recipe:
    """One run with it; in TOML: [[stage]] generator = "blurred_noise", options = { passes = 4 }."""
    recipe = synthkd.Recipe.of({"budget.images": images}).model_copy(update={"stage": (STAGE,)})
    for round in synthkd.build(recipe):
        print(f"{round.share:.0%} passes {round.measures['passes']:.0f}")
    return recipe


if __name__ == "__main__":
    main()
