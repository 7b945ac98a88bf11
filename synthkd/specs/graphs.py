"""Networks that come as a graph: ONNX, torch.export (.pt2), TorchScript.

The last two are code in disguise: loading one can run what its author wrote, so they need
`--trust-code`. ONNX is data, but may point to files outside its folder: that is refused.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthkd.errors import InputError, quoted
from synthkd.files import sha256_of
from synthkd.specs.contract import Known, Source

OPSET = 16  # what the converter knows best
BATCH = 256  # images asked at once where a graph has no batch size of its own
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
        self.graph = graph
        self.register_buffer("digest", as_bytes(digest))

    def train(self, mode: bool = True) -> "Sealed":
        """Does nothing."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K]."""
        answer: Tensor = self.graph(x)
        return answer


class Session(nn.Module):
    """An ONNX graph run by ONNX Runtime: answers without gradients, on the CPU."""

    def __init__(self, data: bytes, fixed: int | None, where: str) -> None:
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
        self.fixed = fixed
        self.name = self.session.get_inputs()[0].name

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K]."""
        parts = []
        for part in torch.split(x.detach().cpu().float(), self.fixed or BATCH):
            count, rows = len(part), self.fixed or len(part)
            if count < rows:  # a graph of a fixed batch is filled up
                part = torch.cat([part, part[-1:].expand(rows - count, -1, -1, -1)])
            answer = self.session.run(None, {self.name: part.contiguous().numpy()})[0]
            parts.append(torch.from_numpy(np.asarray(answer, dtype=np.float32))[:count])
        return torch.cat(parts).to(x.device)


def from_onnx(path: Path, role: str, *, gradients: bool) -> Source:
    """`onnx:FILE`. With `gradients` the graph becomes a torch network by onnx2torch; an operator
    that it does not know is named, and the way without gradients offered."""
    where = f"--{role} onnx:{quoted(path)}"
    onnx = _onnx(where)
    if not path.is_file():
        raise InputError(f"{where}: there is no such file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # whatever protobuf raises
        raise InputError(f"{where}: this is not a readable ONNX file") from None
    _check_graph(model.graph, where)
    for function in model.functions:
        _check_graph(function, where)
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        _check_location(tensor, path.parent, where)
    if outside:
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise InputError(f"{where}: its external data: {quoted(error, 120)}") from None
    fixed, known = _inputs(model, where)
    if not gradients:
        try:
            body: nn.Module = Session(model.SerializeToString(), fixed, where)
        except ValueError:
            raise InputError(f"{where}: larger than ONNX allows in one piece (2 GB)") from None
    else:
        body = Sealed(_converted(model, onnx, fixed, where), sha256_of(path))
    return Source(body, known, True)


def _onnx(where: str) -> Any:
    try:
        import onnx
        import onnx.external_data_helper
    except ImportError:
        raise InputError(f"{where} wants the extra onnx: pip install 'synthkd[onnx]'") from None
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
        raise InputError(f"{where} wants the extra onnx: pip install 'synthkd[onnx]'") from None
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


def _inputs(model: Any, where: str) -> tuple[int | None, Known]:
    """The batch size, if it is fixed, and what the input's shape tells."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"{where}: a classifier takes one input; this has {len(inputs)}")
    sizes = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise InputError(f"{where}: its input has {len(sizes)} dimensions, not 4 (images)")
    batch, channels, height, width = sizes
    size = (height, width) if height and width else None
    return batch, Known(channels=channels, size=size)


def _converted(model: Any, onnx: Any, fixed: int | None, where: str) -> nn.Module:
    try:
        from onnx2torch import convert
    except ImportError:
        raise InputError(f"{where} wants the extra onnx: pip install 'synthkd[onnx]'") from None
    if fixed:  # a free batch; reshapes to a fixed one show when the network is asked
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            if len(dims):
                dims[0].dim_param = "batch"
        del model.graph.value_info[:]
    if any(o.version > OPSET for o in model.opset_import if o.domain in ("", "ai.onnx")):
        with suppress(Exception):  # the converter below may still know it as it is
            model = onnx.version_converter.convert_version(model, OPSET)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body: nn.Module = convert(model)
    except Exception as error:
        named = re.search(r"operation_type='(\w+)'", str(error))
        what = f"operator {named[1]}" if named else quoted(error, 120)
        raise InputError(
            f"{where}: {what} cannot be turned into torch; it still answers without gradients: "
            "give --teacher-access logits"
        ) from None
    return body.eval()  # its mode is fixed by `Sealed`, and the converter leaves it in training


def from_code(path: Path, role: str, *, trust_code: bool) -> Source:
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
            if path.suffix == ".pt2":
                graph: Any = torch.export.load(str(path)).module()
            else:
                read: Any = torch.jit.load
                graph = read(str(path), map_location="cpu").eval()
    except Exception as error:
        raise InputError(f"{where}: cannot be read: {quoted(error, 160)}") from None
    return Source(Sealed(graph, sha256_of(path)), Known(), True)


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
