"""Membership inference: was an example in the training data? N examples, S shadow networks, K
classes.

A score is the larger the more an example looks like a member. Logits are [N, K] or [S, N, K],
labels int [N]: the label that an example is trained with, be it right or wrong. All sums run in
float64.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

CONFIDENCE = 0.95  # of every interval
FEWEST_SHADOWS = 2  # on a side of an example: a variance needs two
OWN_VARIANCE = 32  # shadows on a side from which an example has a variance of its own
LEAST_VARIANCE = 1e-12  # of answers that never differ

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Estimate(NamedTuple):
    """A number between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class TruePositives(NamedTuple):
    """The share of members that a threshold finds which few non-members reach."""

    rate: Estimate  # the interval is that of Clopper and Pearson
    threshold: float
    false_positives: int  # non-members above the threshold
    members: int
    non_members: int
    by_chance: float  # the share of members that a random score would find


def loss_scores(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Minus the cross-entropy of the label, in nats: log p_y, at most 0.

        z_y − log Σ_j exp z_j

    Yeom et al. 2018, section 3.2: https://arxiv.org/abs/1709.01604
    Returns [N] or [S, N].

    >>> loss_scores(np.zeros((1, 4)), np.array([2])).round(6).tolist()  # −log 4
    [-1.386294]
    """
    z = np.asarray(logits, dtype=np.float64)
    return _of_label(special.log_softmax(z, axis=-1), labels)


def logit_confidence(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """The log-odds of the label, which over shadow networks look like a Gaussian.

        φ = log( p_y / (1 − p_y) ) = z_y − log Σ_{j ≠ y} exp z_j

    The right side stays exact where p_y rounds to 1. It orders the examples of one network as
    `loss_scores` does.
    Carlini et al. 2022, section IV.C: https://arxiv.org/abs/2112.03570
    Returns [N] or [S, N].

    >>> logit_confidence(np.array([[800.0, 0.0]]), np.array([0])).tolist()
    [800.0]
    """
    z = np.asarray(logits, dtype=np.float64)
    own = np.asarray(labels)[:, None] == np.arange(z.shape[-1])  # [N, K]
    others: Floats = special.logsumexp(np.where(own, -np.inf, z), axis=-1)
    return _of_label(z, labels) - others


def _of_label(values: Floats, labels: NDArray[Any]) -> Floats:
    places = np.broadcast_to(np.asarray(labels)[:, None], (*values.shape[:-1], 1))
    return np.take_along_axis(values, places, axis=-1)[..., 0]


def lira_online(asked: Floats, shadows: Floats, member: Flags, *, pooled: bool = True) -> Floats:
    """The log-likelihood ratio of two Gaussians per example: shadows with it, shadows without.

        log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²)

    `asked` are the `logit_confidence` of the network under attack, [N], `shadows` those of the
    shadow networks, [S, N], and `member` says which of these had the example, bool [S, N]. A
    variance is of one example, or `pooled`: one of all examples for each side, around their own
    means, which few shadows need.
    Carlini et al. 2022, section IV.B and VI.B: https://arxiv.org/abs/2112.03570
    Raises ValueError where an example has fewer than 2 shadows on a side.

    >>> shadows, member = np.array([[1.0], [3.0], [-3.0], [-1.0]]), np.array([[1], [1], [0], [0]])
    >>> lira_online(np.array([2.0]), shadows, member.astype(bool)).round(6).tolist()
    [4.0]
    """
    return _online(asked, shadows, member, ~member, pooled)


def lira_offline(asked: Floats, shadows: Floats, member: Flags, *, pooled: bool = True) -> Floats:
    """How far above the shadows that never had the example the network's confidence lies.

        z = (φ − μ_out) / σ_out

    The published score is Pr[N(μ_out, σ_out²) ≤ φ], the normal distribution function of z: it has
    the same order, and z does not saturate. Arguments are those of `lira_online`.
    Carlini et al. 2022, section IV.D: https://arxiv.org/abs/2112.03570
    Raises ValueError where an example has fewer than 2 shadows without it.

    >>> out = np.zeros((2, 1), dtype=bool)
    >>> lira_offline(np.array([3.0]), np.array([[-1.0], [1.0]]), out).round(6).tolist()
    [2.12132]
    """
    return _offline(asked, shadows, ~member, pooled)


def _online(asked: Floats, shadows: Floats, inside: Flags, outside: Flags, pooled: bool) -> Floats:
    one, other = (
        stats.norm.logpdf(asked, mean, np.sqrt(variance))
        for mean, variance in (_gaussian(shadows, side, pooled) for side in (inside, outside))
    )
    return np.asarray(one - other, dtype=np.float64)


def _offline(asked: Floats, shadows: Floats, outside: Flags, pooled: bool) -> Floats:
    mean, variance = _gaussian(shadows, outside, pooled)
    return np.asarray((asked - mean) / np.sqrt(variance), dtype=np.float64)


def _gaussian(values: Floats, taken: Flags, pooled: bool) -> tuple[Floats, Floats]:
    """Mean and unbiased variance [N] over the shadows that are `taken`, [S, N]."""
    counts = taken.sum(0)
    if counts.size and counts.min() < FEWEST_SHADOWS:
        raise ValueError(f"an example has {counts.min()} shadows on a side; 2 are needed")
    mean = np.where(taken, values, 0.0).sum(0) / counts
    squares = np.where(taken, values - mean, 0.0) ** 2
    if pooled:
        variance = np.full_like(mean, squares.sum() / (counts - 1).sum())
    else:
        variance = squares.sum(0) / (counts - 1)
    return mean, np.maximum(variance, LEAST_VARIANCE)


def leave_one_out(
    shadows: Floats, member: Flags, *, online: bool, pooled: bool = True, seed: int = 0
) -> Floats:
    """Every network attacked with the others as its shadows: scores [S, N].

    `shadows` are the `logit_confidence` of S networks, [S, N], `member` bool [S, N]. For each
    example one more network is left out, drawn (by `seed`) from those on the other side than the
    one under attack. So each side has one less than it has in all, whichever side that one is on;
    without it, the numbers themselves would tell, and without any leak the area under the curve
    would lie below 0.5.
    Raises ValueError where an example is left with fewer than 2 shadows on a side.
    """
    rng = np.random.default_rng(seed)
    scores = np.empty(shadows.shape)
    for place, asked in enumerate(shadows):
        other = member != member[place]
        dropped = np.where(other, rng.random(other.shape), -1.0).argmax(0)  # [N]
        used = np.ones_like(member)
        used[place] = used[dropped, np.arange(member.shape[1])] = False
        inside, outside = member & used, ~member & used
        scores[place] = (
            _online(asked, shadows, inside, outside, pooled)
            if online
            else _offline(asked, shadows, outside, pooled)
        )
    return scores


def least_non_members(rate: float) -> int:
    """How many non-members a false positive rate needs: so many that one of them is allowed.

    >>> least_non_members(0.01), least_non_members(0.001)
    (100, 1000)
    """
    return math.ceil(1 / rate - 1e-9)


def tpr_at_fpr(members: Floats, non_members: Floats, rate: float) -> TruePositives | None:
    """True positive rate at a false positive rate of at most `rate`, 0..1.

        t = the (⌊rate · n⌋ + 1)-th largest of the n scores of non-members
        share of the members with a score > t

    The non-members alone fix the threshold; among equal scores none counts as found. The exact 95 %
    interval (Clopper & Pearson 1934) is that of the members for this threshold, and knows nothing
    of how the non-members happened to fall. A constant score finds none of the members, a random
    one (⌊rate · n⌋ + 1) / (n + 1) of them: with n = 1 / rate twice the rate.
    Carlini et al. 2022, section III: https://arxiv.org/abs/2112.03570
    None where there are fewer than 1 / `rate` non-members: such a rate cannot be measured with
    them. `members` [M] and `non_members` [N] are scores, M at least 1.

    >>> found = tpr_at_fpr(np.array([9.0, 98.5, 200.0]), np.arange(100.0), 0.01)
    >>> round(found.rate.value, 3), found.threshold, found.false_positives
    (0.667, 98.0, 1)
    >>> round(found.by_chance, 4)
    0.0198
    """
    count = len(non_members)
    if count < least_non_members(rate):
        return None
    allowed = math.floor(rate * count + 1e-9)
    threshold = float(np.sort(non_members)[count - 1 - allowed])
    hits = int((members > threshold).sum())
    above = int((non_members > threshold).sum())
    return TruePositives(
        proportion(hits, len(members)), threshold, above, len(members), count,
        by_chance=(allowed + 1) / (count + 1),
    )  # fmt: skip


def proportion(hits: int, count: int) -> Estimate:
    """A share with its exact 95 % interval of Clopper and Pearson (1934), by scipy.

    >>> proportion(0, 10).low, round(proportion(0, 10).high, 3)
    (0.0, 0.308)
    """
    low, high = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(hits / count, float(low), float(high))


def auc(
    members: Floats,
    non_members: Floats,
    *,
    images: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> Estimate:
    """How often a member has a higher score than a non-member, equal ones counted half: 0..1, 0.5
    for a random or a constant score.

        A = (Σ ranks of the members − M (M + 1) / 2) / (M N)
        var A = var(V) / M + var(W) / N,   V_i the share of non-members below member i,
                                           W_j the share of members above non-member j

    The 95 % interval is symmetric for log(A / (1 − A)), with the standard deviation of DeLong et
    al. 1988 (https://doi.org/10.2307/2531595) divided by A (1 − A). Where A is 0 or 1 that
    variance is 0; then min(M, N) disjoint pairs, all ordered alike, give the exact interval.
    `members` [M] and `non_members` [N] are scores; M and N at least 2. Where several are of one
    image, `images` are the numbers from 0 on of that of each, [M] and [N]; then, over I images,

        var A = I / (I − 1) Σ_images (Σ (V − A) / M + Σ (W − A) / N)²

    Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data".

    >>> auc(np.array([1.0, 3.0]), np.array([0.0, 2.0])).value
    0.75
    """
    m, n = len(members), len(non_members)
    ranks = stats.rankdata(np.concatenate([members, non_members]))
    value = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    count = min(m, n) if images is None else len(np.unique(np.concatenate(images)))
    if value in (0.0, 1.0):
        fewest = min(m, n, count)
        return proportion(round(value) * fewest, fewest)
    below = (ranks[:m] - stats.rankdata(members)) / n
    above = 1 - (ranks[m:] - stats.rankdata(non_members)) / m
    if images is None:
        variance = below.var(ddof=1) / m + above.var(ddof=1) / n
    else:
        size = max(int(of.max()) for of in images) + 1
        each = np.bincount(images[0], (below - value) / m, size)
        each = each + np.bincount(images[1], (above - value) / n, size)
        variance = count / (count - 1) * (each**2).sum()
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(variance) / (value * (1 - value))
    middle = special.logit(value)
    return Estimate(value, *(float(special.expit(middle + s * reach)) for s in (-1, 1)))


def one_run_guesses(included: Floats, left_out: Floats, *, seed: int = 0) -> tuple[int, int]:
    """How many canaries of one training are guessed right, and how many guesses there are.

    The half of all canaries with the higher scores is guessed to have been included, the other half
    to have been left out; of an odd number the one in the middle is not guessed. Equal scores are
    put in a random order, by `seed`. `included` [M] and `left_out` [N] are scores.

    >>> one_run_guesses(np.array([3.0, 2.0]), np.array([1.0, 2.5]))
    (2, 4)
    """
    scores = np.concatenate([included, left_out])
    truth = np.arange(len(scores)) < len(included)
    order = np.random.default_rng(seed).permutation(len(scores))
    order = order[np.argsort(scores[order], kind="stable")]
    half = len(scores) // 2
    right = int((~truth[order[:half]]).sum()) + int(truth[order[len(scores) - half :]].sum())
    return right, 2 * half


def epsilon_lower_bound(correct: int, guesses: int) -> float:
    """The least ε of a differentially private training (δ = 0) that 95 % confidence leaves, after
    one run in which a fair coin decided for each canary whether it was included.

        max(0, log(q / (1 − q))),   q the 5 % point of Beta(correct, guesses − correct + 1)

    Under ε-differential privacy the number of right guesses is at most that of a binomial with
    e^ε / (1 + e^ε). The bound holds for whatever is computed from the trained network, a student
    too. Guesses must not be chosen by the truth.
    Steinke, Nasr & Jagielski 2023, theorem 2.1: https://arxiv.org/abs/2305.08846

    >>> round(epsilon_lower_bound(20, 20), 2), epsilon_lower_bound(10, 20)
    (1.82, 0.0)
    """
    if correct == 0:
        return 0.0
    share = float(stats.beta.ppf(1 - CONFIDENCE, correct, guesses - correct + 1))
    return max(0.0, float(special.logit(share)))
