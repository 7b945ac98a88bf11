"""What a replay memory offers, and what is drawn from one.

N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ReplayBatch:
    """Images from a replay memory, each with its identity.

    `answers` are the teacher's logits [N, K], or a function that gives them for `images`: it is
    asked when `logits` or `votes` are first looked at, and not before.

    `pixels` are the images, or a function that reads those of slots [N] when `images` are first
    looked at.

    `weights` [N] are what makes up for priorities, q / p of the probabilities q that an image had
    without priorities and p that it had with them (importance sampling): the mean of a loss times
    them estimates the mean without priorities. They are 1 where there are no priorities.
    """

    pixels: Tensor | Callable[[Tensor], Tensor]  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64, the class asked for (−1: none was)
    slots: Tensor  # [N] int64, where each is stored (−1: it is not)
    origins: tuple[str, ...]  # N names of where each comes from
    weights: Tensor  # [N] float32
    answers: Tensor | Callable[[Tensor], Tensor]
    seen: Tensor | None = None  # [N] int64, the votes where they are known

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, index: Tensor) -> "ReplayBatch":
        """Some of them, by their places [n]; of the others nothing is read."""
        return ReplayBatch(
            self.pixels[index] if isinstance(self.pixels, Tensor) else self.pixels,
            self.labels[index], self.slots[index],
            tuple(self.origins[place] for place in index.tolist()), self.weights[index],
            self.answers[index] if isinstance(self.answers, Tensor) else self.answers,
            None if self.seen is None else self.seen[index],
        )  # fmt: skip

    @cached_property
    def images(self) -> Tensor:
        """The images [N, C, H, W], uint8."""
        return self.pixels if isinstance(self.pixels, Tensor) else self.pixels(self.slots)

    @cached_property
    def logits(self) -> Tensor:
        """The teacher's logits [N, K]; as stored they are float16."""
        return self.answers if isinstance(self.answers, Tensor) else self.answers(self.images)

    @cached_property
    def votes(self) -> Tensor:
        """The class that the teacher sees in each image, [N] int64."""
        return self.logits.argmax(1) if self.seen is None else self.seen


class Replay(Protocol):
    """Synthetic images that the student may see again, stored or made again."""

    capacity: int  # images at most

    def __len__(self) -> int:
        """How many images it stands for: 0 means that nothing can be drawn."""

    @property
    def counts(self) -> list[int]:
        """Images per class that the teacher sees, [K]."""

    def add(self, images: Tensor, labels: Tensor, logits: Tensor, origin: str) -> None:
        """Offers uint8 images [N, C, H, W] with labels [N] (−1: none) and the teacher's logits
        [N, K]. `origin` names where they come from: a generator, or "data", "real"."""

    def draw(
        self,
        count: int,
        rng: torch.Generator,
        *,
        boundary: float = 0.0,
        shares: Mapping[str, float] = ...,
        easiest: float = 1.0,
    ) -> ReplayBatch:
        """`count` images: a share `boundary` of them where the teacher is less sure, and of each
        origin named in `shares` this share; of all images only the share `easiest` of which the
        teacher is surest."""

    def everything(self) -> ReplayBatch:
        """What is stored, in the order of its slots; nothing where no image is."""

    def update(self, slots: Tensor, priorities: Tensor) -> None:
        """Gives the images in `slots` [N] these priorities [N], finite and not negative: how often
        each is drawn is multiplied by its priority. A slot of −1 has none."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if nothing had happened."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state of the same kind."""
