"""Which channels of a network can go: those that the layers behind them can do without.

A layer reads C channels x of N places, and its weights W [C, O] make y = xᵀW of them. Without
channel i the best it can do with the others leaves a squared error of

    ‖W_i‖² / (G⁻¹)_ii,    G = E[x xᵀ]

(Hassibi and Stork 1993, Optimal Brain Surgeon, for a whole row of weights); then W and G⁻¹ are
those of the channels that are left, and the next is chosen. Errors are counted as shares of the
variance of y, so those of different layers can be added and compared.

Time and memory are bounded by counts of operations, not by a clock: the same network is cut alike
on a slow machine, and when a run goes on.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthkd.core.errors import InputError
from synthkd.core.memory import machine_memory
from synthkd.networks.modes import in_eval_mode

MULTIPLES = (16, 8, 4, 2, 1)  # what channels may be rounded to: CPUs and GPUs like large ones
PLACES = 20_000  # places of a layer's input that are looked at
RIDGE = 1e-3  # of the mean of G's diagonal, added to it
LEAST = 8  # a group keeps an eighth of its channels
PARTS = 16  # in how many parts a group of channels may go
LOOKING, FEWEST = 1e12, 16  # multiplications of all images that are looked at, and so many at least
AT_ONCE = 2**19  # pixels of the images that are looked at together
PRODUCTS = PLACES * 1024**2  # of numbers in a Gram matrix: of wider layers fewer places are seen,
PLACES_EACH = 4  # but so many for each of their channels
CHOOSING = 4e11  # multiplications, after which channels are taken by what each alone costs
SMALL = 4e5  # multiplications in whose time a small operation is begun and done
ROWS = 2**25  # numbers of a matrix that are float64 at one time
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
    again: Callable[[], Tensor]  # the same call once more, with the weights of then


class Calls(TorchFunctionMode):
    """Sees every convolution and every matrix with one of these `weights`, as it is called:
    padding that a network adds itself is in the input already. `seen` is told the layer's name
    and its `Call`; a tensor that it returns takes the place of what the layer made."""

    def __init__(
        self, layers: Mapping[str, Layer], seen: Callable[[str, Call], Tensor | None]
    ) -> None:
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
                instead = self._seen(name, Call(
                    told["input"].detach(), made.detach(), _two(told.get("stride", 1)), padding,
                    dilation, partial(func, *args, **(kwargs or {})),
                ))  # fmt: skip
                return made if instead is None else instead
        return made


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Its convolutions and matrices, by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@dataclass
class Reader:
    """A layer that reads channels: what is needed to know what each of them is worth to it."""

    inverse: Tensor  # G⁻¹ [C, C] of the channels left
    energy: Tensor  # W Wᵀ [C, C]
    variance: float  # of what it makes

    def errors(self) -> Tensor:
        """What going without each channel costs, a share of the variance [C]."""
        return (self.energy.diagonal() / self.inverse.diagonal().clamp_min(1e-30)) / self.variance

    def remove(self, gone: Tensor) -> None:
        """Goes on without these channels [M], the others standing in for them as well as they can.

        With S = G⁻¹[:, gone] (G⁻¹[gone, gone])⁻¹ the weights become W − S W[gone], so

            W Wᵀ ← W Wᵀ − S R − Rᵀ Sᵀ + S R[:, gone] Sᵀ,    R = (W Wᵀ)[gone]
            G⁻¹ ← G⁻¹ − S G⁻¹[gone]
        """
        rows, held = self.inverse[gone], self.energy[gone]
        share = torch.linalg.solve(rows[:, gone], rows)  # Sᵀ [M, C]
        turned = held - 0.5 * held[:, gone] @ share
        self.inverse.addmm_(rows.t(), share, alpha=-1)
        self.energy.addmm_(torch.cat((share, turned)).t(), torch.cat((turned, share)), alpha=-1)
        for matrix in (self.energy, self.inverse):
            matrix[gone] = 0
            matrix[:, gone] = 0


class _Next(NamedTuple):
    """The next channels of a group that would go."""

    channels: list[int]
    error: float


@torch.no_grad()
def selected(
    network: nn.Module, groups: Sequence[Group], images: Tensor, ratio: float,
    most: float = CHOOSING,
) -> list[list[int]]:  # fmt: skip
    """The channels of each group that go, so that what is left costs a share 1 − `ratio`: the mean
    of its share of weights and its share of multiplications for one image.

    They go a few at a time (see `multiple_of`), always those of the group whose loss costs its
    readers the least error for what it saves. A group whose readers cannot be looked into stays,
    and of each an eighth stays. `images` [N, C, H, W] are what the network takes; of a network in
    which they cost more than LOOKING multiplications only the first are looked at.

    After `most` multiplications the channels that are left go by what each of them costs alone, as
    far as that is known by then. Raises InputError where the memory of the machine is too small
    for what has to be known of the layers, 16 bytes for each pair of channels that a layer reads.
    """
    layers = layers_of(network)
    places = _places(network, layers, images[:1])
    costs = _Costs(layers, places)
    count = max(FEWEST, int(LOOKING / max(costs.of[1], 1)))
    readers = _readers(network, groups, layers, images[:count])
    gone: list[list[int]] = [[] for _ in groups]
    waiting: dict[int, _Next | None] = {}
    reading = [_reading(group, readers) for group in groups]
    free = {k for k, found in enumerate(reading) if found}
    done = 0.0
    while costs.share > 1 - ratio and free:
        late = done > most
        for k in free:
            if k not in waiting:
                waiting[k] = _next(groups[k].size, gone[k], reading[k], readers, alone=late)
                done += 0.0 if late else _trial_cost(groups[k].size, len(reading[k]))
        free = {k for k in free if waiting[k] is not None}
        if not free:
            break
        worth = {}
        for k in free:
            found = waiting[k]
            assert found is not None
            worth[k] = found.error / max(costs.saved(groups[k], len(found.channels)), 1e-12)
        best = min(free, key=lambda k: (worth[k], k))
        taken = waiting.pop(best)
        assert taken is not None
        gone[best] += taken.channels
        costs.take(groups[best], len(taken.channels))
        if late:
            continue
        for name, columns in reading[best].items():
            readers[name].remove(columns[taken.channels])
            done += 3 * len(readers[name].inverse) ** 2 * len(taken.channels) + SMALL
        touched = reading[best].keys()
        waiting = {
            k: found for k, found in waiting.items() if not (found and touched & reading[k].keys())
        }
    return [sorted(channels) for channels in gone]


@torch.no_grad()
def cost_left(narrow: nn.Module, whole: nn.Module, image: Tensor) -> float:
    """What a network costs of another's, for one image [1, C, H, W]: the mean of its share of the
    weights and its share of the multiplications, of convolutions and matrices.

    >>> cost_left(nn.Conv2d(2, 3, 1), nn.Conv2d(2, 6, 1), torch.zeros(1, 2, 4, 4))
    0.5
    """
    with in_eval_mode(narrow), in_eval_mode(whole):
        here, before = (
            _Costs(layers := layers_of(network), _places(network, layers, image)).of
            for network in (narrow, whole)
        )
    return sum(a / max(b, 1) for a, b in zip(here, before, strict=True)) / 2


def step_of(size: int, left: int) -> int:
    """How many of the `left` channels of a group go next, of `size` that it had: a sixteenth, in
    whole multiples, and first what is more than a multiple. 0 where no more may go.

    >>> step_of(512, 512), step_of(64, 16), step_of(64, 8), step_of(21, 21)
    (32, 8, 0, 1)
    """
    multiple = multiple_of(size)
    count = left % multiple or max(multiple, size // PARTS // multiple * multiple)
    return 0 if left - count < max(1, size // LEAST) else count


def _trial_cost(size: int, readers: int) -> float:
    """Multiplications of one `_next`, about."""
    count = step_of(size, size)
    return count * readers * (1.5 * size * count + SMALL)


def _next(
    size: int, gone: list[int], reading: Mapping[str, Tensor], readers: Mapping[str, Reader], *,
    alone: bool = False,
) -> _Next | None:  # fmt: skip
    """The next channels of a group of this size; None where no more may go. `reading` are the
    layers that read them, each with the number of every channel [size] among those it reads. With
    `alone` they go by what each of them costs alone.

    Else one goes after the other, as `Reader.remove` would take it. What that leaves of a reader is
    not computed whole, only its diagonals, and the rows of those that go:

        G⁻¹ − Σ_j u_j u_jᵀ,    W Wᵀ − Σ_j (s_j t_jᵀ + t_j s_jᵀ)
    """
    count = step_of(size, size - len(gone))
    if not count:
        return None
    held = [(readers[name], columns) for name, columns in reading.items()]
    variance = torch.tensor([[reader.variance] for reader, _ in held], dtype=torch.float64)
    inverse = torch.stack([reader.inverse.diagonal()[columns] for reader, columns in held])
    energy = torch.stack([reader.energy.diagonal()[columns] for reader, columns in held])
    out = list(gone)  # inverse, energy: [R, size]

    def errors() -> Tensor:
        found = (energy / inverse.clamp_min(1e-30) / variance).sum(0)
        found[out] = math.inf
        return found

    if alone:
        least = errors().topk(count, largest=False)
        return _Next(least.indices.tolist(), float(least.values.clamp_min(0).sum()))
    u, s, t = energy.new_zeros(3, len(held), count, size)
    total = 0.0
    for k in range(count):
        now = errors()
        i = int(now.argmin())
        total += max(0.0, float(now[i]))
        row = torch.stack([reader.inverse[columns[i]][columns] for reader, columns in held])
        row -= _combined(u, u, k, i)
        share = row / row[:, i, None].clamp_min(1e-30)
        turned = torch.stack([reader.energy[columns[i]][columns] for reader, columns in held])
        turned -= _combined(s, t, k, i) + _combined(t, s, k, i)
        turned -= 0.5 * turned[:, i, None] * share
        u[:, k] = row / row[:, i, None].clamp_min(1e-30).sqrt()
        s[:, k], t[:, k] = share, turned
        inverse -= row * share
        energy -= 2 * share * turned
        out.append(i)
    return _Next(out[len(gone) :], total)


def _combined(those: Tensor, factors: Tensor, count: int, i: int) -> Tensor:
    """Σ_j factors_j[i] · those_j over the first `count`, of [R, K, size]: [R, size]."""
    return torch.bmm(factors[:, :count, i, None].transpose(1, 2), those[:, :count])[:, 0]


def _reading(group: Group, readers: Mapping[str, Reader]) -> dict[str, Tensor]:
    """The layers that read a group's channels, each with the number of every channel [size] among
    those that it reads; {} where not all can be looked into."""
    found: dict[str, Tensor] = {}
    for name, where, out in group.members:
        if out:
            continue
        each = len(where[0])
        even = each and all(
            len(own) == each and own == tuple(range(own[0], own[0] + each)) and not own[0] % each
            for own in where
        )
        if name not in readers or not even:
            return {}
        columns = torch.tensor([own[0] // each for own in where])
        if int(columns.max()) >= len(readers[name].inverse):
            return {}
        found[name] = columns
    return found


def _places(network: nn.Module, layers: Mapping[str, Layer], image: Tensor) -> dict[str, int]:
    """At how many places of one image [1, C, H, W] each layer is applied."""
    found: dict[str, int] = {}

    def see(name: str, call: Call) -> None:
        outputs = len(layers[name].weight)
        found[name] = found.get(name, 0) + call.outputs[0].numel() // outputs

    with Calls(layers, see):
        network(image)
    return found


class _Sums:
    """What a layer read and made, summed up over parts of the images."""

    def __init__(self, width: int, rows: Tensor | None) -> None:
        self.rows = rows  # those that are looked at, of all parts; None: all
        self.passed = self.count = self.made = 0
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.mean: Tensor | None = None  # [O]
        self.squares: Tensor | None = None  # [O], of the differences to the mean

    def add(self, x: Tensor, y: Tensor) -> None:
        """What is read at some rows [M, C], and made: [N, O, H, W] or [M', O]."""
        here, self.passed = self.passed, self.passed + len(x)
        if self.rows is not None:
            x = x[self.rows[(self.rows >= here) & (self.rows < self.passed)] - here]
        x = x.double()
        self.gram += x.t() @ x
        self.count += len(x)
        more = y.numel() // y.shape[1]
        squares, mean = torch.var_mean(y, [d for d in range(y.dim()) if d != 1], correction=0)
        squares, mean = more * squares.double(), mean.double()
        if self.mean is not None and self.squares is not None:  # Chan et al. 1979
            shift, whole = mean - self.mean, self.made + more
            squares += self.squares + shift.square() * (self.made * more / whole)
            mean = self.mean + shift * (more / whole)
        self.mean, self.squares, self.made = mean, squares, self.made + more

    def reader(self, energy: Tensor) -> Reader:
        """What is known of the layer."""
        assert self.squares is not None
        gram = self.gram / max(self.count, 1)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
        variance = float(self.squares.sum()) / max(self.made - 1, 1)
        return Reader(torch.linalg.inv(gram), energy, max(variance, 1e-30))


def _readers(
    network: nn.Module, groups: Sequence[Group], layers: Mapping[str, Layer], images: Tensor
) -> dict[str, Reader]:
    """What each layer that reads a group's channels reads of the images."""
    # how many numbers of a channel a matrix reads: more than one where maps are flattened
    many = {m.name: len(m.where[0]) for group in groups for m in group.members if not m.out}
    need = sum(16.0 * layers[name].weight.shape[1] ** 2 / max(1, each) ** 2
               for name, each in many.items())  # fmt: skip
    if need > (memory := machine_memory()) / 2:
        raise InputError(
            f"this network cannot be pruned: to know its channels takes {need / 1e9:.1f} GB, more "
            f"than half of the memory here ({memory / 1e9:.1f} GB): name a --student"
        )
    sums: dict[str, _Sums] = {}
    rng = torch.Generator().manual_seed(0)
    parts = torch.split(images, max(1, AT_ONCE // (images.shape[2] * images.shape[3])))
    for part in parts:
        called = set[str]()

        def see(name: str, call: Call, part: Tensor = part, called: set[str] = called) -> None:
            layer, x, y = layers[name], call.inputs.float(), call.outputs.float()
            if getattr(layer, "groups", 1) > 1 or name in called:
                return
            called.add(name)
            if x.dim() == 4 and y.dim() == 4 and isinstance(layer, nn.Conv2d):
                x = x.permute(0, 2, 3, 1).flatten(0, 2)
            else:
                x, y = x.flatten(0, -2), y.flatten(0, -2)
            each, rows = many.get(name, 1), None
            whole = len(x) * each * len(images) // len(part)
            if whole > PLACES and part is parts[0]:  # drawn for layers that are not looked at too
                rows = torch.randperm(whole, generator=rng)
            if name not in many or not each or x.shape[1] % each:
                return
            x = x.reshape(len(x), -1, each).transpose(1, 2).flatten(0, 1)
            if name not in sums:
                width = x.shape[1]
                seen = min(PLACES, max(PLACES_EACH * width, PRODUCTS // width**2))
                sums[name] = _Sums(width, None if rows is None else rows[:seen])
            sums[name].add(x, y)

        with Calls(layers, see):
            network(part)
    return {
        name: sums.pop(name).reader(_energy(layers[name].weight, max(1, many[name])))
        for name in list(sums)
    }


def _energy(weight: Tensor, each: int) -> Tensor:
    """W Wᵀ [C, C] of a layer's weights, of which a channel has `each` columns, or taps."""
    columns = weight.shape[1] // each
    energy = torch.zeros(columns, columns, dtype=torch.float64)
    matrices = weight.detach().reshape(len(weight), columns, -1)
    for some in torch.split(matrices, max(1, ROWS // weight[0].numel())):
        part = some.transpose(0, 1).flatten(1).double()
        energy.addmm_(part, part.t())
    return energy


class _Costs:
    """Weights and multiplications of a network whose channels go; `of` are those it had."""

    def __init__(self, layers: Mapping[str, Layer], places: Mapping[str, int]) -> None:
        self.outs = {name: float(len(layer.weight)) for name, layer in layers.items()}
        self.ins = {name: float(layer.weight.shape[1]) for name, layer in layers.items()}
        self.taps = {name: layer.weight[0][0].numel() for name, layer in layers.items()}
        self.alone = {name: getattr(layer, "groups", 1) > 1 for name, layer in layers.items()}
        self.places = {name: places.get(name, 0) for name in layers}
        weights = {name: self.outs[name] * self.ins[name] * self.taps[name] for name in layers}
        self.of = (
            sum(weights.values()), sum(n * self.places[name] for name, n in weights.items())
        )  # fmt: skip

    @property
    def share(self) -> float:
        """What is left of the cost, 0..1."""
        return self._share_of(self.outs)

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
        names = {member.name for member in group.members}
        before, outs, ins = self._share_of(names), dict(self.outs), dict(self.ins)
        self.take(group, count)
        after = self._share_of(names)
        self.outs, self.ins = outs, ins
        return before - after

    def _share_of(self, names: Collection[str]) -> float:
        """What some layers cost of what all did."""
        weights = {n: self.outs[n] * self.ins[n] * self.taps[n] for n in names}
        work = sum(count * self.places[name] for name, count in weights.items())
        whole, of_all = self.of
        return (sum(weights.values()) / max(whole, 1) + work / max(of_all, 1)) / 2


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
