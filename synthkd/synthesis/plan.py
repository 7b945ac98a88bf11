"""The plan: what will be done with this teacher, and why, before anything is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synthkd.core.errors import InputError
from synthkd.recipe import Recipe, Stage
from synthkd.synthesis.diffusion.diffusers_io import describe, is_diffusers_folder
from synthkd.synthesis.objective import ADVERSARIAL, FEATURES
from synthkd.teachers.protocol import Teacher


@dataclass(frozen=True)
class Plan:
    """Stages with every choice made, and a line for each reason."""

    stages: tuple[Stage, ...]
    reasons: tuple[str, ...]


def plan(recipe: Recipe, teacher: Teacher) -> Plan:
    """Chooses generators and synthesis terms by looking at the teacher.

    With BatchNorm statistics the pixels follow them. Without, images are procedural: they need only
    the teacher's answers. A generator that is asked for all the same goes by class, features and
    smoothness. Terms whose ingredients are missing are dropped; each choice is one line of
    `reasons`.
    """
    reasons = [_portrait(teacher), *map(str, teacher.notes)]
    stages: list[Stage] = []
    if recipe.data.synthetic:
        reasons.append("images come from --synthetic: no generator")
    elif recipe.data.mix_ratio == 0:
        reasons.append("mix ratio 0: real images only, no generator")
    for stage in recipe.stages:
        if recipe.data.synthetic or recipe.data.mix_ratio == 0:
            stages += [stage.model_copy(update=_SILENT)] if stage.student_steps else []
            continue
        kind: str = stage.generator
        if kind == "auto":
            kind = _chosen(recipe, teacher)
            if kind == "procedural" and recipe.generator.kind == "auto":
                why = "no BatchNorm to follow" if teacher.access == "full" else "a black box"
                reasons.append(f"{why}: procedural images, kept in balance by the teacher's votes")
                if not stage.student_steps:  # a drawing costs next to nothing
                    stage = stage.model_copy(update={"share": min(stage.share, DRAWING)})
        if kind == "diffusion" and is_diffusers_folder(recipe.generator.start) and not stage.fresh:
            if not stage.student_steps:
                continue  # a borrowed model has nothing to learn
            kind = "none"
        if kind == "none" and recipe.memory.capacity == 0 and stages:
            kind = stages[-1].generator  # nothing is remembered, so it invents on, without learning
            kept: dict[str, Any] = {"synthesis_steps": 0}
            if kind in ("pixels", "episodes"):  # without steps these have nothing to offer
                kept = stages[-1].model_dump(include=set(AS_BEFORE))
            stage = stage.model_copy(update=kept)
        if kind == "diffusion":
            reasons += _of_diffusion(recipe, teacher)
            _check_curriculum(recipe, stage)
        guided = kind == "diffusion" and recipe.diffusion.teacher_guidance > 0
        if guided and teacher.access != "full":
            guided = False
            reasons.append("guidance dropped: no gradient passes through a black box")
        _needs_gradients(stage, kind, teacher)
        judged = guided or (kind in JUDGED and stage.synthesis_steps)
        terms = _terms(stage, kind, teacher, reasons) if judged else {}
        update: dict[str, object] = {"generator": kind, "terms": terms}
        if kind == "none":
            update = dict(_SILENT)
        elif judged and (kind == "pixels" or (stage.offer != "new" and stage.fresh == 0)):
            update["fresh"] = stage.synthesis_batch  # the very images of a step
        elif recipe.memory.capacity == 0 and stage.student_steps and stage.fresh == 0:
            update["fresh"] = recipe.training.batch
            reasons.append(
                f"stage {stage.name}: no memory, so {recipe.training.batch} fresh images a round"
            )
        stages.append(stage.model_copy(update=update))
    return Plan(tuple(stages), tuple(dict.fromkeys(reasons)))


def alone(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """What generators do without a student: a plan's stages in which none learns, else the first
    that invents anything. Terms that ask a student are gone; () where no stage invents.

    A diffusion model that samples in a stage of its own, after it has learned, samples at the end
    of the one stage that is left, as that asks it to: what is written comes from there.
    """
    inventing = [stage for stage in stages if stage.generator != "none"]
    chosen = [stage for stage in inventing if not stage.student_steps] or inventing[:1]
    match chosen:
        case [*before, learner, sampler] if (
            learner.generator == sampler.generator == "diffusion" and not sampler.synthesis_steps
        ):
            terms = {"terms": sampler.terms, "fresh": 0}
            chosen = [*before, learner.model_copy(update=terms)]
    return tuple(
        stage.model_copy(update={
            "student_steps": 0,
            "terms": {t: weight for t, weight in stage.terms.items() if t not in ADVERSARIAL},
        })
        for stage in chosen
    )  # fmt: skip


def suited(recipe: Recipe, teacher: Teacher) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with what this teacher forbids changed, and why; InputError where nothing would be
    left of what was asked for."""
    if teacher.access == "labels" and recipe.training.temperature != 1:
        training = recipe.training.model_copy(update={"temperature": 1.0})
        return recipe.model_copy(update={"training": training}), (
            "labels cannot be softened: temperature 1",
        )
    return recipe, ()


DRAWING = 0.1  # the most of a budget that a stage gets in which drawings replace gradients
AS_BEFORE = ("synthesis_steps", "synthesis_batch", "offer", "terms")
JUDGED = ("gan", "episodes", "pixels")  # generators that go by terms
_SILENT = {"generator": "none", "terms": {}, "synthesis_steps": 0, "fresh": 0}


def _chosen(recipe: Recipe, teacher: Teacher) -> str:
    """The generator of a stage that leaves it open."""
    if recipe.generator.kind != "auto":
        return recipe.generator.kind
    if is_diffusers_folder(recipe.generator.start):
        return "diffusion"
    if recipe.generator.start:
        return "gan"
    return "pixels" if teacher.stored else "procedural"


def _needs_gradients(stage: Stage, kind: str, teacher: Teacher) -> None:
    """Refuses a generator that a black box cannot serve."""
    if kind in JUDGED and stage.synthesis_steps > 0 and teacher.access != "full":
        raise InputError(
            f"stage {stage.name}: the generator {kind} follows gradients through the teacher, and "
            f"this one shows its {teacher.access} alone: use --pipeline synthkd"
        )


def _of_diffusion(recipe: Recipe, teacher: Teacher) -> list[str]:
    """What should be known before a diffusion model is used."""
    if is_diffusers_folder(recipe.generator.start):
        return describe(recipe.generator.start, teacher.classes)
    if recipe.data.real and recipe.data.mix_ratio < 1:
        return ["the diffusion model learns from the real images that are allowed"]
    return [
        "the diffusion model learns from the memory: it varies and mixes what others found, "
        "it cannot find what they missed"
    ]


def _portrait(teacher: Teacher) -> str:
    if teacher.access != "full":
        shown = "its labels alone" if teacher.access == "labels" else "its answers"
        return (
            f"teacher {teacher.described}: a black box that shows {shown}, "
            f"{teacher.classes} classes"
        )
    norms = f"{len(teacher.stored)} BatchNorm layers" if teacher.stored else "no BatchNorm"
    size = teacher.feature_size
    features = f"{size} features" if size else "no linear last layer"
    return (
        f"teacher {teacher.described}: {teacher.parameters_count:,} parameters, "
        f"{teacher.classes} classes, {norms}, {features}"
    )


def _check_curriculum(recipe: Recipe, stage: Stage) -> None:
    """Refuses a curriculum that would never open."""
    moves = recipe.difficulty.enabled and stage.student_steps
    if recipe.diffusion.curriculum == "difficulty" and stage.synthesis_steps and not moves:
        raise InputError(
            f"stage {stage.name}: the difficulty moves only while a student learns (and with "
            "--difficulty.enabled true): use --diffusion.curriculum linear"
        )


def _terms(stage: Stage, kind: str, teacher: Teacher, reasons: list[str]) -> dict[str, float]:
    """The stage's terms that this generator and this teacher can serve."""
    terms = {name: weight for name, weight in stage.terms.items() if weight}
    if kind != "gan" and terms.pop("realism", 0):
        reasons.append(f"realism dropped: {kind} has no critic")
    if kind == "diffusion" and terms.pop("contrast", 0):
        reasons.append("contrast dropped: its head learns in a generator's steps alone")
    if "statistics" in terms and not teacher.stored:
        weight = terms.pop("statistics")
        terms.setdefault("smoothness", 0.2 * weight)
        terms.setdefault("balance", 0.2 * weight)
        reasons.append("statistics dropped: no BatchNorm; smoothness and balance instead")
    unseen = "the last layer is not linear, so there are no features"
    elsewhere = "features are not those of the last layer"
    for names, missing, there in (
        (("statistics_norm", "contrast"), "no BatchNorm", teacher.stored),
        (FEATURES, unseen, teacher.feature_size),
        (("prototype",), elsewhere, teacher.prototypes is not None),
    ):
        gone = [name for name in names if name in terms and not there]
        if gone:
            terms = {name: weight for name, weight in terms.items() if name not in gone}
            reasons.append(f"{', '.join(gone)} dropped: {missing}")
    return terms


def table(stages: Sequence[Stage]) -> list[tuple[str, str, str, str]]:
    """The plan as rows: stage, generator, what happens in a round, terms."""
    return [
        (
            s.name,
            s.generator,
            f"{s.synthesis_steps} x {s.synthesis_batch} synthesis, {s.fresh} fresh, "
            f"{s.student_steps} student steps",
            ", ".join(f"{name} {weight:g}" for name, weight in s.terms.items()) or "-",
        )
        for s in stages
    ]
