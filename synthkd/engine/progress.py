"""The only cursor of a run: which stage, which round, how much of the budget is spent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from synthkd.recipe import BudgetTable, Stage

# Called with a part of a round, its steps that are done, and their number. It may end the round by
# an exception: what the round changed is then worthless; a run goes on from its last checkpoint.
Tick = Callable[[str, int, int], None]


def no_tick(part: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Plain numbers, saved in every checkpoint."""

    stage: int = 0  # index among the stages that run
    round: int = 0  # rounds done, over all stages
    work: float = 0.0  # spent in this stage: seconds or images, as the budget counts
    taught: float = 0.0  # spent in teaching stages
    images_seen: int = 0  # images the student learned from
    synthetic_seen: int = 0  # of these, synthetic
    synthesized: int = 0  # images the generators offered
    seconds: float = 0.0  # wall clock, over all sittings


@dataclass(frozen=True)
class Budget:
    """What each stage may spend, in seconds or in images."""

    timed: bool
    quotas: tuple[float, ...]  # one per stage
    teaching: float  # their sum over the stages that teach


def budget_of(table: BudgetTable, stages: Sequence[Stage]) -> Budget:
    """Shares of a budget as amounts.

    Minutes are divided by the shares of all stages; one that may take so many `seconds` at most
    takes these, and the others divide the rest. A budget in images counts what the student
    sees: it is divided by the shares of the stages that teach; a stage that only trains a generator
    gets the same rate per share, in images the generator makes.

    >>> stages = (Stage(name="a", share=0.2, student_steps=0), Stage(name="b", share=0.8))
    >>> budget_of(BudgetTable(images=1000), stages).quotas
    (250.0, 1000.0)
    >>> budget_of(BudgetTable(minutes=1), stages).quotas
    (12.0, 48.0)
    >>> limited = (Stage(name="a", share=0.2, seconds=6), *stages[1:])
    >>> budget_of(BudgetTable(minutes=1), limited).quotas
    (6.0, 54.0)
    """
    timed = table.minutes is not None
    amount = table.minutes * 60 if table.minutes is not None else float(table.images or 0)
    taught = [s.share if s.student_steps else 0.0 for s in stages]
    whole = sum(s.share for s in stages) if timed else (sum(taught) or sum(s.share for s in stages))
    quotas = tuple(amount * s.share / whole for s in stages)
    if timed:
        quotas = _limited(amount, stages)
    else:  # whole images whose sum over the teaching stages is the amount itself
        ends = [
            round(sum(t for t in taught[:i]) / (sum(taught) or 1) * amount)
            for i in range(len(stages) + 1)
        ]
        whole_images = [float(b - a) for a, b in pairwise(ends)]
        quotas = tuple(
            w if t else float(round(q))
            for w, t, q in zip(whole_images, taught, quotas, strict=True)
        )
    return Budget(timed, quotas, sum(q for q, t in zip(quotas, taught, strict=True) if t))


def _limited(amount: float, stages: Sequence[Stage]) -> tuple[float, ...]:
    """Seconds of every stage by the shares, where some may take so many at most. Where all are
    limited and that is less than the amount, they take what the shares say."""
    limited: set[int] = set()
    while True:
        free = sum(s.share for i, s in enumerate(stages) if i not in limited)
        left = amount - sum(stages[i].seconds for i in limited)
        if not free:
            return tuple(amount * s.share / sum(t.share for t in stages) for s in stages)
        quotas = tuple(
            s.seconds if i in limited else left * s.share / free for i, s in enumerate(stages)
        )
        over = {
            i for i, s in enumerate(stages)
            if i not in limited and s.seconds and quotas[i] > s.seconds
        }  # fmt: skip
        if not over:
            return quotas
        limited |= over


def advance(
    progress: Progress, stage: Stage, budget: Budget, *,
    seconds: float, seen: int, synthetic: int, synthesized: int, trained: int,
) -> Progress:  # fmt: skip
    """The cursor after a round that took `seconds`, showed `seen` images to the student (of them
    `synthetic`), offered `synthesized` to the memory and trained the generator on `trained`.

    The stage's work grows by seconds or images; when its quota is used up the cursor moves on, and
    also after a round in which nothing happened, or nothing that its quota counts: the next would
    be like it.
    """
    spent = (
        seconds
        if budget.timed
        else float(seen if stage.student_steps else max(trained, synthesized))
    )
    moved = replace(
        progress,
        round=progress.round + 1,
        work=progress.work + spent,
        taught=progress.taught + (spent if stage.student_steps else 0.0),
        images_seen=progress.images_seen + seen,
        synthetic_seen=progress.synthetic_seen + synthetic,
        synthesized=progress.synthesized + synthesized,
        seconds=progress.seconds + seconds,
    )
    over = moved.work - budget.quotas[progress.stage]
    if not ((seen or synthesized or trained) if budget.timed else spent):
        over = max(over, 0.0)
    if over >= -1e-6:  # a clock's overrun is paid by the next stage, so that the run ends on time
        moved = replace(
            moved, stage=progress.stage + 1, work=max(0.0, over) if budget.timed else 0.0
        )
    return moved


def taught_share(progress: Progress, budget: Budget) -> float:
    """How far the student's training is, 0..1: what the learning rate follows."""
    return min(1.0, progress.taught / budget.teaching) if budget.teaching else 1.0


def stage_share(progress: Progress, budget: Budget) -> float:
    """How far the present stage is, 0..1."""
    if progress.stage >= len(budget.quotas) or not budget.quotas[progress.stage]:
        return 1.0
    return min(1.0, progress.work / budget.quotas[progress.stage])


def whole_share(progress: Progress, budget: Budget) -> float:
    """How far the run is, 0..1."""
    done = sum(budget.quotas[: progress.stage]) + progress.work
    return min(1.0, done / sum(budget.quotas)) if sum(budget.quotas) else 1.0
