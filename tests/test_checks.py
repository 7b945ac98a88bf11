"""What is wrong with a teacher is said by every command, and nothing is said of a sound one."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from test_shared_data import LOG_SOFTMAX, OTHERS

from synthkd.checks.teacher import check_teacher
from synthkd.cli import main
from synthkd.core.findings import Finding
from synthkd.networks import build_network
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher
from synthkd.specs.code import executed
from synthkd.teachers.frozen import FrozenTeacher, digest_of

# The demo's trained network with something wrong around or inside it.
FAULTS = """
from pathlib import Path
import torch, torch.nn.functional as F
from torch import nn
from safetensors.torch import load_file
from synthkd.core import resources
from synthkd.networks import build_network

MEAN, STD = 0.3054, 0.3184

def trained():
    body = build_network("resnet14", channels=1, size=16, classes=10)
    body.load_state_dict(load_file(str(resources.shipped("assets") / "demo_teacher.safetensors")))
    return body.eval()

def untrained(): return build_network("resnet14", channels=1, size=16, classes=10)

class Around(nn.Module):
    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = trained(), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))

def sound(): return Around()

# not deterministic
def dropout(): return Around(before=lambda x: F.dropout(x, 0.1))  # training=True is the default
def noise(): return Around(before=lambda x: x + 0.3 * torch.randn_like(x))
def resized():
    def smaller(x):
        side = int(torch.randint(8, 17, ()))
        return F.interpolate(F.interpolate(x, (side, side)), (16, 16))
    return Around(before=smaller)
def shifted():
    return Around(before=lambda x: x.roll(tuple(torch.randint(-3, 4, (2,)).tolist()), (2, 3)))
class Awake(nn.Dropout):
    def train(self, mode=True): return super().train(True)
def awake():
    net = Around(); net.after = lambda z: net.drop(z); net.drop = Awake(0.3); return net
def numpy_api():
    import numpy as np
    net, rng = trained(), np.random.default_rng()
    def ask(x):
        with torch.no_grad():
            z = net(torch.from_numpy(x)).numpy()
        return z + rng.normal(0, 2, z.shape).astype("float32")
    return ask

# the answer depends on the batch
class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = trained()
        for norm in self.net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.forward = lambda x, n=norm: F.batch_norm(
                    x, None, None, n.weight, n.bias, training=True)
    def forward(self, x): return self.net(x)
def batch_statistics(): return BatchStatistics()
def whitened(): return Around(before=lambda x: (x - x.mean(0)) / (x.std(0, correction=0) + 0.1))
def softmax_over_batch(): return Around(after=lambda z: 5 * z.softmax(0))
def reseeded():
    def drop(x):
        torch.manual_seed(0)
        return F.dropout(x, 0.3)
    return Around(before=drop)

# one image alone
def squeezed(): return Around(after=lambda z: z.squeeze())

# random weights
def random_head():
    net = trained()
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return net
class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))
def plain(): return Plain()
def seeded():
    torch.manual_seed(3)
    return Plain()
def glorot():
    torch.manual_seed(3)
    net = Plain()
    for module in net:
        if hasattr(module, "weight"):
            nn.init.xavier_uniform_(module.weight); nn.init.zeros_(module.bias)
    return net
def buffers_missing():
    net = trained()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d): norm.reset_running_stats()
    return net

# what is answered
def zeros(): return Around(after=lambda z: z * 0 + torch.arange(10.0) / 7 - 0.5)
def constant_bias(): return Around(after=lambda z: 1e-6 * z)
def nan_at_contrast():
    def steep(x):
        return 1.3 - x.diff(dim=3).abs().mean((1, 2, 3), keepdim=True)
    return Around(before=lambda x: x + 0 * steep(x).log())
def ties(): return Around(after=lambda z: torch.cat([z[:, :5], z[:, :5]], 1))

# computed roughly
def half():
    net = Around()
    inner = net.forward
    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return inner(x).float()
    net.forward = forward
    return net
def rounded(): return Around(after=lambda z: (z.softmax(1) * 100).round() / 100)
def rounded_logits(): return Around(after=lambda z: (2 * z).round() / 2)

# of trained weights that lie beside this file: no BatchNorm
class Small(nn.Sequential):
    def __init__(self, scale=1.0):
        super().__init__(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 32), nn.ReLU(),
            nn.Linear(32, 10))
        self.scale = scale
    def forward(self, x): return super().forward(x * self.scale)
def small(scale=1.0):
    net = Small(scale)
    net.load_state_dict(torch.load(Path(__file__).with_name("small.pt")))
    return net
def small_of_bytes(): return small(1 / 255)
def small_of_units(): return small(255.0)
def seeded_head():
    net = small()
    torch.manual_seed(5)
    net[5].reset_parameters()
    return net

# pixels
def wants_bytes(): return Around(before=lambda x: (x / 255 - 0) )
def wants_unit(): return Around(before=lambda x: x * 255)
"""
CONTRACT = [
    "--image-size", "16", "--channels", "1", "--teacher-mean", "0.3054", "--teacher-std", "0.3184",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faults.py"
    path.write_text(FAULTS)
    # a small network that has learned handwritten digits for some seconds
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = (F.interpolate(images, (16, 16), mode="bilinear").clamp(0, 1) - 0.3054) / 0.3184
    labels = torch.tensor(digits.target)
    rng = torch.Generator().manual_seed(0)
    net = executed(path).Small().train()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(120):
        some = torch.randint(len(images), (64,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(net(images[some]), labels[some]).backward()
        optimizer.step()
    torch.save(net.state_dict(), path.with_name("small.pt"))
    return path


def table(file: Path, name: str, **more: Any) -> TeacherTable:
    contract = {"image_size": 16, "channels": 1, "mean": (0.3054,), "std": (0.3184,)}
    return TeacherTable(spec=f"{file}:{name}", **(contract | more))


def found(file: Path, name: str, **more: Any) -> dict[str, bool]:
    """The findings of a teacher: code, and whether it is serious."""
    told = table(file, name, **more)
    findings = check_teacher(load_teacher(told, trust_code=True), told, trust_code=True)
    assert all(one.seen and one.remedy for one in findings)
    return {one.code: one.serious for one in findings}


WRONG = {
    "dropout": "not-deterministic", "noise": "not-deterministic", "resized": "not-deterministic",
    "shifted": "not-deterministic", "awake": "not-deterministic", "numpy_api": "not-deterministic",
    "batch_statistics": "depends-on-batch", "whitened": "depends-on-batch",
    "softmax_over_batch": "depends-on-batch", "reseeded": "depends-on-batch",
    "squeezed": "fails",
    "untrained": "random-weights", "random_head": "random-weights", "plain": "random-weights",
    "seeded": "random-weights", "glorot": "random-weights",
    "buffers_missing": "batchnorm-statistics",
    "zeros": "constant", "constant_bias": "constant", "nan_at_contrast": "not-finite",
    "ties": "ties",
    "wants_bytes": "normalisation", "wants_unit": "normalisation",
    "small_of_bytes": "input-scale", "small_of_units": "input-scale",
    "seeded_head": "random-head",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_fault_is_found_and_is_serious(file: Path, name: str) -> None:
    assert found(file, name).get(WRONG[name]) is True


@pytest.mark.parametrize("name", ["sound", "small"])
def test_a_sound_teacher_is_found_sound(file: Path, name: str) -> None:
    assert found(file, name) == {}


# Every command asks


RUN = shlex.split(
    "--pipeline noise --student resnet8-w4 --images-seen 64 --training.batch 16 --run.threads 1 "
    "--memory.capacity 64"
)
COMMANDS = {
    "distill": ["distill", *RUN, "--val-data", "none", "--out", "out"],
    "distill --dry-run": ["distill", *RUN, "--val-data", "none", "--dry-run"],
    "generate": ["generate", *shlex.split("--pipeline shaders --count 10 --out out")],
    "evaluate": ["evaluate", "--student", "demo", "--val-data", "demo:unseen"],
    "evaluate --images": ["evaluate", "--images", "demo:unseen", "--extractor", "teacher"],
    "bench": [
        "bench", *shlex.split(
            "--pipelines noise --minutes 0.05 --student resnet8-w4 --val-data demo:unseen --out out"
        ),
    ],
}  # fmt: skip
# one teacher of every code; the others are covered above
KINDS = {code: name for name, code in WRONG.items()}


def called(
    argv: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:  # fmt: skip
    """Exit code, stdout and stderr of a command line in this process."""
    monkeypatch.chdir(folder)
    try:
        main(argv)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", KINDS)
def test_every_command_refuses_every_serious_fault_in_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], code: str, command: str,
) -> None:  # fmt: skip
    teacher = ["--teacher", f"{file}:{KINDS[code]}", "--trust-code", *CONTRACT]
    monkeypatch.setattr("synthkd.engine.build.check_teacher", once(check_teacher))
    rc, _, err = called([*COMMANDS[command], *teacher], tmp_path, monkeypatch, capsys)
    assert rc == 2 and err.count("\n") == 1 and err.startswith("error: --teacher "), err
    assert KINDS[code] in err and "give --anyway" in err
    told = ASKED[f"{file}:{KINDS[code]}"]
    assert code in {one.code for one in told}
    for one in told:  # what was seen, and how to mend it
        assert not one.serious or (one.seen in err and one.remedy in err)
    assert not (tmp_path / "out" / "manifest.json").exists()


ASKED: dict[str, list[Finding]] = {}


def once(check: Callable[..., list[Finding]]) -> Callable[..., list[Finding]]:
    """The check itself; the same teacher is not asked again by the next command."""

    def asked(teacher: FrozenTeacher, table: TeacherTable, **more: Any) -> list[Finding]:
        if table.spec not in ASKED:
            ASKED[table.spec] = check(teacher, table, **more)
        return ASKED[table.spec]

    return asked


def test_inspect_shows_the_faults_and_goes_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["inspect", f"{file}:dropout", "--trust-code", *CONTRACT]
    rc, out, _ = called([*argv, "--json"], tmp_path, monkeypatch, capsys)
    card = json.loads(out)
    assert rc == 0 and [one["code"] for one in card["findings"]] == ["not-deterministic"]
    assert card["findings"][0]["serious"] is True
    assert card["warnings"] == [f"{one['seen']}: {one['remedy']}" for one in card["findings"]]


@pytest.mark.slow
def test_anyway_goes_on_and_records_what_was_found(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher", f"{file}:dropout", "--trust-code", "--anyway", *CONTRACT]
    rc, out, _ = called([*COMMANDS["distill"], *teacher], tmp_path, monkeypatch, capsys)
    assert rc in (0, 3) and "serious: the same" in out
    for name in ("manifest.json", "summary.json"):
        told = json.loads((tmp_path / "out" / name).read_text())["teacher_findings"]
        assert [one["code"] for one in told] == ["not-deterministic"]
    argv = [*COMMANDS["generate"][:-2], "--out", "set", *teacher]
    assert called(argv, tmp_path, monkeypatch, capsys)[0] in (0, 3)
    told = json.loads((tmp_path / "set" / "manifest.json").read_text())["teacher_findings"]
    assert [one["code"] for one in told] == ["not-deterministic"]
    argv = [*COMMANDS["evaluate"], "--json", *teacher]
    rc, out, _ = called(argv, tmp_path, monkeypatch, capsys)
    assert json.loads(out)["teacher_findings"] == told


@pytest.mark.slow
def test_a_run_is_resumed_only_if_the_teacher_is_sound_or_anyway(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from synthkd.runs.directory import Run

    code = tmp_path / "teacher.py"
    code.write_text(file.read_text())
    teacher = ["--teacher", f"{code}:sound", "--trust-code", *CONTRACT]
    monkeypatch.setattr(Run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    called([*COMMANDS["distill"], *teacher], tmp_path, monkeypatch, capsys)
    monkeypatch.undo()
    # the same weights, with dropout since
    code.write_text(
        file.read_text().replace(
            "def sound(): return Around()",
            "def sound(): return Around(before=lambda x: F.dropout(x, 0.1))",
        )
    )
    argv = ["distill", "--resume", "out", "--trust-code", "--dry-run"]
    rc, _, err = called(argv, tmp_path, monkeypatch, capsys)
    assert rc == 2 and "asked twice" in err
    assert called([*argv, "--anyway"], tmp_path, monkeypatch, capsys)[0] == 0


def test_a_student_that_is_scored_is_asked_too_and_not_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = shlex.split("evaluate --val-data demo:unseen --json --trust-code")
    argv += ["--student", f"{file}:untrained", *CONTRACT]
    rc, out, _ = called(argv, tmp_path, monkeypatch, capsys)
    assert rc in (0, 3)
    told = json.loads(out)["comparison"]["student_findings"]
    assert [one["code"] for one in told] == ["random-weights"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["resnet8-w4", "lenet5"])
def test_a_graph_of_an_untrained_network_is_found(tmp_path: Path, name: str) -> None:
    size = 32 if name == "lenet5" else 16
    body = build_network(name, channels=1, size=size, classes=10).eval()
    torch.jit.trace(body, torch.rand(2, 1, size, size)).save(tmp_path / "net.ts")
    told = TeacherTable(
        spec=str(tmp_path / "net.ts"), image_size=size, channels=1, mean=(0.3,), std=(0.3,)
    )
    findings = check_teacher(load_teacher(told, trust_code=True), told, trust_code=True)
    assert [one.code for one in findings if one.serious] == ["random-weights"]


def test_every_code_has_its_line_in_the_documents() -> None:
    root = Path(__file__).resolve().parents[1]
    text = (root / "synthkd" / "checks" / "teacher.py").read_text()
    codes = set(re.findall(r'Finding\(\s*"([a-z-]+)"', text))
    told = re.findall(r"^\| `([a-z-]+)` \|", (root / "docs" / "checks.md").read_text(), re.M)
    assert set(told) == codes and len(told) == len(codes) >= len(KINDS)


# What it must not do


def test_a_check_changes_nothing_and_counts_no_queries(file: Path) -> None:
    asked: list[int] = []
    teacher = load_teacher(table(file, "numpy_api"), trust_code=True)
    function = teacher.classifier.body.function
    teacher.classifier.body.function = lambda x: asked.append(len(x)) or function(x)
    before, digest = torch.get_rng_state(), teacher.digest
    check_teacher(teacher, table(file, "numpy_api"), trust_code=True)
    assert 0 < sum(asked) <= 64 and teacher.queries == 0
    assert torch.equal(torch.get_rng_state(), before) and digest_of(teacher.classifier) == digest


def test_the_noise_of_arithmetic_is_no_doubt(file: Path) -> None:
    """A network that computes in bfloat16 answers a little otherwise in other batches."""
    assert found(file, "half") == {}


def test_rounded_answers_are_no_serious_doubt(file: Path) -> None:
    assert not any(found(file, "rounded").values())
    assert not any(found(file, "rounded_logits").values())


# Networks that other people trained: no false alarm, and the true one where they are fed wrongly


SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA, NETS = SHARED / "data", SHARED / "larger" / "nets"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CENTRED = {"mean": (0.5,), "std": (0.5,)}
MNIST = {"image_size": 32, "channels": 1, "mean": (0.1307,), "std": (0.3081,)}


def theirs(name: str, size: int, channels: int, weights: str, **more: Any) -> TeacherTable:
    """One whose code and weights lie together."""
    given = {"weights": str(NETS / weights), "image_size": size, "channels": channels}
    return TeacherTable(spec=f"{NETS / name}", **(given | more))


def third_parties(folder: Path) -> dict[str, TeacherTable]:
    """Every network of ../shared, as its README says that it is fed."""
    (folder / "others.py").write_text(OTHERS)
    (folder / "lenet.py").write_text(LOG_SOFTMAX)
    colour = {"image_size": 32, "channels": 3}
    lenet = str(DATA / "mnist_lenet5_khushbujpatel.pt")
    graph = f"onnx:{DATA / 'mnist_cnn_matthieu-sgi.onnx'}"
    mobile = "kerasnet.py:make_mobilenet_025_imagenet"
    return {
        **{
            name: TeacherTable(spec=name, weights=str(DATA / file), **colour, **IMAGENET)
            for name, file in
            (("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th"))
        },
        "lenet5": TeacherTable(spec="lenet5", weights=lenet, **MNIST),
        "log-softmax": TeacherTable(spec=f"{folder / 'lenet.py'}:LeNet", weights=lenet, **MNIST),
        "transformer": TeacherTable(
            spec=f"{folder / 'others.py'}:Transformer",
            weights=str(DATA / "cifar10_vit_amebett1.pth"), **colour, **CENTRED,
        ),
        "lungs": TeacherTable(
            spec=f"{folder / 'others.py'}:Lungs", image_size=128, channels=3,
            weights=str(DATA / "pneumonia_cnn_speedgotfried.pth"), **IMAGENET,
        ),
        "graph": TeacherTable(spec=graph, mean=(0.5,), std=(1.0,)),
        "graph from afar": TeacherTable(spec=graph, mean=(0.5,), std=(1.0,), access="logits"),
        "micronet": theirs(
            "cifar100_micronet.py:make", 32, 3, "cifar100_micronet.pt",
            mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
        ),
        "faces": theirs(
            "kerasnet.py:make_fer2013_mini_XCEPTION_64", 64, 1, "fer2013_mini_XCEPTION_64.pt",
            **CENTRED,
        ),
        "vww96": theirs("vww96.py:make", 96, 3, "vww96.pt", mean=(0.0,), std=(1.0,)),
        "resnet8": theirs(
            "resnet8_cifar10.py:make", 32, 3, "resnet8_cifar10.pt", mean=(0.0,), std=(0.00392157,)
        ),
        "plants": theirs(
            "plant_modified_v3.py:make", 224, 3, "plant_modified_v3.pth", **IMAGENET
        ),
        "mobilenet": theirs(mobile, 224, 3, "mobilenet_v1_0.25_224.pt", **CENTRED),
    }  # fmt: skip


beside = pytest.mark.skipif(
    not (NETS.is_dir() and DATA.is_dir()), reason="no ../shared beside this checkout"
)
SLOW = ("resnet56", "transformer", "lungs", "micronet", "faces", "vww96", "plants", "mobilenet")
FAST = ("resnet20", "lenet5", "log-softmax", "graph", "graph from afar", "resnet8")


@beside
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_nothing_is_said_of_what_other_people_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(NETS)  # some import each other
    told = third_parties(tmp_path)[name]
    assert check_teacher(load_teacher(told, trust_code=True), told, trust_code=True) == []


@beside
@pytest.mark.parametrize(
    ("name", "wrong", "code", "serious"),
    [
        ("resnet8", {"mean": (0.0,), "std": (1.0,)}, "normalisation", True),
        ("resnet20", {"mean": (0.0,), "std": (1 / 255,)}, "normalisation", True),
        ("resnet20", {"mean": (0.0,), "std": (1.0,)}, "normalisation", False),
        ("lenet5", {"mean": (0.1307,), "std": (0.3081 / 255,)}, "input-scale", True),
        ("lenet5", {"mean": (0.1307,), "std": (0.3081 * 255,)}, "input-scale", True),
        ("transformer", {"mean": (0.5,), "std": (0.5 * 255,)}, "input-scale", True),
    ],
)
def test_the_true_doubt_about_what_other_people_trained(
    name: str, wrong: dict[str, Any], code: str, serious: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(NETS)
    told = third_parties(tmp_path)[name].model_copy(update=wrong)
    findings = check_teacher(load_teacher(told, trust_code=True), told, trust_code=True)
    assert {one.code: one.serious for one in findings}.get(code) is serious


@pytest.mark.slow
def test_operations_that_cannot_be_counted_are_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "teacher.py"
    file.write_text(
        "import torch\n"
        "class Brightness(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        mean = images.mean((1, 2, 3))\n"
        "        return torch.stack([mean, 1 - mean, 2 * mean], 1)\n"
    )
    main(["inspect", f"{file}:Brightness", "--trust-code", *CONTRACT, "--run.threads", "1"])
    assert "unknown operations an image" in " ".join(capsys.readouterr().out.split())
    main(["inspect", f"{file}:Brightness", "--trust-code", *CONTRACT, "--json"])
    assert json.loads(capsys.readouterr().out)["operations_per_image"] is None
