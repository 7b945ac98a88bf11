"""The memory against a slow one made of lists, and its draws against counted frequencies."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synthkd.replay.memory import Memory

SHAPE = (1, 2, 2)


def offer(
    votes: list[int], classes: int, first: int, origin: str = "any"
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Images that carry their number in their pixels, in which the teacher sees `votes`."""
    numbers = torch.arange(first, first + len(votes))
    pixels = torch.zeros(len(votes), *SHAPE, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers // 256, numbers % 256
    logits = torch.zeros(len(votes), classes)
    logits[range(len(votes)), votes] = 5.0
    return pixels, numbers, logits, origin


def filled(votes: list[int], *, capacity: int = 0, classes: int = 3) -> Memory:
    memory = Memory(capacity or len(votes), SHAPE, classes)
    memory.add(*offer(votes, classes, 0))
    return memory


def kept(memory: Memory) -> set[tuple[int, int]]:
    """Number and vote of all images, read from pixels, labels and logits alike."""
    everything = memory.everything()
    numbers = everything.images[:, 0, 0, 0].long() * 256 + everything.images[:, 0, 0, 1].long()
    assert torch.equal(numbers, everything.labels)
    return set(zip(numbers.tolist(), everything.votes.tolist(), strict=True))


class Slow:
    """The same rule in its plainest form: a list of (number, vote), oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.images = capacity, []

    def add(self, number: int, vote: int) -> None:
        if len(self.images) == self.capacity:
            counts = Counter(v for _, v in self.images)
            frequent = [k for k in sorted(counts) if counts[k] == max(counts.values())]
            loser = vote if vote in frequent else frequent[0]
            self.images.remove(next(image for image in self.images if image[1] == loser))
        self.images.append((number, vote))


BATCHES = st.lists(st.lists(st.integers(0, 3), max_size=20), max_size=8)


@given(BATCHES, st.integers(1, 12))
def test_the_memory_keeps_what_a_slow_one_keeps(batches, capacity):
    memory, slow, number = Memory(capacity, SHAPE, 4), Slow(capacity), 0
    for votes in batches:
        memory.add(*offer(votes, 4, number))
        for vote in votes:
            slow.add(number, vote)
            number += 1
        assert kept(memory) == set(slow.images)
        assert memory.counts == [sum(v == k for _, v in slow.images) for k in range(4)]
        assert len(memory) == sum(memory.counts) <= capacity


@given(BATCHES, st.integers(1, 12))
def test_a_class_that_never_was_among_the_most_frequent_loses_nothing(batches, capacity):
    memory, number = Memory(capacity, SHAPE, 4), 0
    for votes in batches:
        for vote in votes:
            before, counts = kept(memory), memory.counts
            memory.add(*offer([vote], 4, number))
            number += 1
            lost = {v for _, v in before - kept(memory)}
            assert len(lost) <= 1
            assert all(counts[k] == max(counts) for k in lost)


def test_a_rare_class_survives_a_flood_of_another():
    memory = filled([1, 1, 0, 0, 0, 0], capacity=6)
    memory.add(*offer([0] * 100, 3, 6))
    assert memory.counts == [4, 2, 0]
    assert {n for n, v in kept(memory) if v == 1} == {0, 1}
    assert {n for n, v in kept(memory) if v == 0} == {102, 103, 104, 105}  # the youngest


def test_a_full_memory_becomes_even_when_newcomers_are():
    memory = filled([0] * 30, capacity=30)
    memory.add(*offer([0, 1, 2] * 20, 3, 30))
    assert memory.counts == [10, 10, 10]


def test_a_memory_without_room_remembers_nothing():
    memory = Memory(0, SHAPE, 3)
    memory.add(*offer([0, 1, 2], 3, 0))
    assert len(memory) == 0
    assert memory.counts == [0, 0, 0]
    assert len(memory.everything().images) == 0


def test_offering_nothing_changes_nothing():
    memory = filled([0, 1, 2])
    memory.add(*offer([], 3, 3))
    assert len(memory) == 3


def test_what_is_drawn_is_an_image_with_its_own_label_and_logits():
    memory = filled([0, 1, 2, 2, 1, 0])
    drawn = memory.draw(200, torch.Generator().manual_seed(0), boundary=0.5)
    assert torch.equal(drawn.slots, drawn.labels)  # the numbers, in an empty memory the slots
    for image, label, logits in zip(drawn.images, drawn.labels, drawn.logits, strict=True):
        assert torch.equal(image, memory.images[label])
        assert torch.equal(logits, memory.logits[label])


def test_every_class_is_drawn_equally_often_however_frequent_it_is():
    memory = filled([0] * 100 + [1] * 60 + [2] * 40)  # all above the quarter of an even share
    votes = memory.draw(6000, torch.Generator().manual_seed(0)).votes
    counts = votes.bincount(minlength=3)
    chi = ((counts - 2000) ** 2 / 2000).sum().item()
    assert chi < 13.8  # exceeded once in a thousand, 2 degrees of freedom


def test_within_a_class_every_image_is_drawn_equally_often():
    memory = filled([0] * 10 + [1] * 10 + [2] * 10)
    labels = memory.draw(30_000, torch.Generator().manual_seed(0)).labels
    chi = ((labels.bincount(minlength=30) - 1000) ** 2 / 1000).sum().item()
    assert chi < 58.3  # exceeded once in a thousand, 29 degrees of freedom


def test_a_very_rare_class_is_not_worn_out():
    """One image of 120 in three classes counts as a tenth of a class: 120 / (4 · 3) = 10."""
    memory = filled([0] * 60 + [1] * 59 + [2])
    drawn = memory.draw(21_000, torch.Generator().manual_seed(0))
    assert (drawn.votes == 2).sum().item() == pytest.approx(1000, abs=100)  # 0.1 of 2.1


def test_no_image_comes_from_beyond_what_is_stored():
    memory = filled([0, 1, 2], capacity=50)
    assert set(memory.draw(500, torch.Generator().manual_seed(0)).labels.tolist()) == {0, 1, 2}


def two_kinds() -> Memory:
    """Per class ten images in which the teacher is sure, and ten (labels over 1000) in doubt."""
    memory = Memory(60, SHAPE, 3)
    for gap, first in ((9.0, 0), (0.1, 1000)):
        pixels, labels, logits, origin = offer([0, 1, 2] * 10, 3, first)
        memory.add(pixels, labels, logits / 5 * gap, origin)
    return memory


def test_the_boundary_share_prefers_images_in_which_the_teacher_hesitates():
    memory, rng = two_kinds(), torch.Generator().manual_seed(0)
    plain, near = memory.draw(3000, rng).labels, memory.draw(3000, rng, boundary=1.0).labels
    assert (plain >= 1000).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (near >= 1000).float().mean().item() > 0.95


def test_the_boundary_share_is_a_share_of_the_count():
    memory, rng = two_kinds(), torch.Generator().manual_seed(0)
    half = memory.draw(4000, rng, boundary=0.5).labels
    assert (half >= 1000).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert len(half) == 4000


def test_the_hesitating_are_drawn_in_proportion_to_one_minus_the_margin():
    memory = Memory(2, SHAPE, 2)
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    memory.add(torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.tensor([0, 1]), logits, "any")
    weights = [
        1 - torch.tanh(torch.tensor(gap / 2)).item() + 1e-3 for gap in (1.0, 3.0)
    ]  # p₁ − p₂ of two
    labels = memory.draw(20_000, torch.Generator().manual_seed(0), boundary=1.0).labels
    assert (labels == 0).float().mean().item() == pytest.approx(
        weights[0] / sum(weights), abs=0.015
    )


def three_origins() -> Memory:
    """200 images of origin "0", 50 of "1", 50 of "2"; labels tell the origin."""
    memory = Memory(300, SHAPE, 3)
    for origin, count in enumerate((200, 50, 50)):
        votes = [i % 3 for i in range(count)]
        pixels, _, logits, _ = offer(votes, 3, 0)
        memory.add(pixels, torch.full((count,), origin), logits, str(origin))
    return memory


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({}, (2 / 3, 1 / 6, 1 / 6)),  # no shares: by number, as all have the same classes
        ({"1": 0.6}, (0.2, 0.6, 0.2)),
        ({"1": 0.6, "2": 0.4}, (0.0, 0.6, 0.4)),
        ({"1": 0.0}, (0.5, 0.0, 0.5)),
        ({"7": 0.5}, (1 / 3, 1 / 3, 1 / 3)),  # an origin that is not there does not count
    ],
)
def test_shares_hold_whatever_the_numbers(shares, expected):
    drawn = three_origins().draw(6000, torch.Generator().manual_seed(0), shares=shares)
    found = torch.bincount(drawn.labels, minlength=3) / 6000
    assert found.tolist() == pytest.approx(expected, abs=0.03)
    assert (torch.bincount(drawn.votes, minlength=3) / 6000).tolist() == pytest.approx(
        (1 / 3,) * 3, abs=0.03
    )


def test_what_is_unwanted_is_drawn_where_nothing_else_is():
    memory = filled([0, 1, 2, 2])
    drawn = memory.draw(3000, torch.Generator().manual_seed(0), shares={"any": 0.0})
    assert (torch.bincount(drawn.votes) / 3000).tolist() == pytest.approx((1 / 3,) * 3, abs=0.04)


def test_new_images_can_be_drawn_at_once():
    memory, rng = filled([0, 0, 0], capacity=6), torch.Generator().manual_seed(0)
    memory.draw(10, rng)
    memory.add(*offer([1, 1, 2], 3, 3))
    assert set(memory.draw(300, rng).votes.tolist()) == {0, 1, 2}


@given(BATCHES, BATCHES, st.integers(1, 12))
def test_a_restored_memory_has_the_same_future(past, future, capacity):
    memory, number = Memory(capacity, SHAPE, 4), 0
    for votes in past:
        memory.add(*offer(votes, 4, number))
        number += len(votes)
    restored = Memory(capacity, SHAPE, 4)
    restored.load_state_dict(memory.state_dict())
    assert restored.counts == memory.counts
    for votes in future:
        for one in (memory, restored):
            one.add(*offer(votes, 4, number))
        number += len(votes)
        assert torch.equal(
            memory.everything().images, restored.everything().images
        )  # also in their slots
        assert torch.equal(
            memory.insertion_index[: len(memory)], restored.insertion_index[: len(restored)]
        )
    if len(memory):
        drawn = [
            one.draw(20, torch.Generator().manual_seed(1), boundary=0.5)
            for one in (memory, restored)
        ]
        for name in ("images", "labels", "slots", "logits", "votes", "weights"):
            assert torch.equal(*(getattr(one, name) for one in drawn))
        assert drawn[0].origins == drawn[1].origins
