"""Files of weights: read without running anything, compared before they are loaded."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.specs import pickles

NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")  # where weights mostly are
# of which names tell that weights are a mean over training, or those of another network
AVERAGES = ("ema", "average", "averaged", "avg", "swa", "shadow", "momentum", "teacher", "target")
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # without meaning in eval mode
WRAPPERS = ("module", "_orig_mod")  # names that torch's wrappers put between others
MOST_PARTS, MOST_DEPTH = 1_000_000, 64
# torchvision's DenseNets had `norm.1` and `conv.2` before names of modules lost their dots, and
# files of that time, the published ones among them, still do
_OF_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by full name: those in nested dictionaries have the keys of these
    before their own, with dots. `chosen` is the part that the user asks for."""

    tensors: Mapping[str, Tensor]
    where: str
    whole: bool = False  # a pickled network
    chosen: str = ""
    flag: str = ""  # by which a user can choose

    def fitted(self, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Finding]]:
        """The tensors for a network of the state dict `own`, by its names, and what was
        understood. What is missing, unknown or of another shape is an InputError."""
        needed = [key for key in own if not key.endswith(COUNTERS)]
        ways = list(self._ways(needed))
        fits = [way for way in ways if self._fits(way, own) and not _is_optimizers(way.prefix)]
        if not fits:
            best = max(ways, key=lambda way: len(way.keys), default=None)
            self._complain(best.prefix if best else self._usual(), best.keys if best else {}, own)
        way, others = self._preferred(fits)
        extra = self._beside(way, own)
        self._check_plain(way.keys.values())
        state = {key: self.tensors[found] for key, found in way.keys.items()}
        return state, self._told(way, others, extra)

    def by_name(self, names: Collection[str]) -> dict[str, Tensor]:
        """The tensors that fit these names, whatever their shapes; empty where some are missing."""
        needed = [key for key in names if not key.endswith(COUNTERS)]
        fits = [way for way in self._ways(needed) if len(way.keys) == len(needed)]
        if not fits:
            return {}
        raw = [way for way in fits if not _is_average(way.prefix)] or fits
        self._check_plain(raw[0].keys.values())
        return {key: self.tensors[found] for key, found in raw[0].keys.items()}

    def _check_plain(self, names: Iterable[str]) -> None:
        for name in names:
            if not _is_plain(self.tensors[name]):
                raise InputError(f"{self.where}: {quoted(name)} is not a plain tensor")

    def _ways(self, needed: Collection[str]) -> Iterator["_Way"]:
        """The ways to understand the file: by what stands before each name of the network."""
        inside = self.chosen + "." if self.chosen else ""
        names = [name for name in self.tensors if name.startswith(inside)]
        shared = next(iter(needed), "").partition(".")[0] + "."
        wrapped = all(name.startswith(shared) for name in needed) and len(shared) > 1
        seen = False
        for short in (False, True):
            for lacking in ("", shared) if wrapped else ("",):
                if seen:
                    return
                keys = {_short(k, short).removeprefix(lacking): k for k in needed}
                keys = {_OF_DENSENET.sub(r"\1.\2", name): k for name, k in keys.items()} | keys
                found: dict[str, dict[str, str]] = {}
                for name in names:
                    brief = _short(name, short)
                    for start in _starts(brief):
                        if (key := keys.get(brief[start:])) is not None:
                            found.setdefault(brief[:start], {})[key] = name
                for prefix, pairs in found.items():
                    if lacking and prefix.endswith(lacking):
                        continue
                    ordered = {key: pairs[key] for key in needed if key in pairs}
                    seen = seen or len(ordered) == len(needed)
                    yield _Way(prefix, ordered, lacking)

    def _fits(self, way: "_Way", own: Mapping[str, Tensor]) -> bool:
        needed = sum(not key.endswith(COUNTERS) for key in own)
        return (
            len(way.keys) == needed
            and all(self.tensors[found].shape == own[key].shape for key, found in way.keys.items())
            and not self._unknown(way, own)
        )

    def _unknown(self, way: "_Way", own: Mapping[str, Tensor]) -> list[str]:
        """Names beside those of the network that look like more layers of the same kind: then the
        weights are those of a larger network."""
        stems = {_stem(key.removeprefix(way.lacking)) for key in own}
        return [
            name for name in self._beside(way, own)
            if _stem(_short(name, True).removeprefix(_short(way.prefix, True))) in stems
        ]  # fmt: skip

    def _beside(self, way: "_Way", own: Mapping[str, Tensor]) -> list[str]:
        """Names that stand in the same dictionary with the same prefix, and are not used."""
        used = set(way.keys.values())
        first = next(iter(used))
        found = [n for n in self.tensors if n not in used and not n.endswith(COUNTERS)]
        return [n for n in found if n.startswith(_verbatim(first, way))]

    def _preferred(self, fits: list["_Way"]) -> tuple["_Way", list["_Way"]]:
        """Raw weights before averages; of several of one kind none can be preferred."""
        plain = [way for way in fits if not way.prefix]
        raw = plain or [way for way in fits if not _is_average(way.prefix)] or fits
        if len(raw) > 1 and not all(self._alike(raw[0], way) for way in raw[1:]):
            named = ", ".join(quoted(way.prefix.rstrip(".")) for way in raw[:5])
            raise InputError(
                f"{self.where} holds {len(raw)} sets of weights that fit ({named}): "
                + (f"choose with {self.flag} NAME" if self.flag else "save one of them alone")
            )
        return raw[0], [way for way in fits if way is not raw[0]]

    def _alike(self, one: "_Way", other: "_Way") -> bool:
        """Whether two ways lead to the same numbers."""
        pairs = ((self.tensors[n], self.tensors[other.keys[k]]) for k, n in one.keys.items())
        return all(_is_plain(a) and _is_plain(b) and torch.equal(a, b) for a, b in pairs)

    def _told(self, way: "_Way", others: list["_Way"], extra: list[str]) -> list[Finding]:
        notes = []
        if self.whole:
            notes.append(Finding(
                "pickled-network",
                f"weights: {self.where} is a whole network, pickled; its tensors alone were read",
                "",
            ))  # fmt: skip
        place = way.prefix.rstrip(".")
        if place or others or way.lacking:
            seen = f"weights: those under {quoted(place)} in {self.where}" if place else (
                f"weights: those at the top of {self.where}"
            )  # fmt: skip
            if way.lacking:
                seen += f", which lack the network's prefix {quoted(way.lacking)}"
            if others:
                names = ", ".join(quoted(other.prefix.rstrip(".")) for other in others[:5])
                seen += f"; {names} would fit as well"
            remedy = f"{self.flag} NAME takes others" if others and self.flag else ""
            notes.append(Finding("weights-chosen", seen, remedy))
        if extra:
            some = ", ".join(quoted(name) for name in extra[:3])
            notes.append(Finding(
                "weights-left-out",
                f"weights: {len(extra)} of {self.where} that are not part of this network were "
                f"left out ({some}{', …' if len(extra) > 3 else ''})", "",
            ))  # fmt: skip
        kinds = {self.tensors[name].dtype for name in way.keys.values()}
        other = sorted(str(k).removeprefix("torch.") for k in kinds
                       if k.is_floating_point and k != torch.float32)  # fmt: skip
        if other:
            notes.append(Finding(
                "weights-precision",
                f"weights: {self.where} holds {', '.join(other)}; run in float32", "",
            ))  # fmt: skip
        return notes

    def _usual(self) -> str:
        """The prefix under which weights mostly stand, for messages."""
        for key in NESTED:
            if any(name.startswith(key + ".") for name in self.tensors):
                return key + "."
        return ""

    def _complain(
        self, prefix: str, keys: Mapping[str, str], own: Mapping[str, Tensor]
    ) -> NoReturn:
        self._check_plain(keys.values())
        short = bool(prefix) and not any(name.startswith(prefix) for name in self.tensors)
        used = set(keys.values())
        there = [
            _short(name, short)[len(prefix):] for name in self.tensors
            if name not in used and _short(name, short).startswith(prefix)
        ]  # fmt: skip
        missing = [k for k in own if k not in keys and not k.endswith(COUNTERS)]
        extra = [k for k in there if k not in own and not k.endswith(COUNTERS)]
        wrong = [k for k, found in keys.items() if self.tensors[found].shape != own[k].shape]
        parts = [
            f"{label} {', '.join(quoted(k) for k in names[:2])}"
            + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            for label, names in (
                ("missing", missing),
                ("unknown", extra),
                ("of another shape", wrong),
            )
            if names
        ]
        raise InputError(f"{self.where} does not fit this architecture: {'; '.join(parts)}")


@dataclass(frozen=True)
class _Way:
    """One way to understand a file: the network's names to the file's, what stands before the
    latter, and what of the former is not in the file."""

    prefix: str
    keys: Mapping[str, str]
    lacking: str = ""


def _starts(name: str) -> Iterator[int]:
    """Where parts of a dotted name begin."""
    yield 0
    for i, letter in enumerate(name):
        if letter == ".":
            yield i + 1


def _short(name: str, short: bool) -> str:
    """A name without what torch's wrappers put into it."""
    if not short:
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) + (
        "." if name.endswith(".") and name.rstrip(".") in WRAPPERS else ""
    )


def _verbatim(name: str, way: _Way) -> str:
    """What stands before a network's names in the file, wrappers included, given one of its
    names."""
    if name.startswith(way.prefix):
        return way.prefix
    return ""


def _stem(name: str) -> str:
    """The first part of a name without its number: further layers of a network have the same."""
    return name.partition(".")[0].rstrip("0123456789")


def _is_optimizers(prefix: str) -> bool:
    """Whether what is under a prefix are no weights, but what an optimiser keeps for each."""
    words = set(prefix.lower().split("."))
    return bool(words & {"optimizer", "optim", "exp_avg", "exp_avg_sq", "grad", "grads"})


def _is_average(prefix: str) -> bool:
    words = prefix.lower().replace("_", ".").split(".")
    return any(word in AVERAGES or word.startswith("ema") for word in words)


def read_checkpoint(path: Path, *, chosen: str = "", flag: str = "") -> Checkpoint:
    """What a file of weights holds, judged by its content, whatever it is called. Nothing in it is
    executed. `chosen` is the part that the user asks for, `flag` how."""
    where = quoted(path)
    if not path.is_file():
        raise InputError(f"{where}: there is no such file of weights")
    size = path.stat().st_size
    pickles.check_room(size, where)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from None
    _check_beginning(head, where)
    if 2 <= int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{":
        data: Any = _safetensors(path, where)
    elif path.suffix == ".safetensors":
        raise InputError(f"{where} is not a readable safetensors file: it does not begin like one")
    else:
        data = pickles.read_pickled(path, where)
    if not isinstance(data, dict):
        raise InputError(f"{where} holds a {type(data).__name__}, not named tensors")
    tensors = _flattened(data, where)
    if not tensors:
        raise InputError(f"{where} holds no named tensors")
    if chosen and not any(name.startswith(chosen.rstrip(".") + ".") for name in tensors):
        there = sorted({name.partition(".")[0] for name in tensors})
        raise InputError(
            f"{flag} {quoted(chosen)}: {where} holds nothing under this name; there are "
            f"{', '.join(quoted(name) for name in there[:8])}"
        )
    return Checkpoint(tensors, where, _is_module(data), chosen.rstrip("."), flag)


def is_checkpoint(path: Path) -> bool:
    """Whether a file looks like one of weights: safetensors, a zip archive, or a pickle."""
    with path.open("rb") as file:
        head = file.read(16)
    return head[8:9] == b"{" or head.startswith((b"PK", b"\x80\x02"))


def _check_beginning(head: bytes, where: str) -> None:
    """Refuses what is clearly something else, and says what."""
    if not head:
        raise InputError(f"{where} is empty")
    if head.lstrip()[:1] in (b"<", b"{") or head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{where} is text (a web page or a pointer?), not weights: download the file itself"
        )
    for begin, kind, remedy in (
        (b"\x89HDF", "an HDF5 file (of Keras?)", "convert it to ONNX, and give onnx:FILE"),
        (b"\x1f\x8b", "packed by gzip", "unpack it first"),
        (b"\xfd7zXZ", "packed by xz", "unpack it first"),
        (b"BZh", "packed by bzip2", "unpack it first"),
        (b"GGUF", "a GGUF file", "save the state_dict as .safetensors"),
        (b"\x93NUMPY", "one array of numpy's", "save the state_dict as .safetensors"),
    ):
        if head.startswith(begin):
            raise InputError(f"{where} is {kind}, not weights of torch: {remedy}")


def _safetensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{where} is not a readable safetensors file: {quoted(error)}") from None


def _is_module(data: Any) -> bool:
    """Whether this stands for a network that was pickled whole."""
    attributes = getattr(data, "__dict__", {})
    return isinstance(attributes.get("_parameters"), dict) and "_modules" in attributes


def _parts(data: Any) -> Iterator[tuple[Any, Any]]:
    """What a dictionary, or the stand-in of a network, holds by name. Its own methods are not
    asked: a file can have hidden them by attributes."""
    if not _is_module(data):
        yield from dict.items(data)
        return
    attributes = vars(data)
    fleeting = attributes.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers", "_modules"):
        if isinstance(inner := attributes.get(kind), dict):
            left_out = fleeting if kind == "_buffers" and isinstance(fleeting, set | list) else ()
            yield from ((k, v) for k, v in dict.items(inner) if k not in left_out)


def _flattened(data: Any, where: str) -> dict[str, Tensor]:
    """All tensors in nested dictionaries and networks, by their names with dots."""
    found: dict[str, Tensor] = {}
    seen = 0
    waiting = [("", data, 0)]
    while waiting:
        prefix, data, depth = waiting.pop()
        inner = []
        for key, value in _parts(data):
            seen += 1
            name = f"{prefix}{key}"
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, dict):
                inner.append((f"{name}.", value, depth + 1))
        if seen > MOST_PARTS or depth > MOST_DEPTH:
            raise InputError(f"{where} holds more, or more deeply nested, than weights do")
        waiting += reversed(inner)
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors from a file of weights, for whom knows no network that they should fit.
    Nothing in the file is executed.

    Nested dictionaries under `state_dict`, `model_state_dict`, `model`, `net` or `weights` are
    opened, and prefixes that every name shares (`module.`, `_orig_mod.`) are taken away.
    """
    held = read_checkpoint(path)
    state, prefix = dict(held.tensors), held._usual()
    while prefix:
        state = {
            key.removeprefix(prefix): value for key, value in state.items()
            if key.startswith(prefix)
        }  # fmt: skip
        prefix = Checkpoint(state, held.where)._usual()
    for wrapper in (*WRAPPERS, *WRAPPERS):
        if all(key.startswith(wrapper + ".") for key in state):
            state = {key.removeprefix(wrapper + "."): value for key, value in state.items()}
    for key, tensor in state.items():
        if not _is_plain(tensor):
            raise InputError(f"{held.where}: {quoted(key)} is not a plain tensor")
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds every number that its shape promises: views of one number repeated, sparse,
    quantised and empty shells do not."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def classes_in(state: Mapping[str, Tensor] | None) -> int | None:
    """The length of the last vector in a state dict: the bias of the classifier."""
    vectors = [t for t in (state or {}).values() if t.dim() == 1]
    return len(vectors[-1]) if vectors else None


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex numbers"
    if tensor.is_floating_point():
        return "real numbers"
    return "truth values" if tensor.dtype == torch.bool else "whole numbers"


def fill(body: nn.Module, held: Checkpoint) -> tuple[Finding, ...]:
    """Loads weights into a network after comparing names, shapes and kinds of numbers; what differs
    is one InputError. Returns what was understood of the file."""
    own = body.state_dict()
    state, notes = held.fitted(own)
    for key, value in state.items():
        if _kind(value) != _kind(own[key]):
            raise InputError(
                f"{held.where}: {quoted(key)} holds {_kind(value)} "
                f"({str(value.dtype).removeprefix('torch.')}), the network takes {_kind(own[key])}"
            )
        if value.is_floating_point() and not value.float().isfinite().all():
            raise InputError(f"{held.where}: the weights {quoted(key)} hold NaN or infinity")
    body.load_state_dict(state, strict=False)
    return tuple(notes)
