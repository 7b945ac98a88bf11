"""Small learners and what they learn, for tests of steps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from synthkd.core.images import ImageSpec
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TrainingTable
from synthkd.students.learner import Learner

SPEC = ImageSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))
CLASSES = 3
TABLE = TrainingTable(
    optimizer="sgd", momentum=0.9, learning_rate=0.1, weight_decay=0.0, clip=0.5, ema=0.9
)


def student_of(*middle: nn.Module) -> Classifier:
    """A small convolutional network, always with the same weights, with more layers in it."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(1, 6, 3), *middle, nn.Flatten(), nn.Linear(6 * 36, CLASSES))
    return Classifier(body, SPEC, CLASSES)


def plain_learner(
    exchange: Callable[[Sequence[Tensor], float], None] | None = None,
) -> Learner:
    """One without BatchNorm: the loss of each image depends on no other."""
    return Learner(student_of(nn.Tanh()), TABLE, exchange=exchange)


def lesson(count: int) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] and a teacher's logits [B, K], always the same ones."""
    rng = torch.Generator().manual_seed(7)
    images = torch.rand(count, 1, 8, 8, generator=rng)
    return images, 3 * torch.randn(count, CLASSES, generator=rng)
