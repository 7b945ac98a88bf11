"""Labels in arrays, in the forms that people keep them in; and which array is which.

N images, K classes. What was understood is said in words; what is not is one InputError without the
place, which the caller adds.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.images import as_array

# in an archive: words for images and for labels, the first ones preferred
IMAGES = ("x", "images", "image", "imgs", "img", "data", "pixels", "inputs", "input", "arr_0")
LABELS = (
    "y", "labels", "label", "targets", "target", "classes", "class", "fine_labels", "arr_1",
)  # fmt: skip
PARTS = {
    "test": "test", "testing": "test", "tst": "test", "train": "train", "training": "train",
    "trn": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
MOST_LABEL = 200  # characters of a label that is a text


class Told(NamedTuple):
    """Labels as one whole number or one text an image; or as rows of 0 and 1, several of them 1."""

    labels: NDArray[Any]  # [N] int64 or str; [N, K] int64 of 0 and 1
    said: str  # in words; "" where they were plain numbers


def pair_in(names: Iterable[str], part: str | None) -> tuple[str, str | None]:
    """The arrays of images and of labels (None: there are none) among those of an archive.

    Of names with a part ("x_test", "test_images", "train_labels") those of `part` are taken;
    without one, those without a part, or those of the only part.

    >>> pair_in(["x", "y"], None), pair_in(["test_images", "test_labels", "train_images"], "test")
    (('x', 'y'), ('test_images', 'test_labels'))
    """
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    everything = sorted(names)
    for name in everything:
        words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
        mine = [PARTS[word] for word in words if word in PARTS]
        rest = "_".join(word for word in words if word not in PARTS)
        for kind, known in (("images", IMAGES), ("labels", LABELS)):
            if rest in known and len(mine) <= 1:
                place = (kind, mine[0] if mine else "")
                found.setdefault(place, []).append((known.index(rest), name))
    parts = [p for kind, p in found if kind == "images" and p]
    chosen = PARTS.get(part.casefold(), part) if part else ""
    if not part and ("images", "") not in found:
        if len(parts) > 1:
            listed = ", ".join(sorted(parts))
            raise InputError(
                f"it holds several parts ({listed}): name one after the file, as in "
                f"FILE.npz:{'test' if 'test' in parts else sorted(parts)[0]}"
            )
        chosen = parts[0] if parts else ""
    if ("images", chosen) not in found:
        few = quoted(", ".join(everything))
        what = f"no images of a part {quoted(part)}" if part else "no array x"
        raise InputError(
            f"{what} in it, only {few}; save it with np.savez(file, x=images, y=labels)"
        )
    labels = found.get(("labels", chosen))
    return min(found["images", chosen])[1], min(labels)[1] if labels else None


def told_labels(labels: object, count: int) -> Told:
    """Labels of `count` images as one number or text each.

    Taken are whole numbers of any type, truth values, texts, each [N], [N, 1] or [1, N]; and rows
    [N, K] of 0 and 1 with a single 1 (one-hot), whose places are the classes. Rows with several 1,
    or none, stay rows: they are for classes that are independent of each other.
    """
    if isinstance(labels, Tensor):
        labels = as_array(labels)
    if isinstance(labels, list | tuple):
        try:
            labels = np.array([as_array(x) if isinstance(x, Tensor) else x for x in labels])
        except ValueError:
            raise InputError("labels must be an array of whole numbers; got uneven rows") from None
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biufUS":
        kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise InputError(f"labels must be an array of whole numbers; got {kind}")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != labels.round()).any():
            what = "shares of classes" if labels.ndim == 2 and labels.shape[1] > 1 else labels.dtype
            raise InputError(f"labels must be an array of whole numbers; got {what}")
        if np.abs(labels).max(initial=0) > 1e15:
            raise InputError("labels must be an array of whole numbers; these are too large")
    if labels.shape in ((count, 1), (1, count)):
        labels = labels.reshape(-1)
    if labels.dtype.kind == "U" and labels.shape == (count,):
        return _texts(labels)
    if labels.shape == (count,):
        said = "labels false and true taken as 0 and 1" if labels.dtype.kind == "b" else ""
        return Told(_whole(labels), said)
    if labels.ndim != 2 or labels.dtype.kind == "U" or count not in labels.shape:
        raise InputError(f"{count:,} images but labels of shape {labels.shape}")
    rows = labels if len(labels) == count else labels.T
    if not np.isin(rows, (0, 1)).all():
        raise InputError(
            f"labels of shape {labels.shape} must be rows of 0 and 1, or one number per image"
        )
    numbers = _whole(rows)
    if (numbers.sum(1) == 1).all():
        return Told(
            numbers.argmax(1), f"one-hot labels taken as the numbers 0..{rows.shape[1] - 1}"
        )
    several = int((numbers.sum(1) > 1).sum())
    return Told(numbers, f"labels of any number of classes ({several:,} images have several)")


def _whole(labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.dtype.kind == "u" and labels.max(initial=0) > np.iinfo(np.int64).max:
        raise InputError("labels must be an array of whole numbers; these are too large")
    return labels.astype(np.int64)


def _texts(labels: NDArray[Any]) -> Told:
    """Texts; those that are all whole numbers are these."""
    texts: Sequence[str] = [str(text).strip() for text in labels.tolist()]
    if any(not text or len(text) > MOST_LABEL for text in texts):
        raise InputError(f"labels must be texts of 1 to {MOST_LABEL} characters")
    if all(re.fullmatch(r"-?\d{1,9}", text) for text in texts):
        return Told(
            np.array([int(text) for text in texts]), "labels that are texts taken as numbers"
        )
    return Told(np.array(texts), "")
