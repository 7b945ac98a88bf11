"""Measures against plain loops, scikit-learn, torch-fidelity and cases that can be done by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    mutual_info_score,
    top_k_accuracy_score,
)
from sklearn.metrics.pairwise import cosine_similarity

from synthkd import measures


def answers(count: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 2


def labels_of(count: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


LEARNED, TAUGHT = answers(200, 5, 1), answers(200, 5, 2)
LABELS = labels_of(200, 5, 3)


def test_accuracy_and_agreement_are_those_of_scikit_learn():
    learned, taught = LEARNED.argmax(1), TAUGHT.argmax(1)
    assert measures.accuracy(LEARNED, LABELS) == accuracy_score(LABELS, learned)
    assert measures.agreement(LEARNED, TAUGHT) == accuracy_score(taught, learned)


def test_nothing_has_no_accuracy():
    assert math.isnan(measures.accuracy(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)))


def test_per_class_accuracy_is_the_recall_of_a_class():
    table = confusion_matrix(LABELS, LEARNED.argmax(1))
    expected = table.diagonal() / table.sum(1)
    assert measures.per_class_accuracy(LEARNED, LABELS).tolist() == pytest.approx(expected)


def test_per_class_agreement_counts_by_label_or_else_by_the_teachers_vote():
    votes = TAUGHT.argmax(1)
    for given, classes in ((LABELS, LABELS), (None, votes)):
        found = measures.per_class_agreement(LEARNED, TAUGHT, given)
        for k in range(5):
            same = [LEARNED[i].argmax() == votes[i] for i in range(200) if classes[i] == k]
            assert found[k].item() == pytest.approx(sum(same).item() / len(same))


def test_a_class_without_images_has_no_accuracy():
    found = measures.per_class_accuracy(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2].isnan()


def test_kl_is_the_sum_over_classes_of_p_log_p_over_q():
    total = 0.0
    for s, t in zip(LEARNED.tolist(), TAUGHT.tolist(), strict=True):
        q = [math.exp(a) / sum(map(math.exp, s)) for a in s]
        p = [math.exp(a) / sum(map(math.exp, t)) for a in t]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert measures.kl(LEARNED, TAUGHT) == pytest.approx(total / 200)


def test_kl_is_taken_from_the_teacher():
    sure, unsure = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert measures.kl(unsure, sure) == pytest.approx(math.log(2), abs=1e-6)
    assert measures.kl(sure, unsure) == pytest.approx(10 - math.log(2), abs=1e-6)


def test_kl_vanishes_when_they_agree_and_does_not_see_a_shift_of_all_logits():
    assert measures.kl(TAUGHT + 7, TAUGHT) == pytest.approx(0, abs=1e-6)


def test_ece_is_the_loop_over_fifteen_bins():
    p = LEARNED.double().softmax(1).numpy()
    confidence, hit = p.max(1), p.argmax(1) == LABELS.numpy()
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert measures.ece(LEARNED, LABELS) == pytest.approx(expected)


def test_a_calibrated_classifier_has_no_calibration_error():
    logits = torch.tensor([[math.log(3.0), 0.0]]).expand(4, 2)  # says 75 %
    assert measures.ece(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)


def test_the_vote_histogram_counts_every_image_once():
    counts = measures.vote_histogram(LEARNED)
    assert counts.tolist() == np.bincount(LEARNED.argmax(1).numpy(), minlength=5).tolist()


def test_relative_entropy_of_as_many_classes_as_images_is_one():
    """Three images cannot name more than three of a thousand classes."""
    counts = torch.zeros(1000, dtype=torch.int64)
    counts[[2, 500, 999]] = 1
    assert measures.relative_entropy(counts) == pytest.approx(1.0)
    counts[2] = 2  # of four images: 3/2 log 2 of 2 log 2
    assert measures.relative_entropy(counts) == pytest.approx(0.75)


def test_relative_entropy_of_two_even_classes_among_four_is_a_half():
    assert measures.relative_entropy(torch.tensor([3, 3, 0, 0])) == pytest.approx(0.5)


def test_teacher_inception_score_is_torch_fidelitys_for_one_split():
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    expected = isc.isc_features_to_metric(LEARNED, splits=1)["inception_score_mean"]
    found = measures.teacher_inception_score(LEARNED, splits=1)
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert found.std == 0


def test_teacher_inception_score_lies_between_one_and_the_number_of_classes():
    sure = 99 * torch.eye(5).repeat(400, 1)
    assert measures.teacher_inception_score(torch.ones(50, 5)).mean == pytest.approx(1)
    assert measures.teacher_inception_score(sure, splits=1).mean == pytest.approx(5)


def test_teacher_inception_score_does_not_fall_for_a_set_sorted_by_class():
    sorted_by_class = 99 * torch.eye(5).repeat_interleave(400, 0)
    found = measures.teacher_inception_score(sorted_by_class)
    assert found.splits == 10
    assert found.mean > 4.9


@pytest.mark.parametrize(("count", "splits"), [(1, 1), (9, 1), (10, 2), (49, 9), (50, 10)])
def test_small_sets_get_fewer_splits_so_that_each_can_hold_every_class(count, splits):
    found = measures.teacher_inception_score(answers(count, 5, 0))
    assert found.splits == splits
    assert math.isfinite(found.mean)


def test_diversity_is_the_mean_over_all_pairs_of_a_class():
    features = answers(60, 8, 4)
    labels = labels_of(60, 4, 5)
    found = measures.intra_class_diversity(features, labels, 4)
    for k in range(4):
        cosine = cosine_similarity(features[labels == k].numpy())
        n = len(cosine)
        expected = np.mean([1 - cosine[i, j] for i in range(n) for j in range(n) if i != j])
        assert found[k].item() == pytest.approx(expected, abs=1e-6)


def test_copies_have_no_diversity_and_a_lone_image_has_no_value():
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0], [1.0, 0.0]])
    found = measures.intra_class_diversity(features, torch.tensor([0, 0, 1]), 3)
    assert found[0].item() == pytest.approx(0, abs=1e-12)
    assert found[1:].isnan().all()


def test_a_zero_feature_is_unlike_everything():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = measures.intra_class_diversity(features, torch.tensor([0, 0]), 1)
    assert found.item() == 1


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_near_duplicates_are_those_of_the_full_cosine_table(chunk):
    features = answers(100, 3, 6)
    table = cosine_similarity(features.numpy())
    np.fill_diagonal(table, -1)
    expected = (table.max(1) > 0.99).mean()
    assert 0 < expected < 1
    assert measures.near_duplicate_rate(features, chunk=chunk) == pytest.approx(expected)


def test_real_images_are_semantically_consistent_by_construction():
    features = answers(90, 6, 7) + 3 * torch.eye(6)[labels_of(90, 3, 8)]
    labels = labels_of(90, 3, 8)
    value = measures.semantic_consistency(features, labels, features, labels, 3)
    assert value == pytest.approx(1)


def test_semantic_consistency_is_the_loop_over_images_and_centres():
    real_labels, labels = labels_of(60, 3, 9), labels_of(30, 3, 10)
    real = answers(60, 6, 11) + 4 * torch.eye(6)[real_labels]
    made = answers(30, 6, 12) + 2 * torch.eye(6)[labels]
    unit = torch.nn.functional.normalize(real.double(), dim=1)
    centres = torch.stack([unit[real_labels == k].mean(0) for k in range(3)])

    def cos(a, b):
        return float(a.double() @ b / (a.double().norm() * b.norm()))

    def own(x, y):
        return np.mean([cos(a, centres[k]) for a, k in zip(x, y.tolist(), strict=True)])

    floor = np.mean(
        [
            cos(a, centres[k])
            for a, y in zip(real, real_labels.tolist(), strict=True)
            for k in range(3)
            if k != y
        ]
    )
    expected = (own(made, labels) - floor) / (own(real, real_labels) - floor)
    found = measures.semantic_consistency(made, labels, real, real_labels, 3)
    assert 0 < expected < 1
    assert found == pytest.approx(expected)


def test_random_labels_are_right_by_chance_and_score_one_over_the_number_of_classes():
    labels = labels_of(3000, 4, 13)
    real = answers(3000, 8, 14) + 6 * torch.eye(8)[labels]
    shuffled = labels_of(3000, 4, 15)
    found = measures.semantic_consistency(real, shuffled, real, labels, 4)
    assert found == pytest.approx(1 / 4, abs=0.03)


def test_a_class_without_real_images_is_left_out():
    labels = torch.tensor([0, 0, 1, 1])
    real = torch.eye(3)[labels]
    made_labels = torch.tensor([0, 1, 2])
    found = measures.semantic_consistency(torch.eye(3), made_labels, real, labels, 3)
    assert found == pytest.approx(1)


def test_consistency_has_no_value_where_real_classes_look_alike():
    same = torch.ones(4, 3)
    labels = torch.tensor([0, 0, 1, 1])
    assert math.isnan(measures.semantic_consistency(same, labels, same, labels, 2))


def test_the_data_free_consistency_is_one_on_the_prototypes_and_falls_with_the_angle():
    prototypes = torch.eye(2)
    labels = torch.tensor([0, 1])
    at = math.pi / 8  # own cosine cos(at), other sin(at): (cos − sin) / (1 − sin)
    turned = torch.tensor([[math.cos(at), math.sin(at)], [math.sin(at), math.cos(at)]])
    expected = (math.cos(at) - math.sin(at)) / (1 - math.sin(at))
    assert measures.semantic_consistency_free(prototypes, labels, prototypes) == 1
    found = measures.semantic_consistency_free(turned, labels, prototypes)
    assert found == pytest.approx(expected, rel=1e-6)


def test_collapse_counts_classes_under_half_of_the_references_diversity():
    mine = torch.tensor([0.1, 0.3, 0.2, math.nan])
    reference = torch.tensor([0.4, 0.4, 0.5, 0.4])
    assert measures.collapse_rate(mine, reference) == pytest.approx(2 / 3)


def test_the_contingency_table_is_scikit_learns_confusion_matrix():
    table = measures.contingency(LEARNED, TAUGHT)
    expected = confusion_matrix(TAUGHT.argmax(1), LEARNED.argmax(1), labels=range(5))
    assert table.tolist() == expected.tolist()


def test_transfer_efficiency_is_mutual_information_over_entropy():
    learned, taught = LEARNED.argmax(1).numpy(), TAUGHT.argmax(1).numpy()
    expected = mutual_info_score(taught, learned) / mutual_info_score(taught, taught)
    table = measures.contingency(LEARNED, TAUGHT)
    assert measures.transfer_efficiency(table) == pytest.approx(expected)


@pytest.mark.parametrize("agreement", [0.763, 0.95])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_transfer_efficiency_of_even_classes_and_errors_has_a_closed_form(classes, agreement):
    wrong = 1 - agreement
    lost = -agreement * math.log(agreement) - wrong * math.log(wrong / (classes - 1))
    expected = 1 - lost / math.log(classes)
    table = torch.full((classes, classes), (1 - agreement) / (classes - 1))
    table.fill_diagonal_(agreement)
    assert measures.transfer_efficiency(table) == pytest.approx(expected, rel=1e-5)


def test_the_shares_of_classes_average_to_the_whole():
    table = measures.contingency(LEARNED, TAUGHT)
    shares = measures.transfer_efficiency_by_class(table)
    p = table.sum(1).double() / table.sum()
    told = (p * -p.log() * shares).sum() / (p * -p.log()).sum()
    assert told.item() == pytest.approx(measures.transfer_efficiency(table))


def test_votes_that_have_nothing_to_do_with_one_another_transfer_nothing_after_correction():
    """Of 300 images in 10 x 10 cells the plain estimate has 0.07 where the truth is 0."""
    rng = torch.Generator().manual_seed(0)
    plain, corrected, by_class = [], [], []
    for _ in range(40):
        pairs = torch.randint(100, (300,), generator=rng)
        table = pairs.bincount(minlength=100).view(10, 10)
        plain.append(measures.transfer_efficiency(table))
        corrected.append(measures.transfer_efficiency(table, corrected=True))
        by_class.append(measures.transfer_efficiency_by_class(table, corrected=True).mean().item())
    assert sum(plain) / 40 > 0.05
    assert sum(corrected) / 40 < 0.012
    assert sum(by_class) / 40 < 0.03
    alike = torch.diag(torch.arange(1, 6))
    assert measures.transfer_efficiency(alike, corrected=True) == pytest.approx(1)
    assert measures.transfer_efficiency_by_class(alike, corrected=True).tolist() == [1] * 5


def test_a_class_without_votes_has_no_share():
    shares = measures.transfer_efficiency_by_class(torch.tensor([[3, 1, 0], [0, 0, 0], [1, 2, 0]]))
    assert shares.isnan().tolist() == [False, True, False]


def test_a_teacher_that_always_votes_alike_transfers_nothing_measurable():
    assert math.isnan(measures.transfer_efficiency(torch.tensor([[3, 4], [0, 0]])))


def test_pooled_moments_of_uneven_batches_are_those_of_all_pixels():
    images = answers(70, 3 * 4 * 4, 16).view(70, 3, 4, 4) * 5 + 1
    parts = images.split([32, 32, 6])

    def moments(x):
        return [(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))]

    ((mean, var),) = measures.pooled([moments(part) for part in parts], [32, 32, 6])
    ((all_mean, all_var),) = moments(images.double())
    assert torch.allclose(mean, all_mean, atol=1e-5)
    assert torch.allclose(var, all_var, atol=1e-4)


def test_data_free_frechet_is_the_distance_between_diagonal_gaussians():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    mean, m = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0])
    var, v = torch.tensor([4.0, 0.25]), torch.tensor([1.0, 2.0])

    def gaussian(a, b):
        return {"mu": a.double().numpy(), "sigma": np.diag(b.double().numpy())}

    full = metric_fid.fid_statistics_to_metric(gaussian(mean, var), gaussian(m, v), False)
    expected = full["frechet_inception_distance"] / 3.0  # the trace of v
    assert measures.data_free_frechet([(mean, var)], [(m, v)]) == pytest.approx(expected)
    two = measures.data_free_frechet([(mean, var), (m, v)], [(m, v), (m, v)])
    assert two == pytest.approx(expected / 2)


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_top_five_is_that_of_scikit_learn(count):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 25, generator=rng)
    labels = torch.randint(25, (200,), generator=rng)
    oracle = top_k_accuracy_score(labels, logits, k=min(count, 25), labels=range(25))
    assert measures.top(logits, labels, count) == pytest.approx(oracle)
