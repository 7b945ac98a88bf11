"""The first layer of a network for larger images: it makes their maps two or four times smaller."""

import torch.nn.functional as F
from torch import Tensor, nn

STEMS = (1, 2, 4)


def stem(channels: int, width: int, reduction: int) -> nn.Conv2d:
    """A 3x3 convolution [B, channels, H, W] to [B, width, H / s, W / s], s at most 2: the rest of a
    `reduction` of 4 is done by `pooled`. Its weights have the same shape for every reduction."""
    return nn.Conv2d(channels, width, 3, min(reduction, 2), 1, bias=False)


def pooled(maps: Tensor, reduction: int) -> Tensor:
    """Maps of the first layer, by max pooling at half their size where the reduction is 4,
    as in ResNets for ImageNet (He et al. 2016, https://arxiv.org/abs/1512.03385)."""
    return F.max_pool2d(maps, 3, 2, 1) if reduction == 4 else maps
