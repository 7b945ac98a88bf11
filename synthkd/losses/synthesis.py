"""What synthetic images are made by: terms that judge a `View`, all that is known of one batch.

`TERMS` names them, and a stage sums them by weight. B batch, C channels, H height, W width,
K classes, D features, E embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from synthkd.core.logits import paired
from synthkd.losses.term import Term

LayerMoments = tuple[tuple[Tensor, Tensor], ...]  # per BatchNorm layer: mean, var [C]


@dataclass(frozen=True)
class View:
    """One batch of synthesized images and everything a term may judge it by.

    Gradients run from each tensor back to the images; what a plan does not need is left out (None).
    """

    images: Tensor  # [B, C, H, W] in 0..1
    labels: Tensor  # [B] the class asked for
    taught: Tensor  # [B, K] the teacher's logits
    learned: Tensor | None = None  # [B, K] the student's logits
    features: Tensor | None = None  # [B, D] the input of the teacher's last linear layer
    other_features: Tensor | None = None  # [b, D] the same for another view of the first b images
    prototypes: Tensor | None = None  # [K, D] the rows of that layer
    moments: LayerMoments = ()  # of this batch
    stored: LayerMoments = ()  # from the teacher's training
    validity: Tensor | None = None  # [B] the critic's opinion
    normalised: Tensor | None = None  # [B, C, H, W] the images as the teacher's body takes them
    embedded: Tensor | None = None  # [B, E] of length 1: a projection of the teacher's features
    embedded_other: Tensor | None = None  # [B, E] the same for another view of the images
    bank: Tensor | None = None  # [M, E] the same for images of earlier batches
    independent: bool = False  # logits are log-odds: several classes, or none, may apply
    absent: Tensor | None = None  # [B] whether the class asked for shall not apply, where any may


def _questions(view: View) -> tuple[Tensor, Tensor | None]:
    """What teacher and student answer, [B, K] each, or where the classes are independent the same
    as `paired`, [B · K, 2]."""
    if not view.independent:
        return view.taught, view.learned
    return paired(view.taught), None if view.learned is None else paired(view.learned)


def one_hot(view: View) -> Tensor:
    """Cross-entropy to the class asked for, in nats: mean of -log softmax(taught)[label].

    Where the classes are independent, of this class alone: mean of -log σ(±taught)[label], minus
    where it was asked to be absent; the others may apply or not.
    """
    if view.independent:
        odds = view.taught.gather(1, view.labels[:, None])[:, 0]
        odds = odds if view.absent is None else odds.where(~view.absent, -odds)
        return -F.logsigmoid(odds).mean()
    return F.cross_entropy(view.taught, view.labels)


def statistics(view: View) -> Tensor:
    """The distance to the teacher's BatchNorm statistics, relative, so one weight serves all
    teachers.

        mean over layers of  mean over channels of
            log(1 + (μ − m)² / (v + ε))  +  log(1 + (var / (v + ε) − 1)²)

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


def statistics_norm(view: View) -> Tensor:
    """`statistics` as published: the length of the gaps to the teacher's BatchNorm statistics.

        sum over layers of  |μ − m|₂ + |var − v|₂

    Norms over channels, not squared. The published weights (1 to 100) belong to this form; it grows
    with depth and width. Yin et al. 2020: https://arxiv.org/abs/1912.08795
    """
    total = view.images.new_zeros(())
    for (mean, var), (stored_mean, stored_var) in zip(view.moments, view.stored, strict=True):
        total = total + vector_norm(mean - stored_mean) + vector_norm(var - stored_var)
    return total


def blended(moments: LayerMoments, running: LayerMoments, decay: float) -> LayerMoments:
    """Smoothed statistics: the moments of a batch, drawn towards a running average.

        (1 − decay) · μ + decay · μ_running,  and the same for var

    Gradients run through `moments` only. While `running` is empty, `moments` come back unchanged.
    The result for a batch's last step, detached, is the next `running`. Decay 0.9 in Fast (Fang et
    al. 2022, https://arxiv.org/abs/2112.06253) and in NAYER.

    >>> fresh, old = ((torch.tensor([1.0]), torch.tensor([2.0])),), ((torch.zeros(1),) * 2,)
    >>> [round(float(m), 3) for m in blended(fresh, old, 0.9)[0]]
    [0.1, 0.2]
    """
    if not running or not moments:
        return moments
    return tuple(
        (torch.lerp(mean, old_mean.detach(), decay), torch.lerp(var, old_var.detach(), decay))
        for (mean, var), (old_mean, old_var) in zip(moments, running, strict=True)
    )


def prototype(view: View, *, margin: float = 0.1) -> Tensor:
    """Features close to the class's prototype w_y, a row of the last layer.

        mean over i of  1 − cos(φ_i, w_y) + relu( max_{k≠y} cos(φ_i, w_k) − cos(φ_i, w_y) + margin )

    `features` [B, D], `prototypes` [K, D]; the result lies in 0..4 + margin. An image that shall
    be without its class counts 0: where its features are to lie is not known.
    """
    assert view.features is not None and view.prototypes is not None
    cosine = F.normalize(view.features, dim=1) @ F.normalize(view.prototypes, dim=1).T  # [B, K]
    own = cosine.gather(1, view.labels[:, None]).squeeze(1)
    rival = cosine.scatter(1, view.labels[:, None], -2.0).amax(1)
    each = 1 - own + F.relu(rival - own + margin)
    return (each if view.absent is None else each.masked_fill(view.absent, 0.0)).mean()


def consistency(view: View) -> Tensor:
    """Two views of an image have the same features: mean |u(φ(a₁x)) − u(φ(a₂x))|², u =
    L2-normalise.

    0 where the directions agree, 4 where they are opposite.
    """
    assert view.features is not None and view.other_features is not None
    first = view.features[: len(view.other_features)]
    gap = F.normalize(first, dim=1) - F.normalize(view.other_features, dim=1)
    return gap.square().sum(1).mean()


def disagreement(view: View) -> Tensor:
    """The student's disagreement, to be made large: minimised, so it is negative.

        −mean over i of  1[argmax s_i = argmax t_i] · KL( softmax(t_i) ‖ softmax(s_i) )

    Only where both still vote alike, so images do not leave their class
    (Fang et al. 2021, https://arxiv.org/abs/2105.08584). Where the classes are independent, i runs
    over the classes of every image too, each with its own yes or no.
    """
    taught, learned = _questions(view)
    assert learned is not None
    alike = (learned.argmax(1) == taught.argmax(1)).float()
    p = F.log_softmax(taught, dim=1)
    q = F.log_softmax(learned, dim=1)
    return -(alike * F.kl_div(q, p, log_target=True, reduction="none").sum(1)).mean()


def logit_gap(view: View) -> Tensor:
    """Disagreement as in DFAD: minus the mean of |t − s| over all B · K logits, so that the gap
    is maximised.

    Fang et al. 2019: https://arxiv.org/abs/1912.11006
    """
    assert view.learned is not None
    return -(view.taught - view.learned).abs().mean()


def divergence(view: View) -> Tensor:
    """Disagreement as in ZSKT: the KL to the student, everywhere, to be made large.

        −1 / (B · K) · sum over i of  KL( softmax(t_i) ‖ softmax(s_i) )

    No mask, unlike `disagreement`. The mean is that of the authors' code, over all B · K elements:
    K times smaller than a mean over images. Micaelli & Storkey 2019:
    https://arxiv.org/abs/1905.09768
    """
    taught, learned = _questions(view)
    assert learned is not None
    p = F.log_softmax(taught, dim=1)
    q = F.log_softmax(learned, dim=1)
    return -F.kl_div(q, p, log_target=True, reduction="none").mean()


def jensen_shannon(view: View, *, temperature: float = 3.0) -> Tensor:
    """Disagreement as in Adaptive DeepInversion: 1 where student and teacher agree, 0 where
    they are far apart.

        1 − clamp( mean over i of  ½ KL(m ‖ p) + ½ KL(m ‖ q),  0..1 )
        p = softmax(t_i / T),  q = softmax(s_i / T),  m = (p + q) / 2,  each clamped to 0.01..0.99

    KL runs from the mean m, as in the authors' code; the divergence of the textbooks runs to it.
    Yin et al. 2020: https://arxiv.org/abs/1912.08795
    """
    taught, learned = _questions(view)
    assert learned is not None
    p = (taught / temperature).softmax(1)
    q = (learned / temperature).softmax(1)
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    apart = (m * (m.log() - (p.log() + q.log()) / 2)).sum(1).mean()
    return 1 - apart.clamp(0, 1)


def realism(view: View) -> Tensor:
    """The generator's half of the hinge loss: −mean of the critic's validity."""
    assert view.validity is not None
    return -view.validity.mean()


def critic_hinge(reference: Tensor, synthetic: Tensor) -> Tensor:
    """The critic's half of the hinge loss: E relu(1 − D(ref)) + E relu(1 + D(syn)), validities [B].

    >>> critic_hinge(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.0])).item()
    1.0
    """
    return F.relu(1 - reference).mean() + F.relu(1 + synthetic).mean()


def balance(view: View) -> Tensor:
    """The negative entropy of the mean answer: Σ_k p̄_k log p̄_k, least (−log K) when classes
    are even.

    Where the classes are independent, the mean over them of the same for yes and no (least −log 2).
    Chen et al. 2019, section 3.2: https://arxiv.org/abs/1904.01186
    """
    if view.independent:
        yes = view.taught.sigmoid().mean(0)
        mean = torch.stack([yes, 1 - yes])  # [2, K]
        return (mean * mean.clamp_min(1e-12).log()).sum(0).mean()
    mean = view.taught.softmax(1).mean(0)
    return (mean * mean.clamp_min(1e-12).log()).sum()


def smoothness(view: View) -> Tensor:
    """Total variation: the mean absolute difference of a pixel to its right and lower
    neighbour, 0..2."""
    x = view.images
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def variation(view: View) -> Tensor:
    """Total variation as published: the sum of the L2 norms of four difference tensors of the
    normalised images.

    The differences are to the right, the lower and the two lower diagonal neighbours. Each norm is
    that of the whole tensor, so it grows with the square root of B: the published weight 2.5e-5
    belongs to B = 256. Yin et al. 2020: https://arxiv.org/abs/1912.08795
    """
    assert view.normalised is not None
    x = view.normalised
    total: Tensor = (
        vector_norm(x[..., 1:] - x[..., :-1])
        + vector_norm(x[..., 1:, :] - x[..., :-1, :])
        + vector_norm(x[..., 1:, 1:] - x[..., :-1, :-1])
        + vector_norm(x[..., 1:, :-1] - x[..., :-1, 1:])
    )
    return total


def magnitude(view: View) -> Tensor:
    """Pixels near the mean of the training images: mean over images of |x|₂, x normalised.

    Yin et al. 2020, in their code for ImageNet: https://arxiv.org/abs/1912.08795
    """
    assert view.normalised is not None
    lengths: Tensor = vector_norm(view.normalised.flatten(1), dim=1)
    return lengths.mean()


def contrast(view: View, *, temperature: float = 0.2) -> Tensor:
    """Every image can be told from all others (InfoNCE), so the batch is diverse.

        mean over i of  −log( exp(e_i · o_i / T) / sum over k of exp(e_i · k / T) )

    e = `embedded` [B, E]; o = `embedded_other` [B, E], another view of the same images; k runs over
    all o and the `bank` [M, E]. Gradients run through e only. CMI, Fang et al. 2021:
    https://arxiv.org/abs/2105.08584
    """
    assert view.embedded is not None and view.embedded_other is not None
    keys = view.embedded_other if view.bank is None else torch.cat([view.embedded_other, view.bank])
    likeness = view.embedded @ keys.detach().T / temperature  # [B, B + M]
    return F.cross_entropy(likeness, torch.arange(len(likeness), device=likeness.device))


def spread(view: View) -> Tensor:
    """A cheap substitute for `contrast`: images asked to be of one class have different features.

        mean over pairs i ≠ j with y_i = y_j of  cos(φ_i, φ_j)

    −1..1; 0 where no class was asked for twice; images that shall be without a class are of none.
    Needs no teacher pass of its own.
    """
    assert view.features is not None
    directions = F.normalize(view.features, dim=1)
    pairs = (view.labels[:, None] == view.labels).fill_diagonal_(False)  # [B, B]
    if view.absent is not None:
        pairs &= ~(view.absent[:, None] | view.absent)
    return (directions @ directions.T * pairs).sum() / pairs.sum().clamp_min(1)


def activation(view: View) -> Tensor:
    """Strong features: −mean |φ|, squashed by log(1 + x) because the plain form has no
    bound."""
    assert view.features is not None
    return -torch.log1p(view.features.abs().mean())


# what a term can need -> the fields of `View` that it then finds filled
NEEDS: Mapping[str, str] = {
    "student": "learned",
    "features": "features",
    "prototypes": "prototypes",
    "second view": "other_features",
    "statistics": "moments, stored",
    "projection": "embedded, embedded_other, bank",
    "critic": "validity",
    "normalised": "normalised",
}


def _term(fn: Callable[[View], Tensor], meaning: str, *needs: str, **instead: float) -> Term:
    return Term(meaning, fn, frozenset(needs), instead=instead)


# What a stage may name under `terms`; one of your own is one more entry, a `Term`.
TERMS: dict[str, Term] = {
    "one_hot": _term(one_hot, "cross-entropy to the class asked for"),
    "statistics": _term(
        statistics, "relative distance to the teacher's BatchNorm statistics", "statistics",
        smoothness=0.2, balance=0.2,
    ),
    "statistics_norm": _term(
        statistics_norm, "the gaps to those statistics, their lengths summed", "statistics"
    ),
    "prototype": _term(
        prototype, "features near the class's row of the last layer", "features", "prototypes"
    ),
    "consistency": _term(
        consistency, "two views of an image have the same features", "features", "second view"
    ),
    "disagreement": Term(
        "the student's disagreement, where both still vote alike (maximised); times the difficulty",
        disagreement, frozenset({"student"}), follows_difficulty=True,
    ),
    "logit_gap": _term(
        logit_gap, "the gap between the two logits, as in DFAD (maximised)", "student"
    ),
    "divergence": _term(
        divergence, "KL from teacher to student, everywhere, as in ZSKT (maximised)", "student"
    ),
    "jensen_shannon": _term(
        jensen_shannon,
        "1 minus the Jensen-Shannon divergence of the two networks, as in DeepInversion", "student",
    ),
    "realism": _term(realism, "a critic cannot tell the image from reference images", "critic"),
    "balance": _term(balance, "classes equally frequent over the batch"),
    "smoothness": _term(smoothness, "total variation of the pixels"),
    "variation": _term(
        variation, "norms of four differences of the normalised images", "normalised"
    ),
    "magnitude": _term(magnitude, "length of a normalised image", "normalised"),
    "contrast": _term(
        contrast, "an image's two views are alike, all other images differ, as in CMI",
        "projection",
    ),
    "spread": _term(spread, "images of one class have different features", "features"),
    "activation": _term(activation, "strong features", "features"),
}  # fmt: skip
