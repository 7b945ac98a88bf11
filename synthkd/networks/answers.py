"""What a network answers, recognised by asking it, and turned into logits.

B images, K classes. A network may answer in logits, probabilities, one score, labels or lists, as
a tensor, an array, or inside a tuple or a dictionary: `recognise` finds out which, `Answers` is
what it found, `taken` takes the numbers out, and `logits.as_logits` makes logits [B, K] of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec, as_array
from synthkd.core.logits import as_logits, of_votes
from synthkd.recipe import MOST_CLASSES

KINDS: Mapping[str, str] = {
    "logits": "logits",
    "probabilities": "probabilities",
    "log-probabilities": "log-probabilities",
    "percentages": "percentages",
    "top-k": "probabilities of the best classes alone",
    "binary-logit": "one logit for two classes",
    "binary-probability": "one probability for two classes",
    "binary-percentage": "one percentage for two classes",
    "multilabel-logits": "a logit per class, independent of the others",
    "multilabel-probabilities": "a probability per class, independent of the others",
    "multilabel-percentages": "a percentage per class, independent of the others",
    "labels": "labels",
}
BINARY = ("binary-logit", "binary-probability", "binary-percentage")
ONE_OF = ("probabilities", "percentages", "top-k")  # rows that sum to a constant, or below it
LEFT = 3e-3  # of a row's sum: what probabilities in single precision may be off by, and more
# the mean of an image's logits by their deviation, where one class in seven applies and all are
# equally sure: nothing pulls those of a softmax below 0, though Adam may push them there
BELOW = -1.0
PROBES, LARGE = 32, 128**2  # images asked; half as many from so many pixels on
ROWS = "rows"  # a list with an entry for every image


@dataclass(frozen=True)
class Answers:
    """How to read what a network answers.

    `kind` is one of `KINDS`. `path` leads to the numbers where they lie in a tuple or a dictionary.
    `total` is what a row of probabilities sums to (100 for percentages), `step` what they are
    rounded to, as a share of it (0: not rounded), `listed` how many classes a top-k list names.
    `layer` names a module of the network whose output are the logits that the answer is made of:
    it is read instead, with nothing rounded or saturated. `names` are class names found in lists of
    (name, score). `notes` say what was assumed, and how to say otherwise.
    """

    kind: str = "logits"
    path: tuple[str | int, ...] = ()
    total: float = 1.0
    step: float = 0.0
    listed: int = 0
    layer: str = ""
    names: tuple[str, ...] = ()
    notes: tuple[Finding, ...] = field(default=(), compare=False)

    @property
    def independent(self) -> bool:
        """Whether every class has a score of its own, and several may apply to an image."""
        return self.kind.startswith("multilabel-")

    @property
    def exact(self) -> bool:
        """Whether they must be computed in float32: close to 1, bfloat16 has few numbers."""
        single = self.kind.startswith(("binary-", "multilabel-"))
        return not self.layer and single and not self.kind.endswith(("logit", "logits"))

    def __str__(self) -> str:
        """In words, for plans and cards."""
        words = KINDS.get(self.kind, self.kind)
        if self.listed:
            words = f"probabilities of the best {self.listed} classes alone"
        if self.total not in (1.0, 100.0) and self.kind in ONE_OF:
            words += f" times {self.total:g}"
        if self.step > 1e-6 and self.kind != "labels":
            words += f", rounded to {self.step * self.total:.2g}"
        if self.path and self.path != (ROWS,):
            words += f", taken from {_where(self.path)}"
        if self.layer:
            words += f", read as logits at its layer {quoted(self.layer)}"
        return words


def _where(path: tuple[str | int, ...]) -> str:
    """A path in words: `[0]`, `['logits']`."""
    return "".join(f"[{quoted(key) if isinstance(key, str) else key}]" for key in path)


# Taking answers apart


def as_tensor(value: Any) -> Tensor | None:
    """Numbers in any form as a tensor: a tensor, an array, nested lists; None for what is none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str | bytes | Mapping):
        return None
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        same = all(isinstance(v, Tensor) and v.shape == value[0].shape for v in value)
        return torch.stack(list(value)) if same else None
    try:
        array = np.asarray(value)
        if array.dtype.kind == "V":  # bfloat16 of other libraries
            array = array.astype(np.float32)
        if array.dtype.kind == "O" and array.size:
            array = np.asarray(array.tolist())
    except (ValueError, TypeError, RuntimeError):
        return None
    if array.dtype.kind not in "fiub":
        return None
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array, order="C"))


def _shaped(value: Tensor, count: int) -> Tensor | None:
    """[B] or [B, K], without the empty dimensions of a map of 1 x 1; None for another shape."""
    if value.dim() == 0 or len(value) != count or value.is_complex():
        return None
    while value.dim() > 2 and value.shape[-1] == 1:
        value = value.squeeze(-1)
    if value.dim() > 2 and value.shape[1] == 1:
        value = value.squeeze(1)
    return value if value.dim() <= 2 and value.numel() else None


def _pairs(row: Any) -> list[tuple[Any, float]] | None:
    """What one entry of a list says as (label, score) pairs: a dictionary from label to score,
    dictionaries with a label and a score, or pairs."""
    if isinstance(row, Mapping):
        if _keyed(row) is not None:
            row = [row]
        elif all(isinstance(v, int | float | np.number) for v in row.values()):
            return [(label, float(score)) for label, score in row.items()]
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        return None
    found = []
    for entry in row:
        pair = _keyed(entry) if isinstance(entry, Mapping) else entry
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return None
        label, score = pair
        if isinstance(label, float | np.floating) and isinstance(score, str):
            label, score = score, label
        try:
            found.append((label, float(score)))
        except (TypeError, ValueError):
            return None
    return found


def _keyed(entry: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    label = next((k for k in ("label", "class", "name", "category", "index") if k in entry), None)
    score = next((k for k in ("score", "probability", "confidence", "prob") if k in entry), None)
    return (entry[label], entry[score]) if label is not None and score is not None else None


def _listed(rows: Any, count: int) -> list[list[tuple[Any, float]]] | None:
    """A list of (label, score) lists, one an image; None where it is none."""
    if not isinstance(rows, list | tuple) or len(rows) != count:
        return None
    found = [_pairs(row) for row in rows]
    return found if any(found) and all(row is not None for row in found) else None  # type: ignore[return-value]


def _label(label: Any, names: Sequence[str]) -> int:
    """A label as a class number; −1 where it is none."""
    if isinstance(label, Tensor):
        label = as_array(label)
    if isinstance(label, np.ndarray) and label.size == 1:
        label = label.item()
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        digits = label.removeprefix("LABEL_")
        return int(digits) if digits.isascii() and digits.isdecimal() else -1
    try:
        return int(label) if int(label) == label else -1
    except (TypeError, ValueError, OverflowError):
        return -1


def _from_lists(rows: list[list[tuple[Any, float]]], classes: int, names: Sequence[str]) -> Tensor:
    """Lists of (label, score) as scores [B, K], 0 for what is not listed."""
    scores = torch.zeros(len(rows), classes)
    for i, row in enumerate(rows):
        for label, score in row:
            k = _label(label, names)
            if not 0 <= k < classes:
                raise InputError(
                    f"the network lists a class {quoted(label)}, and has {classes} classes "
                    "(0 is the first): see --classes"
                )
            scores[i, k] = score
    return scores


def _parts(
    answer: Any, count: int, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The parts of an answer that could be scores for `count` images, with the way to each."""
    if len(path) > 4:
        return
    arrayed = callable(getattr(answer, "__array__", None)) and not isinstance(answer, Mapping)
    if isinstance(answer, Tensor | np.ndarray) or arrayed:
        value = as_tensor(answer)
        if value is not None and (value := _shaped(value, count)) is not None:
            yield path, value
        elif getattr(getattr(answer, "dtype", None), "kind", "") in ("U", "O") and len(path) < 4:
            yield from _parts(list(answer), count, path)
        return
    if _listed(answer, count) is not None:
        yield (*path, ROWS), answer
        return
    if isinstance(answer, Mapping):
        if "logits" in answer:
            answer = {"logits": answer["logits"]}
        for key, value in answer.items():
            yield from _parts(value, count, (*path, str(key)))
        return
    if getattr(answer, "logits", None) is not None:
        yield from _parts(answer.logits, count, (*path, "logits"))
        return
    if isinstance(answer, list | tuple):
        if len(answer) == count and all(isinstance(v, str) for v in answer):
            yield (*path, ROWS), answer
            return
        flat = len(answer) == count and not any(
            isinstance(v, Tensor | np.ndarray) and v.ndim > 1 for v in answer
        )
        value = as_tensor(answer) if flat else None
        if value is not None and (value := _shaped(value, count)) is not None:
            yield (*path, ROWS), value
            return
        for index, value in enumerate(answer):
            yield from _parts(value, count, (*path, index))


def _worded(answer: Any) -> bool:
    """Whether it is a list of names."""
    listed = isinstance(answer, list | tuple | np.ndarray) and len(answer) > 0
    return listed and isinstance(answer[0], str)


def _numbers(answer: Any, answers: Answers, classes: int, count: int) -> Tensor | None:
    """What lies at the path, [B] or [B, K]; None where it is no numbers for `count` images."""
    for key in answers.path:
        if key == ROWS:
            break
        if isinstance(answer, Mapping):
            answer = answer.get({str(k): k for k in answer}.get(str(key)))
        elif isinstance(key, str):
            answer = getattr(answer, key, None)
        else:
            answer = answer[key] if isinstance(answer, list | tuple) and key < len(answer) else None
    if not isinstance(answer, Tensor):
        lists = _listed(answer, count)
        if lists is not None:
            return _from_lists(lists, classes, answers.names)
        if _worded(answer):
            answer = [_label(label, answers.names) for label in answer]
    value = as_tensor(answer)
    return None if value is None else _shaped(value, count)


def taken(answer: Any, answers: Answers, classes: int, count: int) -> Tensor:
    """The numbers out of what a network answered for `count` images, [B] or [B, K]. What is not as
    it was when it was recognised is an InputError."""
    value = _numbers(answer, answers, classes, count)
    wide = 1 if answers.kind in (*BINARY, "labels") else classes
    if value is None or (value.shape[1] if value.dim() > 1 else 1) != wide:
        got = tuple(value.shape) if value is not None else type(answer).__name__
        raise InputError(
            f"the network's answers to {count} images have another form than at first: got {got}"
        )
    return value


def to_logits(answer: Tensor, answers: Answers, classes: int) -> Tensor:
    """Numbers [B] or [B, K] as logits [B, K], float32: log-odds where the classes are
    independent."""
    if answers.layer:
        kind = {"b": "binary-logit", "m": "multilabel-logits"}.get(answers.kind[0], "logits")
        return as_logits(answer, kind)
    if answers.kind == "labels":
        answer = answer.reshape(len(answer))
        wrong = answer[~((answer >= 0) & (answer < classes))]
        if len(wrong):
            raise InputError(
                f"the network named class {float(wrong[0]):g}, and has {classes} classes "
                "(0 is the first): see --classes"
            )
        return of_votes(answer, classes)
    return as_logits(answer, answers.kind, total=answers.total, step=answers.step)


@contextmanager
def reading(body: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collects what the module `layer` of `body` returns while the `with` lasts."""
    seen: list[Tensor] = []
    handle = body.get_submodule(layer).register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


# Recognising


def probes(spec: ImageSpec) -> Tensor:
    """Images that a network is tried on, [B, C, H, W] in 0..1: noise, smooth colours, patches with
    edges, spots on a ground, and flat ones, as an answer to noise alone may be the same for all."""
    rng = torch.Generator().manual_seed(0)
    shape = spec.shape
    few = PROBES // 4 if shape[1] * shape[2] < LARGE else PROBES // 8
    noise = torch.rand(few, *shape, generator=rng)

    def smooth(side: int) -> Tensor:
        coarse = torch.rand(few, shape[0], side, side, generator=rng)
        return F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=False).clamp(0, 1)

    patches = (smooth(4) > 0.5).float()
    spots = torch.cat([smooth(6)[: few // 2] ** 6, torch.ones(1, *shape), torch.zeros(1, *shape)])
    grey = torch.full((few - len(spots), *shape), 0.5)
    return torch.cat([noise, smooth(4), patches, spots, grey])


def recognise(
    body: nn.Module, spec: ImageSpec, classes: int | None, *, kind: str = "auto",
    inside: bool = False, names: tuple[str, ...] = (), saved: bool = False,
) -> tuple[int, Answers]:  # fmt: skip
    """Asks a network about `probes`: how many classes it has, and what its answers mean.

    `kind` is the kind that the user named; one that what is seen contradicts is an InputError,
    unless the kind is what a file that we `saved` says. With `inside` the network's layers may be
    looked at: see `Answers.layer`. `names` are those of its classes, if they are known. An answer
    that is no row of scores for every image, is not finite, or has another K than `classes` is an
    InputError; so is one that has two readings of which the wrong one would ruin a student.
    """
    images = probes(spec)
    try:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        body.eval()
        with torch.no_grad(), _outputs(body if inside else None) as outputs:
            raw = [body((part - mean) / std) for part in torch.split(images, _at_once(spec))]
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        of_type = any(word in reason for word in ("dtype", "scalar type", "data type", "Half"))
        hint = ": convert it (.float())" if of_type else " (see --image-size, --channels)"
        raise InputError(
            f"the network does not take images of {spec.channels} x {spec.height} x {spec.width}: "
            f"{quoted(reason, 160)}{hint}"
        ) from None
    scores = raw[0].shape[1] if isinstance(raw[0], Tensor) and raw[0].dim() > 1 else 0
    if scores > MOST_CLASSES:
        raise InputError(f"it answers with {scores:,} scores; {MOST_CLASSES:,} at most")
    count = len(images) // len(raw)
    path, notes = _chosen(raw[0], count, classes, kind)
    found = Answers(path=path, notes=notes)
    classes, found = _named(raw, found, count, classes, names)
    parts = [_numbers(part, found, classes or 0, count) for part in raw]
    if any(part is None or part.shape[1:] != parts[0].shape[1:] for part in parts):  # type: ignore[union-attr]
        raise InputError("the network's answers have another form from call to call")
    values = torch.cat([part.detach().cpu().double() for part in parts])  # type: ignore[union-attr]
    minus = values.dim() > 1 and not (values.isnan() | values.isposinf()).any()
    if not values.isfinite().all() and not (minus and (values <= LEFT).all()):
        raise InputError(
            "the teacher answers NaN or infinity: are these the right weights, mean and std?"
        )
    if values.dim() == 1 or values.shape[1] == 1:
        wide, found = _of_scores(values.reshape(-1), found, classes, kind)
    else:
        wide, found = _of_rows(values, found, classes, kind, saved=saved)
    if inside and not saved and found.kind not in ("logits", "log-probabilities", "labels"):
        found = replace(found, layer=_layer(outputs, values, found, len(raw)))
    return wide, found


def _at_once(spec: ImageSpec) -> int:
    return PROBES // 4 if spec.height * spec.width >= LARGE else PROBES


def _chosen(
    answer: Any, count: int, classes: int | None, kind: str
) -> tuple[tuple[str | int, ...], tuple[Finding, ...]]:
    """Which part of an answer is meant, and what should be said of it."""
    parts = [(path, part) for path, part in _parts(answer, count)]
    if not parts:
        got = tuple(answer.shape) if hasattr(answer, "shape") else type(answer).__name__
        raise InputError(
            f"a classifier must answer with one row of class scores per image; got {got}"
        )
    if len(parts) == 1:
        return parts[0][0], ()
    single = kind in (*BINARY, "labels") or (kind == "auto" and classes == 2)

    def width(part: Any) -> int:
        if not isinstance(part, Tensor):
            return 0  # lists and names: any
        return part.shape[1] if part.dim() > 1 else 1

    fitting = [p for p in parts if classes is not None and width(p[1]) in (0, classes)]
    fitting = fitting or [p for p in parts if single and width(p[1]) == 1]
    fitting = fitting or [p for p in parts if width(p[1]) > 1] or parts
    widths = list(dict.fromkeys(width(part) for _, part in fitting))
    said = ", ".join(f"{_where(path)} with {width(part) or 'a list'}" for path, part in parts[:5])
    if len(widths) > 1:
        raise InputError(
            f"the network answers with {len(parts)} tensors, scores per image: {said}: say which "
            "is meant by its number of classes, --classes K"
        )
    if widths == [1] and not single:
        raise InputError(
            f"the network answers with {len(fitting)} tensors of one number per image: let it "
            "return one tensor, a column per class"
        )
    path = fitting[0][0]
    note = f"the network answers with {len(parts)} tensors, scores per image: {said}"
    return path, (Finding("answers-part", note, f"{_where(path)} is taken"),)


def _named(
    raw: list[Any], found: Answers, count: int, classes: int | None, names: tuple[str, ...]
) -> tuple[int | None, Answers]:
    """The number of classes and their names, where answers are lists or names of classes."""
    if not found.path or found.path[-1] != ROWS:
        return classes, found
    rows: list[list[Any]] = []
    for answer in raw:
        for key in found.path[:-1]:
            answer = answer[key] if not isinstance(key, str) else _at(answer, key)
        lists = _listed(answer, count)
        if lists is not None:
            rows += [[label for label, _ in row] for row in lists]
        elif isinstance(answer[0], str):
            rows += [[label] for label in answer]
    if not rows:
        return classes, found
    seen = {str(label) for row in rows for label in row}
    whole = all(len(row) == len(seen) for row in rows)  # every list names every class
    listed = 0 if whole else max(map(len, rows))
    found = replace(found, listed=listed if max(map(len, rows)) > 1 else 0)
    if names or all(_label(label, ()) >= 0 for row in rows for label in row):
        most = len(names) or (len(seen) if whole else 0)
        if classes is None and not most:
            raise InputError(
                f"the network lists {listed} classes an image: give --classes K, the number of all"
            )
        return classes or most, replace(found, names=names)
    if not whole and len(seen) != classes:
        raise InputError(
            f"the network names its classes ({quoted(min(seen))}, …), and their order is unknown: "
            "give all names with --class-names, or let it return numbers"
        )
    ordered = tuple(sorted(seen))
    note = Finding(
        "answers-names", f"its {len(ordered)} class names are taken in alphabetical order",
        "if they have another, give all names with --class-names",
    )  # fmt: skip
    return len(ordered), replace(found, names=ordered, notes=(*found.notes, note))


def _at(answer: Any, key: str) -> Any:
    if isinstance(answer, Mapping):
        return answer[{str(k): k for k in answer}[key]]
    return getattr(answer, key)


def precision(values: Tensor) -> float:
    """The relative error of numbers that were kept in bfloat16, float16, or float32, whichever is
    the coarsest that holds them all.

    >>> precision(torch.tensor([0.5, 0.25])), precision(torch.tensor([0.1], dtype=torch.float64))
    (0.00390625, 5.960464477539063e-08)
    """
    values = values[values.isfinite()]
    for kind, error in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        if torch.equal(values.to(kind).to(values.dtype), values):
            return error
    return 2.0**-24


def rounding(values: Tensor) -> float:
    """The unit that all numbers are multiples of: 1, 0.1, 0.01 … 0.000001; 0 where there is none.

    >>> rounding(torch.tensor([0.21, 0.5])), rounding(torch.tensor([3.0])), rounding(torch.rand(9))
    (0.01, 1.0, 0.0)
    """
    values = values[values.isfinite()].double()
    if torch.equal(values, values.round()):
        return 1.0
    error = precision(values) * float(values.abs().max())
    for digits in range(1, 7):
        unit = 10.0**-digits
        slack = max(1e-4, 2 * error / unit)
        if slack > 0.2:
            return 0.0
        if ((values / unit - (values / unit).round()).abs() <= slack).all():
            return unit
    return 0.0


def _sums_to(values: Tensor, total: float, unit: float) -> bool:
    """Whether rows of numbers that are never negative sum to `total`, within what rounding does."""
    slack = max(LEFT, 2 * precision(values)) * total
    named = (values > 0).sum(1)
    sums = values.sum(1)
    most = total + slack + unit / 2 * named  # all of them may have been rounded the same way
    least = (total - slack - unit / 2 * values.shape[1]) * torch.ones_like(sums)
    within = (sums <= most.clamp_max(1.6 * total)) & (sums >= least.clamp_min(total / 2))
    return bool((values >= -1e-6 * total).all() and within.all())


def _best_alone(values: Tensor, total: float, unit: float) -> int:
    """How many classes a list of the best names, if rows are such lists with zeros elsewhere; 0."""
    named = (values > 0).sum(1)
    most = int(named.max())
    if (values < 0).any() or not 0 < most < values.shape[1]:
        return 0
    if (values.sum(1) > total * (1 + LEFT) + unit * most).any():
        return 0
    steady = float((named == most).double().mean()) >= 0.9
    return most if steady or (unit and float(values.sum(1).max()) > total / 2) else 0


def _normalised(values: Tensor, unit: float) -> bool:
    """Whether rows are logarithms of probabilities."""
    off = values.logsumexp(1).abs().max()
    return bool((values <= LEFT).all() and off <= max(LEFT, unit, 4 * precision(values)))


def _of_rows(
    values: Tensor, found: Answers, classes: int | None, kind: str, *, saved: bool
) -> tuple[int, Answers]:
    """K, and what rows of numbers [N, K] mean."""
    wide = values.shape[1]
    if kind in BINARY:
        raise InputError(
            f"--teacher-answers {kind}: the network answers with {wide} numbers per image, not one"
        )
    if classes is not None and classes != wide:
        raise InputError(f"--classes {classes}: the network has {wide} classes; omit it")
    try:
        seen = _guessed(values, found)
    except InputError:  # they may be two things, and the user says which
        if kind == "auto":
            raise
        seen = found
    if kind == "auto":
        return wide, seen
    if kind == seen.kind:  # nothing was assumed
        return wide, replace(seen, notes=found.notes)
    if kind == "labels":
        if seen.kind != "probabilities" or seen.step < 1:
            raise InputError(
                f"--teacher-answers labels: the network answers with {wide} numbers an image that "
                "are not 0 and 1"
            )
        return wide, seen
    total = 100.0 if kind.endswith("percentages") else 1.0
    if kind == "top-k" and float(values.max()) > 1.01:
        total = 100.0
    if not saved:
        _contradicted(values, kind, seen, total)
    unit = rounding(values) / total
    rough = unit if kind in (*ONE_OF, "multilabel-probabilities", "multilabel-percentages") else 0.0
    listed = int((values > 0).sum(1).max()) if kind == "top-k" else 0
    return wide, replace(
        found, kind=kind, total=total, step=rough or _floor(values, kind), listed=listed
    )


def _floor(values: Tensor, kind: str) -> float:
    """What half precision rounds probabilities to: near 0 for shares, near 1 for a class alone."""
    error = precision(values)
    if kind.startswith(("multilabel", "binary")):
        return 0.0 if error < 2.0**-20 else error
    return 2.0**-24 if error == 2.0**-11 else 0.0


def _guessed(values: Tensor, found: Answers) -> Answers:
    """What rows of numbers look like."""
    unit, error = rounding(values), precision(values)
    low, high, wide = float(values.min()), float(values.max()), values.shape[1]
    if found.listed:  # (label, score) lists
        total = 100.0 if high > 1.01 else 1.0
        return replace(found, kind="top-k", total=total, step=unit / total)
    if low >= 0 and high > 0:
        for total in (1.0, 100.0, 255.0, 256.0):
            kind = "percentages" if total == 100 else "probabilities"
            rough = unit if total == 1 or unit <= 1 else 0.0
            if high <= total * (1 + LEFT) and _sums_to(values, total, rough):
                step = rough / total or _floor(values, kind)
                return replace(found, kind=kind, total=total, step=step)
        for total in (1.0, 100.0):
            listed = _best_alone(values, total, unit if unit < total else 0.0)
            if listed and high > total / 10:
                return replace(found, kind="top-k", total=total, step=unit / total, listed=listed)
    if _normalised(values, unit):
        return replace(found, kind="log-probabilities")
    # a relu leaves zeros; a sigmoid's come after ones and the smallest of numbers
    saturated = high > 0.99 and bool(((values > 0) & (values < 1e-12)).any())
    zeros = bool((values == 0).any()) and not saturated
    if low >= 0 and high <= 1 and (not zeros or unit or error > 2.0**-20):
        note = Finding(
            "answers-assumed", "its answers lie in 0..1 and do not sum to 1: taken for a "
            "probability a class, independent of the others (one-vs-rest, multi-label)",
            "if these are logits, give --teacher-answers logits",
        )  # fmt: skip
        kind = "multilabel-probabilities"
        step = unit or _floor(values, kind)
        return replace(found, kind=kind, step=step, notes=(*found.notes, note))
    percent = high <= 100 and ((high > 50 and not zeros) or 0 < unit < 1)
    if low >= 0 and (percent or unit == 1):
        raise InputError(
            f"the network answers with {low:.3g} to {high:.3g} for a class, and rows do not sum to "
            "100: say what that is, --teacher-answers multilabel-percentages or logits"
        )
    notes = found.notes
    if low >= 0:
        note = Finding(
            "answers-assumed", "its answers are never negative: taken for logits",
            "if they are something else, say what with --teacher-answers",
        )  # fmt: skip
        notes = (*notes, note)
    offset = values.mean(1) / values.std(1).clamp_min(1e-12)
    if wide > 2 and float(offset.median()) < BELOW:
        note = Finding(
            "answers-assumed", "its logits are mostly below 0, as where few of several classes "
            "apply: taken for classes of which one applies",
            "if several may apply to an image, give --teacher-answers multilabel-logits",
        )  # fmt: skip
        notes = (*notes, note)
    return replace(found, kind="logits", notes=notes)


def _contradicted(values: Tensor, kind: str, seen: Answers, total: float) -> None:
    """Refuses a kind that the numbers cannot be of."""
    low, high, sums = float(values.min()), float(values.max()), values.sum(1)
    problem = ""
    if kind in ("logits", "multilabel-logits") and seen.kind in ("probabilities", "percentages"):
        problem = f"its answers are never negative, and every row sums to {seen.total:g}"
    elif kind == "log-probabilities":
        if high > 0.1 or float(values.logsumexp(1).abs().max()) > 0.1:
            problem = "the exponentials of a row do not sum to 1"
    elif kind not in ("logits", "multilabel-logits"):
        if low < -1e-3 * total or high > 1.01 * total:
            problem = f"its answers go from {low:.3g} to {high:.3g}, not from 0 to {total:g}"
        elif kind in ("probabilities", "percentages") and (sums / total - 1).abs().max() > 0.1:
            problem = f"its rows sum to {float(sums.min()):.3g} to {float(sums.max()):.3g}"
        elif kind == "top-k" and float(sums.max()) > 1.1 * total:
            problem = f"its rows sum to {float(sums.max()):.3g}"
    if problem:
        raise InputError(
            f"--teacher-answers {kind}: {problem}; they look like {seen.kind}: correct or omit it"
        )


def _of_scores(
    values: Tensor, found: Answers, classes: int | None, kind: str
) -> tuple[int, Answers]:
    """K, and what one number an image [N] means."""
    low, high, unit = float(values.min()), float(values.max()), rounding(values)
    whole = unit == 1
    if kind not in ("auto", "labels", *BINARY):
        raise InputError(
            f"--teacher-answers {kind}: the network answers with one number an image; "
            f"choices for that: {', '.join((*BINARY, 'labels'))}"
        )
    if kind == "labels" or (kind == "auto" and whole):
        if classes is None:
            raise InputError(
                "the network answers with one number per image, a whole one: if that is a class, "
                "give --classes K; if not, --teacher-answers binary-probability or binary-logit"
            )
        if not whole or not 0 <= low <= high < classes:
            raise InputError(
                f"the network answers with numbers that are not classes below {classes}"
            )
        return classes, replace(found, kind="labels")
    if classes not in (None, 2):
        raise InputError(
            f"--classes {classes}: the network answers with one number per image, a score for two "
            "classes: omit it, or if it is a class, give --teacher-answers labels"
        )
    notes = found.notes
    if kind == "auto":
        if low >= 0 and high > 1:
            raise InputError(
                f"the network answers with one number per image, {low:.3g} to {high:.3g}: say what "
                "that is, --teacher-answers binary-logit or binary-percentage"
            )
        kind = "binary-logit" if low < 0 else "binary-probability"
        other = "binary-logit" if kind == "binary-probability" else "binary-probability"
        note = Finding(
            "answers-assumed", f"one number per image, {low:.3g} to {high:.3g}: taken for "
            f"{KINDS[kind]}, the second where it is high",
            f"if it is something else, give --teacher-answers {other} or another kind",
        )  # fmt: skip
        notes = (*notes, note)
    total = 100.0 if kind == "binary-percentage" else 1.0
    if kind != "binary-logit" and not -1e-3 * total <= low <= high <= 1.01 * total:
        raise InputError(
            f"--teacher-answers {kind}: its answers go from {low:.3g} to {high:.3g}, "
            f"not from 0 to {total:g}"
        )
    step = 0.0 if kind == "binary-logit" else unit / total or _floor(values, kind)
    return 2, replace(found, kind=kind, total=total, step=step, notes=notes)


# Looking inside


@contextmanager
def _outputs(body: nn.Module | None) -> Iterator[dict[str, list[Tensor]]]:
    """What the modules of a network return, by name, while the `with` lasts: tensors of one row an
    image."""
    seen: dict[str, list[Tensor]] = {}
    handles = []

    def note(name: str) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                value = _shaped(output.detach(), len(output)) if output.dim() else None
                if value is not None:
                    seen.setdefault(name, []).append(value)

        return keep

    for name, module in body.named_modules() if body is not None else ():
        try:
            handles += [module.register_forward_hook(note(name))] if name else []
        except RuntimeError:  # a module of TorchScript
            continue
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layer(outputs: dict[str, list[Tensor]], values: Tensor, found: Answers, calls: int) -> str:
    """The name of the last module whose output, as logits, gives the answers; "" if there is none.

    Of modules one inside the other the innermost is taken."""
    values = values.reshape(len(values), -1) / found.total
    error = max(0.51 * found.step, 2 * precision(values), 1e-4)
    fitting = ""
    for name, parts in outputs.items():  # in the order in which they return
        rows = [part.reshape(len(part), -1) for part in parts]
        if len(rows) != calls or any(row.shape[1] != values.shape[1] for row in rows):
            continue
        logits = torch.cat(rows).cpu().double()
        if len(logits) != len(values) or logits.std() < 1e-6:
            continue
        shares = logits.softmax(1) if found.kind in ONE_OF else logits.sigmoid()
        if found.listed:
            least = shares.topk(found.listed, dim=1).values[:, -1:]
            shares = shares.where(shares >= least, torch.zeros_like(shares))
        alike = bool(((shares - values).abs() <= error).all())
        if alike and not fitting.startswith(f"{name}."):
            fitting = name
    return fitting
