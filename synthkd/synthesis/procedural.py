"""Images drawn by a formula (catalogue A9): no training, no gradient; the memory keeps what the
teacher spreads.

The simplest useful kind: pen strokes and soft shapes. B images, S strokes, P points along a stroke.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.images import Batch
from synthkd.recipe import Recipe
from synthkd.synthesis.scene import Invented, Scene
from synthkd.teachers import Teacher


class Procedural:
    """Draws strokes on a ground. It learns nothing and has no state.

    The mean that the teacher subtracts tells how bright its images are: under 0.25 they are light
    on black, over 0.75 dark on white, in between ground and ink are drawn at random.
    """

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        self.shape = teacher.spec.shape
        self.brightness = sum(teacher.spec.mean) / len(teacher.spec.mean)
        self.device = next(iter(teacher.classifier.buffers())).device

    def synthesize(self, scene: Scene, rng: torch.Generator) -> Invented:
        """`stage.fresh` drawings; `stage.synthesis_steps` is without meaning here."""
        return Invented(self.sample(scene.stage.fresh, rng), 0, {})

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        """`count` drawings; no class is asked for, so every label is −1."""
        images = [self._draw(min(256, count - i), rng) for i in range(0, count, 256)]
        stack = torch.cat(images) if images else torch.empty(0, *self.shape)
        return Batch(stack.to(self.device), torch.full((count,), -1, device=self.device))

    def _draw(self, count: int, rng: torch.Generator) -> Tensor:
        channels, height, width = self.shape
        coverage = strokes(count, height, width, rng)  # [B, 1, H, W]
        ground = torch.rand(count, channels, 1, 1, generator=rng)
        ink = torch.rand(count, channels, 1, 1, generator=rng)
        if self.brightness < 0.25:
            ground, ink = torch.zeros_like(ground), 0.6 + 0.4 * ink
        elif self.brightness > 0.75:
            ground, ink = torch.ones_like(ground), 0.4 * ink
        return torch.lerp(
            ground.expand(-1, -1, height, width), ink.expand(-1, -1, height, width), coverage
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def strokes(count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Coverage [B, 1, H, W] in 0..1 of one to four pen strokes per image.

    A stroke is a quadratic Bezier curve or an elliptic arc, P = 24 points; half of the strokes
    begin where the one before ended. A pixel's ink falls from 1 to 0 over one pixel around the
    pen's radius.
    """
    most, points = 4, 24
    number = torch.randint(1, most + 1, (count, 1), generator=rng)
    t = torch.linspace(0, 1, points)[None, None, :, None]
    # control points inside the image, 2 coordinates (y, x) in 0..1
    a, b, c = (0.15 + 0.7 * torch.rand(3, count, most, 1, 2, generator=rng)).unbind(0)
    joined = torch.rand(count, most, 1, 1, generator=rng) < 0.5
    for s in range(1, most):
        a[:, s] = torch.where(joined[:, s], c[:, s - 1], a[:, s])
    curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c  # [B, S, P, 2]
    draw = torch.rand(5, count, most, 1, generator=rng)
    angle = 2 * torch.pi * (draw[0] + (0.3 + 0.7 * draw[1]) * t[..., 0] * torch.sign(draw[4] - 0.5))
    radius = torch.stack([0.08 + 0.22 * draw[2], 0.08 + 0.22 * draw[3]], -1)
    arc = a + radius * (
        torch.stack([angle.sin(), angle.cos()], -1)
        - torch.stack([angle.sin(), angle.cos()], -1)[:, :, :1]
    )
    round_ = torch.rand(count, most, 1, 1, generator=rng) < 0.4
    pen = torch.where(round_, arc, curve)
    # the whole drawing is centred and fills a random part of the image
    alive = (torch.arange(most)[None] < number)[:, :, None, None]
    low = torch.where(alive, pen, 9.0).amin((1, 2), keepdim=True)
    high = torch.where(alive, pen, -9.0).amax((1, 2), keepdim=True)
    scale = (0.55 + 0.25 * torch.rand(count, 1, 1, 1, generator=rng)) / (high - low).amax(
        -1, keepdim=True
    ).clamp_min(0.2)
    pen = (pen - (low + high) / 2) * scale + 0.5
    pen = pen + 0.06 * (torch.rand(count, 1, 1, 2, generator=rng) - 0.5)
    size = torch.tensor([height, width], dtype=torch.float32)
    pen = torch.where(alive, pen * size, -1e3).reshape(count, most * points, 2)
    grid_y, grid_x = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
    )
    pixels = torch.stack([grid_y, grid_x], -1).reshape(1, -1, 2)
    distance = torch.cdist(pixels.expand(count, -1, -1), pen).amin(2)  # [B, H·W]
    thickness = (0.03 + 0.05 * torch.rand(count, 1, generator=rng)) * min(height, width)
    ink = (thickness + 0.5 - distance).clamp(0, 1).view(count, 1, height, width)
    return F.avg_pool2d(F.pad(ink, (1, 1, 1, 1), mode="replicate"), 3, 1) * 0.5 + ink * 0.5
