"""Whether a finished run, or a data set, is as it was left, and what it shows of what it read."""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding
from synthkd.jobs.distillation import Distillation
from synthkd.proof import hashes
from synthkd.proof.levels import LEVELS, level_of
from synthkd.proof.places import inside
from synthkd.recipe import Recipe, read_toml, trusted, validated
from synthkd.reports.record import read_run
from synthkd.reports.run_page import run_report

MANIFEST, SUMMARY, STUDENT, RECIPE, REPORT = (
    "manifest.json", "summary.json", "student.safetensors", "recipe.toml", "report.html",
)  # fmt: skip


@dataclass(frozen=True)
class Verified:
    """What was checked, and every difference."""

    findings: tuple[Finding, ...]
    checked: hashes.Checked
    level: int  # of proof, by the evidence that is there
    reasons: tuple[str, ...]  # why it is no higher
    notes: tuple[str, ...] = ()  # what is no difference, and worth a line

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verified": not self.findings,
            "findings": [{"code": f.code, "seen": f.seen} for f in self.findings],
            "files": self.checked.files, "bytes": self.checked.bytes,
            "digest": self.checked.digest, "proof_level": self.level,
            "proof": LEVELS[self.level], "proof_not_higher": list(self.reasons),
            "notes": list(self.notes),
        }  # fmt: skip


def verify(path: Path, *, digest: str = "") -> Verified:
    """Compares every file of a run with its hashes, and the proof that its manifest claims with the
    evidence there. Raises InputError where `path` is no run that can be verified."""
    where = quoted(path)
    if not path.is_dir():
        raise InputError(f"{where}: there is no such directory")
    manifest = files.read_table(path / MANIFEST, where)
    hashed = files.exists(path / hashes.NAME)
    ended = hashed or (path / SUMMARY).is_file() or "shards" in manifest
    if not ended and "format" in manifest:
        raise InputError(f"{where}: this run is not finished: there is nothing to verify yet")
    if not hashed and "proof_level" not in manifest:
        raise InputError(
            f"{where}: it was made by a synthkd that kept no hashes: nothing can be verified"
        )
    checked = hashes.check(path, digest)
    try:
        level, reasons = level_of(manifest)
        changed, anew = _report_made_anew(path, checked.findings)
        findings = [*changed, *_against_summary(path, manifest), *_against(manifest, level)]
        if (path / RECIPE).is_file():
            findings += _opened_against_seal(manifest)
        elsewhere, notes = _teachers(manifest)
        notes += [*_around(manifest), *anew]
    except (TypeError, AttributeError, KeyError, ValueError):
        raise InputError(
            f"{where}: its {MANIFEST} is damaged, or somebody has changed it"
        ) from None
    if checked.later:
        some = ", ".join(quoted(name) for name in checked.later[:3])
        more = f" and {len(checked.later) - 3:,} more" if len(checked.later) > 3 else ""
        notes.append(f"added later and not covered: {some}{more}")
    return Verified((*findings, *elsewhere), checked, level, reasons, tuple(notes))


def _report_made_anew(path: Path, findings: Sequence[Finding]) -> tuple[list[Finding], list[str]]:
    """What is left of the findings where report.html is another one, and is just what `synthkd
    report` makes of the directory as it is now: that is a note."""
    own = f"{quoted(REPORT)}: "
    others = [f for f in findings if f.code != "file-changed" or not f.seen.startswith(own)]
    if len(others) < len(findings):
        there = (path / REPORT).read_text("utf-8", "replace")
        for images in (True, False):
            if there == run_report(read_run(path, pictures=images), images=images):
                return others, [f"{REPORT} was made anew after the run, from what lies here now"]
    return list(findings), []


def _different(code: str, seen: str) -> Finding:
    return Finding(code, seen, "", serious=True)


def _against_summary(path: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether manifest, summary, recipe and student tell of one another."""
    if not (path / SUMMARY).is_file():
        return
    try:
        summary = files.read_table(path / SUMMARY, quoted(path))
    except InputError as error:
        yield _different("summary-damaged", str(error))
        return
    told = summary.get("student_sha256")
    if files.is_plain(path / STUDENT) and files.sha256_of(path / STUDENT) != told:
        yield _different("student-differs", f"{SUMMARY} tells of another {STUDENT}")
    if files.is_plain(path / RECIPE) and (
        files.sha256_of(path / RECIPE) != manifest.get("recipe_sha256")
    ):
        yield _different("recipe-differs", f"{MANIFEST} tells of another {RECIPE}")
    for key in ("real_images_read", "promise_level", "proof_level"):
        if summary.get(key) != manifest.get(key):
            yield _different("summary-differs", f"{SUMMARY} and {MANIFEST} differ in {key}")


def _against(manifest: Mapping[str, Any], level: int) -> Iterator[Finding]:
    """Whether the claimed level has its evidence, and whether that contradicts what is claimed."""
    claimed = manifest.get("proof_level")
    if claimed != level:
        yield _different(
            "level-differs", f"level {quoted(claimed, 20)} is claimed, the evidence is of {level}"
        )
    promise = manifest.get("promise_level")
    for sitting, entry in _opened(manifest):
        role, early = str(entry.get("role")), "before" in str(entry.get("when"))
        if role == "real data" and promise in (0, 1):
            yield _different("real-data-opened", f"{_path(entry)}: real data, and none is told of")
        if role == "unknown" and entry.get("read") and not sitting.get("living"):
            yield _different("opened-elsewhere", f"{_path(entry)} was read, and no recipe names it")
        if role == "validation data" and early:
            yield _different(
                "validation-early", f"{_path(entry)}: read before the student was chosen"
            )
    sealed = manifest.get("sealed") or ()
    for number, sitting in enumerate(manifest.get("opened") or ()):
        if not isinstance(sitting, Mapping):
            continue
        held = number < len(sealed) and sealed[number]  # its children are sealed as well
        living, online = sitting.get("living"), sitting.get("online")
        for key, allowed in (("sockets", living or online), ("children", living or held)):
            if not allowed and (found := sitting.get(key)):
                yield _different(f"opened-{key}", f"code of the run used {key}: {quoted(found[0])}")
        if missed := sitting.get("missed"):
            yield _different("opened-missed", f"{quoted(missed, 20)} events could not be kept")


def _around(manifest: Mapping[str, Any]) -> list[str]:
    """Notes on what the program around a run opened, whose objects took part in it."""
    found = [
        _path(entry) for sitting, entry in _opened(manifest)
        if entry.get("role") == "unknown" and entry.get("read") and sitting.get("living")
    ]  # fmt: skip
    if not found:
        return []
    more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
    return [
        f"the program that called synthkd, or the run, read {found[0]}{more}: with objects of a "
        "program's own it cannot be told which"
    ]


def _opened(
    manifest: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """All files and folders that were opened, each with the sitting's record."""
    sittings = manifest.get("opened")
    for sitting in sittings if isinstance(sittings, list) else ():
        for key in ("files", "folders"):
            entries = sitting.get(key) if isinstance(sitting, Mapping) else None
            yield from ((sitting, e) for e in entries or () if isinstance(e, Mapping))


def _path(entry: Mapping[str, Any]) -> str:
    return quoted(entry.get("path"))


def _opened_against_seal(manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether what a sealed sitting opened is what its seal allowed."""
    opened, sealed = manifest.get("opened"), manifest.get("sealed")
    for sitting, record in zip(opened or (), sealed or (), strict=False):
        if not isinstance(record, Mapping) or not isinstance(sitting, Mapping):
            continue
        allowed = [str(e.get("real")) for e in record.get("read", ()) if isinstance(e, Mapping)]
        for key in ("run", "package", "system", "devices", "write"):
            allowed += [os.path.realpath(str(place)) for place in record.get(key, ())]
        for entry in sitting.get("files") or ():
            path = str(entry.get("path"))
            refused = "refused" in str(entry.get("role")) or not path.startswith("/")
            if not refused and not any(inside(path, place) for place in allowed):
                yield _different(
                    "seal-differs", f"{quoted(path)} was opened, and the seal forbids it"
                )


def _teachers(manifest: Mapping[str, Any]) -> tuple[list[Finding], list[str]]:
    """Whether the teacher's files are still what they were, where they are at their place."""
    findings, notes, seen = [], [], set()
    for _, entry in _opened(manifest):
        path, known = str(entry.get("path")), entry.get("sha256")
        if entry.get("role") != "teacher" or not known or path in seen:
            continue
        seen.add(path)
        try:
            same = files.sha256_of(Path(path)) == known
        except OSError:
            notes.append(f"the teacher's {quoted(path)} is not at its place: not compared")
            continue
        if not same:
            findings.append(
                _different("teacher-changed", f"the teacher's {quoted(path)} has changed")
            )
    return findings, notes


def rerun(path: Path, *, trust_code: bool = False) -> Finding | None:
    """Runs the recipe of a finished run again, in a temporary directory, and compares the students
    bit for bit: None where they are equal. Validation data, which decide nothing, are not opened.
    Raises InputError where a run cannot be repeated exactly."""
    recipe = validated(read_toml(path / RECIPE))
    where = f"--rerun {quoted(path)}"
    if recipe.budget.minutes is not None or any(stage.seconds for stage in recipe.stages):
        raise InputError(
            f"{where}: its budget is in minutes, so the clock decided how far it came: only a "
            "budget in images can be repeated exactly"
        )
    specs = (recipe.teacher.spec, recipe.student.spec, recipe.data.real)
    if any(spec.startswith("<") for spec in specs):
        raise InputError(f"{where}: it was given living objects, which no file can bring back")
    if not files.is_plain(path / STUDENT):
        raise InputError(f"{where}: there is no {STUDENT}: only runs of distill can be repeated")
    recipe = trusted(recipe, trust_code=trust_code, anyway=True)
    with tempfile.TemporaryDirectory(prefix="synthkd-rerun-") as folder:
        again = Path(folder) / "run"
        table = recipe.run.model_copy(update={"out": str(again)})
        data = recipe.data.model_copy(update={"val": "none"})
        Distillation(_with(recipe, run=table, data=data)).start()
        return _compared(path / STUDENT, again / STUDENT)


def _with(recipe: Recipe, **tables: Any) -> Recipe:
    return recipe.model_copy(update=tables)


def _compared(first: Path, second: Path) -> Finding | None:
    if files.sha256_of(first) == files.sha256_of(second):
        return None
    try:
        ours, theirs = load_file(str(first)), load_file(str(second))
    except (SafetensorError, OSError, ValueError):
        return _different("rerun-differs", f"{quoted(first)} is no student that can be read")
    names = sorted(
        n for n in ours.keys() | theirs.keys()
        if n not in ours or n not in theirs or not torch.equal(ours[n], theirs[n])
    )  # fmt: skip
    alike = [n for n in names if n in ours and n in theirs and ours[n].shape == theirs[n].shape]
    off = max((_apart(ours[n], theirs[n]) for n in alike), default=math.inf)
    by = f", by {off:.3g} at most" if math.isfinite(off) else ""
    return _different(
        "rerun-differs",
        f"the student of the same recipe is another one: {len(names)} of {len(theirs)} tensors "
        f"differ{by} (another machine, other versions or threads?)",
    )


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
