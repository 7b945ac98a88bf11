"""Files written at once or not at all; untrusted files read without waiting and without end."""

import errno
import fcntl
import hashlib
import json
import os
import re
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from synthkd.core.errors import DiskError, InputError, quoted

JSON_BYTES = 4 << 20
MOST_FOLDERS = 64  # inside one another, in a folder of ours
PATIENCE = 5.0  # seconds that a pipe is waited for

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")

# never wait for who writes into a pipe, never follow a link
_AT_ONCE = os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


def write_atomic(path: Path, data: bytes | str, *, sync: bool = True) -> None:
    """Replaces `path` by `data`: a reader, or a crash, sees the old file or the new one, never a
    part; what fails leaves nothing behind. A link at `path` is replaced, not followed.

    `sync` waits until the bytes and the name are on the disk. Raises OSError that names `path`.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with created(temporary) as file:
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if sync:
            sync_folder(path.parent)


def created(path: Path) -> BinaryIO:
    """A new file, open for writing; what is there under its name goes first, and is not followed
    if it is a link."""
    with suppress(FileNotFoundError):
        path.unlink()
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666), "wb")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, which is made where there is none. What is no plain file, or has
    another name elsewhere, is left alone. Raises OSError that names `path`; a line that did not
    find room is taken back."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINK | _AT_ONCE
    with naming(path):
        handle = os.open(path, flags, 0o666)
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode) or before.st_nlink > 1:
                raise OSError(errno.EINVAL, "not a plain file of its own", str(path))
            content = (line + "\n").encode()
            try:
                while content:
                    content = content[os.write(handle, content) :]
            except OSError:
                os.ftruncate(handle, before.st_size)
                raise
        finally:
            os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that leaves the `with` tells of `path`, whatever name or none it had."""
    try:
        yield
    except OSError as error:
        error.strerror = error.strerror or str(error)  # before it has a name
        error.filename = str(path)
        del error.filename2
        raise


def read_bytes(path: Path, most: int, *, pipes: bool = False) -> bytes:
    """A file's bytes, if there are at most `most`. Nothing is waited for: what is no plain file is
    refused; with `pipes` (for what the user named, as `<(command)`) pipes and devices are read if
    they answer within PATIENCE. Raises OSError that says what is wrong."""
    kind = path.stat().st_mode  # links are followed
    if not stat.S_ISREG(kind) and not (pipes and (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind))):
        raise OSError(errno.EINVAL, f"{_kind(kind)}, not a plain file", str(path))
    handle = os.open(path, os.O_RDONLY | _AT_ONCE)
    try:
        kind = os.fstat(handle).st_mode
        waits = not stat.S_ISREG(kind)
        if waits and not pipes:
            raise OSError(errno.EINVAL, f"{_kind(kind)}, not a plain file", str(path))
        parts, size, end = [], 0, time.monotonic() + PATIENCE
        while size <= most:
            if waits and not _answers(handle, end - time.monotonic()):
                raise OSError(errno.ETIMEDOUT, "nothing was written into this pipe", str(path))
            part = os.read(handle, min(1 << 20, most + 1 - size))
            if not part:
                break
            parts.append(part)
            size += len(part)
    finally:
        os.close(handle)
    if size > most:
        raise OSError(errno.EFBIG, f"too large: more than {most:,} bytes", str(path))
    return b"".join(parts)


def _answers(handle: int, seconds: float) -> bool:
    """Whether a pipe or device has something to read, or its end, within so many seconds."""
    poll = select.poll()
    poll.register(handle, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(max(0.0, 1000 * seconds)))


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    ):  # fmt: skip
        if test(mode):
            return name
    return "something else"


def plain_tree(folder: Path, where: str, *, links: bool = False) -> None:
    """Refuses a folder in which lies anything but plain files and folders, before one of them is
    opened or written: a link would lead outside, a pipe would be waited for. With `links`, for
    folders that are only read, a link to a plain file or folder will do (and is not followed
    further). The folder itself may be a link: the user named it.

    Raises InputError that begins with `where`.
    """
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        try:
            entries = os.scandir(place)
        except OSError as error:
            raise InputError(f"{where}: {quoted(place)}: {error.strerror}") from None
        with entries:
            for entry in entries:
                path = Path(entry.path)
                inside = quoted(path.relative_to(folder))
                try:
                    kind = entry.stat(follow_symlinks=False).st_mode
                    if links and stat.S_ISLNK(kind):
                        kind = entry.stat().st_mode
                        if stat.S_ISDIR(kind):
                            continue
                except FileNotFoundError:  # it has gone meanwhile, or is a link to nowhere
                    continue
                except OSError as error:
                    raise InputError(f"{where}: {inside}: {error.strerror}") from None
                if stat.S_ISDIR(kind):
                    if depth == MOST_FOLDERS:
                        raise InputError(f"{where}: {inside}: folders nested too deeply")
                    waiting.append((path, depth + 1))
                elif stat.S_ISLNK(kind):
                    raise InputError(
                        f"{where}: {inside} in it is a link, which could lead outside: "
                        "put in its place what it points to"
                    )
                elif not stat.S_ISREG(kind):
                    raise InputError(
                        f"{where}: {inside} in it is {_kind(kind)}, not a plain file: remove it"
                    )


def exists(path: Path) -> bool:
    """Whether something is there; a name that nothing can have is no error."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_plain(path: Path) -> bool:
    """Whether this is a plain file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Removes what `write_atomic` left in a folder when its process was killed; for whoever holds
    the folder's lock."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and is_plain(path):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def claim(path: Path, *, resumable: bool = False, bare: bool = False) -> None:
    """Makes a directory, or takes an empty one; anything else is refused: one that is `resumable`
    may be gone on with. `bare` refuses the names too that a file system over the network shows."""
    if exists(path) and not path.is_dir():
        raise InputError(f"--out {quoted(path)}: this is a file, not a directory")
    # of an open file that has no name any more a file system over the network shows one
    ours = (".nfs", ".fuse_hidden")
    if exists(path) and any(bare or not p.name.startswith(ours) for p in path.iterdir()):
        raise InputError(
            f"--out {quoted(path)}: this directory is not empty; choose another"
            + (", or --resume it" if resumable else "")
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {quoted(path)}: {error.strerror}") from None


@contextmanager
def disk(out: Path) -> Iterator[None]:
    """Turns what the disk refuses into one line for the user."""
    try:
        yield
    except OSError as error:
        said = error.strerror or quoted(error)
        raise DiskError(f"{quoted(error.filename or out)}: cannot be written: {said}") from None


def free_name(base: Path) -> Path:
    """`base`, or `base-2`, `base-3`, …: the first that does not exist.

    >>> free_name(Path("no-such-run")).name
    'no-such-run'
    """
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


@contextmanager
def alone(path: Path, complaint: str) -> Iterator[int]:
    """Holds the lock of a file or folder, and gives the handle, with which it can be handed on to a
    child. Where another process holds it: an InputError of `complaint`."""
    with locked(path) as handle:
        if handle is None:
            raise InputError(complaint)
        yield handle


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Holds the lock of a file or folder if nobody else does, and gives the handle, else None."""
    # a network's file system locks files only for those who may write in them
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    taken = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = False
        except OSError:  # a file system without locks
            pass
        yield handle if taken else None
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Plain data as indented JSON, atomically; NaN and infinity become null."""
    write_atomic(path, json_text(data))


def json_text(data: Any) -> str:
    """Plain data as indented JSON; NaN and infinity become null.

    >>> json_text({"loss": float("nan")})
    '{\\n  "loss": null\\n}\\n'
    """
    return json.dumps(finite(data), indent=2, ensure_ascii=False) + "\n"


def read_table(path: Path, where: str) -> dict[str, Any]:
    """A JSON object out of an untrusted file of at most JSON_BYTES; what is wrong with it is
    one InputError that begins with `where`."""
    try:
        data = json.loads(read_bytes(path, JSON_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{where}: {path.name} is missing") from None
    except OSError as error:
        raise InputError(f"{where}: {path.name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where}: {path.name} cannot be read as JSON") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: {path.name} is not a table")
    return data


def finite(data: Any) -> Any:
    """Plain data with None in the place of NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
