"""What is left of a network's channels learns to stand in for those that went, layer by layer.

A pruned layer reads x, and should make what the whole network's layer makes of the same image in
the channels that are left, y:

    min over W, b of  E‖xᵀW + b − y‖² + λ ‖W − W₀‖²

(He et al. 2017, https://arxiv.org/abs/1707.06168, by ridge regression towards the weights that were
left). Layers are taken from the first to the last, so each makes good what those before it still
lack: all images pass through the pruned network once, and a layer is refitted when they reach it.
y is what BatchNorm receives: its statistics stay those of the whole network, measured on the data
that the network was trained with.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.networks.modes import in_eval_mode
from synthkd.networks.selection import AT_ONCE, PLACES, RIDGE, Call, Calls, Layer, layers_of

HELD = 2**27  # numbers of what the whole network makes that are held at one time
BATCH = 64  # images whose patches are cut at once


@torch.no_grad()
def reconstruct(
    narrow: nn.Module, whole: nn.Module, kept: Mapping[str, Tensor], images: Tensor, *,
    until: float = math.inf,
) -> int:  # fmt: skip
    """Refits the layers of a pruned network in place; returns how many.

    `kept` are the outputs left of each layer, as `pruned.pruned` tells, and `images` [N, C, H, W]
    are what the networks take. The modes of both, and their buffers, stay as they are. Layers that
    are called more than once for an image, whose outputs are others than `kept` says, or that
    convolve in groups of several channels are left as they were, and so are those that see images
    in pieces, or that the images reach after `until`, a time of `time.perf_counter`.
    """
    layers, wholes = layers_of(narrow), layers_of(whole)
    rng = torch.Generator().manual_seed(0)
    with in_eval_mode(narrow), in_eval_mode(whole):
        chosen = {
            name: places for name, places in _places(whole, wholes, images, rng).items()
            if name in layers and able(layers[name], kept.get(name))
        }  # fmt: skip
        counts = {name: places.numel() * len(kept[name]) for name, places in chosen.items()}
        parts, wanted, refitted = _parts(counts), dict[str, Tensor](), 0

        def see(name: str, call: Call) -> Tensor | None:
            nonlocal refitted
            late = time.perf_counter() > until
            if late or name not in chosen or len(call.inputs) != len(images):
                return None
            if name not in wanted and (part := next((p for p in parts if name in p), ())):
                left = {n: chosen[n] for n in part if n in chosen}
                wanted.clear()
                wanted.update(_wanted(whole, wholes, images, left, kept))
            layer, y = layers[name], wanted.pop(name, None)
            read = _read(layer, call, chosen.pop(name))
            if y is None or len(read) != len(y):
                return None
            _refit(layer, read, y)
            refitted += 1
            return call.again()

        with Calls(layers, see):
            narrow(images)
    return refitted


def able(layer: Layer, numbers: Tensor | None) -> bool:
    """Whether a layer can be refitted, of whose outputs these are left."""
    if numbers is None or len(numbers) != len(layer.weight):
        return False
    groups = getattr(layer, "groups", 1)
    return groups == 1 or groups == len(layer.weight) == getattr(layer, "in_channels", 0)


def _parts(counts: Mapping[str, int]) -> Sequence[Sequence[str]]:
    """Names in parts whose counts are HELD at most together, if there is more than one in it."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, count in counts.items():
        if parts[-1] and held + count > HELD:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += count
    return parts


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
    whole: nn.Module, layers: dict[str, Layer], images: Tensor, chosen: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """What each layer makes at the places that are looked at, in the outputs kept: [M, O']."""
    parts: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for first, part in _in_parts(images):

        def see(name: str, call: Call, first: int = first) -> None:
            if name in parts:
                y = call.outputs.float()
                if not isinstance(layers[name], nn.Conv2d):
                    y = y.flatten(1, -2).transpose(1, 2) if y.dim() > 2 else y.unsqueeze(2)
                at = chosen[name][first : first + len(y)].to(y.device)
                y = y.flatten(2)
                picked = torch.gather(y, 2, at[:, None].expand(-1, y.shape[1], -1))
                rows = picked[:, kept[name].to(y.device)].transpose(1, 2).flatten(0, 1)
                parts[name].append(rows)

        with Calls(layers, see):
            whole(part)
    return {name: torch.cat(parts.pop(name)) for name in list(parts)}


def _in_parts(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Images [N, C, H, W] a few at a time, and the number of the first of them."""
    size = max(1, min(BATCH, 2 * AT_ONCE // (images.shape[2] * images.shape[3])))
    for first in range(0, len(images), size):
        yield first, images[first : first + size]


def _read(layer: Layer, call: Call, places: Tensor) -> Tensor:
    """What a layer of the pruned network receives at these places: [M, C] or [M, C, taps]."""
    parts: list[Tensor] = []
    for first in range(0, len(call.inputs), BATCH):
        x = call.inputs[first : first + BATCH].float()
        at = places[first : first + len(x)].to(x.device)
        if isinstance(layer, nn.Conv2d):
            parts.append(_patches(x, layer, call, at))
        else:
            x = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
            picked = torch.gather(x, 1, at[:, :, None].expand(-1, -1, x.shape[2]))
            parts.append(picked.flatten(0, 1))
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
    missing, turned = y - x @ before, x.transpose(1, 2)
    ridge = RIDGE * x.square().sum((1, 2)) / x.shape[2] + 1e-12
    if x.shape[1] < x.shape[2]:  # fewer rows than weights: Xᵀ (X Xᵀ + λ)⁻¹ is the same, and smaller
        gram = _with_ridge(x @ turned, ridge)
        change = turned @ torch.linalg.solve(gram, missing.double()).float()
    else:
        gram = _with_ridge(turned @ x, ridge)
        change = torch.linalg.solve(gram, (turned @ missing).double()).float()
    after = before + change
    if not bool(after.isfinite().all()):
        return
    weight.copy_((after[:, :, 0] if alone else after[0].t()).reshape(weight.shape))
    if bias is not None:
        bias.copy_((target - middle @ after).flatten())


def _with_ridge(gram: Tensor, ridge: Tensor) -> Tensor:
    """A copy of Gram matrices [G, I, I] in float64 with a ridge [G] on the diagonals."""
    gram = gram.double()
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    return gram
