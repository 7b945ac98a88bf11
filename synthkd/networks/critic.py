"""The discriminator: is an image of this class like the reference?"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Critic(nn.Module):
    """Images [B, C, H, W] to validity [B], given their classes.

    Three strided convolutions, a spatial mean, and a projection head: psi(h) + <embedding(y), h>.
    With `normed` every layer is divided by its largest singular value
    (Miyato et al. 2018, https://arxiv.org/abs/1802.05957; projection:
    https://arxiv.org/abs/1802.05637).
    """

    def __init__(self, *, channels: int, classes: int, width: int, normed: bool) -> None:
        super().__init__()
        bound = spectral_norm if normed else lambda module: module
        widths = (channels, width, 2 * width, 4 * width)
        self.convolutions = nn.ModuleList(
            bound(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(widths)
        )
        self.head = bound(nn.Linear(4 * width, 1))
        self.embedding = bound(nn.Embedding(classes, 4 * width))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [B, C, H, W] in 0..1 and labels [B] to validity [B]."""
        h = images * 2 - 1
        for convolution in self.convolutions:
            h = F.leaky_relu(convolution(h), 0.2)
        h = h.mean((2, 3))
        validity: Tensor = self.head(h).squeeze(1) + (self.embedding(labels) * h).sum(1)
        return validity
