"""What a person sees while a run works: live on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from synthkd.distillation import Round
from synthkd.errors import plain
from synthkd.findings import Finding
from synthkd.synthesis import plan as plans

_SHOWN = ("agreement", "difficulty", "balance", "obeyed", "confidence", "loss")


class Display:
    """Prints the plan, follows the rounds, prints the result. With `quiet` it says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        # a log file wants whole lines, not lines broken at the 80th column
        terminal = Console()
        self.console = terminal if terminal.is_terminal else Console(width=200, no_color=True)
        self.quiet = quiet
        self._started = time.monotonic()
        self._first: Round | None = None
        self._last_line = 0.0
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

    def follow(self, lap: Round) -> None:
        """Shows a round: live on a terminal, else a line every twenty seconds."""
        if self.quiet:
            return
        self._first = self._first or lap
        self._measures |= lap.measures
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(self._panel(lap))
        elif time.monotonic() - self._last_line > 20:
            self._last_line = time.monotonic()
            terms = " ".join(
                f"{k.removeprefix('term.')} {v:.3g}" for k, v in self._measures.items()
            )
            self.say(f"{lap.share:4.0%} {lap.stage}  {self._speed(lap)}  {terms}")

    def _speed(self, lap: Round) -> str:
        """Images a second and time left, since this sitting began."""
        assert self._first is not None
        passed = time.monotonic() - self._started
        done = lap.share - self._first.share
        left = f"{clock(passed * (1 - lap.share) / done)} left" if done > 0 else "…"
        seen = (lap.progress.images_seen - self._first.progress.images_seen) / passed
        made = (lap.progress.invented - self._first.progress.invented) / passed
        return f"{made:,.0f} invented/s  {seen:,.0f} learned/s  {clock(passed)} passed, {left}"

    def _panel(self, lap: Round) -> Group:
        width = 40
        bar = "█" * round(width * lap.share) + "░" * (width - round(width * lap.share))
        known = {k: v for k, v in self._measures.items() if k in _SHOWN}
        terms = {k.removeprefix("term."): v for k, v in self._measures.items() if "term." in k}
        return Group(
            Text(f"{bar} {lap.share:4.0%}  {lap.stage}, round {lap.progress.round}"),
            Text(self._speed(lap)),
            Text("  ".join(f"{k} {known[k]:.3f}" for k in _SHOWN if k in known)),
            Text("  ".join(f"{k} {v:.3g}" for k, v in terms.items())),
        )

    def stop(self) -> None:
        """Ends the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def clock(seconds: float) -> str:
    """`1:05` for 65 seconds.

    >>> clock(65), clock(3725)
    ('1:05', '1:02:05')
    """
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
