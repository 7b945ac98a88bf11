"""At which smaller sizes a teacher still answers sensibly: there its answers cost less.

C H W of an image.
"""

from collections.abc import Mapping

import torch

from synthkd.core.images import resized
from synthkd.losses.synthesis import View, statistics
from synthkd.synthesis.drawings import assorted
from synthkd.teachers.protocol import Teacher

LOOKED_AT = 32  # drawings
SIDES = (0.25, 0.375, 0.5, 0.75)  # shares of the full side that are tried
SMALLEST = 16  # pixels of a side that is tried
MORE = 1.5  # times the gap at full size that is still sensible
STEPS = (0.5, 0.35, 0.15)  # shares of the steps at up to three sizes, the smallest first


@torch.no_grad()
def gaps(teacher: Teacher) -> dict[float, float]:
    """How far drawings are from the teacher's BatchNorm statistics (`losses.synthesis.statistics`),
    by the share of the full side at which it sees them, 1.0 included; sizes that it does not take
    are left out, and all of them where it has no such statistics or cannot be looked into."""
    if "statistics" not in teacher.abilities:
        return {}
    spec, images = teacher.spec, assorted(LOOKED_AT, teacher.spec.shape).to(teacher.device)
    before, none = teacher.queries, torch.empty(0)
    found: dict[float, float] = {}
    for side in (*SIDES, 1.0):
        size = scaled(spec.shape, side)
        if min(size) < SMALLEST and side < 1:
            continue
        try:
            seen = teacher.observe(resized(images, size), features=False)
        except Exception:  # whatever a network raises at a size that it was not made for
            continue
        if len(seen.moments) == len(teacher.stored) and seen.logits.isfinite().all():
            view = View(images, none, none, moments=seen.moments, stored=teacher.stored)
            found[side] = float(statistics(view))
    teacher.queries = before  # asked about nothing of a run
    return found if 1.0 in found else {}


def scaled(shape: tuple[int, int, int], side: float) -> tuple[int, int]:
    """Height and width at a share of the full side, in even numbers, 8 at least.

    >>> scaled((3, 224, 223), 0.5), scaled((3, 224, 223), 1.0)
    ((112, 112), (224, 223))
    """
    if side >= 1:
        return shape[1], shape[2]
    height, width = (max(8, 2 * round(side * full / 2)) for full in shape[1:])
    return height, width


def scales(found: Mapping[float, float]) -> dict[float, float]:
    """How steps are divided over sizes, by the `gaps` there: from the smallest at which the gap is
    at most MORE times that at full size, by way of one in between, to the full size.

    >>> scales({0.25: 1.9, 0.375: 1.2, 0.5: 1.0, 0.75: 0.9, 1.0: 1.0})
    {0.375: 0.5, 0.5: 0.35, 1.0: 0.15}
    >>> scales({0.5: 3.0, 1.0: 1.0}), scales({0.75: 1.0, 1.0: 1.0})
    ({}, {0.75: 0.85, 1.0: 0.15})
    """
    full = found.get(1.0, 0.0)
    good = sorted(side for side, gap in found.items() if side < 1 and gap <= MORE * full)
    if not good:
        return {}
    between = [side for side in good[1:] if side >= 1.3 * good[0]]
    if not between:
        return {good[0]: round(STEPS[0] + STEPS[1], 6), 1.0: STEPS[2]}
    middle = min(between, key=lambda side: abs(side - (good[0]) ** 0.5))
    return dict(zip((good[0], middle, 1.0), STEPS, strict=True))


def mean_area(scales: Mapping[float, float]) -> float:
    """The mean area of images, as a share of the full one, over all steps.

    >>> mean_area({}), mean_area({0.5: 0.8, 1.0: 0.2})
    (1.0, 0.4)
    """
    return sum(share * side**2 for side, share in scales.items()) if scales else 1.0
