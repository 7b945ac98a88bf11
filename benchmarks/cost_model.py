"""Predicted against measured seconds: several processes, more images, shards by several workers.

    python benchmarks/cost_model.py OUT [--images-seen 60000] [--count 4000]
    python benchmarks/cost_model.py OUT --table

Three runs by one process with one thread tell what a round of each stage takes. From that, and from
the seconds of an exchange of gradients that is measured apart, `engine.estimate.shared` and
`predict` say what other runs will take, from their first round to their last. Beside it stands what
each of these runs expected itself, by trying its parts (`engine.estimate.estimate`).

Two forms are not the model's but of this file. More threads than cores: each process is slower by
their ratio before `shared` divides. Shards, from a run by one worker: W workers need the seconds of
⌈shards / W⌉ of the shards, and for all else as long as one.

By turns, three of each, on the demo's digits; rows in OUT that are done are not made again.
"""

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from processes import SEEDS, distilled, values
from rows import Row, Rows, fresh, show, spread, start, table_of
from shards import COUNT, SHARDS, generated

from synthkd.core.files import write_json
from synthkd.engine.build import build
from synthkd.engine.estimate import RoundCost, predict, shared
from synthkd.engine.processes import Processes, cores, from_environment
from synthkd.engine.progress import budget_of
from synthkd.recipe import BudgetTable, Recipe, Stage, read_toml, validated

IMAGES, LONGER = 60_000, 2.5
EXCHANGES = 300
WORKERS = 2
GOAL = 20.0  # per cent


class Configuration(NamedTuple):
    """So many processes of one thread, at so many times the images, and by which form."""

    count: int
    times: float
    form: str


BASE = Configuration(1, 1, "measured: what the others follow from")
CONFIGURATIONS = (
    BASE, Configuration(1, LONGER, "predict"), Configuration(2, 1, "shared"),
    Configuration(2, LONGER, "shared"), Configuration(4, 1, "shared, slower by threads / cores"),
)  # fmt: skip


def costs_of(folder: Path, stages: Sequence[Stage]) -> dict[str, RoundCost]:
    """What a whole round of each stage took and gave in a run, of which no stage both makes images
    and teaches."""
    laps = [{"seconds": 0.0, "synthesized": 0, "images_seen": 0}]
    laps += map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = {}
    for stage in stages:
        own = [
            tuple(b[key] - a[key] for key in ("seconds", "synthesized", "images_seen"))
            for a, b in pairwise(laps) if b.get("stage") == stage.name
        ]  # fmt: skip
        if not own:
            raise SystemExit(f"{folder}: no round of stage {stage.name}: more --images-seen")
        seconds, made, seen = (sum(column) for column in zip(*own, strict=True))
        if stage.student_steps:  # the last round may be a part of one
            whole = max(one[2] for one in own)
            cost = RoundCost(0.0, 0.0, seconds * whole / seen, seen=whole)
        else:
            trained = stage.synthesis_steps * stage.synthesis_batch
            cost = RoundCost(seconds / len(own), 0.0, 0.0, made / len(own), trained)
        found[stage.name] = cost
    return found


def mean_cost(some: Sequence[Mapping[str, float]]) -> RoundCost:
    """The mean of the same round's costs in several runs."""
    names = [field.name for field in fields(RoundCost)]
    return RoundCost(**{name: statistics.fmean(one[name] for one in some) for name in names})


def slowed(cost: RoundCost, factor: float) -> RoundCost:
    """A round that takes so many times as long."""
    return replace(
        cost, synthesis=cost.synthesis * factor, labelling=cost.labelling * factor,
        student=cost.student * factor,
    )  # fmt: skip


def predicted(
    stages: Sequence[Stage], costs: Mapping[str, RoundCost], images: int, *, count: int,
    repeats: int, exchange: float, whole: int,
) -> float:  # fmt: skip
    """Seconds of all rounds by `count` processes of one thread, on `whole` cores."""
    factor = max(1.0, count / whole)
    several = {
        stage.name: shared(
            slowed(costs[stage.name], factor), count, steps=stage.student_steps * repeats,
            exchange=exchange,
        )
        for stage in stages
    }  # fmt: skip
    budget = budget_of(BudgetTable(images=images), stages)
    return sum(stage.seconds for stage in predict(stages, budget, several))


def by_workers(seconds: float, in_shards: float, shards: int, workers: int) -> float:
    """Seconds of a data set by so many workers, if one takes `seconds`, of which `in_shards` for
    its shards."""
    rounds = math.ceil(shards / workers)
    return seconds - in_shards + in_shards * rounds / shards


def measured(out: Path, name: str, *, count: int, seed: int, images: int) -> Row:
    """A run that says what it expects, what its rounds took, and what each of them cost."""
    row = distilled(out, name, count=count, threads=1, seed=seed, images=images, more=())
    folder = out / name
    manifest, recipe = table_of(folder / "manifest.json"), read_toml(folder / "recipe.toml")
    stages = [Stage.model_validate_json(json.dumps(stage)) for stage in manifest["stages"]]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    costs = costs_of(folder, stages)
    shutil.rmtree(folder)
    return row | {
        "rounds": last["round"], "rounds_seconds": last["seconds"],
        "expected": sum(stage["seconds"] for stage in manifest["estimate"]["stages"]),
        "costs": {stage: asdict(cost) for stage, cost in costs.items()},
        "stages": manifest["stages"], "repeats": validated(recipe).training.repeats,
    }  # fmt: skip


def exchange(path: Path) -> None:
    """Writes how long an exchange of the student's gradients takes: for a process of several."""
    processes = from_environment("cpu")
    recipe = Recipe.of({"run.device": "cpu", "run.threads": 1})
    lab = build(recipe, data=False, processes=processes)
    assert lab.shipped is not None
    gradients = [torch.zeros_like(p) for p in lab.shipped.student.parameters()]
    for _ in range(EXCHANGES // 10):
        processes.mean_(gradients)
    processes.wait()
    began = time.perf_counter()
    for _ in range(EXCHANGES):
        processes.mean_(gradients)
    seconds = (time.perf_counter() - began) / EXCHANGES
    if processes.leads:
        write_json(path, {"seconds": seconds, "numbers": sum(g.numel() for g in gradients)})
    processes.wait()
    processes.close()


def exchanged(out: Path, name: str, count: int) -> Row:
    """The same, in so many processes."""
    path = fresh(out, name).with_suffix(".json")
    path.unlink(missing_ok=True)
    words = (__file__, str(out), "--exchange", str(path))
    start(words, out / f"{name}.log", processes=count).wait()
    return {"processes": count, **table_of(path)}


def name_of(one: Configuration, images: int) -> str:
    """The beginning of the names of its rows."""
    return f"cost-{round(one.times * images)}-p{one.count}-"


def make(rows: Rows, out: Path, given: argparse.Namespace) -> None:
    """All that is missing."""
    for count in sorted({one.count for one in CONFIGURATIONS} - {1}):
        name = f"exchange-p{count}"
        rows.make(name, partial(exchanged, out, name, count))
    for seed in SEEDS:
        for one in CONFIGURATIONS:
            name = f"{name_of(one, given.images_seen)}s{seed}"
            rows.make(name, partial(measured, out, name, count=one.count, seed=seed,
                                    images=round(one.times * given.images_seen)))  # fmt: skip
        for workers in (1, WORKERS):
            name = f"shards-{given.count}-w{workers}-s{seed}"

            def one_set(name: str = name, workers: int = workers, seed: int = seed) -> Row:
                row = generated(out, name, count=given.count, seed=seed, shards=SHARDS,
                                workers=workers)  # fmt: skip
                shutil.rmtree(out / name)
                return row

            rows.make(name, one_set)


def line(title: str, form: str, said: float, some: Sequence[float]) -> list[str]:
    """Cells of a configuration: prediction, measurement, error."""
    mean = statistics.fmean(some)
    return [title, form, f"{said:.1f}", spread(some), f"{100 * (said / mean - 1):+.0f}"]


def tables(rows: Rows, images: int, count: int) -> None:
    """What there is so far."""
    base, lines, whole = rows.like(name_of(BASE, images)), [], cores(Processes())
    if base:
        stages = [Stage.model_validate_json(json.dumps(one)) for one in base[0]["stages"]]
        costs = {stage.name: mean_cost([row["costs"][stage.name] for row in base])
                 for stage in stages}  # fmt: skip
    for one in CONFIGURATIONS if base else ():
        some = rows.like(name_of(one, images))
        if not some:
            continue
        told = rows.by_name.get(f"exchange-p{one.count}", {"seconds": 0.0})
        said = predicted(
            stages, costs, round(one.times * images), count=one.count, whole=whole,
            repeats=base[0]["repeats"], exchange=told["seconds"],
        )  # fmt: skip
        seconds, own = values(some, "rounds_seconds"), values(some, "expected")
        off = 100 * (statistics.fmean(own) / statistics.fmean(seconds) - 1)
        title = f"{one.count} of one thread, {round(one.times * images):,} images"
        cells = line(title, one.form, said, seconds)
        lines.append([*cells, spread(own), f"{off:+.0f}", str(len(some))])
    alone, several = (rows.like(f"shards-{count}-w{workers}-") for workers in (1, WORKERS))
    if alone and several:
        said = statistics.fmean(
            by_workers(row["seconds"], row["shard_seconds"], SHARDS, WORKERS) for row in alone
        )
        title = f"{count:,} images in {SHARDS} shards by {WORKERS} workers"
        cells = line(title, "shards: whole turns of the workers", said, values(several, "seconds"))
        lines.append([*cells, "-", "-", str(len(several))])
    show(f"processes | form | predicted s | measured s | error % (goal: {GOAL:.0f}) | expected by "
         "the run itself s | its error % | n", lines)  # fmt: skip
    for row in rows.like("exchange-"):
        print(f"\nAn exchange of {row['numbers']:,} gradients by {row['processes']} processes: "
              f"{1e3 * row['seconds']:.2f} ms.")  # fmt: skip


def main() -> None:
    """Makes what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--images-seen", type=int, default=IMAGES)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--exchange", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.exchange:
        exchange(given.exchange)
        return
    out = given.out.resolve()
    rows = Rows(out)
    if not given.table:
        make(rows, out, given)
    tables(rows, given.images_seen, given.count)


if __name__ == "__main__":
    main()
