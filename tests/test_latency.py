"""What a network takes for an image: in turns, by its exported file, without a word on the
terminal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthkd.core.images import ImageSpec
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.students import latency

SPEC = ImageSpec(1, 16, 16, (0.3,), (0.3,))


def classifier(name: str = "resnet8-w4") -> Classifier:
    torch.manual_seed(0)
    body = build_network(name, channels=1, size=16, classes=3)
    return Classifier(body, SPEC, 3).eval().requires_grad_(False)


def test_twice_the_work_takes_twice_as_long():
    matrix = np.random.default_rng(0).normal(size=(160, 160))

    def work(times: int) -> object:
        return [matrix @ matrix for _ in range(times)]

    found = latency.milliseconds(
        {"one": lambda: work(8), "two": lambda: work(16)}, seconds=0.2, threads=1
    )
    assert found["two"] / found["one"] == pytest.approx(2, rel=0.25)


def test_what_is_far_over_the_limit_is_not_measured_on():
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        sum(range(200_000))

    latency.milliseconds({"": work}, seconds=30, most=0.01, threads=1)
    assert calls < 100


def test_a_reference_divides_out_what_slows_the_machine(monkeypatch):
    """By a clock of our own: all takes five times as long after the first measurement."""
    now, slowness = 0.0, 1.0

    def work(seconds: float) -> None:
        nonlocal now
        now += slowness * seconds

    monkeypatch.setattr(latency, "_clock", lambda threads: lambda: now)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now)
    reference = latency.Reference(lambda: work(0.002), threads=2)
    assert reference.milliseconds(lambda: work(0.003), seconds=0.1) == pytest.approx(3)
    assert reference.milliseconds(lambda: work(0.003), seconds=0.1) == pytest.approx(3)
    slowness = 5.0
    assert reference.milliseconds(lambda: work(0.003), seconds=0.1) == pytest.approx(3)
    assert reference.past == pytest.approx([2, 2, 10])
    later = latency.Reference(lambda: work(0.002), threads=2, past=[1.0] * 3)
    assert later.milliseconds(lambda: work(0.003), seconds=0.1) == pytest.approx(1.5)


def test_a_reference_divides_out_what_slows_the_machine_for_a_moment(monkeypatch):
    """Every tenth of a second it is four times as slow, now for one of the two, now for both."""
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += (4 if now % 0.2 > 0.1 else 1) * seconds

    monkeypatch.setattr(latency, "_clock", lambda threads: lambda: now)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now)
    reference = latency.Reference(lambda: work(0.0021), threads=2)
    found = reference.milliseconds(lambda: work(0.0042), seconds=2.0)
    assert found / reference.past[0] == pytest.approx(2)


def test_conditions_name_runtime_threads_and_machine():
    told = str(latency.Conditions("ONNX Runtime 1.30.0", 2, "a processor"))
    assert told == "ONNX Runtime 1.30.0, 2 threads, a processor"
    one = latency.conditions(1, exported=False)
    assert (
        str(one).startswith("torch ") and ", 1 thread, " in str(one) and one.machine.isprintable()
    )


@pytest.mark.slow
def test_the_quick_file_answers_as_the_full_one(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    network = classifier()
    image = torch.rand(1, 1, 16, 16)
    latency.write_onnx(network, torch.zeros(2, 1, 16, 16), tmp_path / "full.onnx")
    latency.write_onnx_quickly(network, torch.zeros(1, 1, 16, 16), tmp_path / "quick.onnx")
    full, quick = (latency.onnx_answer(tmp_path / f"{n}.onnx")(image) for n in ("full", "quick"))
    torch.testing.assert_close(full, network(image), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quick, full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wrn-16-1", "mobilenet-0.25", "resnet14"])
def test_every_family_of_ours_can_be_written_quickly(tmp_path: Path, name: str):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    latency.write_onnx_quickly(classifier(name), torch.zeros(1, 1, 16, 16), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").stat().st_size > 1000


class Unwritable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0]).real[:, :3]


def test_a_network_that_cannot_be_written_raises_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    with pytest.raises(Exception, match="eig"):
        latency.write_onnx_quickly(Unwritable(), torch.zeros(1, 1, 16, 16), tmp_path / "a.onnx")
    torch.ops.aten.sum(torch.ones(1))
    assert capfd.readouterr() == ("", "")
    import os

    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"
