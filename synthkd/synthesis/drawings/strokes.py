"""Pen strokes as plain numbers, so that a drawing can be kept, changed and drawn again.

A drawing is 38 numbers in 0..1: six for the whole (how many strokes, the share of the image they
fill, the pen's radius, the width of its soft edge, the centre's y and x), then eight for each of
four strokes (its kind, whether it begins where the one before ended, y and x of three points).
"""

import torch
from torch import Tensor

from synthkd.synthesis.drawings.brushes import in_parts, uniform

STROKES = 4  # at most
POINTS = 32  # that a stroke is made of
_WHOLE, _EACH = 6, 8
_CHOICES = (0, *(_WHOLE + _EACH * s + i for s in range(STROKES) for i in (0, 1)))


@in_parts(65_536)
def strokes(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Light strokes on black, of random brightness in every channel."""
    coverage = draw_strokes(stroke_parameters(count, rng), height, width)
    return coverage * uniform(0.6, 1, (count, channels, 1, 1), rng)


def stroke_parameters(count: int, rng: torch.Generator) -> Tensor:
    """Parameters [B, 38] of random drawings, even in 0..1."""
    return torch.rand(count, _WHOLE + _EACH * STROKES, generator=rng)


def mutated(parameters: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Drawings like the ones given, [B, 38]: each place and size moves by Gaussian noise of
    deviation `amount`, reflected at 0 and 1; in `amount` of the drawings one stroke is new, in as
    many their number."""
    noise = amount * torch.randn(parameters.shape, generator=rng)
    noise[:, _CHOICES] = 0
    moved = 1 - (1 - (parameters + noise).abs()).abs()
    fresh = torch.rand(parameters.shape, generator=rng)
    owner = (torch.arange(parameters.shape[1]) - _WHOLE).div(_EACH, rounding_mode="floor")
    stroke = torch.randint(STROKES, (len(moved), 1), generator=rng)
    redrawn = (owner == stroke) & (torch.rand(len(moved), 1, generator=rng) < amount)
    redrawn[:, 0] = torch.rand(len(moved), generator=rng) < amount
    return torch.where(redrawn, fresh, moved).clamp_(0, 1)


def draw_strokes(parameters: Tensor, height: int, width: int) -> Tensor:
    """Coverage [B, 1, H, W] in 0..1 of the drawings with these parameters [B, 38].

    A stroke is a quadratic Bezier curve (half of them), an elliptic arc (three tenths) or a line
    with a corner. The drawing is scaled to its share of the image and centred.
    """
    whole = parameters[:, :_WHOLE]
    each = parameters[:, _WHOLE:].reshape(-1, STROKES, _EACH)
    alive = torch.arange(STROKES) < 1 + STROKES * whole[:, :1]  # [B, S]
    path = _paths(each)
    low, high = (
        torch.where(alive[..., None, None], path, away).flatten(1, 2) for away in (9.0, -9.0)
    )
    low, high = low.amin(1), high.amax(1)  # [B, 2]
    scale = (0.55 + 0.25 * whole[:, 1]) / (high - low).amax(1).clamp_min(0.2)
    path = (path - ((low + high) / 2)[:, None, None]) * scale[:, None, None, None]
    path = path + (0.47 + 0.06 * whole[:, None, None, 4:])
    side = min(height, width)
    path = path * side + (torch.tensor([height, width]) - side) / 2
    radius = (0.03 + 0.05 * whole[:, 2]) * side
    edge = (side * (0.03 + 0.06 * whole[:, 3])).clamp_min(1)
    return painted(path, alive, radius, edge, height, width)


def painted(
    path: Tensor, alive: Tensor, radius: Tensor, edge: Tensor, height: int, width: int
) -> Tensor:
    """Ink [B, 1, H, W] of lines through the points `path` [B, S, P, 2] (y, x in pixels; the first
    pixel's centre is at 0.5, 0.5) for the strokes that are `alive` [B, S]. Ink falls from 1 to 0
    over `edge` [B] pixels around the pen's `radius` [B], in pixels.

    A pixel's distance d from the lines is found without its distances from all points. Along a
    straight line

        Σ step · exp(−dᵢ²/s) ≈ √(πs) · exp(−d²/s)

    and the sum is a product of matrices, as exp(−dᵢ²/s) = exp(−dyᵢ²/s) · exp(−dxᵢ²/s). With √s of
    half the pen's radius or 0.7 steps, whichever is more, the steps leave less than 2 % of s in d².
    """
    step = (path[:, :, 1:] - path[:, :, :-1]).square_().sum(3).sqrt_() * alive[:, :, None]
    s = (
        torch.maximum(0.5 * radius, 0.7 * step.flatten(1).amax(1))
        .clamp_min(0.1)
        .square()[:, None, None]
    )
    share = path.new_zeros(path.shape[:3])  # a point stands for half of the steps beside it
    share[:, :, 1:] += step / 2
    share[:, :, :-1] += step / 2
    y, x = path.flatten(1, 2)[..., None].unbind(2)  # [B, S·P, 1]
    down = torch.exp_((torch.arange(height) + 0.5 - y).square_().neg_() / s)
    across = torch.exp_((torch.arange(width) + 0.5 - x).square_().neg_() / s)
    across.mul_(share.flatten(1)[:, :, None])
    total = torch.bmm(down.transpose(1, 2), across).div_((torch.pi * s).sqrt())
    distance = total.clamp_min_(1e-30).log_().neg_().mul_(s).clamp_min_(0).sqrt_()
    fallen = (distance - radius[:, None, None]) / edge[:, None, None]
    return (0.5 - fallen).clamp_(0, 1)[:, None]


def _paths(each: Tensor) -> Tensor:
    """Points [B, S, P, 2] of strokes [B, S, 8], in units of the image's side."""
    kind, joined = each[..., 0, None, None], each[..., 1, None] < 0.5
    corners = 0.15 + 0.7 * each[..., 2:].reshape(-1, STROKES, 3, 1, 2)
    a, b, c = corners.unbind(2)  # [B, S, 1, 2]
    t = torch.linspace(0, 1, POINTS)[:, None]
    bow = 2 * t * (1 - t) * (b - a) + t**2 * (c - a)
    bent = (2 * t).clamp_max(1) * (b - a) + (2 * t - 1).clamp_min(0) * (c - b)
    # an arc's radii are in b's place; where it begins and how far it turns, in c's
    radii = 0.08 + 0.22 * each[..., None, 4:6]
    begins, turned = each[..., None, 6:7], 2 * each[..., None, 7:] - 1
    angle = 2 * torch.pi * (begins + t * (0.3 * turned.sign() + 0.7 * turned))
    arc = torch.cat([angle.sin(), angle.cos()], 3)
    arc = (arc - arc[:, :, :1]) * radii
    path = torch.where(kind < 0.5, bow, torch.where(kind < 0.8, arc, bent))  # from 0
    starts = [a[:, 0, 0]]
    for stroke in range(1, STROKES):
        end = starts[-1] + path[:, stroke - 1, -1]
        starts.append(torch.where(joined[:, stroke], end, a[:, stroke, 0]))
    return path + torch.stack(starts, 1)[:, :, None]
