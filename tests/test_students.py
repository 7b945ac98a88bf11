"""The student: steps and average redone in plain loops, and a saved state that goes on the same."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.losses.distillation import attention_transfer, feature_match, soft_targets
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TrainingTable
from synthkd.schedules import one_cycle
from synthkd.specs import card_of, read_card, read_weights
from synthkd.students.learner import (
    Learner,
    distillation_loss,
    load_optimizer,
    map_loss,
    save_student,
)
from synthkd.teachers.frozen import Teacher

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
    return [float(learner.step(x, y, (start + i) / whole)) for i, (x, y) in enumerate(lessons)]


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


def test_arranging_changes_neither_weights_nor_mode():
    for student in (new(), Classifier(Viewing(), SPEC, 3)):
        for mode in (True, False):
            before = copy.deepcopy(student.train(mode).state_dict())
            assert student.arranged() is student
            assert student.training == student.body.training == mode
            assert_same(student.state_dict(), before)


def test_a_student_without_normalisation_learns_at_its_own_rate():
    table = TrainingTable(learning_rate=0.3, unnormalised=0.5, warmup=0.0, ema=0)
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


def test_the_loss_is_the_one_that_the_table_names():
    learned, answers = torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 1.0]])
    assert distillation_loss(learned, answers, TrainingTable(loss="l1")).item() == 2
    found = distillation_loss(learned, answers, TrainingTable(temperature=2))
    p, q = (1 / (1 + math.exp(-gap / 2)) for gap in (3, 1))  # two classes: a logistic function
    assert found.item() == pytest.approx(
        4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))), rel=1e-5
    )


@pytest.mark.parametrize("schedule", ["one_cycle", "constant", "steps"])
def test_a_step_is_as_long_as_the_schedule_says(schedule):
    """With plain SGD a step is the rate times the gradient, so two rates move by their ratio."""
    plain = {"clip": 0, "ema": 0, "momentum": 0, "weight_decay": 0, "loss": "l1"}
    table = TrainingTable(**plain, schedule=schedule, warmup=0, learning_rate=0.01)
    moved = []
    for progress in (0.0, 0.5):
        learner = Learner(new(), table)
        before = weights(learner)["body.linear.weight"]
        learner.step(*batches(1)[0], progress)
        moved.append((weights(learner)["body.linear.weight"] - before).norm().item())
    expected = {"one_cycle": 0.5, "constant": 1.0, "steps": 0.1}[schedule]
    assert moved[1] / moved[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ["kl", "l1"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_student_learns_its_lesson_by_heart(optimizer, loss):
    rate = 0.05 if optimizer == "sgd" else 0.01
    table = TrainingTable(optimizer=optimizer, learning_rate=rate, loss=loss)
    learner, lesson = Learner(new(), table), batches(1)[0]
    losses = [float(learner.step(*lesson, 0.2)) for _ in range(30)]
    assert losses[-1] < (0.1 if loss == "kl" else 0.3) * losses[0]  # a gap falls as its square root


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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
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


@pytest.mark.parametrize(
    "weights", [{"attention": 5.0}, {"features": 0.5}, {"attention": 2.0, "features": 3.0}]
)
def test_maps_add_attention_and_features_to_the_loss(network, weights):
    table, plain = TrainingTable(**weights), new().train()
    images, answers = batches(1)[0]
    teacher = Teacher(Classifier(network("resnet14-w4"), SPEC, 3))
    _, maps = teacher.teach(images, maps=True)
    found = Learner(new(), table).step(images, answers, 0.5, maps)
    mine, theirs = groups(plain, images), groups(teacher.classifier, images)
    plain = new().train()
    expected = soft_targets(plain(images), answers, temperature=table.temperature)
    expected = expected + table.attention * attention_transfer(mine, theirs)
    expected = expected + table.features * feature_match(mine, theirs)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_that_looks_learns_to_see_what_the_teacher_sees(network):
    teacher = Teacher(Classifier(network("resnet20-w4"), SPEC, 3))
    images, answers = batches(1)[0]
    _, maps = teacher.teach(images, maps=True)
    gaps = []
    for weight in (0.0, 10.0):
        learner = Learner(new(), TrainingTable(features=weight, ema=0))
        for _ in range(30):
            learner.step(images, answers, 0.1, maps)
        learner.student.train()
        gaps.append(feature_match(groups(learner.student, images), list(maps.values())).item())
    assert gaps[1] < 0.6 * gaps[0]


def test_only_maps_of_the_same_channels_are_matched_and_attention_needs_more_than_a_pixel():
    table = TrainingTable(attention=1, features=1)
    mine = {(4, 4): torch.rand(2, 3, 4, 4), (2, 2): torch.rand(2, 5, 2, 2)}
    theirs = {(4, 4): torch.rand(2, 7, 4, 4), (2, 2): torch.rand(2, 5, 2, 2), (9, 9): torch.ones(1)}
    found = map_loss(mine, theirs, table)
    expected = attention_transfer(
        [mine[4, 4], mine[2, 2]], [theirs[4, 4], theirs[2, 2]]
    ) + feature_match([mine[2, 2]], [theirs[2, 2]])
    assert found.item() == pytest.approx(expected.item())
    pixel = {(1, 1): torch.rand(2, 5, 1, 1)}
    with pytest.raises(InputError, match=r"training.attention 1: no map"):
        map_loss(pixel, pixel, table)


@pytest.mark.parametrize("setting", ["attention", "features"])
def test_maps_that_never_fit_are_refused_by_the_settings_name(setting):
    learner = Learner(new(), TrainingTable(**{setting: 2.5}))
    images, answers = batches(1)[0]
    with pytest.raises(InputError, match=rf"training.{setting} 2.5: no map"):
        learner.step(images, answers, 0.0, {(5, 5): torch.rand(8, 4, 5, 5)})


def test_nobody_watches_a_student_that_does_not_look():
    watchers = []

    def count(module: nn.Module, _: object) -> None:
        watchers.append(len(module._forward_hooks))

    for weight in (0.0, 1.0):
        learner = Learner(new(), TrainingTable(features=weight))
        learner.student.body.conv1.register_forward_pre_hook(count)
        images, answers = batches(1)[0]
        learner.step(images, answers, 0.0, {(8, 8): torch.rand(8, 4, 8, 8)})
        assert not learner.student.body.conv1._forward_hooks
    assert watchers == [0, 1]
