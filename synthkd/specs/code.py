"""Code of the user's: imported from what is installed, or run from a file that they trust."""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from synthkd.errors import InputError, quoted
from synthkd.files import sha256_of

NONE: Mapping[str, Any] = {}


def call_installed(spec: str, named: Mapping[str, Any], *, role: str) -> Any:
    """Calls `package.module:callable` of the installed environment with keyword arguments."""
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--{role} {quoted(spec)}: cannot import {module_name}: {quoted(error)}"
        ) from None
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
    try:
        module = executed(path)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what} {quoted(spec)}: {type(error).__name__}: {quoted(error)}"
        ) from None
    return _called(_attribute(module, name, spec), arguments, named, spec)


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
    try:
        return function(*arguments, **named)
    except (Exception, SystemExit) as error:
        raise InputError(f"{quoted(spec)}: {type(error).__name__}: {quoted(error)}") from None
