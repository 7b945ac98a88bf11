"""How good a student is: it and its teacher are asked about the same images. N images, K
classes."""

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd import measures
from synthkd.checks.student import check_accuracy, check_agreement
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import finite
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, fitted, in_cache, to_float
from synthkd.core.logits import paired
from synthkd.data.sources import Images
from synthkd.labels.check import LabelCheck, check_labels
from synthkd.teachers.protocol import Teacher

YES_OR_NO = ("no", "yes")  # the classes of a question about one independent class
MANY_CLASSES = 20  # from which five guesses are scored too
MANY_PAIRS = 4096  # classes beyond which pairs of votes are not counted: a table of their square


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
        student_balanced_accuracy=None if mine is None else finite(mine.balanced),
        teacher_balanced_accuracy=None if other is None else finite(other.balanced),
        balanced_agreement=finite(agreed.balanced),
        constant_balanced_accuracy=finite((mine or agreed).constant),
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
        return BinaryMetrics(*map(finite, measures.binary_scores(odds, truth)))

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
    return BinaryMetrics(*map(finite, measures.macro(scores)))


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
    return finite(whole), [finite(share) for share in by_class]


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
    columns = [[finite(value) for value in column] for column in (ours, theirs, alike)]
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
        for some in torch.split(pixels, batch):
            suited = fitted(some, spec) if isinstance(spec, ImageSpec) else some
            suited = suited.to(device)
            parts = (suited,) if hasattr(network, "teach") else in_cache(suited)  # cuts its own
            found += [network(to_float(part)).float().cpu() for part in parts]
    logits = torch.cat(found)
    if not logits.isfinite().all():
        raise InputError(f"the {role} answers NaN or infinity on these images")
    return logits


def _device(network: Any) -> torch.device:
    if hasattr(network, "device"):
        return torch.device(network.device)
    tensors = chain(network.parameters(), network.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))
