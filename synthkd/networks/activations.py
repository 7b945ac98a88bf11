"""How many numbers a network keeps for its gradients."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def activations(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Numbers that the layers of a network return for one image [C, H, W].

    >>> activations(torch.nn.Conv2d(1, 2, 3), (1, 8, 8))
    72.0
    """
    seen: list[int] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append(output.numel())

    leaves = [m for m in network.modules() if not list(m.children())]
    handles = []
    for module in leaves:
        try:
            handles.append(module.register_forward_hook(note))
        except RuntimeError:  # a module of TorchScript
            continue
    mode = network.training
    network.eval()
    try:
        network(torch.zeros(1, *shape, device=next(_tensors(network)).device))
    except StopIteration:  # nothing to tell a device by: nothing that keeps activations
        return 0.0
    finally:
        network.train(mode)
        for handle in handles:
            handle.remove()
    return float(sum(seen))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
