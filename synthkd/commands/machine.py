"""What a run computes on, device, threads, precision, and how it is asked to stop."""

import os
import re
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from synthkd import recipe as recipes
from synthkd.checks.teacher import check_teacher, refuse
from synthkd.commands.display import Display, clock
from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.data.sources import Images, load_images
from synthkd.engine.progress import Tick
from synthkd.recipe import Recipe, RunTable
from synthkd.teachers.frozen import FrozenTeacher
from synthkd.teachers.protocol import Teacher

GRACE = 2.0  # seconds that a round in hand may still take after a run was asked to stop
LAST = 5.0  # seconds after which one that does not end is left by force,
MERCY = 3.0  # and so many later by the system, where Python itself is held up
_EXIT = os._exit  # before code of the user's runs, which has another in its place
LONG_ROUND = 2.0  # seconds from which a round is long


def prepare(recipe: Recipe) -> tuple[Recipe, torch.device, bool]:
    """Settles the machine part of a recipe and applies it.

    Returns the recipe with `auto` and 0 replaced by what they stand for, the device, and whether to
    compute in bfloat16. A resumed run finds the settled values and so computes alike.
    """
    table = recipe.run
    device = choose_device(table.device)
    threads = table.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    precision = table.precision
    if precision == "auto":
        precision = "bfloat16" if _fast_bfloat16(device) else "float32"
    if precision == "bfloat16" and device.type == "cpu":
        # torch's fused transformer layer does not see a CPU's autocast and fails on mixed numbers
        torch.backends.mha.set_fastpath_enabled(False)
    settled: RunTable = table.model_copy(
        update={"threads": threads, "precision": precision, "device": str(device)}
    )
    return recipe.model_copy(update={"run": settled}), device, precision == "bfloat16"


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU; a GPU that is not there is an InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        number = int(name.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise InputError(f"--run.device {name}: there is no such GPU here")
    return torch.device(name)


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def checked(
    teacher: Teacher, recipe: Recipe, display: Display, *, anyway: bool = False
) -> list[Finding]:
    """Asks a teacher before anything is done with it, and shows what was found. Something serious
    is an InputError, unless the recipe says anyway."""
    if not isinstance(teacher, FrozenTeacher):
        return []
    found = check_teacher(teacher, recipe.teacher, trust_code=recipe.run.trust_code)
    refuse(found, recipe.teacher.spec, anyway=anyway or recipe.run.anyway)
    display.findings(found)
    return found


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process ever held, in MB (10⁶ bytes): resident, plus what a GPU
    holds."""
    total = _peak_resident()
    if device.type == "cuda":
        total += torch.cuda.max_memory_allocated(device)
    return round(total / 1e6, 1)


def _peak_resident() -> int:
    """Bytes. Linux's getrusage will not do where it can be helped: a process begins with the peak
    of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M)):
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def trusting(recipe: Recipe) -> str:
    """What a command line that goes on with this recipe needs besides."""
    named = recipes.names_code(recipe.model_dump())
    return " --trust-code" if recipe.run.trust_code or named else ""


@dataclass
class Stop:
    """Whether a run was asked to stop: by which signal (0: it was not), and when."""

    signal: int = 0
    at: float = 0.0  # by time.monotonic

    def __bool__(self) -> bool:
        return self.signal != 0

    @property
    def overdue(self) -> bool:
        """Whether the round in hand is to be given up, so that a long one is not waited for."""
        return bool(self) and time.monotonic() - self.at > GRACE


@contextmanager
def stopping(
    acknowledge: Callable[[], None] = lambda: None,
    give_up: Callable[[], bool] = lambda: False,
) -> Iterator[Stop]:
    """Catches SIGINT and SIGTERM once: `Stop` then knows the signal. A second one kills at once.

    `acknowledge` is called at once, from a thread of its own, for Python itself answers a signal
    only between two operations, and one of them may take seconds. Outside the main thread, which
    alone gets signals, nothing is caught.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    left = False

    def heard(number: int) -> None:
        if not stop and not left:
            stop.signal, stop.at = number, time.monotonic()
            # should Python's lock be held for long, no thread gets its turn
            signal.setitimer(signal.ITIMER_REAL, LAST + MERCY)

    def ask(number: int, _: FrameType | None) -> None:
        heard(number)
        signal.signal(number, signal.SIG_DFL)

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
            if stop and time.monotonic() - stop.at > LAST and not left and give_up():
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
        if stop:  # else the timer is somebody else's, of whoever calls us as a library
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
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
    def saving(self) -> Iterator[None]:
        """To be held while a checkpoint is written."""
        started = time.monotonic()
        self.busy = True
        ahead, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # of `stopping`
        try:
            yield
        finally:
            self.busy = False
            if ahead:
                signal.setitimer(signal.ITIMER_REAL, max(ahead, MERCY))
        self.saved, self._last = True, time.monotonic()
        self._cost = self._last - started


def giving_up(cadence: Cadence, display: Display, again: str) -> Callable[[], bool]:
    """What ends the work in hand for good, for `stopping` and `ticking`: it says once what is lost,
    and with `again` how to go on. False while a checkpoint is being written."""
    told: list[bool] = []

    def give_up() -> bool:
        if cadence.busy:
            return False
        if not told:  # else by the other thread, and the process is about to end
            told.append(True)
            display.stop()
            before = "all" if cadence.saved else "nothing"
            display.say(
                f"stopped in the middle: {clock(cadence.unsaved)} of work are given up, {before} "
                f"before is saved; {again}"
            )
        return True

    return give_up


def ticking(display: Display, stop: Stop, give_up: Callable[[], bool]) -> Tick:
    """Shows every step, and ends the work in hand where a wish to stop has waited for too long."""

    def tick(part: str, done: int, total: int) -> None:
        display.tick(part, done, total)
        if stop.overdue and give_up():
            raise SystemExit(128 + stop.signal)

    return tick


def images_for(recipe: Recipe, path: str, teacher: Teacher, *, labelled: bool) -> Images:
    """The images of a data path, as this recipe reads them, fitted to its teacher."""
    return load_images(
        path, teacher.spec, classes=teacher.classes, labelled=labelled,
        trust_code=recipe.run.trust_code, names=teacher.names, table=recipe.data,
    )  # fmt: skip
