"""Checkpoints in a folder: the newest two states, with rows that never change written once.

000000012.safetensors    the state of round 12, without its rows
rows-000000012-0.safetensors  rows that were new then; later checkpoints refer to them

A state's `Rows` (the images of a replay memory) are most of it, and few of them are new. Only those
go into a new file. A file of which less than half is still in use is written again together with
the new rows, and so is one that is not twice as large as what is to be written, while it is small:
a file has at most 128 MB. So the files of a checkpoint hold at most twice the rows in use, there
are few of them, and none has to be held in memory whole.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd import __version__
from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.states import PART, Rows, check_state, load_state, save_state
from synthkd.engine.processes import Processes

FORMAT = 2  # of checkpoints; those of 0.1.0, with all images within, have no number
KEPT = 2
CHECKPOINT = re.compile(r"\d{9,}\.safetensors")
ROWS = re.compile(r"rows-\d{9,}-\d+\.safetensors")


@dataclass(frozen=True, eq=False)
class _Segment:
    """A file of rows."""

    name: str
    checksum: int
    numbers: Tensor  # [N] int64


@dataclass(frozen=True, eq=False)
class _StoredRows(Rows):
    """Rows that are read from their files when they are put in their place; `columns` are empty."""

    folder: Path
    segments: tuple[_Segment, ...]

    def parts(self, most: int = PART) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """A file at a time. Raises InputError where one is no longer as it was."""
        ordered, order = self.numbers.sort()
        for segment in self.segments:
            part = load_state(self.folder / segment.name, "rows", checksum=segment.checksum)
            hit = _among(part.numbers, ordered)
            place = order[torch.searchsorted(ordered, part.numbers[hit])]
            yield place, {key: part.columns[key][hit] for key in self.columns}


class Checkpoints:
    """The checkpoints in a folder, for the one process that holds its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segments: dict[str, list[_Segment]] = {}  # by place in the state, oldest first
        self._used: dict[str, set[str]] = {}  # files of rows, by the name of the checkpoint

    def save(self, state: dict[str, Any], round_: int) -> Path:
        """Saves a state; others go only after what was written has been read back.

        What lies there from later rounds was unreadable when the run went on, and goes first.
        Raises OSError that names the file which cannot be written.
        """
        path = self.folder / f"{round_:09d}.safetensors"
        segments: dict[str, list[_Segment]] = {}
        names = (f"rows-{round_:09d}-{number}.safetensors" for number in count())

        def apart(place: str, rows: Rows) -> dict[str, Any]:
            segments[place] = self._append(self._segments.get(place, []), rows, names)
            named = [[segment.name, segment.checksum] for segment in segments[place]]
            empty = {key: column[:0] for key, column in rows.columns.items()}
            return {"place": place, "numbers": rows.numbers, "files": named, "empty": empty}

        whole = {"format": FORMAT, "round": round_, "state": state}
        check_state(path, "checkpoint", save_state(whole, path, "checkpoint", apart=apart))
        self._segments = segments
        self._used[path.name] = {s.name for found in segments.values() for s in found}
        self._tidy(path)
        return path

    def _append(self, known: list[_Segment], rows: Rows, names: Iterator[str]) -> list[_Segment]:
        """Writes the rows that are in none of the `known` files, and those of files that are not
        worth keeping, in files of `PART` bytes at most, named by `names`. Returns the files in
        which all rows are."""
        wanted = rows.numbers.sort().values
        used = [int(_among(segment.numbers, wanted).sum()) for segment in known]
        kept = [
            (segment, number)
            for segment, number in zip(known, used, strict=True)
            if 2 * number > len(segment.numbers)
        ]
        full = PART // rows.bytes // 2  # rows of a file to which none are added
        while True:
            stored = torch.cat([torch.empty(0).long(), *(s.numbers for s, _ in kept)])
            fresh = ~_among(rows.numbers, stored.sort().values)
            if not kept or kept[-1][1] >= min(full, 2 * int(fresh.sum())):
                break
            kept.pop()
        found = [segment for segment, _ in kept]
        fresh_rows = fresh.nonzero()[:, 0]
        for index in torch.split(fresh_rows, max(1, 2 * full)) if len(fresh_rows) else ():
            name = next(names)
            checksum = save_state(rows.take(index), self.folder / name, "rows")
            check_state(self.folder / name, "rows", checksum)
            found.append(_Segment(name, checksum, rows.numbers[index]))
        return found

    def _tidy(self, newest: Path) -> None:
        """Removes all but the newest checkpoints up to this one, and rows that none refers to."""
        present = written(self.folder, CHECKPOINT)
        kept = [path for path in present if path.name <= newest.name][-KEPT:]
        for path in present:
            if path not in kept:
                path.unlink()
                self._used.pop(path.name, None)
        used = set[str]().union(*(self._used_by(path) for path in kept))
        for path in written(self.folder, ROWS):
            if path.name not in used:
                path.unlink()

    def _used_by(self, path: Path) -> set[str]:
        """The names of the files that a checkpoint refers to; none where it is damaged."""
        if path.name not in self._used:
            names = self._used[path.name] = set()

            def together(described: dict[str, Any]) -> None:
                names.update(str(name) for name, _ in described["files"])

            with suppress(InputError):
                load_state(path, "checkpoint", together=together)
        return self._used[path.name]

    def newest(self, most: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Round and state of the newest checkpoint that is whole, its rows too, of a round of at
        most `most`; None where there is none. Raises InputError where one is whole, but of another
        format."""
        for path in reversed(written(self.folder, CHECKPOINT)):
            if most is not None and int(path.stem) > most:
                continue
            segments: dict[str, list[_Segment]] = {}
            try:
                whole = load_state(
                    path, "checkpoint", together=partial(self._collected, into=segments)
                )
                found = int(whole.get("format", 1))
                if found == FORMAT:
                    self._segments = segments
                    return int(whole["round"]), dict(whole["state"])
            except (InputError, KeyError, TypeError, ValueError, AttributeError):
                continue
            raise InputError(
                f"{quoted(path)}: this checkpoint is of format {found}, and synthkd "
                f"{__version__} reads format {FORMAT}"
            )
        return None

    def _collected(self, described: dict[str, Any], into: dict[str, list[_Segment]]) -> Rows:
        """The rows that a checkpoint describes, from the files it names; these go `into` a table by
        their place. All are read here, to know that they are whole, and again when they are put
        in their place."""
        wanted, empty = described["numbers"], described["empty"]
        segments: list[_Segment] = []
        for name, checksum in described["files"]:
            if not ROWS.fullmatch(name):
                raise ValueError("not a file of rows")
            part = load_state(self.folder / name, "rows", checksum=checksum)
            if any(
                column.shape[1:] != part.columns[key].shape[1:] for key, column in empty.items()
            ):
                raise ValueError("rows of another shape")
            segments.append(_Segment(name, checksum, part.numbers))
        stored = torch.cat([torch.empty(0).long(), *(s.numbers for s in segments)])
        if not bool(_among(wanted, stored.sort().values).all()):
            raise ValueError("rows are missing")
        into[described["place"]] = segments
        return _StoredRows(wanted, empty, self.folder, tuple(segments))

    def forget_after(self, round_: int) -> None:
        """Removes the checkpoints of later rounds."""
        for path in written(self.folder, CHECKPOINT):
            if int(path.stem) > round_:
                path.unlink()

    def clear(self) -> None:
        """Removes all checkpoints and their rows."""
        for kind in (CHECKPOINT, ROWS):
            for path in written(self.folder, kind):
                path.unlink()


def newest_of_all(own: Checkpoints, processes: Processes) -> tuple[int, dict[str, Any]] | None:
    """Round and state in `own` of the newest checkpoint that is whole for every process; each asks
    for its own at the same time."""
    most: int | None = None
    while True:
        found = own.newest(most)
        there = processes.every(found[0] if found else 0)
        if len(set(there)) == 1:
            return found
        most = min(there)


def _among(numbers: Tensor, ordered: Tensor) -> Tensor:
    """Which of the numbers [N] are among those that are `ordered` [M], a mask [N]."""
    if not len(ordered):
        return torch.zeros(len(numbers), dtype=torch.bool)
    place = torch.searchsorted(ordered, numbers).clamp_max(len(ordered) - 1)
    return ordered[place] == numbers


def written(folder: Path, kind: re.Pattern[str]) -> list[Path]:
    """The files of a kind in a folder of a run, in their order; none where the folder is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if kind.fullmatch(path.name)]
    return sorted(path for path in found if files.is_plain(path))
