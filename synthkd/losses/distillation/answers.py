"""What a student minimises by its answers: `learned` (student) compared with `taught` (teacher).

Functions of logits. Classes that exclude one another unless said otherwise. The target class of an
image is the teacher's vote on it, also where the image is a blend.
B batch, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.core.logits import paired


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


def hard_targets(
    learned: Tensor, targets: Tensor, *, smoothing: float = 0.0, per_sample: bool = False
) -> Tensor:
    """Cross-entropy of the student's answer with a class for each image.

        −(1 − ε) · log q[target] − ε · mean over K of log q,   q = softmax(learned)

    ε is the smoothing of Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567), section 7.

    `learned` is [B, K], `targets` [B] int64; the result is a scalar, or with `per_sample` [B].

    >>> hard_targets(torch.zeros(1, 2), torch.tensor([1])).item()  # log 2
    0.6931471824645996
    """
    kind = "none" if per_sample else "mean"
    return F.cross_entropy(learned.float(), targets, label_smoothing=smoothing, reduction=kind)


def smoothed_targets(
    learned: Tensor, taught: Tensor, *, share: float = 0.1, per_sample: bool = False
) -> Tensor:
    """Cross-entropy with the teacher's vote, smoothed by its answer in place of an even one.

        −sum over K of ((1 − ε) · 1[k = argmax taught] + ε · p_k) · log q_k,   p, q = softmax

    ε is `share`. Label smoothing as distillation: Yuan et al. 2020
    (https://arxiv.org/abs/1909.11723), section 4.

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B, or with
    `per_sample` [B].
    """
    wide = taught.float()
    vote = F.one_hot(wide.argmax(1), wide.shape[1])
    target = (1 - share) * vote + share * wide.softmax(1)
    each = -(target * learned.float().log_softmax(1)).sum(1)
    return each if per_sample else each.mean()


def hard_decisions(learned: Tensor, taught: Tensor, *, per_sample: bool = False) -> Tensor:
    """`hard_targets` where the classes are independent: binary cross-entropy with the teacher's yes
    (a logit above 0) or no, summed over K.

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B, or with
    `per_sample` [B].
    """
    targets = (taught > 0).float()
    each = F.binary_cross_entropy_with_logits(learned.float(), targets, reduction="none").sum(1)
    return each if per_sample else each.mean()


def standardized(logits: Tensor) -> Tensor:
    """Each row of logits [B, K] with mean 0 and deviation 1 over K: [B, K].

    The standardisation of Sun et al. 2024, "Logit Standardization in Knowledge Distillation",
    section 4 (https://arxiv.org/abs/2403.01427): a student need not reach the teacher's scale.

    >>> standardized(torch.tensor([[1.0, 3.0]])).tolist()
    [[-1.0, 1.0]]
    """
    wide = logits.float()
    spread = wide.std(1, keepdim=True, correction=0)
    return (wide - wide.mean(1, keepdim=True)) / spread.clamp_min(1e-6)


def standardized_targets(
    learned: Tensor, taught: Tensor, *, temperature: float = 2.0, per_sample: bool = False
) -> Tensor:
    """`soft_targets` of `standardized` logits: only their shape is learned, not their size.

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B, or with
    `per_sample` [B].
    """
    z = standardized(learned), standardized(taught)
    return soft_targets(*z, temperature=temperature, per_sample=per_sample)


def _target_split(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of the probabilities (target, all others) [B, 2], and of those among the
    others [B, K − 1], of logits [B, K]."""
    log_p = logits.log_softmax(1)
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    others = log_p[~is_target].view(len(logits), -1)
    rest = others.logsumexp(1, keepdim=True)
    pair = torch.cat([log_p[is_target][:, None], rest], 1)
    return pair, others - rest


def decoupled_target(
    learned: Tensor, taught: Tensor, *, temperature: float = 4.0, per_sample: bool = False
) -> Tensor:
    """How sure of the target class: the first part of the KL of softened answers.

        T² · KL( (p_y, 1 − p_y) ‖ (q_y, 1 − q_y) ),   p, q softened by T,  y = argmax taught

    TCKD of Zhao et al. 2022, "Decoupled Knowledge Distillation" (https://arxiv.org/abs/2203.08679),
    section 3; with `decoupled_others`, weighted by 1 − p_y, it adds up to `soft_targets`.

    `learned` and `taught` are logits [B, K]; the result is a scalar, averaged over B, or with
    `per_sample` [B].
    """
    return _decoupled(learned, taught, temperature, 0, per_sample=per_sample)


def decoupled_others(
    learned: Tensor, taught: Tensor, *, temperature: float = 4.0, per_sample: bool = False
) -> Tensor:
    """What else it might be: the second part of the KL of softened answers, without the weight
    1 − p_y by which a sure teacher silences it.

        T² · KL( p̂ ‖ q̂ ),   p̂, q̂ the softened answers without the class y, divided by their sums

    NCKD of Zhao et al. 2022 (https://arxiv.org/abs/2203.08679), section 3; published weights 1 for
    the target part and 8 (CIFAR-100) for this one.

    `learned` and `taught` are logits [B, K], K at least 3; the result is a scalar, averaged over B,
    or with `per_sample` [B].
    """
    return _decoupled(learned, taught, temperature, 1, per_sample=per_sample)


def _decoupled(
    learned: Tensor, taught: Tensor, temperature: float, part: int, *, per_sample: bool
) -> Tensor:
    targets = taught.argmax(1)
    q = _target_split(learned.float() / temperature, targets)[part]
    p = _target_split(taught.float() / temperature, targets)[part]
    each = temperature**2 * F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    return each if per_sample else each.mean()


def _uncorrelated(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 − Pearson's correlation along a dimension, 0..2."""
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=dim)


def class_correlation(
    learned: Tensor, taught: Tensor, *, temperature: float = 1.0, per_sample: bool = False
) -> Tensor:
    """Each answer goes with the teacher's, whatever its scale.

        mean over B of  1 − corr over K of (q_i, p_i),   p, q softened by T

    The inter-class relation of DIST, Huang et al. 2022 (https://arxiv.org/abs/2205.10536),
    equation 5. Published weight 2, beside 2 of `image_correlation`.

    Without the factor T² of `soft_targets`: softened answers near a constant plus logits / (K T) as
    T grows, so value and gradient near those of the correlation of the logits themselves, and keep
    their size. The public code has the factor: its weight w at T is w · T² here.

    `learned` and `taught` are logits [B, K], K at least 3; the result is a scalar, or with
    `per_sample` [B].
    """
    q, p = ((x.float() / temperature).softmax(1) for x in (learned, taught))
    each = _uncorrelated(q, p, 1)
    return each if per_sample else each.mean()


def image_correlation(learned: Tensor, taught: Tensor, *, temperature: float = 1.0) -> Tensor:
    """A class is likely in the same images as for the teacher.

        mean over K of  1 − corr over B of (q_k, p_k),   p, q softened by T

    The intra-class relation of DIST, Huang et al. 2022 (https://arxiv.org/abs/2205.10536),
    equation 6; as `class_correlation`, without the factor T².

    `learned` and `taught` are logits [B, K]; the result is a scalar.
    """
    q, p = ((x.float() / temperature).softmax(1) for x in (learned, taught))
    return _uncorrelated(q, p, 0).mean()
