"""A student that begins with its teacher's weights, as far as they fit.

C channels of a layer.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.fx
from torch import Tensor, nn

from synthkd.networks.resnet import Block, ResNet


@torch.no_grad()
def inherited(student: nn.Module, teacher: nn.Module) -> tuple[int, int]:
    """Starts a student's body from its teacher's weights, as far as they fit.

    Where both are plain chains of the same layers, or ResNets of ours, and the student's are
    narrower, each layer keeps the teacher's channels that matter most. Otherwise every tensor of
    the same name and shape is copied: of a deeper ResNet the stem, the first blocks of each group
    and the last layer.

    A teacher that is wrapped, as one that normalises its images or ends in a softmax is, is looked
    for inside the wrapper: of the modules that hold most of its weights, the one that most of the
    student's tensors can be taken from.

    Returns how many tensors were taken and how many the student has; (0, n) is no error.

    >>> wide, narrow = (torch.nn.Sequential(torch.nn.Linear(2, n), torch.nn.Linear(n, 3))
    ...                 for n in (8, 4))
    >>> inherited(narrow, wide)
    (4, 4)
    >>> inherited(narrow, torch.nn.Sequential(wide, torch.nn.Softmax(1)))
    (4, 4)
    """
    own = {k: v for k, v in student.state_dict().items() if v.is_floating_point()}
    best: dict[str, Tensor] = {}
    for inner in _cores(teacher):
        given = _slices(student, inner) or _thinned(student, inner) or inner.state_dict()
        fitting = {k: given[k] for k, v in own.items() if k in given and given[k].shape == v.shape}
        if len(fitting) > len(best):
            best = fitting
    for key, value in best.items():
        own[key].copy_(value)
    return len(best), len(own)


def _cores(body: nn.Module) -> Iterator[nn.Module]:
    """A network, and inside it one after the other the module that holds more than half of its
    weights."""
    whole = sum(p.numel() for p in body.parameters())
    inner: nn.Module | None = body
    while inner is not None:
        yield inner
        inner = next(
            (m for m in inner.children() if 2 * sum(p.numel() for p in m.parameters()) > whole),
            None,
        )


def _chain(body: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers with weights, by name, in the order in which images pass them; None where the way
    branches, cannot be followed, or has other weights than convolutions, linear layers and
    BatchNorm."""
    try:
        nodes = torch.fx.Tracer().trace(body).nodes
    except Exception:  # whatever the user's network does when it is traced
        return None
    if any(len(node.all_input_nodes) > 1 or len(node.users) > 1 for node in nodes):
        return None
    modules = dict(body.named_modules())
    names = [str(node.target) for node in nodes if node.op == "call_module"]
    links = [(name, modules[name]) for name in names if modules[name].state_dict()]
    plain = all(
        (isinstance(m, nn.Conv2d) and m.groups == 1)
        or isinstance(m, nn.Linear)
        or (isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.affine and m.track_running_stats)
        for _, m in links
    )
    held = [f"{name}.{key}" for name, layer in links for key in layer.state_dict()]
    return links if links and plain and sorted(held) == sorted(body.state_dict()) else None


def _slices(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor] | None:
    """The teacher's tensors cut to the student's shapes; None where one of the two is no chain or
    they do not match layer by layer.

    The channels that a layer keeps as its output, the next one keeps as its input.
    """
    narrow, wide = _chain(student), _chain(teacher)
    if narrow is None or wide is None or len(narrow) != len(wide):
        return None
    layers = [layer for _, layer in wide]
    taken: dict[str, Tensor] = {}
    kept, width = torch.empty(0), 0  # channels that the student keeps, out of how many
    for i, ((name, own), layer) in enumerate(zip(narrow, layers, strict=True)):
        state = layer.state_dict()
        weight = state["weight"]
        if weight.dim() > 1:
            if width:
                if weight.shape[1] % width:
                    return None
                # after flattening, a channel is a run of neighbours
                weight = weight.unflatten(1, (width, -1))[:, kept].flatten(1, 2)
            state["weight"] = weight
            kept, width = _important(layers[i:], len(own.state_dict()["weight"])), len(weight)
        for key, value in state.items():
            taken[f"{name}.{key}"] = value[kept] if value.dim() and width else value
    shapes = {key: value.shape for key, value in student.state_dict().items()}
    return taken if {key: value.shape for key, value in taken.items()} == shapes else None


def _important(layers: list[nn.Module], count: int) -> Tensor:
    """Indices, in their old order, of the output channels of the first layer that matter most.

    A channel matters by the L2 norm of the weights that make it, times |γ| / √(v + ε) of a
    BatchNorm behind, times the norm of the weights that read it. Where no layer behind reads
    them, all are kept.
    """
    weights = layers[0].state_dict()["weight"]
    matter = weights.flatten(1).norm(dim=1)
    for layer in layers[1:]:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert layer.running_var is not None
            gain = layer.weight.abs() / (layer.running_var + layer.eps).sqrt()
            matter = matter * gain.reshape(len(matter), -1).mean(1)  # flattened maps: of a channel
            continue
        read = layer.state_dict()["weight"].transpose(0, 1)
        matter = matter * read.reshape(len(matter), -1).norm(dim=1)
        return _best(matter, min(count, len(matter)))
    return torch.arange(len(matter), device=matter.device)


def _thinned(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor] | None:
    """A wider ResNet's tensors cut to a narrower one's shapes; None for any other pair.

    The blocks of a group add to the same channels, so they keep the same ones. Between groups the
    shortcut puts the old channels in the middle of the new: what was kept stays kept, and the new
    channels before and after are chosen among themselves.
    """
    if not isinstance(student, ResNet) or not isinstance(teacher, ResNet):
        return None
    narrow, wide = (len(net.conv1.weight) for net in (student, teacher))
    if narrow >= wide or student.conv1.weight.shape[1] != teacher.conv1.weight.shape[1]:
        return None
    device = teacher.conv1.weight.device
    taken: dict[str, Tensor] = {}
    groups = (teacher.layer1, teacher.layer2, teacher.layer3)
    kept = torch.empty(0, dtype=torch.int64, device=device)
    for number, group in enumerate(groups):
        blocks: Sequence[Block] = list(group)  # type: ignore[arg-type]
        matter = torch.stack([_written(b.conv2, b.bn2) for b in blocks]).sum(0)
        if number == 0:
            matter = matter + _written(teacher.conv1, teacher.bn1)
            before = torch.arange(teacher.conv1.weight.shape[1], device=device)
            kept = _best(matter, narrow)
            _take(taken, "conv1", teacher.conv1, kept, before)
            _take(taken, "bn1", teacher.bn1, kept)
            inward = kept
        else:
            inward, old = kept, len(matter) // 2  # channels of the teacher's group before
            front, new = old // 2, len(kept) // 2  # put before these, in the two networks
            first = _best(matter[:front], new)
            last = _best(matter[front + old :], len(kept) - new) + front + old
            kept = torch.cat([first, inward + front, last])
        for i, block in enumerate(blocks[: len(list(getattr(student, f"layer{number + 1}")))]):
            name = f"layer{number + 1}.{i}"
            inner = _best(_written(block.conv1, block.bn1) * _read(block.conv2), len(kept))
            _take(taken, f"{name}.conv1", block.conv1, inner, inward if i == 0 else kept)
            _take(taken, f"{name}.bn1", block.bn1, inner)
            _take(taken, f"{name}.conv2", block.conv2, kept, inner)
            _take(taken, f"{name}.bn2", block.bn2, kept)
    everything = torch.arange(len(teacher.linear.weight), device=device)
    _take(taken, "linear", teacher.linear, everything, kept)
    return taken


def _take(
    taken: dict[str, Tensor], name: str, layer: nn.Module, outward: Tensor,
    inward: Tensor | None = None,
) -> None:  # fmt: skip
    """Puts a layer's tensors into `taken`, cut to some of its outputs and inputs."""
    for key, value in layer.state_dict().items():
        if value.dim():
            value = value[outward]
            if value.dim() > 1 and inward is not None:
                value = value[:, inward]
        taken[f"{name}.{key}"] = value


def _written(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """The size of each output channel of a convolution and its BatchNorm, [C]: the norm of its
    weights times |γ| / √(v + ε)."""
    assert norm.running_var is not None
    size: Tensor = conv.weight.flatten(1).norm(dim=1)
    return size * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()


def _read(conv: nn.Conv2d) -> Tensor:
    """The norm of the weights that read each input channel of a convolution, [C]."""
    size: Tensor = conv.weight.transpose(0, 1).flatten(1).norm(dim=1)
    return size


def _best(matter: Tensor, count: int) -> Tensor:
    """Indices of the largest, in their old order."""
    index: Tensor = matter.topk(count).indices.sort().values
    return index
