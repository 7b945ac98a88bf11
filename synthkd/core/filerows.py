"""Rows of one shape and type in a file without a name: more of them than the memory should hold.

N rows.
"""

import tempfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from synthkd.core.errors import DiskError, quoted


class FileRows:
    """`capacity` rows of `shape`, read and written by their numbers, as of a tensor [N, *shape].

    They lie in a file of `folder` that has no name and is gone with this object, or with the
    process. It is read and written, not mapped: what the system keeps of it in its cache is given
    up when others need the memory, and does not count as this process's. A row that was never
    written is zeros. The file is made when the first row is written.

    >>> rows = FileRows(3, (2,), torch.uint8)
    >>> rows[torch.tensor([2, 0])] = torch.tensor([[5, 6], [7, 8]], dtype=torch.uint8)
    >>> rows[torch.tensor([0, 1])].tolist(), rows[1:].tolist(), rows.shape
    ([[7, 8], [0, 0]], [[0, 0], [5, 6]], (3, 2))
    """

    def __init__(
        self, capacity: int, shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None = None
    ) -> None:
        self.capacity, self.dtype, self.folder = capacity, dtype, folder
        self.row = torch.Size(shape)
        self.bytes = self.row.numel() * dtype.itemsize  # of a row
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return self.capacity

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape)."""
        return (self.capacity, *self.row)

    def first(self, count: int) -> "FileRows":
        """The first `count` rows: the same file."""
        found = FileRows(count, self.row, self.dtype, self.folder)
        found._file = self._opened()
        return found

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Copies of the rows that numbers [N], a mask or a slice choose."""
        numbers = self._numbers(index)
        found = torch.zeros((len(numbers), *self.row), dtype=self.dtype)
        if self._file is None or not found.numel():
            return found
        flat = _bytes_of(found)
        try:
            for place, number in enumerate(numbers):
                self._file.seek(number * self.bytes)
                read, end = place * self.bytes, (place + 1) * self.bytes
                while read < end and (count := self._file.readinto(flat[read:end])):  # type: ignore[attr-defined]
                    read += count
        except OSError as error:
            raise self._refused(error) from None
        return found

    def __setitem__(self, index: Tensor | slice, rows: Tensor) -> None:
        """Writes rows [N, *shape]. Raises DiskError where the disk does not take them."""
        numbers = self._numbers(index)
        if rows.shape != (len(numbers), *self.row) or rows.dtype != self.dtype:
            raise ValueError(f"{list(rows.shape)} {rows.dtype}: not {len(numbers)} rows of these")
        if not rows.numel():
            return
        file = self._opened()
        flat = _bytes_of(dense(rows))
        try:
            for place, number in enumerate(numbers):
                file.seek(number * self.bytes)
                written, end = place * self.bytes, (place + 1) * self.bytes
                while written < end:
                    written += file.write(flat[written:end])
        except OSError as error:
            raise self._refused(error) from None

    def _numbers(self, index: Tensor | slice) -> list[int]:
        """Of the rows that an index, a mask or a slice chooses."""
        if isinstance(index, slice):
            return list(range(*index.indices(self.capacity)))
        index = index.cpu()
        numbers = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.capacity:
            raise IndexError(f"rows {numbers.min()}..{numbers.max()} of {self.capacity}")
        return numbers.tolist()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            try:
                self._file = tempfile.TemporaryFile(buffering=0, dir=self.folder)  # noqa: SIM115
            except OSError as error:
                raise self._refused(error) from None
        assert self._file is not None
        return self._file

    def _refused(self, error: OSError) -> DiskError:
        where = quoted(self.folder or tempfile.gettempdir())
        said = error.strerror or quoted(error)
        return DiskError(f"{where}: a file for the images of the memory fails: {said}")


def dense(tensor: Tensor) -> Tensor:
    """A tensor on the CPU whose numbers lie one after the other; a copy where they do not. Of a
    single number the stride may be 0, which bytes cannot have."""
    tensor = tensor.detach().cpu().contiguous()
    odd = 0 in tensor.stride()
    return tensor.clone(memory_format=torch.contiguous_format) if odd else tensor


def _bytes_of(rows: Tensor) -> memoryview:
    """The bytes of contiguous rows in memory, to be read into or written from."""
    return memoryview(rows.view(len(rows), -1).view(torch.uint8).numpy().data).cast("B")
