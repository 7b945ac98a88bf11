"""Losses against sums in plain Python, and their gradients against finite differences."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from synthkd import losses, recipe
from synthkd.losses import TERMS, View, as_logits, critic_hinge, soft_targets
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
    }
    return View(**(parts | changes))  # type: ignore[arg-type]


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_every_term_of_a_recipe_is_computed_by_the_term_of_that_name():
    assert set(TERMS) == set(recipe.TERMS)
    assert all(TERMS[name] is getattr(losses, name) for name in TERMS)


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


def test_prototype_pulls_to_the_own_row_and_away_from_the_nearest_other():
    v = view()
    expected = 0.0
    for phi, label in zip(v.features.tolist(), v.labels.tolist(), strict=True):
        near = [cosine(phi, w) for w in v.prototypes.tolist()]
        rival = max(c for k, c in enumerate(near) if k != label)
        expected += (1 - near[label] + max(0.0, rival - near[label] + 0.1)) / 3
    assert TERMS["prototype"](v).item() == pytest.approx(expected)


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


def test_activation_is_minus_the_squashed_mean_of_the_absolute_features():
    v = view()
    values = [abs(x) for row in v.features.tolist() for x in row]
    assert TERMS["activation"](v).item() == pytest.approx(-math.log(1 + sum(values) / len(values)))


DIFFERENTIATED = {
    "one_hot": "taught",
    "statistics": "moments",
    "prototype": "features",
    "consistency": "features",
    "disagreement": "learned",
    "realism": "validity",
    "balance": "taught",
    "smoothness": "images",
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
    assert torch.autograd.gradcheck(lambda x: TERMS[term](view(**{name: x})), inputs)


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
