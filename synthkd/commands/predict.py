"""`synthkd predict`: classes and probabilities of images, by the student of a run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.commands.display import Display
from synthkd.errors import InputError, plain
from synthkd.findings import Finding
from synthkd.images import in_cache, to_float
from synthkd.pictures import read_pictures
from synthkd.recipe import StudentTable, TeacherTable, validated
from synthkd.specs import load_classifier

UNIFORM = 8.0  # deviation of pixels 0..255 below which an image shows nothing


def run(
    path: Path, images: Sequence[Path], *, top: int = 3, trust_code: bool = False,
    as_json: bool = False, data_range: str | None = None, data_background: str | None = None,
    data_resize: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The `top` most probable classes of every image."""
    if not images:
        raise InputError("predict wants images: synthkd predict RUN IMAGE…")
    if top < 1:
        raise InputError(f"--top {top}: at least 1")
    student, names = load_classifier(
        StudentTable(spec=str(path)), TeacherTable(), trust_code=trust_code
    )
    told = {"range": data_range, "background": data_background, "resize": data_resize}
    table = validated({"data": {k: v for k, v in told.items() if v is not None}}).data
    notes: list[Finding] = []
    pixels = read_pictures("predict", images, student.spec, notes, table)
    notes += _uniform(pixels)
    student.eval()
    with torch.no_grad():
        shares = torch.cat([student.probabilities(student(to_float(p))) for p in in_cache(pixels)])
    best = shares.topk(min(top, student.classes))
    found: list[dict[str, Any]] = [
        {
            "image": str(image),
            "classes": [
                {"class": k, "name": names[k] if names else str(k), "probability": p}
                for p, k in zip(values, classes, strict=True)
            ],
        }
        for image, values, classes in zip(
            images, best.values.tolist(), best.indices.tolist(), strict=True
        )
    ]
    if as_json:
        for note in notes:
            print(f"warning: {plain(str(note))}", file=sys.stderr)
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return found
    rows = [
        (one["image"] if i == 0 else "", c["name"], f"{c['probability']:.1%}")
        for one in found
        for i, c in enumerate(one["classes"])
    ]
    display = Display()
    display.findings(notes)
    display.table("predictions", ("image", "class", "probability"), rows)
    return found


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
