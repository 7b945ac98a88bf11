"""What every kind of drawing shares: parts that fit the cache, coordinates, colours, blur.

B images, C channels, H height, W width. Lengths are in units of half the shorter side: along it an
image reaches from −1 to 1.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps

import torch
from torch import Tensor

from synthkd.core.images import LUMA

Drawing = Callable[[int, int, int, int, torch.Generator], Tensor]

# Colours of landscapes, plants, animals, streets and skies, RGB.
_NATURAL = torch.tensor([
    [0.53, 0.70, 0.88], [0.70, 0.80, 0.90], [0.30, 0.45, 0.65], [0.85, 0.88, 0.92],
    [0.36, 0.42, 0.20], [0.25, 0.35, 0.16], [0.52, 0.55, 0.30], [0.16, 0.22, 0.12],
    [0.45, 0.34, 0.22], [0.62, 0.50, 0.36], [0.78, 0.70, 0.56], [0.28, 0.20, 0.14],
    [0.50, 0.50, 0.50], [0.32, 0.33, 0.35], [0.72, 0.71, 0.68], [0.08, 0.08, 0.09],
    [0.95, 0.94, 0.92], [0.80, 0.60, 0.45], [0.60, 0.28, 0.18], [0.75, 0.18, 0.15],
    [0.20, 0.30, 0.50], [0.12, 0.20, 0.28], [0.85, 0.70, 0.30], [0.40, 0.30, 0.35],
])  # fmt: skip
_LUMA = torch.tensor(LUMA)


def in_parts(pixels: int) -> Callable[[Drawing], Drawing]:
    """Draws some images at a time, about `pixels` pixels, so that temporaries stay in the cache;
    cuts the result to 0..1."""

    def wrap(draw: Drawing) -> Drawing:
        @wraps(draw)
        def whole(
            count: int, channels: int, height: int, width: int, rng: torch.Generator
        ) -> Tensor:
            images = torch.empty(count, channels, height, width)
            for part in torch.split(images, max(1, pixels // (height * width))) if count else ():
                drawn = draw(len(part), channels, height, width, rng)
                torch.clamp(drawn, 0, 1, out=part)
            return images

        return whole

    return wrap


def axes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """y [H, 1] and x [W] of the pixel centres; the shorter side reaches from −1 to 1.

    >>> axes(2, 4)[1]
    tensor([-1.5000, -0.5000,  0.5000,  1.5000])
    """
    unit = min(height, width) / 2
    y = (torch.arange(height) + 0.5 - height / 2) / unit
    x = (torch.arange(width) + 0.5 - width / 2) / unit
    return y[:, None], x


def uniform(low: float, high: float, size: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Even between `low` and `high`."""
    return torch.empty(size).uniform_(low, high, generator=rng)


def log_uniform(low: float, high: float, size: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Between `low` and `high`, every octave as likely as the others."""
    return low * (high / low) ** torch.rand(size, generator=rng)


def inks(count: int, number: int, channels: int, rng: torch.Generator) -> Tensor:
    """Colours [B, number, C] that suit each other.

    Most images take colours of nature, others any colour, greys, or shades of one colour; each is
    faded by its own share. One channel is the luma of such a colour; two or four are random
    mixtures of it.
    """
    size = (count, number)
    picked = torch.randint(len(_NATURAL), size, generator=rng)
    natural = _NATURAL[picked] * uniform(0.6, 1.3, (*size, 1), rng)
    vivid = torch.rand(*size, 3, generator=rng)
    grey = torch.rand(*size, 1, generator=rng) + 0.04 * torch.randn(count, 1, 3, generator=rng)
    shades = vivid[:, :1] * uniform(0.2, 1.6, (*size, 1), rng)
    mood = torch.rand(count, 1, 1, generator=rng)
    colours = torch.where(mood < 0.65, natural, torch.where(mood < 0.8, vivid, grey))
    colours = torch.where(mood > 0.9, shades, colours)
    colours = colours + 0.05 * torch.randn(*size, 3, generator=rng)
    faded = 0.8 * torch.rand(count, 1, 1, generator=rng) ** 2
    colours = colours.lerp((colours @ _LUMA)[..., None], faded)
    if channels == 1:
        colours = colours @ _LUMA[:, None]
    elif channels != 3:
        mixing = torch.rand(count, 3, channels, generator=rng)
        colours = colours @ (mixing / mixing.sum(1, keepdim=True))
    return colours.clamp_(0, 1)


def blurred(images: Tensor) -> Tensor:
    """Images [B, C, H, W] smoothed by [1, 2, 1] / 4 along both axes; the border keeps its own
    value."""
    for axis in (2, 3):
        size = images.shape[axis]
        smooth = images.clone()
        inner = smooth.narrow(axis, 1, size - 2).mul_(0.5)
        inner.add_(images.narrow(axis, 0, size - 2), alpha=0.25)
        inner.add_(images.narrow(axis, 2, size - 2), alpha=0.25)
        images = smooth
    return images


def softened(images: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Each image mixed with its blurred self, by a random share up to `most`."""
    share = uniform(0, most, (len(images), 1, 1, 1), rng)
    return images.lerp(blurred(images), share)


def smooth_noise(
    weights: Tensor, cells: Sequence[int], height: int, width: int, rng: torch.Generator
) -> Tensor:
    """Octaves of Gaussian values on grids joined by cubic B-splines: [B, H, W].

    Octave l has about `cells[l]` cells along the shorter side and deviation `weights[:, l]`.
    """
    side = min(height, width)
    grids, downs = [], []
    for octave, number in enumerate(cells):
        down, across = (_spline(n, max(1, round(number * n / side))) for n in (height, width))
        grid = torch.randn(len(weights), down.shape[1], across.shape[1], generator=rng)
        grids.append(grid.mul_(2.1 * weights[:, octave, None, None]) @ across.T)  # splines average
        downs.append(down)
    return torch.cat(downs, 1) @ torch.cat(grids, 1)


@lru_cache(maxsize=64)
def _spline(pixels: int, cells: int) -> Tensor:
    """Weights [pixels, cells + 3] of uniform cubic B-splines."""
    place = (torch.arange(pixels) + 0.5) / pixels * cells + 1
    distance = (place[:, None] - torch.arange(cells + 3)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def clouds(count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Smooth noise [B, H, W] from half the image down to two pixels; the finer an octave, the
    weaker."""
    cells = [2 << i for i in range(8) if 4 << i <= min(height, width)]
    fall = uniform(0.35, 0.8, (count, 1), rng) ** torch.arange(len(cells))
    return smooth_noise(0.7 * fall, cells, height, width, rng)
