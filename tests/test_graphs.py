"""ONNX graphs as people have them, with gradients and without.

Oracles: the network that was exported; for single operators the examples that ONNX itself defines
them by.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core import resources
from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher, read_weights
from synthkd.specs.onnx_operators import OPERATORS, Node
from synthkd.teachers.frozen import FrozenTeacher

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
HELP, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
NUMBERS: dict[str, Any] = {"mean": (0.4,), "std": (0.2,)}


class Pooling(nn.Module):
    """A stranger's network of everything that converters stumble over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.group = nn.Conv2d(8, 12, 3, stride=2), nn.GroupNorm(3, 12)
        self.linear = nn.Linear(12, 5)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.a(x))
        x = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        x = F.mish(self.group(self.b(F.avg_pool2d(self.norm(x), 2, ceil_mode=True))))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = F.pad(x, (1, 0, 2, 1), mode="reflect")
        x = F.gelu(F.max_pool2d(x, 2, ceil_mode=True))
        return self.linear(F.layer_norm(x.mean((2, 3)), (12,)).clamp(-2, 2))


class Tokens(nn.Module):
    """Attention, with a token of its own, heads cut out by reshaping, and Gather at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.three, self.head = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1)
        q, k, v = self.three(h).reshape(h.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        h = h + ((q @ k.transpose(2, 3) / 2).softmax(3) @ v).transpose(1, 2).flatten(2)
        return self.head(h[:, 0])


class Around(nn.Module):
    """A network with something before and after it."""

    def __init__(self, body: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.function = body, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.body, x)


POOLING, TOKENS = Pooling().eval(), Tokens().eval()


def demo() -> nn.Module:
    body = build_network("resnet14", channels=1, size=16, classes=10)
    body.load_state_dict(read_weights(resources.shipped("assets") / "demo_teacher.safetensors"))
    return body.eval()


def export(
    path: Path, body: nn.Module, images: Tensor, *, old: bool = True, fixed: bool = False,
    opset: int = 17, outputs: tuple[str, ...] = ("y",),
) -> None:  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if old:
            free = {} if fixed else {"x": {0: "n"}} | {name: {0: "n"} for name in outputs}
            torch.onnx.export(
                body.eval(), (images,), str(path), dynamo=False, opset_version=opset,
                input_names=["x"], output_names=list(outputs), dynamic_axes=free,
            )  # fmt: skip
        else:
            torch.onnx.export(
                body.eval(), (images,), str(path), dynamo=True, opset_version=opset, verbose=False,
                dynamic_shapes=None if fixed else ({0: torch.export.Dim("n", min=1)},),
            )  # fmt: skip


def load(path: Path, **table: Any) -> FrozenTeacher:
    return load_teacher(TeacherTable(spec=f"onnx:{path}", **table))


def check(
    path: Path, source: Callable[[Tensor], Tensor], *, off: float = 1e-3, numbers: Any = NUMBERS,
    **table: Any,
) -> FrozenTeacher:  # fmt: skip
    """Both ways answer as the source does; gradients reach the image where they should."""
    whole = load(path, **numbers, **table)
    shut = load(path, access="logits", **numbers, **table)
    images = torch.rand(5, *whole.spec.shape)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (whole.spec.mean, whole.spec.std))
    with torch.no_grad():
        wanted = source((images - mean) / std)
    for teacher in (whole, shut):
        torch.testing.assert_close(
            teacher(images).log_softmax(1), wanted.log_softmax(1), atol=off, rtol=off
        )
    moved = images.requires_grad_()
    whole.observe(moved).logits.square().sum().backward()
    assert moved.grad is not None and float(moved.grad.abs().sum()) > 0
    return whole


def said(teacher: FrozenTeacher) -> str:
    return " ".join(map(str, teacher.notes))


# What exporters write


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "fixed"), [(18, False), (20, False), (20, True)])
def test_torchs_own_export_of_the_demo_comes_through(
    tmp_path: Path, opset: int, fixed: bool
) -> None:
    body = demo()
    path = tmp_path / "net.onnx"
    export(path, body, torch.rand(1 if fixed else 2, 1, 16, 16), old=False, opset=opset,
           fixed=fixed)  # fmt: skip
    teacher = check(path, body)
    assert (teacher.classes, teacher.feature_size, teacher.notes) == (10, 64, ())
    teacher.low_precision = True
    teacher(torch.rand(2, 1, 16, 16))
    assert teacher.folded_reason.startswith("a folded bfloat16 copy")


@pytest.mark.parametrize("opset", [9, 11, 13, 16])
def test_older_exports_come_through(tmp_path: Path, opset: int) -> None:
    body = demo()
    export(tmp_path / "net.onnx", body, torch.rand(2, 1, 16, 16), opset=opset)
    check(tmp_path / "net.onnx", body)


@pytest.mark.parametrize("body", [POOLING, TOKENS], ids=["pooling", "tokens"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_operators_of_strangers_come_through(
    tmp_path: Path, body: nn.Module, old: bool, fixed: bool
) -> None:
    export(tmp_path / "net.onnx", body, torch.rand(2, 3, 40, 40), old=old, fixed=fixed,
           opset=18)  # fmt: skip
    teacher = check(tmp_path / "net.onnx", body)
    assert len(teacher.norms) == (1 if body is POOLING else 0)


@pytest.mark.slow
def test_our_own_export_and_its_int8_come_back(tmp_path: Path) -> None:
    from synthkd.core.images import ImageSpec
    from synthkd.export import formats as writers
    from synthkd.networks.classifier import Classifier

    student = writers.Shipped(
        Classifier(demo(), ImageSpec(1, 16, 16, (0.3054,), (0.3184,)), 10).eval()
    )
    images = torch.rand(64, 1, 16, 16)
    told = {"range": "float32 0..1", "classes": '["a","b","c","d","e","f","g","h","i","j"]'}
    writers.to_onnx(student, tmp_path / "net.onnx", told)
    assert check(tmp_path / "net.onnx", student, numbers={}).names == tuple("abcdefghij")
    writers.to_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", images, told)
    teacher = load(tmp_path / "int8.onnx")
    with torch.no_grad():
        alike = teacher(images).argmax(1) == student(images).argmax(1)
    assert float(alike.float().mean()) > 0.9
    moved = images[:4].clone().requires_grad_()
    teacher.observe(moved).logits.sum().backward()
    assert moved.grad is not None and float(moved.grad.abs().sum()) > 0


# Precisions, layouts, pixels


@pytest.mark.parametrize("form", ["float16", "float16 inside", "double"])
def test_other_precisions_are_fed_and_told(tmp_path: Path, form: str) -> None:
    path = tmp_path / "net.onnx"
    if form == "double":
        export(path, Pooling().double(), torch.rand(2, 3, 32, 32).double())
        teacher = load(path, **NUMBERS)
        assert "numbers are double; run in float32" in said(teacher)
        images = torch.rand(3, 3, 32, 32)
        torch.testing.assert_close(teacher(images), POOLING((images - 0.4) / 0.2),
                                   atol=1e-3, rtol=1e-3)  # fmt: skip
        return
    from onnxruntime.transformers.float16 import convert_float_to_float16

    export(path, POOLING, torch.rand(2, 3, 32, 32))
    model = convert_float_to_float16(onnx.load(str(path)), keep_io_types=form != "float16")
    onnx.save(model, str(path))
    teacher = check(path, POOLING, off=5e-2)
    assert ("numbers are float16; run in float32" in said(teacher)) == (form == "float16")


LAYOUTS: dict[str, tuple[Callable[[Any, Tensor], Any], tuple[int, ...], str]] = {
    "NHWC": (lambda net, x: net(x.permute(0, 3, 1, 2)), (2, 32, 32, 3), "channels last"),
    "grey without channels": (lambda net, x: net(x[:, None].expand(-1, 3, -1, -1)), (2, 32, 32),
                              "no channels"),
    "rows": (lambda net, x: net(x.reshape(-1, 1, 32, 32).expand(-1, 3, -1, -1)), (2, 1024),
             "images of 1 x 32 x 32 become rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", LAYOUTS)
def test_other_layouts_are_recognised_and_told(tmp_path: Path, what: str) -> None:
    function, shape, told = LAYOUTS[what]
    export(tmp_path / "net.onnx", Around(POOLING, function), torch.rand(shape))
    teacher = check(
        tmp_path / "net.onnx", lambda x: POOLING(x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1))
    )
    assert told in said(teacher)


def test_rows_of_no_square_want_the_size(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(8 * 32, 4))
    export(tmp_path / "net.onnx", Around(body, lambda net, x: net(x)), torch.rand(2, 256))
    with pytest.raises(InputError, match="images of 1 x 8 x 16 have 128"):
        load(tmp_path / "net.onnx", image_size=(8, 16), channels=1, **NUMBERS)
    teacher = check(tmp_path / "net.onnx", body, image_size=(8, 32))
    assert teacher.spec.shape == (1, 8, 32)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_graphs_that_take_pixels_get_pixels(tmp_path: Path, layout: str, kind: torch.dtype) -> None:
    last = layout == "NHWC"

    def before(net: Any, x: Tensor) -> Any:
        return net(((x.permute(0, 3, 1, 2) if last else x).float() - 120) / 60)

    shape = (2, 32, 32, 3) if last else (2, 3, 32, 32)
    export(tmp_path / "net.onnx", Around(POOLING, before), torch.randint(0, 256, shape).to(kind))
    teacher = check(tmp_path / "net.onnx", lambda x: POOLING((x.round() - 120) / 60), numbers={})
    assert f"fed pixels 0..255 as {str(kind)[6:]}" in said(teacher)
    again = load(tmp_path / "net.onnx", mean=(0.0,), std=(0.0039,))
    assert again.classes == 5
    with pytest.raises(InputError, match="omit --teacher-mean"):
        load(tmp_path / "net.onnx", mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("kind", ["half", "double", "pixels"])
def test_torchscript_of_other_types_is_fed_them(tmp_path: Path, kind: str) -> None:
    class Bytes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.uint8
            return x.float().mean((2, 3)) / 255

    if kind == "pixels":
        torch.jit.script(Bytes()).save(str(tmp_path / "net.pt"))
    else:
        body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
        body = body.half() if kind == "half" else body.double()
        one = torch.zeros(2, 3, 8, 8).to(body[1].weight.dtype)
        torch.jit.trace(body, one).save(str(tmp_path / "net.pt"))
    table: Any = {"image_size": 8, "channels": 3} | ({} if kind == "pixels" else NUMBERS)
    teacher = load_teacher(TeacherTable(spec=str(tmp_path / "net.pt"), **table), trust_code=True)
    assert teacher.classes == 3 and teacher.notes
    assert ("uint8" if kind == "pixels" else "float") in said(teacher)


# Several outputs


def two(tmp_path: Path, names: tuple[str, ...], function: Callable[[Any, Tensor], Any]) -> Path:
    export(tmp_path / "net.onnx", Around(POOLING, function), torch.rand(2, 3, 32, 32),
           outputs=names)  # fmt: skip
    return tmp_path / "net.onnx"


def features(net: Any, x: Tensor) -> Tensor:
    return x.mean((2, 3)).repeat(1, 8)


CHOSEN: dict[str, tuple[tuple[str, ...], Callable[[Any, Tensor], Any], str]] = {
    "embedding first": (("embedding", "y"), lambda n, x: (features(n, x), n(x)), "y"),
    "features and scores": (("f_out", "scores"), lambda n, x: (features(n, x), n(x)), "scores"),
    "label and probabilities": (
        ("label", "probabilities"), lambda n, x: (n(x).argmax(1), n(x).softmax(1)), "probabilities",
    ),
    "probabilities and logits": (
        ("probabilities", "logits"), lambda n, x: (n(x).softmax(1), n(x)), "logits",
    ),
    "maps and logits": (("out_map", "z"), lambda n, x: (x.abs(), n(x)), "z"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHOSEN)
def test_of_several_outputs_the_scores_are_taken_and_named(tmp_path: Path, what: str) -> None:
    names, function, chosen = CHOSEN[what]
    teacher = check(two(tmp_path, names, function), POOLING)
    assert teacher.classes == 5
    assert f"'{chosen}' is taken for the scores" in said(teacher)


def test_outputs_of_equal_rank_are_not_guessed_between(tmp_path: Path) -> None:
    path = two(tmp_path, ("a", "b"), lambda n, x: (features(n, x), n(x)))
    with pytest.raises(InputError, match=r"'a' \?x24, 'b' \?x5.*--teacher\.output NAME"):
        load(path, **NUMBERS)
    check(path, POOLING, output="b")
    check(path, POOLING, classes=5)
    with pytest.raises(InputError, match=r"output 'c': no such output; there are 'a'"):
        load(path, output="c", **NUMBERS)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_classifier_of_scikit_learn_comes_through(tmp_path: Path, zipped: bool) -> None:
    """The form that its exporters write: rows in, label and probabilities out."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    data = load_digits()
    fitted = LogisticRegression(C=0.001, max_iter=200).fit(data.data / 16, data.target)
    ml = "ai.onnx.ml"
    nodes = [
        HELP.make_node("Scaler", ["x"], ["s"], domain=ml, offset=[0.0] * 64, scale=[1.0] * 64),
        HELP.make_node(
            "LinearClassifier", ["s"], ["output_label", "p"], domain=ml, multi_class=1,
            coefficients=fitted.coef_.ravel().tolist(), intercepts=fitted.intercept_.tolist(),
            classlabels_ints=list(range(10)), post_transform="SOFTMAX",
        ),
        HELP.make_node("Normalizer", ["p"], ["probabilities"], domain=ml, norm="L1"),
        HELP.make_node("ZipMap", ["probabilities"], ["output_probability"], domain=ml,
                       classlabels_strings=[f"digit {k}" for k in range(10)]),
    ]  # fmt: skip
    table = HELP.make_map_type_proto(onnx.TensorProto.STRING, HELP.make_tensor_type_proto(1, None))
    last = (
        HELP.make_value_info("output_probability", HELP.make_sequence_type_proto(table))
        if zipped else HELP.make_tensor_value_info("probabilities", FLOAT, [None, 10])
    )  # fmt: skip
    graph = HELP.make_graph(
        nodes if zipped else nodes[:3], "g",
        [HELP.make_tensor_value_info("x", FLOAT, [None, 64])],
        [HELP.make_tensor_value_info("output_label", onnx.TensorProto.INT64, [None]), last],
    )  # fmt: skip
    opsets = [HELP.make_opsetid("", 17), HELP.make_opsetid(ml, 3)]
    onnx.save(HELP.make_model(graph, opset_imports=opsets, ir_version=8),
              str(tmp_path / "net.onnx"))  # fmt: skip

    def right(x: Tensor) -> Tensor:
        return torch.from_numpy(fitted.predict_log_proba(x.flatten(1).numpy())).float()

    plain: Any = {"mean": (0.0,), "std": (1.0,)}
    teacher = check(tmp_path / "net.onnx", right, numbers=plain)
    assert teacher.spec.shape == (1, 8, 8) and teacher.classifier.answers == "probabilities"
    assert teacher.names[:2] == (("digit 0", "digit 1") if zipped else ("0", "1"))


# What is refused


def small(node: Any, *initializers: Any, shape: Any = ("n", 3, 16, 16)) -> Any:
    graph = HELP.make_graph(
        [node] if not isinstance(node, list) else node, "g",
        [HELP.make_tensor_value_info("x", FLOAT, list(shape))],
        [HELP.make_tensor_value_info("y", FLOAT, None)], list(initializers),
    )  # fmt: skip
    return HELP.make_model(graph, opset_imports=[HELP.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("dims", [[-49, 10], [-1, -10], [1 << 40, 3]])
def test_tensors_of_impossible_sizes_are_refused(tmp_path: Path, dims: list[int]) -> None:
    weight = onnx.numpy_helper.from_array(np.zeros((49, 10), "float32"), "w")
    del weight.dims[:]
    weight.dims.extend(dims)
    model = small([HELP.make_node("Flatten", ["x"], ["f"]),
                   HELP.make_node("MatMul", ["f", "w"], ["y"])], weight)  # fmt: skip
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    for access in ("full", "logits"):
        with pytest.raises(InputError, match=r"tensor 'w' has impossible sizes"):
            load(tmp_path / "net.onnx", access=access, **NUMBERS)


def test_a_constant_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    shape = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "shape")
    model = small([HELP.make_node("ConstantOfShape", ["shape"], ["c"]),
                   HELP.make_node("Add", ["x", "c"], ["y"])], shape)  # fmt: skip
    onnx.save(model, str(tmp_path / "net.onnx"))
    with pytest.raises(InputError, match="is too large"):
        load(tmp_path / "net.onnx", **NUMBERS)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"hello there", "not a readable ONNX file"), (b"\x08\x08", "no graph")],
)
def test_other_files_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "net.onnx", **NUMBERS)
    if content:
        with pytest.raises(InputError, match=r"give a graph as onnx:"):
            load_teacher(TeacherTable(spec=str(tmp_path / "net.onnx")))


def test_an_invalid_graph_and_texts_are_one_line(tmp_path: Path) -> None:
    onnx.save(small(HELP.make_node("Relu", ["nowhere"], ["y"])), str(tmp_path / "net.onnx"))
    with pytest.raises(InputError, match="valid ONNX graph"):
        load(tmp_path / "net.onnx", **NUMBERS)
    model = small(HELP.make_node("Relu", ["x"], ["y"]))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="neither of real numbers nor of pixels"):
        load(tmp_path / "net.onnx", **NUMBERS)


# Operators, by the examples that define them

# refused by our functions, or without one right answer
LEFT_OUT = ("training", "_empty_set", "top_k_same", "blocked", "uint16", "out_of_range")


@pytest.mark.slow
def test_operators_do_what_onnx_defines() -> None:
    from onnx.backend.test.case.node import collect_testcases

    right: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        graph = case.model.graph
        node = graph.node[0]
        if len(graph.node) > 1 or node.op_type not in OPERATORS or node.domain:
            continue
        if any(word in case.name for word in LEFT_OUT):
            continue
        (given, wanted), *_ = case.data_sets
        kinds = {np.asarray(v).dtype.kind if not isinstance(v, list) else "O" for v in given}
        if kinds - set("biuf"):
            continue
        values = {v.name: tensor(x) for v, x in zip(graph.input, given, strict=True)}
        inputs = [values.get(name) for name in node.input]
        first = inputs[0].dim() if inputs and inputs[0] is not None else None
        opset = next(o.version for o in case.model.opset_import if o.domain == "")
        made = Node(node.op_type, attributes(node), opset, first, sum(map(bool, node.output)))
        try:
            found = OPERATORS[node.op_type](made, *inputs)
        except NotImplementedError:
            refused[node.op_type] += 1
            continue
        for one, other in zip(
            found if isinstance(found, tuple | list) else [found], wanted, strict=False
        ):
            torch.testing.assert_close(
                one.float(), tensor(other).float(), atol=2e-3, rtol=2e-3, equal_nan=True,
                msg=lambda text, name=case.name: f"{name}: {text}",
            )  # fmt: skip
        right[node.op_type] += 1
    assert sum(right.values()) > 600 and len(right) > 110
    assert sum(refused.values()) < 60


def tensor(value: Any) -> Tensor:
    array = np.asarray(value)
    kind = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(array.dtype.name)
    array = array.astype("float32" if array.dtype.kind == "f" else kind or array.dtype)
    return torch.from_numpy(array.copy())


def attributes(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = HELP.get_attribute_value(attribute)
        if attribute.type == attribute.TENSOR:
            value = tensor(onnx.numpy_helper.to_array(value))
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found
