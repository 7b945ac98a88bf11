"""Slimmable students: each width is the plain network that it is exported as."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from short_runs import main, status

import synthkd
from synthkd.networks import build_network
from synthkd.networks.resnet import ResNet
from synthkd.networks.slimmable import Slimmable, widths

FLAGS = shlex.split(
    "distill --student slim:resnet8-w8 --images-seen 1024 --training.batch 32 --run.threads 1 "
    "--quiet --stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 32 "
    "--stage.refine.fresh 32 --stage.draw.fresh 256 --no-report"
)


@pytest.mark.parametrize("reduction", [1, 4])
def test_each_width_answers_as_the_plain_network_it_is_sliced_to(reduction: int) -> None:
    torch.manual_seed(0)
    body = Slimmable(ResNet(14, width=16, classes=7, reduction=reduction))
    images = torch.randn(8, 3, 32, 32)
    for _ in widths(body):  # statistics of its own for each width
        body(images)
    body.eval()
    seen = {}
    for share in widths(body):
        plain = body.sliced(share).eval()
        assert len(plain.conv1.weight) == 16 * share
        seen[share] = body(images)
        assert torch.equal(seen[share], plain(images))
    assert body.share == 1 and len(seen) == 4
    assert not torch.allclose(seen[0.25], seen[0.5])


def test_a_width_learns_through_its_own_channels_alone() -> None:
    body = Slimmable(ResNet(8, width=8))
    body.use(0.25)
    body(torch.randn(4, 3, 16, 16)).square().sum().backward()
    weights = body.full.layer1[0].conv1.weight
    assert weights.grad is not None
    assert bool(weights.grad[:2, :2].any()) and not bool(weights.grad[2:].any())
    assert body.full.bn1.weight.grad is None


def test_names_of_slimmable_networks() -> None:
    assert isinstance(build_network("slim:resnet20", channels=3, size=32, classes=10), Slimmable)
    for name in ("slim:lenet5", "slim:resnet8-w4", "slim:", "slim:slim:resnet8"):
        with pytest.raises(synthkd.InputError):
            build_network(name, channels=3, size=32, classes=10)


@pytest.mark.slow
def test_a_run_scores_every_width_and_exports_each(tmp_path: Path) -> None:
    main([*FLAGS, "--out", str(tmp_path / "run")])
    told = json.loads((tmp_path / "run" / "summary.json").read_text())["widths"]
    assert list(told) == ["0.25", "0.5", "0.75", "1"]
    sizes = [one["parameters"] for one in told.values()]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    whole = synthkd.load_student(tmp_path / "run")
    images = torch.rand(16, 1, 16, 16)
    for share in (0.25, 0.5):
        folder = tmp_path / f"at-{share}"
        main(["export", str(tmp_path / "run"), "--format", "safetensors", "--width", str(share),
              "--out", str(folder), "--quiet"])  # fmt: skip
        narrow = synthkd.load_student(folder)
        assert isinstance(narrow.body, ResNet)
        whole.body.use(share)
        with torch.no_grad():
            assert torch.allclose(narrow(images), whole(images), atol=1e-6)


@pytest.mark.slow
def test_a_width_that_is_none_is_one_line(tmp_path: Path, capsys) -> None:
    main([*FLAGS, "--out", str(tmp_path / "run")])
    assert status("export", str(tmp_path / "run"), "--width", "0.3") == 2
    assert "0.25" in capsys.readouterr().err
