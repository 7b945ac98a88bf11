"""`synthkd distill`: a small student from a frozen teacher."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthkd import recipe as recipes
from synthkd.commands.display import Display
from synthkd.commands.report import write as write_report
from synthkd.core.words import estimate_in_words
from synthkd.engine.processes import Processes, from_environment
from synthkd.jobs.distillation import Distillation, Result, Unscored
from synthkd.jobs.evidence import Sealed
from synthkd.proof import hashes
from synthkd.recipe import Recipe
from synthkd.runs.directory import Run
from synthkd.synthesis.diffusion.diffusers_io import offline


def run(
    recipe: Recipe, *, tensorboard: bool = False, no_report: bool = False, dry_run: bool = False,
    quiet: bool = False, as_json: bool = False, given: Collection[str] = (),
    started: float | None = None, sealed: Sealed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Distils a student as the recipe says, in a new run directory, with a report at the end.
    Returns the summary, and with `as_json` prints it and nothing else. `sealed` is the record of
    the seal of this process. Several processes that were started together learn one student; the
    first of them prints."""
    processes = from_environment(recipe.run.device)
    quiet = quiet or as_json
    display = Display(quiet=quiet or not processes.leads)
    with offline(dry_run):
        job = Distillation(
            recipe, report=display, given=given, started=started, by_force=True,
            tensorboard=tensorboard, sealed=sealed, processes=processes,
        )  # fmt: skip
    if not quiet:
        job.expect()
    if dry_run:
        return _planned(job, processes)
    return _finished(job, None, display, as_json=as_json, report=not no_report)


def resume(
    path: Path,
    *,
    trust_code: bool = False,
    anyway: bool = False,
    tensorboard: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    no_report: bool = False,
    started: float | None = None,
    sealed: Sealed | None = None,
) -> dict[str, Any]:
    """Goes on with an interrupted run from its newest complete checkpoint.

    Trust in code is not kept in the run directory: it is given again, as is `tensorboard`.
    """
    _, recipe = Run.resume(path)
    recipe = recipes.trusted(recipe, trust_code=trust_code, anyway=anyway)
    processes = from_environment(recipe.run.device)
    display = Display(quiet=quiet or as_json or not processes.leads)
    with offline(dry_run):
        job = Distillation(
            recipe, report=display, started=started, by_force=True, tensorboard=tensorboard,
            sealed=sealed, processes=processes,
        )  # fmt: skip
    if dry_run:
        return _planned(job, processes)
    return _finished(job, path, display, as_json=as_json, report=not no_report)


def _planned(job: Distillation, processes: Processes) -> dict[str, Any]:
    """Prints the plan of a job that is not run."""
    if processes.leads:
        print(recipes.to_toml(job.recipe), end="")
    processes.wait()
    processes.close()
    return {}


def _finished(
    job: Distillation, path: Path | None, display: Display, *, as_json: bool, report: bool
) -> dict[str, Any]:
    """Runs a job in a new directory, or goes on in that of `path`, and shows its result."""
    processes = job.processes
    problem: Unscored | None = None
    try:
        result = job.start() if path is None else job.resume(path)
    except Unscored as error:
        problem, result = error, error.result
    if processes.leads:
        result, said = _reported(result) if report else (result, "")
        _show(result, display)
        if said:
            display.say(said)
        if as_json and not problem:
            print(json.dumps(result.summary, indent=2, ensure_ascii=False))
    processes.wait()  # who ends first, and not with 0, has the launcher end the others
    processes.close()
    if problem:
        raise problem
    return result.summary


def _reported(result: Result) -> tuple[Result, str]:
    """Writes report.html, which the run's hashes then cover, and what is said of it; the run is
    finished, and stays so where that fails."""
    try:
        path = write_report((result.run,))
        return replace(result, digest=hashes.cover(result.run, path.name)), f"report: {path}"
    except OSError as error:
        return result, f"no report: {error.strerror or error}; see synthkd report"


def _binary(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """AUROC and the like, where the classes are a yes or no."""
    ours, theirs = summary.get("student_binary"), summary.get("teacher_binary")
    if not ours or not theirs:
        return []
    names = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity",
             "f1": "F1"}  # fmt: skip
    text = [
        f"{title} {ours[name]:.3f} (teacher {theirs[name]:.3f})"
        for name, title in names.items()
        if ours[name] is not None and theirs[name] is not None
    ]
    return [("one class against the rest", ", ".join(text))]


def _show(result: Result, display: Display) -> None:
    """The result: what speaks against it first. Beside every share stands a constant's."""
    summary, path, findings = result.summary, result.run, result.findings

    def percent(value: float | None) -> str:
        return "not scored (no --val-data)" if value is None else f"{value:.2%}"

    parts = ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items())
    scored = (
        f" on {summary['val_images']:,} images of {summary['val_data']}"
        if "val_data" in summary
        else ""
    )
    constant = summary.get("constant_accuracy")
    against = "" if constant is None else f" (a constant classifier: {constant:.2%})"
    rows = [
        ("student accuracy", percent(summary["student_accuracy"]) + scored + against),
        ("teacher accuracy", percent(summary["teacher_accuracy"])),
        *_top_five(summary),
        *_binary(summary),
        ("agreement with the teacher", percent(summary["agreement"])),
        (
            "the same, estimated without data",
            estimate_in_words(summary["estimated_agreement"], summary["not_estimated"]),
        ),
        (
            f"balanced agreement, held-out {summary['held_out']}",
            _balance(summary["held_out_balance"]) + f" ({summary['weights']} weights kept)",
        ),
        (
            "parameters",
            f"{summary['student_parameters']:,} of {summary['teacher_parameters']:,}"
            if summary["teacher_parameters"]
            else f"{summary['student_parameters']:,}, the teacher's are unknown",
        ),
        *_widths(summary),
        ("images seen", f"{summary['images_seen']:,}, {summary['synthetic_share']:.1%} synthetic"),
        ("teacher asked", f"{summary['teacher_queries']:,} images ({summary['teacher_access']})"),
        (
            "real images read",
            f"{summary['real_images_read']:,} "
            f"(level {summary['promise_level']}, {summary['promise']})",
        ),
        ("proof of it", f"level {summary['proof_level']}, {summary['proof']}"),
        ("seconds", f"{summary['wall_seconds']:.0f}: {parts}"),
        ("peak memory", f"{summary['peak_memory_mb']:,.0f} MB"),
        ("student", str(path / "student.safetensors")),
        ("digest of the run", result.digest),
    ]
    display.findings(findings)
    display.table("result", ("what", "value"), rows)


def _top_five(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Top-5 scores, of many classes."""
    top = summary.get("top5")
    if not top:
        return []
    rows = [("top-5 agreement", f"{top['agreement']:.2%}")]
    if top["student"] is not None:
        told = f"{top['student']:.2%}, the teacher's {top['teacher']:.2%}"
        rows.insert(0, ("top-5 accuracy", f"{told} (five constant classes: {top['constant']:.2%})"))
    return rows


def _widths(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A slimmable student at each of its widths."""
    rows = []
    for width, told in (summary.get("widths") or {}).items():
        scored = "" if told["student_accuracy"] is None else f"{told['student_accuracy']:.2%}, "
        rows.append((
            f"at width {width}",
            f"{scored}held-out agreement {told['held_out_agreement']:.2%}, "
            f"{told['parameters']:,} parameters",
        ))  # fmt: skip
    return rows


def _balance(balance: Mapping[str, Any]) -> str:
    """Balanced agreement in words, beside what a constant classifier would get."""
    if balance["balanced_agreement"] is None:
        return "unknown: no image was held out"
    worst, share = balance["worst_class"], balance["balanced_agreement"]
    return (
        f"{share:.2%}; a constant classifier {balance['constant_classifier']:.2%}; "
        f"worst class {worst['name']}: {worst['agreement']:.1%} of {worst['images']:,}"
    )
