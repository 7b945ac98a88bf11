"""BatchNorm layers that no longer change, computed within the convolutions before them.

A norm in eval mode is an affine map of each channel, and so is a convolution's output by its
weights and bias:

    γ (W x + b − μ) / √(v + ε) + β  =  (s W) x + (β + s (b − μ)),    s = γ / √(v + ε)

The right side is one pass over the maps instead of two. Gradients reach W, b, γ and β through it as
they would through both. Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 3.2, for
inference; here for learning.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from synthkd.networks.modes import in_eval_mode

_CONVOLUTIONS = (F.conv2d, torch.conv2d)
_NORMS = (F.batch_norm, torch.batch_norm)
CLOSE = 1e-3  # of the largest answer, how far that of the folded network may be off
Norm = nn.modules.batchnorm._BatchNorm


class Folding(TorchFunctionMode):
    """While the `with` lasts, convolutions with the weights in `pairs` also do what the norm of
    theirs would do, and the norm passes on what it is given."""

    def __init__(self, pairs: Mapping[int, Norm]) -> None:
        super().__init__()
        self._pairs = pairs
        self._made: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call, folded where it is one of theirs."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and len(args) >= 2 and id(args[1]) in self._pairs:
            norm = self._pairs[id(args[1])]
            bias = args[2] if len(args) > 2 else kwargs.pop("bias", None)
            made: Tensor = func(args[0], *_folded(norm, args[1], bias), *args[3:], **kwargs)
            self._made[id(made)] = made
            return made
        if func in _NORMS and args and self._made.pop(id(args[0]), None) is not None:
            return args[0]
        return func(*args, **kwargs)


def _folded(norm: Norm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution with the norm in them."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * scale[:, None, None, None], shift


class _Watching(TorchFunctionMode):
    """Notes which convolution's output, used once, enters which norm."""

    def __init__(self, norms: Mapping[int, Norm]) -> None:
        super().__init__()
        self._norms = norms  # by the identity of their running means
        self.outputs: dict[int, tuple[Tensor, Tensor]] = {}  # the output, and the weights behind it
        self.uses: dict[int, list[Norm | None]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call as it is, and a look at it."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if id(tensor) in self.outputs and not _looks(func):
                found = [self._norms[id(t)] for t in tensors if id(t) in self._norms]
                norm = found[0] if func in _NORMS and found else None
                self.uses.setdefault(id(tensor), []).append(norm)
        made = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS and len(args) >= 2 and isinstance(made, Tensor):
            self.outputs[id(made)] = (made, args[1])
        return made


def _looks(func: Any) -> bool:
    """Whether a call only asks for a tensor's shape, kind or place."""
    return getattr(func, "__name__", "") in ("__get__", "dim", "size", "stride", "is_contiguous")


def folding_pairs(network: nn.Module, images: Tensor, norms: list[Norm]) -> dict[int, Norm]:
    """The `norms` that can be computed within the convolution before them, by the identity of its
    weights, a parameter of the network: whose input is the convolution's output and nobody else's.
    Found by one pass of images [B, C, H, W] in float32; none where the folded network would answer
    otherwise, or cannot be followed."""
    own = {id(parameter) for parameter in network.parameters()}
    fixed = {
        id(norm.running_mean): norm for norm in norms
        if norm.running_mean is not None and isinstance(norm, nn.BatchNorm2d)
    }  # fmt: skip
    try:
        kind = images.device.type
        with torch.no_grad(), in_eval_mode(network), torch.autocast(kind, enabled=False):
            with _Watching(fixed) as seen:
                plain = network(images)
            pairs: dict[int, Norm] = {}
            for place, (_, weight) in seen.outputs.items():
                uses = seen.uses.get(place, [])
                if len(uses) == 1 and uses[0] is not None:
                    pairs[id(weight)] = uses[0]
            several = [id(w) for _, w in seen.outputs.values()]  # a layer that is called twice
            pairs = {k: norm for k, norm in pairs.items() if k in own and several.count(k) == 1}
            with Folding(pairs):
                folded = network(images)
    except Exception:  # whatever the user's network raises when it is watched
        return {}
    off = (folded - plain).abs().max()
    return pairs if bool(off <= CLOSE * plain.abs().max()) else {}
