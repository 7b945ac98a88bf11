"""Images drawn by a formula: no training, no gradient; the memory keeps what the
teacher spreads. The formulas are in `drawings`; here is what depends on the teacher.

B images, K classes, P numbers that describe a stroke drawing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.images import Batch
from synthkd.recipe import Recipe
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch, even_labels
from synthkd.synthesis.drawings import DRAWINGS
from synthkd.synthesis.drawings.strokes import draw_strokes, mutated, stroke_parameters
from synthkd.synthesis.protocol import Abilities, Generator
from synthkd.teachers.protocol import Teacher

PARENTS = 256  # drawings per class that others are made from
SURE = 0.9  # how sure the teacher must be of a parent
SCENES = ("shaders", "leaves", "spectrum", "polygons", "fractals")


class Procedural(Generator):
    """Draws images of the recipe's kinds in equal parts.

    The mean that the teacher subtracts tells how bright its images are: strokes are light on black
    under 0.25, dark on white over 0.75, in between either.

    With `evolve`, a share of the stroke drawings are changed copies of earlier ones in which the
    teacher was sure of a class, every class as often as the others: selection and mutation, by the
    teacher's answers alone. These parents are all its state.
    """

    abilities = Abilities(reads=("procedural",))

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        self.shape = teacher.spec.shape
        self.classes = teacher.classes
        self.kinds = kinds_for(recipe.procedural.kinds, teacher)
        self.evolve = recipe.procedural.evolve if "strokes" in self.kinds else 0.0
        self.brightness = sum(teacher.spec.mean) / len(teacher.spec.mean)
        self.device = teacher.device
        self.parents = torch.zeros(
            teacher.classes, PARENTS, stroke_parameters(1, torch.Generator()).shape[1]
        )
        self.found = torch.zeros(teacher.classes, dtype=torch.int64)  # parents ever, per class

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """`stage.fresh` drawings; `stage.synthesis_steps` is without meaning here."""
        judge = context.teacher if self.evolve else None
        return SyntheticBatch(self._draw(context.stage.fresh, rng, judge), 0, {})

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        """`count` drawings in random order; no class is asked for, so every label is −1."""
        return self._draw(count, rng, None)

    def _draw(self, count: int, rng: torch.Generator, judge: Teacher | None) -> Batch:
        parts = [torch.empty(0, *self.shape, device=self.device)]
        for i, kind in enumerate(self.kinds):
            share = (count + i) // len(self.kinds)
            if kind == "strokes":
                parts.append(self._strokes(share, rng, judge))
            elif share:
                parts.append(DRAWINGS[kind](share, *self.shape, rng).to(self.device))
        images = torch.cat(parts)[torch.randperm(count, generator=rng).to(self.device)]
        return Batch(images, torch.full((count,), -1, device=self.device))

    def _strokes(self, count: int, rng: torch.Generator, judge: Teacher | None) -> Tensor:
        """Stroke drawings [B, C, H, W]; with a judge some are children, and some become parents."""
        bred = round(self.evolve * count) if judge is not None and self.found.any() else 0
        parameters = stroke_parameters(count - bred, rng)
        if bred:
            parameters = torch.cat([self._children(bred, rng), parameters])
        images = self._inked(parameters, rng)
        if judge is not None and count:
            self._select(parameters, judge.probabilities(judge(images)))
        return images

    def _inked(self, parameters: Tensor, rng: torch.Generator) -> Tensor:
        """Drawings [B, C, H, W] of strokes with parameters [B, P]."""
        channels, height, width = self.shape
        coverage = draw_strokes(parameters, height, width)
        ink = 0.6 + 0.4 * torch.rand(len(parameters), channels, 1, 1, generator=rng)
        images = coverage * ink
        dark = torch.rand(len(parameters), 1, 1, 1, generator=rng) < _darkness(self.brightness)
        return torch.where(dark, 1 - images, images).to(self.device)

    def _children(self, count: int, rng: torch.Generator) -> Tensor:
        """Changed copies [B, P] of parents; classes in balance, among those that have any."""
        present = self.found.nonzero().flatten()
        of = present[even_labels(count, len(present), rng)]  # [B]
        known = self.found[of].clamp_max(PARENTS)
        chosen = (torch.rand(count, generator=rng) * known).long()
        amount = 0.15 * float(torch.rand((), generator=rng))
        return mutated(self.parents[of, chosen], amount, rng)

    def _select(self, parameters: Tensor, shares: Tensor) -> None:
        """Drawings that the teacher is sure of, by its probabilities [B, K], become parents, in the
        place of the oldest."""
        sure, votes = (values.cpu() for values in shares.max(1))
        for vote in range(self.classes):
            new = parameters[(votes == vote) & (sure > SURE)][:PARENTS]
            slots = (int(self.found[vote]) + torch.arange(len(new))) % PARENTS
            self.parents[vote, slots] = new
            self.found[vote] += len(new)

    def state_dict(self) -> dict[str, Any]:
        """The parents, where drawings evolve."""
        return {"parents": self.parents, "found": self.found} if self.evolve else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        if self.evolve:
            self.parents.copy_(state["parents"])
            self.found.copy_(state["found"])


def kinds_for(kinds: tuple[str, ...], teacher: Teacher) -> tuple[str, ...]:
    """The kinds to draw; `auto` means strokes where the teacher's images are mostly ground, else
    scenes."""
    for kind in kinds:
        if kind not in (*DRAWINGS, "auto"):
            raise InputError(
                f"procedural.kinds: no kind {quoted(kind)}{suggest(kind, (*DRAWINGS, 'auto'))}"
            )
    if "auto" not in kinds:
        return kinds or ("noise",)
    mean = sum(teacher.spec.mean) / len(teacher.spec.mean)
    line_drawings = teacher.spec.channels == 1 and _darkness(mean) in (0, 1)
    return ("strokes",) if line_drawings else SCENES


def _darkness(brightness: float) -> float:
    """The share of drawings that are dark on white.

    >>> _darkness(0.13), _darkness(0.5), _darkness(0.9)
    (0.0, 0.5, 1.0)
    """
    return 0.0 if brightness < 0.25 else 1.0 if brightness > 0.75 else 0.5
