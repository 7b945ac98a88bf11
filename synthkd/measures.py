"""Measures: answers, votes, features or moments in, numbers out. N images, K classes, D features.

`learned` and `taught` are the logits of student and teacher, [N, K]; `labels` are int64 [N];
a vote is the class with the largest logit. Sums run in float64. What has no value (a class without
images, a ratio with nothing below the line) is NaN.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Moments = Sequence[tuple[Tensor, Tensor]]  # per layer: mean [C], variance [C]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose vote is the label, 0..1.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    0.5
    """
    return _share(logits.argmax(1) == labels)


def top(logits: Tensor, labels: Tensor, count: int = 5) -> float:
    """Top-5 accuracy, or of another `count`: the share of images whose label is among the `count`
    classes with the highest logits, 0..1. Of K classes a constant ranking gets the share of its
    `count` classes, about count / K of even data. With the teacher's votes as labels it is the
    top-5 agreement.

    >>> top(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2]), count=2)
    0.5
    """
    best = logits.topk(min(count, logits.shape[1]), dim=1).indices
    return _share((best == labels[:, None]).any(1))


def decided(logits: Tensor, *, independent: bool) -> Tensor:
    """What logits [N, K] decide: the class of each image, [N], or of independent classes a no (0)
    or yes (1) to each, [N · K].

    >>> decided(torch.tensor([[2.0, -1.0]]), independent=True).tolist()
    [1, 0]
    """
    return (logits > 0).flatten().long() if independent else logits.argmax(1)


def agreement(learned: Tensor, taught: Tensor) -> float:
    """The share of images on which student and teacher vote alike, 0..1.

    >>> agreement(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[9.0, 0.0], [8.0, 0.0]]))
    0.5
    """
    return _share(learned.argmax(1) == taught.argmax(1))


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The accuracy over the images of each class, float64 [K]; NaN for a class without images.

    >>> per_class_accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])).tolist()
    [0.5, nan]
    """
    return _share_by_class(logits.argmax(1) == labels, labels, logits.shape[1])


def per_class_agreement(learned: Tensor, taught: Tensor, labels: Tensor | None = None) -> Tensor:
    """The agreement over the images of each class, float64 [K]; NaN for a class without images.

    The class of an image is its label, or the teacher's vote when there are no labels.
    """
    votes = taught.argmax(1)
    classes = votes if labels is None else labels
    return _share_by_class(learned.argmax(1) == votes, classes, taught.shape[1])


class ClassBalance(NamedTuple):
    """Agreement in which every class counts alike, whatever its share of the images.

    A constant classifier is right in all images of one class and in none of the others: its
    `balanced` is exactly 1 / `present`, and its `adjusted` is 0, on any set of images. A single
    class present cannot tell a constant from a good one: then `adjusted` is NaN.
    """

    balanced: float  # mean over the classes present of the share right, 0..1
    constant: float  # what a constant classifier gets: 1 / present
    adjusted: float  # (balanced − constant) / (1 − constant): 1 all right, 0 as a constant
    present: int  # classes that have images
    worst: int  # the class with the smallest share right; of equals the first; −1: there is none
    worst_share: float  # its share, 0..1
    worst_count: int  # its images


def class_balance(votes: Tensor, truth: Tensor, classes: int) -> ClassBalance:
    """Balanced accuracy of `votes` [N] against `truth` [N] (labels, or the teacher's votes), both
    int64 in 0..K−1, beside what a constant classifier would get.

        balanced = mean over classes k with images of  share of {i: truth_i = k} with votes_i = k
        adjusted = (balanced − 1/S) / (1 − 1/S)            S: classes with images

    Brodersen et al. 2010, "The balanced accuracy and its posterior distribution"; the adjustment is
    that of scikit-learn's `balanced_accuracy_score(adjusted=True)` (Youden's J for two classes).

    >>> always_one = torch.tensor([1, 1, 1, 1])
    >>> found = class_balance(always_one, torch.tensor([1, 1, 1, 0]), 2)
    >>> found.balanced, found.adjusted, found.worst
    (0.5, 0.0, 0)
    """
    if not len(truth):
        return ClassBalance(math.nan, math.nan, math.nan, 0, -1, math.nan, 0)
    shares = _share_by_class(votes == truth, truth, classes)
    present = int((~shares.isnan()).sum())
    balanced, constant = float(shares.nanmean()), 1 / present
    worst = int(shares.nan_to_num(nan=2.0).argmin())
    return ClassBalance(
        balanced, constant,
        (balanced - constant) / (1 - constant) if present > 1 else math.nan,
        present, worst, float(shares[worst]), int((truth == worst).sum()),
    )  # fmt: skip


def kl(learned: Tensor, taught: Tensor) -> float:
    """How far the student's answer is from the teacher's, in nats, at temperature 1.

        mean over images of KL( softmax(taught) ‖ softmax(learned) )

    >>> kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[99.0, 0.0]])) - math.log(2)
    0.0
    """
    q = learned.double().log_softmax(1)
    p = taught.double().log_softmax(1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean").item()


def ece(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, 0..1.

        Σ_b  N_b / N · | accuracy(b) − mean confidence(b) |

    over `bins` equal intervals (lower, upper] of the largest probability.
    Guo et al. 2017, section 2: https://arxiv.org/abs/1706.04599

    >>> ece(torch.tensor([[99.0, 0.0], [99.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    confidence, vote = logits.double().softmax(1).max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gap.index_add_(0, bin_of, (vote == labels).double() - confidence)
    return (gap.abs().sum() / len(labels)).item()


def auroc(scores: Tensor, truth: Tensor) -> float:
    """The area under the ROC curve: how often a positive has a higher score than a negative, 0..1.

        ( Σ ranks of the positives − P (P + 1) / 2 ) / ( P · Q )

    with P positives and Q negatives, and the mean rank for equal scores, so that a pair of these
    counts a half (Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747).
    `scores` [N], `truth` bool [N]; NaN without a positive or without a negative.

    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, False, True, True]))
    0.875
    """
    truth = truth.bool()
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    _, place, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2  # of each value, from 1 on
    above = float(ranks[place][truth].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


class BinaryScores(NamedTuple):
    """How well yes and no are told apart, each 0..1; NaN where there is nothing to tell.

    `auroc` needs no threshold; the others are for a probability of one half.
    """

    auroc: float
    sensitivity: float  # share of the positives that are found (recall)
    specificity: float  # share of the negatives that are left alone
    f1: float  # 2 TP / (2 TP + FP + FN)


def binary_scores(log_odds: Tensor, truth: Tensor) -> BinaryScores:
    """AUROC, sensitivity, specificity and F1 of log-odds [N] against the truth, bool [N].

    >>> truth = torch.tensor([True, False, True, False])
    >>> binary_scores(torch.tensor([2.0, 1.0, -1.0, -2.0]), truth)
    BinaryScores(auroc=0.75, sensitivity=0.5, specificity=0.5, f1=0.5)
    """
    truth, found = truth.bool(), log_odds > 0
    hits, wrong = int((found & truth).sum()), int((found & ~truth).sum())
    positives, negatives = int(truth.sum()), int((~truth).sum())
    missed = positives - hits
    return BinaryScores(
        auroc(log_odds, truth), _ratio(hits, positives), _ratio(negatives - wrong, negatives),
        _ratio(2 * hits, 2 * hits + wrong + missed),
    )  # fmt: skip


def macro(scores: Sequence[BinaryScores]) -> BinaryScores:
    """The mean over classes of each score, those without a value left out.

    >>> macro([BinaryScores(1.0, 1.0, 0.5, 0.5), BinaryScores(math.nan, 0.0, 1.0, 0.0)])
    BinaryScores(auroc=1.0, sensitivity=0.5, specificity=0.75, f1=0.25)
    """
    table = torch.tensor(scores, dtype=torch.float64).reshape(-1, 4)
    return BinaryScores(*table.nanmean(0).tolist())


def vote_histogram(logits: Tensor) -> Tensor:
    """How many images each class gets by vote, int64 [K].

    >>> vote_histogram(torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 0.0]])).tolist()
    [2, 0, 0]
    """
    return logits.argmax(1).bincount(minlength=logits.shape[1])


def relative_entropy(counts: Tensor) -> float:
    """How even a histogram [K] of N images is: H / log min(K, N), 1 when it is as even as N images
    can make it, 0 when one class has all.

    >>> relative_entropy(torch.tensor([5, 5])), relative_entropy(torch.tensor([7, 0]))
    (1.0, 0.0)
    """
    total = counts.sum()
    p = counts.double() / total
    entropy = -torch.xlogy(p, p).sum().item()
    return abs(entropy) / math.log(min(len(counts), max(2, int(total))))


def missing_classes(counts: Tensor) -> list[int]:
    """The classes that a histogram [K] leaves empty.

    >>> missing_classes(torch.tensor([3, 0, 1, 0]))
    [1, 3]
    """
    return (counts == 0).nonzero().flatten().tolist()


class InceptionScore(NamedTuple):
    """Mean and deviation (divisor: number of splits) over the splits."""

    mean: float
    std: float
    splits: int


def teacher_inception_score(
    logits: Tensor, *, splits: int = 10, seed: int = 2020
) -> InceptionScore:
    """The Inception score with the teacher's answer in the place of Inception's.

        exp( mean over x of KL( p(y|x) ‖ mean p(y|x) ) )        per split, 1..K

    of `logits` [N, K]: 1 when all answers are alike, K when they are certain and even. Images are
    shuffled first, as sets are often sorted by class. A split of m images cannot score more than m:
    the number of splits is lowered until each has K images, so under 2·K images there is a single
    split.
    Salimans et al. 2016, section 4: https://arxiv.org/abs/1606.03498

    >>> teacher_inception_score(99 * torch.eye(4)).mean
    4.0
    """
    count, classes = logits.shape
    splits = max(1, min(splits, count // classes))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    log_p = logits.double()[order.to(logits.device)].log_softmax(1)
    gains = []
    for part in torch.tensor_split(log_p, splits):
        mean = part.logsumexp(0) - math.log(len(part))  # log of the mean answer [K]
        gains.append((part.exp() * (part - mean)).sum(1).mean())
    scores = torch.stack(gains).exp()
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item(), splits)


def class_centres(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean direction of each class: c_k = mean of φ / |φ| over its images, float64 [K, D].

    A class without images has a row of zeros. `features` are [N, D].
    """
    sums, counts = _direction_sums(features, labels, classes)
    return sums / counts.clamp_min(1)[:, None]


def semantic_consistency(
    features: Tensor,
    labels: Tensor,
    real_features: Tensor,
    real_labels: Tensor,
    classes: int,
) -> float:
    """s-CS: do images point where real images of their class point? 0..1.

        raw(X) = mean over i of cos(φ_i, c_{y_i})      c_k: mean direction of the real images of k
        floor  = mean over real i and k ≠ y_i of cos(φ_i, c_k)
        s-CS   = clip( (raw(X) − floor) / (raw(real) − floor), 0, 1 )

    Real images score 1 by construction, real images with random labels about 1/K, as one in K is
    right by chance. Images of a class that has no real images are left out. NaN if real classes
    cannot be told apart.
    `features` [N, D], `labels` [N], and the same of the real images.
    """
    centres = class_centres(real_features, real_labels, classes)
    ceiling, floor = _alignment(real_features, real_labels, centres)
    raw, _ = _alignment(features, labels, centres)
    return _clipped_ratio(raw - floor, ceiling - floor)


def semantic_consistency_free(features: Tensor, labels: Tensor, prototypes: Tensor) -> float:
    """s-CS0: the data-free form of s-CS, against the rows w_k of the last layer.

        s-CS0 = clip( (raw − floor) / (1 − floor), 0, 1 )

    with c_k = w_k and the floor taken over the images themselves. It is not on the scale of s-CS.
    `features` [N, D], `labels` [N], `prototypes` [K, D].

    >>> w = torch.eye(3)
    >>> semantic_consistency_free(w[[0, 1, 2]], torch.tensor([0, 1, 2]), w)
    1.0
    >>> semantic_consistency_free(w[[1, 2, 0]], torch.tensor([0, 1, 2]), w)
    0.0
    """
    raw, floor = _alignment(features, labels, prototypes)
    return _clipped_ratio(raw - floor, 1 - floor)


def intra_class_diversity(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How different the images of a class are: mean of 1 − cos(φ_i, φ_j) over its pairs.

    With unit vectors u_i and s = Σ u_i the pairs need not be visited:

        mean over i ≠ j of u_i · u_j  =  ( |s|² − Σ |u_i|² ) / ( n (n − 1) )

    `features` [N, D], `labels` [N]; float64 [K], 0 for copies, NaN under two images. A zero vector
    has cosine 0 with everything.

    >>> intra_class_diversity(torch.eye(2), torch.tensor([1, 1]), 2).tolist()
    [nan, 1.0]
    """
    sums, counts = _direction_sums(features, labels, classes)
    own = torch.zeros_like(counts).index_add_(0, labels, _directions(features).square().sum(1))
    cosine = (sums.square().sum(1) - own) / (counts * (counts - 1))
    return torch.where(counts < 2, math.nan, 1 - cosine)


def collapse_rate(diversity: Tensor, reference: Tensor) -> float:
    """The share of classes that are less than half as diverse as in the reference set.

    Both are `intra_class_diversity` [K]; classes with a NaN on either side are left out.

    >>> collapse_rate(torch.tensor([0.1, 0.5, math.nan]), torch.tensor([0.4, 0.4, 0.4]))
    0.5
    """
    known = ~(diversity.isnan() | reference.isnan())
    return _share(diversity[known] < reference[known] / 2)


def near_duplicate_rate(features: Tensor, *, threshold: float = 0.99, chunk: int = 1024) -> float:
    """The share of images that have a near-duplicate: another with cos > `threshold`.

    `features` [N, D]. Takes N² time, but only `chunk` · N numbers of memory.

    >>> near_duplicate_rate(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    0.6666666666666666
    """
    unit = F.normalize(features.float(), dim=1)
    found = 0
    for start in range(0, len(unit), chunk):
        cosine = unit[start : start + chunk] @ unit.T
        cosine.diagonal(start).fill_(-2.0)
        found += int((cosine.amax(1) > threshold).sum())
    return found / len(unit) if len(unit) else math.nan


def effective_rank(features: Tensor) -> float:
    """How many dimensions features spread over, 1..D.

        exp( −Σ_i p_i log p_i ),   p_i = λ_i / Σ λ,   λ the eigenvalues of their covariance

    Roy & Vetterli 2007, "The effective rank". `features` is [N, D]; it is at most N − 1, and NaN
    where all features are alike.

    >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    2.0
    """
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.svdvals(centred).square()
    if not float(values.sum()) > 0:
        return math.nan
    p = values / values.sum()
    return round(float(torch.exp(-torch.xlogy(p, p).sum())), 12)


def contingency(learned: Tensor, taught: Tensor) -> Tensor:
    """How often the student votes b where the teacher votes a, int64 [K (a), K (b)].

    >>> contingency(torch.eye(2), torch.eye(2)).tolist()
    [[1, 0], [0, 1]]
    """
    classes = taught.shape[1]
    pairs = taught.argmax(1) * classes + learned.argmax(1)
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def transfer_efficiency(table: Tensor, *, corrected: bool = False) -> float:
    """Which share of the teacher's information the student carries, 0..1.

        I(Y_T; Y_S) / H(Y_T)        Theil's U

    `table` is a `contingency` table, or any joint weights [K, K], rows for the teacher. Too high
    when there are not many more images than cells; `corrected`, for counts of N images, adds
    (cells that are not 0 − 1) / 2 N to each entropy (Miller 1955, "Note on the bias of information
    estimates"). NaN when the teacher always votes alike.

    >>> transfer_efficiency(torch.tensor([[5, 0], [0, 5]])), transfer_efficiency(torch.ones(2, 2))
    (1.0, 0.0)
    """
    joint = table.double() / table.sum()
    parts = (joint.sum(1), joint.sum(0), joint)
    rows, columns, cells = (
        -torch.xlogy(part, part).sum()
        + (((part > 0).sum() - 1) / (2 * table.sum()) if corrected else 0.0)
        for part in parts
    )
    if not joint.sum(1).count_nonzero() > 1:
        return math.nan
    return ((rows + columns - cells) / rows).clamp(0, 1).item()


def transfer_efficiency_by_class(table: Tensor, *, corrected: bool = False) -> Tensor:
    """Which share of what the teacher says by voting for a class reaches the student, 0..1: [K].

        Σ_b p(b | a) log( p(b | a) / p(b) )  /  −log p(a),   a the teacher's vote, b the student's

    What a vote tells (DeWeese & Meister 1999, "How to measure the information gained from one
    symbol"), over all that it could tell: the mean of both sides by p(a) gives
    `transfer_efficiency`. `corrected`, for counts, takes (cells of the row that are not 0 − 1) /
    2 n from the first, n the images of the row. NaN for a class that the teacher never votes for,
    or always.

    >>> transfer_efficiency_by_class(torch.tensor([[5, 0], [0, 5]])).tolist()
    [1.0, 1.0]
    """
    counts = table.double()
    each, of_student = counts.sum(1), counts.sum(0) / counts.sum()
    given = counts / each[:, None]
    told = (torch.xlogy(given, given) - torch.xlogy(given, of_student[None, :])).sum(1)
    if corrected:
        told = told - ((counts > 0).sum(1) - 1) / (2 * each)
    share = (told / -(each / counts.sum()).log()).clamp(0, 1)
    return torch.where((each > 0) & (each < counts.sum()), share, math.nan)


def pooled(moments: Sequence[Moments], counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The moments of a whole set from those of its batches.

        m = Σ n m_b / Σ n        v = Σ n (v_b + m_b²) / Σ n − m²

    `moments` holds mean and variance [C] per layer of each batch, `counts` the batches' images.
    """
    weights = torch.tensor(counts, dtype=torch.float64)
    weights = weights / weights.sum()
    result = []
    for layer in zip(*moments, strict=True):
        means = torch.stack([mean.double().cpu() for mean, _ in layer])  # [batches, C]
        variances = torch.stack([var.double().cpu() for _, var in layer])
        mean = weights @ means
        result.append((mean, weights @ (variances + means.square()) - mean.square()))
    return result


def data_free_frechet(moments: Moments, stored: Moments) -> float:
    """Fréchet distance to the teacher's BatchNorm statistics, without any image.

        mean over layers of  ( |μ − m|² + Σ_c (√var_c − √v_c)² ) / Σ_c v_c

    of diagonal Gaussians over pixels, a number without a unit; each layer is (mean [C],
    variance [C]); μ, var belong to the images, m, v to the running buffers. It
    is what the term `statistics` makes small, so it cannot judge a generator trained by that alone.

    >>> one = [(torch.tensor([0.0]), torch.tensor([1.0]))]
    >>> data_free_frechet(one, one), data_free_frechet([(one[0][0] + 2, 4 * one[0][1])], one)
    (0.0, 5.0)
    """
    distances = []
    for (mean, var), (stored_mean, stored_var) in zip(moments, stored, strict=True):
        mean, var, m, v = (t.double().cpu() for t in (mean, var, stored_mean, stored_var))
        shift = (mean - m).square().sum()
        spread = (var.clamp_min(0).sqrt() - v.sqrt()).square().sum()
        distances.append((shift + spread) / v.sum())
    return torch.stack(distances).mean().item() if distances else math.nan


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / hits.numel() if hits.numel() else math.nan


def _share_by_class(hits: Tensor, labels: Tensor, classes: int) -> Tensor:
    counts = labels.bincount(minlength=classes).double()
    sums = torch.zeros_like(counts).index_add_(0, labels, hits.double())
    return sums / counts


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


def _direction_sums(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    unit = _directions(features)
    counts = labels.bincount(minlength=classes).double()
    return unit.new_zeros(classes, unit.shape[1]).index_add_(0, labels, unit), counts


def _alignment(features: Tensor, labels: Tensor, centres: Tensor) -> tuple[float, float]:
    """Mean cosine to the own centre, and to the others; classes with a zero centre are left out."""
    known = centres.norm(dim=1) > 0
    kept = known[labels]
    cosine = _directions(features[kept]) @ _directions(centres[known]).T  # [N', K']
    position = known.cumsum(0) - 1
    own = cosine.gather(1, position[labels[kept], None]).sum()
    others = cosine.sum() - own
    count, classes = cosine.shape
    return _ratio(own.item(), count), _ratio(others.item(), count * (classes - 1))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _clipped_ratio(above: float, below: float) -> float:
    ratio = _ratio(above, below)
    return ratio if math.isnan(ratio) else min(1.0, max(0.0, ratio))
