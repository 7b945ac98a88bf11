"""A classifier as everybody else sees it: plain images in, logits out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.core.logits import chosen
from synthkd.core.seeds import globally
from synthkd.networks import depthwise
from synthkd.networks.answers import Answers, reading, taken, to_logits
from synthkd.networks.layout import may_learn_channels_last
from synthkd.networks.modes import holders, in_eval_mode


class Classifier(nn.Module):
    """Normalises, then asks the body. Images are [B, C, H, W] in 0..1, the answer is logits [B, K].

    `answers` says what the body returns, by a name of `answers.KINDS` or in full; afterwards it is
    that name, and `reading` the whole. Where the classes are `independent`, a logit is the log-odds
    of its class alone, and its sigmoid a probability. `channels_last` says how images are laid out
    in memory for it.

    With `only`, numbers of the body's classes, it answers for these alone, in this order: its
    logits are theirs, so probabilities are those given that one of them is right. `others` adds a
    class for whatever is none of them, whose probability is the sum of theirs: its logit is the
    logarithm of the sum of the exponentials of their logits.
    """

    mean: Tensor
    std: Tensor
    inherited = (0, 0)  # tensors of the body that began as its teacher's, and all that it has
    kept: Mapping[str, Tensor] = {}  # outputs left of a pruned body's layers, see networks.pruned
    channels_last = False
    resting: tuple[nn.Module, ...] = ()  # stay in eval mode while the others learn: see `steadied`
    # in which it is called: a body that is code of the user's wants one
    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    notes: tuple[Finding, ...] = ()  # what was understood of the files that it came from
    all_names: tuple[str, ...] = ()  # of all classes of the body, where it answers for some alone

    def __init__(
        self, body: nn.Module, spec: ImageSpec, classes: int, answers: str | Answers = "logits",
        *, only: Sequence[int] = (), others: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = body
        self.spec = spec
        self.all_classes = classes  # of the body
        self.only, self.others = tuple(only), others
        self.classes = len(self.only) + others if only else classes
        self.reading = answers if isinstance(answers, Answers) else Answers(answers)
        self.answers = self.reading.kind
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As every module's, in the `guard`."""
        if self.guard is nullcontext:
            return super().__call__(*given, **named)
        with self.guard():
            return super().__call__(*given, **named)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in 0..1 to logits [B, K]."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        if not images.is_contiguous(memory_format=form):
            images = images.contiguous(memory_format=form)
        with depthwise.gradients(self.body):
            return self.read(self.body, (images - self.mean) / self.std)

    def read(self, body: nn.Module, normalised: Tensor) -> Tensor:
        """What `body`, its own or a copy of it, answers to normalised images, as logits [B, K]."""
        known = self.reading
        if known.layer:
            with reading(body, known.layer) as seen:
                body(normalised)
            answer = seen[-1]
        else:
            answer = body(normalised)
        if isinstance(answer, Tensor) and answer.is_complex():
            raise InputError("the network answers with complex numbers")
        plain = isinstance(answer, Tensor) and not known.path and answer.dim() <= 2
        if not plain:
            answer = taken(answer, known, self.all_classes, len(normalised))
        logits = to_logits(answer.to(normalised.device), known, self.all_classes)
        return chosen(logits, self.only, others=self.others) if self.only else logits

    @property
    def independent(self) -> bool:
        """Whether several classes, or none, may apply to an image."""
        return self.reading.independent

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, K] as probabilities [B, K]: of one class of all, or of each class alone."""
        return logits.sigmoid() if self.independent else logits.softmax(1)

    def train(self, mode: bool = True) -> Self:
        """As every module's; what is `resting` stays in eval mode."""
        super().train(mode)
        for module in self.resting:
            module.training = False
        return self

    @torch.no_grad()
    def steadied(self) -> Self:
        """Itself, so that in training mode it answers in the form that was recognised in eval mode.

        Some networks answer otherwise there: with auxiliary heads beside the logits, or without the
        softmax that they end with. The modules of such a body that hold others then stay in eval
        mode, so that its layers alone (BatchNorm, Dropout, attention) know that it learns. Where
        the form is the same, nothing rests.
        """
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(3, *self.spec.shape, generator=rng).to(self.mean.device)
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]
        held = holders(self.body)
        logits = bool(self.reading.layer) or self.answers.endswith(("logit", "logits"))
        try:
            with in_eval_mode(self), globally(rng):
                usual = self(images)
                for module in held:
                    module.training = True
                answer = self(images)
            alike = answer.shape == usual.shape and (
                logits or torch.allclose(answer, usual, rtol=1e-3, atol=1e-3)
            )
        except Exception:  # whatever the user's network raises
            alike = False
        for buffer, value in before:
            if not torch.equal(buffer, value):
                buffer.copy_(value)
        self.resting = () if alike else held
        return self

    @torch.no_grad()
    def arranged(self) -> Self:
        """Itself with weights and images laid out channels last, which is fastest, where the body
        can be run so: one that flattens its maps by `view` cannot, nor one whose weights would get
        wrong gradients (`networks.layout`)."""
        if not may_learn_channels_last(self.body):
            self.channels_last = False
            return self.to(memory_format=torch.contiguous_format)
        self.channels_last = True
        try:
            with in_eval_mode(self):
                self.to(memory_format=torch.channels_last)
                self.forward(torch.zeros(2, *self.spec.shape, device=self.mean.device))
        except InputError:  # an answer of which nothing can be made, however it is laid out
            raise
        except Exception:  # whatever the user's network raises at the layout
            self.to(memory_format=torch.contiguous_format)
            self.channels_last = False
        return self
