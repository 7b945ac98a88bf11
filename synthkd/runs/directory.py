"""Run directories: the only writer of them.

recipe.toml          the resolved recipe: running it again gives the same run
manifest.json        what was read, with which versions, seeds and promise level; its state
metrics.jsonl        one line per round
checkpoints/         until it is finished: the newest two states of the lab, see
                     runs/checkpoints.py; in rank-00001, … those of the other processes, where
                     several learn one student
samples/             contact sheets, with captions: of a stage the first images, those in its middle
                     and the latest; the memory's, the hardest, those that the networks disagree on
snapshots/           the student on its way, if asked for; one line each in snapshots.jsonl
calibration.npz      some of the images that the student learned from, with the teacher's votes
student.safetensors  the student, with the card that rebuilds it
generator.safetensors  the generator, if one was trained
details.json         votes on held-out images, the classes one by one, quality of the images
tensorboard/         the rounds as TensorBoard reads them, if asked for: runs/tensorboard.py
README.md            the model card of the student
hashes.json          size and SHA-256 of every other file, see proof/hashes.py
summary.json         the result
report.html          all of it to look at (synthkd report)
"""

import io
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthkd import __version__
from synthkd.core import files
from synthkd.core.errors import DiskError, InputError, quoted
from synthkd.core.images import class_sheet, grid, save_picture, sheet_classes, thumbnails
from synthkd.core.states import packed
from synthkd.engine.loop import Round
from synthkd.engine.processes import LostProcess
from synthkd.proof import hashes
from synthkd.recipe import Recipe, read_toml, to_toml, validated
from synthkd.runs.checkpoints import FORMAT, Checkpoints, written

SHEET_SECONDS = 30  # between two contact sheets
CALIBRATION = "calibration.npz"
SNAPSHOT = re.compile(r"\d{5,}\.safetensors")


class Run:
    """One run directory, being written: by the process of rank 0, which has `recipe.toml` and all
    the rest; others write their checkpoints alone."""

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self.checkpoints = self.checkpoints_of(rank)
        self._metrics = path / "metrics.jsonl"
        self._snapshots = path / "snapshots.jsonl"
        self._latest: Round | None = None  # whose images are still to be drawn
        self._drawn = time.monotonic()

    @classmethod
    def create(cls, path: Path, recipe: Recipe, manifest: dict[str, Any]) -> "Run":
        """A new run in an empty or new directory; anything else is refused, nothing is
        overwritten."""
        files.claim(path, resumable=True)
        run = cls(path)
        (path / "checkpoints").mkdir()
        (path / "samples").mkdir()
        files.write_atomic(path / "recipe.toml", to_toml(recipe))
        run.write_manifest(manifest | {"state": "running"})
        return run

    def checkpoints_of(self, rank: int) -> Checkpoints:
        """Those of a process."""
        folder = self.path / "checkpoints"
        return Checkpoints(folder / f"rank-{rank:05d}" if rank else folder)

    @classmethod
    def resume(cls, path: Path) -> tuple["Run", Recipe]:
        """An interrupted run and its recipe. What somebody may have put there is refused before
        anything is opened: a link, through which files outside would be written or deleted."""
        if path.is_dir():
            files.plain_tree(path, f"--resume {quoted(path)}")
        if not (path / "recipe.toml").is_file() or not (path / "manifest.json").is_file():
            hint = (
                "; if it was stopped before it had begun, remove the directory and begin again"
                if (path / "checkpoints").is_dir() else ""
            )  # fmt: skip
            raise InputError(f"--resume {quoted(path)}: this is not a run directory{hint}")
        if (path / "summary.json").is_file():
            raise InputError(f"--resume {quoted(path)}: this run is finished; see its summary.json")
        run = cls(path)
        manifest = run.manifest
        if manifest.get("format", 1) != FORMAT:  # before the recipe, whose keys may be others too
            versions = manifest.get("versions")
            made = versions.get("synthkd") if isinstance(versions, dict) else None
            raise InputError(
                f"--resume {quoted(path)}: this run was made by "
                + (f"synthkd {quoted(made)}" if made else "another version of synthkd")
                + f", whose checkpoints synthkd {__version__} cannot read: finish it with that "
                "version, or start a new run"
            )
        return run, validated(read_toml(path / "recipe.toml"))

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says."""
        path = self.path / "manifest.json"
        try:
            return files.read_table(path, "")
        except InputError:
            raise InputError(f"{quoted(path)} is missing or damaged") from None

    def write_manifest(self, data: dict[str, Any]) -> None:
        """Replaces manifest.json; it records the format of the checkpoints."""
        files.write_json(self.path / "manifest.json", {"format": FORMAT, **data})

    def record(self, round_: Round) -> None:
        """Adds a line to metrics.jsonl."""
        line = {
            "round": round_.progress.round,
            "stage": round_.stage,
            "share": round_.share,
            "seconds": round(round_.progress.seconds, 3),
            "images_seen": round_.progress.images_seen,
            "synthesized": round_.progress.synthesized,
            **round_.measures,
        }
        files.append_line(self._metrics, json.dumps(files.finite(line), allow_nan=False))

    def recorded(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, as `newest` left them and `record` added to them."""
        if not self._metrics.is_file():
            return []
        return [json.loads(line) for line in self._metrics.read_text("utf-8").splitlines()]

    def samples(self, round_: Round, names: Sequence[str]) -> None:
        """Contact sheets of fresh images, of classes with these names: of every stage the first
        round, one in its middle, and the latest, which is written when `close_samples` or a round
        of another stage says so, or every half minute."""
        if round_.samples is None:
            return
        if self._latest is not None and self._latest.stage != round_.stage:
            self.close_samples(names)
        first, middle = (
            self.path / "samples" / f"{round_.stage}-{moment}.png" for moment in ("first", "middle")
        )
        if not first.exists():
            self._sheet(round_, first, names)
        elif 0.5 <= round_.stage_share < 1 and not middle.exists():
            self._sheet(round_, middle, names)
        self._latest = round_
        if time.monotonic() - self._drawn > SHEET_SECONDS:
            self.close_samples(names)

    def close_samples(self, names: Sequence[str]) -> None:
        """Writes the latest sheet, if there is a newer one."""
        if self._latest is not None:
            name = f"{self._latest.stage}-latest.png"
            self._sheet(self._latest, self.path / "samples" / name, names)
            self._latest, self._drawn = None, time.monotonic()

    def _sheet(self, round_: Round, path: Path, names: Sequence[str]) -> None:
        assert round_.samples is not None and round_.labels is not None
        rows = sheet_classes(round_.labels, len(names))
        caption = {
            "stage": round_.stage, "kind": round_.generator, "share": round_.share,
            "confidence": round_.measures.get("confidence"), "rows": [names[k] for k in rows],
        }  # fmt: skip
        sheet = class_sheet(
            round_.samples, round_.labels, rows, columns=8, zoom=_zoom(round_.samples)
        )
        save_picture(sheet, path, files.finite(caption))

    def memory_sheet(self, pixels: Tensor, votes: Tensor, names: Sequence[str]) -> None:
        """A contact sheet of what the student learned from, uint8 [N, C, H, W], a row for each of
        the classes [N] that the teacher sees."""
        rows = sheet_classes(votes, len(names))
        sheet = class_sheet(pixels, votes, rows, zoom=_zoom(pixels))
        caption = {"rows": [names[k] for k in rows]}
        save_picture(sheet, self.path / "samples" / "memory.png", caption)

    def chosen_sheet(self, name: str, pixels: Tensor, texts: Sequence[str]) -> None:
        """A sheet of images that were chosen one by one, uint8 [N, C, H, W], each with a text."""
        sheet = grid(thumbnails(pixels), 8, zoom=_zoom(pixels))
        save_picture(sheet, self.path / "samples" / f"{name}.png", {"images": list(texts)})

    def checkpoint(self, state: dict[str, Any], round_: int) -> Path:
        """Saves the lab's state after a round, see `Checkpoints.save`."""
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        return self.checkpoints.save(state, round_)

    def newest(self) -> dict[str, Any] | None:
        """The newest complete checkpoint, or None; metrics of rounds after it are taken back."""
        last, state = self.checkpoints.newest() or (0, None)
        self.take_back(last)
        return state

    def take_back(self, last: int) -> None:
        """Takes back what was recorded after the round `last`, and what a crash left."""
        for folder in (self.path, self.path / "checkpoints", self.path / "snapshots"):
            files.sweep(folder)
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
            whole_lines, end, _ = self._snapshots.read_bytes().rpartition(b"\n")
            files.write_atomic(self._snapshots, whole_lines + end)  # what a crash tore goes

    def snapshot(
        self, number: int, weights: Mapping[str, Tensor], round_: Round, seconds: float
    ) -> None:
        """Keeps the student as it is now. Nothing is resumed from it, so the disk is not waited
        for."""
        folder = self.path / "snapshots"
        folder.mkdir(exist_ok=True)
        name = f"{number:05d}.safetensors"
        files.write_atomic(folder / name, packed(weights), sync=False)
        line = {
            "file": name,
            "share": round_.share,
            "seconds": round(seconds, 3),
            "images_seen": round_.progress.images_seen,
        }
        files.append_line(self._snapshots, json.dumps(line, allow_nan=False))

    def snapshots(self) -> list[dict[str, Any]]:
        """The lines of snapshots.jsonl; of a file written twice, after a crash, the last. A last
        line that a crash tore is passed over."""
        if not self._snapshots.is_file():
            return []
        try:
            whole_lines, _, _ = self._snapshots.read_bytes().rpartition(b"\n")
            lines = [json.loads(line) for line in whole_lines.decode().splitlines()]
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
        """Removes the checkpoints, if any are left, and the snapshots of a finished run."""
        self._clear_checkpoints()
        for path in written(self.path / "snapshots", SNAPSHOT):
            path.unlink()
        hashes.forget(self.path)

    def finish(
        self, summary: dict[str, Any], manifest: dict[str, Any], details: dict[str, Any],
        readme: str = "",
    ) -> str:  # fmt: skip
        """Manifest, `details` and a `readme` if there is one, then the hashes of all files, and the
        summary: a run with a summary is complete. Whatever else belongs to the run is there before.
        The checkpoints go last. Returns the hashes' digest."""
        files.write_json(self.path / "details.json", details)
        self.write_manifest(manifest | {"state": "finished"})
        if readme:
            files.write_atomic(self.path / "README.md", readme)
        text = files.json_text(summary)
        digest = hashes.write(self.path, {"summary.json": text.encode()})
        files.write_atomic(self.path / "summary.json", text)
        self._clear_checkpoints()
        return digest

    def _clear_checkpoints(self) -> None:
        """Removes those of all processes: nothing goes on from a finished run."""
        folder = self.path / "checkpoints"
        for place in (*folder.glob("rank-*"), folder):
            Checkpoints(place).clear()
            with suppress(OSError):  # something else lies there
                place.rmdir()


def _zoom(pixels: Tensor) -> int:
    """How much images [N, C, H, W] are enlarged in a sheet."""
    return 1 if pixels.shape[3] > 64 else 2


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@contextmanager
def resumable(again: str) -> Iterator[None]:
    """Turns what the disk refuses, or a process that has ended, into one line, which says how to go
    `again`."""
    try:
        yield
    except LostProcess as error:
        raise LostProcess(f"{error}; {again}") from None
    except DiskError as error:
        raise InputError(f"{error}; put that right, then {again}") from None
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):  # no file of ours
            raise
        said = f"{quoted(error.filename)}: cannot be written: {error.strerror or quoted(error)}"
        raise InputError(f"{said}; put that right, then {again}") from None


def held(path: Path, flag: str) -> AbstractContextManager[int]:
    """Keeps other processes out of a directory while one works in it; `flag` gave its name."""
    return files.alone(path, f"{flag} {quoted(path)}: another synthkd is using it")


def _command() -> list[str]:
    """The command line of this process: `synthkd …`, or another program's that uses the library."""
    program, *words = sys.argv or [""]
    ours = Path(program).name in ("synthkd", "__main__.py")
    return ["synthkd" if ours else program, *words]


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
        "command": _command(),
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
