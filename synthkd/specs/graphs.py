"""Networks that come as a graph: ONNX, torch.export (.pt2), TorchScript.

The last two are code in disguise: loading one can run what its author wrote, so they need
`--trust-code`. ONNX is data, but may point to files outside its folder: that is refused.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.files import sha256_of
from synthkd.core.findings import Finding
from synthkd.recipe import MOST_SIDE, TeacherTable
from synthkd.specs.contract import Known, Source, own_first, sides
from synthkd.specs.onnx_network import Network, Unknown, names_outside
from synthkd.specs.onnx_operators import MOST_NUMBERS
from synthkd.specs.pickles import check_room

BATCH = 256  # images asked at once where a graph has no batch size of its own
TOLD = "synthkd.json"  # in a .pt2 of ours: what it tells of itself, `export.formats.metadata`
ENDLESS = ("Loop", "Scan")  # no classifier has them, and one of 2^62 turns is valid ONNX


def as_bytes(digest: str) -> Tensor:
    """What stands in a state dict for what torch cannot see, [32] uint8."""
    return torch.tensor(list(hashlib.sha256(digest.encode()).digest()), dtype=torch.uint8)


class Sealed(nn.Module):
    """A graph whose mode cannot be changed: what it does was fixed when it was exported. `digest`
    stands for what it holds besides weights."""

    digest: Tensor

    def __init__(self, graph: nn.Module, digest: str) -> None:
        super().__init__()
        self.network = graph
        self.register_buffer("digest", as_bytes(digest))

    def train(self, mode: bool = True) -> "Sealed":
        """Does nothing."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K]."""
        answer: Tensor = self.network(x)
        return answer


class Fed(nn.Module):
    """A graph that is fed as it wants to be: `layout` of images, whole numbers 0..255 instead of
    real ones (`pixels`), so many at once (`fixed`), another type than float32 (`kind`)."""

    def __init__(
        self, graph: nn.Module, layout: str = "NCHW", *, pixels: bool = False,
        fixed: int | None = None, kind: torch.dtype = torch.float32, flat: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.layout, self.pixels, self.fixed = graph, layout, pixels, fixed
        self.kind, self.flat = kind, flat

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to what the graph answers, [B, K]."""
        if self.pixels:  # the gradient is that of what is rounded
            kept = x.clamp(0, 255)
            x = kept + (kept.round() - kept).detach()
        if self.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        elif self.layout == "NHW":
            x = x.squeeze(1)
        elif self.layout == "flat":
            x = x.flatten(1)
        if self.kind != torch.float32:
            x = x.to(self.kind)
        if self.fixed is None:
            return self._asked(x)
        parts = []
        for part in torch.split(x, self.fixed):
            count = len(part)
            if count < self.fixed:  # a graph of a fixed batch is filled up
                part = torch.cat([part, part[-1:].expand(self.fixed - count, *part.shape[1:])])
            parts.append(self._asked(part)[:count])
        return torch.cat(parts)

    def _asked(self, x: Tensor) -> Tensor:
        answer: Tensor = self.network(x)
        if self.kind != torch.float32 and isinstance(answer, Tensor):
            answer = answer.float()
        return answer.flatten(1) if self.flat else answer


class Session(nn.Module):
    """An ONNX graph run by ONNX Runtime: answers without gradients, on the CPU, to inputs of the
    type that it wants."""

    KINDS: Mapping[str, str] = {
        "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
        "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(int16)": "int16",
    }  # fmt: skip

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__()
        runtime = _runtime(where)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self.session = runtime.InferenceSession(data, options, ["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"{where}: ONNX Runtime refuses it: {quoted(error, 160)}") from None
        # the weights are out of sight of torch: this stands for them in the digest
        self.register_buffer("digest", as_bytes(hashlib.sha256(data).hexdigest()))
        self.name = self.session.get_inputs()[0].name
        self.kind = self.KINDS.get(self.session.get_inputs()[0].type, "float32")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """What the graph's input is, to its first output."""
        parts = []
        for part in torch.split(x.detach().cpu().float(), BATCH):
            given = {self.name: part.contiguous().numpy().astype(self.kind)}
            answer = np.asarray(self.session.run(None, given)[0])
            if answer.dtype.kind not in "biuf":
                raise InputError("the graph answers with texts, not with numbers")
            parts.append(torch.from_numpy(answer.astype(np.float32)))
        return torch.cat(parts).to(x.device)


@dataclass(frozen=True)
class Wanted:
    """What a graph takes."""

    layout: str  # of images: NCHW, NHWC, NHW, flat
    fixed: int | None  # images at once
    pixels: bool  # whole numbers 0..255
    kind: str  # of numbers, as ONNX calls it
    known: Known


def from_onnx(path: Path, role: str, table: TeacherTable) -> Source:
    """`onnx:FILE`. With full access the graph becomes a torch network, whose answers are compared
    with ONNX Runtime's; an operator that is not known is named, and the way without gradients
    offered. What `table` says of the input is said of the teacher: of a student it holds only where
    its graph is silent."""
    where = f"--{role} onnx:{quoted(path)}"
    onnx = _onnx(where)
    model = _read(path, where, onnx)
    output, names, notes = _output(model, table, where, onnx)
    wanted = _input(model, table, where, notes)
    told = {entry.key: entry.value for entry in model.metadata_props}
    own = _of_export(told) if model.producer_name == "synthkd" else Known()
    known = replace(
        wanted.known, mean=own.mean or wanted.known.mean, std=own.std or wanted.known.std,
        names=own.names or names,
    )  # fmt: skip
    table = own_first(table, known) if role == "student" else table
    rough = wanted.kind in ("float16", "bfloat16") or any(
        node.op_type == "QuantizeLinear" for node in model.graph.node
    )
    _only(model, output, onnx)
    flat = _depth(model, output) > 2
    try:
        data = model.SerializeToString()
    except ValueError:
        raise InputError(f"{where}: larger than ONNX allows in one piece (2 GB)") from None
    if table.access != "full":
        body: nn.Module = Fed(
            Session(data, where), wanted.layout, pixels=wanted.pixels, fixed=wanted.fixed, flat=flat
        )
        return Source(body, known, True, tuple(notes))
    fed = _fed(model, output, wanted, flat, table, where)
    try:
        session = Session(data, where)
    except InputError:
        seen = "graph: ONNX Runtime cannot run it, so its answers were not compared"
        notes.append(Finding("graph-unchecked", seen, ""))
    else:
        _compare(fed, session, wanted, flat, table, where, rough=rough)
    return Source(Sealed(fed, sha256_of(path)), known, True, tuple(notes))


def _read(path: Path, where: str, onnx: Any) -> Any:
    """A valid model, its external data read, its functions put in place."""
    if not path.is_file():
        raise InputError(f"{where}: there is no such file")
    if not path.stat().st_size:
        raise InputError(f"{where}: this file is empty")
    check_room(path.stat().st_size, where)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # whatever protobuf raises
        raise InputError(f"{where}: this is not a readable ONNX file") from None
    if not model.graph.node:
        raise InputError(f"{where}: this is not a readable ONNX file: there is no graph in it")
    _check_graph(model.graph, where)
    for function in model.functions:
        _check_graph(function, where)
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        _check_location(tensor, path.parent, where)
    for tensor in _tensors(model):
        if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > MOST_NUMBERS:
            raise InputError(
                f"{where}: its tensor {quoted(tensor.name)} has impossible sizes "
                f"{quoted(list(tensor.dims), 60)}"
            )
    try:
        if outside:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise InputError(f"{where}: its external data: {quoted(error, 120)}") from None
    _sort(model.graph)
    kinds = [v.type.tensor_type for v in model.graph.output if v.type.HasField("tensor_type")]
    silent = [kind for kind in kinds if not kind.HasField("shape")]
    for kind in silent:  # the check wants sizes of outputs, which nobody else does
        kind.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
        for kind in silent:
            kind.ClearField("shape")
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except ValueError:  # more than 2 GB cannot be checked in one piece
        pass
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"{where}: this is not a valid ONNX graph: {quoted(said, 160)}") from None
    return model


def _onnx(where: str) -> Any:
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.inliner
    except ImportError:
        raise InputError(f"{where} needs the extra onnx: pip install 'synthkd[onnx]'") from None
    return onnx


def telemetry_off() -> None:
    """To be called before ONNX Runtime is imported: its wheel reports usage otherwise, and writes
    an identity to the disk."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _runtime(where: str) -> Any:
    telemetry_off()
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{where} needs the extra onnx: pip install 'synthkd[onnx]'") from None
    return onnxruntime


def _check_graph(graph: Any, where: str) -> None:
    for node in graph.node:
        if node.op_type in ENDLESS:
            raise InputError(f"{where}: operator {node.op_type} is refused: it may never end")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _check_graph(inner, where)


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model: initializers, and those in attributes of nodes at any depth."""

    def of(graph: Any) -> Iterator[Any]:
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for inner in (attribute.g, *attribute.graphs):
                    yield from of(inner)

    yield from of(model.graph)
    for function in model.functions:
        yield from of(function)


def _check_location(tensor: Any, folder: Path, where: str) -> None:
    """External data must be a plain file in the model's own folder, as large as it says."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    parts = {*posix.parts, *windows.parts}
    absolute = posix.is_absolute() or windows.is_absolute() or windows.drive
    if not location or absolute or ".." in parts:
        raise InputError(f"{where}: external data {quoted(location)} lies outside its folder")
    path = folder / location
    if not path.is_file() or path.is_symlink() or folder.resolve() not in path.resolve().parents:
        raise InputError(f"{where}: external data {quoted(location)} is not a file in its folder")
    try:
        offset, length = int(told.get("offset", 0)), int(told.get("length", 0))
    except ValueError:
        raise InputError(f"{where}: external data {quoted(location)}: no numbers") from None
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise InputError(f"{where}: external data {quoted(location)} is shorter than it says")


REAL = {1: "float", 10: "float16", 11: "double", 16: "bfloat16"}
WHOLE = {2: "uint8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
LOGITS = ("logit", "prob", "softmax", "score", "pred", "class", "output")  # the surest first
OTHERS = ("embed", "feat", "hidden", "pool", "mask", "attn", "attention", "repr", "aux", "label")


def _of_export(told: Mapping[str, Any]) -> Known:
    """What a graph that `synthkd export` wrote tells of itself: it normalises inside."""
    std = {"float32 0..1": (1.0,), "uint8 0..255": (1 / 255,)}.get(str(told.get("range")))
    if std is None:
        return Known()
    try:
        names = tuple(str(name) for name in json.loads(told["classes"]))
    except (KeyError, ValueError, TypeError, RecursionError):
        names = ()
    try:
        channels, *size = (int(told[key]) for key in ("channels", "height", "width"))
    except (KeyError, ValueError, TypeError):
        channels, size = 0, [0, 0]
    if not 1 <= channels <= 4 or not all(1 <= side <= MOST_SIDE for side in size):
        return Known(mean=(0.0,), std=std, names=names)
    return Known(channels, (size[0], size[1]), (0.0,), std, names=names)


def _sort(graph: Any) -> None:
    """Puts nodes behind those whose outputs they take, which some converters forget."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    takes = [
        {made[name] for name in (*node.input, *_taken(node)) if name in made} for node in graph.node
    ]
    if all(before < i for i, group in enumerate(takes) for before in group):
        return
    users: dict[int, list[int]] = {}
    for i, group in enumerate(takes):
        for before in group:
            users.setdefault(before, []).append(i)
    left = [len(group) for group in takes]
    order = [i for i, count in enumerate(left) if count == 0]
    for i in order:
        for user in users.get(i, ()):
            left[user] -= 1
            if left[user] == 0:
                order.append(user)
    if len(order) == len(left):  # else the check that follows says what is wrong
        nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
        del graph.node[:]
        graph.node.extend(nodes[i] for i in order)


def _taken(node: Any) -> Iterator[str]:
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            yield from names_outside(inner)


def _output(
    model: Any, table: TeacherTable, where: str, onnx: Any
) -> tuple[str, tuple[str, ...], list[Finding]]:
    """Which of a graph's outputs are the scores of classes, the names of these if it tells them,
    and what was understood."""
    maps = {o: node for node in model.graph.node if node.op_type == "ZipMap" for o in node.output}
    found: dict[str, tuple[int, list[int]]] = {}  # name -> type, sizes
    for value in model.graph.output:
        if value.name in maps:  # scikit-learn's: a list of tables of the rows of its input
            found[value.name] = (1, [0, 0])
        elif value.type.HasField("tensor_type"):
            kind = value.type.tensor_type
            sizes = [d.dim_value for d in kind.shape.dim] if kind.HasField("shape") else [0, 0]
            found[value.name] = (kind.elem_type, sizes)
    told = ", ".join(
        f"{quoted(name)} {'x'.join(str(n or '?') for n in sizes)}"
        for name, (_, sizes) in list(found.items())[:8]
    )
    if table.output:
        if table.output not in found:
            raise InputError(
                f"--teacher.output {quoted(table.output)}: no such output; there are {told}"
            )
        name = table.output
    else:
        name = _chosen(found, table.classes, where, told)
    notes = []
    if len(model.graph.output) > 1:
        seen = f"graph: of its outputs {told}, {quoted(name)} is taken for the scores of classes"
        notes.append(Finding("graph-output", seen, "--teacher.output NAME takes another"))
    names: tuple[str, ...] = ()
    if name in maps:
        node = maps[name]
        told_names = {a.name: a.strings for a in node.attribute}.get("classlabels_strings", ())
        names = tuple(text.decode("utf-8", "replace") for text in told_names)
        name = node.input[0]
    return name, names, notes


def _chosen(
    found: Mapping[str, tuple[int, list[int]]], classes: int | None, where: str, told: str
) -> str:
    if not found or all(kind == 8 for kind, _ in found.values()):
        raise InputError(f"{where}: none of its outputs is a tensor of numbers")
    if len(found) == 1:
        return next(iter(found))
    rows = {
        name: sizes[-1] for name, (kind, sizes) in found.items()
        if kind in REAL and (len(sizes) == 2 or set(sizes[2:]) == {1})
    }  # fmt: skip
    fitting = [name for name, count in rows.items() if classes and count == classes]
    left = fitting if fitting else [name for name in rows if not _called(name, OTHERS)]
    for word in LOGITS:
        if len(left) > 1 and (named := [name for name in left if word in name.lower()]):
            left = named if len(named) == 1 else left
    if len(left) != 1:
        raise InputError(
            f"{where}: which of its outputs ({told}) are the scores of classes? Say "
            "--teacher.output NAME"
        )
    return left[0]


def _called(name: str, words: Iterable[str]) -> bool:
    return any(word in name.lower() for word in words)


def _only(model: Any, output: str, onnx: Any) -> None:
    """Leaves one output of a graph."""
    values = {v.name: v for v in (*model.graph.output, *model.graph.value_info)}
    kept = values.get(output) or onnx.helper.make_tensor_value_info(output, 1, None)
    kept = type(kept).FromString(kept.SerializeToString())
    del model.graph.output[:]
    model.graph.output.append(kept)


def _depth(model: Any, output: str) -> int:
    kind = model.graph.output[0].type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else 2


def _input(model: Any, table: TeacherTable, where: str, notes: list[Finding]) -> Wanted:
    """What a graph takes, by the shape and type of its input."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"{where}: a classifier takes one input; this has {len(inputs)}")
    kind = inputs[0].type.tensor_type
    sizes = [d.dim_value or None for d in kind.shape.dim]
    if any(size is not None and size < 0 for size in sizes):
        raise InputError(f"{where}: its input has impossible sizes {quoted(sizes)}")
    if kind.elem_type not in REAL and kind.elem_type not in WHOLE:
        raise InputError(f"{where}: its input is neither of real numbers nor of pixels 0..255")
    pixels = kind.elem_type in WHOLE
    named = (REAL | WHOLE)[kind.elem_type]
    mean, std = ((0.0,), (1 / 255,)) if pixels else (None, None)
    if pixels:
        notes.append(Finding("graph-pixels", f"graph: it is fed pixels 0..255 as {named}", ""))
    elif named != "float":
        notes.append(Finding(
            "graph-precision",
            f"graph: its numbers are {named}; " + (
                "run in float32" if table.access == "full" else f"it is fed {named}"
            ), "",
        ))  # fmt: skip
    layout, channels, size = "NCHW", None, None
    if len(sizes) == 4:
        channels, *size_ = sizes[1:]
        if sizes[3] in (1, 2, 3, 4) and not (sizes[1] and sizes[1] <= 4):
            layout, channels, size_ = "NHWC", sizes[3], sizes[1:3]
            seen = "graph: its input has the channels last; images are turned for it"
            notes.append(Finding("graph-layout", seen, ""))
    elif len(sizes) == 3:
        layout, channels, size_ = "NHW", 1, sizes[1:]
        seen = "graph: its input has no channels; grey images are given without"
        notes.append(Finding("graph-layout", seen, ""))
    elif len(sizes) == 2:
        layout = "flat"
        channels, size_ = _square(sizes[1], table, where)
        shape = f"{channels} x {size_[0]} x {size_[1]}"
        seen = f"graph: it takes rows of {sizes[1] or '?'} numbers; images of {shape} become rows"
        notes.append(Finding("graph-layout", seen, ""))
    else:
        raise InputError(f"{where}: its input has {len(sizes)} dimensions, not 4 (images)")
    if size_[0] and size_[1]:
        size = (int(size_[0]), int(size_[1]))
    known = Known(channels=channels, size=size, mean=mean, std=std)
    return Wanted(layout, sizes[0], pixels, named, known)


def _square(
    count: int | None, table: TeacherTable, where: str
) -> tuple[int, list[int | None]]:  # fmt: skip
    """Channels and sides of the images that become rows of so many numbers."""
    if (told := sides(table)) is not None:
        height, width = told
        channels = table.channels or (count // (height * width) if count else 1)
        if count and channels * height * width != count:
            raise InputError(
                f"{where}: it takes rows of {count} numbers, images of {channels} x {height} x "
                f"{width} have {channels * height * width}: give --image-size and --channels"
            )
        return channels, [height, width]
    side = math.isqrt(count or 0)
    if not count or side * side != count:
        raise InputError(
            f"{where}: it takes rows of {count or 'so many'} numbers: give --image-size and "
            "--channels"
        )
    return 1, [side, side]


def _network(model: Any, output: str, fixed: int | None, where: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Network(model, output, fixed)
    except Unknown as error:
        what = f"operator {error}"
    except Exception as error:
        what = quoted(error, 120)
    raise InputError(
        f"{where}: {what} cannot be converted to torch; it still answers without gradients: "
        "give --teacher-access logits"
    ) from None


def _sample(wanted: Wanted, table: TeacherTable, count: int) -> Tensor | None:
    """Noise that the graph takes; None where the sizes are unknown."""
    size = sides(table) or wanted.known.size
    channels = wanted.known.channels or table.channels
    if size is None or channels is None or not all(1 <= s <= MOST_SIDE for s in size):
        return None
    if not 1 <= channels <= 4:
        return None
    noise = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))
    return noise * 255 if wanted.pixels else 2 * noise - 1


def _fed(
    model: Any, output: str, wanted: Wanted, flat: bool, table: TeacherTable, where: str
) -> nn.Module:  # fmt: skip
    """A network that takes any number of images: by itself, or in parts of those that it was
    exported for."""
    network = _network(model, output, None, where)
    whole = Fed(network, wanted.layout, pixels=wanted.pixels, fixed=wanted.fixed, flat=flat)
    images = _sample(wanted, table, 2 * (wanted.fixed or 0))
    if wanted.fixed is None or images is None:
        return whole
    with torch.no_grad(), suppress(Exception):
        freed = _network(model, output, wanted.fixed, where)
        free = Fed(freed, wanted.layout, pixels=wanted.pixels, flat=flat)
        if torch.allclose(free(images), whole(images), rtol=1e-3, atol=1e-4):
            return free
    return whole


def _compare(
    fed: nn.Module, session: Session, wanted: Wanted, flat: bool, table: TeacherTable, where: str,
    *, rough: bool,
) -> None:  # fmt: skip
    """Refuses a network that answers otherwise than ONNX Runtime does."""
    images = _sample(wanted, table, wanted.fixed or 4)
    if images is None:
        return
    run = Fed(session, wanted.layout, pixels=wanted.pixels, flat=flat)
    try:
        with torch.no_grad():
            right = run(images)
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"{where}: ONNX Runtime cannot run it: {quoted(said, 160)}") from None
    try:
        with torch.no_grad():
            found = fed(images).float()
        if found.shape != right.shape:
            raise ValueError(f"it answers {tuple(found.shape)}, not {tuple(right.shape)}")
    except Exception as error:
        raise InputError(
            f"{where}: it cannot be converted to torch: {quoted(error, 120)}; it still answers "
            "without gradients: give --teacher-access logits"
        ) from None
    if not right.isfinite().all():
        return  # said where answers are read
    size = (right - right.mean()).abs().max().clamp_min(1e-6)
    off = float((found - right).abs().max() / size)
    if off > (0.1 if rough else 0.01):
        raise InputError(
            f"{where}: converted to torch it answers differently from ONNX Runtime ({off:.1%} "
            "off): give --teacher-access logits, which uses ONNX Runtime's answers"
        )


def from_code(path: Path, role: str, table: TeacherTable, *, trust_code: bool) -> Source:
    """A .pt2 of torch.export, or TorchScript: read only if the user trusts what they run."""
    where = f"--{role} {quoted(path)}"
    if not path.is_file():
        raise InputError(f"{where}: there is no such file")
    if not trust_code:
        raise InputError(
            f"{where}: such a file can run code when it is read "
            f"(sha256 {sha256_of(path)[:16]}…): give --trust-code if you trust it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = {TOLD: "{}"}
            if path.suffix == ".pt2":
                graph: Any = _on_cpu(torch.export.load(str(path), extra_files=told)).module()
            else:
                read: Any = torch.jit.load
                graph = read(str(path), map_location="cpu").eval()
    except Exception as error:
        raise InputError(f"{where}: cannot be read: {quoted(error, 160)}") from None
    try:
        own = _of_export(json.loads(told[TOLD]))
    except (ValueError, TypeError, AttributeError, RecursionError):
        own = Known()
    body, fed, notes = _typed(graph, own_first(table, own))
    known = replace(own, mean=own.mean or fed.mean, std=own.std or fed.std)
    return Source(Sealed(body, sha256_of(path)), known, True, notes)


def _on_cpu(program: Any) -> Any:
    """A program of torch.export that was made on a GPU, for the CPU; it is moved later."""
    from torch.export.passes import move_to_device_pass

    tensors = [t for t in program.state_dict.values() if isinstance(t, Tensor)]
    apart = any(tensor.device.type != "cpu" for tensor in tensors)
    return move_to_device_pass(program, "cpu") if apart else program


def _typed(graph: nn.Module, table: TeacherTable) -> tuple[nn.Module, Known, tuple[Finding, ...]]:
    """A graph that takes another type of numbers than float32 as one that takes that."""
    size = sides(table)
    if size is None or table.channels is None:
        return graph, Known(), ()
    blank = torch.zeros(2, table.channels, *size)
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8):
        try:
            with torch.no_grad():
                graph(blank.to(kind))
        except Exception:  # whatever the graph raises
            continue
        named = str(kind).removeprefix("torch.")
        if kind == torch.float32:
            return graph, Known(), ()
        if kind == torch.uint8:
            seen = f"graph: it is fed pixels 0..255 as {named}"
            known = Known(mean=(0.0,), std=(1 / 255,))
            return Fed(graph, pixels=True, kind=kind), known, (Finding("graph-pixels", seen, ""),)
        seen = f"graph: it computes in {named}"
        return Fed(graph, kind=kind), Known(), (Finding("graph-precision", seen, ""),)
    return graph, Known(), ()  # what is wrong is said where it is asked


def is_script(path: Path) -> bool:
    """Whether a file holds TorchScript, whatever it is called: a zip archive with a folder `code`.
    Only names in its directory are read."""
    import zipfile

    try:
        if not path.is_file():
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # zipfile raises many kinds at a damaged file
        return False
