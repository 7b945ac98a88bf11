"""What a run will take: the arithmetic by hand, and that trying changes nothing of the run."""

import copy
from dataclasses import is_dataclass
from math import prod

import pytest
import torch

from synthkd.core.images import ImageSpec
from synthkd.engine.build import assemble
from synthkd.engine.estimate import (
    RoundCost,
    activations,
    estimate,
    measure,
    memory_of,
    predict,
)
from synthkd.engine.loop import Lab, rounds
from synthkd.engine.progress import Budget
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage, load_recipe
from synthkd.specs import load_teacher, new_student
from synthkd.synthesis import plan as plans
from synthkd.teachers.frozen import FrozenTeacher

DRAW = Stage(name="draw", generator="procedural", fresh=100, student_steps=0)
STUDY = Stage(name="study", generator="none", student_steps=2)
COSTS = {
    "draw": RoundCost(2.0, 1.0, 0.0, synthesized=100),
    "study": RoundCost(0.0, 0.0, 4.0, seen=200),
}


def test_a_budget_in_images_is_counted_in_whole_rounds_of_drawing_and_in_images_learned():
    draw, study = predict([DRAW, STUDY], Budget(False, (250.0, 500.0), 500.0), COSTS)
    assert (draw.rounds, draw.seconds, draw.synthesized, draw.seen) == (3.0, 9.0, 300.0, 0.0)
    assert (study.rounds, study.seconds, study.seen) == (2.5, 10.0, 500.0)


def test_a_budget_in_minutes_is_divided_by_what_a_round_takes():
    draw, study = predict([DRAW, STUDY], Budget(True, (30.0, 60.0), 60.0), COSTS)
    assert (draw.rounds, draw.synthesized) == (10.0, 1000.0)
    assert (study.rounds, study.seen) == (15.0, 3000.0)


def test_a_round_longer_than_its_stage_is_still_one_round():
    (draw,) = predict([DRAW], Budget(True, (1.0,), 0.0), COSTS)
    assert (draw.rounds, draw.seconds) == (1.0, 3.0)


def test_a_stage_in_which_nothing_counts_is_one_round():
    (draw,) = predict([DRAW], Budget(False, (100.0,), 0.0), {"draw": RoundCost(1.0, 0.0, 0.0)})
    assert draw.rounds == 1.0


def test_activations_are_the_sizes_of_all_that_layers_return():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64, 10),
    )  # fmt: skip
    assert activations(network, (1, 8, 8)) == 4 * 64 + 4 * 64 + 4 * 16 + 64 + 10


@pytest.mark.parametrize("repeats", [1, 4])
def test_memory_counts_what_the_teacher_shows_while_a_student_learns(repeats, monkeypatch):
    """Of a batch, and with repeats of a round of three: twice, and views of 256 numbers as float32
    and twice as bytes, while they are put together."""
    monkeypatch.setattr("synthkd.engine.estimate.resident", lambda: 0.0)
    stages = [DRAW, STUDY.model_copy(update={"student_steps": 3})]
    student = build_network("resnet8-w4", channels=1, size=16, classes=3)
    spec = ImageSpec(1, 16, 16, (0.5,), (0.25,))
    teacher = FrozenTeacher(Classifier(build_network("resnet8-w4", channels=1, size=16, classes=3),
                                       spec, 3))  # fmt: skip
    learned = 4 * 8 * activations(student, (1, 16, 16))
    for shown in ({}, {"a": (2, 16, 16), "b": (40,)}, {"a": (900, 16, 16)}):
        features = 4 * sum(prod(shape) for shape in shown.values())
        round_ = (3 * 8 * (features + 256), 3 * 8 * (2 * features + 6 * 256))
        expected = learned + 8 * features
        if repeats > 1:
            expected = max(expected + round_[0], round_[1])
        assert expected == memory_of(
            teacher, stages, student, batch=8, remembered=0.0, bfloat16=False, shown=shown,
            repeats=repeats,
        )  # fmt: skip


def test_memory_counts_the_batches_that_are_refined_and_not_those_that_are_drawn(monkeypatch):
    monkeypatch.setattr("synthkd.engine.estimate.resident", lambda: 0.0)
    spec = ImageSpec(1, 16, 16, (0.5,), (0.25,))
    teacher = FrozenTeacher(Classifier(build_network("resnet8-w4", channels=1, size=16, classes=3),
                                       spec, 3))  # fmt: skip
    drawn = DRAW.model_copy(update={"synthesis_batch": 512, "synthesis_steps": 1})
    refined = drawn.model_copy(update={"synthesis_batch": 32, "terms": {"one_hot": 1.0}})
    told = {"batch": 8, "remembered": 0.0, "bfloat16": False}
    assert memory_of(teacher, [drawn], None, **told) == 0.0
    found = memory_of(teacher, [drawn, refined], None, **told)
    assert found == 4 * 32 * activations(teacher.network, (1, 16, 16))


def test_a_run_expects_the_features_that_it_will_hold(monkeypatch):
    monkeypatch.setattr("synthkd.engine.estimate.resident", lambda: 0.0)
    found = []
    for terms in ({"soft_targets": 1.0}, {"soft_targets": 1.0, "hint": 1.0}):
        recipe = recipe_of("shaders")
        training = recipe.training.model_copy(update={"terms": terms})
        lab = lab_of(recipe.model_copy(update={"training": training}))
        found.append(estimate(lab).memory)
    assert lab.learner is not None
    layers = lab.learner.objective.teacher_layers
    shown = lab.teacher.teach(torch.rand(1, *lab.teacher.spec.shape), layers).features
    numbers = sum(value.numel() for value in shown.values())
    assert found[1] - found[0] == pytest.approx(4 * 32 * numbers, rel=1e-6) and numbers > 1000


def lab_of(recipe: Recipe) -> Lab:
    teacher = load_teacher(recipe.teacher)
    torch.manual_seed(1)
    student = new_student(recipe.student, teacher)
    return assemble(recipe, teacher, student)


def recipe_of(pipeline: str, images: int = 512) -> Recipe:
    return load_recipe(
        None,
        {
            "pipeline": pipeline, "student": {"spec": "resnet8-w4"}, "budget": {"images": images},
            "training": {"batch": 32}, "memory": {"capacity": 400}, "generator": {"width": 4},
        },
        {},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["synthkd", "gan", "fast-2", "shaders"])
def test_trying_the_parts_changes_nothing_of_the_run(pipeline: str):
    lab = lab_of(recipe_of(pipeline))
    before, rng = copy.deepcopy(lab.state_dict()), torch.get_rng_state()
    costs, answer = measure(lab)
    assert set(costs) == {stage.name for stage in lab.stages}
    assert all(cost.seconds > 0 for cost in costs.values()) and answer > 0
    assert torch.equal(torch.get_rng_state(), rng)
    assert same(before, lab.state_dict())
    assert lab.teacher.queries == 0


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["synthkd", "gan"])
def test_what_is_expected_of_every_stage_is_what_comes(pipeline: str):
    lab = lab_of(recipe_of(pipeline, 1024))
    expected = {stage.name: stage for stage in estimate(lab).stages}
    seen: dict[str, tuple[int, int]] = {}
    last = (0, 0)
    for round_ in rounds(lab):
        now = (round_.progress.images_seen, round_.progress.synthesized)
        learned, synthesized = seen.get(round_.stage, (0, 0))
        seen[round_.stage] = (learned + now[0] - last[0], synthesized + now[1] - last[1])
        last = now
    for name, (learned, synthesized) in seen.items():
        assert expected[name].seen == pytest.approx(learned, rel=0.1)
        assert expected[name].synthesized == pytest.approx(synthesized, rel=0.35, abs=64)


def test_a_black_box_is_asked_little_and_it_is_counted():
    body = build_network("resnet8-w4", channels=1, size=16, classes=3)
    spec = ImageSpec(1, 16, 16, (0.5,), (0.25,))
    teacher = FrozenTeacher(Classifier(body, spec, 3), access="logits")
    recipe = recipe_of("shaders")
    recipe, _ = plans.suited(recipe, teacher)
    lab = assemble(recipe, teacher, None)
    measure(lab)
    assert 0 < teacher.queries <= 32
