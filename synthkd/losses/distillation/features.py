"""What a student minimises by what lies inside: `learned` (student) compared with `taught`.

B batch, C channels, H height, W width, D features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
    pairs = zip(learned, taught, strict=True)
    return torch.stack([relative_gap(s, t) for s, t in pairs]).mean()


def relative_gap(learned: Tensor, taught: Tensor) -> Tensor:
    """How far features are from the teacher's, relative: mean (learned − taught)² / mean taught².

    Both are of one shape, [B, …]; the result is a scalar, 1 where the student's are 0.

    >>> relative_gap(torch.zeros(2, 3), torch.ones(2, 3)).item()
    1.0
    """
    s, t = learned.float(), taught.float()
    return F.mse_loss(s, t) / t.square().mean().clamp_min(1e-12)


def gaussian_transport(learned: Tensor, taught: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of two Gaussians with diagonal covariances, fitted to the
    values of each channel, relative to the teacher's spread.

        sum over C of (m_s − m_t)² + (σ_s − σ_t)²  /  sum over C of σ_t²

    m and σ are mean and deviation of a channel over B and positions. The closed form of Dowson &
    Landau 1982, "The Fréchet distance between multivariate normal distributions". What the teacher
    shows is fixed, so the way out that two learned maps have, to shrink both to 0, is closed: where
    the student's are 0 it is 1 + sum m_t² / sum σ_t².

    `learned` and `taught` are [B, C, H, W] with one C; positions may differ. A scalar.
    """
    (s_mean, s_dev), (t_mean, t_dev) = (_channels(maps) for maps in (learned, taught))
    distance = (s_mean - t_mean).square().sum() + (s_dev - t_dev).square().sum()
    return distance / t_dev.square().sum().clamp_min(1e-12)


def _channels(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, [C] each."""
    variance, mean = torch.var_mean(maps.float(), (0, 2, 3), correction=0)
    return mean, (variance + 1e-8).sqrt()


def sliced_transport(learned: Tensor, taught: Tensor, directions: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of two sets of features, averaged over directions, in
    each of which it is that of sorted numbers, relative to the teacher's spread.

        mean over directions θ of mean over B of (sort(S θ) − sort(T θ))²  /  mean over D of var T

    After Rabin et al. 2012, "Wasserstein barycenter and its application to texture mixing". Unlike
    `gaussian_transport` it sees more than mean and deviation.

    `learned` and `taught` are [B, D], `directions` [D, n] of length 1 each; a scalar.
    """
    s, t = ((x.float() @ directions).sort(0).values for x in (learned, taught))
    spread = taught.float().var(0, correction=0).mean()
    return (s - t).square().mean() / spread.clamp_min(1e-12)


def standardised_gap(learned: Tensor, taught: Tensor) -> Tensor:
    """How far projected features are from the teacher's, each of which is standardised over B.

        mean over B and D of (learned − (taught − mean) / deviation)²

    Normalising the teacher's side is what Miles et al. 2024 (VkD, https://arxiv.org/abs/2403.06213),
    section 3.3, add to an orthogonal projector. 1 where the student's are 0.

    `learned` and `taught` are [B, D]; a scalar.
    """
    wide = taught.float()
    variance, mean = torch.var_mean(wide, 0, correction=0)
    return F.mse_loss(learned.float(), (wide - mean) / (variance + 1e-6).sqrt())
