"""The replay memory: synthetic images that the student may see again (catalogue D2).

N images remembered, B batch, C channels, H height, W width, K classes.
"""

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthkd.core.errors import InputError


class Remembered(NamedTuple):
    """Images as they are stored."""

    pixels: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64, the class asked for (−1: none was)
    logits: Tensor  # [N, K] float16, the teacher's

    @property
    def votes(self) -> Tensor:
        """[N] the class the teacher sees."""
        return self.logits.argmax(1)


class Memory:
    """At most `capacity` images, balanced over the classes that the teacher sees in them.

    While there is room everything is kept. Then a newcomer takes the place of the oldest image of
    the most frequent class, or of its own class if that is among the most frequent: rare classes
    are never given away.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], classes: int) -> None:
        self.capacity = capacity
        self.classes = classes
        try:
            self.pixels = torch.empty((capacity, *shape), dtype=torch.uint8)
            self.labels = torch.empty(capacity, dtype=torch.int64)
            self.logits = torch.empty((capacity, classes), dtype=torch.float16)
            self.insertion_index = torch.empty(capacity, dtype=torch.int64)
            self.origins = torch.empty(capacity, dtype=torch.int64)
        except RuntimeError:  # torch's allocator
            raise InputError(
                f"memory.capacity {capacity:,}: too many images for this machine"
            ) from None
        self.size = 0
        self.total_added = 0  # images ever offered
        self._queues: list[deque[int]] = [
            deque() for _ in range(classes)
        ]  # slots by class, oldest first
        self._cumulated: dict[object, Tensor] = {}

    def __len__(self) -> int:
        return self.size

    @property
    def counts(self) -> list[int]:
        """Images per class that the teacher sees, [K]."""
        return [len(queue) for queue in self._queues]

    def add(self, pixels: Tensor, labels: Tensor, logits: Tensor, origin: int = 0) -> None:
        """Offers uint8 images [B, C, H, W] with labels [B] and the teacher's logits [B, K].

        `origin` is a number for where they come from, see `shares`.
        """
        if self.capacity == 0 or len(pixels) == 0:
            return
        logits = logits.to(torch.float16)
        chosen: dict[int, int] = {}  # slot -> newcomer; a newcomer may lose its slot to a later one
        for newcomer, vote in enumerate(logits.argmax(1).tolist()):
            slot = self._slot_for(vote)
            self._queues[vote].append(slot)
            self.insertion_index[slot] = self.total_added
            self.total_added += 1
            chosen[slot] = newcomer
        slots, newcomers = torch.tensor(list(chosen)), torch.tensor(list(chosen.values()))
        self.pixels[slots] = pixels.cpu()[newcomers]
        self.labels[slots] = labels.cpu()[newcomers]
        self.logits[slots] = logits.cpu()[newcomers]
        self.origins[slots] = origin
        self._cumulated.clear()

    def _slot_for(self, vote: int) -> int:
        if self.size < self.capacity:
            self.size += 1
            return self.size - 1
        most = max(len(queue) for queue in self._queues)
        own = self._queues[vote]
        if len(own) == most:
            return own.popleft()
        return next(queue for queue in self._queues if len(queue) == most).popleft()

    def draw(
        self,
        count: int,
        rng: torch.Generator,
        *,
        boundary: float = 0.0,
        shares: Mapping[int, float] = MappingProxyType({}),
    ) -> Remembered:
        """`count` images, with replacement, every class that the teacher sees equally likely.

        Where `shares` names a share for an origin, images of this origin make up this share; the
        other origins divide the rest evenly. Origins without images do not count.
        A share `boundary` of them is drawn by how undecided the teacher is, 1 − (p₁ − p₂).
        A class with very few images counts as a quarter of an even share, so that none is worn out.
        """
        near = round(boundary * count)
        parts = [
            self._pick(count - near, rng, shares, by_margin=False),
            self._pick(near, rng, shares, by_margin=True),
        ]
        index = torch.cat(parts)
        return Remembered(
            self.pixels.index_select(0, index),
            self.labels[index],
            self.logits.index_select(0, index),
        )

    def _pick(
        self, count: int, rng: torch.Generator, shares: Mapping[int, float], *, by_margin: bool
    ) -> Tensor:
        if count == 0:
            return torch.empty(0, dtype=torch.int64)
        key = (by_margin, *sorted(shares.items()))
        if key not in self._cumulated:
            kept = self.everything()
            weight = self._even(kept.votes, self.origins[: self.size], shares)
            if by_margin:
                top = kept.logits.float().softmax(1).topk(2, dim=1).values
                weight = weight * (1.0 - (top[:, 0] - top[:, 1]).double() + 1e-3)
            self._cumulated[key] = weight.cumsum(0)
        cumulated = self._cumulated[key]
        draw = torch.rand(count, dtype=torch.float64, generator=rng) * cumulated[-1]
        return torch.searchsorted(cumulated, draw, right=True).clamp_max(self.size - 1)

    def _even(self, votes: Tensor, origins: Tensor, shares: Mapping[int, float]) -> Tensor:
        """Weights [N] of a draw that is even over classes, and over origins as `shares` says."""
        if not shares:
            origins = torch.zeros_like(origins)
        counts = torch.bincount(origins).tolist()
        present = [origin for origin, count in enumerate(counts) if count]
        unnamed = [origin for origin in present if origin not in shares]
        taken = sum(shares.get(origin, 0.0) for origin in present)
        rest = max(0.0, 1 - taken) / max(1, len(unnamed))
        share = {origin: shares.get(origin, rest) for origin in present}
        if not any(share.values()):  # only what was not wanted is there
            share = dict.fromkeys(present, 1.0)
        weight = torch.zeros(len(votes), dtype=torch.float64)
        for origin in present:
            of = origins == origin
            per_class = torch.bincount(votes[of], minlength=self.classes)
            floor = -(-counts[origin] // (4 * self.classes))
            even = 1.0 / per_class.clamp_min(floor).double()[votes[of]]
            weight[of] = share[origin] * even / even.sum()
        return weight

    def everything(self) -> Remembered:
        """All images, in the order of their slots."""
        return Remembered(
            self.pixels[: self.size], self.labels[: self.size], self.logits[: self.size]
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if nothing had happened."""
        kept = self.everything()
        return {
            "pixels": kept.pixels,
            "labels": kept.labels,
            "logits": kept.logits,
            "births": self.insertion_index[: self.size],
            "origins": self.origins[: self.size],
            "born": self.total_added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved memory of the same shape and at most this capacity."""
        self.size = len(state["pixels"])
        for name in ("pixels", "labels", "logits", "births", "origins"):
            getattr(self, name)[: self.size] = state[name]
        self.total_added = int(state["born"])
        self._queues = [deque() for _ in range(self.classes)]
        votes = self.everything().votes.tolist()
        for slot in self.insertion_index[: self.size].argsort().tolist():
            self._queues[votes[slot]].append(slot)
        self._cumulated.clear()
