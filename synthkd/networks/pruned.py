"""Structured pruning: a network with fewer channels, which keeps the weights of those that matter.

C channels of a layer.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted
from synthkd.networks.classifier import Classifier
from synthkd.networks.marks import misread
from synthkd.networks.modes import in_eval_mode
from synthkd.networks.resnet import Block, ResNet
from synthkd.networks.selection import (
    Group,
    Member,
    cost_left,
    multiple_of,
    selected,
    step_of,
)
from synthkd.networks.weight_init import inherited

_Norm = nn.modules.batchnorm._BatchNorm
NEAR = 0.05  # of the cost, by which what is left may be more than was asked for


def pruning_ratio(spec: str) -> float:
    """The ratio of `prune:RATIO`, the share of a network's cost that goes.

    >>> pruning_ratio("prune:0.5")
    0.5
    """
    text = spec.removeprefix("prune:")
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        raise InputError(
            f"--student {quoted(spec)}: prune:RATIO is the share of the teacher's weights and "
            "operations that goes, above 0 and below 1, as in prune:0.5"
        )
    return ratio


def is_pruned(spec: str) -> bool:
    """Whether a SPEC is `prune:RATIO`."""
    return spec.startswith("prune:")


class Pruned(NamedTuple):
    """A network with fewer channels, and which outputs of a layer's are left: int64 [C'], by the
    name of each Conv2d and Linear; empty where that is not known."""

    body: nn.Module
    kept: Mapping[str, Tensor]


def pruned(body: nn.Module, shape: tuple[int, int, int], ratio: float, images: Tensor) -> Pruned:
    """A copy of a network that costs a share `ratio` less; the original stays as it is.

    The cost is the mean of two shares: of the weights, and of the multiplications of an image.
    Channels that are added to each other go together (Fang et al. 2023, DepGraph,
    https://arxiv.org/abs/2301.12900, by the library torch-pruning). Which go is chosen by
    `selection.selected`, by what the layers receive of `images` [N, C, H, W], as the network takes
    them; layers differ in how much they lose. The last layer keeps its outputs, and so do layers
    whose channels are normalised in groups that would not come out even, or are read in another
    order than the library says (`marks.misread`), and those that are convolved in groups of
    several; where too few are left for `ratio`, each layer loses an equal share instead, those of
    the smallest weights, and `kept` is empty. ResNets of ours, whose shortcuts pad channels, are
    cut by `weight_init.inherited`.

    `shape` is that of one image, (C, H, W). Raises InputError where the network cannot be cut: its
    layers cannot be followed, or it does not run afterwards.

    >>> wide = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5))
    >>> narrow, kept = pruned(wide, (3, 8, 8), 0.5, torch.rand(4, 3, 8, 8))
    >>> narrow[0].weight.shape, narrow[3].weight.shape, len(kept["0"]), wide[0].weight.shape
    (torch.Size([8, 3, 3, 3]), torch.Size([5, 288]), 8, torch.Size([16, 3, 3, 3]))
    """
    if isinstance(body, ResNet):
        return Pruned(_narrower(body, ratio), {})
    blank = torch.zeros(1, *shape)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            found = _cut(body, partial(_chosen, blank=blank, ratio=ratio, images=images))
            if (any(map(_in_groups, body.modules()))
                    and cost_left(found.body, _copy(body), blank) > 1 - ratio + NEAR):  # fmt: skip
                found = _cut(body, partial(_evenly, blank=blank, ratio=ratio))
            with in_eval_mode(found.body):
                answer = found.body(blank)
        if not isinstance(answer, Tensor) or not bool(answer.isfinite().all()):
            raise ValueError("it does not answer with finite numbers")
    except InputError:
        raise
    except Exception as error:  # whatever the library, or the user's network, raises
        raise InputError(
            f"this network cannot be pruned ({type(error).__name__}: {quoted(error, 80)}): name a "
            "--student"
        ) from None
    before, after = (sum(p.numel() for p in net.parameters()) for net in (body, found.body))
    if after >= before:
        raise InputError("this network cannot be pruned: no layer can be made narrower")
    return found


def _copy(body: nn.Module) -> nn.Module:
    return copy.deepcopy(body).cpu().float().requires_grad_(True)


def _cut(body: nn.Module, cut: Callable[[nn.Module], Mapping[str, Tensor]]) -> Pruned:
    found = _copy(body)
    with in_eval_mode(found):
        return Pruned(found, cut(found))


def pruned_teacher(
    teacher: Classifier, ratio: float, images: Callable[[], Tensor] | None = None
) -> Pruned:
    """A teacher's body that costs a share `ratio` less, see `pruned`, by what it sees in `images`:
    a function that gives [N, C, H, W] in 0..1. Without it they are blurred noise."""
    spec = teacher.spec
    if images is None:
        coarse = torch.rand(64, spec.channels, 8, 8, generator=torch.Generator().manual_seed(0))
        given = F.interpolate(coarse, spec.shape[1:], mode="bilinear")
    else:
        given = images()
    device = teacher.mean.device
    normalised = (given.to(device) - teacher.mean) / teacher.std
    return pruned(teacher.body, spec.shape, ratio, normalised.cpu())


def _evenly(found: nn.Module, *, blank: Tensor, ratio: float) -> dict[str, Tensor]:
    """Takes the same share of its channels from every layer, those with the smallest L2 norm."""
    import torch_pruning as tp

    widest = max((len(m.weight) for m in found.modules() if isinstance(m, nn.Conv2d)), default=1)
    tp.pruner.BasePruner(
        found, blank, importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - math.sqrt(1 - ratio), ignored_layers=_heads(found, blank),
        round_to=multiple_of(widest),
    ).step()  # fmt: skip
    return {}


def _chosen(found: nn.Module, *, blank: Tensor, ratio: float, images: Tensor) -> dict[str, Tensor]:
    """Takes the channels that `selection.selected` chooses; returns which outputs are left."""
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(found, example_inputs=blank)
    layers = {m: name for name, m in found.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    roots, groups, uneven, convolved = [], list[Group](), set[int](), set[int]()
    for group in graph.get_all_groups(
        ignored_layers=_heads(found, blank), root_module_types=[nn.Conv2d, nn.Linear]
    ):
        members, count = [], len(group[0].idxs)
        for item in group:
            module = item.dep.target.module
            if isinstance(module, nn.GroupNorm) and _uneven(module, count, len(item.idxs)):
                uneven.add(len(groups))
            if _in_groups(module):
                convolved.add(len(groups))
            if (name := layers.get(module)) is None:
                continue
            where: list[list[int]] = [[] for _ in range(count)]
            for own, root in zip(item.idxs, item.root_idxs, strict=True):
                where[root].append(int(own))
            out = graph.is_out_channel_pruning_fn(item.dep.handler)
            members.append(Member(name, tuple(map(tuple, where)), out))
        roots.append(group[0])
        groups.append(Group(count, tuple(members)))
    misled = misread(found, groups, blank)
    whole = uneven | misled
    free = [k for k in range(len(groups)) if k not in whole | convolved]
    if whole and not free:
        why = (
            "its GroupNorm layers would not come out even" if uneven
            else "its channels are shuffled or flattened in an order that is not known here"
        )  # fmt: skip
        raise InputError(f"this network cannot be pruned: {why}: name a --student")
    gone: list[list[int]] = [[] for _ in groups]
    chosen = selected(found, [groups[k] for k in free], images, ratio)
    for k, channels in zip(free, chosen, strict=True):
        gone[k] = channels
    kept = {name: torch.ones(len(m.weight), dtype=torch.bool) for m, name in layers.items()}
    for root, group, channels in zip(roots, groups, gone, strict=True):
        if not channels:
            continue
        graph.get_pruning_group(root.dep.target.module, root.dep.handler, channels).prune()
        for member in group.members:
            if member.out:
                kept[member.name][[own for c in channels for own in member.where[c]]] = False
    return {name: mask.nonzero().flatten() for name, mask in kept.items()}


def _in_groups(layer: nn.Module) -> bool:
    """Whether a layer convolves channels in groups of several."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups < len(layer.weight)


def _uneven(norm: nn.GroupNorm, size: int, channels: int) -> bool:
    """Whether a norm of which so many `channels` belong to a group of this size cannot be divided
    as before after some have gone."""
    if norm.num_groups == 1:
        return False
    first = step_of(size, size)
    steps = (first, step_of(size, size - first))
    return any(channels // size * step % norm.num_groups for step in steps)


def _narrower(body: ResNet, ratio: float) -> ResNet:
    """A ResNet of ours with fewer channels, begun from what matters of the wide one."""
    width = len(body.conv1.weight)
    wanted = width * math.sqrt(1 - ratio)  # weights and operations grow with the width's square
    kept = max(1, round(wanted / 4) * 4 or round(wanted))
    if kept >= width:
        raise InputError("this network cannot be pruned: no layer can be made narrower")
    depth = 2 + 6 * len(body.layer1)
    found = ResNet(
        depth,
        width=kept,
        channels=body.conv1.in_channels,
        classes=body.linear.out_features,
        reduction=body.reduction,
    )
    inherited(found, body)
    return found


@torch.no_grad()
def _heads(body: nn.Module, blank: Tensor) -> list[nn.Module]:
    """The layers with weights that an answer passes last: their outputs are the classes."""
    passed: list[nn.Module] = []
    layers = [m for m in body.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, *_: passed.append(m)) for m in layers]
    try:
        answer = body(blank)
    finally:
        for hook in hooks:
            hook.remove()
    classes = answer.shape[-1] if isinstance(answer, Tensor) else 0
    return [m for m in passed[-1:] if len(m.weight) == classes]  # type: ignore[arg-type]


@torch.no_grad()
def keep_outputs(
    body: nn.Module, shape: tuple[int, int, int], only: Sequence[int], *, others: bool
) -> None:
    """Leaves of a network's outputs those of the classes `only`, in place; with `others` one more
    begins as the mean of the other classes' rows, with the logarithm of their number added to its
    bias: their logits' log-sum-exp where they are alike."""
    with in_eval_mode(body):
        heads = _heads(body, torch.zeros(1, *shape))
    if len(heads) != 1:
        raise InputError("its last layer cannot be cut to the classes of --only")
    head: nn.Linear | nn.Conv2d = heads[0]  # type: ignore[assignment]
    rest = [k for k in range(len(head.weight)) if k not in set(only)]
    for key, more in (("weight", 0.0), ("bias", math.log(len(rest)) if rest else 0.0)):
        rows = getattr(head, key)
        if rows is None:
            continue
        kept = [rows[list(only)]] + ([rows[rest].mean(0, keepdim=True) + more] if others else [])
        setattr(head, key, nn.Parameter(torch.cat(kept)))
    _record_widths(head)


@torch.no_grad()
def narrow_to(body: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Cuts the layers of a network to the shapes of saved `tensors`, by name, in place: what is
    then loaded from them is the network that was pruned from one like `body`.

    A shape that no cut leads to is an InputError.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> narrow_to(net, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())
    >>> net[1].num_features
    4
    """
    for name, layer in body.named_modules():
        prefix = f"{name}." if name else ""
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        for key, value in own:
            saved = tensors.get(prefix + key)
            if saved is None or saved.shape == value.shape:
                continue
            larger = saved.dim() != value.dim() or any(
                a > b or not a for a, b in zip(saved.shape, value.shape, strict=True)
            )
            if larger:
                raise InputError(f"{quoted(prefix + key)}: no pruning leads to its shape")
            cut = value.new_zeros(saved.shape)
            if isinstance(value, nn.Parameter):
                setattr(layer, key, nn.Parameter(cut, requires_grad=value.requires_grad))
            else:
                setattr(layer, key, cut)
    for layer in reversed(list(body.modules())):  # a block after its layers
        _record_widths(layer)


def _record_widths(layer: nn.Module) -> None:
    """Sets a layer's own record of its widths to the shapes of its weights."""
    match layer:
        case nn.Conv2d() | nn.Conv1d():
            by_channel = layer.groups == layer.in_channels == layer.out_channels
            layer.out_channels = len(layer.weight)
            layer.groups = layer.out_channels if by_channel else layer.groups
            layer.in_channels = layer.weight.shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case _Norm() if layer.running_mean is not None:
            layer.num_features = len(layer.running_mean)
        case nn.GroupNorm() if layer.affine:
            layer.num_channels = len(layer.weight)
        case nn.LayerNorm() if layer.elementwise_affine:
            layer.normalized_shape = tuple(layer.weight.shape)
        case nn.PReLU():
            layer.num_parameters = len(layer.weight)
        case Block():
            layer.extra = layer.conv1.out_channels - layer.conv1.in_channels
