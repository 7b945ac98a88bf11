"""Is a student of any use? What a constant classifier would get stands beside every figure.

Each check takes votes and counts and gives `Finding`s, the serious ones for a result that is of no
use. N images, K classes. The limits were set on runs whose truth is known (docs/log.md, "right, or
refused": what came out).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synthkd.core.errors import quoted
from synthkd.core.findings import OF_NO_USE, Finding
from synthkd.core.words import estimate_in_words
from synthkd.measures import ClassBalance, class_balance, missing_classes, relative_entropy

USELESS = 0.25  # adjusted balanced agreement on held-out images below which a student is of no use
WEAK = 0.4  # below which it is weak
LOST = 1 / 3  # share of the adjusted agreement below which a class counts as lost
FEW_IMAGES = 5_000  # student images under which nothing good was ever seen,
SOME_IMAGES = 20_000  # and under which students are far from what they could be
FEW_REFINED = 512  # refined images under which a memory holds hardly any,
REFINED_PER_CLASS = 8  # and so for each class
JUDGED = 12  # images of a class from which its own share is believed
NEAR_CONSTANT = 0.98  # share of one class among the votes from which a student counts as constant
NO_BETTER = 0.1  # adjusted balanced accuracy under which a network is hardly better than a constant
HARDLY = 0.4  # share of the teacher's adjusted accuracy below which a student is of no use,
FAR = 0.6  # and below which it is far from it
HALF = 0.5  # expected agreement on real images below which a student is weak
AS_A_CONSTANT = 0.1  # of the way from a constant to the teacher, up to which it is like a constant
NAMED = 5  # classes named in a message
OF_COUNTS = ("classes-missing", "classes-short")  # codes of what `check_dataset` finds


def verdict(findings: Iterable[Finding]) -> str:
    """What findings about a result come to: "useless", "weak" or "ok".

    >>> verdict([]), verdict([Finding("a", "b", "c", serious=True)])
    ('ok', 'useless')
    """
    found = list(findings)
    return OF_NO_USE if any(f.serious for f in found) else "weak" if found else "ok"


def balance_data(found: ClassBalance, names: Sequence[str]) -> dict[str, Any]:
    """A `ClassBalance` as plain data for summary.json; what has no value is None."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    worst = None
    if found.worst >= 0:
        worst = {
            "class": found.worst, "name": _name(names, found.worst),
            "agreement": number(found.worst_share), "images": found.worst_count,
        }  # fmt: skip
    return {
        "balanced_agreement": number(found.balanced),
        "constant_classifier": number(found.constant),
        "adjusted": number(found.adjusted),
        "classes": found.present,
        "worst_class": worst,
    }


def check_memory(counts: Tensor, names: Sequence[str]) -> list[Finding]:
    """What the memory lacks, by how many of its images [K] the teacher sees in each class. A class
    without images cannot be learned."""
    classes, total = len(counts), int(counts.sum())
    if not total:
        return []
    missing = missing_classes(counts)
    if missing:
        share = len(missing) / classes
        return [
            Finding(
                "classes-missing",
                f"{len(missing):,} of {classes:,} classes have no synthetic image "
                f"({_listed(missing, names)}): the student has never seen one",
                "give more time (--minutes), or refine more of them "
                "(--stage.refine.share); they may not be reachable from this teacher",
                serious=share >= 0.1,
            )
        ]
    even = relative_entropy(counts)
    if even < 0.5:
        rarest = int(counts.argmin())
        return [
            Finding(
                "classes-unbalanced",
                f"the synthetic images are unevenly spread over the classes (relative entropy "
                f"{even:.2f}; {_name(names, rarest)} has {int(counts[rarest]):,} of {total:,})",
                "give more time (--minutes)",
            )
        ]
    return []


def check_estimate(found: Mapping[str, Any] | None) -> list[Finding]:
    """Whether the agreement that is to be expected on real images (an `AgreementEstimate` as data)
    is that of a student of use. It counts as high as its interval reaches: what is still far from
    the teacher then is of no use, and neither is what is itself hardly above a constant's."""
    if found is None or found["agreement"] >= HALF:
        return []
    above, highest = (
        (found[key] - found["constant"]) / max(1.0 - found["constant"], 1e-9)
        for key in ("agreement", "high")
    )
    return [
        Finding(
            "estimate-low",
            "the agreement with the teacher to be expected on real images is "
            f"{estimate_in_words(found)}",
            "give more time (--minutes) or a larger --student",
            serious=highest < USELESS or above < AS_A_CONSTANT,
        )
    ]


def enough_refined(classes: int) -> int:
    """Refined images from which a memory holds some of each class.

    >>> enough_refined(2), enough_refined(1000)
    (512, 8000)
    """
    return max(FEW_REFINED, REFINED_PER_CLASS * classes)


def check_budget(images_seen: int, refined: int | None, classes: int = 2) -> list[Finding]:
    """Whether a student that began with fresh weights saw enough images, and whether any of them
    were refined (`refined`: how many are in the memory; None: the plan refines none)."""
    found = []
    if images_seen < SOME_IMAGES:
        found.append(
            Finding(
                "few-images",
                f"the student saw {images_seen:,} images; students were only good from "
                f"{SOME_IMAGES:,} on",
                "give more time (--minutes) or images (--images-seen), or a smaller student",
                serious=images_seen < FEW_IMAGES,
            )
        )
    if refined is not None and refined < (wanted := enough_refined(classes)):
        found.append(
            Finding(
                "few-refined",
                f"only {refined:,} images were refined against the teacher; {wanted:,} are few for "
                f"{classes:,} classes",
                "give more time (--minutes) or images (--images-seen)",
            )
        )
    return found


def expect_budget(
    images_seen: float, refined: float | None, classes: int = 2, minutes: float | None = None
) -> list[Finding]:
    """The same before a run, by what is expected of it in so many `minutes`: then it is said how
    many would do."""
    found, lacking = [], 1.0
    wanted = enough_refined(classes)
    if images_seen < SOME_IMAGES:
        lacking = SOME_IMAGES / max(1.0, images_seen)
    if refined is not None and refined < wanted:
        lacking = max(lacking, wanted / max(1.0, refined))
    more = "give more time (--minutes)"
    if minutes is not None:
        more = f"give more time (--minutes {_rounded_up(minutes * lacking)})"
    if images_seen < SOME_IMAGES:
        found.append(
            Finding(
                "few-images",
                f"expect a weak student: it will see about {images_seen:,.0f} images; good "
                f"students were only seen from {SOME_IMAGES:,} on",
                f"{more} or images (--images-seen), or a smaller --student",
            )
        )
    if refined is not None and refined < wanted:
        found.append(
            Finding(
                "few-refined",
                f"expect a weak student: only about {refined:,.0f} images will be refined against "
                f"the teacher; {wanted:,} are few for {classes:,} classes",
                more,
            )
        )
    return found


def expect_memory(
    expected: float, available: float, *, batch: int, synthesis_batch: int
) -> list[Finding]:
    """Whether a run is expected to take more bytes than there are, with batches of so many images
    (0: no generator takes steps).

    >>> [str(one) for one in expect_memory(9e9, 8e9, batch=64, synthesis_batch=0)]
    ['the run is expected to take 9.0 GB of memory, and there are 8.0 GB: give --training.batch 32']
    >>> expect_memory(7e9, 8e9, batch=64, synthesis_batch=0)
    []
    """
    if expected <= available:
        return []
    smaller = [f"--training.batch {max(2, batch // 2)}"]
    if synthesis_batch:
        smaller.append(f"--stage.refine.synthesis_batch {max(2, synthesis_batch // 2)}")
    return [
        Finding(
            "memory-short",
            f"the run is expected to take {expected / 1e9:.1f} GB of memory, and there are "
            f"{available / 1e9:.1f} GB",
            f"give {' and '.join(smaller)}",
        )
    ]


def _rounded_up(minutes: float) -> int:
    """To two digits.

    >>> _rounded_up(4.2), _rounded_up(131.0)
    (5, 140)
    """
    step = int(10 ** max(0, len(str(int(minutes))) - 2))
    return step * math.ceil(minutes / step)


def check_agreement(
    learned: Tensor, taught: Tensor, classes: int, names: Sequence[str]
) -> list[Finding]:
    """The student's votes [N] against the teacher's [N] on images that nobody learned from."""
    if not len(taught):
        return [
            Finding(
                "not-judged", "no image was held out, so nothing is known about the student",
                "score it with synthkd evaluate on labelled images",
            )
        ]  # fmt: skip
    found = class_balance(learned, taught, classes)
    if found.present < 2:
        return [
            Finding(
                "one-class-held-out",
                f"the teacher sees a single class ({_name(names, found.worst)}) in all "
                f"{len(taught):,} held-out images: a constant classifier would agree as well",
                "give more time (--minutes), or score the student on labelled images",
                serious=True,
            )
        ]
    counts = learned.bincount(minlength=classes)
    top = int(counts.argmax())
    if (share := float(counts[top]) / len(learned)) >= NEAR_CONSTANT:
        return [
            Finding(
                "constant-student",
                f"the student names one class ({_name(names, top)}) in {share:.1%} of the held-out "
                f"images, where the teacher names {found.present}",
                "give more time (--minutes) or a larger --student",
                serious=True,
            )
        ]
    told = (
        f"balanced agreement on held-out images is {found.balanced:.1%}, where a constant "
        f"classifier gets {found.constant:.1%}"
    )
    more = "give more time (--minutes) or a larger --student"
    if found.adjusted < USELESS:
        return [Finding("low-agreement", told, more, serious=True)]
    result = []
    if found.adjusted < WEAK:
        result.append(Finding("weak-agreement", told, more))
    shares = [one for one in _shares(learned, taught, classes) if one[1] >= JUDGED]
    unnamed = [k for k, _, _ in shares if not counts[k]]
    if unnamed:
        result.append(
            Finding(
                "classes-not-named",
                f"the student never names {len(unnamed):,} of the {classes:,} classes on held-out "
                f"images, where the teacher does ({_listed(unnamed, names)})",
                more,
                serious=len(unnamed) >= classes / 10,
            )
        )
    lost = [k for k, _, share in shares if counts[k] and share <= LOST * found.adjusted]
    if lost:
        worst = min(shares, key=lambda one: one[2])
        result.append(
            Finding(
                "unequal-agreement",
                f"the student agrees far less in some classes than in others "
                f"({_listed(lost, names)}; {_name(names, worst[0])}: {worst[2]:.1%} of {worst[1]:,}"
                f" held-out images, {found.balanced:.1%} over all classes)",
                "give more time (--minutes), or look at these classes with synthkd evaluate",
                serious=len(lost) >= classes / 5,
            )
        )
    return result


def check_accuracy(
    learned: Tensor, taught: Tensor, labels: Tensor, classes: int, names: Sequence[str]
) -> list[Finding]:
    """The student's votes [N] on the user's images, beside the teacher's [N], the labels [N] and
    what a constant classifier would get."""
    own, theirs = (class_balance(votes, labels, classes) for votes in (learned, taught))
    if (
        theirs.adjusted < NO_BETTER
    ):  # nothing is known of the student by labels that fail the teacher
        return []
    if own.present < 2:
        return [
            Finding(
                "one-class-labelled",
                f"all labelled images are of one class ({_name(names, own.worst)}): a constant "
                "classifier could be right on all of them",
                "score it on images of several classes",
            )
        ]
    counts = learned.bincount(minlength=classes)
    top, largest = int(counts.argmax()), labels.bincount(minlength=classes)
    named = float(counts[top]) / len(learned)
    always = float(largest.max()) / len(labels)
    accuracy = float((learned == labels).double().mean())
    if named >= NEAR_CONSTANT and float(largest[top]) / len(labels) < NEAR_CONSTANT:
        return [
            Finding(
                "constant-student",
                f"the student names one class ({_name(names, top)}) in {named:.1%} of your "
                f"{len(labels):,} images: its accuracy of {accuracy:.1%} is that of a constant",
                "do not use it; give more time (--minutes) or a larger --student",
                serious=True,
            )
        ]
    if own.adjusted < max(NO_BETTER, HARDLY * theirs.adjusted):
        return [
            Finding(
                "no-better-than-constant",
                f"on your {len(labels):,} images the student has a balanced accuracy of "
                f"{own.balanced:.1%} (accuracy {accuracy:.1%}), the teacher {theirs.balanced:.1%}; "
                f"a constant classifier gets {own.constant:.1%} ({always:.1%} of accuracy by "
                f"naming {_name(names, int(largest.argmax()))})",
                "do not use it; give more time (--minutes) or a larger --student",
                serious=True,
            )
        ]
    if own.adjusted < FAR * theirs.adjusted:
        return [
            Finding(
                "far-from-teacher",
                f"on your {len(labels):,} images the student has a balanced accuracy of "
                f"{own.balanced:.1%}, the teacher {theirs.balanced:.1%}, and a constant classifier "
                f"{own.constant:.1%}",
                "give more time (--minutes) or a larger --student",
            )
        ]
    return []


def check_dataset(written: Sequence[int], asked: int, names: Sequence[str]) -> list[Finding]:
    """A synthetic data set by the images written of each class, [K], where `asked` were wanted in
    all."""
    counts = torch.tensor(list(written))
    missing, classes = missing_classes(counts), len(counts)
    wanted = asked / classes
    if missing and asked >= classes:
        return [
            Finding(
                "classes-missing",
                f"{len(missing):,} of {classes:,} classes have no image "
                f"({_listed(missing, names)}): the teacher saw none of them in what was drawn",
                "give more time, another --pipeline, or see synthkd inspect for what the teacher "
                "can be shown",
                serious=len(missing) / classes >= 0.1,
            )
        ]
    few = [k for k, n in enumerate(written) if n < wanted / 2]
    if few and asked >= classes:
        return [
            Finding(
                "classes-short",
                f"{len(few):,} of {classes:,} classes have less than half of the images asked for "
                f"({_listed(few, names)})",
                "give more time or another --pipeline",
            )
        ]
    return []


def _shares(learned: Tensor, taught: Tensor, classes: int) -> list[tuple[int, int, float]]:
    """Class, images, share of equal votes: for the classes that the teacher names."""
    counts = taught.bincount(minlength=classes)
    right = taught[learned == taught].bincount(minlength=classes)
    return [
        (k, int(counts[k]), float(right[k]) / int(counts[k]))
        for k in counts.nonzero().flatten().tolist()
    ]


def _name(names: Sequence[str], k: int) -> str:
    return quoted(names[k], 40) if 0 <= k < len(names) else f"class {k}"


def _listed(classes: Sequence[int], names: Sequence[str]) -> str:
    more = f" and {len(classes) - NAMED:,} more" if len(classes) > NAMED else ""
    return ", ".join(_name(names, k) for k in classes[:NAMED]) + more
