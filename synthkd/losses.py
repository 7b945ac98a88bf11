"""Losses: tensors in, one scalar out. B batch, C channels, H height, W width, K classes, D
features.

A distillation loss compares `learned` (student) with `taught` (teacher). A synthesis term judges a
`View`, all that is known of one batch of invented images; `TERMS` names the terms, and a stage sums
them by weight.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def as_logits(answer: Tensor, kind: str) -> Tensor:
    """What a classifier returned, as logits [B, K].

    Log-probabilities are logits already (softmax of log p is p); probabilities p become log p,
    with p no smaller than 1e-8 so that the logarithm stays finite.

    >>> as_logits(torch.tensor([[1.0, 0.0]]), "probabilities").softmax(1).round(decimals=3).tolist()
    [[1.0, 0.0]]
    """
    answer = answer.float()
    return answer.clamp_min(1e-8).log() if kind == "probabilities" else answer


def soft_targets(learned: Tensor, taught: Tensor, *, temperature: float = 4.0) -> Tensor:
    """How far the student's softened answer is from the teacher's (catalogue C1).

        T² · KL( softmax(taught / T) ‖ softmax(learned / T) )

    The factor T² keeps the size of the gradient when T changes.
    Hinton, Vinyals & Dean 2015, section 2: https://arxiv.org/abs/1503.02531

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> soft_targets(logits, logits).item()
    0.0
    """
    p = F.log_softmax(taught.float() / temperature, dim=1)
    q = F.log_softmax(learned.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")


@dataclass(frozen=True)
class View:
    """One batch of invented images and everything a term may judge it by.

    Gradients run from each tensor back to the images; what a plan does not need is left out (None).
    """

    images: Tensor  # [B, C, H, W] in 0..1
    labels: Tensor  # [B] the class asked for
    taught: Tensor  # [B, K] the teacher's logits
    learned: Tensor | None = None  # [B, K] the student's logits
    features: Tensor | None = None  # [B, D] the input of the teacher's last linear layer
    other_features: Tensor | None = None  # [b, D] the same for another view of the first b images
    prototypes: Tensor | None = None  # [K, D] the rows of that layer
    moments: tuple[tuple[Tensor, Tensor], ...] = field(
        default=()
    )  # per BatchNorm layer: mean, var [C]
    stored: tuple[tuple[Tensor, Tensor], ...] = field(default=())  # the same from training
    validity: Tensor | None = None  # [B] the critic's opinion


def one_hot(view: View) -> Tensor:
    """B1, cross-entropy to the class asked for, in nats: mean of -log softmax(taught)[label]."""
    return F.cross_entropy(view.taught, view.labels)


def statistics(view: View) -> Tensor:
    """B2, the distance to the teacher's BatchNorm statistics, relative, so one weight serves all
    teachers.

        mean over layers of  mean over channels of  (μ − m)² / (v + ε)  +  (var / (v + ε) − 1)²

    μ, var belong to the batch, m, v to the running buffers; ε = 1e-5. After Yin et al. 2020
    (https://arxiv.org/abs/1912.08795), whose absolute norms grow with depth and width; the
    deviations are squashed by log(1 + x) so that one dead channel (v near 0) cannot drown the rest.
    """
    total = view.images.new_zeros(())
    for (mean, var), (stored_mean, stored_var) in zip(view.moments, view.stored, strict=True):
        scale = stored_var + 1e-5
        shift = (mean - stored_mean).square() / scale
        spread = (var / scale - 1).square()
        total = total + torch.log1p(shift).mean() + torch.log1p(spread).mean()
    return total / max(1, len(view.moments))


def prototype(view: View, *, margin: float = 0.1) -> Tensor:
    """B3 (i), features close to the class's prototype w_y, a row of the last layer.

        mean over i of  1 − cos(φ_i, w_y) + relu( max_{k≠y} cos(φ_i, w_k) − cos(φ_i, w_y) + margin )

    `features` [B, D], `prototypes` [K, D]; the result lies in 0..4 + margin.
    """
    assert view.features is not None and view.prototypes is not None
    cosine = F.normalize(view.features, dim=1) @ F.normalize(view.prototypes, dim=1).T  # [B, K]
    own = cosine.gather(1, view.labels[:, None]).squeeze(1)
    rival = cosine.scatter(1, view.labels[:, None], -2.0).amax(1)
    return (1 - own + F.relu(rival - own + margin)).mean()


def consistency(view: View) -> Tensor:
    """B3 (ii), two views of an image have the same features: mean |u(φ(a₁x)) − u(φ(a₂x))|², u =
    L2-normalise.

    0 where the directions agree, 4 where they are opposite.
    """
    assert view.features is not None and view.other_features is not None
    first = view.features[: len(view.other_features)]
    gap = F.normalize(first, dim=1) - F.normalize(view.other_features, dim=1)
    return gap.square().sum(1).mean()


def disagreement(view: View) -> Tensor:
    """B4, the student's disagreement, to be made large: minimised, so it is negative.

        −mean over i of  1[argmax s_i = argmax t_i] · KL( softmax(t_i) ‖ softmax(s_i) )

    Only where both still vote alike, so images do not leave their class
    (Fang et al. 2021, https://arxiv.org/abs/2105.08584).
    """
    assert view.learned is not None
    alike = (view.learned.argmax(1) == view.taught.argmax(1)).float()
    p = F.log_softmax(view.taught, dim=1)
    q = F.log_softmax(view.learned, dim=1)
    return -(alike * F.kl_div(q, p, log_target=True, reduction="none").sum(1)).mean()


def realism(view: View) -> Tensor:
    """B5, the generator's half of the hinge loss: −mean of the critic's validity."""
    assert view.validity is not None
    return -view.validity.mean()


def critic_hinge(reference: Tensor, synthetic: Tensor) -> Tensor:
    """The critic's half of the hinge loss: E relu(1 − D(ref)) + E relu(1 + D(syn)), validities [B].

    >>> critic_hinge(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.0])).item()
    1.0
    """
    return F.relu(1 - reference).mean() + F.relu(1 + synthetic).mean()


def balance(view: View) -> Tensor:
    """B6, the negative entropy of the mean answer: Σ_k p̄_k log p̄_k, least (−log K) when classes
    are even.

    Chen et al. 2019, section 3.2: https://arxiv.org/abs/1904.01186
    """
    mean = view.taught.softmax(1).mean(0)
    return (mean * mean.clamp_min(1e-12).log()).sum()


def smoothness(view: View) -> Tensor:
    """B7, total variation: the mean absolute difference of a pixel to its right and lower
    neighbour, 0..2."""
    x = view.images
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def activation(view: View) -> Tensor:
    """B9, strong features: −mean |φ|, squashed by log(1 + x) because the plain form has no
    bound."""
    assert view.features is not None
    return -torch.log1p(view.features.abs().mean())


TERMS: Mapping[str, Callable[[View], Tensor]] = {
    "one_hot": one_hot,
    "statistics": statistics,
    "prototype": prototype,
    "consistency": consistency,
    "disagreement": disagreement,
    "realism": realism,
    "balance": balance,
    "smoothness": smoothness,
    "activation": activation,
}
