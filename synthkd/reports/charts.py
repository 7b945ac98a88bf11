"""Charts by matplotlib; line charts as SVG, coloured by the page, which is light or dark.

Every colour is a variable of the page's style sheet, and text has the page's font. No chart has a
script, a link or an address in it.
"""

import io
import os
import re
import stat
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from synthkd.reports.record import Curve, Span

WIDTH, HEIGHT = 4.6, 2.7  # inches, of 72 pixels of the page
SHORT = 3.0  # minutes, under which the axis has seconds
SERIES = 8  # colours there are
# colours that matplotlib writes and the page replaces
_INK, _MUTED, _GRID, _BAND = "#000001", "#000002", "#000003", "#000004"
_LINES = tuple(f"#00001{k}" for k in range(SERIES))
_VARIABLES = {
    _INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)", _BAND: "var(--band)",
    **{colour: f"var(--line{k})" for k, colour in enumerate(_LINES)},
}  # fmt: skip


def new_figure(width: float, height: float, dpi: float = 72) -> Any:
    """An empty figure of matplotlib's, of a size in inches; without its list of open windows."""
    matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


@cache
def matplotlib() -> Any:
    """The module, whose list of fonts lies with other scratch files and not in a user's home. The
    folder is this user's alone; where another has it already, a new one."""
    place = Path(tempfile.gettempdir()) / f"synthkd-matplotlib-{os.getuid()}"
    with suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
    try:
        told = place.lstat()
        own = stat.S_ISDIR(told.st_mode) and told.st_uid == os.getuid()
    except OSError:
        own = False
    before = os.environ.get("MPLCONFIGDIR")
    os.environ["MPLCONFIGDIR"] = before or (str(place) if own else tempfile.mkdtemp())
    try:
        import matplotlib as found
        from matplotlib import font_manager  # reads or writes its list now

        found.get_configdir()
        font_manager.findfont("DejaVu Sans")
    finally:
        if before is None:
            del os.environ["MPLCONFIGDIR"]
    return found


def line_chart(
    title: str,
    curves: Mapping[str, Curve],
    *,
    spans: Sequence[Span] = (),
    share: bool = False,
    log: bool = False,
) -> str:
    """Curves against minutes as an SVG element, named at their ends in a legend below the title.

    With `share` the axis is that of shares, 0..1 in percent; with `log` it is logarithmic, for
    losses. `spans` are the stages, shaded by turns and named.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_axes((0.13, 0.15, 0.84, 0.62))
    names = list(curves)[:SERIES]
    for place, name in enumerate(names):
        curve, colour = curves[name], _LINES[place]
        few = len(curve.minutes) < 12
        axes.plot(
            curve.minutes, curve.values, color=colour, linewidth=1.6, label=name,
            marker="o" if few else "", markersize=3,
        )  # fmt: skip
    ends = [curve.minutes[-1] for curve in curves.values() if curve.minutes]
    end = max([*ends, *(span.end for span in spans)], default=1.0) or 1.0
    axes.set_xlim(0, end * 1.01)
    axes.margins(y=0.14)  # room for the names of the stages
    if end < SHORT:
        axes.xaxis.set_major_formatter(lambda minutes, _: f"{60 * minutes:.3g}")
        axes.xaxis.set_major_locator(_every(end))
    if share:
        axes.set_ylim(0, 1.14)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    elif log and all(v > 0 for c in curves.values() for v in c.values):
        axes.set_yscale("log")
    else:
        low = min((v for c in curves.values() for v in c.values), default=0.0)
        axes.set_ylim(bottom=min(0.0, low))
    _stages(axes, spans, end)
    unit = "seconds" if end < SHORT else "minutes"
    axes.set_xlabel(unit, color=_MUTED, fontsize=8, labelpad=1)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=8, which="both")
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    figure.text(0.02, 0.93, title, fontsize=10, color=_INK, parse_math=False, weight="bold")
    if len(names) > 1 or names[:1] != [title]:
        shown = axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, fontsize=8,
            labelcolor=_INK, handlelength=1.2, columnspacing=1.0, borderpad=0,
        )  # fmt: skip
        for text in shown.get_texts():
            text.set_parse_math(False)
    content = io.StringIO()
    # ids of an SVG are those of the page: each chart needs its own
    salt = f"{title} {','.join(names)}"
    with (
        matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of letters that its own font lacks: the page has another
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return _inlined(content.getvalue(), title)


def _every(end: float) -> Any:
    """Ticks at whole seconds, for an axis of minutes up to `end`."""
    from matplotlib.ticker import MultipleLocator

    step = next((s for s in (1, 2, 5, 10, 20, 30) if 60 * end / s <= 8), 60)
    return MultipleLocator(step / 60)


def _stages(axes: Any, spans: Sequence[Span], end: float) -> None:
    """Every other stage shaded, and the name of each that has room for it."""
    for place, span in enumerate(spans):
        if place % 2:
            axes.axvspan(span.start, span.end, color=_BAND, linewidth=0)
        if span.end - span.start > 0.1 * end:
            axes.text(
                (span.start + span.end) / 2, 0.97, span.stage, transform=axes.get_xaxis_transform(),
                ha="center", va="top", fontsize=7, color=_MUTED, parse_math=False, clip_on=True,
            )  # fmt: skip


def _inlined(svg: str, title: str) -> str:
    """An SVG document as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z][a-z0-9.]*_\d+"', "", svg)  # which nothing refers to
    svg = re.sub(r"#0000[0-9a-f]{2}\b", lambda m: _VARIABLES.get(m[0], m[0]), svg)
    # a page's own font and size of the box; the view box stays
    svg = re.sub(r"font: ?([0-9.]+px)[^;\"]*", r"font-size: \1", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(title, quote=True)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
