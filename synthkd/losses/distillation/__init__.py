"""What a student minimises: its answers, features and relations compared with the teacher's.

The formulas are functions of tensors. A term is a function of a `DistillationView`, all that
student and teacher show for one batch, or where it has weights of its own an `nn.Module`; `TERMS`
names the terms, and `[training.terms]` sums them by weight.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from synthkd.losses.distillation.adapters import (
    CrossAttention,
    Hint,
    OrthogonalProjection,
    SlicedTransport,
    Transport,
)
from synthkd.losses.distillation.answers import (
    class_correlation,
    decoupled_others,
    decoupled_target,
    hard_decisions,
    hard_targets,
    image_correlation,
    logit_l1,
    smoothed_targets,
    soft_decisions,
    soft_targets,
    standardized_targets,
)
from synthkd.losses.distillation.contrast import InstanceContrast, MemoryContrast
from synthkd.losses.distillation.features import attention_transfer, feature_match
from synthkd.losses.distillation.relations import (
    neighbours,
    relational_angle,
    relational_distance,
    similarity,
)
from synthkd.losses.distillation.view import DistillationView, KnownBeforehand
from synthkd.losses.term import Term

__all__ = ["NEEDS", "SHIPPED", "SOFTENED", "TERMS", "DistillationView", "KnownBeforehand"]


def _soft_targets(view: DistillationView) -> Tensor:
    measure = soft_decisions if view.independent else soft_targets
    return measure(
        view.learned, view.taught, temperature=view.temperature, per_sample=view.per_sample
    )


def _softened(measure: Any, view: DistillationView) -> Tensor:
    """A measure of answers that takes a temperature and tells of each image."""
    found: Tensor = measure(
        view.learned, view.taught, temperature=view.temperature, per_sample=view.per_sample
    )
    return found


def _votes(view: DistillationView) -> Tensor:
    if view.independent:
        return hard_decisions(view.learned, view.taught, per_sample=view.per_sample)
    return hard_targets(view.learned, view.taught.argmax(1), per_sample=view.per_sample)


def _asked(view: DistillationView) -> Tensor:
    """The class that was asked for, and where none was (blends, drawings, real images) the vote."""
    targets = view.taught.argmax(1)
    if view.asked is not None:
        targets = targets.where(view.asked < 0, view.asked)
    return hard_targets(view.learned, targets, per_sample=view.per_sample)


def _attention_transfer(view: DistillationView) -> Tensor:
    wide = [pair for pair in view.maps if pair[0].shape[2:].numel() > 1]
    return attention_transfer([s for s, _ in wide], [t for _, t in wide])


def _feature_match(view: DistillationView) -> Tensor:
    alike = [pair for pair in view.maps if pair[0].shape == pair[1].shape]
    return feature_match([s for s, _ in alike], [t for _, t in alike])


def _related(measure: Any, view: DistillationView) -> Tensor:
    found: Tensor = measure(*view.embeddings)
    return found


# terms that ask for answers softened by the view's temperature
SOFTENED = frozenset({
    "soft_targets", "standardized_targets", "decoupled_target", "decoupled_others",
    "class_correlation", "image_correlation",
})  # fmt: skip

# what a term can need -> what it then finds in the view
NEEDS: Mapping[str, str] = {
    "features": "layers of both networks, and pairs of them",
    "maps": "pairs of maps of one size and more than one pixel",
    "equal maps": "pairs of maps of one size and with as many channels",
    "fixed maps": "images of full size at every step: training.scales forbids it",
    "embedding": "what enters the last linear layer of both networks",
    "one class": "classes of which one applies",
    "three classes": "at least three of them",
}
_ONE = frozenset({"one class"})
_SHAPE = frozenset({"one class", "three classes"})
_EMBEDDING = frozenset({"embedding"})
_FEATURES = frozenset({"features"})

TERMS: dict[str, Term] = {
    "soft_targets": Term("KL of the answers softened by the temperature", _soft_targets),
    "logit_l1": Term(
        "mean distance of the logits",
        lambda view: logit_l1(view.learned, view.taught, per_sample=view.per_sample),
    ),
    "votes": Term("cross-entropy with the class that the teacher sees", _votes),
    "asked_classes": Term("cross-entropy with the class that was asked for", _asked, _ONE),
    "smoothed_votes": Term(
        "cross-entropy with the teacher's vote, smoothed by its answer",
        lambda view: smoothed_targets(view.learned, view.taught, per_sample=view.per_sample),
        _ONE,
    ),
    "standardized_targets": Term(
        "KL of the answers, each with mean 0 and deviation 1",
        partial(_softened, standardized_targets),
        _SHAPE,
    ),
    "decoupled_target": Term(
        "KL of the target class against all others", partial(_softened, decoupled_target), _ONE
    ),
    "decoupled_others": Term(
        "KL among the classes that are not the target", partial(_softened, decoupled_others), _SHAPE
    ),
    "class_correlation": Term(
        "each answer goes with the teacher's", partial(_softened, class_correlation), _SHAPE
    ),
    "image_correlation": Term(
        "a class is likely in the same images",
        lambda view: image_correlation(view.learned, view.taught, temperature=view.temperature),
        _ONE,
    ),
    "attention": Term(
        "student and teacher look at the same places",
        _attention_transfer,
        frozenset({"features", "maps"}),
    ),
    "feature_match": Term(
        "the student's maps are the teacher's",
        _feature_match,
        frozenset({"features", "equal maps"}),
    ),
    "hint": Term("the student's layers tell the teacher's", module=Hint, needs=_FEATURES),
    "cross_attention": Term(
        "the teacher's layers are told from anywhere in the student's",
        module=CrossAttention,
        needs=frozenset({"features", "fixed maps"}),
    ),
    "transport": Term(
        "layers are spread as the teacher's (Gaussian 2-Wasserstein)",
        module=Transport,
        needs=_FEATURES,
    ),
    "sliced_transport": Term(
        "embeddings are spread as the teacher's (sliced 2-Wasserstein)",
        module=SlicedTransport,
        needs=_EMBEDDING,
    ),
    "projection": Term(
        "embeddings are the teacher's, turned", module=OrthogonalProjection, needs=_EMBEDDING
    ),
    "relational_distance": Term(
        "images are as far apart as for the teacher",
        partial(_related, relational_distance),
        _EMBEDDING,
    ),
    "relational_angle": Term(
        "triples of images form the teacher's angles",
        partial(_related, relational_angle),
        _EMBEDDING,
    ),
    "similarity": Term(
        "images are alike that are alike for the teacher", partial(_related, similarity), _EMBEDDING
    ),
    "neighbours": Term(
        "images are neighbours as likely as for the teacher",
        partial(_related, neighbours),
        _EMBEDDING,
    ),
    "instance_contrast": Term(
        "an image is found again among those of its batch",
        module=InstanceContrast,
        needs=_EMBEDDING,
    ),
    "memory_contrast": Term(
        "an image is found again among many earlier ones", module=MemoryContrast, needs=_EMBEDDING
    ),
}
SHIPPED = frozenset(TERMS)  # without those that somebody adds
