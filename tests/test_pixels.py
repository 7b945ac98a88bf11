"""Pixels improved by gradients: bases, starts, and what a few steps achieve."""

import time

import pytest
import torch

from synthkd.core.images import Batch, ImageSpec
from synthkd.networks import build_network
from synthkd.networks.classifier import Classifier
from synthkd.recipe import AugmentTable, PixelsTable, Recipe, Stage, TeacherTable
from synthkd.specs import load_teacher
from synthkd.synthesis.context import SynthesisContext
from synthkd.synthesis.pixels import LEAST, TIMED, Pixels, frequencies, partners
from synthkd.teachers.frozen import FrozenTeacher, digest_of

TERMS = {"one_hot": 1.0, "statistics": 10.0, "smoothness": 1.0}


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(TeacherTable(), trust_code=False)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def never(count, rng):
    """The critic's images, which may be real: not what pixels start from."""
    raise AssertionError


def context(teacher, *, steps=5, batch=20, offer="last", **more):
    stage = Stage(
        name="refine", generator="pixels", synthesis_steps=steps, synthesis_batch=batch, offer=offer
    )
    return SynthesisContext(teacher, teacher, stage, TERMS, AugmentTable(), never, False, **more)


def pixels(teacher, **table):
    return Pixels(Recipe(pixels=PixelsTable(**table)), teacher)


@pytest.mark.parametrize("basis", ["pixels", "fourier"])
def test_no_step_changes_nothing(teacher, basis):
    made = pixels(teacher, basis=basis, start="noise")
    images = torch.rand(3, *teacher.spec.shape, generator=rng())
    size = teacher.spec.shape[1:]
    assert torch.allclose(made._decode(made._encode(images), size), images, atol=1e-5)


def test_frequencies_are_those_of_a_pure_wave():
    scale = frequencies(8, 8)
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(8) / 8).expand(8, 8)  # 3 cycles in a row
    place = torch.fft.rfft2(wave).abs().argmax()
    assert scale.flatten()[place] / scale[0, 1] == pytest.approx(1 / 3)


def test_a_move_of_one_size_shows_as_one_over_frequency(teacher):
    made = pixels(teacher, basis="fourier", start="noise")
    still = made._encode(torch.full((1, *teacher.spec.shape), 0.5))
    reach = []
    for cycles in (1, 2):
        moved = still.clone()
        moved[0, 0, 0, cycles, 0] += 1.0
        reach.append((made._decode(moved, teacher.spec.shape[1:]) - 0.5).abs().max().item())
    assert reach[0] / reach[1] == pytest.approx(2.0, rel=1e-4)


def test_a_step_in_colour_leaves_brightness_alone_and_one_in_brightness_the_colours():
    spec = ImageSpec(3, 8, 8, (0.5,) * 3, (0.25,) * 3)
    body = build_network("resnet8-w4", channels=3, size=8, classes=5)
    made = pixels(FrozenTeacher(Classifier(body, spec, 5)))
    images = torch.rand(2, 3, 8, 8, generator=rng())
    still = made._encode(images)
    assert torch.allclose(made._decode(still, (8, 8)), images, atol=1e-5)
    sizes = []
    for ink in range(3):
        moved = still.clone()
        moved[:, ink, 1, 1] += 1.0
        change = made._decode(moved, (8, 8)) - images
        sizes.append(change.norm().item())
        if ink:
            assert torch.allclose(change.sum(1), torch.zeros(2, 8, 8), atol=1e-5)
        else:
            assert torch.allclose(change, change[:, :1].expand_as(change), atol=1e-5)
    assert sizes[1:] == pytest.approx(sizes[:1] * 2, rel=1e-4)


def test_a_few_steps_win_the_teacher_over_and_leave_it_untouched(teacher):
    before = digest_of(teacher.classifier)
    synthesized = pixels(teacher, start="noise").synthesize(
        context(teacher, steps=25, batch=40), rng()
    )
    votes = teacher(synthesized.batch.images).argmax(1)
    assert (votes == synthesized.batch.labels).float().mean() > 0.9
    assert synthesized.batch.labels.bincount().tolist() == [4] * 10
    assert synthesized.trained == 25 * 40
    assert synthesized.batch.images.min() >= 0 and synthesized.batch.images.max() <= 1
    assert digest_of(teacher.classifier) == before


def test_each_starts_as_a_remembered_image_of_its_class(teacher):
    votes = torch.arange(10).repeat(2)[torch.randperm(20, generator=rng(3))]
    images = votes.view(-1, 1, 1, 1).expand(-1, *teacher.spec.shape) / 10.0

    def remembered(count, rng):
        assert count == 20
        return Batch(images.clone(), votes)

    made = pixels(teacher, start="memory")
    labels = torch.arange(10).repeat(2)
    start = made._start(labels, context(teacher, remembered=remembered), rng())
    assert torch.equal((start[:, 0, 0, 0] * 10).round().long(), labels)


def test_of_many_classes_the_rarest_are_asked_for_and_each_starts_as_its_own(teacher):
    """A batch of 6 for 10 classes: three have no image yet, and three one."""
    counts = torch.tensor([0, 0, 0, 1, 1, 1, 5, 5, 5, 5])

    def nearest(labels, rng):
        return Batch(labels.view(-1, 1, 1, 1).expand(-1, *teacher.spec.shape) / 10.0, labels)

    class Seen(Pixels):
        def _start(self, labels, context, rng):
            self.started = super()._start(labels, context, rng)
            return self.started

    made = Seen(Recipe(pixels=PixelsTable(start="memory")), teacher)
    given = context(teacher, batch=6, steps=1, nearest=nearest, counts=lambda: counts)
    labels = made.synthesize(given, rng()).batch.labels
    assert {0, 1, 2} <= set(labels.tolist()) <= set(range(6))
    assert torch.equal((made.started[:, 0, 0, 0] * 10).round().long(), labels)
    large = context(teacher, batch=40, steps=1, nearest=never, counts=never)  # as before
    assert sorted(made.synthesize(large, rng()).batch.labels.tolist()) == sorted([*range(10)] * 4)


def test_of_an_uneven_memory_only_what_is_missing_starts_elsewhere(teacher):
    votes = torch.tensor([3] * 8 + [0, 1, 1, 2])[torch.randperm(12, generator=rng(3))]
    labels = torch.arange(4).repeat(3)
    places = partners(labels, votes)
    assert sorted(places.tolist()) == list(range(12))
    fits = votes[places] == labels
    # of 0: one of three, of 1: two, of 2: one, of 3: all
    assert [int(fits[labels == k].sum()) for k in range(4)] == [1, 2, 1, 3]


def test_a_step_in_the_pixel_basis_is_a_step_of_what_the_network_sees(teacher):
    """Adam's first step has the size of its rate; DeepInversion moves normalised images."""
    made = pixels(teacher, start="noise", basis="pixels", learning_rate=0.1, decay=0.0, roll=0.0)
    grey = torch.full((4, *teacher.spec.shape), 0.5)
    made._start = lambda labels, context, rng: grey
    images = made.synthesize(context(teacher, steps=1, batch=4), rng()).batch.images
    moved = (images - grey).abs() / teacher.classifier.std
    assert moved.max().item() == pytest.approx(0.1, rel=1e-3)


def test_without_memory_it_starts_from_drawings(teacher):
    start = pixels(teacher, start="memory")._start(torch.zeros(6).long(), context(teacher), rng())
    assert start.shape == (6, *teacher.spec.shape) and start.std() > 0.01


def test_the_best_step_is_kept_also_when_later_ones_are_worse(teacher, monkeypatch):
    made = pixels(teacher, start="noise", basis="pixels", learning_rate=1.0, decay=0.0, roll=0.0)
    seen, judge = [], type(made.objective).__call__

    def watched(self, context, images, labels, rng, validity=None):
        verdict = judge(self, context, images, labels, rng, validity)
        seen.append((float(verdict.loss.detach()), images.detach().clone()))
        return verdict

    monkeypatch.setattr(type(made.objective), "__call__", watched)
    offered = made.synthesize(context(teacher, steps=8, offer="best"), rng()).batch.images
    losses = [loss for loss, _ in seen]
    best = losses.index(min(losses))
    assert best < len(seen) - 1, "the rate is to be so high that the last step is not the best"
    assert torch.equal(offered, seen[best][1])


def test_what_cannot_be_ready_in_time_is_made_smaller(teacher):
    made = pixels(teacher, start="noise")
    late = made.synthesize(context(teacher, steps=30, deadline=0.0), rng())
    assert (len(late.batch.images), late.trained) == (LEAST, TIMED * LEAST)
    in_time = made.synthesize(context(teacher, steps=3, deadline=time.perf_counter() + 60), rng())
    free = made.synthesize(context(teacher, steps=3), rng())
    assert torch.equal(in_time.batch.images, free.batch.images)


def test_where_something_was_offered_already_half_a_batch_is_not_begun(teacher):
    made = pixels(teacher, start="noise")
    late = made.synthesize(context(teacher, steps=30, deadline=0.0, stage_share=0.5), rng())
    assert (len(late.batch.images), late.trained) == (0, 0)


def test_a_batch_begins_small_and_ends_at_full_size(teacher):
    made = pixels(teacher, start="noise", scales={0.5: 0.5, 1.0: 0.5})
    seen: list[tuple[int, ...]] = []
    observe = teacher.observe

    def watched(images, **asked):
        seen.append(tuple(images.shape[2:]))
        return observe(images, **asked)

    teacher.observe = watched
    try:
        found = made.synthesize(context(teacher, steps=6), rng())
    finally:
        del teacher.observe
    assert seen == [(8, 8)] * 3 + [(16, 16)] * 3
    assert found.batch.images.shape[1:] == teacher.spec.shape
    assert found.measures["target_class_rate"] > 0.25  # a tenth by chance


def test_a_small_batch_is_rolled_by_the_share_of_its_own_side(teacher):
    made, seen = pixels(teacher, start="noise", roll=0.25), set()
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, 4, 4] = 1.0
    for seed in range(200):
        place = made._view(images, context(teacher), rng(seed), 0.0).flatten().argmax()
        seen.add((int(place) // 8 - 4, int(place) % 8 - 4))
    assert seen == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}


def test_equal_seeds_give_equal_images(teacher):
    first, second = (pixels(teacher).synthesize(context(teacher), rng(7)) for _ in range(2))
    assert torch.equal(first.batch.images, second.batch.images)


def test_without_classes_asked_for_the_votes_are_taken(teacher):
    made = Pixels(Recipe.model_validate({"generator": {"conditional": False}}), teacher)
    found = made.synthesize(context(teacher), rng())
    assert found.batch.labels.tolist() == [-1] * 20
    assert "target_class_rate" not in found.measures
    asked = pixels(teacher).synthesize(context(teacher), rng())
    assert sorted(set(asked.batch.labels.tolist())) == list(range(10))
