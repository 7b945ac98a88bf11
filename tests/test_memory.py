"""The memory against a slow one made of lists, and its draws against counted frequencies."""

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synthkd.core.errors import InputError
from synthkd.replay.memory import Memory
from synthkd.synthesis.context import rarest_labels

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


INDEPENDENT = [[0.0, -8.0, -8.0], [8.0, 8.0, -8.0], [8.0, -8.0, 0.0], [9.0, -3.0, -3.0]]


def of_independent_classes() -> Memory:
    """Four images in which the teacher sees the first class: one is undecided about that class, one
    about another, two are decided."""
    memory = Memory(4, SHAPE, 3, independent=True)
    pixels = torch.zeros(4, *SHAPE, dtype=torch.uint8)
    memory.add(pixels, torch.arange(4), torch.tensor(INDEPENDENT), "any")
    assert memory.counts == [4, 0, 0]
    return memory


def test_a_boundary_of_independent_classes_is_where_a_class_is_neither_seen_nor_not():
    weights = []
    for row in INDEPENDENT:
        sure = [abs(2 / (1 + math.exp(-z)) - 1) for z in row]
        weights.append(1 - sum(sure) / 3 + 1e-3)
    rng = torch.Generator().manual_seed(0)
    labels = of_independent_classes().draw(20_000, rng, boundary=1.0).labels
    found = (labels.bincount(minlength=4) / 20_000).tolist()
    assert found == pytest.approx([w / sum(weights) for w in weights], abs=0.015)
    assert found[0] > 100 * found[1]


def test_easy_images_of_independent_classes_are_decided_about_all():
    memory, rng = of_independent_classes(), torch.Generator().manual_seed(0)
    assert set(memory.draw(200, rng, easiest=0.5).labels.tolist()) == {1, 3}


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


# --- origins, votes and logits ---


def test_origins_keep_their_names_in_a_memory_that_knew_others_before():
    memory = three_origins()
    other = Memory(300, SHAPE, 3)
    for name in ("2", "new", "0"):
        other.add(*offer([0, 1, 2], 3, 0, name))
    other.load_state_dict(memory.state_dict())
    assert other.everything().origins == memory.everything().origins
    rng = torch.Generator().manual_seed(0)
    drawn = other.draw(2000, rng, shares={"1": 0.0, "2": 0.5})
    assert set(drawn.origins) == {"0", "2"}
    assert drawn.origins.count("2") == pytest.approx(1000, abs=100)


def test_an_image_in_the_place_of_another_brings_its_own_origin():
    memory = filled([0, 1], capacity=2)
    memory.add(*offer([1], 3, 2, "gan"))
    assert dict(
        zip(memory.everything().labels.tolist(), memory.everything().origins, strict=True)
    ) == {0: "any", 2: "gan"}


def test_votes_are_those_of_the_logits_before_they_were_rounded():
    """In float16 the first two logits of each are equal, and the first would win."""
    logits = torch.tensor([[1.0, 1.0001, 0.0], [7e4, 8e4, -9e9], [-math.inf, math.inf, 0.0]])
    assert logits.half().argmax(1).tolist()[:2] == [0, 0]
    memory = Memory(3, SHAPE, 3)
    memory.add(torch.zeros(3, *SHAPE, dtype=torch.uint8), torch.zeros(3).long(), logits, "any")
    assert memory.everything().votes.tolist() == [1, 1, 1]
    assert memory.counts == [0, 3, 0]
    restored = Memory(3, SHAPE, 3)
    restored.load_state_dict(memory.state_dict())
    assert restored.everything().votes.tolist() == [1, 1, 1]
    assert restored.counts == [0, 3, 0]


@pytest.mark.parametrize("size", [65_504.0, 65_520.0, 1e6, 3e38])
def test_logits_beyond_float16_are_cut_to_its_range(size):
    memory = Memory(3, SHAPE, 3)
    logits = torch.tensor([[size, -size, 0.0], [0.0, size, -size], [0.5, 0.0, 1.0]])
    memory.add(torch.zeros(3, *SHAPE, dtype=torch.uint8), torch.arange(3), logits, "any")
    kept = memory.everything().logits
    assert kept[0].tolist() == [65_504.0, -65_504.0, 0.0]
    drawn = memory.draw(300, torch.Generator().manual_seed(0), boundary=1.0)
    assert drawn.labels.bincount(minlength=3).argmax() == 2  # the one in doubt


# --- priorities ---


@dataclass
class Image:
    vote: int
    margin: float  # p₁ − p₂
    origin: str
    priority: float = 1.0


def slow_weights(images: list[Image], classes: int, shares: dict[str, float]) -> list[float]:
    """How often each image is drawn, priorities apart, in plain sums over lists."""
    name = {id(image): image.origin if shares else "" for image in images}
    present = sorted(set(name.values()))
    rest = [origin for origin in present if origin not in shares]
    left = max(0.0, 1 - sum(shares.get(origin, 0.0) for origin in present))
    share = {o: shares[o] if o in shares else left / len(rest) for o in present}
    if not any(share.values()):
        share = dict.fromkeys(present, 1.0)
    weights = []
    for image in images:
        own = [other for other in images if name[id(other)] == name[id(image)]]
        least = math.ceil(len(own) / (4 * classes))
        each = [1 / max(least, sum(a.vote == b.vote for b in own)) for a in own]
        vote = 1 / max(least, sum(image.vote == b.vote for b in own))
        weights.append(share[name[id(image)]] * vote / sum(each))
    return weights


IMAGES = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from("abc"),
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    ), min_size=1, max_size=12,
)  # fmt: skip
SHARES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.0, 0.2, 0.3]), max_size=3)


@given(IMAGES, SHARES, st.booleans(), st.integers(0, 99))
def test_draws_and_their_weights_are_those_of_a_slow_memory(rows, shares, by_margin, seed):
    memory, images = Memory(len(rows), SHAPE, 3), []
    for number, (vote, gap, origin, priority) in enumerate(rows):
        pixels, labels, logits, _ = offer([vote], 3, number)
        logits *= gap / 5
        memory.add(pixels, labels, logits, origin)
        e = math.exp(gap)
        images.append(Image(vote, (e - 1) / (e + 2), origin, priority))
    memory.update(torch.arange(len(rows)), torch.tensor([image.priority for image in images]))
    rng = torch.Generator().manual_seed(seed)
    drawn = memory.draw(20, rng, boundary=float(by_margin), shares=shares)

    plain = slow_weights(images, 3, shares)
    if by_margin:
        plain = [
            weight * (1 - image.margin + 1e-3) for weight, image in zip(plain, images, strict=True)
        ]
    priorities = [image.priority for image in images]
    if not any(weight * priority for weight, priority in zip(plain, priorities, strict=True)):
        priorities = [1.0] * len(images)
    ours = [weight * priority for weight, priority in zip(plain, priorities, strict=True)]
    places = list(accumulate(ours))
    numbers = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    slots = [bisect_right(places, float(number) * places[-1]) for number in numbers]
    # where a number falls on a border, rounding may decide
    assert sum(a != b for a, b in zip(drawn.slots.tolist(), slots, strict=True)) <= 1
    expected = [
        (plain[slot] / sum(plain)) / (ours[slot] / sum(ours)) for slot in drawn.slots.tolist()
    ]
    assert drawn.weights.tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("boundary", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shares", [{}, {"1": 0.6}])
def test_a_priority_of_one_everywhere_changes_no_draw(boundary, shares):
    plain, prioritised = three_origins(), three_origins()
    prioritised.update(torch.arange(300), torch.ones(300))
    a, b = (
        memory.draw(500, torch.Generator().manual_seed(3), boundary=boundary, shares=shares)
        for memory in (plain, prioritised)
    )
    assert torch.equal(a.slots, b.slots)
    assert a.weights.tolist() == [1.0] * 500
    assert b.weights.tolist() == pytest.approx([1.0] * 500, rel=1e-6)


def test_an_image_of_three_times_the_priority_is_drawn_three_times_as_often():
    """Of 1, 1, 3 and 0 the shares are 0.2, 0.2, 0.6, 0; without priorities each had 0.25, and
    0.25 / 0.2 = 1.25, 0.25 / 0.6 = 5 / 12."""
    memory = filled([0, 0, 0, 0])
    memory.update(torch.tensor([2, 3, -1]), torch.tensor([3.0, 0.0, 9.0]))
    drawn = memory.draw(20_000, torch.Generator().manual_seed(0))
    found = drawn.slots.bincount(minlength=4) / 20_000
    assert found.tolist() == pytest.approx([0.2, 0.2, 0.6, 0.0], abs=0.015)
    assert {slot: drawn.weights[drawn.slots == slot].unique().tolist() for slot in (0, 2)} == {
        0: [pytest.approx(1.25)], 2: [pytest.approx(5 / 12)],
    }  # fmt: skip


def test_where_no_priority_is_above_zero_they_count_for_nothing():
    memory = filled([0, 1, 2])
    memory.update(torch.arange(3), torch.zeros(3))
    drawn = memory.draw(3000, torch.Generator().manual_seed(0))
    plain = filled([0, 1, 2]).draw(3000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.slots, plain.slots)
    assert drawn.weights.tolist() == [1.0] * 3000


def test_of_a_slot_that_comes_twice_the_last_priority_counts():
    memory = filled([0] * 4)
    memory.update(torch.tensor([1, 2] * 500 + [1, 2]), torch.tensor([7.0, 8.0] * 500 + [2.0, 5.0]))
    assert memory.priorities is not None
    assert memory.priorities.tolist() == [1.0, 2.0, 5.0, 1.0]


def test_a_newcomer_has_the_highest_priority_there_is():
    memory = filled([0, 0], capacity=3)
    memory.update(torch.tensor([0, 1]), torch.tensor([0.25, 0.5]))
    memory.add(*offer([0, 0], 3, 2))  # into the free slot, and in the place of the oldest
    assert memory.priorities is not None
    assert memory.priorities.tolist() == [0.5, 0.5, 0.5]


def test_priorities_are_saved():
    memory, restored = filled([0, 1, 2]), Memory(3, SHAPE, 3)
    memory.update(torch.tensor([1]), torch.tensor([6.0]))
    restored.load_state_dict(memory.state_dict())
    a, b = (one.draw(50, torch.Generator().manual_seed(0)) for one in (memory, restored))
    assert torch.equal(a.slots, b.slots)
    assert torch.equal(a.weights, b.weights)


@pytest.mark.parametrize(
    ("slot", "priority"), [(0, -1.0), (0, math.nan), (0, math.inf), (3, 1.0), (10**9, 1.0)]
)
def test_priorities_that_cannot_be_are_refused_and_change_nothing(slot, priority):
    memory = filled([0, 1, 2], capacity=5)
    with pytest.raises(InputError, match="replay priorities"):
        memory.update(torch.tensor([1, slot]), torch.tensor([2.0, priority]))
    assert memory.priorities is None


def test_an_image_for_every_class_that_is_asked_for():
    """Two classes are there, of one there is none: then the images that come nearest to it."""
    memory = Memory(60, SHAPE, 4)
    logits = torch.full((40, 4), -9.0)
    logits[:20, 0], logits[20:, 1] = 9.0, 9.0
    logits[3:8, 2] = 8.0  # an image of class 0 that might be of class 2
    images = torch.randint(256, (40, *SHAPE), dtype=torch.uint8)
    memory.add(images, torch.full((40,), -1), logits, "procedural")
    memory.add(images[:20], torch.full((20,), -1), logits[:20], "pixels")
    rng = torch.Generator().manual_seed(0)
    asked = torch.tensor([0, 1, 2, 1, 0] * 5)
    drawn = memory.nearest(asked, rng, without="pixels")
    assert set(drawn.origins) == {"procedural"}
    assert torch.equal(drawn.votes[asked != 2], asked[asked != 2])
    assert set(drawn.slots[asked == 2].tolist()) <= {3, 4, 5, 6, 7}
    assert len(set(drawn.slots[asked == 1].tolist())) > 4  # not always the same
    assert torch.equal(drawn.images, memory.everything().images[drawn.slots])
    assert memory.counts_of("pixels").tolist() == [20, 0, 0, 0]
    assert memory.counts_of("nobody").tolist() == [0, 0, 0, 0]
    alone = Memory(60, SHAPE, 4)
    alone.add(images, torch.full((40,), -1), logits, "pixels")
    assert len(alone.nearest(asked, rng, without="pixels")) == 25  # there are no others


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(0, 40))
def test_the_rarest_classes_are_asked_for(counts, count):
    rng = torch.Generator().manual_seed(0)
    labels = rarest_labels(torch.tensor(counts), count, rng)
    after = torch.tensor(counts) + torch.bincount(labels, minlength=len(counts))
    asked = torch.bincount(labels, minlength=len(counts)) > 0
    assert len(labels) == count
    assert not asked.any() or int(after[asked].max()) <= int(after.min()) + 1


def test_a_class_that_the_teacher_never_sees_does_not_take_all_the_batches():
    """Asked for as often as the others, it counts as often."""
    memory, rng = Memory(4000, SHAPE, 8), torch.Generator().manual_seed(0)
    asked = torch.zeros(8)
    for _ in range(20):
        labels = rarest_labels(memory.counts_of("pixels"), 16, rng)
        asked += torch.bincount(labels, minlength=8)
        seen = labels.where(labels < 5, torch.zeros_like(labels))  # classes 5, 6, 7 are never seen
        logits = torch.nn.functional.one_hot(seen, 8).float()
        images = torch.randint(256, (16, *SHAPE), dtype=torch.uint8)
        memory.add(images, labels, logits, "pixels")
    assert asked.max() - asked.min() <= 1


@pytest.mark.parametrize("priorities", [False, True])
def test_distinct_images_are_drawn_by_the_weights_and_none_twice(priorities):
    """Of three images one of class 0, two of class 1: each class is drawn first half of the time,
    and then one of those that are left, in proportion to what they weigh."""
    memory = filled([0, 1, 1], classes=2)
    weights = [0.5, 0.25, 0.25]
    if priorities:
        memory.update(torch.arange(3), torch.tensor([1.0, 3.0, 1.0]))
        weights = [0.5 / 1.5, 0.75 / 1.5, 0.25 / 1.5]
    rng, often = torch.Generator().manual_seed(0), Counter()
    for _ in range(6000):
        drawn = memory.distinct(2, rng)
        often[tuple(drawn.slots.tolist())] += 1
    for (first, second), count in often.items():
        chance = weights[first] * weights[second] / (1 - weights[first])
        assert count / 6000 == pytest.approx(chance, abs=0.02)
    assert len(often) == 6
    assert sorted(memory.distinct(9, rng).slots.tolist()) == [0, 1, 2]
    assert drawn.weights.tolist() == [1.0, 1.0]


def test_distinct_images_of_an_unwanted_origin_come_when_the_others_are_used_up():
    memory, rng = three_origins(), torch.Generator().manual_seed(0)
    drawn = memory.distinct(120, rng, shares={"0": 0.0})
    assert Counter(drawn.origins) == {"1": 50, "2": 50, "0": 20}
    assert set(drawn.origins[:100]) == {"1", "2"} and len(set(drawn.slots.tolist())) == 120
    again = memory.distinct(120, rng, shares={"0": 0.0})
    assert set(again.slots[100:].tolist()) != set(drawn.slots[100:].tolist())
    assert set(memory.distinct(100, rng, shares={"0": 0.0}).origins) == {"1", "2"}


def test_no_two_images_asked_for_are_the_same_while_there_are_others():
    """Of class 0 there are twelve, of 1 two, of 2 none; what comes nearest to 2 is of class 1."""
    logits = torch.full((14, 3), -9.0)
    logits[:12, 0], logits[12:, 1] = 9.0, 9.0
    logits[:4, 1], logits[12:, 2], logits[4:8, 2] = 5.0, 8.0, 1.0
    memory = Memory(14, SHAPE, 3)
    memory.add(torch.zeros(14, *SHAPE, dtype=torch.uint8), torch.zeros(14).long(), logits, "any")
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        asked = torch.tensor([0, 1, 2] * 4)
        drawn = memory.nearest(asked, rng)
        for label in range(3):
            assert len(set(drawn.slots[asked == label].tolist())) == 4
        assert set(drawn.slots[asked == 2].tolist()) <= {12, 13, 4, 5, 6, 7}
        own = drawn.slots[asked == 1].tolist()
        assert {12, 13} <= set(own)  # its own both, then those in which most of it is seen
        full = memory.nearest(torch.zeros(12).long(), rng).slots
        assert sorted(full.tolist()) == list(range(12))
    assert len(set(memory.nearest(torch.zeros(30).long(), rng).slots.tolist())) == 14
