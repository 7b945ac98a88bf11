"""Nested state (dictionaries, lists, numbers, tensors) as one safetensors file: no pickle."""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.filerows import FileRows, dense
from synthkd.core.files import write_atomic

PART = 1 << 27  # bytes of rows that are held at once beside those in their place


def packed(tensors: Mapping[str, Tensor], told: Mapping[str, str] | None = None) -> bytes:
    """Tensors, on whatever device and however they are laid out, as the bytes of a safetensors
    file, whose header has what is `told`."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(plain, metadata=dict(told) if told is not None else None))


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of tensors that never change, as the images of a replay memory: a row has a number that
    no other row of the same place in a state ever had or gets. They can be kept apart from the rest
    of a state, and written once."""

    numbers: Tensor  # [N] int64
    columns: Mapping[str, Tensor | FileRows]  # by name, each [N, ...]

    def take(self, index: Tensor) -> "Rows":
        """Those that an index or a mask chooses, in memory."""
        return Rows(self.numbers[index], {key: c[index] for key, c in self.columns.items()})

    @property
    def bytes(self) -> int:
        """Of one row, at least 1."""
        return max(1, sum(math.prod(c.shape[1:]) * c.dtype.itemsize for c in self.columns.values()))

    def parts(self, most: int = PART) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """All rows in parts of at most `most` bytes: the places of a part's rows among all, and
        their columns in memory."""
        count = max(1, most // self.bytes)
        for place in torch.split(torch.arange(len(self.numbers)), count):
            yield place, {key: column[place] for key, column in self.columns.items()}


Apart = Callable[[str, Rows], dict[str, Any]]  # place and rows to what stands for them in a state
Together = Callable[[dict[str, Any]], Any]  # and back


def copied(state: Any) -> Any:
    """A nested state whose tensors are copies on the CPU, which later steps do not change.

    >>> weights = {"w": [torch.zeros(1)], "steps": 3}
    >>> kept = copied(weights)
    >>> weights["w"][0] += 1
    >>> kept
    {'w': [tensor([0.])], 'steps': 3}
    """
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [copied(value) for value in state]
    return state


def save_state(state: Any, path: Path, kind: str, *, apart: Apart | None = None) -> int:
    """Writes a nested state atomically. `kind` says what it is; `load_state` asks for the same.

    Rows are written like the rest, unless `apart` takes them and gives what is written in their
    stead. Returns the checksum, CRC-32.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_taken_apart(state, tensors, "", apart))
    checksum = _checksum(text, tensors)
    # one entry only: safetensors writes several in an order that changes from call to call
    data = save(tensors, metadata={f"synthkd-{kind}": f"{checksum:08x} {text}"})
    write_atomic(path, data)
    return checksum


def load_state(
    path: Path, kind: str, *, checksum: int | None = None, together: Together | None = None
) -> Any:
    """The nested state of a file written by `save_state`, tensors on the CPU.

    `together` gives the rows back for what was written in their stead. Where a `checksum` is given
    the file must have this one. Raises InputError that names the file.
    """
    text, tensors = _read(path, kind, checksum)
    try:
        return _put_together(json.loads(text), tensors, together)
    except (KeyError, ValueError, TypeError, RecursionError, RuntimeError):
        raise _damaged(path, kind) from None


def check_state(path: Path, kind: str, checksum: int) -> None:
    """Raises InputError that names the file, unless it is whole and has this checksum."""
    _read(path, kind, checksum)


def _damaged(path: Path, kind: str) -> InputError:
    return InputError(f"{quoted(path)} is damaged or not a {kind} of synthkd")


def _read(path: Path, kind: str, checksum: int | None) -> tuple[str, dict[str, Tensor]]:
    """The text and the tensors of a file, which are as they were written."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("not a plain file")
        with safe_open(str(path), framework="pt") as file:
            written, _, text = (file.metadata() or {})[f"synthkd-{kind}"].partition(" ")
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            if int(written, 16) != _checksum(text, tensors):
                raise ValueError("bits have changed")
            if checksum is not None and int(written, 16) != checksum:
                raise ValueError("another file of this name")
            return text, tensors
    # RuntimeError: a file that is replaced while it is read
    except (
        SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError, RuntimeError,
    ):  # fmt: skip
        raise _damaged(path, kind) from None


def _taken_apart(value: Any, tensors: dict[str, Tensor], place: str, apart: Apart | None) -> Any:
    """JSON in which a tensor is ["t", name], a dictionary ["d", pairs], a list ["l", items], rows
    ["r", table], rows kept apart ["a", what stands for them]."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensor = dense(value)
        shared = tensor.untyped_storage().nbytes() != tensor.nbytes or any(
            tensor.data_ptr() == other.data_ptr() for other in tensors.values()
        )
        tensors[name] = tensor.clone() if shared else tensor  # safetensors takes no views
        return ["t", name]
    if isinstance(value, Rows):
        if apart is not None:
            return ["a", _taken_apart(apart(place, value), tensors, place, None)]
        columns = {key: column[:] for key, column in value.columns.items()}
        table = {"numbers": value.numbers, "columns": columns}
        return ["r", _taken_apart(table, tensors, place, None)]
    if isinstance(value, dict):
        pairs = value.items()
        return ["d", [[k, _taken_apart(v, tensors, f"{place}/{k}", apart)] for k, v in pairs]]
    if isinstance(value, list | tuple):
        items = enumerate(value)
        return ["l", [_taken_apart(v, tensors, f"{place}/{i}", apart) for i, v in items]]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state cannot hold a {type(value).__name__}")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of a text and of tensors: safetensors itself would not notice a flipped bit."""
    total = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _put_together(value: Any, tensors: Mapping[str, Tensor], together: Together | None) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "t":
        return torch.empty_like(tensors[content]).copy_(tensors[content])
    if kind == "d":
        return {key: _put_together(item, tensors, together) for key, item in content}
    if kind == "l":
        return [_put_together(item, tensors, together) for item in content]
    table = _put_together(content, tensors, None)
    if kind == "r":
        return Rows(table["numbers"], table["columns"])
    if together is None:
        raise ValueError("rows that are kept elsewhere")
    return together(table)
