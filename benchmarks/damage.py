"""Is every damage to a run found and named? Bits flipped in each file, and six other ways.

    python benchmarks/damage.py [RUN] [--places 50] [--seed 0]

Works on a copy of RUN (none given: a run of the demo with 20,000 images, made here). In each file,
hashes.json too, one bit is flipped at a time, at so many places: the first and the last byte, the
others by chance. Each file is then dropped, exchanged with another, cut by a byte, made longer by
one, replaced by a link to what it was, and one is added beside it. Damage is found where `verify`,
given the digest that the run printed, has a finding that names the file (one of the two, where they
are exchanged), and nothing is found once it is undone. Prints a line for each way, and how long a
gigabyte takes.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rows import command, show

from synthkd.core.errors import InputError
from synthkd.jobs.verification import verify
from synthkd.proof import hashes

GIGABYTE = 10**9


def named(run: Path, digest: str, *paths: Path) -> bool:
    """Whether verify says that something is wrong with one of these files. A manifest that cannot
    be read is refused in a line, which is as good; a change of hashes.json changes the digest."""
    try:
        seen = [finding.seen for finding in verify(run, digest=digest).findings]
    except InputError as error:
        seen = [str(error)]
    found = any(path.name in line for line in seen for path in paths)
    if not found:
        print(f"not named: {paths[0].name}; said: {seen}", flush=True)
    return found


def flipped(path: Path, places: int, rng: random.Random, found: Callable[[], bool]) -> list[bool]:
    """One bit at a time, at so many places."""
    data = path.read_bytes()
    inner = [rng.randrange(len(data)) for _ in range(places - 2)]
    answers = []
    for place in [0, len(data) - 1, *inner] if data else []:
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        answers.append(found())
    path.write_bytes(data)
    return answers


def damaged(run: Path, path: Path, other: Path, digest: str, aside: Path) -> dict[str, bool]:
    """The other ways, each undone again."""
    data = path.read_bytes()
    answers = {}
    path.unlink()
    answers["dropped"] = named(run, digest, path)
    shutil.copyfile(other, path)
    others = other.read_bytes()
    other.write_bytes(data)
    answers["exchanged"] = named(run, digest, path, other)
    other.write_bytes(others)
    path.write_bytes(data[:-1])
    answers["cut by a byte"] = named(run, digest, path)
    path.write_bytes(data + b"\0")
    answers["longer by a byte"] = named(run, digest, path)
    path.unlink()
    aside.write_bytes(data)
    path.symlink_to(aside)
    answers["replaced by a link"] = named(run, digest, path)
    path.unlink()
    path.write_bytes(data)
    added = path.with_name(f"another-{path.name}")
    added.write_bytes(data)
    answers["one added beside it"] = named(run, digest, added)
    added.unlink()
    return answers


def main() -> None:
    """Damages a copy in every way, and counts what is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--places", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if given.run is None:
            command("distill", "--images-seen", 20_000, "--quiet", "--out", run)
        else:
            shutil.copytree(given.run, run, symlinks=True)
        digest = hashes.check(run).digest
        began = time.perf_counter()
        before = verify(run, digest=digest)
        seconds = time.perf_counter() - began
        assert not before.findings, before.findings
        paths = [path for path in sorted(run.rglob("*")) if path.is_file()]
        answers: dict[str, list[bool]] = {"a bit flipped": []}
        for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
            answers["a bit flipped"] += flipped(
                path, given.places, rng, lambda path=path: named(run, digest, path)
            )
            ways = damaged(run, path, other, digest, Path(folder) / "aside")
            for way, found in ways.items():
                answers.setdefault(way, []).append(found)
            assert not verify(run, digest=digest).findings, path
        show("damage | times | found and named", (
            (way, len(found), sum(found)) for way, found in answers.items()
        ))  # fmt: skip
        print(f"\n{len(paths)} files, {before.checked.bytes:,} bytes: {seconds:.2f} s")
        large = run / "more"
        with large.open("wb") as file:
            file.truncate(GIGABYTE)
        hashes.cover(run, large.name)
        began = time.perf_counter()
        verify(run)
        print(f"with a file of 10⁹ bytes: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
