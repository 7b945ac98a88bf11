"""A synthetic data set as tar shards, as the WebDataset library, `datasets` and others stream them.

    shard-000000.tar    00000000.png         an image, named after its row in the data set
                        00000000.cls         the class asked for, a number in text
                        00000000.logits.npy  the teacher's answer, float16 [K]

The files of a sample stand side by side and share the name before the first point (G. Aizman et
al., "High Performance I/O for Large Scale Deep Learning", 2019). Equal data sets make equal bytes.
"""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthkd.core import files
from synthkd.data.store import Store, png


@dataclass(frozen=True)
class TarShard:
    """One file of a data set."""

    name: str
    count: int  # images
    sha256: str


def write_tars(store: Store, out: Path, wrote: Callable[[TarShard], None]) -> list[TarShard]:
    """Writes a tar for each shard of a data set into a folder, one image in memory at a time, and
    notifies `wrote` of each. Raises OSError that names the file which cannot be written."""
    done: list[TarShard] = []
    first = 0
    for images in store.shards:
        path = out / f"shard-{len(done):06d}.tar"
        with (
            files.naming(path),
            files.created(path) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row, image in enumerate(images, start=first):
                for end, content in _sample(store, row, image):
                    member = tarfile.TarInfo(f"{row:08d}.{end}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        first += len(images)
        done.append(TarShard(path.name, len(images), files.sha256_of(path)))
        wrote(done[-1])
    return done


def _sample(store: Store, row: int, image: NDArray[np.uint8]) -> tuple[tuple[str, bytes], ...]:
    """The files of one image, by their endings."""
    logits = io.BytesIO()
    np.save(logits, store.logits[row].numpy())
    label = str(int(store.labels[row])).encode()
    return ("png", png(image)), ("cls", label), ("logits.npy", logits.getvalue())


def pattern(shards: int) -> str:
    """The files of so many shards, as WebDataset names them in one word.

    >>> pattern(1), pattern(12)
    ('shard-000000.tar', 'shard-{000000..000011}.tar')
    """
    return "shard-000000.tar" if shards == 1 else f"shard-{{000000..{shards - 1:06d}}}.tar"
