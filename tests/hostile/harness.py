"""One case of the corpus: how it is made, run and judged."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# what a command may write, beside what it is told by --out
OWN = ("runs", "out", "synthetic")


@dataclass(frozen=True)
class Case:
    """A command line, what lies there when it is called, and how it must end."""

    name: str
    argv: tuple[str, ...]
    words: tuple[str, ...] = ()  # that the one line holds; none: it must be done
    make: Callable[["Place"], object] = lambda place: None
    writes: tuple[str, ...] = ()  # files and folders that it may write, beside OWN
    streams: dict[str, Any] = field(default_factory=dict)
    codes: tuple[int, ...] = ()  # other than 2 with words and 0 without
    armed: Callable[["Place"], object] | None = None  # sets the payload off


class Place:
    """The folder in which a case is called, with what it begins from."""

    def __init__(self, folder: Path, bases: Path) -> None:
        self.folder, self.bases = folder, bases
        self.cwd, self.outside = folder / "in", folder / "outside"
        for path in (self.cwd, self.outside, folder / "tmp"):
            path.mkdir()
        for name in ("123.safetensors", "99999999.png", "000000001.safetensors", "notes.txt"):
            (self.outside / name).write_text("precious")

    def copy(self, name: str, to: str = "") -> Path:
        """A copy of one of the bases, to be damaged."""
        target = self.cwd / (to or name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if (self.bases / name).is_dir():
            shutil.copytree(self.bases / name, target)
        else:
            shutil.copyfile(self.bases / name, target)
        return target

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Changes a JSON file."""
        path = self.cwd / name
        data = json.loads(path.read_text())
        result = change(data)
        path.write_text(json.dumps(data if result is None else result))

    def link(self, name: str, target: Path | str) -> None:
        """A link in the place of what was there."""
        path = self.cwd / name
        self.remove(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def pipe(self, name: str) -> None:
        """A pipe into which nobody writes, in the place of what was there."""
        self.remove(name)
        (self.cwd / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self.cwd / name)

    def remove(self, name: str) -> None:
        path = self.cwd / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def seen(self, but: tuple[str, ...]) -> dict[str, str]:
        """What lies anywhere around the case, but for what the command may write."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            if parts[0] in ("stdout", "stderr", "tmp") or (
                parts[0] == "in" and parts[1:2] in [(b,) for b in but]
            ):
                continue
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                what = (
                    hashlib.sha256(path.read_bytes()).hexdigest()
                    if path.stat().st_size < 1 << 24
                    else str(path.stat().st_size)
                )
            elif stat.S_ISLNK(mode):
                what = str(path.readlink())
            else:
                what = str(stat.S_IFMT(mode))
            found["/".join(parts)] = what
        return found


class Server:
    """The process that the cases are forked from."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.bases = folder / "bases"
        self.bases.mkdir()
        (folder / "tmp").mkdir()
        request = {
            "bases": str(self.bases), "cwd": str(folder), "folder": str(folder),
            "tmp": str(folder / "tmp"),
        }  # fmt: skip
        answer = self.ask(request)
        assert answer["code"] == 0, (answer, (folder / "stderr").read_text())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def run(self, case: Case, place: Place) -> dict[str, Any]:
        return self.ask({
            "argv": case.argv, "cwd": str(place.cwd), "folder": str(place.folder),
            "tmp": str(place.folder / "tmp"), **case.streams,
        })  # fmt: skip


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        assert server.process.stdin
        server.process.stdin.close()
        server.process.wait(30)


def faults(case: Case, place: Place, server: Server) -> tuple[list[str], dict[str, Any]]:
    """Runs a case; all that is wrong with how it went."""
    case.make(place)
    may = (*OWN, *case.writes)
    before = place.seen(may)
    answer = server.run(case, place)
    found = []
    if answer["memory"] > 3_000_000_000:
        found.append(f"over 3 GB after {answer['seconds']} s")
    if answer["code"] == "time":
        found.append("over a minute")
    if list(place.folder.rglob("ran")):
        found.append("executed")
    after = place.seen(may)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if changed:
        found.append(f"written or removed: {sorted(changed)[:5]}")
    out, error = (
        (place.folder / name).read_text(case.streams.get("encoding", "utf-8"), errors="replace")
        if (place.folder / name).exists()
        else ""
        for name in ("stdout", "stderr")
    )
    if "Traceback" in out + error or "pydantic.dev" in out + error:
        found.append(f"traceback: {error[-800:]}")
    answer |= {"stdout": out, "stderr": error}
    codes = case.codes or ((2,) if case.words else (0, 3))  # 3: done, but of no use
    if answer["code"] not in codes:
        found.append(f"ended with {answer['code']}: {error[-300:]}")
    elif case.words:
        line = error.removesuffix("\n")
        if not line.startswith("error: ") or "\n" in line or not error.endswith("\n"):
            found.append(f"not one line: {error[-500:]!r}")
        elif missing := [word for word in case.words if word not in line]:
            found.append(f"the line does not say {missing}: {line}")
        if not line.isprintable():
            found.append(f"escape codes: {line!r}")
    elif error:
        found.append(f"done, but said: {error[-300:]}")
    return found, answer
