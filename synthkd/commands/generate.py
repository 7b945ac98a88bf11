"""`synthkd generate`: a synthetic data set that a teacher agrees with."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from synthkd import recipe as recipes
from synthkd.commands.display import Display
from synthkd.commands.machine import peak_memory_mb, prepare
from synthkd.distillation import Lab, invent, rounds
from synthkd.errors import InputError
from synthkd.images import Batch, to_uint8
from synthkd.recipe import Recipe
from synthkd.runs import PROMISES, claim, environment, free_name
from synthkd.seeds import source
from synthkd.specs import load_teacher
from synthkd.store import Writer
from synthkd.synthesis import plan as plans
from synthkd.synthesis.gan import Gan, borrow, save_generator
from synthkd.synthesis.judging import ADVERSARIAL

PATIENCE = 20  # images drawn per image wanted before a class is given up


def run(recipe: Recipe, *, dry_run: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Invents images for a teacher and writes them as a data set. Returns its manifest.

    A generator that learns is trained first, or loaded; pixels and drawings are made as they are
    written."""
    started = time.perf_counter()
    display = Display(quiet=quiet)
    recipe, device, bfloat16 = prepare(borrow(recipe))
    teacher = load_teacher(recipe.teacher, trust_code=recipe.run.trust_code).to(device)
    the_plan = plans.plan(recipe, teacher)
    # what a generator does alone: the stages without a student, or the first that invents anything
    alone = [s for s in the_plan.stages if s.generator != "none" and not s.student_steps]
    alone = alone or [s for s in the_plan.stages if s.generator != "none"][:1]
    if not alone:
        raise InputError(
            "no stage of this pipeline has a generator: see run.stages and stage.NAME.generator"
        )
    stages = [s.model_copy(update={"student_steps": 0, "terms": _alone(s.terms)}) for s in alone]
    # a loaded generator is not trained on
    trained = not recipe.generator.start
    budget = (
        f"{recipe.budget.minutes:g} minutes"
        if recipe.budget.minutes
        else f"{recipe.budget.images or 0:,} images"
    )
    display.plan(
        plans.Plan(tuple(stages), the_plan.reasons),
        f"{budget} of training" if trained else "no training",
    )
    if dry_run:
        print(recipes.to_toml(recipe), end="")
        return {}
    out = Path(recipe.run.out) if recipe.run.out else free_name(Path("synthetic"))
    claim(out)
    small = recipe.model_copy(
        update={"memory": recipe.memory.model_copy(update={"capacity": 4096})}
    )
    kind = stages[-1].generator
    # a generator that learns does so before it is sampled; the others invent as they go, from what
    # the stages before them put into the memory
    lab = Lab(small, stages, teacher, None, device=device, bfloat16=bfloat16)
    generator = lab.generators[kind]
    learns = isinstance(generator, Gan)

    def offer(rng: torch.Generator) -> Batch:
        if isinstance(generator, Gan):
            return generator.sample(256, rng)
        return invent(lab, stages[-1], rng).batch

    training: dict[str, Any] = {"from": recipe.generator.start or None, "images": 0, "seconds": 0.0}
    if not trained:
        assert isinstance(generator, Gan)
        generator.take_over(recipe.generator.start)
    elif learns or len(stages) > 1:
        try:
            for lap in rounds(lab):
                display.follow(lap)
                stage = next(s for s in stages if s.name == lap.stage)
                training |= {
                    "images": training["images"] + stage.synthesis_batch * stage.synthesis_steps,
                    "seconds": round(lap.progress.seconds, 2),
                    "last": lap.measures,
                }
                if not learns and lab.stage == stages[-1]:
                    break
        finally:
            display.stop()
    if isinstance(generator, Gan):
        if trained:
            generator.settle(source(recipe.run.seed, "settle"))
        save_generator(generator, out / "generator.safetensors")
    writing = time.perf_counter()
    with Writer(
        out,
        teacher.spec,
        teacher.classes,
        teacher.names,
        shard=recipe.dataset.shard,
        folders=recipe.dataset.folders,
    ) as writer:
        drawn, agreed, missed = _fill(writer, offer, lab, recipe, display)
        manifest = {
            **environment(),
            "teacher": recipe.teacher.spec,
            "teacher_sha256": teacher.digest,
            "generator": kind,
            "seed": recipe.run.seed,
            "promise_level": 0,
            "promise": PROMISES[0],
            "real_images_read": 0,
            "plan": list(the_plan.reasons),
            "recipe": recipes.to_toml(recipe),
            "training": training,
            "drawn": drawn,
            "agreed_share": agreed / max(1, drawn),
            "classes_not_filled": missed,
            "seconds_writing": round(time.perf_counter() - writing, 2),
            "wall_seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": peak_memory_mb(device),
        }
        writer.close(manifest)
        count = writer.count
    rows = [
        ("images", f"{count:,} in {out}"),
        ("agreed", f"{manifest['agreed_share']:.1%} of {drawn:,} drawn: the teacher agrees"),
        ("seconds", f"{manifest['wall_seconds']:.0f}: training {training['seconds']:.0f}, "
                    f"drawing and writing {manifest['seconds_writing']:.0f}"),
        ("real images read", "0"),
        ("contact sheet", str(out / "contact_sheet.png")),
    ]  # fmt: skip
    if missed:
        rows.insert(
            1, ("too few of", ", ".join(f"class {k}: {n} missing" for k, n in missed.items()))
        )
    display.table("result", ("what", "value"), rows)
    return manifest


def _alone(terms: dict[str, float]) -> dict[str, float]:
    """Terms that need no student."""
    return {name: weight for name, weight in terms.items() if name not in ADVERSARIAL}


def _fill(
    writer: Writer, offer: Callable[[torch.Generator], Batch], lab: Lab, recipe: Recipe,
    display: Display,
) -> tuple[int, int, dict[str, int]]:
    """Draws until every class has its even share of images in which the teacher sees what was asked
    for.

    Batch k depends on the seed and on k alone. After PATIENCE images per image wanted the rest is
    given up. Returns how many were drawn, in how many the teacher agreed, and what is missing.
    """
    classes, wanted = lab.teacher.classes, recipe.dataset.count
    quota = torch.full((classes,), wanted // classes)
    quota[: wanted % classes] += 1
    drawn = agreed = batch = 0
    shown = time.monotonic()
    while int(quota.sum()) and drawn < PATIENCE * wanted + 1024:
        made = offer(source(recipe.run.seed, "image", batch))
        pixels = to_uint8(made.images).cpu()
        logits = lab.label(pixels, exact=True)  # what is written shall hold anywhere
        votes = logits.argmax(1)
        labels = torch.where(made.labels.cpu() < 0, votes, made.labels.cpu())
        keep = []
        alike = (votes == labels).nonzero().flatten().tolist()
        agreed += len(alike)
        for i in alike:
            if quota[labels[i]] > 0:
                quota[labels[i]] -= 1
                keep.append(i)
        index = torch.tensor(keep, dtype=torch.int64)
        writer.add(pixels[index], labels[index], logits[index])
        drawn, batch = drawn + len(pixels), batch + 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            display.say(f"{writer.count:,} of {wanted:,} images written, {drawn:,} drawn")
    missed = {str(k): int(n) for k, n in enumerate(quota.tolist()) if n}
    return drawn, agreed, missed
