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


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t [B, C, H, W] from x₀, ε and a [B] (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""
    signal, rest = _roots(alpha_bar, x0)
    return signal * x0 + rest * noise


def target(x0: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """What a network of this prediction type shall predict, [B, C, H, W]."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    signal, rest = _roots(alpha_bar, x0)
    return signal * noise - rest * x0


def predicted_x0(noisy: Tensor, output: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The predicted x₀ [B, C, H, W] from x_t and a network's output.

    For "epsilon" it is (x_t − √(1 − a) · ε) / √a, so a must not be 0.
    """
    if prediction_type == "sample":
        return output
    signal, rest = _roots(alpha_bar, noisy)
    if prediction_type == "epsilon":
        return (noisy - rest * output) / signal
    return signal * noisy - rest * output


def output_for_x0(noisy: Tensor, x0: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The output that stands for this x₀: the inverse of `predicted_x0`; a must not be 1."""
    if prediction_type == "sample":
        return x0
    signal, rest = _roots(alpha_bar, noisy)
    if prediction_type == "epsilon":
        return (noisy - signal * x0) / rest
    return (signal * noisy - x0) / rest


def min_snr(alpha_bar: Tensor, gamma: float, prediction_type: str) -> Tensor:
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
        return torch.ones_like(alpha_bar)
    alpha_bar = alpha_bar.double()
    if prediction_type == "v_prediction":  # 1 / (s + 1) = 1 − a
        return (gamma * (1 - alpha_bar)).clamp_max(1.0).float()
    least = torch.minimum(alpha_bar, gamma * (1 - alpha_bar))  # min(s, γ) · (1 − a)
    if prediction_type == "epsilon":
        return torch.where(alpha_bar > 0, least / alpha_bar.clamp_min(1e-12), 1.0).float()
    if prediction_type == "sample":
        return torch.where(alpha_bar < 1, least / (1 - alpha_bar).clamp_min(1e-12), gamma).float()
    raise ValueError(f"no prediction {prediction_type!r}")


def lowest_step(openness: float) -> int:
    """The curriculum: the finest step that is trained, t_min = T · (1 − openness).

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
    ask: Callable[[Tensor, Tensor], Tensor], noisy: Tensor, labels: Tensor | None, none: int,
    scale: float,
) -> Tensor:  # fmt: skip
    """Classifier-free guidance: n + s · (c − n) [B, C, H, W] of the predictions without and with a
    class (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

    `ask` predicts from images and labels; `none` is its label of no class, for which −1 stands in
    `labels` [B]; without `labels` no image has a class. Where one of the two is enough (s = 1,
    s = 0, no class at all) it is asked once.
    """
    without = torch.full((len(noisy),), none, device=noisy.device)
    if scale == 0 or labels is None:
        return ask(noisy, without)
    labels = torch.where(labels < 0, without, labels)
    if scale == 1:
        return ask(noisy, labels)
    n, c = ask(torch.cat([noisy] * 2), torch.cat([without, labels])).chunk(2)
    return n + scale * (c - n)


def steered(x0: Tensor, gradient: Tensor, scale: float, clip: float) -> Tensor:
    """x₀ − scale · g · min(1, clip / ‖g‖), image by image, [B, C, H, W]; clip 0 clips nothing.

    `gradient` is that of a loss which guides; no image moves further than scale · clip.
    """
    if clip:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        gradient = gradient * (clip / norm).clamp_max(1.0).view(-1, *[1] * (x0.dim() - 1))
    return x0 - scale * gradient


def _roots(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """√a and √(1 − a), to be multiplied with images."""
    alpha_bar = alpha_bar.to(like.device).double().reshape(-1, *[1] * (like.dim() - 1))
    return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)
