"""Which images a run may use: derived once from its recipe, and asked everywhere else."""

from dataclasses import dataclass

from synthkd.recipe.tables import Recipe


@dataclass(frozen=True)
class Sources:
    """Where the images of a run come from. `ratio` is used as a ratio and for nothing else."""

    real: bool  # real images may be read
    synthetic: bool  # synthetic images are made, or read
    ratio: float  # share of synthetic ones among those that the student sees, 0..1


def sources_of(recipe: Recipe, *, student: bool = True) -> Sources:
    """The sources of a recipe. Without a student there is nothing to mix: real images may be read
    where they are given.

    >>> sources_of(Recipe())
    Sources(real=False, synthetic=True, ratio=1.0)
    """
    if not student:
        return Sources(real=bool(recipe.data.real), synthetic=True, ratio=1.0)
    ratio = recipe.data.mix_ratio
    return Sources(real=ratio < 1, synthetic=ratio > 0, ratio=ratio)
