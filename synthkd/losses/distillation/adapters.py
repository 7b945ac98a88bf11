"""Terms with an adapter: what a layer of the student shows is mapped to what the teacher's shows.

Adapters are learned with the student, saved with the run, and no part of the student that ships.
B batch, C channels, H height, W width, D features.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.losses.distillation.features import (
    gaussian_transport,
    relative_gap,
    sliced_transport,
    standardised_gap,
)
from synthkd.losses.distillation.view import DistillationView, KnownBeforehand, resized_to

SIDE = 14  # the side of the teacher's map that attention answers for, at most
HEADS = 4
DIRECTIONS = 64


class ChannelAdapter(nn.Module):
    """BatchNorm, then a 1 × 1 convolution: maps [B, C, H, W] with as many channels as asked for.

    The norm makes one learning rate fit whatever size the student's features have.
    """

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, wanted, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        adapted: Tensor = self.conv(self.norm(maps))
        return adapted


class Hint(nn.Module):
    """The student's features are the teacher's, after an adapter of channels and a bilinear one of
    size: mean over pairs of `relative_gap`."""

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(ChannelAdapter(s[0], t[0]) for s, t in known.grids)

    def adapted(self, view: DistillationView) -> list[tuple[Tensor, Tensor]]:
        """The pairs, the student's with as many channels as the teacher's."""
        pairs = zip(self.adapters, view.grids, strict=True)
        return [(adapter(mine), taught) for adapter, (mine, taught) in pairs]

    def forward(self, view: DistillationView) -> Tensor:
        """A scalar."""
        gaps = [relative_gap(resized_to(s, t), t) for s, t in self.adapted(view)]
        return torch.stack(gaps).mean()


class Transport(Hint):
    """The student's features are spread as the teacher's, after an adapter of channels: mean over
    pairs of `gaussian_transport`. Where an image shows what does not count."""

    def forward(self, view: DistillationView) -> Tensor:
        """A scalar."""
        return torch.stack([gaussian_transport(s, t) for s, t in self.adapted(view)]).mean()


class SlicedTransport(nn.Module):
    """A linear map of the student's embedding, and `sliced_transport` along random directions,
    drawn anew for each batch."""

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        ours, theirs = known.embeddings
        self.linear = nn.Linear(ours, theirs)
        self.seed = int(torch.randint(2**31, ()))  # of the next directions

    def get_extra_state(self) -> dict[str, int]:
        """The seed."""
        return {"seed": self.seed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Goes on from a saved state."""
        self.seed = int(state["seed"])

    def forward(self, view: DistillationView) -> Tensor:
        """A scalar."""
        mine, taught = view.embeddings
        rng = torch.Generator().manual_seed(self.seed)
        self.seed += 1
        directions = torch.randn(taught.shape[1], DIRECTIONS, generator=rng).to(taught.device)
        return sliced_transport(self.linear(mine), taught, F.normalize(directions, dim=0))


class OrthogonalProjection(nn.Module):
    """One linear map of the student's embedding that keeps lengths and angles, towards the
    teacher's: `standardised_gap`. A free map could forget what the student shows; this one cannot.

    Miles et al. 2024, "VkD: Improving Knowledge Distillation using Orthogonal Projections"
    (https://arxiv.org/abs/2403.06213), section 3.2. Where the student's embedding is the larger
    one, the rows are orthogonal instead of the columns.
    """

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        ours, theirs = known.embeddings
        linear = nn.Linear(ours, theirs, bias=False)
        self.projection: nn.Module = nn.utils.parametrizations.orthogonal(linear)

    def forward(self, view: DistillationView) -> Tensor:
        """A scalar."""
        mine, taught = view.embeddings
        return standardised_gap(self.projection(mine), taught)


class CrossAttention(nn.Module):
    """Queries of the teacher's grid look for their answer among the student's positions: the
    teacher's features are told from all of the student's, wherever they are. `relative_gap`, mean
    over pairs.

        attention(Q, K = A(h_s) + P, V = A(h_s)) against h_t

    A is a 1 × 1 convolution, P a learned code of the student's positions, without which no query
    could tell them apart, Q learned as well, one for each position of the teacher. A teacher's grid
    of more than 14 × 14 is averaged down to that. Any two families: only positions are counted.
    """

    def __init__(self, known: KnownBeforehand) -> None:
        super().__init__()
        self.adapters, self.attention = nn.ModuleList(), nn.ModuleList()
        self.places, self.queries = nn.ParameterList(), nn.ParameterList()
        for (ours, h, w), (theirs, height, width) in known.grids:
            heads = max(n for n in range(1, HEADS + 1) if theirs % n == 0)
            positions = min(height, SIDE) * min(width, SIDE)
            self.adapters.append(ChannelAdapter(ours, theirs))
            self.attention.append(nn.MultiheadAttention(theirs, heads, batch_first=True))
            self.places.append(nn.Parameter(0.02 * torch.randn(h * w, theirs)))
            self.queries.append(nn.Parameter(0.02 * torch.randn(positions, theirs)))

    def forward(self, view: DistillationView) -> Tensor:
        """A scalar."""
        gaps = []
        for pair, (mine, taught) in enumerate(view.grids):
            height, width = taught.shape[2:]
            sides = min(height, SIDE), min(width, SIDE)
            wanted = F.adaptive_avg_pool2d(taught, sides).flatten(2).transpose(1, 2)
            tokens = self.adapters[pair](mine).flatten(2).transpose(1, 2)  # [B, H · W, C']
            attention = cast(nn.MultiheadAttention, self.attention[pair])
            queries = self.queries[pair].expand(len(mine), -1, -1)
            told, _ = attention(queries, tokens + self.places[pair], tokens, need_weights=False)
            gaps.append(relative_gap(told, wanted))
        return torch.stack(gaps).mean()
