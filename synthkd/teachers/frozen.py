"""The frozen teacher: asked and observed, never altered.

B batch, C channels of a layer, D features, K classes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, in_cache
from synthkd.core.logits import of_decisions, of_votes
from synthkd.core.memory import in_fitting_parts
from synthkd.networks.classifier import Classifier
from synthkd.teachers.features import (
    Note,
    averaged,
    embedding_layer,
    features_of,
    hooked,
    layer_named,
    module_named,
)
from synthkd.teachers.folded import folded_copy
from synthkd.teachers.moments import moments
from synthkd.teachers.protocol import Observation, Seen


class FrozenTeacher(nn.Module):
    """A frozen classifier: eval mode and weights are fixed for good, gradients reach only the
    images.

    `low_precision` lets the machine compute in bfloat16; answers are float32 all the same. Where no
    gradient is asked for, a CPU then answers from a folded copy (`folded_copy`), unless a first
    test against float32 forbids it: `fast` and `folded_reason` tell.

    `access` "logits" promises that no gradient passes and that nothing inside is looked at; with
    "labels" the answer is the class it names, as smoothed logits (`logits.of_votes`). `queries`
    counts the images it was asked about.
    """

    def __init__(
        self, classifier: Classifier, *, names: tuple[str, ...] = (), described: str = "teacher",
        access: str = "full", features_at: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.access = access
        self.queries, self.parts = 0, 1  # images; parts of a batch that fits into memory
        self.classifier = classifier.requires_grad_(False).eval().arranged()
        self.names = names or tuple(str(k) for k in range(classifier.classes))
        self.described = described
        self.low_precision = False
        self.folded_reason = ""  # empty until it is tried
        self._folded: Callable[[Tensor], Tensor] | None = None
        self.norms: list[nn.modules.batchnorm._BatchNorm] = [
            m
            for m in classifier.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
            if access == "full"
        ]
        self._unsound: Tensor | None = None  # of a device that is not waited for: see `check`
        self.head: nn.Linear | None = None  # the last layer, if it takes vectors [B, D]
        self.feature_module = self._module(features_at) if features_at else None
        self.feature_layer = (
            features_at  # of the body, as `features_of` names it; "": there is none
        )
        self.digest = digest_of(classifier)
        super().train(False)
        self._look_inside(torch.zeros(2, *self.spec.shape, device=self.device))
        self.feature_size = self._feature_size()
        self.queries = 0
        if digest_of(classifier) != self.digest:
            raise InputError(
                "the teacher changes when it is asked: export it in eval mode (model.eval())"
            )

    def _module(self, name: str) -> nn.Module:
        """A module of the network by its name."""
        if self.access != "full":
            raise InputError("--teacher.features looks inside, and --teacher-access forbids it")
        try:
            return module_named(dict(self.classifier.body.named_modules()), name)
        except InputError as error:
            raise InputError(f"--teacher.features: {error}") from None

    @torch.no_grad()
    def _feature_size(self) -> int | None:
        """D, or None where there are no features: the last layer is not linear, and none is
        named."""
        if self.feature_module is None:
            return self.head.in_features if self.head else None
        blank = torch.zeros(2, *self.spec.shape, device=self.device)
        seen = self.observe(blank, statistics=False).features
        return seen.shape[1] if seen is not None else None

    @torch.no_grad()
    def _look_inside(self, images: Tensor) -> None:
        """Orders the norms as images [B, C, H, W] pass them, and finds the head: of the linear
        layers with an output for each class the last that they pass, if it is given a vector an
        image. What rests in eval mode (heads for training alone) is left out."""
        if self.access != "full":
            self.forward_network(images)
            return
        passed: dict[nn.modules.batchnorm._BatchNorm, None] = {}
        body, ask = self.classifier.body, self.forward_network
        with hooked(inputs=[(norm, partial(_note_passed, passed, norm)) for norm in self.norms]):
            layer = embedding_layer(body, images, self.classifier.all_classes, ask)
        self.norms = list(passed)
        if layer:
            self.head = cast(nn.Linear, layer_named(dict(body.named_modules()), layer)[0])
        self.feature_layer = self.feature_layer or layer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.classifier.mean.device

    @property
    def network(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    @property
    def fast(self) -> bool:
        """Whether a folded copy answers."""
        return self._folded is not None

    @property
    def abilities(self) -> frozenset[str]:
        """Of "gradients", "features" and "statistics", those that it has."""
        if self.access != "full":
            return frozenset()
        statistics = ("statistics",) if self.norms else ()
        return frozenset(("gradients", "features", *statistics))

    @property
    def spec(self) -> ImageSpec:
        """The images it takes."""
        return self.classifier.spec

    @property
    def classes(self) -> int:
        """K."""
        return self.classifier.classes

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What was understood of the files and answers that could be understood otherwise."""
        return self.classifier.notes

    def probabilities(self, logits: Tensor) -> Tensor:
        """Its logits [B, K] as probabilities: of one class of all, or of each class alone."""
        return self.classifier.probabilities(logits)

    @property
    def reading(self) -> str:
        """How its answers are read, in words."""
        return str(self.classifier.reading)

    @property
    def independent(self) -> bool:
        """Whether several of its classes, or none, may apply to an image."""
        return self.classifier.independent

    @property
    def prototypes(self) -> Tensor | None:
        """The rows of the last linear layer, [K, D]; None where features come from elsewhere, or
        where a class stands for all others."""
        if self.head is None or self.feature_module is not None or self.classifier.others:
            return None
        return (
            self.head.weight[list(self.classifier.only)]
            if self.classifier.only
            else (self.head.weight)
        )

    @property
    def stored(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Running mean and variance [C] of every BatchNorm layer, in the order of `observe`'s
        moments."""
        return tuple((m.running_mean, m.running_var) for m in self.norms)  # type: ignore[misc]

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.classifier.parameters())

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a teacher stays in eval mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in 0..1 to logits [B, K], float32."""
        traced = torch.is_grad_enabled() and images.requires_grad
        if traced or self.access != "full":  # who may be far away is asked once for a batch
            return self.forward_network(images)
        answer: Callable[[Tensor], Tensor] = self.forward_network
        if self.low_precision and images.device.type == "cpu" and not self.classifier.reading.exact:
            if not self.folded_reason:
                self._build_folded_copy()
            if self._folded is not None:
                self.queries += len(images)
                answer = self._folded
        logits = self._in_parts(in_cache(images), lambda part: Seen(answer(part), {})).logits
        if answer is self._folded:
            self._check_answer(images, logits)
        return logits

    def _in_parts(self, batches: Sequence[Tensor], ask: Callable[[Tensor], Seen]) -> Seen:
        """What it shows of batches without gradients; where there is no memory for one of them, of
        halves, then quarters, and so from then on."""

        def asked(parts: int) -> Seen:
            some = [
                ask(part) for batch in batches
                for part in torch.split(batch, max(1, len(batch) // parts))
            ]  # fmt: skip
            if len(some) == 1:
                return some[0]
            shown = {name: torch.cat([s.features[name] for s in some]) for name in some[0].features}
            return Seen(torch.cat([s.logits for s in some]), shown)

        def undo() -> None:
            self.queries = before

        before, most = self.queries, max(map(len, batches))
        seen, self.parts = in_fitting_parts(asked, self.parts, max(self.parts, most), undo)
        return seen

    def forward_network(self, images: Tensor) -> Tensor:
        """The same by the network itself, whose layers can be watched."""
        self.queries += len(images)
        if self.access != "full":
            images = images.detach()
        low = self.low_precision and not self.classifier.reading.exact
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.classifier(images)
        self._check_answer(images, logits)
        return self._restrict(logits.float())

    def _check_answer(self, images: Tensor, logits: Tensor) -> None:
        """Refuses what no classifier answers: it may have been well when it was first asked. What
        lies on a GPU is judged there, and refused by `check`."""
        if logits.shape != (len(images), self.classes):
            raise InputError(
                f"the teacher {quoted(self.described)} answers {list(logits.shape)} to "
                f"{len(images)} images, and had {self.classes} classes when it was first asked"
            )
        if logits.device.type == "cpu":
            if not logits.isfinite().all() and images.isfinite().all():
                self._refuse_numbers()
            return
        unsound = ~logits.isfinite().all() & images.isfinite().all()
        self._unsound = unsound if self._unsound is None else self._unsound | unsound

    def check(self) -> None:
        """Refuses to go on, by an InputError, if answers since the last call were not finite. To be
        called once a round: it waits for the device."""
        unsound, self._unsound = self._unsound, None
        if unsound is not None and unsound:
            self._refuse_numbers()

    def _refuse_numbers(self) -> NoReturn:
        raise InputError(
            f"the teacher {quoted(self.described)} answers NaN or infinity to some images"
        )

    def _restrict(self, logits: Tensor) -> Tensor:
        """What may be known of an answer."""
        if self.access != "labels":
            return logits
        if self.classifier.independent:
            return of_decisions(logits > 0)
        return of_votes(logits.argmax(1), self.classes)

    @torch.no_grad()
    def _build_folded_copy(self) -> None:
        """Tries the folded copy on noise and on smooth images; keeps it if it answers as float32
        does: 97 in 100 votes, and no logit further off than 5 % of the largest."""
        shape = self.spec.shape
        rng = torch.Generator().manual_seed(0)
        count = max(8, 128 * 32**2 // max(32**2, shape[1] * shape[2]))
        noise, coarse = torch.rand((count, *shape), generator=rng), (count, shape[0], 4, 4)
        smooth = F.interpolate(torch.rand(coarse, generator=rng), shape[1:], mode="bicubic")
        images = torch.cat([noise, smooth.clamp(0, 1)])
        before = self.queries
        with self.exact():
            exact = self.forward_network(images)
        self.queries = before  # asked about nothing of a run
        try:
            quick = folded_copy(self.classifier)
            found = quick(images)
        except Exception as error:  # whatever tracing or folding the user's network raises
            self.folded_reason = f"no folded copy: {type(error).__name__}: {quoted(error, 60)}"
            return
        alike = float((found.argmax(1) == exact.argmax(1)).float().mean())
        size = (exact - exact.mean(1, keepdim=True)).abs().max().clamp_min(1e-12)
        off = float((found - exact).abs().max() / size)
        if alike >= 0.97 and off <= 0.05:
            self._folded = quick
        kind = "a" if self._folded else "no"
        self.folded_reason = f"{kind} folded bfloat16 copy: {alike:.1%} same votes, {off:.1%} off"

    @contextmanager
    def exact(self) -> Iterator[None]:
        """While the `with` lasts it answers in float32."""
        before, self.low_precision = self.low_precision, False
        try:
            yield
        finally:
            self.low_precision = before

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..1 as the body takes them: (x − mean) / std."""
        return (images - self.classifier.mean) / self.classifier.std

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return normalised * self.classifier.std + self.classifier.mean

    @torch.no_grad()
    def teach(self, images: Tensor, layers: Sequence[str] = ()) -> Seen:
        """Logits [B, K] without gradients, and the features of `layers`, as `features_of` names
        them below the classifier's body."""
        if not layers:
            return Seen(self(images), {})

        def shown(images: Tensor) -> Seen:
            with features_of(self.classifier.body, layers) as seen:
                logits = self.forward_network(images)
            return Seen(logits, seen)

        return self._in_parts([images], shown)

    def observe(
        self,
        images: Tensor,
        *,
        features: bool = True,
        statistics: bool = True,
        pooled: bool = False,
    ) -> Observation:
        """Logits, features and BatchNorm statistics of one batch, all differentiable by the
        images; with `pooled` also each image's own means."""
        seen: dict[str, Tensor] = {}
        found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        means: dict[nn.Module, Tensor] = {}

        def keep(given: Tensor) -> None:
            seen["features"] = given.float().flatten(1)

        def note(output: Any) -> None:
            seen["features"] = averaged(output).float()

        def tap(norm: nn.Module, given: Tensor) -> Tensor:
            x, mean, var = moments(given)
            found[norm] = (mean, var)
            return x

        def pool(norm: nn.Module, given: Tensor) -> None:
            means[norm] = given.float().reshape(*given.shape[:2], -1).mean(2)

        inputs: list[tuple[nn.Module, Note]] = []
        outputs: list[tuple[nn.Module, Note]] = []
        if features and self.feature_module is not None:
            outputs.append((self.feature_module, note))
        elif features and self.head is not None:
            inputs.append((self.head, keep))
        if statistics:
            inputs += [(norm, partial(tap, norm)) for norm in self.norms]
        if pooled:
            inputs += [(norm, partial(pool, norm)) for norm in self.norms]
        with hooked(inputs=inputs, outputs=outputs):
            logits = self.forward_network(images)
        parts = torch.cat(list(means.values()), 1) if means else None
        return Observation(logits, seen.get("features"), tuple(found.values()), parts)


def _note_passed(passed: dict[Any, None], norm: nn.Module, _: Tensor) -> None:
    passed[norm] = None


def digest_of(classifier: Classifier) -> str:
    """SHA-256 over the weights, buffers and the input contract of a classifier."""
    digest = hashlib.sha256(
        repr(
            (classifier.spec, classifier.classes, classifier.answers)
            + ((classifier.only, classifier.others) if classifier.only else ())
        ).encode()
    )
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
