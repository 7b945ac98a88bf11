"""Episodes: a decoder that is bent towards one batch at a time."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.images import Batch
from synthkd.core.states import load_state, save_state
from synthkd.images.augment import augmented
from synthkd.recipe import AugmentTable, Recipe, Stage, TeacherTable
from synthkd.specs import load_teacher
from synthkd.synthesis import decoding
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.episodes import Episodes
from synthkd.teachers.frozen import FrozenTeacher, digest_of

STILL = AugmentTable(shift=0.0, flip=False)  # the view that is judged is the image itself
STAGE = Stage(
    name="x", generator="episodes", synthesis_steps=2, synthesis_batch=20, fresh=30, offer="best"
)
TERMS = {"one_hot": 0.5, "statistics_norm": 0.1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return load_teacher(TeacherTable())


def episodes(teacher: FrozenTeacher, seed: int = 3, **settings: Any) -> Episodes:
    torch.manual_seed(seed)
    table = {"width": 4, "latent": 8, "clip": 0.0, "learning_rate": 0.005, **settings}
    return Episodes(Recipe.model_validate({"generator": table}), teacher)


def context(teacher: FrozenTeacher, **stage: Any) -> SynthesisContext:
    def nothing(count: int, rng: torch.Generator, *, without: str = "") -> Batch | None:
        return None

    changed = STAGE.model_copy(update=stage)
    return SynthesisContext(teacher, teacher, changed, TERMS, STILL, nothing, False)


def weights(one: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in one.named_parameters()}


def by_hand(
    teacher: FrozenTeacher, start: Episodes, seed: int, steps: int, *, latent_rate: float = 0.0
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], list[Tensor], list[float]]:
    """An episode written out: Adam by its formula, gradients by autograd.

    Weights before each step and after the last, gradients, images and losses of each step.
    """
    decoder = copy.deepcopy(start.decoder).train()
    z, labels = decoding.inputs(decoder, 20, teacher.classes, seeded(seed))
    z.requires_grad_()
    moving = [*decoder.named_parameters(), *([("z", z)] if latent_rate else [])]
    first = {name: torch.zeros_like(p) for name, p in moving}
    second = {name: torch.zeros_like(p) for name, p in moving}
    path, gradients, images, losses = [weights(decoder)], [], [], []
    for step in range(1, steps + 1):
        picture = decoder(z, labels)
        seen = teacher.observe(picture)
        gap = torch.zeros(())
        for (mean, var), (m, v) in zip(seen.moments, teacher.stored, strict=True):
            gap = gap + (mean - m).norm() + (var - v).norm()
        loss = 0.5 * F.cross_entropy(seen.logits, labels) + 0.1 * gap
        found = dict(
            zip(dict(moving), torch.autograd.grad(loss, [p for _, p in moving]), strict=True)
        )
        for name, p in moving:
            g, rate = found[name], latent_rate if name == "z" else 0.005
            first[name] = 0.5 * first[name] + 0.5 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            up = first[name] / (1 - 0.5**step)
            down = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            p.data -= rate * up / down
        gradients.append(found)
        images.append(picture.detach().clone())
        losses.append(float(loss.detach()))
        path.append(weights(decoder))
    return path, gradients, images, losses


def adam_step(
    before: dict[str, Tensor], gradient: dict[str, Tensor], rate: float
) -> dict[str, Tensor]:
    """Adam's first step: the rate times g / (|g| + ε)."""
    return {k: v - rate * gradient[k] / (gradient[k].abs() + 1e-8) for k, v in before.items()}


def apart(a: Tensor, b: Tensor) -> float:
    """The distance of two tensors, as a share of their length: sums of float32 wander."""
    return float((a - b).norm() / b.norm())


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-5) -> None:
    for name, value in a.items():
        assert torch.allclose(value, b[name], atol=atol, rtol=1e-3), name


# --- what becomes of the weights ---


def test_an_episode_without_meta_learning_is_adam_from_where_the_last_one_ended(teacher):
    one = episodes(teacher)
    path, _, images, losses = by_hand(teacher, one, 7, 3)
    made = one.synthesize(context(teacher, synthesis_steps=3, offer="last"), seeded(7))
    for name, end in weights(one.decoder).items():
        assert apart(end - path[0][name], path[-1][name] - path[0][name]) < 0.02, name
    assert apart(made.batch.images, images[-1]) < 1e-3
    assert made.measures["term.one_hot"] > 0
    assert losses[-1] < losses[0]


def test_the_noise_moves_at_its_own_rate(teacher):
    moved, still = episodes(teacher, latent_rate=0.3), episodes(teacher)
    _, _, images, _ = by_hand(teacher, moved, 7, 2, latent_rate=0.3)
    found = [
        one.synthesize(context(teacher, offer="last"), seeded(7)).batch.images
        for one in (moved, still)
    ]
    assert apart(found[0], images[-1]) < 1e-3
    assert apart(found[1], images[-1]) > 1e-2


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_goes_by_the_sum_of_the_gradients_along_the_episode(teacher, steps):
    """For one step that is the gradient at the start itself."""
    one = episodes(teacher, meta="maml")
    before = weights(one.decoder)
    _, gradients, _, _ = by_hand(teacher, one, 7, steps)
    one.synthesize(context(teacher, synthesis_steps=steps), seeded(7))
    total = {name: sum(g[name] for g in gradients) for name in before}
    for name, p in one.decoder.named_parameters():
        assert apart(p.grad, total[name]) < 0.02, name
    grads = {name: p.grad for name, p in one.decoder.named_parameters()}
    assert_close(adam_step(before, grads, 0.005 * steps), weights(one.decoder))


def test_reptile_goes_towards_where_the_episode_ended(teacher):
    one = episodes(teacher, meta="reptile")
    before = weights(one.decoder)
    path, _, _, _ = by_hand(teacher, one, 7, 2)
    one.synthesize(context(teacher), seeded(7))
    grads = {name: p.grad for name, p in one.decoder.named_parameters()}
    for name, gradient in grads.items():
        assert apart(gradient, 67 * (before[name] - path[-1][name])) < 0.02, name
    assert_close(adam_step(before, grads, 0.005 * 2), weights(one.decoder))


@pytest.mark.slow
@pytest.mark.parametrize("meta", ["maml", "reptile"])
def test_a_common_start_gets_better_for_batches_it_has_not_seen(teacher, meta):
    one = episodes(teacher, meta=meta, latent_rate=0.015)
    the_scene = context(teacher, synthesis_steps=3)

    def first_loss() -> float:
        fresh = copy.deepcopy(one)
        fresh.objective, fresh.teacher = one.objective, one.teacher
        made = fresh.synthesize(context(teacher, synthesis_steps=1), seeded(1000))
        return 0.5 * made.measures["term.one_hot"] + 0.1 * made.measures["term.statistics_norm"]

    start = first_loss()
    for seed in range(25):
        one.synthesize(the_scene, seeded(seed))
    assert first_loss() < 0.9 * start


def test_the_running_statistics_are_those_of_the_episodes_end(teacher):
    one = episodes(teacher, meta="maml")
    before = one.decoder.norm1.norm.running_mean.clone()
    one.synthesize(context(teacher), seeded())
    assert not torch.equal(before, one.decoder.norm1.norm.running_mean)
    assert one.decoder.norm1.norm.num_batches_tracked == 2


def test_weights_are_drawn_anew_after_so_many_episodes(teacher):
    """CMI draws them for each; the first weights count as drawn."""
    one = episodes(teacher, restart=2, learning_rate=1e-6)
    first = weights(one.decoder)
    change = []
    for seed in range(5):
        one.synthesize(context(teacher), seeded(seed))
        now = weights(one.decoder)
        change.append(float((now["conv1.weight"] - first["conv1.weight"]).abs().max()) > 1e-2)
        first = now
    assert change == [False, False, True, False, True]


def test_new_weights_come_with_a_new_meta_optimizer_and_the_same_class_vectors(teacher):
    one = episodes(teacher, restart=1, meta="maml", source="noisy_layer")
    vectors = one.decoder.noisy.vectors.clone()
    for seed in range(3):
        one.synthesize(context(teacher), seeded(seed))
    state = one.meta.state[one.decoder.conv1.weight]
    assert int(state["step"]) == 1
    assert torch.equal(vectors, one.decoder.noisy.vectors)


def test_the_rate_falls_along_a_cosine_of_the_run(teacher):
    one = episodes(teacher, schedule="cosine")
    before = weights(one.decoder)
    one.synthesize(replace(context(teacher), share=1.0), seeded())
    assert_close(before, weights(one.decoder), atol=1e-9)


# --- what is offered ---


def test_the_best_steps_images_do_not_change_by_the_steps_after_it(teacher, monkeypatch):
    one = episodes(teacher, learning_rate=0.5)  # ruinous: the second step is the best
    images, losses, paint, judge = [], [], decoding.painted, type(one.objective).__call__

    def seen(*what: Any, **how: Any) -> Tensor:
        images.append(paint(*what, **how))
        return images[-1]

    def heard(*what: Any) -> Any:
        verdict = judge(*what)
        losses.append(float(verdict.loss.detach()))
        return verdict

    monkeypatch.setattr(decoding, "painted", seen)
    monkeypatch.setattr(type(one.objective), "__call__", heard)
    made = one.synthesize(context(teacher, synthesis_steps=6), seeded(7)).batch
    best = losses.index(min(losses))
    assert 0 < best < 5
    assert torch.equal(made.images, images[best])
    kept = made.images.clone()
    one.synthesize(context(teacher), seeded(8))
    assert torch.equal(made.images, kept)
    assert not made.images.requires_grad


def test_the_judged_view_is_shifted_and_mirrored_and_the_offered_image_is_not(teacher):
    one = episodes(teacher)
    table = AugmentTable(shift=0.25, flip=True)
    rng = seeded(7)
    z, labels = decoding.inputs(one.decoder, 20, 10, rng)
    with torch.no_grad():
        images = copy.deepcopy(one.decoder).train()(z, labels)
    expected = F.cross_entropy(teacher(augmented(images, table, 0.0, rng)), labels)
    made = one.synthesize(replace(context(teacher, synthesis_steps=1), augment=table), seeded(7))
    assert torch.equal(made.batch.images, images)
    assert made.measures["term.one_hot"] == pytest.approx(float(expected), rel=1e-3)


def test_new_images_come_from_where_the_episode_ended(teacher):
    one = episodes(teacher, meta="maml")
    made = one.synthesize(context(teacher, offer="new"), seeded(7)).batch
    assert made.images.shape == (30, 1, 16, 16)
    assert made.labels.tolist() == [-1] * 30  # the decoder knows no class


def test_without_steps_or_terms_new_images_are_offered_and_nothing_is_learned(teacher):
    for the_scene in (context(teacher, synthesis_steps=0), replace(context(teacher), terms={})):
        one = episodes(teacher, meta="reptile")
        before = copy.deepcopy(one.decoder.state_dict())
        made = one.synthesize(the_scene, seeded(7))
        assert len(made.batch.images) == 30
        assert made.measures == {}
        for name, value in one.decoder.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_classes_are_asked_for_in_balance_or_not_at_all(teacher):
    asked = episodes(teacher).synthesize(context(teacher), seeded())
    assert asked.batch.labels.bincount().tolist() == [2] * 10
    assert "target_class_rate" in asked.measures
    votes = episodes(teacher, conditional=False).synthesize(context(teacher), seeded())
    assert votes.batch.labels.tolist() == [-1] * 20
    assert "target_class_rate" not in votes.measures


def test_noisy_layers_are_new_for_every_episode_and_learn_at_the_noises_rate(teacher):
    one = episodes(teacher, source="noisy_layer", latent_rate=0.004)
    z, _ = decoding.inputs(one.decoder, 20, 10, seeded(7))
    assert z.shape == (2, 512, 8)
    losses = []
    for seed in range(2):
        made = one.synthesize(context(teacher, synthesis_steps=6, offer="last"), seeded(seed))
        losses.append(made.measures["term.one_hot"])
        assert made.batch.labels.bincount().tolist() == [2] * 10
    (first, one_order), (second, other_order) = (
        (batch.images, batch.labels.argsort())
        for batch in (one.synthesize(context(teacher), seeded(seed)).batch for seed in (1, 2))
    )
    assert not torch.allclose(first[one_order], second[other_order], atol=1e-3)


# --- state, promises ---


@pytest.mark.parametrize(
    "settings",
    [
        {"meta": "maml", "latent_rate": 0.01, "statistics_ema": 0.9},
        {"meta": "reptile", "schedule": "cosine"},
        {"meta": "none", "restart": 2, "source": "noisy_layer"},
    ],
)
def test_the_seed_decides_and_saved_episodes_go_on_the_same(teacher, tmp_path, settings):
    terms = {**TERMS, "contrast": 0.2, "disagreement": 0.5}
    the_scene = replace(context(teacher), terms=terms, student=lambda x: 0.5 * teacher(x))
    first = episodes(teacher, **settings)
    for seed in range(3):
        first.synthesize(the_scene, seeded(seed))
    save_state(first.state_dict(), tmp_path / "x", "episodes")
    second = episodes(teacher, seed=99, **settings)
    second.load_state_dict(load_state(tmp_path / "x", "episodes"))
    for seed in (5, 6):
        found = [one.synthesize(the_scene, seeded(seed)) for one in (first, second)]
        assert torch.equal(found[0].batch.images, found[1].batch.images)
        assert found[0].measures == found[1].measures


def test_the_teacher_stays_as_it_was(teacher):
    one = episodes(teacher, meta="maml", latent_rate=0.01)
    for seed in range(2):
        one.synthesize(context(teacher), seeded(seed))
    assert digest_of(teacher.classifier) == teacher.digest
    assert all(p.grad is None for p in teacher.parameters())


def test_the_global_random_state_does_not_take_part(teacher):
    one, other = (episodes(teacher, restart=1, meta="reptile") for _ in range(2))
    torch.manual_seed(1)
    first = [one.synthesize(context(teacher), seeded(s)).batch.images for s in range(2)]
    torch.manual_seed(2)
    second = [other.synthesize(context(teacher), seeded(s)).batch.images for s in range(2)]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
