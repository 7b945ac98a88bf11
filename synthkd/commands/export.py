"""`synthkd export`: a student as files that run in production, each compared with the original."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from synthkd import files, shipping
from synthkd.commands.display import Display
from synthkd.errors import InputError, quoted
from synthkd.inspection import drawings
from synthkd.networks.classifier import Classifier
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.runs import claim, free_name
from synthkd.seeds import source
from synthkd.specs import load_classifier

COMPARED = 1000  # images
CALIBRATION = 512  # others, for int8


def run(
    path: Path, *, formats: str = "onnx", int8: bool = False, out: Path | None = None,
    trust_code: bool = False, as_json: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Exports the student of a run and writes its model card. Returns what was written.

    A file whose answers differ from the student's is an error and is taken away."""
    display = Display(quiet=quiet or as_json)
    wanted = [word.strip() for word in formats.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in shipping.FORMATS]
    if unknown or not wanted:
        known = ", ".join(shipping.FORMATS)
        raise InputError(f"--format {quoted(formats)}: known: {known}")
    if int8 and "onnx" not in wanted:
        raise InputError("--int8 makes a second ONNX file: add onnx to --format")
    where = f"export {quoted(path)}: no finished run is here"
    summary, manifest = (
        files.read_table(path / name, where) for name in ("summary.json", "manifest.json")
    )
    student, names = load_classifier(
        StudentTable(spec=str(path)), TeacherTable(), trust_code=trust_code
    )
    student.eval().requires_grad_(False)
    try:
        shipping.model_card(summary, manifest, [], names)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{where}: its summary.json or manifest.json is damaged") from None
    found = files.sha256_of(path / "student.safetensors")
    if found != summary["student_sha256"]:  # its scores would be another student's
        raise InputError(
            f"export {quoted(path)}: its student.safetensors (SHA-256 {found[:12]}…) is not the "
            f"student that its summary.json tells of ({quoted(summary['student_sha256'], 12)}): "
            "copy the run directory again, as a whole"
        )
    folder = out or free_name(path / "export")
    claim(folder)
    try:
        done = _exported(path, student, folder, wanted, display, int8=int8, trust_code=trust_code)
    except BaseException:  # no half of an export
        shutil.rmtree(folder)
        raise
    files.write_atomic(folder / "README.md", shipping.model_card(summary, manifest, done, names))
    result = {"folder": str(folder), "files": [asdict(f) for f in done]}
    files.write_json(folder / "export.json", result)
    rows = [
        (f.name, f"{f.megabytes:.2f}", f"{f.milliseconds:.2f}", f"{f.batched:.3f}",
         f"{f.parity.agreement:.1%} of {f.parity.images:,}", f"{f.parity.largest:.2g}")
        for f in done
    ]  # fmt: skip
    header = ("file", "MB", "ms alone", "ms in 64s", "same votes", "largest difference")
    display.table(f"exported to {folder}", header, rows)
    if as_json:
        print(json.dumps(result, indent=2))
    return result


def _exported(
    path: Path, student: Classifier, folder: Path, wanted: Sequence[str], display: Display, *,
    int8: bool, trust_code: bool,
) -> list[shipping.Exported]:  # fmt: skip
    """Writes the files of the wanted formats, each compared with the student."""
    images = drawings(student.spec, COMPARED + CALIBRATION, source(0, "export"))
    compare, calibration = images[:COMPARED], images[COMPARED:]
    done: list[shipping.Exported] = []

    def ship(name: str, write: Callable[[Path], shipping.Answer], *, exact: bool = True) -> None:
        try:
            answer = write(folder / name)
            parity = shipping.compared(student, answer, compare)
        except InputError:
            raise
        except Exception as error:  # whatever the converters raise at networks of strangers
            said = quoted(" ".join(str(error).split()), 160)
            raise InputError(f"{name}: this student cannot be exported so: {said}") from None
        if exact and not parity.holds:
            raise InputError(
                f"{name}: the exported file votes otherwise on {1 - parity.agreement:.2%} of "
                f"{parity.images:,} images (largest difference {parity.largest:.2g} of "
                f"{parity.scale:.2g}): not kept"
            )
        alone, batched = shipping.timed(answer, compare)
        size = (folder / name).stat().st_size / 1e6
        done.append(shipping.Exported(name, size, alone, batched, parity))
        display.say(f"{name}: {size:.2f} MB, {parity.agreement:.1%} same votes")

    def copied(place: Path) -> shipping.Answer:
        """The student's file, and how it answers when it is read back."""
        files.write_atomic(place, (path / "student.safetensors").read_bytes())
        again, _ = load_classifier(
            StudentTable(spec=str(folder)), TeacherTable(), trust_code=trust_code
        )
        again.eval().requires_grad_(False)
        return again

    for kind in wanted:
        if kind == "safetensors":
            ship("student.safetensors", copied)
        elif kind == "onnx":
            ship("student.onnx", partial(shipping.to_onnx, student))
            if int8:
                small = partial(shipping.to_int8, folder / "student.onnx", calibration=calibration)
                ship("student.int8.onnx", small, exact=False)
        elif kind == "pt2":
            ship("student.pt2", partial(shipping.to_pt2, student))
        else:
            ship("student.pte", partial(shipping.to_executorch, student))
    return done
