"""Random shader programs: coordinates bent, fields combined, coloured, laid over each other.

An image is a ground and up to two objects. Each is a layer, and a layer is a small program:

    coordinates → warp → two fields → one value → threshold → colour

Every image draws its own program: it picks one formula for each step, and the numbers in it. The
images that picked the same formula are computed together; a few counts (of cells, of corners) they
share. After Baradad et al. 2022, "Procedural
image programs for representation learning": https://arxiv.org/abs/2211.16412

Points are [n, 2, H, W] (x, y), fields [n, H, W] of about −1..1, parameters [n, 8, 1, 1] in 0..1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synthkd.synthesis.drawings.brushes import (
    axes,
    clouds,
    in_parts,
    inks,
    log_uniform,
    smooth_noise,
    softened,
    uniform,
)

Formula = Callable[[Tensor, Tensor, torch.Generator], Tensor]
TURN = 2 * torch.pi


@in_parts(262_144)
def shaders(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """A ground with up to two objects in front, each coloured by a random program."""
    images = _layer(count, channels, height, width, rng)
    for share in (0.75, 0.35):
        rows = (torch.rand(count, generator=rng) < share).nonzero()[:, 0]
        if len(rows):
            shape = _silhouettes(len(rows), height, width, rng)
            layer = _layer(len(rows), channels, height, width, rng)
            sharp = log_uniform(3, 0.8 * min(height, width), (len(rows), 1, 1), rng)
            # light falls on an object from one side
            layer *= (1 + uniform(-0.4, 0.6, (len(rows), 1, 1), rng) * shape)[:, None].clamp_(
                0.3, 1.5
            )
            mask = torch.sigmoid_((shape * 2).mul_(sharp))[:, None]
            images[rows] = images[rows].lerp_(layer, mask)
    return _lit(softened(images, 0.8, rng), rng)


def _lit(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random contrast, brightness, a slope of light and some grain."""
    count, _, height, width = images.shape
    y, x = axes(height, width)
    slope = 0.2 * torch.randn(2, count, 1, 1, 1, generator=rng)
    images.mul_(1 + slope[0] * x + slope[1] * y)
    middle = images.mean((1, 2, 3), keepdim=True)
    contrast = uniform(0.8, 1.7, (count, 1, 1, 1), rng)
    target = middle.lerp(torch.tensor(0.5), 0.3) + 0.06 * torch.randn(count, 1, 1, 1, generator=rng)
    images.sub_(middle).mul_(contrast).add_(target)
    grain = 0.04 * uniform(0, 1, (count, 1, 1, 1), rng) ** 4
    return images.addcmul_(torch.randn(count, 1, height, width, generator=rng), grain)


def _layer(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Colours [B, C, H, W] of one program for each image."""
    points = _chosen(_WARPS, _points(count, height, width, rng), rng)
    pair = torch.stack([_chosen(_FIELDS, points, rng), _chosen(_FIELDS, points, rng)], 1)
    value = _chosen(_JOINS, pair, rng)
    # from a gentle slope to a hard edge
    steep = log_uniform(1, 40, (count, 1, 1), rng)
    level = uniform(-0.6, 0.6, (count, 1, 1), rng)
    value = torch.sigmoid_(value.sub_(level).mul_(steep))
    second = torch.sigmoid_(pair[:, 1].mul_(log_uniform(0.7, 12, (count, 1, 1), rng)))
    ink = inks(count, 3, channels, rng)[..., None, None]
    strength = uniform(0.2, 1.1, (2, count, 1, 1, 1), rng)
    colours = torch.addcmul(ink[:, 0], (ink[:, 1] - ink[:, 0]) * strength[0], value[:, None])
    colours.addcmul_((ink[:, 2] - ink[:, 0]) * strength[1], second[:, None])
    # some go round the colour wheel: a + b·cos(2π(c·t + d)), t the colour so far
    rows = (torch.rand(count, generator=rng) < 0.3).nonzero()[:, 0]
    if len(rows):
        wheel = inks(len(rows), 2, channels, rng)[..., None, None]
        speed = log_uniform(0.4, 2.5, (len(rows), 1, 1, 1), rng)
        round_ = torch.cos_(colours[rows].mul_(speed).add_(wheel[:, 0]).mul_(TURN))
        colours[rows] = round_.mul_(0.45 * wheel[:, 1]).add_(0.15 + 0.6 * wheel[:, 1])
    # a rough surface
    rough = log_uniform(0.02, 0.4, (count, 1, 1), rng)
    return colours.mul_(clouds(count, height, width, rng).mul_(rough).add_(1)[:, None])


def _points(count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """The pixels' coordinates, turned, stretched and shifted at random."""
    y, x = axes(height, width)
    angle = uniform(0, TURN, (count, 1, 1), rng)
    upright = torch.rand(count, 1, 1, generator=rng) < 0.3
    angle = torch.where(upright, (angle / TURN * 4).floor() * TURN / 4, angle)
    stretch = log_uniform(0.6, 1.6, (count, 2, 1, 1), rng)
    shift = 0.5 * torch.randn(count, 2, 1, 1, generator=rng)
    turned = torch.stack([angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x], 1)
    return turned.mul_(stretch).add_(shift)


def _chosen(formulas: Sequence[Formula], given: Tensor, rng: torch.Generator) -> Tensor:
    """Every image through one of the formulas, all as likely."""
    picked = torch.randint(len(formulas), (len(given),), generator=rng)
    parameters = torch.rand(len(given), 8, 1, 1, generator=rng)
    result = None
    for number, formula in enumerate(formulas):
        rows = (picked == number).nonzero()[:, 0]
        if len(rows):
            drawn = formula(given[rows], parameters[rows], rng)
            if result is None:
                result = drawn.new_empty(len(given), *drawn.shape[1:])
            result[rows] = drawn
    return given if result is None else result


def _between(low: float, high: float, u: Tensor) -> Tensor:
    """u in 0..1 as a number between low and high, every octave alike."""
    return low * (high / low) ** u


def _length(p: Tensor) -> Tensor:
    """Distance [n, H, W] from the middle; `p.norm(dim=1)` takes ten times as long."""
    return _square(p).sqrt_()


def _square(p: Tensor) -> Tensor:
    return (p[:, 0] * p[:, 0]).addcmul_(p[:, 1], p[:, 1])


# Warps: points to points.


def _wavy(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    amount = _between(0.05, 0.5, u[:, 0:1])
    return p + amount * torch.sin(p.flip(1) * _between(1, 9, u[:, 1:2]) + TURN * u[:, 2:4])


def _liquid(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    height, width = p.shape[2:]
    weights = (u[:, :3, 0, 0] * torch.tensor([0.5, 0.4, 0.2])).repeat_interleave(2, 0)
    return p + smooth_noise(weights, (2, 4, 7), height, width, rng).view(p.shape)


def _twirled(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    angle = 8 * (u[:, 0] - 0.5) * torch.exp_(-_square(p) * _between(0.3, 3, u[:, 1]))
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * p[:, 0] - sin * p[:, 1], sin * p[:, 0] + cos * p[:, 1]], 1)


def _folded(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored in lines through the middle: a kaleidoscope."""
    angle = torch.atan2(p[:, 1], p[:, 0])
    sector = TURN / (2 + (6 * u[:, 0]).floor())
    angle = (angle.remainder(sector) - sector / 2).abs()
    radius = _length(p)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _tiled(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    size = _between(0.4, 1.5, u[:, 0:1])
    return ((p + u[:, 2:4]).remainder(2 * size) - size).abs() * 1.5


def _polar(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    repeats = 1 + (4 * u[:, 0]).floor()
    along = torch.atan2(p[:, 1], p[:, 0]) * repeats / torch.pi
    return torch.stack([along, (_square(p) + 0.02).log() * _between(0.3, 1.2, u[:, 1])], 1)


def _lens(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return p / (_square(p)[:, None] + _between(0.1, 1.5, u[:, 0:1]))


def _plane(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """A floor seen from above it, up to a horizon."""
    depth = 1 / (p[:, 1].abs() + _between(0.15, 0.8, u[:, 0]))
    return torch.stack([p[:, 0] * depth, depth * _between(0.5, 1.5, u[:, 1])], 1)


def _same(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return p


_WARPS = (
    _same, _same, _same, _wavy, _wavy, _liquid, _liquid, _liquid, _twirled, _folded, _tiled,
    _polar, _lens, _plane,
)  # fmt: skip


# Fields: points to values.


def _frequency(p: Tensor, u: Tensor) -> Tensor:
    """Radians per unit, up to what the pixels can show."""
    return _between(1.2, 0.7 * min(p.shape[2:]), u**1.5)


def _wave(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return torch.sin_(p[:, 0] * _frequency(p, u[:, 0]) + TURN * u[:, 1])


def _plaid(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    waves = torch.sin_(
        p * _frequency(p, u[:, 0:1]) * _between(0.5, 2, u[:, 1:3]) + TURN * u[:, 3:5]
    )
    return torch.where(u[:, 5] < 0.5, waves[:, 0] * waves[:, 1], waves.sum(1) / 2)


def _rings(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return torch.sin_(_length(p) * _frequency(p, u[:, 0]) + TURN * u[:, 1])


def _spiral(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    arms = (8 * u[:, 0]).floor()
    angle = torch.atan2(p[:, 1], p[:, 0]) * arms
    return torch.sin_(angle + _length(p) * 6 * u[:, 1] + TURN * u[:, 2])


def _zigzag(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    saw = (p[:, 0] * _frequency(p, u[:, 0]) / TURN + u[:, 1]).remainder(1)
    return torch.where(u[:, 2] < 0.6, 4 * (saw - 0.5).abs() - 1, 2 * saw - 1)


def _checks(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    waves = torch.sin_(p * _frequency(p, u[:, 0:1]) * 0.7 + TURN * u[:, 1:3])
    return torch.tanh_(8 * waves[:, 0] * waves[:, 1])


def _plasma(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    total = torch.zeros_like(p[:, 0])
    speed = _frequency(p, u[:, 0] * 0.8)
    for i in range(3):
        angle = TURN * u[:, i + 1]
        total += torch.sin_(
            p[:, 0] * (speed * angle.cos()) + p[:, 1] * (speed * angle.sin()) + TURN * u[:, i + 4]
        )
        speed = speed * 1.3
    return total.mul_(0.6)


def _clouds(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return clouds(len(p), p.shape[2], p.shape[3], rng)


def _ridges(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return 1 - 2 * _clouds(p, u, rng).abs_()


def _marble(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    bent = p[:, 0] * _between(1.5, 8, u[:, 1]) + 3 * u[:, 2] * _clouds(p, u, rng)
    return torch.sin_(bent)


def _carpet(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """Smooth noise that follows the coordinates."""
    count = len(p)
    cells = (6, 12)[int(torch.randint(2, (), generator=rng))]
    grid = torch.randn(count, 1, cells, cells, generator=rng)
    place = (p * 0.4).permute(0, 2, 3, 1)
    return torch.nn.functional.grid_sample(
        grid, place, padding_mode="reflection", align_corners=False
    )[:, 0]


def _cells(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """Distance to the nearest of some points, or how much farther the second is."""
    number = int(torch.randint(3, 12, (), generator=rng))
    points = uniform(-1.6, 1.6, (number, len(p), 2, 1, 1), rng)
    first = torch.full_like(p[:, 0], 9.0)
    second = first.clone()
    for point in points:
        away = _square(p - point)
        torch.minimum(second, torch.maximum(first, away), out=second)
        torch.minimum(first, away, out=first)
    first, second = first.sqrt_(), second.sqrt_()
    return torch.where(u[:, 0] < 0.5, 2 * first - 1, 3 * (second - first) - 1)


def _ramp(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return torch.tanh_(p[:, 0] * _between(0.5, 3, u[:, 0]))


def _blob(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return 2 * torch.exp_(-_square(p) * _between(0.8, 8, u[:, 0])) - 1


def _squares(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return torch.sin_(p.abs().amax(1) * _frequency(p, u[:, 0]) + TURN * u[:, 1])


def _saddle(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return torch.sin_(p[:, 0] * p[:, 1] * _between(1, 10, u[:, 0]) + TURN * u[:, 1])


_FIELDS = (
    _wave, _plaid, _rings, _spiral, _zigzag, _checks, _plasma, _clouds, _clouds, _ridges, _marble,
    _carpet, _carpet, _cells, _ramp, _ramp, _blob, _squares, _saddle,
)  # fmt: skip

# Two fields to one.
_JOINS: tuple[Formula, ...] = (
    lambda pair, u, rng: pair[:, 0].clone(),
    lambda pair, u, rng: pair[:, 0] * pair[:, 1],
    lambda pair, u, rng: pair[:, 0].lerp(pair[:, 1], u[:, 0]),
    lambda pair, u, rng: pair.amax(1),
    lambda pair, u, rng: torch.where(pair[:, 1] > u[:, 0] - 0.5, pair[:, 0], -pair[:, 0]),
    lambda pair, u, rng: (pair[:, 0] - pair[:, 1]).abs_().sub_(0.7),
    lambda pair, u, rng: torch.sin_(4 * u[:, 0] * pair[:, 0] + 3 * pair[:, 1]),
)


# Silhouettes: positive inside an object, about its distance to the rim.


def _silhouettes(count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    y, x = axes(height, width)
    angle = uniform(0, TURN, (count, 1, 1), rng)
    stretch = log_uniform(0.7, 1.4, (count, 1, 1), rng)
    middle = 0.25 * torch.randn(2, count, 1, 1, generator=rng)
    across, down = x - middle[0], y - middle[1]
    points = torch.stack(
        [
            (angle.cos() * across + angle.sin() * down) * stretch,
            (angle.cos() * down - angle.sin() * across) / stretch,
        ],
        1,
    )
    return _chosen(_SHAPES, points, rng)


def _star(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """A closed curve of four harmonics around the middle."""
    angle = torch.atan2(p[:, 1], p[:, 0])
    rim = torch.ones_like(angle)
    for n in (1, 2, 3, 5):
        wave = torch.cos_(n * angle + TURN * u[:, n])
        rim.addcmul_(wave, 0.6 * (u[:, n + 1] - 0.3) / n)
    return rim.mul_(_between(0.35, 0.9, u[:, 0])) - _length(p)


def _body(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """Several ellipses grown together: a body with limbs."""
    number = int(torch.randint(2, 6, (), generator=rng))
    total = torch.zeros_like(p[:, 0])
    for i in range(number):
        size = uniform(0.15, 0.5, (len(p), 2, 1, 1), rng) * (1.3 if i == 0 else 0.8)
        place = uniform(-0.7, 0.7, (len(p), 2, 1, 1), rng) * (i > 0)
        total += torch.exp_(_square((p - place) / size).neg_())
    return total.sub_(0.4).mul_(0.6)


def _polygon(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """What lies on the inner side of three to six lines."""
    number = int(torch.randint(3, 7, (), generator=rng))
    inside = torch.full_like(p[:, 0], 9.0)
    for i in range(number):
        angle = TURN * (i + uniform(0, 0.7, (len(p), 1, 1), rng)) / number
        away = p[:, 0] * angle.cos() + p[:, 1] * angle.sin()
        torch.minimum(inside, uniform(0.3, 0.8, (len(p), 1, 1), rng) - away, out=inside)
    return inside


def _horizon(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """What lies on one side of an uneven line."""
    return p[:, 1] + 0.3 * u[:, 0] * _clouds(p, u, rng)


def _patches(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    return _clouds(p, 0.5 * u, rng) - u[:, 1]


def _frame(p: Tensor, u: Tensor, rng: torch.Generator) -> Tensor:
    """A rounded box."""
    square = p.square()
    box = square.square_().sum(1).sqrt_().sqrt_()  # between a disc and a square
    return _between(0.35, 0.85, u[:, 1]) - box.lerp_(p.abs().amax(1), u[:, 0])


_SHAPES = (_star, _star, _body, _body, _polygon, _horizon, _patches, _frame)
