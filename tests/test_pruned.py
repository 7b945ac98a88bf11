"""Students that are cut out of their teachers, and come back from their files."""

import copy
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from short_runs import main
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import synthkd
from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.networks.pruned import keep_outputs, narrow_to, pruned, pruning_ratio
from synthkd.networks.reconstruction import reconstruct
from synthkd.networks.selection import Reader, cost_left, layers_of
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import card_of, load_classifier, load_teacher, new_student
from synthkd.students.learner import save_student

ZOO = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5", "googlenet",
       "regnet_y_400mf")  # fmt: skip


def zoo(name: str) -> nn.Module:
    torch.manual_seed(0)
    more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    made: nn.Module = getattr(torchvision.models, name)(num_classes=7, **more)
    return made.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_a_zoo_are_cut_and_come_back_from_their_tensors(name: str) -> None:
    whole = zoo(name)
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    images = torch.rand(8, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    narrow = pruned(whole, (3, 96, 96), 0.5, images).body.eval()
    assert all(torch.equal(before[key], value) for key, value in whole.state_dict().items())
    few, many = (sum(p.numel() for p in net.parameters()) for net in (narrow, whole))
    work = [operations(net) for net in (narrow, whole)]
    assert 0.3 < (few / many + work[0] / work[1]) / 2 < 0.55
    again = zoo(name)
    narrow_to(again, narrow.state_dict())
    again.load_state_dict(narrow.state_dict())
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images), narrow(images))


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet20-stem4", "wrn-16-1", "mobilenet-0.5-stem2", "lenet5"]
)
def test_networks_of_ours_are_cut_and_come_back(name: str) -> None:
    whole = build_network(name, channels=3, size=32, classes=5).eval()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    narrow = pruned(whole, (3, 32, 32), 0.5, images).body.eval()
    again = build_network(name, channels=3, size=32, classes=5).eval()
    narrow_to(again, narrow.state_dict())
    again.load_state_dict(narrow.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images), narrow(images))


def operations(network: nn.Module) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 96, 96))
    return float(counter.get_total_flops())


def correlated(wanted: int = 2) -> tuple[nn.Sequential, Tensor]:
    """A network whose four channels are two signals, each seen twice, and images of them."""
    whole = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, wanted)).eval()
    with torch.no_grad():
        whole[0].weight.copy_(
            torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]).view(4, 2, 1, 1)
        )
    return whole, torch.randn(200, 2, 1, 1, generator=torch.Generator().manual_seed(0))


def test_of_channels_that_say_the_same_one_goes() -> None:
    torch.manual_seed(0)
    whole, images = correlated()
    narrow, kept = pruned(whole, (2, 1, 1), 0.5, images)
    left = kept["0"].tolist()
    assert len({0, 1} & set(left)) == len({2, 3} & set(left)) == 1  # by norm: 1 and 2
    assert narrow[2].weight.shape == (2, 2)
    reconstruct(narrow, whole, kept, images)
    with torch.no_grad():
        assert torch.allclose(narrow(images), whole(images), atol=5e-3)


def test_the_error_of_going_without_a_channel_is_that_of_least_squares() -> None:
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(500, 5, generator=rng) @ torch.randn(5, 5, generator=rng)).double()
    weight = torch.randn(5, 3, generator=rng).double()
    gram = x.t() @ x / len(x)
    reader = Reader(torch.linalg.inv(gram), weight @ weight.t(), 2.0)
    left, before = [0, 1, 2, 3, 4], 0.0
    for gone in (3, 0):
        left.remove(gone)
        other = torch.linalg.lstsq(x[:, left], x @ weight).solution
        missed = float((x[:, left] @ other - x @ weight).square().sum(1).mean() / 2)
        assert float(reader.errors()[gone]) == pytest.approx(missed - before, rel=1e-6)
        before = missed
        reader.remove(torch.tensor([gone]))


class Padded(nn.Module):
    """Pads outside of its convolution, adds two paths, convolves each channel alone, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.alone = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.second = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(F.pad(images, (0, 1, 0, 1)))))
        x = x + self.second(F.relu(self.alone(x)))
        return self.head(x.mean((2, 3)))


def test_what_lost_nothing_is_refitted_to_itself_and_what_lost_little_comes_nearer() -> None:
    torch.manual_seed(0)
    whole = Padded().eval()
    images = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    same = copy.deepcopy(whole)
    everything = {name: torch.arange(len(m.weight)) for name, m in layers_of(same).items()}
    assert reconstruct(same, whole, everything, images) == 4
    with torch.no_grad():
        for key, value in whole.state_dict().items():
            assert torch.allclose(same.state_dict()[key], value, atol=1e-4), key
        narrow, kept = pruned(whole, (3, 12, 12), 0.4, images)
        before = (narrow.eval()(images) - whole(images)).square().mean()
        norms = {k: v.clone() for k, v in narrow.state_dict().items() if "running" in k}
        reconstruct(narrow, whole, kept, images)
        after = (narrow(images) - whole(images)).square().mean()
        assert after < 0.2 * before
        assert all(torch.equal(narrow.state_dict()[k], v) for k, v in norms.items())


class Grouped(nn.Module):
    """A bottleneck beside a path, whose middle layer convolves channels in four groups."""

    def __init__(self, trunk: int = 32, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, trunk, 3, stride=2)
        self.narrow = nn.Conv2d(trunk, width, 1)
        self.middle = nn.Conv2d(width, width, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(width, trunk, 1)
        self.head = nn.Linear(trunk, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images))
        y = F.relu(self.middle(F.relu(self.narrow(x))))
        return self.head(F.relu(x + self.wide(y)).mean((2, 3)))


def test_beside_convolutions_in_groups_the_other_channels_go_and_are_stood_in_for() -> None:
    torch.manual_seed(0)
    whole, images = Grouped().eval(), torch.rand(64, 3, 12, 12)
    narrow, kept = pruned(whole, (3, 12, 12), 0.4, images)
    assert narrow.middle.weight.shape == whole.middle.weight.shape
    assert len(kept["first"]) == len(kept["wide"]) < 32 == len(whole.wide.weight)
    assert 0.5 < cost_left(narrow, whole, images[:1]) < 0.65
    with torch.no_grad():
        before = (narrow.eval()(images) - whole(images)).square().mean()
        assert reconstruct(narrow, whole, kept, images) == 4  # all but the one in groups
        assert (narrow(images) - whole(images)).square().mean() < 0.5 * before


def test_where_only_channels_in_groups_are_left_each_layer_loses_the_same_share() -> None:
    torch.manual_seed(0)
    whole = Grouped(8, 64).eval()
    narrow, kept = pruned(whole, (3, 12, 12), 0.7, torch.rand(4, 3, 12, 12))
    assert not kept
    assert narrow.middle.in_channels < 64 and narrow.middle.groups == 4


def test_dead_channels_go_first_and_nothing_changes() -> None:
    torch.manual_seed(0)
    whole = Padded().eval()
    with torch.no_grad():
        dead = [1, 5, 6, 12]
        whole.norm.weight[dead] = 0
        whole.norm.bias[dead] = -1  # never above 0
        whole.alone.bias[dead] = -1
        whole.alone.weight[dead] = 0
        whole.second.weight[dead] = 0
        whole.second.bias[dead] = 0  # nothing is added to them
    images = torch.rand(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    narrow, kept = pruned(whole, (3, 12, 12), 0.2, images)
    gone = set(range(16)) - set(kept["first"].tolist())
    assert gone
    assert gone <= set(dead)
    with torch.no_grad():
        assert torch.allclose(narrow.eval()(images), whole(images), atol=1e-5)


def test_outputs_are_cut_to_some_classes() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Flatten(), nn.Linear(4, 5)).eval()
    with torch.no_grad():
        whole[1].weight[2:].copy_(whole[1].weight[2].expand(3, 4))
        whole[1].bias[2:].fill_(0.3)
    images = torch.rand(3, 1, 2, 2)
    expected = whole(images)
    keep_outputs(whole, (1, 2, 2), (1, 0), others=True)
    found = whole(images)
    assert torch.allclose(found[:, :2], expected[:, [1, 0]])
    assert torch.allclose(found[:, 2], expected[:, 2:].logsumexp(1), atol=1e-5)


@pytest.mark.parametrize("spec", ["prune:", "prune:0", "prune:1", "prune:half", "prune:-0.5"])
def test_a_ratio_that_is_none_is_one_line(spec: str) -> None:
    with pytest.raises(InputError, match=r"prune:RATIO is the share"):
        pruning_ratio(spec)


def test_what_cannot_be_cut_is_one_line() -> None:
    teacher = load_teacher(TeacherTable(access="logits"))
    with pytest.raises(InputError, match="a black box"):
        new_student(StudentTable(spec="prune:0.5"), teacher)
    with pytest.raises(InputError, match="cannot be pruned"):
        pruned(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), 0.5, torch.rand(4, 1, 2, 2))
    with pytest.raises(InputError, match="no pruning leads to its shape"):
        narrow_to(nn.Linear(2, 2), {"weight": torch.zeros(3, 2)})


def test_a_pruned_student_begins_with_what_its_teacher_knows() -> None:
    teacher = load_teacher(TeacherTable())
    student = new_student(StudentTable(spec="prune:0.25"), teacher)
    assert student.inherited[0] == student.inherited[1] > 0
    assert sum(p.numel() for p in student.parameters()) < 0.7 * teacher.parameters_count


@pytest.mark.slow
def test_a_run_leaves_a_pruned_student_that_loads_evaluates_and_exports(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = "distill --student prune:0.5 --images-seen 600 --training.batch 32 --run.threads 1 "
    small = (
        "--stage.draw.fresh 64 --stage.refine.synthesis_batch 20 --stage.refine.synthesis_steps 2"
    )
    main([*shlex.split(words + small + " --quiet --out"), str(out)])
    student = synthkd.load_student(out)
    images = torch.rand(2, 1, 16, 16)
    again, _ = load_classifier(StudentTable(spec=str(out)), TeacherTable())
    with torch.no_grad():
        assert torch.equal(student(images), again.eval()(images))
    main(["export", str(out), "--out", str(tmp_path / "shipped"), "--format", "pt2"])
    assert (tmp_path / "shipped" / "student.pt2").is_file()


def of_hugging_face(folder: Path) -> str:
    """A folder of a small network, as transformers saves it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5,
    )  # fmt: skip
    torch.manual_seed(7)
    transformers.ResNetForImageClassification(config).eval().save_pretrained(str(folder / "net"))
    (folder / "net" / "preprocessor_config.json").write_text(json.dumps({
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
        "size": {"height": 32, "width": 32},
    }))  # fmt: skip
    return f"hf:{folder / 'net'}"


def of_onnx(folder: Path) -> str:
    """A graph of a small network, which brings its mean and deviation within."""
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    torch.manual_seed(8)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    torch.onnx.export(
        body, (torch.zeros(2, 3, 32, 32),), str(folder / "net.onnx"), dynamo=False,
        opset_version=16, input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    return f"onnx:{folder / 'net.onnx'}"


@pytest.mark.parametrize("form", [of_hugging_face, of_onnx])
def test_what_is_cut_out_of_a_network_without_code_comes_back_without_trust(
    form, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = form(tmp_path)
    given = {"mean": (0.5,), "std": (0.25,)} if form is of_onnx else {}
    teacher = load_teacher(TeacherTable(spec=spec, **given))
    student = new_student(StudentTable(spec="prune:0.5"), teacher)
    assert sum(p.numel() for p in student.parameters()) < 0.7 * teacher.parameters_count
    card = card_of(student, "prune:0.5", (), of=spec)
    save_student(student, card, tmp_path / "student.safetensors")

    again, _ = load_classifier(StudentTable(spec=str(tmp_path)), TeacherTable())
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = student.eval()(image)
        assert torch.equal(again.eval()(image), expected)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    capsys.readouterr()
    main(["predict", str(tmp_path), str(tmp_path / "image.png"), "--json"])
    told = json.loads(capsys.readouterr().out)
    (one,) = told if isinstance(told, list) else told["predictions"]
    assert one["classes"][0]["class"] == int(expected.argmax())


def test_a_folder_that_brings_code_is_refused_behind_a_student_too(tmp_path: Path) -> None:
    spec = of_hugging_face(tmp_path)
    student = new_student(StudentTable(spec="prune:0.5"), load_teacher(TeacherTable(spec=spec)))
    card = card_of(student, "prune:0.5", (), of=spec)
    save_student(student, card, tmp_path / "student.safetensors")
    path = tmp_path / "net" / "config.json"
    own = {"auto_map": {"AutoModelForImageClassification": "own.Net"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (tmp_path / "net" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for trusted in (False, True):
        with pytest.raises(InputError, match="code of its own, which is never run"):
            load_classifier(StudentTable(spec=str(tmp_path)), TeacherTable(), trust_code=trusted)
    assert not (tmp_path / "ran").exists()
