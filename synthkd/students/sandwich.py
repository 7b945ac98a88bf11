"""The sandwich rule of a slimmable student: at which widths it learns in a step, and how much each
of them needs one.

Every step teaches the full width and the narrowest (Yu & Huang 2019,
https://arxiv.org/abs/1903.05134). `training.widths` says which of the n widths between them learn
too. D weights that a width uses.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.networks.slimmable import RANDOM, SHARES, Slimmable

MEASURED = 20  # steps between two measurements of needs
EVEN = 0.5  # share of the chances that is the same for every width


def check_widths(how: str, body: nn.Module) -> None:
    """Raises InputError where needs would be measured of widths that a network has not."""
    if how == "needed" and getattr(body, "shares", None) != SHARES:
        known = ", ".join(f"{share:g}" for share in SHARES)
        raise InputError(
            f"training.widths {how}: it chooses among the widths {known} of one network, and this "
            "student has not these: give --student slim:resnet20, or omit it"
        )


def unserved(own: Tensor, full: Tensor) -> Tensor:
    """How much of a width's gradient the full width's gradient leaves over: the distance of the one
    from the ray of the other.

        min over a ≥ 0 of ‖own − a · full‖  =  ‖own‖ · √(1 − max(0, cos(own, full))²)

    It is 0 where both point the same way, as the full width's step then serves the narrower one
    too, and ‖own‖ where they are at right angles or against each other. Ours, after the idea that
    gradient and similarity should move a student's width.

    `own` and `full` are gradients [D] by the weights that the width uses; the result is a scalar.

    >>> unserved(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])).item()
    4.0
    """
    along = (own @ full).clamp_min(0) / full.square().sum().clamp_min(torch.finfo(full.dtype).tiny)
    left: Tensor = torch.linalg.vector_norm(own - along * full)
    return left


def chances(needs: Sequence[float]) -> list[float]:
    """The chance of each of n widths to learn in a step, by its need.

        p = ½ / n + ½ · need / (sum of needs)

    Without needs all are alike. The even half is so that none is forgotten.

    `needs` are n numbers of at least 0, the result n shares.

    >>> chances([1.0, 3.0])
    [0.375, 0.625]
    """
    whole, count = sum(needs), len(needs)
    if not whole:
        return [1 / count] * count
    return [EVEN / count + (1 - EVEN) * need / whole for need in needs]


def measures(step: int) -> bool:
    """Whether needs are measured in a step."""
    return (step + 1) % MEASURED == 0


def chosen(
    between: Sequence[float], how: str, needs: Mapping[float, float], step: int
) -> tuple[float, ...]:
    """The widths that learn in a step beside the narrowest and the full one: by `training.widths`
    two by chance, one by chance, or one by its need (`chances`), where needs are measured all.

    Their losses count as they are. Factors of 1 / (how often a width is chosen) would leave the
    mean of the loss as if all learned, but make single steps so large that a deep network does not
    recover: a full width of 72 % where it has 96 % without them (docs/log.md, 2026-12-01).

    >>> chosen((0.5, 0.75), "one", {}, step=0)
    (0.75,)
    """
    rng = torch.Generator().manual_seed(step)
    count = len(between)
    if how == "two":
        return tuple(between[k] for k in torch.randperm(count, generator=rng)[:RANDOM].tolist())
    if count < 2 or (how == "needed" and measures(step)):
        return tuple(between)
    known = needs if how == "needed" else {}
    shares = chances([known.get(share, 0.0) for share in between])
    return (between[int(torch.multinomial(torch.tensor(shares), 1, generator=rng))],)


def needs_of(body: Slimmable, full: Tensor, losses: Mapping[float, Tensor]) -> dict[float, Tensor]:
    """What the full width's gradient leaves over of the gradient of each width (`unserved`), by the
    weights of convolutions and of the last layer that the width uses. `full` and `losses` are
    scalars, whose graphs are kept; a pass backwards for each."""
    weights = {
        name: weight for name, weight in body.full.named_parameters()
        if weight.dim() > 1 and weight.requires_grad
    }  # fmt: skip
    if not weights:
        return {}

    def slopes(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            loss, tuple(weights.values()), retain_graph=True, materialize_grads=True
        )

    def used(gradients: Sequence[Tensor], share: float) -> Tensor:
        parts = body.used(share)
        pairs = zip(weights, gradients, strict=True)
        return torch.cat([gradient[parts[name]].flatten() for name, gradient in pairs])

    whole = slopes(full)
    return {
        share: unserved(used(slopes(loss), share), used(whole, share))
        for share, loss in losses.items()
    }
