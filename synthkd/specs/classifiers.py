"""A network with weights, what it takes and what it answers."""

from pathlib import Path
from typing import Any

from torch import nn

from synthkd.core import resources
from synthkd.core.errors import InputError, quoted
from synthkd.core.images import ImageSpec
from synthkd.labels.class_names import names_in, told_list
from synthkd.networks.answers import KINDS, Answers, recognise
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import is_pruned, narrow_to, pruning_ratio
from synthkd.recipe import MOST_CLASSES, StudentTable, TeacherTable
from synthkd.specs import limits, zoo
from synthkd.specs.code import module_of
from synthkd.specs.contract import check_inside, contract, own_first
from synthkd.specs.header import read_card
from synthkd.specs.sources import (
    STUDENT,
    BlackBox,
    guard,
    guarded,
    is_call,
    is_code,
    is_graph,
    is_saved,
    source_of,
)
from synthkd.specs.weights import fill, read_checkpoint

DEMO_TEACHER = "demo_teacher.safetensors"


def load_classifier(
    table: StudentTable,
    contract: TeacherTable,
    *,
    trust_code: bool = False,
    network: nn.Module | None = None,
) -> tuple[Classifier, tuple[str, ...]]:
    """A trained student for evaluation, and its class names. `contract` says what its source does
    not: how images are to be fed, and of how many classes (all of its teacher's). `network` is a
    living one of the same form, of which a copy takes the saved weights, where the student was
    given as a Python object."""
    told = contract.model_copy(update={
        "args": table.args, "weights_key": "", "output": "", "features": "", "access": "full",
        "answers": "auto", "classes": None if contract.only else contract.classes,
    })  # fmt: skip
    return classifier_of(
        table.spec, table.weights, told, trust_code=trust_code, role="student", network=network
    )


def classifier_of(
    spec: str, weights: str, table: TeacherTable, *, trust_code: bool, role: str,
    network: Any = None,
) -> tuple[Classifier, tuple[str, ...]]:  # fmt: skip
    """A network with weights and its input contract."""
    if is_saved(spec):
        return _saved(spec, weights, table, trust_code=trust_code, role=role, network=network)
    source = source_of(spec, weights, table, trust_code=trust_code, role=role, network=network)
    if not source.complete:
        raise InputError(f"--{role} {spec} has random weights: give --{role}-weights FILE")
    if role == "teacher" and is_graph(spec):
        check_inside(spec, table, source.known)
    brings = role == "student" and tells_its_input(spec, weights)
    image_spec = contract(spec, own_first(table, source.known) if brings else table, source.known)
    names = source.known.names
    if role == "teacher":
        names = told_list(table.class_names, "--class-names") or names
        names = names or (_carried(spec, source.body, table.classes) if table.classes else ())
    count, answers = asked(
        role, spec, source.body, image_spec, table.classes, kind=table.answers, names=names,
        inside=role == "teacher" and table.access == "full",
    )  # fmt: skip
    names = source.known.names if len(source.known.names) == count else ()
    names = names or _carried(spec, source.body, count) or answers.names
    found = Classifier(source.body, image_spec, count, answers)
    guard(found, spec, role)
    found.notes = (*source.notes, *answers.notes)
    return found, names


def _saved(
    spec: str, weights: str, table: TeacherTable, *, trust_code: bool, role: str,
    network: Any = None,
) -> tuple[Classifier, tuple[str, ...]]:  # fmt: skip
    """The demo, or the student of a run."""
    saved = resources.shipped("assets") / DEMO_TEACHER if spec == "demo" else Path(spec) / STUDENT
    if not saved.is_file():
        raise InputError(f"--{role} {quoted(spec)}: no {STUDENT} in this directory")
    if weights:
        raise InputError(f"--{role} {quoted(spec)} brings its own weights: omit --{role}-weights")
    card = read_card(saved)
    network_spec = card.of if is_pruned(card.network) else card.network
    if is_code(network_spec) and not trust_code:
        raise InputError(
            f"--{role} {quoted(spec)} is built by the code {quoted(network_spec)}, "
            "as its file says: give --trust-code if you trust it"
        )
    if table.args and dict(table.args) != dict(card.args):
        raise InputError(f"--{role}-args: {quoted(spec)} brings its own: omit them")
    if table.classes not in (None, card.classes):
        raise InputError(f"--classes {table.classes}: {quoted(spec)} has {card.classes} classes")
    told = told_by(card.image_spec, card.classes).model_copy(update={"args": card.args})
    held = read_checkpoint(saved)
    numbers = sum(tensor.numel() for tensor in held.tensors.values())
    cut = is_pruned(card.network)
    # what is cut is a mean over weights and operations, so of the weights more may have gone
    grown = 16 / (1 - min(0.9, pruning_ratio(card.network))) if cut else 1
    with limits.within(int(grown * numbers), len(held.tensors), f"--{role} {quoted(spec)}"):
        body = source_of(
            network_spec, "", told, trust_code=trust_code, role=role, network=network
        ).body
    if cut:
        try:
            narrow_to(body, held.tensors)
        except InputError as error:
            raise InputError(f"--{role} {quoted(spec)}: {error}") from None
    fill(body, held)
    known = card.answers if card.answers in KINDS else "auto"
    if table.answers not in ("auto", known):
        raise InputError(
            f"--teacher-answers {table.answers}: {quoted(spec)} answers in {known}, as its file "
            "says: omit it"
        )
    _, answers = asked(role, spec, body, card.image_spec, card.classes, kind=known, saved=True)
    found = Classifier(body, card.image_spec, card.classes, answers)
    guard(found, network_spec, role)
    return found, card.names


def origin(table: TeacherTable) -> tuple[str, dict[str, str]]:
    """The SPEC, and its arguments, that build the network of a teacher anew, without weights."""
    if not is_saved(table.spec):
        return table.spec, table.args
    saved = resources.shipped("assets") / DEMO_TEACHER
    card = read_card(saved if table.spec == "demo" else Path(table.spec) / STUDENT)
    return card.of or card.network, card.args


def told_by(spec: ImageSpec, classes: int) -> TeacherTable:
    """A teacher's input contract, as if by flags."""
    return TeacherTable(
        image_size=(spec.height, spec.width),
        channels=spec.channels,
        mean=spec.mean,
        std=spec.std,
        classes=classes,
    )


def tells_its_input(spec: str, weights: str) -> bool:
    """Whether what a source says of its input is said of the very weights that it brings: a network
    of a zoo tells only what is usual for its kind."""
    return is_graph(spec) or spec.startswith("hf:") or weights == zoo.HUB


def _carried(spec: str, body: nn.Module, classes: int) -> tuple[str, ...]:
    """Names that a network of code carries: on itself, its function, or in its file."""
    holders: list[object] = [body, getattr(body, "config", None)]
    holders += [body.function] if isinstance(body, BlackBox) else []
    if is_call(spec):
        holders.append(module_of(spec))
    found = (names_in(holder, classes) for holder in holders if holder is not None)
    return next((names for names in found if names), ())


def asked(
    role: str, spec: str, body: nn.Module, *given: Any, **told: Any
) -> tuple[int, Answers]:  # fmt: skip
    """What a network answers, as `recognise`; what is wrong is said of this network."""
    try:
        with guarded(spec, role):
            count, answers = recognise(body, *given, **told)
        if count > MOST_CLASSES:
            raise InputError(f"it answers with {count:,} scores; {MOST_CLASSES:,} at most")
        return count, answers
    except InputError as error:
        if quoted(spec) in str(error):
            raise
        raise InputError(f"--{role} {quoted(spec)}: {error}") from None
