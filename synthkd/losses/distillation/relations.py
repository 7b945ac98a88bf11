"""What a student minimises by relations between images: those of the teacher, in its own space.

Functions of embeddings, `learned` [B, D] and `taught` [B, D'], whose sizes may differ.
B batch, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ANGLES = 64  # images of a batch whose angles are compared: there are 64³ of them


def _distances(vectors: Tensor) -> Tensor:
    """Euclidean distances [B, B], divided by the mean of those of different images."""
    wide = vectors.float()
    products = wide @ wide.T
    squares = products.diagonal()
    gaps = squares[:, None] + squares[None, :] - 2 * products
    away = ~torch.eye(len(wide), dtype=torch.bool, device=wide.device)
    found = torch.where(away, gaps.clamp_min(1e-12), 1.0).sqrt() * away  # no root of 0: its slope
    return found / found[away].mean().clamp_min(1e-12)


def relational_distance(learned: Tensor, taught: Tensor) -> Tensor:
    """Images are as far from one another as for the teacher.

        mean over pairs of  huber(d_s − d_t),   d = |e_i − e_j| / mean over pairs of |e_i − e_j|

    RKD-D, Park et al. 2019 (https://arxiv.org/abs/1904.05068), section 3.2.1; published weight 25.

    `learned` is [B, D], `taught` [B, D'], B at least 2; a scalar, averaged over all B · B pairs.
    """
    return F.smooth_l1_loss(_distances(learned), _distances(taught))


def _angles(vectors: Tensor) -> Tensor:
    """Cosines [n, n, n] of the angle at image j between images i and k, by j, i, k."""
    wide = vectors[:ANGLES].float()
    sides = F.normalize(wide[None, :] - wide[:, None], dim=2, eps=1e-6)  # [j, i, D]
    return sides @ sides.transpose(1, 2)


def relational_angle(learned: Tensor, taught: Tensor) -> Tensor:
    """Triples of images form the angles that they form for the teacher.

        mean over j, i, k of  huber(cos_s(i, j, k) − cos_t(i, j, k))

    RKD-A, Park et al. 2019 (https://arxiv.org/abs/1904.05068), section 3.2.2; published weight 50.
    Of a batch the first 64 images: there are as many triples as their number to the third.

    `learned` is [B, D], `taught` [B, D']; a scalar.
    """
    return F.smooth_l1_loss(_angles(learned), _angles(taught))


def similarity(learned: Tensor, taught: Tensor) -> Tensor:
    """Images are alike that are alike for the teacher.

        |G_s − G_t|² / B²,   G = E Eᵀ with rows of length 1

    Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation"
    (https://arxiv.org/abs/1907.09682), section 3; published weight 3,000.

    `learned` is [B, D], `taught` [B, D']; a scalar.
    """
    s, t = (F.normalize(x.float() @ x.float().T, dim=1) for x in (learned, taught))
    return (s - t).square().mean()


def _neighbours(vectors: Tensor) -> Tensor:
    """The logarithm of how likely image j is a neighbour of i, [B, B − 1], by their cosine."""
    unit = F.normalize(vectors.float(), dim=1)
    kernel = (1 + unit @ unit.T) / 2
    away = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    rows = kernel[away].view(len(unit), -1).clamp_min(1e-7)
    return rows.log() - rows.sum(1, keepdim=True).log()


def neighbours(learned: Tensor, taught: Tensor) -> Tensor:
    """Images are neighbours with the probabilities that they have for the teacher.

        mean over i of  KL(p_t(· | i) ‖ p_s(· | i)),   p(j | i) = k_ij / sum over j ≠ i of k_ij,
        k_ij = (1 + cos(e_i, e_j)) / 2

    Probabilistic knowledge transfer, Passalis & Tefas 2018 (https://arxiv.org/abs/1803.10837),
    section 3. A mean over B · (B − 1) there, so its weights (30,000) are B times these.

    `learned` is [B, D], `taught` [B, D'], B at least 2; a scalar, in nats.
    """
    return F.kl_div(
        _neighbours(learned), _neighbours(taught), log_target=True, reduction="batchmean"
    )
