"""`synthkd watch`: a run at a glance, from another terminal. Imports no torch, changes nothing."""

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from synthkd.core.errors import plain, quoted
from synthkd.core.words import clock
from synthkd.reports.glance import Glance, glance, sparkline

SECONDS = 1.0  # between two looks


def run(path: Path, *, once: bool = False) -> None:
    """Shows a run until it ends; `once`: as it is now."""
    console = Console()
    seen = glance(path)
    if once or seen.state != "running" or not console.is_terminal:
        console.print(_panel(path, seen), soft_wrap=True)
        return
    with Live(_panel(path, seen), console=console, auto_refresh=False) as live:
        while seen.state == "running":
            time.sleep(SECONDS)
            seen = glance(path)
            live.update(_panel(path, seen), refresh=True)


def _panel(path: Path, seen: Glance) -> Group:
    width = 40
    share = min(1.0, max(0.0, seen.share))
    full = round(width * share)
    left = "" if seen.left is None else f", {clock(seen.left)} left"
    rows = [
        Text(plain(f"{quoted(path)}: {seen.state}"), style="bold"),
        Text(
            plain(
                f"{'█' * full}{'░' * (width - full)} {share:4.0%}  {seen.stage}, round "
                f"{seen.round:,}  {clock(seen.seconds)} worked{left}"
            )
        ),
    ]
    if seen.learned is not None and seen.state == "running":
        rows.append(
            Text(f"{seen.synthesized or 0:,.0f} synthesized/s  {seen.learned:,.0f} learned/s")
        )
    for key, values in seen.curves.items():
        rows.append(Text(plain(f"{key:<12}{seen.latest[key]:9.3g}  {sparkline(values)}")))
    terms = [f"{k[5:]} {v:.3g}" for k, v in seen.latest.items() if k.startswith("term.")]
    if terms:
        rows.append(Text(plain("terms: " + "  ".join(terms)[:300])))
    rows += _result(path, seen)
    return Group(*rows)


def _result(path: Path, seen: Glance) -> list[Text]:
    """How it ended, or how to go on."""
    if seen.state == "interrupted":
        return [Text(plain(f"go on with: synthkd distill --resume {path}"))]
    if seen.state != "finished":
        return []
    summary = seen.summary
    verdict = plain(str(summary.get("verdict")))
    style = {"useless": "bold red", "weak": "yellow"}.get(verdict, "")
    rows = [Text(f"verdict: {verdict}", style=style)]
    rows += [
        Text(plain(str(finding.get("seen"))), style=style)
        for finding in summary.get("findings") or ()
        if isinstance(finding, dict)
    ]
    for key, title in (
        ("student_accuracy", "student accuracy"), ("teacher_accuracy", "teacher accuracy"),
        ("constant_accuracy", "a constant classifier"), ("agreement", "agreement"),
        ("held_out_agreement", "agreement, held-out synthetic"),
    ):  # fmt: skip
        value = summary.get(key)
        if isinstance(value, int | float):
            rows.append(Text(f"{title}: {value:.2%}"))
    return rows
