"""Several teachers as one.

M teachers, B batch, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, recoloured, resized
from synthkd.teachers.features import Features
from synthkd.teachers.protocol import Observation, Seen, Teacher

SELECTED = "selected"  # one teacher at a time, which somebody chooses


def average(log_p: Tensor) -> Tensor:
    """Every teacher alike: logarithms of weights [M, 1, 1, 1], of log-probabilities [M, B, K, A]
    of the A answers to each of K questions."""
    return torch.full((len(log_p), 1, 1, 1), -math.log(len(log_p)), device=log_p.device)


def by_entropy(log_p: Tensor) -> Tensor:
    """A teacher counts for an image as much as it is sure: w ∝ 1 − H / log A, its entropy H over
    the largest there is, mean over the questions. Logarithms of weights [M, B, 1, 1].

    >>> sure, unsure = torch.tensor([0.999, 0.001]).log(), torch.tensor([0.5, 0.5]).log()
    >>> by_entropy(torch.stack([sure, unsure])[:, None, None]).exp().flatten().round(decimals=2)
    tensor([1., 0.])
    """
    entropy = -(log_p.exp() * log_p).sum(3, keepdim=True).mean(2, keepdim=True)
    entropy = entropy / math.log(log_p.shape[3])
    certainty = (1 - entropy).clamp_min(1e-6)
    return (certainty / certainty.sum(0)).log()


def by_agreement(log_p: Tensor) -> Tensor:
    """A teacher counts for a class as often as it goes with the others there: logarithms of weights
    [M, 1, K, A].

        w ∝ (images of the batch in which it gives the common answer a + 1) / (images of a + 2)

    by question and answer, the common answer being the likeliest one by the mean probability; 1 and
    2 stand for what is not known of an answer that the batch hardly has.
    """
    shape = log_p.shape
    votes = log_p.argmax(3)  # [M, B, K]
    common = log_p.exp().mean(0).argmax(2)  # [B, K]
    of_answer = F.one_hot(common, shape[3]).float()  # [B, K, A]
    alike = ((votes == common)[..., None] * of_answer).sum(1, keepdim=True)  # [M, 1, K, A]
    share = (alike + 1) / (of_answer.sum(0) + 2)
    return (share / share.sum(0)).log()


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "average": average, "entropy": by_entropy, "agreement": by_agreement, SELECTED: average,
}  # fmt: skip


def _named(teacher: Teacher) -> bool:
    """Whether a teacher brings names of its classes, not numbers alone."""
    return list(teacher.names) != [str(k) for k in range(teacher.classes)]


def _names_of(teachers: Sequence[Teacher]) -> tuple[str, ...]:
    """The names of teachers' classes: those of the first that brings any, numbers where none does.
    Refuses teachers that call their classes by other names."""
    named = [teacher for teacher in teachers if _named(teacher)] or [teachers[0]]
    first = named[0]
    for other in named[1:]:
        for place, (one, name) in enumerate(zip(first.names, other.names, strict=True)):
            if one.casefold() != name.casefold():
                raise InputError(
                    f"teachers of other classes cannot teach together: class {place} is "
                    f"{quoted(one)} to {quoted(first.described)} and {quoted(name)} to "
                    f"{quoted(other.described)}; if they mean the same, give both the same "
                    "class_names"
                )
    return tuple(first.names)


class EnsembleTeacher:
    """Teachers of the same classes as one, by one of `RULES`.

        p = Σ over teachers of w · p of each   (divided by its sum),   logits = log p

    and of independent classes, each a question of yes or no, the log-odds of such a p. With
    "selected" the teacher in `chosen` teaches alone, and all are averaged where nobody chose.
    Images are those of the first; for the others they are resized and recoloured, and each
    normalises as it wants. Names of the classes are those of the first that brings any; others that
    do must bring the same.

    Who can be looked into is: BatchNorm statistics are those of all who show theirs, features those
    of the first who does, and gradients come from those who pass them on, averaged; where nobody
    does, it is a black box.
    """

    def __init__(self, teachers: Sequence[Teacher], rule: str = "average") -> None:
        if rule not in RULES:
            raise InputError(
                f"a rule for several teachers is one of {', '.join(RULES)}; got {quoted(rule)}"
                f"{suggest(rule, RULES)}"
            )
        if not teachers:
            raise InputError("an ensemble needs teachers: there are none")
        first = teachers[0]
        for other in teachers[1:]:
            if (other.classes, other.independent) != (first.classes, first.independent):
                kinds = [f"{t.classes}{' independent' if t.independent else ''}"
                         for t in (first, other)]  # fmt: skip
                raise InputError(
                    f"teachers of other classes cannot teach together: {quoted(first.described)} "
                    f"has {kinds[0]}, {quoted(other.described)} {kinds[1]}"
                )
        self.teachers, self.rule = tuple(teachers), rule
        self.chosen: int | None = None
        self.open = [t for t in self.teachers if "gradients" in t.abilities]
        self.names = _names_of(teachers)
        self.described = " and ".join(t.described for t in teachers)
        text = " ".join([rule, *(t.digest for t in teachers)])
        self.digest = sha256(text.encode()).hexdigest()

    @property
    def access(self) -> str:
        """Everything where somebody can be looked into; else that of all, or answers."""
        if self.open:
            return "full"
        shown = {teacher.access for teacher in self.teachers}
        return shown.pop() if len(shown) == 1 else "logits"

    @property
    def closed(self) -> bool:
        """Whether one of them is a black box, whose answers may cost."""
        return any(teacher.access != "full" for teacher in self.teachers)

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
        """Images that it was asked about, counted once for each teacher that was asked."""
        return sum(teacher.queries for teacher in self.teachers)

    @queries.setter
    def queries(self, value: int) -> None:
        more = value - self.queries  # each counts on from its own number
        each, rest = divmod(more, len(self.teachers))
        for place, teacher in enumerate(self.teachers):
            teacher.queries += each + (place < rest)

    @property
    def spec(self) -> ImageSpec:
        """The images that the first takes."""
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
        """What any of them can serve."""
        return frozenset().union(*(teacher.abilities for teacher in self.teachers))

    @property
    def network(self) -> Any:
        """That of the first who can be looked into, else the first one's."""
        return self._shown.network

    @property
    def shown(self) -> int:
        """Which of them can be looked into: the first who can."""
        found = (i for i, t in enumerate(self.teachers) if "features" in t.abilities)
        return next(found, 0)

    @property
    def _shown(self) -> Teacher:
        return self.teachers[self.shown]

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Those of all."""
        return tuple(note for teacher in self.teachers for note in teacher.notes)

    @property
    def reading(self) -> str:
        """How their answers are read."""
        return f"{len(self.teachers)} teachers' probabilities by {self.rule}"

    @property
    def independent(self) -> bool:
        """Whether several classes may apply to an image."""
        return self.teachers[0].independent

    @property
    def feature_size(self) -> int | None:
        """Of the one whose features are shown."""
        return self._shown.feature_size

    @property
    def feature_layer(self) -> str:
        """Of the one whose features are shown."""
        return self._shown.feature_layer

    @property
    def prototypes(self) -> Tensor | None:
        """Of the one whose features are shown."""
        return self._shown.prototypes

    @property
    def stored(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Running mean and variance of every BatchNorm layer of all."""
        return tuple(pair for teacher in self.teachers for pair in teacher.stored)

    @property
    def parameters_count(self) -> int:
        """Weights of all of them."""
        return sum(teacher.parameters_count for teacher in self.teachers)

    def to(self, device: torch.device) -> "EnsembleTeacher":
        """Itself, its networks on a device."""
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def fitted(self, images: Tensor, teacher: Teacher) -> Tensor:
        """Images [B, C, H, W] as a teacher takes them; gradients pass."""
        channels, height, width = teacher.spec.shape
        return recoloured(resized(images, (height, width)), channels)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, K], by all."""
        return self.joined([t(self.fitted(images, t)) for t in self.teachers])

    def forward_network(self, images: Tensor) -> Tensor:
        """The same by the networks themselves: of those through which gradients pass, if any."""
        asked = self.open or self.teachers
        return self.joined([t.forward_network(self.fitted(images, t)) for t in asked])

    def joined(self, answers: Sequence[Tensor]) -> Tensor:
        """Logits of several teachers [B, K] each as one, by the rule."""
        if len(answers) == 1:
            return answers[0]
        logits = torch.stack([answer.float() for answer in answers])  # [M, B, K]
        if self.independent:
            log_p = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], 3)  # no, yes
        else:
            log_p = logits.log_softmax(2)[:, :, None]
        found = (log_p + RULES[self.rule](log_p.detach())).logsumexp(0)  # [B, K or 1, A]
        if self.independent:
            return found[..., 1] - found[..., 0]
        return found[:, 0] - found[:, 0].logsumexp(1, keepdim=True)

    @torch.no_grad()
    def teach(self, images: Tensor, layers: Sequence[str] = ()) -> Seen:
        """Logits without gradients, of all or of the chosen one, and the layers of the one who
        shows his."""
        shown, asked = self._shown, self.teachers
        if self.rule == SELECTED and self.chosen is not None:
            asked = (self.teachers[self.chosen],)
        answers: list[Tensor] = []
        features: Features = {}
        for teacher in asked:
            seen = teacher.teach(self.fitted(images, teacher), layers if teacher is shown else ())
            answers.append(seen.logits)
            features |= seen.features
        if layers and shown not in asked:
            features = shown.teach(self.fitted(images, shown), layers).features
        return Seen(self.joined(answers), features)

    def observe(
        self, images: Tensor, *, features: bool = True, statistics: bool = True,
        pooled: bool = False,
    ) -> Observation:  # fmt: skip
        """Logits of those through which gradients pass, the statistics of all who have them, and
        features of the one who shows his."""
        asked, shown = self.open or list(self.teachers), self._shown
        found = [
            t.observe(
                self.fitted(images, t), features=features and t is shown, statistics=statistics,
                pooled=pooled and t is shown,
            )
            for t in asked
        ]  # fmt: skip
        own = found[asked.index(shown)] if shown in asked else found[0]
        moments = tuple(pair for each in found for pair in each.moments)
        logits = self.joined([each.logits for each in found])
        return Observation(logits, own.features, moments, own.pooled)

    def normalise(self, images: Tensor) -> Tensor:
        """As the network of the one who can be looked into takes them."""
        return self._shown.normalise(self.fitted(images, self._shown))

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`, but for its size."""
        return self._shown.denormalise(normalised)

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
