"""The frozen teacher: asked and observed, never altered.

B batch, C channels of a layer, D features, K classes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import InputError, quoted
from synthkd.images import ImageSpec
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


class Teacher(nn.Module):
    """A frozen classifier: eval mode and weights are fixed for good, gradients reach only the
    images.

    `low_precision` lets the machine compute in bfloat16; answers are float32 all the same.
    """

    def __init__(
        self, classifier: Classifier, *, names: tuple[str, ...] = (), described: str = "teacher"
    ) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False).to(memory_format=torch.channels_last)
        self.names = names or tuple(str(k) for k in range(classifier.classes))
        self.described = described
        self.low_precision = False
        self.norms: list[nn.modules.batchnorm._BatchNorm] = [
            m
            for m in classifier.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
        ]
        heads = [
            m
            for m in classifier.modules()
            if isinstance(m, nn.Linear) and m.out_features == self.classes
        ]
        self.head: nn.Linear | None = heads[-1] if heads else None
        self.digest = digest_of(classifier)
        super().train(False)
        # in the order in which images pass them; those of heads that rest in eval mode are left out
        self.norms = self._passed(torch.zeros(2, *self.spec.shape, device=classifier.mean.device))

    @torch.no_grad()
    def _passed(self, images: Tensor) -> list[nn.modules.batchnorm._BatchNorm]:
        passed: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        with self._watching(None, passed):
            self(images)
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
    def feature_size(self) -> int | None:
        """D, or None where the last layer is not linear."""
        return self.head.in_features if self.head else None

    @property
    def prototypes(self) -> Tensor | None:
        """The rows of the last linear layer, [K, D]."""
        return self.head.weight if self.head else None

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
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.low_precision):
            logits: Tensor = self.classifier(images.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def observe(
        self, images: Tensor, *, features: bool = True, statistics: bool = True
    ) -> Observation:
        """Logits, features and BatchNorm statistics of one batch, all differentiable by the
        images."""
        seen: dict[str, Tensor] = {}
        found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        with self._watching(seen if features else None, found if statistics else None):
            logits = self(images)
        return Observation(logits, seen.get("features"), tuple(found.values()))

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

        handles = []
        if seen is not None and self.head is not None:
            handles.append(self.head.register_forward_pre_hook(keep))
        if found is not None:
            handles += [norm.register_forward_pre_hook(tap) for norm in self.norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


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


def recognise(body: nn.Module, spec: ImageSpec, classes: int | None) -> tuple[int, str]:
    """Asks a network with noise: how many classes it has, and whether it answers in logits.

    Returns K and one of "logits", "probabilities", "log-probabilities". An answer that is not [B,
    K], is not finite, or has another K than `classes` is an InputError.
    """
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(16, *spec.shape, generator=rng)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    body.eval()
    try:
        with torch.no_grad():
            answer = body((noise - mean) / std)
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the network does not take images of {spec.channels} x {spec.height} x {spec.width}: "
            f"{quoted(reason, 160)} (see --image-size, --channels)"
        ) from None
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(noise):
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"a classifier must answer with one row of class scores per image; got {shape}"
        )
    if not answer.isfinite().all():
        raise InputError(
            "the teacher answers NaN or infinity: are these the right weights, mean and std?"
        )
    if classes is not None and classes != answer.shape[1]:
        raise InputError(
            f"--classes {classes}: the network has {answer.shape[1]} classes; leave the flag away"
        )
    if answer.shape[1] < 2:
        raise InputError(
            "the network answers with one number per image; a classifier has at least two classes"
        )
    answer = answer.float()
    if (answer >= 0).all() and (answer.sum(1) - 1).abs().max() < 1e-3:
        return answer.shape[1], "probabilities"
    if (answer <= 1e-4).all() and answer.logsumexp(1).abs().max() < 1e-3:
        return answer.shape[1], "log-probabilities"
    return answer.shape[1], "logits"
