"""Files written at once or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthkd.errors import InputError

JSON_BYTES = 4 << 20


def write_atomic(path: Path, data: bytes | str, *, sync: bool = True) -> None:
    """Replaces `path` by `data`: a reader, or a crash, sees the old file or the new one, never a
    part.

    `sync` waits until the bytes and the name are on the disk.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk (does nothing where that is not
    possible)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(path: Path, complaint: str) -> Iterator[int]:
    """Holds the lock of a file or folder, and gives the handle, with which it can be handed on to a
    child. Where another process holds it: an InputError of `complaint`. Where the system has no
    such locks nothing is held."""
    if os.name != "posix":
        yield -1
        return
    import fcntl

    # a network's file system locks files only for those who may write in them
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(complaint) from None
        except OSError:  # a file system without locks
            pass
        yield handle
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Plain data as indented JSON, atomically; NaN and infinity become null."""
    write_atomic(path, json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n")


def read_table(path: Path, where: str) -> dict[str, Any]:
    """A JSON object out of a file of a stranger's, of which at most JSON_BYTES are read; what is
    wrong with it is one InputError that begins with `where`."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(JSON_BYTES))
    except FileNotFoundError:
        raise InputError(f"{where}: {path.name} is missing") from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{where}: {path.name} cannot be read as JSON") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: {path.name} is not a table")
    return data


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
