"""Who hears how a run goes: a terminal, a notebook, or nobody."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from synthkd.core.findings import Finding
from synthkd.engine.estimate import Estimate
from synthkd.engine.loop import Round
from synthkd.synthesis.plan import Plan


@dataclass(frozen=True)
class Schedule:
    """What the time left is estimated from: the end of a timed run, or what stages take."""

    ends: float | None = None  # by time.perf_counter
    stages: tuple[str, ...] = ()
    until: tuple[float, ...] = ()  # the share of the run's work that is done after each stage
    seconds: tuple[float, ...] = ()  # expected of each stage

    def left(self, stage: str, window: Sequence[tuple[float, float, int, int]]) -> float | None:
        """Seconds left after the newest round of `stage`: by its own speed in the `window` of
        (time, share of the work, …), then as expected of the later stages.

        >>> later = Schedule(None, ("a", "b"), (0.2, 1.0), (9.0, 30.0))
        >>> later.left("a", [(0.0, 0.0, 0, 0), (5.0, 0.1, 0, 0)])
        35.0
        >>> later.left("a", [(5.0, 0.1, 0, 0)]) is None
        True
        """
        if len(window) < 2 or stage not in self.stages:
            return None
        (then, done, *_), (now, more, *_) = window[0], window[-1]
        if now <= then or more <= done:
            return None
        place = self.stages.index(stage)
        own = max(0.0, self.until[place] - more) * (now - then) / (more - done)
        return own + sum(self.seconds[place + 1 :])


class Reporter(Protocol):
    """Receives everything that a user may want to see, and decides what to show."""

    def say(self, line: str) -> None:
        """One line."""

    def findings(self, findings: Iterable[Finding]) -> None:
        """What was found wrong, or may be."""

    def plan(self, plan: Plan, budget: str) -> None:
        """What will be done."""

    def estimate(self, expected: Estimate, seconds: float, *, timed: bool) -> None:
        """What it will take."""

    def expect(self, schedule: Schedule) -> None:
        """What the time left is estimated from; the clock starts here."""

    def follow(self, round_: Round) -> None:
        """A round is over."""

    def tick(self, part: str, done: int, total: int) -> None:
        """How far a part of a round is."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the result."""

    def acknowledge(self) -> None:
        """A wish to stop was heard."""

    def stop(self) -> None:
        """The rounds are over."""


class Several:
    """Passes everything on to each of some reporters, in their order.

    >>> class Loud(Silent):
    ...     def say(self, line: str) -> None:
    ...         print(line.upper())
    >>> Several([Loud(), Silent(), Loud()]).say("hello")
    HELLO
    HELLO
    """

    def __init__(self, reporters: Iterable[Reporter]) -> None:
        self.reporters = tuple(reporters)

    def say(self, line: str) -> None:
        """One line."""
        for reporter in self.reporters:
            reporter.say(line)

    def findings(self, findings: Iterable[Finding]) -> None:
        """What was found wrong, or may be."""
        found = tuple(findings)
        for reporter in self.reporters:
            reporter.findings(found)

    def plan(self, plan: Plan, budget: str) -> None:
        """What will be done."""
        for reporter in self.reporters:
            reporter.plan(plan, budget)

    def estimate(self, expected: Estimate, seconds: float, *, timed: bool) -> None:
        """What it will take."""
        for reporter in self.reporters:
            reporter.estimate(expected, seconds, timed=timed)

    def expect(self, schedule: Schedule) -> None:
        """What the time left is estimated from; the clock starts here."""
        for reporter in self.reporters:
            reporter.expect(schedule)

    def follow(self, round_: Round) -> None:
        """A round is over."""
        for reporter in self.reporters:
            reporter.follow(round_)

    def tick(self, part: str, done: int, total: int) -> None:
        """How far a part of a round is."""
        for reporter in self.reporters:
            reporter.tick(part, done, total)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the result."""
        for reporter in self.reporters:
            reporter.table(title, header, rows)

    def acknowledge(self) -> None:
        """A wish to stop was heard."""
        for reporter in self.reporters:
            reporter.acknowledge()

    def stop(self) -> None:
        """The rounds are over."""
        for reporter in self.reporters:
            reporter.stop()


class Silent:
    """A reporter that shows nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def findings(self, findings: Iterable[Finding]) -> None:
        """Nothing."""

    def plan(self, plan: Plan, budget: str) -> None:
        """Nothing."""

    def estimate(self, expected: Estimate, seconds: float, *, timed: bool) -> None:
        """Nothing."""

    def expect(self, schedule: Schedule) -> None:
        """Nothing."""

    def follow(self, round_: Round) -> None:
        """Nothing."""

    def tick(self, part: str, done: int, total: int) -> None:
        """Nothing."""

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Nothing."""

    def acknowledge(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
