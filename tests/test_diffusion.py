"""The diffusion generator: what it learns from, what it offers, what it saves."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.core.images import Batch
from synthkd.core.states import load_state, save_state
from synthkd.engine.build import assemble
from synthkd.engine.loop import rounds
from synthkd.networks.classifier import Classifier
from synthkd.recipe import AugmentTable, Recipe, Stage, TeacherTable
from synthkd.specs import load_teacher, new_student
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.diffusion.diffusers_io import promise_of
from synthkd.synthesis.diffusion.generator import Diffusion, Trained
from synthkd.synthesis.diffusion.maths import add_noise, drawn_steps, min_snr, target
from synthkd.synthesis.diffusion.sampling import sampled
from synthkd.synthesis.plan import plan
from synthkd.synthesis.procedural import Procedural
from synthkd.teachers.frozen import FrozenTeacher, digest_of

STILL = AugmentTable(shift=0.0, flip=False)
SMALL: dict[str, Any] = {"width": 8, "steps": 2, "batch": 16}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


def diffusion(teacher: FrozenTeacher, start: str = "", **settings: Any) -> Diffusion:
    torch.manual_seed(3)
    tables = {"diffusion": SMALL | settings, "generator": {"start": start}}
    return Diffusion(Recipe.model_validate(tables), teacher)


def context(
    teacher: FrozenTeacher, terms: dict[str, float] | None = None, **more: Any
) -> SynthesisContext:
    """A scene whose material is drawings, with the teacher's votes."""
    drawings = Procedural(Recipe(), teacher)

    def material(count: int, rng: torch.Generator) -> Batch:
        images = drawings.sample(count, rng).images
        return Batch(images, teacher(images).argmax(1))

    def never(count: int, rng: torch.Generator) -> Batch | None:
        raise AssertionError

    keys = {key: more.pop(key) for key in [*more] if key in Stage.model_fields}
    stage = Stage(
        name="x", generator="diffusion", **{"synthesis_steps": 2, "synthesis_batch": 8,
                                            "fresh": 12} | keys
    )  # fmt: skip
    more = {"material": material} | more
    return SynthesisContext(
        teacher, teacher, stage, terms or {}, STILL, never, False, never, **more
    )


def test_a_step_minimises_the_weighted_error_of_the_prediction(teacher: FrozenTeacher) -> None:
    """The loss of a first step, written out with the same draws."""
    made = diffusion(teacher, label_dropout=0.5)
    before = copy.deepcopy(made.unet)
    set_up = context(teacher, fresh=0, synthesis_steps=1)
    found = made.synthesize(set_up, seeded(7))
    rng = seeded(7)
    images, labels = set_up.material(8, rng)
    x0 = 2 * images - 1
    noise = torch.randn(x0.shape, generator=rng)
    steps = drawn_steps(8, 1.0, rng)
    hidden = torch.rand(8, generator=rng) < 0.5
    assert 0 < int(hidden.sum()) < 8
    told = torch.where(hidden, torch.tensor(10), labels)
    alpha_bar = made.alpha_bar[steps]
    guess = before.train()(add_noise(x0, noise, alpha_bar), steps, told).sample
    error = (guess - target(x0, noise, alpha_bar, "v_prediction")).square().mean((1, 2, 3))
    loss = (min_snr(alpha_bar, 5.0, "v_prediction") * error).mean()
    assert found.measures["denoising"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert (found.trained, len(found.batch.images)) == (8, 0)


@pytest.mark.slow
def test_it_learns_what_images_look_like(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher, width=16, learning_rate=3e-3)
    set_up = context(teacher, fresh=0, synthesis_batch=32)
    losses = [made.synthesize(set_up, seeded(i)).measures["denoising"] for i in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_it_needs_something_to_learn_from(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher)
    before = {k: v.clone() for k, v in made.unet.state_dict().items()}
    for fresh in (0, 12):  # or noise would be offered, or a stage would never end
        with pytest.raises(
            InputError,
            match=r"stage x: .* nothing to learn from.*four times its synthesis_batch of 8",
        ):
            made.synthesize(context(teacher, fresh=fresh, material=lambda *_: None), seeded())
    assert all(torch.equal(v, before[k]) for k, v in made.unet.state_dict().items())


def test_only_what_the_teacher_agrees_with_is_offered(teacher: FrozenTeacher) -> None:
    digest = digest_of(teacher.classifier)
    made = diffusion(teacher)
    found = made.synthesize(context(teacher, synthesis_steps=0, fresh=40), seeded())
    images, labels = found.batch
    assert torch.equal(teacher(images).argmax(1), labels)
    assert found.measures["accepted"] == pytest.approx(len(images) / found.trained)
    assert found.trained >= 40
    everything = diffusion(teacher, accept="all")
    found = everything.synthesize(context(teacher, synthesis_steps=0, fresh=40), seeded())
    assert (len(found.batch.images), found.measures["accepted"]) == (40, 1.0)
    assert digest_of(teacher.classifier) == digest


def test_of_independent_classes_the_one_asked_for_need_not_be_the_likeliest(
    teacher: FrozenTeacher,
) -> None:
    """Of no other is anything asked; what was asked for nothing is accepted as before."""
    several = FrozenTeacher(
        Classifier(teacher.classifier.body, teacher.spec, 10, "multilabel-logits")
    )
    images = Procedural(Recipe(), teacher).sample(300, seeded()).images
    logits = several(images)
    votes, _, _, _, later = logits.topk(5, dim=1).indices.unbind(1)
    odds = logits.gather(1, later[:, None])[:, 0]
    assert 10 < int((odds > 0).sum()) < 290
    made = diffusion(several)
    assert torch.equal(made._accepted(images, later), odds > 0)
    sure = diffusion(several, confidence=0.9)
    assert torch.equal(sure._accepted(images, later), odds.sigmoid() >= 0.9)
    assert made._accepted(images, torch.full_like(later, -1)).all()
    alone = diffusion(teacher)
    assert not alone._accepted(images, later).any() and alone._accepted(images, votes).all()


def test_what_time_forbids_is_not_offered(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher, accept="all")
    found = made.synthesize(context(teacher, synthesis_steps=0, fresh=40, deadline=0.0), seeded())
    assert len(found.batch.images) == len(found.batch.labels) == found.trained == 16  # one batch


def test_a_student_of_a_generator_that_nobody_agrees_with_is_told_so(
    teacher: FrozenTeacher,
) -> None:
    tables = {
        "diffusion": SMALL | {"confidence": 0.95}, "training": {"batch": 16},
        "student": {"spec": "resnet8-w4"}, "budget": {"images": 64},
        "stage": [{"name": "imagine", "generator": "diffusion", "synthesis_steps": 0,
                   "fresh": 16, "student_steps": 1}],
    }  # fmt: skip
    recipe = Recipe.model_validate(tables)
    shy = FrozenTeacher(teacher.classifier, access="labels")  # its smoothed votes are 0.91 sure
    lab = assemble(recipe, shy, new_student(recipe.student, shy))
    with pytest.raises(InputError, match=r"stage imagine: .* accepted no image so far"):
        list(rounds(lab))


def test_a_sure_teacher_can_be_asked_for(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher, confidence=0.5)
    images = made.synthesize(context(teacher, synthesis_steps=0, fresh=40), seeded()).batch.images
    assert bool((teacher(images).softmax(1).amax(1) >= 0.5).all())
    none = diffusion(teacher, confidence=1.0)
    found = none.synthesize(context(teacher, synthesis_steps=0, fresh=10), seeded())
    assert found.measures["accepted"] < 0.2 and found.trained >= 40  # four attempts


@pytest.mark.parametrize("terms", [{"one_hot": 1.0}, {}], ids=["by a term", "by the class"])
def test_guidance_makes_the_teacher_agree(teacher: FrozenTeacher, terms: dict[str, float]) -> None:
    labels = torch.arange(40) % 10
    shares = []
    for guidance in (0.0, 4.0):
        made = diffusion(teacher, teacher_guidance=guidance, steps=6)
        images = made.sample(labels, context(teacher, terms), seeded(5)).images
        shares.append(float((teacher(images).argmax(1) == labels).float().mean()))
    assert shares[0] < 0.4 and shares[1] > 0.8


@pytest.mark.parametrize("borrowed", [False, True], ids=["trained here", "borrowed"])
def test_samples_in_bfloat16_are_nearly_those_in_float32(
    teacher: FrozenTeacher, tmp_path: Path, borrowed: bool
) -> None:
    made = diffusion(teacher)
    if borrowed:
        made.save(tmp_path / "model", 0)
        made = diffusion(teacher, start=str(tmp_path / "model"))
        assert not isinstance(made.denoiser, Trained)
    labels, plain = torch.arange(10), context(teacher)
    exact, rough = (
        made.sample(labels, replace(plain, bfloat16=bfloat16), seeded(5)).images
        for bfloat16 in (False, True)
    )
    assert 0 < float((exact - rough).abs().mean()) < 0.01
    again = made.sample(labels, plain, seeded(5)).images
    assert torch.equal(again, exact)


def test_a_black_box_steers_nothing_and_the_plan_says_so(teacher: FrozenTeacher) -> None:
    closed = FrozenTeacher(teacher.classifier, access="logits")
    labels = torch.arange(10)
    one, other = (
        diffusion(box, teacher_guidance=guidance).sample(labels, context(box), seeded(5)).images
        for box, guidance in ((closed, 4.0), (teacher, 0.0))
    )
    assert torch.equal(one, other)
    recipe = Recipe.model_validate({
        "diffusion": {"teacher_guidance": 4.0},
        "stage": [{"name": "learn", "generator": "diffusion", "synthesis_steps": 2}],
    })  # fmt: skip
    said = "guidance dropped: no gradient passes through a black box"
    assert said in plan(recipe, closed).reasons
    assert said not in plan(recipe, teacher).reasons


@pytest.mark.parametrize(("ratio", "source"), [(1.0, "the memory"), (0.5, "the real images")])
def test_the_plan_says_what_is_learned_from(
    teacher: FrozenTeacher, ratio: float, source: str
) -> None:
    recipe = Recipe.model_validate({
        "data": {"real": "scans", "mix_ratio": ratio},
        "stage": [{"name": "learn", "generator": "diffusion", "synthesis_steps": 2}],
    })  # fmt: skip
    (said,) = (line for line in plan(recipe, teacher).reasons if "diffusion model learns" in line)
    assert f"learns from {source}" in said


@pytest.mark.parametrize(("scale", "asked"), [(0.0, 1), (1.0, 1), (3.0, 2)])
def test_classifier_free_guidance_extrapolates_from_no_class(
    teacher: FrozenTeacher, scale: float, asked: int
) -> None:
    made = diffusion(teacher, guidance_scale=scale)
    assert isinstance(made.denoiser, Trained)
    noisy, labels = torch.randn(4, 1, 16, 16, generator=seeded()), torch.tensor([1, 2, 3, 4])
    told = made.denoiser.unet(noisy, 500, labels).sample
    none = made.denoiser.unet(noisy, 500, torch.full((4,), 10)).sample
    shapes = []
    made.denoiser.unet.register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
    found = made.denoiser(noisy, 500, labels)
    torch.testing.assert_close(found, none + scale * (told - none), atol=1e-5, rtol=1e-4)
    assert torch.allclose(made.denoiser(noisy, 500, None), none, atol=1e-5)
    assert shapes == [4 * asked, 4]  # without a class once, whatever the scale


@pytest.mark.parametrize(
    ("curriculum", "more", "opened"),
    [
        ("none", {}, 1.0),
        ("linear", {"stage_share": 0.25}, 0.5),
        ("linear", {"stage_share": 0.8}, 1.0),
        ("difficulty", {"difficulty": 0.1}, 0.001),  # step 999 alone
        ("difficulty", {"difficulty": 0.55}, 0.5),
        ("difficulty", {"difficulty": 1.0}, 1.0),
    ],
)
def test_the_curriculum_follows_the_stage_or_the_difficulty(
    teacher: FrozenTeacher, curriculum: str, more: dict[str, float], opened: float
) -> None:
    made = diffusion(teacher, curriculum=curriculum)
    found = made.synthesize(context(teacher, fresh=0, **more), seeded())
    assert found.measures["open"] == pytest.approx(opened)
    assert found.measures["denoising"] > 0  # also where only the step without signal is open


def test_a_difficulty_without_room_to_move_leaves_all_steps_open(teacher: FrozenTeacher) -> None:
    tables = {"diffusion": SMALL | {"curriculum": "difficulty"},
              "difficulty": {"start": 0.05, "ceiling": 0.1}}  # fmt: skip
    made = Diffusion(Recipe.model_validate(tables), teacher)
    for level in (0.05, 0.1):
        assert made._open(context(teacher, difficulty=level)) == 1.0


@pytest.mark.slow
def test_it_goes_on_from_a_saved_state_as_if_nothing_had_happened(
    teacher: FrozenTeacher, tmp_path: Path
) -> None:
    whole, first = diffusion(teacher, solver="auto"), diffusion(teacher, solver="auto")
    for i in range(3):
        whole.synthesize(context(teacher), seeded(i))
    for i in range(2):
        first.synthesize(context(teacher), seeded(i))
    save_state(first.state_dict(), tmp_path / "x", "checkpoint")
    second = diffusion(teacher, solver="auto")
    second.load_state_dict(load_state(tmp_path / "x", "checkpoint"))
    one, two = (made.synthesize(context(teacher), seeded(2)) for made in (first, second))
    three = diffusion(teacher, solver="auto")
    for i in range(3):
        last = three.synthesize(context(teacher), seeded(i))
    for found in (two, last):
        assert torch.equal(found.batch.images, one.batch.images)
        assert found.measures == one.measures

    def flat(made: Diffusion) -> list[Tensor]:
        state = made.state_dict()
        return [*state["unet"].values(), *state["average"]["shadow_params"]]

    assert all(torch.equal(a, b) for a, b in zip(flat(whole), flat(second), strict=True))


def test_auto_names_a_solver_once(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher, solver="auto")
    made.synthesize(context(teacher), seeded())
    assert made.solver in ("ddim", "dpm", "ddpm")
    assert diffusion(teacher).solver == "ddim"


def test_the_choice_of_a_solver_is_heard_of_and_ends_with_the_time(
    teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    ticks: list[tuple[int, int]] = []

    def sampler(*given: Any, **more: Any) -> Tensor:
        tried.append(more["name"])
        return sampled(*given, **more)

    monkeypatch.setattr("synthkd.synthesis.diffusion.generator.sampled", sampler)
    made = diffusion(teacher, solver="auto", steps=3)
    late = context(teacher, deadline=0.0, tick=lambda done, whole: ticks.append((done, whole)))
    assert made._best_solver(late, seeded()) == "ddim"
    assert tried == ["ddim"] and ticks == [(0, 16)] * 3
    made._best_solver(context(teacher), seeded())
    assert tried[1:] == ["ddim", "dpm", "ddpm"]


def test_a_saved_model_is_borrowed_with_its_classes_and_its_promise(
    teacher: FrozenTeacher, tmp_path: Path
) -> None:
    made = diffusion(teacher)
    made.synthesize(context(teacher), seeded())
    made.save(tmp_path / "model", 2)
    assert promise_of(str(tmp_path / "model"), teacher.digest) == 2
    borrowed = diffusion(teacher, start=str(tmp_path / "model"))
    assert borrowed.borrowed
    labels = torch.arange(10)
    one, two = (d.sample(labels, context(teacher), seeded(1)).images for d in (made, borrowed))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    found = borrowed.synthesize(context(teacher), seeded())  # has nothing to learn
    assert "denoising" not in found.measures


def test_other_sizes_are_denoised_at_a_working_size(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher, size=8)
    images = made.sample(torch.arange(3), context(teacher), seeded()).images
    assert made.denoiser.shape == (1, 8, 8) and images.shape == (3, 1, 16, 16)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_a_loss_that_is_not_finite_is_said(teacher: FrozenTeacher) -> None:
    made = diffusion(teacher)
    with torch.no_grad():
        next(made.unet.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"diffusion\.learning_rate"):
        made.synthesize(context(teacher), seeded())
