"""Teachers: classifiers that are frozen, for all of their classes or for some."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.images import ImageSpec
from synthkd.labels.class_names import told_list
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TeacherTable
from synthkd.specs.classifiers import classifier_of
from synthkd.specs.ensembles import is_ensemble, load_ensemble
from synthkd.specs.sources import BlackBox, guarded, is_call, is_saved, living, source_of
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.frozen import FrozenTeacher

NONE_OF_THESE = "none of these"


def load_teachers(
    table: TeacherTable, *, trust_code: bool = False, network: Any = None
) -> FrozenTeacher | EnsembleTeacher:
    """`load_teacher`, or several where the SPEC names a file of them."""
    if network is None and is_ensemble(table.spec):
        load = partial(load_teacher, trust_code=trust_code)
        return load_ensemble(table, load, trust_code=trust_code)
    return load_teacher(table, trust_code=trust_code, network=network)


def load_teacher(
    table: TeacherTable, *, trust_code: bool = False, shared: bool = False, network: Any = None
) -> FrozenTeacher:
    """The teacher that `table` describes, frozen; anything wrong with it is one InputError.

    `network` is a living one in the place of its SPEC: an nn.Module, of which a copy is used, or a
    function from a float32 array [B, C, H, W] to answers (a black box).
    A network that brings its own input contract takes no other by flags, unless these are `shared`
    with networks that bring none."""
    if network is not None:
        table = table.model_copy(update={"spec": living(network)})
    if is_ensemble(table.spec):
        raise InputError(
            f"--teacher {quoted(table.spec)}: several teachers serve distill and generate alone: "
            "name one of them here"
        )
    classifier, names = classifier_of(
        table.spec, table.weights, table, trust_code=trust_code, role="teacher", network=network
    )
    names = _told_names(table, classifier.classes) or names
    if is_saved(table.spec) and not shared:
        _check_flags(table, classifier.spec)
    if table.only or table.none_of_these:
        classifier, names = _some_classes(classifier, names, table)
    plain = classifier.answers == "logits" and not classifier.reading.path
    kind = "" if plain else f" answering in {classifier.reading}"
    with guarded(table.spec, "teacher"):
        access = "logits" if table.access == "full" and _is_closed(classifier) else table.access
        access = "labels" if classifier.answers == "labels" else access
        return FrozenTeacher(
            classifier, names=names, described=f"{table.spec}{kind}", access=access,
            features_at=table.features,
        )  # fmt: skip


def _some_classes(
    whole: Classifier, names: tuple[str, ...], table: TeacherTable
) -> tuple[Classifier, tuple[str, ...]]:
    """A teacher that answers for the classes of --only alone, and their names."""
    names = names or tuple(str(k) for k in range(whole.classes))
    only = classes_named(table.only, names)
    if not only:
        raise InputError("--none-of-these is for --only: name the classes that it is none of")
    if len(only) + table.none_of_these < 2:
        raise InputError("--only: give two classes or more, or --none-of-these")
    if len(only) == len(names):
        raise InputError("--only: these are all of the teacher's classes: omit it")
    if table.none_of_these and whole.independent:
        raise InputError(
            "--none-of-these: the teacher's classes are independent, so none of them may apply "
            "already: omit it"
        )
    found = Classifier(
        whole.body, whole.spec, whole.classes, whole.reading, only=only, others=table.none_of_these
    )
    found.guard, found.notes, found.all_names = whole.guard, whole.notes, names
    more = (NONE_OF_THESE,) if table.none_of_these else ()
    return found, (*(names[k] for k in only), *more)


def classes_named(words: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """The numbers of classes that are called by name or number.

    >>> classes_named(("dog", "0"), ("cat", "dog"))
    (1, 0)
    """
    found = []
    for word in words:
        if word in names:
            found.append(list(names).index(word))
        elif word.isdecimal() and int(word) < len(names):
            found.append(int(word))
        else:
            raise InputError(
                f"--only: the teacher has no class {quoted(word)}{suggest(word, names)}"
                if not word.isdecimal()
                else f"--only: the teacher has no class {word}: they are 0 to {len(names) - 1}"
            )
        if found[-1] in found[:-1]:
            raise InputError(f"--only: {quoted(word)} is named twice")
    return tuple(found)


def rebuilt(table: TeacherTable, *, trust_code: bool = False) -> nn.Module | None:
    """What the callable behind a teacher gives when it is called once more; None where there is no
    callable, where its weights are given besides, or where it is no network."""
    if table.weights or not is_call(table.spec):
        return None
    try:
        body = source_of(table.spec, "", table, trust_code=trust_code, role="teacher").body
    except InputError:  # it can be called but once
        return None
    return None if isinstance(body, BlackBox) else body


def _told_names(table: TeacherTable, classes: int) -> tuple[str, ...]:
    """The names of --class-names, or ()."""
    names = told_list(table.class_names, "--class-names")
    if names and (len(names) != classes or len(set(names)) != len(names)):
        raise InputError(
            f"--class-names: {len(names)} names, {len(set(names))} of them different, for "
            f"{classes} classes"
        )
    return names


def _check_flags(table: TeacherTable, known: ImageSpec) -> None:
    """Refuses an input contract that a network which brings its own would not follow."""
    for flag, given, own in (
        ("--image-size", table.image_size, (known.height, known.width)),
        ("--channels", table.channels, (known.channels,)),
        ("--teacher-mean", table.mean, known.mean),
        ("--teacher-std", table.std, known.std),
    ):
        told = given if isinstance(given, tuple) else (given or 0,)
        whole = told * len(own) if len(told) == 1 else told
        if given is not None and [round(v, 6) for v in whole] != [round(v, 6) for v in own]:
            mark = "x" if flag == "--image-size" else " "
            asked, brought = (mark.join(f"{value:g}" for value in values) for values in (told, own))
            raise InputError(
                f"{flag} {asked}: {quoted(table.spec)} brings its own input contract ({brought}): "
                "omit it"
            )


def _is_closed(classifier: Classifier) -> bool:
    """Whether no gradient reaches the image, whatever was asked for: a function, a graph that is
    run elsewhere, a network that answers with classes or forbids gradients itself."""
    classifier.requires_grad_(False)
    blank = torch.zeros(2, *classifier.spec.shape, requires_grad=True)
    with torch.enable_grad():
        return not classifier(blank).requires_grad
