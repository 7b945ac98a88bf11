"""The student: steps and average redone in plain loops, and a saved state that goes on the same."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.core.optimizers import load_optimizer
from synthkd.core.states import load_state, save_state
from synthkd.engine.synthesizing import frozen_student
from synthkd.losses.distillation import (
    TERMS,
    DistillationView,
    KnownBeforehand,
    attention_transfer,
    feature_match,
    soft_targets,
)
from synthkd.losses.term import Term
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TrainingTable
from synthkd.schedules import one_cycle
from synthkd.specs import card_of, read_card, read_weights
from synthkd.students.learner import Learner, save_student
from synthkd.students.objective import DistillationObjective
from synthkd.teachers.frozen import FrozenTeacher
from synthkd.teachers.protocol import Seen

SPEC = ImageSpec(1, 8, 8, (0.5,), (0.5,))


def new(classes: int = 3) -> Classifier:
    torch.manual_seed(5)
    return Classifier(
        build_network("resnet8-w4", channels=1, size=8, classes=classes), SPEC, classes
    )


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 1, 8, 8, generator=rng).contiguous(memory_format=torch.channels_last),
         3 * torch.randn(8, 3, generator=rng))
        for _ in range(count)
    ]  # fmt: skip


def taught(
    learner: Learner, lessons: list[tuple[Tensor, Tensor]], start: int = 0, whole: int = 10
) -> list[float]:
    return [float(learner.step(x, y, (start + i) / whole).loss) for i, (x, y) in enumerate(lessons)]


def weights(learner: Learner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.student.state_dict())


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


class Viewing(nn.Module):
    """A network that flattens by `view`: its maps must not be laid out channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.linear = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.b(torch.relu(self.a(x))).view(len(x), -1))


def test_images_are_laid_out_as_a_network_can_take_them():
    torch.manual_seed(0)
    lessons = batches(30)
    lessons = [(x, lessons[0][1]) for x, _ in lessons]
    learner = Learner(Classifier(Viewing(), SPEC, 3), TrainingTable(learning_rate=0.05))
    losses = taught(learner, lessons, whole=30)
    assert losses[-1] < losses[0]
    assert not learner.student.channels_last
    assert Learner(new(), TrainingTable()).student.channels_last


def test_weights_get_the_right_gradients_where_images_lie_as_learned():
    """Of a 1 x 1 convolution with a stride behind few channels a CPU's kernel may compute a wrong
    gradient, or never end, with channels last; torch without oneDNN tells the right one."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 48, 1, stride=2, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip
    body.to(memory_format=torch.channels_last)
    spec = ImageSpec(3, 32, 32, (0.5,), (0.5,))
    student = Learner(Classifier(body, spec, 3), TrainingTable()).student.train()
    assert not student.channels_last
    images = torch.rand(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    answers = torch.randn(16, 3)

    def gradient() -> Tensor:
        student.zero_grad()
        (student(images) * answers).sum().backward()
        return body[0].weight.grad.clone()

    found = gradient()
    with torch.backends.mkldnn.flags(enabled=False):
        right = gradient()
    assert torch.allclose(found, right, atol=1e-4 * float(right.abs().max()))
    body.requires_grad_(False)  # a teacher's gradients reach its images alone
    assert Classifier(body, spec, 3).arranged().channels_last


def test_arranging_changes_neither_weights_nor_mode():
    for student in (new(), Classifier(Viewing(), SPEC, 3)):
        for mode in (True, False):
            before = copy.deepcopy(student.train(mode).state_dict())
            assert student.arranged() is student
            assert student.training == student.body.training == mode
            assert_same(student.state_dict(), before)


def test_a_student_without_normalisation_learns_at_its_own_rate():
    table = TrainingTable(learning_rate=0.3, lr_factor_without_norm=0.5, warmup=0.0, ema=0)
    (images, answers), *_ = batches(1)
    bare = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), SPEC, 3)
    found = []
    for student in (new(), bare):
        learner = Learner(student, table)
        learner.step(images, answers, 0.0)
        found.append(learner.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.3, 0.15])


def test_a_step_of_sgd_is_the_one_written_out():
    table = TrainingTable(
        clip=0, ema=0, momentum=0.9, weight_decay=0.01, temperature=2, learning_rate=0.2
    )
    learner, plain = Learner(new(), table), new()
    plain.train()
    speed = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for i, (images, answers) in enumerate(batches(4)):
        learner.step(images, answers, i / 4)
        plain.zero_grad()
        soft_targets(plain(images), answers, temperature=2).backward()
        rate = 0.2 * one_cycle(i / 4, warmup=0.1)
        with torch.no_grad():
            for name, p in plain.named_parameters():
                grad = p.grad + (0.01 * p if p.dim() > 1 else 0)  # biases and norms are not decayed
                speed[name] = 0.9 * speed[name] + grad
                p -= rate * (grad + 0.9 * speed[name])  # Nesterov
    for name, p in plain.named_parameters():
        assert torch.allclose(p, learner.student.state_dict()[name], atol=1e-4), name


def view_of(learned: Tensor, answers: Tensor, **more: Any) -> DistillationView:
    """What student and teacher answer, and nothing else."""
    return DistillationView(torch.rand(len(learned), 1, 8, 8), learned, answers, {}, {}, **more)


def test_the_loss_is_the_sum_of_the_terms_that_the_table_names():
    view = view_of(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 1.0]]), temperature=2)
    alone, _ = DistillationObjective(TrainingTable(terms={"logit_l1": 1.0}), new())(view)
    assert alone.item() == 2
    found, _ = DistillationObjective(TrainingTable(), new())(view)
    p, q = (1 / (1 + math.exp(-gap / 2)) for gap in (3, 1))  # two classes: a logistic function
    softened = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert found.item() == pytest.approx(softened, rel=1e-5)
    both = TrainingTable(terms={"soft_targets": 3.0, "logit_l1": 0.5})
    assert DistillationObjective(both, new())(view)[0].item() == pytest.approx(3 * softened + 1)


def test_the_loss_of_each_image_is_told_and_weighted_where_asked_for():
    learned, answers = torch.randn(5, 3), torch.randn(5, 3)
    for terms in ({"soft_targets": 1.0}, {"logit_l1": 2.0}, {"soft_targets": 1.0, "logit_l1": 2.0}):
        objective = DistillationObjective(TrainingTable(terms=terms), new())
        alone = [
            float(objective(view_of(learned[i : i + 1], answers[i : i + 1]))[0]) for i in range(5)
        ]
        whole, each = objective(view_of(learned, answers, per_sample=True))
        assert each.tolist() == pytest.approx(alone, rel=1e-5)
        assert whole.item() == pytest.approx(sum(alone) / 5, rel=1e-5)
        weights = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0])
        weighted, _ = objective(view_of(learned, answers, per_sample=True, weights=weights))
        expected = (alone[0] + 2 * alone[2] + alone[4]) / 4
        assert weighted.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"soft_target": 1.0}, "did you mean 'soft_targets'"),
        ({"soft_targets": 0.0}, "nothing to learn by"),
        ({}, "nothing to learn by"),
    ],
)
def test_terms_that_do_not_exist_or_weigh_nothing_are_refused(terms, said):
    with pytest.raises(InputError, match=said):
        DistillationObjective(TrainingTable(terms=terms), new())


@pytest.mark.parametrize("schedule", ["one_cycle", "constant", "steps"])
def test_a_step_is_as_long_as_the_schedule_says(schedule):
    """With plain SGD a step is the rate times the gradient, so two rates move by their ratio."""
    plain = {"clip": 0, "ema": 0, "momentum": 0, "weight_decay": 0, "terms": {"logit_l1": 1.0}}
    table = TrainingTable(**plain, schedule=schedule, warmup=0, learning_rate=0.01)
    moved = []
    for progress in (0.0, 0.5):
        learner = Learner(new(), table)
        before = weights(learner)["body.linear.weight"]
        learner.step(*batches(1)[0], progress)
        moved.append((weights(learner)["body.linear.weight"] - before).norm().item())
    expected = {"one_cycle": 0.5, "constant": 1.0, "steps": 0.1}[schedule]
    assert moved[1] / moved[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ["soft_targets", "logit_l1"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_student_learns_its_lesson_by_heart(optimizer, loss):
    rate = 0.05 if optimizer == "sgd" else 0.01
    table = TrainingTable(optimizer=optimizer, learning_rate=rate, terms={loss: 1.0})
    learner, lesson = Learner(new(), table), batches(1)[0]
    losses = [float(learner.step(*lesson, 0.2).loss) for _ in range(30)]
    # a gap falls as its square root
    assert losses[-1] < (0.1 if loss == "soft_targets" else 0.3) * losses[0]


def test_a_gradient_over_the_limit_is_cut_to_it():
    """With plain SGD at rate 1 the weights move by the gradient itself."""
    table = TrainingTable(clip=0.01, ema=0, momentum=0, weight_decay=0, learning_rate=1, warmup=0)
    learner = Learner(new(), table)
    before = [p.detach().clone() for p in learner.student.parameters()]
    learner.step(*batches(1)[0], 0.0)
    moved = sum(
        (p - b).square().sum() for p, b in zip(learner.student.parameters(), before, strict=True)
    ).sqrt()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_the_one_of_a_plain_loop():
    learner = Learner(new(), TrainingTable(ema=0.3))
    expected = {k: v.clone().double() for k, v in weights(learner).items()}
    for n, (images, answers) in enumerate(batches(6)):
        learner.step(images, answers, 0.3)
        decay = min(0.3, (1 + n) / (10 + n))
        for key, value in weights(learner).items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            assert learner.average[key] == 6  # counted, not averaged
        else:
            assert torch.allclose(learner.average[key].double(), value, atol=1e-5), key


def test_there_is_no_average_unless_asked_for():
    learner = Learner(new(), TrainingTable(ema=0))
    taught(learner, batches(2))
    assert learner.average is None
    assert learner.state_dict()["average"] is None


def test_a_student_begins_with_weights_and_so_does_its_average():
    lessons = batches(4)
    first, second = (Learner(new(), TrainingTable(ema=0.9)) for _ in range(2))
    taught(first, lessons)
    weights = {k: v.clone() for k, v in first.student.state_dict().items()}
    second.begin_with(weights)
    for name, value in weights.items():
        for found in (second.student.state_dict(), second.average):
            torch.testing.assert_close(found[name], value, atol=0, rtol=0)
    assert second.begun is None  # it is not cut out of its teacher
    taught(second, lessons[:1])
    other = Learner(new(classes=4), TrainingTable())
    with pytest.raises(InputError, match="another network"):
        other.begin_with(weights)
    with pytest.raises(ValueError, match="has learned"):
        second.begin_with(weights)


def test_an_answer_is_that_of_eval_mode_and_the_mode_is_put_back():
    learner = Learner(new(), TrainingTable())
    taught(learner, batches(3))
    images = batches(1)[0][0]
    for mode in (True, False):
        learner.student.train(mode)
        before = weights(learner)
        found = learner.answer(images)
        assert learner.student.training is mode
        assert not found.requires_grad
        assert_same(before, weights(learner))
        assert torch.equal(found, copy.deepcopy(learner.student).eval()(images))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_a_learner_restored_from_a_file_learns_on_bit_for_bit(
    tmp_path: Path, optimizer: str, ema: float
):
    table = TrainingTable(optimizer=optimizer, ema=ema)
    unbroken, lessons = Learner(new(), table), batches(10)
    taught(unbroken, lessons[:5])
    save_state(unbroken.state_dict(), tmp_path / "x", "learner")
    other = Learner(new(), table)
    taught(other, lessons[7:])  # whatever it did before is forgotten
    other.load_state_dict(load_state(tmp_path / "x", "learner"))
    assert taught(unbroken, lessons[5:], 5) == taught(other, lessons[5:], 5)
    assert_same(weights(unbroken), weights(other))
    if ema:
        assert_same(unbroken.average, other.average)
    assert unbroken.steps == other.steps == 10


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.1)]
)
def test_a_loaded_optimizer_has_its_tensors_laid_out_like_the_weights(tmp_path, make):
    layer = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    optimizer = make(layer.parameters())
    layer(torch.rand(2, 4, 8, 8)).square().mean().backward()
    optimizer.step()
    save_state(optimizer.state_dict(), tmp_path / "x", "optimizer")
    fresh = make(layer.parameters())
    load_optimizer(fresh, load_state(tmp_path / "x", "optimizer"))
    for key, value in optimizer.state[layer.weight].items():
        found = fresh.state[layer.weight][key]
        assert torch.equal(found, value)
        assert found.stride() == value.stride()
        assert found.dtype == value.dtype
    assert fresh.param_groups[0]["lr"] == 0.1


def test_a_saved_student_can_be_rebuilt_from_its_card(tmp_path):
    student = new()
    path = tmp_path / "student.safetensors"
    save_student(student, card_of(student, "resnet8-w4", ("a", "b", "c")), path)
    card = read_card(path)
    assert (card.network, card.classes, card.names, card.image_spec) == (
        "resnet8-w4",
        3,
        ("a", "b", "c"),
        SPEC,
    )
    body = build_network(
        card.network, channels=card.channels, size=card.height, classes=card.classes
    )
    body.load_state_dict(read_weights(path))
    twin = Classifier(body, card.image_spec, card.classes, card.answers).eval()
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(twin(images), student.eval()(images))


# --- maps of the teacher ---


def groups(student: Classifier, images: Tensor) -> list[Tensor]:
    """The outputs of the three groups of a ResNet, one after the other."""
    body = student.body
    h = torch.relu(body.bn1(body.conv1((images - student.mean) / student.std)))
    maps = []
    for group in (body.layer1, body.layer2, body.layer3):
        h = group(h)
        maps.append(h)
    return maps


@pytest.fixture
def looking(network) -> Callable[..., tuple[Learner, FrozenTeacher]]:
    """A learner beside a teacher whose layers it may see."""
    teacher = FrozenTeacher(Classifier(network("resnet14-w4"), SPEC, 3))

    def make(table: TrainingTable, **more: Any) -> tuple[Learner, FrozenTeacher]:
        student = new()
        objective = DistillationObjective(table, student, teacher, **more)
        return Learner(student, table, objective), teacher

    return make


@pytest.mark.parametrize(
    "weights",
    [{"attention": 5.0}, {"feature_match": 0.5}, {"attention": 2.0, "feature_match": 3.0}],
)
def test_maps_add_attention_and_features_to_the_loss(looking, weights):
    table, plain = TrainingTable(terms={"soft_targets": 1.0, **weights}), new().train()
    images, answers = batches(1)[0]
    learner, teacher = looking(table)
    features = teacher.teach(images, learner.objective.teacher_layers).features
    found = learner.step(images, Seen(answers, features), 0.5).loss
    mine, theirs = groups(plain, images), groups(teacher.classifier, images)
    plain = new().train()
    expected = soft_targets(plain(images), answers, temperature=table.temperature)
    expected = expected + weights.get("attention", 0) * attention_transfer(mine, theirs)
    expected = expected + weights.get("feature_match", 0) * feature_match(mine, theirs)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_that_matches_features_learns_to_see_what_the_teacher_sees(looking):
    images, answers = batches(1)[0]
    gaps = []
    for weight in (1e-9, 10.0):
        table = TrainingTable(terms={"soft_targets": 1.0, "feature_match": weight}, ema=0)
        learner, teacher = looking(table)
        features = teacher.teach(images, learner.objective.teacher_layers).features
        for _ in range(30):
            learner.step(images, Seen(answers, features), 0.1)
        learner.student.train()
        theirs = groups(teacher.classifier, images)
        gaps.append(feature_match(groups(learner.student, images), theirs).item())
    assert gaps[1] < 0.6 * gaps[0]


def test_only_maps_of_the_same_channels_are_matched_and_attention_needs_more_than_a_pixel():
    mine = {"a": torch.rand(2, 3, 4, 4), "b": torch.rand(2, 5, 2, 2), "c": torch.rand(2, 5, 1, 1)}
    theirs = {"a": torch.rand(2, 7, 4, 4), "b": torch.rand(2, 5, 2, 2), "c": torch.ones(2, 5, 1, 1)}
    pairs = (("a", "a"), ("b", "b"), ("c", "c"))
    logits = torch.zeros(2, 3)
    view = DistillationView(torch.zeros(2, 1, 8, 8), logits, logits, mine, theirs, pairs)
    assert TERMS["attention"].fn(view).item() == pytest.approx(
        attention_transfer([mine["a"], mine["b"]], [theirs["a"], theirs["b"]]).item()
    )
    assert TERMS["feature_match"].fn(view).item() == pytest.approx(
        feature_match([mine["b"], mine["c"]], [theirs["b"], theirs["c"]]).item()
    )


@pytest.mark.parametrize("term", ["attention", "feature_match"])
def test_layers_that_never_fit_are_refused_before_the_run_by_the_terms_name(term):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    teacher = FrozenTeacher(Classifier(flat, SPEC, 3))
    with pytest.raises(InputError, match=rf"training.terms.{term}: no layer"):
        DistillationObjective(TrainingTable(terms={term: 2.5}), new(), teacher)
    named = {"student_layers": ("layer1",), "teacher_layers": ("1", "0")}
    with pytest.raises(InputError, match=r"1 layers and training\.teacher_layers 2"):
        DistillationObjective(TrainingTable(terms={term: 2.5}, **named), new(), teacher)
    with pytest.raises(InputError, match=r"training\.student_layers: layer 'layer9': no such"):
        table = TrainingTable(terms={term: 2.5}, student_layers=("layer9",))
        DistillationObjective(table, new(), teacher)


def test_a_black_box_is_refused_for_terms_that_look_inside():
    closed = FrozenTeacher(new(), access="logits")
    with pytest.raises(InputError, match=r"attention compares layers inside the teacher"):
        DistillationObjective(TrainingTable(terms={"attention": 1.0}), new(), closed)


class Head(nn.Module):
    """A term with weights of its own: a linear adapter from the student's features."""

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        (ours, theirs), *_ = known.pairs
        self.linear = nn.Linear(known.student[ours][0], known.teacher[theirs][0])

    def forward(self, view: DistillationView) -> Tensor:
        (ours, theirs), *_ = view.pairs
        mine = view.student_features[ours].flatten(2).mean(2)
        gap = self.linear(mine) - view.teacher_features[theirs].flatten(2).mean(2)
        return gap.square().mean()


def test_a_term_with_weights_learns_with_the_student_resumes_and_does_not_ship(
    looking, monkeypatch, tmp_path
):
    adapter = Term("a test", module=Head, needs=frozenset({"features"}))
    monkeypatch.setitem(TERMS, "adapter", adapter)
    table = TrainingTable(terms={"soft_targets": 1.0, "adapter": 1.0}, ema=0.5)
    (learner, teacher), (other, _) = looking(table), looking(table)
    images, answers = batches(1)[0]
    seen = Seen(answers, teacher.teach(images, learner.objective.teacher_layers).features)
    before = learner.objective.made["adapter"].linear.weight.clone()
    for _ in range(5):
        learner.step(images, seen, 0.1)
    assert not torch.equal(before, learner.objective.made["adapter"].linear.weight)
    save_state(learner.state_dict(), tmp_path / "x", "learner")
    other.load_state_dict(load_state(tmp_path / "x", "learner"))
    after = [each.step(images, seen, 0.2).loss.item() for each in (learner, other)]
    assert after[0] == after[1]
    assert_same(learner.objective.state_dict(), other.objective.state_dict())
    path = tmp_path / "student.safetensors"
    save_student(learner.student, card_of(learner.student, "resnet8-w4", ("a", "b", "c")), path)
    assert set(read_weights(path)) == set(new().body.state_dict())


def test_layers_of_the_student_that_are_frozen_stay_so():
    student = new()
    student.body.conv1.requires_grad_(False)
    student.body.bn1.eval()
    kept = student.body.conv1.weight.clone()
    learner = Learner(student, TrainingTable(ema=0))
    with frozen_student(learner) as pose:
        assert not any(p.requires_grad for p in student.parameters())
        pose(torch.rand(2, 1, 8, 8))
    assert not student.body.conv1.weight.requires_grad
    assert student.body.layer1[0].conv1.weight.requires_grad
    assert not student.body.bn1.training
    learner.step(*batches(1)[0], 0.5)
    assert torch.equal(student.body.conv1.weight, kept)


def test_a_need_that_nobody_meets_is_refused(looking, monkeypatch):
    monkeypatch.setitem(TERMS, "mine", Term("a test", module=Head, needs=frozenset({"feature"})))
    with pytest.raises(InputError, match=r"terms\.mine: unknown need 'feature'; did you mean 'fea"):
        looking(TrainingTable(terms={"mine": 1.0}))


def test_a_norm_that_is_frozen_keeps_what_it_remembers():
    """Its running statistics belong to its weights: they stay, and it normalises by them."""
    student = new()
    norm, free = student.body.bn1, student.body.layer1[0].bn1
    norm.requires_grad_(False)
    with torch.no_grad():
        norm.running_mean.fill_(0.3)
    before, moving = copy.deepcopy(norm.state_dict()), free.running_mean.clone()
    learner = Learner(student, TrainingTable(ema=0))
    learner.step(*batches(1)[0], 0.5)
    assert all(torch.equal(norm.state_dict()[key], value) for key, value in before.items())
    assert not norm.training and free.training
    assert not torch.equal(free.running_mean, moving)


def test_what_learns_beside_the_student_is_decayed_like_its_own_weights(looking, monkeypatch):
    monkeypatch.setitem(
        TERMS, "adapter", Term("a test", module=Head, needs=frozenset({"features"}))
    )
    table = TrainingTable(terms={"soft_targets": 1.0, "adapter": 1.0}, weight_decay=0.01)
    learner, _ = looking(table)
    linear = learner.objective.made["adapter"].linear
    decay = {
        id(p): group["weight_decay"] for group in learner.optimizer.param_groups
        for p in group["params"]
    }  # fmt: skip
    assert (decay[id(linear.weight)], decay[id(linear.bias)]) == (0.01, 0.0)
    body = learner.student.body
    assert (decay[id(body.conv1.weight)], decay[id(body.bn1.weight)]) == (0.01, 0.0)
    assert len(decay) == len(list(learner.student.parameters())) + 2


def test_nobody_watches_a_student_whose_terms_need_no_features(looking):
    watchers = []

    def count(module: nn.Module, _: object) -> None:
        watchers.append(len(module._forward_hooks))

    for weight in (0.0, 1.0):
        table = TrainingTable(terms={"soft_targets": 1.0, "feature_match": weight})
        learner, teacher = looking(table)
        learner.student.body.layer1.register_forward_pre_hook(count)
        images, _ = batches(1)[0]
        taught = teacher.teach(images, learner.objective.teacher_layers)
        learner.step(images, taught, 0.0)
        assert not learner.student.body.layer1._forward_hooks
    assert watchers == [0, 1]
