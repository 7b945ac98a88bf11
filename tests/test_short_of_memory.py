"""What does not fit into memory is done in smaller parts, as if it had begun so, and said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthkd
from synthkd.core.images import ImageSpec
from synthkd.core.memory import in_fitting_parts
from synthkd.engine.build import assemble
from synthkd.engine.loop import Lab, rounds
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, StudentTable
from synthkd.specs import new_student
from synthkd.teachers.frozen import FrozenTeacher

SPEC = ImageSpec(1, 8, 8, (0.5,), (0.25,))


class Limited(nn.Module):
    """Passes on at most so many images that gradients shall reach, and so many others."""

    def __init__(self, traced: int, others: int = 10**6) -> None:
        super().__init__()
        self.traced, self.others, self.refused = traced, others, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > (self.traced if x.requires_grad else self.others):
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")
        return x


def network_of(limit: Limited) -> nn.Sequential:
    torch.manual_seed(3)
    body = build_network("resnet8-w4", channels=1, size=8, classes=3).train()
    for _ in range(3):
        body(torch.randn(16, *SPEC.shape))
    return nn.Sequential(limit, body).eval()


def teacher_of(traced: int, others: int = 10**6) -> FrozenTeacher:
    return FrozenTeacher(Classifier(network_of(Limited(traced, others)), SPEC, 3))


PIXELS = {"generator.kind": "pixels", "terms": {"one_hot": 1.0, "statistics": 1.0}}
GAN = {"generator.kind": "gan", "terms": {"one_hot": 1.0, "balance": 1.0}}


def lab_of(teacher: FrozenTeacher, kind: dict[str, Any], **more: Any) -> Lab:
    settings = {"generator.kind": kind["generator.kind"], "budget.images": 192, **more}
    recipe = Recipe.of({
        **settings, "training.batch": 16, "memory.capacity": 200, "run.device": "cpu",
    })  # fmt: skip
    stage = recipe.stage[0].model_copy(update={
        "name": "only", "generator": "auto", "share": 1.0, "terms": kind["terms"], "fresh": 16,
        "synthesis_batch": 24, "synthesis_steps": 3, "student_steps": 3,
    })  # fmt: skip
    run = recipe.run.model_copy(update={"stages": ()})
    recipe = recipe.model_copy(update={"stage": (stage,), "run": run})
    torch.manual_seed(0)
    student = new_student(StudentTable(spec="resnet8-w4", start="new"), teacher)
    return assemble(recipe, teacher, student)


def end_of(lab: Lab) -> dict[str, Tensor]:
    for _ in rounds(lab):
        pass
    assert lab.learner is not None
    return dict(lab.learner.student.state_dict())


@pytest.mark.parametrize("kind", [PIXELS, GAN], ids=["pixels", "gan"])
def test_a_generator_without_memory_takes_smaller_batches_as_if_it_had_begun_so(kind):
    short, small = lab_of(teacher_of(traced=7), kind), lab_of(teacher_of(traced=10**6), kind)
    small.synthesis_parts = 4
    one, other = end_of(short), end_of(small)
    (limit,) = (m for m in short.teacher.network.modules() if isinstance(m, Limited))
    assert (short.synthesis_parts, limit.refused) == (4, 2)  # 24 and 12 were too many, once
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    (doubt,) = short.doubts
    assert doubt.code == "smaller-batches" and "24 images" in doubt.seen and "6 were" in doubt.seen
    assert doubt.remedy.endswith("synthesis_batch 6") and not small.doubts


def test_the_smaller_batches_outlast_a_checkpoint():
    lab = lab_of(teacher_of(traced=7), PIXELS)
    next(iter(rounds(lab)))
    again = lab_of(teacher_of(traced=7), PIXELS)
    again.load_state_dict(lab.state_dict())
    assert again.synthesis_parts == 4 and again.doubts == lab.doubts
    assert all(torch.equal(a, b) for a, b in zip(end_of(lab).values(), end_of(again).values(),
                                                 strict=True))  # fmt: skip


def test_where_two_images_are_too_many_the_run_ends():
    with pytest.raises(torch.OutOfMemoryError):
        end_of(lab_of(teacher_of(traced=1), PIXELS))


@pytest.mark.parametrize(("layers", "parts"), [((), 4), (("1",), 4)])
def test_a_teacher_is_asked_in_smaller_parts(layers: tuple[str, ...], parts: int):
    images = torch.rand(20, *SPEC.shape)
    whole, short = teacher_of(9), teacher_of(9, others=6)
    before = short.queries
    seen, told = (teacher.teach(images, layers) for teacher in (short, whole))
    assert torch.allclose(seen.logits, told.logits, atol=1e-6)
    assert {name: len(value) for name, value in seen.features.items()} == dict.fromkeys(layers, 20)
    assert short.queries - before == 20 and short.parts == parts  # what was in vain is not counted
    with pytest.raises(torch.OutOfMemoryError):
        teacher_of(9, others=0)


def test_another_error_is_no_want_of_memory_and_is_not_tried_again():
    def work(parts: int) -> int:
        raise RuntimeError(f"shapes differ in {parts}")

    with pytest.raises(RuntimeError, match="in 1"):
        in_fitting_parts(work, 1, 64, lambda: pytest.fail("undone"))


def test_the_summary_of_a_run_names_the_smaller_batches(tmp_path: Path):
    result = synthkd.distill(
        network_of(Limited(traced=40)), "resnet8-w4", images=512, out=tmp_path / "run", mean=0.5,
        std=0.25, channels=1, image_size=8, settings={"run.anyway": True, "run.device": "cpu"},
    )  # fmt: skip
    assert "smaller-batches" in [finding["code"] for finding in result.summary["findings"]]


@pytest.mark.parametrize("shards", [None, 2])
def test_the_manifest_of_a_data_set_names_them_too(shards: int | None, tmp_path: Path):
    made = synthkd.generate(
        network_of(Limited(traced=20)), count=24, images=128, out=tmp_path / "set", mean=0.5,
        std=0.25, channels=1, image_size=8, shards=shards,
        settings={
            "run.anyway": True, "run.device": "cpu", "pixels.learning_rate": 0.05,
            "stage.refine.synthesis_batch": 32, "stage.refine.synthesis_steps": 2,
            "stage.study.student_steps": 2,
        },
    )  # fmt: skip
    codes = [finding["code"] for finding in made.manifest["findings"]]
    assert codes.count("smaller-batches") == 1
    assert codes.count("ignored-setting") == 1  # no student learns here
