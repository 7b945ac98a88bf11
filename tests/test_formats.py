"""The contract of a teacher over every form of SPEC, with small real networks.

spec -> card -> logits of the source within 1e-4; a gradient reaches the image where the form
promises one; nothing in the teacher changes.
"""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher, zoo
from synthkd.teachers.frozen import digest_of

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

GREY: dict[str, Any] = {"image_size": 16, "channels": 1, "mean": (0.4,), "std": (0.2,)}
COLOUR: dict[str, Any] = {
    "image_size": 32, "channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2),
}  # fmt: skip


def lively(body: nn.Module) -> nn.Module:
    """With BatchNorm statistics that differ from a fresh network's."""
    torch.manual_seed(3)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return body.eval()


def small() -> nn.Module:
    torch.manual_seed(1)
    return lively(build_network("resnet8-w4", channels=1, size=16, classes=5))


class Plain(nn.Module):
    """A network of a stranger's, without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.GroupNorm(2, 6)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        return self.linear(h.mean((2, 3)))


def plain() -> nn.Module:
    torch.manual_seed(2)
    return Plain().eval()


@dataclass
class Made:
    """A teacher's settings, and what it shall answer to normalised images."""

    table: dict[str, Any]
    source: Callable[[Tensor], Tensor]
    gradients: bool = True
    trust: bool = False
    norms: int = 0


def own_name(folder: Path) -> Made:
    body = small()
    save_file(body.state_dict(), folder / "w.safetensors")
    table = {"spec": "resnet8-w4", "weights": str(folder / "w.safetensors"), **GREY}
    return Made(table, body, norms=7)


def own_file(folder: Path) -> Made:
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(width, bias=True):\n"
        "    torch.manual_seed(4)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, width, bias=bias), nn.ReLU(),\n"
        "                         nn.Linear(width, 5)).eval()\n"
    )
    torch.manual_seed(4)
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 8, bias=False), nn.ReLU(), nn.Linear(8, 5)
    ).eval()
    args = {"width": "8", "bias": "false"}
    return Made({"spec": f"{folder / 'net.py'}:make", "args": args, **GREY}, body, trust=True)


VIEWING = (
    "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
    "    def __init__(self):\n        super().__init__()\n"
    "        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)\n"
    "        self.linear = nn.Linear(6 * 12 * 12, 5)\n\n"
    "    def forward(self, x):\n        x = self.b(torch.relu(self.a(x)))\n"
    "        return self.linear(x.view(-1, 6 * 12 * 12))\n"
)


def own_view(folder: Path) -> Made:
    """A network that flattens by `view`, which maps laid out channels last do not suffer."""
    (folder / "net.py").write_text(VIEWING)
    names: dict[str, Any] = {}
    exec(VIEWING, names)
    torch.manual_seed(11)
    body = names["Net"]().eval()
    save_file(body.state_dict(), folder / "w.safetensors")
    table = {"spec": f"{folder / 'net.py'}:Net", "weights": str(folder / "w.safetensors"), **GREY}
    return Made(table, body, trust=True)


def of_torchvision(folder: Path) -> Made:
    from torchvision import models

    torch.manual_seed(5)
    body = lively(models.get_model("mobilenet_v3_small", weights=None, num_classes=5))
    torch.save(body.state_dict(), folder / "w.pth")
    table = {"spec": "torchvision:mobilenet_v3_small", "weights": str(folder / "w.pth"),
             "image_size": 32}  # fmt: skip
    return Made(table, body, norms=34)


def of_timm(folder: Path) -> Made:
    import timm

    torch.manual_seed(6)
    body = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, in_chans=3).eval()
    save_file({k: v.contiguous() for k, v in body.state_dict().items()}, folder / "w.safetensors")
    table = {"spec": "timm:vit_tiny_patch16_224", "weights": str(folder / "w.safetensors"),
             "image_size": 32}  # fmt: skip
    return Made(table, body)


def of_hugging_face(folder: Path) -> Made:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_channels=3, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(7)
    body = transformers.ViTForImageClassification(config).eval()
    body.save_pretrained(str(folder / "vit"), safe_serialization=True)
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps({
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
        "size": {"height": 32, "width": 32},
    }))  # fmt: skip
    return Made({"spec": f"hf:{folder / 'vit'}"}, lambda x: body(pixel_values=x).logits)


def of_timm_folder(folder: Path) -> Made:
    import timm

    torch.manual_seed(8)
    body = timm.create_model("resnet10t", num_classes=5).eval()
    place = folder / "timm"
    place.mkdir()
    save_file({k: v.contiguous() for k, v in body.state_dict().items()},
              place / "model.safetensors")  # fmt: skip
    (place / "config.json").write_text(json.dumps({
        "architecture": "resnet10t", "num_classes": 5, "label_names": list("abcde"),
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5],
                           "std": [0.25, 0.25, 0.25]},
    }))  # fmt: skip
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    return Made({"spec": f"hf:{place}"}, body, norms=norms)


def saved_onnx(body: nn.Module, path: Path, **more: Any) -> None:
    torch.onnx.export(
        body, (torch.zeros(2, 1, 16, 16),), str(path), dynamo=False, opset_version=16,
        input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, **more,
    )  # fmt: skip


def of_onnx(folder: Path) -> Made:
    body = plain()
    saved_onnx(body, folder / "net.onnx")
    table = {"spec": f"onnx:{folder / 'net.onnx'}", "mean": (0.4,), "std": (0.2,)}
    return Made(table, body)


def of_onnx_norms(folder: Path) -> Made:
    """With BatchNorm that does not stand behind a convolution, so that no exporter folds it."""
    torch.manual_seed(10)
    body = lively(build_network("wrn-16-1", channels=1, size=16, classes=5))
    for module in body.modules():  # equal ones would become one tensor, and no layers of their own
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    saved_onnx(body, folder / "net.onnx")
    graph = onnx.load(str(folder / "net.onnx")).graph
    norms = sum(node.op_type == "BatchNormalization" for node in graph.node)
    assert norms > 3
    table = {"spec": f"onnx:{folder / 'net.onnx'}", "mean": (0.4,), "std": (0.2,)}
    return Made(table, body, norms=norms)


def of_onnx_dropout(folder: Path) -> Made:
    """With a Dropout, which rests when a network is used."""
    body = plain()
    saved_onnx(body, folder / "net.onnx")
    model = onnx.load(str(folder / "net.onnx"))
    (last,) = (node for node in model.graph.node if "y" in node.output)
    last.output[0] = "kept"
    model.graph.node.append(onnx.helper.make_node("Dropout", ["kept"], ["y"]))
    onnx.save(model, str(folder / "net.onnx"))
    table = {"spec": f"onnx:{folder / 'net.onnx'}", "mean": (0.4,), "std": (0.2,)}
    return Made(table, body)


def of_onnx_answers(folder: Path) -> Made:
    body = plain()
    saved_onnx(body, folder / "net.onnx")
    table = {"spec": f"onnx:{folder / 'net.onnx'}", "mean": (0.4,), "std": (0.2,)}
    return Made(table | {"access": "logits"}, body, gradients=False)


def of_onnx_fixed(folder: Path) -> Made:
    body = plain()
    torch.onnx.export(
        body, (torch.zeros(3, 1, 16, 16),), str(folder / "net.onnx"), dynamo=False,
        opset_version=16,
    )  # fmt: skip
    table = {"spec": f"onnx:{folder / 'net.onnx'}", "mean": (0.4,), "std": (0.2,)}
    return Made(table | {"access": "logits"}, body, gradients=False)


def of_export(folder: Path) -> Made:
    body = plain()
    batch = torch.export.Dim("b", min=1)
    program = torch.export.export(body, (torch.zeros(2, 1, 16, 16),),
                                  dynamic_shapes=({0: batch},))  # fmt: skip
    torch.export.save(program, str(folder / "net.pt2"))
    return Made({"spec": str(folder / "net.pt2"), **GREY}, body, trust=True)


def of_script(folder: Path) -> Made:
    body = plain()
    torch.jit.trace(body, torch.zeros(2, 1, 16, 16)).save(str(folder / "net.pt"))
    return Made({"spec": str(folder / "net.pt"), **GREY}, body, trust=True)


def of_function(folder: Path) -> Made:
    (folder / "remote.py").write_text(
        "import numpy as np\n"
        "weights = np.random.default_rng(0).normal(size=(256, 5)).astype('float32')\n"
        "def open():\n"
        "    return lambda images: images.reshape(len(images), -1) @ weights\n"
    )
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(256, 5)).astype("float32"))
    return Made({"spec": f"{folder / 'remote.py'}:open", **GREY}, lambda x: x.flatten(1) @ weights,
                gradients=False, trust=True)  # fmt: skip


FORMS = [
    own_name, own_file, own_view, of_torchvision, of_timm, of_hugging_face, of_timm_folder, of_onnx,
    of_onnx_norms, of_onnx_dropout, of_onnx_answers, of_onnx_fixed, of_export, of_script,
    of_function,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_the_contract(tmp_path: Path, form: Callable[[Path], Made]) -> None:
    made = form(tmp_path)
    teacher = load_teacher(TeacherTable(**made.table), trust_code=made.trust)
    before = digest_of(teacher.classifier)
    spec = teacher.spec
    images = torch.rand(6, *spec.shape, generator=torch.Generator().manual_seed(9))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    with torch.no_grad():
        wanted = torch.cat([made.source((part - mean) / std) for part in images.split(3)])
    assert teacher.classes == 5
    torch.testing.assert_close(teacher(images), wanted, atol=1e-4, rtol=1e-4)
    assert len(teacher.norms) == made.norms
    moved = images.clone().requires_grad_()
    answer = teacher.observe(moved).logits
    if made.gradients:
        answer.sum().backward()
        assert moved.grad is not None and float(moved.grad.abs().sum()) > 0
    else:
        assert teacher.access == "logits" and not answer.requires_grad
    teacher.train()
    teacher(images)
    assert digest_of(teacher.classifier) == before
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    torch.testing.assert_close(teacher(images), wanted, atol=1e-4, rtol=1e-4)
    assert teacher.queries == 24


def test_sources_tell_what_they_know(tmp_path: Path) -> None:
    made = of_timm_folder(tmp_path)
    teacher = load_teacher(TeacherTable(**made.table))
    assert (teacher.spec.shape, teacher.spec.mean) == ((3, 32, 32), (0.5, 0.5, 0.5))
    assert teacher.names == ("a", "b", "c", "d", "e")
    flags = TeacherTable(**made.table, mean=(0.1,))
    assert load_teacher(flags).spec.mean == (0.1, 0.1, 0.1)  # flags go over it


# Files that should do harm


def fires(folder: Path, code: str) -> bool:
    """Whether the naive call runs a payload that writes `fired`."""
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, timeout=100)
    return (folder / "fired").exists()


class Payload:
    def __reduce__(self) -> Any:
        return open, ("fired", "w")


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Payload()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not plain weights"):
        load_teacher(TeacherTable(spec="resnet8-w4", weights="w.pt", **GREY))
    assert not (tmp_path / "fired").exists()
    assert fires(tmp_path, "import pickle; pickle.load(open('w.pt', 'rb'))")


def script_with_payload(path: Path) -> None:
    """TorchScript that writes a file when it is loaded."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.ones(1)

        def forward(self, x: Tensor) -> Tensor:
            return x

        @torch.jit.export
        def __getstate__(self) -> tuple[Tensor, bool]:
            return (self.x, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, bool]) -> None:
            self.x = state[0]
            self.training = state[1]
            torch.save(self.x, "fired")

    torch.jit.script(Net()).save(str(path))


@pytest.mark.slow
def test_torchscript_is_not_even_opened_without_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_with_payload(tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="can run code when it is read"):
        load_teacher(TeacherTable(spec="net.pt", **GREY))
    assert not (tmp_path / "fired").exists()
    assert fires(tmp_path, "import torch; torch.jit.load('net.pt')")


@pytest.mark.slow
def test_pt2_is_not_even_opened_without_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample inputs of an export fall back to a full unpickling: that is where it bites."""
    made = of_export(tmp_path)
    del made
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    inputs = [name for name in parts if "sample_inputs" in name and name.endswith(".pt")]
    assert inputs
    with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, pickle.dumps(Payload()) if name in inputs else data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="can run code when it is read"):
        load_teacher(TeacherTable(spec="bad.pt2", **GREY))
    assert not (tmp_path / "fired").exists()
    assert fires(tmp_path, "import torch; torch.export.load('bad.pt2')")


def test_code_in_a_file_is_not_run_without_trust(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("open('fired', 'w')\ndef make(): return None\n")
    with pytest.raises(InputError, match="would run the code"):
        load_teacher(TeacherTable(spec=f"{tmp_path / 'net.py'}:make", **GREY))
    assert not (tmp_path / "fired").exists()
    assert fires(tmp_path, "import net")


def leaning(folder: Path, location: str) -> str:
    """The SPEC of an ONNX file in `folder` of which a tensor is said to lie at `location`."""
    saved_onnx(plain(), folder / "net.onnx")
    model = onnx.load(str(folder / "net.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return f"onnx:{folder / 'net.onnx'}"


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "C:\\secret", "a/../../secret"])
def test_external_data_outside_its_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    spec = leaning(folder, location)
    for access in ("full", "logits"):
        with pytest.raises(InputError, match="lies outside its folder"):
            load_teacher(TeacherTable(spec=spec, mean=(0.4,), std=(0.2,), access=access))


def test_external_data_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    (folder / "data").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is not a file in its folder"):
        load_teacher(TeacherTable(spec=leaning(folder, "data"), mean=(0.4,), std=(0.2,)))


def test_onnx_with_its_data_beside_it_loads(tmp_path: Path) -> None:
    body = plain()
    saved_onnx(body, tmp_path / "one.onnx")
    model = onnx.load(str(tmp_path / "one.onnx"))
    onnx.save_model(model, str(tmp_path / "two.onnx"), save_as_external_data=True,
                    location="two.bin", size_threshold=0)  # fmt: skip
    assert (tmp_path / "two.bin").is_file()
    table = TeacherTable(spec=f"onnx:{tmp_path / 'two.onnx'}", mean=(0.4,), std=(0.2,))
    images = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        wanted = body((images - 0.4) / 0.2)
    torch.testing.assert_close(load_teacher(table)(images), wanted, atol=1e-4, rtol=1e-4)


def test_an_endless_loop_in_onnx_is_refused(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    body = helper.make_graph([], "body", [], [])
    loop = helper.make_node("Loop", ["n", ""], ["y"], body=body)
    graph = helper.make_graph(
        [loop], "g", [helper.make_tensor_value_info("x", kind, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("y", kind, ["n", 5])],
    )  # fmt: skip
    (tmp_path / "loop.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(InputError, match="operator Loop is refused"):
        load_teacher(TeacherTable(spec=f"onnx:{tmp_path / 'loop.onnx'}", mean=(0.4,), std=(0.2,)))


def test_an_operator_that_cannot_be_turned_is_named_and_the_way_out_told(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Det", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", kind, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("y", kind, ["n", 1])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)])
    (tmp_path / "det.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"operator Det .* --teacher-access logits"):
        load_teacher(TeacherTable(spec=f"onnx:{tmp_path / 'det.onnx'}", mean=(0.4,), std=(0.2,)))


# What is said when something is missing


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"spec": "torchvision:resnet99"}, "there is no such classifier in torchvision"),
        ({"spec": "torchvision:resnet18"}, "has random weights: give --teacher-weights FILE"),
        ({"spec": "timm:nothing_like_it"}, "there is no such network in timm"),
        ({"spec": "timm:resnet10t"}, "has random weights"),
        ({"spec": "timm:resnet10t.nonsense"}, "there are no weights of this tag"),
        ({"spec": "hf:nowhere"}, r"config\.json is missing"),
        ({"spec": "onnx:nowhere.onnx"}, "there is no such file"),
        ({"spec": "nowhere.pt2", **GREY}, "there is no such file"),
        ({"spec": "resnet8-w4", "weights": "hub", **GREY}, "no weights on a hub"),
    ],
)
def test_what_is_missing_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        load_teacher(TeacherTable(**table))
    assert "\n" not in str(caught.value)


def test_labels_alone_teach_smoothed_votes(tmp_path: Path) -> None:
    body = small()
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    table = {"spec": "resnet8-w4", "weights": str(tmp_path / "w.safetensors"), **GREY}
    whole = load_teacher(TeacherTable(**table))
    shy = load_teacher(TeacherTable(**table, access="labels"))
    images = torch.rand(9, 1, 16, 16)
    assert torch.equal(shy(images).argmax(1), whole(images).argmax(1))
    shares = shy(images).softmax(1)
    torch.testing.assert_close(shares.amax(1), torch.full((9,), 0.92))
    assert (len(shy.norms), shy.head, len(whole.norms)) == (0, None, 7)


def test_a_function_that_names_classes_is_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "remote.py").write_text(
        "def open():\n    return lambda images: (images.mean((1, 2, 3)) > 0).astype('int64')\n"
    )
    table = {"spec": f"{tmp_path / 'remote.py'}:open", **GREY}
    with pytest.raises(InputError, match="if that is a class, give --classes K"):
        load_teacher(TeacherTable(**table), trust_code=True)
    teacher = load_teacher(TeacherTable(**table, classes=2), trust_code=True)
    bright, dark = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    assert teacher(torch.cat([bright, dark])).argmax(1).tolist() == [1, 0]
    assert teacher.access == "labels"


def test_a_function_that_fails_later_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "remote.py").write_text(
        "def late():\n    return lambda x: None if len(x) == 3 else x.mean((2, 3))[:, [0, 0]]\n"
        "def other():\n    ends = lambda x: (x.max((1, 2, 3)), x.min((1, 2, 3)))\n"
        "    return lambda x: (lambda a, b: (a > 9) * 2 - (b < -9) + 0 * a)(*ends(x))\n"
    )
    late = load_teacher(TeacherTable(spec=f"{tmp_path / 'remote.py'}:late", **GREY),
                        trust_code=True)  # fmt: skip
    with pytest.raises(InputError, match="late'"):
        late(torch.rand(3, 1, 16, 16))
    table = TeacherTable(spec=f"{tmp_path / 'remote.py'}:other", classes=2, **GREY)
    other = load_teacher(table, trust_code=True)
    with pytest.raises(InputError, match="named class 2, and has 2 classes"):
        other(torch.full((1, 1, 16, 16), 9.0))
    with pytest.raises(InputError, match="named class -1, and has 2 classes"):
        other(torch.tensor([0.4, -9.0]).view(2, 1, 1, 1).expand(2, 1, 16, 16))
    with pytest.raises(InputError, match="named class nan"):
        other(torch.full((1, 1, 16, 16), torch.nan))


def test_features_are_found_by_name(tmp_path: Path) -> None:
    made = own_name(tmp_path)
    teacher = load_teacher(TeacherTable(**made.table, features="layer2"))
    images = torch.rand(3, 1, 16, 16)
    seen: list[Tensor] = []
    body = teacher.classifier.body
    handle = body.layer2.register_forward_hook(lambda _, __, out: seen.append(out))
    found = teacher.observe(images).features
    handle.remove()
    assert found is not None and teacher.feature_size == 8 and teacher.prototypes is None
    torch.testing.assert_close(found, seen[0].mean((2, 3)))
    with pytest.raises(InputError, match=r"no such module; "):
        load_teacher(TeacherTable(**made.table, features="layer9"))


def test_tokens_are_averaged_to_features(tmp_path: Path) -> None:
    made = of_timm(tmp_path)
    teacher = load_teacher(TeacherTable(**made.table, features="blocks.3"))
    moved = torch.rand(2, 3, 32, 32, requires_grad=True)
    found = teacher.observe(moved).features
    assert found is not None and found.shape == (2, 192) and teacher.feature_size == 192
    found.sum().backward()
    assert moved.grad is not None and float(moved.grad.abs().sum()) > 0


@pytest.mark.slow
def test_a_compiled_copy_beside_the_code_is_neither_run_nor_written(tmp_path: Path) -> None:
    """What was read, and whose hash was shown, is what runs."""
    import importlib.util
    import py_compile

    made = own_file(tmp_path)
    good = (tmp_path / "net.py").read_text()
    (tmp_path / "net.py").write_text(good + "open('fired', 'w')\n")
    py_compile.compile(
        str(tmp_path / "net.py"), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    (tmp_path / "net.py").write_text(good)
    cache = Path(importlib.util.cache_from_source(str(tmp_path / "net.py")))
    assert cache.is_file()
    load_teacher(TeacherTable(**made.table), trust_code=True)
    assert not (tmp_path / "fired").exists() and not Path("fired").exists()
    assert fires(tmp_path, "import net")
    cache.unlink()
    load_teacher(TeacherTable(**made.table), trust_code=True)
    assert not cache.exists()


def test_code_may_use_dataclasses_with_late_annotations(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch import nn\n\n\n@dataclass\nclass Shape:\n    width: int = 5\n\n\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, Shape().width))\n"
    )
    spec = f"{tmp_path / 'net.py'}:make"
    assert load_teacher(TeacherTable(spec=spec, **GREY), trust_code=True).classes == 5


def test_a_folder_of_timm_cannot_reach_outside(tmp_path: Path) -> None:
    made = of_timm_folder(tmp_path)
    path = tmp_path / "timm" / "config.json"
    good = json.loads(path.read_text())
    for change in (
        {"architecture": "hf_hub:somebody/network"},
        {"model_args": {"checkpoint_path": "/somewhere/else.pth"}},
        {"model_args": 5},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(InputError, match="is not a plain network of timm"):
            load_teacher(TeacherTable(**made.table))
    nameless = {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "/else.pth"}}
    path.write_text(json.dumps(nameless))
    with pytest.raises(InputError, match="is not a plain network of timm"):
        load_teacher(TeacherTable(**made.table))


def prepared(folder: Path, **settings: Any) -> Made:
    """A folder of Hugging Face whose images are prepared otherwise."""
    made = of_hugging_face(folder)
    path = folder / "vit" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return made


def test_blue_may_come_first(tmp_path: Path) -> None:
    made = prepared(tmp_path, do_flip_channel_order=True)
    teacher = load_teacher(TeacherTable(**made.table))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        wanted = made.source((images.flip(1) - 0.5) / 0.25)
    torch.testing.assert_close(teacher(images), wanted, atol=1e-4, rtol=1e-4)


def test_a_second_division_is_in_the_deviation(tmp_path: Path) -> None:
    teacher = load_teacher(TeacherTable(**prepared(tmp_path, include_top=True).table))
    assert (teacher.spec.mean, teacher.spec.std) == ((0.5,) * 3, (0.0625,) * 3)


@pytest.mark.parametrize(
    "settings", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"rescale_offset": True}]
)
def test_pixels_of_another_range_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = prepared(tmp_path, **settings)
    with pytest.raises(InputError, match=r"does not scale pixels to 0"):
        load_teacher(TeacherTable(**made.table))


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    made = of_hugging_face(tmp_path)
    path = tmp_path / "vit" / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if "classifier" not in k}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 2 tensors, 'classifier\.bias' among them"):
        load_teacher(TeacherTable(**made.table))


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    made = of_hugging_face(tmp_path)
    path = tmp_path / "vit" / "model.safetensors"
    images = torch.rand(4, 3, 32, 32)
    exact = load_teacher(TeacherTable(**made.table))(images)
    save_file({k: v.half() for k, v in load_file(path).items()}, path, {"format": "pt"})
    teacher = load_teacher(TeacherTable(**made.table))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    torch.testing.assert_close(teacher(images), exact, atol=1e-2, rtol=0)


def test_published_weights_of_googlenet_get_the_range_they_want(tmp_path: Path) -> None:
    """torchvision itself turns their input into another range, with its own weights alone."""
    from torchvision import models

    torch.manual_seed(12)
    make = {"weights": None, "init_weights": False}
    body = models.googlenet(transform_input=True, **make).eval()
    torch.save(body.state_dict(), tmp_path / "w.pth")
    table = {"spec": "torchvision:googlenet", "weights": str(tmp_path / "w.pth"), "image_size": 32}
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in zoo.IMAGENET)
    with torch.no_grad():
        wanted = body((images - mean) / std)
    torch.testing.assert_close(load_teacher(TeacherTable(**table))(images), wanted,
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    plain = load_teacher(TeacherTable(**table, mean=zoo.IMAGENET[0], std=zoo.IMAGENET[1]))
    assert not plain.classifier.body.transform_input


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": 0.5}, {"image_mean": ["a", "b", "c"]}, {"size": "large"},
        {"size": [32, 32, 32]}, {"size": {"height": "x"}},
    ],
)  # fmt: skip
def test_settings_of_another_form_are_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    made = of_hugging_face(tmp_path)
    path = tmp_path / "vit" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="make no sense"):
        load_teacher(TeacherTable(**made.table))


def test_height_and_width_are_both_read(tmp_path: Path) -> None:
    made = of_hugging_face(tmp_path)
    path = tmp_path / "vit" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": [32, 24]}))
    with pytest.raises(InputError, match="does not take images of 3 x 32 x 24"):
        load_teacher(TeacherTable(**made.table))


def test_a_network_of_impossible_images_is_refused(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(12 * 64, 5)).eval()
    torch.onnx.export(body, (torch.zeros(2, 12, 8, 8),), str(tmp_path / "net.onnx"), dynamo=False)
    table = TeacherTable(spec=f"onnx:{tmp_path / 'net.onnx'}", mean=(0.4,), std=(0.2,))
    with pytest.raises(InputError, match="1 to 4 channels"):
        load_teacher(table)


def test_tensors_that_promise_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    whole = small().state_dict()
    last = list(whole)[-1]
    for bad in (
        torch.zeros(1).expand(10**9),
        torch.empty(5, device="meta"),
        torch.eye(5).to_sparse(),
        torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8),
    ):
        torch.save(whole | {last: bad}, tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"is not a plain tensor|not plain weights"):
            load_teacher(TeacherTable(spec="resnet8-w4", weights=str(tmp_path / "w.pt"), **GREY))


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    end = b"PK\5\6" + b"\0" * 8 + (100).to_bytes(4, "little") + b"\0" * 6
    (tmp_path / "net.pt").write_bytes(end)
    with pytest.raises(InputError, match="holds weights"):
        load_teacher(TeacherTable(spec=str(tmp_path / "net.pt"), **GREY))


def test_a_graph_that_moves_its_own_statistics_is_refused(tmp_path: Path) -> None:
    body = small().train()
    program = torch.export.export(body, (torch.zeros(4, 1, 16, 16),),
                                  dynamic_shapes=({0: torch.export.Dim("b", min=2)},))  # fmt: skip
    torch.export.save(program, str(tmp_path / "net.pt2"))
    with pytest.raises(InputError, match="export it in eval mode"):
        load_teacher(TeacherTable(spec=str(tmp_path / "net.pt2"), **GREY), trust_code=True)


@pytest.mark.parametrize(("end", "access"), [(".detach()", "logits"), (".argmax(1)", "labels")])
def test_a_network_through_which_no_gradient_passes_is_a_black_box(
    tmp_path: Path, end: str, access: str
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.w = nn.Linear(256, 5)\n\n"
        f"    def forward(self, x):\n        return self.w(x.flatten(1)){end}\n"
    )
    table = TeacherTable(spec=f"{tmp_path / 'net.py'}:Net", classes=5, **GREY)
    assert load_teacher(table, trust_code=True).access == access


def test_other_code_behind_the_same_answer_is_another_teacher(tmp_path: Path) -> None:
    made = of_function(tmp_path)
    first = load_teacher(TeacherTable(**made.table), trust_code=True).digest
    again = load_teacher(TeacherTable(**made.table), trust_code=True).digest
    path = tmp_path / "remote.py"
    path.write_text(path.read_text().replace("default_rng(0)", "default_rng(1)"))
    other = load_teacher(TeacherTable(**made.table), trust_code=True).digest
    assert first == again != other


def test_arguments_for_what_takes_none_are_refused(tmp_path: Path) -> None:
    made = of_torchvision(tmp_path)
    with pytest.raises(InputError, match="are for a callable"):
        load_teacher(TeacherTable(**made.table, args={"width": "8"}))
