"""`synthkd export`: a student as files that run in production, each compared with the original."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from synthkd import files, shipping
from synthkd.commands.display import Display
from synthkd.errors import InputError, quoted
from synthkd.inspection import drawings
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.runs import claim
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
    folder = out or path / "export"
    claim(folder)
    spec = student.spec
    images = drawings(spec, COMPARED + CALIBRATION, source(0, "export"))
    compare, calibration = images[:COMPARED], images[COMPARED:]
    done: list[shipping.Exported] = []

    def ship(name: str, answer: shipping.Answer, *, exact: bool = True) -> None:
        parity = shipping.compared(student, answer, compare)
        if exact and not parity.holds:
            (folder / name).unlink(missing_ok=True)
            raise InputError(
                f"{name}: the exported file votes otherwise on {1 - parity.agreement:.2%} of "
                f"{parity.images:,} images (largest difference {parity.largest:.2g}): not kept"
            )
        alone, batched = shipping.timed(answer, compare)
        size = (folder / name).stat().st_size / 1e6
        done.append(shipping.Exported(name, size, alone, batched, parity))
        display.say(f"{name}: {size:.2f} MB, {parity.agreement:.1%} same votes")

    def plain(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return student(batch)  # type: ignore[no-any-return]

    for kind in wanted:
        if kind == "safetensors":
            files.write_atomic(
                folder / "student.safetensors", (path / "student.safetensors").read_bytes()
            )
            ship("student.safetensors", plain)
        elif kind == "onnx":
            ship("student.onnx", shipping.to_onnx(student, folder / "student.onnx"))
            if int8:
                made = shipping.to_int8(
                    folder / "student.onnx", folder / "student.int8.onnx", calibration
                )
                ship("student.int8.onnx", made, exact=False)
        elif kind == "pt2":
            ship("student.pt2", shipping.to_pt2(student, folder / "student.pt2"))
        else:
            ship("student.pte", shipping.to_executorch(student, folder / "student.pte"))
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
