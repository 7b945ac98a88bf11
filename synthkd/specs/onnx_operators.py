"""The operators of ONNX as functions of torch, each with a gradient where it has one.

A function takes its node (attributes, opset, rank of its first input, number of outputs) and its
inputs, and returns a tensor or several. What is real computes in float32, whatever precision the
graph asks for. Source: the operator reference of ONNX, opsets 1 to 24, and of ai.onnx.ml.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_NUMBERS = 1 << 28  # that an operator may make out of a few


@dataclass(frozen=True)
class Node:
    """A node of a graph, as far as its operator must know it."""

    kind: str
    attributes: Mapping[str, Any]
    opset: int
    rank: int | None  # of the first input, where it is known
    outputs: int

    def get(self, name: str, other: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, other)

    def rank_of(self, x: Tensor) -> int:
        """The rank of the first input."""
        return self.rank if self.rank is not None else x.dim()


Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Enters a function under the names of operators."""

    def enter(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return enter


def whole(values: Any) -> list[int]:
    """The whole numbers in an attribute or a tensor."""
    if isinstance(values, Tensor):
        return [int(value) for value in values.reshape(-1).tolist()]
    return [int(values)] if isinstance(values, int) else [int(value) for value in values]


def bounded(shape: Sequence[int]) -> list[int]:
    """A shape to be made; ValueError where it is one of a bomb."""
    sizes = whole(shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) > MOST_NUMBERS:
        raise ValueError(f"a tensor of {'x'.join(map(str, sizes[:8]))} is too large")
    return sizes


def together(*tensors: Any) -> tuple[Any, ...]:
    """Tensors on one device: constants of shapes stay on the CPU, wherever the images are."""
    places = {t.device for t in tensors if isinstance(t, Tensor)}
    if len(places) < 2:
        return tensors
    place = next(p for p in places if p.type != "cpu")
    return tuple(t.to(place) if isinstance(t, Tensor) else t for t in tensors)


# One by one


def _plain(function: Any) -> Operator:
    return lambda node, *xs: function(*together(*xs))


OPERATORS |= {
    name: _plain(function)
    for name, function in {
        "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp,
        "Log": torch.log, "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs,
        "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign,
        "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin,
        "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
        "Erf": torch.erf, "Reciprocal": torch.reciprocal, "Softplus": F.softplus,
        "Softsign": F.softsign, "Mish": F.mish, "HardSwish": F.hardswish,
        "Not": torch.logical_not, "IsNaN": torch.isnan,
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "MatMul": torch.matmul,
        "Pow": torch.pow, "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt,
        "LessOrEqual": torch.le, "GreaterOrEqual": torch.ge, "And": torch.logical_and,
        "Or": torch.logical_or, "Xor": torch.logical_xor, "Where": torch.where,
        "FastGelu": lambda x, b=0.0: F.gelu(x + b, approximate="tanh"),
        "BiasGelu": lambda x, b: F.gelu(x + b), "QuickGelu": lambda x: x * torch.sigmoid(1.702 * x),
    }.items()
}  # fmt: skip


@operator("Identity", "Dropout")
def _identity(node: Node, x: Tensor, *rest: Tensor) -> Any:
    return x if node.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@operator("Div")
def _div(node: Node, x: Tensor, y: Tensor) -> Tensor:
    x, y = together(x, y)
    counted = [isinstance(v, Tensor) and not v.is_floating_point() for v in (x, y)]
    return torch.div(x, y, rounding_mode="trunc") if all(counted) else x / y


@operator("Mod")
def _mod(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return (torch.fmod if node.get("fmod") else torch.remainder)(*together(x, y))


@operator("Sum", "Mean", "Min", "Max")
def _all(node: Node, *xs: Tensor) -> Tensor:
    found, *rest = together(*xs)
    pair = {"Min": torch.minimum, "Max": torch.maximum}.get(node.kind, torch.add)
    for x in rest:
        found = pair(found, x)
    return found / len(xs) if node.kind == "Mean" else found  # type: ignore[no-any-return]


@operator("LeakyRelu")
def _leaky(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@operator("Elu", "Celu")
def _elu(node: Node, x: Tensor) -> Tensor:
    return (F.elu if node.kind == "Elu" else F.celu)(x, node.get("alpha", 1.0))


@operator("Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    return gamma * F.elu(x, alpha)  # type: ignore[no-any-return]


@operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0, 1)  # type: ignore[no-any-return]


@operator("ThresholdedRelu")
def _thresholded(node: Node, x: Tensor) -> Tensor:
    return x * (x > node.get("alpha", 1.0))  # type: ignore[no-any-return]


@operator("Swish")
def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@operator("Gelu")
def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


@operator("Clip")
def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = node.get("min") if low is None else low
    high = node.get("max") if high is None else high
    low, high = (v.item() if isinstance(v, Tensor) else v for v in (low, high))
    return x if low is None and high is None else x.clamp(low, high)


@operator("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    if node.kind == "Hardmax":
        axis = node.get("axis", -1)
        return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).float()
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1)
    rank = node.rank_of(x)
    if axis in (-1, rank - 1):
        return function(x, axis)
    return function(x.flatten(axis), -1).reshape(x.shape)  # as one axis


# Layers whose weights are no constants, or of unusual form; `Network` makes modules of the rest


def pairs(node: Node, x: Tensor, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and after, by spatial axis."""
    count = len(kernel)
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID", ""):
        pads = whole(node.get("pads", [0] * 2 * count)) if auto != "VALID" else [0] * 2 * count
        return [(pads[i], pads[i + count]) for i in range(count)]
    strides = whole(node.get("strides", [1] * count))
    dilations = whole(node.get("dilations", [1] * count))
    found = []
    for i in range(count):
        size, step = int(x.shape[2 + i]), strides[i]
        span = (kernel[i] - 1) * dilations[i] + 1
        more = max(0, (-(-size // step) - 1) * step + span - size)
        less = more // 2
        found.append((less, more - less) if auto == "SAME_UPPER" else (more - less, less))
    return found


def padded(x: Tensor, around: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """A tensor with more at the ends of its last axes."""
    flat = [size for pair in reversed(list(around)) for size in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@operator("Conv")
def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = weight.dim() - 2
    x = padded(x, pairs(node, x, list(weight.shape[2:])))
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    found: Tensor = function(
        x, weight, bias, whole(node.get("strides", [1] * count)), 0,
        whole(node.get("dilations", [1] * count)), node.get("group", 1),
    )  # fmt: skip
    return found


@operator("ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape"):
        raise NotImplementedError("ConvTranspose with auto_pad")
    count = weight.dim() - 2
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[count - 1]
    found: Tensor = function(
        x, weight, bias, whole(node.get("strides", [1] * count)), 0,
        whole(node.get("output_padding", [0] * count)), node.get("group", 1),
        whole(node.get("dilations", [1] * count)),
    )  # fmt: skip
    return padded(found, [(-a, -b) for a, b in pairs(node, x, list(weight.shape[2:]))])


@operator("MaxPool", "AveragePool", "LpPool")
def _pool(node: Node, x: Tensor) -> Tensor:
    kernel = whole(node.get("kernel_shape"))
    count, ceil = len(kernel), bool(node.get("ceil_mode", 0))
    strides = whole(node.get("strides", [1] * count))
    around = pairs(node, x, kernel)
    dilations = whole(node.get("dilations", [1] * count))
    even = all(a == b and 2 * a <= k for (a, b), k in zip(around, kernel, strict=True))
    if node.outputs > 1:
        raise NotImplementedError(f"{node.kind} with indices")
    if node.kind == "MaxPool":
        function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
        x = x if even else padded(x, around, -math.inf)
        inside = [a for a, _ in around] if even else [0] * count
        pooled: Tensor = function(x, kernel, strides, inside, dilations, ceil)
        return pooled
    if any(d != 1 for d in dilations):
        raise NotImplementedError(f"{node.kind} with dilations")
    mean: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    if node.kind == "LpPool":
        p = node.get("p", 2)
        sums = mean(padded(x, around).abs() ** p, kernel, strides, 0, ceil)
        found: Tensor = (sums * math.prod(kernel)) ** (1 / p)
        return found
    counted = bool(node.get("count_include_pad", 0))
    if even:
        inside = [a for a, _ in around]
        return mean(x, kernel, strides, inside, ceil, counted)  # type: ignore[no-any-return]
    found = mean(padded(x, around), kernel, strides, 0, ceil)
    if counted:
        return found
    ones: Tensor = mean(padded(torch.ones_like(x[:1, :1]), around), kernel, strides, 0, ceil)
    return found / ones


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: Node, x: Tensor) -> Tensor:
    axes = tuple(range(2, node.rank_of(x)))
    if node.kind == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    if node.kind == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    p = node.get("p", 2)
    return (x.abs() ** p).sum(axes, keepdim=True) ** (1 / p)  # type: ignore[no-any-return]


@operator("Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.transpose(0, 1) if node.get("transA", 0) else a
    b = b.transpose(0, 1) if node.get("transB", 0) else b
    found = node.get("alpha", 1.0) * (a @ b)
    return found if c is None else found + node.get("beta", 1.0) * c  # type: ignore[no-any-return]


@operator("Einsum")
def _einsum(node: Node, *xs: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *xs)


@operator("BatchNormalization")
def _batch_norm(node: Node, x: Tensor, *rest: Tensor) -> Tensor:
    if node.get("training_mode"):
        raise NotImplementedError("BatchNormalization in training mode: export it in eval mode")
    scale, bias, mean, var = rest
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@operator("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1)
    axes = tuple(range(axis, 0)) if axis < 0 else tuple(range(axis, node.rank_of(x)))
    eps = node.get("epsilon", 1e-5)
    if node.kind == "LayerNormalization":
        x = x - x.mean(axes, keepdim=True)
    found = x * torch.rsqrt((x * x).mean(axes, keepdim=True) + eps) * scale
    return found if bias is None else found + bias


@operator("GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if len(scale) == groups != x.shape[1]:  # opset 18: one number a group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LRN")
def _lrn(node: Node, x: Tensor) -> Tensor:
    size = node.get("size")
    return F.local_response_norm(
        x, size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


@operator("LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", -1)
    norm = torch.linalg.vector_norm(x, node.get("p", 2), axis, keepdim=True)
    return x / norm.clamp_min(1e-30)  # type: ignore[no-any-return]


@operator("MeanVarianceNormalization")
def _mvn(node: Node, x: Tensor) -> Tensor:
    axes = tuple(whole(node.get("axes", [0, 2, 3])))
    x = x - x.mean(axes, keepdim=True)
    return x / ((x * x).mean(axes, keepdim=True).sqrt() + 1e-9)


# Reductions


@operator(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
def _reduce(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    told = node.get("axes") if given is None else given
    axes = whole(told) if told is not None else []
    keep = bool(node.get("keepdims", 1))
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(node.rank_of(x)))
    kind = node.kind.removeprefix("Reduce")
    if kind == "Prod":
        for axis in sorted((a % x.dim() for a in axes), reverse=True):
            x = x.prod(axis, keepdim=keep)
        return x
    functions: dict[str, Callable[..., Any]] = {
        "Mean": torch.mean, "Sum": torch.sum, "Max": torch.amax, "Min": torch.amin,
        "LogSumExp": torch.logsumexp,
        "L1": lambda x, d, keepdim: x.abs().sum(d, keepdim),
        "L2": lambda x, d, keepdim: (x * x).sum(d, keepdim).sqrt(),
        "LogSum": lambda x, d, keepdim: x.sum(d, keepdim).log(),
        "SumSquare": lambda x, d, keepdim: (x * x).sum(d, keepdim),
    }  # fmt: skip
    found: Tensor = functions[kind](x, axes, keepdim=keep)
    return found


@operator("ArgMax", "ArgMin")
def _arg(node: Node, x: Tensor) -> Tensor:
    if node.get("select_last_index"):
        raise NotImplementedError(f"{node.kind} of the last")
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return function(x, node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))


@operator("TopK")
def _top(node: Node, x: Tensor, k: Tensor | None = None) -> Any:
    count = whole(k)[0] if k is not None else node.get("k")
    return tuple(x.topk(count, node.get("axis", -1), bool(node.get("largest", 1))))


@operator("CumSum")
def _cumsum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    if node.get("exclusive") or node.get("reverse"):
        raise NotImplementedError("CumSum backwards")
    return x.cumsum(whole(axis)[0])


# Shapes


@operator("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    told = whole(node.get("shape") if shape is None else shape)
    if not node.get("allowzero", 0):
        told = [x.shape[i] if size == 0 else size for i, size in enumerate(told)]
    return x.reshape(told)


@operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + node.rank_of(x) if axis < 0 else axis
    if axis == 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Squeeze")
def _squeeze(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    told = node.get("axes") if given is None else given
    return x.squeeze() if told is None else x.squeeze(tuple(whole(told)))


@operator("Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    axes = whole(node.get("axes") if given is None else given)
    if any(axis < 0 for axis in axes):
        rank = node.rank_of(x) + len(axes)
        axes = [axis % rank for axis in axes]
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    order = node.get("perm")
    return x.permute(whole(order if order is not None else range(x.dim())[::-1]))


@operator("Concat")
def _concat(node: Node, *xs: Tensor) -> Tensor:
    return torch.cat(together(*xs), node.get("axis", 1))


@operator("Split")
def _split(node: Node, x: Tensor, given: Tensor | None = None) -> Any:
    axis = node.get("axis", 0)
    told = node.get("split") if given is None else given
    if told is not None:
        return torch.split(x, whole(told), axis)
    return torch.split(x, -(-int(x.shape[axis]) // node.outputs), axis)


@operator("Slice")
def _slice(
    node: Node, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Tensor:  # fmt: skip
    first = whole(node.get("starts") if starts is None else starts)
    last = whole(node.get("ends") if ends is None else ends)
    told = node.get("axes") if axes is None else axes
    over = whole(told) if told is not None else list(range(len(first)))
    each = whole(steps) if steps is not None else [1] * len(first)
    for begin, end, axis, step in zip(first, last, over, each, strict=True):
        if step > 0:
            cut: Any = slice(begin, end, step)
            after: Any = (slice(None),) * (-axis - 1)
            ahead: Any = (slice(None),) * max(0, axis)
            x = x[(..., cut, *after)] if axis < 0 else x[(*ahead, cut)]
            continue
        size = int(x.shape[axis])
        places = list(range(*slice(begin, end if end >= -size - 1 else None, step).indices(size)))
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


@operator("Gather")
def _gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    if index.dim() == 0:
        return x.select(axis, int(index))
    size = x.shape[axis]
    index = index.to(x.device).long()
    flat = torch.where(index < 0, index + size, index).reshape(-1)
    found = x.index_select(axis, flat)
    if index.dim() == 1:
        return found
    axis = axis % x.dim()
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def _gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    index = index.to(x.device).long()
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@operator("GatherND")
def _gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise NotImplementedError("GatherND with batch dimensions")
    return x[tuple(index.to(x.device).long().unbind(-1))]


@operator("Expand")
def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = torch.broadcast_shapes(x.shape, whole(shape))  # type: ignore[no-untyped-call]
    return x.expand(bounded(sizes))


@operator("Tile")
def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    told = whole(repeats)
    bounded([a * b for a, b in zip(x.shape, told, strict=True)])
    return x.repeat(told)


@operator("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value")
    value = torch.zeros(1) if value is None else value
    return value.reshape(-1)[:1].expand(bounded(whole(shape)) or [1]).reshape(whole(shape))


@operator("Range")
def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    begin, end, step = start.item(), limit.item(), delta.item()
    bounded([max(0, math.ceil((end - begin) / step))])
    return torch.arange(begin, end, step, dtype=start.dtype)


@operator("OneHot")
def _one_hot(node: Node, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = whole(depth)[0]
    bounded([index.numel(), count])
    off, on = values
    found = F.one_hot(index.long() % count, count).to(values.dtype)
    return (found * (on - off) + off).movedim(-1, node.get("axis", -1))  # type: ignore[no-any-return]


@operator("EyeLike")
def _eye(node: Node, x: Tensor) -> Tensor:
    if node.get("k"):
        raise NotImplementedError("EyeLike off the diagonal")
    return torch.eye(*x.shape, device=x.device)


@operator("Trilu")
def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    by = whole(k)[0] if k is not None else 0
    return x.triu(by) if node.get("upper", 1) else x.tril(by)


@operator("Pad")
def _pad(
    node: Node, x: Tensor, given: Any = None, value: Any = None, over: Any = None
) -> Tensor:  # fmt: skip
    told = given if given is not None else node.get("pads", node.get("paddings"))
    pads, rank = whole(told), node.rank_of(x)
    axes = [a % rank for a in whole(over)] if over is not None else list(range(rank))
    around = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        around[axis] = (pads[i], pads[i + len(axes)])
    if isinstance(x, Tensor):  # and nothing that follows the graph
        bounded([size + a + b for size, (a, b) in zip(x.shape, around, strict=True)])
    mode = {"edge": "replicate", "wrap": "circular"}.get(
        node.get("mode", "constant"), node.get("mode", "constant")
    )
    if mode == "constant":
        return padded(x, around, float(value if value is not None else node.get("value", 0.0)))
    first = next((i for i, pair in enumerate(around) if any(pair)), rank)
    if first < min(2, rank - 1):
        raise NotImplementedError(f"Pad of this axis in mode {mode}")
    return F.pad(x, [size for pair in reversed(around[2:]) for size in pair], mode=mode)


@operator("Resize", "Upsample")
def _resize(node: Node, x: Tensor, *given: Any) -> Tensor:
    """One matrix [out, in] for each axis: every mode is linear, and separable."""
    if node.kind == "Upsample" or node.opset < 11:
        scales, sizes = given[0] if given else node.get("scales"), None
        way, rounding = "asymmetric", "floor"
    else:
        _, scales, sizes = (*given, None, None, None)[:3]
        way = node.get("coordinate_transformation_mode", "half_pixel")
        rounding = node.get("nearest_mode", "round_prefer_floor")
    if node.get("antialias") or way == "tf_crop_and_resize":
        raise NotImplementedError(f"{node.kind} with antialias or a crop")
    told = node.get("axes")
    axes = [a % x.dim() for a in whole(told)] if told is not None else list(range(x.dim()))
    if sizes is not None and sizes.numel():
        out = whole(sizes)
        by = [size / int(x.shape[a]) for size, a in zip(out, axes, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = (min if policy == "not_larger" else max)(by)
            by = [one] * len(by)
            out = [math.floor(one * int(x.shape[a]) + 0.5) for a in axes]
    else:
        by = [float(v) for v in (scales.tolist() if isinstance(scales, Tensor) else scales)]
        out = [math.floor(int(x.shape[a]) * s) for a, s in zip(axes, by, strict=True)]
    shape = list(x.shape)
    for axis, size in zip(axes, out, strict=True):
        shape[axis] = size
    bounded(shape)
    for axis, size, scale in zip(axes, out, by, strict=True):
        if size == x.shape[axis] and scale == 1:
            continue
        rows = _sampled(node, int(x.shape[axis]), size, scale, way, rounding)
        x = torch.movedim(torch.movedim(x, axis, -1) @ rows.to(x).T, -1, axis)
    return x


def _sampled(
    node: Node, size: int, out: int, scale: float, way: str, rounding: str
) -> Tensor:  # fmt: skip
    """What each of `out` places takes of `size` ones, [out, size]."""
    i = torch.arange(out, dtype=torch.float64)
    places = {
        "half_pixel": lambda: (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda: (i + 0.5) / scale - 0.5 if out > 1 else i * 0,
        "asymmetric": lambda: i / scale,
        "align_corners": lambda: i * (size - 1) / (scale * size - 1) if out > 1 else i * 0,
        "half_pixel_symmetric": lambda: (
            (i + 0.5) / scale - 0.5 + size / 2 * (1 - out / (scale * size))
        ),
    }.get(way)
    if places is None:
        raise NotImplementedError(f"{node.kind} with {way}")
    x = places()
    found = torch.zeros(out, size, dtype=torch.float64)
    row = torch.arange(out)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        near = {
            "floor": x.floor, "ceil": x.ceil, "round_prefer_ceil": (x + 0.5).floor,
            "round_prefer_floor": (x - 0.5).ceil,
        }[rounding]()  # fmt: skip
        found[row, near.long().clamp(0, size - 1)] = 1.0
        return found
    first = x.floor()
    a = node.get("cubic_coeff_a", -0.75)
    taps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    for tap in taps:
        d = (x - (first + tap)).abs()
        weight = 1 - d if mode == "linear" else torch.where(
            d <= 1,
            (a + 2) * d**3 - (a + 3) * d**2 + 1,
            a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a,
        )  # fmt: skip
        place = (first + tap).long()
        if node.get("exclude_outside"):
            weight = weight * ((place >= 0) & (place < size))
        found[row, place.clamp(0, size - 1)] += weight
    return found / found.sum(1, keepdim=True) if node.get("exclude_outside") else found


@operator("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    if node.get("mode", "DCR") != "DCR":
        raise NotImplementedError("SpaceToDepth of this mode")
    block = node.get("blocksize")
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


# Kinds of numbers


def kind_of(code: int) -> torch.dtype:
    """The type of torch for one of ONNX; every real one is float32."""
    return {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
            9: torch.bool, 4: torch.int32, 12: torch.int64, 13: torch.int64}.get(
                code, torch.float32)  # fmt: skip


@operator("Cast", "CastLike")
def _cast(node: Node, x: Tensor, like: Tensor | None = None) -> Tensor:
    return x.to(kind_of(node.get("to")) if like is None else like.dtype)


def _along(x: Tensor, values: Tensor, axis: int) -> Tensor:
    """One number an entry of an axis, shaped to be broadcast."""
    return values.reshape(-1, *[1] * (x.dim() - 1 - axis % x.dim())) if values.dim() else values


@operator("QuantizeLinear")
def _quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Whole numbers kept as real ones; their gradient is that of what was rounded."""
    axis = node.get("axis", 1)
    kind = zero.dtype if zero is not None else torch.uint8
    limits = torch.iinfo(kind)
    scale = _along(x, scale, axis)
    exact = x / scale + (_along(x, zero.float(), axis) if zero is not None else 0.0)
    kept = exact.clamp(limits.min, limits.max)
    return kept + (kept.round() - kept).detach()


@operator("DequantizeLinear")
def _dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = node.get("axis", 1)
    moved = x.float() - (_along(x, zero.float(), axis) if zero is not None else 0.0)
    return moved * _along(x, scale, axis)


# ai.onnx.ml, as scikit-learn's exporters use it


@operator("Scaler")
def _scaler(node: Node, x: Tensor) -> Tensor:
    offset, scale = (torch.tensor(node.get(name), device=x.device) for name in ("offset", "scale"))
    return (x.float() - offset) * scale


@operator("Normalizer")
def _normalizer(node: Node, x: Tensor) -> Tensor:
    norm = node.get("norm", "MAX")
    size = {
        "L1": lambda: x.abs().sum(1, True), "L2": lambda: (x * x).sum(1, True).sqrt(),
        "MAX": lambda: x.amax(1, True),
    }[norm]()  # fmt: skip
    return x / size


@operator("LinearClassifier")
def _linear_classifier(node: Node, x: Tensor) -> Any:
    count = len(node.get("intercepts"))
    weight = torch.tensor(node.get("coefficients"), device=x.device).reshape(count, -1)
    scores = x.float() @ weight.T + torch.tensor(node.get("intercepts"), device=x.device)
    if count == 1:
        scores = torch.cat([-scores, scores], 1)
    after = node.get("post_transform", "NONE")
    if after not in ("NONE", "SOFTMAX", "LOGISTIC"):
        raise NotImplementedError(f"LinearClassifier with {after}")
    found = {"SOFTMAX": lambda: scores.softmax(1), "LOGISTIC": scores.sigmoid}.get(
        after, lambda: scores
    )()
    return scores.argmax(1), found


@operator("ArrayFeatureExtractor")
def _extract(node: Node, x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(-1, index.reshape(-1).to(x.device))
