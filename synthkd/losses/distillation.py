"""What a student minimises: `learned` (student) compared with `taught` (teacher).

The formulas are functions of tensors. A term is a function of a `DistillationView`, all that
student and teacher show for one batch; `TERMS` names the terms, and `[training.terms]` sums them by
weight.
B batch, C channels, H height, W width, T tokens, D features, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.core.logits import paired
from synthkd.losses.term import Term


def soft_decisions(
    learned: Tensor, taught: Tensor, *, temperature: float = 4.0, per_sample: bool = False
) -> Tensor:
    """`soft_targets` where the classes are independent: a binary KL a class.

        T² · sum over K of  KL( Bernoulli(σ(taught / T)) ‖ Bernoulli(σ(learned / T)) )

    The binary relevance form of Hinton, Vinyals & Dean 2015 (https://arxiv.org/abs/1503.02531),
    as for the one-versus-all heads of Yang et al. 2023 (https://arxiv.org/abs/2308.06453).

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> soft_decisions(logits, logits).item()
    0.0
    """
    classes = taught.shape[1]
    learned, taught = paired(learned), paired(taught)
    if per_sample:
        each = soft_targets(learned, taught, temperature=temperature, per_sample=True)
        return each.view(-1, classes).sum(1)
    return classes * soft_targets(learned, taught, temperature=temperature)


def soft_targets(
    learned: Tensor, taught: Tensor, *, temperature: float = 4.0, per_sample: bool = False
) -> Tensor:
    """How far the student's softened answer is from the teacher's.

        T² · KL( softmax(taught / T) ‖ softmax(learned / T) )

    The factor T² keeps the size of the gradient when T changes.
    Hinton, Vinyals & Dean 2015, section 2: https://arxiv.org/abs/1503.02531

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B, or with
    `per_sample` [B].

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> soft_targets(logits, logits).item()
    0.0
    """
    p = F.log_softmax(taught.float() / temperature, dim=1)
    q = F.log_softmax(learned.float() / temperature, dim=1)
    if per_sample:
        return temperature**2 * F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")


def logit_l1(learned: Tensor, taught: Tensor, *, per_sample: bool = False) -> Tensor:
    """How far the student's logits are from the teacher's: mean of |t − s| over all B · K of them.

    The student's loss of DFAD, Fang et al. 2019: https://arxiv.org/abs/1912.11006

    `learned` and `taught` are logits [B, K]; the result is a scalar, or with `per_sample` [B].

    >>> logit_l1(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 1.0]])).item()
    2.0
    """
    if per_sample:
        return F.l1_loss(learned.float(), taught.float(), reduction="none").mean(1)
    return F.l1_loss(learned.float(), taught.float())


def attention_transfer(learned: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """Student and teacher look at the same places.

        sum over layers of  mean over B and positions of  (q(learned) − q(taught))²
        q(h) = the H · W values mean over C of h², divided by their L2 norm

    Each pair of maps is [B, C, H, W]; C may differ, H and W may not. Sum and mean are those of the
    public code of Zagoruyko & Komodakis 2017 (https://arxiv.org/abs/1612.03928) and of ZSKT, whose
    weight 250 stands beside a KL that is a mean over B · K as well.
    """
    pairs = zip(learned, taught, strict=True)
    return torch.stack([(_attention(s) - _attention(t)).square().mean() for s, t in pairs]).sum()


def _attention(maps: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H · W] of length 1."""
    return F.normalize(maps.float().square().mean(1).flatten(1), dim=1)


def feature_match(learned: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """The student's maps are the teacher's, relative, so one weight serves all layers.

        mean over layers of  mean (learned − taught)² / mean taught²

    Each pair of maps has one shape, [B, C, H, W]; an adapter, where one is needed, belongs to the
    caller. 1 where the student's are 0. After Romero et al. 2015: https://arxiv.org/abs/1412.6550
    """
    pairs = [(s.float(), t.float()) for s, t in zip(learned, taught, strict=True)]
    gaps = [F.mse_loss(s, t) / t.square().mean().clamp_min(1e-12) for s, t in pairs]
    return torch.stack(gaps).mean()


@dataclass(frozen=True)
class DistillationView:
    """One batch as student and teacher show it: everything that a distillation term may compare.

    Gradients run through what the student shows. Features are maps [B, C, H, W], tokens [B, T, D]
    or vectors [B, D], by layer name, of the layers that the terms of a run ask for; `pairs` says
    which layer of the student is compared with which of the teacher.
    """

    images: Tensor  # [B, C, H, W] in 0..1, as both saw them
    learned: Tensor  # [B, K] the student's logits
    taught: Tensor  # [B, K] the teacher's
    student_features: Mapping[str, Tensor]
    teacher_features: Mapping[str, Tensor]
    pairs: tuple[tuple[str, str], ...] = ()  # student's layer, teacher's layer
    slots: Tensor | None = None  # [B] place of each image in the memory, −1 where it is in none
    weights: Tensor | None = None  # [B] of each image in the loss; None: all alike
    temperature: float = 4.0
    independent: bool = False  # logits are log-odds: several classes, or none, may apply
    stage: str = ""
    progress: float = 0.0  # share of the student's training that is done, 0..1
    per_sample: bool = False  # a term returns its values [B] where it can, not their mean

    @property
    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """The pairs of maps of one size: student [B, C, H, W], teacher [B, C', H, W]."""
        found = [(self.student_features[s], self.teacher_features[t]) for s, t in self.pairs]
        return [(s, t) for s, t in found if s.dim() == t.dim() == 4 and s.shape[2:] == t.shape[2:]]


@dataclass(frozen=True)
class KnownBeforehand:
    """What a term with weights of its own is built from: shapes of one image's features, by layer,
    the batch dimension left out, and the pairs that will be compared."""

    student: Mapping[str, tuple[int, ...]]
    teacher: Mapping[str, tuple[int, ...]]
    pairs: tuple[tuple[str, str], ...]
    classes: int  # K
    capacity: int  # images that the memory holds at most: slots are below it


def _soft_targets(view: DistillationView) -> Tensor:
    measure = soft_decisions if view.independent else soft_targets
    return measure(
        view.learned, view.taught, temperature=view.temperature, per_sample=view.per_sample
    )


def _attention_transfer(view: DistillationView) -> Tensor:
    wide = [pair for pair in view.maps if pair[0].shape[2:].numel() > 1]
    return attention_transfer([s for s, _ in wide], [t for _, t in wide])


def _feature_match(view: DistillationView) -> Tensor:
    alike = [pair for pair in view.maps if pair[0].shape == pair[1].shape]
    return feature_match([s for s, _ in alike], [t for _, t in alike])


# what a term can need -> what it then finds in the view
NEEDS: Mapping[str, str] = {
    "features": "layers of both networks, and pairs of them",
    "maps": "pairs of maps of one size and more than one pixel",
    "equal maps": "pairs of maps of one size and with as many channels",
}

TERMS: dict[str, Term] = {
    "soft_targets": Term("KL of the answers softened by the temperature", _soft_targets),
    "logit_l1": Term(
        "mean distance of the logits",
        lambda view: logit_l1(view.learned, view.taught, per_sample=view.per_sample),
    ),
    "attention": Term(
        "student and teacher look at the same places",
        _attention_transfer,
        frozenset({"features", "maps"}),
    ),
    "feature_match": Term(
        "the student's maps are the teacher's",
        _feature_match,
        frozenset({"features", "equal maps"}),
    ),
}
