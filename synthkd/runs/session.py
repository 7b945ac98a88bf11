"""One sitting of a job in its directory: how it is asked to stop, when it saves, how it goes on.

A job walks its rounds inside `Session.open` and calls `pause` after each.
"""

import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from synthkd import recipe as recipes
from synthkd.core.words import clock
from synthkd.engine.loop import Lab
from synthkd.engine.processes import LostProcess, Processes
from synthkd.engine.progress import Tick, no_tick
from synthkd.engine.reporter import Reporter
from synthkd.recipe import Recipe
from synthkd.runs.directory import resumable

GRACE = 2.0  # seconds that a round in hand may still take after a run was asked to stop
LAST = 5.0  # seconds after which one that does not end is left by force,
MERCY = 3.0  # and so many later by the system, where Python itself is held up
_EXIT = os._exit  # before code of the user's runs, which has another in its place
LONG_ROUND = 2.0  # seconds from which a round is long


def going_on(
    command: str, recipe: Recipe, path: Path, *words: str | Path,
    launcher: Sequence[str] = ("synthkd",),
) -> str:  # fmt: skip
    """How to go on with what a command was doing in the directory `path`, with more `words` of the
    command line, which begins with those of the `launcher`."""
    specs = (recipe.teacher.spec, recipe.student.spec, recipe.data.real, recipe.data.val)
    if any(spec.startswith("<") for spec in specs):  # living objects are given again
        return f"go on with: synthkd.{command}(…, resume={str(path)!r})"
    trust = recipe.run.trust_code or recipes.names_code(recipe.model_dump())
    line = [*launcher, command, "--resume", str(path), *map(str, words)]
    return "go on with: " + shlex.join([*line, "--trust-code"] if trust else line)


@dataclass
class Stop:
    """Whether a run was asked to stop: by which signal (0: it was not), and when."""

    signal: int = 0
    at: float = 0.0  # by time.monotonic
    armed: bool = False  # the process's timer is ours, and will end it,
    held: bool = False  # but not while this is true

    def __bool__(self) -> bool:
        return self.signal != 0

    @property
    def overdue(self) -> bool:
        """Whether the round in hand is to be given up, so that a long one is not waited for."""
        return bool(self) and time.monotonic() - self.at > GRACE


@contextmanager
def stopping(
    acknowledge: Callable[[], None] = lambda: None,
    give_up: Callable[[], object] = lambda: False,
    *,
    by_force: bool = True,
    repeated: bool = False,
) -> Iterator[Stop]:
    """Catches SIGINT and SIGTERM once: `Stop` then knows the signal. A second one kills at once;
    where not `by_force` it goes to the handler that was there before. Where signals may be
    `repeated`, as by a launcher that passes on what its processes have had already, a second one is
    the first one again.

    `acknowledge` is called at once, from a thread of its own, for Python itself answers a signal
    only between two operations, and one of them may take seconds. Outside the main thread, which
    alone gets signals, nothing is caught. What does not end after LAST seconds is ended together
    with its process, unless not `by_force`: a notebook goes on.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    left = False

    def heard(number: int) -> None:
        if not stop and not left:
            stop.signal, stop.at = number, time.monotonic()
            if by_force:  # should Python's lock be held for long, no thread gets its turn
                stop.armed = True
                if not stop.held:
                    signal.setitimer(signal.ITIMER_REAL, LAST + MERCY)

    def ask(number: int, _: FrameType | None) -> None:
        heard(number)
        if repeated:
            return
        signal.signal(number, (not by_force and before[signal.Signals(number)]) or signal.SIG_DFL)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as set_wakeup_fd wants it

    def listen() -> None:
        while numbers := os.read(reader, 1):
            if numbers[0] in (signal.SIGINT, signal.SIGTERM):
                heard(numbers[0])
                acknowledge()
                break
        while not left:
            if select.select([reader], [], [], 0.2)[0] and not os.read(reader, 64):
                break  # the writer is closed
            late = by_force and stop and time.monotonic() - stop.at > LAST
            if late and not left and give_up():
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                _EXIT(128 + stop.signal)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        left = True
        if stop.armed:  # else the timer is somebody else's, of whoever calls us as a library
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        os.close(writer)
        listener.join(1.0)
        os.close(reader)


class Cadence:
    """When a checkpoint is due: every so many seconds, and after every round that was long, since
    whoever stops in the next one gives that up; but never for more than a tenth of the time."""

    def __init__(self, seconds: float, *, saved: bool = False) -> None:
        self.seconds = seconds
        self._last, self._cost = time.monotonic(), 0.0
        self.busy = False  # a checkpoint is being written
        self.saved = saved  # there is one

    def due(self, round_seconds: float) -> bool:
        """Whether to save now, after a round of so many seconds."""
        since = time.monotonic() - self._last
        long = round_seconds > LONG_ROUND and since > 10 * self._cost
        return long or since > self.seconds

    @property
    def unsaved(self) -> float:
        """Seconds since the last checkpoint, or since the beginning."""
        return time.monotonic() - self._last

    @contextmanager
    def saving(self, stop: Stop) -> Iterator[None]:
        """To be held while a checkpoint is written: the timer of `stopping` waits for it."""
        started = time.monotonic()
        self.busy = stop.held = True
        if stop.armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            yield
        finally:
            self.busy = stop.held = False
            if stop.armed:
                signal.setitimer(signal.ITIMER_REAL, MERCY)
        self.saved, self._last = True, time.monotonic()
        self._cost = self._last - started


def giving_up(cadence: Cadence, report: Reporter, again: str) -> Callable[[], str]:
    """What ends the work in hand for good, for `stopping` and `ticking`: it says once what is lost,
    and with `again` how to go on, and returns that. Nothing while a checkpoint is being written."""
    said: list[str] = []

    def give_up() -> str:
        if cadence.busy:
            return ""
        if not said:  # else by the other thread, and the process is about to end
            before = "all" if cadence.saved else "nothing"
            said.append(
                f"stopped in the middle: {clock(cadence.unsaved)} of work are lost, {before} "
                f"before is saved; {again}"
            )
            report.stop()
            report.say(said[0])
        return said[0]

    return give_up


def ticking(report: Reporter, stop: Stop, give_up: Callable[[], str]) -> Tick:
    """Shows every step, and ends the work in hand where a wish to stop has waited for too long."""

    def tick(part: str, done: int, total: int) -> None:
        report.tick(part, done, total)
        if stop.overdue and (said := give_up()):
            raise Stopped(stop.signal, said)

    return tick


class Stopped(SystemExit):
    """A sitting that was ended by a signal; `said` is what was lost, or saved, and how to go on."""

    def __init__(self, number: int, said: str) -> None:
        super().__init__(128 + number)
        self.said = said


class Session:
    """One sitting of a job: signals, the cadence of checkpoints, and the word for going on.

    `again` says how to go on with what is saved; `saved` whether there is a checkpoint already.
    Several `processes` save and stop after the same round.
    """

    def __init__(
        self, report: Reporter, again: str, seconds: float, *, saved: bool, by_force: bool = True,
        processes: Processes | None = None,
    ) -> None:  # fmt: skip
        self.report, self.again, self.by_force = report, again, by_force
        self.processes = processes or Processes()
        self.cadence = Cadence(seconds, saved=saved)
        self.asked = Stop()
        self._began = time.monotonic()

    @contextmanager
    def open(self, lab: Lab) -> Iterator["Session"]:
        """Shows every step of the lab, and hears SIGINT and SIGTERM, while the `with` lasts. What
        the disk refuses is one line that says how to go on."""
        give_up = giving_up(self.cadence, self.report, self.again)
        repeated = self.processes.count > 1
        try:
            with (
                resumable(self.again),
                stopping(
                    self.report.acknowledge, give_up, by_force=self.by_force, repeated=repeated
                ) as self.asked,
            ):
                lab.tick = ticking(self.report, self.asked, give_up)
                self._began = time.monotonic()
                try:
                    yield self
                except LostProcess:
                    said = give_up()  # at once: a launcher ends the others
                    if not self.asked:
                        raise
                    raise Stopped(self.asked.signal, said) from None
        finally:
            lab.tick = no_tick
            self.report.stop()

    def pause(self, save: Callable[[], object], *, done: str = "", last: bool = False) -> None:
        """To be called after every round: saves when it is time for it; when asked to stop, saves
        and ends the sitting by `Stopped`. After the `last` round neither is worth it."""
        if last:
            return
        number = self._signal()
        if number or self.processes.first(self.cadence.due(time.monotonic() - self._began)):
            self.save(save)
            number = self._signal()  # perhaps it came meanwhile
        if number:
            self.report.stop()
            where = f" at {done}" if done else ""
            said = f"stopped{where}, saved; {self.again}"
            self.report.say(said)
            raise Stopped(number, said)
        self._began = time.monotonic()

    def _signal(self) -> int:
        """The signal by which any of the processes was asked to stop; 0: none was."""
        return int(max(self.processes.every(self.asked.signal)))

    def save(self, save: Callable[[], object]) -> None:
        """Saves now."""
        with self.cadence.saving(self.asked):
            save()
