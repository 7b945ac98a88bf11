"""The denoiser of a diffusion model: a small UNet of diffusers."""

from typing import Any

GROUPS = 8  # of every GroupNorm: divides all its channels
LEVELS = 3  # sizes at which it works: the whole, a half, a quarter
LARGEST = 64  # pixels: larger images are made at this size and enlarged


def working_size(height: int, width: int) -> int:
    """The side of the square at which images are denoised: a multiple of 4, at most LARGEST.

    >>> working_size(28, 28), working_size(30, 20), working_size(224, 224)
    (28, 32, 64)
    """
    step = 1 << (LEVELS - 1)
    return min(LARGEST, -(-max(height, width) // step) * step)


def new_unet(channels: int, classes: int, *, size: int, width: int) -> Any:
    """A `diffusers.UNet2DModel` for images [B, channels, size, size], weights from torch's global
    random state.

    It takes noisy images, the step [B] or a number, and class labels [B]; label `classes` stands
    for no class. The first level has `width` channels, the others twice as many, each level one
    residual block down and two up; attention at the smallest size.
    """
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size,
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
