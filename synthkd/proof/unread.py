"""Tensors of a network that no answer depends on: numbers that could be anything, images too."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

SMALL = 64  # bytes of a tensor, up to which it can hold no image
COUNTERS = ("num_batches_tracked",)
IMAGES, FEW, SECONDS = 6, 2, 20.0  # images, and so many of large ones

Asked = Callable[[Mapping[str, Tensor]], Tensor]


def unread(network: nn.Module, images: Tensor, *, seconds: float = SECONDS) -> dict[str, int]:
    """The parameters and buffers of a network whose numbers change no answer to some images
    [B, C, H, W], by name: how many bytes of each.

    The gradient of the answers' sum, each weighed at random, tells which numbers move them. In the
    place of those that do not, as of whole numbers, which have no gradient, others are put, all of
    one tensor's at once: where every answer stays the same to the last bit, none of them is read.
    Numbers behind a layer that is dead for these images are read by this test, since they are
    changed by much. Rows (along the first dimension) of a tensor that is read, in which no number
    has a gradient, are tried again one by one. Where `seconds` do not suffice, a tensor that is
    left counts as unread, and a row as read.
    """
    held = {
        name: tensor.detach()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    rng = torch.Generator().manual_seed(0)

    def ask(tensors: Mapping[str, Tensor]) -> Tensor:
        answer: Tensor = functional_call(network, {**held, **tensors}, (images,))
        return answer

    still = _without_gradient(held, _statistics(network), ask, rng)
    with torch.no_grad():
        before = ask({})
        same = _same(before, ask)
        found, deadline = {}, time.monotonic() + seconds
        for name, places in still.items():
            tensor = held[name]
            size = int(places.sum()) * tensor.element_size()
            counter = name.endswith(COUNTERS) and tensor.numel() == 1
            if size <= SMALL or counter:
                continue
            late = time.monotonic() > deadline
            if late or all(same({name: other}) for other in _others(tensor, places, rng)):
                found[name] = size
            elif rows := _unread_rows(name, tensor, places, same, rng, deadline):
                found[name] = rows * tensor[0].numel() * tensor.element_size()
    return found


def _unread_rows(
    name: str, tensor: Tensor, places: Tensor, same: Callable[[Mapping[str, Tensor]], bool],
    rng: torch.Generator, deadline: float,
) -> int:  # fmt: skip
    """How many rows of a tensor, all of whose numbers have no gradient, change no answer when that
    row alone is another."""
    if tensor.dim() < 2 or tensor[0].numel() * tensor.element_size() <= SMALL:
        return 0
    whole = places.flatten(1).all(1)
    count = 0
    for row in whole.nonzero().flatten().tolist():
        if time.monotonic() > deadline:
            break
        alone = torch.zeros_like(places)
        alone[row] = True
        count += all(same({name: other}) for other in _others(tensor, alone, rng))
    return count


def _statistics(network: nn.Module) -> dict[str, str]:
    """The stored statistics of normalising layers, by name, and the shift of the same layer, which
    moves an answer where they do: torch gives them no gradient."""
    return {
        f"{name}.{kind}".lstrip("."): f"{name}.bias".lstrip(".")
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for kind in ("running_mean", "running_var")
    }


def _without_gradient(
    held: Mapping[str, Tensor], statistics: Mapping[str, str], ask: Asked, rng: torch.Generator
) -> dict[str, Tensor]:
    """For each tensor the mask of those numbers that have no gradient, where there are any."""
    real = {
        name: t.clone().requires_grad_() for name, t in held.items()
        if t.is_floating_point() and name not in statistics
    }  # fmt: skip
    masks = {name: torch.ones_like(t, dtype=torch.bool) for name, t in held.items()}
    with torch.enable_grad():
        answers = ask(real)
        if answers.requires_grad:
            weights = torch.randn(answers.shape, generator=rng).to(answers.device)
            gradients = torch.autograd.grad(
                (answers * weights).sum(), list(real.values()), allow_unused=True
            )
            for name, gradient in zip(real, gradients, strict=True):
                if gradient is not None:
                    masks[name] = gradient == 0
            masks |= {name: masks[bias] for name, bias in statistics.items() if bias in masks}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _same(before: Tensor, ask: Asked) -> Callable[[Mapping[str, Tensor]], bool]:
    """Whether the answers stay the same with other tensors; a network that fails with them reads
    them."""

    def same(tensors: Mapping[str, Tensor]) -> bool:
        try:
            return torch.equal(ask(tensors), before)
        except Exception:  # whatever the user's network raises at numbers it did not expect
            return False

    return same


def _others(tensor: Tensor, places: Tensor, rng: torch.Generator) -> list[Tensor]:
    """The tensor with quite other numbers at some places, twice."""
    if tensor.dtype == torch.bool:
        return [torch.where(places, ~tensor, tensor)]
    if not tensor.is_floating_point():
        whole = torch.zeros_like(tensor)
        return [torch.where(places, whole + 1 - tensor, tensor), torch.where(places, whole, tensor)]
    size = float(tensor.abs().float().mean()) + 1.0
    found = []
    for sign in (1.0, -1.0):
        noise = (1 + torch.rand(tensor.shape, generator=rng)).to(tensor.device, tensor.dtype)
        found.append(torch.where(places, sign * 3 * size * noise, tensor))
    return found
