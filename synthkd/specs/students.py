"""Students about to learn: new, begun with weights of their teacher's, or cut out of it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.images import ImageSpec
from synthkd.labels.class_names import check_same_classes
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import Pruned, is_pruned, keep_outputs, pruned_teacher, pruning_ratio
from synthkd.networks.slimmable import Slimmable
from synthkd.networks.weight_init import inherited
from synthkd.recipe import StudentTable
from synthkd.specs.classifiers import asked, load_classifier, tells_its_input, told_by
from synthkd.specs.contract import contract, own_first
from synthkd.specs.sources import guard, is_fresh, is_saved, living, source_of
from synthkd.teachers.protocol import Teacher


def new_student(
    table: StudentTable,
    teacher: Teacher,
    *,
    trust_code: bool = False,
    network: nn.Module | None = None,
    cut: Callable[[float], Pruned] | None = None,
) -> Classifier:
    """A student for the teacher's images and classes. Its first layer is the teacher's
    normalisation, or that of the weights that it begins with, where their source tells it.

    Its weights are fresh, from torch's global random state; or those of `table.weights`; or with
    `table.start` "teacher" the teacher's own as far as they fit: `inherited` of the result says how
    many. A teacher that shows its answers alone gives no weights away. `network` is a living one
    in the place of its SPEC; a copy of it learns. `cut` cuts a student
    of a ratio out of its teacher, see `networks.pruned`.
    """
    spec = teacher.spec
    if network is not None:
        table = table.model_copy(update={"spec": living(network)})
    if is_saved(table.spec):
        told = told_by(spec, teacher.classes)
        found, names = load_classifier(table, told, trust_code=trust_code)
        check_same_classes(names, teacher.names)
        if found.spec.shape != spec.shape:
            raise InputError(
                f"--student {quoted(table.spec)} takes images of {_size(found.spec)}, "
                f"the teacher of {_size(spec)}"
            )
        return found
    if is_pruned(table.spec):
        return _pruned_student(table, teacher, cut)
    table_of = told_by(spec, teacher.classes).model_copy(update={"args": table.args})
    source = source_of(
        table.spec, table.weights, table_of, trust_code=trust_code, role="student", network=network
    )
    if tells_its_input(table.spec, table.weights):
        known_of = replace(source.known, size=spec.shape[1:], channels=spec.channels)
        spec = contract(table.spec, own_first(table_of, known_of), source.known)
    # fresh networks of ours and of zoos return logits, whatever their first answers look like
    known = {"kind": "logits", "saved": True} if is_fresh(table.spec) else {}
    count, answers = asked("student", table.spec, source.body, spec, teacher.classes, **known)
    if teacher.independent and answers.kind == "logits":
        answers = replace(answers, kind="multilabel-logits")
    if teacher.independent != answers.independent:
        one, other = (
            ("independent", "exclude each other") if teacher.independent
            else ("classes of which one applies", "are independent")
        )  # fmt: skip
        raise InputError(
            f"--student {quoted(table.spec)} answers in {answers}, whose classes {other}, and the "
            f"teacher's are {one}: let it return logits"
        )
    student = Classifier(source.body, spec, count, answers)
    guard(student, table.spec, "student")
    source_body = getattr(teacher.network, "body", None)
    begins = table.start == "teacher" and not table.weights and teacher.access == "full"
    if begins and network is None and source_body is not None:
        own = source.body.full if isinstance(source.body, Slimmable) else source.body
        student.inherited = inherited(own, source_body)
    return student


def _pruned_student(
    table: StudentTable, teacher: Teacher, cut: Callable[[float], Pruned] | None
) -> Classifier:
    """The teacher's own network with fewer channels, begun with those of its weights that stay."""
    ratio, own = pruning_ratio(table.spec), teacher.network
    where = f"--student {quoted(table.spec)}"
    if table.weights or table.args:
        raise InputError(
            f"{where} begins with its teacher's weights: give no others, nor arguments"
        )
    if teacher.access != "full" or not isinstance(own, Classifier):
        raise InputError(f"{where} is cut out of the teacher, and this one is a black box")
    if own.spec.shape != teacher.spec.shape:
        raise InputError(
            f"{where} is cut out of the teacher that can be looked into, which takes other images "
            "than the first one: put it first"
        )
    try:
        body, kept = copy.deepcopy((cut or partial(pruned_teacher, own))(ratio))  # one of its own
        if own.only:
            keep_outputs(body, teacher.spec.shape, own.only, others=own.others)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    found = Classifier(body, own.spec, teacher.classes, own.reading)
    found.guard, found.kept = own.guard, kept
    count = sum(1 for tensor in body.state_dict().values() if tensor.is_floating_point())
    found.inherited = (count, count)
    return found


def _size(spec: ImageSpec) -> str:
    return " x ".join(str(side) for side in spec.shape)
