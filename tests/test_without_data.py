"""Agreement on real images, estimated without any."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import main
from torch import Tensor, nn

import synthkd
from synthkd.checks.student import check_estimate
from synthkd.commands.evaluate import run
from synthkd.core.errors import InputError
from synthkd.evaluation import probes as panel
from synthkd.evaluation.probes import ProbeSet, probe_panel, seconds_for_set
from synthkd.evaluation.without_data import (
    PROBES,
    REACH,
    estimate_agreement,
    interval,
    probes_for,
    probes_suit,
)
from synthkd.jobs import distillation
from synthkd.networks.activations import activations
from synthkd.recipe import Recipe, TeacherTable
from synthkd.specs import load_teacher
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch
from synthkd.synthesis.pixels import Pixels
from synthkd.teachers.frozen import FrozenTeacher, digest_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


@pytest.fixture(scope="module")
def probes(teacher: FrozenTeacher) -> list[ProbeSet]:
    return probes_for(Recipe(), teacher)


class Constant(nn.Module):
    """Names one class, whatever it sees."""

    def __init__(self, named: int) -> None:
        super().__init__()
        self.named = named
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(10)[self.named].repeat(len(x), 1)


def test_the_interval_by_hand() -> None:
    assert interval(0.75, math.pi / 6) == pytest.approx((0.25, 1.0))  # 60 degrees, and 30 around
    assert interval(0.25, math.pi / 12) == pytest.approx((math.sin(math.pi / 12) ** 2, 0.5))
    assert interval(0.0) == pytest.approx((0.0, math.sin(REACH) ** 2))
    assert interval(1.0) == pytest.approx((math.cos(REACH) ** 2, 1.0))


def test_the_reach_is_that_of_the_students_whose_truth_is_known() -> None:
    """Nine of ten of them, each data set counted alike, lie within."""
    with (ROOT / "docs/bench/without-data.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 150 and len({row["teacher"] for row in rows}) > 5
    same = {"cifar10-56": "cifar10"}
    data = [same.get(row["teacher"], row["teacher"]) for row in rows]
    inside = {name: [0, 0] for name in data}
    for row, name in zip(rows, data, strict=True):
        low, high = interval(sum(float(row[probe]) for probe in PROBES) / len(PROBES))
        inside[name][0] += low <= float(row["agreement"]) <= high
        inside[name][1] += 1
    covered = sum(hits / count for hits, count in inside.values()) / len(inside)
    assert 0.9 <= covered < 0.95


def test_the_sets_of_the_rule_are_those_of_the_whole_panel(
    teacher: FrozenTeacher, probes: list[ProbeSet]
) -> None:
    assert {each.name for each in probes} == set(PROBES)
    first = PROBES[-1]
    (alone,) = probe_panel(Recipe(), teacher, only=[first])
    (same,) = [each for each in probes if each.name == first]
    assert torch.equal(alone.images, same.images) and torch.equal(alone.logits, same.logits)
    drawn = list(probe_panel(Recipe(), teacher, only=["drawings.leaves", "drawings.blends.0.5"]))
    assert [each.name for each in drawn] == ["drawings.leaves", "drawings.blends.0.5"]


def test_making_probes_changes_neither_the_teacher_nor_the_random_numbers(
    teacher: FrozenTeacher, probes: list[ProbeSet]
) -> None:
    before, state = digest_of(teacher.classifier), torch.get_rng_state()
    again = probes_for(Recipe(), teacher)
    assert digest_of(teacher.classifier) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.images, b.images) for a, b in zip(probes, again, strict=True))


def test_the_teacher_is_estimated_to_agree_and_a_constant_to_do_as_constants_do(
    teacher: FrozenTeacher, probes: list[ProbeSet]
) -> None:
    own = estimate_agreement(teacher.classifier, probes)
    assert own.low < own.agreement == own.high == 1 and own.images == sum(
        len(p.images) for p in probes
    )
    constants = [estimate_agreement(Constant(k), probes) for k in range(10)]
    assert max(one.agreement for one in constants) <= own.constant < 0.3
    assert all(check_estimate(one.as_data())[0].serious for one in constants)


def test_what_an_estimate_says_against_a_student() -> None:
    def found(agreement: float, high: float, constant: float = 0.1) -> list[bool]:
        told: Mapping[str, Any] = {
            "agreement": agreement, "low": agreement / 2, "high": high, "constant": constant
        }  # fmt: skip
        return [finding.serious for finding in check_estimate(told)]

    assert found(0.9, 0.95) == [] and check_estimate(None) == []
    assert found(0.4, 0.6) == [False]
    assert found(0.2, 0.3) == [True]  # (0.3 - 0.1) / 0.9 of the way from a constant to the teacher
    assert found(0.3, 0.5, constant=0.4) == [True]
    assert found(0.18, 0.5) == [True] and found(0.2, 0.5) == [False]  # a tenth of it: 0.19


@pytest.mark.parametrize("access", ["logits", "labels"])
def test_a_teacher_without_gradients_gets_no_estimate(access: str) -> None:
    asked = {"student": {"spec": "demo"}, "teacher": {"access": access, "spec": "demo"},
             "evaluation": {"no_data": True}}  # fmt: skip
    assert not probes_suit(load_teacher(TeacherTable.model_validate(asked["teacher"])))
    with pytest.raises(InputError, match="no estimate without data"):
        run(Recipe.model_validate(asked), quiet=True)


def test_the_command_tells_it_beside_a_constant(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the teacher itself: no image with a label is read."""
    found = run(Recipe.model_validate({
        "student": {"spec": "demo"}, "evaluation": {"no_data": True},
    }))  # fmt: skip
    shown = capsys.readouterr().out
    assert "agreement on real images, estimated without data: 100% (9" in shown
    assert "a constant classifier" in shown and "comparison" not in found
    assert found["estimated_agreement"]["agreement"] > 0.95 and found["verdict"] == "ok"
    with pytest.raises(InputError, match="give --student SPEC too"):
        run(Recipe.model_validate({
            "evaluation": {"no_data": True, "images": "demo:seen"},
        }))  # fmt: skip


def test_the_library_tells_the_same(teacher: FrozenTeacher, probes: list[ProbeSet]) -> None:
    student = Constant(3).train()
    found = synthkd.estimate(student, "demo")
    assert student.training and found == estimate_agreement(student, probes)
    with pytest.raises(InputError, match="no estimate without data"):
        synthkd.estimate(student, "demo", settings={"teacher.access": "labels"})


@pytest.mark.slow
def test_a_run_ends_with_its_estimate_and_a_short_one_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("distill", "--student", "resnet8-w4", "--images-seen", "2000", "--run.threads", "1")
    main([*flags, "--out", str(tmp_path / "short")])
    assert "estimated without data" in capsys.readouterr().out
    summary = json.loads((tmp_path / "short" / "summary.json").read_text())
    assert summary["estimated_agreement"] is None and summary["not_estimated"]
    monkeypatch.setattr(distillation, "LEAST_PROBED", 0.0)
    monkeypatch.setattr(distillation, "most_probing", lambda whole: math.inf)
    main([*flags, "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = summary["estimated_agreement"]
    assert 0 <= found["low"] < found["agreement"] < found["high"] < 1
    assert found["images"] == 256 * len(PROBES) and summary["not_estimated"] == ""
    shown = f"{found['agreement']:.0%}"
    assert f"{shown} (" in capsys.readouterr().out
    assert f"{shown} (" in (tmp_path / "run" / "README.md").read_text()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "agreement on real images, estimated without data" in page
    same = (tmp_path / name / "student.safetensors" for name in ("short", "run"))
    assert len({path.read_bytes() for path in same}) == 1  # an estimate chooses nothing


def test_a_run_whose_teacher_fails_at_gradients_is_finished_without_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: object) -> float:
        raise RuntimeError("derivative for\nthis is not implemented")

    monkeypatch.setattr(distillation, "LEAST_PROBED", 0.0)
    monkeypatch.setattr(distillation, "seconds_for_set", failing)
    flags = ("--student", "resnet8-w4", "--images-seen", "200", "--run.threads", "1", "--quiet")
    main(["distill", *flags, "--val-data", "none", "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["estimated_agreement"] is None
    assert summary["not_estimated"] == "RuntimeError: 'derivative for this is not implemented'"


def test_probes_of_a_teacher_with_large_maps_are_refined_in_even_parts(
    teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Noted(Pixels):
        def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
            asked.append(context.stage.synthesis_batch)
            return super().synthesize(context, rng)

    monkeypatch.setattr(panel, "Pixels", Noted)
    each = 4 * activations(teacher.network, teacher.spec.shape)
    monkeypatch.setattr(panel, "HELD", 100.5 * each)
    (found,) = probe_panel(Recipe(), teacher, only=["refined.drawings.10"])
    assert asked == [86, 86, 84]
    assert len(found.images) == 256 and len(set(found.logits.argmax(1).tolist())) == 10


def test_what_probes_cost_is_measured_and_not_counted_as_asked(teacher: FrozenTeacher) -> None:
    queries = teacher.queries
    assert seconds_for_set(Recipe(), teacher) > 0
    assert teacher.queries == queries
