"""Code of the user's: imported from what is installed, or run from a file that they trust."""

import ast
import hashlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import torch

from synthkd.core.errors import InputError, quoted
from synthkd.core.files import sha256_of

SOURCE_BYTES = 1 << 20  # of a file of Python, looked at for names
NONE: Mapping[str, Any] = {}
# what ends a process, or puts another in its place, without a word
_LEAVING = ("_exit", "abort", *sorted(name for name in dir(os) if name.startswith("exec")))


class _Left(BaseException):
    """Code of the user's tried to end the process."""


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Lets code of the user's run, and stays master of the process: whatever it raises is one
    InputError that begins with `what`, as is the attempt to end the process; what it changed for
    the whole process is put back: gradients, number type, threads, folder, standard streams, ….
    A Ctrl-C of the user's stays one."""
    state, pressed = _State(), False

    def press(_: int, __: FrameType | None) -> NoReturn:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()
    usual = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, press)
    try:
        with _staying():
            yield
    except MemoryError:
        raise
    except InputError as error:  # of ours, about what it gave
        if what.rpartition(" ")[2] in str(error):
            raise
        raise InputError(f"{what}: {error}") from None
    except _Left as error:
        raise InputError(f"{what}: it calls {error}, which would end this run") from None
    except BaseException as error:
        if pressed and isinstance(error, KeyboardInterrupt):
            raise
        try:
            said = " ".join(str(error).split())
        except BaseException:
            said = "its text cannot be read"
        raise InputError(f"{what}: {type(error).__name__}: {quoted(said, 200)}") from None
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        state.put_back()
    if torch.is_inference_mode_enabled() and not state.inference:
        raise InputError(f"{what}: it leaves torch.inference_mode() on")


@contextmanager
def _staying() -> Iterator[None]:
    """Functions that would end this process raise `_Left` instead; in a forked child they work."""
    owner, before = os.getpid(), {name: getattr(os, name) for name in _LEAVING}

    def instead(name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if os.getpid() == owner:
                raise _Left(f"os.{name}")
            return before[name](*given, **named)

        return call

    for name in _LEAVING:
        setattr(os, name, instead(name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(os, name, function)


class _State:
    """What belongs to the whole process, and is put back if it was changed."""

    def __init__(self) -> None:
        self.inference = torch.is_inference_mode_enabled()
        self.values = [read() for read, _ in _SHARED]
        self.streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        self.handles: dict[int, int] = {}
        for number in (1, 2):
            with suppress(OSError):
                self.handles[number] = os.dup(number)

    def put_back(self) -> None:
        """Compares, and puts back."""
        for (read, write), before in zip(_SHARED, self.values, strict=True):
            if before is not None and read() != before:
                write(before)
        for number, kept in self.handles.items():
            if not _alike(number, kept):
                os.dup2(kept, number)
            os.close(kept)
        for name, stream in self.streams.items():
            if stream is not None and stream.closed:
                number = 1 if name == "stdout" else 2
                stream = open(  # noqa: SIM115
                    number, "w", encoding=stream.encoding, errors=stream.errors, closefd=False
                )
            if getattr(sys, name) is not stream:
                setattr(sys, name, stream)


def _alike(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        return None


_SHARED: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
    (partial(torch.is_autocast_enabled, "cuda"), partial(torch.set_autocast_enabled, "cuda")),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (_folder, os.chdir),
)


def call_installed(spec: str, named: Mapping[str, Any], *, role: str) -> Any:
    """Calls `package.module:callable` of the installed environment with keyword arguments."""
    module_name, _, name = spec.partition(":")
    with foreign_code(f"--{role} {quoted(spec)}: cannot import {module_name}"):
        module = importlib.import_module(module_name)
    return _called(_attribute(module, name, spec), (), named, spec)


def module_of(spec: str) -> ModuleType | None:
    """The module that a `file.py:callable` or `package.module:callable` stands in, if it was
    run."""
    text = spec.rpartition(":")[0]
    return sys.modules.get(_module_name(Path(text)) if text.endswith(".py") else text)


def _module_name(path: Path) -> str:
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"synthkd_user_{path.stem}_{place}"


def executed(path: Path) -> ModuleType:
    """Runs the very text of a file as a module. No compiled copy beside it is read or written, and
    the module is known to Python as long as the process lives, which dataclasses and pickles
    want."""
    text = path.read_bytes()
    module = ModuleType(_module_name(path))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def callables_in(path: Path) -> list[str]:
    """The functions and classes at the top of a file of Python, by its text: nothing is run."""
    try:
        text = path.read_bytes()[:SOURCE_BYTES].decode(errors="replace")
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]


def call_from_file(
    spec: str, arguments: tuple[Any, ...], *, trust_code: bool, what: str,
    named: Mapping[str, Any] = NONE,
) -> Any:  # fmt: skip
    """Calls `callable` of a `file.py:callable` spec; refuses unless the user trusts the code."""
    text, _, name = spec.rpartition(":")
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{what} {quoted(spec)}: there is no file {quoted(path)}")
    if not trust_code:
        raise InputError(
            f"{what} {quoted(spec)} would run the code in {quoted(path)} "
            f"(sha256 {sha256_of(path)[:16]}…): read it, then give --trust-code"
        )
    with foreign_code(f"{what} {quoted(spec)}"):
        module = executed(path)
    return _called(_attribute(module, name, spec), arguments, named, spec)


def load_plugins(paths: Sequence[str], *, trust_code: bool) -> dict[str, str]:
    """Runs Python files that add parts of the user's own to the package's tables of losses,
    generators, synthesis terms and controllers; each once in a process as long as it stays the
    same. Gives the SHA-256 of each by its path. Raises InputError where one is not there, fails, or
    is not trusted."""
    found = {}
    for text in paths:
        path = Path(text)
        if not path.is_file():
            raise InputError(f"run.plugins {quoted(text)}: there is no such file")
        found[text] = digest = sha256_of(path)
        if not trust_code:
            raise InputError(
                f"run.plugins: this would run the code in {quoted(text)} (sha256 {digest[:16]}…): "
                "read it, then give --trust-code"
            )
        with foreign_code(f"run.plugins {quoted(text)}"):
            _added(path.resolve(), digest)
    return found


@cache
def _added(path: Path, _: str) -> None:
    executed(path)


def literal(text: str) -> Any:
    """What a value on the command line means: a number, true, false, null, or itself.

    >>> [literal(text) for text in ("8", "0.5", "true", "basic")]
    [8, 0.5, True, 'basic']
    """
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, bool | int | float | str | None) else text


def _attribute(module: Any, name: str, spec: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"{quoted(spec)}: there is no callable {quoted(name)} in it")
    return found  # type: ignore[no-any-return]


def _called(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any], spec: str
) -> Any:
    with foreign_code(quoted(spec)):
        return function(*arguments, **named)
