"""Networks by name: `resnet20`, `resnet8-w8` (CIFAR form, first width 8), `wrn-16-1`, `lenet5`,
`lenet5-half`, `mobilenet`, `mobilenet-0.5`. `NETWORKS` has them; one more is one more line. All but
LeNet-5 also as `resnet20-stem2` or `-stem4`, for larger images (`networks.stem`); ResNets also as
`slim:resnet20`, one network of several widths (`networks.slimmable`)."""

import re
from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.networks.lenet import LeNet5
from synthkd.networks.mobilenet import MobileNet
from synthkd.networks.resnet import ResNet
from synthkd.networks.slimmable import Slimmable
from synthkd.networks.stem import STEMS
from synthkd.networks.wide import WideResNet

SLIM, LEAST_SLIM = "slim:", 8
DEPTHS = (8, 14, 20, 32, 44, 56)  # of a ResNet


class Builder(Protocol):
    """Makes a network with random weights that takes normalised images [B, C, H, W] and returns
    logits [B, K]."""

    def __call__(self, channels: int, size: int | tuple[int, int], classes: int) -> nn.Module:
        """`channels` C, `size` a side or height and width in pixels, `classes` K."""


def _resnet(depth: int, width: int = 16, reduction: int = 1) -> Builder:
    return lambda channels, size, classes: ResNet(
        depth, width=width, channels=channels, classes=classes, reduction=reduction
    )


def _wide(depth: int, factor: int, reduction: int = 1) -> Builder:
    return lambda channels, size, classes: WideResNet(
        depth, factor, channels=channels, classes=classes, reduction=reduction
    )


def _lenet(*, half: bool) -> Builder:
    return lambda channels, size, classes: LeNet5(
        channels=channels, size=size, classes=classes, half=half
    )


def _mobilenet(width: float, reduction: int = 1) -> Builder:
    return lambda channels, size, classes: MobileNet(
        width=width, channels=channels, classes=classes, reduction=reduction
    )


def _slimmable(full: Builder) -> Builder:
    def build(channels: int, size: int | tuple[int, int], classes: int) -> nn.Module:
        network = full(channels, size, classes)
        assert isinstance(network, ResNet)
        if len(network.conv1.weight) < LEAST_SLIM:
            raise InputError(f"a slimmable network has a first width of {LEAST_SLIM} at least")
        return Slimmable(network)

    return build


_REDUCING: dict[str, Callable[[int], Builder]] = {
    **{f"resnet{depth}": partial(_resnet, depth, 16) for depth in DEPTHS},
    "wrn-16-1": partial(_wide, 16, 1),
    "wrn-16-2": partial(_wide, 16, 2),
    "wrn-28-1": partial(_wide, 28, 1),
    "wrn-40-1": partial(_wide, 40, 1),
    "wrn-40-2": partial(_wide, 40, 2),
    "mobilenet": partial(_mobilenet, 1.0),
    "mobilenet-0.25": partial(_mobilenet, 0.25),
    "mobilenet-0.5": partial(_mobilenet, 0.5),
}  # by the reduction of their stem
NETWORKS: dict[str, Builder] = {
    **{name: make(1) for name, make in _REDUCING.items()},
    "lenet5": _lenet(half=False),
    "lenet5-half": _lenet(half=True),
}
NAMES = tuple(NETWORKS)


def is_named(spec: str) -> bool:
    """Whether `spec` is the name of a network of ours (perhaps misspelt), not a path or a
    module."""
    return re.fullmatch(r"(slim:)?[a-z][a-z0-9-]*(\.\d+)?(-stem\d+)?", spec) is not None


def is_known(name: str) -> bool:
    """Whether a network of ours is called so."""
    return _builder(name) is not None


def build_network(
    name: str, *, channels: int, size: int | tuple[int, int], classes: int
) -> nn.Module:
    """The network `name` with random weights, for images of `size`: a side, or height and width. It
    takes normalised images and returns logits [B, K]."""
    builder = _builder(name)
    if builder is None:
        raise InputError(
            f"no network is called {quoted(name)}{suggest(name, NETWORKS)} "
            "(resnets also as resnet8-w8, for larger images all but lenet5 as resnet8-stem4)"
        )
    return builder(channels, size, classes)


def _builder(name: str) -> Builder | None:
    """By its name; ResNets also with the width of their first group, 2 to 512, all but LeNet-5 also
    with the reduction of their stem, and ResNets as slimmable ones."""
    if name.startswith(SLIM):
        full = _builder(name.removeprefix(SLIM))
        return _slimmable(full) if full and name.startswith(f"{SLIM}resnet") else None
    plain, reducing, stem = name.partition("-stem")
    reduction = int(stem) if stem in map(str, STEMS[1:]) else 1
    if reducing and reduction == 1:
        return None
    match = re.fullmatch(r"resnet(\d+)-w(\d{1,3})", plain)
    if match and int(match[1]) in DEPTHS and 2 <= int(match[2]) <= 512:
        return _resnet(int(match[1]), int(match[2]), reduction)
    if not reducing:
        return NETWORKS.get(name)
    return _REDUCING[plain](reduction) if plain in _REDUCING else None
