"""Networks of torchvision with what their files do not tell, or tell in old words.

Oracle: torchvision's own network with the same weights, fed as torchvision says.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from synthkd.core.errors import InputError
from synthkd.recipe import StudentTable, TeacherTable, TrainingTable
from synthkd.specs import card_of, load_classifier, load_teacher, new_student
from synthkd.specs.zoo import IMAGENET
from synthkd.students.learner import Learner, save_student
from synthkd.teachers.frozen import FrozenTeacher


def lively(body: nn.Module) -> nn.Module:
    """With answers that depend on the image, and BatchNorm statistics of its own."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return body.eval()


def inception(name: str, classes: int = 1000, **more: Any) -> nn.Module:
    """Made as torchvision makes it around its published weights, here random ones."""
    torch.manual_seed(0)
    made = models.get_model(name, num_classes=classes, init_weights=False, **more)
    return lively(made)


def images(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (x - mean) / std


def published(name: str, weights: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights for `--teacher-weights`: a file of them, or the word hub, for which they lie where
    torchvision keeps what it has fetched."""
    state = inception(name, transform_input=True).state_dict()
    assert any(key.lower().startswith("aux") for key in state)  # as published
    if weights == "hub":
        monkeypatch.setenv("TORCH_HOME", str(folder))
        url = models.get_model_weights(name).DEFAULT.url
        path = folder / "hub" / "checkpoints" / url.rpartition("/")[2]
        path.parent.mkdir(parents=True)
    else:
        path = folder / "w.pth"
    torch.save(state, path)
    return weights if weights == "hub" else str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "size"),
    [("googlenet", "file", 32), ("googlenet", "hub", 32), ("inception_v3", "file", 75)],
)
def test_published_inceptions_answer_as_in_torchvision_and_come_back_so(
    name: str, weights: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = published(name, weights, tmp_path, monkeypatch)
    table = TeacherTable(spec=f"torchvision:{name}", weights=given, image_size=size)
    teacher = load_teacher(table)
    with torch.no_grad():
        expected = inception(name, transform_input=True)(normalised(images(4, size)))
        otherwise = inception(name)(normalised(images(4, size)))
    assert not torch.allclose(otherwise, expected, atol=0.01, rtol=0.01)  # the range matters
    torch.testing.assert_close(teacher(images(4, size)), expected, atol=1e-4, rtol=1e-4)
    assert teacher.spec.mean == teacher.spec.std == (0.5, 0.5, 0.5)

    student = teacher.classifier
    assert not any(key.lower().startswith("aux") for key in student.body.state_dict())
    save_student(student, card_of(student, table.spec, ()), tmp_path / "student.safetensors")
    again, _ = load_classifier(StudentTable(spec=str(tmp_path)), TeacherTable())
    with torch.no_grad():
        torch.testing.assert_close(again(images(4, size)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("classes", [5, 1000])
def test_a_file_of_an_inception_without_its_auxiliary_heads_fits(
    tmp_path: Path, classes: int
) -> None:
    body = inception("googlenet", classes, aux_logits=False)
    torch.save(body.state_dict(), tmp_path / "w.pth")
    more = {"mean": IMAGENET[0], "std": IMAGENET[1]} if classes == 1000 else {}
    teacher = load_teacher(TeacherTable(
        spec="torchvision:googlenet", weights=str(tmp_path / "w.pth"), image_size=32, **more
    ))  # fmt: skip
    with torch.no_grad():
        expected = body(normalised(images(2, 32)))  # of which only the user knows the range
    assert teacher.classes == classes
    torch.testing.assert_close(teacher(images(2, 32)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cut", "fresh", "code"])
def test_an_inception_learns_as_a_student_and_comes_back(tmp_path: Path, form: str) -> None:
    """Cut out of one, new, and as a user's own code makes it, with auxiliary heads."""
    torch.save(inception("googlenet", 5).state_dict(), tmp_path / "w.pth")
    table = TeacherTable(
        spec="torchvision:googlenet", weights=str(tmp_path / "w.pth"), image_size=32
    )
    teacher = load_teacher(table)
    (tmp_path / "net.py").write_text(
        "from torchvision import models\n\n\ndef make():\n"
        "    return models.googlenet(num_classes=5, init_weights=False)\n"
    )
    code = f"{tmp_path / 'net.py'}:make"
    spec = {"cut": "prune:0.05", "fresh": table.spec, "code": code}[form]
    student = new_student(StudentTable(spec=spec), teacher, trust_code=True)
    learner = Learner(student, TrainingTable(learning_rate=0.01, warmup=0.0))
    x = images(8, 32)
    taught, before = teacher(x), student.body.fc.weight.clone()
    losses = [float(learner.step(x, taught, step / 4).loss) for step in range(2)]
    assert all(0 <= loss < 100 for loss in losses) and not torch.equal(
        student.body.fc.weight, before
    )

    of = table.spec if form == "cut" else ""
    card = card_of(student, spec, (), of=of)
    save_student(student, card, tmp_path / "student.safetensors")
    again, _ = load_classifier(
        StudentTable(spec=str(tmp_path)), TeacherTable(), trust_code=form == "code"
    )
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), student.eval()(x), atol=1e-4, rtol=1e-4)


# Names that DenseNets had


def old(name: str) -> str:
    """A name of today's as it was before names of modules lost their dots."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


def small_densenet() -> nn.Module:
    torch.manual_seed(4)
    return lively(models.DenseNet(4, (2, 1, 1, 1), 8, num_classes=5))


SMALL = (
    "from torchvision import models\n\n\ndef make():\n"
    "    return models.DenseNet(4, (2, 1, 1, 1), 8, num_classes=5)\n"
)


def from_old_names(folder: Path, body: nn.Module, spec: str, prefix: str = "") -> FrozenTeacher:
    state = {prefix + old(key): value for key, value in body.state_dict().items()}
    assert any("denselayer1.norm.1.weight" in key for key in state)
    torch.save({"state_dict": state}, folder / "w.pth")
    return load_teacher(TeacherTable(
        spec=spec, weights=str(folder / "w.pth"), image_size=32, channels=3,
        mean=IMAGENET[0], std=IMAGENET[1],
    ), trust_code=True)  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.densenet121."])
@pytest.mark.parametrize("source", ["torchvision", "code"])
def test_a_densenets_file_of_before_is_read(tmp_path: Path, source: str, prefix: str) -> None:
    (tmp_path / "net.py").write_text(SMALL)
    if source == "torchvision":
        torch.manual_seed(4)
        body, spec = lively(models.densenet121(num_classes=5)), "torchvision:densenet121"
    else:
        body, spec = small_densenet(), f"{tmp_path / 'net.py'}:make"
    teacher = from_old_names(tmp_path, body, spec, prefix)
    with torch.no_grad():
        expected = body(normalised(images(3, 32)))
    assert teacher.classes == 5
    torch.testing.assert_close(teacher(images(3, 32)), expected, atol=1e-4, rtol=1e-4)


def test_a_file_of_before_for_another_densenet_is_refused_by_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SMALL.replace("num_classes=5", "num_classes=7"))
    with pytest.raises(InputError, match="of another shape 'classifier") as caught:
        from_old_names(tmp_path, small_densenet(), f"{tmp_path / 'net.py'}:make")
    assert "missing" not in str(caught.value) and "unknown" not in str(caught.value)


class Dotted(nn.Module):
    """A network that has such names today."""

    def __init__(self) -> None:
        super().__init__()
        self.denselayer1 = nn.Module()
        self.denselayer1.norm = nn.ModuleDict({"1": nn.BatchNorm2d(3)})
        self.denselayer1.norm1 = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.denselayer1
        return self.linear(layer.norm1(layer.norm["1"](x).relu()).mean((2, 3)))


def test_a_network_with_both_names_has_each_by_its_own() -> None:
    from synthkd.specs.weights import Checkpoint, fill

    made, body = lively(Dotted()), Dotted()
    fill(body, Checkpoint(made.state_dict(), "a file"))
    for key, value in made.state_dict().items():
        assert torch.equal(body.state_dict()[key], value), key
