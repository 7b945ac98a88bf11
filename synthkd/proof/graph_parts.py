"""The bytes of an ONNX graph and of its external data, by what they are for."""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from synthkd.core.errors import InputError, quoted
from synthkd.proof.containers import Layout
from synthkd.specs.onnx_network import names_outside

LONG = 200  # characters from which a name is counted as text
BLOCK = 1 << 20


def graph_layouts(path: Path, outputs: Collection[str] = ()) -> dict[Path, Layout]:
    """The layout of a graph's file, and of each file of external data beside it. `parts` are the
    tensors that the `outputs` (default: all of the graph's) depend on. Raises InputError where the
    file is not to be read, or holds functions of its own."""
    import onnx

    where = quoted(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # whatever protobuf raises
        raise InputError(f"{where}: its bytes cannot be told apart: it is damaged") from None
    if model.functions:
        raise InputError(f"{where}: functions of its own are not accounted for: inline them")
    found = Layout(path.stat().st_size)
    outside: dict[Path, list[tuple[str, int, int]]] = {}
    wanted = set(outputs) or {value.name for value in model.graph.output}
    _sort_graph(model.graph, wanted, found, path, outside, onnx)
    for what in ("training_info", "quantization_annotation"):
        holder = model if what == "training_info" else model.graph
        for each in getattr(holder, what):
            found.beside(what.replace("_", " "), each.ByteSize())
    _texts(model, found)
    whole = model.ByteSize()
    model.DiscardUnknownFields()
    found.beside("fields that ONNX does not know", whole - model.ByteSize())
    sizes = sum(len(t.dims) for t in _initializers(model.graph)) + 8 * len(model.graph.node)
    # a number of sizes may be written in a longer way
    found.beside("written twice, or in a longer way", max(0, found.size - whole - 2 * sizes))
    inside = sum(size for _, size in found.parts.values()) + sum(s.bytes for s in found.spare)
    told = sum(len(k.encode()) + len(v.encode()) for k, v in found.told.items())
    found.structure = found.size - inside - told
    return {path: found} | {p: _external(p, ranges) for p, ranges in outside.items()}


def _initializers(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _sort_graph(
    graph: Any, wanted: set[str], found: Layout, path: Path,
    outside: dict[Path, list[tuple[str, int, int]]], onnx: Any,
) -> None:  # fmt: skip
    """Tells the tensors that some outputs depend on from those that none does."""
    live, nodes = _reached(graph, wanted)
    tensors = [(t, t.name in live) for t in graph.initializer]
    for sparse in graph.sparse_initializer:
        used = sparse.values.name in live
        tensors += [(sparse.values, used), (sparse.indices, used)]
    for number, node in enumerate(graph.node):
        used = number in nodes
        label = node.name or f"{node.op_type} {number}"
        inner = [a.t for a in node.attribute if a.HasField("t")]
        inner += [t for a in node.attribute for t in a.tensors]
        graphs = [
            g for a in node.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs)
        ]
        if used:
            tensors += [(t, True) for t in inner]
            for each in graphs:
                ends = {value.name for value in each.output}
                _sort_graph(each, ends, found, path, outside, onnx)
        else:
            found.beside(f"the node {quoted(label)}, which no output needs", node.ByteSize())
    for number, (tensor, used) in enumerate(tensors):
        name = f"{tensor.name or 'constant'}#{len(found.parts)}.{number}"
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            place = path.parent / told.get("location", "")
            offset, length = int(told.get("offset", 0)), int(told.get("length", 0))
            length = length or place.stat().st_size - offset
            outside.setdefault(place, []).append((name if used else "", offset, length))
            continue
        size = tensor.ByteSize()
        over = len(tensor.raw_data) - _needed(tensor, onnx) if tensor.raw_data else 0
        if used:
            found.parts[name] = (0, size - max(0, over))
            found.beside(f"behind the numbers of {quoted(tensor.name)}", max(0, over))
        else:
            found.beside(f"the tensor {quoted(tensor.name)}, which no output needs", size)


def _needed(tensor: Any, onnx: Any) -> int:
    """The bytes of a tensor's numbers."""
    bits = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}.get(tensor.data_type)
    if bits is None:
        bits = 8 * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims) * bits + 7) // 8


def _reached(graph: Any, wanted: set[str]) -> tuple[set[str], set[int]]:
    """The names, and the numbers of the nodes, that some names of a graph depend on."""
    makers = {
        name: number for number, node in enumerate(graph.node) for name in node.output if name
    }
    names, nodes, waiting = set(wanted), set[int](), list(wanted)
    while waiting:
        number = makers.get(waiting.pop())
        if number is None or number in nodes:
            continue
        nodes.add(number)
        node = graph.node[number]
        taken = set(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                taken |= names_outside(inner)
        waiting += taken - names
        names |= taken
    return names, nodes


# strings that the structure needs, up to LONG characters each; any other string is text
_NEEDED = {
    "NodeProto": ("input", "output", "name", "op_type", "domain"), "TensorProto": ("name",),
    "AttributeProto": ("name", "s", "strings"), "OperatorSetIdProto": ("domain",),
    "ValueInfoProto": ("name",), "StringStringEntryProto": ("key", "value"),
}  # fmt: skip
_NUMBERS = ("raw_data", "string_data")  # of a tensor


def _texts(model: Any, found: Layout) -> None:
    """Text that the format lets anybody add: every string that neither a node nor a tensor needs,
    and what is longer than a name has to be."""
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    for kind, field, value in _strings(model):
        if (kind, field) in (("NodeProto", "input"), ("NodeProto", "output")):
            names.add(value)
    added: dict[str, list[str]] = {}
    for kind, field, value in _strings(model):
        needed = field in _NEEDED.get(kind, ())
        if (kind, field) == ("ValueInfoProto", "name"):
            needed = value in names
        if left := value[LONG:] if needed else value:
            added.setdefault(f"{kind}.{field}", []).append(left)
    for entry in model.metadata_props:
        found.told[f"metadata {entry.key}"] = entry.value
    for where, texts in added.items():
        found.told[where] = "".join(texts)


def _strings(message: Any) -> Iterator[tuple[str, str, str]]:
    """Every string in a message and those in it: the kind of the message, the field, the string.
    Without the numbers of tensors and the metadata of the model."""
    kind = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        if (kind, field.name) == ("ModelProto", "metadata_props"):
            continue
        one = isinstance(value, str | bytes | int | float) or hasattr(value, "ListFields")
        every = (value,) if one else value
        if field.type == field.TYPE_MESSAGE:
            external = (kind, field.name) == ("TensorProto", "external_data")
            for each in every:
                if kind != "TensorProto" or external:
                    where = "" if external or field.name != "metadata_props" else "metadata"
                    for inner, name, text in _strings(each):
                        yield (where or inner), name, text
        elif field.type == field.TYPE_STRING:
            yield from ((kind, field.name, text) for text in every)
        elif field.type == field.TYPE_BYTES and field.name not in _NUMBERS:
            yield from ((kind, field.name, text.decode("utf-8", "replace")) for text in every)


def _external(path: Path, ranges: list[tuple[str, int, int]]) -> Layout:
    """A file of external data: what is in no tensor must be zeros that fill up."""
    found, at = Layout(path.stat().st_size), 0
    for number, (name, offset, length) in enumerate(sorted(ranges, key=lambda r: (r[1], -r[2]))):
        end = offset + length
        if end <= at:
            continue  # shared by two tensors
        found.beside("between tensors", _filled(path, at, offset))
        begin = max(at, offset)
        if name:
            found.parts[f"{name}#{number}"] = (begin, end - begin)
        else:
            found.beside("a tensor that no output needs", end - begin)
        at = end
    found.beside("after the last tensor", _filled(path, at, found.size))
    counted = sum(size for _, size in found.parts.values()) + sum(s.bytes for s in found.spare)
    found.structure = found.size - counted
    return found


def _filled(path: Path, begin: int, end: int) -> int:
    """The bytes between two places, unless all of them are zero."""
    with path.open("rb") as file:
        file.seek(begin)
        left = max(0, end - begin)
        while left:
            block = file.read(min(BLOCK, left))
            if block.strip(b"\0") or not block:
                return end - begin
            left -= len(block)
    return 0
