"""Processes that do one job together, as torchrun or accelerate start them, and what they tell one
another. A process alone tells nobody: nothing is computed for it.

n processes, each with a rank 0..n−1; the one of rank 0 leads: it alone writes, prints and scores.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from synthkd.core import launch
from synthkd.core.errors import InputError, is_out_of_memory, quoted

STEP = timedelta(minutes=30)  # that a student step waits for the slowest process
WAIT = timedelta(days=1)  # that the others wait while one scores, say


class LostProcess(InputError):
    """Another process of the job has ended, and this one cannot go on without it."""


@dataclass(frozen=True, eq=False)
class Processes:
    """The processes of a job, as one of them sees them; one alone unless `from_environment` says
    otherwise.

    What is done together is done by all in the same order, or they wait for one another in vain.
    Where one has ended the others get a LostProcess.
    """

    rank: int = 0
    count: int = 1  # n
    local_count: int = 1  # of them on this machine
    gpu: int | None = None  # the GPU that this one has for itself
    group: Any = None  # of torch.distributed, by which plain values go

    @property
    def leads(self) -> bool:
        """Whether this is the first, or the only one."""
        return self.rank == 0

    @property
    def launcher(self) -> tuple[str, ...]:
        """The words of a command line that start as many."""
        if self.count == 1:
            return ("synthkd",)
        machines = -(-self.count // self.local_count)
        several = (f"--nnodes={machines}",) if machines > 1 else ()
        return ("torchrun", *several, f"--nproc-per-node={self.local_count}", "-m", "synthkd")

    def part(self, total: int) -> tuple[int, int]:
        """Where this process's part of `total` things begins, and how many it has: `part_of`."""
        return part_of(total, self.rank, self.count)

    def mean_(self, tensors: Sequence[Tensor], share: float | None = None) -> None:
        """Replaces tensors by their weighted means over the processes, in place:

            t ← sum over ranks r of  share_r · t_r

        The `share` of every process, together 1, is an even one where none is given. All get the
        same bits, and the same bits again in the same job.
        """
        if self.count == 1:
            return

        def mean(flat: Tensor) -> None:
            flat *= 1 / self.count if share is None else share
            dist.all_reduce(flat)

        _in_one(tensors, mean)

    def spread_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by those of the first process, in place."""
        if self.count > 1:
            _in_one(tensors, lambda flat: dist.broadcast(flat, src=0))

    def first(self, value: Any) -> Any:
        """What the first process says: plain values, as JSON has them."""
        if self.count == 1:
            return value
        with _together():
            own = _as_bytes(value)
            size = torch.tensor([len(own)])
            dist.broadcast(size, src=0, group=self.group)
            told = own if self.leads else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(told, src=0, group=self.group)
        return _from_bytes(told)

    def every(self, value: Any) -> list[Any]:
        """What every process says, by rank: plain values, as JSON has them."""
        if self.count == 1:
            return [value]
        with _together():
            own = _as_bytes(value)
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self.group)
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(own)] = own
            told = [torch.empty_like(padded) for _ in range(self.count)]
            dist.all_gather(told, padded, group=self.group)
        return [_from_bytes(one[: int(size)]) for one, size in zip(told, sizes, strict=True)]

    def wait(self) -> None:
        """Waits until all are here."""
        self.every(None)

    def close(self) -> None:
        """Ends what joins the processes."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def from_environment(device: str = "auto") -> Processes:
    """The processes that a launcher started together with this one (WORLD_SIZE, RANK, …), joined by
    accelerate: one alone where it started none.

    On `device` auto or cuda, where there are GPUs, each has one for itself, and NCCL joins them; on
    cpu, or a GPU with a number, which all share then, gloo does. Raises InputError where they
    cannot be joined.
    """
    count = launch.started()
    if count == 1:
        return Processes()
    local, place = launch.number("LOCAL_WORLD_SIZE", 1), launch.number("LOCAL_RANK", 0)
    own = device in ("auto", "cuda") and torch.cuda.is_available()
    if own and place >= torch.cuda.device_count():
        raise InputError(
            f"{local} processes were started on this machine, and it has "
            f"{torch.cuda.device_count()} GPUs: start as many as there are, or give --run.device "
            "cpu (or cuda:0, which all share)"
        )
    from accelerate import PartialState  # only where it is needed: it takes seconds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which are set later
            state = PartialState(cpu=not own, timeout=STEP)
            group = dist.new_group(backend="gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"WORLD_SIZE={count} in the environment, but the processes cannot be joined "
            f"({_line(error)}): start them by torchrun or accelerate launch, or unset it"
        ) from None
    gpu = state.device.index if own else None
    return Processes(dist.get_rank(), dist.get_world_size(), local, gpu, group)


def part_of(total: int, rank: int, count: int) -> tuple[int, int]:
    """Where the part of a process begins, if `count` of them divide `total` things, and its size:
    even parts, the first ones larger by one where they are not even.

    >>> [part_of(8, rank, 3) for rank in range(3)]
    [(0, 3), (3, 3), (6, 2)]
    """
    each, more = divmod(total, count)
    return rank * each + min(rank, more), each + (rank < more)


def means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of values by name, of those who have each.

    >>> means([{"a": 1.0, "b": 5.0}, {"a": 2.0}])
    {'a': 1.5, 'b': 5.0}
    """
    names = dict.fromkeys(name for values in several for name in values)
    found = {name: [values[name] for values in several if name in values] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


@torch.no_grad()
def _in_one(tensors: Sequence[Tensor], change: Callable[[Tensor], object]) -> None:
    """Lets tensors be changed as one flat tensor of each type: one message in the place of many."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        with _together():
            change(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in some])
        for tensor, part in zip(some, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def _as_bytes(value: Any) -> Tensor:
    """A plain value as its JSON, uint8 [N]."""
    return torch.frombuffer(bytearray(json.dumps(value, default=float).encode()), dtype=torch.uint8)


def _from_bytes(told: Tensor) -> Any:
    return json.loads(told.numpy().tobytes())


@contextmanager
def _together() -> Iterator[None]:
    """Turns what torch raises where another process has gone into a LostProcess."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LostProcess(f"another process of this job has ended ({_line(error)})") from None


def _line(error: BaseException) -> str:
    """The end of what an error says in its first line: what stands before is where in torch."""
    first = (str(error).splitlines() or [""])[0]
    return quoted(first.rpartition("] ")[2] or first, 100)


def cores(processes: Processes) -> int:
    """CPU threads for each of the processes on this machine: its part of the cores that it may
    use."""
    able = getattr(os, "sched_getaffinity", None)
    whole = len(able(0)) if able else os.cpu_count() or 1
    return max(1, whole // processes.local_count)
