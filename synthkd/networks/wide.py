"""Wide residual networks in CIFAR form (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146).

B batch, C channels, H height, W width, K classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.networks.stem import pooled, stem


class PreactivatedBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; the way around is a 1 x 1 convolution where shapes
    change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changed = stride != 1 or inputs != outputs
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        active = F.relu(self.bn1(x))
        around = x if self.around is None else self.around(active)
        found: Tensor = around + self.conv2(F.relu(self.bn2(self.conv1(active))))
        return found


class WideResNet(nn.Module):
    """Depth 6n + 4, three groups of n blocks of 16k, 32k, 64k channels: WRN-16-1 has n = 2, k = 1.

    Takes images of any size from 8 pixels on; a `reduction` of 2 or 4 in the first layer is for
    larger ones (`stem`).
    """

    def __init__(
        self, depth: int, factor: int, *, channels: int, classes: int, reduction: int = 1
    ) -> None:
        super().__init__()
        self.reduction = reduction
        blocks = (depth - 4) // 6
        self.conv1 = stem(channels, 16, reduction)
        groups: list[nn.Module] = []
        inputs = 16
        for group, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
            for block in range(blocks):
                stride = 2 if group and not block else 1
                groups.append(PreactivatedBlock(inputs, width, stride))
                inputs = width
        self.blocks = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, K]."""
        x = F.relu(self.bn(self.blocks(pooled(self.conv1(x), self.reduction))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
