"""Membership inference against plain Python, sums over binomials, scikit-learn and simulation."""

import math
from itertools import product
from statistics import NormalDist, mean, stdev, variance

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from synthkd.evaluation import membership
from synthkd.evaluation.membership import (
    auc,
    epsilon_lower_bound,
    leave_one_out,
    lira_offline,
    lira_online,
    logit_confidence,
    loss_scores,
    one_run_guesses,
    proportion,
    tpr_at_fpr,
)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


# Scores


def test_the_loss_is_torchs_cross_entropy_and_the_confidence_its_log_odds():
    logits, labels = 3 * random(50, 6), np.arange(50) % 6
    nats = F.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none")
    found = loss_scores(logits, labels)
    assert found == pytest.approx(-nats.numpy())
    p = np.exp(found)
    assert logit_confidence(logits, labels) == pytest.approx(np.log(p / (1 - p)))
    assert logit_confidence(logits, labels).argsort().tolist() == found.argsort().tolist()
    several = np.stack([logits, -logits])
    assert logit_confidence(several, labels)[1] == pytest.approx(logit_confidence(-logits, labels))
    assert loss_scores(several, labels).shape == (2, 50)


def test_the_confidence_stays_exact_where_the_probability_rounds_to_one_or_nothing():
    logits = np.array([[900.0, 1.0, 0.0], [-900.0, 1.0, 0.0]], dtype=np.float32)
    others = math.log(math.e + 1)
    found = logit_confidence(logits, np.array([0, 0]))
    assert found.tolist() == pytest.approx([900 - others, -900 - others], rel=1e-12)


def shadows(count: int, examples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences of shadow networks, who had what (half of them), and confidences asked about."""
    rng = np.random.default_rng(1)
    member = rng.random((count, examples)).argsort(0) < count // 2
    values = rng.normal(size=(count, examples)) + member
    return values, member, rng.normal(size=examples)


def test_the_likelihood_ratio_is_that_of_two_normal_distributions():
    values, member, asked = shadows(10, 7)
    found = lira_online(asked, values, member, pooled=False)
    offline = lira_offline(asked, values, member, pooled=False)
    for i, phi in enumerate(asked):
        inside, outside = (values[side[:, i], i].tolist() for side in (member, ~member))
        a, b = (NormalDist(mean(one), stdev(one)) for one in (inside, outside))
        assert found[i] == pytest.approx(math.log(a.pdf(phi) / b.pdf(phi)))
        assert NormalDist().cdf(offline[i]) == pytest.approx(b.cdf(phi))


def test_a_pooled_variance_is_the_mean_of_all_examples_variances():
    values, member, asked = shadows(8, 30)  # four on each side, so the plain mean of variances
    sides = [[values[side[:, i], i].tolist() for i in range(30)] for side in (member, ~member)]
    spread = [math.sqrt(mean(variance(one) for one in side)) for side in sides]
    found = lira_online(asked, values, member)
    for i, phi in enumerate(asked):
        a, b = (NormalDist(mean(side[i]), s) for side, s in zip(sides, spread, strict=True))
        assert found[i] == pytest.approx(math.log(a.pdf(phi) / b.pdf(phi)))


def test_answers_that_never_differ_give_a_number():
    values, member = np.ones((6, 4)), np.arange(6)[:, None].repeat(4, 1) < 3
    assert np.isfinite(lira_online(np.array([1.0, 1, 2, 0]), values, member)).all()
    assert (lira_offline(np.ones(4), values, member) == 0).all()


@pytest.mark.parametrize("had", [0, 1, 5, 6])
def test_an_example_with_fewer_than_two_shadows_on_a_side_is_refused(had):
    member = np.arange(6)[:, None] < had
    with pytest.raises(ValueError, match="2 are needed"):
        lira_online(np.zeros(1), np.zeros((6, 1)), member)
    if had < 5:
        lira_offline(np.zeros(1), np.zeros((6, 1)), member)  # needs those without it alone


@pytest.mark.parametrize("online", [True, False])
def test_networks_that_tell_nothing_are_not_told_apart_by_the_numbers_of_their_shadows(online):
    """Attacked with simply all the others, a member's own side would be one shadow short."""
    member = np.random.default_rng(2).random((8, 20_000)).argsort(0) < 4
    values = random(8, 20_000)
    scores = leave_one_out(values, member, online=online)
    found = auc(scores[member], scores[~member])
    assert found.low < 0.5 < found.high and found.high - found.low < 0.01


@pytest.mark.parametrize("online", [True, False])
def test_a_leak_is_found_by_leaving_each_network_out_in_turn(online):
    member = np.random.default_rng(2).random((16, 200)).argsort(0) < 8
    values = random(16, 200) + 3 * member + 10 * random(200)  # some examples are easy, most not
    scores = leave_one_out(values, member, online=online)
    assert auc(scores[member], scores[~member]).value > 0.95
    assert auc(values[member], values[~member]).value < 0.65  # one threshold for all examples


# Rates


def tail(hits: int, count: int, p: float) -> float:
    """P(at least `hits` of `count`)."""
    return sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(hits, count + 1))


@pytest.mark.parametrize(("hits", "count"), [(3, 20), (1, 7), (19, 20)])
def test_an_exact_interval_ends_where_either_tail_has_a_fortieth(hits, count):
    found = proportion(hits, count)
    assert found.value == hits / count
    assert tail(hits, count, found.low) == pytest.approx(0.025)
    assert 1 - tail(hits + 1, count, found.high) == pytest.approx(0.025)


def test_the_threshold_lets_one_in_a_hundred_of_the_non_members_pass():
    outside = np.random.default_rng(3).permutation(1000).astype(float)
    inside = np.array([5.0, 989.0, 989.5, 2000.0])
    found = tpr_at_fpr(inside, outside, 0.01)
    assert (found.threshold, found.false_positives) == (989.0, 10)
    assert found.rate.value == 0.5
    assert (found.members, found.non_members) == (4, 1000)
    rare = tpr_at_fpr(inside, outside, 0.001)
    assert (rare.threshold, rare.false_positives, rare.rate.value) == (998.0, 1, 0.25)


def test_a_rate_that_no_non_member_could_show_is_not_measured():
    assert tpr_at_fpr(np.ones(5), np.zeros(999), 0.001) is None
    assert tpr_at_fpr(np.ones(5), np.zeros(1000), 0.001) is not None
    assert tpr_at_fpr(np.ones(5), np.zeros(99), 0.01) is None
    assert membership.least_non_members(0.003) == 334


def test_a_constant_score_finds_nobody_and_a_random_one_its_share():
    assert tpr_at_fpr(np.ones(50), np.ones(200), 0.01).rate.value == 0
    rng = np.random.default_rng(4)
    found = tpr_at_fpr(rng.random(20_000), rng.random(20_000), 0.01)
    assert found.rate.value == pytest.approx(0.01, abs=0.003)


@pytest.mark.slow
def test_what_a_random_score_finds_is_told_as_it_is():
    rng = np.random.default_rng(6)
    found = [tpr_at_fpr(rng.random(500), rng.random(100), 0.01) for _ in range(400)]
    assert {one.by_chance for one in found} == {2 / 101}
    assert mean(one.rate.value for one in found) == pytest.approx(2 / 101, abs=0.003)


# The area under the curve


def test_the_area_is_the_share_of_pairs_and_its_variance_delongs():
    rng = np.random.default_rng(5)
    inside, outside = rng.integers(0, 9, 13) + 1.0, rng.integers(0, 9, 17) + 0.0  # with ties
    pairs = [[(a > b) + (a == b) / 2 for b in outside] for a in inside]
    value = mean(x for row in pairs for x in row)
    found = auc(inside, outside)
    assert found.value == pytest.approx(value)
    truth = [1] * 13 + [0] * 17
    assert found.value == pytest.approx(roc_auc_score(truth, [*inside, *outside]))
    spread = math.sqrt(
        variance(mean(row) for row in pairs) / 13
        + variance(mean(column) for column in zip(*pairs, strict=True)) / 17
    )
    middle, reach = math.log(value / (1 - value)), 1.959964 * spread / (value * (1 - value))
    ends = [1 / (1 + math.exp(-(middle + s * reach))) for s in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(ends, rel=1e-5)


def test_the_interval_of_the_area_covers_the_truth_as_often_as_it_says():
    rng, truth = np.random.default_rng(6), NormalDist().cdf(1 / math.sqrt(2))
    found = [auc(rng.normal(1, 1, 30), rng.normal(0, 1, 40)) for _ in range(400)]
    covered = mean(one.low <= truth <= one.high for one in found)
    assert 0.92 <= covered <= 0.98


def test_scores_of_the_same_images_have_a_wider_interval_that_covers_the_truth():
    """Networks in which nothing leaks, each attacked with the others: their scores depend."""
    covered, plain = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        member = rng.random((16, 60)).argsort(0).argsort(0) < 8
        scores = leave_one_out(rng.normal(size=(16, 60)), member, online=True)
        of = np.tile(np.arange(60), (16, 1))
        pair, ids = (scores[member], scores[~member]), (of[member], of[~member])
        found, narrow = auc(*pair, images=ids), auc(*pair)
        covered.append(found.low <= 0.5 <= found.high)
        plain.append(narrow.low <= 0.5 <= narrow.high)
        assert found.value == narrow.value
    assert mean(plain) < 0.91 < mean(covered)


def test_one_score_an_image_gives_delongs_interval():
    rng = np.random.default_rng(5)
    pair = rng.normal(1, 1, 300), rng.normal(0, 1, 400)
    found = auc(*pair, images=(np.arange(300), np.arange(300, 700)))
    assert found == pytest.approx(auc(*pair), rel=1e-3)


def test_a_perfect_order_has_an_interval_that_few_examples_leave_wide():
    best = auc(np.array([5.0, 6, 7]), np.arange(4.0))
    assert (best.value, best.high) == (1.0, 1.0)
    assert best.low == pytest.approx(0.025 ** (1 / 3))
    worst = auc(np.arange(4.0), np.array([5.0, 6, 7]))
    assert (worst.value, worst.low) == (0.0, 0.0)
    assert worst.high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert auc(np.ones(3), np.ones(4)).value == 0.5


# One run


@pytest.mark.parametrize(
    ("right", "of", "bound"), [(450, 500, 1.95), (495, 500, 3.85), (90, 100, 1.63), (20, 20, 1.82)]
)
def test_the_bound_of_one_run_is_that_of_a_binomial(right, of, bound):
    found = epsilon_lower_bound(right, of)
    assert found == pytest.approx(bound, abs=0.006)
    assert tail(right, of, 1 / (1 + math.exp(-found))) == pytest.approx(0.05)


def test_guesses_no_better_than_a_coin_bound_nothing():
    assert [epsilon_lower_bound(right, 20) for right in (0, 5, 10, 12)] == [0.0] * 4


def test_the_bound_exceeds_the_truth_in_at_most_one_of_twenty_runs():
    """Randomised response keeps ε = 1 exactly: each canary's coin is told with the odds e : 1."""
    rng, share = np.random.default_rng(7), math.e / (1 + math.e)
    bounds = [epsilon_lower_bound(int(rng.binomial(100, share)), 100) for _ in range(1000)]
    assert mean(bound > 1 for bound in bounds) <= 0.065
    assert max(bounds) > 0.9  # and it is not far away


def test_the_upper_half_is_guessed_to_be_in_and_ties_are_drawn():
    assert one_run_guesses(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == (4, 4)
    assert one_run_guesses(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == (0, 4)
    assert one_run_guesses(np.array([3.0, 2.0, 1.0]), np.array([2.5, 0.5])) == (2, 4)
    alike = [one_run_guesses(np.zeros(50), np.zeros(50), seed=s)[0] for s in range(40)]
    assert 45 < mean(alike) < 55 and len(set(alike)) > 1


def test_every_score_and_size_gives_ends_around_the_value():
    rng = np.random.default_rng(8)
    for m, n in product((2, 3, 40), (2, 5, 60)):
        found = auc(rng.normal(0.3, 1, m), rng.normal(0, 1, n))
        assert 0 <= found.low <= found.value <= found.high <= 1
