"""The synthetic data set on disk. N images, C channels, H height, W width, K classes.

    DIR/manifest.json               written last: a folder without it is not finished
    DIR/README.md                   the data card, see `cards.data`
    DIR/contact_sheet.png           the first images of each class
    DIR/shard-00000.images.npy      uint8 [n, C, H, W]
    DIR/shard-00000.labels.npy      int64 [n], the class asked for
    DIR/shard-00000.logits.npy      float16 [n, K], the teacher's answer
    DIR/0-zero/00000000.png         the same image once more, as ImageFolder wants it

The shards are the truth: they are waited for (fsync) and their SHA-256 is in the manifest. The
class folders are a view for other programs; after a power failure a picture may be missing there.
A picture is named after its row, so `logits[int(path.stem)]` is what the teacher said about it.

A folder's name begins with its class index, so torchvision's sorted order is the class order. A
class without images keeps its empty folder: `ImageFolder(DIR)` then refuses and names it, and
`ImageFolder(DIR, allow_empty=True)` has the right indices. Without the folder every later class
would silently move down by one.

`docs/decisions/0002-storage.md` has the measurements behind this.
"""

import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.images import ImageSpec, class_sheet, save_picture, sheet_classes
from synthkd.core.logits import as_half

FORMAT = "synthkd.images"
VERSION = 1
MANIFEST = "manifest.json"
README = "README.md"
SHEET = "contact_sheet.png"
PARTS = ("images", "labels", "logits")

# what we write, and so may delete
_PICTURE = re.compile(r"\d{8,}\.png")
_SHARD = re.compile(rf"shard-\d{{5,}}\.({'|'.join(PARTS)})\.npy")

_SHARD_BYTES = 128 << 20  # a shard of large images is cut here, whatever its number of rows
_MANIFEST_BYTES = 64 << 20
_SHEET_COLUMNS, _SHEET_ROWS = 10, 40


def class_folder(index: int, classes: int, name: str = "") -> str:
    """The folder of a class: its index, padded, and its name where that adds something.

    >>> class_folder(3, 10, "3"), class_folder(3, 100, "sea lion"), class_folder(0, 2, "../..")
    ('3', '03-sea_lion', '0-_')
    """
    number = f"{index:0{len(str(classes - 1))}d}"
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name)[:40]
    return number if name in ("", str(index)) else f"{number}-{plain}"


class Writer:
    """Writes a synthetic data set as it is made; holds one shard in memory, never the whole.

        with Writer(out, spec, classes, names) as writer:
            writer.add(pixels, labels, logits)  # as often as needed
            writer.close({"seed": 0})

    Without `close` the folder stays without a manifest, and nobody takes it for a data set. A shard
    has `shard` rows or 128 MiB of pixels, whichever is less. Files that already lie in `out` may
    stay, but no folders other than those named in `beside`, which are to be gone in the end:
    ImageFolder would take each for a class. `resumed` says that `out` is what
    an interrupted writer left, whose state will be loaded.

    Raises InputError when `out` is not fit or the disk refuses, ValueError for wrong arguments.
    """

    def __init__(
        self,
        out: Path,
        spec: ImageSpec,
        classes: int,
        names: Sequence[str] = (),
        *,
        shard: int = 8192,
        folders: bool = True,
        resumed: bool = False,
        beside: Collection[str] = (),
    ) -> None:
        if classes < 1 or shard < 1 or len(names) not in (0, classes):
            raise ValueError("a data set has classes and rows, and a name for each class or none")
        self.out, self.spec, self.classes = out, spec, classes
        self.names = tuple(names) or tuple(str(index) for index in range(classes))
        rows = max(1, min(shard, _SHARD_BYTES // math.prod(spec.shape)))
        self.per_class = np.zeros(classes, dtype=np.int64)
        self._pixels = np.empty((rows, *spec.shape), dtype=np.uint8)
        self._labels = np.empty(rows, dtype=np.int64)
        self._logits = np.empty((rows, classes), dtype=np.float16)
        self._filled = 0
        self._shards: list[dict[str, Any]] = []
        self._shown: list[list[Tensor]] = [[] for _ in range(min(classes, _SHEET_ROWS))]
        self._folders: list[Path] | None = None
        with files.disk(out):
            out.mkdir(parents=True, exist_ok=True)
            for entry in [] if resumed else sorted(out.iterdir()):
                if entry.name in beside:
                    continue
                if entry.is_dir() or entry.name == MANIFEST or entry.name.startswith("shard-"):
                    raise InputError(
                        f"{quoted(out)}: {quoted(entry.name)} is already there; "
                        "give a new or an empty folder"
                    )
            if folders:
                self._folders = [
                    out / class_folder(index, classes, name)
                    for index, name in enumerate(self.names)
                ]
                for folder in self._folders:
                    if folder.is_symlink():
                        raise InputError(f"{quoted(folder)} is a link, which could lead outside")
                    folder.mkdir(exist_ok=resumed)

    def state_dict(self) -> dict[str, Any]:
        """What has been added and is not in a shard yet, and what the shards are."""
        rows = slice(0, self._filled)
        arrays = (self._pixels[rows], self._labels[rows], self._logits[rows])
        return {
            "rows": [torch.from_numpy(array.copy()) for array in arrays],
            "shards": self._shards,
            "per_class": self.per_class.tolist(),
            "shown": [torch.stack(row) if row else None for row in self._shown],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state of a writer of the same folder. Shards that were written after
        it are written again."""
        pixels, labels, logits = state["rows"]
        self._filled = len(labels)
        self._pixels[: self._filled] = pixels.numpy()
        self._labels[: self._filled] = labels.numpy()
        self._logits[: self._filled] = logits.numpy()
        self._shards = list(state["shards"])
        self.per_class = np.array(state["per_class"], dtype=np.int64)
        self._shown = [list(row.unbind()) if row is not None else [] for row in state["shown"]]

    def prune(self) -> None:
        """Removes what an interrupted writer left after the shards of this state: it is written
        again, perhaps otherwise."""
        first = sum(shard["count"] for shard in self._shards)
        known = {_shard_file(i, part) for i in range(len(self._shards)) for part in PARTS}
        with files.disk(self.out):
            for folder in self._folders or ():
                for path in folder.glob("*.png"):
                    ours = _PICTURE.fullmatch(path.name) and files.is_plain(path)
                    if ours and int(path.stem) >= first:
                        path.unlink()
            for path in self.out.glob("shard-*"):
                ours = _SHARD.fullmatch(path.name) and files.is_plain(path)
                if ours and path.name not in known:
                    path.unlink()
            for folder in (self.out, *(self._folders or ())):
                files.sweep(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._filled = 0

    @property
    def count(self) -> int:
        """Images added so far."""
        return int(self.per_class.sum())

    def add(self, pixels: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Appends images uint8 [B, C, H, W], the classes asked for [B] and logits [B, K].

        Logits are kept as float16; what lies beyond its range (65,504) is cut to it.
        """
        size = len(labels)
        if pixels.shape != (size, *self.spec.shape) or pixels.dtype != torch.uint8:
            raise ValueError(f"pixels: {pixels.dtype} {tuple(pixels.shape)} for {self.spec.shape}")
        if logits.shape != (size, self.classes) or bool(logits.isnan().any()):
            raise ValueError(
                f"logits: {tuple(logits.shape)} for {self.classes} classes, NaN refused"
            )
        if size and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(f"labels: must lie in 0..{self.classes - 1}")
        pixels, labels = pixels.detach().cpu(), labels.detach().cpu().long()
        halves = as_half(logits).cpu()
        for label, shown in enumerate(self._shown):
            if len(shown) < _SHEET_COLUMNS:
                rows = (labels == label).nonzero().flatten()[: _SHEET_COLUMNS - len(shown)]
                shown += pixels[rows].unbind()
        done = 0
        while done < size:
            take = min(size - done, len(self._labels) - self._filled)
            here, there = slice(self._filled, self._filled + take), slice(done, done + take)
            self._pixels[here] = pixels[there].numpy()
            self._labels[here] = labels[there].numpy()
            self._logits[here] = halves[there].numpy()
            self._filled += take
            done += take
            if self._filled == len(self._labels):
                self._flush()
        self.per_class += np.bincount(labels.numpy(), minlength=self.classes)

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the classes' folders, in their order; nothing where there are none."""
        return tuple(folder.name for folder in self._folders or ())

    def described(self) -> dict[str, Any]:
        """What the manifest tells of the images that were added so far."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "count": self.count,
            "classes": self.classes,
            "names": list(self.names),
            "per_class": self.per_class.tolist(),
            "empty_classes": [int(label) for label in np.flatnonzero(self.per_class == 0)],
            "spec": asdict(self.spec),
            "folders": self._folders is not None,
            "shards": self._shards,
        }

    def close(self, manifest: Mapping[str, Any], readme: str = "") -> None:
        """Writes what is left, the contact sheet, a `readme` if there is one and, last of all, the
        manifest with your entries beside its own (see `described`), whose names yours may not have.
        """
        own = self.described()
        if taken := sorted(own.keys() & manifest.keys()):
            raise ValueError(f"manifest entries {', '.join(taken)} are the data set's own")
        if self.count == 0:
            raise ValueError("a data set without images is not written")
        if self._filled:
            self._flush()
        shown = [(label, image) for label, row in enumerate(self._shown) for image in row]
        with files.disk(self.out):
            if shown:
                labels = torch.tensor([label for label, _ in shown])
                images = torch.stack([image for _, image in shown])
                rows = sheet_classes(labels, self.classes)
                sheet = class_sheet(images, labels, rows, columns=_SHEET_COLUMNS)
                save_picture(sheet, self.out / SHEET, {"rows": [self.names[k] for k in rows]})
            if readme:
                files.write_atomic(self.out / README, readme)
            files.write_json(self.out / MANIFEST, {**own, **manifest})

    def join(
        self, parts: Sequence["Store"], shards: Sequence[dict[str, Any]],
        manifest: Mapping[str, Any], card: Callable[[Mapping[str, Any], Sequence[str]], str],
    ) -> None:  # fmt: skip
        """Finishes a data set whose `shards` lie there already, those of the `parts` in their
        order: counts, sheet, class folders and manifest."""
        row = 0
        with files.disk(self.out):
            for part in parts:
                for label, shown in enumerate(self._shown):
                    wanted = (part.labels == label).nonzero().flatten()
                    shown += part.gather(wanted[: _SHEET_COLUMNS - len(shown)]).unbind()
                self.per_class += np.bincount(part.labels.numpy(), minlength=self.classes)
                if self._folders is None:
                    continue
                labels = iter(part.labels.tolist())
                for images in part.shards:
                    for image in images:
                        folder = self._folders[next(labels)]
                        (folder / f"{row:08d}.png").write_bytes(png(image))
                        row += 1
        self._shards = list(shards)
        self.close(manifest, card({**self.described(), **manifest}, self.folders))

    def _flush(self) -> None:
        """Writes the shard in memory: three files, an fsync each; then the pictures, without."""
        count, self._filled = self._filled, 0
        first = sum(shard["count"] for shard in self._shards)
        arrays: list[NDArray[Any]] = [
            self._pixels[:count],
            self._labels[:count],
            self._logits[:count],
        ]
        entry: dict[str, Any] = {"count": count}
        with files.disk(self.out):
            for part, array in zip(PARTS, arrays, strict=True):
                path = self.out / _shard_file(len(self._shards), part)
                with files.naming(path), files.created(path) as file:
                    header = np.lib.format.header_data_from_array_1_0(array)
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(array.data.cast("B"))  # `tofile` would not say why it fails
                    file.flush()
                    os.fsync(file.fileno())
                entry[part] = files.sha256_of(path)
            if self._folders is not None:
                for row in range(count):
                    path = self._folders[self._labels[row]] / f"{first + row:08d}.png"
                    path.write_bytes(png(self._pixels[row]))
        self._shards.append(entry)


def link_shards(
    out: Path, parts: Sequence["Store"], manifest: Mapping[str, Any], *, folders: bool,
    card: Callable[[Mapping[str, Any], Sequence[str]], str],
) -> None:  # fmt: skip
    """Joins data sets of the same form in `out`, in their order: their files under new names, as
    hard links where the file system has them, the class folders, the contact sheet, the `card` (of
    the manifest and the folders' names) and the manifest. What an interrupted call left is done
    again."""
    first = parts[0]
    writer = Writer(out, first.spec, first.classes, first.names, folders=folders, resumed=True)
    shards: list[dict[str, Any]] = []
    with files.disk(out):
        for part in parts:
            for number, told in enumerate(part.manifest["shards"]):
                for name in PARTS:
                    source = part.folder / _shard_file(number, name)
                    _link(source, out / _shard_file(len(shards), name))
                shards.append(told)
    writer.join(parts, shards, manifest, card)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be."""
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Store:
    """An opened synthetic data set. Pixels stay on disk until asked for; the rest is in memory."""

    folder: Path
    spec: ImageSpec
    names: tuple[str, ...]
    labels: Tensor  # [N] int64, the class asked for
    logits: Tensor  # [N, K] float16, the teacher's answer
    shards: tuple[NDArray[np.uint8], ...]  # memory maps [n, C, H, W]
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.names)

    @property
    def pixels(self) -> Tensor:
        """All images, uint8 [N, C, H, W], read into memory at every call."""
        result = np.empty((len(self), *self.spec.shape), dtype=np.uint8)
        np.concatenate(self.shards, out=result)
        return torch.from_numpy(result)

    def gather(self, rows: Tensor) -> Tensor:
        """The images of some rows [B], in that order: uint8 [B, C, H, W], read from disk."""
        wanted = rows.cpu().numpy()
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}")
        result = np.empty((len(wanted), *self.spec.shape), dtype=np.uint8)
        first = 0
        for shard in self.shards:
            here = np.flatnonzero((wanted >= first) & (wanted < first + len(shard)))
            if here.size:
                result[here] = shard[wanted[here] - first]
            first += len(shard)
        return torch.from_numpy(result)


def is_store(path: Path) -> bool:
    """Whether a folder is a synthetic data set of ours, whole, unfinished or damaged."""
    if not path.is_dir():
        return False
    if (path / _shard_file(0, "images")).exists():
        return True
    try:
        return _read_manifest(path).get("format") == FORMAT
    except InputError:
        return False


def open_store(path: Path, *, verify: bool = False) -> Store:
    """A data set that `Writer` finished; its class folders are not looked at.

    Sizes, types, shapes, labels and counts are always checked. `verify` also compares the SHA-256
    of every shard: a flipped bit is found by nothing else.

    Raises InputError in one line for everything that is missing, damaged or not ours.
    """
    where = quoted(path)
    if not path.is_dir():
        raise InputError(f"{where}: there is no such data set folder")
    data = _read_manifest(path)
    if data.get("format") != FORMAT:
        raise InputError(f"{where}: its {MANIFEST} is not that of a synthetic data set")
    if data.get("version") != VERSION:
        raise InputError(
            f"{where}: data set version {quoted(data.get('version'))}, this reads {VERSION}; "
            "use a newer synthkd or generate it again"
        )
    try:
        table = data["spec"]
        channels, height, width = (_whole(table[key], 1) for key in ("channels", "height", "width"))
        mean, std = (tuple(float(value) for value in table[key]) for key in ("mean", "std"))
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError("means and deviations that are none")
        spec = ImageSpec(channels, height, width, mean, std)
        classes, count = _whole(data["classes"], 1), _whole(data["count"], 1)
        names = tuple(str(name) for name in data["names"])
        per_class = [_whole(value, 0) for value in data["per_class"]]
        shards = [
            (_whole(shard["count"], 1), {part: str(shard[part]) for part in PARTS})
            for shard in data["shards"]
        ]
        consistent = len(names) == len(per_class) == classes and count == sum(
            rows for rows, _ in shards
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: {MANIFEST} is damaged: {quoted(repr(error))}") from None
    if not consistent:
        raise InputError(f"{where}: {MANIFEST} is damaged: its counts contradict each other")
    pixels: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float16]] = []
    for index, (rows, digests) in enumerate(shards):
        for part, into, kind, shape in (
            ("images", pixels, np.uint8, (rows, *spec.shape)),
            ("labels", labels, np.int64, (rows,)),
            ("logits", logits, np.float16, (rows, classes)),
        ):
            file = path / _shard_file(index, part)
            array = _mapped(file, np.dtype(kind), shape)
            if verify and files.sha256_of(file) != digests[part]:
                raise InputError(
                    f"{quoted(file)}: its SHA-256 is not the manifest's: changed or damaged; "
                    "generate the data set again"
                )
            into.append(array)
    asked = np.concatenate(labels)
    if asked.min() < 0 or asked.max() >= classes:
        raise InputError(f"{where}: damaged: labels outside 0..{classes - 1}")
    if np.bincount(asked, minlength=classes).tolist() != per_class:
        raise InputError(f"{where}: damaged: labels and per_class of {MANIFEST} disagree")
    return Store(
        folder=path,
        spec=spec,
        names=names,
        labels=torch.from_numpy(asked),
        logits=torch.from_numpy(np.concatenate(logits)),
        shards=tuple(pixels),
        manifest=data,
    )


def _shard_file(index: int, part: str) -> str:
    return f"shard-{index:05d}.{part}.npy"


def png(image: NDArray[np.uint8]) -> bytes:
    """One image [C, H, W] as a PNG: grey, grey + alpha, RGB or RGBA."""
    held = io.BytesIO()
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture.save(held, format="PNG", compress_level=1)
    return held.getvalue()


def _whole(value: object, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is not a whole number from {least} on")
    return value


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MANIFEST_BYTES:
            raise InputError(f"{quoted(file)}: not a plain file of at most 64 MiB")
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{quoted(path)}: no {MANIFEST}: not a synthetic data set, or an unfinished one; "
            "generate it again"
        ) from None
    except OSError as error:
        raise InputError(f"{quoted(file)}: cannot be read: {quoted(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{quoted(file)}: not valid JSON: {quoted(error)}") from None
    if not isinstance(data, dict):
        raise InputError(f"{quoted(file)}: not a JSON table")
    return data


def _mapped(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A .npy file as a read-only memory map, if it is exactly what the manifest says."""
    where = quoted(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{where}: not a plain file")
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{where}: missing; generate the data set again") from None
    except InputError:
        raise
    except Exception as error:  # numpy's header parser raises many kinds
        raise InputError(
            f"{where}: damaged: {quoted(error)}; generate the data set again"
        ) from None
    size = path.stat().st_size - int(array.offset)
    if array.dtype != kind or array.shape != shape or size != kind.itemsize * math.prod(shape):
        raise InputError(
            f"{where}: holds {array.dtype} {quoted(array.shape)} in {size:,} bytes, the manifest "
            f"says {kind} {shape}; generate the data set again"
        )
    return array
