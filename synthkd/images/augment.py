"""Augmentation on the device, differentiable. B batch, C channels, H height, W width.

Shift and mirror are ours (an index_select each, several times cheaper than a resampling); rotation,
scale and shear are kornia's. All randomness comes from the `rng` that is given.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.core.images import sent
from synthkd.core.seeds import globally
from synthkd.recipe import AugmentTable


def shifted(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Every image moved by up to `share` of its size in both directions; what enters is its edge,
    repeated.

    Images [B, C, H, W] stay in their shape. One draw per image.
    """
    batch, channels, height, width = images.shape
    reach_y, reach_x = round(share * height), round(share * width)
    if reach_y == reach_x == 0:
        return images
    rows = torch.arange(height)[None, :] + torch.randint(
        -reach_y, reach_y + 1, (batch, 1), generator=rng
    )
    cols = torch.arange(width)[None, :] + torch.randint(
        -reach_x, reach_x + 1, (batch, 1), generator=rng
    )
    rows, cols = rows.clamp_(0, height - 1), cols.clamp_(0, width - 1)
    index = (torch.arange(batch)[:, None, None] * height + rows[:, :, None]) * width + cols[
        :, None, :
    ]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)  # [B·H·W, C], free for channels_last
    moved = pixels.index_select(0, sent(index.flatten(), images.device))
    return moved.view(batch, height, width, channels).permute(0, 3, 1, 2)


def mirrored(images: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the images, drawn at random, with left and right exchanged."""
    chosen = sent(torch.rand(len(images), 1, 1, 1, generator=rng), images.device) < 0.5
    return torch.where(chosen, images.flip(3), images)


def jittered(images: Tensor, strength: float | Tensor, rng: torch.Generator) -> Tensor:
    """Contrast changed by up to ± `strength`, brightness by up to half of it, one draw per image,
    kept in 0..1."""
    if isinstance(strength, Tensor):
        strength = sent(strength.view(-1, 1, 1, 1), images.device)
    draw = torch.rand(2, len(images), 1, 1, 1, generator=rng).mul_(2).sub_(1)
    draw = sent(draw, images.device)
    middle = images.mean((1, 2, 3), keepdim=True)
    return ((images - middle) * (1 + strength * draw[0]) + middle + 0.5 * strength * draw[1]).clamp(
        0, 1
    )


def erased(images: Tensor, probability: float | Tensor, rng: torch.Generator) -> Tensor:
    """A rectangle of a fifth to a half of each side painted in the image's mean, with this
    probability."""
    probability = probability[:, None] if isinstance(probability, Tensor) else probability
    batch, _, height, width = images.shape
    draw = torch.rand(5, batch, 1, generator=rng)
    tall, wide = (0.2 + 0.3 * draw[0]) * height, (0.2 + 0.3 * draw[1]) * width
    top, left = draw[2] * (height - tall), draw[3] * (width - wide)
    y, x = torch.arange(height)[None, :], torch.arange(width)[None, :]
    inside_y = (y >= top) & (y < top + tall) & (draw[4] < probability)
    inside_x = (x >= left) & (x < left + wide)
    hole = sent(inside_y[:, None, :, None] & inside_x[:, None, None, :], images.device)
    return torch.where(hole, images.mean((2, 3), keepdim=True), images)


def cropped(images: Tensor, smallest: float, rng: torch.Generator) -> Tensor:
    """A window of every image [B, C, H, W], enlarged to the whole bilinearly.

    Its area is a share `smallest`..1, its sides are 3:4 to 4:3; one draw per image.
    """
    draw = torch.rand(4, len(images), generator=rng)
    area = smallest + (1 - smallest) * draw[0]
    ratio = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    wide, tall = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    x, y = (2 * draw[2] - 1) * (1 - wide), (2 * draw[3] - 1) * (1 - tall)
    none = torch.zeros_like(x)
    windows = sent(torch.stack([wide, none, x, none, tall, y], 1).view(-1, 2, 3), images.device)
    grid = F.affine_grid(windows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def bent(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Rotation by up to 30 degrees, scale 1 ± 0.25 and shear by up to 15 degrees, times
    `strength`."""
    import kornia.augmentation as K

    warp = K.RandomAffine(
        degrees=30 * strength,
        scale=(1 - 0.25 * strength, 1 + 0.25 * strength),
        shear=15 * strength,
        padding_mode="border",
        p=1.0,
    )
    with globally(rng, images.device):
        warped: Tensor = warp(images)
    return warped


def bent_each(images: Tensor, strength: Tensor, rng: torch.Generator) -> Tensor:
    """As `bent`, with a strength for each image, [B]."""
    draw, (height, width) = 2 * torch.rand(3, len(images), generator=rng) - 1, images.shape[2:]
    angle, scale = math.radians(30) * strength * draw[0], 1 + 0.25 * strength * draw[1]
    shear = torch.tan(math.radians(15) * strength * draw[2])
    cos, sin, none = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    rows = [
        cos,
        (cos * shear - sin) * height / width,
        none,
        sin * width / height,
        sin * shear + cos,
        none,
    ]  # in coordinates of −1..1 in either direction
    maps = sent((torch.stack(rows, 1) / scale[:, None]).view(-1, 2, 3), images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augmented(
    images: Tensor, table: AugmentTable, difficulty: float | Tensor, rng: torch.Generator
) -> Tensor:
    """The view that teacher and student both see: images [B, C, H, W] in 0..1, a fresh draw for
    each.

    Shift, crop and mirror are always on; bending, jitter, erasing grow with the difficulty, 0..1,
    of all images or of each, [B] on the CPU.
    """
    out = shifted(images, table.shift, rng)
    if table.crop < 1:
        out = cropped(out, table.crop, rng)
    if table.flip:
        out = mirrored(out, rng)
    if isinstance(difficulty, Tensor):
        some = True
        if table.affine:
            out = bent_each(out, table.affine * difficulty, rng)
    else:
        some = difficulty > 0
        if table.affine and some:
            out = bent(out, table.affine * difficulty, rng)
    if table.jitter and some:
        out = jittered(out, table.jitter * difficulty, rng)
    if table.erase and some:
        out = erased(out, table.erase * difficulty, rng)
    return out.contiguous(memory_format=torch.channels_last)


def mixed_up(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mixup (Zhang et al. 2018): each image blended with another of the batch, weight uniform in
    0..1.

    The teacher labels the blend itself, so no labels are mixed.
    """
    weight = sent(torch.rand(len(images), 1, 1, 1, generator=rng), images.device)
    other = images[sent(torch.randperm(len(images), generator=rng), images.device)]
    return torch.lerp(other, images, weight)
