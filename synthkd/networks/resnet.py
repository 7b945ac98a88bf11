"""Residual networks in the form made for CIFAR: three groups of basic blocks, shortcuts without
weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.networks.stem import pooled, stem


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, the shortcut subsamples and
    pads."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outward)
        self.conv2 = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        self.stride = stride
        self.extra = outward - inward

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = self.bn2(self.conv2(h))
        if self.stride != 1:
            x = F.avg_pool2d(x, 1, self.stride)  # as x[:, :, ::2, ::2], but see below
        if self.extra:
            front = self.extra // 2
            x = F.pad(x, (0, 0, 0, 0, front, self.extra - front))
        return F.relu(h + x, inplace=True)


class ResNet(nn.Module):
    """He et al. 2016, section 4.2 (https://arxiv.org/abs/1512.03385): depth 6n + 2, widths w, 2w,
    4w. A `reduction` of 2 or 4 in the first layer is for larger images (`stem`).

    The gradient of a slice, and that of `mean`, come back in another memory layout than the maps
    that they meet. With pooling in their place forward and backward take a quarter less time.
    """

    def __init__(
        self, depth: int, *, width: int = 16, channels: int = 3, classes: int = 10,
        reduction: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reduction = reduction
        count = (depth - 2) // 6
        self.conv1 = stem(channels, width, reduction)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _group(count, width, width, 1)
        self.layer2 = _group(count, width, 2 * width, 2)
        self.layer3 = _group(count, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] to logits [B, K]."""
        h = pooled(F.relu(self.bn1(self.conv1(x)), inplace=True), self.reduction)
        h = self.layer3(self.layer2(self.layer1(h)))
        size = h.shape[2:]
        # of torch.jit the sides are tensors; what torch.fx follows must stay as it is
        if torch._C._get_tracing_state() is not None:
            size = torch.Size([int(side) for side in size])
        logits: Tensor = self.linear(F.avg_pool2d(h, size).flatten(1))
        return logits


def _group(count: int, inward: int, outward: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            Block(inward if i == 0 else outward, outward, stride if i == 0 else 1)
            for i in range(count)
        )
    )
