"""The frozen teacher: asked and observed, never altered.

B batch, C channels of a layer, D features, K classes.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, in_cache
from synthkd.core.logits import of_decisions, of_votes
from synthkd.networks.classifier import Classifier


class Moments(torch.autograd.Function):
    """x -> x, mean [C], biased variance [C], in one cheap pass forward and one backward.

    The statistics kernel of BatchNorm does the reduction. Backward adds
    (2/n) · g_var · (x − mean) + g_mean / n to the gradient of x, as a per-channel affine map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        zeros = torch.zeros(x.shape[1], dtype=kind, device=x.device)
        mean, var = torch.batch_norm_update_stats(x, zeros, torch.ones_like(zeros), 0.0)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        slope = grad_var * (2 / n)
        offset = grad_mean / n - slope * mean
        epsilon = 1e-5  # batch_norm refuses 0 in older versions: variance 1 − ε plus ε is 1
        still = torch.zeros_like(slope)
        affine = F.batch_norm(x, still, still + 1 - epsilon, slope, offset, False, 0.0, epsilon)
        return affine.add_(grad)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Moments` where its kernel exists (4-d, CPU or CUDA), plain torch elsewhere."""
    if x.dim() == 4 and hasattr(torch, "batch_norm_update_stats"):
        return Moments.apply(x)  # type: ignore[no-any-return]
    wide = x.float()
    var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
    return x, mean, var


class Observation(NamedTuple):
    """What the teacher showed for one batch."""

    logits: Tensor  # [B, K]
    features: Tensor | None  # [B, D] input of the last linear layer
    moments: tuple[tuple[Tensor, Tensor], ...]  # per BatchNorm layer: mean, variance of its input
    pooled: Tensor | None = None  # [B, sum of C] the spatial means of all these inputs


Maps = dict[tuple[int, int], Tensor]  # by H, W: [B, C, H, W]


@contextmanager
def maps_of(network: nn.Module) -> Iterator[Maps]:
    """Fills a dictionary while the `with` lasts: for each spatial size the last map of that size
    that a module of `network` returned. Of a ResNet these are the outputs of its groups.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.MaxPool2d(2))
    >>> with maps_of(network) as seen:
    ...     _ = network(torch.zeros(1, 1, 8, 8))
    >>> list(seen)
    [(6, 6), (3, 3)]
    """
    seen: Maps = {}

    def note(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            seen[output.shape[2], output.shape[3]] = output

    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Teacher(nn.Module):
    """A frozen classifier: eval mode and weights are fixed for good, gradients reach only the
    images.

    `low_precision` lets the machine compute in bfloat16; answers are float32 all the same. Where no
    gradient is asked for, a CPU then answers from a folded copy (`folded_copy`), unless a first
    test against float32 forbids it: `fast` and `folded_reason` tell.

    `access` "logits" promises that no gradient passes and that nothing inside is looked at; with
    "labels" the answer is the class it names, as smoothed logits (`losses.of_votes`). `queries`
    counts the images it was asked about.
    """

    def __init__(
        self, classifier: Classifier, *, names: tuple[str, ...] = (), described: str = "teacher",
        access: str = "full", features_at: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.access = access
        self.queries = 0  # images
        self.classifier = classifier.requires_grad_(False).eval().arranged()
        self.names = names or tuple(str(k) for k in range(classifier.classes))
        self.described = described
        self.low_precision = False
        self.fast = False
        self.folded_reason = ""  # empty until it is tried
        self._folded: Callable[[Tensor], Tensor] | None = None
        self.norms: list[nn.modules.batchnorm._BatchNorm] = [
            m
            for m in classifier.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
            if access == "full"
        ]
        heads = [
            m
            for m in classifier.modules()
            if isinstance(m, nn.Linear) and m.out_features == self.classes and access == "full"
        ]
        self.head: nn.Linear | None = heads[-1] if heads else None
        self.feature_module = self._module(features_at) if features_at else None
        self.digest = digest_of(classifier)
        super().train(False)
        # in the order in which images pass them; those of heads that rest in eval mode are left out
        self.norms = self._passed(torch.zeros(2, *self.spec.shape, device=classifier.mean.device))
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
        known = dict(self.classifier.body.named_modules())
        if not name or name not in known:
            few = ", ".join(list(known)[1:8])
            raise InputError(
                f"--teacher.features {quoted(name)}: no such module; there are {few} …"
            )
        found: nn.Module = known[name]
        return found

    @torch.no_grad()
    def _feature_size(self) -> int | None:
        """D, or None where there are no features: the last layer is not linear, and none is
        named."""
        if self.feature_module is None:
            return self.head.in_features if self.head else None
        blank = torch.zeros(2, *self.spec.shape, device=self.classifier.mean.device)
        seen = self.observe(blank, statistics=False).features
        return seen.shape[1] if seen is not None else None

    @torch.no_grad()
    def _passed(self, images: Tensor) -> list[nn.modules.batchnorm._BatchNorm]:
        passed: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        with self._watching(None, passed):
            self.forward_network(images)
        return list(passed)  # type: ignore[arg-type]

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
    def independent(self) -> bool:
        """Whether several of its classes, or none, may apply to an image."""
        return self.classifier.independent

    @property
    def prototypes(self) -> Tensor | None:
        """The rows of the last linear layer, [K, D]; None where features come from elsewhere."""
        return self.head.weight if self.head and self.feature_module is None else None

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
        return torch.cat([answer(part) for part in in_cache(images)])

    def forward_network(self, images: Tensor) -> Tensor:
        """The same by the network itself, whose layers can be watched."""
        self.queries += len(images)
        if self.access != "full":
            images = images.detach()
        low = self.low_precision and not self.classifier.reading.exact
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.classifier(images)
        self._check(images, logits)
        return self._restrict(logits.float())

    def _check(self, images: Tensor, logits: Tensor) -> None:
        """Refuses what no classifier answers: it may have been well when it was first asked."""
        if logits.shape != (len(images), self.classes):
            raise InputError(
                f"the teacher {quoted(self.described)} answers {list(logits.shape)} to "
                f"{len(images)} images, and had {self.classes} classes when it was first asked"
            )
        if bool(logits.isfinite().all()) or not images.isfinite().all():
            return
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
        self.low_precision = False
        exact = self.forward_network(images)
        self.low_precision, self.queries = True, before  # asked about nothing of a run
        try:
            quick = folded_copy(self.classifier)
            found = quick(images)
        except Exception as error:  # whatever tracing or folding a stranger's network raises
            self.folded_reason = f"no folded copy: {type(error).__name__}: {quoted(error, 60)}"
            return
        alike = float((found.argmax(1) == exact.argmax(1)).float().mean())
        size = (exact - exact.mean(1, keepdim=True)).abs().max().clamp_min(1e-12)
        off = float((found - exact).abs().max() / size)
        self.fast = alike >= 0.97 and off <= 0.05
        kind = "a" if self.fast else "no"
        self.folded_reason = f"{kind} folded bfloat16 copy: {alike:.1%} same votes, {off:.1%} off"
        self._folded = quick if self.fast else None

    @torch.no_grad()
    def teach(self, images: Tensor, *, maps: bool = False) -> tuple[Tensor, Maps]:
        """Logits [B, K] without gradients; if asked for, also the maps of `maps_of`."""
        if not maps:
            return self(images), {}
        with maps_of(self.classifier) as seen:
            logits = self.forward_network(images)
        return logits, seen

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
        with (
            self._watching(seen if features else None, found if statistics else None),
            self._pooling(means if pooled else None),
        ):
            logits = self.forward_network(images)
        parts = torch.cat(list(means.values()), 1) if means else None
        return Observation(logits, seen.get("features"), tuple(found.values()), parts)

    @contextmanager
    def _pooling(self, means: dict[nn.Module, Tensor] | None) -> Iterator[None]:
        """Hooks that note the spatial means [B, C] of every BatchNorm layer's input."""

        def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert means is not None
            means[norm] = inputs[0].float().reshape(*inputs[0].shape[:2], -1).mean(2)

        norms = self.norms if means is not None else []
        handles = [norm.register_forward_pre_hook(note) for norm in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _watching(
        self, seen: dict[str, Tensor] | None, found: dict[nn.Module, tuple[Tensor, Tensor]] | None
    ) -> Iterator[None]:
        """Hooks that live as long as the `with`."""

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert seen is not None
            seen["features"] = inputs[0].float().flatten(1)

        def tap(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            assert found is not None
            x, mean, var = moments(inputs[0])
            found[norm] = (mean, var)
            return (x, *inputs[1:])

        def note(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            assert seen is not None
            seen["features"] = averaged(output).float()

        handles = []
        if seen is not None and self.feature_module is not None:
            handles.append(self.feature_module.register_forward_hook(note))
        elif seen is not None and self.head is not None:
            handles.append(self.head.register_forward_pre_hook(keep))
        if found is not None:
            handles += [norm.register_forward_pre_hook(tap) for norm in self.norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def averaged(output: Any) -> Tensor:
    """A module's output as features [B, D]: of maps [B, D, H, W] the spatial mean, of tokens
    [B, T, D] the mean over tokens; of several outputs the first."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise InputError("--teacher.features: this module's output is no tensor of features")
    if output.dim() == 3:
        return output.mean(1)
    return output.flatten(2).mean(2) if output.dim() > 3 else output


def folded_copy(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """A copy of a classifier for answers alone: BatchNorm folded into the convolutions, weights in
    bfloat16, laid out as there. Takes images [B, C, H, W] in 0..1, returns logits [B, K].

    Raises whatever `torch.fx` does where the body cannot be followed.
    """
    form = torch.channels_last if classifier.channels_last else torch.contiguous_format
    body = fuse(classifier.body).to(torch.bfloat16).to(memory_format=form)
    mean, std = classifier.mean.clone(), classifier.std.clone()

    def answer(images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=form)
        with torch.no_grad():
            return classifier.read(body, ((x - mean) / std).bfloat16()).float()

    return answer


def digest_of(classifier: Classifier) -> str:
    """SHA-256 over the weights, buffers and the input contract of a classifier."""
    digest = hashlib.sha256(
        repr((classifier.spec, classifier.classes, classifier.answers)).encode()
    )
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
