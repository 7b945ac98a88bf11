"""How good images are: by the teacher's answers, by an extractor's features, and against real
images by torch-fidelity. N images, K classes, D features."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthkd import measures
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import finite
from synthkd.data.sources import Images
from synthkd.evaluation.compare import settled
from synthkd.evaluation.extractors import Extractor, classifier_extractor, fidelity_dataset
from synthkd.teachers.protocol import Teacher

LARGEST_SEARCH = 20_000  # images among which near-duplicates are looked for, as that takes N² time


@dataclass(frozen=True)
class Score:
    """One value and what it rests on. None: it has no value for these images."""

    value: float | None
    n: int
    extractor: str
    digest: str
    n_reference: int | None = None
    std: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SetClass:
    """One class of a scored set."""

    name: str
    asked: int | None  # images with its label
    votes: int  # images that the judge takes for it
    diversity: float | None
    reference_diversity: float | None


@dataclass(frozen=True)
class ImageScores:
    """All that is known of a set of images."""

    n: int
    n_reference: int | None
    extractor: str
    extractor_kind: str
    extractor_digest: str
    scores: dict[str, Score]
    classes: tuple[SetClass, ...]
    missing_classes: tuple[str, ...]
    warnings: tuple[str, ...]


def score_images(
    images: Images,
    reference: Images | None,
    extractor: Extractor,
    teacher: Teacher | None = None,
    *,
    batch: int = 256,
) -> ImageScores:
    """Judges a set of images; with real ones as `reference`, also how far it is from them.

    `images` may have any size, as every network resizes them to its own input. Always: the
    Inception score (by torch-fidelity) and near-duplicates. By the judge, which is `teacher` or
    else an extractor that is a classifier: its Inception score, the balance of its votes, diversity
    inside a class, the distance to its BatchNorm statistics, and with labels the share of images
    that it takes for their label and the semantic consistency. With `reference`: FID and KID (by
    torch-fidelity), and the collapse rate.

    Features for diversity and consistency come from the extractor if it is a classifier, else from
    the judge. A set of one image, or labels that the judge does not have, is an InputError.
    """
    for flag, given in (("--images", images), ("--reference", reference)):
        if given is not None and len(given.pixels) < 2:
            raise InputError(
                f"{flag} {quoted(given.source)}: a set of {len(given.pixels)} cannot be scored; "
                "at least 2 images are needed"
            )
    judge = extractor
    if teacher is not None and teacher.digest != extractor.digest:
        judge = classifier_extractor(teacher)
    encoder = extractor if extractor.teacher is not None else judge

    images = _single(images)
    reference = None if reference is None else _single(reference)
    made = _look(images, encoder, judge, batch)
    real = None if reference is None else _look(reference, encoder, judge, batch)
    scores, warnings = _fidelity(images, reference, extractor, batch)
    rows: tuple[SetClass, ...] = ()
    if judge.teacher is not None:
        diversity = _diversity(made, judge.teacher)
        real_diversity = None if real is None else _diversity(real, judge.teacher)
        rows = _set_rows(images, made, judge.teacher, diversity, real_diversity)
        scores |= _votes(made, images.labels, judge, judge.teacher)
        scores |= _spread(made, real, encoder, diversity, real_diversity)
        if images.labels is not None:
            scores |= _consistency(made, real, reference, encoder, judge.teacher.classes)
        warnings += _label_warnings(judge.teacher, (images, made), (reference, real))
    scores["near_duplicate_rate"] = _near_duplicates(made, encoder)
    return ImageScores(
        n=len(images.pixels),
        n_reference=None if reference is None else len(reference.pixels),
        extractor=extractor.name,
        extractor_kind=extractor.kind,
        extractor_digest=extractor.digest,
        scores=scores,
        classes=rows,
        missing_classes=tuple(row.name for row in rows if row.votes == 0),
        warnings=tuple(warnings),
    )


def score_by_teacher(
    pixels: Tensor, teacher: Teacher, *, batch: int = 256
) -> tuple[dict[str, Score], tuple[SetClass, ...]]:
    """What the teacher alone says of uint8 images [N, C, H, W], N ≥ 2: those scores of
    `score_images` that need no labels and no real images, and its votes and the diversity of each
    class. The class of an image is the teacher's vote."""
    judge = classifier_extractor(teacher)
    images = Images(pixels, None, (), "these images", "")
    made = _look(images, judge, judge, batch)
    diversity = _diversity(made, teacher)
    scores = {
        **_votes(made, None, judge, teacher),
        **_spread(made, None, judge, diversity, None),
        **_consistency(made, None, None, judge, teacher.classes),
        "near_duplicate_rate": _near_duplicates(made, judge),
    }
    return scores, _set_rows(images, made, teacher, diversity, None)


def _single(images: Images) -> Images:
    """Without labels where they are rows for several classes, which say nothing of one."""
    several = images.labels is not None and images.labels.dim() > 1
    return images._replace(labels=None) if several else images


def _label_warnings(
    teacher: Teacher, *sets: tuple[Images | None, "_Shown | None"]
) -> Iterator[str]:
    """What the judge's votes say of labels that sets of images bring."""
    for images, shown in sets:
        if images is not None and shown is not None:
            votes = shown.logits.argmax(1)
            found = settled(images, votes, teacher.classes, teacher.names)[1].findings
            yield from (f"{quoted(images.source)}: {finding}" for finding in found)


class _Shown(NamedTuple):
    """A set as the two networks see it."""

    features: Tensor  # [N, D] by the encoder
    logits: Tensor  # [N, K] by the judge
    classes: Tensor  # [N] the label, or the judge's vote
    moments: list[tuple[Tensor, Tensor]]  # of the whole set, by the judge


def _look(images: Images, encoder: Extractor, judge: Extractor, batch: int) -> _Shown:
    seen = [judge.look(part) for part in torch.split(images.pixels, batch)]
    logits = torch.cat([one.logits.cpu() for one in seen])
    if not logits.isfinite().all():
        raise InputError(f"{judge.name} answers NaN or infinity on {quoted(images.source)}")
    labels = logits.argmax(1) if images.labels is None else images.labels
    if judge.teacher is not None and int(labels.max()) >= judge.teacher.classes:
        raise InputError(
            f"{quoted(images.source)} has the label {int(labels.max())}, "
            f"but {judge.name} knows {judge.teacher.classes} classes"
        )
    if encoder is judge:
        features = torch.cat([_present(one.features).cpu() for one in seen])
    else:
        others = [encoder.look(part) for part in torch.split(images.pixels, batch)]
        features = torch.cat([_present(one.features).cpu() for one in others])
    moments = measures.pooled([one.moments for one in seen], [len(one.logits) for one in seen])
    return _Shown(features, logits, labels, moments)


def _fidelity(
    images: Images, reference: Images | None, extractor: Extractor, batch: int
) -> tuple[dict[str, Score], list[str]]:
    """What torch-fidelity computes, and warnings about small sets."""
    n, m = len(images.pixels), None if reference is None else len(reference.pixels)
    least = n if m is None else min(n, m)
    splits = 10 if n >= 10 else 1
    found = _calculate(
        extractor,
        input1=fidelity_dataset(images),
        input2=None if reference is None else fidelity_dataset(reference),
        isc=True,
        fid=reference is not None,
        kid=reference is not None,
        isc_splits=splits,
        kid_subset_size=min(1000, least),
        batch_size=batch,
    )
    note = "" if extractor.standard else "not comparable with published scores"
    scores = {
        "inception_score": _score(
            found["inception_score_mean"],
            n,
            extractor,
            std=found["inception_score_std"],
            note=_joined(note, f"splits: {splits}"),
        )
    }
    if m is None:
        return scores, []
    scores["fid"] = _score(
        found["frechet_inception_distance"], n, extractor, n_reference=m, note=note
    )
    scores["kid"] = _score(
        found["kernel_inception_distance_mean"],
        n,
        extractor,
        n_reference=m,
        # every subset of a smaller set is all of it, and they would seem to agree
        std=found["kernel_inception_distance_std"] if least > 1000 else None,
        note=_joined(note, f"subsets of {min(1000, least)}"),
    )
    d = _present(extractor.look(images.pixels[:1]).features).shape[1]
    if least >= 10 * d:
        return scores, []
    depth = "the covariance has no full rank; " if least <= d else ""
    return scores, [
        f"FID from {least} images with {d} features is biased upwards: {depth}prefer KID "
        f"under about {10 * d} images"
    ]


def _calculate(extractor: Extractor, **options: Any) -> dict[str, float]:
    """`torch_fidelity.calculate_metrics` with our extractor: nothing cached, no worker processes.

    Order: input1 is generated, input2 real. The registry keeps the extractor for this call only, as
    it would hand out the first of two with the same name.
    """
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Looking(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            seen = extractor.look(pixels)
            found = {"features": _present(seen.features).float(), "logits": seen.logits.float()}
            return tuple(found[name] for name in self.features_list)

    name = f"synthkd-{extractor.digest}"
    torch_fidelity.register_feature_extractor(name, Looking)
    try:
        result: dict[str, float] = torch_fidelity.calculate_metrics(
            feature_extractor=name,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
            **options,
        )
        return result
    finally:
        del FEATURE_EXTRACTORS_REGISTRY[name]


def _votes(
    made: _Shown, labels: Tensor | None, judge: Extractor, teacher: Teacher
) -> dict[str, Score]:
    """What the judge says of the images: its Inception score, the Fréchet distance to its
    statistics, the balance of its votes, and whether it takes them for their labels."""
    n = len(made.logits)
    counts = measures.vote_histogram(made.logits)
    missing = measures.missing_classes(counts)
    quality = measures.teacher_inception_score(made.logits)
    scores = {
        "teacher_inception_score": _score(
            quality.mean,
            n,
            judge,
            std=quality.std,
            note=f"1..{len(counts)}, splits: {quality.splits}",
        ),
        "balance": _score(
            measures.relative_entropy(counts),
            n,
            judge,
            note="entropy of the votes / log min(K, N), 1: even",
        ),
        "missing_classes": _score(len(missing), n, judge, note=f"of {len(counts)}, by vote"),
    }
    if labels is not None:
        share = measures.accuracy(made.logits, labels)
        scores["label_accuracy"] = _score(share, n, judge, note="share taken for its label")
    if made.moments:
        distance = measures.data_free_frechet(made.moments, teacher.stored)
        note = "to the BatchNorm statistics"
        scores["data_free_frechet"] = _score(distance, n, judge, note=note)
    return scores


def _diversity(shown: _Shown, teacher: Teacher) -> Tensor:
    return measures.intra_class_diversity(shown.features, shown.classes, teacher.classes)


def _spread(
    made: _Shown,
    real: _Shown | None,
    encoder: Extractor,
    diversity: Tensor,
    real_diversity: Tensor | None,
) -> dict[str, Score]:
    """Diversity inside the classes, averaged over them, and how many classes have lost it."""
    n = len(made.features)
    mean = diversity.nanmean().item()
    note = "mean of 1 - cosine inside a class"
    scores = {"intra_class_diversity": _score(mean, n, encoder, note=note)}
    if real is not None and real_diversity is not None:
        scores["collapse_rate"] = _score(
            measures.collapse_rate(diversity, real_diversity),
            n,
            encoder,
            n_reference=len(real.features),
            note="share of classes under half of the reference's diversity",
        )
    return scores


def _consistency(
    made: _Shown,
    real: _Shown | None,
    reference: Images | None,
    encoder: Extractor,
    classes: int,
) -> dict[str, Score]:
    """s-CS against labelled real images, else s-CS0 against the encoder's last layer."""
    n = len(made.features)
    if real is not None and reference is not None and reference.labels is not None:
        value = measures.semantic_consistency(
            made.features, made.classes, real.features, real.classes, classes
        )
        m = len(real.features)
        note = "s-CS, 1: as real images"
        return {"semantic_consistency": _score(value, n, encoder, n_reference=m, note=note)}
    rows = None if encoder.teacher is None else encoder.teacher.prototypes
    if rows is None or len(rows) != classes:
        return {}
    rows = rows.detach().cpu()
    value = measures.semantic_consistency_free(made.features, made.classes, rows)
    note = "s-CS0, against the last layer; not on the scale of s-CS"
    return {"semantic_consistency_free": _score(value, n, encoder, note=note)}


def _near_duplicates(made: _Shown, encoder: Extractor) -> Score:
    looked_at = made.features[:: math.ceil(len(made.features) / LARGEST_SEARCH)]
    rate = measures.near_duplicate_rate(looked_at)
    note = "share with another image at cosine > 0.99"
    return _score(rate, len(looked_at), encoder, note=note)


def _set_rows(
    images: Images,
    made: _Shown,
    teacher: Teacher,
    diversity: Tensor,
    real_diversity: Tensor | None,
) -> tuple[SetClass, ...]:
    votes = measures.vote_histogram(made.logits).tolist()
    own = diversity.tolist()
    real = [math.nan] * len(own) if real_diversity is None else real_diversity.tolist()
    asked: list[int | None] = [None] * len(own)
    if images.labels is not None:
        asked = images.labels.bincount(minlength=len(own)).tolist()
    return tuple(
        SetClass(teacher.names[k], asked[k], votes[k], finite(own[k]), finite(real[k]))
        for k in range(len(own))
    )


def _score(value: float, n: int, by: Extractor, **more: Any) -> Score:
    number = finite(value)
    if number is None:
        more["note"] = _joined("no finite value", more.get("note", ""))
    return Score(number, n, by.name, by.digest, **more | {"std": finite(more.get("std"))})


def _present(features: Tensor | None) -> Tensor:
    assert features is not None  # an extractor always shows features
    return features


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
