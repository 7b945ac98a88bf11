"""Whether a budget is enough to refine images of every class, before anything is made."""

from collections.abc import Sequence

from synthkd.engine.progress import budget_of
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage
from synthkd.synthesis.plan import FEW_CLASSES
from synthkd.synthesis.tuning import seconds_of
from synthkd.teachers.protocol import Teacher


def without_too_few(
    recipe: Recipe, stages: Sequence[Stage], teacher: Teacher, student: Classifier
) -> tuple[Recipe, tuple[Stage, ...], tuple[str, ...]]:
    """The recipe and the plan's stages with `pixels.least_per_class` applied, which is then 0, and
    why: with more than ten classes, stages that refine images are left out where they would refine
    fewer for each class, and their part of the budget goes to the others.

    A student that begins with random weights learns a few refined images of a class by heart, and
    they take the place of drawings. How many there will be is the stage's part of the budget over
    what an image takes: in minutes by the time of a few steps, in images by its number of steps.
    Nothing is left out where `run.stages` names the stages, where nothing else makes images, and
    for a student that is cut out of its teacher, which has learned already.
    """
    least, chosen = recipe.pixels.least_per_class, tuple(stages)
    recipe, chosen = kept(recipe, chosen, [stage.name for stage in chosen])
    refining = [s for s in chosen if s.generator == "pixels" and s.synthesis_steps]
    others = [s for s in chosen if s.synthesizes and s not in refining]
    asked = bool(recipe.run.stages) or student.kept or teacher.classes <= FEW_CLASSES
    if not least or asked or not refining or not others:
        return recipe, chosen, ()
    budget, expected = budget_of(recipe.budget, chosen), 0.0
    for stage, quota in zip(chosen, budget.quotas, strict=True):
        if stage in refining:
            count, cost = stage.synthesis_batch, float(stage.synthesis_steps)  # of an image
            if budget.timed:
                cost = seconds_of(recipe, stage, teacher, count) / count
            expected += quota / cost
    each = int(expected / teacher.classes)
    if each >= least:
        return recipe, chosen, ()
    names = " and ".join(dict.fromkeys(stage.name for stage in refining))
    recipe, chosen = kept(recipe, chosen, [s.name for s in chosen if s not in refining])
    return recipe, chosen, (
        f"{names} left out: the budget would refine {each} images of each of {teacher.classes} "
        f"classes, and fewer than {least} are learned by heart: drawings alone",
    )  # fmt: skip


def kept(
    recipe: Recipe, stages: Sequence[Stage], names: Sequence[str]
) -> tuple[Recipe, tuple[Stage, ...]]:
    """The recipe and the plan's stages without those that are not named, as it was decided: then
    `pixels.least_per_class` is 0."""
    if list(names) != [stage.name for stage in stages]:
        table = tuple(stage for stage in recipe.stage if stage.name in names)
        recipe = recipe.model_copy(update={"stage": table})
    chosen = tuple(stage for stage in stages if stage.name in names)
    made = {stage.generator for stage in chosen}
    gone = {stage.generator for stage in stages} - made
    shares = {name: share for name, share in recipe.memory.shares.items() if name not in gone}
    decided = {
        "memory": recipe.memory.model_copy(update={"shares": shares}),
        "pixels": recipe.pixels.model_copy(update={"least_per_class": 0}),
    }
    return recipe.model_copy(update=decided), chosen
