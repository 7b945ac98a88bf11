"""What the refit of a pruned network takes (`reconstruction.reconstruct`): seconds, and memory.

N images, of which M places are looked at in a layer that reads I numbers at each and makes O.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synthkd.networks.modes import in_eval_mode
from synthkd.networks.reconstruction import HELD, able
from synthkd.networks.selection import PLACES, Call, Calls, layers_of

LARGEST = 2**28  # numbers in the maps of all images after one layer
TRIED = 512  # rows and columns of a matrix by which the speed of the machine is measured
SLOWER = 2.0  # times that product's seconds which solving takes for its multiplications
COUNTS = (256, 192, 128, 96, 64)  # images that are worth it


class Fit(NamedTuple):
    """A layer that is refitted."""

    places: int  # of an image, at which it is applied
    inputs: int  # I
    outputs: int  # O
    alone: bool  # whether each output reads a channel of its own


@dataclass(frozen=True)
class Refit:
    """A refit of these layers."""

    layers: tuple[Fit, ...]
    largest: int  # numbers in the largest map of an image
    image: float = 0.0  # seconds of an image in both networks
    product: float = 0.0  # seconds of a multiplication

    def seconds(self, count: int) -> float:
        """Of `count` images, about. Solving takes M·I² + 2·M·I·O multiplications and I³ / 3 of
        twice the length, or where M < I, M²·I + 2·M·I·O and M³ / 3."""
        solving = 0.0
        for fit in self.layers:
            rows = self._rows(fit, count)
            small = min(rows, fit.inputs)
            products = small * rows * fit.inputs + 2 / 3 * small**3
            solving += products * (fit.outputs if fit.alone else 1)
            solving += 2.0 * rows * fit.inputs * fit.outputs
        return count * self.image * self._passes(count) + SLOWER * solving * self.product

    def memory(self, count: int) -> float:
        """Bytes at one time, about: maps, what the whole network makes, and a layer's own."""
        rows = [self._rows(fit, count) for fit in self.layers]
        made = sum(m * fit.outputs for m, fit in zip(rows, self.layers, strict=True))
        one = max((3 * m * fit.inputs * (fit.outputs if fit.alone else 1)
                   for m, fit in zip(rows, self.layers, strict=True)), default=0)  # fmt: skip
        return 4.0 * (3 * count * self.largest + min(made, HELD) + one)

    def count(self, seconds: float = inf) -> int:
        """The most images, of COUNTS, that fit into the time and into LARGEST; 0 where none do. Of
        the fewest the memory may take more: a batch of the student takes it too."""
        for count in COUNTS:
            fits = count * self.largest <= LARGEST or count == COUNTS[-1]
            if fits and self.seconds(count) <= seconds:
                return count
        return 0

    def _rows(self, fit: Fit, count: int) -> int:
        return min(fit.places, max(1, PLACES // count)) * count

    def _passes(self, count: int) -> int:
        """How often the images pass through the whole network."""
        made = sum(self._rows(fit, count) * fit.outputs for fit in self.layers)
        return 1 + made // HELD


@torch.no_grad()
def looked_at(narrow: nn.Module, kept: Mapping[str, Tensor], blank: Tensor) -> Refit:
    """What there is to refit, by one image [1, C, H, W]."""
    found: dict[str, Fit] = {}
    largest = 0
    layers = layers_of(narrow)

    def see(name: str, call: Call) -> None:
        nonlocal largest
        weight = layers[name].weight
        largest = max(largest, call.outputs.numel(), call.inputs.numel())
        if able(layers[name], kept.get(name)):
            alone = getattr(layers[name], "groups", 1) > 1
            places = call.outputs[0].numel() // len(weight)
            found[name] = Fit(places, weight[0].numel(), len(weight), alone)

    with in_eval_mode(narrow), Calls(layers, see):
        narrow(blank)
    return Refit(tuple(found.values()), largest)


@torch.no_grad()
def timed(narrow: nn.Module, whole: nn.Module, kept: Mapping[str, Tensor], some: Tensor) -> Refit:
    """The same with the seconds measured here, by a few images [B, C, H, W]: after a first pass,
    which prepares the machine."""
    found = looked_at(narrow, kept, some[:1])
    square = torch.rand(TRIED, TRIED, device=some.device)

    def both() -> None:
        narrow(some)
        narrow(some)  # a layer that is refitted makes its output twice
        whole(some)

    with in_eval_mode(narrow), in_eval_mode(whole):
        image = _seconds(both, some.device) / len(some)
    product = _seconds(lambda: square @ square, some.device) / TRIED**3
    return Refit(found.layers, found.largest, image, product)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the second time that something is done."""
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":  # where work is only begun
            torch.cuda.synchronize(device)
    return time.perf_counter() - began
