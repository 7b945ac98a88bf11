"""The report of one run: what it came to, and beside each number what it is to be compared with."""

import shlex
from collections.abc import Mapping
from typing import Any

from synthkd.core.errors import plain
from synthkd.core.privacy import statement
from synthkd.core.words import counted, span
from synthkd.reports import run_blocks
from synthkd.reports.page import count, mapping, percent, rendered, sequence, short
from synthkd.reports.record import RunRecord, number
from synthkd.reports.run_blocks import command_of


def run_report(record: RunRecord, *, images: bool = True) -> str:
    """The report of one run as HTML; without `images` it shows no synthetic image."""
    summary, manifest = record.summary, record.manifest
    blocks = [
        run_blocks.curves(record),
        run_blocks.pictures(record) if images else None,
        run_blocks.confusion(record),
        run_blocks.classes(record),
        run_blocks.time(record),
        run_blocks.quality(record),
        run_blocks.plan(record),
        run_blocks.proof(record),
        run_blocks.again(record),
    ]
    real, level = (
        number(summary.get(key, manifest.get(key))) for key in ("real_images_read", "promise_level")
    )
    return rendered(
        title=_title(record),
        state=record.state,
        badge=_badge(record),
        lead=lead_of(record),
        findings=findings_of(record),
        figures=figures_of(record),
        asked=_asked(record),
        promise=promise_of(record),
        statement=statement(int(real or 0), level=int(level or 0)),
        blocks=[block for block in blocks if block],
    )


def _badge(record: RunRecord) -> str:
    """How the state is coloured: as the verdict, of a run that is finished."""
    verdict = record.summary.get("verdict")
    if record.state == "finished":
        return str(verdict) if verdict in ("ok", "weak", "useless") else ""
    return "ok" if record.state == "running" else "weak"


def _title(record: RunRecord) -> str:
    teacher = short(record.manifest.get("teacher", "a teacher"))
    student = short(record.manifest.get("student", "a student"))
    return f"{teacher} → {student}"


def lead_of(record: RunRecord) -> str:
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
        against = "" if constant is None else f"; a constant classifier has {percent(constant)}"
        return (
            f"The student is right on {percent(own)} of {count(summary.get('val_images'))} "
            f"labelled images, the teacher on {percent(theirs)}{against}."
        )
    balance = mapping(summary.get("held_out_balance"))
    if number(summary.get("agreement")) is not None:
        return f"The student agrees with the teacher on {percent(summary['agreement'])}."
    return (
        "No labelled images were given: how good the student is on real images is not known. On "
        f"{_held_out(summary)} images that nobody learned from it agrees with the teacher on "
        f"{percent(balance.get('balanced_agreement'))} (a constant classifier: "
        f"{percent(balance.get('constant_classifier'))})"
        + (", which says little about real ones." if _held_out(summary) == "synthetic" else ".")
    )


def _held_out(summary: Mapping[str, Any]) -> str:
    """What images agreement was measured on: synthetic, or real where a run has no others."""
    return plain(str(summary.get("held_out", "synthetic")))[:20]


def findings_of(record: RunRecord) -> list[dict[str, Any]]:
    """What speaks against the result, the serious first; then what could not be read."""
    told: dict[str, bool] = {}
    sources = (record.summary, record.manifest)
    for source in sources:
        for key in ("findings", "teacher_findings", "val_notes"):
            for finding in sequence(source.get(key)):
                one = mapping(finding)
                seen, remedy = str(one.get("seen", "")), str(one.get("remedy", ""))
                text = plain(f"{seen}: {remedy}" if remedy else seen)[:1000]
                told[text] = told.get(text, False) or bool(one.get("serious"))
    for text in record.problems:
        told.setdefault(plain(text), False)
    ordered = sorted(told.items(), key=lambda item: not item[1])[:30]
    return [{"text": text, "serious": serious} for text, serious in ordered]


def figures_of(record: RunRecord) -> list[dict[str, str]]:
    """The numbers of the first screen, each beside what it is to be compared with."""
    summary, latest = record.summary, record.latest
    cards = []

    def card(title: str, value: str, note: str = "") -> None:
        cards.append({"title": title, "value": value, "note": note})

    if summary:
        if number(summary.get("student_accuracy")) is not None:
            card("accuracy of the student", percent(summary.get("student_accuracy")),
                 f"teacher {percent(summary.get('teacher_accuracy'))}, constant "
                 f"{percent(summary.get('constant_accuracy'))}")  # fmt: skip
        if number(summary.get("agreement")) is not None:
            card("agreement on labelled images", percent(summary.get("agreement")),
                 f"{count(summary.get('val_images'))} images")  # fmt: skip
        balance = mapping(summary.get("held_out_balance"))
        found = mapping(summary.get("estimated_agreement"))
        if found:
            card("agreement on real images, estimated without data",
                 percent(found.get("agreement"), 0),
                 f"{percent(found.get('low'), 0)} to {percent(found.get('high'), 0)}; constant "
                 f"{percent(found.get('constant'), 0)}; {count(found.get('images'))} images made "
                 "for this")  # fmt: skip
        card(
            f"balanced agreement, held-out {_held_out(summary)}",
            percent(balance.get("balanced_agreement")),
            f"constant {percent(balance.get('constant_classifier'))}"
            + ("" if found else "; no estimate for real images"),
        )
        small, large = (number(summary.get(f"{who}_parameters")) for who in ("student", "teacher"))
        share = f"{small / large:.1%} of the teacher's" if small and large else ""
        card("parameters", count(small), share)
        card("real images read", count(summary.get("real_images_read")),
             plain(str(summary.get("promise", ""))))  # fmt: skip
        card("images learned", count(summary.get("images_seen")),
             f"{count(summary.get('images_synthesized'))} synthesized")  # fmt: skip
        seconds = number(summary.get("wall_seconds"))
        card("time", span(seconds) if seconds is not None else "–",
             f"{count(summary.get('peak_memory_mb'))} MB at most")  # fmt: skip
    elif latest:
        card("done", percent(latest.get("share"), 0), f"{record.rounds:,} rounds")
        card("images learned", count(latest.get("images_seen")),
             f"{count(latest.get('synthesized'))} synthesized")  # fmt: skip
        if "agreement" in latest:
            card("agreement, held-out synthetic", percent(latest["agreement"]),
                 "no estimate for real images")  # fmt: skip
        seconds = number(latest.get("seconds"))
        card("worked", span(seconds) if seconds is not None else "–", "")
    return cards


def _asked(record: RunRecord) -> list[str]:
    """What was asked for."""
    manifest, lines = record.manifest, []
    budget, data = (mapping(record.settings.get(key)) for key in ("budget", "data"))
    minutes, images = (number(budget.get(key)) for key in ("minutes", "images"))
    if minutes or images:
        share = number(data.get("mix_ratio"))
        mixed = "" if share is None else f", {share:.0%} of the images synthetic"
        given = counted(minutes, "minute") if minutes else f"{count(images)} student images"
        pipeline = plain(str(record.settings.get("pipeline", "")))[:60]
        lines.append(f"Asked for: {given} of the pipeline {pipeline}{mixed}.")
    command = command_of(manifest)
    if command:
        lines.append(f"By: {command}")
    chosen = mapping(manifest.get("student_chosen"))
    if chosen:
        lines.append("The student was chosen automatically; see the plan below.")
    if record.state == "interrupted":
        lines.append(f"Go on with: synthkd distill --resume {shlex.quote(str(record.path))}")
    return lines


def promise_of(record: RunRecord) -> str:
    """What kind of data the run touched, in one line, and what proves it."""
    source = record.summary or record.manifest
    level, said = source.get("promise_level"), plain(str(source.get("promise", "unknown")))
    access = plain(str(record.summary.get("teacher_access", "")))
    asked = number(record.summary.get("teacher_queries"))
    teacher = f" The teacher ({access}) was asked about {count(asked)} images." if access else ""
    proof = plain(str(source.get("proof", "")))[:200]
    shown = f" Proof: level {count(source.get('proof_level'))}, {proof}." if proof else ""
    return f"Promise: level {plain(str(level))}, {said}.{shown}{teacher}"
