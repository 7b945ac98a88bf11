"""Every byte of a teacher's files accounted for: the numbers of the network, the file's own
structure, text that the format lets anybody add, and bytes that are none of these.

    bytes = numbers + structure + text + spare

Images can be hidden in the last two only, in numbers that no answer depends on, or in the weights
themselves, where no accounting finds them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.core import resources
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import sha256_of
from synthkd.core.findings import Finding, as_data
from synthkd.networks.classifier import Classifier
from synthkd.proof import graph_parts, pickled
from synthkd.proof.containers import Layout, Spare, safetensors_layout, zip_layout
from synthkd.proof.declared import Place
from synthkd.proof.unread import COUNTERS, FEW, IMAGES, unread
from synthkd.recipe import TeacherTable, is_installed_call
from synthkd.specs import DEMO_TEACHER, STUDENT, BlackBox
from synthkd.specs.graphs import Sealed, Session
from synthkd.specs.onnx_network import Network
from synthkd.specs.pickles import MOST_PICKLED, ZIP
from synthkd.specs.weights import Checkpoint, read_checkpoint

MOST_TEXT = 65_536  # bytes of text in one file: names of ten thousand classes
MOST_VALUES = 1_024  # of other values in a pickle: options, an epoch, a score
MOST_MEMBER = 64  # of torch's own small members of an archive
SMALL_MEMBERS = (
    "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id",
)  # fmt: skip
SHOWN = 20


@dataclass(frozen=True)
class Accounting:
    """One file, and what its bytes are: `numbers + structure + text + spare` is its size."""

    path: Path
    sha256: str
    bytes: int
    tensors: int  # that the network has
    numbers: int
    structure: int
    text: int
    spare: int
    texts: Mapping[str, int] = field(default_factory=dict)  # the bytes of each
    spares: tuple[Spare, ...] = ()
    findings: tuple[Finding, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "file": self.path.name, "sha256": self.sha256, "bytes": self.bytes,
            "tensors": self.tensors, "numbers": self.numbers, "structure": self.structure,
            "text": self.text, "spare": self.spare, "texts": dict(list(self.texts.items())[:SHOWN]),
            "spares": [[each.what, each.bytes] for each in self.spares[:SHOWN]],
        }  # fmt: skip


@dataclass
class Account:
    """All files of a teacher, and what speaks against the sentence that they hold nothing else."""

    files: list[Accounting] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every byte is a number of the network, or structure, or little text."""
        return bool(self.files) and not self.findings

    def as_data(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "whole": self.whole,
            "files": [each.as_data() for each in self.files],
            "findings": as_data(self.findings),
        }


def account(path: Path, network: nn.Module, *, chosen: str = "") -> Accounting:
    """What the bytes of a file of weights are, given the network that it is for. `chosen` is the
    part of the file that was asked for. Raises InputError where that cannot be told."""
    return account_all([path], network, chosen=chosen)[0]


def account_all(paths: Sequence[Path], network: nn.Module, *, chosen: str = "") -> list[Accounting]:
    """The same of a network whose weights lie in several files."""
    used = _used(paths, network, chosen)
    return [_of_file(path, used[path], network) for path in paths]


def _used(
    paths: Sequence[Path], network: nn.Module, chosen: str
) -> dict[Path, dict[str, Tensor]]:  # fmt: skip
    """By file, the names of the tensors in it that the network has, and the network's own."""
    merged: dict[str, Tensor] = {}
    for path in paths:
        merged |= read_checkpoint(path, chosen=chosen, flag="--teacher.weights_key").tensors
    own = network.state_dict()
    state, _ = Checkpoint(merged, quoted(paths[0]), chosen=chosen.rstrip(".")).fitted(own)
    names = {id(tensor): name for name, tensor in merged.items()}
    by_name = {names[id(tensor)]: own[key] for key, tensor in state.items()}
    found = {}
    for path in paths:
        here = read_checkpoint(path, chosen=chosen).tensors.keys() if len(paths) > 1 else merged
        found[path] = {name: by_name[name] for name in here if name in by_name}
    return found


def _of_file(path: Path, used: Mapping[str, Tensor], network: nn.Module) -> Accounting:
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(ZIP):
        return _of_archive(path, used, network)
    if head[8:] == b"{":
        layout = safetensors_layout(path)
        numbers = _counted(layout, used, {name: size for name, (_, size) in layout.parts.items()})
        texts = {
            f"metadata {key}": len(f"{key}{value}".encode()) for key, value in layout.told.items()
        }
        return _summed(path, layout, numbers, texts, MOST_TEXT)
    raise InputError(
        f"{quoted(path)}: the old form of torch.save is not accounted for: save it again, best as "
        ".safetensors"
    )


def _counted(
    layout: Layout, used: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> dict[str, int]:
    """The bytes of each tensor that the network has; the others, and numbers that are written wider
    than the network has them, are spare."""
    numbers = {}
    for name, size in sizes.items():
        own = used.get(name)
        if own is None and size <= 8 and _is_counter(name, used):
            numbers[name] = size  # a counter of BatchNorm, which is not loaded
        elif own is None:
            layout.beside(
                f"the tensor {quoted(name)}, which the network does not have",
                size + len(name.encode()),
            )
        else:
            numbers[name] = min(size, _bytes(own))
            layout.beside(f"wider numbers of {quoted(name)}", size - numbers[name])
    return numbers


def _is_counter(name: str, used: Mapping[str, Tensor]) -> bool:
    """Whether a tensor counts the batches of a normalising layer that the network has."""
    layer, _, kind = name.rpartition(".")
    return kind in COUNTERS and f"{layer}.running_mean".lstrip(".") in used


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _of_archive(path: Path, used: Mapping[str, Tensor], network: nn.Module) -> Accounting:
    """A file of torch.save: a zip archive of a pickle, and a member for each storage."""
    layout = zip_layout(path)
    begin, size = layout.parts.pop("data.pkl", (0, 0))
    if size > MOST_PICKLED // 4:
        raise InputError(f"{quoted(path)}: more structure than weights have: not accounted for")
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read(size)
    try:
        held = pickled.contents(data)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{quoted(path)}: its pickle is not accounted for: {quoted(error)}"
        ) from None
    layout.structure += size
    for name in SMALL_MEMBERS:
        if name in layout.parts and layout.parts[name][1] <= MOST_MEMBER:
            layout.structure += layout.parts.pop(name)[1]
    texts = dict(held.told)
    modules = {name for name, _ in network.named_modules()}
    strange = [
        n for n in held.modules if not any(n == m or n.endswith(f".{m}") for m in modules if m)
    ]
    if count := sum(len(name.encode()) for name in strange if name):
        texts["names of modules that the network does not have"] = count
    numbers: dict[str, int] = {}
    for key in sorted({piece.key for piece in held.tensors.values()}):
        _, stored = layout.parts.pop(f"data/{key}", (0, 0))
        mine = {name: piece for name, piece in held.tensors.items() if piece.key == key}
        known = {
            n: p for n, p in mine.items() if n in used or (stored <= 8 and _is_counter(n, used))
        }
        if known:
            first = next(iter(known))
            count = min(stored, pickled.covered(list(known.values())) * known[first].width)
            own = sum(_bytes(used[n]) if n in used else count for n in known)
            numbers[first] = min(count, own)
            layout.beside(f"wider numbers of {quoted(first)}", count - numbers[first])
            layout.beside(f"the storage of {quoted(first)}, beyond it", stored - count)
        else:
            name = next(iter(mine))
            layout.beside(f"the tensor {quoted(name)}, which the network does not have", stored)
    unknown = [n for n in held.tensors if n not in used and not _is_counter(n, used)]
    layout.beside(
        "names of tensors that the network does not have", sum(len(n.encode()) for n in unknown)
    )
    for name, (_, stored) in layout.parts.items():
        layout.beside(f"the member {quoted(name)}", stored)
    found = _summed(path, layout, numbers, texts, MOST_VALUES)
    more = [
        Finding("weights-strange", f"{quoted(path.name)} holds {w}", "") for w in held.strange[:5]
    ]
    return Accounting(**{**vars(found), "findings": (*found.findings, *more)})


def _summed(
    path: Path, layout: Layout, numbers: Mapping[str, int], texts: Mapping[str, int], most: int
) -> Accounting:
    """The account of one file, and what speaks against it."""
    spare, text = sum(each.bytes for each in layout.spare), sum(texts.values())
    known = sum(numbers.values())
    findings = []
    if spare:
        largest = max(layout.spare, key=lambda each: each.bytes)
        more = f" and {len(layout.spare) - 1} more" if len(layout.spare) > 1 else ""
        findings.append(Finding(
            "weights-spare",
            f"{spare:,} of {layout.size:,} bytes of {quoted(path.name)} are no part of the network "
            f"({largest.what}{more})",
            "save the state_dict alone, best as .safetensors, and give that",
        ))  # fmt: skip
    if text > most:
        findings.append(Finding(
            "weights-text",
            f"{quoted(path.name)} holds {text:,} bytes of text or other values beside its weights "
            f"({quoted(max(texts, key=lambda name: texts[name]))})",
            "read it, or save the state_dict alone",
        ))  # fmt: skip
    return Accounting(
        path, sha256_of(path), layout.size, len(numbers), known,
        layout.size - known - text - spare, text, spare, texts, tuple(layout.spare),
        tuple(findings),
    )  # fmt: skip


# --- teachers


def account_teachers(
    teachers: Iterable[tuple[TeacherTable, Classifier | None]], places: Iterable[Place]
) -> Account:
    """The account of all files of one teacher, or of several that teach together, each by its SPEC
    and weights, given the network that they became (None: an object of which nothing is known);
    `places` are their files as the recipe names them. What cannot be accounted for is a finding."""
    whole = Account()
    for table, classifier in teachers:
        if classifier is None:
            whole.findings.append(Finding("weights-unaccounted", "the teacher is an object", ""))
        else:
            _add(whole, table, classifier)
    known = {each.path.resolve() for each in whole.files}
    for place in places:
        path = place.path
        if place.role == "teacher" and path.is_file() and path.resolve() not in known:
            whole.files.append(_beside(path))
    text = sum(each.text for each in whole.files)
    if text > MOST_TEXT and not any(f.code == "weights-text" for f in whole.findings):
        whole.findings.append(Finding(
            "weights-text",
            f"the teacher's {len(whole.files):,} files hold {text:,} bytes of text beside the "
            "weights", "read it",
        ))  # fmt: skip
    return whole


def _add(whole: Account, table: TeacherTable, classifier: Classifier) -> None:
    """Takes the files of weights of one teacher into an account."""
    found: list[Accounting] = []
    try:
        found += _files(table, classifier, whole)
    except InputError as error:
        whole.findings.append(Finding("weights-unaccounted", str(error), ""))
    except Exception as error:  # whatever a strange file makes a parser raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        whole.findings.append(Finding(
            "weights-unaccounted", f"the teacher's files are not accounted for: {quoted(said)}", ""
        ))  # fmt: skip
    whole.files += [each for each in found if each not in whole.files]
    whole.findings += [finding for each in found for finding in each.findings]
    whole.findings += _silent(classifier)


def _beside(path: Path) -> Accounting:
    """A file that is read beside the weights: settings, names of classes, a card."""
    size = path.stat().st_size
    return Accounting(path, sha256_of(path), size, 0, 0, 0, size, 0, {path.name: size})


def _files(
    table: TeacherTable, classifier: Classifier, found: Account
) -> Iterable[Accounting]:  # fmt: skip
    """The accounts of the files of weights behind a SPEC."""
    spec, kind, body = table.spec, table.spec.partition(":")[0], classifier.body
    code = ".py:" in spec or is_installed_call(spec) or spec.startswith("<")
    if code:
        found.findings.append(Finding(
            "weights-code", f"the teacher {quoted(spec)} is code, which can hold anything",
            "read it; or give its weights to a network of ours, timm or torchvision",
        ))  # fmt: skip
    if table.weights:
        yield account(Path(table.weights), body, chosen=table.weights_key)
    elif kind == "onnx":
        yield from _of_graph(Path(spec.removeprefix("onnx:")), table, body)
    elif kind == "hf":
        folder = Path(spec.removeprefix("hf:"))
        files = sorted(folder.glob("*.safetensors")) or [
            p for n in ("pytorch_model.bin", "model.pth", "model.pt") if (p := folder / n).is_file()
        ][:1]  # fmt: skip
        yield from account_all(files, body)
    elif spec == "demo":
        yield account(resources.shipped("assets") / DEMO_TEACHER, body)
    elif Path(spec).is_dir():
        yield account(Path(spec) / STUDENT, body)
    elif not code:
        raise InputError(
            f"the teacher {quoted(spec)} is a graph that can run code when it is read: its bytes "
            "are not accounted for"
        )


def _of_graph(path: Path, table: TeacherTable, body: nn.Module) -> Iterable[Accounting]:
    inner = next((m for m in body.modules() if isinstance(m, Network)), None)
    output = table.output or (inner.output if inner is not None else "")
    for file, layout in graph_parts.graph_layouts(path, [output] if output else []).items():
        numbers = {name: size for name, (_, size) in layout.parts.items()}
        texts = {name: len(f"{name}{text}".encode()) for name, text in layout.told.items()}
        yield _summed(file, layout, numbers, texts, MOST_TEXT)


def _silent(classifier: Classifier) -> list[Finding]:
    """Findings of tensors that no answer depends on."""
    if any(isinstance(m, BlackBox | Session) for m in classifier.modules()):
        return [Finding(
            "weights-unseen",
            "the teacher is a black box: which of its numbers it reads is unknown", "",
        )]  # fmt: skip
    own = {
        f"{name}.digest".lstrip(".")
        for name, m in classifier.named_modules()
        if isinstance(m, Sealed)
    }
    rng = torch.Generator().manual_seed(0)
    large = classifier.spec.height * classifier.spec.width > 64 * 64
    images = torch.rand(FEW if large else IMAGES, *classifier.spec.shape, generator=rng).to(
        classifier.mean.device
    )
    try:
        silent = unread(classifier, images)
    except Exception as error:  # whatever the user's network raises when it is asked so
        said = quoted(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return [Finding("weights-unseen", f"which numbers it reads cannot be asked: {said}", "")]
    silent = {name: size for name, size in silent.items() if name not in own}
    if not silent:
        return []
    name = max(silent, key=lambda key: silent[key])
    more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
    return [Finding(
        "weights-unread",
        f"no answer depends on {sum(silent.values()):,} bytes of "
        f"{quoted(name.removeprefix('body.'))}{more}", "ask what they are",
    )]  # fmt: skip
