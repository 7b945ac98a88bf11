"""The student's objective: distillation terms summed by weight, over what both networks show.

B batch, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.losses.distillation import NEEDS, TERMS, DistillationView, KnownBeforehand
from synthkd.losses.term import Term, check_needs
from synthkd.networks.classifier import Classifier
from synthkd.networks.modes import in_eval_mode
from synthkd.recipe import TrainingTable
from synthkd.teachers.features import features_of, module_named, resolution_layers
from synthkd.teachers.protocol import Teacher


class DistillationObjective(nn.Module):
    """Sum over terms of  weight · term(view), by `[training.terms]`.

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
            check_needs(f"training.terms.{name}", TERMS[name], NEEDS)
        terms = {name: TERMS[name] for name in self.weights}
        self.student_layers: tuple[str, ...] = ()
        self.teacher_layers: tuple[str, ...] = ()
        self.pairs: tuple[tuple[str, str], ...] = ()
        known = KnownBeforehand({}, {}, (), student.classes, capacity)
        if teacher is None and any(term.needs for term in terms.values()):
            raise InputError("training.terms: these terms look inside a teacher, and none is given")
        if teacher is not None and any("features" in term.needs for term in terms.values()):
            known = self._pair(terms, table, student, teacher, capacity)
        made = {name: term.module(known) for name, term in terms.items() if term.module is not None}
        self.made = nn.ModuleDict(made).to(student.mean.device)

    @torch.no_grad()
    def _pair(
        self, terms: Mapping[str, Term], table: TrainingTable, student: Classifier,
        teacher: Teacher, capacity: int,
    ) -> KnownBeforehand:  # fmt: skip
        """Chooses the layers that are compared: those that are named, else the last of each
        resolution, where the resolutions agree. Returns their shapes."""
        named = [name for name, term in terms.items() if "features" in term.needs]
        if "features" not in teacher.abilities:
            raise InputError(
                f"training.terms: {', '.join(named)} compares layers inside the teacher, and this "
                f"one shows its {teacher.access} alone: leave it out"
            )
        blank = torch.zeros(2, *teacher.spec.shape, device=teacher.device)
        ours = _layers("student", student.body, table.student_layers, teacher.normalise(blank))
        theirs = _layers("teacher", _body(teacher), table.teacher_layers, teacher.normalise(blank))
        with features_of(student.body, ours) as shown, in_eval_mode(student):
            student(blank)
        taught = teacher.teach(blank, theirs).features
        teacher.queries -= len(blank)  # asked about nothing of a run
        if table.student_layers or table.teacher_layers:
            if len(ours) != len(theirs):
                raise InputError(
                    f"training.student_layers names {len(ours)} layers and training.teacher_layers "
                    f"{len(theirs)}: they are compared one by one"
                )
            pairs = list(zip(ours, theirs, strict=True))
        else:  # from large to small, where the resolutions agree
            sizes = {taught[t].shape[2:]: t for t in theirs}
            pairs = [(s, sizes[shown[s].shape[2:]]) for s in ours if shown[s].shape[2:] in sizes]
        for name in named:
            fitting = [p for p in pairs if _fits(shown[p[0]], taught[p[1]], terms[name].needs)]
            if not fitting:
                raise InputError(
                    f"training.terms.{name}: no layer of the student fits one of the teacher's: "
                    "leave it out, or name training.student_layers and training.teacher_layers"
                )
        self.pairs = tuple(pairs)
        self.student_layers = tuple(dict.fromkeys(s for s, _ in pairs))
        self.teacher_layers = tuple(dict.fromkeys(t for _, t in pairs))
        return KnownBeforehand(
            {name: tuple(shown[name].shape[1:]) for name in self.student_layers},
            {name: tuple(taught[name].shape[1:]) for name in self.teacher_layers},
            self.pairs, teacher.classes, capacity,
        )  # fmt: skip

    def forward(self, view: DistillationView) -> tuple[Tensor, Tensor | None]:
        """The loss, a scalar, and where the view asks for it the loss of each image [B], of the
        terms that tell."""
        total: Tensor | None = None
        each: Tensor | None = None
        for name, weight in self.weights.items():
            fn: Any = self.made[name] if name in self.made else TERMS[name].fn
            value: Tensor = fn(view)
            if value.dim():
                each = weight * value.detach() if each is None else each + weight * value.detach()
                value = _mean(value, view.weights)
            part = value if weight == 1 else weight * value
            total = part if total is None else total + part
        assert total is not None
        return total, each


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
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
            module_named(dict(body.named_modules()), name)
    except InputError as error:
        raise InputError(f"training.{whose}_layers: {error}") from None
    return named


def _fits(student: Tensor, teacher: Tensor, needs: frozenset[str]) -> bool:
    """Whether a pair of layers serves a term."""
    if not needs & {"maps", "equal maps"}:
        return True
    if not (student.dim() == teacher.dim() == 4 and student.shape[2:] == teacher.shape[2:]):
        return False
    if "maps" in needs:
        return student.shape[2:].numel() > 1
    return student.shape == teacher.shape
