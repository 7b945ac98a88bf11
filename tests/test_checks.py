"""What is wrong with a teacher is said by every command, and nothing is said of a sound one."""

from pathlib import Path
from typing import Any

import pytest

from synthkd.checks import check_teacher
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher

# The demo's trained network with something wrong around or inside it.
FAULTS = """
import torch, torch.nn.functional as F
from torch import nn
from safetensors.torch import load_file
from synthkd import resources
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
def zeros(): return Around(after=lambda z: z * 0 + torch.arange(10.0))
def constant_bias(): return Around(after=lambda z: 1e-6 * z)
def nan_at_contrast():
    def steep(x):
        return 1.3 - x.diff(dim=3).abs().mean((1, 2, 3), keepdim=True)
    return Around(before=lambda x: x + 0 * steep(x).log())
def ties(): return Around(after=lambda z: torch.cat([z[:, :5], z[:, :5]], 1))

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
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_fault_is_found_and_is_serious(file: Path, name: str) -> None:
    assert found(file, name).get(WRONG[name]) is True


def test_a_sound_teacher_is_found_sound(file: Path) -> None:
    assert found(file, "sound") == {}
