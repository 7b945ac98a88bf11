"""What a student takes over from its teacher: channels that matter, blocks that fit, or nothing."""

import copy

import pytest
import torch
from torch import Tensor, nn

from synthkd.core.images import ImageSpec
from synthkd.networks.classifier import Classifier
from synthkd.networks.weight_init import inherited
from synthkd.recipe import StudentTable
from synthkd.specs import new_student
from synthkd.teachers.frozen import FrozenTeacher

SPEC = ImageSpec(1, 8, 8, (0.5,), (0.5,))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_shallower_resnet_is_made_of_the_teachers_first_blocks(network):
    student, teacher = network("resnet8-w4"), network("resnet20-w4")
    assert inherited(student, teacher) == (37, 37)  # 7 convolutions, 7 norms of four, a last layer
    given = teacher.state_dict()
    for key, value in student.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, given[key]), key


def test_what_the_teacher_does_not_have_stays_fresh(network):
    student, teacher = network("resnet14-w4"), network("resnet8-w4")
    before = copy.deepcopy(student.state_dict())
    assert inherited(student, teacher) == (37, 67)
    for key, value in student.state_dict().items():
        if key.split(".")[1] == "1":  # the second blocks
            assert torch.equal(value, before[key]), key
    assert torch.equal(student.layer3[0].conv2.weight, teacher.layer3[0].conv2.weight)


def test_inheriting_leaves_the_teacher_alone_and_shares_no_memory(network):
    student, teacher = network("resnet8-w4"), network("resnet20-w4")
    before = copy.deepcopy(teacher.state_dict())
    inherited(student, teacher)
    for p in student.parameters():
        p.data.add_(1)
    assert_same(before, teacher.state_dict())
    assert all(p.requires_grad for p in student.parameters())


def test_of_a_chain_the_channels_with_the_strongest_way_through_are_kept():
    """Strength in times strength out: 1 · 1, 5 · 0.1, 2 · 1 and 3 · 3, so the last two stay."""
    wide = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))
    narrow = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        wide[0].weight.copy_(torch.tensor([[1.0], [-5.0], [2.0], [3.0]]))
        wide[0].bias.copy_(torch.tensor([10.0, 20.0, 30.0, 40.0]))
        wide[2].weight.copy_(torch.tensor([[0.0, 0.1, 0.6, -3.0], [1.0, 0.0, 0.8, 0.0]]))
    assert inherited(narrow, wide) == (4, 4)
    assert narrow[0].weight.tolist() == [[2.0], [3.0]]
    assert narrow[0].bias.tolist() == [30.0, 40.0]
    assert narrow[2].weight.tolist() == [pytest.approx([0.6, -3.0]), pytest.approx([0.8, 0.0])]
    assert torch.equal(narrow[2].bias, wide[2].bias)


def convolutional(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 3),
    ).eval()  # fmt: skip


def test_channels_that_nobody_hears_can_be_left_out_of_a_chain():
    """Half of the channels are cut off at the norm or at the reader: the student is the teacher."""
    wide, narrow = convolutional(6), convolutional(3)
    with torch.no_grad():
        wide[1].weight[[0, 2, 3]] = 0  # the norm's bias alone is left, and that is 0
        wide[7].weight.unflatten(1, (6, 4))[:, [1, 4, 5]] = 0
    assert inherited(narrow, wide) == (9, 9)
    assert torch.equal(narrow[1].weight, wide[1].weight[[1, 4, 5]])
    images = torch.randn(5, 1, 8, 8)
    assert torch.allclose(narrow(images), wide(images), atol=1e-6)


@pytest.mark.parametrize("name", ["", "lenet5-half"])
def test_a_chain_of_which_nothing_is_dropped_is_the_teacher(network, name):
    student, teacher = (network(name) if name else convolutional(4) for _ in range(2))
    taken, whole = inherited(student, teacher)
    assert taken == whole
    images = torch.randn(3, 1, *((8, 8) if isinstance(student, nn.Sequential) else (32, 32)))
    assert torch.equal(student(images), teacher(images))


def test_half_a_lenet_is_a_part_of_the_whole_one(network):
    student, teacher = network("lenet5-half"), network("lenet5")
    assert inherited(student, teacher) == (10, 10)
    filters = [f.flatten().tolist() for f in teacher.convnet.c1.weight]
    places = [filters.index(f.flatten().tolist()) for f in student.convnet.c1.weight]
    assert places == sorted(places)
    found = student.convnet.c3.bias.tolist()
    rows = [teacher.convnet.c3.bias.tolist().index(value) for value in found]
    assert torch.equal(student.convnet.c3.weight, teacher.convnet.c3.weight[rows][:, places])


class Twice(nn.Module):
    """The same two layers, but images pass the first one on two ways."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.first(-x))


class Deciding(Twice):
    """What cannot be followed without images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) if x.sum() > 0 else -self.first(x))


@pytest.mark.parametrize("make", [Twice, Deciding])
def test_what_is_no_chain_is_never_sliced(make):
    student, teacher = make(2), make(5)
    before = copy.deepcopy(student.state_dict())
    assert inherited(student, teacher) == (1, 4)  # the last bias has the classes' shape
    for key in ("first.weight", "first.bias", "last.weight"):
        assert torch.equal(student.state_dict()[key], before[key])


def test_a_student_with_nothing_to_take_is_a_fresh_one(network):
    student, teacher = network("resnet8-w4"), network("lenet5")
    before = copy.deepcopy(student.state_dict())
    assert inherited(student, teacher) == (0, 37)
    assert_same(before, student.state_dict())
    wider = network("lenet5")
    assert inherited(wider, network("lenet5-half"))[0] == 1  # never from a narrower teacher


def test_a_new_student_starts_from_the_teacher_only_if_asked(network):
    teacher = FrozenTeacher(Classifier(network("resnet20-w4"), SPEC, 3))
    fresh = new_student(StudentTable(spec="resnet8-w4"), teacher)
    heir = new_student(StudentTable(spec="resnet8-w4", start="teacher"), teacher)
    assert (fresh.inherited, heir.inherited) == ((0, 0), (37, 37))
    stem = teacher.classifier.body.conv1.weight
    assert torch.equal(heir.body.conv1.weight, stem)
    assert not torch.equal(fresh.body.conv1.weight, stem)


def silenced(student: nn.Module, teacher: nn.Module) -> None:
    """Makes every channel of a ResNet that a narrower one does not keep say 0."""
    taken = {key: value.clone() for key, value in student.state_dict().items()}
    modules = dict(teacher.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_mean" in taken:
            mine = set(taken[f"{name}.running_mean"].tolist())
            lost = [c for c, m in enumerate(module.running_mean.tolist()) if m not in mine]
            module.weight.data[lost] = 0
            module.bias.data[lost] = 0


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [("resnet8-w3", "resnet8-w4"), ("resnet8-w4", "resnet8-w8"), ("resnet14-w5", "resnet14-w8")],
)
def test_a_narrower_resnet_is_the_wider_one_without_its_silent_channels(
    network, narrow: str, wide: str
) -> None:
    student, teacher = network(narrow), network(wide)
    taken, whole = inherited(student, teacher)
    assert taken == whole
    silenced(student, teacher)  # the same channels are still the ones that matter most
    assert inherited(student, teacher) == (whole, whole)
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(student(images), teacher(images), atol=1e-5, rtol=1e-4)


def test_a_narrower_and_shallower_resnet_takes_the_first_blocks(network) -> None:
    student, teacher = network("resnet8-w4"), network("resnet20-w8")
    taken, whole = inherited(student, teacher)
    assert taken == whole
    rows = [row.flatten().tolist() for row in teacher.conv1.weight]
    assert all(row.flatten().tolist() in rows for row in student.conv1.weight)


def test_a_narrower_resnet_of_a_deeper_kind_takes_what_there_is(network) -> None:
    student, teacher = network("resnet14-w4"), network("resnet8-w8")
    assert inherited(student, teacher) == (37, 67)


def test_normalised_flat_maps_are_not_taken_for_channels():
    def chain(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.Flatten(), nn.BatchNorm1d(width * 36),
            nn.Linear(width * 36, 3),
        )  # fmt: skip

    student, teacher = chain(2), chain(4)
    before = copy.deepcopy(student[0].state_dict())
    inherited(student, teacher)
    assert_same(before, student[0].state_dict())
