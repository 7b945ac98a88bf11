"""How strongly each term of a student's loss counts, as it learns.

k terms of a run, w their weights in `[training.terms]`, L their values for a batch.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError

GRADNORM_EVERY = 20  # steps between two measurements of gradients
GRADNORM_KEPT = 0.9  # share of a factor that outlives a measurement
GRADNORM_POWER = 1.0  # of a term's relative rate of training
MIDDLE, STEEPNESS = 0.8, 20.0  # agreement at which both kinds of terms count alike
LEAST = 0.1  # share of either kind


class Weighting(nn.Module):
    """Turns the values of the terms into one loss:  sum over k of  factor · w · L.

    Here all factors are 1. What a weighting learns or remembers is saved with the student.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.names = tuple(weights)

    def factors(self, share: float) -> dict[str, float]:
        """The factor of each term now; `share` is what a controller says (`TwoKinds`)."""
        return dict.fromkeys(self.names, 1.0)

    def forward(self, values: Mapping[str, Tensor], share: float) -> Tensor:
        """The loss, of a scalar of each term."""
        found = self.factors(share)
        total: Tensor | None = None
        for name, value in values.items():
            weight = self.weights[name] * found[name]
            part = value if weight == 1 else weight * value
            total = part if total is None else total + part
        assert total is not None
        return total


class TwoKinds(Weighting):
    """Terms that compare answers count 2 · a, those that look inside 2 · (1 − a), 0 < a < 1."""

    def __init__(self, weights: Mapping[str, float], inside: frozenset[str]) -> None:
        super().__init__(weights)
        self.inside = inside
        if not inside or len(inside) == len(self.names):
            raise InputError(
                "training.weighting: capacity and agreement weigh terms that compare answers "
                "against terms that look inside: give both kinds in training.terms"
            )

    def answers(self, share: float) -> float:
        """a."""
        return share

    def factors(self, share: float) -> dict[str, float]:
        """By a."""
        a = self.answers(share)
        return {name: 2 * (1 - a if name in self.inside else a) for name in self.names}


class Capacity(TwoKinds):
    """a = σ(r · (1 − a)), r the student's number of weights over the teacher's: the fixed point of
    α = σ(r · β), β = 1 − α. It lies between 0.5 and 0.6 for every smaller student (`capacity`), so
    it is for comparison."""

    def __init__(self, weights: Mapping[str, float], inside: frozenset[str], ratio: float) -> None:
        super().__init__(weights, inside)
        self.a = capacity(ratio)

    def answers(self, share: float) -> float:
        """A constant."""
        return self.a


def capacity(ratio: float) -> float:
    """The share a that solves a = σ(ratio · (1 − a)).

    >>> [round(capacity(r), 3) for r in (0.01, 0.1, 0.5, 1.0)]
    [0.501, 0.512, 0.555, 0.599]
    """
    a = 0.5
    for _ in range(200):
        a = 0.5 * (a + 1 / (1 + math.exp(-ratio * (1 - a))))
    return a


def answers_share(agreement: float) -> float:
    """The share of terms that compare answers, by how often student and teacher agree: features
    first, then answers.

        a = 0.1 + 0.8 · σ(20 · (agreement − 0.8))

    Answers alone teach the last layer, so their share never goes below a tenth.

    >>> [round(answers_share(x), 3) for x in (0.0, 0.6, 0.8, 0.9)]
    [0.1, 0.114, 0.5, 0.805]
    """
    return LEAST + (1 - 2 * LEAST) / (1 + math.exp(-STEEPNESS * (agreement - MIDDLE)))


class Uncertainty(Weighting):
    """sum over k of  exp(−q) · w · L + q,  q learned, 0 at first.

    Homoscedastic uncertainty, Kendall, Gal & Cipolla 2018 (https://arxiv.org/abs/1705.07115),
    section 3. At rest exp(−q) = 1 / (w · L): each term counts by its relative change, so weights
    only say where it begins.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.q = nn.Parameter(torch.zeros(len(self.names)))

    def factors(self, share: float) -> dict[str, float]:
        """exp(−q)."""
        return dict(zip(self.names, self.q.detach().neg().exp().tolist(), strict=True))

    def forward(self, values: Mapping[str, Tensor], share: float) -> Tensor:
        """The loss, of a scalar of each term."""
        weighted = torch.stack([self.weights[name] * values[name] for name in self.names])
        return (self.q.neg().exp() * weighted + self.q).sum()


class GradNorm(Weighting):
    """Factors by which the terms' gradients have sizes that go with how far behind each is.

        wanted = mean over k of |g| · (ρ / mean of ρ),   ρ = L / L at the first measurement
        factor ← 0.9 · factor + 0.1 · factor · wanted / |g|,   then all are scaled to a mean of 1

    g is the gradient of factor · w · L by all weights of the student, measured at every 20th step;
    a term without one keeps its factor. After Chen et al. 2018 (https://arxiv.org/abs/1711.02257),
    section 3, with the solution of its inner problem in the place of a step towards it.
    """

    factor: Tensor
    first: Tensor

    def __init__(self, weights: Mapping[str, float], student: nn.Module) -> None:
        super().__init__(weights)
        self._of_student = tuple(p for p in student.parameters() if p.requires_grad)
        self.register_buffer("factor", torch.ones(len(self.names)))
        self.register_buffer("first", torch.zeros(len(self.names)))
        self.steps = 0
        self._told: dict[str, float] = {}  # the factors as numbers: a GPU is asked for them once

    def get_extra_state(self) -> dict[str, int]:
        """The steps taken."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Goes on from a saved state."""
        self.steps, self._told = int(state["steps"]), {}

    def factors(self, share: float) -> dict[str, float]:
        """As they were measured last."""
        self._told = self._told or dict(zip(self.names, self.factor.tolist(), strict=True))
        return self._told

    def forward(self, values: Mapping[str, Tensor], share: float) -> Tensor:
        """The loss, of a scalar of each term."""
        if self.steps % GRADNORM_EVERY == 0 and torch.is_grad_enabled():
            self._measure(values)
        self.steps += 1
        return super().forward(values, share)

    def _measure(self, values: Mapping[str, Tensor]) -> None:
        sizes = []
        for name, factor in self.factors(0).items():
            part = factor * self.weights[name] * values[name]
            slopes = torch.autograd.grad(
                part, self._of_student, retain_graph=True, allow_unused=True
            )
            squares = [slope.float().square().sum() for slope in slopes if slope is not None]
            sizes.append(torch.stack(squares).sum().sqrt() if squares else torch.zeros(()))
        found = torch.stack([size.to(self.factor.device) for size in sizes])
        now = torch.stack([values[name].detach().float() for name in self.names])
        if not bool(self.first.any()):
            self.first.copy_(now.abs().clamp_min(1e-12))
        behind = (now.abs() / self.first).clamp(1e-3, 1e3)
        wanted = found.mean() * (behind / behind.mean()) ** GRADNORM_POWER
        moved = self.factor * (wanted / found.clamp_min(1e-12)).clamp(0.1, 10)
        moved = torch.where(found > 0, moved, self.factor)
        mixed = GRADNORM_KEPT * self.factor + (1 - GRADNORM_KEPT) * moved
        self.factor.copy_(mixed / mixed.mean())
        self._told = {}


def weighting_of(
    kind: str, weights: Mapping[str, float], inside: frozenset[str], student: nn.Module,
    teacher_size: int,
) -> Weighting:  # fmt: skip
    """The weighting of `training.weighting`; terms `inside` look inside both networks."""
    if kind == "fixed":
        return Weighting(weights)
    if len(weights) < 2:
        raise InputError(
            f"training.weighting {kind} weighs terms against one another, and training.terms has "
            "one: give another"
        )
    if kind == "agreement":
        return TwoKinds(weights, inside)
    if kind == "capacity":
        size = sum(p.numel() for p in student.parameters())
        return Capacity(weights, inside, size / max(1, teacher_size))
    return Uncertainty(weights) if kind == "uncertainty" else GradNorm(weights, student)
