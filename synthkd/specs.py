"""The grammar of SPEC: the only door for strangers' files.

    demo                      the teacher that ships with the package
    DIRECTORY                 a run directory: its student
    NAME                      a network of ours (resnet20, resnet8-w8, lenet5, lenet5-half)
    package.module:callable   an installed network; the callable takes nothing and returns an
    nn.Module file.py:callable          the same from a file; runs the code in it, so it needs
    --trust-code

Weights come from a safetensors file, or from a .pt, .pth, .th file through torch's weights-only
reader.
"""

import importlib
import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from synthkd import resources
from synthkd.errors import InputError, quoted
from synthkd.files import sha256_of
from synthkd.images import ImageSpec
from synthkd.networks import build_network, is_named
from synthkd.networks.classifier import Classifier
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.inheritance import inherited
from synthkd.teachers import Teacher, recognise


@dataclass(frozen=True)
class Card:
    """What rebuilds a classifier beside its weights: kept in the header of a safetensors file."""

    network: str  # a SPEC
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    answers: str
    names: tuple[str, ...] = ()

    @property
    def image_spec(self) -> ImageSpec:
        """The input contract."""
        return ImageSpec(self.channels, self.height, self.width, tuple(self.mean), tuple(self.std))

    def header(self) -> dict[str, str]:
        """As safetensors metadata."""
        # one entry only: safetensors writes several in an order that changes from call to call
        return {"synthkd": json.dumps(asdict(self))}


DEMO_TEACHER = "demo_teacher.safetensors"


def load_teacher(table: TeacherTable, *, trust_code: bool = False) -> Teacher:
    """The teacher that `table` describes, frozen; anything wrong with it is one InputError."""
    classifier, names = _classifier(
        table.spec, table.weights, table, trust_code=trust_code, role="teacher"
    )
    kind = f" answering in {classifier.answers}" if classifier.answers != "logits" else ""
    return Teacher(classifier, names=names, described=f"{table.spec}{kind}")


def load_classifier(
    table: StudentTable, contract: TeacherTable, *, trust_code: bool = False
) -> tuple[Classifier, tuple[str, ...]]:
    """A trained student for evaluation, and its class names."""
    return _classifier(table.spec, table.weights, contract, trust_code=trust_code, role="student")


def new_student(table: StudentTable, teacher: Teacher, *, trust_code: bool = False) -> Classifier:
    """A student for the teacher's images and classes. Its first layer is the teacher's
    normalisation.

    Its weights are fresh, from torch's global random state; or those of `table.weights`; or with
    `table.start` "teacher" the teacher's own as far as they fit: `inherited` of the result says how
    many.
    """
    spec = teacher.spec
    folder = Path(table.spec)
    if folder.is_dir():
        return load_classifier(table, _contract(spec, teacher.classes), trust_code=trust_code)[0]
    body = _network(table.spec, spec, teacher.classes, trust_code=trust_code, role="student")
    if table.weights:
        fill(body, read_weights(Path(table.weights)), table.weights)
    count, answers = recognise(body, spec, teacher.classes)
    student = Classifier(body, spec, count, answers)
    if table.start == "teacher" and not table.weights:
        student.inherited = inherited(body, teacher.classifier.body)
    return student


def card_of(classifier: Classifier, network: str, names: tuple[str, ...]) -> Card:
    """The card that rebuilds a classifier from `network`."""
    spec = classifier.spec
    return Card(
        network, spec.channels, spec.height, spec.width, spec.mean, spec.std,
        classifier.classes, classifier.answers, names,
    )  # fmt: skip


def read_card(path: Path) -> Card:
    """The card in the header of a safetensors file of ours."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        data = json.loads(header["synthkd"])
        data |= {key: tuple(data[key]) for key in ("mean", "std", "names")}
        return Card(**data)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
        raise InputError(
            f"{quoted(path)} is not a network saved by synthkd (no card in its header)"
        ) from None


def _contract(spec: ImageSpec, classes: int) -> TeacherTable:
    return TeacherTable(
        image_size=spec.height,
        channels=spec.channels,
        mean=spec.mean,
        std=spec.std,
        classes=classes,
    )


def _classifier(
    spec: str, weights: str, contract: TeacherTable, *, trust_code: bool, role: str
) -> tuple[Classifier, tuple[str, ...]]:
    """A network with weights and its input contract."""
    saved = (
        resources.shipped("assets") / DEMO_TEACHER
        if spec == "demo"
        else Path(spec) / "student.safetensors"
    )
    if spec == "demo" or Path(spec).is_dir():
        if not saved.is_file():
            raise InputError(f"--{role} {quoted(spec)}: no student.safetensors in this directory")
        if weights:
            raise InputError(
                f"--{role} {quoted(spec)} brings its own weights: leave --{role}-weights away"
            )
        card = read_card(saved)
        if not is_named(card.network) and not trust_code:
            raise InputError(
                f"--{role} {quoted(spec)} is built by the code {quoted(card.network)}, "
                "as its file says: "
                "give --trust-code if you trust it"
            )
        body = _network(
            card.network, card.image_spec, card.classes, trust_code=trust_code, role=role
        )
        fill(body, read_weights(saved), str(saved))
        _, answers = recognise(body, card.image_spec, card.classes)
        if contract.classes not in (None, card.classes):
            raise InputError(
                f"--classes {contract.classes}: {quoted(spec)} has {card.classes} classes"
            )
        return Classifier(body, card.image_spec, card.classes, answers), card.names
    image_spec = _image_spec(contract, spec)
    # a network of ours is told its number of classes; the last layer in the file knows it best
    state = read_weights(Path(weights)) if weights else None
    known = _classes_in(state)
    if is_named(spec) and contract.classes and known and contract.classes != known:
        raise InputError(f"--classes {contract.classes}: {quoted(weights)} has {known} classes")
    body = _network(spec, image_spec, contract.classes or known, trust_code=trust_code, role=role)
    if state is not None:
        fill(body, state, weights)
    elif is_named(spec):
        raise InputError(f"--{role} {spec} has random weights: give --{role}-weights FILE")
    count, answers = recognise(body, image_spec, contract.classes)
    return Classifier(body, image_spec, count, answers), ()


def _image_spec(table: TeacherTable, spec: str) -> ImageSpec:
    """The input contract from flags; a bare network cannot tell it."""
    missing = [
        flag
        for flag, value in (
            ("--image-size", table.image_size),
            ("--channels", table.channels),
            ("--teacher-mean", table.mean),
            ("--teacher-std", table.std),
        )
        if value is None
    ]
    if missing:
        raise InputError(f"{quoted(spec)} does not tell its input: give {', '.join(missing)}")
    assert table.image_size and table.channels and table.mean and table.std
    mean, std = (v * table.channels if len(v) == 1 else v for v in (table.mean, table.std))
    return ImageSpec(table.channels, table.image_size, table.image_size, mean, std)


def _network(
    spec: str, image_spec: ImageSpec, classes: int | None, *, trust_code: bool, role: str
) -> nn.Module:
    """The module behind a SPEC, with the weights that its code gives it."""
    if is_named(spec):
        return build_network(
            spec, channels=image_spec.channels, size=image_spec.height, classes=classes or 10
        )
    if re.search(r"\.py:[A-Za-z_]\w*$", spec):
        body = call_from_file(spec, (), trust_code=trust_code, what=f"--{role}")
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        body = _call(_import(spec, role), (), spec)
    else:
        raise InputError(
            f"--{role} {quoted(spec)}: neither a run directory, nor a network of ours, nor "
            "package.module:callable, nor file.py:callable"
        )
    if not isinstance(body, nn.Module):
        raise InputError(
            f"--{role} {quoted(spec)} must return a torch.nn.Module; got {type(body).__name__}"
        )
    return body


def _import(spec: str, role: str) -> Callable[..., Any]:
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--{role} {quoted(spec)}: cannot import {module_name}: {quoted(error)}"
        ) from None
    return _attribute(module, name, spec)


def call_from_file(spec: str, arguments: tuple[Any, ...], *, trust_code: bool, what: str) -> Any:
    """Runs `callable` of a `file.py:callable` spec; refuses unless the user trusts the code."""
    text, _, name = spec.rpartition(":")
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{what} {quoted(spec)}: there is no file {quoted(path)}")
    if not trust_code:
        raise InputError(
            f"{what} {quoted(spec)} would run the code in {quoted(path)} "
            f"(sha256 {sha256_of(path)[:16]}…): read it, then give --trust-code"
        )
    loader = importlib.util.spec_from_file_location(f"synthkd_user_{path.stem}", path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what} {quoted(spec)}: {type(error).__name__}: {quoted(error)}"
        ) from None
    return _call(_attribute(module, name, spec), arguments, spec)


def _attribute(module: Any, name: str, spec: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"{quoted(spec)}: there is no callable {quoted(name)} in it")
    return found  # type: ignore[no-any-return]


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], spec: str) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise InputError(f"{quoted(spec)}: {type(error).__name__}: {quoted(error)}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors from a file of weights. Nothing in the file is executed.

    Nested dictionaries under `state_dict`, `model_state_dict`, `model`, `net` or `weights` are
    opened, and prefixes that every name shares (`module.`, `_orig_mod.`) are taken away.
    """
    where = quoted(path)
    if not path.is_file():
        raise InputError(f"{where}: there is no such file of weights")
    with path.open("rb") as file:
        head = file.read(64)
    if path.suffix == ".safetensors":
        try:
            data: Any = load_file(str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{where} is not a readable safetensors file: {quoted(error)}"
            ) from None
    elif path.suffix in (".pt", ".pth", ".th", ".bin"):
        if head[:1] in (b"<", b"{") or head.startswith(b"version https://git-lfs"):
            raise InputError(
                f"{where} is text (a web page or a pointer?), not weights: download the file itself"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's words about pickles are not for users
                data = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever a damaged or hostile file raises
            raise InputError(
                f"{where} is not plain weights: it is damaged, or a pickle that would run code; "
                "save the state_dict alone, best as .safetensors"
            ) from None
    else:
        raise InputError(f"{where}: weights must be .safetensors, .pt, .pth or .th")
    return _tensors(data, where)


def _tensors(data: Any, where: str) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(data, Mapping):
            inner = [
                data[k]
                for k in ("state_dict", "model_state_dict", "model", "net", "weights")
                if k in data
            ]
            if inner and isinstance(inner[0], Mapping):
                data = inner[0]
    if not isinstance(data, Mapping):
        raise InputError(f"{where} holds a {type(data).__name__}, not named tensors")
    state = {str(key): value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{where} holds no named tensors")
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _classes_in(state: dict[str, Tensor] | None) -> int | None:
    """The length of the last vector in a state dict: the bias of the classifier."""
    vectors = [t for t in (state or {}).values() if t.dim() == 1]
    return len(vectors[-1]) if vectors else None


def fill(body: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Loads weights into a network after comparing names and shapes; what differs is one
    InputError."""
    own = body.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or extra or wrong:
        parts = [
            f"{label} {', '.join(quoted(k) for k in keys[:2])}"
            + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
            for label, keys in (
                ("missing", missing),
                ("unknown", extra),
                ("of another shape", wrong),
            )
            if keys
        ]
        raise InputError(f"{quoted(where)} does not fit this architecture: {'; '.join(parts)}")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{quoted(where)}: the weights {quoted(key)} hold NaN or infinity")
    body.load_state_dict(state, strict=False)
