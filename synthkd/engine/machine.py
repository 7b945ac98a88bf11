"""What a run computes on: device, threads, precision, and how much memory it took."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from synthkd.core.allocator import keep_freed_memory
from synthkd.core.errors import InputError
from synthkd.engine.processes import Processes, cores
from synthkd.recipe import Recipe, RunTable
from synthkd.specs.code import load_plugins


def prepare(
    recipe: Recipe, processes: Processes | None = None
) -> tuple[Recipe, torch.device, bool]:
    """Replaces `auto` in the machine part of a recipe by what it stands for here, and applies it to
    this process, for good (but see `left_as_it_was`).

    The files of `run.plugins` are run.

    Returns the recipe with `auto` and 0 replaced by what they stand for, the device, and whether to
    compute in bfloat16. A resumed run finds the settled values and so computes alike. Of several
    processes all have as many threads as the first; `cuda` then stands for the GPU of each.
    """
    table, processes = recipe.run, processes or Processes()
    load_plugins(table.plugins, trust_code=table.trust_code)
    if processes.gpu is None:
        device = choose_device(table.device)
        name = str(device)
    else:
        device, name = torch.device("cuda", processes.gpu), "cuda"
    usual = torch.get_num_threads() if processes.count == 1 else cores(processes)
    threads = processes.first(table.threads or usual)
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    precision = table.precision
    if precision == "auto":
        precision = "bfloat16" if fast_bfloat16(device) else "float32"
    if precision == "bfloat16" and device.type == "cpu":
        # torch's fused transformer layer does not see a CPU's autocast and fails on mixed numbers
        torch.backends.mha.set_fastpath_enabled(False)
    settled: RunTable = table.model_copy(
        update={"threads": threads, "precision": precision, "device": name}
    )
    return recipe.model_copy(update={"run": settled}), device, precision == "bfloat16"


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """While the `with` lasts `prepare` may set what holds for the whole process; then it is as it
    was before."""
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(fast)
        keep_freed_memory(False)


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU; a GPU that is not there is an InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        number = int(name.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise InputError(f"--run.device {name}: there is no such GPU here")
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


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
