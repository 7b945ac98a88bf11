"""A data set in eight shards by four workers, of which two are killed: bytes, and what it teaches.

    python benchmarks/shards.py OUT [--count 4000] [--images-seen 60000]
    python benchmarks/shards.py OUT --table

For each of three seeds: a data set by one process without shards, one in shards by four workers,
and the same with two workers killed (SIGKILL), each in the middle of a shard: the first when one
shard is finished, the second when half of them are. Where the two that are left leave a shard
undone, `generate --resume` finishes the set, and the table says so. Two sets are equal if all their
files are, byte for byte, but for manifest, hashes and card, which tell of times. Then a student
learns from the set by one process, and one from that in shards. All of one thread, on the demo's
digits. Rows in OUT that are done are not made again.
"""

import argparse
import hashlib
import re
import subprocess
import time
from functools import partial
from pathlib import Path

from processes import SAVING, SEEDS, distilled, values
from rows import SYNTHKD, Row, Rows, difference, fresh, show, spread, start, table_of

COUNT, IMAGES = 4000, 60_000
SHARDS, WORKERS = 8, 4
KILLED_AFTER = (1, SHARDS // 2)  # shards are finished
IN_THE_MIDDLE = 0.5  # seconds of a shard
TELLING = ("manifest.json", "hashes.json", "README.md")  # of times and places
KINDS = ("alone", "shards", "killed")
TITLES = {"alone": "one process", "shards": "shards", "killed": "shards, two workers killed"}


def digest_of(folder: Path) -> str:
    """SHA-256 over names and bytes of the files of a data set."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in TELLING:
            content = path.read_bytes()
            found.update(f"{path.relative_to(folder)}\n{len(content)}\n".encode() + content)
    return found.hexdigest()


def words_of(name: str, count: int, seed: int, *more: str) -> tuple[str, ...]:
    """A data set for the demo's teacher."""
    return (
        *SYNTHKD, "generate", "--run.device", "cpu", "--run.threads", "1", *SAVING, "--count",
        str(count), "--seed", str(seed), *more, "--out", name,
    )  # fmt: skip


def generated(
    out: Path, name: str, *, count: int, seed: int, shards: int = 0, workers: int = 1,
    killed: bool = False,
) -> Row:  # fmt: skip
    """A data set, in so many shards (0: in none) by so many workers. It stays."""
    folder, began = fresh(out, name), time.perf_counter()
    words = words_of(name, count, seed, *(("--shards", str(shards)) if shards else ("--quiet",)))
    logs = [out / f"{name}.{number}.log" for number in range(workers)]
    jobs = [start(words, log) for log in logs]
    victims = list(zip(jobs, logs, KILLED_AFTER, strict=False)) if killed else []
    try:
        interrupted = [interrupt(job, log, folder, after) for job, log, after in victims]
        for job in jobs:
            job.wait()
    finally:  # none goes on where this ends
        for job in jobs:
            job.kill()
    there = (folder / "manifest.json").is_file()
    if shards and not there:
        start((*SYNTHKD, "generate", "--resume", name, "--quiet"), out / f"{name}.log").wait()
    seconds = time.perf_counter() - began
    manifest = table_of(folder / "manifest.json")
    return {
        "seed": seed, "shards": shards, "workers": workers, "seconds": seconds,
        "shard_seconds": manifest["wall_seconds"], "images": manifest["count"],
        "agreed": manifest["agreed_share"], "interrupted": interrupted,
        "resumed": not there, "codes": [job.returncode for job in jobs],
        "sha256": digest_of(folder),
    }  # fmt: skip


def interrupt(job: subprocess.Popen[bytes], log: Path, folder: Path, after: int) -> int:
    """Kills a worker in the middle of a shard, once so many are finished; returns which."""
    shard, began = "", time.perf_counter()
    while True:
        if job.poll() is not None:
            raise SystemExit(f"{log}: a worker ended before it could be killed: more --count")
        _, *told = re.split(r"shard (\d+):", log.read_text(errors="replace"))
        now = told[-2] if told else ""
        if now != shard:
            shard, began = now, time.perf_counter()
        finished = [int(path.parent.name) for path in folder.glob("shards/*/manifest.json")]
        waited = time.perf_counter() - began > IN_THE_MIDDLE
        if waited and len(finished) >= after and shard and int(shard) not in finished:
            job.kill()
            job.wait()
            return int(shard)
        time.sleep(0.01)


def student(out: Path, name: str, set_: str, seed: int, images: int) -> Row:
    """One that learned from a data set."""
    more = ("--synthetic", set_, "--quiet")
    return distilled(out, name, count=1, threads=1, seed=seed, images=images, more=more)


def make(rows: Rows, out: Path, given: argparse.Namespace) -> None:
    """Sets and students of all seeds."""
    for seed in SEEDS:
        for kind in KINDS:
            name = f"set-{given.count}-{kind}-s{seed}"
            several = {} if kind == "alone" else {"shards": SHARDS, "workers": WORKERS}
            rows.make(name, partial(generated, out, name, count=given.count, seed=seed,
                                    killed=kind == "killed", **several))  # fmt: skip
            if kind != "shards":  # it is that of two killed
                own = f"student-{given.count}-{given.images_seen}-{kind}-s{seed}"
                rows.make(own, partial(student, out, own, name, seed, given.images_seen))


def tables(rows: Rows, count: int, images: int) -> None:
    """What there is so far."""
    known = {kind: rows.like(f"set-{count}-{kind}-s") for kind in KINDS}
    whole = {row["seed"]: row["sha256"] for row in known["shards"]}
    lines = []
    for kind, some in known.items():
        if some:
            equal = [row["sha256"] == whole.get(row["seed"]) for row in some]
            lines.append((
                TITLES[kind], some[0]["shards"] or "-", some[0]["workers"],
                f"{some[0]['images']:,}", spread(values(some, "agreed", 100)),
                spread(values(some, "seconds")), sum(len(row["interrupted"]) for row in some),
                sum(row["resumed"] for row in some),
                f"{sum(equal)} of {len(equal)}" if kind == "killed" else "", len(some),
            ))  # fmt: skip
    show("data set | shards | workers | images | agreed % | s | shards interrupted | needed a "
         "resume | the unbroken one's bytes | n", lines)  # fmt: skip
    learned = {
        kind: values(rows.like(f"student-{count}-{images}-{kind}-s"), "accuracy", 100)
        for kind in ("alone", "killed")
    }
    show("learned from a set by | accuracy % | less that by one process, ± its error | n", [
        (TITLES[kind], spread(some, 2), difference(some, learned["alone"]) if kind == "killed"
         else "", len(some)) for kind, some in learned.items() if some
    ])  # fmt: skip


def main() -> None:
    """Makes what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--images-seen", type=int, default=IMAGES)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    rows = Rows(out)
    if not given.table:
        make(rows, out, given)
    tables(rows, given.count, given.images_seen)


if __name__ == "__main__":
    main()
