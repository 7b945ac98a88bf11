"""A classifier as everybody else sees it: plain images in, logits out."""

from typing import Self

import torch
from torch import Tensor, nn

from synthkd.errors import InputError
from synthkd.findings import Finding
from synthkd.images import ImageSpec
from synthkd.losses import as_logits, of_votes


class Classifier(nn.Module):
    """Normalises, then asks the body. Images are [B, C, H, W] in 0..1, the answer is logits [B, K].

    `answers` says what the body returns: logits, probabilities, log-probabilities, or classes
    [B]. `channels_last` says how images are laid out in memory for it.
    """

    mean: Tensor
    std: Tensor
    inherited = (0, 0)  # tensors of the body that began as its teacher's, and all that it has
    channels_last = False
    notes: tuple[Finding, ...] = ()  # what was understood of the files that it came from

    def __init__(
        self, body: nn.Module, spec: ImageSpec, classes: int, answers: str = "logits"
    ) -> None:
        super().__init__()
        self.body = body
        self.spec = spec
        self.classes = classes
        self.answers = answers
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in 0..1 to logits [B, K]."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        if not images.is_contiguous(memory_format=form):
            images = images.contiguous(memory_format=form)
        answer = self.body((images - self.mean) / self.std)
        if self.answers == "classes":
            wrong = answer[~((answer >= 0) & (answer < self.classes))]
            if len(wrong):
                raise InputError(
                    f"the network named class {float(wrong[0]):g}, and has {self.classes} classes "
                    "(0 is the first): see --classes"
                )
            return of_votes(answer, self.classes)
        return as_logits(answer, self.answers)

    @torch.no_grad()
    def arranged(self) -> Self:
        """Itself with weights and images laid out channels last, which is fastest, where the body
        can be run so: one that flattens its maps by `view` cannot."""
        mode = self.training
        self.eval().channels_last = True
        try:
            self.to(memory_format=torch.channels_last)
            self(torch.zeros(2, *self.spec.shape, device=self.mean.device))
        except InputError:  # an answer of which nothing can be made, however it is laid out
            raise
        except Exception:  # whatever a stranger's network raises at the layout
            self.to(memory_format=torch.contiguous_format)
            self.channels_last = False
        return self.train(mode)
