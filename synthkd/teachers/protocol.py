"""What a teacher is to everybody else."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, Self, TypeGuard

import torch
from torch import Tensor

from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.teachers.features import Features


class Observation(NamedTuple):
    """What the teacher showed for one batch."""

    logits: Tensor  # [B, K]
    features: Tensor | None  # [B, D] input of the last linear layer
    moments: tuple[tuple[Tensor, Tensor], ...]  # per BatchNorm layer: mean, variance of its input
    pooled: Tensor | None = None  # [B, sum of C] the spatial means of all these inputs


class Seen(NamedTuple):
    """What a network showed for one batch."""

    logits: Tensor  # [B, K]
    features: Features  # by layer, of the layers that were asked for


class Teacher(Protocol):
    """A classifier that is asked, and perhaps observed, but never altered.

    `abilities` says what it can serve: "gradients" to the images, "features" by layer, "statistics"
    of its BatchNorm layers. Images are [B, C, H, W] in 0..1, answers are logits [B, K], float32.
    """

    access: str  # full, logits or labels
    queries: int  # images that it was asked about
    names: tuple[str, ...]  # of the classes
    described: str
    digest: str  # SHA-256 of weights and input contract
    low_precision: bool  # whether the machine may compute in bfloat16

    @property
    def spec(self) -> ImageSpec:
        """The images it takes."""

    @property
    def classes(self) -> int:
        """K."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def abilities(self) -> frozenset[str]:
        """Of "gradients", "features" and "statistics", those that it has."""

    @property
    def network(self) -> Any:
        """The nn.Module that takes images and answers: for costs, and for who needs to look at
        layers."""

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What was understood of its files and answers that could be understood otherwise."""

    @property
    def independent(self) -> bool:
        """Whether several of its classes, or none, may apply to an image."""

    @property
    def reading(self) -> str:
        """How its answers are read, in words."""

    @property
    def feature_size(self) -> int | None:
        """D of `observe`'s features; None where there are none."""

    @property
    def feature_layer(self) -> str:
        """The layer that shows these features, as `teach` takes names; "" where there is none."""

    @property
    def prototypes(self) -> Tensor | None:
        """The rows of the last linear layer, [K, D]; None where features come from elsewhere."""

    @property
    def stored(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Running mean and variance [C] of every BatchNorm layer."""

    @property
    def parameters_count(self) -> int:
        """Number of weights; 0 where they are unknown."""

    def to(self, device: torch.device) -> Self:
        """Itself, on a device."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images to logits."""

    def forward_network(self, images: Tensor) -> Tensor:
        """The same by the network itself, so that gradients reach the images."""

    def teach(self, images: Tensor, layers: Sequence[str] = ()) -> Seen:
        """What a student is taught: logits without gradients, and the features of `layers`."""

    def observe(
        self, images: Tensor, *, features: bool = True, statistics: bool = True,
        pooled: bool = False,
    ) -> Observation:  # fmt: skip
        """What synthetic images are judged by, differentiable by the images."""

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..1 as the network's body takes them."""

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits as probabilities [B, K]: of one class of all, or of each class alone."""

    def check(self) -> None:
        """Refuses to go on, by an InputError, if answers since the last call were not finite and it
        has not said so yet: a GPU is waited for here, once a round, instead of at every answer."""

    def exact(self) -> AbstractContextManager[None]:
        """While the `with` lasts it answers in float32."""


def asked_freely(teacher: Teacher) -> bool:
    """Whether nobody is asked whose answers may cost: no black box, alone or among others."""
    return teacher.access == "full" and not getattr(teacher, "closed", False)


def is_teacher(given: object) -> TypeGuard[Teacher]:
    """Whether an object is a `Teacher` already, and no network that one is to be made of: it says
    what it can serve."""
    return hasattr(given, "abilities") and hasattr(given, "teach")
