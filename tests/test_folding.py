"""Norms within convolutions: the same answers and gradients, and nothing folded that may not be."""

import copy

import pytest
import torch
from torch import Tensor, nn

from synthkd.core.images import ImageSpec
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.networks.folding import Folding, folding_pairs
from synthkd.recipe import TrainingTable
from synthkd.students.learner import Learner


def lived(network: nn.Module) -> nn.Module:
    """A network whose norms have seen something."""
    torch.manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -1, 1)
    return network.eval()


def norms_of(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet8-w4", "mobilenet-0.5", "wrn-16-1"])
def test_answers_and_gradients_are_those_of_the_plain_network(name):
    network = lived(build_network(name, channels=3, size=16, classes=5)).double()
    images = random(4, 3, 16, 16).double()
    pairs = folding_pairs(network, images, norms_of(network))
    assert pairs
    plain = network(images)
    plain.square().sum().backward()
    slopes = {k: p.grad.clone() for k, p in network.named_parameters()}
    network.zero_grad()
    with Folding(pairs):
        folded = network(images)
    folded.square().sum().backward()
    assert torch.allclose(folded, plain, atol=1e-4 * float(plain.detach().abs().max()))
    for key, parameter in network.named_parameters():
        scale = float(slopes[key].abs().max()) + 1e-6
        assert torch.allclose(parameter.grad, slopes[key], atol=2e-3 * scale), key


def test_most_norms_of_a_residual_network_are_folded():
    network = lived(build_network("resnet8-w4", channels=1, size=16, classes=5))
    assert len(folding_pairs(network, random(2, 1, 16, 16), norms_of(network))) == len(
        norms_of(network)
    )


class Twice(nn.Module):
    """One convolution whose output is used beside its norm, one that is called twice, one without a
    norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Conv2d(1, 2, 3, padding=1)
        self.shared = nn.Conv2d(2, 2, 3, padding=1)
        self.plain = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2, affine=k != 2) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.used(x)
        h = self.norms[0](h) + h
        h = self.norms[1](self.shared(self.shared(h)))
        return self.norms[2](self.plain(h)).mean((2, 3))


def test_what_is_used_elsewhere_or_twice_is_left_alone():
    network = lived(Twice())
    pairs = folding_pairs(network, random(2, 1, 8, 8), norms_of(network))
    assert {id(network.plain.weight)} == set(pairs)
    with Folding(pairs):
        found = network(random(2, 1, 8, 8))
    assert torch.allclose(found, network(random(2, 1, 8, 8)), atol=1e-5)


def test_norms_are_folded_in_bfloat16_too():
    spec = ImageSpec(1, 16, 16, (0.5,), (0.5,))
    body = lived(build_network("resnet8-w4", channels=1, size=16, classes=5))
    table = TrainingTable(batchnorm="frozen", ema=0)
    learner = Learner(Classifier(body, spec, 5), table, bfloat16=True)
    assert len(learner._folds) == len(norms_of(body))
    before = learner.step(random(8, 1, 16, 16), torch.randn(8, 5), 0.3).loss
    assert before.isfinite()


class Standardised(nn.Conv2d):
    """A convolution whose weights are made anew at every call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, padding=1)


def test_weights_that_are_made_anew_are_not_folded():
    network = nn.Sequential(Standardised(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    assert folding_pairs(lived(network), random(2, 1, 8, 8), norms_of(network)) == {}


def test_a_frozen_student_learns_the_same_with_its_norms_folded():
    spec = ImageSpec(1, 16, 16, (0.5,), (0.5,))
    body = lived(build_network("resnet8-w4", channels=1, size=16, classes=5))
    table = TrainingTable(batchnorm="frozen", ema=0)
    learners = [Learner(Classifier(copy.deepcopy(body), spec, 5), table) for _ in range(2)]
    assert learners[0]._folds
    learners[1]._folds = {}
    images, answers = random(16, 1, 16, 16), torch.randn(16, 5)
    for _ in range(5):
        losses = [each.step(images, answers, 0.3).loss for each in learners]
        assert torch.allclose(*losses, rtol=1e-3)
    first, second = (each.student.state_dict() for each in learners)
    assert all(torch.allclose(v, second[k], atol=1e-3) for k, v in first.items())
    assert all(torch.equal(v, body.state_dict()[k.removeprefix("body.")])
               for k, v in first.items() if "running" in k)  # fmt: skip
