"""One ResNet of several widths: switchable BatchNorm, weights that the narrow ones share."""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.networks.resnet import Block, ResNet
from synthkd.networks.stem import pooled

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the full width
RANDOM = 2  # widths of a step beside the narrowest and the full one


class Slimmable(nn.Module):
    """A ResNet that answers at several widths: at share s of the width, each layer uses the first
    s · C of its channels. Every width has BatchNorm layers of its own, as statistics differ between
    widths (Yu et al. 2019, "Slimmable neural networks", https://arxiv.org/abs/1812.08928).

    `full` has the weights. It answers at the full width unless `use` says otherwise. B images, K
    classes.
    """

    def __init__(self, full: ResNet, shares: Sequence[float] = SHARES) -> None:
        super().__init__()
        self.full = full
        self.shares = tuple(sorted(shares))
        if self.shares[-1] != 1 or self.shares[0] <= 0:
            raise ValueError("shares of the width lie in 0..1, and the largest is 1")
        norms = [m for m in full.modules() if isinstance(m, nn.BatchNorm2d)]
        self.narrow_norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(_channels(m.num_features, share)) for m in norms)
            for share in self.shares[:-1]
        )
        self.share = 1.0

    def use(self, share: float) -> None:
        """Answers at one of the `shares` from now on."""
        if share not in self.shares:
            raise ValueError(f"{share:g} is none of the widths {self.shares}")
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] to logits [B, K]."""
        if self.share == 1:
            logits: Tensor = self.full(x)
            return logits
        norms = iter(self._norms(self.share))
        full, width = self.full, _channels(len(self.full.conv1.weight), self.share)
        h = F.conv2d(x, full.conv1.weight[:width], None, full.conv1.stride, full.conv1.padding)
        h = pooled(F.relu(next(norms)(h), inplace=True), full.reduction)
        for block in self._blocks():
            h = _narrow_block(h, block, self.share, next(norms), next(norms))
        h = F.avg_pool2d(h, h.shape[2:]).flatten(1)
        return F.linear(h, full.linear.weight[:, : h.shape[1]], full.linear.bias)

    def _norms(self, share: float) -> list[nn.Module]:
        """The BatchNorm layers of a narrower width, in the order of the full one's."""
        found = self.narrow_norms[self.shares.index(share)]
        assert isinstance(found, nn.ModuleList)
        return list(found)

    def _blocks(self) -> list[Block]:
        return [m for m in self.full.modules() if isinstance(m, Block)]

    def _plain(self, share: float) -> ResNet:
        """A plain ResNet of a share of the width, with random weights."""
        full = self.full
        return ResNet(
            2 + 6 * len(full.layer1), width=_channels(len(full.conv1.weight), share),
            channels=full.conv1.in_channels, classes=full.linear.out_features,
            reduction=full.reduction,
        )  # fmt: skip

    def used(self, share: float) -> dict[str, tuple[slice, ...]]:
        """Which part of each weight and buffer of `full`, by name, a share of the width uses."""
        with torch.device("meta"):
            narrow = self._plain(share).state_dict()
        return {
            name: tuple(slice(0, side) for side in value.shape) for name, value in narrow.items()
        }

    def sliced(self, share: float) -> ResNet:
        """The plain ResNet that answers as this one does at a share of the width."""
        if share == 1:
            return copy.deepcopy(self.full)
        full, found = self.full, self._plain(share)
        wide = full.state_dict()
        state = {name: wide[name][part].clone() for name, part in self.used(share).items()}
        norms = self._norms(share)
        named = [n for n, m in full.named_modules() if isinstance(m, nn.BatchNorm2d)]
        for name, norm in zip(named, norms, strict=True):
            state |= {f"{name}.{key}": value.clone() for key, value in norm.state_dict().items()}
        found.load_state_dict(state)
        return found.train(self.training)


def widths(body: nn.Module) -> Iterator[float]:
    """The widths of a network, one after the other, which it answers at meanwhile; afterwards it
    has its full width. 1 alone of one that is not slimmable."""
    if not isinstance(body, Slimmable):
        yield 1.0
        return
    try:
        for share in body.shares:
            body.use(share)
            yield share
    finally:
        body.use(1.0)


def _channels(full: int, share: float) -> int:
    return max(1, round(full * share))


def _narrow_block(
    x: Tensor, block: Block, share: float, first: nn.Module, second: nn.Module
) -> Tensor:
    """A residual block at a share of its width."""
    into, out = x.shape[1], _channels(len(block.conv1.weight), share)
    h = F.conv2d(x, block.conv1.weight[:out, :into], None, block.conv1.stride, 1)
    h = F.relu(first(h), inplace=True)
    h = second(F.conv2d(h, block.conv2.weight[:out, :out], None, 1, 1))
    if block.stride != 1:
        x = F.avg_pool2d(x, 1, block.stride)
    if out > into:
        front = (out - into) // 2
        x = F.pad(x, (0, 0, 0, 0, front, out - into - front))
    return F.relu(h + x, inplace=True)
