"""The rounds of a run as TensorBoard reads them: event files with scalars and contact sheets."""

import importlib
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from synthkd.core.errors import InputError
from synthkd.core.files import naming
from synthkd.core.images import class_sheet
from synthkd.engine.loop import Round
from synthkd.engine.reporter import Silent
from synthkd.runs.directory import SHEET_SECONDS

MISSING = "--tensorboard needs the extra tensorboard: pip install 'synthkd[tensorboard]'"


def check_tensorboard() -> None:
    """Refuses where the package that writes event files is missing."""
    if find_spec("tensorboard") is None:
        raise InputError(MISSING)


def next_step(before: int, images_seen: int) -> int:
    """Where a round stands on the axis of images that the student has seen, after one that stands
    at `before`: there, but never at the same place. A round in which the student learns nothing
    counts one, since TensorBoard shows one value a step.

    >>> next_step(-1, 0), next_step(0, 0), next_step(1, 256), next_step(256, 256)
    (0, 1, 256, 257)
    """
    return max(before + 1, images_seen)


class TensorBoard(Silent):
    """A reporter that writes the measures of every round, by images seen and by time, and contact
    sheets of fresh images: the first of a stage, its last, and one every half minute.

    `seen` are the images that the student had seen after each round before, of a run that is gone
    on with: what `folder` holds of later rounds is then no longer shown. Writes nothing but the
    folder. Raises InputError where tensorboard is not installed, and OSError that names the folder.
    """

    def __init__(self, folder: Path, classes: int, seen: Iterable[int] = ()) -> None:
        try:
            module: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise InputError(MISSING) from None
        self.folder, self.classes = folder, classes
        self._step = -1
        for images in seen:
            self._step = next_step(self._step, images)
        purged = self._step + 1 if folder.is_dir() else None
        with naming(folder):
            self._writer = module.SummaryWriter(str(folder), purge_step=purged)
        self._latest: Round | None = None  # whose images are still to be drawn,
        self._latest_step = 0  # and where it stands
        self._stage, self._drawn = "", 0.0

    def follow(self, round_: Round) -> None:
        """Adds a round; it is in the file when this returns, so that a checkpoint never knows of
        more."""
        if round_.stage != self._stage:
            self._sheet()
        self._step = next_step(self._step, round_.progress.images_seen)
        values = {
            **{name.replace(".", "/"): value for name, value in round_.measures.items()},
            "run/seconds": round_.progress.seconds,
            "run/images synthesized": round_.progress.synthesized,
            "run/share": round_.share,
        }
        with naming(self.folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, self._step)
            if round_.samples is not None:
                self._latest, self._latest_step = round_, self._step
                first = round_.stage != self._stage
                if first or time.monotonic() - self._drawn > SHEET_SECONDS:
                    self._sheet()
                self._stage = round_.stage
            self._writer.flush()

    def _sheet(self) -> None:
        """Adds the newest contact sheet, if there is one that was not added."""
        shown, self._latest = self._latest, None
        if shown is None or shown.samples is None or shown.labels is None:
            return
        sheet = np.asarray(class_sheet(shown.samples, shown.labels, self.classes, columns=8))
        name = f"images/{shown.stage}"
        self._writer.add_image(name, sheet, self._latest_step, dataformats="HWC")
        self._drawn = time.monotonic()

    def stop(self) -> None:
        """Adds the last sheet and closes the file."""
        with suppress(OSError):  # every round is in it already
            self._sheet()
            self._writer.close()
