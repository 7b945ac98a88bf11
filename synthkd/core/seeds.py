"""Random numbers from named seeds: the same names give the same numbers, whatever ran before.

Nothing of a random state is ever saved: a round reseeds from (seed, round), so resuming needs no
state.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived(seed: int, *path: int | str) -> int:
    """A 63-bit seed made from a seed and a path of names and numbers, e.g. (3, "round", 17).

    >>> derived(3, "round", 17) == derived(3, "round", 17)
    True
    >>> derived(3, "round", 17) == derived(3, "round", 18)
    False
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *path: int | str) -> torch.Generator:
    """A generator of random numbers for one purpose."""
    return torch.Generator().manual_seed(derived(seed, *path))


_GLOBAL = threading.RLock()


@contextmanager
def globally(rng: torch.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's global random state from `rng` for a while, and puts the old state back: that
    of the CPU and, where there are GPUs, of the one in use, `device` (default: the current one).

    For code that takes no generator: initial weights and kornia. The state is one for all threads
    of a process, so others wait here.
    """
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    gpus = [device] if device is not None and device.type == "cuda" else []
    with _GLOBAL, torch.random.fork_rng(gpus):
        seed = int(torch.randint(2**62, (1,), generator=rng))
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
