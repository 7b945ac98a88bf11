"""A classifier as everybody else sees it: plain images in, logits out."""

import torch
from torch import Tensor, nn

from synthkd.images import ImageSpec
from synthkd.losses import as_logits, of_votes


class Classifier(nn.Module):
    """Normalises, then asks the body. Images are [B, C, H, W] in 0..1, the answer is logits [B, K].

    `answers` says what the body returns: logits, probabilities, log-probabilities, or classes
    [B].
    """

    mean: Tensor
    std: Tensor
    inherited = (0, 0)  # tensors of the body that began as its teacher's, and all that it has

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
        answer = self.body((images - self.mean) / self.std)
        if self.answers == "classes":
            return of_votes(answer, self.classes)
        return as_logits(answer, self.answers)
