"""The refit of a pruned student: one pass, bounded memory, and what is said where there is no
time."""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.engine.build import build
from synthkd.engine.estimate import estimate
from synthkd.engine.loop import rounds
from synthkd.engine.teaching import refit
from synthkd.networks import reconstruction, refitting
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import pruned
from synthkd.networks.reconstruction import reconstruct
from synthkd.networks.refitting import LARGEST, looked_at, timed
from synthkd.networks.selection import PLACES
from synthkd.recipe import Recipe


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding="same", groups=16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 4),
    ).eval()  # fmt: skip


def by_hand(
    narrow: nn.Sequential, whole: nn.Sequential, kept: dict[str, Tensor], x: Tensor
) -> None:
    """The same by ridge regression written out, at all places, a layer after the other."""
    wanted, read = x, x
    for name, (layer, before) in enumerate(zip(narrow, whole, strict=True)):
        wanted = before(wanted)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            read = layer(read)
            continue
        y = wanted[:, kept[str(name)]]
        maps = isinstance(layer, nn.Conv2d)
        if maps:
            padded = F.pad(read, (1, 1, 1, 1)) if layer.padding == "same" else read
            taps = F.unfold(padded, layer.kernel_size, stride=layer.stride)  # [N, C taps, places]
            rows = taps.transpose(1, 2).flatten(0, 1).double()
            y = y.flatten(2).transpose(1, 2).flatten(0, 1)
        else:
            rows = read.double()
        y = y.double()
        own = layer.weight.flatten(1).double()
        groups = [(slice(None), rows)]
        if maps and layer.groups > 1:
            groups = [
                (slice(k, k + 1), rows.view(len(rows), -1, 9)[:, k]) for k in range(layer.groups)
            ]
        for outs, given in groups:
            shift = (
                given.mean(0) if layer.bias is not None else torch.zeros(given.shape[1]).double()
            )
            target = y[:, outs].mean(0) if layer.bias is not None else torch.zeros(1).double()
            a, b = given - shift, y[:, outs] - target
            ridge = 1e-3 * a.square().sum() / a.shape[1] + 1e-12
            eye = torch.eye(a.shape[1], dtype=torch.float64)
            change = torch.linalg.solve(a.t() @ a + ridge * eye, a.t() @ (b - a @ own[outs].t()))
            after = own[outs].t() + change
            layer.weight[outs] = after.t().reshape(layer.weight[outs].shape).float()
            if layer.bias is not None:
                layer.bias[outs] = (target - shift @ after).float()
        read = layer(read)


@torch.no_grad()
def test_every_layer_is_refitted_by_ridge_regression_in_one_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = network()
    images = torch.rand(70, 3, 12, 12)
    narrow, kept = pruned(whole, (3, 12, 12), 0.5, images)
    narrow.eval()
    assert isinstance(narrow, nn.Sequential)
    expected = copy.deepcopy(narrow)
    by_hand(expected, whole, dict(kept), images)
    monkeypatch.setattr(reconstruction, "PLACES", 10**6)
    picked: list[tuple[int, int]] = []

    def every(count: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        picked.append(shape)
        return torch.arange(count).expand(shape)  # all places, once

    monkeypatch.setattr(torch, "randint", every)
    passes: list[int] = []
    narrow[0].register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    assert reconstruct(narrow, whole, kept, images) == 4
    assert passes == [70] and len(picked) == 4
    for name, value in expected.state_dict().items():
        assert torch.allclose(narrow.state_dict()[name], value, atol=1e-4), name


@torch.no_grad()
def test_what_the_whole_network_makes_is_held_for_some_layers_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, images = network(), torch.rand(20, 3, 12, 12)
    narrow, kept = pruned(whole, (3, 12, 12), 0.5, images)
    other = copy.deepcopy(narrow)
    reconstruct(narrow, whole, kept, images)
    monkeypatch.setattr(reconstruction, "HELD", 1)
    passes: list[int] = []
    whole[0].register_forward_hook(lambda *_: passes.append(1))
    reconstruct(other, whole, kept, images)
    assert len(passes) == 5  # one to choose the places, and one a layer
    for name, value in narrow.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@torch.no_grad()
def test_layers_that_are_reached_too_late_stay_as_they_were() -> None:
    whole, images = network(), torch.rand(20, 3, 12, 12)
    narrow, kept = pruned(whole, (3, 12, 12), 0.5, images)
    before = copy.deepcopy(narrow.state_dict())
    assert reconstruct(narrow, whole, kept, images, until=time.perf_counter()) == 0
    assert all(torch.equal(before[name], value) for name, value in narrow.state_dict().items())


def test_what_a_refit_takes_is_counted_by_hand() -> None:
    narrow = network()
    kept = {str(k): torch.arange(16 if k < 5 else 24) for k in (0, 3, 5)}
    found = looked_at(narrow, kept, torch.zeros(1, 3, 12, 12))
    assert [tuple(fit) for fit in found.layers] == [
        (100, 27, 16, False), (100, 9, 16, True), (16, 144, 24, False)
    ]  # fmt: skip
    assert found.largest == 16 * 100
    assert found.count() == 256 and found.count(0.0) == 256  # no seconds are known
    slow = refitting.Refit(found.layers, found.largest, image=1.0)
    assert [slow.count(seconds) for seconds in (63.0, 64.0, 200.0)] == [0, 64, 192]
    large = refitting.Refit(found.layers, LARGEST // 100)
    assert large.count() == 96
    rows = [PLACES // 64 * 64, PLACES // 64 * 64, 16 * 64]
    rows[:2] = [min(100, PLACES // 64) * 64] * 2
    products = refitting.Refit(found.layers, found.largest, product=1.0)
    solving = sum(
        (i * m * i + 2 / 3 * i**3) * (o if alone else 1) + 2.0 * m * i * o
        for m, (_, i, o, alone) in zip(rows, found.layers, strict=True)
    )
    assert products.seconds(64) == pytest.approx(refitting.SLOWER * solving)


def lab_of(**settings: object):
    body = network()
    body[8] = nn.Linear(24 * 225, 4)
    teacher = Classifier(body, ImageSpec(3, 34, 34, (0.5,) * 3, (0.5,) * 3), 4)
    given = {
        "student.spec": "prune:0.5", "training.batch": 16, "stage.draw.fresh": 64,
        "stage.refine.synthesis_batch": 16, "stage.refine.synthesis_steps": 2, "run.threads": 1,
        "run.anyway": True, "teacher.image_size": 34, "teacher.channels": 3, "teacher.mean": "0.5",
        "teacher.std": "0.5", **settings,
    }  # fmt: skip
    return build(Recipe.of(given), teacher=teacher)


def test_a_refit_for_which_there_is_no_time_is_said_and_survives_a_checkpoint() -> None:
    lab = lab_of(**{"budget.minutes": 1.0})
    lab.limit(0.5)
    lab.deadline = time.perf_counter() + 1e-3
    assert lab.learner is not None
    before = copy.deepcopy(lab.learner.student.state_dict())
    fresh = torch.zeros(64, 3, 34, 34, dtype=torch.uint8)
    refit(lab, lab.learner.student, fresh, torch.Generator().manual_seed(0))
    assert [finding.code for finding in lab.doubts] == ["not-refitted"]
    now = lab.learner.student.state_dict()
    assert all(torch.equal(before[name], value) for name, value in now.items())
    again = lab_of(**{"budget.minutes": 1.0})
    again.load_state_dict(lab.state_dict())
    assert again.doubts == lab.doubts


def test_a_refit_takes_place_without_a_clock_and_is_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = lab_of(**{"budget.images": 64})
    assert lab.learner is not None
    student = lab.learner.student
    found = timed(student.body, lab.teacher.network.body, student.kept, torch.zeros(8, 3, 34, 34))
    assert found.image > 0 and found.product > 0
    known = replace(found, image=1.0, product=0.0)  # as if an image took a second
    monkeypatch.setattr("synthkd.engine.estimate.timed", lambda *_: known)
    assert 256 < estimate(lab).after < 256 + 60
    first = {name: value.clone() for name, value in student.state_dict().items()}
    fresh = torch.randint(256, (64, 3, 34, 34), dtype=torch.uint8)
    refit(lab, student, fresh, torch.Generator().manual_seed(0))
    moved = {n for n, value in student.state_dict().items() if not torch.equal(value, first[n])}
    assert moved and not any("running" in name for name in moved) and lab.doubts == []
    for _ in rounds(lab):
        pass
    assert lab.doubts == [] and lab.progress.images_seen == 64


def test_a_teacher_is_examined_before_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Iterator[None]:
        raise AssertionError

    monkeypatch.setattr("synthkd.engine.build.pruned_teacher", never)
    with pytest.raises(InputError, match="give --anyway"):
        lab_of(**{"budget.images": 64, "run.anyway": False})
