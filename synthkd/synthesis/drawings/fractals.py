"""Attractors of random affine maps, by the chaos game.

Kataoka et al. 2020, "Pre-training without natural images": https://arxiv.org/abs/2101.08515
"""

import torch
from torch import Tensor

from synthkd.synthesis.drawings.brushes import axes, in_parts, inks, softened, uniform

MAPS = 8  # at most
SIDE = 32  # SIDE² points travel together
FIRST = 10  # laps before points are drawn


@in_parts(32_768)
def fractals(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Attractors of two to eight maps: brightness follows the logarithm of the density, colour the
    maps that led there."""
    matrices, offsets, weights = _systems(count, rng)
    laps = max(12, height * width * 8 // SIDE**2)
    y, x, tint = chaos(matrices, offsets, weights, laps, rng).unbind(1)  # [B, N] each

    # into cells of a canvas that is large enough for all of them; the image is its middle
    side = min(height, width)
    margin = side // 8 + 1
    canvas = height + 2 * margin, width + 2 * margin
    ends = [(axis.amin(1), axis.amax(1)) for axis in (y, x)]
    longest = torch.maximum(*(high - low for low, high in ends)).clamp_min_(1e-3)
    scale = uniform(0.75, 1.2, (count,), rng) * side / longest
    for axis, (low, high), size in zip((y, x), ends, canvas, strict=True):
        axis.mul_(scale[:, None]).add_((size / 2 - scale * (low + high) / 2)[:, None])
    cell = y.floor_().mul_(canvas[1]).add_(x).long()
    density, tints = torch.zeros(2, count, canvas[0] * canvas[1])
    density.scatter_add_(1, cell, torch.ones(1).expand(cell.shape))
    tints.scatter_add_(1, cell, tint)
    tints /= density.clamp_min(1)
    inner = slice(margin, margin + height), slice(margin, margin + width)
    density, tints = (t.view(count, 1, *canvas)[:, :, *inner] for t in (density, tints))
    cover = density.log1p()
    cover /= cover.amax((2, 3), keepdim=True).clamp_min(1e-3)
    cover.mul_(uniform(1, 3, (count, 1, 1, 1), rng)).clamp_max_(1)

    ink = inks(count, 3, channels, rng)[..., None, None]
    down, across = axes(height, width)
    lean = 0.2 * torch.randn(2, count, 1, 1, 1, generator=rng)
    ground = (1 + lean[0] * across + lean[1] * down) * ink[:, 0]
    light = torch.addcmul(ink[:, 1], ink[:, 2] - ink[:, 1], tints)
    # two thirds stand bright before the dark, the others dark before the bright
    bright = (torch.rand(count, 1, 1, 1, generator=rng) < 0.67).float()
    apart = uniform(0, 0.65, (2, count, 1, 1, 1), rng)
    ground, light = ground.lerp(1 - bright, apart[0]), light.lerp(bright, apart[1])
    return softened(ground.lerp(light, cover), 0.8, rng)


def chaos(
    matrices: Tensor, offsets: Tensor, weights: Tensor, laps: int, rng: torch.Generator
) -> Tensor:
    """Points of the attractors of the maps p → A p + b, as (y, x, tint): [B, 3, laps · 1024].

    `matrices` [B, K, 2, 2] and `offsets` [B, K, 2] act on (y, x); a map is taken with probability
    proportional to its weight [B, K]. The tint of a point, 0..1, tells which maps led to it.

    1024 points start at the fixed point of the first map and so never leave the attractor. They
    form a square; in even laps a map moves a whole column of it, in odd laps a row. So two points
    differ in their past, though no map is drawn for one point alone.
    """
    count, number = weights.shape
    eye = torch.eye(2)
    start = torch.linalg.solve(eye - matrices[:, 0], offsets[:, 0])
    tints = torch.linspace(0, 0.5, number).expand(count, -1)
    table = torch.cat([matrices.flatten(2), offsets, tints[..., None]], 2)  # [B, K, 7]
    drawn = torch.multinomial(weights, SIDE * (FIRST + laps), replacement=True, generator=rng)
    moves = table.gather(1, drawn[..., None].expand(-1, -1, 7))
    moves = moves.view(count, FIRST + laps, SIDE, 7).transpose(2, 3)
    points = torch.empty(count, 3, FIRST + laps, SIDE, SIDE)
    y, x = start[:, :, None, None].expand(-1, -1, SIDE, SIDE).unbind(1)
    t = torch.full_like(y, 0.5)
    for lap in range(FIRST + laps):
        move = moves[:, lap, :, :, None] if lap % 2 else moves[:, lap, :, None]
        yy, yx, xy, xx, oy, ox, ot = move.unbind(1)
        after = points[:, :, lap].unbind(1)
        torch.add(torch.addcmul(oy, yy, y), yx * x, out=after[0])
        torch.add(torch.addcmul(ox, xy, y), xx * x, out=after[1])
        torch.add(ot, t, alpha=0.5, out=after[2])
        y, x, t = after
    points = points[:, :, FIRST:]
    return points.flatten(2)


def _systems(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two to eight contractive maps for each image: matrices, offsets, weights (0: no map)."""
    size = (count, MAPS)
    alive = torch.arange(MAPS) < torch.randint(2, MAPS + 1, (count, 1), generator=rng)
    long = uniform(0.3, 0.9, size, rng)
    short = long * uniform(0.15, 1, size, rng)
    # areas that add up to about one make neither dust nor a blot
    area = (long * short * alive).sum(1, keepdim=True)
    fit = (uniform(0.6, 1.2, (count, 1), rng) / area).sqrt()
    long, short = ((fit * s).clamp_max(0.92) for s in (long, short))
    mirror = torch.where(torch.rand(size, generator=rng) < 0.5, -1.0, 1.0)
    first, second = uniform(0, 2 * torch.pi, (2, *size), rng)
    stretch = torch.diag_embed(torch.stack([long, short * mirror], 2))
    matrices = _turn(first) @ stretch @ _turn(second)
    offsets = uniform(-1, 1, (*size, 2), rng)
    return matrices, offsets, (long * short + 0.02) * alive


def _turn(angle: Tensor) -> Tensor:
    """Matrices [..., 2, 2] that turn by these angles."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
