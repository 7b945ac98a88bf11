"""Folders as people have them: parts, one folder in another, what systems leave behind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.data.sources import Images, count_images, load_images

SPEC = ImageSpec(1, 8, 8, (0.5,), (0.5,))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)


def load(path: Path, classes: int = 2, names: tuple[str, ...] = (), **more: bool) -> Images:
    return load_images(str(path), SPEC, classes=classes, names=names, labelled=True, **more)


@pytest.mark.parametrize(
    ("parts", "best"),
    [
        (("train", "test"), "test"), (("Training", "Validation"), "Validation"),
        (("train2017", "val2017"), "val2017"), (("training_set", "test_set"), "test_set"),
        (("images_train", "images_valid"), "images_valid"), (("TRAIN", "dev", "Test-Images"),
        "Test-Images"),
    ],
)  # fmt: skip
def test_a_root_with_parts_is_not_scored_as_classes(
    tmp_path: Path, parts: tuple[str, ...], best: str
) -> None:
    for part in parts:
        for name in "ab":
            picture(tmp_path / part / name / "0.png")
    for labelled in (True, False):
        with pytest.raises(InputError, match="parts of a data set") as caught:
            load_images(str(tmp_path), SPEC, classes=len(parts), labelled=labelled)
        assert str(tmp_path / best) in str(caught.value)
    assert count_images(str(tmp_path)) is None
    assert load(tmp_path / best).names == ("a", "b")


def test_parts_without_class_folders_are_parts_too(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "0.png")
    picture(tmp_path / "test" / "0.png")
    with pytest.raises(InputError, match="parts of a data set"):
        load(tmp_path)


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        picture(tmp_path / name / "0.png")
    assert load(tmp_path).names == ("bus", "train")
    for name in ("test", "train"):
        picture(tmp_path / "two" / name / "0.png")
    assert load(tmp_path / "two", names=("train", "test")).labels.tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("outer", ["set", "set/set", "archive/test"])
def test_a_folder_that_holds_one_other_is_passed_through_and_said(
    tmp_path: Path, outer: str
) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / outer / name / "0.png")
    (tmp_path / "__MACOSX" / "set").mkdir(parents=True)
    images = load(tmp_path)
    assert images.names == ("cat", "dog") and str(tmp_path / outer) in images.order
    assert count_images(str(tmp_path)) == 2


def test_parts_one_level_down_are_found(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / "dataset" / part / "a" / "0.png")
    with pytest.raises(InputError, match="parts of a data set"):
        load(tmp_path)


def test_a_single_class_folder_is_a_class_where_the_teacher_knows_it(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "poodle" / "0.png")
    picture(tmp_path / "dog" / "beagle" / "0.png")
    assert load(tmp_path, names=("cat", "dog")).labels.tolist() == [1, 1]  # type: ignore[union-attr]


def test_what_systems_leave_behind_is_neither_class_nor_image(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / name / "0.png")
        picture(tmp_path / name / ".ipynb_checkpoints" / "0-checkpoint.png")
        picture(tmp_path / name / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.png")
        (tmp_path / name / "._0.png").write_bytes(b"Mac OS X")
        (tmp_path / name / "Thumbs.db").write_bytes(b"")
        (tmp_path / name / "desktop.ini").write_bytes(b"")
    picture(tmp_path / "__MACOSX" / "cat" / "0.png")
    picture(tmp_path / ".thumbnails" / "0.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0")
    images = load(tmp_path)
    assert len(images.pixels) == 2 and images.names == ("cat", "dog")
    assert images.notes == () and "__MACOSX" in images.order
    assert count_images(str(tmp_path)) == 2


def test_files_of_a_suffix_that_is_not_read_are_counted_aloud(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / name / "0.png")
        for suffix in (".heic", ".svg", ".HEIC", ""):
            (tmp_path / name / f"x{suffix}").write_bytes(b"")
        (tmp_path / name / "0.txt").write_text("harmless")
    (note,) = load(tmp_path).notes
    assert note.code == "skipped-files" and "8 files" in note.seen and "2 images" in note.seen
    assert "4 '.heic'" in note.seen and "without a suffix" in note.seen
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"only 4 '\.heic'"):
        load(tmp_path)


def test_images_beside_class_folders_are_said_to_be_left_out(tmp_path: Path) -> None:
    for name in ("cat/0", "dog/0", "0", "1"):
        picture(tmp_path / f"{name}.png")
    (note,) = load(tmp_path).notes
    assert note.code == "loose-images" and "2 images" in note.seen


def test_parts_inside_the_classes_are_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            picture(tmp_path / name / part / "0.png")
    (note,) = load(tmp_path).notes
    assert note.code == "parts-inside-classes" and "'test'" in note.seen


def test_folders_in_any_order_get_the_teachers_classes_by_name(tmp_path: Path) -> None:
    for name, count in (("eel", 1), ("cat", 2), ("dog", 3)):
        for k in range(count):
            picture(tmp_path / name / f"{k}.png")
    images = load(tmp_path, classes=4, names=("Dog", "Eel", "Bee", "Cat"))
    assert images.labels is not None and images.labels.tolist() == [3, 3, 0, 0, 0, 1]
    assert images.names == ("Dog", "Eel", "Bee", "Cat") and "by name" in images.order
