"""`--student auto`: the largest network of ours that a user's limits allow."""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from synthkd.errors import InputError
from synthkd.networks import build_network
from synthkd.networks.lenet import LeNet5
from synthkd.recipe import StudentTable
from synthkd.teachers import Teacher

# by family, the smallest first
CANDIDATES: dict[str, tuple[str, ...]] = {
    "resnet": (
        "resnet8-w4", "resnet8-w8", "resnet8-w12", "resnet8", "resnet14", "resnet20", "resnet32",
        "resnet56", "resnet20-w32",
    ),
    "lenet": ("lenet5-half", "lenet5"),
    "wide": ("wrn-16-1", "wrn-40-1", "wrn-16-2", "wrn-40-2"),
    "mobilenet": ("mobilenet-0.25", "mobilenet-0.5", "mobilenet"),
}  # fmt: skip
SHARE = 0.25  # of the teacher's weights, where no limit is given
UNKNOWN = 50_000  # weights, where the teacher's are unknown
TRIES = 20  # single images by which latency is measured


@dataclass(frozen=True)
class Candidate:
    """A student that might do, and what it costs."""

    name: str
    params: int
    flops: float  # per image
    latency_ms: float | None  # of a single image; None: not asked for


def best_student(table: StudentTable, teacher: Teacher) -> Candidate:
    """The candidate with the most weights within the limits; one of the teacher's own family first,
    since it can start from the teacher's layers. Without a limit it is a quarter of the teacher's
    weights.

    Raises InputError, with what the smallest costs, where none is small enough.
    """
    limit = table.max_params
    if limit is None and table.max_flops is None and table.max_latency_ms is None:
        # of a black box nobody knows the weights: then a student as large as our demo's
        limit = int(SHARE * teacher.parameters_count) or UNKNOWN
    family = "lenet" if isinstance(teacher.classifier.body, LeNet5) else "resnet"
    found: dict[str, list[Candidate]] = {}
    smallest: Candidate | None = None
    for kind, names in CANDIDATES.items():
        for name in names:
            body = _built(name, teacher)
            if body is None:
                continue
            one = _measured(name, body, teacher, latency=table.max_latency_ms is not None)
            if smallest is None or one.params < smallest.params:
                smallest = one
            if _fits(one, table, limit):
                found.setdefault(kind, []).append(one)
    if not found:
        told = "" if smallest is None else (
            f"; the smallest, {smallest.name}, has {smallest.params:,} weights and takes "
            f"{smallest.flops:,.0f} operations an image"
        )  # fmt: skip
        raise InputError(f"--student auto: no network of ours is within these limits{told}")
    own = found.get(family) or [one for group in found.values() for one in group]
    return max(own, key=lambda one: one.params)


def _fits(one: Candidate, table: StudentTable, most: int | None) -> bool:
    return (
        (most is None or one.params <= most)
        and (table.max_flops is None or one.flops <= table.max_flops)
        and (table.max_latency_ms is None or (one.latency_ms or 0.0) <= table.max_latency_ms)
    )


def _built(name: str, teacher: Teacher) -> nn.Module | None:
    """A candidate for the teacher's images; None where it cannot take them."""
    spec = teacher.spec
    try:
        body = build_network(
            name, channels=spec.channels, size=spec.shape[1:], classes=teacher.classes
        ).eval()
        with torch.no_grad():
            body(torch.zeros(1, *spec.shape))
    except (InputError, RuntimeError):
        return None
    return body


def _measured(name: str, body: nn.Module, teacher: Teacher, *, latency: bool) -> Candidate:
    one = torch.zeros(1, *teacher.spec.shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        body(one)
    took = None
    if latency:
        laps = []
        with torch.no_grad():
            for _ in range(TRIES):
                before = time.perf_counter()
                body(one)
                laps.append(time.perf_counter() - before)
        took = 1e3 * sorted(laps)[TRIES // 2]
    count = sum(p.numel() for p in body.parameters())
    return Candidate(name, count, float(counter.get_total_flops()), took)
