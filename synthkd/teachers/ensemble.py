"""Several teachers as one.

B batch, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.teachers.protocol import Observation, Seen, Teacher


class AveragedTeacher:
    """Teachers of the same images and classes, whose answers are averaged.

        logits = log( mean over teachers of softmax(logits of each) )

    and of independent classes the log-odds of the mean probability. Gradients reach the images
    through all of them. What lies inside is not offered: an average has no layers and no statistics
    of its own.
    """

    described = "an average of teachers"

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        first = teachers[0]
        for other in teachers[1:]:
            if (other.spec.shape, other.classes, other.independent) != (
                first.spec.shape, first.classes, first.independent
            ):  # fmt: skip
                raise InputError(
                    f"teachers of other images or classes cannot be averaged: {first.described} "
                    f"takes {list(first.spec.shape)} and has {first.classes} classes, "
                    f"{other.described} {list(other.spec.shape)} and {other.classes}"
                )
        self.teachers = tuple(teachers)
        shown = {teacher.access for teacher in teachers}
        self.access = shown.pop() if len(shown) == 1 else "logits"
        self.names = first.names
        self.digest = sha256(" ".join(t.digest for t in teachers).encode()).hexdigest()

    @property
    def low_precision(self) -> bool:
        """Whether the machine may compute in bfloat16."""
        return self.teachers[0].low_precision

    @low_precision.setter
    def low_precision(self, value: bool) -> None:
        for teacher in self.teachers:
            teacher.low_precision = value

    @property
    def queries(self) -> int:
        """Images that it was asked about: each of its teachers was."""
        return self.teachers[0].queries

    @queries.setter
    def queries(self, value: int) -> None:
        more = value - self.queries  # each counts on from its own number
        for teacher in self.teachers:
            teacher.queries += more

    @property
    def spec(self) -> ImageSpec:
        """The images that they take."""
        return self.teachers[0].spec

    @property
    def classes(self) -> int:
        """K."""
        return self.teachers[0].classes

    @property
    def device(self) -> torch.device:
        """Where the first computes."""
        return self.teachers[0].device

    @property
    def abilities(self) -> frozenset[str]:
        """Gradients, where all of them pass them on."""
        both = frozenset.intersection(*(teacher.abilities for teacher in self.teachers))
        return both & {"gradients"}

    @property
    def network(self) -> Any:
        """The first one's, for costs."""
        return self.teachers[0].network

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Those of all."""
        return tuple(note for teacher in self.teachers for note in teacher.notes)

    @property
    def reading(self) -> str:
        """How their answers are read."""
        return f"the mean of {len(self.teachers)} teachers' probabilities"

    @property
    def independent(self) -> bool:
        """Whether several classes may apply to an image."""
        return self.teachers[0].independent

    feature_size = None
    feature_layer = ""
    prototypes = None
    stored: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def parameters_count(self) -> int:
        """Weights of all of them."""
        return sum(teacher.parameters_count for teacher in self.teachers)

    def to(self, device: torch.device) -> "AveragedTeacher":
        """Itself, its networks on a device."""
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, K]."""
        return self._mean([teacher(images) for teacher in self.teachers])

    def forward_network(self, images: Tensor) -> Tensor:
        """The same by the networks themselves."""
        return self._mean([teacher.forward_network(images) for teacher in self.teachers])

    def _mean(self, answers: Sequence[Tensor]) -> Tensor:
        logits = torch.stack(list(answers))  # [teachers, B, K]
        if self.independent:
            return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
        return logits.log_softmax(2).logsumexp(0) - math.log(len(answers))

    @torch.no_grad()
    def teach(self, images: Tensor, layers: Sequence[str] = ()) -> Seen:
        """Logits without gradients; it has no layers."""
        return Seen(self(images), {})

    def observe(
        self, images: Tensor, *, features: bool = True, statistics: bool = True,
        pooled: bool = False,
    ) -> Observation:  # fmt: skip
        """Logits, differentiable by the images, and nothing of what lies inside."""
        return Observation(self.forward_network(images), None, ())

    def normalise(self, images: Tensor) -> Tensor:
        """As the first teacher's network takes them."""
        return self.teachers[0].normalise(images)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return self.teachers[0].denormalise(normalised)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits as probabilities [B, K]."""
        return self.teachers[0].probabilities(logits)

    def check(self) -> None:
        """Refuses to go on where one of them does."""
        for teacher in self.teachers:
            teacher.check()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """While the `with` lasts they answer in float32."""
        with ExitStack() as stack:
            for teacher in self.teachers:
                stack.enter_context(teacher.exact())
            yield
