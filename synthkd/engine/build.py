"""From a recipe to a lab: the one place where teacher, student, plan and generators are joined.

    lab = build(recipe)             # everything by the recipe
    lab = build(recipe, teacher=net)
    for round in lab: …

N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthkd.checks.teacher import check_teacher, refuse
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import read_table
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.core.promise import PROMISES, inherited_level
from synthkd.core.seeds import generator_for, globally
from synthkd.core.words import counted
from synthkd.data.sources import Images, images_of, load_images, restricted
from synthkd.data.store import open_store
from synthkd.engine.loop import Lab
from synthkd.engine.machine import prepare
from synthkd.engine.processes import Processes
from synthkd.engine.refining import kept, without_too_few
from synthkd.engine.reporter import Reporter, Silent
from synthkd.labels.class_names import check_same_classes
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import Pruned, is_pruned, pruned_teacher
from synthkd.recipe import Recipe, StudentTable, TeacherTable, check_sources, sources_of
from synthkd.specs import load_teachers, new_student
from synthkd.specs.ensembles import ensemble_tables, is_ensemble
from synthkd.students.auto import against_teacher, best_student
from synthkd.synthesis import plan as plans
from synthkd.synthesis.diffusion.diffusers_io import promise_of
from synthkd.synthesis.drawings import assorted
from synthkd.synthesis.gan import borrow
from synthkd.synthesis.tuning import choice as choice_of
from synthkd.synthesis.tuning import retuned, tuned
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.frozen import FrozenTeacher
from synthkd.teachers.protocol import Teacher, is_teacher

LOOKED_AT, LOOKED_PIXELS = 128, 2**25  # drawings by which a student is cut out of its teacher


@dataclass
class Opened:
    """What a run has read of images that exist."""

    level: int = 0  # of the promise, see core.promise
    data: dict[str, Any] = field(default_factory=dict)  # for the manifest
    real_images: int = 0
    notes: tuple[Finding, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "promise_level": self.level,
            "promise": PROMISES[self.level],
            "data": self.data,
            "real_images_read": self.real_images,
        }


def build(
    recipe: Recipe,
    *,
    teacher: Teacher | nn.Module | Callable[..., Any] | None = None,
    student: nn.Module | None = None,
    real_data: Any = None,
    data: bool = True,
    report: Reporter | None = None,
    processes: Processes | None = None,
) -> Lab:
    """The lab of a recipe: teacher, student, plan, generators, memory, ready for its first round.

    `teacher` and `student` are living objects that take the place of the recipe's SPECs: a network
    (of which a copy is used), any callable from a float32 array [B, C, H, W] in 0..1 to answers,
    or a `Teacher` of one's own; the recipe's `[teacher]` table says what its input is. `real_data`
    takes the place of `data.real`: a tensor or array of images, a pair of images and labels, or a
    Dataset. With `data` false no images are opened: `open_data` does that later. Of several
    `processes` the first decides what is found out by measuring.

    The lab's `recipe` is the one that is used, with everything that was left open decided. Raises
    InputError for a teacher that cannot teach (unless `run.anyway`), a plan that cannot be served,
    and whatever else is wrong, before anything is trained.
    """
    report, processes = report or Silent(), processes or Processes()
    if real_data is None:
        check_sources(recipe)
    recipe, device, bfloat16 = prepare(borrow(recipe), processes)
    if teacher is None and recipe.teacher.spec == "demo" and not recipe.teacher.weights:
        report.say(
            "teacher: the embedded demo, a ResNet-14 for handwritten digits "
            "(give your own with --teacher)"
        )
    known = _teacher(recipe, teacher).to(device)
    known.low_precision = bfloat16
    found = examined(known, recipe)  # before anything is cut out of it
    choice: dict[str, Any] = {}
    doubts: list[Finding] = []
    cut = cache(partial(_cut, known, report))
    if student is None and _is_open(recipe, known):
        if processes.leads:
            recipe, choice, doubts = _chosen_student(recipe, known, report, cut)
        recipe = _with_student(recipe, processes.first(recipe.student.spec))
    with globally(generator_for(recipe.run.seed, "student")):
        learner = new_student(
            recipe.student,
            known,
            trust_code=recipe.run.trust_code,
            network=student,
            cut=cut,
        ).to(device)
    if not choice:  # no time has been measured yet
        doubts += against_teacher(learner, known)
    assistants, peer = _beside(recipe, known, cut)
    lab = assemble(
        recipe, known, learner, device=device, bfloat16=bfloat16, assistants=assistants, peer=peer,
        processes=processes,
    )  # fmt: skip
    recipe = lab.recipe
    budget = (
        counted(recipe.budget.minutes, "minute")
        if recipe.budget.minutes
        else f"{recipe.budget.images:,} student images"
    )
    report.plan(lab.plan, budget)
    taken, tensors = learner.inherited
    begun = f", {taken} of {tensors} tensors begun as the teacher's" if taken else ""
    small, large = sum(p.numel() for p in learner.parameters()), known.parameters_count
    share = f", {small / large:.1%} of the teacher's" if large else ""
    if processes.count > 1:
        _, batch = processes.part(recipe.training.batch)
        report.say(
            f"{processes.count} processes learn one student, each from images of its own, "
            f"{batch} of the {recipe.training.batch} of a step"
        )
    report.say(
        f"student {recipe.student.spec}: {small:,} parameters{share}{begun}; "
        f"{recipe.run.precision}, {recipe.run.threads} threads on {device}"
    )
    report.findings(doubts)
    lab.student_choice, lab.student_findings = choice, doubts
    report.findings(found)
    lab.teacher_findings = found
    if data:
        report.findings(open_data(lab, real_data=real_data).notes)
    return lab


def assemble(
    recipe: Recipe,
    teacher: Teacher,
    student: Classifier | None,
    *,
    device: torch.device | None = None,
    bfloat16: bool = False,
    assistants: Sequence[Classifier] = (),
    peer: Classifier | None = None,
    processes: Processes | None = None,
) -> Lab:
    """The lab of a teacher and a student that are there already, without checks of either: the
    recipe is suited to the teacher, planned, and its generators are made, or begun from what
    `generator.start` names. Without a student it makes images alone.

    What `build` and `build_synthesis` come down to. Raises InputError for a plan that cannot be
    served.
    """
    teacher.queries = 0  # those of this run are counted
    sources, free = sources_of(recipe, student=student is not None), not recipe.pixels.scales
    recipe, reasons = plans.suited(recipe, teacher, student)
    plan = plans.plan(recipe, teacher, sources)
    stages = plan.stages if student is not None else plans.alone(plan.stages)
    processes, more, fewer = processes or Processes(), tuple[str, ...](), tuple[str, ...]()
    if processes.leads:
        if student is not None:
            recipe, stages, fewer = without_too_few(recipe, stages, teacher, student)
        recipe, stages, more = tuned(recipe, stages, teacher, free=free)
    if processes.count > 1:
        recipe, stages = kept(recipe, stages, processes.first([s.name for s in stages]))
        recipe, stages = retuned(recipe, stages, processes.first(choice_of(recipe, stages)))
    plan = plans.Plan(stages, (*plan.reasons, *reasons, *fewer, *more))
    if student is not None:
        _check(recipe, plan)
    elif not stages:
        raise InputError(
            "no stage of this pipeline has a generator: see run.stages and stage.NAME.generator"
        )
    lab = Lab(
        recipe, stages, teacher, student, device=device, bfloat16=bfloat16, sources=sources,
        assistants=assistants, peer=peer, processes=processes,
    )  # fmt: skip
    lab.plan, lab.begun = plan, begin(lab)
    return lab


def build_synthesis(
    recipe: Recipe,
    *,
    teacher: Teacher | nn.Module | Callable[..., Any] | None = None,
    report: Reporter | None = None,
) -> tuple[Lab, bool]:
    """A lab without a student, for images alone, and whether its last generator needs no more
    training. Real images may be read where the recipe gives them; none are opened."""
    report = report or Silent()
    recipe, device, bfloat16 = prepare(borrow(recipe))
    known = _teacher(recipe, teacher).to(device)
    known.low_precision = bfloat16
    found = examined(known, recipe)
    lab = assemble(recipe, known, None, device=device, bfloat16=bfloat16)
    stages = lab.stages
    trained = stages[-1].generator in lab.begun
    for stage in () if trained else stages:
        if plans.without_a_guide(stage):
            raise InputError(
                f"stage {stage.name}: without a student its generator has nothing to go by: take "
                "another --pipeline, or give it terms (--stage.NAME.terms.one_hot 1)"
            )
    if trained:
        lab.generators[stages[-1].generator].finalise(generator_for(recipe.run.seed, "settle"))
    budget = (
        counted(recipe.budget.minutes, "minute")
        if recipe.budget.minutes
        else f"{recipe.budget.images or 0:,} images"
    )
    report.plan(lab.plan, "no training" if trained else f"{budget} of training")
    report.findings(found)
    lab.teacher_findings = found
    return lab, trained


def begin(lab: Lab) -> list[str]:
    """Lets the generators that can take over what lies at `generator.start` do so; returns their
    names. What none of them takes is an InputError."""
    start = lab.recipe.generator.start
    if not start or not lab.generators:
        return []
    taking = {name: one for name, one in lab.generators.items() if one.loads(start)}
    if not taking:
        raise InputError(
            f"--generator-from {quoted(start)}: no generator of this pipeline takes that "
            f"({', '.join(lab.generators)})"
        )
    for generator in taking.values():
        generator.load(start)
    return list(taking)


def _teacher(recipe: Recipe, given: Any) -> Any:
    """The teacher of the recipe, or of a living object."""
    if is_teacher(given):
        return given
    return load_teachers(recipe.teacher, trust_code=recipe.run.trust_code, network=given)


def examined(teacher: Teacher, recipe: Recipe) -> list[Finding]:
    """Asks a teacher, or each of several, before anything is done with it: what was found.
    Something serious is an InputError, unless the recipe says anyway."""
    table, trust = recipe.teacher, recipe.run.trust_code
    members: list[tuple[Teacher, TeacherTable]] = [(teacher, table)]
    if isinstance(teacher, EnsembleTeacher):
        read = is_ensemble(table.spec)
        tables = ensemble_tables(table, trust_code=trust)[1] if read else ()
        members = list(
            zip(teacher.teachers, tables or [table] * len(teacher.teachers), strict=True)
        )
    every = []
    for member, its in members:
        if isinstance(member, FrozenTeacher):
            found = check_teacher(member, its, trust_code=trust)
            refuse(found, its.spec, anyway=recipe.run.anyway)
            every += found
    return every


def checked(teacher: Teacher, recipe: Recipe, report: Reporter) -> list[Finding]:
    """`examined`, and shown."""
    found = examined(teacher, recipe)
    report.findings(found)
    return found


def _is_open(recipe: Recipe, teacher: Teacher) -> bool:
    """Whether a student is still to be chosen: by its name, or where none was named, for images to
    which the default is no answer."""
    named = "spec" in recipe.student.model_fields_set
    return recipe.student.spec == "auto" or (plans.is_large(teacher.spec) and not named)


def _beside(
    recipe: Recipe, teacher: Teacher, cut: Callable[[float], Pruned]
) -> tuple[list[Classifier], Classifier | None]:
    """The networks that learn before the student and beside it, each begun as the student is; but a
    peer of its own kind with random weights, as they would stay alike for ever."""
    table, trust = recipe.teaching, recipe.run.trust_code

    def made(spec: str, key: str) -> Classifier:
        alike = key == "peer" and spec == recipe.student.spec
        if spec == "auto":
            raise InputError(f"teaching.{key}: name a network: auto is for the student")
        if alike and is_pruned(spec):
            raise InputError(
                f"teaching.peer {quoted(spec)}: cut out of the teacher as the student is, it would "
                "stay like it for ever: give another ratio"
            )
        of_it = _table_of(recipe, spec)
        if alike:
            of_it = of_it.model_copy(update={"start": "new"})
        try:
            return new_student(of_it, teacher, trust_code=trust, cut=cut).to(teacher.device)
        except InputError as error:
            raise InputError(f"teaching.{key}: {error}") from None

    assistants = []
    for place, spec in enumerate(table.assistants, start=1):
        with globally(generator_for(recipe.run.seed, "assistant", place)):
            assistants.append(made(spec, "assistants"))
    with globally(generator_for(recipe.run.seed, "peer")):
        return assistants, made(table.peer, "peer") if table.peer else None


def _cut(teacher: Teacher, report: Reporter, ratio: float) -> Pruned:
    """The teacher's body that costs a share `ratio` less, by what it sees in drawings."""
    spec = teacher.spec
    count = max(16, min(LOOKED_AT, LOOKED_PIXELS // (spec.height * spec.width)))
    report.say(f"cutting a student of {1 - ratio:.0%} of the cost out of the teacher …")
    images = partial(assorted, count, spec.shape)
    return pruned_teacher(teacher.network, ratio, images)


def _chosen_student(
    recipe: Recipe,
    teacher: FrozenTeacher,
    report: Reporter,
    cut: Callable[[float], Pruned],
) -> tuple[Recipe, dict[str, Any], list[Finding]]:
    """The recipe with the student that `--student auto` stands for."""
    best = best_student(recipe.student, teacher, cut)
    promised, choice = "", {}
    if best.latency_ms is not None and best.conditions is not None:
        promised = f", {best.latency_ms:.3g} ms alone ({best.conditions})"
        choice = {"latency_ms": best.latency_ms, **asdict(best.conditions)}
    report.say(
        f"student auto: {best.name}, {best.params:,} weights, {best.flops:,.0f} operations an "
        f"image{promised}"
    )
    return _with_student(recipe, best.name), choice, list(best.findings)


def _with_student(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a student that was chosen within its limits."""
    decided = {"spec": name, "max_params": None, "max_flops": None, "max_latency_ms": None}
    table = recipe.student.model_copy(update=decided)
    return recipe.model_copy(update={"student": table})


def _check(recipe: Recipe, plan: plans.Plan) -> None:
    """Refuses a plan in which no student learns, without end, or with nothing to learn from."""
    if not any(stage.student_steps for stage in plan.stages):
        raise InputError(
            "no stage of this pipeline trains the student: see run.stages and student_steps"
        )
    if recipe.budget.minutes is None and recipe.budget.images is None:
        raise InputError("the pipeline has no budget: give --minutes or --images-seen")
    if recipe.data.synthetic or not sources_of(recipe).synthetic:
        return
    for stage in plan.stages:
        if stage.synthesizes and stage.fresh:
            return
        if stage.student_steps:
            raise InputError(
                f"stage {stage.name} trains the student before any stage has synthesized an image: "
                "run a stage with fresh images first, or give --synthetic"
            )


def images_for(
    recipe: Recipe, source: Any, teacher: Teacher, *, labelled: bool, spec: ImageSpec | None = None
) -> Images:
    """The images of a data path or of a living object, as this recipe reads them, fitted to its
    teacher, or to another `spec`."""
    spec = spec or teacher.spec
    only: tuple[int, ...] = ()
    others, classes, names = False, teacher.classes, teacher.names
    if isinstance(teacher, FrozenTeacher) and (whole := teacher.classifier).only:
        only, others = whole.only, whole.others
        classes, names = whole.all_classes, whole.all_names
    if not isinstance(source, str | Path):
        found = images_of(
            source, spec, classes=classes, labelled=labelled, names=names,
            table=recipe.data,
        )  # fmt: skip
    else:
        found = load_images(
            str(source), spec, classes=classes, labelled=labelled,
            trust_code=recipe.run.trust_code, names=names, table=recipe.data,
        )  # fmt: skip
    return restricted(found, only, others=others, names=teacher.names) if only else found


def images_for_both(
    recipe: Recipe, source: Any, teacher: Teacher, student: nn.Module
) -> tuple[Images, Images | None]:
    """Labelled images as a teacher takes them; and, where a student tells that it takes others
    (`spec`), the same as it takes them: read anew, as pixels that were left out for the teacher do
    not come back."""
    images = images_for(recipe, source, teacher, labelled=True)
    spec = getattr(student, "spec", None)
    if not isinstance(spec, ImageSpec) or spec.shape == teacher.spec.shape:
        return images, None
    own = images_for(recipe, source, teacher, labelled=True, spec=spec)
    assert images.labels is not None and own.labels is not None
    if not torch.equal(images.labels, own.labels):
        raise InputError(
            f"{quoted(images.source)}: it is read twice, for a student and a teacher of different "
            "images, and gave other labels the second time: let it give the same each time"
        )
    return images, own


def open_data(lab: Lab, *, real_data: Any = None) -> Opened:
    """Opens what the recipe allows, and nothing else: real images for batches, and a finished
    synthetic data set in the place of a generator."""
    recipe, teacher = lab.recipe, lab.teacher
    table = recipe.data
    found = Opened()
    beside = (*recipe.teaching.assistants, *filter(None, (recipe.teaching.peer,)))
    found.level = max(
        promise_of(recipe.generator.start, teacher.digest),
        *(
            _level_of_student(recipe.model_copy(update={"student": table}), teacher.digest)
            for table in (recipe.student, *(_table_of(recipe, name) for name in beside))
        ),
    )
    if lab.sources.real:
        given = table.real if real_data is None else real_data
        real = images_for(recipe, given, teacher, labelled=False)
        found.data["real"] = {
            "path": table.real, "digest": real.digest, "images": len(real.pixels)
        }  # fmt: skip
        found.real_images, found.notes = len(real.pixels), real.notes
        found.level = max(found.level, 2)  # labels, where there are any, are not used
        lab.use_real(real.pixels)
    if table.synthetic and lab.sources.synthetic:
        store = open_store(Path(table.synthetic))
        if store.classes != teacher.classes:
            raise InputError(
                f"--synthetic {quoted(table.synthetic)} has {store.classes} classes, "
                f"the teacher {teacher.classes}"
            )
        check_same_classes(store.names, teacher.names, f"--synthetic {quoted(table.synthetic)}")
        made = load_images(table.synthetic, teacher.spec, classes=store.classes, labelled=True)
        assert made.labels is not None
        # a set that does not tell its level is of the lowest
        found.level = max(found.level, inherited_level(store.manifest, teacher.digest, unknown=3))
        found.data["synthetic"] = {
            "path": table.synthetic, "digest": made.digest, "images": len(made.pixels)
        }  # fmt: skip
        lab.fill(made.pixels, made.labels)
    return found


def _table_of(recipe: Recipe, spec: str) -> StudentTable:
    """The table of a network that learns before the student or beside it."""
    return recipe.student.model_copy(update={"spec": spec, "weights": "", "args": {}})


def _level_of_student(recipe: Recipe, digest: str) -> int:
    """The promise level that a student's first weights allow, under the teacher of this digest. A
    source that does not tell is of the lowest."""
    table = recipe.student
    manifest = Path(table.spec) / "manifest.json"
    if manifest.is_file():
        known = read_table(manifest, f"--student {quoted(table.spec)}")
        return inherited_level(known, digest, unknown=3)
    if table.spec == "demo":  # the teacher's own weights, or those of one that saw labelled digits
        return 0 if recipe.teacher.spec == "demo" else 3
    brought = Path(table.spec).exists() or table.spec.startswith(("hf:", "onnx:", "<"))
    return 3 if table.weights or brought else 0
