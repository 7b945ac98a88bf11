"""What a process opened, as Python's audit hook tells it (`sys.addaudithook`): files, folders that
were listed, sockets, children, libraries.

An audit hook sees what Python code does. It does not see C code that opens files by itself, and
code in the same process can deceive it: the kernel's limits (`proof.sealing`) are for that. At the
end the files that are mapped into memory are read from the kernel too, where it tells (Linux).
"""

import functools
import os
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthkd.core.errors import quoted
from synthkd.core.files import sha256_of
from synthkd.core.findings import Finding
from synthkd.proof.declared import VALIDATION, Place, holder
from synthkd.proof.hashes import OURS
from synthkd.proof.places import (
    CODE,
    DATA,
    DEVICES,
    KERNEL,
    LIBRARIES,
    TABLES,
    TERMINAL,
    inside,
    package_places,
)

BEFORE, AFTER = "before the student was chosen", "after the student was chosen"
BESIDE = "with the validation data"  # what code that reads these opened: it changes no student
MOST = 200_000  # paths that are kept
LISTED = 1_000  # files of one role that are named one by one
HASHED = 1 << 30  # bytes: larger files are told without a hash

CHILDREN = {
    "subprocess.Popen": 0, "os.system": 0, "os.exec": 0, "os.posix_spawn": 0, "os.spawn": 1,
    "pty.spawn": 0, "os.startfile": 0, "os.fork": None, "os.forkpty": None,
}  # fmt: skip
SOCKETS = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
    "socket.bind", "socket.sendto", "socket.sendmsg",
)  # fmt: skip
FOLDERS = ("os.listdir", "os.scandir")
MOVES = ("os.rename", "os.link", "os.symlink")
EVENTS = frozenset({
    "open", "mmap.__new__", "ctypes.dlopen", "import", "sqlite3.connect", *CHILDREN, *SOCKETS,
    *FOLDERS, *MOVES,
})  # fmt: skip


@dataclass
class Touched:
    """How one path was touched."""

    when: str  # first: before or after the student was chosen
    read: bool = False
    written: bool = False
    made: bool = False  # it was not there before it was written


class Recording:
    """What this process opens from now on, until `stop`. Any number may run at once."""

    def __init__(self) -> None:
        self.when = BEFORE
        self.files: dict[str, Touched] = {}  # by path, links followed
        self.folders: dict[str, str] = {}  # path -> when
        self.sockets: dict[str, str] = {}
        self.children: dict[str, str] = {}
        self.libraries: dict[str, str] = {}
        self.missed = 0  # events that were not understood, or found no room
        self.unlisted = 0  # folders whose names were read, and that found no room
        self._known: set[tuple[str, bool, bool]] = set()
        _install()
        _ACTIVE.add(self)

    def chosen(self) -> None:
        """From now on what is opened comes after the student was chosen."""
        self.when = AFTER

    def stop(self) -> None:
        """Ends it."""
        _ACTIVE.discard(self)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Keeps one event; whatever is wrong with it must not disturb what is watched."""
        try:
            if event == "open":
                reads, writes = _use(arguments[1], arguments[2])
                self._open(arguments[0], reads, writes)
                if arguments[1] is None:  # os.open, which may begin at an open folder
                    for path in _below_open_folders(arguments[0]):
                        self._open(path, reads, writes)
            elif event == "mmap.__new__":
                if arguments[0] != -1:
                    self._open(arguments[0], True, False)
            elif event == "import":
                if arguments[1]:
                    self._open(arguments[1], True, False)
            elif event == "sqlite3.connect":
                self._open(arguments[0], True, True)
            elif event in FOLDERS:
                self._folder(_real(arguments[0] if arguments[0] is not None else "."))
            elif event in MOVES:
                self._open(arguments[0], True, False)
            elif event in SOCKETS:
                self._keep(self.sockets, f"{event} {_shown(arguments[-1])}")
            elif event == "ctypes.dlopen":
                if arguments[0] is not None:
                    self._keep(self.libraries, _text(arguments[0]))
            elif not _is_pythons(event, arguments):
                place = CHILDREN[event]
                program = "" if place is None else f" {_shown(arguments[place])}"
                self._keep(self.children, f"{event}{program}")
        except Exception:  # whatever a program passes to open
            self.missed += 1

    def _keep(self, table: dict[str, str], what: str) -> None:
        if len(table) < LISTED:
            table.setdefault(what, self.when)
        elif what not in table:
            self.missed += 1

    def _folder(self, path: str) -> None:
        if path in self.folders or len(self.folders) < LISTED:
            self.folders.setdefault(path, self.when)
        else:
            self.unlisted += 1

    def _open(self, path: Any, read: bool, written: bool) -> None:
        text = f"/proc/self/fd/{path}" if isinstance(path, int) else _text(path)
        if (text, read, written) in self._known:
            return
        if text.startswith("/") and not isinstance(path, int):
            self._known.add((text, read, written))
        real = _real(text)
        there = os.path.exists(real)  # noqa: PTH110
        if not real.startswith("/") or not (there or written):
            return
        if os.path.isdir(real):  # noqa: PTH112
            self._folder(real)
            return
        if real not in self.files and len(self.files) >= MOST:
            self.missed += 1
            return
        found = self.files.setdefault(real, Touched(self.when, made=not there))
        found.read |= read and there
        found.written |= written


_ACTIVE: "weakref.WeakSet[Recording]" = weakref.WeakSet()
_busy = threading.local()
_installed = False


def _install() -> None:
    """An audit hook cannot be taken away, so there is one, which does nothing where nobody
    records."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS and _ACTIVE and not getattr(_busy, "within", False):
        _busy.within = True
        try:
            for recording in tuple(_ACTIVE):
                recording.note(event, arguments)
        finally:
            _busy.within = False


def _is_pythons(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a child is one that Python's own library starts to ask the system about itself."""
    if event != "subprocess.Popen" or arguments[2] is not None:
        return False
    return tuple(arguments[1]) in (("uname", "-p"), ("/sbin/ldconfig", "-p"))


def _use(mode: Any, flags: Any) -> tuple[bool, bool]:
    """Whether a file is opened so that what is in it can be read, and so that it can be written."""
    if isinstance(flags, int):
        way = flags & os.O_ACCMODE
        return way != os.O_WRONLY and not flags & os.O_TRUNC, way != os.O_RDONLY
    letters = set(mode) if isinstance(mode, str) else {"r"}
    written = not {"w", "a", "x", "+"}.isdisjoint(letters)
    return "r" in letters or ("a" in letters and "+" in letters), written


def _below_open_folders(path: Any) -> list[str]:
    """The files that a relative path may mean where it begins at an open folder (`dir_fd`), which
    no event tells of."""
    if isinstance(path, int) or (text := _text(path)).startswith("/"):
        return []
    found = []
    with suppress(OSError):
        for handle in os.listdir("/proc/self/fd"):  # noqa: PTH208
            folder = os.path.realpath(f"/proc/self/fd/{handle}")
            if folder.startswith("/") and os.path.exists(place := f"{folder}/{text}"):  # noqa: PTH110
                found.append(place)
    return found


def _text(path: Any) -> str:
    return os.fsdecode(os.fspath(path))


def _real(path: Any) -> str:
    """A path, or the number of an open file, as an absolute path with links followed."""
    return os.path.realpath(f"/proc/self/fd/{path}" if isinstance(path, int) else _text(path))


def _shown(value: Any) -> str:
    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    return text[:200]


def mapped() -> list[str]:
    """The files that are mapped into this process, as the kernel tells (Linux); else none."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = (line.split(maxsplit=5)[5] for line in lines if line.count("/"))
    return sorted({path.removesuffix(" (deleted)") for path in found if path.startswith("/")})


# --- what was opened, judged


@dataclass
class Opened:
    """What a recording comes to, as plain data for a manifest, and what speaks against it."""

    data: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)


def judged(
    recording: Recording, places: Sequence[Place], own: Iterable[Path], *, sealed: bool = False,
    living: bool = False, online: bool = False, loaded: Iterable[str] = (),
    scratch: Iterable[Path] = (),
) -> Opened:  # fmt: skip
    """What was opened outside Python, its packages and the `own` folders of the run, with what it
    was for by the `places` that the recipe declares. With `living` objects, what the program that
    brought them opened cannot be told from the rest; where a run may be `online`, sockets are no
    finding; `loaded` are the files that are mapped at the end; in the `scratch` folders, which were
    empty when it began, everything is the run's, in its `own` ones what it made or has a name of
    ours."""
    empty = [os.path.realpath(path) for path in scratch]
    private = [os.path.realpath(path) for path in own]
    temporary = os.path.realpath(tempfile.gettempdir())
    code_reads = any(p.role == VALIDATION and p.path.suffix == ".py" for p in places)

    def role_of(path: str, touched: Touched) -> str:
        if place := holder(places, path):
            return place.role
        if any(inside(path, place) for place in empty):
            return "run"
        for folder in private:
            if inside(path, folder):
                ours = touched.made or OURS.fullmatch(path[len(folder) :].lstrip("/"))
                return "run" if ours else "unknown"
        if is_known(path):
            return "data of a package" if path.lower().endswith(DATA) else "python"
        if inside(path, temporary) and touched.made:
            return "temporary"
        return BESIDE if code_reads and touched.when == AFTER else "unknown"

    by_role: dict[str, list[str]] = {}
    for path, touched in list(recording.files.items()):
        by_role.setdefault(role_of(path, touched), []).append(path)
    unknown = sorted(by_role.get("unknown", ()))
    denied = [path for path in unknown if sealed and not _readable(path)]
    unknown = [path for path in unknown if path not in denied]
    named = [
        *_rows(unknown, "unknown", recording.files),
        *(
            _row(path, "refused by the kernel", recording.files[path], None)
            for path in denied[:LISTED]
        ),
    ]
    groups = []
    for role in sorted(by_role.keys() - {"unknown", "python", "run", "temporary"}):
        trees = [place for place in places if place.tree and place.role == role]
        loose = [p for p in by_role[role] if holder(trees, p) is None]
        named += _rows(sorted(loose), role, recording.files)
        for tree in trees:
            below = [p for p in by_role[role] if holder([tree], p)]
            if role in CODE:
                named += _rows(sorted(below), role, recording.files)
            when = Counter(recording.files[p].when for p in below)
            groups.append(
                {"path": str(tree.path), "role": role, "files": len(below), "when": dict(when)}
            )
    libraries = sorted(
        {
            p
            for p in (*recording.libraries, *loaded)
            if "/" in p and not is_known(os.path.realpath(p))
        }
        - {str(place.path) for place in places}
    )
    libraries = [p for p in libraries if not any(inside(p, place) for place in (*private, *empty))]
    data = {
        "files": named,
        "folders": groups,
        "listed": sorted(_strange(recording.folders, places, [*private, *empty]))[:LISTED],
        "sockets": [{"what": what, "when": when} for what, when in recording.sockets.items()],
        "children": [{"what": what, "when": when} for what, when in recording.children.items()],
        "libraries": libraries[:LISTED],
        "missed": recording.missed,
        "unlisted": recording.unlisted,
        # what a program around the run opened, and sockets of a run that may be online: no finding
        "living": living,
        "online": online,
    }
    return Opened(
        data, _findings(data, unknown, denied, recording, by_role, living, online, sealed)
    )


def _findings(
    data: Mapping[str, Any], unknown: Sequence[str], denied: Sequence[str], recording: Recording,
    by_role: Mapping[str, Sequence[str]], living: bool, online: bool,
    sealed: bool,
) -> list[Finding]:  # fmt: skip
    found = []
    read = [path for path in unknown if recording.files[path].read]
    if read and not living:
        found.append(Finding(
            "opened-elsewhere",
            f"the run read {_some(read)}, which its recipe does not name",
            "if it belongs to the teacher, name it (--teacher-weights); else ask who opened it",
        ))  # fmt: skip
    if denied:
        found.append(Finding(
            "opened-refused",
            f"code of the run tried to open {_some(denied)}; the kernel refused it",
            "ask who wanted it",
        ))  # fmt: skip
    if data["sockets"] and not (living or online):
        found.append(Finding(
            "opened-network",
            f"code of the run tried a network: {_some([s['what'] for s in data['sockets']])}",
            "ask who wanted it",
        ))  # fmt: skip
    if data["children"] and not (living or sealed):  # what is sealed has sealed children
        found.append(Finding(
            "opened-children",
            f"code of the run started other programs, which this list does not watch: "
            f"{_some([c['what'] for c in data['children']])}", "ask who wanted them",
        ))  # fmt: skip
    early = [p for p in by_role.get(VALIDATION, ()) if recording.files[p].when == BEFORE]
    if early:
        found.append(Finding(
            "validation-early", f"validation data were read {BEFORE}: {_some(early)}", "",
        ))  # fmt: skip
    trees = {place["path"] for place in data["folders"] if place["role"] in CODE}
    inside_code = [
        p for role in CODE for p in by_role.get(role, ())
        if p.lower().endswith(DATA) and any(inside(p, os.path.realpath(tree)) for tree in trees)
    ]  # fmt: skip
    hidden = [
        p for p in (*by_role.get("data of a package", ()), *inside_code)
        if recording.files[p].when == BEFORE
    ]  # fmt: skip
    if hidden and not living:
        found.append(Finding(
            "opened-package-data",
            f"images or arrays inside a package were read {BEFORE}: {_some(hidden)}",
            "ask who opened them",
        ))  # fmt: skip
    if recording.missed:
        found.append(Finding("opened-missed", f"{recording.missed:,} events could not be kept", ""))
    return found


def is_known(path: str) -> bool:
    """Whether a path, links followed, belongs to Python, its packages, or the system itself."""
    if path in (*DEVICES, TERMINAL) or any(
        inside(path, place) for place in (*KERNEL, *LIBRARIES, *TABLES)
    ):
        return True
    return any(inside(path, place) for place in package_places())


def _strange(
    folders: Mapping[str, str], places: Sequence[Place], private: Sequence[str]
) -> list[str]:
    """Folders whose names were read although they are neither Python's nor declared."""
    looked = {os.path.realpath(place or ".") for place in sys.path}  # modules are looked for there
    return [
        path for path in folders
        if path not in looked and not is_known(path)
        and not any(inside(path, place) for place in private)
        and holder(places, path) is None
    ]  # fmt: skip


def _rows(paths: Sequence[str], role: str, files: Mapping[str, Touched]) -> list[dict[str, Any]]:
    """The first of some files with their hashes, and how many more there are."""
    rows = [_row(path, role, files[path], _fingerprint(path)) for path in paths[:LISTED]]
    if len(paths) > LISTED:
        rows.append({"path": f"{len(paths) - LISTED:,} more", "role": role})
    return rows


def _row(
    path: str, role: str, touched: Touched, known: tuple[int, str | None] | None
) -> dict[str, Any]:
    size, digest = known or (None, None)
    return {
        "path": path, "role": role, "read": touched.read, "written": touched.written,
        "when": touched.when, "bytes": size, "sha256": digest,
    }  # fmt: skip


def _fingerprint(path: str) -> tuple[int, str | None] | None:
    with suppress(OSError):
        known = Path(path).stat()
        digest = (
            _digest(path, known.st_size, known.st_mtime_ns) if known.st_size <= HASHED else None
        )
        return known.st_size, digest
    return None


@functools.lru_cache
def _digest(path: str, size: int, changed: int) -> str:
    """The SHA-256 of a file of this size and time of change."""
    return sha256_of(Path(path))


def _readable(path: str) -> bool:
    """Whether this process may open it now."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f"{quoted(paths[0])}{more}"
