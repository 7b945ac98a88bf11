"""Nested state (dictionaries, lists, numbers, tensors) as one safetensors file: no pickle."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.files import write_atomic


def save_state(state: Any, path: Path, kind: str) -> None:
    """Writes a nested state atomically. `kind` says what it is; `load_state` asks for the same."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_taken_apart(state, tensors))
    skeleton = f"{_checksum(text, tensors):08x} {text}"
    # one entry only: safetensors writes several in an order that changes from call to call
    data = save(tensors, metadata={f"synthkd-{kind}": skeleton})
    write_atomic(path, data)


def load_state(path: Path, kind: str) -> Any:
    """The nested state of a file written by `save_state`, tensors on the CPU."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("not a plain file")
        with safe_open(str(path), framework="pt") as file:
            checksum, _, text = (file.metadata() or {})[f"synthkd-{kind}"].partition(" ")
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            if int(checksum, 16) != _checksum(text, tensors):
                raise ValueError("bits have changed")
            return _put_together(json.loads(text), tensors)
    # RuntimeError: a file that is replaced while it is read
    except (
        SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError, RuntimeError,
    ):  # fmt: skip
        raise InputError(f"{quoted(path)} is damaged or not a {kind} of synthkd") from None


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON in which a tensor is ["t", name], a dictionary ["d", pairs], a list ["l", items]."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["t", name]
    if isinstance(value, dict):
        return ["d", [[key, _taken_apart(item, tensors)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        return ["l", [_taken_apart(item, tensors) for item in value]]
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


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "t":
        return torch.empty_like(tensors[content]).copy_(tensors[content])
    if kind == "d":
        return {key: _put_together(item, tensors) for key, item in content}
    return [_put_together(item, tensors) for item in content]
