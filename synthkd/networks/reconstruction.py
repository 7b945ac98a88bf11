"""What is left of a network's channels learns to stand in for those that went, layer by layer.

A pruned layer reads x, and should make what the whole network's layer makes of the same image in
the channels that are left, y:

    min over W, b of  E‖xᵀW + b − y‖² + λ ‖W − W₀‖²

(He et al. 2017, https://arxiv.org/abs/1707.06168, by ridge regression towards the weights that were
left). Layers are taken from the first to the last, so each makes good what those before it still
lack. y is what BatchNorm receives: its statistics stay those of the whole network, measured on the
data that the network was trained with.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.networks.modes import in_eval_mode
from synthkd.networks.selection import PLACES, RIDGE, Call, Calls, Layer, layers_of

BATCH = 64  # images at once


class _Enough(Exception):
    """Ends a network's answer after the layer that is looked at."""


@torch.no_grad()
def reconstruct(
    narrow: nn.Module, whole: nn.Module, kept: Mapping[str, Tensor], images: Tensor
) -> int:
    """Refits the layers of a pruned network in place; returns how many.

    `kept` are the outputs left of each layer, as `pruned.pruned` tells, and `images` [N, C, H, W]
    are what the networks take. The modes of both, and their buffers, stay as they are. Layers that
    are called more than once for an image, whose outputs are others than `kept` says, or that
    convolve in groups of several channels are left as they were.
    """
    layers, wholes = layers_of(narrow), layers_of(whole)
    rng = torch.Generator().manual_seed(0)
    with in_eval_mode(narrow), in_eval_mode(whole):
        chosen = _places(whole, wholes, images, rng)
        wanted = _wanted(whole, wholes, images, chosen)
        refitted = 0
        for name, places in chosen.items():
            layer, numbers = layers.get(name), kept.get(name)
            if layer is None or numbers is None or len(numbers) != len(layer.weight):
                continue
            groups = getattr(layer, "groups", 1)
            if groups > 1 and not groups == len(layer.weight) == layer.in_channels:
                continue
            read = _read(narrow, name, layer, images, places)
            if read is not None and len(read) == len(wanted[name]):
                _refit(layer, read, wanted[name][:, numbers.to(read.device)])
                refitted += 1
    return refitted


def _places(
    whole: nn.Module, layers: dict[str, Layer], images: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """The places [N, P] of each image at which a layer is looked at, by name, in the order in which
    the layers are called; without those that are called more than once."""
    found: dict[str, Tensor] = {}
    twice: set[str] = set()

    def see(name: str, call: Call) -> None:
        twice.update({name} & found.keys())
        y = call.outputs
        count = y[0, 0].numel() if isinstance(layers[name], nn.Conv2d) else y[0, ..., 0].numel()
        some = min(count, max(1, PLACES // len(images)))
        found[name] = torch.randint(count, (len(images), some), generator=rng)

    with Calls(layers, see):
        whole(images[:1])
    return {name: places for name, places in found.items() if name not in twice}


def _wanted(
    whole: nn.Module, layers: dict[str, Layer], images: Tensor, chosen: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What each layer makes at the places that are looked at, [M, O]."""
    parts: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for first in range(0, len(images), BATCH):

        def see(name: str, call: Call, first: int = first) -> None:
            if name in parts:
                y = call.outputs.float()
                if not isinstance(layers[name], nn.Conv2d):
                    y = y.flatten(1, -2).transpose(1, 2) if y.dim() > 2 else y.unsqueeze(2)
                at = chosen[name][first : first + len(y)].to(y.device)
                y = y.flatten(2)
                picked = torch.gather(y, 2, at[:, None].expand(-1, y.shape[1], -1))
                parts[name].append(picked.transpose(1, 2).flatten(0, 1))

        with Calls(layers, see):
            whole(images[first : first + BATCH])
    return {name: torch.cat(some) for name, some in parts.items()}


def _read(
    narrow: nn.Module, name: str, layer: Layer, images: Tensor, places: Tensor
) -> Tensor | None:
    """What a layer of the pruned network receives at these places: [M, C] or [M, C, taps]; None
    where it is not called."""
    parts: list[Tensor] = []
    for first in range(0, len(images), BATCH):

        def see(_: str, call: Call, first: int = first) -> None:
            x = call.inputs.float()
            at = places[first : first + len(x)].to(x.device)
            if isinstance(layer, nn.Conv2d):
                parts.append(_patches(x, layer, call, at))
            else:
                x = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
                picked = torch.gather(x, 1, at[:, :, None].expand(-1, -1, x.shape[2]))
                parts.append(picked.flatten(0, 1))
            raise _Enough

        try:
            with Calls({name: layer}, see):
                narrow(images[first : first + BATCH])
        except _Enough:
            continue
        return None
    return torch.cat(parts)


def _patches(x: Tensor, layer: nn.Conv2d, call: Call, at: Tensor) -> Tensor:
    """What a convolution reads for the outputs at places [N, P]: [N·P, C, taps]."""
    (tall, wide), (up, left) = layer.kernel_size, call.padding
    width = call.outputs.shape[3]
    x = F.pad(x, (left, left, up, up))
    rows = (at // width * call.stride[0])[:, :, None, None]
    columns = (at % width * call.stride[1])[:, :, None, None]
    rows = rows + (torch.arange(tall, device=x.device) * call.dilation[0])[:, None]
    columns = columns + torch.arange(wide, device=x.device) * call.dilation[1]
    number = torch.arange(len(x), device=x.device)[:, None, None, None]
    found = x.permute(0, 2, 3, 1)[number, rows, columns]  # [N, P, tall, wide, C]
    return found.flatten(0, 1).flatten(1, 2).transpose(1, 2)


def _refit(layer: Layer, read: Tensor, wanted: Tensor) -> None:
    """Puts the weights that come nearest into a layer."""
    weight, bias = layer.weight, layer.bias
    alone = getattr(layer, "groups", 1) > 1
    x = read.transpose(0, 1) if alone else read.flatten(1)[None]  # [G, M, I]
    y = wanted.t()[:, :, None] if alone else wanted[None]  # [G, M, O]
    before = (weight.flatten(1)[:, :, None] if alone else weight.flatten(1).t()[None]).float()
    if bias is not None:
        middle, target = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - middle, y - target
    gram = x.transpose(1, 2) @ x
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None] + 1e-12
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    change = torch.linalg.solve(gram.double(), (x.transpose(1, 2) @ (y - x @ before)).double())
    after = before + change.float()
    if not bool(after.isfinite().all()):
        return
    weight.copy_((after[:, :, 0] if alone else after[0].t()).reshape(weight.shape))
    if bias is not None:
        bias.copy_((target - middle @ after).flatten())
