"""Networks without BatchNorm, as a user's own code would define them: `networks.py:vit`."""

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """A small vision transformer: patches of a seventh or an eighth of the side, a class token,
    learned places."""

    def __init__(self, channels: int, size: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        patch = size // 7 if size % 7 == 0 else size // 8
        self.patches = nn.Conv2d(channels, width, patch, patch)
        count = (size // patch) ** 2
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, count + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, K]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        logits: Tensor = self.head(self.norm(self.encoder(tokens))[:, 0])
        return logits


def vit(
    channels: int = 1, size: int = 28, classes: int = 10, width: int = 64, depth: int = 4
) -> nn.Module:
    """About 140,000 weights."""
    return Transformer(channels, size, classes, width, depth)


def groupnorm(channels: int = 1, size: int = 28, classes: int = 10, width: int = 32) -> nn.Module:
    """Six convolutions with GroupNorm; about 290,000 weights."""
    layers: list[nn.Module] = []
    before = channels
    for i, out in enumerate((width, width, 2 * width, 2 * width, 4 * width, 4 * width)):
        stride = 2 if i in (2, 4) else 1
        layers += [
            nn.Conv2d(before, out, 3, stride, 1, bias=False), nn.GroupNorm(8, out), nn.ReLU(),
        ]  # fmt: skip
        before = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
