"""Images by formula. Each kind is a function

    f(count, channels, height, width, rng) -> float32 [count, channels, height, width] in 0..1

for one to four channels and sides of 8 pixels or more, and a line in `DRAWINGS`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from synthkd.synthesis.drawings import fractals, leaves, noise, polygons, shaders, strokes
from synthkd.synthesis.drawings.brushes import Drawing

DRAWINGS: Mapping[str, Drawing] = {
    "noise": noise.noise,
    "spectrum": noise.spectrum,
    "leaves": leaves.leaves,
    "shaders": shaders.shaders,
    "strokes": strokes.strokes,
    "fractals": fractals.fractals,
    "polygons": polygons.polygons,
}


def assorted(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Drawings [count, C, H, W] of several kinds to look at a teacher by, always the same ones.

    >>> assorted(7, (3, 16, 16)).shape
    torch.Size([7, 3, 16, 16])
    """
    rng, kinds = torch.Generator().manual_seed(0), ("spectrum", "leaves", "shaders")
    images = torch.cat([DRAWINGS[kind](count // 3 + 1, *shape, rng) for kind in kinds])
    return images[torch.randperm(len(images), generator=rng)[:count]]
