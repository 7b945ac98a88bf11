"""An ONNX graph as a torch network: its layers are torch's, so that they can be watched, folded and
inherited; the rest are functions (`operators`)."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.specs.onnx_operators import OPERATORS, Node, padded, pairs, whole

MOST_FOLDED = 1 << 24  # numbers of a constant that is computed beforehand


class Unknown(Exception):
    """An operator that is not known, by name."""


@dataclass(frozen=True)
class Step:
    """One operator: which values it takes and makes, and the layer that does it, if one does."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str = ""
    inner: Any = None  # the branches of an If: steps and the names of their outputs


class Network(nn.Module):
    """The operators between the input and one output of a graph. `fixed` is the number of images
    that it was exported for, if it was for one: reshapes to it are freed."""

    def __init__(self, model: Any, output: str, fixed: int | None) -> None:
        super().__init__()
        import onnx

        self._helper, self._arrays = onnx.helper, onnx.numpy_helper
        self.fixed = fixed
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
                         default=1)  # fmt: skip
        self.ranks = _ranks(model, onnx)
        self.constants: dict[str, Tensor] = {}  # whole numbers, which stay on the CPU
        self.named: dict[str, str] = {}  # real ones: name in the graph -> attribute here
        self.layers = nn.ModuleDict()
        self.output = output
        constants = set(_initial(model.graph))
        (self.input,) = [v.name for v in model.graph.input if v.name not in constants]
        self.steps = self._read(model.graph, {output}, {})
        del self._helper, self._arrays

    # Reading

    def _read(self, graph: Any, wanted: set[str], outer: Mapping[str, Tensor]) -> list[Step]:
        known: dict[str, Tensor] = {**outer}
        for tensor in graph.initializer:
            known[tensor.name] = self._tensor(tensor)
        needed = set(wanted)
        nodes = []
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
                for attribute in node.attribute:
                    for inner in (attribute.g, *attribute.graphs):
                        needed |= names_outside(inner)
        steps = []
        for node in reversed(nodes):
            found = self._step(node, known)
            if found is not None:
                steps.append(found)
        for name in {name for step in steps for name in _used(step)} | wanted:
            if name in known:
                self._keep(name, known[name])
        return steps

    def _tensor(self, tensor: Any) -> Tensor:
        array = self._arrays.to_array(tensor)
        if array.dtype.kind == "O":
            raise ValueError("a tensor of texts")
        if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float8_e4m3fn"):
            array = array.astype("float32")
        kinds = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}
        array = array.astype(kinds.get(array.dtype.name, array.dtype))
        return torch.from_numpy(array.copy())

    def _keep(self, name: str, value: Tensor) -> None:
        if name in self.named:
            return
        if not value.is_floating_point():
            self.constants[name] = value
            return
        attribute = f"constant{len(self.named)}"
        self.named[name] = attribute
        if value.numel() > 1:
            setattr(self, attribute, nn.Parameter(value, requires_grad=False))
        else:  # read while the graph is followed, e.g. limits
            self.register_buffer(attribute, value)

    def _attributes(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for attribute in node.attribute:
            value = self._helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            elif attribute.type == attribute.TENSOR:
                value = self._tensor(value)
            elif isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
                value = [text.decode("utf-8", "replace") for text in value]
            found[attribute.name] = value
        return found

    def _step(self, node: Any, known: dict[str, Tensor]) -> Step | None:
        inputs, outputs = tuple(node.input), tuple(node.output)
        attributes = self._attributes(node)
        if node.op_type == "Constant":
            known[outputs[0]] = _constant(attributes)
            return None
        rank = self.ranks.get(inputs[0]) if inputs else None
        made = Node(node.op_type, attributes, self.opset, rank, sum(map(bool, outputs)))
        if node.op_type == "If":
            branches = []
            for name in ("then_branch", "else_branch"):
                inner = attributes[name]
                ends = [value.name for value in inner.output]
                branches.append((self._read(inner, set(ends), known), ends))
            kept = Node(node.op_type, {}, self.opset, None, len(outputs))
            return Step(kept, inputs, outputs, inner=tuple(branches))
        if node.op_type not in OPERATORS:
            raise Unknown(node.op_type)
        given = [known.get(name) if name else None for name in inputs]
        here = all(value is not None for value, name in zip(given, inputs, strict=True) if name)
        if here and inputs and node.op_type not in ("QuantizeLinear",):
            with torch.no_grad():
                values = OPERATORS[node.op_type](made, *given)
            values = values if isinstance(values, tuple | list) else (values,)
            if sum(v.numel() for v in values) <= MOST_FOLDED:
                for name, value in zip(outputs, values, strict=False):
                    known[name] = value.contiguous()
                return None
        if node.op_type == "Reshape" and self.fixed and len(given) > 1 and given[1] is not None:
            shape = given[1]
            zero = attributes.get("allowzero") and bool((shape == 0).any())
            if shape.numel() > 1 and int(shape[0]) == self.fixed and not zero:
                made = replace(made, attributes={**attributes, "allowzero": 0})
                name = f"{inputs[1]}, of any number of images"
                free = 0 if bool((shape[1:] == -1).any()) else -1
                known[name] = torch.cat([torch.tensor([free]), shape[1:]])
                inputs = (inputs[0], name)
        return self._layer(made, inputs, outputs, given, node)

    def _layer(
        self, made: Node, inputs: tuple[str, ...], outputs: tuple[str, ...],
        given: Sequence[Tensor | None], node: Any,
    ) -> Step:  # fmt: skip
        layer: nn.Module | None = None
        rest = [value for value in given[1:] if value is not None]
        whole_ = len(rest) == sum(bool(name) for name in inputs[1:]) and given[0] is None
        if whole_ and rest:
            layer = _module(made, rest)
        if layer is None:
            return Step(made, inputs, outputs)
        key = f"{made.kind}{len(self.layers)}"
        self.layers[key] = layer.eval()
        return Step(made, inputs[:1], outputs, key)

    # Running

    def forward(self, x: Tensor) -> Tensor:
        """What the graph's input is, to one of its outputs."""
        values: dict[str, Any] = {self.input: x}
        self._run(self.steps, values)
        found: Tensor = self._value(self.output, values)
        return found

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self.named:
            return getattr(self, self.named[name])
        return self.constants[name]

    def _run(self, steps: Sequence[Step], values: dict[str, Any]) -> None:
        for step in steps:
            given = [self._value(name, values) for name in step.inputs]
            if step.inner is not None:
                branch, ends = step.inner[0 if bool(given[0]) else 1]
                self._run(branch, values)
                found: Any = tuple(self._value(name, values) for name in ends)
            elif step.layer:
                if step.node.kind == "Conv":
                    given[0] = self._around(step, given[0])
                found = self.layers[step.layer](given[0])
            else:
                found = OPERATORS[step.node.kind](step.node, *given)
            found = found if isinstance(found, tuple | list) else (found,)
            values.update(zip(step.outputs, found, strict=False))

    def _around(self, step: Step, x: Tensor) -> Tensor:
        """Padding that the layer cannot do itself."""
        layer: Any = self.layers[step.layer]
        if layer.uneven:
            return padded(x, pairs(step.node, x, layer.kernel_size))
        return x


def _module(node: Node, given: Sequence[Tensor]) -> nn.Module | None:
    """A layer of torch's for an operator with these weights, if there is one."""
    weight, *rest = given
    layer: Any = None
    if node.kind == "Conv" and weight.dim() in (3, 4, 5):
        count = weight.dim() - 2
        pads = whole(node.get("pads", [0] * 2 * count))
        auto = node.get("auto_pad", "NOTSET")
        uneven = auto not in ("NOTSET", "VALID", "") or pads[:count] != pads[count:]
        inside = [0] * count if uneven or auto == "VALID" else pads[:count]
        groups = node.get("group", 1)
        with torch.device("meta"):
            kinds: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
            layer = kinds[count - 1](
                weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),
                tuple(whole(node.get("strides", [1] * count))), tuple(inside),
                tuple(whole(node.get("dilations", [1] * count))), groups, bias=bool(rest),
            )  # fmt: skip
        layer.uneven = uneven
        _set(layer, weight=weight, bias=rest[0] if rest else None)
    elif node.kind == "BatchNormalization" and len(given) == 4 and node.rank in (None, 2, 3, 4):
        if node.get("training_mode"):
            return None  # its operator refuses
        kind = nn.BatchNorm2d if node.rank in (None, 4) else nn.BatchNorm1d
        layer = kind(len(weight), eps=node.get("epsilon", 1e-5))
        scale, bias, mean, var = given
        _set(layer, weight=scale, bias=bias)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    elif node.kind == "Gemm" and weight.dim() == 2 and not node.get("transA", 0):
        weight = node.get("alpha", 1.0) * (weight if node.get("transB", 0) else weight.T)
        more: Tensor | None = None
        if rest:
            if rest[0].numel() not in (1, len(weight)):
                return None
            more = node.get("beta", 1.0) * rest[0].reshape(-1).expand(len(weight))
        with torch.device("meta"):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=more is not None)
        _set(layer, weight=weight, bias=more)
    elif node.kind == "MatMul" and weight.dim() == 2:
        with torch.device("meta"):
            layer = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
        _set(layer, weight=weight.T, bias=None)
    return layer  # type: ignore[no-any-return]


def _set(layer: Any, **tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        if value is not None:
            setattr(layer, name, nn.Parameter(value.float().contiguous(), requires_grad=False))


def _constant(attributes: Mapping[str, Any]) -> Tensor:
    value = next(iter(attributes.values()))
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        raise ValueError("a tensor of texts")
    return torch.tensor(value)


def _initial(graph: Any) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)


def names_outside(graph: Any) -> set[str]:
    """Names that an inner graph may take from outside."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= names_outside(inner)
    return found


def _used(step: Step) -> Iterator[str]:
    yield from step.inputs
    for steps, ends in step.inner or ():
        yield from ends
        for inner in steps:
            yield from _used(inner)


def _ranks(model: Any, onnx: Any) -> dict[str, int]:
    """The ranks of a graph's values, as far as its shapes can be inferred."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # too large, or contradicting itself
        graph = model.graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    } | {tensor.name: len(tensor.dims) for tensor in graph.initializer}
