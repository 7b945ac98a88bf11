"""The report of a bench."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from synthkd.core.errors import plain
from synthkd.reports import bench
from synthkd.reports.page import MOST_ROWS, image, percent, rendered, table
from synthkd.reports.record import Picture


def bench_report(folder: Path) -> str:
    """The report of a bench: its table, its plot and its runs. Raises InputError."""
    settings, records = bench.read(folder)
    results = bench.pipeline_results(records)
    done = [r for r in records if r["state"] == "finished"]
    rows = [
        (s.pipeline, _spread(s.accuracy), percent(s.constant), s.n, _spread(s.agreement),
         f"{s.minutes:.1f}",
         f"{s.images_seen:,.0f}", f"{s.images_synthesized:,.0f}", f"{s.real_images_read:,}")
        for s in results
    ]  # fmt: skip
    runs = [
        (r["pipeline"], r["seed"], r["state"],
         *(percent((r.get("summary") or {}).get(k))
           for k in ("student_accuracy", "constant_accuracy", "agreement")),
         plain(str((r.get("summary") or {}).get("verdict", ""))), r.get("error", ""))
        for r in records[:MOST_ROWS]
    ]  # fmt: skip
    blocks: list[dict[str, Any]] = [{
        "title": "Results", "tables": [table(
            ("pipeline", "accuracy, %", "a constant classifier", "seeds", "agreement, %", "minutes",
             "images seen",
             "synthesized", "real images"), rows)],
        "lines": ["± is the sample standard deviation over seeds. Accuracy was only reported: it "
                  "chose nothing in any run."],
    }]  # fmt: skip
    if results:
        picture = bench.draw(results, settings)
        with Image.open(io.BytesIO(picture)) as opened:
            blocks.append({
                "title": "Accuracy against time",
                "images": [image(Picture("accuracy", picture, *opened.size, {}), "", "")],
            })  # fmt: skip
    blocks.append({
        "title": "Runs",
        "tables": [table(("pipeline", "seed", "state", "accuracy", "a constant classifier",
                           "agreement", "verdict", "error"), runs)],
    })  # fmt: skip
    return rendered(
        title=bench.title(settings), state="", badge="",
        lead=f"{len(results)} pipelines, {len(done)} finished runs of {len(records)}, scored on "
        f"{plain(str(settings['val']))}.",
        findings=[
            {"serious": True, "text": plain(
                f"{s.useless} of {s.n} students of {s.pipeline} are of no use: see their runs")}
            for s in results if s.useless
        ],
        figures=[], asked=[], promise="", statement="", blocks=blocks,
    )  # fmt: skip


def _spread(value: bench.Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.2f}"
    return f"{100 * value.mean:.2f}{sd}"
