"""One student by one, two and four processes: accuracy, kills, images a second.

    python benchmarks/processes.py OUT [--part accuracy|kills|speed] [--images-seen 60000]
    python benchmarks/processes.py OUT --table

The demo's digits by torchrun on CPUs (gloo), the cores divided among the processes, one thread at
least. Rows in OUT that are done are not made again.

accuracy  three seeds each at equal images, on real digits; seed 0 twice: are the bytes the same?
kills     kill -9 of the first and, in turn, the last of --processes at twenty moments, evenly over
          the life of an unbroken run: seconds until the launcher has ended, what is left running,
          and whether a resume ends with the bytes of the unbroken run. A run that had no manifest
          yet is begun anew, in an empty folder
speed     three turns each, and one process with one thread beside: images a second, learned and
          refined, of the rounds alone, and seconds of the whole command
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from rows import MARK, SYNTHKD, Row, Rows, difference, fresh, show, spread, start, table_of
from scaling import milliseconds

from synthkd.core.files import sha256_of
from synthkd.engine.processes import Processes, cores

IMAGES = 60_000  # as many images are refined for them by 1, 2 and 4 processes: a round is never cut
COUNTS, SEEDS, TURNS, MOMENTS = (1, 2, 4), (0, 1, 2), 3, 20
SAVING = ("--run.checkpoint_seconds", "1")  # of runs that are killed
LIMIT = 30.0  # seconds in which the others shall have ended
PATIENCE = 600.0  # after which what does not end is killed


def threads_of(count: int) -> int:
    """Threads of each of so many processes."""
    return cores(Processes(count=count, local_count=count))


def words_of(out: str, images: int, threads: int, seed: int, *more: str) -> tuple[str, ...]:
    """A distillation of the demo's teacher."""
    return (
        *SYNTHKD, "distill", "--run.device", "cpu", "--run.threads", str(threads), "--images-seen",
        str(images), "--seed", str(seed), "--no-report", *more, "--out", out,
    )  # fmt: skip


def distilled(
    out: Path, name: str, *, count: int, threads: int, seed: int, images: int,
    more: Sequence[str] = ("--quiet",),
) -> Row:  # fmt: skip
    """A student by so many processes: its scores and its times. The run directory stays."""
    folder, began = fresh(out, name), time.perf_counter()
    words = words_of(name, images, threads, seed, *more)
    start(words, out / f"{name}.log", processes=count).wait()
    seconds = time.perf_counter() - began
    summary = table_of(folder / "summary.json")
    refined = milliseconds(folder, "refine", "synthesized")
    return {
        "processes": count, "threads": threads, "seed": seed,
        "accuracy": summary["student_accuracy"], "held_out": summary["held_out_agreement"],
        "images": summary["images_seen"], "synthesized": summary["images_synthesized"],
        "seconds": seconds, "in_rounds": summary["seconds"],
        "learned_per_second": 1e3 / milliseconds(folder, "study", "images_seen"),
        "refined_per_second": 1e3 / refined if refined else None,
        "sha256": sha256_of(folder / "student.safetensors"),
    }  # fmt: skip


def once(out: Path, name: str, *, count: int, threads: int, seed: int, images: int) -> Row:
    """The same, and the run directory goes."""
    row = distilled(out, name, count=count, threads=threads, seed=seed, images=images)
    shutil.rmtree(out / name)
    return row


# Kills


class Seen(NamedTuple):
    """A process that is running."""

    parent: int
    rank: int  # −1: none


def marked(mark: str) -> dict[int, Seen]:
    """The running processes that have this mark in their environment, by their ids."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() in words:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
                found[int(folder.name)] = Seen(parent, *(ranks or [-1]))
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found


def ranks_of(launcher: int, mark: str) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    return {
        seen.rank: number for number, seen in marked(mark).items()
        if seen.parent == launcher and seen.rank >= 0
    }  # fmt: skip


def waited(job: subprocess.Popen[bytes]) -> int | None:
    """The exit code, or None of what does not end."""
    try:
        return job.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return None


def kill_all(mark: str) -> int:
    """Kills what is running with a mark, and says how many they were."""
    left = marked(mark)
    for number in left:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return len(left)


def all_there(job: subprocess.Popen[bytes], mark: str, count: int) -> float:
    """Waits until the launcher has started all processes; the time of that."""
    while len(ranks_of(job.pid, mark)) < count:
        if job.poll() is not None:
            raise SystemExit(f"the launcher ended with {job.returncode} before there were {count}")
        time.sleep(0.05)
    return time.perf_counter()


def unbroken(out: Path, name: str, count: int, images: int) -> Row:
    """The run that those which are killed are compared with, and how long its processes live."""
    folder, mark = fresh(out, name), uuid4().hex
    words = words_of(name, images, threads_of(count), 0, "--quiet", *SAVING)
    job = start(words, out / f"{name}.log", processes=count, mark=mark)
    there = all_there(job, mark, count)
    job.wait()
    life = time.perf_counter() - there
    table_of(folder / "summary.json")
    row = {"life": life, "sha256": sha256_of(folder / "student.safetensors")}
    shutil.rmtree(folder)
    return row


def killed(out: Path, name: str, number: int, count: int, images: int, whole: Row) -> Row:
    """A run of which a process is killed at one of the moments, and then gone on with."""
    rank, share = (0, count - 1)[number % 2], (number + 0.5) / MOMENTS
    words = words_of(name, images, threads_of(count), 0, "--quiet", *SAVING)
    while True:
        folder, mark = fresh(out, name), uuid4().hex
        log = out / f"{name}.log"
        job = start(words, log, processes=count, mark=mark)
        moment = all_there(job, mark, count) + share * whole["life"]
        while time.perf_counter() < moment and job.poll() is None:
            time.sleep(0.005)
        victim = ranks_of(job.pid, mark).get(rank)
        if victim is not None:
            break
        job.wait()
        share *= 0.95  # this run was faster, and over
    os.kill(victim, signal.SIGKILL)
    began = time.perf_counter()
    code, ended = waited(job), time.perf_counter() - began
    time.sleep(1)
    left = kill_all(mark)
    metrics = folder / "metrics.jsonl"
    rounds = metrics.read_text().count("\n") if metrics.is_file() else 0
    went_on = "was finished"
    if not (folder / "summary.json").is_file():
        went_on = "resumed" if (folder / "manifest.json").is_file() else "begun anew"
        if went_on == "resumed":
            words = (*SYNTHKD, "distill", "--resume", name, "--quiet", "--no-report")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        waited(start(words, log, processes=count, mark=mark))
        kill_all(mark)
    student = folder / "student.safetensors"
    equal = student.is_file() and sha256_of(student) == whole["sha256"]
    if equal:  # else it is kept, to be looked at
        shutil.rmtree(folder)
    return {
        "processes": count, "rank": rank, "share": share, "rounds": rounds, "ended": ended,
        "code": code, "left": left, "went_on": went_on, "equal": equal,
    }  # fmt: skip


# What is asked for


def accuracy(rows: Rows, out: Path, given: argparse.Namespace) -> None:
    """Seeds, and the first of them twice."""
    for seed, again in [(seed, "") for seed in SEEDS] + [(SEEDS[0], "-again")]:
        for count in COUNTS:
            name = f"accuracy-{given.images_seen}-p{count}-s{seed}{again}"
            rows.make(name, partial(once, out, name, count=count, threads=threads_of(count),
                                    seed=seed, images=given.images_seen))  # fmt: skip


def kills(rows: Rows, out: Path, given: argparse.Namespace) -> None:
    """One unbroken run, and one for every moment."""
    count, images = given.processes, given.images_seen
    name = f"kills-{images}-p{count}"
    whole = rows.make(f"whole-{name}", partial(unbroken, out, f"whole-{name}", count, images))
    for number in range(MOMENTS):
        one = f"{name}-{number:02d}"
        rows.make(one, partial(killed, out, one, number, count, images, whole))


def settings() -> list[tuple[int, int]]:
    """Processes and threads of each: the cores divided, and a single thread."""
    return list(dict.fromkeys([(1, 1), *((count, threads_of(count)) for count in COUNTS)]))


def speed(rows: Rows, out: Path, given: argparse.Namespace) -> None:
    """By turns, so that what else the machine does falls on all."""
    for turn in range(TURNS):
        for count, threads in settings():
            name = f"speed-{given.images_seen}-p{count}x{threads}-{turn}"
            rows.make(name, partial(once, out, name, count=count, threads=threads, seed=0,
                                    images=given.images_seen))  # fmt: skip


def values(some: Sequence[Row], key: str, scale: float = 1.0) -> list[float]:
    """One value of each row, where it is known."""
    return [scale * row[key] for row in some if row[key] is not None]


def accuracy_table(rows: Rows, images: int) -> None:
    """A line for each number of processes."""
    seeds = {
        count: [row for seed in SEEDS for row in rows.like(f"accuracy-{images}-p{count}-s{seed}")]
        for count in COUNTS
    }
    firsts = {
        count: [row for row in some if not row["name"].endswith("-again")]
        for count, some in seeds.items()
    }
    one = values(firsts[1], "accuracy", 100)
    lines = []
    for count, some in firsts.items():
        if some:
            twice = [row["sha256"] for row in seeds[count] if row["seed"] == SEEDS[0]]
            found = values(some, "accuracy", 100)
            lines.append((
                count, some[0]["threads"], spread(found, 2),
                difference(found, one) if count > 1 else "", spread(values(some, "held_out", 100)),
                f"{some[0]['images']:,}", f"{some[0]['synthesized']:,}",
                "-" if len(twice) < 2 else "yes" if len(set(twice)) == 1 else "NO", len(some),
            ))  # fmt: skip
    show("processes | threads each | accuracy % | less that of one, ± its error | held-out "
         "agreement % | images learned | synthesized | same bytes twice | n", lines)  # fmt: skip


def kills_table(rows: Rows, images: int) -> None:
    """A line for the first, the last, and all processes."""
    every, lines = rows.like(f"kills-{images}-p"), []
    for count in sorted({row["processes"] for row in every}):
        of_count = [row for row in every if row["processes"] == count]
        first = [row for row in of_count if row["rank"] == 0]
        last = [row for row in of_count if row["rank"] > 0]
        for title, some in (("the first", first), ("the last", last), ("all", of_count)):
            if some:
                ended = values(some, "ended")
                ways = [row["went_on"] for row in some]
                lines.append((
                    count, title, spread(ended), f"{max(ended):.1f}",
                    sum(row["code"] is None or row["ended"] > LIMIT for row in some),
                    sum(row["left"] for row in some),
                    ", ".join(sorted({str(row["code"]) for row in some})),
                    ", ".join(f"{ways.count(way)} {way}" for way in dict.fromkeys(ways)),
                    f"{sum(row['equal'] for row in some)} of {len(some)}", len(some),
                ))  # fmt: skip
    show(f"processes | killed | s until the launcher had ended | longest | over {LIMIT:.0f} s | "
         "processes left after 1 s | exit codes | went on | same bytes | n", lines)  # fmt: skip


def speed_table(rows: Rows, images: int) -> None:
    """A line for each number of processes and threads."""
    lines = []
    for count, threads in settings():
        if some := rows.like(f"speed-{images}-p{count}x{threads}-"):
            whole = values(some, "seconds")
            lines.append((
                count, threads, spread(values(some, "learned_per_second"), 0),
                spread(values(some, "refined_per_second"), 0), spread(whole),
                f"{some[0]['images'] / statistics.fmean(whole):.0f}",
                len({row["sha256"] for row in some}), len(some),
            ))  # fmt: skip
    show(f"processes | threads each, of {cores(Processes())} cores | images/s learned | images/s "
         "refined | s of the command | images/s of it | different students | n", lines)  # fmt: skip


PARTS = {
    "accuracy": (accuracy, accuracy_table), "kills": (kills, kills_table),
    "speed": (speed, speed_table),
}  # fmt: skip


def main() -> None:
    """Makes what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--images-seen", type=int, default=IMAGES)
    parser.add_argument("--processes", type=int, default=2, help="of which one is killed")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.processes < 2:
        parser.error("--processes: 2 or more")
    out = given.out.resolve()
    rows = Rows(out)
    parts = [PARTS[given.part]] if given.part else list(PARTS.values())
    for make, _ in parts if not given.table else ():
        make(rows, out, given)
    for _, table in parts:
        table(rows, given.images_seen)


if __name__ == "__main__":
    main()
