"""What is found out by trying before images are refined: the learning rate, and at which sizes.

C H W of an image, B images that are tried.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.images import to_float, to_uint8
from synthkd.core.words import counted
from synthkd.losses.synthesis import TERMS
from synthkd.recipe import Recipe, Stage
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.pixels import Pixels
from synthkd.synthesis.plan import is_large
from synthkd.synthesis.resolution import mean_area
from synthkd.teachers.protocol import Teacher

TRIED = 16  # images
RATES = (0.05, 0.02, 0.01)  # of Adam, in the Fourier basis
USUAL, USUAL_LARGE = 0.05, 0.02  # without a trial
LEAST_MINUTES = 5  # of a run in which a trial pays
MOST = 0.02  # of the minutes, after which no further trial begins
PROBE = 2  # steps at full size by which it is told what a trial takes, after one that prepares


Choice = tuple[float, list[tuple[float, float]], dict[str, int]]


@dataclass(frozen=True)
class Trial:
    """Settings of `pixels`, and what came of them."""

    learning_rate: float
    scales: Mapping[float, float]
    steps: int
    loss: float  # of the 8-bit images of full size, by the terms of the stage


def tuned(
    recipe: Recipe, stages: Sequence[Stage], teacher: Teacher, *, free: bool = True
) -> tuple[Recipe, tuple[Stage, ...], tuple[str, ...]]:
    """The recipe and the plan's stages with a learning rate of `pixels` where it was left open (0),
    and why.

    Where `pixels` are refined in large images, TRIED drawings are refined with each of RATES, and,
    where the sizes are `free` to choose, with the best of them once more at full size alone, in as
    many steps as cost the same. What has the least loss is taken; no student and no data have a
    part in it. Where images are small, in a run of a few minutes, and where two trials would take
    more than a fiftieth of the minutes, by the time of a few steps, the rate is the usual one.
    """
    if recipe.pixels.learning_rate:
        return recipe, tuple(stages), ()
    scales, minutes = recipe.pixels.scales, recipe.budget.minutes
    refining = [s for s in stages if s.generator == "pixels" and s.synthesis_steps]
    large = is_large(teacher.spec)
    short = minutes is not None and minutes < LEAST_MINUTES
    usual = _with(recipe, USUAL_LARGE if large else USUAL, scales), tuple(stages), ()
    if not refining or not large or short or recipe.pixels.basis != "fourier":
        return usual
    before, stage = teacher.queries, refining[0]
    if minutes is not None:
        each = seconds_of(recipe, stage, teacher, TRIED)
        if (len(RATES) - 1) * each > MOST * 60 * minutes:  # the last would not begin
            return usual
    began, trials = time.perf_counter(), []
    for rate in RATES:
        trials.append(tried(recipe, stage, teacher, rate, scales, stage.synthesis_steps))
        if minutes is not None and time.perf_counter() - began > MOST * 60 * minutes:
            break
    else:
        best = min(trials, key=_loss)
        if free and (area := mean_area(scales)) < 1:
            steps = max(1, round(stage.synthesis_steps * area))
            trials.append(tried(recipe, stage, teacher, best.learning_rate, {1.0: 1.0}, steps))
    teacher.queries = before  # asked about nothing of a run
    best = min(trials, key=_loss)
    if len(trials) < len(RATES) or not math.isfinite(best.loss):
        return usual
    where, chosen = "", {s.name: s.synthesis_steps for s in refining}
    if best.scales != scales:
        chosen = {name: max(1, round(steps * mean_area(scales))) for name, steps in chosen.items()}
        where = f", {counted(best.steps, 'step')} at full size alone"
    return (
        _with(recipe, best.learning_rate, best.scales).model_copy(
            update={"stage": _stepping(recipe.stage, chosen)}
        ),
        _stepping(stages, chosen),
        (f"pixels: learning rate {best.learning_rate:g}{where}, the best of {len(trials)} that "
         f"were tried on {TRIED} drawings",),
    )  # fmt: skip


def seconds_of(recipe: Recipe, stage: Stage, teacher: Teacher, count: int) -> float:
    """What refining so many images takes, about, by a few steps; they are not counted as asked."""
    before, taken = teacher.queries, 0.0
    for steps in (1, PROBE):
        began = time.perf_counter()
        tried(recipe, stage, teacher, RATES[-1], {1.0: 1.0}, steps, count=count)
        taken = time.perf_counter() - began
    teacher.queries = before
    return taken / PROBE * stage.synthesis_steps * mean_area(recipe.pixels.scales)


def retuned(
    recipe: Recipe, stages: Sequence[Stage], choice: Choice
) -> tuple[Recipe, tuple[Stage, ...]]:
    """The recipe and the plan's stages with what another process has found by `tuned`, as `choice`
    tells it."""
    rate, scales, steps = choice
    recipe = _with(recipe, rate, dict(scales))
    return recipe.model_copy(update={"stage": _stepping(recipe.stage, steps)}), _stepping(
        stages, steps
    )


def choice(recipe: Recipe, stages: Sequence[Stage]) -> Choice:
    """What `tuned` may have changed, as plain values: learning rate, sizes, steps of stages."""
    steps = {stage.name: stage.synthesis_steps for stage in stages}
    return recipe.pixels.learning_rate, list(recipe.pixels.scales.items()), steps


def _stepping(stages: Sequence[Stage], steps: Mapping[str, int]) -> tuple[Stage, ...]:
    """Stages with other numbers of steps, by their names."""
    return tuple(
        s.model_copy(update={"synthesis_steps": steps[s.name]}) if s.name in steps else s
        for s in stages
    )


def _loss(trial: Trial) -> float:
    return trial.loss if math.isfinite(trial.loss) else math.inf


def tried(
    recipe: Recipe, stage: Stage, teacher: Teacher, rate: float, scales: Mapping[float, float],
    steps: int, count: int = TRIED,
) -> Trial:  # fmt: skip
    """The loss of `count` images that begin as drawings and are refined so."""
    terms = {
        name: weight for name, weight in stage.terms.items()
        if not TERMS[name].needs & {"student", "critic"}
    }  # fmt: skip
    update = {"synthesis_steps": steps, "synthesis_batch": count, "terms": terms}
    generator = Pixels(_with(recipe, rate, scales), teacher)

    def context(stage: Stage) -> SynthesisContext:
        return SynthesisContext(
            teacher, _no_student, stage, terms, recipe.augment, _no_images, False
        )

    rng = torch.Generator().manual_seed(0)
    try:
        made = generator.synthesize(context(stage.model_copy(update=update)), rng).batch
    except InputError:  # this rate is too high: its loss is no longer finite
        return Trial(rate, scales, steps, math.inf)
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
