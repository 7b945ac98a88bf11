"""Answers of shadow networks, which the holder of the data has trained as the teacher was trained,
on halves of the same images: an .npz of

    logits          [S, N, K]  what S networks answer to N images
    member          [S, N]     whether a network had an image in its training data: 0 or 1
    student_logits  [S, N, K]  what students of these networks answer, if there are any
    labels          [N]        the images' labels, if they shall be compared with those given

N images in the order in which they are given to `synthkd audit`, K classes. Files are not trusted.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthkd.core.errors import InputError, quoted
from synthkd.core.files import exists
from synthkd.images.arrays import member

ARRAYS = ("logits", "member", "student_logits", "labels")


class Shadows(NamedTuple):
    """What shadow networks, and perhaps their students, answer."""

    logits: NDArray[Any]  # [S, N, K]
    member: NDArray[np.bool_]  # [S, N]
    student_logits: NDArray[Any] | None  # [S, N, K]

    def __len__(self) -> int:
        return len(self.logits)


def load_shadows(paths: Sequence[Path], labels: NDArray[Any], classes: int) -> Shadows:
    """The shadow networks of one or several files, for images with these `labels` [N].

    Raises InputError in one line where an array is missing, damaged, of another shape or of other
    labels, or where some files have answers of students and others have none.
    """
    parts = [_read(path, labels, classes) for path in paths]
    students = [part.student_logits for part in parts if part.student_logits is not None]
    if len(students) not in (0, len(parts)):
        raise InputError(
            "--shadows: some files have student_logits and others have none: give them in all, or "
            "in none"
        )
    return Shadows(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.member for part in parts]),
        np.concatenate(students) if students else None,
    )


def _read(path: Path, labels: NDArray[Any], classes: int) -> Shadows:
    where = f"--shadows {quoted(path)}"
    if not exists(path):
        raise InputError(f"{where}: there is no such file")
    if not path.is_file():
        raise InputError(f"{where}: not a plain file")
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            held = {
                name: member(where, path, archive, inside[name])
                for name in ARRAYS
                if name in inside
            }
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds
        raise InputError(f"{where}: not a readable .npz file: {quoted(error)}") from None
    for name in ARRAYS[:2]:
        if name not in held:
            raise InputError(f"{where}: there is no array {name}: docs/leaks.md says what is in it")
    count, shape = held["logits"].shape[:1], (len(labels), classes)
    for name, wanted in (
        ("logits", (*count, *shape)),
        ("student_logits", (*count, *shape)),
        ("member", (*count, len(labels))),
        ("labels", (len(labels),)),
    ):
        if name in held and (held[name].shape != wanted or held[name].dtype.kind not in "biuf"):
            told = f"numbers of the shape (S, {', '.join(map(str, wanted[1:]))})"
            told = f"{len(labels)} numbers" if name == "labels" else told
            raise InputError(
                f"{where}: {name} is {held[name].dtype} {held[name].shape}; for {len(labels):,} "
                f"images and {classes} classes it must be {told}"
            )
    if not all(np.isfinite(array).all() for array in held.values()):
        raise InputError(f"{where}: it holds NaN or infinity")
    if not np.isin(held["member"], (0, 1)).all():
        raise InputError(f"{where}: member must be 0 or 1, or true or false")
    if "labels" in held and not np.array_equal(held["labels"], labels):
        wrong = int((held["labels"] != labels).sum())
        raise InputError(
            f"{where}: {wrong:,} of its {len(labels):,} labels are not those of the images: they "
            "must be in the order members, non-members, canaries, canaries left out"
        )
    return Shadows(held["logits"], held["member"].astype(np.bool_), held.get("student_logits"))
