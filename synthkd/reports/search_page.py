"""The report of a search."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from synthkd.core.errors import plain
from synthkd.core.privacy import statement
from synthkd.core.words import counted
from synthkd.reports.page import MOST_ROWS, count, image, percent, rendered, short, table
from synthkd.reports.record import Picture, RunRecord, is_run, number, read_run
from synthkd.reports.run_page import figures_of, findings_of, lead_of, promise_of
from synthkd.reports.runs_page import HEADER, row_of
from synthkd.reports.search import STUDENT, SearchRecord, Trial, draw, read_search


def search_report(folder: Path) -> str:
    """The report of a search: what was chosen, the front, every candidate, and the run of the
    student. Raises InputError."""
    found = read_search(folder)
    student = read_run(folder / STUDENT, pictures=False) if is_run(folder / STUDENT) else None
    header = ("student", "agreement, held-out synthetic", "ms", "parameters", "images learned",
              "seconds", "generation", "")  # fmt: skip
    blocks: list[dict[str, Any]] = []
    if found.front:
        picture = draw(found.trials, found.front, found.chosen, found.limit)
        with Image.open(io.BytesIO(picture)) as opened:
            size = opened.size
        blocks.append({
            "title": "The front",
            "lines": [
                "Those that no other beats in both aims, each by its last training. The "
                "agreement is one on synthetic images, after a short training: it ranks "
                "candidates, and says little of real images.",
                *([f"Times: {found.conditions}."] if found.conditions else []),
            ],
            "images": [image(Picture("front", picture, *size, {}), "", "")],
            "tables": [table(header, [_candidate(t, found) for t in found.front[:MOST_ROWS]])],
        })  # fmt: skip
    if student is not None:
        blocks.append({
            "title": "The student", "tables": [table(HEADER, [row_of(student)])],
            "lines": [lead_of(student), f"Its own report is {STUDENT}/report.html."],
        })  # fmt: skip
    if found.trials:
        rows = [_candidate(t, found) for t in found.trials[:MOST_ROWS]]
        blocks.append({
            "title": "All trainings",
            "tables": [table(header, rows) | {"folded": f"{len(found.trials):,} trainings"}],
        })  # fmt: skip
    findings = [] if student is None else findings_of(student)
    if found.limit and found.milliseconds and found.milliseconds > found.limit:
        said = f"the student takes {found.milliseconds:.3g} ms, the limit is {found.limit:g}"
        findings.insert(0, {"serious": False, "text": said})
    findings += [{"serious": False, "text": plain(text)} for text in found.problems[:20]]
    source = {} if student is None else student.summary or student.manifest
    real, level = (number(source.get(key)) for key in ("real_images_read", "promise_level"))
    return rendered(
        title=f"the best student of {short(found.teacher or 'a teacher')}",
        state=found.state, badge="" if found.state == "finished" else "weak",
        lead=_lead(found), findings=findings, figures=_figures(found, student),
        asked=_asked(found), promise="" if student is None else promise_of(student),
        statement=statement(int(real or 0), level=int(level or 0)) if student else "",
        blocks=blocks,
    )  # fmt: skip


def _candidate(trial: Trial, found: SearchRecord) -> tuple[str, ...]:
    """A row of a table of candidates."""
    tried, longer = trial.seconds > 0, found.longer.get(trial.student)
    note = "chosen" if trial == found.chosen else ""
    if longer and found.limit and longer > found.limit:
        note = f"{note}, " * bool(note) + f"{longer:.3g} ms when timed for longer: too slow"
    return (
        plain(trial.student)[:60], percent(trial.agreement) if tried else "not tried: too slow",
        f"{trial.milliseconds:.3g}", count(trial.parameters),
        count(trial.images) if tried else "", f"{trial.seconds:.0f}" if tried else "",
        str(trial.generation), note,
    )  # fmt: skip


def _lead(found: SearchRecord) -> str:
    """What a search came to, in one sentence."""
    tried = len({trial.student for trial in found.trials})
    if found.chosen is None:
        return f"This search is {found.state}: {counted(tried, 'candidate')} so far, none chosen."
    name = plain(found.chosen.student)[:60]
    again = "" if found.milliseconds is None else f", {found.milliseconds:.3g} ms measured again"
    return f"Of {counted(tried, 'candidate')} {name} was chosen{again}."


def _figures(found: SearchRecord, student: RunRecord | None) -> list[dict[str, str]]:
    """The numbers of the first screen of a search."""
    cards = []
    if (taken := found.chosen) is not None:
        limit = "no limit" if found.limit is None else f"limit {found.limit:g}"
        ms = taken.milliseconds if found.milliseconds is None else found.milliseconds
        cards += [
            {"title": "chosen", "value": plain(taken.student)[:60],
             "note": f"{taken.parameters:,} parameters"},
            {"title": "milliseconds of an image", "value": f"{ms:.3g}", "note": limit},
            {"title": "agreement in the search", "value": percent(taken.agreement),
             "note": f"held-out synthetic, after {count(taken.images)} images"},
        ]  # fmt: skip
    return cards + (figures_of(student) if student is not None else [])


def _asked(found: SearchRecord) -> list[str]:
    """What was asked of a search, and how to go on with one that is not finished."""
    time = "" if found.minutes is None else f"{counted(found.minutes, 'minute')}, "
    lines = [f"Asked for: {time}candidates proposed by {found.sampler or 'an unknown sampler'}."]
    if found.state == "interrupted":
        lines.append("The same command goes on with it.")
    return lines
