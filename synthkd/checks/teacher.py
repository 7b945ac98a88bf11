"""Whether a teacher can teach: the doubts that every command has before it works with one.

No images of the user's are needed: it is shown drawings, a few of them twice, alone and in another
order, and its weights are looked at. B images, K classes.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synthkd.checks.inspection import drawings
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.core.images import in_cache
from synthkd.core.seeds import globally
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TeacherTable
from synthkd.specs import rebuilt
from synthkd.synthesis.drawings import DRAWINGS
from synthkd.teachers.features import hooked
from synthkd.teachers.frozen import FrozenTeacher

CLOSED = 24  # images that a black box is asked about: answers may cost
MOST, LEAST = 256, 8  # images that another is asked about
OPERATIONS = 10e9  # that they may take,
PIXELS = 2**20  # and pixels that they may have
MOVING = 40.0  # operations in the time that one number takes to be written and read again
UNCOUNTED = 150e3  # operations for a pixel, where there is nothing to count
REPEATED = 32  # at most so many of these, a quarter, are asked again
# Kolmogorov and Smirnov's statistic times √n: above it with a chance of 1 in 100, if the numbers
# were drawn so
DRAWN_SO = 1.63
SAMPLED = 2**14  # numbers of a tensor that are compared so
ROUNDED = 1.0001  # bounds are kept in single precision
# what networks are commonly fed: name -> mean, deviation of pixels in 0..1
NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "pixels in 0..1 (mean 0, std 1)": ((0.0,) * 4, (1.0,) * 4),
    "pixels in -1..1 (mean 0.5, std 0.5)": ((0.5,) * 4, (0.5,) * 4),
    "pixels in 0..255 (mean 0, std 1/255)": ((0.0,) * 4, (1 / 255,) * 4),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CHECK_CONTRACT = "check --teacher-mean and --teacher-std"


def check_teacher(
    teacher: FrozenTeacher, table: TeacherTable | None = None, *, trust_code: bool = False
) -> list[Finding]:
    """What is wrong with a teacher, or may be; an empty list says nothing good, only nothing bad.

    With the `table` that it was loaded from, a callable that was given no weights is called a
    second time, since one that loads trained weights gives the same again. A teacher that shows its
    answers alone is asked about 24 images, about 12 of them twice more, and about 8 in another
    range where its answers look as if that were meant. None is counted among the `queries` of a
    run, and torch's random state is left as it was.
    """
    before = teacher.queries
    try:
        with teacher.exact(), globally(torch.Generator().manual_seed(0)):
            found = _weights_doubts(teacher, table, trust_code=trust_code)
            found += _Questions(teacher).doubts(untrained=any(one.serious for one in found))
    finally:
        teacher.queries = before
    return sorted(found, key=lambda one: not one.serious)


def check_student(student: Classifier, table: TeacherTable | None = None) -> list[Finding]:
    """The same doubts about a network that is to be scored, and needs no gradients. One that cannot
    be copied is frozen itself."""
    closed = not any(True for _ in student.parameters())
    try:
        asked = copy.deepcopy(student)
    except Exception:  # whatever a function of the user's holds: it is asked itself
        asked = student
    frozen = FrozenTeacher(asked, access="logits" if closed else "full")
    found = check_teacher(frozen, table, trust_code=True)
    return [one for one in found if one.code not in ("no-gradients", "gradients-not-finite")]


def refuse(findings: Iterable[Finding], spec: str, *, anyway: bool) -> None:
    """Raises an InputError that names what is serious about the teacher of this SPEC, unless the
    user goes on anyway."""
    serious = [str(one) for one in findings if one.serious]
    if serious and not anyway:
        raise InputError(
            f"--teacher {quoted(spec)}: {'; '.join(serious)}; give --anyway to go on nevertheless"
        )


# What it answers


class _Failed(Exception):
    """A teacher that breaks off at a question; the finding says how."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding


class Spread(NamedTuple):
    """How answers [B, K] differ from image to image."""

    moved: float  # share of probability by which an answer is off their mean, on average
    sure: float  # median of the largest probability
    gap: float  # median distance of the two largest logits
    votes: int  # different votes

    @classmethod
    def of(cls, logits: Tensor, classifier: Classifier) -> "Spread":
        """Of logits [B, K]."""
        shares = classifier.probabilities(logits)
        moved = _distance(shares, shares.mean(0), classifier).mean()
        if classifier.independent:
            sure, gap = torch.maximum(shares, 1 - shares), logits.abs()
        else:
            top = logits.topk(2, 1).values
            sure, gap = shares.amax(1), top[:, 0] - top[:, 1]
        votes = len(_votes(logits, classifier).unique(dim=0))  # type: ignore[no-untyped-call]
        return cls(float(moved), float(sure.median()), float(gap.nan_to_num().median()), votes)


@dataclass
class _Questions:
    """A teacher being asked."""

    teacher: FrozenTeacher

    def doubts(self, *, untrained: bool) -> list[Finding]:
        """All that its answers show. What only follows from random weights is not said beside
        them."""
        teacher = self.teacher
        device = teacher.device
        rng = torch.Generator().manual_seed(0)
        closed = teacher.access != "full"
        try:
            count = CLOSED if closed else self._affordable()
            again = 12 if closed else max(3, min(REPEATED, count // 4))
            few = max(1, min(6, count // 8))
            extreme = _extremes(teacher.spec.shape, rng)[: 6 if count >= 16 else 2]
            drawn = drawings(teacher.spec, count - len(extreme), rng)
            images = torch.cat([drawn, extreme]).to(device)
            back = len(images) - again  # the extreme ones are among those that are asked again
            once = self.ask(images[back:])
            logits = torch.cat([*map(self.ask, _parts(images[:back], closed)), once])
            broken = ~logits.isfinite().all(1)
            if broken.any():
                return [_not_finite(f"{int(broken.sum())} of {len(images)}")]
            found = self._steady(images[back:], once)
        except _Failed as failure:
            return [failure.finding]
        if not closed:
            found += self._gradients(images[_evenly(len(images), few)])
            found += _contract_doubts(teacher)
        if not untrained:
            known = any(one.serious for one in found)
            found += self._answers(images[: len(drawn)], logits[: len(drawn)], known)
        return found

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] at once to logits [B, K] in float32."""
        try:
            logits = self.teacher.forward_network(images)
            self.teacher.check()
        except Exception as error:  # whatever the user's network raises
            first = str(error).partition("\n")[0] or type(error).__name__
            if isinstance(error, InputError) and "NaN" in first:  # whoever reads answers refuses it
                raise _Failed(_not_finite(f"some of {len(images)}")) from None
            reason = f"{type(error).__name__}: {quoted(first, 120)}"
        else:
            if logits.shape == (len(images), self.teacher.classes):
                return logits
            reason = f"it answers with {tuple(logits.shape)}"
        one = "a single image" if len(images) == 1 else f"{len(images)} images at once"
        raise _Failed(Finding(
            "fails", f"it takes 16 images at once, but not {one} ({reason})",
            "it must accept any number of images: squeeze, view and BatchNorm in training mode "
            "are common causes", serious=True,
        ))  # fmt: skip

    def _affordable(self) -> int:
        """Images to show to a network that costs nothing but time."""
        teacher = self.teacher
        pixels = teacher.spec.height * teacher.spec.width
        operations = _operations(teacher)
        return max(LEAST, min(MOST, PIXELS // pixels, int(OPERATIONS / operations)))

    def _steady(self, images: Tensor, once: Tensor) -> list[Finding]:
        """Asks the same again: all at once, then backwards in parts, one of them alone."""
        twice = self.ask(images)
        moved, flipped = _moved(once, twice, self.teacher.classifier)
        if moved > 1e-4:
            serious = moved > 0.01 or (flipped > 0.05 and moved > 0.002)
            asleep = [
                name for name, module in self.teacher.classifier.body.named_modules()
                if module.training and not list(module.children())
            ]  # fmt: skip
            named = f" (in training mode: {', '.join(map(quoted, asleep[:3]))})" if asleep else ""
            return [Finding(
                "not-deterministic",
                f"the same {len(images)} images get other answers when asked twice: {flipped:.0%} "
                f"other votes, {100 * moved:.1f} % of the probability moved{named}",
                "switch off what is random in it: dropout with training=False, no noise, no random "
                "resizing or cropping", serious,
            )]  # fmt: skip
        third = max(1, (len(images) - 1) // 3)
        parts = torch.split(images.flip(0), [1, third, len(images) - 1 - third])
        other = torch.cat([self.ask(part) for part in parts]).flip(0)
        moved, flipped = _moved(once, other, self.teacher.classifier)
        if moved > 0.005:
            return [Finding(
                "depends-on-batch",
                f"an image's answer depends on the others in its batch: {flipped:.0%} other votes "
                f"and {100 * moved:.1f} % of the probability moved in another batch",
                "BatchNorm must use its running statistics (eval mode, training=False), and "
                "nothing may be normalised or shuffled over the batch",
                moved > 0.02 or (flipped > 0.1 and moved > 0.01),
            )]  # fmt: skip
        return []

    def _gradients(self, images: Tensor) -> list[Finding]:
        """Whether gradients reach the image."""
        few = images.clone().requires_grad_()
        with torch.enable_grad():
            logits = self.teacher.forward_network(few)
            weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
            gradient = torch.autograd.grad((logits * weights).sum(), few, allow_unused=True)[0]
        if gradient is None or not gradient.any():
            return [Finding(
                "no-gradients", "no gradient of its answers reaches the image: something in it "
                "rounds, or cuts the graph", "give --teacher-access logits",
            )]  # fmt: skip
        broken = (~gradient.flatten(1).isfinite().all(1)).sum()
        if broken:
            return [Finding(
                "gradients-not-finite",
                f"its gradients are NaN or infinite for {int(broken)} of {len(few)} images",
                "add a small number below roots, logarithms and divisions, or give "
                "--teacher-access logits", int(broken) > len(few) // 2,
            )]  # fmt: skip
        return []

    def _answers(self, images: Tensor, logits: Tensor, known: bool) -> list[Finding]:
        """What answers to drawings say, all together."""
        teacher = self.teacher
        own = Spread.of(logits, teacher.classifier)
        votes = logits.argmax(1)
        labels = teacher.access == "labels" or teacher.classifier.answers == "labels"
        if not known and not labels:
            found = self._scale(images, own)
            if found:
                return found
        ties = float(_tied(logits).float().mean())
        if ties > 0.5 and not labels and not teacher.independent:
            return [Finding(
                "ties", f"for {ties:.0%} of {len(images)} drawings two classes share the first "
                "place", "are these the right weights, and are its answers rounded too coarsely?",
                True,
            )]  # fmt: skip
        if own.moved < 0.002:
            # a teacher of two classes may name one of them for all drawings, and be sure
            same = float(logits.std(0).max()) < 1e-4 and teacher.access == "full"
            serious = not labels and (own.sure < 0.99 or same)
            return [Finding(
                "constant",
                f"it gives the same answer whatever it is shown ({len(images)} drawings)",
                f"are these the right weights? {CHECK_CONTRACT}", serious,
            )]  # fmt: skip
        if teacher.independent:
            return []
        if teacher.classes > 2 and own.votes == 1 and len(images) >= 16:
            return [Finding(
                "one-class",
                f"it names class {quoted(teacher.names[int(votes[0])])} for every one of "
                f"{len(images)} drawings",
                f"are these the right weights? {CHECK_CONTRACT}",
            )]  # fmt: skip
        if 2 * own.votes < teacher.classes and len(images) >= 8 * teacher.classes:
            seen = set(votes.tolist())
            lacking = [teacher.names[k] for k in range(teacher.classes) if k not in seen]
            more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
            return [Finding(
                "classes-never-seen",
                f"{len(lacking)} of {teacher.classes} classes were never seen in {len(images):,} "
                f"drawings ({', '.join(map(quoted, lacking[:10]))}{more})",
                "they need gradients, or do not exist",
            )]  # fmt: skip
        return []

    @torch.no_grad()
    def _scale(self, images: Tensor, own: Spread) -> list[Finding]:
        """Whether pixels 255 times as large, or as small, make sense to it where its own do not:
        too small, all look alike to it; too large, it is sure of everything by a great distance."""
        classifier = self.teacher.classifier
        small = own.moved < 0.03 and (own.votes == 1 or 2 * own.votes < self.teacher.classes)
        if not (small or own.gap > 15):
            return []
        if self.teacher.access != "full":
            images = images[:8]
        x = (images - classifier.mean) / classifier.std * (255.0 if small else 1 / 255)
        try:
            other = Spread.of(classifier.read(classifier.body, x).float(), classifier)
        except Exception:  # whatever the user's network raises at odd pixels
            return []
        if other.moved < 0.15 or (
            other.votes <= own.votes or other.moved < 10 * own.moved
            if small
            else other.gap > own.gap / 5
        ):
            return []
        seen, given, wanted = (
            ("hardly differ", "0..1", "0..255") if small else ("are all extreme", "0..255", "0..1")
        )
        return [Finding(
            "input-scale",
            f"its answers to different drawings {seen}, as if it expected pixels in {wanted} and "
            f"were given {given}", CHECK_CONTRACT, True,
        )]  # fmt: skip


def _distance(one: Tensor, other: Tensor, classifier: Classifier) -> Tensor:
    """How much probability lies elsewhere, [B]: total variation of two probabilities [B, K]; of
    independent classes the largest difference."""
    off = (one - other).abs()
    return off.amax(1) if classifier.independent else off.sum(1) / 2


def _votes(logits: Tensor, classifier: Classifier) -> Tensor:
    """The class of each image, [B, 1]; whether each class applies, [B, K], if independent."""
    return logits > 0 if classifier.independent else logits.argmax(1, keepdim=True)


def _moved(one: Tensor, other: Tensor, classifier: Classifier) -> tuple[float, float]:
    """Probability moved between two answers [B, K], and share of images with other votes."""
    shares, others = classifier.probabilities(one), classifier.probabilities(other)
    moved = _distance(shares, others, classifier).mean().nan_to_num(1.0)
    flipped = (_votes(one, classifier) != _votes(other, classifier)).any(1).float().mean()
    return float(moved), float(flipped)


def _parts(images: Tensor, whole: bool) -> tuple[Tensor, ...]:
    """Images in parts that a CPU answers fastest; all in one for what is asked from afar."""
    return (images,) if whole else in_cache(images)


def _operations(teacher: FrozenTeacher) -> float:
    """Operations of one answer, by the convolutions and linear layers that it passes: two for each
    weight and place, and as many as take the time of moving a number, for each number that comes
    out."""
    found: list[float] = []
    blank = torch.zeros(2, *teacher.spec.shape, device=teacher.device)

    def note(module: nn.Module, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        found.append(output.numel() * (2.0 * weight[0].numel() + MOVING) / len(output))

    layers = [
        (module, partial(note, module)) for module in teacher.classifier.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    ]  # fmt: skip
    try:
        with torch.no_grad(), hooked(outputs=layers):
            teacher.forward_network(blank)
    except Exception:  # whatever it is, it is asked again
        found.clear()
    height, width = teacher.spec.height, teacher.spec.width
    return sum(found) or UNCOUNTED * height * width


def _evenly(count: int, few: int) -> Tensor:
    """So few of `count` indices, evenly spread, the first and the last among them."""
    return torch.linspace(0, count - 1, min(few, count)).long()


def _tied(logits: Tensor) -> Tensor:
    top = logits.topk(2, 1).values
    return top[:, 0] == top[:, 1]


def _extremes(shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Black, white, grey, noise, black and white noise, and one channel alone: [6, C, H, W]."""
    images = torch.stack([torch.full(shape, level) for level in (0.0, 1.0, 0.5, 0.0, 0.0, 0.0)])
    images[3] = torch.rand(shape, generator=rng)
    images[4] = (torch.rand(shape, generator=rng) > 0.5).float()
    images[5, 0] = 1.0
    return images


def _not_finite(which: str) -> Finding:
    return Finding(
        "not-finite", f"it answers NaN or infinity for {which} images (drawings, "
        "black, white and noise)",
        "add a small number where it divides by a deviation of the image, or takes a root or a "
        "logarithm; or are these the wrong weights?", True,
    )  # fmt: skip


# What it was given: the first BatchNorm layer remembers


class _Enough(Exception):
    """Ends a forward pass."""


@torch.no_grad()
def _contract_doubts(teacher: FrozenTeacher) -> list[Finding]:
    """Compares its input contract with the common ones by the statistics that its first BatchNorm
    layer remembers: natural-like images should look to it as its training images did."""
    first = teacher.norms[0] if teacher.norms else None
    if first is None or _is_fresh(first.running_mean, first.running_var):
        return []
    rng = torch.Generator().manual_seed(1)
    spec = teacher.spec
    device = teacher.device
    count = max(8, min(64, 2**16 // (spec.height * spec.width)))
    images = torch.cat([
        DRAWINGS[kind](count, *spec.shape, rng) for kind in ("spectrum", "leaves", "shaders")
    ]).to(device)  # fmt: skip
    whole = teacher.classifier
    own = _first_distance(teacher, whole, images)
    found: dict[str, float] = {}
    for name, (mean, std) in NORMALISATIONS.items():
        means, stds = mean[: spec.channels], std[: spec.channels]
        if len(means) != spec.channels or (_alike(means, spec.mean) and _alike(stds, spec.std)):
            continue
        other = Classifier(
            whole.body, replace(spec, mean=means, std=stds), whole.all_classes, whole.reading,
            only=whole.only, others=whole.others,
        ).to(device)  # fmt: skip
        found[name] = _first_distance(teacher, other, images)
    best = min(found, key=lambda name: found[name], default="")
    if not best or not found[best] < own / 3:
        return []
    return [Finding(
        "normalisation",
        f"its first BatchNorm layer fits {best} much better than the mean and std that were given "
        f"(distance {found[best]:.2f} against {own:.2f})", CHECK_CONTRACT,
        own - found[best] > 2.5,  # ImageNet's against 0..1 is 1.5, a factor of 255 is 5 or more
    )]  # fmt: skip


def _alike(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) <= 0.05 * max(abs(x), abs(y), 0.2) for x, y in zip(a, b, strict=True))


def _first_distance(teacher: FrozenTeacher, classifier: nn.Module, images: Tensor) -> float:
    """How far the first BatchNorm layer's input is from what it remembers: |Δmean| / σ and
    |log of the ratio of σ|, averaged over channels."""
    seen: list[Tensor] = []
    norm = teacher.norms[0]

    def keep(given: Tensor) -> None:
        seen.append(given.float())
        raise _Enough

    try:
        classifier.eval()
        with hooked(inputs=[(norm, keep)]):
            classifier(images)
    except _Enough:
        pass
    except Exception:  # the user's network, at pixels that it does not expect; or its guard
        if not seen:
            return math.nan
    x = seen[0].transpose(0, 1).flatten(1)
    assert norm.running_mean is not None and norm.running_var is not None
    sigma = norm.running_var.clamp_min(1e-12).sqrt()
    shift = (x.mean(1) - norm.running_mean).abs() / sigma
    spread = (x.std(1).clamp_min(1e-12) / sigma).log().abs()
    return float((shift + spread).mean())


# Its weights


def _weights_doubts(
    teacher: FrozenTeacher, table: TeacherTable | None, *, trust_code: bool
) -> list[Finding]:
    """Whether its weights were ever trained, all of them and every part."""
    found = _called_again(teacher, table, trust_code=trust_code)
    if found or teacher.access != "full":
        return found
    norms = _norms(teacher)
    fresh = [norm for norm in norms if norm.fresh]
    if fresh:
        start = [norm for norm in fresh if norm.initial]
        whole = len(start) == len(norms)
        seen = (
            f"{len(fresh)} of {len(norms)} BatchNorm layers have their initial statistics (0 and 1)"
        )
        if start:
            told = "it was never trained" if whole else "these parts were never trained"
            return [Finding(
                "random-weights", f"{seen}: {told}",
                "load all trained weights, or give --teacher-weights FILE", True,
            )]  # fmt: skip
        return [Finding(
            "batchnorm-statistics", seen,
            "its buffers are missing from the weights: save the whole state_dict, not the "
            "parameters alone", 2 * len(fresh) >= len(norms),
        )]  # fmt: skip
    return _as_initialised(teacher)


def _called_again(
    teacher: FrozenTeacher, table: TeacherTable | None, *, trust_code: bool
) -> list[Finding]:
    """Calls a callable without weights again, from another random state."""
    if table is None:
        return []
    with globally(torch.Generator().manual_seed(0x5EED)):
        other = rebuilt(table, trust_code=trust_code)
    if other is None:
        return []
    own, again = teacher.classifier.body.state_dict(), other.state_dict()
    differ = [
        key for key, value in own.items()
        if key in again and not torch.equal(value.cpu(), again[key].cpu())
    ]  # fmt: skip
    if not differ:
        return []
    whole = len(differ) > len(own) / 2
    few = ", ".join(map(quoted, differ[:3])) + (", …" if len(differ) > 3 else "")
    told = "its weights are random" if whole else "a part of its weights is random"
    return [Finding(
        "random-weights",
        f"{told}: {quoted(table.spec)} gives other numbers each time it is called ({len(differ)} "
        f"of {len(own)} tensors: {few})",
        "load the trained weights in it, or give --teacher-weights FILE", True,
    )]  # fmt: skip


class Norm(NamedTuple):
    """What is reported of a BatchNorm layer."""

    fresh: bool  # its statistics are as they begin: 0 and 1
    initial: bool  # so are its weights


def _norms(teacher: FrozenTeacher) -> list[Norm]:
    """The BatchNorm layers that images pass; of a graph, whose layers are no modules, all."""
    if teacher.norms:
        return [
            Norm(_is_fresh(n.running_mean, n.running_var), _is_initial(n.weight, n.bias))
            for n in teacher.norms
        ]
    state = teacher.classifier.body.state_dict()
    stems = [key.removesuffix("running_mean") for key in state if key.endswith(".running_mean")]
    return [
        Norm(
            _is_fresh(state[stem + "running_mean"], state.get(stem + "running_var")),
            _is_initial(state.get(stem + "weight"), state.get(stem + "bias")),
        )
        for stem in stems
    ]


def _is_fresh(mean: Tensor | None, var: Tensor | None) -> bool:
    if mean is None or var is None:
        return False
    return not bool(mean.any()) and bool(var.eq(1).all())


def _is_initial(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the affine part of a normalisation is as it begins: 1 (or 0) and 0."""
    return (weight is None or bool(weight.eq(1).all() or weight.eq(0).all())) and (
        bias is None or not bool(bias.any())
    )


def _as_initialised(teacher: FrozenTeacher) -> list[Finding]:
    """Compares every tensor with what the common initialisations would have drawn: numbers within
    the very bounds, of the very distribution, beside biases that are 0 or drawn too. Training
    moves some number over a bound, and no bias stays 0."""
    state = {
        key: value.detach().float().cpu()
        for key, value in teacher.classifier.body.state_dict().items()
        if value.is_floating_point()
    }
    drawn: dict[str, bool] = {}
    strict = 0  # numbers in tensors that only an initialisation leaves so
    for key, value in state.items():
        stem, _, leaf = key.rpartition(".")
        if leaf not in ("weight", "in_proj_weight") or stem + ".running_mean" in state:
            continue
        bias = state.get(f"{stem}.{leaf.removesuffix('weight')}bias")
        if value.dim() < 2:
            drawn[key] = _is_initial(value, bias)
            strict += value.numel() if drawn[key] else 0
        elif value.numel() >= 16:
            uniform, drawn[key] = _is_drawn(value, bias)
            if not drawn[key] and bias is not None:  # torch's bias beside another's weight
                small = float(bias.abs().max()) <= ROUNDED / math.sqrt(value[0].numel())
                drawn[key], bias = small and _is_drawn(value, None)[1], None
            if drawn[key] and (uniform or bias is not None):
                strict += value.numel()
    for norm in teacher.norms:
        drawn[f"norm {id(norm)}"] = _is_initial(norm.weight, norm.bias)
    if len(drawn) >= 2 and strict >= 200 and sum(drawn.values()) >= 0.9 * len(drawn):
        return [Finding(
            "random-weights",
            f"its weights are as an initialisation leaves them ({sum(drawn.values())} of "
            f"{len(drawn)} tensors): it was never trained",
            "load the trained weights, or give --teacher-weights FILE", True,
        )]  # fmt: skip
    head = teacher.head
    if head is not None and head.bias is not None and head.weight.numel() >= 64:
        weight, bias = head.weight.detach().float().cpu(), head.bias.detach().float().cpu()
        if _is_drawn(weight, bias)[1]:
            return [Finding(
                "random-head",
                "its last layer is as an initialisation leaves it",
                "load the weights of the last layer too (strict=False hides that they are "
                "missing)", True,
            )]  # fmt: skip
    return []


def _is_drawn(weight: Tensor, bias: Tensor | None) -> tuple[bool, bool]:
    """Whether a weight [out, in, ...] with its bias is as a common initialisation draws it:
    uniformly, and at all.

    torch's own: both uniform within 1/√fan_in. Others (He's, Glorot's and LeCun's, uniform or
    normal, and normal with deviation 0.02, 0.01 or 1): the bias is 0."""
    if not weight.any():  # heads of some begin with 0
        return False, bias is None or not bool(bias.any())
    area = weight[0, 0].numel() if weight.dim() > 2 else 1
    fan_in, fan_out = weight[0].numel(), weight.shape[0] * area
    values = weight.flatten()
    most, deviation = float(values.abs().max()), float(values.std())
    values = values[:: max(1, len(values) // SAMPLED)].double()
    default = 1 / math.sqrt(fan_in)
    if _is_uniform(values, most, default) and (
        bias is None or float(bias.abs().max()) <= default * ROUNDED
    ):
        return True, True
    if bias is not None and float(bias.abs().max()) > 1e-4:  # torchvision draws some near 0
        return False, False
    variances = (2 / fan_in, 2 / fan_out, 2 / (fan_in + fan_out), 1 / fan_in)
    if any(_is_uniform(values, most, math.sqrt(3 * variance)) for variance in variances):
        return True, True
    deviations = (*(math.sqrt(variance) for variance in variances), 0.02, 0.01, 1.0)
    return False, any(
        _is_normal(values / wanted) for wanted in deviations if abs(deviation / wanted - 1) < 0.15
    )


def _is_uniform(values: Tensor, most: float, bound: float) -> bool:
    if not most <= bound * ROUNDED:
        return False
    return _statistic(values, lambda x: (x / bound + 1) / 2) < DRAWN_SO


def _is_normal(values: Tensor) -> bool:
    """Also if cut at two deviations, as Keras does, with the deviation mended or not."""

    def normal(x: Tensor) -> Tensor:
        return 0.5 * torch.erfc(-x / math.sqrt(2))

    low = 0.022750131948179195  # of a normal distribution below minus two deviations

    def cut(x: Tensor) -> Tensor:
        return ((normal(x) - low) / (1 - 2 * low)).clamp(0, 1)

    return (
        _statistic(values, normal) < DRAWN_SO
        or _statistic(values, cut) < DRAWN_SO
        or _statistic(values * 0.87962566, cut) < DRAWN_SO  # the deviation of what is cut so
    )


def _statistic(values: Tensor, distribution: Callable[[Tensor], Tensor]) -> float:
    """Kolmogorov and Smirnov's: the largest distance of the empirical distribution from the other,
    times √n."""
    n = len(values)
    expected = distribution(values.sort().values)
    steps = torch.arange(n + 1, dtype=expected.dtype) / n
    most = torch.maximum(steps[1:] - expected, expected - steps[:-1]).max()
    return float(most) * math.sqrt(n)
