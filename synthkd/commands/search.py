"""`synthkd search`: the best student for this machine, by many short trainings and a long one."""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synthkd.commands.display import Display
from synthkd.commands.report import write as write_report
from synthkd.core.errors import InputError
from synthkd.core.files import free_name
from synthkd.jobs.search import Search
from synthkd.recipe import Recipe


def run(
    recipe: Recipe, *, limit: float | None = None, sampler: str = "nsga2", quiet: bool = False,
    as_json: bool = False, given: Collection[str] = (), started: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Searches, and returns the summary of the run of the chosen student, with the front."""
    if recipe.budget.images:
        raise InputError("a search has its budget in --minutes")
    display = Display(quiet=quiet or as_json)
    out = Path(recipe.run.out or free_name(Path("search")))
    job = Search(
        recipe, out, limit=recipe.student.max_latency_ms if limit is None else limit,
        sampler=sampler, report=display, started=started, by_force=True,
    )  # fmt: skip
    found = job.run()
    write_report((found.result.run,))
    report = write_report((found.out,))
    rows = [
        (t.student, f"{t.agreement:.2%}", f"{t.milliseconds:.3g}", f"{t.parameters:,}",
         f"{t.images:,}", "chosen" if t == found.chosen
         else "too slow when timed for longer" if t.student in found.longer else "")
        for t in found.front
    ]  # fmt: skip
    header = ("student", "agreement, held-out synthetic", "ms", "parameters", "images", "")
    display.findings(found.result.findings)
    display.table(f"the front of {len(found.trials)} trials", header, rows)
    summary = found.result.summary
    accuracy = summary["student_accuracy"]
    told = "not scored (no --val-data)" if accuracy is None else f"{accuracy:.2%}"
    late = job.limit is not None and found.milliseconds > job.limit
    display.say(
        f"{found.chosen.student}: accuracy {told}, {found.milliseconds:.3g} ms measured again"
        f"{f', above the limit of {job.limit:g}' if late else ''}; {found.result.run}; {report}"
    )
    result = summary | {
        "front": [asdict(t) for t in found.front], "milliseconds": found.milliseconds,
        "limit": job.limit,
    }  # fmt: skip
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return result
