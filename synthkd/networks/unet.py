"""The denoiser of a diffusion model: a small UNet of diffusers."""

import math
from typing import Any

GROUPS = 8  # of every GroupNorm: divides all its channels
LEVELS = 3  # sizes at which it works: the whole, a half, a quarter
LARGEST = 64  # pixels: larger images are made at this size and enlarged


def working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which images are denoised: multiples of 4, at most LARGEST, in about the
    images' own proportion.

    >>> working_size(28, 28), working_size(30, 20), working_size(224, 224), working_size(32, 512)
    ((28, 28), (32, 20), (64, 64), (8, 64))
    """
    step = 1 << (LEVELS - 1)
    share = min(1.0, LARGEST / max(height, width))
    first, second = (
        min(LARGEST, max(2 * step, math.ceil(side * share / step) * step))
        for side in (height, width)
    )
    return first, second


def new_unet(channels: int, classes: int, *, size: int | tuple[int, int], width: int) -> Any:
    """A `diffusers.UNet2DModel` for images [B, channels, H, W] of `size` (a side, or H and W),
    weights from torch's global random state.

    It takes noisy images, the step [B] or a number, and class labels [B]; label `classes` stands
    for no class. The first level has `width` channels, the others twice as many, each level one
    residual block down and two up; attention at the smallest size.
    """
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size if isinstance(size, int) or size[0] != size[1] else size[0],
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D",) * LEVELS,
        up_block_types=("UpBlock2D",) * LEVELS,
        norm_num_groups=GROUPS,
        attention_head_dim=16,
        num_class_embeds=classes + 1,
    )
