"""What an untrusted file may ask for, judged before a network is built from it.

A configuration is a few bytes that may name a network of any size; its weights are as large as they
are. So a network may have at most GROWTH times the numbers and tensors of its file, and some more.
"""

import contextlib
import io
import math
import stat
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from synthkd.core.errors import InputError, quoted

GROWTH = 2
MORE_NUMBERS = 16 << 20  # e.g. of a head for other classes
MORE_TENSORS = 1000
MOST_IN_JSON = 1 << 20  # any whole number in a configuration
MOST_IN_ARGUMENTS = 1 << 16  # one that a network is called with
MOST_LISTED = 1000  # numbers in a list
MOST_ENTRIES = 200_000


def check_numbers(data: Any, where: str, *, most: int = MOST_IN_JSON) -> None:
    """Refuses a configuration with numbers that no network has."""
    waiting: list[tuple[str, Any]] = [("", data)]
    seen = 0
    while waiting:
        name, value = waiting.pop()
        seen += 1
        if seen > MOST_ENTRIES:
            raise InputError(f"{where}: more settings than a network has")
        if isinstance(value, Mapping):
            waiting += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            if sum(isinstance(v, int | float) for v in value) > MOST_LISTED:
                raise InputError(f"{where}: {quoted(name)} lists {len(value):,} numbers")
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, int | float) and not abs(value) <= _most(name, most):  # nor NaN
            told = f"{value:.3g}" if isinstance(value, float) else str(value)[:20]
            raise InputError(f"{where}: {quoted(name)} is {told}: no network has that")


def _most(name: str, most: int) -> int:
    """A library makes up a name for every class, however many."""
    return min(most, MOST_IN_ARGUMENTS) if name in ("num_labels", "num_classes") else most


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops at a tensor of more numbers than are allowed, be it an intermediate one."""

    def __init__(self, most: int, where: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.where = most, where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor) and value.numel() > self.most:
                raise InputError(f"{self.where}: {_larger(value.numel())}")
        return found


def _larger(count: int) -> str:
    return (
        f"its settings ask for a network far larger than its weights ({count:,} numbers and more)"
    )


@contextlib.contextmanager
def within(numbers: int, tensors: int, where: str) -> Iterator[int]:
    """While this lasts, networks of at most so many numbers and tensors (times GROWTH, and some
    more) can be built; larger ones stop at the first layer too many. Gives the limit."""
    most, number = GROWTH * numbers + MORE_NUMBERS, GROWTH * tensors + MORE_TENSORS
    count = [0, 0]

    def note(_: nn.Module, __: str, value: Tensor | None) -> None:
        if value is None:
            return
        count[0] += value.numel()
        count[1] += 1
        if count[0] > most or count[1] > number:
            raise InputError(f"{where}: {_larger(count[0])}")

    watched: Any = torch.nn.modules.module
    handles = [
        watched.register_module_parameter_registration_hook(note),
        watched.register_module_buffer_registration_hook(note),
    ]
    try:
        yield most
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def on_paper(most: int, where: str) -> Iterator[None]:
    """While this lasts, tensors have shapes and no numbers, and none may be larger than `most`."""
    with torch.device("meta"), _Sizes(most, where):
        yield


def size_of(paths: list[Path], where: str) -> tuple[int, int]:
    """Numbers and tensors in safetensors files, by their headers."""
    numbers = tensors = 0
    for path in paths:
        try:
            with safe_open(str(path), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - it is no dictionary
                    numbers += math.prod(file.get_slice(key).get_shape())
                    tensors += 1
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{where}: {quoted(path.name)} is not a readable safetensors file: {quoted(error)}"
            ) from None
    return numbers, tensors


def check_folder(folder: Path, where: str) -> None:
    """Refuses a folder of a model that holds anything but files and folders: pipes, which block
    whoever opens them, and links that leave it. Only those of Hugging Face's own cache, to its
    store of the same model, may."""
    if not folder.is_dir():
        return
    root = folder.resolve()
    store = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for path in folder.iterdir():
        inside = path.resolve()
        if path.is_symlink() and root not in inside.parents and store not in inside.parents:
            raise InputError(f"{where}: {quoted(path.name)} is a link that leaves the folder")
        try:
            kind = path.stat().st_mode
        except OSError:
            raise InputError(f"{where}: {quoted(path.name)} cannot be read") from None
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise InputError(f"{where}: {quoted(path.name)} is a pipe or a device, not a file")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """While this lasts, libraries show neither bars nor tables nor warnings; errors are raised, not
    told."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
