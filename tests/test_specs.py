"""Every form of SPEC, the files of weights it takes, and the answers it recognises."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.networks import NAMES, build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import (
    Card,
    card_of,
    load_classifier,
    load_teacher,
    new_student,
    read_weights,
)  # fmt: skip
from synthkd.students.learner import save_student
from synthkd.teachers.frozen import FrozenTeacher, digest_of

CONTRACT: dict[str, Any] = {"image_size": 16, "channels": 1, "mean": (0.4,), "std": (0.2,)}
GREY = ImageSpec(1, 16, 16, (0.4,), (0.2,))

CODE = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, answers):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)
        self.answers = answers

    def forward(self, x):
        return self.answers(self.linear(self.bn(self.conv(x)).mean((2, 3))))

def logits():
    torch.manual_seed(1)
    return Plain(lambda z: 3 * z)

def probabilities():
    torch.manual_seed(1)
    return Plain(lambda z: (3 * z).softmax(1))

def log_probabilities():
    torch.manual_seed(1)
    return Plain(lambda z: (3 * z).log_softmax(1))

def positive():  # positive scores that sum to two: logits, although no score is negative
    return Plain(lambda z: 2 * z.softmax(1))
"""


def teacher_of(
    spec: str, weights: Path | str = "", *, trust: bool = False, **changes: Any
) -> FrozenTeacher:
    table = TeacherTable(spec=spec, weights=str(weights), **{**CONTRACT, **changes})
    return load_teacher(table, trust_code=trust)


def network(name: str = "resnet8-w4", classes: int = 10) -> nn.Module:
    torch.manual_seed(3)
    body = build_network(name, channels=1, size=32 if "lenet" in name else 16, classes=classes)
    for module in body.modules():  # statistics that differ from a fresh network's
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return body.eval()


def noise(count: int = 8, size: int = 16) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(5))


def expected(body: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return body((images - 0.4) / 0.2)


# Weights


def as_is(state: dict[str, Tensor]) -> Any:
    return state


def in_parallel(state: dict[str, Tensor]) -> Any:
    return {f"module.{key}": value for key, value in state.items()}


def nested(state: dict[str, Tensor]) -> Any:
    return {"state_dict": in_parallel(state), "best_prec1": 91.7, "epoch": 3}


def compiled_and_nested(state: dict[str, Tensor]) -> Any:
    return {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}}


@pytest.mark.parametrize("shape", [as_is, in_parallel, nested, compiled_and_nested])
@pytest.mark.parametrize("suffix", ["pt", "pth", "th"])
def test_weights_load_from_every_usual_shape_of_a_torch_file(
    tmp_path: Path, suffix: str, shape: Callable[[dict[str, Tensor]], Any]
) -> None:
    body, path = network(), tmp_path / f"weights.{suffix}"
    torch.save(shape(body.state_dict()), path)
    teacher = teacher_of("resnet8-w4", path)
    assert torch.allclose(teacher(noise()), expected(body, noise()), atol=1e-4)


@pytest.mark.parametrize("shape", [as_is, in_parallel])
def test_weights_load_from_safetensors(
    tmp_path: Path, shape: Callable[[dict[str, Tensor]], Any]
) -> None:
    body = network()
    save_file(shape(body.state_dict()), tmp_path / "weights.safetensors")
    teacher = teacher_of("resnet8-w4", tmp_path / "weights.safetensors")
    assert torch.allclose(teacher(noise()), expected(body, noise()), atol=1e-4)


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    state = {k: v for k, v in network().state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.th")
    assert teacher_of("resnet8-w4", tmp_path / "old.th").classes == 10


@pytest.mark.parametrize("classes", [2, 7, 10])
def test_a_network_of_ours_has_as_many_classes_as_its_file(tmp_path: Path, classes: int) -> None:
    torch.save(network(classes=classes).state_dict(), tmp_path / "w.pt")
    assert teacher_of("resnet8-w4", tmp_path / "w.pt").classes == classes


def test_another_number_of_classes_than_the_file_has_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"--classes 2: .* has 10 classes"):
        teacher_of("resnet8-w4", tmp_path / "w.pt", classes=2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"epoch": 3}, "no named tensors"),
        ([torch.zeros(2)], "a list, not named tensors"),
        (torch.zeros(2), "a Tensor, not named tensors"),
        ({"state_dict": {}}, "no named tensors"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, data: Any, words: str) -> None:
    torch.save(data, tmp_path / "w.pt")
    with pytest.raises(InputError, match=words):
        read_weights(tmp_path / "w.pt")


def test_nan_among_the_weights_is_named(tmp_path: Path) -> None:
    state = network().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight.* hold NaN"):
        teacher_of("resnet8-w4", tmp_path / "w.pt")


def test_weights_for_another_architecture_are_refused_by_names_and_shapes(tmp_path: Path) -> None:
    torch.save(network("resnet14-w4").state_dict(), tmp_path / "deep.pt")
    torch.save(network("resnet8-w8").state_dict(), tmp_path / "wide.pt")
    with pytest.raises(InputError, match=r"does not fit this architecture: unknown 'layer1\.1"):
        teacher_of("resnet8-w4", tmp_path / "deep.pt")
    with pytest.raises(InputError, match=r"of another shape 'conv1\.weight'"):
        teacher_of("resnet8-w4", tmp_path / "wide.pt")


def test_a_stride_trick_costs_no_memory(tmp_path: Path) -> None:
    state = network().state_dict()
    state["linear.weight"] = torch.zeros(1).expand(10**6, 10**6)  # 4 TB when copied, 2 kB on disk
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match="is not a plain tensor"):
        teacher_of("resnet8-w4", tmp_path / "w.pt")


# Forms of SPEC


@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_ours_is_a_student(name: str) -> None:
    size = 32 if "lenet" in name else 16
    spec = ImageSpec(1, size, size, (0.4,), (0.2,))
    teacher = FrozenTeacher(Classifier(network(), spec, 10))
    student = new_student(StudentTable(spec=name), teacher)
    assert student.eval()(noise(2, size)).shape == (2, 10)


def test_the_demo_brings_its_contract() -> None:
    teacher = load_teacher(TeacherTable())
    assert (teacher.classes, teacher.spec.shape) == (10, (1, 16, 16))
    assert teacher.names == tuple("0123456789")


def test_the_demo_is_a_student_too() -> None:
    teacher = load_teacher(TeacherTable())
    student = new_student(StudentTable(spec="demo"), teacher)
    images = torch.rand(3, *teacher.spec.shape)
    torch.testing.assert_close(student.eval()(images), teacher(images), atol=1e-4, rtol=1e-4)


def test_a_run_directory_is_its_student_with_contract_and_names(tmp_path: Path) -> None:
    student = Classifier(network(), GREY, 10)
    names = tuple(f"digit {k}" for k in range(10))
    save_student(student, card_of(student, "resnet8-w4", names), tmp_path / "student.safetensors")
    teacher = load_teacher(TeacherTable(spec=str(tmp_path)))
    assert teacher.spec == GREY
    assert teacher.names == names
    assert teacher.digest == digest_of(student)
    assert torch.allclose(teacher(noise()), expected(student.body, noise()), atol=1e-4)


def test_an_installed_callable_is_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_nets").mkdir()
    (tmp_path / "installed_nets" / "small.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    teacher = teacher_of("installed_nets.small:logits")
    assert (teacher.classes, len(teacher.norms), teacher.feature_size) == (5, 1, 4)


def test_a_file_is_a_teacher_only_when_trusted(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "net.py"
    path.write_text(f"open({str(mark)!r}, 'w')\n{CODE}")
    with pytest.raises(
        InputError, match=r"would run the code in .*sha256 [0-9a-f]{16}.*--trust-code"
    ):
        teacher_of(f"{path}:logits")
    assert not mark.exists()
    assert teacher_of(f"{path}:logits", trust=True).classes == 5
    assert mark.exists()


def test_a_file_of_code_takes_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(CODE)
    state = teacher_of(f"{path}:logits", trust=True).classifier.body.state_dict()
    torch.save(
        {"state_dict": {f"module.{k}": 0 * v + 0.25 for k, v in state.items()}}, tmp_path / "w.pth"
    )
    teacher = teacher_of(f"{path}:logits", tmp_path / "w.pth", trust=True)
    assert teacher.classifier.state_dict()["body.linear.weight"].unique().tolist() == [0.25]


def test_a_saved_student_built_by_code_asks_for_trust_again(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(CODE)
    body = teacher_of(f"{code}:logits", trust=True).classifier.body
    for spec in (f"{code}:logits", "os:abort", "antigravity:fly"):
        student = Classifier(body, GREY, 5)
        save_student(student, card_of(student, spec, ()), tmp_path / "student.safetensors")
        with pytest.raises(InputError, match="as its file says: give --trust-code"):
            load_classifier(StudentTable(spec=str(tmp_path)), TeacherTable())
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet9", "no network is called 'resnet9'; did you mean"),
        ("resnet20", "random weights: give --teacher-weights"),
        ("./nowhere", "neither a run directory"),
        ("nowhere.pth", "neither a run directory"),
        ("no_such_package.nets:make", "cannot import no_such_package.nets"),
        ("json:no_such_callable", "there is no callable 'no_such_callable'"),
        ("json:JSONDecoder", "must return a torch.nn.Module; got JSONDecoder"),
        ("nowhere.py:make", "there is no file 'nowhere.py'"),
    ],
)
def test_what_is_no_spec_says_why(spec: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        teacher_of(spec)
    assert words in str(caught.value)


def test_a_bare_network_must_be_told_its_input(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"give --channels, --teacher-mean"):
        load_teacher(
            TeacherTable(
                spec="resnet8-w4", weights=str(tmp_path / "w.pt"), image_size=16, std=(1.0,)
            )
        )


def test_one_number_of_normalisation_stands_for_all_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = build_network("resnet8-w4", channels=3, size=16, classes=10)
    torch.save(body.state_dict(), tmp_path / "w.pt")
    teacher = teacher_of("resnet8-w4", tmp_path / "w.pt", channels=3, mean=(0.5,), std=(0.25,))
    assert (teacher.spec.mean, teacher.spec.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("spec", ["demo", "run"])
def test_a_spec_with_its_own_weights_takes_no_others(tmp_path: Path, spec: str) -> None:
    student = Classifier(network(), GREY, 10)
    (tmp_path / "run").mkdir()
    save_student(
        student, card_of(student, "resnet8-w4", ()), tmp_path / "run" / "student.safetensors"
    )
    name = str(tmp_path / "run") if spec == "run" else spec
    with pytest.raises(InputError, match="brings its own weights"):
        load_teacher(TeacherTable(spec=name, weights="other.pt"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_size": 32}, "--image-size 32: 'demo' brings its own input contract (16x16)"),
        ({"channels": 3}, "--channels 3: 'demo' brings its own input contract (1)"),
        ({"mean": (0.5,)}, "--teacher-mean 0.5"),
        ({"std": (0.5, 0.5)}, "--teacher-std 0.5 0.5"),
    ],
)
def test_a_spec_with_its_own_contract_takes_no_other(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_teacher(TeacherTable(**flags))
    assert words in str(caught.value)
    own = load_teacher(TeacherTable(**flags), shared=True).spec
    same = TeacherTable(image_size=own.height, channels=1, mean=own.mean, std=own.std)
    assert load_teacher(same).spec == own == load_teacher(TeacherTable()).spec


@pytest.mark.parametrize("load", [load_teacher, load_classifier])
def test_a_run_takes_no_arguments(tmp_path: Path, load: Any) -> None:
    student = Classifier(network(), GREY, 10)
    save_student(student, card_of(student, "resnet8-w4", ()), tmp_path / "student.safetensors")
    with pytest.raises(InputError, match=r"-args: .* brings its own"):
        if load is load_teacher:
            load_teacher(TeacherTable(spec=str(tmp_path), args={"width": "7"}))
        else:
            table = StudentTable(spec=str(tmp_path), args={"width": "7"})
            load_classifier(table, TeacherTable())


def test_a_card_of_endless_classes_is_none() -> None:
    with pytest.raises(ValueError, match="classes"):
        Card("resnet8-w4", 1, 16, 16, (0.4,), (0.2,), 10_000_000, "logits")


def test_a_student_is_saved_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    student = Classifier(network(), GREY, 10)
    for number in range(20):
        save_student(
            student, card_of(student, "resnet8-w4", tuple("abcdefghij")), tmp_path / str(number)
        )
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


# Answers


@pytest.mark.parametrize("answers", ["logits", "probabilities", "log_probabilities", "positive"])
def test_answers_are_recognised_named_and_become_logits(tmp_path: Path, answers: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(CODE)
    teacher = teacher_of(f"{path}:{answers}", trust=True)
    kind = {"positive": "logits"}.get(answers, answers.replace("_", "-"))
    assert teacher.classifier.answers == kind
    assert ("answering in" in teacher.described) == (kind != "logits")
    if kind != "logits":
        assert kind in teacher.described
        true = F.softmax(teacher_of(f"{path}:logits", trust=True)(noise()), 1)
        assert torch.allclose(teacher(noise()).softmax(1), true, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return x", "one row of class scores per image"),
        ("return [x]", "got list"),
        ("return 9 * x.sigmoid().mean((1, 2, 3))[:, None]", "one number per image"),
        ("return x[:3, 0, 0]", "one row of class scores per image"),
        ("return x[:, 0, 0] / 0", "NaN or infinity"),
        ("raise ValueError", "ValueError"),
        ("raise ValueError('a\\n\\x1b[31mb')", "'a'"),
        ("raise SystemExit(0)", "does not take images of 1 x 16 x 16"),
        ("return torch.zeros(4, 3) @ x", "does not take images of 1 x 16 x 16"),
    ],
)
def test_a_network_that_is_no_classifier_is_refused(tmp_path: Path, body: str, words: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        f"import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        {body}\n"
    )
    with pytest.raises(InputError) as caught:
        teacher_of(f"{path}:Net", trust=True)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('broken')",
        "import sys; sys.exit(0)",
        "def make(): raise KeyError('k')",
        "x = (",
    ],
)
def test_code_that_fails_is_one_line(tmp_path: Path, code: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(code + "\n")
    with pytest.raises(InputError) as caught:
        teacher_of(f"{path}:make", trust=True)
    assert "Error" in str(caught.value) or "Exit" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def make():\n  pass\nclass Net: pass\nmark = open('ran', 'w')\n",
         "Give 'net.py:NAME'; in it: 'make', 'Net'"),
        ("def broken(:\n", "which callable of it? Give 'net.py:NAME'"),
        ("x = 1\n", "which callable of it? Give 'net.py:NAME'"),
        ("\0\0", "which callable of it? Give 'net.py:NAME'"),
    ],
)  # fmt: skip
def test_a_file_of_code_without_its_callable_names_them_and_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(content)
    for trusted in (False, True):
        with pytest.raises(InputError) as told:
            load_teacher(TeacherTable(spec="net.py"), trust_code=trusted)
        assert words in str(told.value)
    assert not Path("ran").exists()
