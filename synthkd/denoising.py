"""The arithmetic of diffusion: pure functions of images, noise and the share of signal that is
kept.

B batch, C channels, H height, W width. T = 1000 steps; step t keeps a share a = ᾱ_t of the signal's
variance:

    x_t = √a · x₀ + √(1 − a) · ε,    ε ~ N(0, 1),    x₀ in −1..1

A network predicts one of three: ε ("epsilon"), v = √a · ε − √(1 − a) · x₀ ("v_prediction", Salimans
& Ho 2022, https://arxiv.org/abs/2202.00512), or x₀ ("sample").
"""

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 1000  # T


def noised(clean: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """x_t [B, C, H, W] from x₀, ε and a [B] (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""
    signal, rest = _roots(kept, clean)
    return signal * clean + rest * noise


def target(clean: Tensor, noise: Tensor, kept: Tensor, kind: str) -> Tensor:
    """What a network of this kind shall predict, [B, C, H, W]."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    signal, rest = _roots(kept, clean)
    return signal * noise - rest * clean


def clean_of(noisy: Tensor, output: Tensor, kept: Tensor, kind: str) -> Tensor:
    """The predicted x₀ [B, C, H, W] from x_t and a network's output.

    For "epsilon" it is (x_t − √(1 − a) · ε) / √a, so a must not be 0.
    """
    if kind == "sample":
        return output
    signal, rest = _roots(kept, noisy)
    if kind == "epsilon":
        return (noisy - rest * output) / signal
    return signal * noisy - rest * output


def output_of(noisy: Tensor, clean: Tensor, kept: Tensor, kind: str) -> Tensor:
    """The output that stands for this x₀: the inverse of `clean_of`; a must not be 1."""
    if kind == "sample":
        return clean
    signal, rest = _roots(kept, noisy)
    if kind == "epsilon":
        return (noisy - signal * clean) / rest
    return (signal * noisy - clean) / rest


def min_snr(kept: Tensor, gamma: float, kind: str) -> Tensor:
    """Weights [B] of the squared error: min(s, γ) in terms of x₀, with s = a / (1 − a).

        epsilon: min(s, γ) / s,    v: min(s + 1, γ) / (s + 1),    sample: min(s, γ)

    Hang et al. 2023, https://arxiv.org/abs/2303.09556; for v they have min(s, γ) / (s + 1), which
    leaves out the last step of a schedule that keeps nothing of the signal (a = 0), where every
    sample starts. With the 1 it is trained, as the training scripts of diffusers have it. γ = 0
    weighs all steps alike. Written in a, so that a = 0 and a = 1 are no special cases:

    >>> min_snr(torch.tensor([0.0, 0.5, 0.875, 1.0]), 5.0, "v_prediction").tolist()
    [1.0, 1.0, 0.625, 0.0]
    """
    if not gamma:
        return torch.ones_like(kept)
    kept = kept.double()
    if kind == "v_prediction":  # 1 / (s + 1) = 1 − a
        return (gamma * (1 - kept)).clamp_max(1.0).float()
    least = torch.minimum(kept, gamma * (1 - kept))  # min(s, γ) · (1 − a)
    if kind == "epsilon":
        return torch.where(kept > 0, least / kept.clamp_min(1e-12), 1.0).float()
    if kind == "sample":
        return torch.where(kept < 1, least / (1 - kept).clamp_min(1e-12), gamma).float()
    raise ValueError(f"no prediction {kind!r}")


def lowest_step(openness: float) -> int:
    """The curriculum (catalogue A6): the finest step that is trained, t_min = T · (1 − openness).

    Steps are drawn from t_min..T − 1: first only the noisy, coarse ones, in the end all. What a
    step keeps of the signal is left alone, so the signal is never lost.

    >>> lowest_step(0.0), lowest_step(0.25), lowest_step(1.0)
    (999, 750, 0)
    """
    return min(STEPS - 1, round(STEPS * (1 - min(1.0, max(0.0, openness)))))


def drawn_steps(count: int, openness: float, rng: torch.Generator) -> Tensor:
    """`count` steps t [B], uniform over what the curriculum has opened."""
    return torch.randint(lowest_step(openness), STEPS, (count,), generator=rng)


def classifier_free(
    ask: Callable[[Tensor, Tensor], Tensor], noisy: Tensor, labels: Tensor, none: int, scale: float
) -> Tensor:
    """Classifier-free guidance: n + s · (c − n) [B, C, H, W] of the predictions without and with a
    class (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

    `ask` predicts from images and labels; `none` is its label of no class, for which −1 stands in
    `labels` [B]. Where one of the two is enough (s = 1, s = 0, no class at all) it is asked once.
    """
    without = torch.full_like(labels, none)
    if scale == 0 or bool((labels < 0).all()):
        return ask(noisy, without)
    labels = torch.where(labels < 0, without, labels)
    if scale == 1:
        return ask(noisy, labels)
    n, c = ask(torch.cat([noisy] * 2), torch.cat([without, labels])).chunk(2)
    return n + scale * (c - n)


def steered(clean: Tensor, gradient: Tensor, scale: float, clip: float) -> Tensor:
    """x₀ − scale · g · min(1, clip / ‖g‖), image by image, [B, C, H, W]; clip 0 clips nothing.

    `gradient` is that of a loss which guides; no image moves further than scale · clip.
    """
    if clip:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        gradient = gradient * (clip / norm).clamp_max(1.0).view(-1, *[1] * (clean.dim() - 1))
    return clean - scale * gradient


def _roots(kept: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """√a and √(1 − a), to be multiplied with images."""
    kept = kept.to(like.device).double().reshape(-1, *[1] * (like.dim() - 1))
    return kept.sqrt().to(like.dtype), (1 - kept).sqrt().to(like.dtype)
