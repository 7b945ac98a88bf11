"""Ways of synthesizing images, and the plan that chooses among them."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import Batch, ImageSpec
from synthkd.core.states import load_state, save_state
from synthkd.engine.build import assemble
from synthkd.engine.loop import rounds
from synthkd.losses.synthesis import TERMS, View, smoothness
from synthkd.losses.term import Term
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.networks.decoder import Decoder
from synthkd.recipe import (
    DiffusionTable,
    ProceduralTable,
    Recipe,
    Stage,
    TeacherTable,
    load_recipe,
)
from synthkd.specs import load_teacher
from synthkd.synthesis import GENERATORS, decoding
from synthkd.synthesis.context import SynthesisContext, even_labels
from synthkd.synthesis.drawings.strokes import draw_strokes
from synthkd.synthesis.gan import Gan, borrow, save_decoder
from synthkd.synthesis.plan import alone, plan, table
from synthkd.synthesis.procedural import SCENES, Procedural
from synthkd.teachers.frozen import FrozenTeacher


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


def teacher_of(
    body: nn.Module, *, mean: float = 0.5, size: int = 32, channels: int = 1
) -> FrozenTeacher:
    return FrozenTeacher(
        Classifier(body, ImageSpec(channels, size, size, (mean,) * channels, (0.3,) * channels), 10)
    )


@pytest.fixture(scope="module")
def lenet() -> FrozenTeacher:
    return teacher_of(build_network("lenet5", channels=1, size=32, classes=10))


@pytest.fixture(scope="module")
def headless() -> FrozenTeacher:
    """Classes straight from a convolution; it has BatchNorm, but no linear layer."""
    return teacher_of(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 10, 32), nn.Flatten()))


RECIPE = Recipe.model_validate(
    {"generator": {"width": 4, "latent": 8}, "discriminator": {"width": 4}}
)
STAGE = Stage(name="x", synthesis_steps=2, synthesis_batch=20, fresh=30)


def changed(**settings: Any) -> Recipe:
    """RECIPE with other settings of the generator."""
    return RECIPE.model_copy(update={"generator": RECIPE.generator.model_copy(update=settings)})


def nobody(images: Tensor) -> Tensor:
    raise AssertionError("the student was asked")


def nothing(count: int, rng: torch.Generator, *, without: str = "") -> Batch | None:
    return None


def light(count: int, rng: torch.Generator, *, without: str = "") -> Batch:
    """A reference that is lighter than what an untrained generator makes."""
    return Batch(torch.full((count, 1, 16, 16), 0.9), torch.arange(count) % 10)


def context(teacher: FrozenTeacher, stage: Stage = STAGE, **changes: Any) -> SynthesisContext:
    plain = SynthesisContext(
        teacher, nobody, stage, {"one_hot": 1.0}, RECIPE.augment, nothing, False
    )
    return replace(plain, **changes)


def gan(teacher: FrozenTeacher, recipe: Recipe = RECIPE) -> Gan:
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
    synthesized = gan(teacher).synthesize(context(teacher), seeded())
    assert synthesized.batch.images.shape == (30, 1, 16, 16)
    assert synthesized.batch.labels.bincount(minlength=10).tolist() == [3] * 10
    assert synthesized.trained == 40
    assert synthesized.batch.images.min() >= 0
    assert synthesized.batch.images.max() <= 1
    assert set(synthesized.measures) == {"term.one_hot", "target_class_rate"}


def test_without_steps_it_offers_images_and_learns_nothing(teacher):
    one = gan(teacher)
    before = copy.deepcopy(one.decoder.state_dict())
    synthesized = one.synthesize(
        context(teacher, STAGE.model_copy(update={"synthesis_steps": 0})), seeded()
    )
    assert (len(synthesized.batch.images), synthesized.trained, synthesized.measures) == (30, 0, {})
    assert_same(before, one.decoder.state_dict())


def test_the_teacher_comes_to_see_what_was_asked_for(teacher):
    one = gan(teacher)
    stage = STAGE.model_copy(update={"synthesis_steps": 1, "synthesis_batch": 40})
    laps = [one.synthesize(context(teacher, stage), seeded(i)).measures for i in range(45)]
    assert laps[-1]["term.one_hot"] < 0.7 * laps[0]["term.one_hot"]
    assert laps[-1]["target_class_rate"] > laps[0]["target_class_rate"] + 0.2


@pytest.mark.parametrize("term", sorted(set(TERMS) - {"realism", "contrast"}))
def test_every_term_alone_moves_the_decoder_towards_less_of_it(teacher, term):
    student = copy.deepcopy(teacher.classifier)
    student.body.linear.weight.data *= 0.3  # it votes like the teacher, but hesitates
    student.body.linear.bias.data *= 0.3
    one = gan(teacher, changed(learning_rate=0.01))
    stage = STAGE.model_copy(update={"synthesis_steps": 1, "synthesis_batch": 40})
    the_scene = context(teacher, stage, terms={term: 1.0}, student=student)
    values = [one.synthesize(the_scene, seeded(i)).measures[f"term.{term}"] for i in range(10)]
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

    synthesized = gan(teacher).synthesize(
        context(teacher, student=answer, terms={"one_hot": 1.0, "disagreement": 1.0}), seeded()
    )
    assert asked == [True, True]
    assert synthesized.measures["term.disagreement"] <= 0
    assert all(p.grad is None for p in student.parameters())


def test_a_weight_of_zero_is_no_term(teacher):
    synthesized = gan(teacher).synthesize(
        context(teacher, terms={"one_hot": 1.0, "disagreement": 0.0}), seeded()
    )
    assert "term.disagreement" not in synthesized.measures


@pytest.mark.parametrize("terms", [{}, {"realism": 1.0}, {"disagreement": 0.0}])
def test_without_any_term_to_judge_by_the_decoder_rests(teacher, terms):
    """Realism has nothing to compare with while the memory is nearly empty."""
    one = gan(teacher)
    before = {k: v.clone() for k, v in one.decoder.named_parameters()}
    synthesized = one.synthesize(context(teacher, terms=terms), seeded())
    assert (len(synthesized.batch.images), synthesized.trained) == (30, 0)
    assert_same(before, dict(one.decoder.named_parameters()))


def test_the_critic_learns_from_the_reference_and_moves_the_decoder_towards_it(teacher):
    one = gan(teacher)
    terms, stage = {"realism": 1.0}, STAGE.model_copy(update={"synthesis_steps": 1})
    before = copy.deepcopy(one.critic.state_dict())
    distances = []
    for i in range(60):
        synthesized = one.synthesize(
            context(teacher, stage, terms=terms, reference=light), seeded(i)
        )
        distances.append((synthesized.batch.images - 0.9).abs().mean().item())
    assert distances[-1] < 0.7 * distances[0]
    assert set(synthesized.measures) == {"term.realism", "target_class_rate", "critic"}
    assert not torch.equal(before["head.bias"], one.critic.head.bias)


def test_the_generators_step_leaves_no_gradient_in_the_critic(teacher):
    one = gan(teacher)
    images = torch.rand(4, 1, 16, 16, requires_grad=True)
    one._frozen_critic(images, torch.tensor([0, 1, 2, 3])).sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is None for p in one.critic.parameters())
    assert all(p.requires_grad for p in one.critic.parameters())


def test_only_the_steps_that_were_taken_are_counted(teacher):
    stage = STAGE.model_copy(update={"synthesis_steps": 5})
    late = one_step = context(teacher, stage, deadline=0.0)
    assert gan(teacher).synthesize(late, seeded()).trained == 20
    for kind, trained in (("episodes", 20), ("pixels", 2 * 16)):  # pixels: cut to the time
        made = GENERATORS[kind](RECIPE, teacher)
        assert made.synthesize(one_step, seeded()).trained == trained
        assert made.synthesize(context(teacher, stage), seeded()).trained == 100


def test_a_need_that_nobody_meets_is_refused(teacher, monkeypatch):
    term = Term("a test", lambda view: view.images.mean(), frozenset({"featurs"}))
    monkeypatch.setitem(TERMS, "mine", term)
    stage = STAGE.model_copy(update={"terms": {"mine": 1.0}})
    with pytest.raises(InputError, match=r"terms\.mine: unknown need 'featurs'; did you mean 'fea"):
        plan(RECIPE.model_copy(update={"stage": (stage,)}), teacher)


def test_a_long_gradient_is_cut(teacher):
    one = gan(teacher, changed(clip=1e-3))
    one.synthesize(context(teacher, terms={"one_hot": 100.0}), seeded())
    norm = torch.stack([p.grad.norm() for p in one.decoder.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_frozen_sample_is_one_of_eval_mode_so_images_do_not_depend_on_each_other(teacher):
    one = gan(teacher)
    one.synthesize(context(teacher), seeded())
    found = one.sample(12, seeded(5))
    z, labels = decoding.inputs(one.decoder, 12, 10, seeded(5))
    alone = torch.cat([one.decoder.eval()(z[i : i + 1], labels[i : i + 1]) for i in range(12)])
    assert torch.allclose(found.images, alone.detach(), atol=1e-5)
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("frozen", [True, False])
def test_sampling_changes_nothing(teacher, frozen):
    one = gan(teacher)
    before = copy.deepcopy(one.decoder.state_dict())
    one.sample(12, seeded(5), frozen=frozen)
    assert one.sample(0, seeded(5), frozen=frozen).images.shape == (0, 1, 16, 16)
    assert len(one.sample(1, seeded(5), frozen=frozen).images) == 1
    assert_same(before, one.decoder.state_dict())


def test_settling_makes_the_running_statistics_plain_means_over_batches(teacher):
    one = gan(teacher)
    one.finalise(seeded(7))
    rng, means = seeded(7), []
    for _ in range(20):
        z, _ = decoding.inputs(one.decoder, 256, 10, rng)
        means.append(one.decoder.linear(z).view(256, 8, 4, 4).mean((0, 2, 3)))
    assert torch.allclose(
        one.decoder.norm0.norm.running_mean, torch.stack(means).mean(0), atol=1e-5
    )
    assert not one.decoder.training
    assert one.decoder.norm0.norm.momentum == 0.1


def test_the_seed_decides_and_a_saved_gan_goes_on_the_same(teacher, tmp_path):
    the_scene = context(
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
    for one, synthesized in zip((second, third), found[1:], strict=True):
        assert torch.equal(synthesized.batch.images, found[0].batch.images)
        assert synthesized.measures == found[0].measures
        assert_same(one.decoder.state_dict(), first.decoder.state_dict())
        assert_same(one.critic.state_dict(), first.critic.state_dict())


@pytest.mark.parametrize(
    "form",
    [{}, {"conditional": False, "output": "standard", "ema": 0.5}, {"source": "noisy_layer"}],
)
def test_a_saved_decoder_can_be_borrowed_with_its_form(teacher, tmp_path, form):
    one = gan(teacher, changed(**form))
    one.synthesize(context(teacher), seeded())
    save_decoder(one, tmp_path / "generator.safetensors")
    recipe = borrow(Recipe.model_validate({"generator": {"start": str(tmp_path)}}))
    assert (recipe.generator.latent, recipe.generator.width) == (8, 4)
    other = Gan(recipe, teacher)
    other.load(str(tmp_path))
    assert torch.equal(other.sample(5, seeded(1)).images, one.sample(5, seeded(1)).images)


def test_a_decoder_for_other_images_is_told(teacher, lenet, tmp_path):
    save_decoder(gan(teacher), tmp_path / "generator.safetensors")
    with pytest.raises(
        InputError, match=r"\[1, 16, 16\] images, the teacher takes 10 of \[1, 32, 32\]"
    ):
        Gan(RECIPE, lenet).load(str(tmp_path))


def test_a_directory_without_a_generator_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no generator\.safetensors"):
        borrow(Recipe.model_validate({"generator": {"start": str(tmp_path)}}))


def round_(one: Gan, the_scene: SynthesisContext, seed: int = 1) -> Any:
    return one.synthesize(the_scene, seeded(seed))


def test_an_unconditional_generator_asks_for_no_class_and_its_classes_are_votes(teacher):
    """DAFL: the cross-entropy is that to the teacher's own vote."""
    one = gan(teacher, changed(conditional=False))
    assert not any("scale" in name for name, _ in one.decoder.named_parameters())
    stage = STAGE.model_copy(update={"synthesis_steps": 1, "offer": "last"})
    synthesized = round_(one, context(teacher, stage))
    assert synthesized.batch.labels.tolist() == [-1] * 20
    assert "target_class_rate" not in synthesized.measures
    taught = teacher(synthesized.batch.images)
    assert synthesized.measures["term.one_hot"] == pytest.approx(
        -taught.log_softmax(1).amax(1).mean().item(), rel=1e-4
    )
    assert one.sample(7, seeded()).labels.tolist() == [-1] * 7


def test_an_unconditional_critic_knows_one_class_alone(teacher):
    recipe = changed(conditional=False)
    plain = recipe.discriminator.model_copy(update={"spectral_norm": False})
    one = gan(teacher, recipe.model_copy(update={"discriminator": plain}))
    before = one.critic.embedding.weight.detach().clone()
    round_(one, context(teacher, terms={"realism": 1.0}, reference=light))
    moved = (one.critic.embedding.weight - before).abs().amax(1) > 0
    assert moved.tolist() == [True] + [False] * 9


def test_standard_images_have_the_mean_and_deviation_that_the_teacher_expects():
    torch.manual_seed(0)
    decoder = Decoder(
        latent=8, width=4, classes=0, shape=(2, 16, 16),
        output="standard", mean=(0.4, 0.6), std=(0.05, 0.1),
    )  # fmt: skip
    images = decoder(torch.randn(64, 8), torch.zeros(64, dtype=torch.int64))
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0.4, 0.6], abs=2e-3)
    assert images.std((0, 2, 3)).tolist() == pytest.approx([0.05, 0.1], abs=2e-3)


def test_the_cut_of_standard_images_lets_gradients_through():
    torch.manual_seed(0)
    decoder = Decoder(
        latent=8, width=4, classes=0, shape=(1, 8, 8), output="standard", mean=(0.5,), std=(9.0,)
    )
    z, labels = torch.randn(32, 8), torch.zeros(32, dtype=torch.int64)
    images = decoder(z, labels)
    assert images.min() == 0
    assert images.max() == 1
    assert ((images == 0) | (images == 1)).float().mean() > 0.5
    weights = torch.randn(images.shape)
    (images * weights).sum().backward()
    found = decoder.conv3.weight.grad.clone()
    decoder.zero_grad()
    decoder.std.fill_(1e-3)  # nothing is cut now; the gradient is 9,000 times smaller
    (decoder(z, labels) * weights).sum().backward()
    assert torch.allclose(found, 9000 * decoder.conv3.weight.grad, rtol=1e-3, atol=1e-2)


def test_the_noisy_layers_images_are_those_of_its_formula():
    """By hand: BatchNorm of the class vectors, times the weights of the image's group."""
    torch.manual_seed(0)
    decoder = Decoder(latent=6, width=4, classes=0, shape=(1, 8, 8), named=3)
    assert decoder.noisy is not None
    z, labels = decoding.inputs(decoder, 8, 3, seeded())
    assert z.shape == (3, 512, 6)
    assert all(len(set(group.tolist())) == len(group) for group in labels.split(3))
    vectors = decoder.noisy.vectors[labels]
    normed = (vectors - vectors.mean(0)) / (vectors.var(0, correction=0) + 1e-5).sqrt()
    expected = torch.stack([normed[i] @ z[i // 3] for i in range(8)])
    assert torch.allclose(decoder.noisy(z, labels), expected, atol=1e-3)
    assert abs(z.std().item() - 1) < 0.02


def test_the_noisy_layer_is_drawn_anew_for_every_batch_and_its_vectors_stay(teacher):
    one = gan(teacher, changed(source="noisy_layer"))
    vectors = one.decoder.noisy.vectors.clone()
    first, second = one.sample(20, seeded(1)), one.sample(20, seeded(2))
    again = first.labels.argsort(), second.labels.argsort()
    assert not torch.allclose(first.images[again[0]], second.images[again[1]], atol=1e-3)
    round_(one, context(teacher))
    assert torch.equal(vectors, one.decoder.noisy.vectors)
    assert first.labels.bincount().tolist() == [2] * 10


def test_the_average_is_the_one_computed_by_hand(teacher):
    one = gan(teacher, changed(ema=0.75))
    name = "conv1.weight"
    expected = one.decoder.state_dict()[name].clone()
    stage = STAGE.model_copy(update={"synthesis_steps": 1})
    for seed in range(3):
        round_(one, context(teacher, stage), seed)
        expected = 0.75 * expected + 0.25 * one.decoder.state_dict()[name]
    assert torch.allclose(one.average.state_dict()[name], expected, atol=1e-6)
    assert not torch.allclose(expected, one.decoder.state_dict()[name], atol=1e-5)


def test_half_of_the_fresh_images_are_the_averages(teacher):
    one = gan(teacher, changed(ema=0.9))
    with torch.no_grad():
        for p in one.average.parameters():
            p.zero_()  # all its pixels are the sigmoid of nothing
    images = round_(
        one, context(teacher, STAGE.model_copy(update={"synthesis_steps": 0}))
    ).batch.images
    assert (images == 0.5).all((1, 2, 3)).sum() == 15
    assert [len(one._fresh(n, seeded(), False).images) for n in (0, 1, 3)] == [0, 1, 3]
    assert one.sample(8, seeded()).images.std() > 0


def painted_by(one: Gan) -> list[Tensor]:
    """The images of each step, seen by the teacher."""
    seen: list[Tensor] = []
    ask = one.objective.teacher.observe

    def look(images: Tensor, **how: bool) -> Any:
        seen.append(images.detach().clone())
        return ask(images, **how)

    one.objective.teacher.observe = look  # type: ignore[method-assign]
    return seen


def test_the_last_steps_images_can_be_offered(teacher):
    one = gan(copy.deepcopy(teacher))
    seen = painted_by(one)
    stage = STAGE.model_copy(update={"synthesis_steps": 3, "offer": "last"})
    found = round_(one, context(one.objective.teacher, stage)).batch
    assert torch.equal(found.images, seen[-1])
    assert len(found.labels) == 20


def test_the_best_steps_images_can_be_offered_though_steps_follow(teacher):
    one = gan(copy.deepcopy(teacher), changed(learning_rate=1e-9))  # noise alone tells steps apart
    seen = painted_by(one)
    stage = STAGE.model_copy(update={"synthesis_steps": 4, "offer": "best"})
    found = round_(one, context(one.objective.teacher, stage, terms={"smoothness": 1.0}), 5).batch
    losses = [float(smoothness(View(x, found.labels, torch.empty(0)))) for x in seen]
    best = losses.index(min(losses))
    assert best < 3
    assert torch.equal(found.images, seen[best])


@pytest.mark.parametrize("kind", ["gan", "episodes"])
def test_after_the_deadline_no_second_step_is_begun(teacher, kind):
    one = GENERATORS[kind](RECIPE, teacher)
    seen = painted_by(one)
    one.synthesize(context(teacher, deadline=0.0), seeded())
    del teacher.observe  # what was put in its place
    assert len(seen) == 1


def test_the_rate_falls_along_a_cosine_of_the_run(teacher):
    one = gan(teacher, changed(schedule="cosine", learning_rate=0.1))
    rates = []
    for share in (0.0, 0.5, 1.0):
        round_(one, context(teacher, share=share))
        rates.append(one.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.05, 0.0])


def test_a_gan_with_every_setting_goes_on_the_same_after_a_checkpoint(teacher, tmp_path):
    recipe = changed(
        conditional=False, output="standard", ema=0.9, statistics_ema=0.9, schedule="cosine"
    )
    the_scene = context(
        teacher,
        STAGE.model_copy(update={"offer": "best"}),
        terms={"one_hot": 1.0, "statistics_norm": 0.1, "contrast": 0.5, "realism": 0.1},
        reference=light,
        share=0.3,
    )
    first = gan(teacher, recipe)
    round_(first, the_scene)
    save_state(first.state_dict(), tmp_path / "x", "gan")
    torch.manual_seed(99)
    second = Gan(recipe, teacher)
    second.load_state_dict(load_state(tmp_path / "x", "gan"))
    found = [round_(one, the_scene, 2) for one in (first, second)]
    assert torch.equal(found[0].batch.images, found[1].batch.images)
    assert found[0].measures == found[1].measures
    assert torch.equal(first._fresh(6, seeded(), False)[0], second._fresh(6, seeded(), False)[0])


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
    synthesized = Procedural(RECIPE, lenet).synthesize(context(lenet), seeded())
    assert (len(synthesized.batch.images), synthesized.trained, synthesized.measures) == (30, 0, {})
    assert len(Procedural(RECIPE, lenet).sample(0, seeded()).images) == 0


class Sure(nn.Module):
    """Sees class 0 where the upper half is lighter than the lower, else class 1, and is sure."""

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.chunk(2, 2)
        logits = images.new_full((len(images), 10), -50.0)
        logits[:, 0] = 1e4 * (upper.mean((1, 2, 3)) - lower.mean((1, 2, 3)))
        logits[:, 1] = -logits[:, 0]
        return logits


EVOLVING = RECIPE.model_copy(update={"procedural": ProceduralTable(evolve=1.0)})


def test_what_is_held_out_has_no_parents_and_no_children() -> None:
    box = teacher_of(Sure(), mean=0.1)
    made = Procedural(EVOLVING, box)
    stage = STAGE.model_copy(update={"fresh": 64})
    for round_ in range(3):
        images = made.synthesize(context(box, stage), seeded(round_)).batch.images
        # the first sixteenth is drawn first, by nothing but the numbers
        assert torch.equal(images[:4], Procedural(RECIPE, box).sample(4, seeded(round_)).images)
        made.answered(box(images))
    assert int(made.found.sum()) == 3 * 60  # all others
    known = torch.cat([made.parents[k, : made.found[k]] for k in range(2)])
    drawn = {shape.numpy().tobytes() for shape in draw_strokes(known, 32, 32) > 0}
    alike = [(image > 0).numpy().tobytes() in drawn for image in images]
    assert alike == [False] * 4 + [True] * 60


def test_a_drawing_becomes_a_parent_of_the_class_that_the_answer_names() -> None:
    box = teacher_of(Sure(), mean=0.1)
    made = Procedural(EVOLVING, box)
    made.answered(torch.empty(0, 10))  # of nothing
    images = made.synthesize(context(box), seeded()).batch.images
    logits = box(images)
    made.answered(logits)
    assert made.found.tolist()[:2] == logits[1:].argmax(1).bincount().tolist()
    for k in range(2):
        shapes = draw_strokes(made.parents[k, : made.found[k]], 32, 32)
        upper, lower = shapes.chunk(2, 2)
        lighter = upper.mean((1, 2, 3)) > lower.mean((1, 2, 3))
        assert lighter.tolist() == [k == 0] * len(shapes)


@pytest.mark.parametrize("evolve", [0.0, 0.5])
def test_a_black_box_is_asked_once_about_a_drawing(evolve: float) -> None:
    stages = ({"name": "draw", "generator": "procedural", "fresh": 64, "student_steps": 0},)
    given = {"stage": stages, "budget": {"images": 192}, "procedural": {"evolve": evolve}}
    body, spec = Sure(), ImageSpec(1, 32, 32, (0.1,), (0.3,))
    box = FrozenTeacher(Classifier(body, spec, 10), access="logits")
    lab = assemble(Recipe.model_validate(given), box, None)
    before = box.queries
    made = list(rounds(lab))
    assert len(made) == 3 and box.queries - before == 192
    generator = lab.generators["procedural"]
    assert isinstance(generator, Procedural)
    assert int(generator.found.sum()) == (180 if evolve else 0)


@pytest.mark.parametrize(
    ("mean", "std", "kinds", "dark"),
    [
        (0.0, 1.0, ("strokes", *SCENES), 0.5),  # a function, an ONNX graph: nothing is known
        (0.0, 1 / 255, ("strokes", *SCENES), 0.5),  # bytes
        (0.5, 0.5, ("strokes", *SCENES), 0.5),  # to -1..1
        (127.5 / 255, 127.5 / 255, ("strokes", *SCENES), 0.5),
        (128 / 255, 128 / 255, ("strokes", *SCENES), 0.5),
        (0.1307, 0.3081, ("strokes",), 0.0),
        (0.9, 0.3, ("strokes",), 1.0),
        (0.5, 0.3, SCENES, None),
        (0.4717, 0.25, SCENES, None),
    ],
)
def test_what_is_drawn_goes_by_a_mean_of_images_and_not_by_a_change_of_scale(
    mean: float, std: float, kinds: tuple[str, ...], dark: float | None
) -> None:
    def box_of(channels: int) -> FrozenTeacher:
        body = nn.Sequential(nn.Conv2d(channels, 10, 32), nn.Flatten())
        spec = ImageSpec(channels, 32, 32, (mean,) * channels, (std,) * channels)
        return FrozenTeacher(Classifier(body, spec, 10))

    assert Procedural(RECIPE, box_of(1)).kinds == kinds
    assert Procedural(RECIPE, box_of(3)).kinds == SCENES
    if dark is not None:
        strokes = RECIPE.model_copy(update={"procedural": ProceduralTable(kinds=("strokes",))})
        images = Procedural(strokes, box_of(1)).sample(400, seeded()).images
        white = float((images.flatten(1).median(1).values > 0.9).float().mean())
        assert white == pytest.approx(dark, abs=0.1)


def test_the_teacher_sees_most_classes_in_drawings(teacher):
    votes = teacher(Procedural(RECIPE, teacher).sample(600, seeded()).images).argmax(1)
    assert len(votes.unique()) >= 8


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_generator_follows_the_protocol(teacher, kind):
    table = {"accept": "all", "width": 8, "steps": 2}  # untrained, it would be disagreed with
    recipe = RECIPE.model_copy(update={"diffusion": DiffusionTable.model_validate(table)})
    one = GENERATORS[kind](recipe, teacher)
    one.load_state_dict(one.state_dict())
    made = one.synthesize(context(teacher, material=light), seeded()).batch
    count = 20 if kind == "pixels" else 30
    assert (made.images.shape, made.labels.shape) == ((count, 1, 16, 16), (count,))


# --- plan ---


def default(**tables: dict[str, Any]) -> Recipe:
    """Three stages with a generator that is named: what the plan may change is seen best there."""
    return load_recipe(flags={"pipeline": "gan", **tables})


def kinds(recipe: Recipe, teacher: FrozenTeacher, **how: bool) -> dict[str, str]:
    return {stage.name: stage.generator for stage in plan(recipe, teacher, **how).stages}


def said(recipe: Recipe, teacher: FrozenTeacher) -> str:
    return "\n".join(plan(recipe, teacher).reasons)


def test_a_teacher_with_batchnorm_gets_the_gan_and_all_its_terms(teacher):
    recipe = default()
    assert kinds(recipe, teacher) == {"pregenerate": "gan", "finetune": "none", "joint": "gan"}
    for before, after in zip(recipe.stages, plan(recipe, teacher).stages, strict=True):
        assert after.terms == before.terms
    assert "172,218 parameters, 10 classes" in said(recipe, teacher)


def test_auto_means_pixels_for_a_teacher_with_batchnorm_and_drawings_without(teacher, lenet):
    recipe = load_recipe(stage_flags={"refine": {"generator": "auto"}})
    assert kinds(recipe, teacher)["refine"] == "pixels"
    assert kinds(recipe, lenet)["refine"] == "procedural"
    assert "no BatchNorm" in said(recipe, lenet)


def test_a_gan_that_is_asked_for_without_batchnorm_goes_by_smoothness_and_balance(lenet):
    recipe = default()
    first = plan(recipe, lenet).stages[0]
    assert first.generator == "gan"
    assert (
        first.terms["smoothness"]
        == first.terms["balance"]
        == 0.2 * recipe.stages[0].terms["statistics"]
    )
    assert {"one_hot", "prototype"} <= set(first.terms)


@pytest.mark.parametrize("kind", ["gan", "episodes", "pixels"])
def test_published_statistics_and_contrast_need_batchnorm_and_it_is_said(teacher, lenet, kind):
    wanted = {"one_hot": 1.0, "statistics_norm": 10.0, "contrast": 0.8, "spread": 0.1}
    recipe = default(stage=({"name": "x", "generator": kind, "terms": wanted},))
    assert plan(recipe, teacher).stages[0].terms == wanted
    assert plan(recipe, lenet).stages[0].terms == {"one_hot": 1.0, "spread": 0.1}
    assert "statistics_norm, contrast dropped: no BatchNorm" in said(recipe, lenet)


@pytest.mark.parametrize("capacity", [0, 100])
def test_the_images_of_a_step_count_as_fresh_ones(teacher, capacity):
    recipe = default(
        memory={"capacity": capacity},
        stage=(
            {"name": "x", "generator": "gan", "fresh": 0, "synthesis_batch": 44, "offer": "last"},
        ),
    )
    assert plan(recipe, teacher).stages[0].fresh == 44
    assert "fresh images a round" not in said(recipe, teacher)


def test_without_a_linear_layer_the_terms_of_features_are_dropped_and_it_is_said(headless):
    recipe = default()
    for stage in plan(recipe, headless).stages:
        assert not {"prototype", "consistency", "activation", "spread"} & set(stage.terms)
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
                gan(one).synthesize(
                    context(one, short, terms=stage.terms, student=student), seeded()
                )


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


def test_without_a_memory_pixels_are_improved_as_before(teacher):
    recipe = load_recipe(flags={"memory": {"capacity": 0, "shares": {}}})
    *_, refine, study = plan(recipe, teacher).stages
    assert (study.generator, study.student_steps) == ("pixels", 10)
    assert study.synthesis_steps == refine.synthesis_steps > 0
    assert study.terms == refine.terms


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


# --- what generators do without a student ---


def stage(name: str, generator: str, **fields: Any) -> Stage:
    return Stage(name=name, generator=generator, student_steps=fields.pop("student", 0), **fields)


def test_alone_are_the_stages_without_a_student():
    draw = stage("draw", "procedural", fresh=64, terms={})
    refine = stage("refine", "pixels", synthesis_steps=4, terms={"one_hot": 1.0})
    joint = stage("joint", "gan", student=5)
    study = stage("study", "none", student=5)
    assert alone((draw, refine, joint, study)) == (draw, refine)


def test_alone_is_the_first_that_synthesizes_where_all_have_a_student():
    terms = {"one_hot": 1.0, "disagreement": 0.5}
    study, joint, later = (
        stage("study", "none", student=5), stage("joint", "gan", student=5, terms=terms),
        stage("later", "pixels", student=5),
    )  # fmt: skip
    (only,) = alone((study, joint, later))
    assert (only.name, only.student_steps, only.terms) == ("joint", 0, {"one_hot": 1.0})


def test_alone_is_nothing_where_nothing_synthesizes():
    assert alone((stage("study", "none", student=5),)) == ()


@pytest.mark.parametrize(
    ("before", "steps", "names"),
    [
        ("diffusion", 0, ["draw", "learn"]),  # one stage: what it learns is sampled in writing
        ("diffusion", 3, ["draw", "learn", "imagine"]),  # it goes on learning
        ("pixels", 0, ["draw", "learn", "imagine"]),  # of another
    ],
)
def test_sampling_after_learning_is_one_stage(before, steps, names):
    found = alone((
        stage("draw", "procedural", fresh=64),
        stage("learn", before, synthesis_steps=10, fresh=7),
        stage("imagine", "diffusion", synthesis_steps=steps, fresh=256, terms={"balance": 2.0}),
    ))  # fmt: skip
    assert [s.name for s in found] == names
    assert found[-1].terms == {"balance": 2.0}
    if len(found) == 2:
        assert (found[-1].synthesis_steps, found[-1].fresh) == (10, 0)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"terms": {"one_hit": 1.0}}, "unknown term 'one_hit'; did you mean 'one_hot'?"),
        ({"generator": "gann"}, "unknown generator 'gann'; did you mean 'gan'?"),
        ({"options": {"sigma": 2}}, "pixels has no option 'sigma'; it has none"),
    ],
)
def test_what_a_stage_names_and_there_is_not_is_said_by_the_plan(teacher, stage, said):
    whole = {"name": "a", "generator": "pixels", "terms": {"one_hot": 1.0}} | stage
    recipe = Recipe.model_validate({"stage": [whole]})
    with pytest.raises(InputError, match=re.escape(said)):
        plan(recipe, teacher)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("gan", "--generator.learning_rate"),
        ("episodes", "--generator.learning_rate"),
        ("pixels", "--pixels.learning_rate"),
        ("diffusion", "--diffusion.teacher_guidance"),
    ],
)
def test_every_generator_that_goes_by_terms_ends_its_round_where_one_is_not_finite(
    teacher, kind, flag
):
    table = {"teacher_guidance": 2.0, "width": 8, "steps": 2}
    one = GENERATORS[kind](Recipe.model_validate({"diffusion": table}), teacher)
    steps = 0 if kind == "diffusion" else 2
    stage = Stage(name="x", generator=kind, synthesis_batch=20, synthesis_steps=steps, fresh=4)
    the_context = context(teacher, stage, terms={"one_hot": float("nan")})
    with pytest.raises(InputError, match=rf"no longer finite: lower {flag} "):
        one.synthesize(the_context, seeded())
