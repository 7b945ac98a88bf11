"""The plan: what will be done with this teacher, and why, before anything is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.images import ImageSpec
from synthkd.core.memory import machine_memory
from synthkd.losses.distillation import SOFTENED
from synthkd.losses.synthesis import NEEDS, TERMS
from synthkd.losses.term import check_needs
from synthkd.networks.activations import activations
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Sources, Stage, sources_of
from synthkd.synthesis import GENERATORS, Abilities, Generator, resolution
from synthkd.teachers.protocol import Teacher


@dataclass(frozen=True)
class Plan:
    """Stages with every choice made, and a line for each reason."""

    stages: tuple[Stage, ...]
    reasons: tuple[str, ...]


def plan(recipe: Recipe, teacher: Teacher, sources: Sources | None = None) -> Plan:
    """Chooses generators and synthesis terms by looking at the teacher.

    With BatchNorm statistics the pixels follow them. Without, images are procedural: they need only
    the teacher's answers. A generator that is asked for all the same goes by class, features and
    smoothness. Terms whose ingredients are missing are dropped; each choice is one line of
    `reasons`. `sources` are those of the recipe, unless a command without a student says
    otherwise. Raises InputError for generators, terms and options that there are not.
    """
    sources = sources or sources_of(recipe)
    reasons = [_portrait(teacher), *map(str, teacher.notes)]
    stages: list[Stage] = []
    if recipe.data.synthetic:
        reasons.append("images come from --synthetic: no generator")
    elif not sources.synthetic:
        reasons.append("mix ratio 0: real images only, no generator")
    for stage in recipe.stages:
        _check_terms(stage)
        if recipe.data.synthetic or not sources.synthetic:
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
        maker = _known(kind, stage)
        able = maker.abilities if maker else Abilities()
        loaded = maker is not None and able.trains and maker.loads(recipe.generator.start)
        if loaded and able.exports and not stage.fresh:  # a borrowed model has nothing to learn
            if not stage.student_steps:
                continue
            kind, maker, able = "none", None, Abilities()
        if kind == "none" and recipe.memory.capacity == 0 and stages:
            kind = stages[
                -1
            ].generator  # nothing is remembered, so it synthesizes on, without learning
            maker = _known(kind, stage)
            able = maker.abilities if maker else Abilities()
            kept: dict[str, Any] = {"synthesis_steps": 0}
            if able.needs_steps:
                kept = stages[-1].model_dump(include=set(AS_BEFORE))
            stage = stage.model_copy(update=kept)
        if maker is not None:
            reasons += maker.remarks(recipe, stage, teacher, sources)
            _check_options(stage, kind, able)
        guided = maker is not None and maker.guided(recipe)
        if guided and teacher.access != "full":
            guided = False
            reasons.append("guidance dropped: no gradient passes through a black box")
        if able.needs_gradients and stage.synthesis_steps > 0 and teacher.access != "full":
            raise InputError(
                f"stage {stage.name}: the generator {kind} follows gradients through the teacher, "
                f"and this one shows its {teacher.access} alone: use --pipeline synthkd"
            )
        judged = guided or (able.uses_terms and stage.synthesis_steps)
        terms = _served(stage, kind, able, teacher, reasons) if judged else {}
        update: dict[str, object] = {"generator": kind, "terms": terms}
        if kind == "none":
            update = dict(_SILENT)
        elif judged and (able.offers_its_batch or (stage.offer != "new" and stage.fresh == 0)):
            update["fresh"] = stage.synthesis_batch  # the very images of a step
        elif recipe.memory.capacity == 0 and stage.student_steps and stage.fresh == 0:
            update["fresh"] = recipe.training.batch
            reasons.append(
                f"stage {stage.name}: no memory, so {recipe.training.batch} fresh images a round"
            )
        stages.append(stage.model_copy(update=update))
    return Plan(cycled(stages, recipe.budget.cycles), tuple(dict.fromkeys(reasons)))


def cycled(stages: Sequence[Stage], cycles: int) -> tuple[Stage, ...]:
    """The stages, `cycles` times one after the other, each time with an even part of the budget.

    Terms that ask a student count from the second time on, when it has learned something; where
    nothing else judges a stage they count at once.

    >>> [(s.name, s.share) for s in cycled([Stage(name="a", share=0.5), Stage(name="b")], 2)]
    [('a', 0.25), ('b', 0.5), ('a', 0.25), ('b', 0.5)]
    """
    found: list[Stage] = []
    for cycle in range(cycles):
        for stage in stages:
            terms = dict(stage.terms)
            if cycle == 0 and cycles > 1:
                without = {t: w for t, w in terms.items() if "student" not in TERMS[t].needs}
                terms = without or terms
            update = {
                "share": stage.share / cycles, "seconds": stage.seconds / cycles, "terms": terms,
            }  # fmt: skip
            found.append(stage.model_copy(update=update) if cycles > 1 else stage)
    return tuple(found)


def alone(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """What generators do without a student: a plan's stages in which none learns, else the first
    that synthesizes anything. Terms that ask a student are gone; () where no stage synthesizes.

    A diffusion model that samples in a stage of its own, after it has learned, samples at the end
    of the one stage that is left, as that asks it to: what is written comes from there.
    """
    synthesizing = [stage for stage in stages if stage.synthesizes]
    chosen = [stage for stage in synthesizing if not stage.student_steps] or synthesizing[:1]
    match chosen:
        case [*before, learner, sampler] if (
            learner.generator == sampler.generator
            and GENERATORS[learner.generator].abilities.exports
            and not sampler.synthesis_steps
        ):
            terms = {"terms": sampler.terms, "fresh": 0}
            chosen = [*before, learner.model_copy(update=terms)]
    return tuple(
        stage.model_copy(update={
            "student_steps": 0,
            "terms": {
                t: weight for t, weight in stage.terms.items() if "student" not in TERMS[t].needs
            },
        })
        for stage in chosen
    )  # fmt: skip


def without_a_guide(stage: Stage) -> bool:
    """Whether a stage's generator would take steps that nothing judges."""
    able = GENERATORS[stage.generator].abilities
    return bool(able.uses_terms and stage.synthesis_steps and not stage.terms)


def suited(
    recipe: Recipe, teacher: Teacher, student: Classifier | None = None
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with what this teacher forbids changed, and what was left open chosen, and why;
    InputError where nothing would be left of what was asked for."""
    recipe, reasons = sized(recipe, teacher)
    table = recipe.training
    if teacher.access == "labels" and (
        table.temperature != 1 or table.temperature_schedule != "constant"
    ):
        hard = {"temperature": 1.0, "temperature_schedule": "constant"}
        training = table.model_copy(update=hard)
        recipe = recipe.model_copy(update={"training": training})
        reasons = (*reasons, "labels cannot be softened: temperature 1")
    recipe, more = _scaled(recipe, teacher, student)
    return recipe, (*reasons, *more)


REFINED_AT_ONCE = 2**21  # pixels in a generator step, of which gradients are kept,
LEARNED_AT_ONCE = 2**22  # and in a student step
OFFERED_AT_ONCE = 2**26  # numbers in the fresh images of a round
FEWEST, MANY = 32, 256  # images in a step whose size is left open
ROOM_FOR_GRADIENTS = 0.25  # of the memory, that a generator step may keep; else it has fewer images
AMPLE = 1_000_000  # images remembered, of which fewer will do; who asks for more shall have them
ROOM = 10_000_000_000  # bytes of images that are remembered, in memory or in a file,
ANSWERS = 1_000_000_000  # and of the teacher's answers to them, in memory
LARGE = 64  # pixels of a side from which images are large
FEW_CLASSES = 10  # for which the weight of soft_targets was found
HALF_FIRST = {0.5: 0.7, 1.0: 0.3}  # sizes at which a student sees them, with shares of its time


def is_large(spec: ImageSpec) -> bool:
    """Whether images are large: their smaller side has LARGE pixels or more."""
    return min(spec.height, spec.width) >= LARGE


def sized(recipe: Recipe, teacher: Teacher) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with a number in the place of everything that was left to the size of the images,
    and a line for each that is not as for small ones."""
    spec = teacher.spec
    area, reasons = spec.height * spec.width, list[str]()
    large = is_large(spec)

    def chosen(pixels: int, what: str) -> int:
        count = min(MANY, max(FEWEST, pixels // area // FEWEST * FEWEST))
        if count < MANY:
            reasons.append(f"images of {spec.height} x {spec.width}: {count} {what}")
        return count

    fitting = min(ROOM // (spec.channels * area), ANSWERS // (2 * teacher.classes))
    if fitting < recipe.memory.capacity <= AMPLE:
        capacity = max(1, fitting)
        memory = recipe.memory.model_copy(update={"capacity": capacity})
        recipe = recipe.model_copy(update={"memory": memory})
        reasons.append(f"memory: {capacity:,} images at most")
    update: dict[str, Any] = {}
    if not recipe.training.batch:
        update["batch"] = count = chosen(LEARNED_AT_ONCE, "in a student step")
        if count < MANY:  # Goyal et al. 2017, https://arxiv.org/abs/1706.02677
            rate = recipe.training.learning_rate
            update["learning_rate"] = rate * count / MANY
            reasons.append(f"learning rate {rate:g} x {count} / {MANY}, for so many images a step")
    if recipe.training.progressive and not recipe.training.scales and large:
        update["scales"] = HALF_FIRST
        reasons.append(f"the student begins at half the size ({HALF_FIRST[0.5]:.0%} of its time)")
    if update:
        training = recipe.training.model_copy(update=update)
        recipe = recipe.model_copy(update={"training": training})
    smaller = recipe.pixels.progressive and not recipe.pixels.scales and large
    if smaller and (found := resolution.scales(resolution.gaps(teacher))):
        pixels = recipe.pixels.model_copy(update={"scales": found})
        recipe = recipe.model_copy(update={"pixels": pixels})
        sides = ", ".join(
            f"{share:.0%} at {' x '.join(map(str, resolution.scaled(spec.shape, side)))}"
            for side, share in found.items()
        )
        reasons.append(f"pixels: of the steps {sides}")
    if any(not stage.synthesis_batch for stage in recipe.stage):
        batch = chosen(REFINED_AT_ONCE, "in a generator step")
        if (fitting := _fitting(recipe, teacher) if large else batch) < batch:
            batch = fitting
            reasons.append(
                f"{batch} images in a generator step: more would not fit into the memory"
            )
        stages = tuple(
            stage.model_copy(update={"synthesis_batch": stage.synthesis_batch or batch})
            for stage in recipe.stage
        )
        recipe = recipe.model_copy(update={"stage": stages})
    most = max(FEWEST, OFFERED_AT_ONCE // (spec.channels * area) // FEWEST * FEWEST)
    if any(stage.fresh > most for stage in recipe.stage):
        reasons.append(f"images of {spec.height} x {spec.width}: {most} fresh ones in a round")
        stages = tuple(
            stage.model_copy(update={"fresh": min(stage.fresh, most)}) for stage in recipe.stage
        )
        recipe = recipe.model_copy(update={"stage": stages})
    return recipe, tuple(reasons)


def _scaled(
    recipe: Recipe, teacher: Teacher, student: Classifier | None
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with `training.scale_by_classes` applied, which is then off.

    At a temperature T above the logits' differences the gradient of T² · KL for a logit is
    (learned − taught) / K (Hinton, Vinyals & Dean 2015, section 2.1), and the more classes a batch
    has, the more directions its images pull in. With a hundred classes the gradient of a student's
    weights had a thirtieth of the norm that it has with ten, for which the learning rate and the
    largest norm (`training.clip`) were found: hence the factor (K / 10)^1.5.
    """
    table, classes = recipe.training, teacher.classes
    if not table.scale_by_classes or student is None:
        return recipe, ()
    update: dict[str, Any] = {"scale_by_classes": False}
    softened = [name for name in sorted(SOFTENED) if table.terms.get(name)]
    reasons = tuple[str, ...]()
    soft = table.temperature > 1 and not teacher.independent
    if softened and soft and classes > FEW_CLASSES and not student.kept:
        factor = round((classes / FEW_CLASSES) ** 1.5, 2)
        more = {name: table.terms[name] * factor for name in softened}
        update["terms"] = {**table.terms, **more}
        many = "s" if len(softened) == 1 else ""
        names = " and ".join(softened)
        reasons = (f"{names} weigh{many} {factor:g} times as much, for {classes} classes",)
    training = table.model_copy(update=update)
    return recipe.model_copy(update={"training": training}), reasons


def _fitting(recipe: Recipe, teacher: Teacher) -> int:
    """How many images a generator step may have on a CPU, by what the teacher keeps of each for
    its gradients."""
    if teacher.access != "full" or teacher.device.type != "cpu":
        return MANY
    try:
        numbers = activations(teacher.network, teacher.spec.shape)
    except Exception:  # whatever a user's network raises
        return MANY
    width = 2 if recipe.run.precision == "bfloat16" else 4
    return max(
        2, int(min(MANY, ROOM_FOR_GRADIENTS * machine_memory() / (width * max(1.0, numbers))))
    )


DRAWING = 0.1  # the most of a budget that a stage gets in which drawings replace gradients
AS_BEFORE = ("synthesis_steps", "synthesis_batch", "offer", "terms")
_SILENT = {"generator": "none", "terms": {}, "synthesis_steps": 0, "fresh": 0}


def _chosen(recipe: Recipe, teacher: Teacher) -> str:
    """The generator of a stage that leaves it open."""
    if recipe.generator.kind != "auto":
        return recipe.generator.kind
    if recipe.generator.start:
        start = recipe.generator.start
        return next(name for name, maker in GENERATORS.items() if maker.loads(start))
    return "pixels" if teacher.stored else "procedural"


def _known(kind: str, stage: Stage) -> type[Generator] | None:
    """The generator of this name; None for none."""
    if kind == "none":
        return None
    if kind not in GENERATORS:
        hint = suggest(kind, [*GENERATORS, "auto", "none"])
        raise InputError(f"stage {stage.name}: unknown generator {quoted(kind)}{hint}")
    return GENERATORS[kind]


def _check_terms(stage: Stage) -> None:
    """Refuses synthesis terms that there are not, and needs that nobody meets."""
    for term in stage.terms:
        if term not in TERMS:
            raise InputError(
                f"stage {stage.name}: terms: unknown term {quoted(term)}{suggest(term, TERMS)}"
            )
        check_needs(f"stage {stage.name}: terms.{term}", TERMS[term], NEEDS)


def _check_options(stage: Stage, kind: str, able: Abilities) -> None:
    """Refuses options that the stage's generator does not know."""
    for option in stage.options:
        if option not in able.options:
            hint = suggest(option, able.options) if able.options else "; it has none"
            raise InputError(f"stage {stage.name}: {kind} has no option {quoted(option)}{hint}")


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


def _served(
    stage: Stage, kind: str, able: Abilities, teacher: Teacher, reasons: list[str]
) -> dict[str, float]:
    """The stage's terms whose needs this generator and this teacher can meet; what stands in for
    the others is added."""
    missing = {
        "critic": "" if "critic" in able.serves else f"{kind} has no critic",
        "projection": "its head learns in a generator's steps alone"
        if "projection" not in able.serves else "" if teacher.stored else "no BatchNorm",
        "statistics": "" if teacher.stored else "no BatchNorm",
        "features": "" if teacher.feature_size
        else "the last layer is not linear, so there are no features",
        "prototypes": "" if teacher.prototypes is not None
        else "features are not those of the last layer",
    }  # fmt: skip
    terms = {name: weight for name, weight in stage.terms.items() if weight}
    dropped: dict[str, list[str]] = {}
    for name in list(terms):
        why = next((missing[need] for need in missing if need in TERMS[name].needs
                    and missing[need]), "")  # fmt: skip
        if not why:
            continue
        weight, instead = terms.pop(name), TERMS[name].instead
        for other, share in instead.items():
            terms.setdefault(other, share * weight)
        said = f"{why}; {' and '.join(instead)} instead" if instead else why
        dropped.setdefault(said, []).append(name)
    reasons += [f"{', '.join(names)} dropped: {why}" for why, names in dropped.items()]
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
