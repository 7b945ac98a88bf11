"""Do the labels of a user's images mean the teacher's classes? The teacher's own votes tell.

N images, K classes, L labels with images. A teacher that is hardly ever right, while another order
of its classes fits, was given labels in that other order. Orders that people meet are tried by
name; any other is found as an assignment of labels to classes. What is claimed rests on images
that it was not found on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.labels.class_names import Order, arranged, known_names, numbered

ABOUT_LABELS = ("labels-permuted", "teacher-near-chance")  # codes of the findings
LEAST_IMAGES = 10
GAIN = 0.2  # by which the mean recall of the classes that move must rise
FAIR, FAIR_OF_MANY, MANY = 0.35, 0.1, 50  # recall that an order must reach; of over 50 classes
SINGLE = 0.6  # recall as the other class, from which one label alone is said to be another class,
SELDOM = 0.1  # and its recall as itself, under which
SERIOUS = 0.05  # accuracy at stake from which a finding is serious
ERROR = 1e-4  # of a sign test, over all the orders that were tried
NO_BETTER = 0.1  # balanced accuracy, from chance 0 to 1, under which a teacher knows no label,
PERHAPS = 0.25  # if its upper limit lies under this,
LIMIT = 2.33  # so many standard errors above it (99 %)
LARGEST = 4_000_000  # cells of a table of labels and votes, over which no assignment is looked for
SORTED = 100_000  # classes over which orders of texts are not tried
LISTED = 60  # classes whose order is written into a remedy

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelCheck:
    """What the teacher's votes say of labels."""

    accuracy: float  # of the votes, by the labels as they are
    findings: tuple[Finding, ...] = ()
    order: Order | None = None  # one that fits far better
    better: float | None = None  # the accuracy by it


@dataclass(frozen=True)
class _Trial:
    """An order against the labels as they are."""

    order: Order
    hits: Flags  # [N]
    before: float  # mean recall of the labels that move, 0..1
    after: float
    moved: int  # labels with images that move
    images: int  # theirs
    fits: bool


def check_labels(
    votes: Tensor,
    labels: Tensor,
    classes: int,
    *,
    names: Sequence[str] = (),
    given: Sequence[str] = (),
    taken: Sequence[int] = (),
    others: Sequence[Order] = (),
    who: str = "teacher",
) -> LabelCheck:
    """Compares the teacher's votes [N], or those of its student (`who`), with labels [N] that are
    meant to be its classes.

    `names` are the teacher's; `given` are the names of the classes on the user's side and `taken`
    what class each was taken for; `others` are further orders that the data allow. An order fits
    far better if the mean recall of the labels that it moves rises by GAIN, and a sign test over
    the images on which it and the labels differ says so (ERROR, divided by the orders tried). For
    the assignment (Kuhn 1955, by scipy's `linear_sum_assignment`, on recalls) each half of the
    images is judged by what the other half gave, and every cycle of it stands for itself.

    The finding "labels-permuted" proposes an order; "teacher-near-chance" says that none fits, and
    that balanced accuracy is near what votes get that know no label. Few images, or a teacher that
    is weak, give no finding.

    >>> import torch
    >>> truth = torch.arange(300) % 3
    >>> found = check_labels(truth, (truth + 1) % 3, 3)
    >>> found.accuracy, found.better, found.order.classes
    (0.0, 1.0, (2, 0, 1))
    """
    seen, told = votes.cpu().numpy().astype(np.int64), labels.cpu().numpy().astype(np.int64)
    hits = seen == told
    accuracy = float(hits.mean()) if len(hits) else math.nan
    if len(hits) < LEAST_IMAGES:
        return LabelCheck(accuracy)
    known = list(dict.fromkeys([*others, *_common(classes, seen, told, names)]))
    tests = len(known) + 2 * classes
    trials = [_tried(order, seen, told, hits, tests) for order in known]
    fitting = [trial for trial in trials if trial.fits]
    best = max(fitting, key=lambda trial: int(trial.hits.sum()), default=None)
    free = _assigned(seen, told, hits, classes, None if best is None else best.hits)
    if free is not None and (best is None or _beats(free.hits, best.hits)):
        best = free
    if best is None:
        return LabelCheck(accuracy, tuple(_near_chance(seen, told, accuracy, who)))
    better = float(best.hits.mean())
    if not given:
        taken = np.unique(told).tolist()
        given = [str(k) for k in taken]
    finding = _finding(best, accuracy, better, names, given, taken, who)
    return LabelCheck(accuracy, (finding,), best.order, better)


# Orders that people meet


def _common(classes: int, seen: Numbers, told: Numbers, names: Sequence[str]) -> Iterator[Order]:
    """Orders by name. Of a family that has one for each class only the best member is given."""
    k, low, high = classes, int(told.min()), int(told.max())
    rest = [-1] * (k - 1 - high)
    if low > 0:
        yield Order("if 1 is taken away from each label", tuple(range(-1, k - 1)), "one-based")
    if high < k - 1:
        yield Order("if 1 is added to each label", (*range(1, k), -1), "background-first")
        yield Order("if the labels are counted backwards", (*range(high, -1, -1), *rest))
    backwards = "if the classes are counted backwards" if k > 2 else "if both change places"
    yield Order(backwards, tuple(range(k - 1, -1, -1)))
    inside = told < k
    steps = np.bincount((seen - told)[inside] % k, minlength=k)
    steps[0] = 0
    step = int(steps.argmax())
    turned = f"added to each label (and {k - step} becomes 0)"
    if 2 * step > k:
        turned = f"taken away from each label (and 0 becomes {step})"
    yield Order(
        f"if {min(step, k - step)} is {turned}", tuple((label + step) % k for label in range(k))
    )
    if 0 < high < k - 1:  # labels in a row, of a teacher with one class more between them
        low_hits = np.bincount(told[seen == told], minlength=k)
        high_hits = np.bincount(told[seen == told + 1], minlength=k)
        gaps = np.cumsum(low_hits)[:-1] + np.cumsum(high_hits[::-1])[::-1][1:]
        gap = 1 + int(gaps[:high].argmax())
        yield Order(
            f"if the labels from {gap} on are one higher, as class {gap} has no images",
            (*range(gap), *range(gap + 1, k), -1),
        )
    if k <= SORTED:
        yield from _text_orders(k)
        yield from _name_orders(known_names(names), k)


def _text_orders(k: int) -> Iterator[Order]:
    for first in (0, 1):
        texts = sorted(str(n + first) for n in range(k))
        if k + first > 10:
            rank = {text: n for n, text in enumerate(texts)}
            row = f"({', '.join(texts[:4])}, …)"
            yield Order(
                f"if the teacher's classes are in text order {row}, as ImageFolder sorts numbers",
                tuple(rank[str(n + first)] for n in range(k)), "alphabetical",
            )  # fmt: skip
            yield Order(
                f"if the labels are in text order {row}", tuple(int(text) - first for text in texts)
            )


def _name_orders(names: Sequence[str], k: int) -> Iterator[Order]:
    """Alphabetical orders of the teacher's names, with and without regard to case."""
    if len(names) != k:
        return
    for way in (str, str.casefold):
        ordered = sorted(range(k), key=[way(name) for name in names].__getitem__)
        if ordered == list(range(k)):
            continue
        yield Order("if the labels are in the alphabetical order of the names", tuple(ordered))
        place = np.argsort(ordered).tolist()
        yield Order("if the teacher's classes are in the alphabetical order of its names",
                    tuple(place))  # fmt: skip


def _tried(order: Order, seen: Numbers, told: Numbers, hits: Flags, tests: int) -> _Trial:
    """One order, that was fixed before the votes were seen."""
    image = np.asarray(order.classes)
    if len(image) <= int(told.max()):
        image = np.concatenate([image, np.full(int(told.max()) + 1 - len(image), -1)])
    target = image[told]
    moving = target != told
    now = target == seen
    before, after = _recalls(hits, told, moving), _recalls(now, told, moving)
    sure = _sure(now & ~hits, hits & ~now, tests)
    far = _far(before, after, len(order.classes), whole=moving.mean() > 0.5)
    moved = len(np.unique(told[moving]))
    return _Trial(order, now, before, after, moved, int(moving.sum()), bool(sure and far))


def _far(before: float, after: float, classes: int, *, whole: bool) -> bool:
    """Whether a recall rises by as much as no confusion of classes explains. Where a teacher is
    seldom right by any order, a multiple does, if most images are concerned."""
    fair = after >= (FAIR if classes <= MANY else FAIR_OF_MANY)
    return fair and (after - before >= GAIN or (whole and after >= 0.05 + 3 * before))


def _recalls(hits: Flags, told: Numbers, chosen: Flags) -> float:
    """The mean, over the labels of the chosen images, of the share of hits among theirs."""
    if not chosen.any():
        return 0.0
    counts = np.bincount(told[chosen])
    right = np.bincount(told[chosen], weights=hits[chosen].astype(float))
    return float((right[counts > 0] / counts[counts > 0]).mean())


def _sure(gained: Flags, lost: Flags, tests: int) -> bool:
    """A sign test: whether so many more are gained than lost by chance only once in 1/ERROR."""
    from scipy.special import bdtrc

    a, b = int(gained.sum()), int(lost.sum())
    return a > b and float(bdtrc(a - 1, a + b, 0.5)) * max(1, tests) < ERROR


def _beats(hits: Flags, others: Flags) -> bool:
    return _sure(hits & ~others, others & ~hits, 1) and hits.mean() - others.mean() > 0.01


# Any other order


def _assigned(
    seen: Numbers, told: Numbers, hits: Flags, classes: int, rival: Flags | None
) -> _Trial | None:
    """The best assignment of labels to classes, of which only those cycles are kept that fit; all
    of it, where that fits as a whole, or better than a `rival` that does."""
    size = max(classes, int(told.max()) + 1)
    labels, row = np.unique(told, return_inverse=True)
    # besides the voted classes, each label's own: nothing has to move for lack of a place
    columns = np.unique(np.concatenate([seen, labels]))
    column = np.searchsorted(columns, seen)
    own = np.searchsorted(columns, labels)
    if len(labels) * len(columns) > LARGEST:
        return None
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(row))
    half = np.empty(len(row), dtype=np.int64)  # the images of each label in turn
    place = np.argsort(row[shuffled], kind="stable")
    half[shuffled[place]] = np.arange(len(row)) % 2

    def assignment(chosen: Flags) -> Numbers:
        from scipy.optimize import linear_sum_assignment

        table = np.zeros((len(labels), len(columns)))
        np.add.at(table, (row[chosen], column[chosen]), 1.0)
        table[np.arange(len(labels)), own] += 0.5  # in doubt a label stays what it is
        table /= table.sum(1, keepdims=True)
        found: Numbers = linear_sum_assignment(table, maximize=True)[1]
        return found

    everything = np.ones(len(row), dtype=np.bool_)
    whole = assignment(everything)
    judged = np.zeros(len(row), dtype=np.bool_)
    for part in (0, 1):
        there = assignment(half != part)
        mine = half == part
        judged[mine] = (there[row] == column)[mine]
    pairs = max(1, len(labels) * (len(columns) - 1) // 2)
    kept: list[int] = []
    before, after = (_recalls(some, told, everything) for some in (hits, judged))
    fits = _sure(judged & ~hits, hits & ~judged, 1) and _far(before, after, classes, whole=True)
    if fits or (rival is not None and _beats(judged, rival)):
        kept = np.flatnonzero(whole != own).tolist()
    for group, closed in _cycles(whole, own):
        chosen = np.isin(row, group)
        before = _recalls(hits, told, chosen)
        after = _recalls(judged, told, chosen)
        sure = _sure((judged & ~hits)[chosen], (hits & ~judged)[chosen], pairs)
        far = _far(before, after, classes, whole=False)
        if not closed and len(group) < 3:  # a weak class that falls to an absent one
            far = after >= SINGLE and before <= SELDOM
        if sure and far:
            kept = sorted({*kept, *group})
    if not kept:
        return None
    image = np.arange(size)
    moved = labels[kept]
    image[moved] = columns[whole[kept]]
    # classes that are taken now, and belonged to labels without images
    taken = np.isin(image, image[moved])
    taken[moved] = False
    image[taken] = -1
    chosen = np.isin(row, kept)
    judged = np.where(chosen, judged, hits)
    if not _far(0.0, _recalls(judged, told, everything), classes, whole=True):
        return None  # votes that hardly know the labels by any order
    order = Order("", tuple(image.tolist()))
    return _Trial(
        order, judged, _recalls(hits, told, chosen), _recalls(judged, told, chosen),
        len(kept), int(chosen.sum()), True,
    )  # fmt: skip


def _cycles(whole: Numbers, own: Numbers) -> Iterator[tuple[list[int], bool]]:
    """The groups of labels that move together, and whether they change places only among
    themselves; rows of the table."""
    holder = {int(column): row for row, column in enumerate(own)}
    follows = {row: holder.get(int(column)) for row, column in enumerate(whole)}
    entered = {follows[row] for row in follows if whole[row] != own[row]}
    waiting = [row for row in range(len(whole)) if whole[row] != own[row]]
    done: set[int] = set()
    for start in sorted(waiting, key=lambda row: row in entered):  # chains from their first link
        group: list[int] = []
        row: int | None = start
        while row is not None and row not in done and whole[row] != own[row]:
            done.add(row)
            group.append(row)
            row = follows[row]
        if group:
            yield group, row == start


# In words


def _finding(
    best: _Trial, accuracy: float, better: float, names: Sequence[str], given: Sequence[str],
    taken: Sequence[int], who: str,
) -> Finding:  # fmt: skip
    order = best.order
    side = {k: name for name, k in zip(given, taken, strict=True) if k >= 0}

    def label(k: int) -> str:
        return quoted(side.get(k, str(k)), 40)

    def called(k: int) -> str:
        told = known_names(names)
        return f"{k} ({quoted(told[k], 40)})" if 0 <= k < len(told) else str(k)

    moves = [(k, to) for k, to in enumerate(order.classes) if to not in (k, -1)]
    how = order.how
    if not how and best.moved == 2 and len(moves) == 2 and moves[0] == moves[1][::-1]:
        how = f"if {label(moves[0][0])} and {label(moves[0][1])} change places"
    elif not how and len(moves) <= 4:
        how = "if " + ", ".join(f"{label(k)} is its class {called(to)}" for k, to in moves)
    elif not how:
        few = ", ".join(f"{label(k)} is {called(to)}" for k, to in moves[:3])
        how = f"if {len(moves)} classes are in another order ({few}, …)"
    change = better - accuracy
    return Finding(
        "labels-permuted",
        f"the {who} is right on {accuracy:.1%} of these {len(best.hits):,} images, but on "
        f"{better:.1%} {how}",
        _remedy(order, given, taken),
        serious=change >= SERIOUS,
    )


def _remedy(order: Order, given: Sequence[str], taken: Sequence[int]) -> str:
    told = [order.classes[k] if k < len(order.classes) else -1 for k in taken if k >= 0]
    if order.flag and _does(order, [g for g, k in zip(given, taken, strict=True) if k >= 0], told):
        return f"if the labels are wrong, give --class-order {order.flag}"
    if 0 < len(told) <= LISTED and -1 not in told and len(set(told)) == len(told):
        return f"if the labels are wrong, give --class-order {','.join(map(str, told))}"
    return (
        "if the labels are wrong, name the teacher's classes (--class-names) or put the labels "
        "right; --json and evaluation.json have the order that fits (label_order)"
    )


def _does(order: Order, given: Sequence[str], told: Sequence[int]) -> bool:
    """Whether --class-order with one word turns these labels into those classes."""
    classes = len(order.classes)
    try:
        if all(name.isascii() and name.isdecimal() for name in given):
            found = numbered(sorted(map(int, given)), (), classes, order.flag)
            return list(found.classes) == [
                k for _, k in sorted(zip(map(int, given), told, strict=True))
            ]
        return list(arranged(given, [True] * len(given), (), classes, order.flag).classes) == told
    except InputError:
        return False


def _near_chance(seen: Numbers, told: Numbers, accuracy: float, who: str) -> list[Finding]:
    """Balanced accuracy beside that of votes as often for each class, that know no label."""
    size = int(max(seen.max(), told.max())) + 1
    n = np.bincount(told, minlength=size)
    right = np.bincount(told[seen == told], minlength=size)
    present = n > 0
    if present.sum() < 2:
        return []  # nothing to be told apart
    share = (right[present] + 1) / (n[present] + 2)  # so that none counts as certain
    balanced = float((right[present] / n[present]).mean())
    error = math.sqrt(float((share * (1 - share) / n[present]).sum())) / int(present.sum())
    chance = float((np.bincount(seen, minlength=size) / len(seen))[present].mean())
    known, most = ((b - chance) / (1 - chance) for b in (balanced, balanced + LIMIT * error))
    if known >= NO_BETTER or most >= PERHAPS or balanced >= 0.02 + 2 * chance:
        return []
    return [Finding(
        "teacher-near-chance",
        f"the {who} itself is right on {accuracy:.1%} of these {len(seen):,} images (balanced "
        f"over the classes {balanced:.1%}, by chance {chance:.1%}), and no other order of its "
        "classes fits",
        "check that these are images of its classes and that it is fed as it was trained "
        "(--teacher-mean, --teacher-std, --channels, --image-size)",
        serious=True,
    )]  # fmt: skip
