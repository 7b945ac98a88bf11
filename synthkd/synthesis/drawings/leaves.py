"""Dead leaves: shapes of many sizes that hide each other."""

from collections.abc import Callable

import torch
from torch import Tensor

from synthkd.synthesis.drawings.brushes import axes, in_parts, inks, log_uniform, softened, uniform

LEAVES = 72  # per image; the first is the ground

# Each takes the leaf's own coordinates (overwritten) to a value below 1 inside it.
_SHAPES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda u, v: u.square_().addcmul_(v, v),  # ellipse
    lambda u, v: torch.maximum(u.abs_(), v.abs_(), out=u),  # rectangle
    lambda u, v: u.abs_().add_(v.abs_()),  # rhomb
    lambda u, v: u.square_().add_(v.abs_()),  # petal
    lambda u, v: torch.maximum(u.abs_().add_(v, alpha=0.5).mul_(1.4), v.neg_(), out=u),  # triangle
)


@in_parts(65_536)
def leaves(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Rotated ellipses, rectangles, rhombs, petals and triangles with radius density r^-3, painted
    back to front: flat, shaded, striped or grainy.

    Lee, Mumford & Huang 2001, "Occlusion models for natural images".
    """
    y, x = axes(height, width)
    top = _topmost(count, y, x, rng).flatten(1)[:, None]  # [B, 1, H·W]
    looks = _looks(count, channels, rng)
    look = looks.gather(2, top.expand(-1, looks.shape[1], -1))
    look = look.view(count, -1, height, width)
    light, lean_x, lean_y, wave_x, wave_y, phase, stripes, grain = look[:, channels:].unbind(1)
    light = light.addcmul_(lean_x, x).addcmul_(lean_y, y)
    wave = phase.addcmul_(wave_x, x).addcmul_(wave_y, y).sin_()
    light.addcmul_(wave, stripes)
    light.addcmul_(torch.randn(count, height, width, generator=rng), grain)
    return softened(look[:, :channels] * light[:, None], 0.9, rng)


def radii(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """Radii of density ~ r^-3 between `low` and `high`, from `share` even in 0..1.

    >>> radii(torch.tensor(1.0), torch.tensor(2.0), torch.tensor([0.0, 1.0]))
    tensor([1., 2.])
    """
    return (low**-2 - share * (low**-2 - high**-2)) ** -0.5


def _topmost(count: int, y: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
    """The number [B, H, W] of the leaf that is seen at each pixel."""
    size = (count, LEAVES)
    low = log_uniform(0.06, 0.35, (count, 1), rng)
    r = radii(low, uniform(0.6, 1.4, (count, 1), rng), torch.rand(size, generator=rng))
    centre_y, centre_x = (float(a.max()) * uniform(-1.05, 1.05, size, rng) for a in (y, x))
    angle = uniform(0, 2 * torch.pi, size, rng)
    slim = log_uniform(0.6, 1, size, rng)  # long one way, short the other
    ux, uy = angle.cos() / (r / slim), angle.sin() / (r / slim)
    vx, vy = -angle.sin() / (r * slim), angle.cos() / (r * slim)
    # u = ux·x + uy·y + u0, as a row and a column; v alike
    u_row = ux[:, :, None] * x
    u_column = uy[:, :, None] * y[:, 0] - (ux * centre_x + uy * centre_y)[:, :, None]
    v_row = vx[:, :, None] * x
    v_column = vy[:, :, None] * y[:, 0] - (vx * centre_x + vy * centre_y)[:, :, None]
    kinds = torch.randint(len(_SHAPES), (LEAVES,), generator=rng).tolist()
    if torch.rand((), generator=rng) < 0.5:
        kinds = [kinds[0]] * LEAVES
    top = torch.zeros(count, len(y), len(x), dtype=torch.long)
    u, v = torch.empty(2, count, len(y), len(x)).unbind(0)
    for leaf in range(1, LEAVES):
        torch.add(u_row[:, leaf, None], u_column[:, leaf, :, None], out=u)
        torch.add(v_row[:, leaf, None], v_column[:, leaf, :, None], out=v)
        top.masked_fill_(_SHAPES[kinds[leaf]](u, v) < 1, leaf)
    return top


def _looks(count: int, channels: int, rng: torch.Generator) -> Tensor:
    """Colour and texture of every leaf, [B, C + 8, LEAVES]: ink, brightness with its slopes along x
    and y, a wave's frequencies and phase, its strength, the strength of grain."""
    size = (count, LEAVES)
    busy = uniform(0, 1, (count, 1), rng)  # how textured the leaves of an image are

    def strength(most: float, share: float) -> Tensor:
        drawn = torch.rand(size, generator=rng) < share * busy
        return drawn * uniform(0, most, size, rng)

    turn = uniform(0, 2 * torch.pi, size, rng)
    frequency = log_uniform(2, 40, size, rng)
    lean = strength(0.8, 1.0)
    light_turn = uniform(0, 2 * torch.pi, size, rng)
    texture = torch.stack([
        uniform(0.75, 1.15, size, rng), lean * light_turn.cos(), lean * light_turn.sin(),
        frequency * turn.cos(), frequency * turn.sin(), uniform(0, 6.3, size, rng),
        strength(0.5, 0.5), strength(0.3, 0.5),
    ], 1)  # fmt: skip
    colours = inks(count, LEAVES, channels, rng).transpose(1, 2)
    return torch.cat([colours, texture], 1)
