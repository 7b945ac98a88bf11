"""Which channels go: the same as by plain elimination, within bounded time and memory."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from synthkd.core.errors import InputError
from synthkd.core.memory import limits, machine_memory
from synthkd.networks import marks, selection
from synthkd.networks.pruned import pruned
from synthkd.networks.selection import Group, Member, Reader, _next, selected, step_of


def reader_of(width: int, rng: torch.Generator) -> Reader:
    x = torch.randn(4 * width, width, generator=rng) @ torch.randn(width, width, generator=rng)
    weight = torch.randn(width, 7, generator=rng).double()
    gram = (x.t() @ x / len(x)).double() + 0.1 * torch.eye(width).double()
    return Reader(torch.linalg.inv(gram), weight @ weight.t(), 3.0)


def test_a_trial_takes_what_plain_elimination_takes_and_leaves_the_readers_as_they_are() -> None:
    rng = torch.Generator().manual_seed(0)
    readers = {"a": reader_of(64, rng), "b": reader_of(96, rng)}
    reading = {"a": torch.arange(64), "b": torch.randperm(96, generator=rng)[:64]}
    before = copy.deepcopy(readers)
    gone: list[int] = []
    for _ in range(3):
        found = _next(64, gone, reading, readers)
        assert found is not None
        plain, total = copy.deepcopy(readers), 0.0
        for channel in found.channels:  # one after the other, each the cheapest then
            errors = sum(plain[name].errors()[columns] for name, columns in reading.items())
            assert isinstance(errors, Tensor)
            errors[gone] = math.inf
            assert int(errors.argmin()) == channel
            total += float(errors[channel])
            gone.append(channel)
            for name, columns in reading.items():
                plain[name].remove(columns[[channel]])
        assert found.error == pytest.approx(total, rel=1e-9)
        assert all(torch.equal(readers[k].inverse, before[k].inverse) for k in readers)
        for name, columns in reading.items():
            readers[name].remove(columns[found.channels])
            assert torch.allclose(readers[name].inverse, plain[name].inverse, atol=1e-9)
            assert torch.allclose(readers[name].energy, plain[name].energy, atol=1e-9)
        before = copy.deepcopy(readers)
    assert len(gone) == len(set(gone)) == 3 * step_of(64, 64)


def test_what_goes_is_the_least_squares_choice_of_the_whole_block() -> None:
    """The error of taking several channels at once, by least squares on the images themselves."""
    rng = torch.Generator().manual_seed(1)
    x = (torch.randn(400, 16, generator=rng) @ torch.randn(16, 16, generator=rng)).double()
    weight = torch.randn(16, 5, generator=rng).double()
    gram = x.t() @ x / len(x)
    reader = Reader(torch.linalg.inv(gram), weight @ weight.t(), 1.0)
    reader.remove(torch.tensor([2, 9, 11]))
    left = [k for k in range(16) if k not in (2, 9, 11)]
    other = torch.linalg.lstsq(x[:, left], x @ weight).solution
    assert torch.allclose(reader.energy[left][:, left], other @ other.t(), rtol=1e-6)
    assert torch.allclose(reader.inverse[left][:, left], torch.linalg.inv(gram[left][:, left]))


class Work(TorchDispatchMode):
    """Counts float64 multiplications, about: those of matrices, and one a number of all else."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name, out = func.overloadpacket.__name__, made[0] if isinstance(made, tuple) else made
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            if name in ("mm", "addmm", "addmm_", "bmm"):
                inner = args[-2].shape[-1] if name.startswith("add") else args[0].shape[-1]
                self.done += out.numel() * inner
            elif not func.is_view:
                self.done += out.numel()
        return made


def test_choosing_does_not_pass_over_a_wide_layer_once_for_every_channel() -> None:
    """A group of C channels of which 7 / 8 go: some 3 C³ multiplications, where passing over both
    matrices for every channel that is tried takes 16 times as many numbers."""
    torch.manual_seed(0)
    width = 256
    net = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, 4, 1), nn.Flatten(1))
    where = tuple((k,) for k in range(width))
    group = Group(width, (Member("0", where, True), Member("2", where, False)))
    images = torch.rand(8, 3, 6, 6)
    with Work() as work:
        gone = selected(net.eval(), [group], images, 0.999)
    assert len(gone[0]) == width - width // 8
    assert work.done < 6 * width**3


def test_after_so_many_operations_channels_go_by_what_each_alone_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1)]
    net = nn.Sequential(*layers).eval()
    named = selection.layers_of(net)
    where = tuple((k,) for k in range(32))
    groups = [Group(32, (Member(a, where, True), Member(b, where, False)))
              for a, b in (("0", "2"), ("2", "4"))]  # fmt: skip
    images = torch.rand(16, 3, 12, 12)
    early = [selected(net, groups, images, 0.6, most) for most in (0.0, 0.0)]
    assert early[0] == early[1]  # no clock has a part in it
    assert all(len(set(gone)) == len(gone) for gone in early[0])
    removed: list[int] = []
    monkeypatch.setattr(Reader, "remove", lambda _, gone: removed.append(len(gone)))
    selected(net, groups, images, 0.6, 0.0)
    assert sum(removed) == 4  # the first that went: from then on nothing is eliminated
    (reader,) = selection._readers(net, groups[:1], named, images).values()
    found = _next(32, [7, 8, 9, 10], {"2": torch.arange(32)}, {"2": reader}, alone=True)
    errors = reader.errors()
    errors[[7, 8, 9, 10]] = math.inf
    assert found is not None and found.channels == errors.topk(4, largest=False).indices.tolist()
    assert found.error == pytest.approx(float(errors[found.channels].sum()))


def test_images_are_looked_at_in_parts_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 5),
    ).eval()  # fmt: skip
    images = torch.rand(20, 3, 8, 8)
    seen: list[int] = []
    net[0].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    groups = [
        Group(32, (Member("0", tuple((k,) for k in range(32)), True),
                   Member("3", tuple((k,) for k in range(32)), False))),
        Group(32, (Member("3", tuple((k,) for k in range(32)), True),
                   Member("6", tuple(tuple(range(36 * k, 36 * k + 36)) for k in range(32)),
                          False))),
    ]  # fmt: skip
    monkeypatch.setattr(selection, "PLACES", 300)
    whole = selected(net, groups, images, 0.5)
    assert seen == [1, 20]
    monkeypatch.setattr(selection, "AT_ONCE", 64 * 7)
    seen.clear()
    assert selected(net, groups, images, 0.5) == whole
    assert seen == [1, 7, 7, 6]
    monkeypatch.setattr(selection, "LOOKING", 1.0)
    seen.clear()
    selected(net, groups, images, 0.5)
    assert sum(seen) == 1 + selection.FEWEST


def test_only_layers_that_read_a_group_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix on the image itself would need the square of its pixels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 16), nn.ReLU(), nn.Linear(16, 4))
    narrow = pruned(net.eval(), (3, 40, 40), 0.5, torch.rand(32, 3, 40, 40)).body
    assert len(narrow[1].weight) < 16
    monkeypatch.setattr(selection, "machine_memory", lambda: 16.0 * 16**2 * 2 - 1)
    with pytest.raises(InputError, match="memory here"):
        pruned(net, (3, 40, 40), 0.5, torch.rand(32, 3, 40, 40))


class Nhwc(nn.Module):
    """A network that was ported from where channels come last."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.hidden, self.head = nn.Linear(16 * 16, 24), nn.Linear(24, 3)
        self.last = last

    def forward(self, images: Tensor) -> Tensor:
        x = self.two(self.one(images).relu()).relu()
        x = x.permute(0, 2, 3, 1) if self.last else x
        return self.head(self.hidden(x.flatten(1)).relu())


@pytest.mark.parametrize("last", [True, False])
def test_channels_that_are_flattened_in_another_order_stay(last: bool) -> None:
    torch.manual_seed(0)
    whole = Nhwc(last=last).eval()
    with torch.no_grad():  # a channel that does nothing goes first, and nothing changes
        whole.one.weight[5], whole.one.bias[5] = 0, -1
    images = torch.rand(16, 3, 8, 8)
    narrow, kept = pruned(whole, (3, 8, 8), 0.5, images)
    assert len(kept["one"]) < 16 and 5 not in kept["one"].tolist()
    assert (len(kept["two"]) == 16) == last
    assert len(kept["hidden"]) < 24 and narrow(images).isfinite().all()


class Shuffled(nn.Module):
    """Shuffles channels by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.one(images).relu()
        x = x.view(len(x), 4, 8, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(self.two(x).relu().mean((2, 3)))


def test_channels_that_a_view_shuffles_stay() -> None:
    torch.manual_seed(0)
    kept = pruned(Shuffled().eval(), (3, 8, 8), 0.4, torch.rand(8, 3, 8, 8)).kept
    assert len(kept["one"]) == 32 and len(kept["two"]) < 32


class Gated(nn.Module):
    """Norms of several kinds, gates, sums and concatenations between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1)
        self.three = nn.Conv2d(32, 16, 1)
        self.norm, self.group = nn.BatchNorm2d(32), nn.GroupNorm(2, 32)
        self.layer = nn.LayerNorm(32)
        self.down, self.up = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.mixed, self.head = nn.Conv2d(48, 24, 3), nn.Linear(24 * 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.one(images)).relu()
        x = x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + self.group(self.two(x))
        x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = torch.cat((x, self.three(x)), 1)
        return self.head(nn.functional.adaptive_max_pool2d(self.mixed(x), 2).flatten(1))


def test_norms_gates_sums_and_concatenations_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    said: list[set[int]] = []
    misread = marks.misread

    def watched(*given: Any) -> set[int]:
        said.append(misread(*given))
        return said[-1]

    monkeypatch.setattr("synthkd.networks.pruned.misread", watched)
    kept = pruned(Gated().eval(), (3, 10, 10), 0.5, torch.rand(8, 3, 10, 10)).kept
    assert said == [set()]
    assert len(kept["one"]) == len(kept["two"]) == len(kept["up"]) < 32


def test_norms_that_would_not_come_out_even_are_told_before_anything_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("synthkd.networks.pruned.selected", never)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.GroupNorm(32, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 4),
    ).eval()  # fmt: skip
    with pytest.raises(InputError, match="GroupNorm layers would not come out even"):
        pruned(net, (3, 8, 8), 0.5, torch.rand(4, 3, 8, 8))


def test_memory_is_the_least_that_machine_and_control_groups_allow(tmp_path: Path) -> None:
    assert 1e8 < machine_memory() < 1e16
    own, groups = tmp_path / "own", tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "memory" / "c").mkdir(parents=True)
    own.write_text("4:memory:/c/d\n0::/a/b\nodd\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "memory.max").write_text("3000\n")
    (groups / "memory" / "c" / "memory.limit_in_bytes").write_text("5000\n")
    assert sorted(limits(own, groups)) == [3000.0, 5000.0]
    assert list(limits(tmp_path / "none", groups)) == []
