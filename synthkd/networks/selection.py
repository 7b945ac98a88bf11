"""Which channels of a network can go: those that the layers behind them can do without.

A layer reads C channels x of N places, and its weights W [C, O] make y = xᵀW of them. Without
channel i the best it can do with the others leaves a squared error of

    ‖W_i‖² / (G⁻¹)_ii,    G = E[x xᵀ]

(Hassibi and Stork 1993, Optimal Brain Surgeon, for a whole row of weights); then W and G⁻¹ are
those of the channels that are left, and the next is chosen. Errors are counted as shares of the
variance of y, so those of different layers can be added and compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MULTIPLES = (16, 8, 4, 2, 1)  # what channels may be rounded to: CPUs and GPUs like large ones
PLACES = 20_000  # places of a layer's input that are looked at
RIDGE = 1e-3  # of the mean of G's diagonal, added to it
LEAST = 8  # a group keeps an eighth of its channels
PARTS = 16  # in how many parts a group of channels may go
Layer = nn.Conv2d | nn.Linear
_CALLS = (F.conv2d, torch.conv2d, F.linear)


def multiple_of(width: int) -> int:
    """What the channels of a layer of this width are rounded to: the largest of 16, 8, 4, 2 that is
    at most an eighth of it, else 1.

    >>> [multiple_of(width) for width in (512, 64, 20, 5)]
    [16, 8, 2, 1]
    """
    return next(m for m in MULTIPLES if m <= max(1, width // 8))


class Member(NamedTuple):
    """A layer that makes or reads the channels of a group."""

    name: str
    where: tuple[tuple[int, ...], ...]  # its own numbers of each channel of the group
    out: bool  # whether it makes them


class Group(NamedTuple):
    """Channels that can only go together in all layers that make, pass or read them."""

    size: int
    members: tuple[Member, ...]


class Call(NamedTuple):
    """What a layer received and made."""

    inputs: Tensor  # [N, C, H, W] or [..., C]
    outputs: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Calls(TorchFunctionMode):
    """Sees every convolution and every matrix with one of these `weights`, as it is called:
    padding that a network adds itself is in the input already. `seen` is told the layer's name
    and its `Call`."""

    def __init__(self, layers: dict[str, Layer], seen: Any) -> None:
        super().__init__()
        self._names = {id(layer.weight): name for name, layer in layers.items()}
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call as it is, and a look at it."""
        made = func(*args, **(kwargs or {}))
        if func in _CALLS:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            told = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            if (name := self._names.get(id(told["weight"]))) is not None:
                size, dilation = told["weight"].shape[2:], _two(told.get("dilation", 1))
                padding = told.get("padding", 0)
                if padding == "same":
                    padding = tuple(d * (s - 1) // 2 for d, s in zip(dilation, size, strict=True))
                padding = _two(0 if padding == "valid" else padding)
                self._seen(name, Call(
                    told["input"].detach(), made.detach(), _two(told.get("stride", 1)), padding,
                    dilation,
                ))  # fmt: skip
        return made


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Its convolutions and matrices, by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@dataclass
class _Reader:
    """A layer that reads channels: what is needed to know what each of them is worth to it."""

    inverse: Tensor  # G⁻¹ [C, C] of the channels left
    energy: Tensor  # W Wᵀ [C, C]
    variance: float  # of what it makes

    def copy(self) -> "_Reader":
        return _Reader(self.inverse.clone(), self.energy.clone(), self.variance)

    def errors(self) -> Tensor:
        """What going without each channel costs, a share of the variance [C]."""
        return (self.energy.diagonal() / self.inverse.diagonal().clamp_min(1e-30)) / self.variance

    def remove(self, i: int) -> None:
        """Goes on without channel i, the others standing in for it as well as they can."""
        share = self.inverse[:, i] / self.inverse[i, i].clamp_min(1e-30)
        row = self.energy[i].clone()
        worth = float(row[i])
        # rank-2 update of W Wᵀ, and of the inverse without row and column i
        self.energy -= torch.outer(share, row) + torch.outer(row, share)
        self.energy += worth * torch.outer(share, share)
        self.inverse -= torch.outer(share, self.inverse[i].clone())
        for matrix in (self.energy, self.inverse):
            matrix[i] = 0
            matrix[:, i] = 0


class _Next(NamedTuple):
    """The next channels of a group that would go, and what is left of its readers."""

    channels: list[int]
    error: float
    readers: dict[str, _Reader]


@torch.no_grad()
def selected(
    network: nn.Module, groups: Sequence[Group], images: Tensor, ratio: float
) -> list[list[int]]:
    """The channels of each group that go, so that what is left costs a share 1 − `ratio`: the mean
    of its share of weights and its share of multiplications for one image.

    They go a few at a time (see `multiple_of`), always those of the group whose loss costs its
    readers the least error for what it saves. A group whose readers cannot be looked into stays,
    and of each an eighth stays. `images` [N, C, H, W] are what the network takes.
    """
    layers = layers_of(network)
    readers, places = _readers(network, groups, layers, images)
    costs = _Costs(layers, places)
    gone: list[list[int]] = [[] for _ in groups]
    waiting: dict[int, _Next | None] = {}
    reading = [_reading(group, readers) for group in groups]
    free = {k for k, found in enumerate(reading) if found}
    while costs.share > 1 - ratio and free:
        for k in free:
            if k not in waiting:
                waiting[k] = _next(
                    groups[k].size,
                    gone[k],
                    {name: (readers[name].copy(), columns) for name, columns in reading[k].items()},
                )
        free = {k for k in free if waiting[k] is not None}
        if not free:
            break
        worth = {}
        for k in free:
            found = waiting[k]
            assert found is not None
            worth[k] = found.error / max(costs.saved(groups[k], len(found.channels)), 1e-12)
        best = min(free, key=lambda k: (worth[k], k))
        taken = waiting[best]
        assert taken is not None
        gone[best] += taken.channels
        costs.take(groups[best], len(taken.channels))
        readers.update(taken.readers)
        touched = set(taken.readers)
        waiting = {
            k: found for k, found in waiting.items()
            if k != best and not (found and touched & set(found.readers))
        }  # fmt: skip
    return [sorted(channels) for channels in gone]


def _next(size: int, gone: list[int], readers: dict[str, tuple[_Reader, Tensor]]) -> _Next | None:
    """The next channels of a group of this size; None where no more may go. `readers` are changed:
    those of the group, each with the number of every channel [size] among those it reads."""
    left, multiple = size - len(gone), multiple_of(size)
    count = left % multiple or max(multiple, size // PARTS // multiple * multiple)
    if left - count < max(1, size // LEAST):
        return None
    channels, total, out = [], 0.0, set(gone)
    for _ in range(count):
        errors = torch.zeros(size, dtype=torch.float64)
        for reader, columns in readers.values():
            errors += reader.errors()[columns]
        errors[list(out)] = math.inf
        chosen = int(errors.argmin())
        total += max(0.0, float(errors[chosen]))
        for reader, columns in readers.values():
            reader.remove(int(columns[chosen]))
        channels.append(chosen)
        out.add(chosen)
    return _Next(channels, total, {name: reader for name, (reader, _) in readers.items()})


def _reading(group: Group, readers: dict[str, _Reader]) -> dict[str, Tensor]:
    """The layers that read a group's channels, each with the number of every channel [size] among
    those that it reads; {} where not all can be looked into."""
    found: dict[str, Tensor] = {}
    for name, where, out in group.members:
        if out:
            continue
        each = len(where[0])
        even = each and all(
            own == tuple(range(own[0], own[0] + each)) and not own[0] % each for own in where
        )
        if name not in readers or not even:
            return {}
        columns = torch.tensor([own[0] // each for own in where])
        if int(columns.max()) >= len(readers[name].inverse):
            return {}
        found[name] = columns
    return found


def _readers(
    network: nn.Module, groups: Sequence[Group], layers: dict[str, Layer], images: Tensor
) -> tuple[dict[str, _Reader], dict[str, int]]:
    """What each layer reads of the images, and at how many places of one it is applied."""
    readers: dict[str, _Reader] = {}
    places: dict[str, int] = {}
    rng = torch.Generator().manual_seed(0)
    # how many numbers of a channel a matrix reads: more than one where maps are flattened
    many = {m.name: len(m.where[0]) for group in groups for m in group.members if not m.out}

    def see(name: str, call: Call) -> None:
        layer, x, y = layers[name], call.inputs.float(), call.outputs.float()
        places[name] = places.get(name, 0) + y[0].numel() // len(layer.weight)
        if getattr(layer, "groups", 1) > 1 or name in readers:
            return
        each = many.get(name, 1)
        if x.dim() == 4 and y.dim() == 4 and isinstance(layer, nn.Conv2d):
            x, variance = x.permute(0, 2, 3, 1).flatten(0, 2), y.var((0, 2, 3)).sum()
        else:
            x, variance = x.flatten(0, -2), y.flatten(0, -2).var(0).sum()
        x = x.view(len(x), -1, each).transpose(1, 2).flatten(0, 1)
        if len(x) > PLACES:
            x = x[torch.randperm(len(x), generator=rng)[:PLACES]]
        x = x.double()
        gram = x.t() @ x / len(x)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
        weight = layer.weight.detach().double()
        if isinstance(layer, nn.Conv2d):
            weight = weight.transpose(0, 1).flatten(1)
        else:
            weight = weight.t().reshape(-1, each * len(weight))
        readers[name] = _Reader(
            torch.linalg.inv(gram), weight @ weight.t(), max(float(variance), 1e-30)
        )

    with Calls(layers, see):
        network(images)
    return readers, places


class _Costs:
    """Weights and multiplications of a network whose channels go."""

    def __init__(self, layers: dict[str, Layer], places: dict[str, int]) -> None:
        self.outs = {name: float(len(layer.weight)) for name, layer in layers.items()}
        self.ins = {name: float(layer.weight.shape[1]) for name, layer in layers.items()}
        self.taps = {name: layer.weight[0][0].numel() for name, layer in layers.items()}
        self.alone = {name: getattr(layer, "groups", 1) > 1 for name, layer in layers.items()}
        self.places = {name: places.get(name, 0) for name in layers}
        self._of = self._sums()

    def _sums(self) -> tuple[float, float]:
        weights = {n: self.outs[n] * self.ins[n] * self.taps[n] for n in self.outs}
        work = sum(count * self.places[name] for name, count in weights.items())
        return sum(weights.values()), work

    @property
    def share(self) -> float:
        """What is left of the cost, 0..1."""
        weights, work = self._sums()
        return (weights / max(self._of[0], 1) + work / max(self._of[1], 1)) / 2

    def take(self, group: Group, count: int) -> None:
        """So many channels of a group less."""
        for member in group.members:
            numbers = count * len(member.where[0])
            if member.out:
                self.outs[member.name] -= numbers
            elif not self.alone[member.name]:
                self.ins[member.name] -= numbers

    def saved(self, group: Group, count: int) -> float:
        """The share of the cost that goes with so many channels of a group."""
        before, outs, ins = self.share, dict(self.outs), dict(self.ins)
        self.take(group, count)
        after = self.share
        self.outs, self.ins = outs, ins
        return before - after


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
