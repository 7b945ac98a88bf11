"""Optimizers, saved and restored, and running averages of weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's state with each tensor laid out like its parameter, as an unbroken run
    has it."""
    optimizer.load_state_dict(state)
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@torch.no_grad()
def average_(average: Mapping[str, Tensor], now: Mapping[str, Tensor], weight: float) -> None:
    """Moves a running average of tensors by name towards what they are now, in place.

        average ← average + weight · (now − average)

    Whole numbers (counts of batches) are copied.

    >>> mean = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(1)}
    >>> average_(mean, {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(7)}, 0.25)
    >>> mean["w"].tolist(), mean["n"].item()
    ([1.0, 3.0], 7)
    """
    real = [key for key, value in now.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[key] for key in real], [now[key] for key in real], weight)
    for key, value in now.items():
        if not value.is_floating_point():
            average[key].copy_(value)
