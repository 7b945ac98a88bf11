"""Students that answer otherwise in training mode than when they are used.

Oracle: a twin of the same layers without what is for training alone, which takes the same steps.
"""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lessons import CLASSES, SPEC, TABLE, lesson
from torch import Tensor, nn

from synthkd.networks.answers import Answers
from synthkd.networks.classifier import Classifier
from synthkd.recipe import StudentTable
from synthkd.specs import new_student
from synthkd.students.learner import Learner
from synthkd.teachers.frozen import FrozenTeacher


class Layers(nn.Module):
    """A convolution, a norm, dropout and a head; and a second head, which a twin never asks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.head, self.second = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.first(x).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(self.features(x)))


class Pair(Layers):
    def forward(self, x: Tensor) -> Any:
        found = self.features(x)
        scores = self.head(self.drop(found))
        return (scores, self.second(found)) if self.training else scores


class Named(Pair):
    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return {"out": found[0], "aux": found[1]} if self.training else found


class Wide(Pair):
    """One tensor, of twice as many columns."""

    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return torch.cat(found, 1) if self.training else found


class Failing(Pair):
    """As a network whose auxiliary head was not cut with the rest of it."""

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.second(x)
        return super().forward(x)


class Inside(nn.Module):
    """The network of somebody else, inside of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Pair()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Soft(Layers):
    """Its softmax is not a part of the training."""

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return scores if self.training else scores.softmax(1)


class AlwaysSoft(Layers):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


class Detector(Layers):
    """Logits in training mode, probabilities and logits else."""

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return scores if self.training else (scores.softmax(1), scores)


OTHERWISE = [
    (Pair, Layers, "logits"), (Named, Layers, "logits"), (Wide, Layers, "logits"),
    (Failing, Layers, "logits"), (Inside, Layers, "logits"), (Soft, AlwaysSoft, "probabilities"),
    (Detector, AlwaysSoft, Answers("probabilities", path=(0,))),
]  # fmt: skip


def learned(body: nn.Module, answers: str | Answers, steps: int = 3) -> dict[str, Tensor]:
    """A network's weights after some steps, without the names of modules around it."""
    learner = Learner(Classifier(body, SPEC, CLASSES, answers), TABLE)
    images, taught = lesson(16)
    for step in range(steps):
        torch.manual_seed(step)  # of dropout
        learner.step(images, taught, step / 10)
    return {name.removeprefix("net."): value for name, value in body.state_dict().items()}


@pytest.mark.parametrize(("network", "twin", "answers"), OTHERWISE, ids=lambda each: str(each)[:40])
def test_a_network_that_answers_otherwise_in_training_mode_learns_as_its_twin(
    network: type[nn.Module], twin: type[nn.Module], answers: str | Answers
) -> None:
    body = network()
    before = copy.deepcopy(body.state_dict())
    own = learned(body, answers)
    other = learned(twin(), "probabilities" if twin is AlwaysSoft else answers)
    assert own.keys() == other.keys()
    for name in own:
        torch.testing.assert_close(own[name], other[name])
    moved = {n.removeprefix("net.") for n, v in before.items() if not torch.equal(
        v, own[n.removeprefix("net.")]
    )}  # fmt: skip
    assert {
        "first.0.weight",
        "first.1.running_mean",
        "head.weight",
    } <= moved  # the norm has learned
    assert not {"second.weight", "second.bias"} & moved


class Functional(Layers):
    """Dropout by a function, and a norm of its own, which are right to know that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Any:
        found = self.features(x)
        if self.training:
            self.seen += found.detach().mean(0)
        return self.head(F.dropout(found, 0.5, self.training))


@pytest.mark.parametrize("network", [Layers, Functional])
def test_a_network_that_answers_alike_is_in_training_mode_as_a_whole(
    network: type[nn.Module],
) -> None:
    body = network()
    learner = Learner(Classifier(body, SPEC, CLASSES), TABLE)
    assert learner.student.resting == ()
    learner.step(*lesson(8), 0.0)
    assert all(module.training for module in learner.student.modules())
    if isinstance(body, Functional):
        assert body.seen.any()


@pytest.mark.parametrize("network", [Layers, Functional, Pair, Soft])
def test_finding_out_changes_nothing(network: type[nn.Module]) -> None:
    answers = "probabilities" if network is Soft else "logits"
    student = Classifier(network(), SPEC, CLASSES, answers)
    before, drawn = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    student.steadied()
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_copy_rests_in_its_own_modules() -> None:
    student = Classifier(Inside(), SPEC, CLASSES).steadied()
    other = copy.deepcopy(student).train()
    assert {type(module) for module in other.resting} == {Inside, Pair}
    assert not other.body.training and not other.body.net.training
    assert other.body.net.first[1].training and other.body.net.drop.training
    other.eval()
    assert not any(module.training for module in other.modules())
    assert all(module.training for module in student.modules())  # as it was made


def test_norms_that_hold_an_activation_and_torchs_attention_do_not_rest() -> None:
    timm = pytest.importorskip("timm.layers", reason="timm is not installed")

    class Net(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(1, 6, 3), timm.BatchNormAct2d(6))
            self.attend = nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True)

        def features(self, x: Tensor) -> Tensor:
            tokens = self.first(x).flatten(2).transpose(1, 2)
            return self.attend(tokens, tokens, tokens)[0].mean(1)

    student = Classifier(Net(), SPEC, CLASSES).steadied().train()
    assert student.resting == (student.body,)
    assert student.body.first[1].training and student.body.attend.training


class WithHead(nn.Module):
    """A network with an auxiliary head in its middle, as GoogLeNet and Inception have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.auxiliary, self.linear = nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Any:
        middle = torch.relu(self.a(x))
        scores = self.linear(torch.relu(self.b(middle)).mean((2, 3)))
        return (scores, self.auxiliary(middle.mean((2, 3)))) if self.training else scores


def test_what_is_cut_out_of_a_network_with_an_auxiliary_head_learns() -> None:
    teacher = FrozenTeacher(Classifier(WithHead(), SPEC, CLASSES))
    student = new_student(StudentTable(spec="prune:0.5"), teacher)
    assert len(student.body.a.weight) < 16 and student.body.auxiliary.in_features == 16
    learner = Learner(student, TABLE)
    images, taught = lesson(32)
    losses = [float(learner.step(images, taught, step / 40).loss) for step in range(40)]
    assert losses[-1] < losses[0]
