"""`synthkd predict`: classes and probabilities of images, by the student of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from synthkd.commands.display import Display
from synthkd.errors import InputError
from synthkd.images import in_cache, to_float
from synthkd.pictures import read_pictures
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import load_classifier


def run(
    path: Path, images: Sequence[Path], *, top: int = 3, trust_code: bool = False,
    as_json: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """The `top` most probable classes of every image."""
    if not images:
        raise InputError("predict wants images: synthkd predict RUN IMAGE…")
    if top < 1:
        raise InputError(f"--top {top}: at least 1")
    student, names = load_classifier(
        StudentTable(spec=str(path)), TeacherTable(), trust_code=trust_code
    )
    pixels = read_pictures("predict", images, student.spec)
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
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return found
    rows = [
        (one["image"] if i == 0 else "", c["name"], f"{c['probability']:.1%}")
        for one in found
        for i, c in enumerate(one["classes"])
    ]
    Display().table("predictions", ("image", "class", "probability"), rows)
    return found
