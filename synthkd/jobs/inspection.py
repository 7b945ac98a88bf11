"""What is known of a network before anything is done with it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from synthkd.checks import inspection
from synthkd.checks.teacher import check_teacher
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding, as_data
from synthkd.engine.estimate import memory_of
from synthkd.engine.machine import peak_memory_mb, prepare
from synthkd.engine.reporter import Reporter, Silent
from synthkd.evaluation.teacher_quality import DRAWN, TeacherQuality, scores, teacher_quality
from synthkd.recipe import Recipe, TeacherTable
from synthkd.specs import load_teacher
from synthkd.specs.ensembles import ensemble_tables, is_ensemble
from synthkd.synthesis import GENERATORS
from synthkd.synthesis import plan as plans

IMAGES = 10_000  # for which times are told
REMEMBERED = 20_000  # images, for what memory a run needs that nobody has planned yet
Card = dict[str, Any]  # plain data, as `synthkd inspect --json` prints it


class Ranked(NamedTuple):
    """A teacher with its score among others."""

    quality: TeacherQuality
    score: float  # see evaluation.teacher_quality.scores


def rank(
    recipe: Recipe, others: Sequence[str] = (), *, report: Reporter | None = None
) -> list[Ranked]:
    """Which of several teachers is likely to teach best, the best first: that of the recipe and
    `others`, SPECs with the same flags, each of them a teacher or a file of teachers."""
    report = report or Silent()
    recipe, device, _ = prepare(recipe)
    trust = recipe.run.trust_code
    tables: list[TeacherTable] = []
    for spec in (recipe.teacher.spec, *others):
        table = recipe.teacher.model_copy(update={"spec": spec})
        several = is_ensemble(spec)
        tables += ensemble_tables(table, trust_code=trust)[1] if several else (table,)
    if len(tables) < 2:
        raise InputError("--rank compares teachers: give several SPECs, or ensemble:FILE.toml")
    found = []
    for table in tables:
        report.say(f"measuring {quoted(table.spec)} on {DRAWN} drawings …")
        teacher = load_teacher(table, trust_code=trust, shared=True).to(device)
        named = f"{table.spec} {table.weights}".strip()
        found.append(replace(teacher_quality(teacher), described=named))
    ranked = [Ranked(*pair) for pair in zip(found, scores(found), strict=True)]
    return sorted(ranked, key=lambda each: -each.score)


class Inspection(NamedTuple):
    """A network, looked at."""

    card: Card
    plan: plans.Plan  # what the recipe would do with it
    findings: list[Finding]  # what looks wrong
    refine_steps: int  # of an image whose seconds the card tells


def inspect(recipe: Recipe, *, network: Any = None, report: Reporter | None = None) -> Inspection:
    """Looks at `recipe.teacher`, or at a living network: input, classes, answers, what a run would
    do with it and cost, and what looks wrong."""
    report = report or Silent()
    recipe, device, bfloat16 = prepare(recipe)
    teacher = load_teacher(recipe.teacher, trust_code=recipe.run.trust_code, network=network).to(
        device
    )
    teacher.low_precision = bfloat16
    report.say("asking the teacher about drawings, to see what looks wrong …")
    found = check_teacher(teacher, recipe.teacher, trust_code=recipe.run.trust_code)
    spec = teacher.spec
    report.say("timing its answers …")
    costs = inspection.costs(teacher)
    recipe, reasons = plans.suited(recipe, teacher)
    the_plan = plans.plan(recipe, teacher)
    the_plan = plans.Plan(the_plan.stages, (*the_plan.reasons, *reasons))
    expected = memory_of(
        teacher, the_plan.stages, None, batch=recipe.training.batch,
        remembered=float(min(recipe.memory.capacity, REMEMBERED)),
        bfloat16=bfloat16,
    )  # fmt: skip
    synthesizing = [s for s in the_plan.stages if s.synthesizes]
    refining = [s for s in synthesizing if GENERATORS[s.generator].abilities.refines]
    steps = max((s.synthesis_steps for s in refining), default=0)
    card: Card = {
        "spec": recipe.teacher.spec,
        "sha256": teacher.digest,
        "network": type(teacher.classifier.body).__name__,
        "parameters": teacher.parameters_count,
        "operations_per_image": costs.flops,
        "input": {
            "channels": spec.channels, "height": spec.height, "width": spec.width,
            "mean": list(spec.mean), "std": list(spec.std),
        },
        "classes": teacher.classes,
        "names": list(teacher.names),
        "answers": teacher.classifier.answers,
        "answers_read": str(teacher.classifier.reading),
        "access": teacher.access,
        "batchnorm_layers": len(teacher.norms),
        "features": teacher.feature_size,
        "seconds_per_10000_answers": IMAGES * costs.answer,
        "seconds_per_10000_refined": None if costs.gradient is None or not steps
        else IMAGES * steps * costs.gradient,
        "peak_memory_mb": peak_memory_mb(device),
        "expected_memory_mb": round(expected / 1e6, 1),
        "precision": recipe.run.precision,
        "fast_answers": teacher.folded_reason or "by the network itself",
        "notes": as_data(teacher.notes),
        "plan": list(the_plan.reasons),
        "stages": [stage.model_dump() for stage in the_plan.stages],
        "findings": as_data(found),
        "warnings": [str(one) for one in found],
    }  # fmt: skip
    return Inspection(card, the_plan, found, steps)
