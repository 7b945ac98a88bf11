"""The report of several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from synthkd.core.errors import plain
from synthkd.core.words import span
from synthkd.reports.charts import SERIES, line_chart
from synthkd.reports.page import MOST_ROWS, count, mapping, percent, rendered, short, table
from synthkd.reports.record import SHARES, RunRecord, number

MOST_RUNS = 40  # whose curves are drawn
HEADER = (
    "run", "state", "student", "accuracy", "teacher", "constant", "agreement", "held-out",
    "parameters", "images learned", "real images", "time", "verdict",
)  # fmt: skip


def runs_report(records: Sequence[RunRecord]) -> str:
    """Several runs side by side as HTML."""
    rows = [row_of(record) for record in records[:MOST_ROWS]]
    drawn = records[: min(MOST_RUNS, SERIES)]
    charts = []
    for key in ("agreement", "loss", "kl", "difficulty"):
        curves = {_label(r, drawn): r.curves[key] for r in drawn if key in r.curves}
        if curves:
            charts.append(line_chart(key, curves, share=key in SHARES, log=key in ("loss", "kl")))
    problems = [f"{record.name}: {text}" for record in records for text in record.problems]
    return rendered(
        title=f"{len(records)} runs side by side",
        state="", badge="", lead="Accuracy was only reported: it chose nothing in any run.",
        findings=[{"serious": False, "text": plain(text)} for text in problems[:20]],
        figures=[], asked=[], promise="", statement="",
        blocks=[
            {"title": "Results", "tables": [table(HEADER, rows)]},
            {"title": "Curves", "charts": charts,
             "lines": [f"The first {len(drawn)} of {len(records)} runs."]
             if len(drawn) < len(records) else []},
        ],
    )  # fmt: skip


def row_of(record: RunRecord) -> tuple[str, ...]:
    """A run in a table of several."""
    summary = record.summary
    seconds = number(summary.get("wall_seconds", record.latest.get("seconds")))
    balance = mapping(summary.get("held_out_balance"))
    return (
        plain(record.name), record.state, short(record.manifest.get("student", "")),
        *(percent(summary.get(key)) for key in
          ("student_accuracy", "teacher_accuracy", "constant_accuracy", "agreement")),
        percent(balance.get("balanced_agreement")), count(summary.get("student_parameters")),
        count(summary.get("images_seen", record.latest.get("images_seen"))),
        count(summary.get("real_images_read", record.manifest.get("real_images_read"))),
        "–" if seconds is None else span(seconds), plain(str(summary.get("verdict", ""))),
    )  # fmt: skip


def _label(record: RunRecord, among: Sequence[RunRecord]) -> str:
    """The name of a run in a legend, with its folder where two have the same."""
    same = [other for other in among if other.name == record.name]
    name = record.name if len(same) == 1 else str(Path(*record.path.absolute().parts[-2:]))
    return plain(name)[-28:]
