"""Networks by name: `resnet20`, `resnet8-w8` (CIFAR form, first width 8), `wrn-16-1`, `lenet5`,
`lenet5-half`, `mobilenet`, `mobilenet-0.5`."""

import re

from torch import nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.networks.lenet import LeNet5
from synthkd.networks.mobilenet import MobileNet
from synthkd.networks.resnet import ResNet
from synthkd.networks.wide import WideResNet

_DEPTHS = (8, 14, 20, 32, 44, 56)
_WIDE = ("wrn-16-1", "wrn-16-2", "wrn-28-1", "wrn-40-1", "wrn-40-2")
_MOBILE = ("mobilenet", "mobilenet-0.25", "mobilenet-0.5")
NAMES = (*(f"resnet{depth}" for depth in _DEPTHS), *_WIDE, "lenet5", "lenet5-half", *_MOBILE)


def is_named(spec: str) -> bool:
    """Whether `spec` is the name of a network of ours (perhaps misspelt), not a path or a
    module."""
    return re.fullmatch(r"[a-z][a-z0-9-]*(\.\d+)?", spec) is not None


def is_known(name: str) -> bool:
    """Whether a network of ours is called so."""
    match = re.fullmatch(r"resnet(\d+)(?:-w(\d{1,3}))?", name)
    wide = match is not None and (match[2] is None or 2 <= int(match[2]) <= 512)
    return name in NAMES or (match is not None and int(match[1]) in _DEPTHS and wide)


def build_network(
    name: str, *, channels: int, size: int | tuple[int, int], classes: int
) -> nn.Module:
    """The network `name` with random weights, for images of `size`: a side, or height and width. It
    takes normalised images and returns logits [B, K]."""
    if name in ("lenet5", "lenet5-half"):
        return LeNet5(channels=channels, size=size, classes=classes, half=name.endswith("half"))
    if name in _WIDE:
        depth, factor = (int(part) for part in name.split("-")[1:])
        return WideResNet(depth, factor, channels=channels, classes=classes)
    if name in _MOBILE:
        width = float(name.partition("-")[2] or 1)
        return MobileNet(width=width, channels=channels, classes=classes)
    match = re.fullmatch(r"resnet(\d+)(?:-w(\d+))?", name)
    if match and int(match[1]) in _DEPTHS and (match[2] is None or 2 <= int(match[2]) <= 512):
        return ResNet(int(match[1]), width=int(match[2] or 16), channels=channels, classes=classes)
    raise InputError(
        f"no network is called {quoted(name)}{suggest(name, NAMES)} (resnets also as resnet8-w8)"
    )
