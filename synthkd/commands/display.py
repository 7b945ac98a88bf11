"""What a person sees while a run works: live on a terminal, a plain line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from synthkd.core.errors import plain
from synthkd.core.findings import Finding
from synthkd.core.words import clock, span
from synthkd.engine.estimate import Estimate
from synthkd.engine.loop import Round
from synthkd.engine.reporter import Schedule
from synthkd.synthesis import plan as plans

WINDOW, LINE = 60.0, 20.0  # seconds: speeds are of the last so many; a line every so many
_SHOWN = ("agreement", "difficulty", "balance", "target_class_rate", "confidence", "loss")


class Display:
    """Prints the plan, follows the rounds, prints the result. With `quiet` it says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        # a log file wants whole lines, not lines broken at the 80th column
        terminal = Console()
        self.console = (
            terminal
            if terminal.is_terminal
            else Console(width=200, no_color=True, force_jupyter=False)
        )
        self.quiet = quiet
        self._started = time.monotonic()
        self._schedule = Schedule()
        self._round: Round | None = None
        self._part = ""  # of the round in hand
        self._window: deque[tuple[float, float, int, int]] = deque()
        self._left: float | None = None  # seconds, when the last round ended
        self._left_at = 0.0
        self._shown = self._last_line = 0.0
        self._measures: dict[str, float] = {}
        self._live: Live | None = None

    def say(self, line: str) -> None:
        """One line."""
        if not self.quiet:
            self.console.print(plain(line), markup=False, highlight=False, soft_wrap=True)

    def findings(self, findings: Iterable[Finding]) -> None:
        """A line for each finding, the serious ones first and in red."""
        if self.quiet:
            return
        for finding in sorted(findings, key=lambda one: not one.serious):
            word, style = ("serious", "bold red") if finding.serious else ("warning", "yellow")
            self.console.print(
                plain(f"{word}: {finding}"), style=style, markup=False, highlight=False,
                soft_wrap=True,
            )  # fmt: skip

    def plan(self, plan: plans.Plan, budget: str) -> None:
        """What will be done, before it is done."""
        if self.quiet:
            return
        for reason in plan.reasons:
            self.say(f"plan: {reason}")
        rows = plans.table(plan.stages)
        self.table(f"stages, {budget}", ("stage", "generator", "a round", "terms"), rows)

    def estimate(self, expected: Estimate, seconds: float, *, timed: bool) -> None:
        """What a run will take: each stage, and all of it in `seconds`."""
        rows = [
            (s.name, f"{s.rounds:,.3g}", span(s.round_seconds), span(s.seconds),
             f"{s.synthesized:,.0f}", f"{s.seen:,.0f}")
            for s in expected.stages
        ]  # fmt: skip
        whole = "" if timed else f"{span(seconds)}, "
        learned = f"{expected.seen:,.0f} student images, " if expected.seen else ""
        self.table(
            f"expected: {whole}{learned}{expected.memory / 1e9:.1f} GB of memory",
            ("stage", "rounds", "a round", "in all", "images synthesized", "images learned"), rows,
        )  # fmt: skip

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table: ruled on a terminal, aligned columns elsewhere."""
        if self.quiet:
            return
        if self.console.is_terminal:
            table = Table(*header, title=title, title_justify="left")
            for row in rows:
                table.add_row(*(Text(plain(cell)) for cell in row))
            self.console.print(table)
            return
        rows = [[plain(cell) for cell in row] for row in rows]
        widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
        self.say(title)
        for row in (header, *rows):
            self.say(
                "  "
                + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            )

    def expect(self, schedule: Schedule) -> None:
        """What the time left is estimated from; the clock starts here."""
        self._schedule, self._started = schedule, time.monotonic()

    def tick(self, part: str, done: int, total: int) -> None:
        """Shows how far a part of a round is: so that the view moves in a long one too."""
        if self.quiet:
            return
        self._part = f"{part} {done} of {total}" if total > 1 else part
        now = time.monotonic()
        if self.console.is_terminal:
            if now - self._shown > 0.25:
                self._draw(now)
        elif now - max(self._last_line, self._started) > LINE:
            self._last_line = now
            self.say(f"{self._share(now):4.0%} {self._part}  {self._times(now)}")

    def follow(self, round_: Round) -> None:
        """Shows a round: live on a terminal, else a line every twenty seconds."""
        if self.quiet:
            return
        now = time.monotonic()
        if self._round is None or self._round.stage != round_.stage:
            self._window.clear()
        self._round, self._part = round_, ""
        progress = round_.progress
        self._window.append((now, round_.share, progress.images_seen, progress.synthesized))
        while len(self._window) > 2 and now - self._window[0][0] > WINDOW:
            self._window.popleft()
        self._left, self._left_at = self._schedule.left(round_.stage, self._window), now
        self._measures |= round_.measures
        if self.console.is_terminal:
            self._draw(now)
        elif now - self._last_line > LINE:
            self._last_line = now
            terms = " ".join(
                f"{k.removeprefix('term.')} {v:.3g}" for k, v in self._measures.items()
            )
            share, times = self._share(now), self._times(now)
            self.say(f"{share:4.0%} {round_.stage}  {self._speeds()}  {times}  {terms}")

    def _draw(self, now: float) -> None:
        if self._live is None:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        self._shown = now
        self._live.update(self._panel(now))

    def _remaining(self, now: float) -> float | None:
        """Seconds left, as far as they can be told."""
        if self._schedule.ends is not None:
            return max(0.0, self._schedule.ends - time.perf_counter())
        left = self._left
        if left is None and self._schedule.seconds:
            left, since = sum(self._schedule.seconds), self._started
        else:
            since = self._left_at
        return None if left is None else max(0.0, left - (now - since))

    def _share(self, now: float) -> float:
        """How much of the time is over, 0..1; where that cannot be told, of the work."""
        left, passed = self._remaining(now), now - self._started
        if left is None:
            return self._round.share if self._round else 0.0
        return passed / (passed + left) if passed + left > 0 else 1.0

    def _times(self, now: float) -> str:
        left = self._remaining(now)
        ahead = "…" if left is None else f"{clock(left)} left"
        return f"{clock(now - self._started)} passed, {ahead}"

    def _speeds(self) -> str:
        """Images a second over the last minute of this stage."""
        if len(self._window) < 2:
            return ""
        (then, _, seen, made), (now, _, seen_now, made_now) = self._window[0], self._window[-1]
        passed = max(now - then, 1e-6)
        return (
            f"{(made_now - made) / passed:,.0f} synthesized/s  "
            f"{(seen_now - seen) / passed:,.0f} learned/s"
        )

    def _panel(self, now: float) -> Group:
        width, share = 40, self._share(now)
        bar = "█" * round(width * share) + "░" * (width - round(width * share))
        known = {k: v for k, v in self._measures.items() if k in _SHOWN}
        terms = {k.removeprefix("term."): v for k, v in self._measures.items() if "term." in k}
        where = f"{self._round.stage}, round {self._round.progress.round}" if self._round else ""
        return Group(
            Text(f"{bar} {share:4.0%}  {where}  {self._part}"),
            Text(f"{self._speeds()}  {self._times(now)}"),
            Text("  ".join(f"{k} {known[k]:.3f}" for k in _SHOWN if k in known)),
            Text("  ".join(f"{k} {v:.3g}" for k, v in terms.items())),
        )

    def acknowledge(self) -> None:
        """Says that a wish to stop was heard."""
        self.say(
            "stopping: finishing the current step first (again to stop at once, without saving)"
        )

    def stop(self) -> None:
        """Ends the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None
