"""Students that bring an input of their own, or other classes, are scored on what they learned."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import synthkd
from synthkd.cli import main
from synthkd.commands.display import Display
from synthkd.commands.evaluate import run as evaluate
from synthkd.commands.export import _labelled
from synthkd.commands.predict import run as predict
from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec, to_float, to_uint8
from synthkd.data.sources import demo_digits
from synthkd.engine.build import images_for_both
from synthkd.evaluation.compare import compare
from synthkd.export.formats import Shipped, metadata, to_onnx, to_pt2
from synthkd.labels.class_names import check_same_classes
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, StudentTable, TeacherTable
from synthkd.specs import card_of, load_classifier, load_teacher, new_student
from synthkd.students.learner import save_student

DEMO = load_teacher(TeacherTable())
# what a teacher's flags say, and is wrong for a network that normalises by itself
FLAGS: dict[str, Any] = {"image_size": 16, "channels": 1, "mean": (0.3,), "std": (0.2,)}
SAID = {"student": "resnet14", "student_sha256": "0", "teacher": "demo", "teacher_sha256": "1"}


def images(count: int = 6) -> Tensor:
    """Whole bytes in 0..1."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 1, 16, 16), generator=rng).float() / 255


def exported(folder: Path, kind: str) -> StudentTable:
    """The demo as a file of `synthkd export`: onnx or pt2, -bytes where it takes those."""
    if kind.startswith("onnx"):
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    network = Shipped(DEMO.classifier, bytes_in=kind.endswith("-bytes"))
    form = kind.partition("-")[0]
    told = metadata(network, DEMO.names, SAID, SAID)
    (to_onnx if form == "onnx" else to_pt2)(network, folder / f"student.{form}", told)
    return StudentTable(spec=f"{'onnx:' if form == 'onnx' else ''}{folder / f'student.{form}'}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "onnx-bytes", "pt2", "pt2-bytes"])
def test_an_exported_student_is_fed_as_it_says_and_not_as_its_teacher(
    tmp_path: Path, kind: str
) -> None:
    table = exported(tmp_path, kind)
    with torch.no_grad():
        wanted = DEMO(images())
    for flags in (FLAGS, {"image_size": 32, "channels": 3, "mean": (0.5,), "std": (0.5,)}, {}):
        found, names = load_classifier(table, TeacherTable(**flags), trust_code=True)
        assert found.spec.shape == (1, 16, 16) and names == DEMO.names
        with torch.no_grad():
            torch.testing.assert_close(found.eval()(images()), wanted, atol=1e-3, rtol=1e-3)
    learner = new_student(table, DEMO, trust_code=True)  # begins with what it knows
    with torch.no_grad():
        torch.testing.assert_close(learner.eval()(images()), wanted, atol=1e-3, rtol=1e-3)
    # a run whose student began so under its teacher's mean, as before, is a teacher all the same
    old = Classifier(learner.body, replace(DEMO.spec, mean=(0.3,), std=(0.2,)), 10).eval()
    save_student(old, card_of(old, table.spec, DEMO.names), tmp_path / "student.safetensors")
    again = load_teacher(TeacherTable(spec=str(tmp_path)), trust_code=True)
    with torch.no_grad():
        torch.testing.assert_close(again(images()), old(images()), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2", "pt2-bytes"])
def test_a_teacher_that_normalises_by_itself_takes_no_mean(tmp_path: Path, kind: str) -> None:
    spec = exported(tmp_path, kind).spec
    teacher = load_teacher(TeacherTable(spec=spec), trust_code=True)
    assert teacher.names == DEMO.names and teacher.spec.shape == (1, 16, 16)
    with pytest.raises(InputError, match=r"normalises by itself: omit --teacher-mean"):
        load_teacher(TeacherTable(spec=spec, **FLAGS), trust_code=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("", 0.3, 0.2),
        ("[]", 0.3, 0.2),
        ('{"range": 3, "classes": []}', 0.3, 0.2),
        ('{"range": "float32 0..1", "height": "x"}', 0.0, 1.0),
        ('{"range": "uint8 0..255", "channels": "9", "classes": "9"}', 0.0, 1 / 255),
    ],
)
def test_what_a_file_tells_of_itself_is_taken_as_far_as_it_makes_sense(
    tmp_path: Path, text: str, mean: float, std: float
) -> None:
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(
        Shipped(DEMO.classifier), (torch.zeros(2, 1, 16, 16),), dynamic_shapes=batch
    )
    torch.export.save(program, tmp_path / "a.pt2", extra_files={"synthkd.json": text})
    table = StudentTable(spec=str(tmp_path / "a.pt2"))
    found, _ = load_classifier(table, TeacherTable(**FLAGS), trust_code=True)
    assert found.spec == ImageSpec(1, 16, 16, (mean,), (std,))


def test_a_folder_of_hugging_face_keeps_its_own_mean_std_and_size(tmp_path: Path) -> None:
    body = timm.create_model("resnet10t", num_classes=5).eval()
    save_file({k: v.contiguous() for k, v in body.state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({
        "architecture": "resnet10t", "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
    }))  # fmt: skip
    student = StudentTable(spec=f"hf:{tmp_path}")
    found, _ = load_classifier(student, TeacherTable(**FLAGS))
    assert found.spec == ImageSpec(3, 32, 32, (0.5,) * 3, (0.25,) * 3)
    teacher = load_teacher(TeacherTable(spec=f"hf:{tmp_path}", **{**FLAGS, "channels": 3}))
    assert teacher.spec.mean == (0.3,) * 3  # a teacher's flags are its own


# Larger images


class Fine(nn.Module):
    """Says whether a coloured image is a chequerboard of single pixels, by its red alone."""

    def __init__(self) -> None:
        super().__init__()
        rows = torch.arange(32)
        self.board = nn.Parameter(1.0 - 2.0 * ((rows[:, None] + rows[None]) % 2))

    def forward(self, x: Tensor) -> Tensor:
        sharp = (x[:, 0] * self.board).mean((1, 2)).abs()
        return torch.stack([0.1 - sharp, sharp - 0.1], 1)


def boards(count: int = 40) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] that are uniform, or a chequerboard in red, and which."""
    labels = torch.arange(count) % 2
    pixels = torch.full((count, 3, 32, 32), 128, dtype=torch.uint8)
    rows = torch.arange(32)
    pixels[labels == 1, 0] = (255 * ((rows[:, None] + rows[None]) % 2)).to(torch.uint8)
    return pixels, labels


def test_a_student_of_larger_coloured_images_sees_them_as_they_are(tmp_path: Path) -> None:
    pixels, labels = boards()
    student = Classifier(Fine(), ImageSpec(3, 32, 32, (0.0,) * 3, (1.0,) * 3), 2).eval()
    recipe = Recipe.of({"teacher.only": ("0", "1")})
    two = load_teacher(recipe.teacher)
    images, own = images_for_both(recipe, (pixels, labels), two, student)
    assert own is not None and torch.equal(own.pixels, pixels)
    assert images.pixels.shape[1:] == (1, 16, 16)
    assert compare(student, two, images, own=own).student_accuracy == 1.0
    assert compare(student, two, images).student_accuracy == 0.5  # of what the teacher is shown
    alike = replace(student.spec, channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
    student.spec = alike
    assert images_for_both(recipe, (pixels, labels), two, student)[1] is None


def test_images_that_change_from_reading_to_reading_are_one_line() -> None:
    class Other(torch.utils.data.Dataset[Any]):
        turn = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.turn += 1
            return torch.zeros(3, 32, 32), (self.turn > 4) * 1

    student = Classifier(Fine(), ImageSpec(3, 32, 32, (0.0,) * 3, (1.0,) * 3), 2)
    with pytest.raises(InputError, match="gave other labels the second time"):
        images_for_both(Recipe(), Other(), DEMO, student)


# Other classes


def saved(folder: Path, names: Sequence[str]) -> Path:
    """A run directory with an untrained student for these classes."""
    torch.manual_seed(1)
    body = build_network("resnet8-w4", channels=1, size=16, classes=len(names))
    student = Classifier(body, DEMO.spec, len(names)).eval()
    save_student(student, card_of(student, "resnet8-w4", tuple(names)),
                 folder / "student.safetensors")  # fmt: skip
    return folder


def test_a_student_of_some_classes_is_loaded_beside_the_number_of_all(tmp_path: Path) -> None:
    table = StudentTable(spec=str(saved(tmp_path, ("3", "5"))))
    found, names = load_classifier(table, TeacherTable(classes=10, only=("3", "5")))
    assert found.classes == 2 and names == ("3", "5")
    with pytest.raises(InputError, match="--classes 10"):
        load_classifier(table, TeacherTable(classes=10))


@pytest.mark.parametrize("only", [("5", "3"), ("3", "7")])
def test_the_classes_of_a_student_in_another_order_are_refused(
    tmp_path: Path, only: tuple[str, ...]
) -> None:
    path = saved(tmp_path, ("3", "5"))
    tables = {"student": {"spec": str(path)}, "teacher": {"only": ("3", "5")}}
    assert evaluate(Recipe.model_validate(tables), quiet=True)["comparison"]["n"] > 50
    tables["teacher"] = {"only": only}
    with pytest.raises(InputError, match=r"class \d of the student is '.', and of"):
        evaluate(Recipe.model_validate(tables), quiet=True)
    with pytest.raises(InputError, match="of the student"):
        synthkd.evaluate(path, settings={"teacher.only": only})
    with pytest.raises(InputError, match="of the student"):
        new_student(StudentTable(spec=str(path)), load_teacher(TeacherTable(only=only)))


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (("cat", "dog"), ("cat", "dog"), True),
        (("cat", "dog"), ("dog", "cat"), False),
        (("0", "1"), ("1", "0"), False),
        (("0", "1"), ("cat", "dog"), True),  # one side has no names
        (("cat", "dog"), ("cat", "hound"), True),  # called otherwise
        (("cat", "dog", "fox"), ("cat", "fox", "hound"), False),
        (("3", "5"), ("7", "2"), False),
        ((), ("cat", "dog"), True),
        (("a", "b", "c"), ("b", "a"), True),  # their number is another question
    ],
)
def test_names_tell_whether_classes_are_the_same(
    ours: tuple[str, ...], theirs: tuple[str, ...], same: bool
) -> None:
    if same:
        check_same_classes(ours, theirs)
    else:
        with pytest.raises(InputError, match=r"class \d of the student"):
            check_same_classes(ours, theirs)


# What export scores on


def recipe_in(folder: Path, **settings: Any) -> Path:
    """A run directory with a recipe."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    (folder / "recipe.toml").write_text(synthkd.recipe.to_toml(Recipe.of(given)))
    return folder


def labelled(folder: Path, student: Classifier, names: Sequence[str], order: str = "") -> Any:
    return _labelled(
        folder, student, names, str(folder / "val.npz"), order, trust_code=False,
        display=Display(quiet=True),
    )  # fmt: skip


def test_export_reads_labelled_images_as_the_run_does(tmp_path: Path) -> None:
    pixels, labels, _ = demo_digits()
    white = 4095 * to_float(pixels).numpy()
    np.savez(tmp_path / "val.npz", x=white.astype(np.uint16)[:300, 0], y=9 - labels[:300].numpy())
    recipe_in(tmp_path, data__class_order="9,8,7,6,5,4,3,2,1,0", data__range=(0.0, 4095.0))
    found = labelled(tmp_path, DEMO.classifier, DEMO.names)
    assert torch.equal(found.labels, labels[:300])
    assert int((found.pixels.int() - pixels[:300].int()).abs().max()) <= 1
    recipe_in(tmp_path)  # and as is said now
    again = labelled(tmp_path, DEMO.classifier, DEMO.names, "9,8,7,6,5,4,3,2,1,0")
    assert torch.equal(again.labels, labels[:300])


def test_predict_reads_images_as_the_run_does(tmp_path: Path) -> None:
    pixels, _, _ = demo_digits()
    wide = np.concatenate([pixels[0, 0].numpy(), pixels[1, 0].numpy()], 1)  # a nought, and a one
    Image.fromarray(wide).save(tmp_path / "wide.png")
    saved(tmp_path, DEMO.names)
    answers = {}
    for way in ("stretch", "crop", "pad"):
        told = predict(tmp_path, [tmp_path / "wide.png"], as_json=True, data_resize=way)
        recipe_in(tmp_path, data__resize=way)
        assert predict(tmp_path, [tmp_path / "wide.png"], as_json=True) == told
        answers[way] = told[0]["classes"][0]["probability"]
        (tmp_path / "recipe.toml").unlink()
    assert len(set(answers.values())) == 3


def test_export_refuses_labels_in_another_order_of_the_classes(tmp_path: Path) -> None:
    pixels, labels, _ = demo_digits()
    np.savez(tmp_path / "val.npz", x=pixels[:400, 0].numpy(), y=9 - labels[:400].numpy())
    recipe_in(tmp_path)
    with pytest.raises(InputError, match=r"the student is right on .* counted backwards"):
        labelled(tmp_path, DEMO.classifier, DEMO.names)


def test_a_run_of_some_classes_is_scored_on_them_alone(tmp_path: Path) -> None:
    pixels, labels, _ = demo_digits()
    np.savez(tmp_path / "val.npz", x=pixels[:400, 0].numpy(), y=labels[:400].numpy())
    recipe_in(tmp_path, teacher__only=("7", "2"))
    some = load_teacher(TeacherTable(only=("7", "2")))
    found = labelled(tmp_path, some.classifier, some.names)
    assert found.labels.tolist() == [(7, 2).index(k) for k in labels[:400].tolist() if k in (7, 2)]
    answers = some(to_float(found.pixels)).argmax(1)
    assert float((answers == found.labels).float().mean()) > 0.95


def test_an_order_of_classes_wants_labelled_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(saved(tmp_path, ("3", "5"))), "--class-order", "one-based"])
    assert "give that too" in capsys.readouterr().err


# Functions


def test_a_function_that_cannot_be_copied_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "import threading\n"
        "class Asks:\n"
        "    def __init__(self): self.lock = threading.Lock()\n"
        "    def __call__(self, images):\n"
        "        with self.lock: return images.reshape(len(images), -1)[:, 60:70] * 8\n"
    )
    tables = {
        "student": {"spec": f"{tmp_path / 'asks.py'}:Asks"}, "run": {"trust_code": True},
        "teacher": {"mean": (0.0,), "std": (1.0,), "image_size": 16, "channels": 1},
    }  # fmt: skip
    found = evaluate(Recipe.model_validate(tables), quiet=True)
    assert found["comparison"]["n"] == 539


def test_bytes_are_what_was_tested() -> None:
    assert torch.equal(to_uint8(images()).float() / 255, images())
