"""Students that are cut out of their teachers, and come back from their files."""

import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from short_runs import main
from torch import nn

import synthkd
from synthkd.core.errors import InputError
from synthkd.networks import build_network
from synthkd.networks.pruned import keep_outputs, narrow_to, pruned, pruning_ratio
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import load_classifier, load_teacher, new_student

ZOO = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5", "googlenet")


def zoo(name: str) -> nn.Module:
    torch.manual_seed(0)
    more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    made: nn.Module = getattr(torchvision.models, name)(num_classes=7, **more)
    return made.eval()


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_a_zoo_are_cut_and_come_back_from_their_tensors(name: str) -> None:
    whole = zoo(name)
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    narrow = pruned(whole, (3, 96, 96), 0.5).eval()
    assert all(torch.equal(before[key], value) for key, value in whole.state_dict().items())
    few, many = (sum(p.numel() for p in net.parameters()) for net in (narrow, whole))
    assert 0.15 < few / many < 0.6
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
    narrow = pruned(whole, (3, 32, 32), 0.5).eval()
    again = build_network(name, channels=3, size=32, classes=5).eval()
    narrow_to(again, narrow.state_dict())
    again.load_state_dict(narrow.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images), narrow(images))


def test_what_is_kept_are_the_channels_with_the_largest_weights() -> None:
    whole = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        whole[0].weight.copy_(torch.tensor([0.1, 2.0, 0.2, 3.0]).view(4, 1, 1, 1))
        whole[2].weight.copy_(torch.ones(2, 4))
    narrow = pruned(whole, (1, 1, 1), 0.5)
    assert narrow[0].weight.flatten().tolist() == [2.0, 3.0]


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
        pruned(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), 0.5)
    with pytest.raises(InputError, match="no pruning leads to its shape"):
        narrow_to(nn.Linear(2, 2), {"weight": torch.zeros(3, 2)})


def test_a_pruned_student_begins_with_what_its_teacher_knows() -> None:
    teacher = load_teacher(TeacherTable())
    student = new_student(StudentTable(spec="prune:0.25"), teacher)
    assert student.inherited[0] == student.inherited[1] > 0
    assert sum(p.numel() for p in student.parameters()) < 0.7 * teacher.parameters_count


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
