"""Whether the channels of a group arrive where the dependency graph says.

torch-pruning takes what it does not know for an operation on each number alone. So it does not see
that maps were permuted before they are flattened, after which other columns of a matrix belong to
a channel, or that `view` has shuffled channels. Here every layer's output is replaced by marks on
some of its channels, and it is looked where they arrive.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from synthkd.networks.selection import Call, Calls, Group, Layer, layers_of

MARK = 1e3  # in a channel that is marked, of an output that is else 0
SHARE = 8  # of so many channels one is marked
CLEARER = 2.0  # times the others' change, from which marks count as arrived
PATTERNS = 2  # of marks that are tried


@torch.no_grad()
def misread(network: nn.Module, groups: Sequence[Group], blank: Tensor) -> set[int]:
    """The groups, by number, of which a layer reads other channels than its `Member` says.

    `blank` is one image [1, C, H, W]. Channels of a layer's input count as marked where they change
    with the marks, whatever their sign: by CLEARER times as much, on average, as those that should
    not be marked. Where nothing arrives nothing is known, and nothing is said.
    """
    layers, found = layers_of(network), set[int]()
    nothing = _arrived(network, layers, {}, blank)
    rng = torch.Generator().manual_seed(0)
    for _ in range(PATTERNS):
        marks = {name: torch.zeros(len(layer.weight)) for name, layer in layers.items()}
        chosen = []
        for group in groups:
            picks = torch.randperm(group.size, generator=rng)[: -(-group.size // SHARE)].tolist()
            chosen.append(set(picks))
            for member in group.members:
                if member.out:
                    marks[member.name][[own for c in picks for own in member.where[c]]] = MARK
        changes: dict[str, Tensor] = {}
        for sign in (1, -1):
            marked = {name: sign * mark for name, mark in marks.items()}
            for name, values in _arrived(network, layers, marked, blank).items():
                change = (values - nothing[name]).abs().mean(1)
                changes[name] = torch.maximum(change, changes.get(name, change))
        for k, (group, picks_of) in enumerate(zip(groups, chosen, strict=True)):
            for member in group.members:
                if not member.out and member.name in changes:
                    change = changes[member.name]
                    ours, others = (
                        change[[own for c, where in enumerate(member.where) for own in where
                                if (c in picks_of) is marked]]
                        for marked in (True, False)
                    )  # fmt: skip
                    if _elsewhere(ours, others):
                        found.add(k)
    return found


def _elsewhere(marked: Tensor, others: Tensor) -> bool:
    """Whether marks are not where they should be, but among the others."""
    if not len(marked) or not len(others):
        return False
    here, there = float(marked.mean()), float(others.mean())
    return there > 0 and here < CLEARER * there  # false where a number is none


def _arrived(
    network: nn.Module, layers: Mapping[str, Layer], marks: Mapping[str, Tensor], blank: Tensor
) -> dict[str, Tensor]:
    """What each layer reads where every layer makes its marks [O] alone, else 0: [I, places], of
    its first call."""
    found: dict[str, Tensor] = {}

    def see(name: str, call: Call) -> Tensor:
        maps = isinstance(layers[name], nn.Conv2d)
        x = call.inputs.float().clone()  # a layer after it may change its input in place
        found.setdefault(name, x.transpose(0, 1).flatten(1) if maps else x.flatten(0, -2).t())
        made = torch.zeros_like(call.outputs)
        if name in marks:
            mark = marks[name].to(made)
            made += mark[:, None, None] if maps else mark
        return made

    with Calls(layers, see):
        network(blank)
    return found
