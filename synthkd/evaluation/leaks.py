"""What a network tells about who was in the training data: attacks by those who hold the data.

An attack scores examples (`evaluation.membership`); what it finds of the members stands beside what
a random score finds. N examples, K classes, S shadow networks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.data.shadows import Shadows
from synthkd.evaluation import membership
from synthkd.evaluation.membership import Floats, TruePositives

RATES = (0.01, 0.001)  # false positive rates at which members are counted
LIMITS = "can show a leak, cannot show its absence"
SCORES = {
    "loss": "loss",
    "lira-offline": "LiRA, shadows without the image",
    "lira-online": "LiRA, shadows with and without it",
}


class Group(NamedTuple):
    """Examples that are attacked together."""

    name: str
    labels: NDArray[np.int64]  # [N], those of the training
    member: NDArray[np.bool_]  # [N], whether the teacher had them
    rows: NDArray[np.int64]  # [N], their places among the images of the shadow networks
    as_trained: bool = True  # whether shadow networks had them with these labels, if they had them
    by_coin: bool = False  # whether a fair coin decided who was a member
    images: NDArray[np.int64] | None = None  # [N], where several examples are of one image


@dataclass(frozen=True)
class Rate:
    """Members found at a false positive rate, with an exact 95 % interval; None: the non-members
    are too few for it."""

    false_positive_rate: float  # at most
    non_members_needed: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    false_positives: int | None = None
    by_chance: float | None = None  # the share of the members that a random score would find


@dataclass(frozen=True)
class Attack:
    """One attack on one network."""

    network: str  # teacher or student
    group: str
    score: str  # one of SCORES
    members: int
    non_members: int
    auc: float
    auc_low: float
    auc_high: float
    rates: tuple[Rate, ...]
    auc_by_chance: float = 0.5
    epsilon_lower_bound: float | None = None  # of the teacher's training, if a coin chose members
    epsilon_by_chance: float = 0.0


def attacks(
    network: str, logits: NDArray[Any], group: Group, shadows: NDArray[Any] | None = None,
    had: NDArray[np.bool_] | None = None,
) -> Iterator[Attack]:  # fmt: skip
    """Every attack on a network that answered `logits` [N, K] to a group.

    By the loss; and where there are answers of shadow networks, [S, N', K] with `had` [S, N'], by
    LiRA: offline where each example has two networks without it, online where it has two with it
    too. Raises InputError where shadow networks are given and are of no use.
    """
    scores = {"loss": membership.loss_scores(logits, group.labels)}
    if shadows is not None and had is not None:
        scores |= _by_shadows(logits, group, shadows, had)
    for name, found in scores.items():
        yield attack(network, group, name, found)


def attack(network: str, group: Group, score: str, found: Floats) -> Attack:
    """What a score [N] of a group's examples finds."""
    inside, outside = found[group.member], found[~group.member]
    of = group.images
    images = None if of is None else (of[group.member], of[~group.member])
    area = membership.auc(inside, outside, images=images)
    epsilon = None
    if group.by_coin:
        epsilon = membership.epsilon_lower_bound(*membership.one_run_guesses(inside, outside))
    rates = tuple(_rate(one, membership.tpr_at_fpr(inside, outside, one)) for one in RATES)
    return Attack(
        network, group.name, score, len(inside), len(outside), *area, rates,
        epsilon_lower_bound=epsilon,
    )  # fmt: skip


def _rate(rate: float, found: TruePositives | None) -> Rate:
    needed = membership.least_non_members(rate)
    if found is None:
        return Rate(rate, needed)
    return Rate(rate, needed, *found.rate, found.false_positives, found.by_chance)


def _by_shadows(
    logits: NDArray[Any], group: Group, shadows: NDArray[Any], had: NDArray[np.bool_]
) -> dict[str, Floats]:
    had = had[:, group.rows]
    least = membership.FEWEST_SHADOWS
    outside, inside = int((~had).sum(0).min()), int(had.sum(0).min())
    if outside < least:
        raise InputError(
            f"--shadows: an image of the {group.name} was left out by {outside} of the "
            f"{len(had)} networks; LiRA needs {least} without each image: train each on a random "
            "half"
        )
    asked = membership.logit_confidence(logits, group.labels)
    known = membership.logit_confidence(shadows[:, group.rows], group.labels)
    pooled = outside < membership.OWN_VARIANCE
    scores = {"lira-offline": membership.lira_offline(asked, known, had, pooled=pooled)}
    if group.as_trained and inside >= least:
        pooled = min(outside, inside) < membership.OWN_VARIANCE
        scores["lira-online"] = membership.lira_online(asked, known, had, pooled=pooled)
    return scores


def wrong_labels(labels: NDArray[np.int64], classes: int, seed: int) -> NDArray[np.int64]:
    """For each label [N] one of the other classes, all alike likely.

    >>> wrong_labels(np.array([0, 1, 1]), 2, 0).tolist()
    [1, 0, 0]
    """
    steps = np.random.default_rng(seed).integers(1, classes, len(labels))
    return np.asarray((labels + steps) % classes, dtype=np.int64)


def shared(members: Tensor, non_members: Tensor) -> list[Finding]:
    """The finding that some non-members are members: equal bytes, uint8 [N, C, H, W]."""
    known = {image.tobytes() for image in members.numpy()}
    twice = sum(image.tobytes() in known for image in non_members.numpy())
    if not twice:
        return []
    return [
        Finding(
            "members-among-non-members",
            f"{twice:,} of {len(non_members):,} non-members are images of the members too",
            "leave them out: each hides a leak",
            serious=True,
        )
    ]


def out_of_order(
    shadows: Shadows, labels: NDArray[np.int64], rows: NDArray[np.int64], accuracy: float
) -> list[Finding]:
    """The finding that shadow networks do not seem to answer the images that were given: on the
    images of `rows`, whose `labels` are right, half as often right as the teacher's `accuracy`, or
    less."""
    votes = shadows.logits[:, rows].argmax(2)
    share = float((votes == labels[None, :]).mean())
    if share > accuracy / 2:
        return []
    return [
        Finding(
            "shadows-out-of-order",
            f"the shadow networks are right on {share:.1%} of the images, and the teacher on "
            f"{accuracy:.1%}",
            "are their images in the order members, non-members, canaries, canaries left out?",
            serious=True,
        )
    ]
