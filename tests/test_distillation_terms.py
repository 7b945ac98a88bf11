"""Each loss of the student against another route: sums in plain Python, limits, other libraries."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.losses.distillation import TERMS, DistillationView, KnownBeforehand, answers
from synthkd.losses.distillation.adapters import CrossAttention, Hint, OrthogonalProjection
from synthkd.losses.distillation.contrast import MemoryContrast, contrasted
from synthkd.losses.distillation.features import (
    gaussian_transport,
    sliced_transport,
    standardised_gap,
)
from synthkd.losses.distillation.relations import (
    neighbours,
    relational_angle,
    relational_distance,
    similarity,
)
from synthkd.losses.distillation.view import as_map, as_vectors
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TrainingTable
from synthkd.students.learner import Learner
from synthkd.students.objective import DistillationObjective
from synthkd.teachers.frozen import FrozenTeacher

SPEC = ImageSpec(1, 16, 16, (0.5,), (0.5,))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(v - max(row)) for v in row]
    return [e / sum(exps) for e in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


LEARNED, TAUGHT = noise(5, 4, seed=1), 2 * noise(5, 4, seed=2)
ROWS = list(zip(LEARNED.tolist(), TAUGHT.tolist(), strict=True))


# --- answers


def test_hard_targets_are_minus_the_log_of_the_probability_of_the_vote():
    votes = TAUGHT.argmax(1)
    expected = [-math.log(softmax(s)[t.index(max(t))]) for s, t in ROWS]
    found = answers.hard_targets(LEARNED, votes, per_sample=True)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    smoothed = answers.hard_targets(LEARNED, votes, smoothing=0.2, per_sample=True)
    even = [-sum(math.log(q) for q in softmax(s)) / 4 for s, _ in ROWS]
    mixed = [0.8 * hard + 0.2 * flat for hard, flat in zip(expected, even, strict=True)]
    assert smoothed.tolist() == pytest.approx(mixed, rel=1e-5)


def test_smoothing_by_the_teacher_lies_between_its_vote_and_its_answer():
    votes = answers.hard_targets(LEARNED, TAUGHT.argmax(1), per_sample=True)
    whole = [
        -sum(p * math.log(q) for p, q in zip(softmax(t), softmax(s), strict=True)) for s, t in ROWS
    ]
    found = answers.smoothed_targets(LEARNED, TAUGHT, share=0.3, per_sample=True)
    mixed = [0.7 * a + 0.3 * b for a, b in zip(votes.tolist(), whole, strict=True)]
    assert found.tolist() == pytest.approx(mixed, rel=1e-5)


def test_hard_decisions_ask_yes_or_no_of_every_class():
    sigma = [[1 / (1 + math.exp(-v)) for v in s] for s, _ in ROWS]
    expected = [
        -sum(math.log(p if v > 0 else 1 - p) for p, v in zip(row, t, strict=True))
        for row, (_, t) in zip(sigma, ROWS, strict=True)
    ]
    found = answers.hard_decisions(LEARNED, TAUGHT, per_sample=True)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert answers.hard_decisions(LEARNED, TAUGHT).item() == pytest.approx(sum(expected) / 5)


def test_standardized_targets_do_not_see_scale_or_shift_and_are_the_kl_of_z_scores():
    same = answers.standardized_targets(3 * TAUGHT - 7, TAUGHT)
    assert same.item() == pytest.approx(0, abs=1e-6)
    z = [scipy.stats.zscore(x.numpy(), axis=1).tolist() for x in (LEARNED, TAUGHT)]
    expected = [
        4 * kl(softmax([v / 2 for v in t]), softmax([v / 2 for v in s]))
        for s, t in zip(*z, strict=True)
    ]
    found = answers.standardized_targets(LEARNED, TAUGHT, temperature=2, per_sample=True)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_decoupled_parts_add_up_to_the_kl(temperature):
    """KL = TCKD + (1 − p_y) · NCKD, the identity of the paper."""
    given = {"temperature": temperature, "per_sample": True}
    target = answers.decoupled_target(LEARNED, TAUGHT, **given)
    others = answers.decoupled_others(LEARNED, TAUGHT, **given)
    least = 1 - (TAUGHT / temperature).softmax(1).amax(1)
    whole = answers.soft_targets(LEARNED, TAUGHT, **given)
    assert torch.allclose(target + least * others, whole, rtol=1e-4)
    assert (others > 0).all()


def test_the_decoupled_target_is_the_vote_also_of_a_blend():
    taught = torch.tensor([[5.0, 0.0, 1.0]])
    moved = torch.tensor([[5.0, 1.0, 0.0]])  # the same share of the target, the others exchanged
    assert answers.decoupled_target(moved, taught).item() == pytest.approx(0, abs=1e-6)
    assert answers.decoupled_others(moved, taught).item() > 0.01


def test_correlations_are_pearsons_along_classes_and_along_images():
    q, p = LEARNED.softmax(1).numpy(), TAUGHT.softmax(1).numpy()
    rows = [1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(q, p, strict=True)]
    found = answers.class_correlation(LEARNED, TAUGHT, per_sample=True)
    assert found.tolist() == pytest.approx(rows, rel=1e-4)
    columns = [1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(q.T, p.T, strict=True)]
    found = answers.image_correlation(LEARNED, TAUGHT)
    assert found.item() == pytest.approx(sum(columns) / 4, rel=1e-4)


def test_at_a_high_temperature_correlations_are_those_of_logits_whatever_it_is():
    """Softened answers near 1 / K + (logits − their mean) / (K T): a correlation knows no scale."""
    learned = LEARNED.clone().requires_grad_()
    s, t = (x.double().numpy() for x in (LEARNED, TAUGHT))
    rows = [1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(s, t, strict=True)]
    centred = [x - x.mean(1, keepdims=True) for x in (s, t)]
    pairs = zip(*(x.T for x in centred), strict=True)
    columns = [1 - scipy.stats.pearsonr(a, b).statistic for a, b in pairs]
    for measure, limit in (
        (answers.class_correlation, rows), (answers.image_correlation, columns)
    ):  # fmt: skip
        slopes = []
        for high in (100.0, 400.0):
            found = measure(learned, TAUGHT, temperature=high)
            assert found.item() == pytest.approx(sum(limit) / len(limit), rel=0.02)
            slopes.append(torch.autograd.grad(found, learned)[0])
        assert slopes[0].abs().max() > 0.01
        assert torch.allclose(*slopes, rtol=0.05, atol=0.02 * float(slopes[0].abs().max()))


# --- features


def test_tokens_become_a_map_without_those_before_the_patches():
    maps = noise(2, 6, 4, 4)
    tokens = maps.flatten(2).transpose(1, 2)
    for before in (0, 1, 5):
        withed = torch.cat([noise(2, before, 6), tokens], 1)
        assert torch.equal(as_map(withed), maps)
    assert as_map(noise(2, 50, 6)[:, :47]).shape == (
        2,
        6,
        47,
        1,
    )  # 47 − 36 is more than stand there
    assert torch.allclose(as_vectors(tokens), as_vectors(maps))


def test_attention_of_tokens_is_that_of_the_map_that_they_form():
    maps, tokens = noise(2, 6, 4, 4), noise(2, 17, 8)
    pairs = (("s", "t"),)
    found = TERMS["attention"](_view({"s": maps}, {"t": tokens}, pairs))
    assert found.item() > 0
    same = maps.flatten(2).transpose(1, 2)
    assert TERMS["attention"](_view({"s": maps}, {"t": same}, pairs)).item() == 0


def test_gaussian_transport_is_the_closed_form_of_each_channel():
    s, t = noise(3, 2, 4, 4, seed=3), 2 * noise(3, 2, 2, 5, seed=4) + 1
    gap = spread = 0.0
    for c in range(2):
        a, b = s[:, c].numpy().ravel().astype(float), t[:, c].numpy().ravel().astype(float)
        gap += (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
        spread += b.std() ** 2
    assert gaussian_transport(s, t).item() == pytest.approx(gap / spread, rel=1e-4)
    assert gaussian_transport(t, t).item() == pytest.approx(0, abs=1e-6)


def test_transport_cannot_be_pleased_by_shrinking_to_nothing():
    """Whatever a student's adapter does, features of 0 cost all of the teacher's spread."""
    t = 3 * noise(4, 5, 3, 3) + 2
    assert gaussian_transport(torch.zeros(4, 5, 3, 3), t).item() > 1
    vectors = noise(64, 5) * 4
    directions = torch.nn.functional.normalize(noise(5, 64, seed=5), dim=0)
    assert sliced_transport(torch.zeros(64, 5), vectors, directions).item() > 0.8
    known = KnownBeforehand({"s": (4, 3, 3)}, {"t": (5, 3, 3)}, (("s", "t"),), 3, 0)
    term = TERMS["transport"].module(known)
    shown = t.clone().requires_grad_()
    term(_view({"s": noise(4, 4, 3, 3)}, {"t": shown}, known.pairs)).backward()
    assert all(p.grad is not None for p in term.parameters())
    adapters = {id(p) for p in term.adapters.parameters()}
    assert {id(p) for p in term.parameters()} == adapters  # nothing learned on the teacher's side


def test_sliced_transport_in_one_dimension_is_the_wasserstein_distance():
    a, b = noise(50, 1, seed=6), noise(50, 1, seed=7) * 2
    found = sliced_transport(a, b, torch.ones(1, 1)).item()
    exact = np.mean((np.sort(a.numpy().ravel()) - np.sort(b.numpy().ravel())) ** 2)
    assert found == pytest.approx(exact / b.var(correction=0).item(), rel=1e-4)


def test_the_standardised_gap_is_one_for_nothing_and_none_for_z_scores():
    taught = 3 * noise(40, 6) + 1
    z = torch.from_numpy(scipy.stats.zscore(taught.numpy()))
    assert standardised_gap(z, taught).item() == pytest.approx(0, abs=1e-5)
    assert standardised_gap(torch.zeros(40, 6), taught).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), [(4, 9), (9, 4)])
def test_the_orthogonal_projection_stays_orthogonal_while_it_learns(ours, theirs):
    known = KnownBeforehand({"s": (ours,)}, {"t": (theirs,)}, (), 3, 0, ("s", "t"))
    torch.manual_seed(0)
    term = OrthogonalProjection(known)
    optimizer = torch.optim.SGD(term.parameters(), lr=0.5)
    view = _view({"s": noise(32, ours)}, {"t": noise(32, theirs, seed=1)}, embedding=("s", "t"))
    losses = []
    for _ in range(20):
        loss = term(view)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    weight = term.projection.weight.detach()
    product = weight.T @ weight if theirs > ours else weight @ weight.T
    assert torch.allclose(product, torch.eye(len(product)), atol=1e-4)
    assert losses[-1] < losses[0]


# --- relations


def _pairs(vectors: Tensor) -> list[list[float]]:
    rows = vectors.tolist()
    return [[math.dist(a, b) for b in rows] for a in rows]


def _huber(gap: float) -> float:
    return gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5


def test_relational_distance_is_a_huber_loss_of_distances_over_their_mean():
    s, t = noise(5, 3, seed=1), noise(5, 7, seed=2)
    scaled = []
    for vectors in (s, t):
        found = _pairs(vectors)
        mean = sum(map(sum, found)) / 20
        scaled.append([[gap / mean for gap in row] for row in found])
    expected = sum(
        _huber(a - b) for x, y in zip(*scaled, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert relational_distance(s, t).item() == pytest.approx(expected / 25, rel=1e-4)


def test_relational_angle_is_a_huber_loss_of_cosines_at_every_image():
    s, t = noise(4, 3, seed=1), noise(4, 5, seed=2)

    def cosine(rows: list[list[float]], j: int, i: int, k: int) -> float:
        a, b = ([x - y for x, y in zip(rows[n], rows[j], strict=True)] for n in (i, k))
        lengths = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0

    expected = 0.0
    for j in range(4):
        for i in range(4):
            for k in range(4):
                expected += _huber(cosine(s.tolist(), j, i, k) - cosine(t.tolist(), j, i, k))
    assert relational_angle(s, t).item() == pytest.approx(expected / 64, rel=1e-4)


def test_similarity_is_the_distance_of_gram_matrices_with_rows_of_length_one():
    s, t = noise(4, 3, seed=1), noise(4, 6, seed=2)
    grams = []
    for x in (s.numpy().astype(float), t.numpy().astype(float)):
        gram = x @ x.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    expected = ((grams[0] - grams[1]) ** 2).sum() / 16
    assert similarity(s, t).item() == pytest.approx(expected, rel=1e-4)


def test_neighbours_is_the_kl_of_rows_of_a_cosine_kernel():
    s, t = noise(4, 3, seed=1), noise(4, 6, seed=2)
    rows = []
    for x in (s.numpy().astype(float), t.numpy().astype(float)):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (1 + unit @ unit.T) / 2
        np.fill_diagonal(kernel, 0)
        rows.append(kernel / kernel.sum(1, keepdims=True))
    expected = sum(
        rows[1][i, j] * math.log(rows[1][i, j] / rows[0][i, j])
        for i in range(4)
        for j in range(4)
        if i != j
    )
    assert neighbours(s, t).item() == pytest.approx(expected / 4, rel=1e-4)


RELATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    relational_distance, relational_angle, similarity, neighbours
]  # fmt: skip


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_do_not_see_a_turned_space_and_slopes_are_finite_at_equal_images(relation):
    t = noise(6, 5, seed=3)
    turn = torch.linalg.qr(noise(5, 5, seed=4)).Q
    assert relation(t @ turn, t).item() == pytest.approx(0, abs=1e-6)
    twice = torch.cat([t[:3], t[:3]]).requires_grad_()  # the same image twice: a distance of 0
    relation(twice, t).backward()
    assert twice.grad is not None and twice.grad.isfinite().all()


# --- contrast


def test_contrast_is_the_cross_entropy_of_finding_oneself():
    s, t, others = (torch.nn.functional.normalize(noise(n, 4, seed=n), dim=1) for n in (3, 3, 5))
    expected = []
    for i, row in enumerate(s.tolist()):
        exps = [
            math.exp(sum(a * b for a, b in zip(row, k, strict=True)) / 0.5)
            for k in [*t.tolist(), *others.tolist()]
        ]
        expected.append(-math.log(exps[i] / sum(exps)))
    found = contrasted(s, t, others, temperature=0.5)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    left_out = torch.zeros(3, 5, dtype=torch.bool)
    left_out[:, 2:] = True
    assert torch.allclose(
        contrasted(s, t, others, left_out, temperature=0.5),
        contrasted(s, t, others[:2], temperature=0.5),
    )


def test_the_bank_keeps_whose_embedding_it_holds_and_an_image_is_no_other_to_itself():
    known = KnownBeforehand({"s": (4,)}, {"t": (6,)}, (), 3, 10, ("s", "t"))
    torch.manual_seed(0)
    term = MemoryContrast(known)
    assert term.bank.shape == (10, 128)

    def learn(slots: list[int], seed: int) -> Tensor:
        seen = {"s": noise(4, 4, seed=seed)}, {"t": noise(4, 6, seed=seed + 1)}
        return term(_view(*seen, embedding=("s", "t"), slots=torch.tensor(slots)))

    learn([0, 1, 2, -1], 10)
    assert term.slots.tolist() == [0, 1, 2, -1] + [-2] * 6
    first = term.bank[:4].clone()
    learn([5, 6, 7, 0], 20)
    learn([8, 9, 3, 4], 30)
    assert term.slots.tolist() == [3, 4, 2, -1, 5, 6, 7, 0, 8, 9]
    assert torch.equal(term.bank[2:4], first[2:])
    mine, taught = term.embedded(
        view := _view({"s": noise(1, 4)}, {"t": noise(1, 6)}, embedding=("s", "t"),
                      slots=torch.tensor([5]))
    )  # fmt: skip
    others = term.bank[term.slots != 5]
    assert torch.allclose(term(view), contrasted(mine, taught, others), atol=1e-5)
    # and the same image twice in one batch is no other to itself either
    s, t = (torch.nn.functional.normalize(noise(3, 4, seed=n), dim=1) for n in (1, 2))
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    alone = contrasted(s, t, None, None, same)
    expected = torch.nn.functional.cross_entropy(
        torch.stack([s[0] @ t[0], s[0] @ t[2]])[None] / 0.1, torch.tensor([0])
    )
    assert alone[0].item() == pytest.approx(expected.item(), rel=1e-5)


# --- terms in an objective


def _view(
    student: dict[str, Tensor], teacher: dict[str, Tensor],
    pairs: tuple[tuple[str, str], ...] = (), **more: Any,
) -> DistillationView:  # fmt: skip
    count = len(next(iter(student.values()))) if student else 2
    logits = torch.zeros(count, 3)
    given = {"learned": logits, "taught": logits, "pairs": pairs} | more
    return DistillationView(torch.zeros(count, 1, 8, 8), student_features=student,
                            teacher_features=teacher, **given)  # fmt: skip


class Tokens(nn.Module):
    """A tiny vision transformer: patches of 4, a token for the class, one block, a linear head."""

    def __init__(self, size: int = 24, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, size, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, 1, size))
        self.block = nn.TransformerEncoderLayer(size, 4, 48, batch_first=True, dropout=0)
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(self.block(tokens))[:, 0])


def network(family: str, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    body = Tokens() if family == "vit" else build_network(family, channels=1, size=16, classes=5)
    return Classifier(body, SPEC, 5)


@pytest.mark.parametrize("student", ["resnet8-w4", "vit"])
@pytest.mark.parametrize("teacher", ["resnet14-w4", "vit"])
@pytest.mark.parametrize("term", sorted(set(TERMS) - {"feature_match"}))
def test_every_term_serves_every_pair_of_families_learns_and_resumes(
    term, teacher, student, tmp_path
):
    """One batch over and over: the term falls; and a learner that was saved goes on bit for bit."""
    known = FrozenTeacher(network(teacher, seed=1))
    if term == "attention" and {teacher, student} == {"resnet14-w4", "vit"}:
        pytest.skip("4 x 4 patches of a transformer beside maps of 16, 8 and 4: served below")
    table = TrainingTable(terms={term: 1.0}, learning_rate=0.02, schedule="constant", clip=1, ema=0)

    def made() -> Learner:
        torch.manual_seed(2)
        objective = DistillationObjective(table, network(student), known, capacity=64)
        return Learner(network(student), table, objective)

    learner = made()
    images = noise(16, 1, 16, 16).sigmoid()
    shown = known.teach(images, learner.objective.teacher_layers)
    slots, asked = torch.arange(16), torch.randint(5, (16,), generator=torch.Generator())
    losses = [learner.step(images, shown, 0.5, slots=slots, asked=asked).loss.item()
              for _ in range(25)]  # fmt: skip
    first = math.log(16 + 60) if term == "memory_contrast" else losses[0]  # a guess, bank and all
    assert min(losses[-5:]) < first
    save_state(learner.state_dict(), tmp_path / "x", "learner")
    twin = made()
    twin.load_state_dict(load_state(tmp_path / "x", "learner"))
    after = [
        each.step(images, shown, 0.5, slots=slots, asked=asked).loss for each in (learner, twin)
    ]
    assert torch.equal(*after)
    assert not {k for k in learner.student.state_dict() if "made" in k}  # an adapter does not ship


def plain(*sizes: int) -> Classifier:
    """Convolutions that halve 16 pixels once for each size, a mean, a linear head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((1, *sizes), sizes, strict=False):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 5)]
    return Classifier(nn.Sequential(*layers, *ends), SPEC, 5)


@pytest.mark.parametrize(
    ("terms", "pairs"),
    [
        ({"hint": 1.0}, (("1", "1"), ("3", "3"), ("4", "6"))),  # 8 and 4 pixels, and their means
        ({"attention": 1.0}, (("1", "1"), ("3", "3"))),  # a mean looks nowhere
        ({"feature_match": 1.0}, (("3", "3"),)),  # of as many channels
        ({"attention": 1.0, "feature_match": 1.0}, (("1", "1"), ("3", "3"))),
        ({"similarity": 1.0}, ()),
        ({"similarity": 1.0, "feature_match": 1.0}, (("3", "3"),)),
    ],
)
def test_layers_that_no_term_compares_are_not_looked_at(terms, pairs):
    """The teacher has a resolution more, of which no layer of the student is."""
    student, teacher = plain(4, 6), FrozenTeacher(plain(5, 6, 7))
    table = TrainingTable(terms=terms)
    objective = DistillationObjective(table, student, teacher)
    assert objective.pairs == pairs
    ours, theirs = ({"6.input"}, {"8.input"}) if "similarity" in terms else (set(), set())
    assert set(objective.student_layers) == ours | {s for s, _ in pairs}
    assert set(objective.teacher_layers) == theirs | {t for _, t in pairs}
    images = noise(8, 1, 16, 16).sigmoid()
    shown = teacher.teach(images, objective.teacher_layers)
    shapes = {name: tuple(value.shape[1:]) for name, value in shown.features.items()}
    assert shapes == objective.teacher_shapes
    assert Learner(student, table, objective).step(images, shown, 0.5).loss.isfinite()


def test_maps_and_tokens_of_one_grid_are_paired_without_being_named():
    objective = DistillationObjective(
        TrainingTable(terms={"attention": 1.0}), network("resnet8-w4"),
        FrozenTeacher(network("vit")),
    )  # fmt: skip
    (pair,) = objective.pairs
    assert pair[0].startswith("layer3") and pair[1] == "norm"


def test_adapters_meet_any_grid():
    known = KnownBeforehand({"s": (4, 6, 6)}, {"t": (17, 10)}, (("s", "t"),), 3, 0)
    view = _view({"s": noise(2, 4, 6, 6)}, {"t": noise(2, 17, 10)}, known.pairs)
    for term in (Hint(known), CrossAttention(known)):
        assert term(view).isfinite() and term(view).dim() == 0
    wide = KnownBeforehand({"s": (4, 6, 6)}, {"t": (9, 30, 20)}, (("s", "t"),), 3, 0)
    view = _view({"s": noise(2, 4, 6, 6)}, {"t": noise(2, 9, 30, 20)}, wide.pairs)
    term = CrossAttention(wide)
    assert term.queries[0].shape == (14 * 14, 9) and term.attention[0].num_heads == 3
    assert term(view).isfinite()


@pytest.mark.slow
def test_cross_attention_can_tell_the_students_positions_apart():
    """A teacher that shows the student's map mirrored is learned by attention, where a hint that
    compares place by place cannot."""
    torch.manual_seed(0)
    maps = noise(32, 16, 4, 4)
    known = KnownBeforehand({"s": (16, 4, 4)}, {"t": (16, 4, 4)}, (("s", "t"),), 3, 0)
    view = _view({"s": maps}, {"t": maps.flip(3)}, known.pairs)
    left = {}
    for kind in (Hint, CrossAttention):
        term = kind(known)
        optimizer = torch.optim.Adam(term.parameters(), lr=0.02)
        for _ in range(500):
            optimizer.zero_grad()
            loss = term(view)
            loss.backward()
            optimizer.step()
        left[kind] = loss.item()
    assert left[CrossAttention] < 0.5 < 0.9 < left[Hint]


def test_the_class_asked_for_counts_where_there_is_one():
    learned = noise(3, 4)
    taught = torch.tensor([[9.0, 0, 0, 0]] * 3)
    asked = torch.tensor([2, -1, 0])
    view = _view({}, {}, learned=learned, taught=taught, asked=asked)
    expected = torch.nn.functional.cross_entropy(learned, torch.tensor([2, 0, 0]))
    assert TERMS["asked_classes"](view).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("term", ["projection", "similarity", "memory_contrast", "neighbours"])
def test_a_network_without_a_linear_head_is_refused_by_name(term):
    headless = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    other = FrozenTeacher(Classifier(headless, SPEC, 5))
    with pytest.raises(InputError, match=rf"terms\.{term} compares .* this teacher ends with none"):
        DistillationObjective(TrainingTable(terms={term: 1.0}), network("resnet8-w4"), other)
    named = FrozenTeacher(Classifier(headless, SPEC, 5), features_at="0")
    DistillationObjective(TrainingTable(terms={term: 1.0}), network("resnet8-w4"), named)
    student = Classifier(headless, SPEC, 5)
    with pytest.raises(InputError, match="this student ends with none"):
        DistillationObjective(TrainingTable(terms={term: 1.0}), student, named)


def test_a_negative_weight_and_a_layer_that_is_not_there_are_refused():
    teacher = FrozenTeacher(network("resnet14-w4"))
    with pytest.raises(InputError, match=r"terms\.hint: a weight is at least 0; got -1"):
        DistillationObjective(TrainingTable(terms={"hint": -1.0}), network("resnet8-w4"), teacher)
    table = TrainingTable(
        terms={"hint": 1.0}, student_layers=("layer9.input",), teacher_layers=("layer1",)
    )
    with pytest.raises(InputError, match=r"student_layers: layer 'layer9': no such module"):
        DistillationObjective(table, network("resnet8-w4"), teacher)
    table = TrainingTable(
        terms={"hint": 1.0}, student_layers=("layer3.input",), teacher_layers=("layer2",)
    )
    objective = DistillationObjective(table, network("resnet8-w4"), teacher)
    assert objective.pairs == (("layer3.input", "layer2"),)


@pytest.mark.parametrize("term", ["attention", "feature_match", "cross_attention"])
def test_maps_of_one_size_and_smaller_images_are_not_combined(term):
    table = TrainingTable(terms={term: 1.0}, scales={0.5: 0.5, 1.0: 0.5})
    with pytest.raises(InputError, match=rf"{term} compares maps of one size, and training.scales"):
        DistillationObjective(table, network("resnet8-w4"), FrozenTeacher(network("resnet14-w4")))


@pytest.mark.parametrize("term", ["projection", "hint", "relational_angle"])
def test_a_black_box_is_refused_before_the_run(term):
    closed = FrozenTeacher(network("resnet14-w4"), access="logits")
    with pytest.raises(InputError, match=rf"{term} compares layers inside the teacher"):
        DistillationObjective(TrainingTable(terms={term: 1.0}), network("resnet8-w4"), closed)


def test_terms_that_say_nothing_of_two_classes_or_of_independent_ones_are_refused():
    two = Classifier(build_network("resnet8-w4", channels=1, size=16, classes=2), SPEC, 2)
    for term in ("standardized_targets", "decoupled_others", "class_correlation"):
        with pytest.raises(InputError, match=rf"{term} says nothing of two classes"):
            DistillationObjective(TrainingTable(terms={term: 1.0}), two)
    body = build_network("resnet8-w4", channels=1, size=16, classes=5)
    several = Classifier(body, SPEC, 5, "multilabel-logits")
    for term in ("decoupled_target", "asked_classes", "image_correlation"):
        with pytest.raises(InputError, match=rf"{term} compares classes of which one applies"):
            DistillationObjective(TrainingTable(terms={term: 1.0}), several)
    DistillationObjective(TrainingTable(terms={"votes": 1.0}), several)


@pytest.mark.parametrize(
    "measure",
    [
        answers.soft_targets, answers.standardized_targets, answers.decoupled_target,
        answers.decoupled_others, answers.class_correlation, answers.image_correlation,
        answers.smoothed_targets, *RELATIONS, standardised_gap,
    ],
)  # fmt: skip
def test_gradients_are_those_of_finite_differences(measure):
    """Along a random direction; relations compare vectors of one size here."""
    learned, taught, step = noise(6, 5, seed=1), noise(6, 5, seed=2), 1e-2 * noise(6, 5, seed=3)
    learned.requires_grad_()
    (gradient,) = torch.autograd.grad(measure(learned, taught), learned)
    ahead, behind = (float(measure(learned.detach() + s * step, taught)) for s in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx((ahead - behind) / 2, rel=0.02, abs=2e-6)
