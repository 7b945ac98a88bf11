"""The generator's turn in a round: what it is shown, and smaller batches where memory is short.

B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synthkd.core.findings import Finding
from synthkd.core.images import Batch, sent, to_float
from synthkd.core.memory import in_fitting_parts
from synthkd.core.states import copied
from synthkd.engine.progress import stage_share, whole_share
from synthkd.losses.synthesis import TERMS
from synthkd.networks.modes import in_eval_mode
from synthkd.recipe import Stage
from synthkd.replay import Memory
from synthkd.students.learner import Learner
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch

if TYPE_CHECKING:
    from synthkd.engine.loop import Lab

LEAST = 2  # images in a batch


def synthesize(
    lab: "Lab", stage: Stage, rng: torch.Generator, *, until: float = float("inf"),
    counts: Callable[[], Tensor | None] | None = None,
) -> SyntheticBatch:  # fmt: skip
    """The generator's turn; no step of it begins after `until`. `counts` tells how many images
    there are of each class, [K], the rarest of which are asked for first; without it the memory
    does."""
    if not stage.synthesizes:
        nothing = torch.empty(0, *lab.teacher.spec.shape, device=lab.device)
        return SyntheticBatch(Batch(nothing, torch.empty(0, dtype=torch.int64)), 0, {})
    terms = {
        name: weight * (lab.difficulty if TERMS[name].follows_difficulty else 1.0)
        for name, weight in stage.terms.items()
    }
    generator, drawn = lab.generators[stage.generator], rng.get_state()
    with frozen_student(lab.learner) as student:
        context = SynthesisContext(
            teacher=lab.teacher,
            student=student,
            stage=stage,
            terms=terms,
            augment=lab.recipe.augment,
            reference=partial(_material, lab, ""),
            bfloat16=lab.bfloat16,
            remembered=partial(_remembered, lab, stage.generator),
            material=partial(_material, lab, stage.generator),
            nearest=partial(_nearest, lab, stage.generator),
            counts=counts or partial(_counts, lab, stage.generator),
            share=whole_share(lab.progress, lab.budget),
            stage_share=stage_share(lab.progress, lab.budget),
            difficulty=lab.difficulty,
            deadline=until,
            tick=partial(lab.tick, stage.generator),
        )
        if not stage.synthesis_steps:
            return generator.synthesize(context, rng)
        before = copied(generator.state_dict())

        def fewer(parts: int) -> SyntheticBatch:
            part = stage.model_copy(update={"synthesis_batch": _part(stage, parts)})
            return generator.synthesize(replace(context, stage=part), rng)

        def undo() -> None:
            generator.load_state_dict(copied(before))
            rng.set_state(drawn)

        made, parts = in_fitting_parts(
            fewer, lab.synthesis_parts, max(1, stage.synthesis_batch // LEAST), undo
        )
        if parts > lab.synthesis_parts:
            lab.synthesis_parts = parts
            lab.doubts.append(_short_of_memory(stage, parts))
        return made


def _part(stage: Stage, parts: int) -> int:
    """Images of one of so many parts of a stage's batch."""
    return max(LEAST, stage.synthesis_batch // parts)


def _short_of_memory(stage: Stage, parts: int) -> Finding:
    """That a stage's batches are smaller than they were planned, from now on."""
    count = _part(stage, parts)
    return Finding(
        "smaller-batches",
        f"stage {stage.name}: there was no memory for {stage.synthesis_batch} images in a "
        f"generator step: {count} were taken instead",
        f"give --stage.{stage.name}.synthesis_batch {count}",
    )


@contextmanager
def frozen_student(learner: Learner | None) -> Iterator[Any]:
    """The student in eval mode and without gradients to its weights, as an opponent of the
    generator."""
    if learner is None:
        yield lambda images: images.new_zeros(())
        return
    student = learner.student

    def answer(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=learner.bfloat16):
            return student(images).float()  # type: ignore[no-any-return]

    with in_eval_mode(student, frozen=True):
        yield answer


def _material(lab: "Lab", without: str, count: int, rng: torch.Generator) -> Batch | None:
    """Real images where they are allowed, else from the memory as `_remembered` has it."""
    if lab.real is None or not lab.sources.real:
        return _remembered(lab, without, count, rng)
    pixels = lab.real[torch.randint(len(lab.real), (count,), generator=rng)]
    labels = lab.label(pixels).argmax(1)
    return Batch(to_float(lab.moved(pixels)), sent(labels, lab.device))


def _remembered(lab: "Lab", without: str, count: int, rng: torch.Generator) -> Batch | None:
    """Images from the memory, none twice; those of the generator `without` only if there are too
    few others."""
    if len(lab.memory) < 4 * count:
        return None
    shares = {without: 0.0} if without else {}
    # what is made anew for each draw is never the same
    draw = lab.memory.distinct if isinstance(lab.memory, Memory) else lab.memory.draw
    drawn = draw(count, rng, shares=shares)
    return Batch(to_float(lab.moved(drawn.images)), sent(drawn.votes, lab.device))


def _nearest(lab: "Lab", without: str, labels: Tensor, rng: torch.Generator) -> Batch | None:
    """A remembered image for each of the classes [B] that are asked for, as `_remembered` chooses
    generators; None where no images are stored, or too few."""
    if not isinstance(lab.memory, Memory) or len(lab.memory) < 4 * len(labels):
        return None
    drawn = lab.memory.nearest(labels, rng, without=without)
    return Batch(to_float(lab.moved(drawn.images)), sent(drawn.votes, lab.device))


def _counts(lab: "Lab", origin: str) -> Tensor | None:
    """How many images of a generator are remembered in each class; None where none are stored."""
    return lab.memory.counts_of(origin) if isinstance(lab.memory, Memory) else None
