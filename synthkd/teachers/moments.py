"""Mean and variance of what passes a layer, as BatchNorm takes them. n positions, C channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Moments(torch.autograd.Function):
    """x -> x, mean [C], biased variance [C], in one cheap pass forward and one backward.

    The statistics kernel of BatchNorm does the reduction. Backward adds
    (2/n) · g_var · (x − mean) + g_mean / n to the gradient of x, as a per-channel affine map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        zeros = torch.zeros(x.shape[1], dtype=kind, device=x.device)
        mean, var = torch.batch_norm_update_stats(x, zeros, torch.ones_like(zeros), 0.0)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        slope = grad_var * (2 / n)
        offset = grad_mean / n - slope * mean
        epsilon = 1e-5  # batch_norm refuses 0 in older versions: variance 1 − ε plus ε is 1
        still = torch.zeros_like(slope)
        affine = F.batch_norm(x, still, still + 1 - epsilon, slope, offset, False, 0.0, epsilon)
        return affine.add_(grad)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Moments` where its kernel exists (4-d, CPU or CUDA), plain torch elsewhere."""
    if x.dim() == 4 and hasattr(torch, "batch_norm_update_stats"):
        return Moments.apply(x)  # type: ignore[no-any-return]
    wide = x.float()
    var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    return x, mean, var
