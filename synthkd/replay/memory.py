"""The replay memory: synthetic images that the student may see again.

N images remembered, B batch, C channels, H height, W width, K classes.
"""

from collections import deque
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.filerows import FileRows
from synthkd.core.logits import as_half, margin_of
from synthkd.core.states import Rows
from synthkd.replay.protocol import ReplayBatch

NEAREST = 5  # images of a class that the teacher sees in none
AT_ONCE = 8192  # answers that are looked at as float32
RESIDENT = 640 << 20  # bytes of images that may be held in memory
_Kind = tuple[bool, float, tuple[tuple[str, float], ...]]  # of a draw: by margin? easiest, shares


class Memory:
    """At most `capacity` images, balanced over the classes that the teacher sees in them.

    While there is room everything is kept. Then a newcomer takes the place of the oldest image of
    the most frequent class, or of its own class if that is among the most frequent: rare classes
    are never given away.

    Images of more than `RESIDENT` bytes all lie in a file of `folder` (None: where the system
    keeps such files), see `FileRows`.

    Logits are kept as float16, cut to its range; the class that the teacher sees is kept beside
    them, as it was before they were rounded. Origins are kept by name. Of `independent` classes
    several, or none, may apply to an image: margins are judged accordingly (`margin_of`).
    """

    def __init__(
        self, capacity: int, shape: tuple[int, int, int], classes: int, folder: Path | None = None,
        *, independent: bool = False,
    ) -> None:  # fmt: skip
        self.classes, self.shape, self.folder = classes, shape, folder
        self.independent = independent
        self.size = 0
        self.total_added = 0  # images ever offered
        self.names: list[str] = []  # of origins, in the order in which they came
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        try:
            self.images: Tensor | FileRows
            held = min(capacity, images_held(self.shape))
            self.images = torch.empty((held, *self.shape), dtype=torch.uint8)
            self.labels = torch.empty(capacity, dtype=torch.int64)
            self.logits = torch.empty((capacity, self.classes), dtype=torch.float16)
            self.votes = torch.empty(capacity, dtype=torch.int64)
            self.insertion_index = torch.empty(capacity, dtype=torch.int64)
            self.origins = torch.empty(capacity, dtype=torch.int64)  # positions in `names`
        except RuntimeError:  # torch's allocator
            raise InputError(
                f"memory.capacity {capacity:,}: too many images for this machine"
            ) from None
        self.priorities: Tensor | None = None  # [capacity] float64; None: all are 1
        self._queues: list[deque[int]] = [
            deque() for _ in range(self.classes)
        ]  # slots by class, oldest first
        self._evened: dict[_Kind, Tensor] = {}  # weights of a draw without priorities
        self._cumulated: dict[_Kind, tuple[Tensor, float]] = {}
        self._margin: Tensor | None = None

    def __len__(self) -> int:
        return self.size

    def keep_in(self, folder: Path) -> None:
        """Where the file lies, if there is to be one; to be told before there is."""
        self.folder = folder

    @property
    def counts(self) -> list[int]:
        """Images per class that the teacher sees, [K]."""
        return [len(queue) for queue in self._queues]

    def add(self, images: Tensor, labels: Tensor, logits: Tensor, origin: str) -> None:
        """Offers uint8 images [N, C, H, W] with labels [N] and the teacher's logits [N, K].

        `origin` names where they come from, see `shares`. A newcomer has the highest priority there
        is (Schaul et al. 2016, https://arxiv.org/abs/1511.05952, algorithm 1), 1 at first.
        """
        if self.capacity == 0 or len(images) == 0:
            return
        if origin not in self.names:
            self.names.append(origin)
        votes = logits.argmax(1).cpu()
        highest = self.priorities[: self.size].max() if self.priorities is not None else None
        chosen: dict[int, int] = {}  # slot -> newcomer; a newcomer may lose its slot to a later one
        for newcomer, vote in enumerate(votes.tolist()):
            slot = self._slot_for(vote)
            self._queues[vote].append(slot)
            self.insertion_index[slot] = self.total_added
            self.total_added += 1
            chosen[slot] = newcomer
        slots, newcomers = torch.tensor(list(chosen)), torch.tensor(list(chosen.values()))
        self._make_room()
        self.images[slots] = images.cpu()[newcomers]
        self.labels[slots] = labels.cpu()[newcomers]
        self.logits[slots] = as_half(logits).cpu()[newcomers]
        self.votes[slots] = votes[newcomers]
        self.origins[slots] = self.names.index(origin)
        if self.priorities is not None and highest is not None:
            self.priorities[slots] = highest
        self._evened.clear()
        self._cumulated.clear()
        self._margin = None

    def _make_room(self) -> None:
        """Moves the images to a file where they are more than may be held."""
        if isinstance(self.images, Tensor) and self.size > len(self.images):
            filed = FileRows(self.capacity, self.shape, torch.uint8, self.folder)
            filed[: len(self.images)] = self.images
            self.images = filed

    def _slot_for(self, vote: int) -> int:
        if self.size < self.capacity:
            self.size += 1
            return self.size - 1
        most = max(len(queue) for queue in self._queues)
        own = self._queues[vote]
        if len(own) == most:
            return own.popleft()
        return next(queue for queue in self._queues if len(queue) == most).popleft()

    def update(self, slots: Tensor, priorities: Tensor) -> None:
        """Gives the images in `slots` [N] these priorities [N], by which `draw` multiplies how
        often each is drawn; of a slot that comes twice the last counts, one of −1 is passed over.

        A slot names an image until the next `add`. Where every priority is 0 they count for
        nothing. Raises InputError where one is not finite, or negative.
        """
        slots, priorities = slots.cpu(), priorities.detach().cpu().double()
        if not bool((priorities.isfinite() & (priorities >= 0)).all()):
            raise InputError("replay priorities: they must be finite and at least 0")
        stored = slots >= 0
        if not bool(stored.any()):
            return
        if int(slots.max()) >= self.size:
            raise InputError(f"replay priorities: there are {self.size:,} slots, not {slots.max()}")
        if self.priorities is None:
            self.priorities = torch.ones(self.capacity, dtype=torch.float64)
        # of an index that comes twice numpy takes the last value; torch promises nothing
        self.priorities.numpy()[slots[stored].numpy()] = priorities[stored].numpy()
        self._cumulated.clear()

    def draw(
        self,
        count: int,
        rng: torch.Generator,
        *,
        boundary: float = 0.0,
        shares: Mapping[str, float] = MappingProxyType({}),
        easiest: float = 1.0,
    ) -> ReplayBatch:
        """`count` images, with replacement, every class that the teacher sees equally likely.

        Where `shares` names a share for an origin, images of this origin make up this share; the
        other origins divide the rest evenly. Origins without images do not count.
        A share `boundary` of them is drawn by how undecided the teacher is, 1 − its margin.
        A class with very few images counts as a quarter of an even share, so that none is worn out.
        Below 1, only the share `easiest` of the images of each class counts, those with the largest
        margin.
        All this is multiplied by the priorities, if `update` has set any.
        """
        near = round(boundary * count)
        parts = [
            self._pick(count - near, rng, shares, easiest, by_margin=False),
            self._pick(near, rng, shares, easiest, by_margin=True),
        ]
        slots = torch.cat([slots for slots, _ in parts])
        return self._batch(slots, torch.cat([weights for _, weights in parts]))

    def distinct(
        self, count: int, rng: torch.Generator, *,
        shares: Mapping[str, float] = MappingProxyType({}),
    ) -> ReplayBatch:  # fmt: skip
        """`count` images as `draw` has them, but none twice: each is drawn from those that are
        left. Origins of share 0 come only once the others are used up; there are never more images
        than are remembered.

        The largest of log(u) / weight, u even in 0..1 (Efraimidis & Spirakis 2006,
        https://doi.org/10.1016/j.ipl.2005.11.003).
        """
        weight, _ = self._prioritised(self._weights(shares, 1.0, by_margin=False))
        keys = torch.rand(self.size, dtype=torch.float64, generator=rng).log_()
        slots = (keys / weight.clamp_min(1e-300)).topk(min(count, self.size)).indices
        return self._batch(slots, torch.ones(len(slots)))

    def nearest(self, labels: Tensor, rng: torch.Generator, *, without: str = "") -> ReplayBatch:
        """For each of the classes `labels` [N] an image in which the teacher sees it, drawn at
        random, and none twice for a class while there are others; where it sees a class in too few,
        the rest are drawn from those of which it thinks most of it (by logit less the highest one),
        as many as are asked for and at least NEAREST. Those of the origin `without` only if there
        are no others, or too few of the class."""
        own = torch.zeros(self.size, dtype=torch.bool)
        if without in self.names:
            own = self.origins[: self.size] == self.names.index(without)
            own &= ~own.all()
        kept = (~own).nonzero()[:, 0]
        votes, labels = self.votes[kept], labels.cpu()
        slots, highest = torch.zeros_like(labels), None
        for label in torch.unique(labels).tolist():
            wanted = (labels == label).nonzero()[:, 0]
            there = [kept[votes == label]]
            if len(there[0]) < len(wanted):
                if highest is None:
                    highest = self.logits[: self.size].amax(1)[kept].float()
                lacking = self.logits[kept, label].float() - highest
                lacking[votes == label] = -torch.inf
                most = min(max(NEAREST, len(wanted)), len(kept) - len(there[0]))
                reached = (own & (self.votes[: self.size] == label)).nonzero()[:, 0]
                there.append(torch.cat([kept[lacking.topk(most).indices], reached]))
            order = torch.cat([some[torch.randperm(len(some), generator=rng)] for some in there])
            slots[wanted] = order[torch.arange(len(wanted)) % len(order)]
        return self._batch(slots, torch.ones(len(slots)))

    def counts_of(self, origin: str) -> Tensor:
        """Images of an origin per class that was asked for, or that the teacher sees where none
        was, [K]: a class that it never sees does not stay the rarest for ever."""
        if origin not in self.names:
            return torch.zeros(self.classes, dtype=torch.int64)
        of = self.origins[: self.size] == self.names.index(origin)
        asked, seen = self.labels[: self.size][of], self.votes[: self.size][of]
        asked = torch.where((asked >= 0) & (asked < self.classes), asked, seen)
        return torch.bincount(asked, minlength=self.classes)

    def _batch(self, slots: Tensor, weights: Tensor) -> ReplayBatch:
        return ReplayBatch(
            self._read(slots),
            self.labels[slots],
            slots,
            self._named(self.origins[slots]),
            weights,
            self.logits.index_select(0, slots),
            self.votes[slots],
        )

    def _read(self, slots: Tensor) -> Tensor:
        """Images [N, C, H, W] of the slots [N]."""
        if isinstance(self.images, FileRows):
            return self.images[slots]
        return self.images.index_select(0, slots)

    def _named(self, origins: Tensor) -> tuple[str, ...]:
        return tuple(self.names[code] for code in origins.tolist())

    def _pick(
        self, count: int, rng: torch.Generator, shares: Mapping[str, float], easiest: float, *,
        by_margin: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Slots [count], and the weights [count] that make up for the priorities."""
        if count == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        even = self._weights(shares, easiest, by_margin=by_margin)
        kind = _kind(shares, easiest, by_margin=by_margin)
        if kind not in self._cumulated:
            weight, mean = self._prioritised(even)
            self._cumulated[kind] = weight.cumsum(0), mean
        cumulated, mean = self._cumulated[kind]
        draw = torch.rand(count, dtype=torch.float64, generator=rng) * cumulated[-1]
        slots = torch.searchsorted(cumulated, draw, right=True).clamp_max(self.size - 1)
        if self.priorities is None or not mean:
            return slots, torch.ones(count)
        return slots, (mean / self.priorities[slots]).float()

    def _weights(self, shares: Mapping[str, float], easiest: float, *, by_margin: bool) -> Tensor:
        """Weights [N] of a draw without priorities."""
        kind = _kind(shares, easiest, by_margin=by_margin)
        if kind not in self._evened:
            for old in [k for k in self._evened if k[0] == by_margin and k[1] != easiest]:
                del self._evened[old]  # what grows with the run is wanted once
                self._cumulated.pop(old, None)
            weight = self._even(self.votes[: self.size], self.origins[: self.size], shares)
            if by_margin:
                weight = weight * (1.0 - self._margins() + 1e-3)
            if easiest < 1:
                weight = weight * self._among_easiest(easiest)
            self._evened[kind] = weight
        return self._evened[kind]

    def _margins(self) -> Tensor:
        """Those of the teacher's answers, [N] float64."""
        if self._margin is None:
            parts = torch.split(self.logits[: self.size], AT_ONCE)
            found = [margin_of(part.float(), independent=self.independent) for part in parts]
            self._margin = torch.cat(found).double()
        return self._margin

    def _among_easiest(self, share: float) -> Tensor:
        """1 for the share of each class's images with the largest margins, at least one of each,
        else 0: [N]."""
        votes, margins = self.votes[: self.size], self._margins()
        order = margins.argsort(descending=True, stable=True)
        order = order[votes[order].argsort(stable=True)]  # by class, the easiest first
        counts = torch.bincount(votes, minlength=self.classes)
        begins = counts.cumsum(0) - counts
        rank = torch.arange(self.size) - begins[votes[order]]
        kept = torch.zeros(self.size, dtype=torch.float64)
        kept[order] = (rank < (share * counts[votes[order]]).ceil()).double()
        return kept

    def _prioritised(self, even: Tensor) -> tuple[Tensor, float]:
        """Weights [N] of a draw, and the mean priority of what is drawn without them; 0 where
        priorities count for nothing: there are none, or none above 0."""
        if self.priorities is not None:
            weight = even * self.priorities[: self.size]
            if mean := float(weight.sum() / even.sum()):
                return weight, mean
        return even, 0.0

    def _even(self, votes: Tensor, origins: Tensor, shares: Mapping[str, float]) -> Tensor:
        """Weights [N] of a draw that is even over classes, and over origins as `shares` says."""
        if not shares:
            origins = torch.zeros_like(origins)
        counts = torch.bincount(origins).tolist()
        present = [origin for origin, count in enumerate(counts) if count]
        named = {code: shares[name] for code, name in enumerate(self.names) if name in shares}
        unnamed = [origin for origin in present if origin not in named]
        taken = sum(named.get(origin, 0.0) for origin in present)
        rest = max(0.0, 1 - taken) / max(1, len(unnamed))
        share = {origin: named.get(origin, rest) for origin in present}
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

    def everything(self) -> ReplayBatch:
        """All images, in the order of their slots; those of a file are read when they are looked
        at."""
        kept = slice(self.size)
        return ReplayBatch(
            self._read if isinstance(self.images, FileRows) else self.images[kept],
            self.labels[kept],
            torch.arange(self.size),
            self._named(self.origins[kept]),
            torch.ones(self.size),
            self.logits[kept],
            self.votes[kept],
        )

    _COLUMNS = ("images", "labels", "logits", "votes", "origins")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if nothing had happened; `rows` are views of the memory."""
        kept = slice(self.size)
        columns = {
            name: column.first(self.size) if isinstance(column, FileRows) else column[kept]
            for name in self._COLUMNS
            for column in [getattr(self, name)]
        }
        return {
            "rows": Rows(self.insertion_index[kept], columns),
            "names": list(self.names),
            "total_added": self.total_added,
            "capacity": self.capacity,
            "priorities": None if self.priorities is None else self.priorities[kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved memory of images of the same shape, with its capacity."""
        self._allocate(int(state["capacity"]))
        rows: Rows = state["rows"]
        self.size = len(rows.numbers)
        if self.size > len(self.images):
            self.images = FileRows(self.capacity, self.shape, torch.uint8, self.folder)
        kept = slice(self.size)
        self.insertion_index[kept] = rows.numbers
        for places, columns in rows.parts():
            for name in self._COLUMNS:
                getattr(self, name)[places] = columns[name]
        self.names = [str(name) for name in state["names"]]
        self.total_added = int(state["total_added"])
        if state["priorities"] is not None:
            self.priorities = torch.ones(self.capacity, dtype=torch.float64)
            self.priorities[kept] = state["priorities"]
        votes = self.votes[kept].tolist()
        for slot in self.insertion_index[kept].argsort().tolist():
            self._queues[votes[slot]].append(slot)


def _kind(shares: Mapping[str, float], easiest: float, *, by_margin: bool) -> _Kind:
    return by_margin, easiest, tuple(sorted(shares.items()))


def images_held(shape: tuple[int, int, int]) -> int:
    """How many images [C, H, W] are held in memory; of more all lie in a file.

    >>> images_held((3, 32, 32)), images_held((3, 224, 224))
    (218453, 4458)
    """
    return RESIDENT // prod(shape)
