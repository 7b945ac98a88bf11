"""`synthkd export`: a student as files that run in production, each compared with the original.

A data set is left to `export_images`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd import recipe as recipes
from synthkd.cards.model import export_card
from synthkd.checks.inspection import drawings
from synthkd.commands.display import Display
from synthkd.commands.export_images import FORMAT, export_images
from synthkd.core import files
from synthkd.core.errors import InputError, plain, quoted
from synthkd.core.findings import Finding, as_data
from synthkd.core.images import to_float, to_uint8
from synthkd.core.seeds import generator_for
from synthkd.data.sources import Images, load_images
from synthkd.data.store import is_store
from synthkd.engine.build import images_for
from synthkd.evaluation.compare import answers_of, settled
from synthkd.export import formats as writers
from synthkd.export.formats import Exported, Shipped
from synthkd.networks import SLIM
from synthkd.networks.classifier import Classifier
from synthkd.networks.slimmable import Slimmable
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.runs.directory import CALIBRATION
from synthkd.specs import Card, load_classifier, load_teachers, read_card
from synthkd.students import latency
from synthkd.students.latency import Answer
from synthkd.students.learner import save_student

COMPARED, FEWEST = 1000, 128  # images; of large ones fewer, down to so many,
PIXELS = 2**23  # as make up so many pixels
BATCH = 256  # images asked at once
CALIBRATED = 256  # others, for int8; at most half as many as are compared
LEAST_OWN = 16  # images of the run; of fewer drawings take the place
LATER = 1.1  # times the promised milliseconds, which is called slower
_ABSOLUTE = re.compile(r"(?:^|:)[/~]")


def run(
    path: Path, *, formats: str = "", int8: bool = False, uint8_input: bool = False,
    softmax: bool = False, width: float = 1.0, val_data: str = "", class_order: str = "",
    out: Path | None = None, licence: str = "",
    trust_code: bool = False, as_json: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Exports the student of a run, in ONNX unless other `formats` are named, and writes its model
    card; of a slimmable one that of a share `width` of the full width. Or a synthetic data set as
    tar shards. Returns what was written.

    A file whose answers differ from the student's is an error and is taken away; one of 8-bit
    integers may differ, and is shown with what it brings and costs. `val_data` are read as the run
    reads images; `class_order` says how their labels are to be understood, if otherwise. `licence`
    goes into the card's header."""
    display = Display(quiet=quiet or as_json)
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise InputError(
            f"--license {quoted(licence)}: give its short name, in small letters: apache-2.0, mit, "
            "cc-by-4.0, other"
        )
    if is_store(path):
        given = {
            "--int8": int8, "--uint8-input": uint8_input, "--softmax": softmax,
            "--width": width != 1, "--val-data": val_data, "--class-order": class_order,
        }  # fmt: skip
        for flag in (flag for flag, value in given.items() if value):
            raise InputError(f"{flag} is for a student, and {quoted(path)} is a data set")
        if formats not in ("", FORMAT):
            raise InputError(
                f"--format {quoted(formats)}: {quoted(path)} is a data set, exported as {FORMAT}"
            )
        made = export_images(path, out, licence, display)
        if as_json:
            print(json.dumps(made, indent=2))
        return made
    formats = formats or "onnx"
    wanted = [word.strip() for word in formats.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in writers.FORMATS]
    if unknown or not wanted:
        known = ", ".join(writers.FORMATS)
        raise InputError(f"--format {quoted(formats)}: known: {known}")
    if int8 and "onnx" not in wanted:
        raise InputError("--int8 makes a second ONNX file: add onnx to --format")
    if val_data and not int8:
        raise InputError("--val-data scores the 8-bit file beside the float one: add --int8")
    if class_order and not val_data:
        raise InputError("--class-order is for the labels of --val-data: give that too")
    if (uint8_input or softmax) and set(wanted) == {"safetensors"}:
        flag = "--uint8-input" if uint8_input else "--softmax"
        raise InputError(f"{flag} is for graphs: add onnx, pt2 or executorch to --format")
    where = f"export {quoted(path)}: no finished run is here"
    summary, manifest = (
        files.read_table(path / name, where) for name in ("summary.json", "manifest.json")
    )
    student, names = load_classifier(
        StudentTable(spec=str(path)), TeacherTable(), trust_code=trust_code
    )
    student.eval().requires_grad_(False)
    names = tuple(plain(str(name)) for name in names or range(student.classes))
    narrow: Card | None = None
    if width != 1:
        student, narrow = _at_width(path, student, width)
        summary = _scores_at(summary, width, where)
    network = Shipped(student, bytes_in=uint8_input, probabilities=softmax)
    try:
        export_card(summary, manifest, names, network)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{where}: its summary.json or manifest.json is damaged") from None
    found = files.sha256_of(path / "student.safetensors")
    if found != summary["student_sha256"]:  # its scores would be another student's
        raise InputError(
            f"export {quoted(path)}: its student.safetensors (SHA-256 {found[:12]}…) is not the "
            f"student that its summary.json describes ({quoted(summary['student_sha256'], 12)}): "
            "copy the run directory again, as a whole"
        )
    label = None
    if val_data:
        label = _labelled(
            path, student, names, val_data, class_order, trust_code=trust_code, display=display
        )
    folder = out or files.free_name(path / "export")
    files.claim(folder)
    with _threads(_promised_threads(manifest)):
        pictures = _pictures(path, network)
        export = Export(path, folder, network, pictures, label, display, narrow)
        metadata = writers.metadata(network, names, summary, manifest)
        try:
            done = export.all(wanted, metadata, int8=int8, trust_code=trust_code)
        except BaseException:  # no half of an export
            shutil.rmtree(folder)
            raise
        conditions = [
            latency.conditions(exported=exported)
            for exported in (True, False)
            if any((".onnx" in f.name) == exported for f in done)
        ]
    findings = _findings(done, manifest, student.classes)
    if (folder / "student.safetensors").is_file():
        findings += _paths_in(folder / "student.safetensors")
    files.write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in names))
    card = export_card(summary, manifest, names, network, done, conditions, licence)
    files.write_atomic(folder / "README.md", card)
    result = {
        "files": [asdict(f) for f in done],
        "use": next((f.truth.use for f in done if f.truth), done[0].name),
        "input": {"shape": list(student.spec.shape), "uint8": uint8_input},
        "output": network.output,
        "classes": list(names),
        "measured": [asdict(one) for one in conditions],
        "findings": as_data(findings),
    }
    files.write_json(folder / "export.json", result)  # it travels, so it names no folder
    result["folder"] = str(folder)
    _show(done, conditions, folder, display)
    display.findings(findings)
    if as_json:
        print(json.dumps(result, indent=2))
    return result


def _labelled(
    path: Path, student: Classifier, names: Sequence[str], source: str, class_order: str, *,
    trust_code: bool, display: Display,
) -> Images:  # fmt: skip
    """Labelled images as the run read them, in the order of classes that the student's votes say;
    an InputError where another order than theirs fits far better."""
    recipe = recipes.validated(recipes.read_toml(path / "recipe.toml"))
    order = {"class_order": class_order} if class_order else {}
    told = recipes.validated({"data": recipe.data.model_dump() | order}).data
    if recipe.teacher.only:  # labels are of all the teacher's classes: it alone knows them
        recipe = recipes.trusted(
            recipe.model_copy(update={"data": told}), trust_code=trust_code, anyway=False
        )
        teacher: Any = load_teachers(recipe.teacher, trust_code=trust_code)
        images = images_for(recipe, source, teacher, labelled=True)
    else:
        images = load_images(
            source, student.spec, classes=student.classes, labelled=True, trust_code=trust_code,
            names=tuple(names), table=told,
        )  # fmt: skip
    assert images.labels is not None
    if images.labels.dim() > 1 and not student.independent:
        raise InputError(
            f"{quoted(source)}: labels of several classes per image, but the student's "
            "classes exclude each other: give one class per image"
        )
    votes = answers_of(student, images.pixels, BATCH, "student").argmax(1)
    images, check = settled(images, votes, student.classes, names, who="student")
    for finding in check.findings:
        if finding.serious and finding.code == "labels-permuted":
            raise InputError(f"{quoted(source)}: {finding}")
    if images.order:
        display.say(f"{quoted(source)}: {images.order}")
    display.findings((*images.notes, *check.findings))
    return images


def _at_width(path: Path, student: Classifier, width: float) -> tuple[Classifier, Card]:
    """The plain student that a slimmable one is at a share of its width, and its card."""
    body = student.body
    if not isinstance(body, Slimmable) or width not in body.shares:
        what = "is of one width" if not isinstance(body, Slimmable) else (
            f"has the widths {', '.join(f'{share:g}' for share in body.shares)}"
        )  # fmt: skip
        raise InputError(f"--width {width:g}: the student of {quoted(path)} {what}")
    plain_body = body.sliced(width).eval().requires_grad_(False)
    card = read_card(path / "student.safetensors")
    name, _, reduction = card.network.removeprefix(SLIM).partition("-stem")
    network = f"{name.partition('-')[0]}-w{len(plain_body.conv1.weight)}"
    network += f"-stem{reduction}" if reduction else ""
    found = Classifier(plain_body, student.spec, student.classes, student.reading)
    return found, replace(card, network=network)


def _scores_at(summary: Mapping[str, Any], width: float, where: str) -> dict[str, Any]:
    """The summary of a slimmable student at a share of its width: what was not measured there is
    missing."""
    try:
        told = dict(summary["widths"][f"{width:g}"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where}: its summary.json is damaged") from None
    missing = (
        "kl", "student_ece", "student_binary", "teacher_binary", "student_balanced_accuracy",
        "top5", "held_out_balance",
    )  # fmt: skip
    kept = {key: value for key, value in summary.items() if key not in missing}
    told |= {
        "student_parameters": told.pop("parameters"),
        "student": f"{summary.get('student')} at width {width:g}",
    }
    return kept | told


def _show(
    done: Sequence[Exported], conditions: Sequence[latency.Conditions], folder: Path,
    display: Display,
) -> None:  # fmt: skip
    """A row a file, and the truth about 8-bit integers."""
    rows = [
        (f.name, f"{f.megabytes:.2f}", f"{f.milliseconds:.3g}", f"{f.batched:.3g}",
         f"{f.parity.agreement:.1%} of {f.parity.images:,}", f"{f.parity.largest:.2g}",
         f"{f.truth.scored.accuracy:.2%}" if f.truth and f.truth.scored else "")
        for f in done
    ]  # fmt: skip
    header = ("file", "MB", "ms alone", "ms in 64s", "same votes", "largest difference", "accuracy")
    scores = [f.truth.scored for f in done if f.truth and f.truth.scored]
    if scores:
        rows = [
            (*row[:6], row[6] or f"{scores[0].float_accuracy:.2%}" if ".onnx" in row[0] else "")
            for row in rows
        ]
    cut = len(header) if scores else len(header) - 1
    display.table(f"exported to {folder}", header[:cut], [row[:cut] for row in rows])
    display.say("times: " + "; ".join(str(one) for one in conditions))
    for one in done:
        if one.truth:
            display.say(
                f"{one.name}: calibrated on {one.truth.calibrated}; on {one.truth.judged} "
                f"{one.truth.parity.agreement:.1%} same votes, {one.truth.parity.balanced:.1%} as "
                f"a mean over {one.truth.parity.groups}"
            )
            display.say(f"use {one.truth.use}: {one.truth.because}")


def _findings(done: Sequence[Exported], manifest: Mapping[str, Any], classes: int) -> list[Finding]:
    """What is to be said of the files."""
    found = []
    parity = done[0].parity
    if parity.named < 2:
        does = f"names one of {classes:,} classes on"
        if parity.independent:
            does = f"gives one answer, no or yes, to all {classes:,} classes of"
        found.append(Finding(
            "names-one-class",
            f"the student {does} all {parity.images:,} images: that "
            "a file votes as it does proves nothing", "distil it again, with more --minutes",
        ))  # fmt: skip
    chosen = manifest.get("student_chosen")
    promised = chosen.get("latency_ms") if isinstance(chosen, dict) else None
    onnx = [f.milliseconds for f in done if f.name == "student.onnx"]
    if isinstance(promised, float) and onnx and chosen:
        same = chosen.get("machine") == latency.machine_name()
        if same and onnx[0] > LATER * promised > 0:
            found.append(Finding(
                "slower-than-promised",
                f"student.onnx takes {onnx[0]:.3g} ms for an image, and {promised:.3g} ms were "
                "measured when the student was chosen", "export it again when the machine is idle",
            ))  # fmt: skip
    return found


def _paths_in(path: Path) -> list[Finding]:
    """Whether a student's file says how it is rebuilt by a path of this machine."""
    card = read_card(path)
    if not any(_ABSOLUTE.search(text) for text in (card.network, card.of, *card.args.values())):
        return []
    return [Finding(
        "names-a-path", f"{path.name} names the code that rebuilds it by a path of this machine",
        "publish another format, or distil it again with a relative path",
    )]  # fmt: skip


def _promised_threads(manifest: Mapping[str, Any]) -> int | None:
    """The threads with which a time was promised, if one was."""
    chosen = manifest.get("student_chosen")
    threads = chosen.get("threads") if isinstance(chosen, dict) else None
    if isinstance(threads, int) and 1 <= threads <= (os.cpu_count() or 1):
        return threads
    return None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of torch's, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Pictures:
    """uint8 images [N, C, H, W] to calibrate on, and others to compare on."""

    calibration: Tensor
    compared: Tensor  # the first of them of the same kind as those
    judged: int  # how many of the same kind
    kind: str


def _pictures(path: Path, network: Shipped) -> Pictures:
    """Images of the run itself, half and half; where it kept none, drawings."""
    spec = network.student.spec
    count = min(COMPARED, max(FEWEST, PIXELS // (spec.height * spec.width)))
    fewer = min(CALIBRATED, count // 2)
    made = to_uint8(drawings(spec, count + fewer, generator_for(0, "export")))
    place = path / CALIBRATION
    own = torch.empty(0)
    if place.is_file():
        own = load_images(str(place), spec, classes=network.student.classes, labelled=False).pixels
    if len(own) < LEAST_OWN:
        return Pictures(made[count:], made[:count], count, "drawings")
    first, second = own[::2][:fewer], own[1::2]
    compared = torch.cat([second, made])[:count]
    return Pictures(first, compared, min(len(second), count), "synthetic images of the run")


@dataclass(frozen=True)
class Export:
    """One export: what is written, where, and on which images it is compared."""

    path: Path
    folder: Path
    network: Shipped
    pictures: Pictures
    label: Images | None
    display: Display
    narrow: Card | None = None  # of a student that is not as wide as the run's

    def all(
        self, wanted: Sequence[str], metadata: Mapping[str, str], *, int8: bool, trust_code: bool
    ) -> list[Exported]:
        """Writes the files of the wanted formats, each compared with the student."""
        works: dict[str, Callable[[Path], Answer]] = {
            "safetensors": partial(self._copied, trust_code=trust_code),
            "onnx": partial(writers.to_onnx, self.network, metadata=metadata),
            "pt2": partial(writers.to_pt2, self.network, metadata=metadata),
            "executorch": partial(writers.to_executorch, self.network),
        }
        ends = {"executorch": "pte"}
        answers: dict[str, Answer] = {}
        compared: dict[str, writers.Parity] = {}
        for kind in wanted:
            name = f"student.{ends.get(kind, kind)}"
            answers[name], compared[name] = self._written(name, works[kind])
            if kind == "onnx" and int8:
                calibration = self.network.fed(self.pictures.calibration)
                name = "student.int8.onnx"
                answers[name], compared[name] = self._written(
                    name, lambda place, images=calibration: writers.to_int8(  # type: ignore[misc]
                        self.folder / "student.onnx", place, images, metadata
                    ), exact=False,
                )  # fmt: skip
        times = self._timed(answers)
        done = [
            Exported(name, (self.folder / name).stat().st_size / 1e6, *times[name], compared[name])
            for name in answers
        ]
        by_name = {f.name: f for f in done}
        return [
            replace(f, truth=self._truth(f, by_name["student.onnx"], answers))
            if f.name == "student.int8.onnx" else f
            for f in done
        ]  # fmt: skip

    def _fed(self, name: str, pixels: Tensor) -> Tensor:
        """Images as a file takes them."""
        return to_float(pixels) if name == "student.safetensors" else self.network.fed(pixels)

    def _written(
        self, name: str, write: Callable[[Path], Answer], *, exact: bool = True
    ) -> tuple[Answer, writers.Parity]:
        """Writes one file, reads it back and compares it."""
        own = Shipped(self.network.student) if name == "student.safetensors" else self.network
        try:
            answer = write(self.folder / name)
            images = self._fed(name, self.pictures.compared)
            parity = writers.compared(own, answer, images)
        except InputError:
            raise
        except Exception as error:  # whatever the converters raise at other people's networks
            said = quoted(" ".join(str(error).split()), 160)
            raise InputError(f"{name}: this student cannot be exported this way: {said}") from None
        if exact and not parity.holds:
            raise InputError(
                f"{name}: the exported file votes differently on {1 - parity.agreement:.2%} of "
                f"{parity.images:,} images (largest difference {parity.largest:.2g} of "
                f"{parity.scale:.2g}): not kept"
            )
        self.display.say(f"{name}: written, {parity.agreement:.1%} same votes")
        return answer, parity

    def _timed(self, answers: Mapping[str, Answer]) -> dict[str, tuple[float, float]]:
        """Milliseconds of each; those of the same input in turns."""
        found: dict[str, tuple[float, float]] = {}
        for copy in (True, False):
            part = {k: v for k, v in answers.items() if (k == "student.safetensors") == copy}
            if part:
                images = self._fed(next(iter(part)), self.pictures.compared[:64])
                found |= writers.timed(part, images)
        return found

    def _copied(self, place: Path, *, trust_code: bool) -> Answer:
        """The student's file, and how it answers when it is read back."""
        if self.narrow:
            save_student(self.network.student, self.narrow, place)
        else:
            files.write_atomic(place, (self.path / "student.safetensors").read_bytes())
        again, _ = load_classifier(
            StudentTable(spec=str(self.folder)), TeacherTable(), trust_code=trust_code
        )
        again.eval().requires_grad_(False)
        return again

    def _truth(
        self, small: Exported, wide: Exported, answers: Mapping[str, Answer]
    ) -> writers.Truth:
        """What 8-bit integers bring and cost beside the float file."""
        pictures = self.pictures
        answer, other = answers[small.name], answers[wide.name]
        judged = self.network.fed(pictures.compared[: pictures.judged])
        parity = writers.compared(self.network, answer, judged)
        scored = None
        if self.label is not None and self.label.labels is not None:
            images = self.network.fed(self.label.pixels)
            scored = writers.scored(self.network, answer, other, images, self.label.labels)
        speed = wide.milliseconds / small.milliseconds
        better, because = writers.chosen(speed, parity, scored)
        return writers.Truth(
            f"{len(pictures.calibration):,} {pictures.kind}", f"{len(judged):,} others", parity,
            speed, small.megabytes / wide.megabytes, scored,
            small.name if better else wide.name, because,
        )  # fmt: skip
