"""Networks that other people trained, with the accuracies that the data's own README states.

They lie beside the checkout, not in it; without them these tests are skipped.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.core.images import to_float
from synthkd.data.sources import load_images
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher
from synthkd.teachers.frozen import FrozenTeacher

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (SHARED / "read.py").is_file(), reason="no ../shared/data beside this checkout"
)

CIFAR: dict[str, Any] = {
    "image_size": 32, "channels": 3, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip
MNIST: dict[str, Any] = {"image_size": 32, "channels": 1, "mean": (0.1307,), "std": (0.3081,)}


def accuracy(teacher: FrozenTeacher, name: str) -> float:
    images = load_images(
        f"{SHARED / 'read.py'}:load:{name}",
        teacher.spec,
        classes=teacher.classes,
        labelled=True,
        trust_code=True,
    )
    assert images.labels is not None
    with torch.no_grad():
        votes = torch.cat([teacher(to_float(part)).argmax(1) for part in images.pixels.split(256)])
    return float((votes == images.labels).double().mean())


def test_the_cifar_resnet20_reaches_its_stated_accuracy() -> None:
    teacher = load_teacher(
        TeacherTable(spec="resnet20", weights=str(SHARED / "resnet20-12fca82f.th"), **CIFAR)
    )
    assert (teacher.classes, len(teacher.norms), teacher.feature_size) == (10, 19, 64)
    assert teacher.classifier.answers == "logits"
    assert accuracy(teacher, "cifar10_test") == pytest.approx(932 / 1017, abs=0.001)


@pytest.mark.slow
def test_the_cifar_resnet56_reaches_its_stated_accuracy() -> None:
    teacher = load_teacher(
        TeacherTable(spec="resnet56", weights=str(SHARED / "resnet56-4bfd9763.th"), **CIFAR)
    )
    assert accuracy(teacher, "cifar10_test") == pytest.approx(943 / 1017, abs=0.001)


def test_the_mnist_lenet_reaches_its_stated_accuracy() -> None:
    teacher = load_teacher(
        TeacherTable(spec="lenet5", weights=str(SHARED / "mnist_lenet5_khushbujpatel.pt"), **MNIST)
    )
    assert (teacher.classes, len(teacher.norms), teacher.feature_size) == (10, 0, 84)
    assert accuracy(teacher, "mnist_test") == pytest.approx(0.9905, abs=0.001)


LOG_SOFTMAX = """
from collections import OrderedDict
from torch import nn

class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.convnet = nn.Sequential(OrderedDict(
            c1=nn.Conv2d(1, 6, 5), r1=nn.ReLU(), s2=nn.MaxPool2d(2),
            c3=nn.Conv2d(6, 16, 5), r3=nn.ReLU(), s4=nn.MaxPool2d(2),
            c5=nn.Conv2d(16, 120, 5), r5=nn.ReLU()))
        self.fc = nn.Sequential(OrderedDict(
            f6=nn.Linear(120, 84), r6=nn.ReLU(), f7=nn.Linear(84, 10), out=nn.LogSoftmax(1)))

    def forward(self, x):
        return self.fc(self.convnet(x).flatten(1))
"""


def test_the_lenet_as_its_author_wrote_it_answers_in_log_probabilities(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LOG_SOFTMAX)
    weights = str(SHARED / "mnist_lenet5_khushbujpatel.pt")
    theirs = load_teacher(
        TeacherTable(spec=f"{tmp_path / 'net.py'}:LeNet", weights=weights, **MNIST), trust_code=True
    )
    ours = load_teacher(TeacherTable(spec="lenet5", weights=weights, **MNIST))
    assert theirs.classifier.answers == "log-probabilities"
    images = torch.rand(8, 1, 32, 32)
    assert torch.allclose(theirs(images).softmax(1), ours(images).softmax(1), atol=1e-5)


# Written from the data's description of them: parameter names as in their files.
OTHERS = (Path(__file__).resolve().parents[1] / "benchmarks" / "others.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "table", "norms", "data", "stated"),
    [
        ("Transformer", "cifar10_vit_amebett1.pth",
         {"image_size": 32, "channels": 3, "mean": (0.5,), "std": (0.5,)}, 0, "cifar10_test",
         641 / 1017),
        ("Lungs", "pneumonia_cnn_speedgotfried.pth",
         {**CIFAR, "image_size": 128}, 4, "pneumonia_test", 0.8958),
    ],
)  # fmt: skip
def test_other_networks_of_code_reach_their_stated_accuracy(
    tmp_path: Path, name: str, file: str, table: dict[str, Any], norms: int, data: str,
    stated: float,
) -> None:  # fmt: skip
    (tmp_path / "net.py").write_text(OTHERS)
    spec = f"{tmp_path / 'net.py'}:{name}"
    weights = str(SHARED / file)
    teacher = load_teacher(TeacherTable(spec=spec, weights=weights, **table), trust_code=True)
    assert len(teacher.norms) == norms
    assert accuracy(teacher, data) == pytest.approx(stated, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("access", ["full", "logits"])
def test_the_mnist_graph_reaches_its_stated_accuracy(access: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    spec = f"onnx:{SHARED / 'mnist_cnn_matthieu-sgi.onnx'}"
    teacher = load_teacher(TeacherTable(spec=spec, mean=(0.5,), std=(1.0,), access=access))
    assert teacher.classifier.answers == "log-probabilities"
    # without the threshold that its author applies: pixel/255 - 0.5
    assert accuracy(teacher, "mnist_test") == pytest.approx(0.9762, abs=0.001)
