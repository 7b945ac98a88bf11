"""The grammar of SPEC: the only door for files from elsewhere.

    demo                       the teacher that ships with the package
    DIRECTORY                  a run directory: its student
    NAME                       a network of ours (resnet20, wrn-16-1, lenet5, mobilenet, …)
    torchvision:NAME           a classifier of torchvision
    timm:NAME                  a network of timm
    hf:DIR                     a local image classifier of Hugging Face
    onnx:FILE                  a graph
    FILE.pt2, TorchScript      a graph that may run code when it is read: needs --trust-code
    ensemble:FILE.toml         several teachers, for build and distill (specs.ensembles)
    package.module:callable    an installed network; the callable returns an nn.Module, or a
                               function from images to answers (a black box)
    file.py:callable           the same from a file; runs the code in it: needs --trust-code

Weights come from a file of safetensors, or of torch.save through its weights-only reader, whatever
its suffix. What a source does not tell about its input comes from flags.
"""

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core import resources
from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.files import sha256_of
from synthkd.core.findings import Finding
from synthkd.core.images import ImageSpec
from synthkd.labels.class_names import check_same_classes, names_in, told_list
from synthkd.networks import NAMES, build_network, is_known, is_named
from synthkd.networks.answers import KINDS, Answers, recognise
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import (
    Pruned,
    is_pruned,
    keep_outputs,
    narrow_to,
    pruned_teacher,
    pruning_ratio,
)
from synthkd.networks.slimmable import Slimmable
from synthkd.networks.weight_init import inherited
from synthkd.recipe import MOST_CLASSES, StudentTable, TeacherTable, is_installed_call
from synthkd.specs import graphs, limits, zoo
from synthkd.specs.code import (
    call_from_file,
    call_installed,
    callables_in,
    foreign_code,
    literal,
    module_of,
)
from synthkd.specs.contract import Known, Source, check_inside, contract, own_first
from synthkd.specs.ensembles import is_ensemble, load_ensemble
from synthkd.specs.header import Card, card_of, read_card
from synthkd.specs.weights import classes_in, fill, is_checkpoint, read_checkpoint, read_weights
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.frozen import FrozenTeacher
from synthkd.teachers.protocol import Teacher

__all__ = [
    "Card", "call_from_file", "card_of", "is_saved", "living", "load_classifier", "load_teacher",
    "load_teachers", "new_student", "origin", "read_card", "read_weights", "rebuilt",
]  # fmt: skip
STUDENT = "student.safetensors"  # of a run directory
DEMO_TEACHER = "demo_teacher.safetensors"
_FILE_CALL = re.compile(r"\.py:[A-Za-z_]\w*$")


class BlackBox(nn.Module):
    """A function of the user's as a network: images in, answers out, no gradients.

    It gets a float32 array [B, C, H, W] with pixels in 0..1 (normalised only if --teacher-mean or
    --teacher-std say so), whatever precision the rest is computed in, and may answer in any form
    that `answers.recognise` knows. `digest` stands for what torch cannot see of it.
    """

    digest: Tensor
    KNOWN = Known(mean=(0.0,), std=(1.0,))  # of its input

    def __init__(self, function: Callable[..., Any], spec: str, digest: str) -> None:
        super().__init__()
        self.function, self.spec = function, spec
        self.register_buffer("digest", graphs.as_bytes(digest))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """[B, C, H, W] to what the function answers."""
        pixels = x.detach().cpu().float().contiguous().numpy()
        with (
            foreign_code(quoted(self.spec)),
            torch.autocast(x.device.type, enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            return self.function(pixels)


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
    classifier, names = _classifier(
        table.spec, table.weights, table, trust_code=trust_code, role="teacher", network=network
    )
    names = _told_names(table, classifier.classes) or names
    if is_saved(table.spec) and not shared:
        _check_flags(table, classifier.spec)
    if table.only or table.none_of_these:
        classifier, names = _some_classes(classifier, names, table)
    plain = classifier.answers == "logits" and not classifier.reading.path
    kind = "" if plain else f" answering in {classifier.reading}"
    with _guarded(table.spec, "teacher"):
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


NONE_OF_THESE = "none of these"


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


def living(network: Any) -> str:
    """What stands for a living object where a SPEC is written."""
    return f"<{getattr(network, '__name__', type(network).__name__)}>"


def rebuilt(table: TeacherTable, *, trust_code: bool = False) -> nn.Module | None:
    """What the callable behind a teacher gives when it is called once more; None where there is no
    callable, where its weights are given besides, or where it is no network."""
    if table.weights or not (_FILE_CALL.search(table.spec) or is_installed_call(table.spec)):
        return None
    try:
        body = _source(table.spec, "", table, trust_code=trust_code, role="teacher").body
    except InputError:  # it can be called but once
        return None
    return None if isinstance(body, BlackBox) else body


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
    return _classifier(
        table.spec, table.weights, told, trust_code=trust_code, role="student", network=network
    )


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
        told = _told(spec, teacher.classes)
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
    table_of = _told(spec, teacher.classes).model_copy(update={"args": table.args})
    source = _source(
        table.spec, table.weights, table_of, trust_code=trust_code, role="student", network=network
    )
    if _tells_its_input(table.spec, table.weights):
        known_of = replace(source.known, size=spec.shape[1:], channels=spec.channels)
        spec = contract(table.spec, own_first(table_of, known_of), source.known)
    # fresh networks of ours and of zoos return logits, whatever their first answers look like
    known = {"kind": "logits", "saved": True} if _is_fresh(table.spec) else {}
    count, answers = _asked("student", table.spec, source.body, spec, teacher.classes, **known)
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
    _guard(student, table.spec, "student")
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


def origin(table: TeacherTable) -> tuple[str, dict[str, str]]:
    """The SPEC, and its arguments, that build the network of a teacher anew, without weights."""
    if not is_saved(table.spec):
        return table.spec, table.args
    saved = resources.shipped("assets") / DEMO_TEACHER
    card = read_card(saved if table.spec == "demo" else Path(table.spec) / STUDENT)
    return card.of or card.network, card.args


def _size(spec: ImageSpec) -> str:
    return " x ".join(str(side) for side in spec.shape)


def _told(spec: ImageSpec, classes: int) -> TeacherTable:
    """A teacher's input contract, as if by flags."""
    return TeacherTable(
        image_size=(spec.height, spec.width),
        channels=spec.channels,
        mean=spec.mean,
        std=spec.std,
        classes=classes,
    )


def _classifier(
    spec: str, weights: str, table: TeacherTable, *, trust_code: bool, role: str,
    network: Any = None,
) -> tuple[Classifier, tuple[str, ...]]:  # fmt: skip
    """A network with weights and its input contract."""
    if is_saved(spec):
        return _saved(spec, weights, table, trust_code=trust_code, role=role, network=network)
    source = _source(spec, weights, table, trust_code=trust_code, role=role, network=network)
    if not source.complete:
        raise InputError(f"--{role} {spec} has random weights: give --{role}-weights FILE")
    if role == "teacher" and _is_graph(spec):
        check_inside(spec, table, source.known)
    brings = role == "student" and _tells_its_input(spec, weights)
    image_spec = contract(spec, own_first(table, source.known) if brings else table, source.known)
    names = source.known.names
    if role == "teacher":
        names = told_list(table.class_names, "--class-names") or names
        names = names or (_carried(spec, source.body, table.classes) if table.classes else ())
    count, answers = _asked(
        role, spec, source.body, image_spec, table.classes, kind=table.answers, names=names,
        inside=role == "teacher" and table.access == "full",
    )  # fmt: skip
    names = source.known.names if len(source.known.names) == count else ()
    names = names or _carried(spec, source.body, count) or answers.names
    found = Classifier(source.body, image_spec, count, answers)
    _guard(found, spec, role)
    found.notes = (*source.notes, *answers.notes)
    return found, names


def _tells_its_input(spec: str, weights: str) -> bool:
    """Whether what a source says of its input is said of the very weights that it brings: a network
    of a zoo tells only what is usual for its kind."""
    return _is_graph(spec) or spec.startswith("hf:") or weights == zoo.HUB


def _is_graph(spec: str) -> bool:
    return spec.startswith("onnx:") or Path(spec).suffix == ".pt2" or graphs.is_script(Path(spec))


def _told_names(table: TeacherTable, classes: int) -> tuple[str, ...]:
    """The names of --class-names, or ()."""
    names = told_list(table.class_names, "--class-names")
    if names and (len(names) != classes or len(set(names)) != len(names)):
        raise InputError(
            f"--class-names: {len(names)} names, {len(set(names))} of them different, for "
            f"{classes} classes"
        )
    return names


def _carried(spec: str, body: nn.Module, classes: int) -> tuple[str, ...]:
    """Names that a network of code carries: on itself, its function, or in its file."""
    holders: list[object] = [body, getattr(body, "config", None)]
    holders += [body.function] if isinstance(body, BlackBox) else []
    if _FILE_CALL.search(spec) or is_installed_call(spec):
        holders.append(module_of(spec))
    found = (names_in(holder, classes) for holder in holders if holder is not None)
    return next((names for names in found if names), ())


def _asked(
    role: str, spec: str, body: nn.Module, *given: Any, **told: Any
) -> tuple[int, Answers]:  # fmt: skip
    """What a network answers, as `recognise`; what is wrong is said of this network."""
    try:
        with _guarded(spec, role):
            count, answers = recognise(body, *given, **told)
        if count > MOST_CLASSES:
            raise InputError(f"it answers with {count:,} scores; {MOST_CLASSES:,} at most")
        return count, answers
    except InputError as error:
        if quoted(spec) in str(error):
            raise
        raise InputError(f"--{role} {quoted(spec)}: {error}") from None


def _guard(classifier: Classifier, spec: str, role: str) -> None:
    """Lets a classifier whose network is code of the user's be called in `foreign_code`."""
    if _FILE_CALL.search(spec) or is_installed_call(spec):
        classifier.guard = partial(_guarded, spec, role)


def _guarded(spec: str, role: str) -> AbstractContextManager[None]:
    """What code of the user's is called in: see `foreign_code`. Other networks need none."""
    if _FILE_CALL.search(spec) or is_installed_call(spec):
        return foreign_code(f"--{role} {quoted(spec)}")
    return nullcontext()


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
    if _is_code(network_spec) and not trust_code:
        raise InputError(
            f"--{role} {quoted(spec)} is built by the code {quoted(network_spec)}, "
            "as its file says: give --trust-code if you trust it"
        )
    if table.args and dict(table.args) != dict(card.args):
        raise InputError(f"--{role}-args: {quoted(spec)} brings its own: omit them")
    if table.classes not in (None, card.classes):
        raise InputError(f"--classes {table.classes}: {quoted(spec)} has {card.classes} classes")
    told = _told(card.image_spec, card.classes).model_copy(update={"args": card.args})
    held = read_checkpoint(saved)
    numbers = sum(tensor.numel() for tensor in held.tensors.values())
    cut = is_pruned(card.network)
    # what is cut is a mean over weights and operations, so of the weights more may have gone
    grown = 16 / (1 - min(0.9, pruning_ratio(card.network))) if cut else 1
    with limits.within(int(grown * numbers), len(held.tensors), f"--{role} {quoted(spec)}"):
        body = _source(
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
    _, answers = _asked(role, spec, body, card.image_spec, card.classes, kind=known, saved=True)
    found = Classifier(body, card.image_spec, card.classes, answers)
    _guard(found, network_spec, role)
    return found, card.names


def is_saved(spec: str) -> bool:
    """Whether a SPEC brings weights and contract in a file of ours: the demo, or a run. A folder
    that happens to be called as a network of ours is none, unless it holds a student."""
    if is_known(spec):
        return (Path(spec) / STUDENT).is_file()
    return spec == "demo" or Path(spec).is_dir()


def _is_fresh(spec: str) -> bool:
    """Whether a SPEC makes a network with random weights, or stands for a Python object."""
    return is_named(spec) or spec.startswith(("torchvision:", "timm:", "<"))


def _is_code(spec: str) -> bool:
    """Whether building a network runs somebody's code. Folders of Hugging Face and graphs of ONNX
    that bring some are refused."""
    return not _is_fresh(spec) and not spec.startswith(("hf:", "onnx:"))


def _source(
    spec: str, weights: str, table: TeacherTable, *, trust_code: bool, role: str,
    network: Any = None,
) -> Source:  # fmt: skip
    """The network behind a SPEC, with weights if there are any."""
    if network is not None:
        return _made(_copied(network, spec, role), spec, weights, table, role)
    if spec.startswith("<"):
        raise InputError(
            f"--{role} {quoted(spec)} was given as a Python object, which no file can bring back: "
            f"give it again, as {role}= of synthkd.distill or network= of synthkd.load_student"
        )
    if table.args and not (_FILE_CALL.search(spec) or is_installed_call(spec)):
        raise InputError(f"--{role}-args are for a callable; {quoted(spec)} is none")
    if is_named(spec):
        return _named(spec, weights, table, role)
    kind, _, rest = spec.partition(":")
    if kind == "torchvision":
        return zoo.from_torchvision(rest, weights, table, role)
    if kind == "timm":
        return zoo.from_timm(rest, weights, table, role)
    if weights == zoo.HUB:
        raise InputError(f"--{role}-weights hub: only for torchvision: and timm: networks")
    found: Source | None = None
    if kind == "hf":
        found = zoo.from_hugging_face(Path(rest), role)
    elif kind == "onnx":
        found = graphs.from_onnx(Path(rest), role, table)
    elif _is_graph(spec):
        found = graphs.from_code(Path(spec), role, table, trust_code=trust_code)
    if found is not None:
        if weights:
            raise InputError(
                f"--{role} {quoted(spec)} brings its own weights: omit --{role}-weights"
            )
        return found
    if Path(spec).is_file():
        _check_file(Path(spec), role)
    named = {key: literal(value) for key, value in table.args.items()}
    if _FILE_CALL.search(spec):
        body = call_from_file(spec, (), trust_code=trust_code, what=f"--{role}", named=named)
    elif is_installed_call(spec):
        body = call_installed(spec, named, role=role)
    else:
        raise InputError(
            f"--{role} {quoted(spec)}: neither a run directory, nor a built-in network, nor "
            "torchvision:NAME, timm:NAME, hf:DIR, onnx:FILE, FILE.pt2, "
            "package.module:callable or file.py:callable"
        )
    return _made(body, spec, weights, table, role)


def _copied(network: Any, spec: str, role: str) -> Any:
    """A copy of a living network, so that the user's own is left as it is."""
    if not isinstance(network, nn.Module):
        return network
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever the user's network holds that cannot be copied
        said = quoted(" ".join(str(error).split()) or type(error).__name__, 120)
        function = "a function that calls it, or " if role == "teacher" else ""
        raise InputError(
            f"--{role} {quoted(spec)}: a copy of this network would be used, and it cannot be "
            f"copied ({said}): give {function}'package.module:callable', which makes one"
        ) from None


def _made(body: Any, spec: str, weights: str, table: TeacherTable, role: str) -> Source:
    """What a callable of the user's made, or a living object, as a network."""
    if callable(body) and not isinstance(body, nn.Module):
        seen = getattr(body, "__code__", None)  # of a plain function, the file that it stands in
        path = Path(spec.rpartition(":")[0]) if seen is None else Path(seen.co_filename)
        body = BlackBox(body, spec, sha256_of(path) if path.is_file() else spec)
        if weights:
            raise InputError(
                f"--{role}-weights: {quoted(spec)} is a function and takes none: omit it"
            )
        return Source(body, BlackBox.KNOWN, True)
    if not isinstance(body, nn.Module):
        raise InputError(
            f"--{role} {quoted(spec)} must return a torch.nn.Module; got {type(body).__name__}"
        )
    try:
        body = body.cpu()  # it is moved to where it shall compute once it is known
    except NotImplementedError:
        raise InputError(
            f"--{role} {quoted(spec)} has no weights (its tensors are on the device meta): make it "
            "on the CPU, or call its to_empty and load its weights"
        ) from None
    held = zoo.held_in(weights, table, role)
    notes = fill(body, held) if held is not None else ()
    body, notes = _in_float32(body, notes)
    return Source(body, Known(), True, notes)


def _check_file(path: Path, role: str) -> None:
    """Refuses a file that is no network by itself, and says how it can be used."""
    if path.suffix == ".onnx":
        raise InputError(f"--{role} {quoted(path)}: give a graph as onnx:{path}")
    if path.suffix == ".py":
        names = callables_in(path)
        known = f"; in it: {', '.join(map(quoted, names[:8]))}" if names else ""
        raise InputError(
            f"--{role} {quoted(path)}: which callable of it? Give {quoted(f'{path}:NAME')}{known}"
        )
    raise InputError(
        f"--{role} {quoted(path)} holds weights: name the network that they belong to, and give "
        f"them with --{role}-weights"
        if is_checkpoint(path) else f"--{role} {quoted(path)}: not a network that synthkd can read"
    )  # fmt: skip


def _in_float32(
    body: nn.Module, notes: tuple[Finding, ...]
) -> tuple[nn.Module, tuple[Finding, ...]]:
    """A network of half or double precision as one that computes in float32."""
    kinds = {p.dtype for p in (*body.parameters(), *body.buffers()) if p.is_floating_point()}
    other = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if not other:
        return body, notes
    seen = f"the network is made in {', '.join(other)}; it runs in float32"
    return body.float(), (*notes, Finding("network-precision", seen, ""))


def _named(spec: str, weights: str, table: TeacherTable, role: str) -> Source:
    """A built-in network. It is given its number of classes; the last layer in the file knows it
    best."""
    if not is_known(spec):
        raise InputError(
            f"there is no run directory {quoted(spec)}, and no network is called {quoted(spec)}"
            f"{suggest(spec, NAMES)}"
        )
    if weights == zoo.HUB:
        raise InputError(f"{quoted(spec)}: built-in networks have no weights on a hub")
    held = zoo.held_in(weights, table, role)
    known = None
    if held is not None:
        names = build_network(spec, channels=1, size=32, classes=10).state_dict()
        known = classes_in(held.by_name(names))
    if table.classes and known and table.classes != known:
        raise InputError(f"--classes {table.classes}: {quoted(weights)} has {known} classes")
    told = contract(spec, table, Known())
    body = build_network(
        spec, channels=told.channels, size=told.shape[1:], classes=table.classes or known or 10
    )
    notes = fill(body, held) if held is not None else ()
    return Source(body, Known(), held is not None, notes)
