"""A teacher looked at without any data: drawings to show it, and what it costs.

B images, C channels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.core.images import ImageSpec
from synthkd.students.auto import operations
from synthkd.synthesis.drawings import DRAWINGS
from synthkd.teachers.protocol import Teacher

TRIED = 2**19  # pixels in a batch that is timed: 64 images of 90 x 90, 10 of 224 x 224


@dataclass(frozen=True)
class Costs:
    """What a teacher costs on this machine."""

    flops: float | None  # multiplications and additions of one answer; None: not known
    answer: float  # seconds per image
    gradient: float | None  # seconds per image-step, answer included; None: it passes none


def drawings(spec: ImageSpec, count: int, rng: torch.Generator) -> Tensor:
    """Drawings of every kind in equal parts, [B, C, H, W] in 0..1."""
    kinds = list(DRAWINGS.values())
    parts = [kind((count + i) // len(kinds), *spec.shape, rng) for i, kind in enumerate(kinds)]
    return torch.cat(parts)[torch.randperm(count, generator=rng)]


def costs(teacher: Teacher, *, seconds: float = 1.0) -> Costs:
    """Operations by counting, times by trying batches for so many seconds each."""
    device = teacher.device
    count = max(4, min(64, TRIED // (teacher.spec.height * teacher.spec.width)))
    batch = torch.rand(count, *teacher.spec.shape, device=device)

    def answer() -> None:
        with torch.no_grad():
            teacher(batch)

    def gradient() -> None:
        moved = batch.clone().requires_grad_()
        teacher.observe(moved).logits.sum().backward()  # type: ignore[no-untyped-call]

    return Costs(
        operations(teacher) or None, _lap(answer, seconds, device) / count,
        _lap(gradient, seconds, device) / count if teacher.access == "full" else None,
    )  # fmt: skip


def _lap(work: Callable[[], None], seconds: float, device: torch.device) -> float:
    def lap() -> None:
        work()
        if device.type == "cuda":  # where work is only begun
            torch.cuda.synchronize(device)

    lap()
    laps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        lap()
        laps += 1
    return (time.perf_counter() - started) / laps
