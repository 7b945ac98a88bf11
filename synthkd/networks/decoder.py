"""The generator of a conditional GAN: noise and a class in, an image out (catalogue A1)."""

import torch.nn.functional as F
from torch import Tensor, nn


class ConditionalNorm(nn.Module):
    """BatchNorm whose scale and shift belong to the class (Dumoulin et al. 2017, de Vries et al.
    2017)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(classes, channels)
        self.shift = nn.Embedding(classes, channels)
        nn.init.normal_(self.scale.weight, 1.0, 0.1)
        nn.init.normal_(self.shift.weight, 0.0, 0.1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """[B, C, H, W] and labels [B] to [B, C, H, W]."""
        scale, shift = self.scale(labels)[:, :, None, None], self.shift(labels)[:, :, None, None]
        out: Tensor = self.norm(x) * scale + shift
        return out


class Decoder(nn.Module):
    """z [B, Z] and labels [B] to images [B, C, H, W] in 0..1.

    A linear layer to 2w maps at a quarter of the size, two doublings, 3x3 convolutions with
    class-conditional BatchNorm between them, and a sigmoid (DCGAN's body, Radford et al. 2016, with
    upsampling in place of transposed convolutions).
    """

    def __init__(
        self, *, latent: int, width: int, classes: int, shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.start = (-(-self.height // 4), -(-self.width // 4))
        self.wide = 2 * width
        self.linear = nn.Linear(latent, self.wide * self.start[0] * self.start[1])
        self.norm0 = ConditionalNorm(self.wide, classes)
        self.conv1 = nn.Conv2d(self.wide, self.wide, 3, padding=1, bias=False)
        self.norm1 = ConditionalNorm(self.wide, classes)
        self.conv2 = nn.Conv2d(self.wide, width, 3, padding=1, bias=False)
        self.norm2 = ConditionalNorm(width, classes)
        self.conv3 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Noise [B, Z] and classes [B] to images [B, C, H, W]."""
        h = self.linear(z).view(-1, self.wide, *self.start)
        h = F.interpolate(self.norm0(h, labels), scale_factor=2)
        h = F.leaky_relu(self.norm1(self.conv1(h), labels), 0.2)
        h = F.interpolate(h, size=(self.height, self.width))
        h = F.leaky_relu(self.norm2(self.conv2(h), labels), 0.2)
        image: Tensor = self.conv3(h).sigmoid()
        return image
