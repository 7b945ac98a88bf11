"""`synthkd inspect`: a network's card, what would be done with it, and what looks wrong."""

import json
from typing import Any

from synthkd.checks import inspection
from synthkd.checks.teacher import check_teacher
from synthkd.commands.display import Display
from synthkd.core.findings import as_data
from synthkd.engine.estimate import memory_of
from synthkd.engine.machine import peak_memory_mb, prepare
from synthkd.recipe import Recipe
from synthkd.specs import load_teacher
from synthkd.synthesis import plan as plans

IMAGES = 10_000  # for which times are told


def run(recipe: Recipe, *, as_json: bool = False) -> dict[str, Any]:
    """Prints the card of `recipe.teacher` and returns it as plain data."""
    display = Display(quiet=as_json)
    recipe, device, bfloat16 = prepare(recipe)
    teacher = load_teacher(recipe.teacher, trust_code=recipe.run.trust_code).to(device)
    teacher.low_precision = bfloat16
    display.say("asking the teacher about drawings, to see what looks wrong …")
    found = check_teacher(teacher, recipe.teacher, trust_code=recipe.run.trust_code)
    spec = teacher.spec
    display.say("timing its answers …")
    costs = inspection.costs(teacher)
    the_plan = plans.plan(recipe, teacher)
    one = spec.channels * spec.height * spec.width + 2 * teacher.classes
    expected = memory_of(
        teacher, the_plan.stages, None, batch=recipe.training.batch,
        remembered=float(recipe.memory.capacity * one), bfloat16=bfloat16,
    )  # fmt: skip
    steps = max((s.synthesis_steps for s in the_plan.stages if s.generator == "pixels"), default=0)
    card: dict[str, Any] = {
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
    if as_json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
        return card
    names = ", ".join(teacher.names[:10]) + (", …" if teacher.classes > 10 else "")
    refined = card["seconds_per_10000_refined"]
    display.table("card", ("what", "value"), [
        ("network", f"{card['network']}, {card['parameters']:,} parameters, "
                    f"{costs.flops / 1e6:,.1f} million operations an image"),
        ("input", f"{spec.channels} x {spec.height} x {spec.width}, mean "
                  f"{_numbers(spec.mean)}, std {_numbers(spec.std)}"),
        ("classes", f"{teacher.classes}: {names}"),
        ("answers", f"{card['answers_read']}; access: {teacher.access}"),
        ("BatchNorm layers", str(len(teacher.norms)) if teacher.norms else "none"),
        ("features", str(teacher.feature_size or "none: the last layer is not linear")),
        ("10,000 answers", f"{card['seconds_per_10000_answers']:.1f} s on this machine, "
                           f"{recipe.run.precision}"),
        ("answered", card["fast_answers"]),
        *([("10,000 refined images", f"{refined:.0f} s ({steps} steps each)")] if refined else []),
        ("memory", f"{card['peak_memory_mb']:,.0f} MB until now; up to about "
                   f"{expected / 1e9:.1f} GB in a run that remembers {recipe.memory.capacity:,} "
                   "images"),
        ("sha256", teacher.digest),
    ])  # fmt: skip
    display.plan(the_plan, f"as the pipeline {recipe.pipeline} would do it")
    display.findings(found)
    return card


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
