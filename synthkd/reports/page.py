"""Reports as one self-contained HTML file: of a run, of several runs, of a search, of a bench.

No script, no address outside, and every text that comes from a file is escaped. Light, dark, narrow
or printed, by the style sheet in `report.html`.
"""

import base64
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from synthkd import __version__
from synthkd.core.errors import plain
from synthkd.core.privacy import statement
from synthkd.core.words import counted, span
from synthkd.reports import bench
from synthkd.reports.charts import SERIES, line_chart
from synthkd.reports.record import (
    SHARES,
    Curve,
    Picture,
    RunRecord,
    is_run,
    number,
    rates,
    read_run,
)
from synthkd.reports.search import STUDENT, SearchRecord, Trial, draw, read_search

MOST_ROWS = 1000  # of a table
NAMED_CLASSES = 25  # up to which a confusion matrix is shown whole
MOST_PAIRS = 40  # of confused classes, where there are more
PICTURE_WIDTH = 960  # pixels
SMALL = 200_000  # bytes up to which a sheet stays a PNG
MOST_OPENED = 200  # files of a sitting
MOST_RUNS = 40  # whose curves are drawn
QUALITY = {  # measure: what it is called, and what is good
    "teacher_inception_score": ("Inception score by the teacher", "1 to the number of classes"),
    "balance": ("balance of the classes", "1: all as often"),
    "missing_classes": ("classes without an image", "0 is best"),
    "label_accuracy": ("share taken for the class asked for", "1 is best"),
    "data_free_frechet": ("distance to the BatchNorm statistics", "0: as the training data"),
    "intra_class_diversity": ("diversity inside a class", "0: all alike"),
    "collapse_rate": ("classes that lost their diversity", "0 is best"),
    "semantic_consistency": ("semantic consistency, s-CS", "1: as real images"),
    "semantic_consistency_free": ("semantic consistency, s-CS0", "against the last layer"),
    "near_duplicate_rate": ("near-duplicates", "0 is best"),
    "inception_score": ("Inception score", ""),
    "fid": ("FID", "0: as the reference"),
    "kid": ("KID", "0: as the reference"),
}  # fmt: skip
SEEN = {
    "procedural": "drawings: the teacher names each, nothing was learned to make them",
    "pixels": "pixels refined by gradients of the teacher: noise to our eyes, a class to it",
    "gan": "images of a generator that learns against the teacher and the student",
    "diffusion": "images sampled from a diffusion model",
}


def run_report(record: RunRecord, *, images: bool = True) -> str:
    """The report of one run as HTML; without `images` it shows no synthetic image."""
    summary, manifest = record.summary, record.manifest
    blocks = [
        _curves(record),
        _pictures(record) if images else None,
        _confusion(record),
        _classes(record),
        _time(record),
        _quality(record),
        _plan(record),
        _proof(record),
        _again(record),
    ]
    real, level = (
        number(summary.get(key, manifest.get(key))) for key in ("real_images_read", "promise_level")
    )
    return _page(
        title=_title(record),
        state=record.state,
        badge=_badge(record),
        lead=_lead(record),
        findings=_findings(record),
        figures=_figures(record),
        asked=_asked(record),
        promise=_promise(record),
        statement=statement(int(real or 0), level=int(level or 0)),
        blocks=[block for block in blocks if block],
    )


def runs_report(records: Sequence[RunRecord]) -> str:
    """Several runs side by side as HTML."""
    rows = [_row(record) for record in records[:MOST_ROWS]]
    drawn = records[: min(MOST_RUNS, SERIES)]
    charts = []
    for key in ("agreement", "loss", "kl", "difficulty"):
        curves = {_label(r, drawn): r.curves[key] for r in drawn if key in r.curves}
        if curves:
            charts.append(line_chart(key, curves, share=key in SHARES, log=key in ("loss", "kl")))
    problems = [f"{record.name}: {text}" for record in records for text in record.problems]
    return _page(
        title=f"{len(records)} runs side by side",
        state="", badge="", lead="Accuracy was only reported: it chose nothing in any run.",
        findings=[{"serious": False, "text": plain(text)} for text in problems[:20]],
        figures=[], asked=[], promise="", statement="",
        blocks=[
            {"title": "Results", "tables": [_table(_HEADER, rows)]},
            {"title": "Curves", "charts": charts,
             "lines": [f"The first {len(drawn)} of {len(records)} runs."]
             if len(drawn) < len(records) else []},
        ],
    )  # fmt: skip


def bench_report(folder: Path) -> str:
    """The report of a bench: its table, its plot and its runs. Raises InputError."""
    settings, records = bench.read(folder)
    results = bench.pipeline_results(records)
    done = [r for r in records if r["state"] == "finished"]
    rows = [
        (s.pipeline, _spread(s.accuracy), _percent(s.constant), s.n, _spread(s.agreement),
         f"{s.minutes:.1f}",
         f"{s.images_seen:,.0f}", f"{s.images_synthesized:,.0f}", f"{s.real_images_read:,}")
        for s in results
    ]  # fmt: skip
    runs = [
        (r["pipeline"], r["seed"], r["state"],
         *(_percent((r.get("summary") or {}).get(k))
           for k in ("student_accuracy", "constant_accuracy", "agreement")),
         plain(str((r.get("summary") or {}).get("verdict", ""))), r.get("error", ""))
        for r in records[:MOST_ROWS]
    ]  # fmt: skip
    blocks: list[dict[str, Any]] = [{
        "title": "Results", "tables": [_table(
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
                "images": [_image(Picture("accuracy", picture, *opened.size, {}), "", "")],
            })  # fmt: skip
    blocks.append({
        "title": "Runs",
        "tables": [_table(("pipeline", "seed", "state", "accuracy", "a constant classifier",
                           "agreement", "verdict", "error"), runs)],
    })  # fmt: skip
    return _page(
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


def search_report(folder: Path) -> str:
    """The report of a search: what was chosen, the front, every candidate, and the run of the
    student. Raises InputError."""
    found = read_search(folder)
    student = read_run(folder / STUDENT, pictures=False) if is_run(folder / STUDENT) else None
    header = ("student", "agreement, held-out synthetic", "ms", "parameters", "seconds of learning",
              "generation", "")  # fmt: skip
    blocks: list[dict[str, Any]] = []
    if found.front:
        picture = draw(found.trials, found.front, found.chosen)
        with Image.open(io.BytesIO(picture)) as opened:
            size = opened.size
        blocks.append({
            "title": "The front",
            "lines": [
                "Those that no other beats in both aims, of the candidates that learned at least "
                "half as long as any. The agreement is one on synthetic images, after seconds of "
                "learning: it ranks candidates, and says little of real images.",
                *([f"Times: {found.conditions}."] if found.conditions else []),
            ],
            "images": [_image(Picture("front", picture, *size, {}), "", "")],
            "tables": [_table(header, [_candidate(t, found) for t in found.front[:MOST_ROWS]])],
        })  # fmt: skip
    if student is not None:
        blocks.append({
            "title": "The student", "tables": [_table(_HEADER, [_row(student)])],
            "lines": [_lead(student), f"Its own report is {STUDENT}/report.html."],
        })  # fmt: skip
    if found.trials:
        rows = [_candidate(t, found) for t in found.trials[:MOST_ROWS]]
        blocks.append({
            "title": "All trainings",
            "tables": [_table(header, rows) | {"folded": f"{len(found.trials):,} trainings"}],
        })  # fmt: skip
    findings = [] if student is None else _findings(student)
    if found.limit and found.milliseconds and found.milliseconds > found.limit:
        said = f"the student takes {found.milliseconds:.3g} ms, the limit is {found.limit:g}"
        findings.insert(0, {"serious": False, "text": said})
    findings += [{"serious": False, "text": plain(text)} for text in found.problems[:20]]
    source = {} if student is None else student.summary or student.manifest
    real, level = (number(source.get(key)) for key in ("real_images_read", "promise_level"))
    return _page(
        title=f"the best student of {_short(found.teacher or 'a teacher')}",
        state=found.state, badge="" if found.state == "finished" else "weak",
        lead=_found_lead(found), findings=findings, figures=_found_figures(found, student),
        asked=_found_asked(found), promise="" if student is None else _promise(student),
        statement=statement(int(real or 0), level=int(level or 0)) if student else "",
        blocks=blocks,
    )  # fmt: skip


def _candidate(trial: Trial, found: SearchRecord) -> tuple[str, ...]:
    """A row of a table of candidates."""
    tried = trial.seconds > 0
    return (
        plain(trial.student)[:60], _percent(trial.agreement) if tried else "not tried: too slow",
        f"{trial.milliseconds:.3g}", _count(trial.parameters),
        f"{trial.seconds:.0f}" if tried else "", str(trial.generation),
        "chosen" if trial == found.chosen else "",
    )  # fmt: skip


def _found_lead(found: SearchRecord) -> str:
    """What a search came to, in one sentence."""
    tried = len({trial.student for trial in found.trials})
    if found.chosen is None:
        return f"This search is {found.state}: {counted(tried, 'candidate')} so far, none chosen."
    name = plain(found.chosen.student)[:60]
    again = "" if found.milliseconds is None else f", {found.milliseconds:.3g} ms measured again"
    return f"Of {counted(tried, 'candidate')} {name} was chosen{again}."


def _found_figures(found: SearchRecord, student: RunRecord | None) -> list[dict[str, str]]:
    """The numbers of the first screen of a search."""
    cards = []
    if (taken := found.chosen) is not None:
        limit = "no limit" if found.limit is None else f"limit {found.limit:g}"
        ms = taken.milliseconds if found.milliseconds is None else found.milliseconds
        cards += [
            {"title": "chosen", "value": plain(taken.student)[:60],
             "note": f"{taken.parameters:,} parameters"},
            {"title": "milliseconds of an image", "value": f"{ms:.3g}", "note": limit},
            {"title": "agreement in the search", "value": _percent(taken.agreement),
             "note": f"held-out synthetic, after {taken.seconds:.0f} s of learning"},
        ]  # fmt: skip
    return cards + (_figures(student) if student is not None else [])


def _found_asked(found: SearchRecord) -> list[str]:
    """What was asked of a search, and how to go on with one that is not finished."""
    time = "" if found.minutes is None else f"{counted(found.minutes, 'minute')}, "
    lines = [f"Asked for: {time}candidates proposed by {found.sampler or 'an unknown sampler'}."]
    if found.state == "interrupted":
        lines.append("The same command goes on with it.")
    return lines


def _page(**view: Any) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = resources.files("synthkd.reports").joinpath("report.html").read_text("utf-8")
    empty = ("lines", "charts", "images", "confusion", "tables", "bars", "texts")
    view["blocks"] = [dict.fromkeys(empty, ()) | block for block in view["blocks"]]
    return environment.from_string(text).render(
        version=__version__, footer=f"Made by synthkd {__version__}.", **_markup(view)
    )


def _markup(view: Mapping[str, Any]) -> dict[str, Any]:
    """The view, with our own charts marked as HTML; nothing else is."""
    from markupsafe import Markup

    blocks = [
        block | {"charts": [Markup(chart) for chart in block["charts"]]} for block in view["blocks"]
    ]
    return {**view, "blocks": blocks}


def _badge(record: RunRecord) -> str:
    """How the state is coloured: as the verdict, of a run that is finished."""
    verdict = record.summary.get("verdict")
    if record.state == "finished":
        return str(verdict) if verdict in ("ok", "weak", "useless") else ""
    return "ok" if record.state == "running" else "weak"


def _title(record: RunRecord) -> str:
    teacher = _short(record.manifest.get("teacher", "a teacher"))
    student = _short(record.manifest.get("student", "a student"))
    return f"{teacher} → {student}"


def _short(spec: object) -> str:
    """A SPEC without the folders before its file."""
    text = plain(str(spec))
    return text.rsplit("/", 1)[-1] if "/" in text else text


def _lead(record: RunRecord) -> str:
    """The result in one sentence."""
    summary = record.summary
    if record.state != "finished":
        share = number(record.latest.get("share"))
        done = "before its first round" if share is None else f"at {share:.0%}"
        stage = plain(str(record.latest.get("stage", "")))[:60]
        where = f"{done}, in the stage {stage}" if stage else done
        word = {"running": "is going on", "interrupted": "was interrupted"}
        return f"This run {word.get(record.state, 'cannot be read')}: {where}."
    own, theirs = summary.get("student_accuracy"), summary.get("teacher_accuracy")
    if number(own) is not None:
        constant = number(summary.get("constant_accuracy"))
        against = "" if constant is None else f"; a constant classifier has {_percent(constant)}"
        return (
            f"The student is right on {_percent(own)} of {_count(summary.get('val_images'))} "
            f"labelled images, the teacher on {_percent(theirs)}{against}."
        )
    balance = _mapping(summary.get("held_out_balance"))
    if number(summary.get("agreement")) is not None:
        return f"The student agrees with the teacher on {_percent(summary['agreement'])}."
    return (
        "No labelled images were given: how good the student is on real images is not known. On "
        f"{_held_out(summary)} images that nobody learned from it agrees with the teacher on "
        f"{_percent(balance.get('balanced_agreement'))} (a constant classifier: "
        f"{_percent(balance.get('constant_classifier'))})"
        + (", which says little about real ones." if _held_out(summary) == "synthetic" else ".")
    )


def _held_out(summary: Mapping[str, Any]) -> str:
    """What images agreement was measured on: synthetic, or real where a run has no others."""
    return plain(str(summary.get("held_out", "synthetic")))[:20]


def _findings(record: RunRecord) -> list[dict[str, Any]]:
    """What speaks against the result, the serious first; then what could not be read."""
    told: dict[str, bool] = {}
    sources = (record.summary, record.manifest)
    for source in sources:
        for key in ("findings", "teacher_findings", "val_notes"):
            for finding in _list(source.get(key)):
                one = _mapping(finding)
                seen, remedy = str(one.get("seen", "")), str(one.get("remedy", ""))
                text = plain(f"{seen}: {remedy}" if remedy else seen)[:1000]
                told[text] = told.get(text, False) or bool(one.get("serious"))
    for text in record.problems:
        told.setdefault(plain(text), False)
    ordered = sorted(told.items(), key=lambda item: not item[1])[:30]
    return [{"text": text, "serious": serious} for text, serious in ordered]


def _figures(record: RunRecord) -> list[dict[str, str]]:
    """The numbers of the first screen, each beside what it is to be compared with."""
    summary, latest = record.summary, record.latest
    cards = []

    def card(title: str, value: str, note: str = "") -> None:
        cards.append({"title": title, "value": value, "note": note})

    if summary:
        if number(summary.get("student_accuracy")) is not None:
            card("accuracy of the student", _percent(summary.get("student_accuracy")),
                 f"teacher {_percent(summary.get('teacher_accuracy'))}, constant "
                 f"{_percent(summary.get('constant_accuracy'))}")  # fmt: skip
        if number(summary.get("agreement")) is not None:
            card("agreement on labelled images", _percent(summary.get("agreement")),
                 f"{_count(summary.get('val_images'))} images")  # fmt: skip
        balance = _mapping(summary.get("held_out_balance"))
        found = _mapping(summary.get("estimated_agreement"))
        if found:
            card("agreement on real images, estimated without data",
                 _percent(found.get("agreement"), 0),
                 f"{_percent(found.get('low'), 0)} to {_percent(found.get('high'), 0)}; constant "
                 f"{_percent(found.get('constant'), 0)}; {_count(found.get('images'))} images made "
                 "for this")  # fmt: skip
        card(
            f"balanced agreement, held-out {_held_out(summary)}",
            _percent(balance.get("balanced_agreement")),
            f"constant {_percent(balance.get('constant_classifier'))}"
            + ("" if found else "; no estimate for real images"),
        )
        small, large = (number(summary.get(f"{who}_parameters")) for who in ("student", "teacher"))
        share = f"{small / large:.1%} of the teacher's" if small and large else ""
        card("parameters", _count(small), share)
        card("real images read", _count(summary.get("real_images_read")),
             plain(str(summary.get("promise", ""))))  # fmt: skip
        card("images learned", _count(summary.get("images_seen")),
             f"{_count(summary.get('images_synthesized'))} synthesized")  # fmt: skip
        seconds = number(summary.get("wall_seconds"))
        card("time", span(seconds) if seconds is not None else "–",
             f"{_count(summary.get('peak_memory_mb'))} MB at most")  # fmt: skip
    elif latest:
        card("done", _percent(latest.get("share"), 0), f"{record.rounds:,} rounds")
        card("images learned", _count(latest.get("images_seen")),
             f"{_count(latest.get('synthesized'))} synthesized")  # fmt: skip
        if "agreement" in latest:
            card("agreement, held-out synthetic", _percent(latest["agreement"]),
                 "no estimate for real images")  # fmt: skip
        seconds = number(latest.get("seconds"))
        card("worked", span(seconds) if seconds is not None else "–", "")
    return cards


def _asked(record: RunRecord) -> list[str]:
    """What was asked for."""
    manifest, lines = record.manifest, []
    budget, data = (_mapping(record.settings.get(key)) for key in ("budget", "data"))
    minutes, images = (number(budget.get(key)) for key in ("minutes", "images"))
    if minutes or images:
        share = number(data.get("mix_ratio"))
        mixed = "" if share is None else f", {share:.0%} of the images synthetic"
        given = counted(minutes, "minute") if minutes else f"{_count(images)} student images"
        pipeline = plain(str(record.settings.get("pipeline", "")))[:60]
        lines.append(f"Asked for: {given} of the pipeline {pipeline}{mixed}.")
    command = _command(manifest)
    if command:
        lines.append(f"By: {command}")
    chosen = _mapping(manifest.get("student_chosen"))
    if chosen:
        lines.append("The student was chosen automatically; see the plan below.")
    if record.state == "interrupted":
        lines.append(f"Go on with: synthkd distill --resume {shlex.quote(str(record.path))}")
    return lines


def _command(manifest: Mapping[str, Any]) -> str:
    words = _list(manifest.get("command"))
    return plain(shlex.join(str(word) for word in words))[:2000] if words else ""


def _promise(record: RunRecord) -> str:
    source = record.summary or record.manifest
    level, said = source.get("promise_level"), plain(str(source.get("promise", "unknown")))
    access = plain(str(record.summary.get("teacher_access", "")))
    asked = number(record.summary.get("teacher_queries"))
    teacher = f" The teacher ({access}) was asked about {_count(asked)} images." if access else ""
    proof = plain(str(source.get("proof", "")))[:200]
    shown = f" Proof: level {_count(source.get('proof_level'))}, {proof}." if proof else ""
    return f"Promise: level {plain(str(level))}, {said}.{shown}{teacher}"


def _curves(record: RunRecord) -> dict[str, Any] | None:
    """What was measured, against the minutes."""
    found, spans = record.curves, record.spans
    if not found:
        return None

    def chosen(*names: str, start: str = "") -> dict[str, Curve]:
        return {
            key.removeprefix("term."): curve
            for key, curve in found.items()
            if key in names or (start and key.startswith(start))
        }

    speeds = {
        name: rates(found[key])
        for name, key in (("learned", "images_seen"), ("synthesized", "synthesized"))
        if key in found and any(found[key].values)
    }
    groups: list[tuple[str, dict[str, Curve], dict[str, bool]]] = [
        ("agreement with the teacher, held-out", chosen("agreement"), {"share": True}),
        ("loss of the student", chosen("loss", "kl"), {"log": True}),
        ("synthetic images: balance, confidence",
         chosen("balance", "confidence", "target_class_rate"), {"share": True}),
        ("losses of the synthesis", chosen(start="term."), {"log": True}),
        ("controllers",
         chosen("difficulty", "temperature", "turn", "assistant", start="factor."), {}),
        ("images per second", speeds, {}),
    ]  # fmt: skip
    known = {"images_seen", "synthesized", "agreement", "loss", "kl", "balance", "confidence",
             "target_class_rate", "difficulty", "temperature", "turn", "assistant"}  # fmt: skip
    others = {
        key: curve
        for key, curve in found.items()
        if key not in known and not key.startswith(("term.", "factor."))
    }
    groups.append(("other measures", others, {}))
    charts = []
    for title, curves, style in groups:
        names = list(curves)
        for first in range(0, len(names), SERIES):
            part = {name: curves[name] for name in names[first : first + SERIES]}
            charts.append(line_chart(title, part, spans=spans, **style))
    return {"title": "How it went", "charts": charts}


def _pictures(record: RunRecord) -> dict[str, Any] | None:
    """The contact sheets, each with what one sees in it."""
    images = []
    for picture in record.pictures:
        title, text = _caption(picture)
        images.append(_image(picture, title, text))
    if not images:
        return None
    told = record.summary or record.manifest
    alone = told.get("promise_level") == 0 and not told.get("real_images_read")
    lines = [
        "These images were made from the teacher alone, for it and not for our eyes: that they "
        "look like noise is usual, and that one looks real shows nothing. A row is a class."
        if alone else
        "More than the teacher took part in making these images: what a generator has seen "
        "elsewhere, and real images where they were allowed, may show in them. A row is a class."
    ]  # fmt: skip
    return {"title": "The images", "lines": lines, "images": images}


def _caption(picture: Picture) -> tuple[str, str]:
    """Title and text of a sheet."""
    told = picture.caption
    stage, _, moment = picture.name.partition("-")
    kind = plain(str(told.get("kind", "")))
    title = {
        "memory": "What the student learned from, a sample of the memory",
        "disagreed": "Where student and teacher disagree most",
        "hardest": "The hardest of what it learned from",
    }.get(picture.name, f"Stage {stage}, {moment}" if moment else picture.name)
    parts = []
    if kind in SEEN:
        parts.append(SEEN[kind] + ".")
    share, sure = number(told.get("share")), number(told.get("confidence"))
    if share is not None:
        parts.append(f"After {share:.0%} of the run.")
    if sure is not None:
        parts.append(f"The teacher's mean confidence: {sure:.0%}.")
    rows = [plain(str(name))[:40] for name in _list(told.get("rows"))]
    if rows:
        parts.append(f"Rows: {', '.join(rows)}.")
    texts = [plain(str(text))[:200] for text in _list(told.get("images"))[:48]]
    if texts:
        parts.append(" ".join(f"{place + 1}: {text}." for place, text in enumerate(texts)))
    return title, " ".join(parts)


def _image(picture: Picture, title: str, text: str) -> dict[str, Any]:
    """A sheet as data of the page: at most PICTURE_WIDTH wide, and small."""
    with Image.open(io.BytesIO(picture.content), formats=("PNG",)) as opened:
        image = opened.convert("RGB")
    content, kind = picture.content, "png"
    if image.width > PICTURE_WIDTH or len(content) > SMALL:
        height = round(image.height * PICTURE_WIDTH / image.width)
        if image.width > PICTURE_WIDTH:
            image = image.resize((PICTURE_WIDTH, max(1, height)), Image.Resampling.LANCZOS)
        held = io.BytesIO()
        image.save(held, format="WEBP", quality=82, method=4)
        content, kind = held.getvalue(), "webp"
    return {
        "source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        "width": image.width, "height": image.height, "title": title, "text": text,
    }  # fmt: skip


def _votes(record: RunRecord) -> tuple[list[str], dict[tuple[int, int], int]]:
    """The names of the classes, and how often teacher and student voted for each pair."""
    names = [plain(str(_mapping(row).get("name", k)))[:60]
             for k, row in enumerate(_list(record.details.get("classes")))]  # fmt: skip
    pairs: dict[tuple[int, int], int] = {}
    held = _mapping(record.details.get("held_out"))
    names = [plain(str(name))[:60] for name in _list(held.get("names"))] or names
    for row in _list(held.get("votes")):
        values = [number(value) for value in _list(row)]
        if len(values) == 3 and None not in values:
            taught, learned, count = (int(value or 0) for value in values)
            if 0 <= taught < len(names) and 0 <= learned < len(names) and count > 0:
                pairs[taught, learned] = pairs.get((taught, learned), 0) + count
    return names, pairs


def _confusion(record: RunRecord) -> dict[str, Any] | None:
    """Which class the student names where the teacher names another."""
    names, pairs = _votes(record)
    if not pairs:
        return None
    whole = [sum(n for (t, _), n in pairs.items() if t == k) for k in range(len(names))]
    title = "Student against teacher, class by class"
    lines = [f"On {sum(whole):,} held-out images that nobody learned from."]
    missed = sorted(((n, t, s) for (t, s), n in pairs.items() if t != s), reverse=True)
    rows = [
        (names[t], names[s], f"{n:,}", f"{n / whole[t]:.1%}") for n, t, s in missed[:MOST_PAIRS]
    ]
    worst = [_table(("the teacher says", "the student says", "images", "of the class"), rows, 2)]
    if len(names) > NAMED_CLASSES:
        return {"title": title, "lines": lines, "tables": worst if rows else ()}
    shown = []
    for t, name in enumerate(names):
        cells = []
        for s in range(len(names)):
            count = pairs.get((t, s), 0)
            share = count / whole[t] if whole[t] else 0.0
            kind = "" if not count else "heat" if t == s else "miss"
            cells.append({"count": count or "", "share": f"{share:.3f}", "kind": kind})
        shown.append({"name": name, "cells": cells})
    return {"title": title, "lines": lines, "confusion": {"names": names, "rows": shown}}


def _classes(record: RunRecord) -> dict[str, Any] | None:
    """A row for each class."""
    found = [_mapping(row) for row in _list(record.details.get("classes"))]
    if not found:
        return None
    names, pairs = _votes(record)
    columns = {
        "remembered": ("images remembered", _count),
        "diversity": ("diversity", lambda v: "–" if number(v) is None else f"{v:.3f}"),
        "n": ("labelled images", _count),
        "student_accuracy": ("student right", _percent),
        "teacher_accuracy": ("teacher right", _percent),
        "agreement": ("agreement", _percent),
        "transfer_efficiency": ("transfer efficiency", _percent),
    }  # fmt: skip
    present = [key for key in columns if any(row.get(key) is not None for row in found)]
    header = ["class", *(columns[key][0] for key in present)]
    own = len(names) == len(found) and bool(pairs)
    if own:
        header[1:1] = ["held-out images", "agreement there"]
    rows = []
    for k, row in enumerate(found[:MOST_ROWS]):
        cells = [columns[key][1](row.get(key)) for key in present]
        if own:
            total = sum(n for (t, _), n in pairs.items() if t == k)
            right = pairs.get((k, k), 0)
            cells[:0] = [f"{total:,}", _percent(right / total if total else None)]
        rows.append((plain(str(row.get("name", k)))[:60], *cells))
    more = [f"The first {MOST_ROWS:,} of {len(found):,} classes."] if len(found) > MOST_ROWS else []
    folded = f"all {len(rows):,} classes" if len(rows) > 2 * NAMED_CLASSES else ""
    return {
        "title": "Classes",
        "lines": more,
        "tables": [_table(header, rows) | {"folded": folded}],
    }


def _time(record: RunRecord) -> dict[str, Any] | None:
    """Where the seconds went."""
    parts = {
        plain(str(name))[:40]: seconds
        for name, value in _mapping(record.summary.get("seconds")).items()
        if (seconds := number(value)) is not None and seconds >= 0
    }
    whole = sum(parts.values())
    if not whole:
        return None
    bars = [
        {"name": name, "value": f"{span(s)}, {s / whole:.0%}", "share": f"{s / whole:.4f}"}
        for name, s in sorted(parts.items(), key=lambda item: -item[1])
    ]
    manifest = record.manifest
    machine = (
        f"{plain(str(manifest.get('gpu') or manifest.get('machine', '')))}, "
        f"{_count(manifest.get('threads'))} threads of {_count(manifest.get('cpus'))} CPUs, "
        f"{plain(str(manifest.get('precision', '')))} on {plain(str(manifest.get('device', '')))}"
    )
    return {"title": "Where the time went", "bars": bars, "lines": [machine + "."]}


def _quality(record: RunRecord) -> dict[str, Any] | None:
    """The scores of a sample of the images."""
    rows = []
    against_real = _mapping(_mapping(record.evaluation.get("images")).get("scores"))
    sources = (_mapping(record.details.get("quality")), against_real)
    for name, told in (item for source in sources for item in source.items()):
        score = _mapping(told)
        title, meaning = QUALITY.get(name, (plain(str(name)), ""))
        value, spread = number(score.get("value")), number(score.get("std"))
        text = "–" if value is None else f"{value:.4g}"
        text += "" if spread is None else f" ± {spread:.2g}"
        against = number(score.get("n_reference"))
        of = _count(score.get("n")) + ("" if against is None else f" against {_count(against)}")
        rows.append(
            (title, text, of, plain(str(score.get("extractor", ""))), meaning,
             plain(str(score.get("note", ""))))
        )  # fmt: skip
    if not rows:
        return None
    header = ("measure", "value", "images", "judged by", "scale", "note")
    return {
        "title": "Quality of the synthetic images",
        "lines": [
            "Of a sample of the memory"
            + (
                ", and by synthkd evaluate."
                if against_real
                else ". FID and KID need real images: synthkd evaluate --images … --reference … "
                "--out RUN/evaluation."
            )
        ],
        "tables": [_table(header, rows)],
    }


def _plan(record: RunRecord) -> dict[str, Any] | None:
    """What was planned, and why."""
    manifest = record.manifest
    lines = [plain(str(reason))[:500] for reason in _list(manifest.get("plan"))[:40]]
    rows = []
    for told in _list(manifest.get("stages"))[:50]:
        stage = _mapping(told)
        terms = ", ".join(f"{k} {v}" for k, v in _mapping(stage.get("terms")).items())
        rows.append((
            plain(str(stage.get("name", ""))), plain(str(stage.get("generator", ""))),
            _percent(stage.get("share"), 0), _count(stage.get("synthesis_steps")),
            _count(stage.get("synthesis_batch")), _count(stage.get("fresh")),
            _count(stage.get("student_steps")), plain(terms),
        ))  # fmt: skip
    if not rows and not lines:
        return None
    header = ("stage", "generator", "share", "steps", "batch", "fresh images", "student steps",
              "terms")  # fmt: skip
    return {"title": "The plan", "lines": lines, "tables": [_table(header, rows, 2)]}


def _proof(record: RunRecord) -> dict[str, Any] | None:
    """What an auditor can check."""
    manifest = record.manifest
    if "proof_level" not in manifest:
        return None
    reasons = [plain(str(text))[:300] for text in _list(manifest.get("proof_not_higher"))[:10]]
    rows = []
    for number_, sitting in enumerate(_list(manifest.get("opened")), start=1):
        for told in _list(_mapping(sitting).get("files"))[:MOST_OPENED]:
            entry = _mapping(told)
            rows.append((
                str(number_), plain(str(entry.get("path", "")))[:200],
                plain(str(entry.get("role", "")))[:80],
                plain(str(entry.get("sha256") or ""))[:16],
            ))  # fmt: skip
    tables = []
    if rows:
        header = ("sitting", "file", "what", "SHA-256")
        tables = [_table(header, rows, 4) | {"folded": f"{len(rows):,} files that were opened"}]
    return {
        "title": "What an auditor can check",
        "lines": [
            f"Level {_count(manifest.get('proof_level'))}: {plain(str(manifest.get('proof')))}.",
            *(f"Not higher, since {reason}." for reason in reasons),
            "synthkd verify compares every file of the run with hashes.json; --rerun makes the "
            "student again, where the budget is in images.",
        ],
        "tables": tables,
    }


def _again(record: RunRecord) -> dict[str, Any]:
    """How to repeat it."""
    manifest, texts = record.manifest, []
    command = _command(manifest)
    if command:
        texts.append({"title": "the command", "text": command, "folded": False})
    if record.recipe:
        texts.append({
            "title": "recipe.toml: every setting (synthkd distill --config recipe.toml)",
            "text": plain_lines(record.recipe[:100_000]), "folded": True,
        })  # fmt: skip
    versions = json.dumps(_mapping(manifest.get("versions")), indent=1, ensure_ascii=False)
    hashes = {
        "teacher": manifest.get("teacher_sha256"), "student": record.summary.get("student_sha256"),
        "recipe": manifest.get("recipe_sha256"),
        "labelled images": record.summary.get("val_digest"),
    }  # fmt: skip
    rows = [(name, plain(str(value))) for name, value in hashes.items() if value]
    texts.append({"title": "versions", "text": plain_lines(versions), "folded": True})
    lines = [
        f"Seed {plain(str(manifest.get('seed', '')))}, {plain(str(manifest.get('platform', '')))}."
    ]
    return {
        "title": "How to repeat it", "lines": lines, "texts": texts,
        "tables": [_table(("SHA-256 of", ""), rows, 2)] if rows else (),
    }  # fmt: skip


def plain_lines(text: str) -> str:
    """A text without control characters, but with its lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


_HEADER = (
    "run", "state", "student", "accuracy", "teacher", "constant", "agreement", "held-out",
    "parameters", "images learned", "real images", "time", "verdict",
)  # fmt: skip


def _row(record: RunRecord) -> tuple[str, ...]:
    """A run in a table of several."""
    summary = record.summary
    seconds = number(summary.get("wall_seconds", record.latest.get("seconds")))
    balance = _mapping(summary.get("held_out_balance"))
    return (
        plain(record.name), record.state, _short(record.manifest.get("student", "")),
        *(_percent(summary.get(key)) for key in
          ("student_accuracy", "teacher_accuracy", "constant_accuracy", "agreement")),
        _percent(balance.get("balanced_agreement")), _count(summary.get("student_parameters")),
        _count(summary.get("images_seen", record.latest.get("images_seen"))),
        _count(summary.get("real_images_read", record.manifest.get("real_images_read"))),
        "–" if seconds is None else span(seconds), plain(str(summary.get("verdict", ""))),
    )  # fmt: skip


def _label(record: RunRecord, among: Sequence[RunRecord]) -> str:
    """The name of a run in a legend, with its folder where two have the same."""
    same = [other for other in among if other.name == record.name]
    name = record.name if len(same) == 1 else str(Path(*record.path.absolute().parts[-2:]))
    return plain(name)[-28:]


def _table(
    header: Sequence[str], rows: Iterable[Sequence[object]], text: int = 1
) -> dict[str, Any]:
    return {"header": header, "rows": list(rows), "text": text, "title": "", "folded": ""}


def _spread(value: bench.Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.2f}"
    return f"{100 * value.mean:.2f}{sd}"


def _percent(value: object, digits: int = 2) -> str:
    found = number(value)
    return "–" if found is None else f"{100 * found:.{digits}f} %"


def _count(value: object) -> str:
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
