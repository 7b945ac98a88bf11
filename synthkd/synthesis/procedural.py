"""Images drawn by a formula: no training, no gradient; the memory keeps what the
teacher spreads. The formulas are in `drawings`; here is what depends on the teacher.

B images, K classes, P numbers that describe a stroke drawing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.images import Batch, ImageSpec
from synthkd.recipe import Recipe
from synthkd.synthesis.context import HELD_BACK, SynthesisContext, SyntheticBatch, even_labels
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
    under 0.25, dark on white over 0.75, in between either, and where the mean is none of images
    (`brightness_of`).

    With `evolve`, a share of the stroke drawings are changed copies of earlier ones in which the
    teacher was sure of a class, every class as often as the others: selection and mutation, by the
    answers that it gives all the same. These parents are all its state. The first of a batch, which
    are held out, are neither parents nor copies: nobody learns from their relatives.
    """

    abilities = Abilities(reads=("procedural",))

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        self.shape = teacher.spec.shape
        self.classes = teacher.classes
        self.kinds = kinds_for(recipe.procedural.kinds, teacher)
        self.evolve = recipe.procedural.evolve if "strokes" in self.kinds else 0.0
        self.brightness = brightness_of(teacher.spec)
        self.teacher, self.device = teacher, teacher.device
        self.numbers = stroke_parameters(1, torch.Generator()).shape[1]  # P
        self.parents = torch.zeros(teacher.classes, PARENTS, self.numbers)
        self.offered = torch.empty(0, self.numbers)  # what may become parents when it is answered
        self.found = torch.zeros(teacher.classes, dtype=torch.int64)  # parents ever, per class

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """`stage.fresh` drawings; `stage.synthesis_steps` is without meaning here."""
        count = context.stage.fresh
        if not self.evolve:
            return SyntheticBatch(self.sample(count, rng), 0, {})
        apart = count // HELD_BACK
        first, _ = self._draw(apart, rng, evolve=0.0)
        others, parameters = self._draw(count - apart, rng, evolve=self.evolve)
        self.offered = torch.cat([torch.full((apart, self.numbers), torch.nan), parameters])
        return SyntheticBatch(self._unasked(torch.cat([first, others])), 0, {})

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        """`count` drawings in random order; no class is asked for, so every label is −1."""
        return self._unasked(self._draw(count, rng, evolve=0.0)[0])

    def answered(self, logits: Tensor) -> None:
        """The teacher's logits [B, K] for the drawings offered last: where they evolve, those that
        it is sure of become parents."""
        if self.evolve:
            may = ~self.offered[:, 0].isnan()
            self._select(self.offered[may], self.teacher.probabilities(logits.cpu()[may]))

    def _unasked(self, images: Tensor) -> Batch:
        return Batch(images, torch.full((len(images),), -1, device=self.device))

    def _draw(self, count: int, rng: torch.Generator, *, evolve: float) -> tuple[Tensor, Tensor]:
        """Drawings [B, C, H, W], a share `evolve` of those of strokes bred from parents, in random
        order, and their parameters [B, P]: NaN where they are not of strokes."""
        images = [torch.empty(0, *self.shape, device=self.device)]
        parameters = [torch.empty(0, self.numbers)]
        for i, kind in enumerate(self.kinds):
            share = (count + i) // len(self.kinds)
            if kind == "strokes":
                bred = round(evolve * share) if self.found.any() else 0
                parameters.append(self._parameters(share, bred, rng))
                images.append(self._inked(parameters[-1], rng))
            elif share:
                parameters.append(torch.full((share, self.numbers), torch.nan))
                images.append(DRAWINGS[kind](share, *self.shape, rng).to(self.device))
        order = torch.randperm(count, generator=rng)
        return torch.cat(images)[order.to(self.device)], torch.cat(parameters)[order]

    def _parameters(self, count: int, bred: int, rng: torch.Generator) -> Tensor:
        """Parameters [B, P] of stroke drawings, of which so many are children."""
        parameters = stroke_parameters(count - bred, rng)
        return torch.cat([self._children(bred, rng), parameters]) if bred else parameters

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
    scenes; both for a teacher of one channel whose mean tells nothing."""
    for kind in kinds:
        if kind not in (*DRAWINGS, "auto"):
            raise InputError(
                f"procedural.kinds: no kind {quoted(kind)}{suggest(kind, (*DRAWINGS, 'auto'))}"
            )
    if "auto" not in kinds:
        return kinds or ("noise",)
    if teacher.spec.channels > 1:
        return SCENES
    brightness = brightness_of(teacher.spec)
    if brightness is None:
        return ("strokes", *SCENES)
    return ("strokes",) if _darkness(brightness) in (0, 1) else SCENES


def brightness_of(spec: ImageSpec) -> float | None:
    """How bright the teacher's images are, 0..1, by the mean that it subtracts; None where that is
    no mean of images but a change of scale: to 0..1 or 0..255 (mean 0: images without any light
    there are not), or to −1..1 (mean and deviation 1/2, give or take a level of 255).

    >>> brightness_of(ImageSpec(1, 28, 28, (0.1307,), (0.3081,)))
    0.1307
    >>> [brightness_of(ImageSpec(1, 28, 28, *scale)) for scale in (
    ...     ((0.0,), (1.0,)), ((0.0,), (1 / 255,)), ((0.5,), (0.5,)))]
    [None, None, None]
    """
    mean, std = (sum(values) / len(values) for values in (spec.mean, spec.std))
    halves = max(abs(mean - 0.5), abs(std - 0.5)) < 1 / 255
    return None if mean == 0 or halves else mean


def _darkness(brightness: float | None) -> float:
    """The share of drawings that are dark on white.

    >>> _darkness(0.13), _darkness(0.5), _darkness(0.9), _darkness(None)
    (0.0, 0.5, 1.0, 0.5)
    """
    if brightness is None:
        return 0.5
    return 0.0 if brightness < 0.25 else 1.0 if brightness > 0.75 else 0.5
