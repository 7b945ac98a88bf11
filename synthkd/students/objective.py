"""The student's objective: distillation terms summed by weight, over what both networks show.

B batch, K classes.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.losses.distillation import NEEDS, TERMS, DistillationView, KnownBeforehand
from synthkd.losses.distillation.view import map_shape
from synthkd.losses.term import Term, check_needs
from synthkd.networks.classifier import Classifier
from synthkd.networks.modes import in_eval_mode
from synthkd.recipe import TrainingTable
from synthkd.students.weighting import Weighting, weighting_of
from synthkd.teachers.features import (
    embedding_layer,
    features_of,
    layer_named,
    resolution_layers,
)
from synthkd.teachers.protocol import Teacher

LAYERS = frozenset({"features", "embedding"})  # needs that look inside both networks
FIXED = frozenset({"maps", "equal maps", "fixed maps"})  # needs that forbid smaller images


class DistillationObjective(nn.Module):
    """Sum over terms of  factor · weight · term(view), by `[training.terms]`; the factors are those
    of `training.weighting`.

    A term that returns [B] is averaged over the batch, by the view's weights where it has some.
    Terms with weights of their own are its sub-modules: they learn and are saved with the student,
    and are no part of it. What cannot be served (an unknown term or layer, a teacher that does not
    show its layers) is an InputError when the objective is built, before a run begins.
    """

    def __init__(
        self,
        table: TrainingTable,
        student: Classifier,
        teacher: Teacher | None = None,
        *,
        capacity: int = 0,
    ) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in table.terms.items() if weight}
        if not self.weights:
            raise InputError("training.terms: the student has nothing to learn by; give a term")
        for name in self.weights:
            if name not in TERMS:
                raise InputError(
                    f"training.terms: unknown term {quoted(name)}{suggest(name, TERMS)}"
                )
            if self.weights[name] < 0:
                raise InputError(
                    f"training.terms.{name}: a weight is at least 0; got {self.weights[name]:g}"
                )
            check_needs(f"training.terms.{name}", TERMS[name], NEEDS)
        terms = {name: TERMS[name] for name in self.weights}
        self.student_layers: tuple[str, ...] = ()
        self.teacher_shapes: dict[str, tuple[int, ...]] = {}  # of one image's features, by layer
        self.pairs: tuple[tuple[str, str], ...] = ()
        for name, term in terms.items():
            _check_classes(name, term, student)
        self.embedding: tuple[str, str] | None = None
        known = KnownBeforehand({}, {}, (), student.classes, capacity)
        looking = {name: term for name, term in terms.items() if term.needs & LAYERS}
        for name, term in looking.items():
            if term.needs & FIXED and any(side < 1 for side in table.scales):
                raise InputError(
                    f"training.terms.{name} compares maps of one size, and training.scales shows "
                    "the student smaller images: leave one of them out"
                )
        if looking:
            if teacher is None:
                raise InputError(
                    "training.terms: these terms look inside a teacher, and none is given"
                )
            known = self._pair(looking, table, student, teacher, capacity)
        made = {name: term.module(known) for name, term in terms.items() if term.module is not None}
        self.made = nn.ModuleDict(made).to(student.mean.device)
        self.weighting = weighting_of(
            table.weighting, self.weights, frozenset(looking), student,
            teacher.parameters_count if teacher is not None else 0,
        ).to(student.mean.device)  # fmt: skip

    @torch.no_grad()
    def _pair(
        self, terms: Mapping[str, Term], table: TrainingTable, student: Classifier,
        teacher: Teacher, capacity: int,
    ) -> KnownBeforehand:  # fmt: skip
        """Chooses the layers that are compared: those that are named, else the last of each
        resolution, where the resolutions agree, or if none does the last of all; of both only those
        that a term can compare. No others are looked at while the student learns: what they show of
        a round may be gigabytes. Returns their shapes."""
        named = [name for name, term in terms.items() if "features" in term.needs]
        if "features" not in teacher.abilities:
            raise InputError(
                f"training.terms: {', '.join(terms)} compares layers inside the teacher, and this "
                f"one shows its {teacher.access} alone: leave it out"
            )
        blank = torch.zeros(2, *teacher.spec.shape, device=teacher.device)
        ours: tuple[str, ...] = ()
        theirs: tuple[str, ...] = ()
        if named:
            normal = (blank - student.mean) / student.std
            ours = _layers("student", student.body, table.student_layers, normal)
            normal = teacher.normalise(blank)
            theirs = _layers("teacher", _body(teacher), table.teacher_layers, normal)
        if embedded := [name for name, term in terms.items() if "embedding" in term.needs]:
            self.embedding = _embedding(embedded[0], student, teacher, blank)
        more_of = self.embedding or ()
        with features_of(student.body, [*ours, *more_of[:1]]) as seen, in_eval_mode(student):
            student(blank)
        shown = {name: tuple(value.shape[1:]) for name, value in seen.items()}
        before = teacher.queries
        found = teacher.teach(blank, [*theirs, *more_of[1:]]).features
        teacher.queries = before  # asked about nothing of a run
        taught = {name: tuple(value.shape[1:]) for name, value in found.items()}
        if table.student_layers or table.teacher_layers:
            if len(ours) != len(theirs):
                raise InputError(
                    f"training.student_layers names {len(ours)} layers and training.teacher_layers "
                    f"{len(theirs)}: they are compared one by one"
                )
            pairs = list(zip(ours, theirs, strict=True))
        else:  # from large to small, where the resolutions agree
            sizes = {map_shape(taught[t])[1:]: t for t in theirs}
            alike = [(s, map_shape(shown[s])[1:]) for s in ours]
            pairs = [(s, sizes[size]) for s, size in alike if size in sizes]
            pairs = pairs or list(zip(ours[-1:], theirs[-1:], strict=False))
        compared = set[tuple[str, str]]()
        for name in named:
            fitting = [p for p in pairs if _fits(shown[p[0]], taught[p[1]], terms[name].needs)]
            if not fitting:
                raise InputError(
                    f"training.terms.{name}: no layer of the student fits one of the teacher's: "
                    "leave it out, or name training.student_layers and training.teacher_layers"
                )
            compared.update(fitting)
        self.pairs = tuple(pair for pair in pairs if pair in compared)
        shown = {layer: shown[layer] for layer in (*(s for s, _ in self.pairs), *more_of[:1])}
        taught = {layer: taught[layer] for layer in (*(t for _, t in self.pairs), *more_of[1:])}
        self.student_layers, self.teacher_shapes = tuple(shown), taught
        return KnownBeforehand(shown, taught, self.pairs, teacher.classes, capacity, self.embedding)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The layers that the teacher is asked to show."""
        return tuple(self.teacher_shapes)

    def forward(self, view: DistillationView) -> tuple[Tensor, Tensor | None]:
        """The loss, a scalar, and where the view asks for it the loss of each image [B], of the
        terms that tell."""
        values: dict[str, Tensor] = {}
        each: Tensor | None = None
        factors = self.weighting.factors(view.answers_share) if view.per_sample else {}
        for name, weight in self.weights.items():
            fn: Any = self.made[name] if name in self.made else TERMS[name].fn
            value: Tensor = fn(view)
            if value.dim():
                told = weight * factors.get(name, 1.0) * value.detach()
                each = told if each is None else each + told
                value = weighted_mean(value, view.weights)
            values[name] = value
        return self.weighting(values, view.answers_share), each

    @torch.no_grad()
    def tells_images(self, student: Classifier, teacher: Teacher) -> bool:
        """Whether a term tells the loss of each image: tried on two blank ones, by a copy."""
        blank = torch.zeros(2, *teacher.spec.shape, device=teacher.device)
        with features_of(student.body, self.student_layers) as seen, in_eval_mode(student):
            learned = student(blank)
        before = teacher.queries
        taught = teacher.teach(blank, self.teacher_layers)
        teacher.queries = before  # asked about nothing of a run
        view = DistillationView(
            blank, learned, taught.logits, seen, taught.features, self.pairs, self.embedding,
            independent=student.independent, per_sample=True,
        )  # fmt: skip
        return copy.deepcopy(self).eval()(view)[1] is not None

    def factors(self, share: float) -> dict[str, float]:
        """By how much each term's weight is multiplied now, where it is at all."""
        return {} if type(self.weighting) is Weighting else self.weighting.factors(share)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values [B], weighted where there are weights [B]."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum().clamp_min(1e-12)


def _body(teacher: Teacher) -> nn.Module:
    """The module below which a teacher's layers are named."""
    body: nn.Module = getattr(teacher.network, "body", teacher.network)
    return body


def _layers(whose: str, body: nn.Module, named: tuple[str, ...], images: Tensor) -> tuple[str, ...]:
    if not named:
        return resolution_layers(body, images)
    try:
        for name in named:
            layer_named(dict(body.named_modules()), name)
    except InputError as error:
        raise InputError(f"training.{whose}_layers: {error}") from None
    return named


def _check_classes(name: str, term: Term, student: Classifier) -> None:
    """Refuses a term that has no meaning for the classes."""
    if term.needs & {"one class", "three classes"} and student.independent:
        raise InputError(
            f"training.terms.{name} compares classes of which one applies, and here several may: "
            "leave it out"
        )
    if "three classes" in term.needs and student.classes < 3:
        raise InputError(f"training.terms.{name} says nothing of two classes: leave it out")


def _embedding(name: str, student: Classifier, teacher: Teacher, blank: Tensor) -> tuple[str, str]:
    """The layers whose outputs enter the last linear layer, of student and teacher."""
    for whose, layer in (
        ("student", ours := embedding_layer(student.body, blank, student.all_classes, student)),
        ("teacher", theirs := teacher.feature_layer),
    ):
        if not layer:
            hint = ", or give --teacher.features" if whose == "teacher" else ""
            raise InputError(
                f"training.terms.{name} compares what enters the last linear layer, and this "
                f"{whose} ends with none: leave it out{hint}"
            )
    return ours, theirs


def _fits(student: tuple[int, ...], teacher: tuple[int, ...], needs: frozenset[str]) -> bool:
    """Whether a pair of layers, by their shapes, serves a term."""
    if not needs & {"maps", "equal maps"}:
        return True
    mine, theirs = map_shape(student), map_shape(teacher)
    if mine[1:] != theirs[1:]:
        return False
    if "maps" in needs:
        return mine[1] * mine[2] > 1
    return mine == theirs
