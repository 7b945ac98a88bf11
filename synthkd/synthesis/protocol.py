"""What a generator is to everybody else, and what it can do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.recipe import Recipe, Sources, Stage
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch
from synthkd.teachers.protocol import Teacher


@dataclass(frozen=True)
class Abilities:
    """What the plan and the commands must know of a generator: asked instead of its name."""

    trains: bool = False  # it learns before it is sampled; others synthesize as they go
    needs_gradients: bool = False  # its steps follow gradients through the teacher
    uses_terms: bool = False  # its steps are judged by the stage's synthesis terms
    serves: frozenset[str] = frozenset()  # of a term's needs, those that only a generator can meet
    needs_steps: bool = False  # without steps it has nothing to offer
    offers_its_batch: bool = False  # what it offers are the images of its own steps
    refines: bool = False  # each of its images was improved by itself
    exports: bool = False  # `export` leaves it as other programs read it
    options: tuple[str, ...] = ()  # of `stage.options`, those that it knows
    reads: tuple[str, ...] = ()  # the recipe's tables that not every generator reads


class Generator:
    """Makes images for a teacher. A new one is a subclass with `synthesize` and a line in
    `GENERATORS`; what learns or remembers has a state, and the rest has a default.

    Initial weights come from torch's global random state, which is seeded around the constructor.
    """

    abilities: ClassVar[Abilities] = Abilities()
    least_confidence: float = 0.0  # of the teacher, in an image that is worth keeping; 0..1

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        self.recipe, self.teacher = recipe, teacher

    @classmethod
    def loads(cls, source: str) -> bool:
        """Whether `load` takes what lies at `source` (`generator.start`)."""
        return False

    @classmethod
    def prepare(cls) -> None:
        """Imports what it needs and what, when it is imported, does more than be read: before the
        record of what a run opens begins."""

    @classmethod
    def remarks(cls, recipe: Recipe, stage: Stage, teacher: Teacher, sources: Sources) -> list[str]:
        """What should be known before it is used in a stage, for the plan. Settings that cannot
        work are an InputError."""
        return []

    @classmethod
    def guided(cls, recipe: Recipe) -> bool:
        """Whether the terms of a stage judge it although it `uses_terms` in no step of its own."""
        return False

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """Improves itself by the steps of the context's stage, then offers images [B, C, H, W] in
        0..1; all randomness comes from `rng`."""
        raise NotImplementedError

    def answered(self, logits: Tensor) -> None:
        """Hears the teacher's logits [B, K] for the images that it offered last, before it offers
        others: nobody need ask twice. Not every offer is answered."""

    def load(self, source: str) -> None:
        """Takes over what an earlier run trained."""
        raise InputError(f"this generator takes nothing from {source}")

    def finalise(self, rng: torch.Generator) -> None:
        """Is called once after training, before it is sampled for good."""

    def save(self, run: Path, level: int) -> None:
        """Keeps what it learned in a run directory; `level` is the promise level of that."""

    def export(self, folder: Path, level: int) -> None:
        """Leaves what it learned as other programs read it."""
        raise InputError("this generator cannot be exported")

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
