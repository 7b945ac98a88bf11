"""What synthesized images are judged by."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import Batch, ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.engine.synthesizing import frozen_student
from synthkd.images.augment import cropped
from synthkd.losses.synthesis import TERMS, View
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage, TeacherTable, TrainingTable
from synthkd.specs import load_teacher
from synthkd.students.learner import Learner
from synthkd.synthesis import GENERATORS
from synthkd.synthesis import objective as objectives
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.objective import SynthesisObjective
from synthkd.teachers.frozen import FrozenTeacher, Observation, digest_of

LABELS = torch.arange(20) % 10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


def nobody(images: Tensor) -> Tensor:
    raise AssertionError("the student was asked")


def nothing(count: int, rng: torch.Generator, *, without: str = "") -> Batch | None:
    return None


def context(teacher: FrozenTeacher, terms: dict[str, float], **changes: Any) -> SynthesisContext:
    stage = Stage(name="x", synthesis_batch=20)
    plain = SynthesisContext(teacher, nobody, stage, terms, Recipe().augment, nothing, False)
    return replace(plain, **changes)


def objective(teacher: FrozenTeacher, **settings: Any) -> SynthesisObjective:
    return SynthesisObjective(Recipe.model_validate({"generator": settings}), teacher)


def images(seed: int = 0) -> Tensor:
    return torch.rand(20, 1, 16, 16, generator=seeded(seed)).requires_grad_()


def asked(teacher: FrozenTeacher, terms: dict[str, float]) -> list[dict[str, bool]]:
    """How a jury asks the teacher for these terms."""
    one, calls = copy.deepcopy(teacher), []

    def observe(images: Tensor, **how: bool) -> Observation:
        calls.append(how)
        return teacher.observe(images, **how)

    one.observe = observe  # type: ignore[method-assign]
    objective(one)(context(one, terms), images(), LABELS, seeded())
    return calls


# --- what is asked ---


@pytest.mark.parametrize(
    ("terms", "needs"),
    [
        ({"one_hot": 1.0, "smoothness": 1.0, "variation": 1.0}, []),
        ({"statistics": 1.0}, ["statistics"]),
        ({"statistics_norm": 1.0}, ["statistics"]),
        ({"prototype": 1.0}, ["features"]),
        ({"spread": 1.0, "activation": 0.1}, ["features"]),
        ({"one_hot": 1.0, "statistics": 0.0, "prototype": 0.0}, []),
    ],
)
def test_the_teacher_is_asked_for_what_the_terms_need_and_no_more(teacher, terms, needs):
    (call,) = asked(teacher, terms)
    assert [name for name in ("features", "statistics", "pooled") if call[name]] == needs


def test_the_loss_is_the_weighted_sum_of_the_terms_computed_one_by_one(teacher):
    terms = {"one_hot": 0.5, "statistics_norm": 0.01, "variation": 1e-3, "spread": 2.0}
    x = images()
    found = objective(teacher)(context(teacher, terms), x, LABELS, seeded())
    seen = teacher.observe(x)
    view = View(
        images=x,
        labels=LABELS,
        taught=seen.logits,
        features=seen.features,
        moments=seen.moments,
        stored=teacher.stored,
        normalised=(x - teacher.classifier.mean) / teacher.classifier.std,
    )
    expected = {name: float(TERMS[name](view).detach()) for name in terms}
    assert {name: float(value) for name, value in found.values.items()} == pytest.approx(expected)
    assert float(found.loss.detach()) == pytest.approx(
        sum(weight * expected[name] for name, weight in terms.items())
    )
    assert torch.equal(found.taught, seen.logits)


def test_without_a_term_the_loss_is_a_constant_and_nothing_is_told(teacher):
    found = objective(teacher)(context(teacher, {"realism": 1.0}), images(), LABELS, seeded())
    assert not found.loss.requires_grad
    assert found.values == {}


def test_realism_is_the_opinion_that_is_given(teacher):
    validity = torch.linspace(-1, 2, 20)
    found = objective(teacher)(
        context(teacher, {"realism": 1.0}), images(), LABELS, seeded(), validity
    )
    assert float(found.loss) == pytest.approx(-0.5)


def test_a_class_that_was_not_asked_for_is_the_teachers_vote(teacher):
    x = images()
    votes = teacher(x).argmax(1)
    one_hot = context(teacher, {"one_hot": 1.0})
    some = torch.where(torch.arange(20) < 10, LABELS, -1)
    mixed = torch.where(torch.arange(20) < 10, LABELS, votes)
    for conditional, labels, classes in (
        (False, LABELS, votes), (True, LABELS, LABELS), (True, some, mixed)
    ):  # fmt: skip
        found = objective(teacher, conditional=conditional)(one_hot, x, labels, seeded())
        expected = F.cross_entropy(teacher(x), classes)
        assert float(found.loss.detach()) == pytest.approx(float(expected.detach()))


def test_the_record_tells_the_share_that_obeys_only_where_any_was_asked(teacher):
    found = objective(teacher)(context(teacher, {"one_hot": 1.0}), images(), LABELS, seeded())
    share = (teacher(images()).argmax(1) == LABELS).float().mean().item()
    assert found.measures(LABELS)["target_class_rate"] == pytest.approx(share)
    assert set(found.measures(torch.full((20,), -1))) == {"term.one_hot"}


def test_where_a_loss_is_not_finite_the_teacher_is_blamed_if_its_answers_are_not(teacher):
    made = objective(teacher)
    made.note(torch.tensor(torch.nan))
    teacher._unsound = torch.tensor(True)
    with pytest.raises(InputError, match=r"the teacher .* answers NaN or infinity"):
        made.check()
    with pytest.raises(InputError, match=r"lower --generator\.learning_rate"):
        made.check()


@pytest.mark.parametrize("independent", [False, True])
def test_what_obeys_is_a_share_of_those_images_that_were_asked_for_a_class(independent):
    taught = torch.tensor([[2.0, -1.0], [-1.0, 1.0], [3.0, -2.0], [-1.0, 2.0]])
    found = objectives.SynthesisLoss(torch.zeros(()), {}, taught, independent)
    assert found.measures(torch.full((4,), -1)) == {}
    assert found.measures(torch.tensor([0, 0, -1, -1]))["target_class_rate"] == 0.5
    if independent:  # 2 and 3 ask for images without the classes 0 and 1
        assert found.measures(torch.tensor([-1, 2, 3, 3]))["target_class_rate"] == pytest.approx(
            2 / 3
        )


@pytest.mark.parametrize(
    ("kind", "flag"),
    [("gan", "--generator.learning_rate"), ("pixels", "--pixels.learning_rate")],
)
def test_a_loss_that_is_not_finite_is_told_with_the_rate_to_lower(teacher, kind, flag):
    the_scene = context(
        teacher, {"one_hot": 1.0}, stage=Stage(name="x", synthesis_batch=20, generator=kind)
    )
    one = GENERATORS[kind](Recipe(), teacher).objective
    one(the_scene, images(), LABELS, seeded())
    one.check()
    one(the_scene, images() * float("nan"), LABELS, seeded())
    one(the_scene, images(), LABELS, seeded())
    with pytest.raises(InputError, match=flag):  # also of an earlier step of the round
        one.check()


def test_judging_leaves_the_teacher_as_it_was(teacher):
    terms = dict.fromkeys(TERMS, 1.0)
    before = digest_of(teacher.classifier)
    one = objective(teacher, statistics_ema=0.9)
    for seed in range(2):
        found = one(context(teacher, terms, student=teacher), images(seed), LABELS, seeded())
        found.loss.backward()
        one.close()
    assert digest_of(teacher.classifier) == before == teacher.digest
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


# --- the adversary ---


@pytest.mark.parametrize("term", [t for t in TERMS if "student" in TERMS[t].needs])
def test_every_adversarial_term_drives_student_and_teacher_apart(teacher, term):
    """A known defect of a public toolbox: the teacher in the student's place, and the term is 0."""
    body = build_network("resnet8-w4", channels=1, size=16, classes=10)
    learner = Learner(Classifier(body, teacher.spec, 10), TrainingTable())
    x, one, losses, gaps = images(), objective(teacher), [], []
    optimizer = torch.optim.Adam([x], lr=0.003)
    with frozen_student(learner) as posing:

        def student(images: Tensor) -> Tensor:
            """Votes like the teacher at first: `disagreement` counts only there."""
            return 0.3 * teacher(images) + 0.3 * posing(images)

        for _ in range(8):
            found = one(context(teacher, {term: 1.0}, student=student), x, LABELS, seeded())
            optimizer.zero_grad()
            found.loss.backward()
            assert x.grad is not None
            assert float(x.grad.abs().max()) > 0
            losses.append(float(found.loss.detach()))
            answers = [network(x).detach() for network in (teacher, student)]
            if term != "logit_gap":
                answers = [answer.softmax(1) for answer in answers]
            gaps.append(float((answers[0] - answers[1]).abs().mean()))
            optimizer.step()
    assert abs(losses[0]) > 1e-3
    assert losses[-1] < losses[0]
    assert gaps[-1] > gaps[0]
    assert all(p.grad is None for p in learner.student.parameters())
    assert all(p.requires_grad for p in learner.student.parameters())


@pytest.mark.parametrize("term", ["disagreement", "logit_gap", "divergence"])
def test_a_student_that_is_the_teacher_leaves_nothing_to_gain(teacher, term):
    found = objective(teacher)(
        context(teacher, {term: 1.0}, student=teacher), images(), LABELS, seeded()
    )
    assert float(found.loss.detach()) == pytest.approx(0.0, abs=1e-6)


# --- the running average of statistics ---


def test_running_statistics_are_those_of_the_rule_after_each_batchs_last_step(teacher):
    """m ← (1 − d) μ + d m, where μ belongs to the last step of a batch."""
    one, decay = objective(teacher, statistics_ema=0.75), 0.75
    the_scene = context(teacher, {"statistics_norm": 1.0})
    expected: list[Tensor] = []
    for batch in range(3):
        for step in range(2):
            one(the_scene, images(2 * batch + step), LABELS, seeded())
        one.close()
        means = [mean for mean, _ in teacher.observe(images(2 * batch + 1)).moments]
        means = [mean.detach() for mean in means]
        expected = [
            (1 - decay) * new + decay * old for new, old in zip(means, expected, strict=True)
        ] if expected else means  # fmt: skip
        for (found, _), mean in zip(one.running, expected, strict=True):
            assert torch.allclose(found, mean, atol=1e-5)


def test_the_average_takes_part_in_the_loss_without_a_gradient(teacher):
    one, the_scene = (
        objective(teacher, statistics_ema=0.9),
        context(teacher, {"statistics_norm": 1.0}),
    )
    plain = one(the_scene, images(1), LABELS, seeded()).loss
    one(the_scene, images(0), LABELS, seeded())
    one.close()
    x = images(1)
    loss = one(the_scene, x, LABELS, seeded()).loss
    gap = torch.zeros(())
    for (mean, var), (old_mean, old_var), (m, v) in zip(
        teacher.observe(x).moments, one.running, teacher.stored, strict=True
    ):
        gap = (
            gap + (0.1 * mean + 0.9 * old_mean - m).norm() + (0.1 * var + 0.9 * old_var - v).norm()
        )
    assert float(loss.detach()) == pytest.approx(float(gap.detach()), rel=1e-4)
    assert float(loss.detach()) != pytest.approx(float(plain.detach()), rel=1e-4)
    assert not any(part.requires_grad for pair in one.running for part in pair)


def test_without_an_average_or_before_the_first_batch_ends_nothing_is_remembered(teacher):
    for one in (objective(teacher), objective(teacher, statistics_ema=0.9)):
        one(context(teacher, {"statistics": 1.0}), images(), LABELS, seeded())
        assert one.running == ()
    quiet = objective(teacher)
    quiet(context(teacher, {"statistics": 1.0}), images(), LABELS, seeded())
    quiet.close()
    assert quiet.running == ()


# --- contrast ---


def test_pooled_means_are_those_of_the_inputs_of_batchnorm(teacher):
    found = teacher.observe(images(), features=False, statistics=True, pooled=True)
    assert found.pooled is not None
    sizes = [m.num_features for m in teacher.norms]
    assert found.pooled.shape == (20, sum(sizes))
    for part, (mean, _) in zip(found.pooled.split(sizes, 1), found.moments, strict=True):
        assert torch.allclose(part.mean(0), mean, atol=1e-4)  # mean over images of their means
    assert torch.allclose(
        found.pooled[3], teacher.observe(images()[3:4], pooled=True).pooled[0], atol=1e-4
    )


def test_the_head_learns_by_the_callers_backward_and_the_bank_fills_at_the_end(teacher):
    one, the_scene = objective(teacher), context(teacher, {"contrast": 1.0})
    one(the_scene, images(), LABELS, seeded()).loss.backward()
    assert one.head is not None
    before = copy.deepcopy(one.head.state_dict())
    gradient = one.head[0].weight.grad.clone()
    assert len(one.bank) == 0
    one.close()
    moved = one.head[0].weight - before["0.weight"]
    touched = gradient.abs() > 1e-6
    assert torch.allclose(  # Adam's first step is the rate itself, against the gradient's sign
        moved[touched], -1e-3 * gradient.sign()[touched], atol=2e-5
    )
    assert one.bank.shape == (20, 256)
    assert torch.allclose(one.bank.norm(dim=1), torch.ones(20), atol=1e-5)
    one.close()
    assert len(one.bank) == 20


def test_a_head_that_learns_tells_images_apart(teacher):
    one, the_scene = objective(teacher), context(teacher, {"contrast": 1.0})
    losses = []
    for seed in range(30):
        found = one(the_scene, images(), LABELS, seeded(seed))
        found.loss.backward()
        losses.append(float(found.loss.detach()))
    assert losses[-1] < losses[0] - 0.3


def test_the_bank_forgets_the_oldest_and_only_some_are_compared_with(teacher, monkeypatch):
    monkeypatch.setattr(objectives, "BANK", 50)
    monkeypatch.setattr(objectives, "NEGATIVES", 7)
    one, the_scene = objective(teacher), context(teacher, {"contrast": 1.0})
    banks = []
    for seed in range(3):
        one(the_scene, images(seed), LABELS, seeded(seed)).loss.backward()
        one.close()
        banks.append(one.bank.clone())
    assert torch.equal(banks[2][:30], banks[1][10:])
    seen: list[Tensor | None] = []
    watched = replace(
        TERMS["contrast"], fn=lambda view: seen.append(view.bank) or view.images.sum()
    )
    monkeypatch.setitem(TERMS, "contrast", watched)
    one(the_scene, images(), LABELS, seeded())
    assert seen[0] is not None
    assert seen[0].shape == (7, 256)
    assert all((row == banks[2]).all(1).any() for row in seen[0])


def test_zooming_shows_a_part_of_the_image_enlarged():
    ramp = torch.linspace(0, 1, 32).expand(50, 1, 32, 32)
    seen = cropped(ramp, 0.25, seeded())
    slopes = (seen[..., 1:] - seen[..., :-1])[..., 4:-4].mean((1, 2, 3)) * 31
    assert slopes.min() > 0.25 * 3 / 4
    assert slopes.max() <= 1 + 1e-4
    assert slopes.std() > 0.1
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert not torch.equal(seen[0], seen[1])
    assert torch.allclose(cropped(ramp, 1.0, seeded(1)).mean(), ramp.mean(), atol=0.05)


# --- state ---


def test_a_saved_jury_goes_on_the_same(teacher, tmp_path):
    terms = {"one_hot": 1.0, "statistics": 1.0, "contrast": 1.0}
    the_scene = context(teacher, terms)
    first = objective(teacher, statistics_ema=0.9)
    for seed in range(2):
        first(the_scene, images(seed), LABELS, seeded(seed)).loss.backward()
        first.close()
    save_state(first.state_dict(), tmp_path / "x", "jury")
    second = objective(teacher, statistics_ema=0.9)
    second.load_state_dict(load_state(tmp_path / "x", "jury"))
    for seed in (5, 6):
        found = [one(the_scene, images(seed), LABELS, seeded(seed)) for one in (first, second)]
        assert torch.equal(found[0].loss, found[1].loss)
        for one, verdict in zip((first, second), found, strict=True):
            verdict.loss.backward()
            one.close()
    assert torch.equal(first.bank, second.bank)


def test_an_untouched_jury_has_a_state_too(teacher, tmp_path):
    save_state(objective(teacher).state_dict(), tmp_path / "x", "jury")
    one = objective(teacher)
    one.load_state_dict(load_state(tmp_path / "x", "jury"))
    assert one.running == ()
    assert one.head is None
    assert len(one.bank) == 0


def test_a_flat_norm_is_pooled_as_it_is():
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 3))
    one = FrozenTeacher(Classifier(body, ImageSpec(1, 8, 8, (0.5,), (0.5,)), 3))
    x = torch.rand(5, 1, 8, 8)
    found = one.observe(x, pooled=True).pooled
    assert torch.allclose(found, body[1](((x - 0.5) / 0.5).flatten(1)), atol=1e-5)
