"""Noise: independent pixels, and pixels whose spectrum falls like that of photographs."""

import torch
from torch import Tensor

from synthkd.synthesis.drawings.brushes import in_parts, uniform


@in_parts(262_144)
def noise(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Gaussian pixels around 0.5 with deviation 0.25, each on its own."""
    return torch.empty(count, channels, height, width).normal_(0.5, 0.25, generator=rng)


@in_parts(65_536)
def spectrum(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """1/f^a noise: a in 0.5..3.5, other in the two axes for half of the images; random correlation
    of the channels, brightness and contrast.

    Baradad et al. 2021, "Learning to see by looking at noise": https://arxiv.org/abs/2106.05963
    """
    exponents = uniform(0.5, 3.5, (count, 2), rng)
    same = torch.rand(count, generator=rng) < 0.5
    exponents[:, 1] = torch.where(same, exponents[:, 0], exponents[:, 1])
    waves = spectral(exponents, channels, height, width, rng).flatten(2)
    # channels share most of their light; the rest is colour
    mixing = torch.eye(channels) * uniform(0, 1, (count, 1, 1), rng) ** 2
    mixing = mixing + 0.5 * uniform(-0.2, 1, (count, channels, channels), rng) * uniform(
        0, 1, (count, 1, 1), rng
    )
    mixing[:, :, 0] += uniform(0.3, 1, (count, 1), rng)
    mixing /= mixing.square().sum(2).mean(1).sqrt()[:, None, None]
    contrast = uniform(0.08, 0.35, (count, 1, 1), rng)
    tint = 0.5 + 0.15 * torch.randn(count, 1, 1, generator=rng)
    tint = tint + 0.08 * torch.randn(count, channels, 1, generator=rng)
    return torch.baddbmm(tint.expand_as(waves), mixing * contrast, waves).view(
        count, channels, height, width
    )


def spectral(
    exponents: Tensor, channels: int, height: int, width: int, rng: torch.Generator
) -> Tensor:
    """Gaussian noise [B, C, H, W], mean 0 and deviation 1, with the amplitude

        1 / (|fy|^a + |fx|^b)

    for `exponents` [B, 2] of (a, b); frequencies are in cycles per image.
    """
    half = width // 2 + 1
    down = torch.fft.fftfreq(height, 1 / height).abs()[:, None] ** exponents[:, 0, None, None]
    across = torch.arange(half) ** exponents[:, 1, None, None]
    amplitude = 1 / (down + across)
    amplitude[:, 0, 0] = 0
    power = 2 * amplitude.square()
    for column in {0, half - 1 if width % 2 == 0 else 0}:  # its own mirror image
        power[:, :, column] /= 2
        amplitude[:, :, column] *= 2**0.5
    amplitude /= power.sum((1, 2), keepdim=True).mul_(2).sqrt_()
    wave = torch.randn(len(exponents), channels, height, half, 2, generator=rng)
    wave *= amplitude[:, None, :, :, None]
    waves: Tensor = torch.fft.irfft2(torch.view_as_complex(wave), (height, width), norm="forward")
    return waves
