"""Run directories: the only writer of them.

recipe.toml          the resolved recipe: running it again gives the same run
manifest.json        what was read, with which versions, seeds and promise level; its state
metrics.jsonl        one line per round
checkpoints/         the newest two states of the lab
samples/             contact sheets: the first and the latest images of a stage, the memory's
snapshots/           the student on its way, if asked for; one line each in snapshots.jsonl
calibration.npz      some of the images that the student learned from, with the teacher's votes
student.safetensors  the student, with the card that rebuilds it
generator.safetensors  the generator, if one was trained
summary.json         the result
"""

import io
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from synthkd import __version__
from synthkd.core import files
from synthkd.core.errors import DiskError, InputError, quoted
from synthkd.core.images import class_sheet, save_picture
from synthkd.core.states import load_state, save_state
from synthkd.engine.loop import Round
from synthkd.recipe import Recipe, read_toml, to_toml, validated

KEPT = 2  # checkpoints
SHEET_SECONDS = 30  # between two contact sheets
CALIBRATION = "calibration.npz"
# what we write, and so may delete
CHECKPOINT = re.compile(r"\d{9,}\.safetensors")
SNAPSHOT = re.compile(r"\d{5,}\.safetensors")


class Run:
    """One run directory, being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = path / "metrics.jsonl"
        self._snapshots = path / "snapshots.jsonl"
        self._latest: Round | None = None  # whose images are still to be drawn
        self._drawn = time.monotonic()

    @classmethod
    def create(cls, path: Path, recipe: Recipe, manifest: dict[str, Any]) -> "Run":
        """A new run in an empty or new directory; anything else is refused, nothing is
        overwritten."""
        claim(path, resumable=True)
        run = cls(path)
        (path / "checkpoints").mkdir()
        (path / "samples").mkdir()
        files.write_atomic(path / "recipe.toml", to_toml(recipe))
        run.write_manifest(manifest | {"state": "running"})
        return run

    @classmethod
    def resume(cls, path: Path) -> tuple["Run", Recipe]:
        """An interrupted run and its recipe. What a stranger may have put there is refused before
        anything is opened: a link, through which files outside would be written or deleted."""
        if path.is_dir():
            files.plain_tree(path, f"--resume {quoted(path)}")
        if not (path / "recipe.toml").is_file() or not (path / "manifest.json").is_file():
            raise InputError(f"--resume {quoted(path)}: this is not a run directory")
        if (path / "summary.json").is_file():
            raise InputError(f"--resume {quoted(path)}: this run is finished; see its summary.json")
        recipe = validated(read_toml(path / "recipe.toml"))
        return cls(path), recipe

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says."""
        path = self.path / "manifest.json"
        try:
            return files.read_table(path, "")
        except InputError:
            raise InputError(f"{quoted(path)} is missing or damaged") from None

    def write_manifest(self, data: dict[str, Any]) -> None:
        """Replaces manifest.json."""
        files.write_json(self.path / "manifest.json", data)

    def record(self, round_: Round) -> None:
        """Adds a line to metrics.jsonl."""
        line = {
            "round": round_.progress.round,
            "stage": round_.stage,
            "share": round_.share,
            "seconds": round(round_.progress.seconds, 3),
            "images_seen": round_.progress.images_seen,
            "invented": round_.progress.invented,
            **round_.measures,
        }
        files.append_line(self._metrics, json.dumps(files.finite(line), allow_nan=False))

    def samples(self, round_: Round, classes: int) -> None:
        """Contact sheets of fresh images: the first round of every stage, and the latest, which is
        written when `close_samples` or a round of another stage says so, or every half minute."""
        if round_.samples is None:
            return
        if self._latest is not None and self._latest.stage != round_.stage:
            self.close_samples(classes)
        first = self.path / "samples" / f"{round_.stage}-first.png"
        if not first.exists():
            self._sheet(round_, first, classes)
        self._latest = round_
        if time.monotonic() - self._drawn > SHEET_SECONDS:
            self.close_samples(classes)

    def close_samples(self, classes: int) -> None:
        """Writes the latest sheet, if there is a newer one."""
        if self._latest is not None:
            name = f"{self._latest.stage}-latest.png"
            self._sheet(self._latest, self.path / "samples" / name, classes)
            self._latest, self._drawn = None, time.monotonic()

    def _sheet(self, round_: Round, path: Path, classes: int) -> None:
        assert round_.samples is not None and round_.labels is not None
        save_picture(class_sheet(round_.samples, round_.labels, classes, columns=8, zoom=2), path)

    def memory_sheet(self, pixels: Tensor, votes: Tensor, classes: int) -> None:
        """A contact sheet of what the student learned from, uint8 [N, C, H, W], a row for each of
        the classes [N] that the teacher sees."""
        sheet = class_sheet(pixels, votes, classes, zoom=1 if pixels.shape[3] > 64 else 2)
        save_picture(sheet, self.path / "samples" / "memory.png")

    def checkpoint(self, state: dict[str, Any], round_: int) -> Path:
        """Saves the lab's state; others go only after the new one has been read back.

        What lies there from later rounds was unreadable when the run went on, and goes first.
        """
        folder = self.path / "checkpoints"
        path = folder / f"{round_:09d}.safetensors"
        save_state(state, path, "checkpoint")
        load_state(path, "checkpoint")
        present = _written(folder, CHECKPOINT)
        kept = [other for other in present if other.name <= path.name][-KEPT:]
        for other in present:
            if other not in kept:
                other.unlink()
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest complete checkpoint, or None; metrics of rounds after it are taken back."""
        state, last = None, 0
        for folder in (self.path, self.path / "checkpoints", self.path / "snapshots"):
            files.sweep(folder)
        for path in reversed(_written(self.path / "checkpoints", CHECKPOINT)):
            try:
                state = load_state(path, "checkpoint")
                last = int(state["progress"]["round"])
                break
            except (InputError, KeyError, TypeError, ValueError):
                state = None
        if self._metrics.is_file():
            lines = []
            for line in self._metrics.read_text("utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["round"] <= last:
                        lines.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    break  # a line torn by a crash
            files.write_atomic(self._metrics, "".join(lines))
        if self._snapshots.is_file():  # under a name of its own, whatever it was linked with
            files.write_atomic(self._snapshots, self._snapshots.read_bytes())
        return state

    def snapshot(
        self, number: int, weights: Mapping[str, Tensor], round_: Round, seconds: float
    ) -> None:
        """Keeps the student as it is now. Nothing is resumed from it, so the disk is not waited
        for."""
        folder = self.path / "snapshots"
        folder.mkdir(exist_ok=True)
        name = f"{number:05d}.safetensors"
        state = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        files.write_atomic(folder / name, save(state), sync=False)
        line = {
            "file": name,
            "share": round_.share,
            "seconds": round(seconds, 3),
            "images_seen": round_.progress.images_seen,
        }
        files.append_line(self._snapshots, json.dumps(line, allow_nan=False))

    def snapshots(self) -> list[dict[str, Any]]:
        """The lines of snapshots.jsonl; of a file written twice, after a crash, the last."""
        if not self._snapshots.is_file():
            return []
        try:
            lines = [json.loads(line) for line in self._snapshots.read_text("utf-8").splitlines()]
            last = {str(line["file"]): line for line in lines}
            numbers = [value for line in lines for key, value in line.items() if key != "file"]
            whole = all(re.fullmatch(r"\w[\w.]*", name) for name in last) and all(
                map(_is_number, numbers)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise InputError(f"{quoted(self._snapshots)} is damaged")
        return list(last.values())

    def keep_images(self, pixels: Tensor, votes: Tensor) -> None:
        """Keeps images [N, C, H, W] with the teacher's votes [N], for what needs some later."""
        held = io.BytesIO()
        np.savez(held, x=pixels.permute(0, 2, 3, 1).numpy(), y=votes.numpy())
        files.write_atomic(self.path / CALIBRATION, held.getvalue())

    def tidy(self) -> None:
        """Removes the checkpoints and snapshots of a finished run."""
        for name, kind in (("checkpoints", CHECKPOINT), ("snapshots", SNAPSHOT)):
            for path in _written(self.path / name, kind):
                path.unlink()

    def finish(self, summary: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Manifest first, summary last: a run with a summary is complete."""
        self.write_manifest(manifest | {"state": "finished"})
        files.write_json(self.path / "summary.json", summary)


def _written(folder: Path, kind: re.Pattern[str]) -> list[Path]:
    """The files of a kind in a folder of a run, in their order; none where the folder is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if kind.fullmatch(path.name)]
    return sorted(path for path in found if files.is_plain(path))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def claim(path: Path, *, resumable: bool = False) -> None:
    """Makes a directory, or takes an empty one; anything else is refused: one that is `resumable`
    may be gone on with."""
    if files.exists(path) and not path.is_dir():
        raise InputError(f"--out {quoted(path)}: there is a file of this name")
    if files.exists(path) and any(path.iterdir()):
        raise InputError(
            f"--out {quoted(path)}: this directory is not empty; choose another"
            + (", or --resume it" if resumable else "")
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {quoted(path)}: {error.strerror}") from None


@contextmanager
def resumable(again: str) -> Iterator[None]:
    """Turns what the disk refuses into one line, which says how to go `again` when it does not."""
    try:
        yield
    except DiskError as error:
        raise InputError(f"{error}; mend that, then {again}") from None
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):  # no file of ours
            raise
        said = f"{quoted(error.filename)}: cannot be written: {error.strerror or quoted(error)}"
        raise InputError(f"{said}; mend that, then {again}") from None


def held(path: Path, flag: str) -> AbstractContextManager[int]:
    """Keeps other processes out of a directory while one works in it; `flag` gave its name."""
    return files.alone(path, f"{flag} {quoted(path)}: another synthkd is at work in it")


def free_name(base: Path) -> Path:
    """`base`, or `base-2`, `base-3`, …: the first that does not exist.

    >>> free_name(Path("no-such-run")).name
    'no-such-run'
    """
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, platform and command, for manifests."""
    packages = (
        "torch",
        "torchvision",
        "kornia",
        "diffusers",
        "torch-fidelity",
        "safetensors",
        "numpy",
    )
    versions = {"synthkd": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": ["synthkd", *sys.argv[1:]],
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
