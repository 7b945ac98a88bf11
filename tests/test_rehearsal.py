"""The memory without images: it learns, it depends on nothing but its seeds, and it keeps none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from synthkd.core.errors import InputError
from synthkd.core.images import ImageSpec, to_float
from synthkd.core.states import load_state, save_state
from synthkd.engine.build import assemble
from synthkd.engine.loop import Lab, rounds
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, StudentTable
from synthkd.replay import Memory, replay_for
from synthkd.replay.generative import BATCH, LATENT, GenerativeReplay, encoder, kl_to_prior
from synthkd.specs import new_student
from synthkd.teachers.frozen import FrozenTeacher, digest_of

SPEC = ImageSpec(1, 8, 8, (0.5,), (0.25,))


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    torch.manual_seed(3)
    body = build_network("resnet8-w4", channels=1, size=8, classes=3).train()
    for _ in range(3):
        body(torch.randn(16, *SPEC.shape))
    return FrozenTeacher(Classifier(body, SPEC, 3))


class Asked:
    """The teacher's logits for uint8 images, and how many it was asked for."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.teacher, self.count = teacher, 0

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        self.count += len(pixels)
        return self.teacher(to_float(pixels))


def made(teacher: FrozenTeacher, *, capacity: int = 500, seed: int = 0) -> GenerativeReplay:
    return GenerativeReplay(capacity, teacher, Asked(teacher), seed=seed)


def stripes(count: int, seed: int) -> Tensor:
    """Images of two tones, left and right: much simpler than their 64 pixels."""
    tones = torch.rand(count, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    return (255 * tones).round().to(torch.uint8).repeat_interleave(4, 3).expand(-1, -1, 8, -1)


def learned(memory: GenerativeReplay, times: int, count: int = 32) -> GenerativeReplay:
    for seed in range(times):
        pixels = stripes(count, seed)
        memory.add(pixels, torch.full((count,), -1), Asked(memory.teacher)(pixels), "any")
    return memory


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_surplus_is_the_divergence_of_torch():
    mean, spread = torch.randn(4, 7), torch.randn(4, 7)
    own, standard = Normal(mean, (spread / 2).exp()), Normal(0.0, 1.0)
    expected = kl_divergence(own, standard).sum(1).mean()
    assert kl_to_prior(mean, spread).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 33, 20)])
def test_images_of_any_size_are_encoded(shape):
    assert encoder(shape)(torch.rand(2, *shape)).shape == (2, 2 * LATENT)


@pytest.mark.slow
def test_what_is_drawn_comes_to_look_like_what_was_added(teacher):
    """In a stripe neighbours above each other are equal; fresh weights make no stripes."""

    def roughness(memory: GenerativeReplay) -> float:
        pixels = memory.draw(64, rng()).images.float()
        inside = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean()
        return float(inside / pixels.std())

    memory = learned(made(teacher), 1)
    before = roughness(memory)
    assert roughness(learned(memory, 60)) < 0.6 * before


def test_a_loss_that_is_not_finite_is_said(teacher):
    memory = made(teacher)
    with torch.no_grad():
        memory.parts["encoder"][-1].bias[LATENT:] = 1000.0  # a variance that no float holds
    with pytest.raises(InputError, match=r"no longer finite: use --memory\.form images"):
        learned(memory, 1)


def test_no_image_is_kept(teacher):
    memory = learned(made(teacher), 1)
    numbers = sum(p.numel() for p in memory.parts.state_dict().values())
    learned(memory, 3, count=200)
    after = memory.state_dict()
    assert sum(p.numel() for p in after["parts"].values()) == numbers
    assert set(after) == {"parts", "optimizer", "counted", "steps"}


def test_it_counts_the_votes_of_everything_added_and_is_as_long_at_most_as_its_capacity(teacher):
    memory = made(teacher, capacity=50)
    assert (len(memory), memory.counts) == (0, [0, 0, 0])
    votes = Asked(teacher)(stripes(32, 0)).argmax(1)
    learned(memory, 1)
    assert memory.counts == votes.bincount(minlength=3).tolist()
    assert len(memory) == 32
    learned(memory, 1)
    assert sum(memory.counts) == 64
    assert len(memory) == 50


def test_newcomers_are_learned_with_a_quarter_as_many_of_its_own_images(teacher):
    memory = made(teacher)
    learned(memory, 1)
    assert memory.label.count == 0  # at first it has none
    learned(memory, 1)
    assert memory.label.count == 8
    learned(memory, 1, count=BATCH + 2)  # two steps
    assert memory.steps == 4


@pytest.mark.parametrize(("capacity", "count"), [(0, 32), (9, 0), (9, 1)])
def test_without_room_or_with_less_than_two_images_nothing_happens(teacher, capacity, count):
    memory = made(teacher, capacity=capacity)
    learned(memory, 1, count=count)
    assert (len(memory), memory.steps) == (0, 0)


def test_drawn_images_are_labelled_only_when_somebody_looks(teacher):
    memory = learned(made(teacher), 1)
    drawn = memory.draw(5, rng())
    assert drawn.images.shape == (5, *SPEC.shape)
    assert drawn.images.dtype == torch.uint8
    assert memory.label.count == 0
    assert torch.equal(drawn.votes, teacher(to_float(drawn.images)).argmax(1))


def test_the_boundary_share_is_drawn_where_the_teacher_is_less_sure(teacher):
    memory = learned(made(teacher), 2)

    def margin(boundary: float) -> float:
        drawn = memory.draw(200, rng(), boundary=boundary)
        assert len(drawn.images) == 200
        top = memory.label(drawn.images).softmax(1).topk(2, dim=1).values
        return float((top[:, 0] - top[:, 1]).mean())

    assert margin(1.0) < margin(0.5) < margin(0.0)


def test_of_independent_classes_the_boundary_is_where_one_is_neither_seen_nor_not():
    """A teacher of which two classes always go together: by a softmax it never tells them apart."""
    linear = nn.Linear(64, 3)
    with torch.no_grad():
        linear.weight[:2], linear.weight[2] = 30 / 64, 0.0
        linear.bias.copy_(torch.tensor([0.0, 0.0, -40.0]))
    body = nn.Sequential(nn.Flatten(), linear)
    several = FrozenTeacher(Classifier(body, SPEC, 3, "multilabel-logits"))
    memory = learned(made(several), 2)
    both = memory.draw(80, rng(7)).images  # what is chosen from, with the same numbers
    drawn = memory.draw(40, rng(7), boundary=1.0).images
    of_both, of_drawn = (several(to_float(some))[:, 0].abs() for some in (both, drawn))
    assert torch.allclose(of_drawn.sort().values, of_both.sort().values[:40], atol=1e-4)
    assert of_drawn.max() < of_both[:40].max()


def test_everything_random_comes_from_the_seed_and_the_given_numbers(teacher):
    memories = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(memories))
        memories.append(learned(made(teacher, seed=seed), 2))
    state = torch.get_rng_state()
    a, b, c = (memory.draw(4, rng(5)).images for memory in memories)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, memories[0].draw(4, rng(6)).images)


def test_learning_leaves_the_teacher_alone(teacher):
    digest = digest_of(teacher.classifier)
    learned(made(teacher), 2)
    assert digest_of(teacher.classifier) == digest
    assert all(p.grad is None for p in teacher.parameters())


def test_a_restored_one_has_the_same_future(teacher, tmp_path: Path):
    unbroken = learned(made(teacher), 3)
    save_state(unbroken.state_dict(), tmp_path / "x", "memory")
    other = learned(made(teacher, seed=0), 1)
    other.load_state_dict(load_state(tmp_path / "x", "memory"))
    for memory in (unbroken, other):
        learned(memory, 2)
    assert unbroken.counts == other.counts
    assert torch.equal(unbroken.draw(9, rng()).images, other.draw(9, rng()).images)


def test_what_it_draws_is_stored_nowhere_and_has_no_priority(teacher):
    memory = learned(made(teacher), 1)
    drawn = memory.draw(5, rng())
    assert drawn.slots.tolist() == [-1] * 5
    assert drawn.labels.tolist() == [-1] * 5
    assert drawn.weights.tolist() == [1.0] * 5
    assert len(memory.everything()) == 0
    memory.update(drawn.slots, torch.full((5,), 9.0))
    assert torch.equal(memory.draw(5, rng()).images, drawn.images)


@pytest.mark.parametrize(
    ("form", "synthetic", "kind"),
    [("images", "", Memory), ("autoencoder", "", GenerativeReplay), ("autoencoder", "x", Memory)],
)
def test_a_recipe_gets_the_memory_that_it_asks_for(teacher, form, synthetic, kind):
    recipe = Recipe.model_validate(
        {"memory": {"form": form, "capacity": 7}, "data": {"synthetic": synthetic}}
    )
    memory = replay_for(recipe, teacher, Asked(teacher))
    assert type(memory) is kind
    assert (memory.capacity, len(memory), memory.counts) == (7, 0, [0, 0, 0])


def test_memories_of_a_run_know_whether_classes_are_independent(teacher, tmp_path):
    body = build_network("resnet8-w4", channels=1, size=8, classes=3)
    several = FrozenTeacher(Classifier(body, SPEC, 3, "multilabel-logits"))
    for one, independent in ((teacher, False), (several, True)):
        lab = assemble(Recipe.of({}), one, new_student(StudentTable(spec="resnet8-w4"), one))
        assert isinstance(lab.memory, Memory)
        assert lab.memory.independent is lab.held_out.independent is independent
        lab.fill(stripes(64, 0), torch.zeros(64, dtype=torch.int64))
        assert isinstance(lab.memory, Memory) and len(lab.memory) == 61
        assert lab.memory.independent is independent


# --- in a run ---

RECIPE: dict[str, Any] = {
    "memory": {"form": "autoencoder", "capacity": 100},
    "budget": {"images": 160},
    "training": {"batch": 16},
    "generator": {"width": 4, "latent": 8},
    "stage": [
        {
            "name": "joint", "generator": "gan", "student_steps": 2, "synthesis_batch": 16,
            "fresh": 16, "terms": {"one_hot": 1.0},
        }
    ],
}  # fmt: skip


def test_a_run_rehearses_and_goes_on_after_a_break_as_if_there_had_been_none(teacher, tmp_path):
    recipe = Recipe.model_validate(RECIPE)

    def lab() -> Lab:
        torch.manual_seed(4)
        student = new_student(StudentTable(spec="resnet8-w4"), teacher)
        return assemble(recipe, teacher, student)

    unbroken = lab()
    laps = list(rounds(unbroken))
    assert isinstance(unbroken.memory, GenerativeReplay)
    assert unbroken.memory.steps == len(laps) == 5
    first, second = lab(), lab()
    walk = rounds(first)
    for _ in range(2):
        next(walk)
    save_state(first.state_dict(), tmp_path / "x", "checkpoint")
    second.load_state_dict(load_state(tmp_path / "x", "checkpoint"))
    assert len(list(rounds(second))) == 3
    assert torch.equal(
        unbroken.learner.student.body.conv1.weight, second.learner.student.body.conv1.weight
    )
