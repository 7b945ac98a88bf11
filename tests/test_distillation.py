"""The loop: the same twice, the same after a break, and every image counted."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.images import Batch, ImageSpec, to_uint8
from synthkd.core.seeds import generator_for, globally
from synthkd.core.states import load_state, save_state
from synthkd.engine.build import assemble
from synthkd.engine.held_out import select_final_weights
from synthkd.engine.loop import Lab, Round, rounds
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, TeacherTable
from synthkd.schedules import share
from synthkd.specs import load_teacher, new_student
from synthkd.students.learner import Step
from synthkd.synthesis import GENERATORS, Generator
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch, even_labels
from synthkd.synthesis.plan import plan
from synthkd.teachers.frozen import FrozenTeacher, digest_of
from synthkd.teachers.protocol import Seen

STAGES = [
    {
        "name": "pregenerate", "generator": "gan", "share": 0.2, "student_steps": 0,
        "synthesis_batch": 16, "fresh": 32,
        "terms": {"one_hot": 1.0, "statistics": 1.0, "prototype": 0.1},
    },
    {
        "name": "finetune", "generator": "none", "share": 0.3, "synthesis_steps": 0, "fresh": 0,
        "student_steps": 2,
    },
    {
        "name": "joint", "generator": "gan", "share": 0.5, "student_steps": 2,
        "synthesis_batch": 16, "fresh": 16,
        "terms": {"one_hot": 1.0, "consistency": 0.1, "disagreement": 1.0, "realism": 0.1},
    },
]  # fmt: skip
TINY: dict[str, Any] = {
    "student": {"spec": "resnet8-w4"},
    "budget": {"images": 256},
    "training": {"batch": 16},
    "generator": {"width": 4, "latent": 8},
    "discriminator": {"width": 4},
    "memory": {"capacity": 80},
    "stage": STAGES,
}
PLAIN = {"shift": 0, "flip": False, "affine": 0, "jitter": 0, "erase": 0, "mixup": 0}


def recipe(**tables: Any) -> Recipe:
    return Recipe.model_validate(TINY | tables)


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


@pytest.fixture(scope="module")
def real() -> Tensor:
    """Real images that give themselves away: all white but for a black corner."""
    pixels = torch.full((100, 1, 16, 16), 255, dtype=torch.uint8)
    pixels[:, :, 0, 0] = 0
    return pixels


def lab_of(the_recipe: Recipe, teacher: FrozenTeacher, real: Tensor | None = None) -> Lab:
    with globally(generator_for(the_recipe.run.seed, "student")):
        student = new_student(the_recipe.student, teacher)
    lab = assemble(the_recipe, teacher, student)
    if real is not None:
        lab.use_real(real)
    return lab


def weights(lab: Lab) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in lab.learner.student.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


def shown(lab: Lab) -> list[Tensor]:
    """A list that will hold every batch the student learns from, as uint8."""
    seen: list[Tensor] = []
    step: Callable[..., Step] = lab.learner.step

    def listening(images: Tensor, taught: Seen, progress: float, **more: Any) -> Step:
        assert torch.equal(taught.logits, lab.teacher(images))  # both see the same view
        seen.append(to_uint8(images))
        return step(images, taught, progress, **more)

    lab.learner.step = listening  # type: ignore[method-assign]
    return seen


def told(laps: list[Round]) -> list[tuple[Any, ...]]:
    """All that a round tells, clocks apart."""
    return [
        (
            round_.stage,
            round_.share,
            round_.measures,
            round_.progress.images_seen,
            round_.progress.synthetic_seen,
            round_.progress.work,
        )
        for round_ in laps
    ]


# --- the same again ---


@pytest.fixture(scope="module")
def unbroken(teacher: FrozenTeacher) -> tuple[list[Round], dict[str, Tensor], Lab]:
    torch.manual_seed(1)
    lab = lab_of(recipe(), teacher)
    laps = list(rounds(lab))
    return laps, weights(lab), lab


def test_the_same_seed_gives_the_same_student_bit_for_bit(teacher, unbroken):
    torch.manual_seed(2)
    again = lab_of(recipe(), teacher)
    laps = list(rounds(again))
    assert told(laps) == told(unbroken[0])
    assert_same(weights(again), unbroken[1])
    assert_same(again.learner.average, unbroken[2].learner.average)


def test_another_seed_gives_another_student(teacher, unbroken):
    other = lab_of(recipe(run={"seed": 1}), teacher)
    list(rounds(other))
    assert not torch.equal(weights(other)["body.conv1.weight"], unbroken[1]["body.conv1.weight"])


@pytest.mark.parametrize("where", ["pregenerate", "finetune", "joint", "joint's end"])
def test_a_run_resumed_from_a_file_gives_the_student_of_an_unbroken_one(
    teacher, unbroken, tmp_path: Path, where
):
    """Stopped after the first round of a stage, or one round before the end of all."""
    laps, expected, whole = unbroken
    names = [round_.stage for round_ in laps]
    after = len(laps) - 1 if where == "joint's end" else names.index(where) + 1
    first = lab_of(recipe(), teacher)
    walk = rounds(first)
    for _ in range(after):
        next(walk)
    save_state(first.state_dict(), tmp_path / "x", "checkpoint")

    torch.manual_seed(77)
    second = assemble(recipe(), teacher, new_student(recipe().student, teacher))
    second.load_state_dict(load_state(tmp_path / "x", "checkpoint"))
    rest = list(rounds(second))
    assert told(rest) == told(laps[after:])
    assert_same(weights(second), expected)
    assert_same(second.learner.average, whole.learner.average)
    assert second.difficulty == whole.difficulty
    for name in ("images", "labels", "logits", "votes"):
        assert torch.equal(
            getattr(second.memory.everything(), name), getattr(whole.memory.everything(), name)
        )
    assert select_final_weights(second)[0] == select_final_weights(copy.deepcopy(whole))[0]


def test_a_resumed_run_with_real_images_and_procedural_ones_is_the_same_too(
    teacher, real, tmp_path
):
    mixed = recipe(
        data={"mix_ratio": 0.5, "real": "given"},
        training={"batch": 16, "optimizer": "adamw", "learning_rate": 0.01},
        stage=[STAGES[0] | {"generator": "procedural"}, STAGES[1], STAGES[2]],
    )
    whole, first, second = (lab_of(mixed, teacher, real) for _ in range(3))
    laps, walk = list(rounds(whole)), rounds(first)
    for _ in range(len(laps) - 2):
        next(walk)
    save_state(first.state_dict(), tmp_path / "x", "checkpoint")
    second.load_state_dict(load_state(tmp_path / "x", "checkpoint"))
    assert told(list(rounds(second))) == told(laps[-2:])
    assert_same(weights(second), weights(whole))


def test_generators_in_another_order_change_nothing_for_a_run_that_is_resumed(teacher, tmp_path):
    two = recipe(
        memory={"capacity": 80, "shares": {"procedural": 0.5}},
        stage=[STAGES[0] | {"generator": "procedural"}, *STAGES[1:]],
    )
    whole, first, second = (lab_of(two, teacher) for _ in range(3))
    laps, walk = list(rounds(whole)), rounds(first)
    for _ in range(len(laps) - 2):
        next(walk)
    save_state(first.state_dict(), tmp_path / "x", "checkpoint")
    order = dict(GENERATORS)
    try:
        for name in reversed(order):
            GENERATORS[name] = GENERATORS.pop(name)
        assert list(GENERATORS) == list(order)[::-1]
        second.load_state_dict(load_state(tmp_path / "x", "checkpoint"))
        assert told(list(rounds(second))) == told(laps[-2:])
    finally:
        for name in order:
            GENERATORS[name] = GENERATORS.pop(name)
    assert set(second.memory.everything().origins) == {"procedural", "gan"}
    assert_same(weights(second), weights(whole))


def test_a_lab_takes_over_the_memory_of_a_finished_data_set(teacher, tmp_path):
    """Such a memory is as large as its data set, whatever the recipe's capacity."""
    given = recipe(data={"synthetic": "given"}, memory={"capacity": 10, "form": "autoencoder"})
    first, second = lab_of(given, teacher), lab_of(given, teacher)
    first.fill(torch.rand(100, 1, 16, 16).mul(255).to(torch.uint8), torch.zeros(100).long())
    save_state(first.state_dict(), tmp_path / "x", "checkpoint")
    second.load_state_dict(load_state(tmp_path / "x", "checkpoint"))
    assert torch.equal(first.memory.everything().images, second.memory.everything().images)
    assert first.memory.everything().origins == ("data",) * 95


# --- what a run tells ---


def test_the_stages_follow_each_other_and_the_share_rises_to_one(unbroken):
    laps = unbroken[0]
    names = [round_.stage for round_ in laps]
    assert list(dict.fromkeys(names)) == ["pregenerate", "finetune", "joint"]
    assert names == sorted(names, key=["pregenerate", "finetune", "joint"].index)
    shares = [round_.share for round_ in laps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [round_.progress.round for round_ in laps] == list(range(1, len(laps) + 1))


def test_a_round_tells_the_measures_of_its_stage(unbroken):
    found = {round_.stage: set(round_.measures) for round_ in unbroken[0]}
    made = {"balance", "confidence", "target_class_rate", "difficulty"}
    taught = {"loss", "agreement", "kl", "difficulty"}
    assert found["pregenerate"] == made | {"term.one_hot", "term.statistics", "term.prototype"}
    assert found["finetune"] == taught
    terms = {"term.one_hot", "term.consistency", "term.disagreement", "term.realism", "critic"}
    assert found["joint"] == made | taught | terms
    assert all(isinstance(v, float) for round_ in unbroken[0] for v in round_.measures.values())


def test_a_round_shows_fresh_images_where_there_are_any(unbroken):
    for round_ in unbroken[0]:
        if round_.stage == "finetune":
            assert round_.samples is round_.labels is None
        else:
            assert round_.samples.dtype == torch.uint8
            assert (
                len(round_.samples)
                == len(round_.labels)
                == {"pregenerate": 32, "joint": 16}[round_.stage]
            )


def test_the_teacher_is_the_same_afterwards(teacher, unbroken):
    assert digest_of(teacher.classifier) == teacher.digest
    assert all(p.grad is None for p in teacher.parameters())


def test_the_student_can_learn_on_afterwards(unbroken):
    assert all(p.requires_grad for p in unbroken[2].learner.student.parameters())


def test_time_is_told_by_part(unbroken):
    lab = unbroken[2]
    assert set(lab.seconds) == {"synthesis", "labelling", "student"}
    assert all(seconds > 0 for seconds in lab.seconds.values())
    assert sum(lab.seconds.values()) <= lab.progress.seconds


# --- counted ---


@pytest.mark.parametrize("images", [256, 259, 33, 17, 1])
def test_the_student_sees_exactly_the_images_of_the_budget(teacher, images):
    lab = lab_of(recipe(budget={"images": images}), teacher)
    seen = shown(lab)
    list(rounds(lab))
    assert sum(map(len, seen)) == lab.progress.images_seen == images
    assert all(len(batch) > 1 for batch in seen) or images == 1


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.95])
def test_the_mix_ratio_is_exact(teacher, real, ratio):
    lab = lab_of(recipe(data={"mix_ratio": ratio, "real": "given"}, augment=PLAIN), teacher, real)
    seen = shown(lab)
    list(rounds(lab))
    done = 0
    for batch in seen:
        synthetic = sum(not torch.equal(image, real[0]) for image in batch)
        assert synthetic == share(done, len(batch), ratio)
        done += len(batch)
    assert lab.progress.synthetic_seen == int(256 * ratio)
    assert sum(not torch.equal(image, real[0]) for batch in seen for image in batch) == int(
        256 * ratio
    )


class Untouchable:
    """Stands where real images would: whoever looks at it fails."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"real images were touched: {name}")

    def __len__(self) -> int:
        raise AssertionError("real images were counted")

    def __getitem__(self, _: object) -> Any:
        raise AssertionError("real images were read")


def test_a_data_free_run_never_touches_real_images(teacher, unbroken):
    lab = lab_of(recipe(), teacher)
    lab.real = Untouchable()  # type: ignore[assignment]
    list(rounds(lab))
    assert lab.progress.synthetic_seen == lab.progress.images_seen == 256
    assert_same(weights(lab), unbroken[1])


def test_at_mix_ratio_zero_all_images_are_real_and_a_twentieth_is_held_out(teacher):
    numbers = torch.arange(100, dtype=torch.uint8)
    images = (
        torch.rand(100, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        .mul(255)
        .to(torch.uint8)
    )
    images[:, 0, 0, 0] = numbers  # each carries its number
    lab = lab_of(recipe(data={"mix_ratio": 0.0, "real": "given"}, augment=PLAIN), teacher, images)
    seen = shown(lab)
    list(rounds(lab))
    taught = {int(image[0, 0, 0]) for batch in seen for image in batch}
    held_out = set(lab.held_out.everything().images[:, 0, 0, 0].tolist())
    assert len(held_out) == 5
    assert not held_out & taught
    assert lab.progress.synthetic_seen == lab.progress.synthesized == 0
    assert lab.generators == {}


def test_a_handful_of_real_images_is_enough(teacher, real):
    lab = lab_of(recipe(data={"mix_ratio": 0.0, "real": "given"}), teacher, real[:3])
    list(rounds(lab))
    assert lab.progress.images_seen == 256
    assert select_final_weights(lab)[0]["held_out_images"] == 0


def test_a_teacher_is_never_asked_about_nothing(teacher, real):
    lab = lab_of(recipe(data={"mix_ratio": 0.0, "real": "given"}), teacher, real[:3])
    asked = lab.teacher.queries
    assert lab.label(real[:0]).shape == (0, 10)
    assert lab.teacher.queries == asked


def test_a_joint_stage_may_leave_statistics_out_after_one_with_them(teacher):
    """What runs on of the first stage's statistics has nothing to be blended with."""
    the_recipe = recipe(generator=TINY["generator"] | {"statistics_ema": 0.9})
    assert "statistics" in the_recipe.stages[0].terms
    assert "statistics" not in the_recipe.stages[-1].terms
    lab = lab_of(the_recipe, teacher)
    assert {round_.stage for round_ in rounds(lab)} >= {"pregenerate", "joint"}


def test_a_generator_that_offers_nothing_leaves_the_replay(teacher):
    stages = [dict(stage) for stage in TINY["stage"]]
    stages[-1]["fresh"] = 0
    lab = lab_of(recipe(stage=stages), teacher)
    laps = list(rounds(lab))
    assert laps[-1].stage == "joint" and lab.progress.images_seen > 0


def test_nobody_learns_from_held_out_images(teacher):
    """One in sixteen is held out: two of 32 before, one of 16 in the joint stage."""
    lab = lab_of(recipe(augment=PLAIN), teacher)
    seen = shown(lab)
    laps = list(rounds(lab))
    kept = {image.numpy().tobytes() for image in lab.held_out.everything().images}
    assert not kept & {image.numpy().tobytes() for batch in seen for image in batch}
    names = [round_.stage for round_ in laps]
    assert len(lab.held_out) == 2 * names.count("pregenerate") + names.count("joint")


def test_with_nothing_replayed_every_image_is_of_this_round(teacher):
    lab = lab_of(recipe(augment=PLAIN, memory={"capacity": 80, "replayed": 0.0}), teacher)
    seen, joint = shown(lab), 0
    for round_ in rounds(lab):
        if round_.stage == "joint":
            fresh = {image.numpy().tobytes() for image in round_.samples}
            assert all(image.numpy().tobytes() in fresh for batch in seen for image in batch)
            joint += len(seen)
        seen.clear()
    assert joint > 0


def test_every_new_image_is_seen_once_before_any_is_seen_again(teacher):
    """DFAD and DFQ: each of the student's steps is on new images."""
    stages = [STAGES[2] | {"generator": "procedural", "share": 1.0, "fresh": 64}]
    lone = recipe(augment=PLAIN, memory={"capacity": 0}, stage=stages, budget={"images": 160})
    lab = lab_of(lone, teacher)
    seen = shown(lab)
    for _ in rounds(lab):
        images = [image.numpy().tobytes() for batch in seen for image in batch]
        assert len(set(images)) == len(images) == 32  # two steps of 16, of 60 that may be seen
        seen.clear()


def test_with_all_replayed_images_of_earlier_rounds_come_back(teacher):
    lab = lab_of(recipe(augment=PLAIN, memory={"capacity": 80, "replayed": 1.0}), teacher)
    seen = shown(lab)
    for round_ in rounds(lab):
        known = {image.numpy().tobytes() for image in lab.memory.everything().images}
        fresh = (
            {image.numpy().tobytes() for image in round_.samples}
            if round_.samples is not None
            else set()
        )
        images = {image.numpy().tobytes() for batch in seen for image in batch}
        assert images <= known
        assert not images or images - fresh
        seen.clear()


# --- other ways of running ---


def test_without_a_memory_the_student_learns_from_fresh_images(teacher):
    lab = lab_of(recipe(memory={"capacity": 0}), teacher)
    laps = list(rounds(lab))
    assert lab.progress.images_seen == 256
    assert len(lab.memory) == 0
    assert all(round_.samples is not None for round_ in laps)


def test_a_finished_data_set_takes_the_place_of_the_generator(teacher):
    pixels = torch.rand(100, 1, 16, 16).mul(255).to(torch.uint8)
    given = recipe(data={"synthetic": "given"}, augment=PLAIN)
    lab = lab_of(given, teacher)
    lab.fill(pixels, torch.zeros(100, dtype=torch.int64))
    assert (len(lab.memory), len(lab.held_out)) == (95, 5)
    seen = shown(lab)
    list(rounds(lab))
    known = {image.numpy().tobytes() for image in lab.memory.everything().images}
    assert {image.numpy().tobytes() for batch in seen for image in batch} <= known
    assert lab.generators == {}


def test_a_teacher_without_batchnorm_can_teach():
    lenet = build_network("lenet5", channels=1, size=32, classes=10)
    spec = ImageSpec(1, 32, 32, (0.5,), (0.3,))
    stages = [STAGES[0] | {"generator": "auto"}, *STAGES[1:]]
    lab = lab_of(
        recipe(budget={"images": 64}, stage=stages), FrozenTeacher(Classifier(lenet, spec, 10))
    )
    laps = list(rounds(lab))
    assert lab.progress.images_seen == 64
    assert "procedural" in lab.generators
    assert laps[-1].share == 1


def test_a_budget_in_minutes_ends_on_time_within_a_round(teacher):
    lab = lab_of(recipe(budget={"minutes": 0.02}), teacher)
    laps = list(rounds(lab))
    clock = [0.0, *(round_.progress.seconds for round_ in laps)]
    longest = max(b - a for a, b in pairwise(clock))
    assert 1.2 <= lab.progress.seconds <= 1.2 + 3 * longest  # every stage has one round at least
    assert {round_.stage for round_ in laps} == {"pregenerate", "finetune", "joint"}


def test_in_a_timed_run_the_rate_falls_within_a_round(teacher):
    stages = [STAGES[2] | {"share": 1.0, "student_steps": 5}]
    lab = lab_of(recipe(budget={"minutes": 0.02}, stage=stages), teacher)
    assert lab.learner is not None
    given, step = [], lab.learner.step

    def watched(images: Tensor, taught: Seen, share: float, **more: Any) -> Step:
        given.append(share)
        return step(images, taught, share, **more)

    lab.learner.step = watched  # type: ignore[method-assign]
    assert len(list(rounds(lab))) < len(given)
    assert all(a < b or b == 1 for a, b in pairwise(given))


def test_a_long_round_leaves_the_next_stage_its_time(teacher):
    endless = {
        "name": "refine", "generator": "pixels", "share": 0.4, "student_steps": 0,
        "synthesis_steps": 10**6, "synthesis_batch": 16, "fresh": 16, "terms": {"one_hot": 1.0},
    }  # fmt: skip
    stages = [endless, STAGES[1] | {"share": 0.6}]
    lab = lab_of(recipe(budget={"minutes": 0.03}, stage=stages), teacher)
    laps = list(rounds(lab))
    refined = [round_.progress.seconds for round_ in laps if round_.stage == "refine"]
    assert len(refined) <= 2 and refined[-1] < 1.2  # the second found that its time was over
    assert lab.progress.images_seen > 0


@pytest.mark.parametrize("budget", [{"images": 64}, {"minutes": 0.05}])
def test_a_stage_in_which_nothing_happens_ends(teacher, budget):
    idle = STAGES[1] | {"student_steps": 0}
    whole = recipe(budget=budget, stage=[STAGES[0], idle])
    lab = Lab(whole, plan(whole, teacher).stages, teacher, new_student(whole.student, teacher))
    names = [round_.stage for round_ in rounds(lab)]
    assert names.count("finetune") == 1


def test_rounds_can_be_left_and_gone_on_with(teacher, unbroken):
    lab = lab_of(recipe(), teacher)
    for _ in rounds(lab):
        break
    list(rounds(lab))
    assert_same(weights(lab), unbroken[1])


def test_a_lab_without_a_student_makes_images(teacher):
    alone = recipe(stage=STAGES[:1])
    lab = assemble(alone, teacher, None)
    list(rounds(lab))
    assert len(lab.memory) > 0
    assert lab.state_dict()["learner"] is None


def test_no_two_images_are_refined_from_the_same_one(teacher):
    """Twins of one class stay alike through every step, and one of them may be held out."""
    stages = (
        {"name": "draw", "generator": "procedural", "fresh": 130, "student_steps": 0, "share": 1},
        {"name": "refine", "generator": "pixels", "synthesis_steps": 1, "synthesis_batch": 30,
         "terms": {"one_hot": 1.0}, "student_steps": 0, "share": 1},
    )  # fmt: skip
    drawn = Recipe.model_validate({"stage": stages, "budget": {"images": 260}})
    lab = assemble(drawn, teacher, None)
    list(rounds(lab))
    refined = []
    for memory in (lab.memory, lab.held_out):
        kept = memory.everything()
        own = torch.tensor([origin == "pixels" for origin in kept.origins])
        refined += [image.numpy().tobytes() for image in kept.images[own]]
    assert len(refined) >= 120 and len(set(refined)) == len(refined)


# --- difficulty ---


class Listening(Generator):
    """A generator of noise that writes down the contexts it is put in."""

    def __init__(self, learner: Any) -> None:
        self.contexts: list[SynthesisContext] = []
        self.learner = learner
        self.resting: list[bool] = []

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        self.contexts.append(context)
        student = self.learner.student
        self.resting.append(
            not student.training and not any(p.requires_grad for p in student.parameters())
        )
        count = context.stage.fresh
        return SyntheticBatch(
            Batch(torch.rand(count, 1, 16, 16, generator=rng), even_labels(count, 10, rng)), 16, {}
        )


def test_the_weight_of_disagreement_follows_the_difficulty_and_the_student_poses_at_rest(teacher):
    moving = recipe(difficulty={"enabled": True, "start": 0.5})
    lab = lab_of(moving, teacher)
    listening = lab.generators["gan"] = Listening(lab.learner)  # type: ignore[assignment]
    expected = []
    level = lab.difficulty
    for round_ in rounds(lab):
        if round_.stage == "joint":
            expected.append(level)
        level = round_.measures.get("difficulty", level)
    found = [
        context.terms["disagreement"]
        for context in listening.contexts
        if "disagreement" in context.terms
    ]
    assert found == pytest.approx(expected)
    assert len(set(found)) > 1  # it did move
    assert all(listening.resting)
    assert all(p.requires_grad for p in lab.learner.student.parameters())


# --- settle ---


def knowing(teacher: FrozenTeacher, *, ema: float = 0.9) -> Lab:
    """A lab whose student is built like the teacher, and some held-out images."""
    lab = lab_of(recipe(student={"spec": "resnet14"}, training={"batch": 16, "ema": ema}), teacher)
    lab.hold_out(torch.rand(200, 1, 16, 16).mul(255).to(torch.uint8), "noise")
    return lab


@pytest.mark.parametrize("better", ["last", "averaged"])
def test_settle_keeps_the_weights_that_agree_better_with_the_teacher(teacher, better):
    lab = knowing(teacher)
    perfect = {k: v.clone() for k, v in teacher.classifier.state_dict().items()}
    ignorant = weights(lab)
    last, average = (perfect, ignorant) if better == "last" else (ignorant, perfect)
    lab.learner.use(last)
    for key, value in average.items():
        lab.learner.average[key].copy_(value)
    found, _ = select_final_weights(lab)
    assert found["weights"] == better
    assert found["held_out_agreement"] == found[f"held_out_agreement_{better}"] == 1
    assert found["held_out_images"] == 200
    assert_same(weights(lab), perfect)
    pixels = lab.held_out.everything().images.float() / 255
    other = copy.deepcopy(lab.learner.student)
    other.load_state_dict(ignorant)
    votes = other.eval()(pixels).argmax(1)
    worse = {"last": "averaged", "averaged": "last"}[better]
    share_of_votes = (votes == teacher(pixels).argmax(1)).float().mean().item()
    assert found[f"held_out_agreement_{worse}"] == pytest.approx(share_of_votes, abs=1e-7)


def test_settle_keeps_what_a_student_began_with_where_learning_made_it_worse(teacher):
    """As a student that is cut out of its teacher may begin."""
    lab = knowing(teacher)
    ignorant = weights(lab)
    perfect = {k: v.clone() for k, v in teacher.classifier.state_dict().items()}
    lab.learner.use(perfect)
    lab.learner.remember_beginning()
    lab.learner.use(ignorant)
    state = copy.deepcopy(lab.learner.state_dict())
    lab.learner.begun = None
    assert select_final_weights(lab)[0]["weights"] == "averaged"  # as little as the last ones know
    lab.learner.load_state_dict(state)
    found, votes = select_final_weights(lab)
    assert (found["weights"], found["held_out_agreement"], votes.agreement) == ("begun", 1, 1)
    assert found["held_out_agreement_begun"] > found["held_out_agreement_last"]
    assert_same(weights(lab), perfect)
    lab.learner.use(perfect)  # as good: what was learned is kept
    assert select_final_weights(lab)[0]["weights"] == "last"


def test_settle_without_an_average_keeps_the_last_weights(teacher):
    lab = knowing(teacher, ema=0.0)
    before = weights(lab)
    assert select_final_weights(lab)[0]["weights"] == "last"
    assert_same(weights(lab), before)


def test_a_critic_whose_loss_is_not_finite_ends_in_one_line(teacher):
    """Of the images that it compares with, the generator's loss knows nothing."""
    lab = lab_of(recipe(), teacher)
    stage = lab.stages[0].model_copy(
        update={"synthesis_steps": 2, "terms": {"one_hot": 1.0, "realism": 0.1}}
    )

    def bad(count: int, rng: torch.Generator) -> Batch:
        images = torch.full((count, 1, 16, 16), float("nan"))
        return Batch(images, torch.zeros(count, dtype=torch.int64))

    context = SynthesisContext(teacher, teacher, stage, stage.terms, lab.recipe.augment, bad, False)
    with pytest.raises(InputError, match=r"critic's loss is no longer finite.*learning_rate"):
        lab.generators["gan"].synthesize(context, torch.Generator().manual_seed(0))
