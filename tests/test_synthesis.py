"""Ways of inventing images, and the plan that chooses among them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synthkd.errors import InputError
from synthkd.images import Batch, ImageSpec
from synthkd.losses import TERMS
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Stage, TeacherTable, build
from synthkd.specs import load_teacher
from synthkd.states import load_state, save_state
from synthkd.synthesis import GENERATORS
from synthkd.synthesis.gan import Gan, borrow, save_generator
from synthkd.synthesis.plan import plan, table
from synthkd.synthesis.procedural import Procedural, strokes
from synthkd.synthesis.scene import Scene, even_labels
from synthkd.teachers import Teacher


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(TeacherTable())


def teacher_of(body: nn.Module, *, mean: float = 0.5, size: int = 32, channels: int = 1) -> Teacher:
    return Teacher(
        Classifier(body, ImageSpec(channels, size, size, (mean,) * channels, (0.3,) * channels), 10)
    )


@pytest.fixture(scope="module")
def lenet() -> Teacher:
    return teacher_of(build_network("lenet5", channels=1, size=32, classes=10))


@pytest.fixture(scope="module")
def headless() -> Teacher:
    """Classes straight from a convolution; it has BatchNorm, but no linear layer."""
    return teacher_of(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 10, 32), nn.Flatten()))


RECIPE = Recipe.model_validate(
    {"generator": {"width": 4, "latent": 8}, "discriminator": {"width": 4}}
)
STAGE = Stage(name="x", synthesis_steps=2, synthesis_batch=20, fresh=30)


def nobody(images: Tensor) -> Tensor:
    raise AssertionError("the student was asked")


def nothing(count: int, rng: torch.Generator) -> Batch | None:
    return None


def light(count: int, rng: torch.Generator) -> Batch:
    """A reference that is lighter than what an untrained generator makes."""
    return Batch(torch.full((count, 1, 16, 16), 0.9), torch.arange(count) % 10)


def scene(teacher: Teacher, stage: Stage = STAGE, **changes: Any) -> Scene:
    plain = Scene(teacher, nobody, stage, {"one_hot": 1.0}, RECIPE.augment, nothing, False)
    return replace(plain, **changes)


def gan(teacher: Teacher, recipe: Recipe = RECIPE) -> Gan:
    torch.manual_seed(3)
    return Gan(recipe, teacher)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


# --- scene ---


@given(st.integers(0, 200), st.integers(1, 30), st.integers(0, 99))
def test_labels_are_even_however_many(count, classes, seed):
    counts = even_labels(count, classes, seeded(seed)).bincount(minlength=classes)
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1


def test_the_classes_that_come_once_more_differ_from_draw_to_draw():
    firsts = {tuple(even_labels(3, 10, seeded(seed)).sort().values.tolist()) for seed in range(60)}
    assert len(firsts) == 10


# --- gan ---


def test_a_round_offers_what_the_stage_says(teacher):
    invented = gan(teacher).synthesize(scene(teacher), seeded())
    assert invented.batch.images.shape == (30, 1, 16, 16)
    assert invented.batch.labels.bincount(minlength=10).tolist() == [3] * 10
    assert invented.trained == 40
    assert invented.batch.images.min() >= 0
    assert invented.batch.images.max() <= 1
    assert set(invented.measures) == {"term.one_hot", "obeyed"}


def test_without_steps_it_offers_images_and_learns_nothing(teacher):
    one = gan(teacher)
    before = copy.deepcopy(one.decoder.state_dict())
    invented = one.synthesize(
        scene(teacher, STAGE.model_copy(update={"synthesis_steps": 0})), seeded()
    )
    assert (len(invented.batch.images), invented.trained, invented.measures) == (30, 0, {})
    assert_same(before, one.decoder.state_dict())


def test_the_teacher_comes_to_see_what_was_asked_for(teacher):
    one = gan(teacher)
    stage = STAGE.model_copy(update={"synthesis_steps": 1, "synthesis_batch": 40})
    laps = [one.synthesize(scene(teacher, stage), seeded(i)).measures for i in range(60)]
    assert laps[-1]["term.one_hot"] < 0.7 * laps[0]["term.one_hot"]
    assert laps[-1]["obeyed"] > laps[0]["obeyed"] + 0.2


@pytest.mark.parametrize("term", sorted(set(TERMS) - {"realism"}))
def test_every_term_alone_moves_the_decoder_towards_less_of_it(teacher, term):
    student = copy.deepcopy(teacher.classifier)
    student.body.linear.weight.data *= 0.3  # it votes like the teacher, but hesitates
    student.body.linear.bias.data *= 0.3
    one = gan(
        teacher,
        RECIPE.model_copy(
            update={"generator": RECIPE.generator.model_copy(update={"learning_rate": 0.01})}
        ),
    )
    stage = STAGE.model_copy(update={"synthesis_steps": 1, "synthesis_batch": 60})
    the_scene = scene(teacher, stage, terms={term: 1.0}, student=student)
    values = [one.synthesize(the_scene, seeded(i)).measures[f"term.{term}"] for i in range(15)]
    assert sum(values[-3:]) < sum(values[:3])


def test_the_student_is_asked_only_for_disagreement_and_gets_no_gradient(teacher):
    student = Classifier(
        build_network("resnet8-w4", channels=1, size=16, classes=10), teacher.spec, 10
    ).eval()
    student.requires_grad_(False)
    asked = []

    def answer(images: Tensor) -> Tensor:
        asked.append(images.requires_grad)
        return student(images)

    invented = gan(teacher).synthesize(
        scene(teacher, student=answer, terms={"one_hot": 1.0, "disagreement": 1.0}), seeded()
    )
    assert asked == [True, True]
    assert invented.measures["term.disagreement"] <= 0
    assert all(p.grad is None for p in student.parameters())


def test_a_weight_of_zero_is_no_term(teacher):
    invented = gan(teacher).synthesize(
        scene(teacher, terms={"one_hot": 1.0, "disagreement": 0.0}), seeded()
    )
    assert "term.disagreement" not in invented.measures


@pytest.mark.parametrize("terms", [{}, {"realism": 1.0}, {"disagreement": 0.0}])
def test_without_any_term_to_judge_by_the_decoder_rests(teacher, terms):
    """Realism has nothing to compare with while the memory is nearly empty."""
    one = gan(teacher)
    before = {k: v.clone() for k, v in one.decoder.named_parameters()}
    invented = one.synthesize(scene(teacher, terms=terms), seeded())
    assert len(invented.batch.images) == 30
    assert_same(before, dict(one.decoder.named_parameters()))


def test_the_critic_learns_from_the_reference_and_moves_the_decoder_towards_it(teacher):
    one = gan(teacher)
    terms, stage = {"realism": 1.0}, STAGE.model_copy(update={"synthesis_steps": 1})
    before = copy.deepcopy(one.critic.state_dict())
    distances = []
    for i in range(60):
        invented = one.synthesize(scene(teacher, stage, terms=terms, reference=light), seeded(i))
        distances.append((invented.batch.images - 0.9).abs().mean().item())
    assert distances[-1] < 0.7 * distances[0]
    assert set(invented.measures) == {"term.realism", "obeyed", "critic"}
    assert not torch.equal(before["head.bias"], one.critic.head.bias)


def test_the_generators_step_leaves_no_gradient_in_the_critic(teacher):
    one = gan(teacher)
    images = torch.rand(4, 1, 16, 16, requires_grad=True)
    one._frozen_critic(images, torch.tensor([0, 1, 2, 3])).sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is None for p in one.critic.parameters())
    assert all(p.requires_grad for p in one.critic.parameters())


def test_a_long_gradient_is_cut(teacher):
    short = RECIPE.model_copy(
        update={"generator": RECIPE.generator.model_copy(update={"clip": 1e-3})}
    )
    one = gan(teacher, short)
    one.synthesize(scene(teacher, terms={"one_hot": 100.0}), seeded())
    norm = torch.stack([p.grad.norm() for p in one.decoder.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_frozen_sample_is_one_of_eval_mode_so_images_do_not_depend_on_each_other(teacher):
    one = gan(teacher)
    one.synthesize(scene(teacher), seeded())
    found = one.sample(12, seeded(5))
    z, labels = one._noise(12, seeded(5))
    alone = torch.cat([one.decoder.eval()(z[i : i + 1], labels[i : i + 1]) for i in range(12)])
    assert torch.allclose(found.images, alone.detach(), atol=1e-5)
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("frozen", [True, False])
def test_sampling_changes_nothing(teacher, frozen):
    one = gan(teacher)
    before = copy.deepcopy(one.decoder.state_dict())
    one.sample(12, seeded(5), frozen=frozen)
    assert len(one.sample(0, seeded(5), frozen=frozen).images) == 0
    assert len(one.sample(1, seeded(5), frozen=frozen).images) == 1
    assert_same(before, one.decoder.state_dict())


def test_settling_makes_the_running_statistics_plain_means_over_batches(teacher):
    one = gan(teacher)
    one.settle(seeded(7), batches=4, size=50)
    rng, means = seeded(7), []
    for _ in range(4):
        z, _ = one._noise(50, rng)
        means.append(one.decoder.linear(z).view(50, 8, 4, 4).mean((0, 2, 3)))
    assert torch.allclose(
        one.decoder.norm0.norm.running_mean, torch.stack(means).mean(0), atol=1e-5
    )
    assert not one.decoder.training
    assert one.decoder.norm0.norm.momentum == 0.1


def test_the_seed_decides_and_a_saved_gan_goes_on_the_same(teacher, tmp_path):
    the_scene = scene(
        teacher,
        terms={"one_hot": 1.0, "statistics": 1.0, "consistency": 1.0, "realism": 0.1},
        reference=light,
    )
    first, second = gan(teacher), gan(teacher)
    for one in (first, second):
        one.synthesize(the_scene, seeded(1))
    save_state(first.state_dict(), tmp_path / "x", "gan")
    torch.manual_seed(99)
    third = Gan(RECIPE, teacher)
    third.load_state_dict(load_state(tmp_path / "x", "gan"))
    found = [one.synthesize(the_scene, seeded(2)) for one in (first, second, third)]
    for one, invented in zip((second, third), found[1:], strict=True):
        assert torch.equal(invented.batch.images, found[0].batch.images)
        assert invented.measures == found[0].measures
        assert_same(one.decoder.state_dict(), first.decoder.state_dict())
        assert_same(one.critic.state_dict(), first.critic.state_dict())


def test_a_saved_decoder_can_be_borrowed_with_its_sizes(teacher, tmp_path):
    one = gan(teacher)
    one.synthesize(scene(teacher), seeded())
    save_generator(one, tmp_path / "generator.safetensors")
    recipe = borrow(Recipe.model_validate({"generator": {"start": str(tmp_path)}}))
    assert (recipe.generator.latent, recipe.generator.width) == (8, 4)
    other = Gan(recipe, teacher)
    other.take_over(str(tmp_path))
    assert torch.equal(other.sample(5, seeded(1)).images, one.sample(5, seeded(1)).images)


def test_a_decoder_for_other_images_is_told(teacher, lenet, tmp_path):
    save_generator(gan(teacher), tmp_path / "generator.safetensors")
    with pytest.raises(
        InputError, match=r"\[1, 16, 16\] images, the teacher wants 10 of \[1, 32, 32\]"
    ):
        Gan(RECIPE, lenet).take_over(str(tmp_path))


def test_a_directory_without_a_generator_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no generator\.safetensors"):
        borrow(Recipe.model_validate({"generator": {"start": str(tmp_path)}}))


# --- procedural ---


@pytest.mark.parametrize(
    ("channels", "size", "mean"), [(1, 16, 0.1), (1, 28, 0.5), (3, 32, 0.5), (3, 30, 0.9)]
)
def test_drawings_are_images_without_a_class(channels, size, mean):
    body = nn.Sequential(nn.Conv2d(channels, 10, size), nn.Flatten())
    drawn = Procedural(RECIPE, teacher_of(body, mean=mean, size=size, channels=channels)).sample(
        300, seeded()
    )
    assert drawn.images.shape == (300, channels, size, size)
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1 + 1e-6
    assert drawn.labels.tolist() == [-1] * 300
    assert (
        drawn.images.amax((1, 2, 3)) - drawn.images.amin((1, 2, 3)) > 1e-3
    ).float().mean() > 0.95


@pytest.mark.parametrize(("mean", "ground"), [(0.1, 0.0), (0.9, 1.0)])
def test_the_ground_is_black_or_white_where_the_teachers_mean_says_so(mean, ground):
    body = nn.Sequential(nn.Conv2d(1, 10, 32), nn.Flatten())
    images = Procedural(RECIPE, teacher_of(body, mean=mean)).sample(50, seeded()).images
    assert ((images - ground).abs() < 1e-6).float().mean() > 0.4
    ink = (images - ground).abs().amax((1, 2, 3))
    assert (ink > 0.3).all()


def test_drawings_follow_the_seed_alone(lenet):
    one = Procedural(RECIPE, lenet)
    torch.manual_seed(1)
    first = one.sample(20, seeded(3)).images
    torch.manual_seed(2)
    assert torch.equal(first, one.sample(20, seeded(3)).images)
    assert not torch.equal(first, one.sample(20, seeded(4)).images)


def test_a_round_of_drawings_is_as_large_as_the_stage_says_and_trains_nothing(lenet):
    invented = Procedural(RECIPE, lenet).synthesize(scene(lenet), seeded())
    assert (len(invented.batch.images), invented.trained, invented.measures) == (30, 0, {})
    assert len(Procedural(RECIPE, lenet).sample(0, seeded()).images) == 0


def test_strokes_are_thin_whole_and_inside_the_image():
    coverage = strokes(200, 32, 32, seeded())
    assert coverage.shape == (200, 1, 32, 32)
    assert coverage.min() >= 0
    assert coverage.max() <= 1 + 1e-6
    inked = (coverage > 0.5).float().mean((1, 2, 3))
    assert (inked > 0).all()
    assert inked.max() < 0.6
    edge = torch.cat(
        [coverage[..., 0, :], coverage[..., -1, :], coverage[..., 0], coverage[..., -1]], -1
    )
    assert (edge > 0.5).float().mean() < 0.01


def test_the_teacher_sees_most_classes_in_drawings(teacher):
    votes = teacher(Procedural(RECIPE, teacher).sample(600, seeded()).images).argmax(1)
    assert len(votes.unique()) >= 8


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_generator_follows_the_protocol(teacher, kind):
    one = GENERATORS[kind](RECIPE, teacher)
    assert one.sample(4, seeded()).images.shape == (4, 1, 16, 16)
    one.load_state_dict(one.state_dict())
    assert len(one.synthesize(scene(teacher), seeded()).batch.labels) == 30


# --- plan ---


def default(**tables: dict[str, Any]) -> Recipe:
    return build(flags=tables)


def kinds(recipe: Recipe, teacher: Teacher, **how: bool) -> dict[str, str]:
    return {stage.name: stage.generator for stage in plan(recipe, teacher, **how).stages}


def said(recipe: Recipe, teacher: Teacher) -> str:
    return "\n".join(plan(recipe, teacher).reasons)


def test_a_teacher_with_batchnorm_gets_the_gan_and_all_its_terms(teacher):
    recipe = default()
    assert kinds(recipe, teacher) == {"pregenerate": "gan", "finetune": "none", "joint": "gan"}
    for before, after in zip(recipe.stages, plan(recipe, teacher).stages, strict=True):
        assert after.terms == before.terms
    assert "172,218 parameters, 10 classes" in said(recipe, teacher)


def test_a_teacher_without_batchnorm_gets_drawings_first(lenet):
    recipe = default()
    assert kinds(recipe, lenet)["pregenerate"] == "procedural"
    assert "no BatchNorm" in said(recipe, lenet)
    for stage in plan(recipe, lenet).stages:
        assert "statistics" not in stage.terms
        if stage.generator == "gan":
            assert stage.terms["smoothness"] > 0
            assert stage.terms["balance"] > 0


def test_a_gan_that_is_asked_for_without_batchnorm_goes_by_smoothness_and_balance(lenet):
    recipe = build(stage_flags={"pregenerate": {"generator": "gan"}})
    first = plan(recipe, lenet).stages[0]
    assert first.generator == "gan"
    assert (
        first.terms["smoothness"]
        == first.terms["balance"]
        == 0.2 * recipe.stages[0].terms["statistics"]
    )
    assert {"one_hot", "prototype"} <= set(first.terms)


def test_a_data_set_is_made_by_a_gan_even_without_batchnorm(lenet):
    assert kinds(default(), lenet, generating=True)["pregenerate"] == "gan"


def test_without_a_linear_layer_the_terms_of_features_are_dropped_and_it_is_said(headless):
    recipe = default()
    for stage in plan(recipe, headless).stages:
        assert not {"prototype", "consistency", "activation"} & set(stage.terms)
    assert "statistics" in plan(recipe, headless).stages[0].terms
    assert "the last layer is not linear" in said(recipe, headless)


def test_the_terms_that_a_plan_leaves_can_be_computed(teacher, lenet, headless):
    for one in (teacher, lenet, headless):
        for stage in plan(default(), one).stages:
            if stage.generator == "gan":
                short = stage.model_copy(
                    update={"synthesis_steps": 1, "synthesis_batch": 8, "fresh": 2}
                )
                student: Callable[[Tensor], Tensor] = one
                gan(one).synthesize(scene(one, short, terms=stage.terms, student=student), seeded())


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"data": {"mix_ratio": 0.0, "real": "x"}}, "real images only"),
        ({"data": {"synthetic": "x"}}, "--synthetic"),
    ],
)
def test_where_images_are_given_no_generator_works_and_stages_without_a_student_are_left_out(
    teacher, tables, words
):
    recipe = default(**tables)
    stages = plan(recipe, teacher).stages
    assert [stage.name for stage in stages] == ["finetune", "joint"]
    for stage in stages:
        assert (stage.generator, stage.terms, stage.synthesis_steps, stage.fresh) == (
            "none",
            {},
            0,
            0,
        )
        assert stage.student_steps > 0
    assert words in said(recipe, teacher)


def test_without_a_memory_every_stage_that_teaches_has_fresh_images(teacher):
    recipe = default(memory={"capacity": 0})
    for stage in plan(recipe, teacher).stages:
        if stage.student_steps:
            assert stage.generator == "gan"
            assert stage.fresh > 0


def test_stages_can_be_chosen_by_name(teacher):
    assert list(kinds(default(run={"stages": ("joint",)}), teacher)) == ["joint"]


def test_a_recipe_is_not_changed_by_its_plan(teacher, lenet):
    recipe = default()
    before = recipe.model_dump_json()
    plan(recipe, lenet)
    assert recipe.model_dump_json() == before


def test_a_plan_can_be_shown_as_a_table(teacher):
    stages = plan(default(), teacher).stages
    rows = table(stages)
    assert [row[0] for row in rows] == [stage.name for stage in stages]
    assert rows[1][3] == "-"
    assert "one_hot 0.5" in rows[0][3]
