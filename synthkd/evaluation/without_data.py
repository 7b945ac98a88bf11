"""How often a student would agree with its teacher on real images, estimated without any.

The student is asked about images that are refined anew for the teacher, from drawings, and that
nobody learned from, and about blends of two of these (`probes`). The mean x of the shares of all
in which it agrees is the estimate, and between

    sin²(arcsin √x − REACH)    and    sin²(arcsin √x + REACH)

(the scale on which shares of n images have a variance of 1/4n wherever they lie) lay nine of ten
students of which the truth is known. benchmarks/without_data.py makes these students,
benchmarks/without_data_fit.py compares such rules, also fitted ones, on teachers and data that were
left out (docs/how-to/evaluate.md).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from synthkd import measures
from synthkd.evaluation.compare import answers_of
from synthkd.evaluation.probes import ProbeSet, probe_panel
from synthkd.recipe import Recipe
from synthkd.teachers.protocol import Teacher, asked_freely

PROBES = (
    "refined.drawings.40", "refined.drawings.blends.0.85", "refined.drawings.blends.0.7",
)  # fmt: skip
REACH = 0.3  # radians
NOT_SUITED = (
    "no estimate without data: its images are refined by the teacher's gradients, and this teacher "
    "gives none, or has independent classes"
)


@dataclass(frozen=True)
class AgreementEstimate:
    """The agreement with the teacher that is to be expected on real images, 0..1."""

    agreement: float
    low: float  # nine of ten students lay between these
    high: float
    images: int  # that the student was asked about
    constant: float  # the same estimate for a classifier that always names one class

    def as_data(self) -> dict[str, Any]:
        """For a summary."""
        return asdict(self)


def interval(share: float, reach: float = REACH) -> tuple[float, float]:
    """The interval around an estimate.

    >>> [round(value, 6) for value in interval(0.5, math.pi / 12)], interval(1.0)[1]
    ([0.25, 0.75], 1.0)
    """
    middle = math.asin(math.sqrt(share))
    low, high = max(0.0, middle - reach), min(math.pi / 2, middle + reach)
    return math.sin(low) ** 2, math.sin(high) ** 2


def probes_suit(teacher: Teacher) -> bool:
    """Whether an estimate can be made for the students of a teacher: it gives gradients, may be
    asked as often as one likes, and its classes exclude one another."""
    return teacher.access == "full" and not teacher.independent and asked_freely(teacher)


def probes_for(recipe: Recipe, teacher: Teacher, seed: int = 0) -> list[ProbeSet]:
    """The images that `estimate_agreement` asks about, for a teacher that they suit."""
    return list(probe_panel(recipe, teacher, seed=seed, only=PROBES))


def estimate_agreement(student: nn.Module, probes: Sequence[ProbeSet]) -> AgreementEstimate:
    """Asks a student about probes of its teacher. Raises InputError where it does not answer finite
    numbers."""
    shares, constants = [], []
    for each in probes:
        answers = answers_of(student, each.images, 256, "student")
        shares.append(measures.agreement(answers, each.logits))
        votes = each.logits.argmax(1).bincount()
        constants.append(int(votes.max()) / int(votes.sum()))
    share, images = sum(shares) / len(shares), sum(len(each.images) for each in probes)
    return AgreementEstimate(share, *interval(share), images, sum(constants) / len(constants))
