"""Images in arrays of numbers, in memory or in an .npz, piece by piece as bytes for a network.

N images, C channels, H height, W width. What an .npz claims is compared with its directory before
anything is inflated, and its images are never all in memory at once, unless they are wanted so.
"""

import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.images.decode import (
    MOST_PIXELS,
    affordable,
    changed_aspect,
    laid_on,
    most_bytes,
    shaped,
    told_aspect,
)
from synthkd.images.value_range import Extent, Levels, Values, levels_of, to_bytes
from synthkd.recipe import DataTable

PIECE = 32 << 20  # bytes that are read at once
MOST_ARRAY = 64 << 30  # bytes of an array in a file
BOMB_BYTES, BOMB_RATIO = 256 << 20, 100  # inflated bytes from which on that ratio is refused
FITTING = ((1, 2), (1, 3), (1, 4), (3, 1), (4, 1), (4, 3))  # channels that become


class Stack(NamedTuple):
    """An array of images that is read piece by piece along its first axis, as often as wanted."""

    shape: tuple[int, ...]
    kind: np.dtype[Any]
    pieces: Callable[[], Iterator[Values]]


def stacked(array: NDArray[Any]) -> Stack:
    """An array in memory."""
    rows = _rows(array.shape, array.dtype)
    steps = range(0, len(array), rows)
    return Stack(array.shape, array.dtype, lambda: (array[i : i + rows] for i in steps))


def stack_in(where: str, path: Path, info: zipfile.ZipInfo) -> Stack:
    """An array in an .npz, refused when it holds objects or its header does not fit its size."""
    with zipfile.ZipFile(path) as archive:
        shape, kind, fortran = _judged(where, path, archive, info)
        if fortran or not shape:
            return stacked(member(where, path, archive, info))
    rows = _rows(shape, kind)
    one = math.prod(shape[1:]) * kind.itemsize

    def pieces() -> Iterator[Values]:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            header(file)
            for first in range(0, shape[0], rows):
                count = min(rows, shape[0] - first)
                content = _exactly(file, count * one)
                if content is None:
                    raise InputError(f"{where}: {quoted(info.filename)} is damaged")
                yield np.frombuffer(content, kind).reshape(count, *shape[1:])
            if file.read(1):  # reaching the end is what compares the checksum
                raise InputError(f"{where}: {quoted(info.filename)} is damaged")

    return Stack(shape, kind, pieces)


def member(where: str, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One whole array of an .npz, refused as by `stack_in`, or when it is too large."""
    shape, kind, _ = _judged(where, path, archive, info)
    size = math.prod(shape) * kind.itemsize
    if size > most_bytes():
        raise InputError(
            f"{where}: {quoted(info.filename)} takes {size >> 20:,} MiB of memory, over the limit "
            f"of {most_bytes() >> 20:,} (half of what is free): give fewer or smaller images"
        )
    with archive.open(info) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise InputError(f"{where}: {quoted(info.filename)} is damaged")
    return array


def _judged(
    where: str, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and order of an array, after all that can be wrong before it is inflated."""
    name = quoted(info.filename)
    packed = max(1, min(info.compress_size, path.stat().st_size))
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * packed:
        raise InputError(
            f"{where}: {name} would grow from {packed >> 20:,} to {info.file_size >> 20:,} MiB: "
            "refused as a zip bomb"
        )
    with archive.open(info) as file:
        shape, kind, fortran = _header(file)
        if kind.hasobject or kind.names is not None:
            raise InputError(
                f"{where}: {name} holds Python objects, which can run code when loaded; "
                "save it again as plain numbers"
            )
        size = math.prod(int(n) for n in shape) * kind.itemsize
        if size > MOST_ARRAY:
            raise InputError(
                f"{where}: {name} takes {size >> 30:,} GiB, over the limit of {MOST_ARRAY >> 30}; "
                "give fewer or smaller images"
            )
        if file.tell() + size != info.file_size:
            raise InputError(f"{where}: {name} is damaged: its header does not fit its size")
    return shape, kind, fortran


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    if np.lib.format.read_magic(file) == (1, 0):
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, kind = np.lib.format.read_array_header_2_0(file)
    return shape, kind, bool(fortran)


def header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, by the header of its .npy file."""
    return _header(file)[:2]


def _rows(shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    return max(1, PIECE // max(1, math.prod(shape[1:]) * kind.itemsize))


def _exactly(file: IO[bytes], count: int) -> bytes | None:
    content = file.read(count)
    return content if len(content) == count else None


def as_pixels(
    where: str,
    stack: Stack,
    spec: ImageSpec | None,
    notes: list[Finding] | None = None,
    table: DataTable | None = None,
) -> Tensor:
    """Images [N, H, W], [N, H, W, C] or [N, C, H, W] of any numbers as uint8 [N, C, H, W], fitted
    to `spec` where it is given. What was assumed is added to `notes`.

    Raises InputError in one line for numbers, shapes and channels that are not understood.
    """
    return _Stacked(where, stack, spec, table or DataTable()).all(notes)


class _Stacked:
    """A stack being turned into bytes."""

    def __init__(self, where: str, stack: Stack, spec: ImageSpec | None, table: DataTable) -> None:
        self.where, self.stack, self.spec, self.table = where, stack, spec, table
        self.notes: list[Finding] = []
        shape, kind = stack.shape, stack.kind
        if kind.kind not in "buif":
            raise InputError(f"{where}: images must be an array of numbers; got {kind}")
        self.first = len(shape) == 4 and shape[3] not in (1, 2, 3, 4) and shape[1] in (1, 2, 3, 4)
        if len(shape) not in (3, 4) or (
            len(shape) == 4 and not self.first and shape[3] not in (1, 2, 3, 4)
        ):
            raise InputError(
                f"{where}: images must have the shape (N, H, W) or (N, H, W, C) with C in 1..4; "
                f"got {shape}"
            )
        if not math.prod(shape):
            raise InputError(f"{where}: it holds no images")
        plane = shape[2:] if self.first else shape[1:3]
        self.height, self.width = int(plane[0]), int(plane[1])
        self.channels = 1 if len(shape) == 3 else int(shape[1] if self.first else shape[3])
        if self.height * self.width > MOST_PIXELS:
            raise InputError(f"{where}: images of more than {MOST_PIXELS:,} pixels are refused")
        wanted = self.channels if spec is None else spec.channels
        if self.channels != wanted and (self.channels, wanted) not in FITTING:
            raise InputError(
                f"{where}: images of {self.channels} channels for a teacher of {wanted} channels"
            )
        self.opaque = spec is None or self.channels in (1, 3) or wanted in (2, 4)
        self.shape = (self.channels, self.height, self.width) if spec is None else spec.shape

    def all(self, notes: list[Finding] | None) -> Tensor:
        """Every image of the stack."""
        count = self.stack.shape[0]
        affordable(self.where, count, self.shape)
        result = torch.empty((count, *self.shape), dtype=torch.uint8)
        levels, ground = Levels(0, 255, "bytes"), 255
        once = self.stack.kind == np.uint8 and self.opaque and not self.table.range
        extent = Extent()
        if not once:
            extent, ground = self._examined()
            levels = self._levels(extent)
        found = self._fill(result, levels, ground)
        if once:
            levels = self._levels(found)
            if not levels.plain:
                self._fill(result, levels, ground)
            extent = found
        if notes is not None:
            notes.extend(self._findings(extent, levels, ground, result))
        return result

    def _levels(self, extent: Extent) -> Levels:
        try:
            return levels_of(extent, self.table.range)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None

    def _pieces(self) -> Iterator[Values]:
        """Pieces [n, H, W, C]."""
        for piece in self.stack.pieces():
            if piece.dtype.kind == "b":
                piece = piece.view(np.uint8)
            if piece.ndim == 3:
                piece = piece[:, :, :, None]
            yield piece.transpose(0, 2, 3, 1) if self.first else piece

    def _examined(self) -> tuple[Extent, int]:
        """The extent of all values, and the ground that transparent images need."""
        extent, ink, cover = Extent(), 0.0, 0.0
        self.transparent = False
        for piece in self._pieces():
            colours = piece if self.opaque else piece[..., :-1]
            extent = extent.over(colours)
            if not self.opaque:
                weight = piece[..., -1].astype(np.float64)
                ink += float((weight * colours.mean(3)).sum())
                cover += float(weight.sum())
                full = 255 if piece.dtype == np.uint8 else weight.max(initial=0)
                self.transparent |= bool((weight < full).any())
        ground = {"white": 255, "black": 0}.get(self.table.background)
        if ground is None:
            middle = (extent.high if extent.high > 255 or extent.high <= 1 else 255) / 2
            ground = 0 if cover and ink / cover >= middle else 255
        return extent, ground

    def _fill(self, result: Tensor, levels: Levels, ground: int) -> Extent:
        """Turns all images; returns the extent of their values."""
        extent, done = Extent(), 0
        for piece in self._pieces():
            extent = extent.over(piece)
            array = to_bytes(piece, levels)
            if not self.opaque:
                flat = array.reshape(-1, array.shape[2], array.shape[3])
                alpha = flat[:, :, -1]
                plain = flat[:, :, 0] if self.channels == 2 else flat[:, :, :3]
                laid = laid_on(plain, alpha, ground)
                array = laid.reshape(*array.shape[:3], -1)
            pixels = torch.from_numpy(np.array(array.transpose(0, 3, 1, 2), order="C"))
            for part in torch.split(pixels, 1024):
                fit = part if self.spec is None else shaped(part, self.spec, self.table.resize)
                result[done : done + len(part)] = fit
                done += len(part)
        return extent

    def _findings(
        self, extent: Extent, levels: Levels, ground: int, result: Tensor
    ) -> list[Finding]:
        found = []
        if self.first:
            found.append(Finding("channels-first", f"{self.where}: read as (N, C, H, W)", ""))
        if self.stack.kind != np.uint8 or not levels.plain:
            found.append(
                Finding(
                    "value-range",
                    f"{self.where}: {self.stack.kind} values {extent.low:g}..{extent.high:g} were "
                    f"taken as {levels.said}",
                    "" if self.table.range else "if not so, give --data.range BLACK,WHITE",
                )
            )
        if not self.opaque and self.transparent:
            name, other = ("white", "black") if ground else ("black", "white")
            found.append(
                Finding(
                    "transparency",
                    f"{self.where}: partly transparent, on a {name} ground",
                    f"--data.background {other} for the other",
                )
            )
        if self.spec is None:
            return found
        if self.channels >= 3 and self.spec.channels == 1:
            found.append(Finding("to-grey", f"{self.where}: colour turned into grey", ""))
        if self.channels <= 2 and self.spec.channels >= 3:
            found.append(Finding("to-colour", f"{self.where}: grey copied into every colour", ""))
        if changed_aspect((self.height, self.width), (self.spec.height, self.spec.width)):
            said, remedy = told_aspect(self.table.resize)
            sizes = f"{self.width}x{self.height} to {self.spec.width}x{self.spec.height}"
            found.append(Finding("aspect", f"{self.where}: {said} ({sizes})", remedy))
        return found
