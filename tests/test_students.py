"""The student: steps and average redone in plain loops, and a saved state that goes on the same."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from synthkd.images import ImageSpec
from synthkd.losses import soft_targets
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TrainingTable
from synthkd.schedules import one_cycle
from synthkd.specs import card_of, read_card, read_weights
from synthkd.states import load_state, save_state
from synthkd.students import Learner, load_optimizer, save_student

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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_student_learns_its_lesson_by_heart(optimizer):
    table = TrainingTable(optimizer=optimizer, learning_rate=0.05 if optimizer == "sgd" else 0.01)
    learner, lesson = Learner(new(), table), batches(1)[0]
    losses = [float(learner.step(*lesson, 0.2)) for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]


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
