"""Depthwise convolutions whose gradients a CPU computes slowly in bfloat16."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LARGE_KERNEL = 5  # pixels of a side from which the gradient of the weights is slow as well


class DepthwiseInFloat32(TorchFunctionMode):
    """While it is entered, depthwise convolutions whose backward pass has no fast kernel in
    bfloat16 are computed in float32; their output is bfloat16 again, as autocast has it.

    oneDNN falls back to a reference kernel for the gradient that reaches the input of a depthwise
    convolution with a stride: it takes 18 to 30 times as long as in float32. The gradient of a
    kernel of 5 x 5 or more takes 2 to 3 times as long. Forward passes are fast in both.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """As torch has it, but for `conv2d`."""
        call: Any = func  # of which mypy would otherwise know that it is conv2d
        given = kwargs or {}
        if func is not torch.conv2d or not slow_in_bfloat16(*args, **given):
            return call(*args, **given)
        with torch.autocast("cpu", enabled=False):
            wide: list[Any] = [x.float() if isinstance(x, Tensor) else x for x in args]
            named: dict[str, Any] = {
                name: x.float() if isinstance(x, Tensor) else x for name, x in given.items()
            }
            out: Tensor = call(*wide, **named)
        return out.to(torch.get_autocast_dtype("cpu"))


def gradients(network: nn.Module) -> AbstractContextManager[object]:
    """In which to call a network on a CPU: `DepthwiseInFloat32` where that is of use."""
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return nullcontext()
    own = any(w.dim() == 4 and w.shape[1] == 1 < w.shape[0] for w in network.parameters())
    return DepthwiseInFloat32() if own else nullcontext()


def slow_in_bfloat16(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> bool:  # fmt: skip
    """Whether gradients of this `conv2d` have no fast kernel in bfloat16: each channel has a kernel
    of its own, and there is a stride on the way back to the input, or a large kernel that learns.

    >>> x, w = torch.zeros(1, 8, 6, 6, requires_grad=True), torch.zeros(8, 1, 3, 3)
    >>> slow_in_bfloat16(x, w, stride=2, groups=8), slow_in_bfloat16(x, w, stride=1, groups=8)
    (True, False)
    """
    if groups == 1 or weight.shape[1] != 1:
        return False
    strided = stride != 1 and max(stride if isinstance(stride, Sequence) else (stride,)) > 1
    large = max(weight.shape[2:]) >= LARGE_KERNEL
    return (strided and input.requires_grad) or (large and weight.requires_grad)
