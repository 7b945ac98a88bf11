"""Modes and gradients of a network's modules, put back one by one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(network: nn.Module, *, frozen: bool = False) -> Iterator[None]:
    """While the `with` lasts every module is in eval mode, and with `frozen` no parameter gathers
    gradients; then each module and parameter is as it was.

    >>> network = nn.Sequential(nn.Linear(1, 1), nn.Dropout().eval())
    >>> with in_eval_mode(network, frozen=True):
    ...     network.training, network[0].weight.requires_grad
    (False, False)
    >>> network.training, network[1].training, network[0].weight.requires_grad
    (True, False, True)
    """
    modes = [(module, module.training) for module in network.modules()]
    learning = [p for p in network.parameters() if p.requires_grad] if frozen else []
    network.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


def holders(network: nn.Module) -> tuple[nn.Module, ...]:
    """A network and those of its modules that hold others. Left out are torch's own, of which an
    attention drops by its own mode, and norms, which may hold an activation."""
    return tuple(
        module for module in network.modules()
        if (module is network or list(module.children()))
        and not isinstance(module, nn.modules.batchnorm._NormBase)
        and not type(module).__module__.startswith("torch.nn.")
    )  # fmt: skip


@contextmanager
def plain_means(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Begins the running statistics of BatchNorm layers anew; while the `with` lasts they are plain
    means over the batches that pass in training mode, then each norm has its momentum again."""
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
