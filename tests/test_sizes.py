"""What is chosen by the size of the images: batches, sizes, answers used again; and cycles."""

import tomllib
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthkd
from synthkd.core.images import ImageSpec
from synthkd.engine.batches import TaughtBatch, pooled
from synthkd.engine.build import assemble
from synthkd.engine.loop import rounds
from synthkd.losses.distillation.answers import soft_targets
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, TeacherTable, to_toml, validated
from synthkd.schedules import scale
from synthkd.specs import load_teacher, new_student
from synthkd.students.learner import Learner
from synthkd.synthesis import resolution
from synthkd.synthesis.plan import cycled, plan, sized, suited
from synthkd.synthesis.resolution import mean_area
from synthkd.synthesis.tuning import RATES, TRIED, USUAL, USUAL_LARGE, Trial, tried, tuned
from synthkd.teachers.frozen import FrozenTeacher, digest_of
from synthkd.teachers.protocol import Seen

SMALL: dict[str, Any] = {
    "training.batch": 16, "stage.draw.fresh": 64, "stage.refine.synthesis_batch": 20,
    "stage.refine.synthesis_steps": 2, "student.spec": "resnet8-w4", "run.threads": 1,
}  # fmt: skip


def teacher_of(size: int, *, flat: bool = False) -> FrozenTeacher:
    torch.manual_seed(0)
    last: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    if flat:
        last = [nn.Flatten(), nn.Linear(6 * (size // 2) ** 2, 3)]
    body = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), *last)
    return FrozenTeacher(Classifier(body, ImageSpec(1, size, size, (0.5,), (0.25,)), 3))


def test_small_images_are_left_as_they_were() -> None:
    found, reasons = sized(Recipe.of({}), load_teacher(TeacherTable()))
    assert (found.training.batch, found.training.scales) == (256, {})
    assert {stage.synthesis_batch for stage in found.stage if stage.generator == "auto"} == {256}
    assert found.pixels.scales == {} and reasons == ()


def test_large_images_have_smaller_batches_and_sizes() -> None:
    found, reasons = sized(Recipe.of({}), teacher_of(224))
    assert found.training.batch == 64
    assert found.training.learning_rate == Recipe.of({}).training.learning_rate * 64 / 256
    assert found.training.scales == {}  # see the log: the student needs the full size
    refine = next(stage for stage in found.stage if stage.name == "refine")
    assert refine.synthesis_batch == 32
    assert any("32 in a generator step" in line for line in reasons)
    again, more = sized(found, teacher_of(224))
    assert again == found and more == ()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "fresh"), [(32, 1024), (224, 1024), (640, 160)])
def test_fresh_images_of_a_round_fit_into_memory(size: int, fresh: int) -> None:
    found, reasons = sized(Recipe.of({}), teacher_of(size))
    draw = next(stage for stage in found.stage if stage.name == "draw")
    assert draw.fresh == fresh and size**2 * draw.fresh <= 2**26
    assert any("fresh ones in a round" in line for line in reasons) == (fresh < 1024)


def test_what_is_given_stays() -> None:
    given = {
        "training.batch": 100, "stage.refine.synthesis_batch": 50,
        "training.scales": {1.0: 1.0}, "pixels.scales": {0.5: 1.0},
    }  # fmt: skip
    found, _ = sized(Recipe.of(given), teacher_of(224))
    assert found.training.batch == 100
    assert (found.training.scales, found.pixels.scales) == ({1.0: 1.0}, {0.5: 1.0})


def test_a_memory_is_as_large_as_there_is_room() -> None:
    found, reasons = sized(Recipe.of({}), teacher_of(224))
    assert found.memory.capacity == 10_000_000_000 // 224**2
    assert any("images at most" in line for line in reasons)


def test_sizes_are_those_whose_statistics_still_fit() -> None:
    flat, pooling = resolution.gaps(teacher_of(64, flat=True)), resolution.gaps(teacher_of(64))
    assert list(flat) == [1.0] and resolution.scales(flat) == {}  # it takes no other size
    assert set(pooling) == {0.25, 0.375, 0.5, 0.75, 1.0}
    closed = load_teacher(TeacherTable(access="logits"))
    assert resolution.gaps(closed) == {}


@pytest.mark.parametrize("text", ["0.5=0.7", "2=1", "0.5=1,1=0", "0.5=x"])
def test_scales_that_are_none_are_one_line(text: str) -> None:
    with pytest.raises(synthkd.InputError):
        Recipe.of({"training.scales": text})


def test_a_student_sees_small_images_first_and_large_ones_last() -> None:
    teacher = load_teacher(TeacherTable())
    recipe = Recipe.of({**SMALL, "budget.images": 320, "training.scales": "0.5=0.6,1=0.4"})
    lab = assemble(recipe, teacher, new_student(recipe.student, teacher))
    assert lab.learner is not None
    seen: list[tuple[int, ...]] = []
    step = lab.learner.step

    def watched(images: Tensor, taught: Any, progress: float, **more: Any) -> Any:
        seen.append(tuple(images.shape[2:]))
        return step(images, taught, progress, **more)

    lab.learner.step = watched  # type: ignore[method-assign]
    list(rounds(lab))
    assert seen == [(8, 8)] * 12 + [(16, 16)] * 8


@pytest.mark.slow
def test_every_network_of_a_chain_sees_small_images_first_and_large_ones_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An assistant too: it teaches, and is judged, at full size."""
    given = {
        **SMALL,
        "budget.images": 640,
        "training.repeats": 1,
        "training.scales": "0.5=0.6,1=0.4",
    }
    lab = synthkd.build(Recipe.of({**given, "teaching.assistants": ("resnet8-w8",)}))
    assert lab.chain is not None
    seen: dict[int, list[tuple[int, ...]]] = {}
    step = Learner.step

    def watched(self: Learner, images: Tensor, *more: Any, **rest: Any) -> Any:
        seen.setdefault(id(self), []).append(tuple(images.shape[2:]))
        return step(self, images, *more, **rest)

    monkeypatch.setattr(Learner, "step", watched)
    list(rounds(lab))
    turn = [(8, 8)] * 12 + [(16, 16)] * 8
    assert [seen[id(learner)] for learner in lab.chain.learners] == [turn, turn]


@pytest.mark.slow
def test_each_answer_is_learned_so_many_times_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, answered = load_teacher(TeacherTable()), []
    teach = teacher.teach

    def counting(images: Tensor, layers: Any = ()) -> Seen:
        answered.append(len(images))
        return teach(images, layers)

    monkeypatch.setattr(teacher, "teach", counting)
    recipe = Recipe.of({**SMALL, "budget.images": 960, "training.repeats": 3})
    lab = assemble(recipe, teacher, new_student(recipe.student, teacher))
    assert lab.learner is not None
    seen: list[Tensor] = []
    step = lab.learner.step

    def watched(images: Tensor, taught: Seen, progress: float, **more: Any) -> Any:
        close = lab.teacher(images) - taught.logits  # views are kept in 256 steps
        assert close.abs().max() < 0.5
        seen.append(images)
        return step(images, taught, progress, **more)

    lab.learner.step = watched  # type: ignore[method-assign]
    list(rounds(lab))
    assert sum(answered) == 320
    assert lab.progress.images_seen == 960 == lab.progress.synthetic_seen
    first, second = seen[:10], seen[10:20]  # ten batches a round, learned three times
    assert not torch.equal(torch.cat(first), torch.cat(second))
    sums = [torch.cat(part).flatten(1).sum(1).sort().values for part in (first, second)]
    assert torch.allclose(*sums)


@pytest.mark.parametrize("left", [1, 2, 4, 5])
def test_a_run_with_repeated_answers_ends_whatever_its_budget_leaves_over(left: int) -> None:
    """Up to four are a single image with its answer, which is no batch, and the stage makes others
    for ever."""
    lab = synthkd.build(Recipe.of({
        "pipeline": "gan", "run.stages": "joint", "generator.width": 4, "stage.joint.fresh": 32,
        "stage.joint.synthesis_steps": 1, "stage.joint.synthesis_batch": 8, "run.threads": 1,
        "student.spec": "resnet8-w4", "training.batch": 16, "training.repeats": 4,
        "stage.joint.student_steps": 2, "budget.images": 128 + left,
    }))  # fmt: skip
    assert len(list(islice(rounds(lab), 9))) < 9 and lab.finished
    assert lab.progress.images_seen == (128 if left < 5 else 134)


def test_a_mix_ratio_is_exact_with_repeated_answers() -> None:
    teacher = load_teacher(TeacherTable())
    given = {**SMALL, "budget.images": 480, "training.repeats": 3, "data.mix_ratio": 0.25}
    recipe = Recipe.of(given)
    lab = assemble(recipe, teacher, new_student(recipe.student, teacher))
    lab.use_real(torch.full((100, 1, 16, 16), 255, dtype=torch.uint8))
    list(rounds(lab))
    assert lab.progress.synthetic_seen / lab.progress.images_seen == pytest.approx(0.25, abs=0.01)


def test_batches_are_pooled_and_taken_apart() -> None:
    def batch(value: float, weights: Tensor | None) -> TaughtBatch:
        seen = Seen(torch.full((2, 3), value), {"a": torch.full((2, 4), value)})
        views = torch.full((2, 1, 2, 2), value)
        return TaughtBatch(
            views,
            seen,
            torch.tensor([-1, 4]),
            torch.tensor([1, 2]),
            torch.tensor([True, False]),
            torch.tensor([False, value == 1]),
            weights,
        )

    pool = pooled([batch(0.0, None), batch(1.0, torch.tensor([0.5, 2.0]))])
    assert pool.views.dtype == torch.uint8 and pool.weights is not None
    assert pool.weights.tolist() == [1, 1, 0.5, 2]
    found = pool.take(torch.tensor([3, 0]))
    assert found.views[:, 0, 0, 0].tolist() == [255, 0]
    assert found.seen.logits[:, 0].tolist() == found.seen.features["a"][:, 0].tolist() == [1, 0]
    assert found.synthetic.tolist() == [False, True]


def test_cycles_alternate_making_and_learning() -> None:
    teacher = load_teacher(TeacherTable())
    terms = {"one_hot": 1.0, "disagreement": 0.5}
    given = {**SMALL, "budget.images": 480, "budget.cycles": 3, "stage.refine.terms": terms}
    recipe = Recipe.of(given)
    lab = assemble(recipe, teacher, new_student(recipe.student, teacher))
    names = [stage.name for stage in lab.stages]
    assert names == ["draw", "refine", "study"] * 3
    refining = [stage for stage in lab.stages if stage.name == "refine"]
    assert ["disagreement" in stage.terms for stage in refining] == [False, True, True]
    assert all("one_hot" in stage.terms for stage in refining)
    order = [round_.stage for round_ in rounds(lab)]
    assert [name for i, name in enumerate(order) if not i or order[i - 1] != name] == names
    assert lab.progress.images_seen == 480


def test_one_cycle_is_the_plan_itself() -> None:
    stages = plan(Recipe.of({}), load_teacher(TeacherTable())).stages
    assert cycled(stages, 1) == stages


def test_areas_and_sizes_follow_each_other() -> None:
    scales = {0.5: 0.25, 1.0: 0.75}
    steps = [scale(k / 1000, scales) for k in range(1000)]
    assert sum(side**2 for side in steps) / 1000 == pytest.approx(mean_area(scales), abs=2e-3)


def planned(settings: dict[str, Any], teacher: FrozenTeacher):
    recipe, _ = suited(Recipe.of(settings), teacher)
    return recipe, plan(recipe, teacher).stages


def test_a_learning_rate_is_tried_for_large_images() -> None:
    """The one with the least loss, here found again; the teacher is as it was."""
    teacher = teacher_of(64)
    before = digest_of(teacher.classifier)
    recipe, stages = planned({"stage.refine.synthesis_steps": 8}, teacher)
    stage, scales = next(s for s in stages if s.name == "refine"), recipe.pixels.scales
    assert scales and recipe.pixels.learning_rate == 0
    found, chosen, reasons = tuned(recipe, stages, teacher)
    assert teacher.queries == 0 and digest_of(teacher.classifier) == before
    trials = [tried(recipe, stage, teacher, rate, scales, 8) for rate in RATES]
    best = min(trials, key=lambda trial: trial.loss)
    few = max(1, round(8 * mean_area(scales)))
    trials.append(tried(recipe, stage, teacher, best.learning_rate, {1.0: 1.0}, few))
    best = min(trials, key=lambda trial: trial.loss)
    assert len({trial.loss for trial in trials}) > 1
    assert found.pixels.learning_rate == best.learning_rate
    assert found.pixels.scales == dict(best.scales)
    of_plan, of_recipe = (
        next(s for s in some if s.name == "refine").synthesis_steps
        for some in (chosen, found.stage)
    )
    assert of_plan == of_recipe == best.steps
    assert f"the best of 4 that were tried on {TRIED} drawings" in reasons[0]
    again, same, none = tuned(found, chosen, teacher)  # as when a run goes on
    assert (again, same, none) == (found, chosen, ())
    assert suited(found, teacher)[0] == found


def test_where_a_trial_does_not_pay_a_usual_rate_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Trial:
        raise AssertionError

    monkeypatch.setattr("synthkd.synthesis.tuning.tried", never)
    small = load_teacher(TeacherTable())
    assert tuned(*planned({}, small), small)[0].pixels.learning_rate == USUAL
    large = teacher_of(64)
    short = {"budget.minutes": 2}
    assert tuned(*planned(short, large), large)[0].pixels.learning_rate == USUAL_LARGE
    given = {"pixels.learning_rate": 0.3}
    assert tuned(*planned(given, large), large)[0].pixels.learning_rate == 0.3


def test_trials_that_would_take_too_long_are_not_begun() -> None:
    """Of 16 steps each the minutes have room for three trials, of a million for none."""
    teacher = teacher_of(64)
    asked: list[int] = []
    teacher.classifier.body[0].register_forward_hook(lambda *_: asked.append(1))
    few, many = (
        {"budget.minutes": 60, "stage.refine.synthesis_steps": steps} for steps in (16, 10**6)
    )
    assert "the best of" in tuned(*planned(few, teacher), teacher)[2][0]
    recipe, stages = planned(many, teacher)
    asked.clear()
    found, _, reasons = tuned(recipe, stages, teacher)
    assert (found.pixels.learning_rate, reasons) == (USUAL_LARGE, ())
    assert 0 < len(asked) < 20  # a probe of a few steps, not a trial
    assert teacher.queries == 0


@pytest.mark.slow
def test_a_generator_step_has_as_many_images_as_the_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = teacher_of(512)  # 6 x 256 x 256 thrice, 6 twice, 3
    kept = 3 * 6 * 256**2 + 15
    monkeypatch.setattr("synthkd.synthesis.plan.machine_memory", lambda: 4.0 * 4 * 5.5 * kept)
    found, reasons = sized(Recipe.of({"run.precision": "float32"}), teacher)
    refine = next(stage for stage in found.stage if stage.name == "refine")
    assert refine.synthesis_batch == 5
    assert "5 images in a generator step: more would not fit into the memory" in reasons
    monkeypatch.setattr("synthkd.synthesis.plan.machine_memory", lambda: 1e15)
    found, reasons = sized(Recipe.of({"run.precision": "float32"}), teacher)
    refine = next(stage for stage in found.stage if stage.name == "refine")
    assert refine.synthesis_batch == 32


def test_scales_are_written_and_read_back() -> None:
    settings = {"pixels.scales": "0.375=0.5,1=0.5", "teacher.args": {"a.b": "c d", "ü": "1"}}
    recipe = Recipe.of(settings)
    assert validated(tomllib.loads(to_toml(recipe))) == recipe


def many_classes(classes: int) -> FrozenTeacher:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip
    return FrozenTeacher(Classifier(body, ImageSpec(1, 16, 16, (0.5,), (0.25,)), classes))


def names_of(settings: dict[str, Any], classes: int, **shown: Any) -> tuple[list[str], str]:
    """The stages that are left for so many classes, and what is said of those left out."""
    recipe = Recipe.of({"student.spec": "resnet8-w4", **settings})
    teacher = many_classes(classes)
    student = new_student(recipe.student, teacher)
    for name, value in shown.items():
        setattr(student, name, value)
    lab = assemble(recipe, teacher, student)
    assert lab.recipe.pixels.least_per_class == 0  # decided, also for a run that goes on
    assert [s.name for s in lab.recipe.stages] == [s.name for s in lab.stages]
    assert ("pixels" in lab.recipe.memory.shares) == ("refine" in [s.name for s in lab.stages])
    again = assemble(lab.recipe, teacher, student)
    assert again.stages == lab.stages
    said = [line for line in lab.plan.reasons if "left out" in line]
    return [stage.name for stage in lab.stages], "".join(said)


def test_refining_is_left_out_where_it_would_give_too_few_of_each_class() -> None:
    """By images exactly: 0.35 / 0.6 of the budget, 40 steps an image; by minutes as measured."""
    enough = int(40 * 40 * 20 * 0.6 / 0.35) + 1
    every, drawn = ["draw", "refine", "study"], ["draw", "study"]
    assert names_of({"budget.images": enough}, 20) == (every, "")
    left, said = names_of({"budget.images": enough * 9 // 10}, 20)
    assert left == drawn and "36 images of each of 20 classes, and fewer than 40" in said
    few = {"budget.images": 1000}
    assert names_of(few, 20)[0] == drawn
    assert names_of(few, 10)[0] == names_of(few | {"pixels.least_per_class": 0}, 20)[0] == every
    assert names_of(few, 20, kept={"0": torch.zeros(1)})[0] == every
    assert names_of(few | {"run.stages": ("refine", "study")}, 20)[0] == ["refine", "study"]
    assert names_of({"budget.minutes": 0.01}, 20)[0] == drawn
    assert names_of({"budget.minutes": 100_000}, 20)[0] == every


def test_gradient_of_softened_answers_is_divided_by_the_classes() -> None:
    """At a high temperature that of T² · KL is (learned − taught) / (B · K) for centred logits."""
    torch.manual_seed(0)
    for classes in (10, 40):
        taught = torch.randn(8, classes, dtype=torch.float64)
        learned = torch.randn(8, classes, dtype=torch.float64)
        taught -= taught.mean(1, keepdim=True)
        learned = (learned - learned.mean(1, keepdim=True)).requires_grad_()
        (found,) = torch.autograd.grad(soft_targets(learned, taught, temperature=1e3), learned)
        expected = (learned.detach() - taught) / (8 * classes)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-4)


def test_soft_targets_weigh_more_for_many_classes() -> None:
    """8 times for forty classes (4^1.5), once; as given for ten, at temperature 1, for a student
    that is cut out of its teacher, and where it was not asked for."""
    terms = {"soft_targets": 2.0, "decoupled_others": 1.0, "votes": 1.0}
    recipe = Recipe.of({"student.spec": "resnet8-w4", "training.terms": terms})
    assert recipe.training.scale_by_classes

    def weight(given: Recipe, classes: int, **shown: Any) -> float:
        teacher = many_classes(classes)
        student = new_student(given.student, teacher)
        for name, value in shown.items():
            setattr(student, name, value)
        found, reasons = suited(given, teacher, student)
        assert not found.training.scale_by_classes
        told = [line for line in reasons if "soft_targets" in line]
        assert bool(told) == (found.training.terms != given.training.terms)
        assert suited(found, teacher, student) == (found, ())
        assert found.training.terms["votes"] == 1
        assert found.training.terms["decoupled_others"] * 2 == found.training.terms["soft_targets"]
        return found.training.terms["soft_targets"]

    assert weight(recipe, 40) == 16
    assert weight(recipe, 10) == weight(recipe, 4) == 2
    assert weight(recipe, 40, kept={"0": torch.zeros(1)}) == 2
    none = recipe.training.model_copy(update={"terms": {"soft_targets": 0.0, "votes": 1.0}})
    assert suited(recipe.model_copy(update={"training": none}), many_classes(40), new_student(
        recipe.student, many_classes(40)
    ))[1] == ()  # fmt: skip
    hard = recipe.training.model_copy(update={"temperature": 1.0})
    assert weight(recipe.model_copy(update={"training": hard}), 40) == 2
    off = recipe.training.model_copy(update={"scale_by_classes": False})
    assert weight(recipe.model_copy(update={"training": off}), 40) == 2
