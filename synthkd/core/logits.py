"""Answers as logits: what classifiers return, votes and decisions. B batch, K classes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-30  # probability, so that its logarithm and the gradient of that stay finite
HALF = torch.finfo(torch.float16).max  # 65,504


def as_half(logits: Tensor) -> Tensor:
    """Logits as they are stored: float16, cut to its range.

    >>> as_half(torch.tensor([1e9, -1e9, 0.5])).tolist()
    [65504.0, -65504.0, 0.5]
    """
    return logits.detach().float().clamp(-HALF, HALF).half()


def as_logits(answer: Tensor, kind: str, *, total: float = 1.0, step: float = 0.0) -> Tensor:
    """What a classifier returned, as logits [B, K].

    Logits and log-probabilities stay (softmax of log p is p). Probabilities, percentages and top-k
    lists become log p, p = answer / `total`; probabilities of each class alone become their
    log-odds, log p − log(1 − p). One logit z for two classes becomes (−z/2, z/2), and so does one
    probability by its log-odds.

    What was rounded to multiples of `step` has lost its small values. Of a row, the classes at 0
    share evenly what the others leave, 1 − Σ p, at least step / 2 in all; each has at most
    step / 2, in a top-k list at most what the last of the list has. Log-odds end at
    p = step / 4 and 1 − step / 4.

    `answer` is [B, K], or for kinds that begin with "binary" [B] or [B, 1].

    >>> as_logits(torch.tensor([[1.0, 0.0]]), "probabilities").softmax(1).round(decimals=3).tolist()
    [[1.0, 0.0]]
    >>> as_logits(torch.tensor([0.5]), "binary-probability").softmax(1).tolist()
    [[0.5, 0.5]]
    """
    answer = answer.float()
    if kind in ("logits", "multilabel-logits"):
        return answer
    if kind == "log-probabilities":
        return answer.clamp_min(math.log(LEAST))
    if kind == "binary-logit":
        half = answer.reshape(len(answer), 1) / 2
        return torch.cat([-half, half], 1)
    if kind.startswith("binary-"):
        half = log_odds(answer.reshape(len(answer), 1) / total, step) / 2
        return torch.cat([-half, half], 1)
    if kind.startswith("multilabel-"):
        return log_odds(answer / total, step)
    p = answer / total
    if not step and kind != "top-k":
        return p.clamp_min(LEAST).log()
    none = p < max(step / 2, LEAST)  # [B, K]
    sizes = none.sum(1, keepdim=True).clamp_min(1)
    kept = p.masked_fill(none, 0.0)
    rest = (1 - kept.sum(1, keepdim=True)).detach().clamp_min(min(step / 2, 0.1) or 1e-7)
    least = kept.masked_fill(none, 1.0).amin(1, keepdim=True).detach()
    most = least if kind == "top-k" else torch.full_like(least, step / 2)
    share = torch.minimum(rest / sizes, most)  # [B, 1]
    return torch.where(none, share, p.clamp_min(LEAST)).log()


def log_odds(p: Tensor, step: float = 0.0) -> Tensor:
    """The logit of a probability, log p − log(1 − p), of any shape. It ends where p comes within
    `step` / 4 of 0 or 1, or within what float32 can tell.

    >>> log_odds(torch.tensor([0.5, 0.0, 1.0]), 0.4).round(decimals=3).tolist()
    [0.0, -2.944000005722046, 2.944000005722046]
    """
    least = max(2.0**-24, min(step / 4, 0.05))
    p = p.float().clamp(least, 1 - least)
    return p.log() - torch.log1p(-p)


def of_votes(votes: Tensor, classes: int, *, doubt: float = 0.1) -> Tensor:
    """Logits [B, K] that stand for classes [B] alone: log of (1 − doubt) for the class, and of
    doubt / K for every one.

    Label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567): a hard label taught at
    temperature 1.

    >>> of_votes(torch.tensor([1]), 2, doubt=0.5).softmax(1).round(decimals=3).tolist()
    [[0.25, 0.75]]
    """
    sure = F.one_hot(votes.long(), classes).float()
    return ((1 - doubt) * sure + doubt / classes).log()


def of_decisions(decisions: Tensor, *, doubt: float = 0.1) -> Tensor:
    """Logits [B, K] that stand for a yes or no [B, K] to every class alone: the log-odds of
    1 − doubt / 2 and of doubt / 2. What `of_votes` is where the classes exclude each other.

    >>> of_decisions(torch.tensor([[True, False]])).sigmoid().round(decimals=3).tolist()
    [[0.949999988079071, 0.05000000074505806]]
    """
    size = math.log((1 - doubt / 2) / (doubt / 2))
    return torch.where(decisions, size, -size)


def blended(
    answers: Sequence[Tensor], weights: Sequence[float], *, independent: bool = False
) -> Tensor:
    """Several answers as one: the logits of the weighted mean of their probabilities.

        log Σ w_m · softmax(logits_m),   of independent classes the log-odds of Σ w_m · σ(logits_m)

    `answers` are logits [B, K], `weights` positive and of sum 1; the result is [B, K].

    >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, -9.0]])
    >>> blended((a, b), (0.5, 0.5)).softmax(1).round(decimals=2).tolist()
    [[0.75, 0.25]]
    """
    shares = torch.tensor(weights, dtype=torch.float32).log()
    logits = torch.stack([answer.float() for answer in answers])  # [M, B, K]
    shares = shares.to(logits.device)[:, None, None]
    if independent:
        yes = (F.logsigmoid(logits) + shares).logsumexp(0)
        return yes - (F.logsigmoid(-logits) + shares).logsumexp(0)
    return (logits.log_softmax(2) + shares).logsumexp(0)


def margin_of(logits: Tensor, *, independent: bool = False) -> Tensor:
    """How far answers are from where the decision turns, 0..1: [B].

        p₁ − p₂, the largest two of softmax(logits);   of independent classes the mean over K of
        |2 σ(logits) − 1|

    An independent class has a boundary of its own, at σ = 1/2, and |2 σ − 1| is the p₁ − p₂ of its
    yes and no. So 1 − the mean grows with the number of boundaries that an image lies at; one class
    in doubt, however many others are sure, tells it from images without any.

    `logits` are [B, K], K at least 2 unless they are `independent`.

    >>> margin_of(torch.tensor([[0.75, 0.25, 0.0]]).log()).round(decimals=2).tolist()
    [0.5]
    >>> doubtful, sure = [0.0, -8.0, -8.0], [8.0, 8.0, -8.0]
    >>> margin_of(torch.tensor([doubtful, sure]), independent=True).round(decimals=2).tolist()
    [0.6700000166893005, 1.0]
    """
    if independent:
        return (2 * logits.sigmoid() - 1).abs().mean(1)
    top = logits.softmax(1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def applies(logits: Tensor, labels: Tensor, *, independent: bool = False) -> Tensor:
    """Whether images of these logits [B, K] are seen as of the classes `labels` [B]: as the
    likeliest, or, of independent classes, as one that applies (its log-odds over 0); [B] bool.

    >>> logits, labels = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-2.0, -1.0]]), torch.ones(3).long()
    >>> applies(logits, labels).tolist(), applies(logits, labels, independent=True).tolist()
    ([False, False, True], [True, False, False])
    """
    if independent:
        return logits.gather(1, labels[:, None])[:, 0] > 0
    return logits.argmax(1) == labels


def paired(logits: Tensor) -> Tensor:
    """Logits of independent classes [B, K] as B · K questions of two answers each, no and yes,
    [B · K, 2]: their softmax is the sigmoid of each, their vote its decision.

    >>> paired(torch.tensor([[2.0, -1.0]])).tolist()
    [[0.0, 2.0], [0.0, -1.0]]
    """
    return torch.stack([torch.zeros_like(logits), logits], -1).flatten(0, 1)


def chosen(logits: Tensor, only: Sequence[int], *, others: bool) -> Tensor:
    """Logits [B, K] of some classes alone, [B, len(only)]; with `others` one more, log Σ exp over
    all classes that are not among them.

    >>> p = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    >>> chosen(p.log(), (1, 0), others=True).softmax(1)
    tensor([[0.2500, 0.5000, 0.2500]])
    """
    kept = logits[:, list(only)]
    if not others:
        return kept
    rest = [k for k in range(logits.shape[1]) if k not in set(only)]
    return torch.cat([kept, logits[:, rest].logsumexp(1, keepdim=True)], 1)
