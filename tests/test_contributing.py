"""What CONTRIBUTING says of additions is true: its rows name what is there, and are carried out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import synthkd
from synthkd.core.errors import InputError
from synthkd.networks import NETWORKS, build_network, is_known

ROOT = Path(__file__).parent.parent
ROWS = re.findall(
    r"^\| (an? [^|]+|one [^|]+) \| ([^|]+) \| ([^|]+) \| `([^|]+)` \|$",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


def test_the_table_has_its_ten_rows():
    assert len(ROWS) == 10


@pytest.mark.slow
def test_after_so_many_minutes_only_the_slow_tests_are_skipped():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q",
         "--minutes", "0", "tests/test_store.py"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    text = (ROOT / "tests/test_store.py").read_text(encoding="utf-8")
    slow = text.count("@pytest.mark.slow")
    assert slow and re.search(rf"\d+ passed, {slow} skipped in", done.stdout), done.stdout


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_a_registry_that_is_there_and_a_file_that_a_test_runs(row):
    _, _, line, shown = row
    assert (ROOT / shown).is_file()
    if shown.startswith("examples/"):
        assert f"{Path(shown).stem}" in {path.stem for path in (ROOT / "examples").glob("*.py")}
    if match := re.fullmatch(r"`([\w.]+)\.([A-Z]+)`", line.strip()):
        module = __import__(f"synthkd.{match[1]}", fromlist=[match[2]])
        assert isinstance(getattr(module, match[2]), dict)
        if shown.startswith("examples/"):  # the one line, and no other of this registry
            text = (ROOT / shown).read_text(encoding="utf-8")
            assert len(re.findall(rf"^{match[2]}\[", text, flags=re.MULTILINE)) == 1
    else:
        assert line.startswith("none: ")


class Tiny(nn.Module):
    """A network as somebody may add it."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(channels, 8, 3), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).relu().mean((2, 3)))


def test_a_network_is_one_line(monkeypatch, tmp_path):
    assert not is_known("tiny")
    with pytest.raises(InputError, match="no network is called 'tiny'"):
        build_network("tiny", channels=1, size=16, classes=10)
    monkeypatch.setitem(NETWORKS, "tiny", lambda channels, size, classes: Tiny(channels, classes))
    settings = {"training.batch": 32, "memory.capacity": 300, "stage.draw.fresh": 64,
                "stage.refine.synthesis_batch": 20, "stage.refine.synthesis_steps": 2}  # fmt: skip
    with pytest.warns(synthkd.UselessResult):
        made = synthkd.distill(
            "demo", "tiny", images=300, settings=settings, val_data="none", out=tmp_path / "run"
        )
    again = synthkd.load_student(made.run)  # by its name alone
    images = torch.rand(3, 1, 16, 16)
    assert torch.allclose(again(images), made.student(images), atol=1e-5)


def test_a_pipeline_of_ones_own_is_a_file_and_no_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
[budget]
images = 300

[training]
batch = 32

[[stage]]
name = "all"
generator = "procedural"
fresh = 64
student_steps = 5
"""
    )
    lab = synthkd.build(synthkd.Recipe.of({"pipeline": str(path)}))
    assert {round.stage for round in lab} == {"all"}
    assert lab.progress.images_seen == 300
