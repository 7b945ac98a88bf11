"""Schedules: limits, a sequence played by hand, and sums that must come out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthkd.recipe import DifficultyTable, TrainingTable
from synthkd.schedules import (
    Difficulty,
    ema_decay,
    one_cycle,
    rate,
    share,
    step_difficulty,
    steps,
)

RATIOS = st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda n: n / 100))


# --- one cycle ---


@given(st.floats(0, 1), st.floats(0.01, 0.9))
def test_one_cycle_rises_in_a_straight_line_then_falls_as_half_a_cosine(progress, warmup):
    if progress < warmup:
        expected = progress / warmup
    else:
        expected = (
            math.cos(math.pi / 2 * (progress - warmup) / (1 - warmup)) ** 2
        )  # the half-angle form
    assert one_cycle(progress, warmup=warmup) == pytest.approx(expected, abs=1e-9)


def test_one_cycle_without_warmup_starts_at_the_top():
    assert one_cycle(0.0, warmup=0.0) == 1
    assert one_cycle(1.0, warmup=0.0) == pytest.approx(0)


def test_one_cycle_stays_at_its_ends_outside_the_run():
    assert one_cycle(-3.0) == one_cycle(0.0) == 0
    assert one_cycle(1.2) == one_cycle(1.0) == pytest.approx(0)


# --- steps, and the choice ---


@given(st.lists(st.floats(0, 1), max_size=4), st.floats(0, 1))
def test_steps_lose_nine_tenths_at_each_milestone_passed_in_any_order(milestones, progress):
    expected = 1.0
    for milestone in milestones:
        if milestone <= progress:
            expected /= 10
    assert steps(progress, milestones=milestones) == pytest.approx(expected)


def test_steps_fall_at_the_milestone_itself_and_the_usual_ones_are_two():
    found = [steps(p) for p in (0.0, 0.399, 0.4, 0.799, 0.8, 1.0)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 2, 1, 0]),
        ({"schedule": "constant"}, [2, 2, 2, 2]),
        ({"schedule": "steps"}, [2, 2, 0.2, 0.02]),
        ({"schedule": "steps", "milestones": "0.2"}, [2, 0.2, 0.2, 0.2]),
        ({"schedule": "steps", "milestones": ()}, [2, 2, 2, 2]),
    ],
)
def test_the_rate_follows_the_schedule_that_the_table_names(settings, expected):
    table = TrainingTable.model_validate({"learning_rate": 2.0, "warmup": 0.2} | settings)
    found = [rate(p, table) for p in (0.0, 0.2, 0.6, 1.0)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_milestones_outside_the_run_are_refused():
    with pytest.raises(ValueError, match=r"milestones are shares of the run, 0\.\.1; got \(80"):
        TrainingTable(milestones=(80.0, 160.0))


# --- ema ---


def test_the_decay_of_a_young_average_rises_and_is_capped():
    found = [ema_decay(n, longest=0.9) for n in range(200)]
    assert found[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert found == sorted(found)
    assert found[-1] == 0.9
    assert found.index(0.9) == 80  # (1 + n) / (10 + n) = 0.9


# --- share ---


@given(RATIOS, st.lists(st.integers(1, 300), max_size=40))
def test_a_share_is_exact_however_the_items_are_split(ratio, counts):
    done = made = 0
    for count in counts:
        part = share(done, count, ratio)
        assert 0 <= part <= count
        assert abs(part - count * ratio) < 1 + 1e-6
        done, made = done + count, made + part
        assert abs(made - done * ratio) < 1 + 1e-6
    assert made == share(0, done, ratio)


@given(st.integers(0, 100), st.integers(1, 200))
def test_a_percentage_of_hundreds_is_the_whole_number_it_should_be(percent, hundreds):
    assert share(0, 100 * hundreds, percent / 100) == percent * hundreds


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_all_and_nothing_are_shares_too(done, count):
    assert share(done, count, 1.0) == count
    assert share(done, count, 0.0) == 0


# --- difficulty ---

TABLE = DifficultyTable(enabled=True, start=0.3, ceiling=0.9)


def played(agreements: list[float], table: DifficultyTable = TABLE) -> list[Difficulty]:
    states = [Difficulty(table.start)]
    for agreement in agreements:
        states.append(step_difficulty(states[-1], agreement, table))
    return states[1:]


def test_agreement_is_smoothed_by_nine_tenths_from_its_first_value_on():
    found = [s.agreement for s in played([0.8, 0.9, 0.0])]
    assert found == pytest.approx([0.8, 0.81, 0.729])


def test_the_level_moves_once_patience_is_spent_and_stops_at_the_ceiling():
    found = [s.level for s in played([0.9] * 15)]
    assert found[:5] == pytest.approx([0.3, 0.36, 0.36, 0.432, 0.432])
    assert found[-4:] == pytest.approx([0.3 * 1.2**6, 0.3 * 1.2**6, 0.9, 0.9])  # not 1.07


def test_the_level_falls_after_bad_rounds_and_stops_at_the_floor():
    found = [s.level for s in played([0.2] * 12)]
    assert found[:5] == pytest.approx([0.3, 0.24, 0.24, 0.192, 0.192])
    assert found[-2:] == pytest.approx([0.1, 0.1])


def test_a_round_between_the_thresholds_makes_patience_start_anew():
    states = played([0.9, 0.3, 0.9, 0.9, 0.9])
    assert [s.agreement for s in states] == pytest.approx([0.9, 0.84, 0.846, 0.8514, 0.85626])
    assert [s.above for s in states] == [1, 0, 0, 1, 0]
    assert [s.level for s in states] == pytest.approx([0.3, 0.3, 0.3, 0.3, 0.36])


def test_good_and_bad_rounds_are_counted_apart():
    states = [Difficulty(0.4, agreement=1.0, above=1, below=0)]
    for agreement in (0.0, 0.0, 0.0, 0.0, 0.0):  # smoothed 0.9, 0.81, 0.729, 0.6561, 0.59049
        states.append(step_difficulty(states[-1], agreement, TABLE))
    assert [(s.above, s.below) for s in states[1:]] == [(0, 0), (0, 0), (0, 0), (0, 1), (0, 0)]
    assert [s.level for s in states[1:]] == pytest.approx([0.48, 0.48, 0.48, 0.48, 0.384])


def test_a_disabled_difficulty_stays_but_still_watches():
    states = played([1.0] * 5, TABLE.model_copy(update={"enabled": False}))
    assert {s.level for s in states} == {0.3}
    assert states[-1].agreement == pytest.approx(1.0)


def test_a_level_of_nothing_rises_to_the_floor_and_on():
    found = [s.level for s in played([0.9] * 6, TABLE.model_copy(update={"start": 0.0}))]
    assert found == pytest.approx([0.0, 0.1, 0.1, 0.12, 0.12, 0.144])


def test_bad_rounds_raise_no_level():
    low = TABLE.model_copy(update={"start": 0.05})
    assert {s.level for s in played([0.2] * 6, low)} == {0.05}
    lower = low.model_copy(update={"ceiling": 0.06})
    assert {s.level for s in played([0.2] * 6, lower)} == {0.05}
    assert [s.level for s in played([0.9] * 4, lower)] == pytest.approx([0.05, 0.06, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), max_size=60))
def test_the_level_never_leaves_floor_and_ceiling(agreements):
    assert all(0.1 <= s.level <= 0.9 for s in played(agreements))
