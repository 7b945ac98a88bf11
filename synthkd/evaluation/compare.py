"""How good a student is, and how good images are. N images, K classes, D features.

`compare` asks student and teacher about the same images. `score_images` judges a set of images: by
the teacher's answers, by an extractor's features, and against real images by torch-fidelity.
"""

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from synthkd import measures
from synthkd.checks.student import check_accuracy, check_agreement
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import sha256_of
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, fitted, in_cache, to_float
from synthkd.core.logits import paired
from synthkd.data.sources import Images
from synthkd.labels.check import LabelCheck, check_labels
from synthkd.specs.pickles import check_room, read_pickled
from synthkd.teachers.protocol import Observation, Teacher

STANDARD_INCEPTION = "6726825d"  # how the SHA-256 of torch-fidelity's published file begins
YES_OR_NO = ("no", "yes")  # the classes of a question about one independent class
MANY_CLASSES = 20  # from which five guesses are scored too
MANY_PAIRS = 4096  # classes beyond which pairs of votes are not counted: a table of their square
LARGEST_SEARCH = 20_000  # images among which near-duplicates are looked for, as that takes N² time


@dataclass(frozen=True)
class ClassRow:
    """One class of a comparison: the images with its label, or else with the teacher's vote."""

    name: str
    n: int
    student_accuracy: float | None
    teacher_accuracy: float | None
    agreement: float | None
    # of what the teacher says by voting for this class, the share that reaches the student
    transfer_efficiency: float | None = None


@dataclass(frozen=True)
class BinaryMetrics:
    """How well a network tells a class from the rest (`measures.BinaryScores`); None: no value."""

    auroc: float | None
    sensitivity: float | None
    specificity: float | None
    f1: float | None


@dataclass(frozen=True)
class BinaryRow:
    """One class that is a yes or no: the second of two, or one of independent ones."""

    name: str
    positives: int
    student: BinaryMetrics
    teacher: BinaryMetrics


@dataclass(frozen=True)
class TopFive:
    """The shares of images whose label is among the five likeliest classes; and whose likeliest
    class of the teacher's is among the student's five."""

    student: float | None
    teacher: float | None
    agreement: float
    constant: float | None  # what five classes that are always named would get at most


@dataclass(frozen=True)
class Comparison:
    """Student against teacher on one set; accuracies and ECE are None without labels.

    With labels and two classes, or independent ones, `binary` has a row for each class that is a
    yes or no, and `student_binary` and `teacher_binary` are the means over these rows. Of
    independent classes (unless each image has one label), accuracy and agreement count the yes or
    no to every class of every image, and KL is summed over the classes.
    """

    n: int
    student_accuracy: float | None
    teacher_accuracy: float | None
    agreement: float
    kl: float  # KL(teacher ‖ student) in nats, temperature 1
    transfer_efficiency: float | None  # corrected for the number of images
    student_ece: float | None
    teacher_ece: float | None
    classes: tuple[ClassRow, ...]
    # beside what a constant classifier gets: 1 / K' of the balanced ones, the largest class's share
    student_balanced_accuracy: float | None = None
    teacher_balanced_accuracy: float | None = None
    balanced_agreement: float | None = None
    constant_balanced_accuracy: float | None = None
    constant_accuracy: float | None = None
    findings: tuple[Finding, ...] = ()
    independent: bool = False
    student_binary: BinaryMetrics | None = None
    teacher_binary: BinaryMetrics | None = None
    binary: tuple[BinaryRow, ...] = ()
    order: str = ""  # how labels were turned into the teacher's classes
    label_order: tuple[int, ...] | None = None  # by label, the classes that fit far better
    top5: TopFive | None = None  # of many classes


def compare(
    student: nn.Module, teacher: Teacher, images: Images, *, own: Images | None = None,
    batch: int = 256,
) -> Comparison:  # fmt: skip
    """Asks both about every image, in float32 and without gradients, and leaves both in eval mode.

    `images` may have any size if both networks tell theirs (`spec`); labels may be missing. `own`
    are the same images as the student takes them, where it takes others. A set without images,
    another number of classes, or an answer that is not finite is an InputError.
    """
    if not len(images.pixels):
        raise InputError(f"{quoted(images.source)}: there are no images to compare on")
    pixels = images.pixels if own is None else own.pixels
    learned = answers_of(student, pixels, batch, "student")
    with teacher.exact():
        taught = answers_of(teacher, images.pixels, batch, "teacher")
    if learned.shape != taught.shape:
        raise InputError(
            f"the student has {learned.shape[1]} classes and the teacher {taught.shape[1]}: "
            "they cannot be compared"
        )
    if images.labels is not None and images.labels.dim() > 1 and not teacher.independent:
        raise InputError(
            f"{quoted(images.source)}: labels of several classes per image, but the teacher's "
            "classes exclude each other: give one class per image, or --teacher-answers "
            "multilabel-…"
        )
    images, check = settled(images, taught.argmax(1), teacher.classes, teacher.names)
    labels = images.labels
    alone = teacher.independent
    rows = () if labels is None else _binary_rows(learned, taught, labels, teacher)
    # where classes are independent, each is a question of its own, yes or no
    each = alone and (labels is None or labels.dim() > 1)
    ours, theirs = (paired(t) if each else t for t in (learned, taught))
    truth = labels.flatten() if each and labels is not None else labels
    names = YES_OR_NO if each else teacher.names
    pairs = (paired(learned), paired(taught)) if alone else (learned, taught)
    votes, asked = ours.argmax(1), theirs.argmax(1)
    agreed = measures.class_balance(votes, asked, len(names))
    mine = other = always = None
    if truth is None:
        findings = check_agreement(votes, asked, len(names), names)
    else:
        mine, other = (measures.class_balance(v, truth, len(names)) for v in (votes, asked))
        always = float(truth.bincount().max()) / len(truth)
        findings = check_accuracy(votes, asked, truth, len(names), names)
    transfer = _transfer(ours, theirs)
    return Comparison(
        n=len(taught),
        student_accuracy=None if truth is None else measures.accuracy(ours, truth),
        teacher_accuracy=None if truth is None else measures.accuracy(theirs, truth),
        agreement=measures.agreement(ours, theirs),
        kl=measures.kl(*pairs) * len(pairs[0]) / len(taught),
        transfer_efficiency=transfer[0],
        student_ece=None if truth is None else measures.ece(ours, truth),
        teacher_ece=None if truth is None else measures.ece(theirs, truth),
        classes=_decision_rows(learned, taught, labels, teacher.names) if each
        else _class_rows(learned, taught, labels, teacher.names, transfer[1]),
        student_balanced_accuracy=None if mine is None else _number(mine.balanced),
        teacher_balanced_accuracy=None if other is None else _number(other.balanced),
        balanced_agreement=_number(agreed.balanced),
        constant_balanced_accuracy=_number((mine or agreed).constant),
        constant_accuracy=always,
        findings=(*check.findings, *findings),
        order=images.order,
        label_order=None if check.order is None else check.order.classes,
        independent=alone,
        student_binary=_mean_binary([row.student for row in rows]),
        teacher_binary=_mean_binary([row.teacher for row in rows]),
        binary=rows,
        top5=None if alone else _top_five(learned, taught, truth),
    )  # fmt: skip


def _top_five(learned: Tensor, taught: Tensor, truth: Tensor | None) -> TopFive | None:
    """What five guesses are worth, where a constant five are worth little."""
    if learned.shape[1] < MANY_CLASSES:
        return None
    always = None if truth is None else truth.bincount().sort(descending=True).values[:5]
    return TopFive(
        None if truth is None else measures.top(learned, truth),
        None if truth is None else measures.top(taught, truth),
        measures.top(learned, taught.argmax(1)),
        None if truth is None or always is None else float(always.sum()) / len(truth),
    )


def _binary_rows(
    learned: Tensor, taught: Tensor, labels: Tensor, teacher: Teacher
) -> tuple[BinaryRow, ...]:
    """AUROC and the like of each class that is a yes or no."""
    if teacher.independent:
        hot = labels if labels.dim() > 1 else F.one_hot(labels, teacher.classes)
        columns = [(k, learned[:, k], taught[:, k], hot[:, k].bool()) for k in range(hot.shape[1])]
    elif teacher.classes == 2:
        odds = [logits[:, 1] - logits[:, 0] for logits in (learned, taught)]
        columns = [(1, odds[0], odds[1], labels == 1)]
    else:
        return ()

    def scores(odds: Tensor, truth: Tensor) -> BinaryMetrics:
        return BinaryMetrics(*map(_number, measures.binary_scores(odds, truth)))

    return tuple(
        BinaryRow(teacher.names[k], int(truth.sum()), scores(ours, truth), scores(theirs, truth))
        for k, ours, theirs, truth in columns
    )


def _mean_binary(rows: Sequence[BinaryMetrics]) -> BinaryMetrics | None:
    """The mean over classes."""
    if not rows:
        return None
    scores = [
        measures.BinaryScores(*(math.nan if v is None else v for v in astuple(row))) for row in rows
    ]
    return BinaryMetrics(*map(_number, measures.macro(scores)))


def _decision_rows(
    learned: Tensor, taught: Tensor, labels: Tensor | None, names: tuple[str, ...]
) -> tuple[ClassRow, ...]:
    """Independent classes one by one: how many images have each (by the teacher, where there are no
    labels), and the share of images to which the right, or the same, yes or no is said."""
    ours, theirs = learned > 0, taught > 0
    truth = theirs if labels is None else labels.bool()

    def share(a: Tensor, b: Tensor) -> list[float]:
        return (a == b).double().mean(0).tolist()

    known = labels is not None
    own, other = share(ours, truth), share(theirs, truth)
    return tuple(
        ClassRow(names[k], n, own[k] if known else None, other[k] if known else None, alike)
        for k, (n, alike) in enumerate(zip(truth.sum(0).tolist(), share(ours, theirs), strict=True))
    )


def votes_of(teacher: Teacher, images: Images, *, batch: int = 256) -> Tensor:
    """The teacher's votes [N], in float32."""
    with teacher.exact():
        return answers_of(teacher, images.pixels, batch, "teacher").argmax(1)


def settled(
    images: Images, votes: Tensor, classes: int, names: Sequence[str], *, who: str = "teacher"
) -> tuple[Images, LabelCheck]:
    """What the votes [N] of `who` say of the labels, for `classes` that have `names`. Where the
    data allow two orders of classes (numbered folders, whose teacher may have counted them as
    texts), the votes decide, and `order` of the images that are returned says so; all else is a
    finding."""
    if images.labels is None or images.labels.dim() > 1:
        return images, LabelCheck(math.nan)
    check = check_labels(
        votes, images.labels, classes, names=names, given=images.given, taken=images.taken,
        others=images.others, who=who,
    )  # fmt: skip
    order = check.order
    if order is None or not order.adopted:
        return images, check
    how = (
        f"class folders taken {order.how}, as the {who}'s answers say: so it is right on "
        f"{check.better:.1%}, and {images.order.removeprefix('class folders taken ')} on "
        f"{check.accuracy:.1%}"
    )
    return images.relabelled(order._replace(how=how)), LabelCheck(check.accuracy)


def seconds_per_image(
    student: nn.Module, teacher: Teacher, *, batch: int = 256, tries: int = 4
) -> float:
    """What `compare` takes for an image on this machine: the fastest of some batches of noise, as
    the first ones pay for what is prepared once."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, *teacher.spec.shape), dtype=torch.uint8, generator=rng)
    noise = Images(in_cache(pixels)[0], None, (), "noise", "")
    times = [time.perf_counter()]
    for _ in range(tries):
        compare(student, teacher, noise)
        times.append(time.perf_counter())
    return min(b - a for a, b in pairwise(times)) / len(noise.pixels)


def _transfer(learned: Tensor, taught: Tensor) -> tuple[float | None, list[float | None]]:
    """The transfer efficiency of votes, in all and by class; nothing of so many classes that their
    pairs cannot be counted."""
    if taught.shape[1] > MANY_PAIRS:
        return None, [None] * taught.shape[1]
    table = measures.contingency(learned, taught)
    by_class = measures.transfer_efficiency_by_class(table, corrected=True).tolist()
    whole = measures.transfer_efficiency(table, corrected=True)
    return _number(whole), [_number(share) for share in by_class]


def _class_rows(
    learned: Tensor, taught: Tensor, labels: Tensor | None, names: tuple[str, ...],
    transfer: list[float | None],
) -> tuple[ClassRow, ...]:  # fmt: skip
    classes = taught.shape[1]
    alike = measures.per_class_agreement(learned, taught, labels).tolist()
    counts = (taught.argmax(1) if labels is None else labels).bincount(minlength=classes).tolist()
    nothing = [math.nan] * classes
    ours = nothing if labels is None else measures.per_class_accuracy(learned, labels).tolist()
    theirs = nothing if labels is None else measures.per_class_accuracy(taught, labels).tolist()
    columns = [[_number(value) for value in column] for column in (ours, theirs, alike)]
    columns.append(transfer)
    return tuple(ClassRow(names[k], counts[k], *(c[k] for c in columns)) for k in range(classes))


def answers_of(network: Any, pixels: Tensor, batch: int, role: str) -> Tensor:
    """What a network, in eval mode, answers to uint8 images [N, C, H, W] of any size: logits
    [N, K], float32 on the CPU. `role` names it in the InputError where they are not finite. A
    teacher is asked as precisely as it is at the time (`Teacher.exact`)."""
    device = _device(network)
    spec = getattr(network, "spec", None)
    if isinstance(network, nn.Module):
        network.eval()
    found = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for some in _batches(pixels, batch):
            suited = fitted(some, spec) if isinstance(spec, ImageSpec) else some
            suited = suited.to(device)
            parts = (suited,) if hasattr(network, "teach") else in_cache(suited)  # cuts its own
            found += [network(to_float(part)).float().cpu() for part in parts]
    logits = torch.cat(found)
    if not logits.isfinite().all():
        raise InputError(f"the {role} answers NaN or infinity on these images")
    return logits


def _batches(pixels: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def _device(network: Any) -> torch.device:
    if hasattr(network, "device"):
        return torch.device(network.device)
    tensors = chain(network.parameters(), network.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


@dataclass(frozen=True)
class Extractor:
    """Who looks at images: uint8 [B, C, H, W] of any size in, features and logits out."""

    name: str  # teacher, inception or a SPEC
    digest: str  # SHA-256 of its weights
    kind: str  # in words, for tables
    standard: bool  # its scores can be compared with published ones
    look: Callable[[Tensor], Observation]
    teacher: Teacher | None = None  # the classifier behind it


def classifier_extractor(teacher: Teacher, name: str = "teacher") -> Extractor:
    """A classifier as an extractor: the input of its last linear layer, or else its logits."""

    def look(pixels: Tensor) -> Observation:
        with torch.no_grad(), teacher.exact():
            seen = teacher.observe(to_float(fitted(pixels, teacher.spec).to(teacher.device)))
        return seen if seen.features is not None else seen._replace(features=seen.logits)

    what = "features" if teacher.feature_size else "logits"
    return Extractor(name, teacher.digest, f"{what} of a classifier", False, look, teacher)


def inception_extractor(
    weights: Path | None = None, device: torch.device | None = None
) -> Extractor:
    """torch-fidelity's Inception-v3: 2048 features of the last pool, 1008 logits without bias.

    `weights` is a local copy of its file; without one it is downloaded once into torch's cache. The
    file must be a plain state dict, and no larger than this machine bears (`specs.pickles`):
    torch-fidelity would unpickle anything, so it gets the tensors alone. Only the published file,
    known by its SHA-256, is called standard.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    path = weights or downloaded(URL_INCEPTION_V3)
    where = quoted(path)
    try:
        check_room(path.stat().st_size, where)
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {quoted(error.strerror)}") from None
    try:
        state = read_pickled(path, where)
    except InputError as error:
        said = str(error).partition("; save the state_dict")[0]
        raise InputError(f"{said}; get the file from {URL_INCEPTION_V3}") from None
    named = state.items() if isinstance(state, dict) else [("", None)]
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in named):
        raise InputError(f"{where} is not a plain state dict; get the file from {URL_INCEPTION_V3}")
    plain = io.BytesIO()  # written by us: nothing else of the file reaches torch-fidelity
    torch.save(dict(state), plain)
    plain.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=plain
        )
    except RuntimeError:
        raise InputError(
            f"{where} holds weights of another architecture than torch-fidelity's Inception; "
            f"get the file from {URL_INCEPTION_V3}"
        ) from None
    place = device or torch.device("cpu")
    network.to(place)

    def look(pixels: Tensor) -> Observation:
        with torch.no_grad():
            features, logits = network(_colour(pixels).to(place))
        return Observation(logits, features, ())

    digest = sha256_of(path)
    standard = digest.startswith(STANDARD_INCEPTION)
    kind = "standard Inception-v3" if standard else "unverified Inception-v3"
    return Extractor("inception", digest, kind, standard, look)


def downloaded(url: str, folder: Path | None = None) -> Path:
    """The file behind `url` in torch's cache, fetched once and held to STANDARD_INCEPTION."""
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=STANDARD_INCEPTION, progress=False
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the Inception weights could not be downloaded ({quoted(error)}): copy {url} here "
            "and give --extractor-weights FILE, or use --extractor teacher"
        ) from None
    return path


class FidelityDataset(Dataset[Tensor]):
    """Images as torch-fidelity wants them: one uint8 tensor [3, H, W] per item."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise TypeError(
                f"images must be uint8 [N, C, H, W]; got {pixels.dtype} {tuple(pixels.shape)}"
            )
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return _colour(self.pixels[index : index + 1])[0]


def fidelity_dataset(images: Images) -> FidelityDataset:
    """`images` for torch-fidelity: grey is copied to three channels, alpha is dropped, no resizing.

    >>> images = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, (), "memory", "")
    >>> fidelity_dataset(images)[1].shape
    torch.Size([3, 4, 4])
    """
    return FidelityDataset(images.pixels)


def _colour(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] with three channels."""
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)


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
    seen = [judge.look(part) for part in _batches(images.pixels, batch)]
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
        others = [encoder.look(part) for part in _batches(images.pixels, batch)]
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
        SetClass(teacher.names[k], asked[k], votes[k], _number(own[k]), _number(real[k]))
        for k in range(len(own))
    )


def _score(value: float, n: int, by: Extractor, **more: Any) -> Score:
    number = _number(value)
    if number is None:
        more["note"] = _joined("no finite value", more.get("note", ""))
    return Score(number, n, by.name, by.digest, **more | {"std": _number(more.get("std"))})


def _present(features: Tensor | None) -> Tensor:
    assert features is not None  # an extractor always shows features
    return features


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
