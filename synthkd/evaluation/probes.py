"""A panel of images made anew for a teacher, to ask a student about without any real image.

Nobody learns from these: their random numbers are of a stream of their own. They come in families
(drawings, refined images, blends of two) at several difficulties, because a student that knows its
training images by heart answers those, and hardly the others. N images, K classes.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd import measures
from synthkd.core.images import to_float, to_uint8
from synthkd.core.seeds import generator_for, globally
from synthkd.networks.activations import activations
from synthkd.recipe import PixelsTable, Recipe, Stage
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.drawings import DRAWINGS
from synthkd.synthesis.pixels import Pixels
from synthkd.synthesis.plan import is_large, sized
from synthkd.synthesis.tuning import USUAL, USUAL_LARGE, seconds_of
from synthkd.teachers.protocol import Teacher, asked_freely

COUNT = 256  # images of a set,
LEAST_COUNT = 48  # and at least so many,
PIXELS = 2**21  # where they have more pixels together than this
HELD = 3e9  # bytes that the maps of a batch may take while they are refined,
LEAST_BATCH = 8  # of so many images at least
STEPS = (10, 40)  # of refined images: few leave more of where they started
SHARES = (0.5, 0.7, 0.85)  # of the first image in a blend: the evener, the harder
TERMS = {"one_hot": 1.0, "statistics": 10.0, "smoothness": 1.0}


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Images of one family and difficulty, with the teacher's answers."""

    name: str
    images: Tensor  # [N, C, H, W] uint8
    logits: Tensor  # [N, K] the teacher's
    distance: (
        float  # of their statistics to those of the BatchNorm layers; NaN where there are none
    )


@dataclass(frozen=True)
class ProbeScore:
    """What a student answers on a set."""

    name: str
    agreement: float  # 0..1
    balanced: float  # agreement in which each class that the teacher names counts alike
    kl: float  # KL(teacher ‖ student) in nats
    confidence: float  # mean of the student's largest probability
    spread: float  # nuclear norm of the student's probabilities, 0..1 (`dispersion`)
    teacher_confidence: float
    distance: float


def probe_panel(
    recipe: Recipe, teacher: Teacher, *, seed: int = 0, only: Collection[str] = ()
) -> Iterator[ProbeSet]:
    """The sets of a panel for a teacher, or `only` those of these names, which are the same images;
    `recipe` says how they are refined (`_pixels`). Of a teacher without gradients: drawings and
    their blends."""
    count = _count(teacher)

    def stream(*names: str | int) -> torch.Generator:
        return generator_for(seed, "probes", *names)

    def wanted(beginning: str) -> bool:
        return not only or any(name.startswith(beginning) for name in only)

    drawn = []
    for kind, draw in DRAWINGS.items() if wanted("drawings") else ():
        images = draw(count, *teacher.spec.shape, stream(kind))
        drawn.append(images[: count // len(DRAWINGS)])
        if wanted(name := f"drawings.{kind}"):
            yield _asked(name, images, teacher)
    if wanted("drawings.blends"):
        yield from _blends("drawings", torch.cat(drawn), teacher, stream("drawings blended"), only)
    if teacher.access != "full" or not asked_freely(teacher):
        return
    for start in ("drawings", "noise"):
        blended = wanted(f"refined.{start}.blends")
        for steps in STEPS:
            if wanted(name := f"refined.{start}.{steps}") or (blended and steps == STEPS[-1]):
                images = _refined(recipe, teacher, count, start, steps, stream(start, steps))
                if wanted(name):
                    yield _asked(name, images, teacher)
        if blended:
            yield from _blends(f"refined.{start}", images, teacher, stream(start, "blended"), only)


def seconds_for_set(recipe: Recipe, teacher: Teacher) -> float:
    """What refining one set takes, about, by a few steps of the whole: few images take longer, for
    each, than many."""
    count, pixels = _count(teacher), _pixels(recipe, teacher)
    fitted, batch = recipe.model_copy(update={"pixels": pixels}), _batch(teacher, count)
    seconds = seconds_of(fitted, _stage(teacher, STEPS[-1], batch), teacher, batch)
    return seconds * count / batch


def _count(teacher: Teacher) -> int:
    _, height, width = teacher.spec.shape
    return max(LEAST_COUNT, min(COUNT, PIXELS // (height * width)))


def _batch(teacher: Teacher, count: int) -> int:
    """How many of so many images are refined together: all, unless their maps take too much."""
    each = 4 * max(1.0, activations(teacher.network, teacher.spec.shape))
    parts = -(-count // min(count, max(LEAST_BATCH, int(HELD / each))))
    return -(-count // parts)


def _refined(
    recipe: Recipe, teacher: Teacher, count: int, start: str, steps: int, rng: torch.Generator
) -> Tensor:
    """Images [N, C, H, W] refined by the teacher from drawings or from noise."""
    table = _pixels(recipe, teacher).model_copy(update={"start": start})
    with globally(rng):
        generator = Pixels(recipe.model_copy(update={"pixels": table}), teacher)
    most, images = _batch(teacher, count), []
    for begin in range(0, count, most):
        stage = _stage(teacher, steps, min(most, count - begin))
        context = SynthesisContext(
            teacher=teacher, student=teacher, stage=stage, terms=stage.terms,
            augment=recipe.augment, reference=lambda count, rng: None, bfloat16=False,
        )  # fmt: skip
        images.append(generator.synthesize(context, rng).batch.images.detach().cpu())
    return torch.cat(images)


def _stage(teacher: Teacher, steps: int, count: int) -> Stage:
    """The stage by which a set is refined."""
    terms = TERMS if teacher.stored else {k: v for k, v in TERMS.items() if k != "statistics"}
    return Stage(
        name="probes", generator="pixels", synthesis_steps=steps, synthesis_batch=count,
        offer="last", fresh=count, terms=terms,
    )  # fmt: skip


def _pixels(recipe: Recipe, teacher: Teacher) -> PixelsTable:
    """At which sizes and rate they are refined: as in the run, where its pipeline left that to the
    teacher, else as the pipeline synthkd would, without trials."""
    if recipe.pixels.progressive and recipe.pixels.learning_rate:
        return recipe.pixels
    fitted, _ = sized(Recipe(pixels=PixelsTable(progressive=True)), teacher)
    rate = USUAL_LARGE if is_large(teacher.spec) else USUAL
    return fitted.pixels.model_copy(update={"learning_rate": rate})


def _blends(
    beginning: str, images: Tensor, teacher: Teacher, rng: torch.Generator, only: Collection[str]
) -> Iterator[ProbeSet]:
    """Images [N, C, H, W] blended in pairs, at each of the SHARES."""
    other = images[torch.randperm(len(images), generator=rng)]
    for share in SHARES:
        name = f"{beginning}.blends.{share:g}"
        if not only or name in only:
            yield _asked(name, share * images + (1 - share) * other, teacher)


@torch.no_grad()
def _asked(name: str, images: Tensor, teacher: Teacher) -> ProbeSet:
    """A set with the teacher's answers, and how far it lies from what the teacher was trained on
    by the statistics of its BatchNorm layers."""
    pixels = to_uint8(images).cpu()
    logits, moments, counts = [], [], []
    with teacher.exact():
        for part in torch.split(pixels, 128):
            seen = teacher.observe(to_float(part).to(teacher.device))
            logits.append(seen.logits.float().cpu())
            moments.append(seen.moments)
            counts.append(len(part))
    distance = math.nan
    if teacher.stored and moments[0]:
        distance = measures.data_free_frechet(measures.pooled(moments, counts), teacher.stored)
    return ProbeSet(name, pixels, torch.cat(logits), distance)


def score_probes(answers: Tensor, probes: ProbeSet) -> ProbeScore:
    """A student's logits [N, K] on a set."""
    learned, taught = answers.argmax(1), probes.logits.argmax(1)
    balance = measures.class_balance(learned, taught, probes.logits.shape[1])
    return ProbeScore(
        probes.name, measures.agreement(answers, probes.logits), balance.balanced,
        measures.kl(answers, probes.logits), float(answers.softmax(1).amax(1).mean()),
        dispersion(answers), float(probes.logits.softmax(1).amax(1).mean()), probes.distance,
    )  # fmt: skip


def dispersion(logits: Tensor) -> float:
    """How sure and how varied answers are at once: the nuclear norm of the probabilities [N, K]
    over its upper bound √(min(N, K) · N), in 0..1. 1 needs one-hot answers that name all classes
    alike; a constant one-hot answer has 1 / √min(N, K). Deng et al. 2023, "Confidence and
    dispersity speak" (https://arxiv.org/abs/2302.01094).

    >>> dispersion(torch.tensor([[99.0, -99.0], [-99.0, 99.0]]))
    1.0
    >>> round(dispersion(torch.tensor([[99.0, -99.0], [99.0, -99.0]])) ** 2, 6)
    0.5
    """
    shares = logits.double().softmax(1)
    count, classes = shares.shape
    norm = torch.linalg.matrix_norm(shares, ord="nuc")
    return float(norm) / math.sqrt(min(count, classes) * count)
