"""How long a network takes for an image, measured on what will run: its ONNX file by ONNX Runtime.

B batch, C channels, H height, W width, K classes.
"""

import math
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.core.errors import InputError, plain
from synthkd.networks.classifier import Classifier
from synthkd.specs.graphs import telemetry_off

Answer = Callable[[Tensor], Tensor]
INPUT, OUTPUT = "images", "logits"  # names in an ONNX file
TURN = 0.02  # seconds of one network before another has its turn
LEAST_TURNS = 5
LAPS = 3  # of a network before those of the reference, of which the last one counts
UNDISTURBED = 0.1  # share of the laps that are faster than what counts


@dataclass(frozen=True)
class Conditions:
    """What a time was measured with: without them a number of milliseconds says little."""

    runtime: str  # "ONNX Runtime 1.30.0"
    threads: int
    machine: str

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.runtime}, {threads}, {self.machine}"


def conditions(threads: int | None = None, *, exported: bool = True) -> Conditions:
    """Those of this machine: of an ONNX file, or else of torch itself."""
    kind = f"torch {torch.__version__.partition('+')[0]}, eager"
    if exported:
        telemetry_off()
        import onnxruntime

        kind = f"ONNX Runtime {onnxruntime.__version__}"
    return Conditions(kind, threads or torch.get_num_threads(), machine_name())


def machine_name() -> str:
    """The processor as its maker calls it, where the system tells.

    >>> bool(machine_name())
    True
    """
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        told = None
    name = told[1] if told else platform.processor() or platform.machine() or "unknown"
    return plain(" ".join(name.split()))[:80]


def has_onnx() -> bool:
    """Whether the extra onnx is there: what writes the files and what runs them."""
    telemetry_off()
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return False
    return True


def write_onnx(network: torch.nn.Module, example: Tensor, path: Path, output: str = OUTPUT) -> None:
    """Writes ONNX with a free batch, weights inside the file. `example` [2, ...] has the form of
    what goes in."""
    if not has_onnx():
        raise InputError("ONNX files need the extra onnx: pip install 'synthkd[onnx]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (example,), dynamo=True, verbose=False, input_names=[INPUT],
            output_names=[output], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        assert program is not None
        program.save(str(path), external_data=False)


def write_onnx_quickly(network: torch.nn.Module, example: Tensor, path: Path) -> None:
    """The same for the batch of `example`, by torch's older exporter, which takes a tenth of the
    time: for networks that are only measured. Its files are as fast, within some percent."""
    with warnings.catch_warnings(), _silenced():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (example,), str(path), dynamo=False, input_names=[INPUT],
            output_names=[OUTPUT],
        )  # fmt: skip


@contextmanager
def _silenced() -> Iterator[None]:
    """The older exporter prints the graph that it cannot write, from C++: here to nowhere."""
    turn = getattr(torch._C, "_jit_set_onnx_log_output_stream", lambda _: None)
    turn("stderr")
    try:
        kept = os.dup(2)
    except OSError:  # no stderr, nothing to keep quiet
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        turn("stdout")


def onnx_answer(path: Path, threads: int | None = None) -> Answer:
    """How an ONNX file answers, by ONNX Runtime on the CPU; `threads` None: as many as torch
    has."""
    telemetry_off()
    try:
        import onnxruntime
    except ImportError:
        raise InputError("ONNX files need the extra onnx: pip install 'synthkd[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return answer


def milliseconds(
    works: Mapping[str, Callable[[], object]], *, seconds: float, most: float = math.inf,
    threads: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Milliseconds that each of `works` takes on this machine when it is idle, measured in turns
    for so many seconds each.

    Each has its turn of some 20 ms (a lap at least, after one that does not count), then the next
    one: what else the machine does meanwhile meets all of them alike. A turn counts by its median
    lap, a work by its fastest turn, since other programs only ever make it slower; and work of one
    thread by the time that the processor gave it. One that takes more than three times `most` ms at
    once is not measured further.
    """
    clock = _clock(threads or torch.get_num_threads())
    turns: dict[str, list[float]] = {name: [] for name in works}
    spent = dict.fromkeys(works, 0.0)
    for work in works.values():
        work()
    while True:
        waiting = [
            name for name, past in turns.items()
            if (spent[name] < seconds or len(past) < LEAST_TURNS)
            and not (past and past[0] > 3 * most)
        ]  # fmt: skip
        if not waiting:
            break
        for name in waiting:
            work, started = works[name], time.perf_counter()
            work()
            laps: list[float] = []
            while not laps or (time.perf_counter() - started < TURN and len(laps) < 1000):
                before = clock()
                work()
                laps.append(clock() - before)
            turns[name].append(1e3 * float(np.median(laps)))
            spent[name] += time.perf_counter() - started
    return {name: min(past) for name, past in turns.items()}


def _clock(threads: int) -> Callable[[], float]:
    """What laps are timed by: the processor's time of this thread where that is all there is, so
    that a busy machine does not count, else wall clock."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time if threads == 1 and fine else time.perf_counter


def alone(answer: Answer, shape: tuple[int, ...]) -> Callable[[], object]:
    """One image [C, H, W] put to a network, as work to be timed."""
    image = torch.full((1, *shape), 0.5)

    def work() -> object:
        with torch.no_grad():
            return answer(image)

    return work


def image_work(
    network: Classifier, threads: int | None = None, *, final: bool = False
) -> Callable[[], object]:
    """One image put to a network by its ONNX file, as work to be timed; `final`: by the file that
    `synthkd export` writes. Raises what the exporters raise."""
    network.eval()
    shape = network.spec.shape
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "network.onnx"
        if final:
            write_onnx(network, torch.zeros(2, *shape), path)
        else:
            write_onnx_quickly(network, torch.zeros(1, *shape), path)
        return alone(onnx_answer(path, threads), shape)


def network_ms(
    network: Classifier, *, seconds: float, threads: int | None = None, final: bool = False,
    most: float = math.inf,
) -> float:  # fmt: skip
    """Milliseconds of `image_work`, measured for so many seconds."""
    work = image_work(network, threads, final=final)
    return milliseconds({"": work}, seconds=seconds, most=most, threads=threads)[""]


class Reference:
    """Work that is timed by turns with every other, so that times taken hours apart can be
    compared on a machine that others use too:

        milliseconds = q(t) / q(r) · median of all such q(r)

    with t and r the laps of the work and of the reference, lap by lap by turns, q the lap that one
    in ten is faster than (UNDISTURBED), and the last factor over every measurement so far (`past`,
    to which this one is added). What slows a machine for minutes slows both alike. What takes one
    of several threads away for a moment multiplies single laps, often half of them, so that medians
    say little; the fastest of all laps is rarer than that, and may be luck.
    """

    def __init__(
        self, work: Callable[[], object], threads: int | None = None, past: Sequence[float] = ()
    ) -> None:
        self.work, self.threads, self.past = work, threads, list(past)

    def milliseconds(self, work: Callable[[], object], *, seconds: float) -> float:
        """What work takes, measured for so many seconds, and the reference for as many."""
        clock = _clock(self.threads or torch.get_num_threads())
        took: tuple[list[float], list[float]] = ([], [])
        began = time.perf_counter()
        while time.perf_counter() - began < 2 * seconds or len(took[0]) < LEAST_TURNS:
            for one, laps in zip((work, self.work), took, strict=True):
                for _ in range(LAPS):  # what the other left in caches does not count
                    before = clock()
                    one()
                    last = clock() - before
                laps.append(1e3 * last)
        found, reference = (float(np.quantile(laps, UNDISTURBED)) for laps in took)
        self.past.append(reference)
        return found * float(np.median(self.past)) / reference
