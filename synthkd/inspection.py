"""A teacher looked at without any data: its card, and what seems wrong with it.

B images, C channels, K classes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synthkd.images import ImageSpec
from synthkd.networks.classifier import Classifier
from synthkd.synthesis.drawings import DRAWINGS
from synthkd.teachers import Teacher

LOOKED_AT = 1024  # drawings
# what networks are commonly fed: name -> mean, deviation of pixels in 0..1
NORMALISATIONS: Mapping[str, tuple[float, float]] = {
    "pixels in 0..1 (mean 0, std 1)": (0.0, 1.0),
    "pixels in -1..1 (mean 0.5, std 0.5)": (0.5, 0.5),
    "pixels in 0..255 (mean 0, std 1/255)": (0.0, 1 / 255),
    "ImageNet's mean and std": (-1.0, -1.0),
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Costs:
    """What a teacher costs on this machine."""

    flops: float  # multiplications and additions of one answer
    answer: float  # seconds per image
    gradient: float | None  # seconds per image-step, answer included; None: it passes none


def drawings(spec: ImageSpec, count: int, rng: torch.Generator) -> Tensor:
    """Drawings of every kind in equal parts, [B, C, H, W] in 0..1."""
    kinds = list(DRAWINGS.values())
    parts = [kind((count + i) // len(kinds), *spec.shape, rng) for i, kind in enumerate(kinds)]
    return torch.cat(parts)[torch.randperm(count, generator=rng)]


def costs(teacher: Teacher, *, seconds: float = 1.0) -> Costs:
    """Operations by counting, times by trying batches for so many seconds each."""
    device = teacher.classifier.mean.device
    one = torch.rand(1, *teacher.spec.shape, device=device)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            teacher.plainly(one)
        flops = float(counter.get_total_flops())
    except Exception:  # graphs and black boxes are not all countable
        flops = 0.0
    batch = torch.rand(64, *teacher.spec.shape, device=device)

    def answer() -> None:
        with torch.no_grad():
            teacher(batch)

    def gradient() -> None:
        moved = batch.clone().requires_grad_()
        teacher.observe(moved).logits.sum().backward()  # type: ignore[no-untyped-call]

    return Costs(
        flops, _lap(answer, seconds, device) / 64,
        _lap(gradient, seconds, device) / 64 if teacher.access == "full" else None,
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


@torch.no_grad()
def warnings(teacher: Teacher) -> list[str]:
    """What is suspicious, a line each; an empty list says nothing good, only nothing bad."""
    rng = torch.Generator().manual_seed(0)
    device = teacher.classifier.mean.device
    images = drawings(teacher.spec, LOOKED_AT, rng).to(device)
    logits = torch.cat([teacher(part) for part in torch.split(images, 64)])
    found = []
    votes = torch.bincount(logits.argmax(1), minlength=teacher.classes)
    unseen = (votes == 0).nonzero().flatten().tolist()
    if unseen:
        named = ", ".join(teacher.names[k] for k in unseen[:10])
        more = f" and {len(unseen) - 10} more" if len(unseen) > 10 else ""
        found.append(
            f"{len(unseen)} of {teacher.classes} classes were never seen in {LOOKED_AT:,} drawings "
            f"({named}{more}): they need gradients, or do not exist"
        )
    if len(logits) and float(logits.std(0).max()) < 1e-4:
        found.append("it answers alike whatever it is shown: are these the right weights?")
    fresh = [
        norm for norm in teacher.norms
        if _all(norm.running_mean, 0.0) and _all(norm.running_var, 1.0)
    ]  # fmt: skip
    if fresh:
        found.append(
            f"{len(fresh)} of {len(teacher.norms)} BatchNorm layers have their initial statistics "
            "(0 and 1): it was never trained, or its buffers are missing"
        )
    elif teacher.norms:
        found += _contract_doubts(teacher)
    return found


def _all(values: Tensor | None, number: float) -> bool:
    return values is not None and bool(values.eq(number).all())


def _contract_doubts(teacher: Teacher) -> list[str]:
    """Compares its input contract with the common ones by the statistics that its first BatchNorm
    layer remembers: natural-like images should look to it as its training images did."""
    rng = torch.Generator().manual_seed(1)
    spec = teacher.spec
    device = teacher.classifier.mean.device
    images = torch.cat([
        DRAWINGS[kind](128, *spec.shape, rng) for kind in ("spectrum", "leaves", "shaders")
    ]).to(device)  # fmt: skip
    own = _first_distance(teacher, teacher.classifier, images)
    found: dict[str, float] = {}
    for name, (mean, std) in NORMALISATIONS.items():
        channels = spec.channels
        means = (mean,) * channels if mean >= 0 else IMAGENET[0][:channels]
        stds = (std,) * channels if std > 0 else IMAGENET[1][:channels]
        if len(means) != channels or (_alike(means, spec.mean) and _alike(stds, spec.std)):
            continue
        other = Classifier(
            teacher.classifier.body, replace(spec, mean=means, std=stds), teacher.classes,
            teacher.classifier.reading,
        ).to(device)  # fmt: skip
        found[name] = _first_distance(teacher, other, images)
    best = min(found, key=lambda name: found[name], default="")
    if best and found[best] < own / 3:
        return [
            f"its first BatchNorm layer fits {best} much better than the mean and std that were "
            f"given (distance {found[best]:.2f} against {own:.2f}): check --teacher-mean and "
            "--teacher-std"
        ]
    return []


def _alike(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) < 0.05 for x, y in zip(a, b, strict=True))


def _first_distance(teacher: Teacher, classifier: nn.Module, images: Tensor) -> float:
    """How far the first BatchNorm layer's input is from what it remembers: |Δmean| / σ and
    |log of the ratio of σ|, averaged over channels."""
    seen: list[Tensor] = []
    norm = teacher.norms[0]
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        classifier.eval()
        classifier(images)
    finally:
        handle.remove()
    x = seen[0].transpose(0, 1).flatten(1)
    assert norm.running_mean is not None and norm.running_var is not None
    sigma = norm.running_var.clamp_min(1e-12).sqrt()
    shift = (x.mean(1) - norm.running_mean).abs() / sigma
    spread = (x.std(1).clamp_min(1e-12) / sigma).log().abs()
    return float((shift + spread).mean())
