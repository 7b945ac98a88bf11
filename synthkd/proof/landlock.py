"""Landlock: the kernel's own list of the files that this process and its children may open.

System calls by number, without a dependency: https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from synthkd.core.errors import InputError, quoted

CREATE, ADD, RESTRICT = 444, 445, 446  # the same on every architecture
VERSION, BENEATH = 1, 1
EXECUTE, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_FOLDER, REMOVE = 1 << 4, 1 << 5
MAKE_FOLDER, MAKE, MAKE_LINK = 1 << 7, 1 << 8, 1 << 12
FIRST = (1 << 13) - 1  # all that the first version knows
REFER, TRUNCATE, DEVICE = 1 << 13, 1 << 14, 1 << 15  # of versions 2, 3 and 5
TCP = 0b11  # bind and connect, of version 4
SCOPES = 0b11  # abstract sockets and signals, of version 6
OF_FILES = EXECUTE | WRITE | READ | TRUNCATE | DEVICE  # rights that a file can have

READING = READ | LIST  # a folder and all below it
RUNNING = READING | EXECUTE  # and programs and libraries in it
WRITING = (
    READING | WRITE | REMOVE_FOLDER | REMOVE | MAKE_FOLDER | MAKE | MAKE_LINK | REFER | TRUNCATE
)
USING = READ | WRITE | DEVICE  # a device
TELLING = WRITE | DEVICE  # one that is written to alone

NO_NEW_PRIVILEGES = 38


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def libc() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def _called(number: int, *arguments: object) -> int:
    found: int = libc().syscall(ctypes.c_long(number), *arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def version() -> int:
    """The version of Landlock that the kernel offers; 0 where there is none, or it is off."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return _called(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION))
    except OSError:
        return 0


def handled(abi: int) -> int:
    """The rights to files that a version controls.

    >>> handled(1) == FIRST, handled(7) == (1 << 16) - 1
    (True, True)
    """
    extra = {REFER: 2, TRUNCATE: 3, DEVICE: 5}
    return FIRST | sum(right for right, since in extra.items() if abi >= since)


class Rules:
    """A list of allowed places in the making. Whatever is not added is refused, from `enforce` on:
    for this thread, those it starts, and their children, and for good."""

    def __init__(self, abi: int) -> None:
        self.abi = abi
        self.rights = handled(abi)
        made = _Ruleset(self.rights, TCP if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
        size = 8 if abi < 4 else 16 if abi < 6 else 24
        self._handle = _called(
            CREATE, ctypes.byref(made), ctypes.c_size_t(size), ctypes.c_uint32(0)
        )
        os.set_inheritable(self._handle, False)

    def add(self, path: str | Path, rights: int) -> None:
        """Allows a file, or a folder and all below it. Raises InputError where it is not there."""
        try:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"--sealed: {quoted(path)}: {error.strerror}") from None
        try:
            if not Path(path).is_dir():
                rights &= OF_FILES
            rule = _Beneath(rights & self.rights, parent)
            _called(
                ADD, ctypes.c_int(self._handle), ctypes.c_int(BENEATH), ctypes.byref(rule),
                ctypes.c_uint32(0),
            )  # fmt: skip
        finally:
            os.close(parent)

    def add_all(self, paths: Iterable[str | Path], rights: int) -> list[str]:
        """Allows those of the paths that are there; returns them."""
        found = [str(path) for path in paths if os.path.exists(path)]  # noqa: PTH110
        for path in found:
            self.add(path, rights)
        return found

    def enforce(self) -> None:
        """Enforces the list, and forbids programs that would have more rights than this one."""
        if libc().prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno() or errno.EPERM, "no_new_privs is refused")
        _called(RESTRICT, ctypes.c_int(self._handle), ctypes.c_uint32(0))

    def close(self) -> None:
        """Lets go of the list; what was enforced stays."""
        os.close(self._handle)
