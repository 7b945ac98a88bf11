"""Images that exist already, and the one grammar for saying where they are.

    DIR                             class folders, or one of our synthetic data sets
    FILE.npz[:PART]                 x [N, H, W] or [N, H, W, C], and perhaps y [N]; or arrays of
                                    other usual names (images, test_labels, …), of PART: train, test
    FILE.py:CALLABLE[:ARGUMENT]     runs that code (with --trust-code)
    demo:seen, demo:unseen          scikit-learn's digits: what the demo teacher saw, and the others

N images, C channels, H height, W width, K classes. Files are not trusted: nothing in them
is run, headers are read before memory is given, and what is wrong is one line.
"""

import difflib
import hashlib
import itertools
import math
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.files import exists
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, as_array
from synthkd.data import store
from synthkd.images.arrays import Stack, as_pixels, header, member, stack_in, stacked
from synthkd.images.decode import affordable, read_pictures, shaped
from synthkd.labels.arrays import pair_in, told_labels
from synthkd.labels.class_folders import listing
from synthkd.labels.class_names import Order, arranged, known_names, matched, numbered
from synthkd.recipe import MOST_CLASSES, DataTable
from synthkd.specs.code import executed, foreign_code

UNSEEN = 0.3  # share of the demo's digits that its teacher never saw

_CODE = re.compile(r"(?P<file>.+\.py):(?P<callable>[A-Za-z_]\w*)(?::(?P<argument>.*))?", re.DOTALL)

_PART = re.compile(r"(?P<file>.+\.npz):(?P<part>[A-Za-z]+)", re.DOTALL | re.IGNORECASE)


class Images(NamedTuple):
    """Images in memory, fitted to a classifier."""

    pixels: Tensor  # [N, C, H, W] uint8
    labels: Tensor | None  # [N] int64
    names: tuple[str, ...]  # of the classes, or ()
    source: str  # the path as it was given
    digest: str  # SHA-256 over pixels and labels
    notes: tuple[Finding, ...] = ()  # what was assumed of the files
    order: str = ""  # how labels were turned into the teacher's classes, in words
    others: tuple[Order, ...] = ()  # what they might be as well
    given: tuple[str, ...] = ()  # the classes on the side of the data: folders or labels,
    taken: tuple[int, ...] = ()  # and what class of the teacher each was taken for; -1: none

    def relabelled(self, order: Order) -> "Images":
        """The same images, their labels read in another order."""
        assert self.labels is not None
        labels = torch.tensor(order.classes)[self.labels]
        taken = tuple(order.classes[k] if k >= 0 else -1 for k in self.taken)
        return self._replace(
            labels=labels, digest=_digest(self.pixels, labels), order=order.how, others=(),
            taken=taken,
        )  # fmt: skip


class Target(NamedTuple):
    """The classes that labels are to be of: the teacher's."""

    names: tuple[str, ...] = ()  # where they are known
    classes: int | None = None
    order: str = "auto"  # --class-order


class _Found(NamedTuple):
    """What a source holds, before labels are judged and images are fitted."""

    pixels: Tensor  # [N, C', H', W'] uint8, or already fitted
    labels: Tensor | None
    names: tuple[str, ...] = ()
    unlabelled: str = "it has no labels"  # why there are none
    classes: int | None = None  # where the source itself says how many there are
    notes: tuple[Finding, ...] = ()
    order: str = ""
    others: tuple[Order, ...] = ()
    given: tuple[str, ...] = ()
    taken: tuple[int, ...] = ()


def load_images(
    path: str,
    spec: ImageSpec | None,
    *,
    classes: int | None,
    labelled: bool,
    trust_code: bool = False,
    names: tuple[str, ...] = (),
    table: DataTable | None = None,
) -> Images:
    """The images of a data path (see the top of this module), all in memory.

    `spec` is the size to fit them to; None keeps their own, which must then be the same for all
    (grey stays one channel). `classes` and `names` are the teacher's: class folders are matched
    with them by name where both sides have names, else they are counted (`class_names.arranged`);
    `Images.order` says how.

    With `labelled` every image must have a label in 0..classes-1 (any from 0 on where `classes` is
    None). Without it, labels that fit are passed on, others are left out, and a folder of images
    without class folders will do.

    `table` says how values, transparency, proportion and labels are understood, where that is not
    judged by the images; `Images.notes` tells what was assumed.

    Raises InputError in one line for every other case.
    """
    where, table = quoted(path), table or DataTable()
    code = _CODE.fullmatch(path)
    target = Target(known_names(names), classes, table.class_order)
    if path.startswith("demo:"):
        found = _demo(path)
    elif code:
        if not trust_code:
            raise InputError(
                f"{where}: this runs the code in {quoted(code['file'])}; "
                "add --trust-code if you trust it"
            )
        found = _from_code(
            where, Path(code["file"]), code["callable"], code["argument"], spec, table, target
        )
    else:
        place, part = place_of(path)
        if not path or not place.exists():
            raise InputError(f"{where}: there is no such file or folder{_near(place)}")
        if store.is_store(place):
            opened = store.open_store(place, verify=True)
            found = _Found(opened.pixels, opened.labels, opened.names, classes=opened.classes)
        elif place.is_dir():
            found = _from_folder(where, place, spec, labelled, target, table)
        elif place.suffix.lower() == ".npz":
            found = _from_npz(where, place, part, spec, table, target)
        else:
            raise InputError(
                f"{where}: not a data path; give a folder of class folders, an .npz with x and y, "
                "a synthetic data set, demo:unseen, or file.py:callable with --trust-code"
            )
    return _finished(where, path, found, spec, classes, labelled, table)


def images_of(
    source: Any,
    spec: ImageSpec | None,
    *,
    classes: int | None,
    labelled: bool,
    names: tuple[str, ...] = (),
    table: DataTable | None = None,
) -> Images:
    """As `load_images`, of a living object: a tensor or array of images ([N, H, W], [N, C, H, W] or
    [N, H, W, C], numbers 0..1 or 0..255), a pair of images and labels, a dictionary of both, or a
    Dataset whose items are images, or pairs of image and label."""
    where, table = f"<{type(source).__name__}>", table or DataTable()
    target = Target(known_names(names), classes, table.class_order)
    if not isinstance(source, Tensor | np.ndarray | tuple | dict):
        source = _listed(where, source)
    found = _from_objects(where, source, spec, table, target, "none were given")
    return _finished(where, where, found, spec, classes, labelled, table)


def restricted(
    images: Images, only: Sequence[int], *, others: bool, names: tuple[str, ...] = ()
) -> Images:
    """Images with labels among some classes alone, numbered in the order of `only`; images of other
    classes are left out, or with `others` are of one more class. Raises InputError where none is
    left."""
    if images.labels is None:
        return images
    if images.labels.dim() > 1:
        labels = images.labels[:, list(only)]
        return images._replace(
            labels=labels, digest=_digest(images.pixels, labels), names=names, others=()
        )
    places = torch.full((int(images.labels.max()) + 1 + max(only),), len(only) if others else -1)
    places[list(only)] = torch.arange(len(only))
    labels = places[images.labels]
    kept = labels >= 0
    if not bool(kept.any()):
        raise InputError(f"{quoted(images.source)}: no image is of a class of --only")
    pixels, labels = images.pixels[kept], labels[kept]
    return images._replace(
        pixels=pixels, labels=labels, digest=_digest(pixels, labels), names=names, others=(),
        given=(), taken=(),
    )  # fmt: skip


def _listed(where: str, source: Any) -> object:
    """Everything in a Dataset: images [N, …], or a pair of images and labels."""
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise InputError(
            f"{where}: images are a tensor, an array, a pair of images and labels, or a Dataset"
        )
    images, labels = [], []
    for index in range(len(source)):
        item = source[index]
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        images.append(as_array(image) if isinstance(image, Tensor) else np.asarray(image))
        labels.append(as_array(label) if isinstance(label, Tensor) else label)
    if not images:
        raise InputError(f"{where}: it holds no images")
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{where}: its images are not all of one shape; resize them first")
    whole = all(label is not None for label in labels)
    return np.stack(images), labels if whole else None


def _finished(
    where: str, source: str, found: _Found, spec: ImageSpec | None, classes: int | None,
    labelled: bool, table: DataTable,
) -> Images:  # fmt: skip
    """Images with labels that are judged and pixels that are fitted."""
    if not len(found.pixels):
        raise InputError(f"{where}: it holds no images")
    labels, named = _judged(where, found, classes, labelled)
    pixels = found.pixels if spec is None else _fit(where, found.pixels, spec, table.resize)
    digest = _digest(pixels, labels)
    return Images(
        pixels, labels, named, source, digest, found.notes, found.order, found.others, found.given,
        found.taken,
    )  # fmt: skip


def count_images(path: str) -> int | None:
    """How many images a data path holds, without opening one of them.

    None where only opening tells (demo, code), or where something is wrong with it: `load_images`
    says what.
    """
    place, part = place_of(path)
    try:
        if place.is_dir() and store.is_store(place):
            return len(store.open_store(place))
        if place.is_dir():
            found = listing(path, place)
            return sum(map(len, found.files)) or len(found.loose)
        if place.suffix.lower() == ".npz" and place.is_file():
            with zipfile.ZipFile(place) as archive:
                names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
                images, labels = pair_in(names, part)
                # by the labels, where there are any: images may lie along any axis
                with archive.open(f"{labels or images}.npy") as file:
                    return max(header(file)[0]) if labels else header(file)[0][0]
    except Exception:  # an untrusted file, as many kinds as there are readers
        return None
    return None


def place_of(path: str) -> tuple[Path, str | None]:
    """A path, and the part behind it: `FILE.npz:test`."""
    found = _PART.fullmatch(path)
    if found and not Path(path).exists():
        return Path(found["file"]), found["part"]
    return Path(path), None


def demo_digits() -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
    """The 1,797 handwritten digits of scikit-learn: pixels uint8 [1797, 1, 16, 16], labels, unseen.

    Their 8x8 values 0..16 become 0..255 and are enlarged bilinearly (align_corners off, no
    antialiasing). `unseen` marks 30 % of each class (rounded), which no demo teacher is trained on:
    those whose 8x8 pixels have the smallest SHA-256. So the split depends on nothing but the
    images, whatever their order and the version of a library.

    >>> pixels, labels, unseen = demo_digits()
    >>> tuple(pixels.shape), int(unseen.sum())
    ((1797, 1, 16, 16), 539)
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = digits.images.astype(np.uint8)  # [1797, 8, 8], 0..16
    labels = digits.target.astype(np.int64)
    order = np.argsort([hashlib.sha256(image.tobytes()).hexdigest() for image in small])
    unseen = np.zeros(len(small), dtype=np.bool_)
    for label in range(10):
        members = order[labels[order] == label]
        unseen[members[: round(UNSEEN * len(members))]] = True
    scaled = torch.from_numpy(small).float().unsqueeze(1) * (255 / 16)
    large = F.interpolate(scaled, (16, 16), mode="bilinear", align_corners=False, antialias=False)
    pixels = large.round().clamp(0, 255).to(torch.uint8)
    return pixels, torch.from_numpy(labels), unseen


def _demo(path: str) -> _Found:
    part = path.removeprefix("demo:")
    if part not in ("seen", "unseen"):
        raise InputError(f"{quoted(path)}: the demo's digits are demo:seen and demo:unseen")
    pixels, labels, unseen = demo_digits()
    chosen = torch.from_numpy(np.flatnonzero(unseen == (part == "unseen")))
    return _Found(pixels[chosen], labels[chosen], tuple(str(digit) for digit in range(10)))


def _judged(
    where: str, found: _Found, classes: int | None, labelled: bool
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels and class names that fit the classes; what does not fit is refused or left out."""
    labels, problem = found.labels, ""
    if labels is None:
        problem = f"labels are needed, but {found.unlabelled}"
    elif classes is not None and found.classes not in (None, classes):
        problem = (
            f"it has {found.classes} classes (one per folder), the teacher has {classes}; "
            "give a class without images an empty folder"
        )
    elif int(labels.min()) < 0 or (classes is not None and int(labels.max()) >= classes):
        top = f"0..{classes - 1}" if classes is not None else "0 and up"
        problem = f"labels must lie in {top}; got {int(labels.min())}..{int(labels.max())}"
    if not problem:
        return labels, found.names
    if labelled:
        raise InputError(f"{where}: {problem}")
    return None, ()


def _fit(where: str, pixels: Tensor, spec: ImageSpec, resize: str) -> Tensor:
    """`shaped`, piece by piece, where the channels can become those of the teacher."""
    have, want = pixels.shape[1], spec.channels
    if have != want and (have, want) not in ((1, 2), (1, 3), (1, 4), (3, 1), (4, 1), (4, 3)):
        raise InputError(f"{where}: images of {have} channels for a teacher of {want} channels")
    if tuple(pixels.shape[1:]) == spec.shape:
        return pixels.contiguous()
    affordable(where, len(pixels), spec.shape)
    result = torch.empty((len(pixels), *spec.shape), dtype=torch.uint8)
    for first in range(0, len(pixels), 1024):
        result[first : first + 1024] = shaped(pixels[first : first + 1024], spec, resize)
    return result


def _digest(pixels: Tensor, labels: Tensor | None) -> str:
    """SHA-256 over the shape, the pixels and the labels (int64, little-endian)."""
    digest = hashlib.sha256(repr((tuple(pixels.shape), labels is not None)).encode())
    digest.update(pixels.contiguous().numpy().data)
    if labels is not None:
        digest.update(labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _near(place: Path) -> str:
    """`; did you mean …?`, with a name from the folder it should lie in."""
    try:
        names = [entry.name for entry in itertools.islice(place.parent.iterdir(), 10_000)]
    except OSError:
        return ""
    close = difflib.get_close_matches(place.name, names, n=1, cutoff=0.6)
    return f"; did you mean {quoted(place.parent / close[0])}?" if close else ""


# Folders


def _from_folder(
    where: str, folder: Path, spec: ImageSpec | None, labelled: bool, target: Target,
    table: DataTable,
) -> _Found:  # fmt: skip
    """Class folders; without them, and unlabelled, the images that lie directly in it."""
    try:
        found = listing(where, folder, lambda name: matched([name], target.names)[0] is not None)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {quoted(error)}") from None
    filled = [bool(files) for files in found.files]
    members = [path for files in found.files for path in files] or list(found.loose)
    if not members:
        beside = f", only {found.skipped}" if found.skipped else ""
        raise InputError(f"{where}: there is no image in it or in its class folders{beside}")
    arrangement, unlabelled = None, "its images are not in class folders; make one folder per class"
    if any(filled):
        try:
            arrangement = arranged(found.names, filled, *target)
        except InputError as error:
            unlabelled = str(error)
    if arrangement is None and labelled:
        raise InputError(f"{where}: labels are needed, but {unlabelled}")
    seen: list[Finding] = []
    pixels = read_pictures(where, members, spec, seen, table)
    notes = (*found.notes, *seen)
    if arrangement is None:
        return _Found(pixels, None, unlabelled=unlabelled, notes=notes)
    counts = torch.tensor([len(files) for files in found.files])
    labels = torch.tensor(arrangement.classes).repeat_interleave(counts)
    names = _class_names(found.names, arrangement.classes, target)
    order = "; ".join(filter(None, (f"class folders taken {arrangement.how}", found.said)))
    return _Found(
        pixels, labels, names, notes=notes, order=order, others=arrangement.others,
        given=found.names, taken=arrangement.classes,
    )  # fmt: skip


def _class_names(given: Sequence[str], classes: Sequence[int], target: Target) -> tuple[str, ...]:
    """The names of all classes: the teacher's, or else those of the data."""
    if target.names:
        return target.names
    found = {k: name for name, k in zip(given, classes, strict=True) if k >= 0}
    count = target.classes or max(found) + 1
    if count > MOST_CLASSES:
        return ()
    return tuple(found.get(k, str(k)) for k in range(count))


# Arrays


def _from_npz(
    where: str, path: Path, part: str | None, spec: ImageSpec | None, table: DataTable,
    target: Target,
) -> _Found:  # fmt: skip
    """Images and labels of an .npz; the header of each is judged before memory is given to it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{where}: not a plain file")
        with zipfile.ZipFile(path) as archive:
            inside = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            try:
                x, y = pair_in(inside, part)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            labels = member(where, path, archive, inside[y]) if y else None
        images = stack_in(where, path, inside[x])
        if _is_last(images.shape, labels):
            with zipfile.ZipFile(path) as archive:
                images = stacked(np.moveaxis(member(where, path, archive, inside[x]), -1, 0))
        notes: list[Finding] = []
        images, said = _unrolled(images)
        pixels = as_pixels(where, images, spec, notes, table)
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds
        raise InputError(f"{where}: not a readable .npz file: {quoted(error)}") from None
    said = "; ".join(
        filter(
            None,
            (f"arrays {quoted(x)} and {quoted(y)}" if (x, y) != ("x", "y") and y else "", said),
        )
    )
    return _checked(where, pixels, labels, "the file has no array y", notes, target, said)


def _is_last(shape: Sequence[int], labels: object) -> bool:
    """Whether images lie along the last axis, [H, W, C, N], by the number of labels."""
    count = max(labels.shape) if isinstance(labels, np.ndarray) and labels.ndim else None
    return len(shape) == 4 and shape[3] == count and shape[0] != count and shape[2] in (1, 3)


def _unrolled(stack: Stack) -> tuple[Stack, str]:
    """Rows [N, H · W] or [N, C · H · W] of square images as images, and that in words."""
    if len(stack.shape) != 2:
        return stack, ""
    (count, length), pieces = stack.shape, stack.pieces
    channels = 3 if math.isqrt(length) ** 2 != length else 1
    side = math.isqrt(length // channels)
    one = (side, side) if channels == 1 else (channels, side, side)
    if side < 4 or math.prod(one) != length:
        return stack, ""

    def unrolled() -> Iterator[NDArray[Any]]:
        yield from (piece.reshape(len(piece), *one) for piece in pieces())

    said = f"rows of {length:,} numbers taken as images of {' x '.join(map(str, one))}"
    return stack._replace(shape=(count, *one), pieces=unrolled), said


def _checked(
    where: str, pixels: Tensor, labels: object, unlabelled: str, notes: Sequence[Finding],
    target: Target, said: str = "",
) -> _Found:  # fmt: skip
    """Images with labels from elsewhere, read as the teacher's classes."""
    found = _Found(pixels, None, unlabelled=unlabelled, notes=tuple(notes), order=said)
    if labels is None:
        return found
    try:
        told = told_labels(labels, len(pixels))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    said = "; ".join(filter(None, (said, told.said)))
    if told.labels.ndim == 2:
        columns = told.labels.shape[1]
        if target.classes not in (None, columns):
            unlabelled = f"they are rows of {columns} classes, the teacher has {target.classes}"
            return found._replace(unlabelled=unlabelled)
        labels = torch.from_numpy(told.labels)
        return found._replace(labels=labels, names=target.names, order=said)
    values, places = np.unique(told.labels, return_inverse=True)
    given = tuple(str(value) for value in values.tolist())
    try:
        if told.labels.dtype.kind == "U":
            arrangement = arranged(given, [True] * len(given), *target)
        else:
            arrangement = numbered(values.tolist(), *target)
    except InputError as error:
        return found._replace(unlabelled=str(error))
    how = f"labels taken {arrangement.how}" if arrangement.how else ""
    classes = arrangement.classes
    return found._replace(
        labels=torch.tensor(classes)[torch.from_numpy(places.reshape(-1))],
        names=_class_names(given, classes, target) if told.labels.dtype.kind == "U" else (),
        order="; ".join(filter(None, (said, how))), others=arrangement.others, given=given,
        taken=classes,
    )  # fmt: skip


# Code


def _from_code(
    where: str, file: Path, name: str, argument: str | None, spec: ImageSpec | None,
    table: DataTable, target: Target,
) -> _Found:  # fmt: skip
    """Runs a callable of somebody's file; it gives images, or (images, labels)."""
    if not exists(file):
        raise InputError(f"{where}: cannot be read: there is no such file{_near(file)}")
    with foreign_code(f"{where}: the code in {quoted(file)} failed"):
        module = executed(file)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"{where}: no callable {name} in {quoted(file)}{hint}")
    with foreign_code(f"{where}: the code in {quoted(file)} failed"):
        result = function() if argument is None else function(argument)
    return _from_objects(where, result, spec, table, target, "the callable gave none")


def _from_objects(
    where: str, result: object, spec: ImageSpec | None, table: DataTable, target: Target, none: str
) -> _Found:
    """Images, or images and labels, of a living object; `none` says why there are no labels."""
    images, labels = _pair(where, result)
    if isinstance(images, Tensor):
        images = as_array(images)
    if not isinstance(images, np.ndarray):
        raise InputError(
            f"{where}: images must be an array of numbers; got {type(images).__name__}"
        )
    notes: list[Finding] = []
    stack, said = _unrolled(stacked(images))
    pixels = as_pixels(where, stack, spec, notes, table)
    return _checked(where, pixels, labels, none, notes, target, said)


def _pair(where: str, result: object) -> tuple[object, object]:
    """What a callable gave: images; images and labels; or a dict of both."""
    if isinstance(result, dict) and all(isinstance(key, str) for key in result):
        try:
            x, y = pair_in(result, None)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return result[x], result[y] if y else None
    return result if isinstance(result, tuple) and len(result) == 2 else (result, None)
