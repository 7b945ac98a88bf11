"""Losses against sums in plain Python, and their gradients against finite differences."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from synthkd.core.logits import as_logits
from synthkd.losses.distillation import attention_transfer, feature_match, logit_l1, soft_targets
from synthkd.losses.synthesis import TERMS, View, blended, critic_hinge
from synthkd.networks import build_network


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(**changes: object) -> View:
    """A view of three images in four classes; what a test does not name is noise."""
    parts: dict[str, object] = {
        "images": noise(3, 2, 4, 5).sigmoid(),
        "labels": torch.tensor([1, 3, 0]),
        "taught": noise(3, 4, seed=1),
        "learned": noise(3, 4, seed=2),
        "features": noise(3, 6, seed=3),
        "other_features": noise(2, 6, seed=4),
        "prototypes": noise(4, 6, seed=5),
        "moments": (
            (noise(3, seed=6), noise(3, seed=7).exp()),
            (noise(5, seed=8), noise(5, seed=9).exp()),
        ),
        "stored": (
            (noise(3, seed=10), noise(3, seed=11).exp()),
            (noise(5, seed=12), noise(5, seed=13).exp()),
        ),
        "validity": noise(3, seed=14),
        "normalised": noise(3, 2, 4, 5, seed=15),
        "embedded": noise(3, 6, seed=16),
        "embedded_other": noise(3, 6, seed=17),
        "bank": noise(2, 6, seed=18),
    }
    return View(**(parts | changes))  # type: ignore[arg-type]


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


# --- distillation ---


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_t_squared_times_the_mean_kl_of_softened_answers(temperature):
    learned, taught = noise(3, 4, seed=1), noise(3, 4, seed=2)
    expected = 0.0
    for s, t in zip(learned.tolist(), taught.tolist(), strict=True):
        p = probabilities([v / temperature for v in t])
        q = probabilities([v / temperature for v in s])
        expected += temperature**2 * kl(p, q) / 3
    found = soft_targets(learned.float(), taught.float(), temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_soft_targets_are_a_mean_over_the_batch_and_not_over_the_classes():
    learned, taught = noise(3, 4, seed=1), noise(3, 4, seed=2)
    once, twice = (
        soft_targets(learned, taught),
        soft_targets(learned.repeat(2, 1), taught.repeat(2, 1)),
    )
    assert once.item() == pytest.approx(twice.item(), rel=1e-5)
    extra = torch.full((3, 9), -1e4, dtype=torch.float64)  # nine classes that nobody ever sees
    wider = soft_targets(torch.cat([learned, extra], 1), torch.cat([taught, extra], 1))
    assert wider.item() == pytest.approx(once.item(), rel=1e-5)


def test_the_gradient_of_soft_targets_is_t_times_the_gap_of_the_softened_answers():
    """d loss / d s = T (softmax(s / T) − softmax(t / T)) / B, Hinton et al. 2015, equation 2."""
    learned, taught = noise(3, 4, seed=1).float().requires_grad_(), noise(3, 4, seed=2).float()
    soft_targets(learned, taught, temperature=3.0).backward()
    expected = 3.0 * ((learned / 3).softmax(1) - (taught / 3).softmax(1)) / 3
    assert torch.allclose(learned.grad, expected, atol=1e-6)


def test_the_gradient_of_soft_targets_keeps_its_size_when_the_temperature_grows():
    """In the limit of large T it is the gap of the centred logits over B · K."""
    learned, taught = noise(3, 4, seed=1).float().requires_grad_(), noise(3, 4, seed=2).float()
    soft_targets(learned, taught, temperature=1e3).backward()
    gap = (learned - learned.mean(1, keepdim=True)) - (taught - taught.mean(1, keepdim=True))
    assert torch.allclose(learned.grad, gap.detach() / 12, atol=1e-3)


def test_soft_targets_survive_logits_that_would_overflow():
    far = torch.tensor([[1e4, 0.0]])
    assert soft_targets(far, far).item() == 0
    assert soft_targets(far, -far).isfinite()


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log-probabilities"])
def test_answers_of_every_kind_become_logits_with_the_same_probabilities(kind):
    logits = noise(3, 4).float()
    answer = {
        "logits": logits,
        "probabilities": logits.softmax(1),
        "log-probabilities": logits.log_softmax(1),
    }
    assert torch.allclose(as_logits(answer[kind], kind).softmax(1), logits.softmax(1), atol=1e-6)


def test_logit_l1_is_the_mean_gap_of_all_logits():
    learned, taught = noise(3, 4, seed=1), noise(3, 4, seed=2)
    expected = np.abs(learned.numpy() - taught.numpy()).sum() / 12
    assert logit_l1(learned, taught).item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_logit_l1_is_the_sign_of_the_gap_however_large():
    learned, taught = torch.tensor([[900.0, 0.1]], requires_grad=True), torch.tensor([[0.0, 0.2]])
    logit_l1(learned, taught).backward()
    assert learned.grad.tolist() == [[0.5, -0.5]]


def maps(channels: tuple[int, ...], seed: int) -> list[Tensor]:
    return [noise(3, c, 4, 4 - i, seed=seed + i).float() for i, c in enumerate(channels)]


def test_attention_transfer_adds_the_mean_squared_gaps_of_the_layers():
    learned, taught, expected = maps((2, 3), 1), maps((4, 5), 3), 0.0
    for pair in zip(learned, taught, strict=True):
        s, t = ((h.double().numpy() ** 2).mean(1).reshape(3, -1) for h in pair)
        s, t = (q / np.sqrt((q**2).sum(1, keepdims=True)) for q in (s, t))
        expected += ((s - t) ** 2).sum() / s.size
    assert attention_transfer(learned, taught).item() == pytest.approx(expected, rel=1e-5)


def test_attention_transfer_ignores_scale_and_sign():
    taught = maps((2, 3), 1)
    assert attention_transfer([-7 * h for h in taught], taught).item() == pytest.approx(0, abs=1e-9)


def test_attention_moves_to_where_the_teacher_looks():
    """With q = (a², b²) / √(a⁴ + b⁴) against (1, 0) the loss is 1 − q₁, at a = b = 1 1 − √½."""
    learned = torch.ones(1, 1, 1, 2, requires_grad=True)
    loss = attention_transfer([learned], [torch.tensor([[[[5.0, 0.0]]]])])
    loss.backward()
    assert loss.item() == pytest.approx(1 - math.sqrt(0.5))
    assert learned.grad.flatten().tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_feature_match_is_the_mean_relative_squared_gap():
    learned, taught, parts = maps((2, 3), 1), maps((2, 3), 3), []
    for s, t in zip(learned, taught, strict=True):
        a, b = s.double().numpy(), t.double().numpy()
        parts.append(((a - b) ** 2).sum() / (b**2).sum())
    expected = sum(parts) / 2
    assert feature_match(learned, taught).item() == pytest.approx(expected, rel=1e-5)
    larger = feature_match([900 * h for h in learned], [900 * h for h in taught])
    assert larger.item() == pytest.approx(expected, rel=1e-5)


def test_feature_match_pulls_each_map_by_its_share_of_the_teachers_strength():
    learned, taught = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True), torch.tensor([2.0, 4.0])
    silent = torch.zeros(1, 1, 1, 2)
    feature_match([learned, silent], [taught.view(1, 1, 1, 2), silent]).backward()
    assert learned.grad.flatten().tolist() == pytest.approx([-0.05, -0.1])  # (s − t) / (2 · 10)


def test_maps_without_a_partner_are_refused():
    for loss in (attention_transfer, feature_match):
        with pytest.raises(ValueError, match="zip"):
            loss(maps((2, 3), 1), maps((2,), 3))


# --- synthesis terms ---


def test_one_hot_is_the_mean_of_minus_log_p_of_the_class_asked_for():
    v = view()
    rows = zip(v.taught.tolist(), v.labels.tolist(), strict=True)
    expected = sum(-math.log(probabilities(row)[label]) for row, label in rows) / 3
    assert TERMS["one_hot"](v).item() == pytest.approx(expected)


def test_statistics_is_the_mean_of_squashed_relative_distances():
    v = view()
    layers = []
    for (mean, var), (m, s) in zip(v.moments, v.stored, strict=True):
        channels = []
        for a, b, c, d in zip(mean.tolist(), var.tolist(), m.tolist(), s.tolist(), strict=True):
            scale = d + 1e-5
            channels.append(math.log(1 + (a - c) ** 2 / scale) + math.log(1 + (b / scale - 1) ** 2))
        layers.append(sum(channels) / len(channels))
    assert TERMS["statistics"](v).item() == pytest.approx(sum(layers) / 2)


def test_statistics_vanishes_when_the_batch_has_the_stored_moments():
    stored = view().stored
    assert TERMS["statistics"](view(moments=stored)).item() == pytest.approx(0, abs=1e-8)


def test_one_dead_channel_does_not_drown_the_statistics_of_the_others():
    alive, dead = torch.ones(8), torch.tensor([1.0] * 7 + [1e-12])
    still = torch.zeros(8)
    found = TERMS["statistics"](view(moments=((still, alive),), stored=((still, dead),)))
    assert found.item() < 10  # squared it would be 1e10


def test_statistics_norm_adds_the_lengths_of_the_gaps_of_all_layers():
    v = view()
    expected = sum(
        math.dist(mean.tolist(), m.tolist()) + math.dist(var.tolist(), s.tolist())
        for (mean, var), (m, s) in zip(v.moments, v.stored, strict=True)
    )
    assert TERMS["statistics_norm"](v).item() == pytest.approx(expected)


def test_statistics_norm_pulls_with_equal_force_from_near_and_far():
    """The gradient of a length is its direction: 3-4-5, and nothing where the gap is closed."""
    still = torch.zeros(2)
    for far in (1.0, 1000.0):
        mean = (far * torch.tensor([3.0, 4.0])).requires_grad_()
        var = torch.zeros(2, requires_grad=True)
        TERMS["statistics_norm"](view(moments=((mean, var),), stored=((still, still),))).backward()
        assert mean.grad.tolist() == pytest.approx([0.6, 0.8])
        assert var.grad.tolist() == [0.0, 0.0]


def test_blended_moments_are_mostly_those_of_before_and_pass_on_a_share_of_the_gradient():
    mean, var = (torch.tensor(x, requires_grad=True) for x in ([1.0, -2.0], [4.0, 8.0]))
    old_mean, old_var = (torch.tensor(x, requires_grad=True) for x in ([0.0, 2.0], [2.0, 0.0]))
    ((m, v),) = blended(((mean, var),), ((old_mean, old_var),), 0.75)
    assert m.tolist() == [0.25, 1.0]
    assert v.tolist() == [2.5, 2.0]
    (m.sum() + 2 * v.sum()).backward()
    assert (mean.grad.tolist(), var.grad.tolist()) == ([0.25, 0.25], [0.5, 0.5])
    assert old_mean.grad is None and old_var.grad is None


def test_the_first_moments_have_nothing_to_be_blended_with():
    moments = view().moments
    assert blended(moments, (), 0.9) is moments
    assert blended((), moments, 0.9) == ()  # a stage without statistics after one with them


def test_blended_detached_is_the_running_average_of_a_plain_loop():
    running, expected = (), None
    for seed in range(5):
        mean = noise(3, seed=seed)
        running = blended(((mean, mean.exp()),), running, 0.9)
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
    assert running[0][0].tolist() == pytest.approx(expected.tolist())


def test_prototype_pulls_to_the_own_row_and_away_from_the_nearest_other():
    v = view()
    expected = 0.0
    for phi, label in zip(v.features.tolist(), v.labels.tolist(), strict=True):
        near = [cosine(phi, w) for w in v.prototypes.tolist()]
        rival = max(c for k, c in enumerate(near) if k != label)
        expected += (1 - near[label] + max(0.0, rival - near[label] + 0.1)) / 3
    assert TERMS["prototype"](v).item() == pytest.approx(expected)


def test_prototype_leaves_alone_what_shall_be_without_its_class():
    features = noise(3, 6, seed=3).requires_grad_()
    absent = torch.tensor([False, True, False])
    value = TERMS["prototype"](view(features=features, independent=True, absent=absent))
    value.backward()
    alone = [
        TERMS["prototype"](view(features=features[[i]], labels=torch.tensor([label]))).item()
        for i, label in ((0, 1), (2, 0))
    ]
    assert value.item() == pytest.approx(sum(alone) / 3)
    assert not features.grad[1].any() and features.grad[[0, 2]].any(1).all()


def test_spread_leaves_alone_what_shall_be_without_its_class():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [4.0, 0.0]])
    labels, absent = torch.zeros(4).long(), torch.tensor([False, False, True, True])
    assert TERMS["spread"](view(features=features, labels=labels)).item() == pytest.approx(0.5)
    shown = view(features=features, labels=labels, absent=absent)
    assert TERMS["spread"](shown).item() == pytest.approx(0.0)


def test_prototype_is_zero_on_the_prototypes_themselves_and_ignores_their_length():
    rows = torch.eye(4, dtype=torch.float64)
    exact = view(
        features=7 * rows[[1, 3, 0]], prototypes=torch.tensor([[1.0], [2], [3], [4]]) * rows
    )
    assert TERMS["prototype"](exact).item() == pytest.approx(0)


def test_consistency_is_the_squared_gap_of_the_directions_of_the_first_images():
    v = view()
    pairs = zip(v.features.tolist(), v.other_features.tolist(), strict=False)  # two of the three
    expected = sum(2 - 2 * cosine(a, b) for a, b in pairs) / 2  # |u - v|² = 2 - 2 cos
    assert TERMS["consistency"](v).item() == pytest.approx(expected)


def test_consistency_is_four_for_opposite_directions():
    features = noise(3, 6)
    assert TERMS["consistency"](
        view(features=features, other_features=-2 * features)
    ).item() == pytest.approx(4)


def test_disagreement_counts_the_kl_only_where_both_vote_alike():
    taught = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0]])
    learned = torch.tensor(
        [[1.0, 0.0, 0.5], [2.0, 0.0, 0.0], [0.0, 0.0, 5.0]]
    )  # the second votes otherwise
    expected = 0.0
    for i in (0, 2):
        expected -= kl(probabilities(taught[i].tolist()), probabilities(learned[i].tolist())) / 3
    found = TERMS["disagreement"](view(taught=taught, learned=learned))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert found.item() < 0


def test_disagreement_reaches_the_image_and_is_negative_when_the_student_differs_from_the_teacher():
    teacher = build_network("resnet8-w4", channels=1, size=8, classes=2).eval()
    student = copy.deepcopy(teacher)
    student.linear.weight.data += 0.3 * torch.randn_like(student.linear.weight)
    images = torch.rand(32, 1, 8, 8, requires_grad=True)
    taught, learned = teacher(images), student(images)
    assert (taught.argmax(1) == learned.argmax(1)).any()
    value = TERMS["disagreement"](view(images=images, taught=taught, learned=learned))
    value.backward()
    assert value.item() < -1e-5
    assert images.grad.abs().max() > 0


def test_disagreement_is_zero_when_the_student_is_the_teacher():
    teacher = build_network("resnet8-w4", channels=1, size=8, classes=2).eval()
    images = torch.rand(8, 1, 8, 8, requires_grad=True)
    value = TERMS["disagreement"](
        view(images=images, taught=teacher(images), learned=teacher(images))
    )
    value.backward()
    assert value.item() == 0
    assert images.grad.abs().max() < 1e-6


def test_logit_gap_is_minus_the_mean_gap_of_all_logits():
    v = view()
    expected = -np.abs(v.learned.numpy() - v.taught.numpy()).sum() / 12
    assert TERMS["logit_gap"](v).item() == pytest.approx(expected, rel=1e-6)


def test_divergence_is_minus_the_kl_over_images_times_classes_also_where_votes_differ():
    v = view()
    assert (v.taught.argmax(1) != v.learned.argmax(1)).any()
    rows = zip(v.taught.tolist(), v.learned.tolist(), strict=True)
    expected = -sum(kl(probabilities(t), probabilities(s)) for t, s in rows) / 12
    assert TERMS["divergence"](v).item() == pytest.approx(expected)


def test_jensen_shannon_is_one_minus_the_kl_from_the_mean_of_both():
    """Answers (½, ½) and, at temperature 3, (¾, ¼): their mean is (⅝, ⅜)."""
    learned = torch.tensor([[3 * math.log(3), 0.0]], dtype=torch.float64)
    m, p, q = [0.625, 0.375], [0.5, 0.5], [0.75, 0.25]
    found = TERMS["jensen_shannon"](view(taught=torch.zeros_like(learned), learned=learned))
    assert found.item() == pytest.approx(1 - (kl(m, p) + kl(m, q)) / 2)


def test_jensen_shannon_clamps_probabilities_and_runs_from_one_to_zero():
    far = torch.tensor([[1e3, 0.0, 0.0]])
    assert TERMS["jensen_shannon"](view(taught=far, learned=far)).item() == 1
    assert TERMS["jensen_shannon"](view(taught=far, learned=-far)).item() == 0
    unsure = torch.zeros(1, 3)
    p, q, m = [0.99, 0.01, 0.01], [1 / 3] * 3, [2 / 3, 1 / 6, 1 / 6]
    found = TERMS["jensen_shannon"](view(taught=far, learned=unsure))
    assert found.item() == pytest.approx(1 - (kl(m, p) + kl(m, q)) / 2, rel=1e-5)


@pytest.mark.parametrize("term", ["disagreement", "logit_gap", "divergence", "jensen_shannon"])
def test_less_of_an_adversarial_term_is_more_difference_of_student_and_teacher(term):
    taught = noise(3, 4, seed=1)
    learned = (taught + 0.1 * noise(3, 4, seed=20)).requires_grad_()
    TERMS[term](view(taught=taught, learned=learned)).backward()
    after = learned - 0.1 * learned.grad / learned.grad.norm()
    gaps = [
        sum(
            kl(probabilities(t), probabilities(s))
            for t, s in zip(taught.tolist(), rows.tolist(), strict=True)
        )
        for rows in (learned, after)
    ]
    assert gaps[1] > gaps[0] * 1.1


@pytest.mark.parametrize("term", ["logit_gap", "divergence", "jensen_shannon"])
def test_an_adversarial_term_reaches_the_image_where_student_and_teacher_differ(term):
    teacher, student = (
        build_network("resnet8-w4", channels=1, size=8, classes=3).eval() for _ in range(2)
    )
    images = torch.rand(8, 1, 8, 8, requires_grad=True)
    TERMS[term](view(images=images, taught=teacher(images), learned=student(images))).backward()
    assert images.grad.abs().max() > 0


def test_realism_is_minus_the_mean_validity():
    assert TERMS["realism"](view(validity=torch.tensor([1.0, -2.0, 7.0]))).item() == -2


def test_balance_is_the_negative_entropy_of_the_mean_answer():
    v = view()
    rows = [probabilities(row) for row in v.taught.tolist()]
    mean = [sum(row[k] for row in rows) / 3 for k in range(4)]
    assert TERMS["balance"](v).item() == pytest.approx(sum(p * math.log(p) for p in mean))


def test_balance_is_least_for_even_classes_and_zero_for_a_single_one():
    even, single = 1e3 * torch.eye(4), torch.tensor([[1e3, 0.0, 0.0, 0.0]])
    assert TERMS["balance"](view(taught=even)).item() == pytest.approx(-math.log(4))
    assert TERMS["balance"](view(taught=single)).item() == pytest.approx(0, abs=1e-6)


def test_smoothness_is_the_mean_difference_to_the_right_and_to_the_lower_neighbour():
    v = view()
    right, below = [], []
    for image in v.images.tolist():
        for plane in image:
            right += [abs(a - b) for row in plane for a, b in pairwise(row)]
            below += [
                abs(a - b)
                for upper, lower in pairwise(plane)
                for a, b in zip(upper, lower, strict=True)
            ]
    expected = sum(right) / len(right) + sum(below) / len(below)
    assert TERMS["smoothness"](v).item() == pytest.approx(expected)


def test_smoothness_is_two_on_a_chessboard_and_zero_on_a_plain_ground():
    board = (torch.arange(6)[:, None] + torch.arange(6)[None]).remainder(2).float()
    assert TERMS["smoothness"](view(images=board[None, None])).item() == 2
    assert TERMS["smoothness"](view(images=torch.full((2, 3, 6, 6), 0.4))).item() == 0


def test_variation_adds_the_lengths_of_four_differences_over_the_whole_batch():
    x, expected = view().normalised.numpy(), 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = [
            (x[i, c, y, z] - x[i, c, y + down, z + right]) ** 2
            for i, c, y, z in np.ndindex(x.shape)
            if y + down < 4 and 0 <= z + right < 5
        ]
        expected += math.sqrt(sum(squares))
    assert TERMS["variation"](view()).item() == pytest.approx(expected)


def test_variation_grows_with_the_square_root_of_the_batch():
    x = view().normalised
    once, four = (TERMS["variation"](view(normalised=x.repeat(n, 1, 1, 1))) for n in (1, 4))
    assert four.item() == pytest.approx(2 * once.item())


def test_magnitude_is_the_mean_length_of_an_image():
    v = view()
    expected = sum(math.hypot(*image.flatten().tolist()) for image in v.normalised) / 3
    assert TERMS["magnitude"](v).item() == pytest.approx(expected)


@pytest.mark.parametrize("term", ["variation", "magnitude"])
def test_a_plain_black_image_has_neither_variation_nor_magnitude_nor_a_wild_gradient(term):
    black = torch.zeros(2, 1, 4, 4, requires_grad=True)
    value = TERMS[term](view(normalised=black))
    value.backward()
    assert value.item() == 0
    assert not black.grad.any()


def test_contrast_is_the_cross_entropy_of_finding_the_other_view_among_all():
    v, expected = view(), 0.0
    keys = v.embedded_other.tolist() + v.bank.tolist()
    for i, own in enumerate(v.embedded.tolist()):
        chances = probabilities(
            [sum(a * b for a, b in zip(own, k, strict=True)) / 0.2 for k in keys]
        )
        expected -= math.log(chances[i]) / 3
    assert TERMS["contrast"](v).item() == pytest.approx(expected)


def test_contrast_of_images_that_share_nothing_is_known_and_needs_no_bank():
    """One likeness is 1, the n − 1 others are 0: log(1 + (n − 1) exp(−1 / T)), T = 0.2."""
    rows = torch.eye(5, dtype=torch.float64)
    for bank, n in ((None, 3), (rows[3:], 5)):
        v = view(embedded=rows[:3], embedded_other=rows[:3], bank=bank)
        assert TERMS["contrast"](v).item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-5)))


def test_contrast_moves_an_image_away_from_the_bank_and_leaves_the_others_alone():
    rows = torch.eye(3)
    own, other, bank = (x.clone().requires_grad_() for x in (rows[:1], rows[1:2], rows[2:]))
    TERMS["contrast"](view(embedded=own, embedded_other=other, bank=bank)).backward()
    assert own.grad.flatten().tolist() == pytest.approx([0, -2.5, 2.5])  # ∓ ½ / 0.2
    assert other.grad is None and bank.grad is None


def test_spread_is_the_mean_likeness_of_images_of_one_class():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [4.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])  # cosines 0 and −1; the fifth has no partner
    assert TERMS["spread"](view(features=features, labels=labels)).item() == pytest.approx(-0.5)


def test_spread_drives_apart_what_shares_a_class_and_nothing_else():
    labels = torch.tensor([1, 1, 0])
    features = noise(3, 6, seed=3).requires_grad_()
    TERMS["spread"](view(features=features, labels=labels)).backward()
    (a, b, _), (c, d, _) = features.tolist(), (features - features.grad).tolist()
    assert cosine(c, d) < cosine(a, b) - 0.01
    assert not features.grad[2].any()


def test_spread_of_images_of_different_classes_is_zero_and_still_differentiable():
    features = noise(3, 6, seed=3).requires_grad_()
    value = TERMS["spread"](view(features=features))
    value.backward()
    assert value.item() == 0
    assert not features.grad.any()


def test_activation_is_minus_the_squashed_mean_of_the_absolute_features():
    v = view()
    values = [abs(x) for row in v.features.tolist() for x in row]
    assert TERMS["activation"](v).item() == pytest.approx(-math.log(1 + sum(values) / len(values)))


DIFFERENTIATED = {
    "one_hot": "taught",
    "statistics": "moments",
    "statistics_norm": "moments",
    "prototype": "features",
    "consistency": "features",
    "disagreement": "learned",
    "logit_gap": "learned",
    "divergence": "learned",
    "jensen_shannon": "learned",
    "realism": "validity",
    "balance": "taught",
    "smoothness": "images",
    "variation": "normalised",
    "magnitude": "normalised",
    "contrast": "embedded",
    "spread": "features",
    "activation": "features",
}


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_of_every_term_is_that_of_finite_differences(term):
    name = DIFFERENTIATED[term]
    if name == "moments":
        (mean, var), other = view().moments
        inputs = (mean.clone().requires_grad_(), var.clone().requires_grad_())
        assert torch.autograd.gradcheck(
            lambda m, v: TERMS[term](view(moments=((m, v), other))), inputs
        )
        return
    source = getattr(view(), name)
    if term == "disagreement":
        source = view().taught + 0.1 * noise(
            3, 4, seed=20
        )  # all vote alike, so the term is not cut off
    inputs = source.clone().requires_grad_()
    changes = {"labels": torch.tensor([1, 1, 0])} if term == "spread" else {}  # a class of two
    assert torch.autograd.gradcheck(lambda x: TERMS[term](view(**changes, **{name: x})), inputs)


# --- the critic ---


def test_the_critics_hinge_is_the_mean_of_what_falls_short_of_the_margins():
    reference, synthetic = [2.0, 0.5, -1.0], [-3.0, -0.5, 1.0, 0.0]
    expected = (
        sum(max(0.0, 1 - v) for v in reference) / 3 + sum(max(0.0, 1 + v) for v in synthetic) / 4
    )
    assert critic_hinge(torch.tensor(reference), torch.tensor(synthetic)).item() == pytest.approx(
        expected
    )


def test_the_critics_hinge_moves_only_what_lies_inside_the_margins():
    reference, synthetic = (
        torch.tensor([2.0, 0.5], requires_grad=True),
        torch.tensor([-3.0, 0.5], requires_grad=True),
    )
    critic_hinge(reference, synthetic).backward()
    assert reference.grad.tolist() == [0.0, -0.5]
    assert synthetic.grad.tolist() == [0.0, 0.5]
