"""Which teacher is likely to teach best, and BatchNorm statistics estimated anew."""

import json
import math

import pytest
import torch
from short_runs import status
from torch import Tensor, nn

import synthkd
from synthkd import measures
from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec
from synthkd.engine.held_out import select_final_weights
from synthkd.engine.loop import rounds
from synthkd.evaluation.teacher_quality import TeacherQuality, fisher_trace, scores, teacher_quality
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, TeacherTable, TrainingTable
from synthkd.specs import load_teacher
from synthkd.students.learner import Learner
from synthkd.teachers.frozen import FrozenTeacher

SPEC = ImageSpec(1, 8, 8, (0.0,), (1.0,))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Logits W x of the pixels: whose Fisher information is known."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def test_the_fisher_trace_of_a_linear_classifier_has_a_closed_form():
    """∇_W log p_c = (e_c − p) xᵀ, so the trace is |x|² · (1 − |p|²), mean over images."""
    torch.manual_seed(0)
    network = Classifier(Linear(), SPEC, 3)
    images = random(2000, 1, 8, 8)
    p = network(images).softmax(1)
    exact = (images.flatten(1).square().sum(1) * (1 - p.square().sum(1))).mean().item()
    found = fisher_trace(network, images, torch.Generator().manual_seed(1))
    assert found == pytest.approx(exact, rel=0.05)
    several = Classifier(Linear(), SPEC, 3, "multilabel-logits")
    p = several(images).sigmoid()
    exact = (images.flatten(1).square().sum(1) * (p * (1 - p)).sum(1)).mean().item()
    found = fisher_trace(several, images, torch.Generator().manual_seed(1))
    assert found == pytest.approx(exact, rel=0.05)


def test_the_effective_rank_counts_dimensions_that_are_used():
    rng = torch.Generator().manual_seed(0)
    even = torch.randn(20_000, 6, generator=rng, dtype=torch.float64)
    assert measures.effective_rank(even) == pytest.approx(6, rel=0.01)
    narrow = even[:, :2] @ torch.randn(2, 6, generator=rng, dtype=torch.float64)
    assert 1 < measures.effective_rank(narrow + 5) <= 2 + 1e-9
    assert math.isnan(measures.effective_rank(torch.ones(4, 3)))


def test_a_teacher_is_measured_and_nothing_of_it_changes():
    teacher = load_teacher(TeacherTable())
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    found = [teacher_quality(teacher, count=32) for _ in range(2)]
    assert found[0] == found[1]
    assert 1 < found[0].effective_rank <= 31 and found[0].fisher_trace > 0
    assert found[0].features == teacher.feature_size
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_scores_are_standardised_over_those_that_are_compared():
    def quality(fisher: float, rank: float) -> TeacherQuality:
        return TeacherQuality("some", 8, fisher, rank, 16, 0.9, 1.0)

    found = scores([quality(1, 2), quality(10, 2), quality(100, 2)])
    assert found == pytest.approx([-0.6 * math.sqrt(1.5), 0, 0.6 * math.sqrt(1.5)])
    assert sum(scores([quality(3, 9), quality(5, 1), quality(2, 4)])) == pytest.approx(0, abs=1e-9)
    assert scores([quality(3, 3), quality(3, 3)]) == [0, 0]


def test_a_black_box_and_a_network_without_features_are_refused():
    closed = FrozenTeacher(Classifier(Linear(), SPEC, 3), access="logits")
    with pytest.raises(InputError, match="a black box shows no weights"):
        teacher_quality(closed)
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"name its features by --teacher\.features"):
        teacher_quality(FrozenTeacher(Classifier(pooled, SPEC, 3)))


@pytest.mark.slow
def test_inspect_ranks_teachers_of_a_run_a_file_and_by_name(tmp_path, capsys):
    run = tmp_path / "run"
    synthkd.distill(images=2000, out=run, settings={"run.threads": 1})
    file = tmp_path / "two.toml"
    file.write_text(f'[[teacher]]\nspec = "demo"\n[[teacher]]\nspec = "{run}"\n', encoding="utf-8")
    assert status("inspect", "demo", str(run), "--rank", "--json") == 0
    found = json.loads(capsys.readouterr().out)["ranking"]
    assert {each["described"] for each in found} == {"demo", str(run)}
    assert found[0]["score"] >= found[1]["score"]
    assert status("inspect", f"ensemble:{file}", "--rank") == 0
    assert "likely to teach best" in capsys.readouterr().out
    assert status("inspect", "demo", "--rank") == 2
    assert "give several SPECs" in capsys.readouterr().err
    assert status("inspect", "demo", str(run)) == 2
    assert "compared by --rank" in capsys.readouterr().err


# --- statistics estimated anew


def test_recalibrated_statistics_are_plain_means_over_the_batches():
    torch.manual_seed(0)
    body = build_network("resnet8-w4", channels=1, size=8, classes=3)
    learner = Learner(Classifier(body, SPEC, 3), TrainingTable())
    batches = [random(16, 1, 8, 8, seed=s) * s for s in (1, 2, 3)]
    seen: list[Tensor] = []
    handle = body.bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    learner.recalibrate(batches)
    handle.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    assert torch.allclose(body.bn1.running_mean, means, atol=1e-5)
    assert torch.allclose(body.bn1.running_var, variances, rtol=1e-4)
    assert body.bn1.momentum == 0.1


@pytest.mark.slow
def test_the_best_of_three_kinds_of_weights_is_kept():
    recipe = Recipe.of({
        "training.recalibrate": True, "budget.images": 6400, "run.stages": ("draw", "study"),
        "training.batch": 32, "run.threads": 1, "student.spec": "resnet8-w4",
    })  # fmt: skip
    lab = synthkd.build(recipe)
    list(rounds(lab))
    found, votes = select_final_weights(lab)
    told = {k: found[f"held_out_agreement_{k}"] for k in ("last", "averaged", "recalibrated")}
    assert found["held_out_agreement"] == max(told.values()) == told[found["weights"]]
    assert votes.agreement == found["held_out_agreement"]
    again, _ = select_final_weights(lab)
    assert again["held_out_agreement"] >= found["held_out_agreement"] - 1e-9
    with pytest.raises(InputError, match="recalibrate is for the averaged student"):
        Recipe.of({"training.recalibrate": True, "training.ema": 0.0})
