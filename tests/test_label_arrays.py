"""Labels in the forms that people keep them in, against plain lists."""

from typing import Any

import numpy as np
import pytest
import torch

from synthkd.core.errors import InputError
from synthkd.labels.arrays import pair_in, told_labels

HOT = np.eye(4, dtype=np.uint8)[[3, 0, 2]]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([3, 0, 2]), ""),
        (np.array([[3], [0], [2]]), ""),
        (np.array([[3, 0, 2]]), ""),
        (np.array([3.0, 0.0, 2.0]), ""),
        ([3, 0, 2], ""),
        (torch.tensor([3, 0, 2]), ""),
        (torch.tensor([3.0, 0.0, 2.0], dtype=torch.bfloat16), ""),
        ([torch.tensor(k, dtype=torch.bfloat16) for k in (3, 0, 2)], ""),
        ([torch.tensor(k, requires_grad=True) for k in (3.0, 0.0, 2.0)], ""),
        (list(torch.from_numpy(HOT)), "one-hot"),
        (np.array(["3", "0", "2"]), "text"),
        (np.array([b"3", b"0", b"2"]), "text"),
        (HOT, "one-hot"),
        (HOT.astype(np.float32), "one-hot"),
        (HOT.astype(bool), "one-hot"),
        (HOT.T, "one-hot"),
        (HOT.tolist(), "one-hot"),
    ],
)
def test_every_form_gives_the_same_numbers(labels: Any, said: str) -> None:
    found = told_labels(labels, 3)
    assert found.labels.tolist() == [3, 0, 2] and found.labels.dtype == np.int64
    assert said in found.said and bool(said) == bool(found.said)


def test_texts_and_truth_values_and_several_classes_are_what_they_are() -> None:
    assert told_labels(np.array(["cat ", "dog"]), 2).labels.tolist() == ["cat", "dog"]
    assert told_labels(np.array([True, False]), 2).labels.tolist() == [1, 0]
    assert "0 and 1" in told_labels(np.array([True, False]), 2).said
    found = told_labels(np.array([[1, 1, 0], [0, 0, 0]]), 2)
    assert found.labels.tolist() == [[1, 1, 0], [0, 0, 0]] and "1 images have several" in found.said


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0.5, 1.0]), "whole numbers; got float64"),
        (np.array([np.nan, 1]), "whole"),
        (np.array([[0.3, 0.7], [0.9, 0.1]]), "shares"),
        (np.array([1, 2, 3]), "2 images but"),
        (np.array([[0, 2], [1, 0], [1, 1]]), "0 and 1"),
        (np.array([[0, 2], [1, 0]]), "0 and 1"),
        ([[1], [0, 1]], "uneven"),
        (None, "NoneType"),
        ({"a": 1}, "dict"),
        (np.array(["", "a"]), "texts of 1"),
        (np.array([1e18, 2]), "too large"),
        (np.array([2**63, 1], np.uint64), "large"),
        (np.array([1j, 2]), "complex128"),
    ],
)
def test_what_is_no_label_is_one_line(labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        told_labels(labels, 2)


@pytest.mark.parametrize(
    ("names", "part", "expected"),
    [
        (["x", "y"], None, ("x", "y")),
        (["images", "labels"], None, ("images", "labels")),
        (["image", "label"], None, ("image", "label")),
        (["data", "target"], None, ("data", "target")),
        (["data", "targets"], None, ("data", "targets")),
        (["X", "Y"], None, ("X", "Y")),
        (["arr_0", "arr_1"], None, ("arr_0", "arr_1")),
        (["x_test", "y_test"], None, ("x_test", "y_test")),
        (
            ["test_images", "test_labels", "train_images", "train_labels"],
            "test",
            ("test_images", "test_labels"),
        ),
        (["x_train", "y_train", "x_test", "y_test"], "train", ("x_train", "y_train")),
        (["imgs_val", "labels_val", "imgs_test"], "validation", ("imgs_val", "labels_val")),
        (["x", "y", "x_test", "y_test"], None, ("x", "y")),
        (["images"], None, ("images", None)),
        (["x", "images", "y", "extra"], None, ("x", "y")),
        (["Testing-Images", "Testing-Labels"], None, ("Testing-Images", "Testing-Labels")),
    ],
)
def test_arrays_are_found_by_their_usual_names(
    names: list[str], part: str | None, expected: tuple[str, str | None]
) -> None:
    assert pair_in(names, part) == expected


def test_several_parts_are_listed_and_unknown_names_shown() -> None:
    with pytest.raises(InputError, match=r"parts \(test, train, val\).*FILE\.npz:test"):
        pair_in([f"{p}_{k}" for p in ("train", "val", "test") for k in ("images", "labels")], None)
    with pytest.raises(InputError, match=r"no array x in it, only 'a, b'.*np\.savez"):
        pair_in(["b", "a"], None)
    with pytest.raises(InputError, match="no images of a part 'test'"):
        pair_in(["train_images"], "test")
