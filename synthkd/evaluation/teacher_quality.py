"""Which of several teachers is likely to teach best, by synthetic images alone.

N images, D features, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor

from synthkd import measures
from synthkd.core.errors import InputError, quoted
from synthkd.networks.classifier import Classifier
from synthkd.synthesis.drawings import assorted
from synthkd.teachers.protocol import Teacher

DRAWN = 256  # images on which a teacher is measured
FISHER, RANK = 0.6, 0.4  # weights of the two standardised parts of a score


@dataclass(frozen=True)
class TeacherQuality:
    """What synthetic images say of a teacher."""

    described: str
    images: int
    fisher_trace: float  # how much its answers hang on its weights
    effective_rank: float  # dimensions that its features spread over
    features: int  # D
    confidence: float  # mean of its largest probability
    balance: float  # relative entropy of its votes, 0..1


def teacher_quality(teacher: Teacher, *, count: int = DRAWN, seed: int = 0) -> TeacherQuality:
    """Measures a teacher on `count` drawings; nothing of it changes.

    Raises InputError for one that shows no weights or no features.
    """
    network, where = teacher.network, quoted(teacher.described)
    if "gradients" not in teacher.abilities or not isinstance(network, Classifier):
        raise InputError(f"teacher {where}: a black box shows no weights to judge it by")
    if teacher.feature_size is None:
        raise InputError(
            f"teacher {where}: its last layer is not linear: name its features by "
            "--teacher.features"
        )
    images = assorted(count, teacher.spec.shape).to(teacher.device)
    with torch.no_grad(), teacher.exact():
        logits, vectors = [], []
        for part in torch.split(images, 64):
            seen = teacher.observe(part, statistics=False)
            assert seen.features is not None
            logits.append(seen.logits.float().cpu())
            vectors.append(seen.features.float().cpu())
    answers, features = torch.cat(logits), torch.cat(vectors)
    votes = answers.argmax(1)
    return TeacherQuality(
        described=teacher.described, images=count,
        fisher_trace=fisher_trace(network, images, torch.Generator().manual_seed(seed)),
        effective_rank=_rank(features), features=features.shape[1],
        confidence=float(teacher.probabilities(answers).amax(1).mean()),
        balance=measures.relative_entropy(torch.bincount(votes, minlength=teacher.classes)),
    )  # fmt: skip


def _rank(features: Tensor) -> float:
    """The effective rank, 1 where all features are alike."""
    rank = measures.effective_rank(features)
    return 1.0 if math.isnan(rank) else rank


def fisher_trace(network: Classifier, images: Tensor, rng: torch.Generator) -> float:
    """The trace of the Fisher information of a network's weights.

        mean over images x of  E_{c ~ p(x)} |∇_θ log p_c(x)|²

    estimated with one class drawn for each image. Gradients are those of copies of the weights: of
    the network nothing moves. Independent classes are drawn one by one, and their logarithms added.
    Martens 2020, "New insights and perspectives on the natural gradient method"
    (https://arxiv.org/abs/1412.1193), section 5.

    `images` are [N, C, H, W] in 0..1. The square of a gradient grows with the network's size, so
    only logarithms of it are compared.
    """
    copies = {
        name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()
    }
    buffers = {name: value.detach().clone() for name, value in network.named_buffers()}
    total = 0.0
    for image in images:
        with torch.enable_grad():
            logits = torch.func.functional_call(network, (copies, buffers), (image[None],)).float()
            if network.independent:
                yes = torch.rand(logits.shape, generator=rng).to(logits) < logits.sigmoid()
                signed = torch.where(yes, logits, -logits)
                told = torch.nn.functional.logsigmoid(signed).sum()
            else:
                p = logits.detach().softmax(1).cpu()
                told = logits.log_softmax(1)[0, int(torch.multinomial(p, 1, generator=rng))]
            slopes = torch.autograd.grad(told, list(copies.values()), allow_unused=True)
        total += sum(float(slope.double().square().sum()) for slope in slopes if slope is not None)
    return total / len(images)


def scores(found: Sequence[TeacherQuality]) -> list[float]:
    """A score for each of several teachers:  0.6 · z(log Fisher trace) + 0.4 · z(effective rank),
    z with mean 0 and deviation 1 over those that are compared (0 where all are alike): of two
    teachers it tells an order, and nothing of how far they are apart.

    >>> one = TeacherQuality("a", 1, 1.0, 4.0, 8, 0.5, 1.0)
    >>> scores([one, TeacherQuality("b", 1, 100.0, 8.0, 8, 0.5, 1.0)])
    [-1.0, 1.0]
    """
    fisher = _standardised([math.log(max(each.fisher_trace, 1e-30)) for each in found])
    rank = _standardised([each.effective_rank for each in found])
    return [FISHER * f + RANK * r for f, r in zip(fisher, rank, strict=True)]


def _standardised(values: Sequence[float]) -> list[float]:
    mean, spread = fmean(values), pstdev(values)
    return [(value - mean) / spread if spread else 0.0 for value in values]
