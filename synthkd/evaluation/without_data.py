"""How often a student would agree with its teacher on real images, estimated without any.

The student is asked about images that are refined anew for the teacher, from drawings, and that
nobody learned from, and about blends of two of these (`probes`). With the share x_k of set k, of n,
in which it agrees,

    estimate = expit(Σ_k logit(x_k) / n),    interval = expit(… ± REACH)

Which sets, and how far off that is, come from students of which the truth is known:
benchmarks/without_data.py makes them, benchmarks/without_data_fit.py compares such rules, also
fitted ones, on teachers and data that were left out (docs/how-to/evaluate.md).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from synthkd import measures
from synthkd.evaluation.compare import answers_of
from synthkd.evaluation.probes import STEPS, ProbeSet, probe_panel, refine_some
from synthkd.recipe import Recipe
from synthkd.teachers.protocol import Teacher, asked_freely

PROBES = ("refined.drawings.40", "refined.drawings.blends.0.85")
REACH = 0.9  # of the log-odds
NOT_SUITED = (
    "no estimate without data: its images are refined by the teacher's gradients, and this teacher "
    "gives none, or has independent classes"
)
LEAST = 0.01  # shares are kept as far from 0 and 1: some hundred images tell no more


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


def by_rule(shares: Sequence[float], by: float = 0.0) -> float:
    """The rule above, for the agreement on each of some sets; `by` moves the log-odds.

    >>> round(by_rule([0.5, 0.5], math.log(3)), 6), round(by_rule([0.9, 0.1]), 6)
    (0.75, 0.5)
    """
    kept = [min(max(share, LEAST), 1 - LEAST) for share in shares]
    odds = sum(math.log(share / (1 - share)) for share in kept) / len(kept) + by
    return 1 / (1 + math.exp(-odds))


def probes_suit(teacher: Teacher) -> bool:
    """Whether an estimate can be made for the students of a teacher: it gives gradients, may be
    asked as often as one likes, and its classes exclude one another."""
    return teacher.access == "full" and not teacher.independent and asked_freely(teacher)


def probes_for(recipe: Recipe, teacher: Teacher, seed: int = 0) -> list[ProbeSet]:
    """The images that `estimate_agreement` asks about, for a teacher that they suit."""
    return list(probe_panel(recipe, teacher, seed=seed, only=PROBES))


def seconds_for_probes(recipe: Recipe, teacher: Teacher) -> float:
    """What `probes_for` takes on this machine, by a few of the steps that it makes; the first ones
    pay for what is prepared once."""
    times = []
    for steps in (1, 1, 3):
        began = time.perf_counter()
        refine_some(recipe, teacher, steps)
        times.append(time.perf_counter() - began)
    step = max(0.0, times[2] - times[1]) / 2
    return times[1] + STEPS[-1] * step


def estimate_agreement(student: nn.Module, probes: Sequence[ProbeSet]) -> AgreementEstimate:
    """Asks a student about probes of its teacher. Raises InputError where it does not answer finite
    numbers."""
    shares, constants = [], []
    for each in probes:
        answers = answers_of(student, each.images, 256, "student")
        shares.append(measures.agreement(answers, each.logits))
        votes = each.logits.argmax(1).bincount()
        constants.append(int(votes.max()) / int(votes.sum()))
    return AgreementEstimate(
        by_rule(shares), by_rule(shares, -REACH), by_rule(shares, REACH),
        sum(len(each.images) for each in probes), by_rule(constants),
    )  # fmt: skip
