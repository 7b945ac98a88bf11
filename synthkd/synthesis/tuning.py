"""What is found out by trying before images are refined: the learning rate, and at which sizes.

C H W of an image, B images that are tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.core.images import to_float, to_uint8
from synthkd.core.words import counted
from synthkd.losses.synthesis import TERMS
from synthkd.recipe import Recipe, Stage
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.pixels import Pixels
from synthkd.synthesis.plan import LARGE
from synthkd.synthesis.resolution import mean_area
from synthkd.teachers.protocol import Teacher

TRIED = 16  # images
RATES = (0.05, 0.02, 0.01)  # of Adam, in the Fourier basis
USUAL, USUAL_LARGE = 0.05, 0.02  # without a trial
LEAST_MINUTES = 5  # of a run in which a trial pays


@dataclass(frozen=True)
class Trial:
    """Settings of `pixels`, and what came of them."""

    learning_rate: float
    scales: Mapping[float, float]
    steps: int
    loss: float  # of the 8-bit images of full size, by the terms of the stage


def tuned(
    recipe: Recipe, stages: Sequence[Stage], teacher: Teacher
) -> tuple[Recipe, tuple[Stage, ...], tuple[str, ...]]:
    """The recipe and the plan's stages with a learning rate of `pixels` where it was left open (0),
    and why.

    Where `pixels` are refined in large images, TRIED drawings are refined with each of RATES, and
    with the best of them once more at full size alone, in as many steps as cost the same. What has
    the least loss is taken; no student and no data have a part in it. In a run of a few minutes,
    and where images are small, there is no trial.
    """
    if recipe.pixels.learning_rate:
        return recipe, tuple(stages), ()
    scales, minutes = recipe.pixels.scales, recipe.budget.minutes
    refining = [s for s in stages if s.generator == "pixels" and s.synthesis_steps]
    large = min(teacher.spec.height, teacher.spec.width) >= LARGE
    short = minutes is not None and minutes < LEAST_MINUTES
    if not refining or not large or short or recipe.pixels.basis != "fourier":
        return _with(recipe, USUAL_LARGE if large else USUAL, scales), tuple(stages), ()
    stage = refining[0]
    before = teacher.queries
    trials = [tried(recipe, stage, teacher, rate, scales, stage.synthesis_steps) for rate in RATES]
    best = min(trials, key=lambda trial: trial.loss)
    if (area := mean_area(scales)) < 1:
        steps = max(1, round(stage.synthesis_steps * area))
        trials.append(tried(recipe, stage, teacher, best.learning_rate, {1.0: 1.0}, steps))
    best = min(trials, key=lambda trial: trial.loss)
    teacher.queries = before  # asked about nothing of a run
    update = {"synthesis_steps": best.steps}
    chosen = tuple(s.model_copy(update=update) if s in refining else s for s in stages)
    recipe = _with(recipe, best.learning_rate, best.scales)
    names = {s.name for s in refining}
    recipe = recipe.model_copy(update={
        "stage": tuple(s.model_copy(update=update) if s.name in names else s for s in recipe.stage)
    })  # fmt: skip
    where = "" if best.scales == scales else f", {counted(best.steps, 'step')} at full size alone"
    return recipe, chosen, (
        f"pixels: learning rate {best.learning_rate:g}{where}, the best of {len(trials)} that were "
        f"tried on {TRIED} drawings",
    )  # fmt: skip


def tried(
    recipe: Recipe, stage: Stage, teacher: Teacher, rate: float, scales: Mapping[float, float],
    steps: int,
) -> Trial:  # fmt: skip
    """The loss of images that begin as drawings and are refined so."""
    terms = {
        name: weight for name, weight in stage.terms.items()
        if not TERMS[name].needs & {"student", "critic"}
    }  # fmt: skip
    update = {"synthesis_steps": steps, "synthesis_batch": TRIED, "terms": terms}
    generator = Pixels(_with(recipe, rate, scales), teacher)

    def context(stage: Stage) -> SynthesisContext:
        return SynthesisContext(
            teacher, _no_student, stage, terms, recipe.augment, _no_images, False
        )

    rng = torch.Generator().manual_seed(0)
    made = generator.synthesize(context(stage.model_copy(update=update)), rng).batch
    images = to_float(to_uint8(made.images))
    with torch.no_grad():
        loss = generator.objective(context(stage), images, made.labels, rng).loss
    return Trial(rate, scales, steps, float(loss))


def _no_student(images: Tensor) -> Tensor:
    raise AssertionError  # no term that is tried asks one


def _no_images(count: int, rng: torch.Generator) -> None:
    return None


def _with(recipe: Recipe, rate: float, scales: Mapping[float, float]) -> Recipe:
    """The recipe with these settings of `pixels`."""
    update = {"learning_rate": rate, "scales": dict(scales)}
    return recipe.model_copy(update={"pixels": recipe.pixels.model_copy(update=update)})
