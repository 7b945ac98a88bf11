"""`synthkd predict`: classes and probabilities of image files by the student of a run."""

import csv
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from synthkd.commands.display import Display
from synthkd.core import files
from synthkd.core.errors import InputError, plain, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import in_cache, to_float
from synthkd.images.decode import is_picture, read_pictures
from synthkd.networks.classifier import Classifier
from synthkd.recipe import DataTable, StudentTable, TeacherTable, read_toml, validated
from synthkd.specs import load_classifier

MOST_IMAGES, MOST_BYTES = 20_000, 512 << 20  # in memory at once
UNIFORM = 8.0  # deviation of pixels 0..255 below which an image shows nothing
SHOWN = 200  # images in a table: more belong in a file


def run(
    path: Path, images: Sequence[Path], *, top: int = 3, trust_code: bool = False,
    csv_file: str = "", as_json: bool = False, data_range: str | None = None,
    data_background: str | None = None, data_resize: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The `top` most probable classes of every image; of a folder, of all images in it and below.
    They are read as the run reads images, unless `data_range` and its like say otherwise.

    Files that cannot be read are named at the end, the others are answered all the same; an
    InputError only where none can be read. `csv_file` writes a line an image (`-`: to the
    screen)."""
    if not images:
        raise InputError("predict needs images or folders: synthkd predict RUN IMAGE…")
    if top < 1:
        raise InputError(f"--top {top}: at least 1")
    if csv_file.startswith("--"):
        raise InputError(f"--csv {quoted(csv_file)}: give a file, or - for the screen")
    if csv_file and as_json:
        raise InputError("--csv and --json: give one of them")
    student, names = load_classifier(
        StudentTable(spec=str(path)), TeacherTable(), trust_code=trust_code
    )
    student.eval()
    told = {"range": data_range, "background": data_background, "resize": data_resize}
    recipe = path / "recipe.toml"  # of a run, that says how it reads images
    kept = validated(read_toml(recipe)).data if recipe.is_file() else DataTable()
    said = {key: value for key, value in told.items() if value is not None}
    table = validated({"data": kept.model_dump() | said}).data
    paths = [found for given in images for found in _listed(given)]
    display = Display(quiet=bool(as_json or csv_file == "-"))
    asking = _Asking(student, names or tuple(str(k) for k in range(student.classes)), table, top)
    # values are judged by all images of a batch together, so it is as large as it can be
    batch = max(1, min(MOST_IMAGES, MOST_BYTES // math.prod(student.spec.shape)))
    if len(paths) > SHOWN:
        display.say(f"reading {len(paths):,} images …")
    for first in range(0, len(paths), batch):
        asking.ask(paths[first : first + batch])
        if first:
            display.say(f"{min(first + batch, len(paths)):,} of {len(paths):,} images")
    found, bad = asking.found, asking.bad
    if not found:
        more = f" (so with {len(bad):,} files)" if len(bad) > 1 else ""
        raise InputError(f"predict: {bad[0]}{more}")
    if not display.quiet:
        display.findings(asking.notes.values())
    else:
        for note in asking.notes.values():
            print(f"warning: {plain(str(note))}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif csv_file:
        _write(csv_file, found)
        display.say(f"{len(found):,} images: {csv_file}")
    else:
        _show(found, display)
    for line in bad:
        print(f"warning: {plain(line)}", file=sys.stderr)
    if bad:
        print(f"warning: {len(bad):,} of {len(paths):,} images could not be read", file=sys.stderr)
    return found


def _listed(given: Path) -> list[Path]:
    """The images that a path stands for. Linked folders are not followed, hidden ones left out."""
    if not given.is_dir():
        return [given]
    found = []
    for root, below, names in os.walk(given):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(root) / name for name in sorted(names) if is_picture(Path(root) / name)]
    if not found:
        raise InputError(f"predict {quoted(given)}: there is no image in this folder")
    return found


class _Asking:
    """Images being read and put to the student, a batch at a time."""

    def __init__(
        self, student: Classifier, names: Sequence[str], table: DataTable, top: int
    ) -> None:
        self.student, self.names, self.table, self.top = student, names, table, top
        self.found: list[dict[str, Any]] = []
        self.bad: list[str] = []  # what is wrong with the files that cannot be read
        self.notes: dict[str, Finding] = {}  # by code, the first of each

    @torch.no_grad()
    def ask(self, paths: Sequence[Path]) -> None:
        """Reads and answers a batch; what cannot be read goes to `bad`."""
        notes: list[Finding] = []
        try:
            pixels = read_pictures("predict", paths, self.student.spec, notes, self.table)
        except InputError:
            paths = [path for path in paths if self._readable(path)]
            if not paths:
                return
            notes.clear()
            pixels = read_pictures("predict", paths, self.student.spec, notes, self.table)
        for note in (*notes, *_uniform(pixels)):
            self.notes.setdefault(note.code, note)
        student = self.student
        answers = (student.probabilities(student(to_float(part))) for part in in_cache(pixels))
        best = [share.topk(min(self.top, student.classes)) for share in answers]
        values = [row for part in best for row in part.values.tolist()]
        ranked = [row for part in best for row in part.indices.tolist()]
        for path, shares, classes in zip(paths, values, ranked, strict=True):
            named = [
                {"class": k, "name": self.names[k], "probability": p}
                for p, k in zip(shares, classes, strict=True)
            ]
            self.found.append({"image": str(path), "classes": named})

    def _readable(self, path: Path) -> bool:
        """Whether a file can be read by itself."""
        try:
            read_pictures("predict", [path], self.student.spec, None, self.table)
        except InputError as error:
            self.bad.append(str(error).partition("; 1 of 1 images")[0])
            return False
        return True


def _write(place: str, found: Sequence[dict[str, Any]]) -> None:
    """A line an image: the image, then class, name and probability of each of the best."""
    count = max(len(one["classes"]) for one in found)
    header = ["image"]
    for rank in range(1, count + 1):
        header += [f"{word}{rank if rank > 1 else ''}" for word in ("class", "name", "probability")]
    with _csv(place) as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(header)
        for one in found:
            cells = [
                cell for c in one["classes"]
                for cell in (c["class"], _cell(c["name"]), f"{c['probability']:.6f}")
            ]  # fmt: skip
            lines.writerow([_cell(one["image"]), *cells])


@contextmanager
def _csv(place: str) -> Iterator[IO[str]]:
    """The screen, or a file that is written at once or not at all."""
    if place == "-":
        yield sys.stdout
        return
    held = StringIO()
    yield held
    try:
        files.write_atomic(Path(place), held.getvalue())
    except OSError as error:
        raise InputError(f"--csv {quoted(place)}: {error.strerror}") from None


def _cell(text: str) -> str:
    """A foreign string as a cell: without control characters, and no formula to a spreadsheet."""
    shown = plain(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _show(found: Sequence[dict[str, Any]], display: Display) -> None:
    rows = [
        (one["image"] if i == 0 else "", c["name"], f"{c['probability']:.1%}")
        for one in found[:SHOWN]
        for i, c in enumerate(one["classes"])
    ]
    display.table("predictions", ("image", "class", "probability"), rows)
    if len(found) > SHOWN:
        display.say(f"and {len(found) - SHOWN:,} more: --csv FILE or --json shows all")


def _uniform(pixels: Tensor) -> list[Finding]:
    """The doubt about images of which, as the network gets them, next to nothing is left."""
    deviations = pixels.float().flatten(1).std(1)
    flat = int((deviations < UNIFORM).sum())
    if not flat:
        return []
    many = "the image" if len(pixels) == 1 else f"{flat:,} of {len(pixels):,} images"
    return [
        Finding(
            "uniform",
            f"nearly uniform, as the network gets them ({many}: its pixels deviate by "
            f"{float(deviations.min()):.1f} of 255)",
            "the classes named for them are no more than guesses",
        )
    ]
