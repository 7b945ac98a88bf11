"""A few plain things on a plain ground."""

import torch
from torch import Tensor

from synthkd.synthesis.drawings.brushes import axes, in_parts, inks, log_uniform, softened, uniform

THINGS = 6  # at most
SIDES = 7  # of a polygon, at most


@in_parts(65_536)
def polygons(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """One to six convex polygons and ellipses, flat or shaded, on a plain or shaded ground. Fewer
    are larger."""
    y, x = axes(height, width)
    number = torch.randint(1, THINGS + 1, (count, 1, 1), generator=rng)
    images = _shaded(count, channels, y, x, rng).contiguous()
    for thing in range(THINGS):
        rows = (number[:, 0, 0] > thing).nonzero()[:, 0]
        if len(rows):
            size = uniform(0.4, 1.2, (len(rows), 1, 1), rng) / number[rows].sqrt()
            # pixels to the rim give an edge of one pixel
            cover = (_inside(size, y, x, rng) * (min(height, width) / 2)).add_(0.5).clamp_(0, 1)
            paint = _shaded(len(rows), channels, y, x, rng)
            images[rows] = images[rows].lerp_(paint, cover[:, None])
    return softened(images, 0.6, rng)


def _shaded(count: int, channels: int, y: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
    """[B, C, H, W] from one colour to another along a random direction; half are almost flat."""
    ink = inks(count, 2, channels, rng)[..., None, None]
    angle = uniform(0, 2 * torch.pi, (count, 1, 1, 1), rng)
    flat = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    steep = torch.where(flat, 0.03, 0.5) * torch.rand(count, 1, 1, 1, generator=rng)
    slope = (ink[:, 1] - ink[:, 0]) * steep
    return slope * angle.cos() * x + (ink[:, 0] + slope * angle.sin() * y)


def _inside(size: Tensor, y: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
    """About the distance [B, H, W] to the rim of a polygon or an ellipse, negative outside."""
    count = len(size)
    angle = uniform(0, 2 * torch.pi, (count, 1, 1), rng)
    slim = log_uniform(0.6, 1, (count, 1, 1), rng)
    place_y, place_x = 0.45 * torch.randn(2, count, 1, 1, generator=rng)
    u = angle.cos() / slim * (x - place_x) + angle.sin() / slim * (y - place_y)
    v = angle.cos() * slim * (y - place_y) - angle.sin() * slim * (x - place_x)
    ellipse = size - (u * u).addcmul_(v, v).sqrt_()
    polygon = ellipse.add(size)  # larger than the polygon, so that it cuts no side
    sides = torch.randint(3, SIDES + 1, (count, 1, 1), generator=rng)
    for side in range(SIDES):
        towards = (side % sides + uniform(0, 0.6, (count, 1, 1), rng)) * 2 * torch.pi / sides
        away = (u * towards.cos()).addcmul_(v, towards.sin())
        torch.minimum(polygon, size * uniform(0.6, 1, (count, 1, 1), rng) - away, out=polygon)
    return torch.where(torch.rand(count, 1, 1, generator=rng) < 0.35, ellipse, polygon)
