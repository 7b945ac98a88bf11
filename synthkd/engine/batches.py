"""Batches for the student: new, replayed and real images together, each with its identity.

B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.core.images import sent, to_uint8
from synthkd.core.logits import margin_of
from synthkd.replay import ReplayBatch
from synthkd.teachers.protocol import Seen


@dataclass(frozen=True)
class TeachingBatch:
    """Images that student and teacher are about to be shown.

    `weights` are those of the images in the loss, None where all weigh alike; they come from a
    replay memory with priorities (`ReplayBatch.weights`).
    """

    images: Tensor  # [B, C, H, W] uint8
    slots: Tensor  # [B] int64, place in the replay memory, −1 where it is in none
    origins: tuple[str, ...]  # B names: of a generator, "data" of a data set, "real"
    asked: Tensor  # [B] int64, the class that was asked for, −1 where none was
    weights: Tensor | None = None  # [B] float32
    margins: Tensor | None = None  # [B] float32, of the teacher; 1 where it is not known

    def __len__(self) -> int:
        return len(self.images)


def plain(images: Tensor, origin: str, asked: Tensor | None = None) -> TeachingBatch:
    """Images [B, C, H, W] that come from no memory, perhaps with the classes asked for [B]."""
    count = len(images)
    none = torch.full((count,), -1)
    return TeachingBatch(images, none, (origin,) * count, none if asked is None else asked)


def replayed(
    drawn: ReplayBatch, *, margins: bool = False, independent: bool = False
) -> TeachingBatch:
    """Images drawn from a memory, with the teacher's margins if wanted (`margin_of`)."""
    weights = None if bool((drawn.weights == 1).all()) else drawn.weights
    sure = margin_of(drawn.logits.float(), independent=independent) if margins else None
    return TeachingBatch(drawn.images, drawn.slots, drawn.origins, drawn.labels, weights, sure)


def joined(parts: Sequence[TeachingBatch]) -> TeachingBatch:
    """Several batches as one, in their order.

    >>> a, b = plain(torch.zeros(1, 1, 2, 2), "gan"), plain(torch.ones(2, 1, 2, 2), "real")
    >>> whole = joined([a, b])
    >>> whole.origins, whole.slots.tolist(), whole.weights
    (('gan', 'real', 'real'), [-1, -1, -1], None)
    """

    def column(values: Sequence[Tensor | None]) -> Tensor | None:
        if all(value is None for value in values):
            return None
        pairs = zip(values, parts, strict=True)
        return torch.cat([torch.ones(len(p)) if value is None else value for value, p in pairs])

    return TeachingBatch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.slots for part in parts]),
        tuple(name for part in parts for name in part.origins),
        torch.cat([part.asked for part in parts]),
        column([part.weights for part in parts]),
        column([part.margins for part in parts]),
    )


@dataclass(frozen=True)
class TaughtBatch:
    """Views of a batch with what the teacher showed of them."""

    views: Tensor  # [B, C, H, W] in 0..1, or uint8
    seen: Seen
    asked: Tensor  # [B] int64, −1 where no class was asked for, or images are blended
    slots: Tensor  # [B] int64
    synthetic: Tensor  # [B] bool, on the CPU, where it is counted
    blended: Tensor  # [B] bool, on the CPU: whether a view is a blend of two images
    weights: Tensor | None = None  # [B] float32

    def __len__(self) -> int:
        return len(self.views)

    def take(self, index: Tensor) -> "TaughtBatch":
        """Some of it, in the order of `index`, which is on the CPU."""
        order, index = index, sent(index, self.views.device)
        features = {name: value[index] for name, value in self.seen.features.items()}
        return TaughtBatch(
            self.views[index], Seen(self.seen.logits[index], features), self.asked[index],
            self.slots[index], self.synthetic[order], self.blended[order],
            None if self.weights is None else self.weights[index],
        )  # fmt: skip


def pooled(parts: Sequence[TaughtBatch]) -> TaughtBatch:
    """Several batches as one, in their order; views as uint8, a quarter of the memory."""
    features = {
        name: torch.cat([part.seen.features[name] for part in parts])
        for name in parts[0].seen.features
    }
    weights = None
    if any(part.weights is not None for part in parts):
        weights = torch.cat(
            [part.slots.new_ones(len(part)).float() if part.weights is None else part.weights
             for part in parts]
        )  # fmt: skip
    return TaughtBatch(
        torch.cat([to_uint8(part.views) for part in parts]),
        Seen(torch.cat([part.seen.logits for part in parts]), features),
        torch.cat([part.asked for part in parts]),
        torch.cat([part.slots for part in parts]),
        torch.cat([part.synthetic for part in parts]),
        torch.cat([part.blended for part in parts]),
        weights,
    )
