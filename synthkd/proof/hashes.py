"""The hashes of a finished run or data set: size and SHA-256 of every file, in hashes.json.

{"format": 1, "files": {"recipe.toml": {"bytes": 812, "sha256": "…"}, …}}

hashes.json cannot hold its own: that is its digest, which is printed at the end of a run. Whoever
keeps the digest elsewhere, or signs it, can tell whether anything has changed since.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding

NAME = "hashes.json"
FORMAT = 1
MOST_BYTES = 256 << 20  # of hashes.json: of a data set with a picture a file
# what `synthkd export`, `report` and `evaluate --out RUN/evaluation` add to a finished run
LATER = re.compile(r"export(-\d+)?/.+|report\.html|evaluation/evaluation\.json")
# what a run or a data set removes when it is finished, or leaves if it is killed there
GOING = re.compile(r"checkpoints/(rank-\d+/)?(rows-\d+-)?\d+\.safetensors|shards\.json")
# every name that a run or a data set, finished or not, gives a file; what has another is not its
_NUMBERED = r"(rows-\d+-)?\d+\.safetensors"
OURS = re.compile(
    rf"({LATER.pattern}|{GOING.pattern}"
    r"|(recipe\.toml|(manifest|details|hashes|summary|shards)\.json|(metrics|snapshots)\.jsonl"
    r"|calibration\.npz|(student|generator|checkpoint)\.safetensors|README\.md"
    r"|contact_sheet\.png|samples/[^/]+\.png|snapshots/\d+\.safetensors|tensorboard/[^/]+"
    r"|shard-\d+\.(images|labels|logits)\.npy|[^/]+/\d+\.png)"
    rf"|shards/\d+(\.lock|/checkpoints/{_NUMBERED}"
    r"|/(recipe\.toml|manifest\.json|README\.md|contact_sheet\.png)"
    r"|/shard-\d+\.(images|labels|logits)\.npy|/[^/]+/\d+\.png))"
)
NOTHING: Mapping[str, bytes] = MappingProxyType({})

Entries = dict[str, tuple[int, str]]  # bytes and SHA-256 by the path inside the folder


@dataclass(frozen=True)
class Checked:
    """What the files of a folder are, compared with its hashes."""

    findings: tuple[Finding, ...]  # every file that is not as it was
    files: int  # that are as they were
    bytes: int  # of these
    digest: str  # of hashes.json
    later: tuple[str, ...] = ()  # files that a later command of ours may have added


def write(folder: Path, coming: Mapping[str, bytes] = NOTHING) -> str:
    """Writes hashes.json over all plain files in a folder that are to stay, and over those that are
    about to be written with the bytes of `coming`. Returns its digest. Raises OSError that names a
    file."""
    found: Entries = {}
    for name, path, kind in _inside(folder):
        known = name == NAME or name in coming or GOING.fullmatch(name)
        if not known and stat.S_ISREG(kind):
            found[name] = _hashed(path)
    for name, data in coming.items():
        found[name] = (len(data), hashlib.sha256(data).hexdigest())
    return _save(folder, found)


def strange(folder: Path) -> list[str]:
    """The files in the folder of a run or data set that have no name of ours, sorted."""
    return sorted(name for name, _, _ in _inside(folder) if not OURS.fullmatch(name))


def forget(folder: Path) -> None:
    """Takes from hashes.json, where there is one, the files that are gone."""
    if files.is_plain(folder / NAME):
        found = read(folder)
        _save(folder, {name: entry for name, entry in found.items() if (folder / name).exists()})


def cover(folder: Path, name: str) -> str:
    """Adds a file that was written after the others to hashes.json. Returns the new digest."""
    return _save(folder, {**read(folder), name: _hashed(folder / name)})


def _save(folder: Path, found: Entries) -> str:
    table = {name: {"bytes": size, "sha256": known} for name, (size, known) in found.items()}
    text = files.json_text({"format": FORMAT, "files": dict(sorted(table.items()))})
    files.write_atomic(folder / NAME, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> Entries:
    """What hashes.json says. Raises InputError where it is missing, damaged or a link."""
    path = folder / NAME
    where = quoted(path)
    if not files.is_plain(path):
        raise InputError(f"{where}: there is no such plain file")
    try:
        data = json.loads(files.read_bytes(path, MOST_BYTES))
        if data["format"] != FORMAT:
            raise ValueError("another format")
        table = data["files"]
        found = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{where} is damaged, or of another version of synthkd") from None
    for name in found:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            raise InputError(f"{where} names {quoted(name)}, which is no file of this folder")
    return found


def check(folder: Path, digest: str = "") -> Checked:
    """Compares every file in a folder with hashes.json, and that with a `digest`, if one was kept.

    Each file that is changed, cut, exchanged, missing, added or no plain file is one finding. Reads
    every byte once. Raises InputError where hashes.json cannot be read.
    """
    wanted = read(folder)
    _, own = _hashed(folder / NAME)
    findings = []
    if digest and digest.strip().lower() != own:
        findings.append(_finding(
            "digest-differs", NAME,
            f"its digest is {own}, and {quoted(digest.strip(), 80)} was given",
        ))  # fmt: skip
    by_content = {known: name for name, (_, known) in wanted.items()}
    right, size, later = 0, 0, []
    present: set[str] = set()
    for name, path, kind in sorted(_inside(folder)):
        if name == NAME:
            continue
        present.add(name)
        if name not in wanted:
            if (LATER.fullmatch(name) or GOING.fullmatch(name)) and stat.S_ISREG(kind):
                later.append(name)
            else:
                findings.append(_finding("file-added", name, "it was not there at the end"))
            continue
        if not stat.S_ISREG(kind):
            what = "a link" if stat.S_ISLNK(kind) else "no plain file"
            findings.append(_finding("file-replaced", name, f"it is {what} now"))
            continue
        try:
            found = _hashed(path)
        except OSError as error:
            findings.append(_finding("file-unreadable", name, str(error.strerror)))
            continue
        if found == wanted[name]:
            right, size = right + 1, size + found[0]
        else:
            findings.append(_changed(name, found, wanted[name], by_content))
    findings += [
        _finding("file-missing", name, "it is gone") for name in sorted(wanted.keys() - present)
    ]
    return Checked(tuple(findings), right, size, own, tuple(later))


def _changed(
    name: str, found: tuple[int, str], wanted: tuple[int, str], by_content: Mapping[str, str]
) -> Finding:
    """What has become of a file that is another one."""
    if found[1] in by_content:
        return _finding(
            "file-exchanged", name, f"it holds what {quoted(by_content[found[1]])} held"
        )
    if found[0] != wanted[0]:
        return _finding("file-changed", name, f"it has {found[0]:,} bytes, and had {wanted[0]:,}")
    return _finding("file-changed", name, f"its {found[0]:,} bytes are not what they were")


def _finding(code: str, name: str, seen: str) -> Finding:
    return Finding(code, f"{quoted(name)}: {seen}", "", serious=True)


def _inside(folder: Path) -> Iterator[tuple[str, Path, int]]:
    """All that lies in a folder and is no folder itself: its path inside, its path, its kind. No
    link is followed."""
    waiting = [(folder, "")]
    while waiting:
        place, before = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                kind = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    waiting.append((Path(entry.path), f"{before}{entry.name}/"))
                else:
                    yield f"{before}{entry.name}", Path(entry.path), kind


def _hashed(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a plain file; a link is not followed, a pipe not waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        return size, hashlib.file_digest(file, "sha256").hexdigest()
