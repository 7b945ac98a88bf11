"""What a student minimises: `learned` (student) compared with `taught` (teacher).

B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.core.logits import paired


def soft_decisions(learned: Tensor, taught: Tensor, *, temperature: float = 4.0) -> Tensor:
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
    return classes * soft_targets(paired(learned), paired(taught), temperature=temperature)


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


def logit_l1(learned: Tensor, taught: Tensor) -> Tensor:
    """How far the student's logits are from the teacher's: mean of |t − s| over all B · K of them.

    The student's loss of DFAD, Fang et al. 2019: https://arxiv.org/abs/1912.11006

    >>> logit_l1(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 1.0]])).item()
    2.0
    """
    return F.l1_loss(learned.float(), taught.float())


def attention_transfer(learned: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """Student and teacher look at the same places (catalogue C3).

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

    Each pair of maps has one shape; an adapter, where one is needed, belongs to the caller.
    1 where the student is silent. After Romero et al. 2015: https://arxiv.org/abs/1412.6550
    """
    pairs = [(s.float(), t.float()) for s, t in zip(learned, taught, strict=True)]
    gaps = [F.mse_loss(s, t) / t.square().mean().clamp_min(1e-12) for s, t in pairs]
    return torch.stack(gaps).mean()
