"""Images that are not square, through the whole program: a teacher of 8 x 24 pixels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from synthkd import cli, recipe
from synthkd.core.errors import InputError
from synthkd.core.findings import EXIT_USELESS
from synthkd.core.images import to_float
from synthkd.data.store import open_store
from synthkd.engine.build import assemble
from synthkd.engine.loop import rounds
from synthkd.networks import build_network
from synthkd.recipe import StudentTable, TeacherTable
from synthkd.specs import load_classifier, load_teacher, new_student
from synthkd.specs.sources import source_of
from synthkd.students.auto import best_student
from synthkd.synthesis.diffusion.generator import Diffusion
from synthkd.teachers.frozen import FrozenTeacher

SIZE = (8, 24)


def bars(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 1, 8, 24] uint8 with a bright bar on the left, in the middle or on the right:
    its third is the class, which no square crop of them shows."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 90, (count, 1, *SIZE), generator=rng)
    for i, label in enumerate(labels.tolist()):
        left = 8 * label + int(torch.randint(0, 5, (1,), generator=rng))
        pixels[i, :, 1:7, left : left + 3] = 230
    return pixels.to(torch.uint8), labels


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the teacher's weights, a labelled .npz, and class folders of PNG."""
    folder = tmp_path_factory.mktemp("wide")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("resnet8-w4", channels=1, size=SIZE, classes=3)
    pixels, labels = bars(300, 1)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(60):
        rows = torch.arange(50) + 50 * (step % 6)
        loss = F.cross_entropy(network((to_float(pixels[rows]) - 0.3) / 0.3), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), str(folder / "teacher.safetensors"))
    test, truth = bars(90, 2)
    np.savez(folder / "val.npz", x=test[:, 0].numpy(), y=truth.numpy())
    for i, (image, label) in enumerate(zip(test[:, 0].numpy(), truth.tolist(), strict=True)):
        (folder / "val" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "val" / str(label) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def wide(place: Path) -> FrozenTeacher:
    return load_teacher(table(place, "8x24"))


def table(place: Path, size: str) -> TeacherTable:
    return TeacherTable(
        spec="resnet8-w4", weights=str(place / "teacher.safetensors"), image_size=size,
        channels=1, mean=(0.3,), std=(0.3,), classes=3,
    )  # fmt: skip


def teacher_flags(place: Path, size: str = "8x24") -> list[str]:
    return [
        "--teacher", "resnet8-w4", "--teacher-weights", str(place / "teacher.safetensors"),
        "--image-size", size, "--channels", "1", "--teacher-mean", "0.3", "--teacher-std", "0.3",
    ]  # fmt: skip


def run(*arguments: object) -> None:
    try:
        assert not cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:  # so short a run may well end with a student of no use
        assert ended.code == EXIT_USELESS


@pytest.fixture(scope="module")
def student(place: Path) -> Path:
    """A run: the student in it has learned from one round of every generator in the default
    pipeline, or at least from the first."""
    out = place / "run"
    run(
        "distill", *teacher_flags(place), "--student", "resnet8-w4", "--images-seen", 3000,
        "--val-data", place / "val", "--run.threads", 1, "--quiet", "--out", out,
    )  # fmt: skip
    return out


@pytest.mark.parametrize(
    ("text", "means"),
    [("8x24", (8, 24)), ("8,24", (8, 24)), ("8 x 24", (8, 24)), ("16", 16), ("16x16", 16),
     ([8, 24], (8, 24)), ([9, 9], 9), (12, 12)],
)  # fmt: skip
def test_a_size_is_one_side_or_height_and_width(text, means):
    built = recipe.validated({"teacher": {"image_size": text}})
    assert built.teacher.image_size == means


@pytest.mark.parametrize(
    "text",
    ["7", "8x2000", "8x24x3", "x", "", "8x", "eight", "-8x8", "8.5", [], [[8], 8], True],
)
def test_another_size_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="HEIGHTxWIDTH, each of 8 to 1,024 pixels") as caught:
        recipe.validated({"teacher": {"image_size": text}})
    assert "\n" not in str(caught.value)


def test_a_size_comes_back_from_toml():
    built = recipe.validated({"teacher": {"image_size": "8x24"}, "stage": [{"name": "a"}]})
    text = recipe.to_toml(built)
    assert "image_size = [8, 24]" in text


def test_distill_scores_a_student_that_is_not_square(student: Path, place: Path):
    summary = json.loads((student / "summary.json").read_text())
    assert summary["teacher_accuracy"] > 0.9
    found, _ = load_classifier(StudentTable(spec=str(student)), TeacherTable())
    assert found.spec.shape == (1, 8, 24)


def test_the_teacher_given_the_wrong_way_round_is_worse_not_silently_the_same(place: Path):
    test, truth = bars(90, 2)

    def share(size: str) -> float:
        teacher = load_teacher(table(place, size))
        images = F.interpolate(to_float(test), teacher.spec.shape[1:])
        return float((teacher(images).argmax(1) == truth).float().mean())

    assert share("8x24") > 0.9 > 0.75 > share("24x8")


@pytest.mark.slow
def test_evaluate_predict_inspect_and_export_take_the_student(student, place, capsys, tmp_path):
    run("evaluate", "--student", student, "--val-data", place / "val.npz", "--json",
        *teacher_flags(place))  # fmt: skip
    run("predict", student, *sorted((place / "val" / "2").iterdir())[:2], "--json")
    run("inspect", student, "--json")
    run("export", student, "--format", "onnx", "--out", tmp_path / "shipped", "--quiet")
    from onnx import load

    graph = load(str(tmp_path / "shipped" / "student.onnx")).graph
    sides = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert sides[1:] == [1, 8, 24]


@pytest.mark.parametrize(
    "pipeline",
    ["cmi", "deepinversion", "dfad", "diffusion", "gan", "leaves", "nayer", "shaders", "synthkd"],
)
def test_every_kind_of_generator_makes_images_of_that_size(pipeline: str, wide: FrozenTeacher):
    built = recipe.load_recipe(flags={"pipeline": pipeline, "student": {"spec": "resnet8-w4"}})
    stages = tuple(
        stage.model_copy(
            update={
                "synthesis_steps": min(2, stage.synthesis_steps),
                "synthesis_batch": 16 if stage.generator == "diffusion" else 20,
                "student_steps": min(2, stage.student_steps),
                "fresh": min(40, stage.fresh),
            }
        )
        for stage in built.stage
    )
    tables = {
        "stage": stages,
        "training": built.training.model_copy(update={"batch": 20}),
        "memory": built.memory.model_copy(update={"capacity": min(500, built.memory.capacity)}),
        "budget": built.budget.model_copy(update={"images": 100}),
    }
    small = built.model_copy(update=tables)
    torch.manual_seed(0)
    lab = assemble(small, wide, new_student(small.student, wide))
    for round_ in rounds(lab):
        assert all(math.isfinite(value) for value in round_.measures.values())
    assert lab.progress.images_seen == 100
    assert tuple(lab.memory.images.shape[1:]) == (1, *SIZE)


def test_a_denoiser_works_in_the_proportion_of_the_images(wide: FrozenTeacher):
    built = recipe.load_recipe(flags={"pipeline": "diffusion", "diffusion": {"width": 8}})
    made = Diffusion(built, wide)
    assert made.denoiser.shape == (1, 8, 24)
    clean = made.denoiser.encoded(torch.rand(2, 1, *SIZE))
    assert made.denoiser.decoded(clean).shape == (2, 1, *SIZE)


def test_generate_writes_a_set_and_its_sheet_of_that_size(place: Path, tmp_path: Path):
    run("generate", *teacher_flags(place), "--pipeline", "shaders", "--count", 40,
        "--run.threads", 1, "--quiet", "--out", tmp_path / "set")  # fmt: skip
    assert open_store(tmp_path / "set").pixels.shape == (40, 1, *SIZE)
    run("distill", *teacher_flags(place), "--student", "resnet8-w4", "--images-seen", 600,
        "--synthetic", tmp_path / "set", "--quiet", "--out", tmp_path / "run")  # fmt: skip


@pytest.mark.slow
def test_a_student_is_chosen_for_that_size(wide: FrozenTeacher):
    assert best_student(StudentTable(spec="auto", max_params=20_000), wide).params <= 20_000


@pytest.mark.slow
def test_bench_compares_pipelines_at_that_size(place: Path, tmp_path: Path):
    run("bench", *teacher_flags(place), "--student", "resnet8-w4", "--pipelines", "shaders",
        "--minutes", 0.04, "--val-data", place / "val.npz", "--quiet", "--run.threads", 1,
        "--out", tmp_path / "bench")  # fmt: skip
    assert "shaders" in (tmp_path / "bench" / "table.md").read_text()


@pytest.mark.parametrize(
    ("name", "side"), [("timm:vit_tiny_patch16_224", 16), ("timm:resnet10t", 8)]
)
def test_networks_of_timm_are_built_for_that_size(name: str, side: int, wide: FrozenTeacher):
    told = TeacherTable(image_size=(32, 64), channels=3, mean=(0.5,), std=(0.5,), classes=3)
    body = source_of(name, "", told, trust_code=False, role="student").body
    assert body.eval()(torch.zeros(2, 3, 32, 64)).shape == (2, 3)
    if hasattr(body, "patch_embed"):
        assert body.patch_embed.grid_size == (32 // side, 64 // side)
