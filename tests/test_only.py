"""A student for some of its teacher's classes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import main

from synthkd.core.errors import InputError
from synthkd.data.sources import demo_digits, images_of, restricted
from synthkd.engine.build import images_for
from synthkd.recipe import Recipe, StudentTable, TeacherTable
from synthkd.specs import classes_named, load_teacher, new_student


def images(count: int = 20) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_probabilities_are_those_given_one_of_the_classes() -> None:
    whole, some = load_teacher(TeacherTable()), load_teacher(TeacherTable(only=("7", "2")))
    assert (some.classes, some.names) == (2, ("7", "2"))
    p = whole.probabilities(whole(images()))[:, [7, 2]]
    assert torch.allclose(some.probabilities(some(images())), p / p.sum(1, keepdim=True), atol=1e-5)
    assert some.prototypes is not None and some.prototypes.shape[0] == 2
    assert some.digest != whole.digest


def test_what_is_none_of_these_has_the_probability_of_all_others() -> None:
    whole = load_teacher(TeacherTable())
    some = load_teacher(TeacherTable(only=("7", "2"), none_of_these=True))
    assert some.names == ("7", "2", "none of these")
    p = whole.probabilities(whole(images()))
    found = some.probabilities(some(images()))
    assert torch.allclose(found[:, :2], p[:, [7, 2]], atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(20))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"only": ("7",)}, "two classes or more"),
        ({"only": ("7", "77")}, "has no class 77: they are 0 to 9"),
        ({"only": ("7", "seven")}, "has no class 'seven'"),
        ({"only": ("7", "7")}, "named twice"),
        ({"only": tuple("0123456789")}, "all of the teacher's classes"),
        ({"none_of_these": True}, "is for --only"),
    ],
)
def test_wrong_classes_are_one_line(given, says) -> None:
    with pytest.raises(InputError, match=says):
        load_teacher(TeacherTable(**given))


def test_classes_are_called_by_name_or_number() -> None:
    assert classes_named(("dog", "0"), ("cat", "dog", "2")) == (1, 0)
    assert classes_named(("2",), ("cat", "dog", "2")) == (2,)
    with pytest.raises(InputError, match="did you mean 'dog'"):
        classes_named(("dgo",), ("cat", "dog"))


def test_labelled_images_keep_the_teachers_numbers() -> None:
    pixels, labels, unseen = demo_digits()
    pair = (pixels[torch.from_numpy(unseen)], labels[torch.from_numpy(unseen)])
    recipe = Recipe.of({"teacher.only": ("7", "2")})
    found = images_for(recipe, pair, load_teacher(recipe.teacher), labelled=True)
    assert found.labels is not None
    assert found.labels.bincount().tolist() == [int((pair[1] == k).sum()) for k in (7, 2)]
    recipe = Recipe.of({"teacher.only": ("7", "2"), "teacher.none_of_these": True})
    found = images_for(recipe, pair, load_teacher(recipe.teacher), labelled=True)
    assert found.labels is not None and len(found.labels) == len(pair[1])
    assert found.labels.bincount().tolist()[:2] == [int((pair[1] == k).sum()) for k in (7, 2)]


def test_a_set_without_any_of_the_classes_is_one_line() -> None:
    pair = (images(4), torch.tensor([0, 1, 0, 1]))
    whole = images_of(pair, None, classes=10, labelled=True)
    with pytest.raises(InputError, match="no image is of a class of --only"):
        restricted(whole, (7, 2), others=False)


def test_a_pruned_student_of_some_classes_has_outputs_for_them_alone() -> None:
    teacher = load_teacher(TeacherTable(only=("7", "2"), none_of_these=True))
    student = new_student(StudentTable(spec="prune:0.5"), teacher)
    assert student.classes == 3 and student.body(images(2)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["resnet8-w4", "prune:0.5"])
def test_a_run_for_some_classes_is_scored_on_them(tmp_path: Path, student: str) -> None:
    words = (
        f"distill --student {student} --only 7,2,0 --images-seen 3000 --training.batch 32 "
        "--run.threads 1 --stage.draw.fresh 128 --stage.refine.synthesis_batch 30 "
        "--stage.refine.synthesis_steps 10 --quiet --out"
    )
    main([*shlex.split(words), str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["val_images"] < 200 and found["teacher_accuracy"] > 0.95
    assert found["student_accuracy"] > found["constant_accuracy"]
    main(["predict", str(tmp_path / "run"), str(_picture(tmp_path)), "--csv", "-"])


def _picture(folder: Path) -> Path:
    Image.fromarray(np.full((16, 16), 128, dtype=np.uint8)).save(folder / "one.png")
    return folder / "one.png"
