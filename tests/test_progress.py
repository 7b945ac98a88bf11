"""The cursor: budgets that add up, and stages that end when they should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthkd.engine.progress import Budget, Progress, advance, budget_of, taught_share, whole_share
from synthkd.recipe import BudgetTable, Stage

STAGES = (
    Stage(name="alone", share=0.2, student_steps=0),
    Stage(name="first", share=0.3),
    Stage(name="second", share=0.5),
)


def shares() -> st.SearchStrategy[list[tuple[float, bool]]]:
    return st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=6)


def stages_of(parts: list[tuple[float, bool]]) -> tuple[Stage, ...]:
    return tuple(
        Stage(name=f"s{i}", share=part, student_steps=int(teaches))
        for i, (part, teaches) in enumerate(parts)
    )


def test_minutes_are_divided_by_the_shares_of_all_stages():
    budget = budget_of(BudgetTable(minutes=10), STAGES)
    assert budget.timed
    assert budget.quotas == pytest.approx((120, 180, 300))
    assert budget.teaching == pytest.approx(480)


def test_images_are_divided_among_the_stages_that_teach_and_the_others_go_at_the_same_rate():
    budget = budget_of(BudgetTable(images=1600), STAGES)
    assert not budget.timed
    assert budget.quotas == (400, 600, 1000)  # 2000 images per share
    assert budget.teaching == 1600


def test_without_a_teaching_stage_all_shares_divide_the_images():
    alone = (STAGES[0], STAGES[0].model_copy(update={"name": "again", "share": 0.6}))
    budget = budget_of(BudgetTable(images=100), alone)
    assert budget.quotas == (25, 75)
    assert budget.teaching == 0


@given(shares(), st.integers(1, 10**6))
def test_the_quotas_of_teaching_stages_are_whole_and_add_up_to_the_images_exactly(parts, images):
    stages = stages_of(parts)
    budget = budget_of(BudgetTable(images=images), stages)
    assert all(quota == int(quota) >= 0 for quota in budget.quotas)
    teaching = [q for q, s in zip(budget.quotas, stages, strict=True) if s.student_steps]
    assert sum(teaching) == budget.teaching
    if teaching:
        assert sum(teaching) == images
    whole = sum(s.share for s in stages if s.student_steps)
    for quota, stage in zip(budget.quotas, stages, strict=True):
        if stage.student_steps:
            assert abs(quota - images * stage.share / whole) <= 1 + 1e-6


@given(shares(), st.floats(0.01, 1e3))
def test_the_quotas_of_minutes_add_up_to_the_minutes(parts, minutes):
    budget = budget_of(BudgetTable(minutes=minutes), stages_of(parts))
    assert sum(budget.quotas) == pytest.approx(60 * minutes)


IMAGES = Budget(timed=False, quotas=(100.0, 50.0), teaching=50.0)
SECONDS = Budget(timed=True, quotas=(10.0, 5.0), teaching=5.0)
ALONE, TEACHING = Stage(name="alone", student_steps=0), Stage(name="teaching", student_steps=5)


def after(progress: Progress, stage: Stage, budget: Budget, **what: float) -> Progress:
    nothing = {"seconds": 0.0, "seen": 0, "synthetic": 0, "synthesized": 0, "trained": 0}
    return advance(progress, stage, budget, **(nothing | what))  # type: ignore[arg-type]


def test_a_stage_alone_is_paid_in_generator_images_and_a_teaching_one_in_student_images():
    alone = after(Progress(), ALONE, IMAGES, trained=30, synthesized=40, seen=7)
    assert (alone.stage, alone.work, alone.taught) == (0, 40, 0)
    teaching = after(Progress(stage=1), TEACHING, IMAGES, trained=30, synthesized=40, seen=7)
    assert (teaching.stage, teaching.work, teaching.taught) == (1, 7, 7)


def test_everything_is_counted():
    first = after(Progress(), ALONE, IMAGES, seconds=1.5, seen=4, synthetic=3, synthesized=9)
    second = after(first, ALONE, IMAGES, seconds=0.5, seen=6, synthetic=2, synthesized=1)
    assert second == Progress(
        round=2, work=10, images_seen=10, synthetic_seen=5, synthesized=10, seconds=2.0
    )


def test_the_cursor_moves_on_when_the_quota_is_used_up_and_no_sooner():
    almost = after(Progress(), ALONE, IMAGES, trained=99)
    assert almost.stage == 0
    over = after(almost, ALONE, IMAGES, trained=30)
    assert (over.stage, over.work) == (1, 0)  # images beyond the quota of a stage are not another's


def test_a_clocks_overrun_is_paid_by_the_next_stage():
    moved = after(Progress(), ALONE, SECONDS, seconds=12.5)
    assert (moved.stage, moved.work) == (1, 2.5)
    assert after(moved, TEACHING, SECONDS, seconds=2.5, seen=1).stage == 2


def test_a_stage_without_a_quota_is_left_after_one_round():
    budget = Budget(timed=False, quotas=(0.0, 10.0), teaching=10.0)
    assert after(Progress(), TEACHING, budget).stage == 1


def test_a_round_of_images_in_which_nobody_learned_ends_its_stage_whatever_was_made():
    """With a quota of which a single image is left the next round would be like it."""
    left = Progress(stage=1, work=49, taught=49)
    moved = after(left, TEACHING, IMAGES, synthesized=40, trained=30)
    assert (moved.stage, moved.taught, moved.images_seen) == (2, 49, 0)
    assert after(left, TEACHING, SECONDS, synthesized=40).stage == 2  # over, by the clock
    assert after(Progress(stage=1), TEACHING, SECONDS, synthesized=40, seconds=1.0).stage == 1


def test_the_share_of_the_training_counts_teaching_stages_only():
    assert taught_share(Progress(work=80), IMAGES) == 0
    assert taught_share(Progress(stage=1, taught=20, work=20), IMAGES) == 0.4
    assert taught_share(Progress(stage=1, taught=70), IMAGES) == 1
    assert taught_share(Progress(), Budget(False, (5.0,), 0.0)) == 1


def test_the_share_of_the_run_goes_from_nothing_to_all_over_its_stages():
    assert whole_share(Progress(), IMAGES) == 0
    assert whole_share(Progress(work=75), IMAGES) == 0.5
    assert whole_share(Progress(stage=1, work=25), IMAGES) == pytest.approx(125 / 150)
    assert whole_share(Progress(stage=2), IMAGES) == 1


@given(
    st.lists(
        st.tuples(st.floats(0.05, 1), st.sampled_from([0.0, 5.0, 40.0])), min_size=1, max_size=5
    ),
    st.floats(10, 500),
)
def test_a_stage_of_so_many_seconds_leaves_the_rest_to_the_others(stages, amount):
    made = [
        Stage(name=f"s{i}", share=share, seconds=most) for i, (share, most) in enumerate(stages)
    ]
    quotas = budget_of(BudgetTable(minutes=amount / 60), made).quotas
    assert sum(quotas) == pytest.approx(amount)
    free = [
        q / s.share for q, s in zip(quotas, made, strict=True) if not s.seconds or q < s.seconds
    ]
    if any(not s.seconds for s in made):
        assert all(q <= s.seconds + 1e-6 for q, s in zip(quotas, made, strict=True) if s.seconds)
        assert free == pytest.approx([free[0]] * len(free))  # by their shares
        held = [
            q / s.share for q, s in zip(quotas, made, strict=True) if s.seconds and q >= s.seconds
        ]
        assert all(each <= free[0] + 1e-6 for each in held)  # none is limited that need not be
