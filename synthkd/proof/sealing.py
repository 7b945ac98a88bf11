"""A run that the kernel keeps from opening anything but what its recipe names (Linux).

A launcher, which runs no code of a teacher's, lists what may be opened, starts the command anew in
a process of its own, and there gives the list to the kernel before Python itself begins: Landlock
for files (`proof.landlock`), seccomp for system calls (`proof.seccomp`). What it listed goes into
the manifest; when the process has ended, the launcher looks whether it still stands there.
"""

import ctypes
import fcntl
import glob
import hashlib
import json
import os
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import synthkd
from synthkd.core import files
from synthkd.core.errors import InputError
from synthkd.proof import landlock, seccomp
from synthkd.proof.declared import Place
from synthkd.proof.places import (
    CODE,
    DEVICES,
    GPU,
    LIBRARIES,
    TABLES,
    TERMINAL,
    distributions,
    inside,
    interpreter_places,
    package_places,
)

MARK = "SYNTHKD_SEALED"  # in the environment of a sealed process: its record stands in its input
KERNEL = (
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory",
    "/proc/driver/nvidia", "/sys/devices", "/sys/bus/pci",
)  # fmt: skip
# what a process gets of the environment: the rest could carry anything
NAMES = ("PATH", "TERM", "COLUMNS", "LINES", "TZ", "NO_COLOR", "FORCE_COLOR", "LD_LIBRARY_PATH")
PREFIXES = ("LC_", "LANG", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "TORCH_", "PYTORCH_")
MOST_VALUE = 1024  # characters of a variable
MOST_RECORD = 64 << 20
PARENT_DIES, TERMINATE = 1, signal.SIGTERM

Record = dict[str, Any]  # plain data: what was allowed


def check_possible(online: str = "") -> int:
    """The version of Landlock here. Raises InputError where a run cannot be sealed: on another
    system, under an old kernel, or where a setting needs a network (`online` names it)."""
    abi = landlock.version()
    if not abi:
        raise InputError(
            "--sealed: this system has no Landlock (Linux from 5.13 on, where it is switched on): "
            "run without --sealed"
        )
    seccomp.machine()
    if online:
        raise InputError(
            f"--sealed: {online} needs a network, and a sealed run has none: fetch the file first, "
            "and name it"
        )
    return abi


def prepared(
    places: Sequence[Place], out: Path | None, temporary: Path, canary: Path
) -> tuple[landlock.Rules, Record]:
    """The list for the kernel, and the same as plain data: Python, its packages and libraries may
    be read and run, `places` read, the run directory `out` and a `temporary` one written. `canary`
    is a file that is not allowed, by which a sealed process sees that it is one."""
    abi = check_possible()
    rules = landlock.Rules(abi)
    root = str(Path(synthkd.__file__).resolve().parent.parent)
    own = [path for path in package_places() if path not in interpreter_places()]
    if own:  # a checkout: names beside the package are read when it is imported
        rules.add(root, landlock.LIST)
    listed = [place for place in places if place.listed]
    for place in listed:
        rules.add(place.path, landlock.LIST)
    named = [place for place in places if not place.listed]
    for place in named:
        rules.add(place.path, landlock.READING)
    written = [str(path.resolve()) for path in (out, temporary) if path is not None]
    for path in written:
        rules.add(path, landlock.WRITING)
    record = {
        "abi": abi,
        "machine": seccomp.machine(),
        "refused_calls": sorted((*seccomp.CALLS, *seccomp.ATTRIBUTES)),
        "network": "none: socket() is refused",
        "python": sys.version.split()[0],
        "packages": distributions(),
        "run": rules.add_all((*interpreter_places(), *LIBRARIES), landlock.RUNNING),
        "package": rules.add_all(own, landlock.READING),
        "system": rules.add_all((*TABLES, *KERNEL), landlock.READING),
        "devices": [
            *rules.add_all((*DEVICES, *sorted(glob.glob(f"{GPU}*"))), landlock.USING),  # noqa: PTH207
            *rules.add_all((TERMINAL,), landlock.TELLING),
        ],
        "read": [_fingerprint(place) for place in named],
        "names": [*([root] if own else []), *(str(place.path) for place in listed)],
        "write": written,
        "canary": str(canary),
        "environment": environment(temporary, listed),
    }
    return rules, json.loads(json.dumps(record))


def _fingerprint(place: Place) -> dict[str, Any]:
    """A place with the size and hash of its file; of a folder, with the number of its files."""
    found: dict[str, Any] = {"path": str(place.path), "real": place.real, "role": place.role}
    if place.tree and place.path.is_dir():
        found["files"] = sum(len(names) for _, _, names in os.walk(place.path))
        return found | ({"sha256_of_files": _of_tree(place.path)} if place.role in CODE else {})
    return found | {"bytes": place.path.stat().st_size, "sha256": files.sha256_of(place.path)}


def _of_tree(folder: Path) -> str:
    """The SHA-256 of the names and contents of all files below a folder, in the order of names."""
    digest = hashlib.sha256()
    for path in sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names):
        known = files.sha256_of(path) if path.is_file() else os.path.realpath(path)
        digest.update(f"{path.relative_to(folder)}\0{known}\n".encode())
    return digest.hexdigest()


def unchanged(record: Record) -> list[str]:
    """The paths of those files that are no longer what a record says of them."""
    changed = []
    for entry in record["read"]:
        key = next((k for k in ("sha256", "sha256_of_files") if k in entry), "")
        if not key:
            continue
        taken = files.sha256_of if key == "sha256" else _of_tree
        try:
            same = taken(Path(entry["path"])) == entry[key]
        except OSError:
            same = False
        if not same:
            changed.append(entry["path"])
    return changed


def environment(temporary: Path, listed: Sequence[Place] = ()) -> dict[str, str]:
    """The variables of a sealed process. Home and cache lie in its temporary folder; synthkd is
    found where this process found it."""
    kept = {
        name: value for name, value in os.environ.items()
        if (name in NAMES or name.startswith(PREFIXES)) and len(value) <= MOST_VALUE
    }  # fmt: skip
    root = str(Path(synthkd.__file__).resolve().parent.parent)
    looked = [] if any(inside(root, place) for place in interpreter_places()) else [root]
    looked += [str(place.path) for place in listed if str(place.path) in sys.path]
    home = str(temporary)
    return kept | {
        "HOME": home, "TMPDIR": home, "USER": "sealed", "LOGNAME": "sealed",
        "PYTHONPATH": os.pathsep.join(looked), "PYTHONDONTWRITEBYTECODE": "1",
        "JOBLIB_MULTIPROCESSING": "0", MARK: "1",
    }  # fmt: skip


def confine(rules: landlock.Rules, filter_: bytes) -> None:
    """What a new process does before it becomes the sealed command: gives both lists to the kernel.
    It ends when its launcher does."""
    landlock.libc().prctl(PARENT_DIES, ctypes.c_ulong(TERMINATE), 0, 0, 0)
    for number in (1, 2):
        _write_only(number)
    rules.add("/proc/self", landlock.READING)  # by its own number, which it keeps
    rules.enforce()
    seccomp.enforce(filter_)


def check_streams() -> None:
    """Raises InputError where a standard stream is a socket, which can always be read."""
    for number, name in ((1, "output"), (2, "error output")):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                raise InputError(
                    f"--sealed: the standard {name} is a socket, from which a run could read: "
                    "write into a pipe or a file (| cat)"
                )


def _write_only(number: int) -> None:
    """Takes away that a standard stream which goes into a file, a terminal or a pipe could be
    read."""
    with suppress(OSError):
        readable = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
        if readable and not stat.S_ISSOCK(os.fstat(number).st_mode):
            again = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
            os.dup2(again, number)
            os.close(again)


def is_within() -> bool:
    """Whether this process was started as a sealed one."""
    return MARK in os.environ


def take_up() -> Record:
    """In a sealed process: its record, from the standard input, which is empty afterwards. Raises
    InputError where the kernel does not refuse what it should."""
    del os.environ[MARK]
    try:
        record = json.loads(sys.stdin.buffer.read(MOST_RECORD))
        canary = record["canary"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--sealed: {MARK} is set by synthkd alone: unset it") from None
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    held = {
        "a file elsewhere": not _opens(canary),
        "a socket": not _connects(),
        "the kernel's word": seccomp.is_enforced(),
    }
    if not all(held.values()):
        failed = ", ".join(name for name, holds in held.items() if not holds)
        raise InputError(f"--sealed: the seal does not hold ({failed}): run without --sealed")
    return dict(record) | {"confirmed": sorted(held)}


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return False
    except OSError:
        return True  # it is not there to be refused
    return True


def _connects() -> bool:
    import socket

    try:
        socket.socket().close()
    except PermissionError:
        return False
    return True


def without_confirmation(record: Mapping[str, Any]) -> Record:
    """A record as its launcher wrote it."""
    return {key: value for key, value in record.items() if key != "confirmed"}
