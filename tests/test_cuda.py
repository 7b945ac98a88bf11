"""A tiny run on a GPU; skipped where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.cli import main
from synthkd.core.seeds import generator_for, globally
from synthkd.recipe import TeacherTable
from synthkd.specs import load_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = [
    "distill", "--images-seen", "1200", "--training.batch", "32", "--student", "resnet8-w4",
    "--run.device", "cuda", "--stage.draw.fresh", "128", "--stage.refine.synthesis_batch", "32",
    "--stage.refine.fresh", "32", "--stage.refine.synthesis_steps", "4", "--memory.capacity", "600",
    "--quiet", "--out",
]  # fmt: skip


def finished(argv: list[str]) -> None:
    """Runs a command; a student of no use (3) is a result too."""
    try:
        main(argv)
    except SystemExit as left:
        assert left.code in (None, 0, 3)


def test_a_run_on_a_gpu_ends_with_a_student_and_tells_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in its rounds waits for the whole device."""

    def waited(*_: Any) -> None:
        raise AssertionError("torch.cuda.synchronize was called")

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", waited)
        finished([*SMALL, str(tmp_path / "run"), "--val-data", "none"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_seen"] == 1200
    assert all(summary["seconds"][part] > 0 for part in ("synthesis", "labelling", "student"))
    parts = sum(summary["seconds"][part] for part in ("synthesis", "labelling", "student"))
    assert parts <= summary["wall_seconds"] + 0.1
    assert (tmp_path / "run" / "student.safetensors").is_file()


def test_a_search_on_a_gpu_times_its_students_on_the_processor(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    finished([
        "search", "--minutes", "0.3", "--run.device", "cuda", "--val-data", "none", "--quiet",
        "--out", str(tmp_path / "found"),
    ])  # fmt: skip
    assert json.loads((tmp_path / "found" / "front.json").read_text())["milliseconds"] > 0


def test_a_living_network_on_a_gpu_is_taken_and_stays_there(tmp_path: Path) -> None:
    network = load_teacher(TeacherTable()).classifier.body.cuda()
    flags = TeacherTable(image_size=16, channels=1, mean=(0.5,), std=(0.5,))
    teacher = load_teacher(flags, network=network).to("cuda")
    images = torch.rand(4, 1, 16, 16, device="cuda")
    torch.testing.assert_close(teacher(images), network((images - 0.5) / 0.5), atol=1e-2, rtol=1e-2)
    assert all(p.is_cuda for p in network.parameters())
    blank = torch.zeros(2, 1, 16, 16, device="cuda")
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (blank,), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "gpu.pt2")
    flags = flags.model_copy(update={"spec": str(tmp_path / "gpu.pt2")})
    again = load_teacher(flags, trust_code=True).to("cuda")
    torch.testing.assert_close(again(images), teacher(images), atol=1e-2, rtol=1e-2)


def test_only_the_gpu_in_use_is_seeded_and_its_state_comes_back() -> None:
    before = [torch.cuda.get_rng_state(gpu) for gpu in range(torch.cuda.device_count())]
    with globally(generator_for(1)):
        one = torch.rand(3, device="cuda")
        for gpu in range(1, torch.cuda.device_count()):
            assert torch.equal(torch.cuda.get_rng_state(gpu), before[gpu])
    with globally(generator_for(1), torch.device("cuda", 0)):
        assert torch.equal(torch.rand(3, device="cuda"), one)
    for gpu, state in enumerate(before):
        assert torch.equal(torch.cuda.get_rng_state(gpu), state)
