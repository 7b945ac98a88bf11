"""A small MobileNetV2 for images of 28 to 96 pixels (Sandler et al. 2018,
https://arxiv.org/abs/1801.04381): the first two reductions of the published one are left out,
and at its end the stage of 320 channels and one block of 160; the last layer has 640 channels.

B batch, C channels, H height, W width, K classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.networks.stem import pooled, stem

# expansion, channels, blocks, stride of the first
FORM = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 2, 2))


class InvertedBlock(nn.Module):
    """1 x 1 up, 3 x 3 by channel, 1 x 1 down without activation; added to its input where shapes
    allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        up: list[nn.Module] = []
        if expansion != 1:
            up = [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        self.body = nn.Sequential(
            *up,
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        found: Tensor = self.body(x)
        return x + found if self.added else found


class MobileNet(nn.Module):
    """`width` multiplies all channels; 0.5 has about 0.3 M weights and 20 M multiplications at 32
    pixels. A `reduction` of 2 or 4 in the first layer is for larger images (`stem`)."""

    def __init__(self, *, width: float, channels: int, classes: int, reduction: int = 1) -> None:
        super().__init__()
        self.reduction = reduction

        def scaled(count: int) -> int:
            return max(8, int(count * width + 4) // 8 * 8)

        inputs = scaled(32)
        self.conv1 = stem(channels, inputs, reduction)
        self.bn1 = nn.BatchNorm2d(inputs)
        blocks: list[nn.Module] = []
        for expansion, count, repeats, stride in FORM:
            outputs = scaled(count)
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(InvertedBlock(inputs, outputs, expansion, step))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        last = scaled(640)
        self.conv2 = nn.Conv2d(inputs, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, K]."""
        x = self.blocks(pooled(F.relu6(self.bn1(self.conv1(x))), self.reduction))
        x = F.relu6(self.bn2(self.conv2(x))).mean((2, 3))
        logits: Tensor = self.linear(x)
        return logits
