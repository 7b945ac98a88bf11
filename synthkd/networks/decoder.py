"""The generator of a GAN: noise, or a class and noise, in; an image out.

B batch, C channels, H height, W width, K classes, Z noise, E embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING = 512  # E, as long as the text embeddings that NAYER takes


class ConditionalNorm(nn.Module):
    """BatchNorm whose scale and shift belong to the class (Dumoulin et al. 2017, de Vries et al.
    2017); with `classes` 0 an ordinary one."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.BatchNorm2d(channels, affine=not classes)
        if classes:
            self.scale = nn.Embedding(classes, channels)
            self.shift = nn.Embedding(classes, channels)
            nn.init.normal_(self.scale.weight, 1.0, 0.1)
            nn.init.normal_(self.shift.weight, 0.0, 0.1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """[B, C, H, W] and labels [B] to [B, C, H, W]."""
        out: Tensor = self.norm(x)
        if self.classes:
            scale, shift = self.scale(labels), self.shift(labels)
            out = out * scale[:, :, None, None] + shift[:, :, None, None]
        return out


class NoisyLayer(nn.Module):
    """Variety from random weights in place of a random input (NAYER).

    A class is a vector that was drawn once and never learns; BatchNorm, then a linear layer whose
    weights are the noise: N(0, 1), drawn by the caller for every batch, one layer for each group of
    K images. A group holds every class once, so no two images of a batch are alike.

    Tran et al. 2024: https://arxiv.org/abs/2310.00258. There the vectors are CLIP's embeddings of
    the class names, which is knowledge from outside. Here they are N(0, 1) as well.
    """

    vectors: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("vectors", torch.randn(classes, EMBEDDING))
        self.norm = nn.BatchNorm1d(EMBEDDING)

    def forward(self, weights: Tensor, labels: Tensor) -> Tensor:
        """Weights [groups, E, Z] and labels [B] to [B, Z]; image i belongs to group i // K."""
        h = self.norm(self.vectors[labels])
        groups = zip(h.split(self.classes), weights, strict=True)
        return torch.cat([part @ layer for part, layer in groups])


class Decoder(nn.Module):
    """z and labels [B] to images [B, C, H, W] in 0..1.

    A linear layer to 2w maps at a quarter of the size, two doublings, 3x3 convolutions with
    BatchNorm between them (DCGAN's body, Radford et al. 2016, with upsampling in place of
    transposed convolutions): the body of DAFL, ZSKT, DFAD, CMI, Fast and NAYER. With `classes` the
    BatchNorm knows the class; with 0 labels are ignored.

    z is [B, Z]; with `named` classes, the first layer is a `NoisyLayer` and z are its weights.

    `output` says how pixels are made: "sigmoid", or "standard": tanh, BatchNorm without scale and
    shift, times `std` plus `mean` (of the teacher's input), cut to 0..1 with a gradient as if
    nothing had been cut (DAFL, Chen et al. 2019, whose images stay normalised and uncut).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        latent: int,
        width: int,
        classes: int,
        shape: tuple[int, int, int],
        named: int = 0,
        output: str = "sigmoid",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.latent, self.named = latent, named
        self.start = (-(-self.height // 4), -(-self.width // 4))
        self.wide = 2 * width
        self.noisy = NoisyLayer(named) if named else None
        self.linear = nn.Linear(latent, self.wide * self.start[0] * self.start[1])
        self.norm0 = ConditionalNorm(self.wide, classes)
        self.conv1 = nn.Conv2d(self.wide, self.wide, 3, padding=1, bias=False)
        self.norm1 = ConditionalNorm(self.wide, classes)
        self.conv2 = nn.Conv2d(self.wide, width, 3, padding=1, bias=False)
        self.norm2 = ConditionalNorm(width, classes)
        self.conv3 = nn.Conv2d(width, channels, 3, padding=1)
        self.standard = nn.BatchNorm2d(channels, affine=False) if output == "standard" else None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def noise(self, count: int, rng: torch.Generator) -> Tensor:
        """A z for `count` images: [count, Z], or [groups, E, Z] for a noisy layer."""
        if self.named:
            return torch.randn(-(-count // self.named), EMBEDDING, self.latent, generator=rng)
        return torch.randn(count, self.latent, generator=rng)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Noise and classes [B] to images [B, C, H, W]."""
        h = self.linear(self.noisy(z, labels) if self.noisy else z).view(-1, self.wide, *self.start)
        h = F.interpolate(self.norm0(h, labels), scale_factor=2)
        h = F.leaky_relu(self.norm1(self.conv1(h), labels), 0.2)
        h = F.interpolate(h, size=(self.height, self.width))
        h = F.leaky_relu(self.norm2(self.conv2(h), labels), 0.2)
        image: Tensor = self.conv3(h)
        if self.standard is None:
            return image.sigmoid()
        image = self.standard(image.tanh()).float() * self.std + self.mean
        return image + (image.clamp(0, 1) - image).detach()
