"""The parts of a run's report: curves, pictures, classes, times, the plan, the proof."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from synthkd.core.errors import plain
from synthkd.core.words import span
from synthkd.reports.charts import SERIES, line_chart
from synthkd.reports.page import (
    MOST_ROWS,
    count,
    image,
    mapping,
    percent,
    plain_lines,
    sequence,
    table,
)
from synthkd.reports.record import Curve, Picture, RunRecord, number, rates

NAMED_CLASSES = 25  # up to which a confusion matrix is shown whole
MOST_PAIRS = 40  # of confused classes, where there are more
MOST_OPENED = 200  # files of a sitting
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


def curves(record: RunRecord) -> dict[str, Any] | None:
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


def pictures(record: RunRecord) -> dict[str, Any] | None:
    """The contact sheets, each with what one sees in it."""
    images = []
    for picture in record.pictures:
        title, text = _caption(picture)
        images.append(image(picture, title, text))
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
    rows = [plain(str(name))[:40] for name in sequence(told.get("rows"))]
    if rows:
        parts.append(f"Rows: {', '.join(rows)}.")
    texts = [plain(str(text))[:200] for text in sequence(told.get("images"))[:48]]
    if texts:
        parts.append(" ".join(f"{place + 1}: {text}." for place, text in enumerate(texts)))
    return title, " ".join(parts)


def _votes(record: RunRecord) -> tuple[list[str], dict[tuple[int, int], int]]:
    """The names of the classes, and how often teacher and student voted for each pair."""
    names = [plain(str(mapping(row).get("name", k)))[:60]
             for k, row in enumerate(sequence(record.details.get("classes")))]  # fmt: skip
    pairs: dict[tuple[int, int], int] = {}
    held = mapping(record.details.get("held_out"))
    names = [plain(str(name))[:60] for name in sequence(held.get("names"))] or names
    for row in sequence(held.get("votes")):
        values = [number(value) for value in sequence(row)]
        if len(values) == 3 and None not in values:
            taught, learned, count = (int(value or 0) for value in values)
            if 0 <= taught < len(names) and 0 <= learned < len(names) and count > 0:
                pairs[taught, learned] = pairs.get((taught, learned), 0) + count
    return names, pairs


def confusion(record: RunRecord) -> dict[str, Any] | None:
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
    worst = [table(("the teacher says", "the student says", "images", "of the class"), rows, 2)]
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


def classes(record: RunRecord) -> dict[str, Any] | None:
    """A row for each class."""
    found = [mapping(row) for row in sequence(record.details.get("classes"))]
    if not found:
        return None
    names, pairs = _votes(record)
    columns = {
        "remembered": ("images remembered", count),
        "diversity": ("diversity", lambda v: "–" if number(v) is None else f"{v:.3f}"),
        "n": ("labelled images", count),
        "student_accuracy": ("student right", percent),
        "teacher_accuracy": ("teacher right", percent),
        "agreement": ("agreement", percent),
        "transfer_efficiency": ("transfer efficiency", percent),
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
            cells[:0] = [f"{total:,}", percent(right / total if total else None)]
        rows.append((plain(str(row.get("name", k)))[:60], *cells))
    more = [f"The first {MOST_ROWS:,} of {len(found):,} classes."] if len(found) > MOST_ROWS else []
    folded = f"all {len(rows):,} classes" if len(rows) > 2 * NAMED_CLASSES else ""
    return {
        "title": "Classes",
        "lines": more,
        "tables": [table(header, rows) | {"folded": folded}],
    }


def time(record: RunRecord) -> dict[str, Any] | None:
    """Where the seconds went."""
    parts = {
        plain(str(name))[:40]: seconds
        for name, value in mapping(record.summary.get("seconds")).items()
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
        f"{count(manifest.get('threads'))} threads of {count(manifest.get('cpus'))} CPUs, "
        f"{plain(str(manifest.get('precision', '')))} on {plain(str(manifest.get('device', '')))}"
    )
    return {"title": "Where the time went", "bars": bars, "lines": [machine + "."]}


def quality(record: RunRecord) -> dict[str, Any] | None:
    """The scores of a sample of the images."""
    rows = []
    against_real = mapping(mapping(record.evaluation.get("images")).get("scores"))
    sources = (mapping(record.details.get("quality")), against_real)
    for name, told in (item for source in sources for item in source.items()):
        score = mapping(told)
        title, meaning = QUALITY.get(name, (plain(str(name)), ""))
        value, spread = number(score.get("value")), number(score.get("std"))
        text = "–" if value is None else f"{value:.4g}"
        text += "" if spread is None else f" ± {spread:.2g}"
        against = number(score.get("n_reference"))
        of = count(score.get("n")) + ("" if against is None else f" against {count(against)}")
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
        "tables": [table(header, rows)],
    }


def plan(record: RunRecord) -> dict[str, Any] | None:
    """What was planned, and why."""
    manifest = record.manifest
    lines = [plain(str(reason))[:500] for reason in sequence(manifest.get("plan"))[:40]]
    rows = []
    for told in sequence(manifest.get("stages"))[:50]:
        stage = mapping(told)
        terms = ", ".join(f"{k} {v}" for k, v in mapping(stage.get("terms")).items())
        rows.append((
            plain(str(stage.get("name", ""))), plain(str(stage.get("generator", ""))),
            percent(stage.get("share"), 0), count(stage.get("synthesis_steps")),
            count(stage.get("synthesis_batch")), count(stage.get("fresh")),
            count(stage.get("student_steps")), plain(terms),
        ))  # fmt: skip
    if not rows and not lines:
        return None
    header = ("stage", "generator", "share", "steps", "batch", "fresh images", "student steps",
              "terms")  # fmt: skip
    return {"title": "The plan", "lines": lines, "tables": [table(header, rows, 2)]}


def proof(record: RunRecord) -> dict[str, Any] | None:
    """What an auditor can check."""
    manifest = record.manifest
    if "proof_level" not in manifest:
        return None
    reasons = [plain(str(text))[:300] for text in sequence(manifest.get("proof_not_higher"))[:10]]
    rows = []
    for number_, sitting in enumerate(sequence(manifest.get("opened")), start=1):
        for told in sequence(mapping(sitting).get("files"))[:MOST_OPENED]:
            entry = mapping(told)
            rows.append((
                str(number_), plain(str(entry.get("path", "")))[:200],
                plain(str(entry.get("role", "")))[:80],
                plain(str(entry.get("sha256") or ""))[:16],
            ))  # fmt: skip
    tables = []
    if rows:
        header = ("sitting", "file", "what", "SHA-256")
        tables = [table(header, rows, 4) | {"folded": f"{len(rows):,} files that were opened"}]
    return {
        "title": "What an auditor can check",
        "lines": [
            f"Level {count(manifest.get('proof_level'))}: {plain(str(manifest.get('proof')))}.",
            *(f"Not higher, since {reason}." for reason in reasons),
            "synthkd verify compares every file of the run with hashes.json; --rerun makes the "
            "student again, where the budget is in images.",
        ],
        "tables": tables,
    }


def again(record: RunRecord) -> dict[str, Any]:
    """How to repeat it."""
    manifest, texts = record.manifest, []
    command = command_of(manifest)
    if command:
        texts.append({"title": "the command", "text": command, "folded": False})
    if record.recipe:
        texts.append({
            "title": "recipe.toml: every setting (synthkd distill --config recipe.toml)",
            "text": plain_lines(record.recipe[:100_000]), "folded": True,
        })  # fmt: skip
    versions = json.dumps(mapping(manifest.get("versions")), indent=1, ensure_ascii=False)
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
        "tables": [table(("SHA-256 of", ""), rows, 2)] if rows else (),
    }  # fmt: skip


def command_of(manifest: Mapping[str, Any]) -> str:
    """The command line of a run; empty where it was begun otherwise."""
    words = sequence(manifest.get("command"))
    return plain(shlex.join(str(word) for word in words))[:2000] if words else ""
