"""`synthkd evaluate`: a student against its teacher; images by themselves or against real ones."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synthkd.core.errors import InputError, plain, quoted
from synthkd.core.files import write_json
from synthkd.core.findings import Finding, as_data
from synthkd.core.words import estimate_in_words
from synthkd.recipe import Recipe, val_of

if TYPE_CHECKING:
    import torch

    from synthkd.commands.display import Display
    from synthkd.core.images import ImageSpec
    from synthkd.evaluation.compare import BinaryRow, Comparison
    from synthkd.evaluation.extractors import Extractor
    from synthkd.evaluation.image_scores import ImageScores
    from synthkd.networks.classifier import Classifier
    from synthkd.teachers.protocol import Teacher

WHAT_IT_IS = (
    "(by images refined anew for the teacher; nine of ten students of known truth lay within such "
    "an\ninterval: docs/how-to/evaluate.md)"
)
MOST_ROWS = 20  # classes shown; evaluation.json has them all


class Grid(NamedTuple):
    """A table to print: the columns after the first are numbers, but for `words` at the end."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 0


Block = str | Grid | Finding


def run(
    recipe: Recipe, *, out: Path | None = None, as_json: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Scores what the recipe names and returns it as plain data.

    With `--student`: student and teacher on `--val-data`, or with `--no-data` on probes made for
    this. With `--images`: that set, against `--reference` where given. All may be asked for at
    once. Prints tables, with `as_json` the data
    instead, with `quiet` nothing; with an `out` directory it writes evaluation.json there.

    Raises InputError when neither is asked for, the directory is not empty, or an input is wrong.
    """
    wants_student = "spec" in recipe.student.model_fields_set
    _check(recipe, wants_student)
    folder = out or (Path(recipe.run.out) if recipe.run.out else None)
    if folder is not None:
        _check_empty(folder)

    import torch

    from synthkd.commands.display import Display
    from synthkd.engine.build import checked
    from synthkd.engine.machine import choose_device
    from synthkd.specs import load_teacher

    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    device = choose_device(recipe.run.device)
    # an untouched --teacher is the digits' demo: no judge of images that another network looks at
    named = "spec" in recipe.teacher.model_fields_set
    teacher = None
    if wants_student or named or recipe.evaluation.extractor == "teacher":
        trust = recipe.run.trust_code
        teacher = load_teacher(recipe.teacher, trust_code=trust, shared=True).to(device)

    result: dict[str, Any] = {}
    display = Display(quiet=quiet or as_json)

    def ask() -> None:  # once everything else is known to be right
        if teacher is not None and "teacher_findings" not in result:
            result["teacher_findings"] = as_data(checked(teacher, recipe, display))

    text: list[Block] = []
    if wants_student:
        assert teacher is not None
        student = _student(recipe, teacher).to(device)
        if recipe.evaluation.no_data:
            result["estimated_agreement"] = _estimate(recipe, student, teacher, text, ask, display)
            result["verdict"] = result["estimated_agreement"]["verdict"]
        if recipe.data.val or not recipe.evaluation.no_data:
            result["comparison"] = _compare(recipe, student, teacher, text, ask)
            result["verdict"] = result["comparison"]["verdict"]
    if recipe.evaluation.images:
        result["images"] = _score(recipe, teacher, device, text, ask)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "evaluation.json", result)
        except OSError as error:
            raise InputError(f"--out {quoted(folder)}: {quoted(error.strerror)}") from None
        text.append(f"written: {_safe(folder / 'evaluation.json')}")
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    elif not quiet:
        _show(text)
    return result


def _check(recipe: Recipe, wants_student: bool) -> None:
    """What can be refused before anything is loaded."""
    if not wants_student and not recipe.evaluation.images:
        raise InputError(
            "nothing to evaluate: give --student SPEC --val-data PATH, or --images PATH, or both"
        )
    if not wants_student and recipe.evaluation.no_data:
        raise InputError("--no-data is for a student: give --student SPEC too")
    if not wants_student and recipe.data.val:
        raise InputError("--val-data is for a student: give --student SPEC too")
    if wants_student and val_of(recipe) == "none" and not recipe.evaluation.no_data:
        raise InputError(
            "--student is scored on --val-data PATH: labelled images; without any: --no-data"
        )
    if recipe.evaluation.reference and not recipe.evaluation.images:
        raise InputError("--reference is what --images PATH is compared with: give that too")
    if recipe.evaluation.extractor_weights and recipe.evaluation.extractor == "teacher":
        raise InputError(
            "--extractor-weights belongs to --extractor inception or SPEC; "
            "the teacher's are --teacher-weights"
        )


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {quoted(folder)}: not an empty directory; give another")


def _estimate(
    recipe: Recipe,
    student: "Classifier",
    teacher: "Teacher",
    text: list[Block],
    ask: Callable[[], None],
    display: "Display",
) -> dict[str, Any]:
    """The agreement to be expected on real images, without any."""
    from synthkd.checks.student import check_estimate, verdict
    from synthkd.evaluation.probes import seconds_for_set
    from synthkd.evaluation.without_data import (
        NOT_SUITED,
        estimate_agreement,
        probes_for,
        probes_suit,
    )

    if not probes_suit(teacher):
        raise InputError(f"--no-data: {NOT_SUITED}")
    ask()
    display.say(f"making probes: some {seconds_for_set(recipe, teacher):.0f} s")
    found = estimate_agreement(student, probes_for(recipe, teacher)).as_data()
    findings = check_estimate(found)
    text += [
        *findings,
        f"student {_safe(recipe.student.spec)} against teacher {_safe(recipe.teacher.spec)}, on "
        f"{found['images']:,} images made for this",
        f"agreement on real images, estimated without data: {estimate_in_words(found)}",
        WHAT_IT_IS,
        *([""] if recipe.data.val else []),
    ]
    return {
        "student": recipe.student.spec, "teacher": recipe.teacher.spec,
        "teacher_digest": teacher.digest, **found, "findings": as_data(findings),
        "verdict": verdict(findings),
    }  # fmt: skip


def _student(recipe: Recipe, teacher: "Teacher") -> "Classifier":
    """The student, whose classes are the teacher's."""
    from synthkd.labels.class_names import check_same_classes
    from synthkd.specs import load_classifier

    trust = recipe.run.trust_code
    student, names = load_classifier(recipe.student, recipe.teacher, trust_code=trust)
    check_same_classes(names, teacher.names)
    return student


def _compare(
    recipe: Recipe,
    student: "Classifier",
    teacher: "Teacher",
    text: list[Block],
    ask: Callable[[], None],
) -> dict[str, Any]:
    from synthkd.checks.student import verdict
    from synthkd.checks.teacher import check_student
    from synthkd.engine.build import images_for_both
    from synthkd.evaluation.compare import compare
    from synthkd.teachers.frozen import digest_of

    table = recipe.student
    images, own = images_for_both(recipe, val_of(recipe), teacher, student)
    ask()
    told = {"spec": table.spec, "weights": table.weights, "args": table.args}
    doubts = check_student(student, recipe.teacher.model_copy(update=told))
    found = compare(student, teacher, images, own=own, batch=recipe.evaluation.batch)
    digest = digest_of(student)
    text += [
        *sorted((*found.findings, *doubts, *images.notes), key=lambda one: not one.serious),
        f"student {_safe(recipe.student.spec)} [{digest[:12]}] "
        f"against teacher {_safe(recipe.teacher.spec)} [{teacher.digest[:12]}]",
        f"on {found.n:,} images of {_safe(images.source)} [{images.digest[:12]}]",
        *([found.order] if found.order else []),
        *_comparison_text(found),
    ]
    return {
        "student": recipe.student.spec,
        "student_digest": digest,
        "student_parameters": sum(p.numel() for p in student.parameters()),
        "student_findings": as_data(doubts),
        "teacher": recipe.teacher.spec,
        "teacher_digest": teacher.digest,
        "teacher_parameters": teacher.parameters_count,
        "data": images.source,
        "data_digest": images.digest,
        "data_notes": as_data(images.notes),
        **asdict(found),
        "verdict": verdict(found.findings),  # ok, weak or useless
    }


def _score(
    recipe: Recipe,
    teacher: "Teacher | None",
    device: "torch.device",
    text: list[Block],
    ask: Callable[[], None],
) -> dict[str, Any]:
    from synthkd.data.sources import load_images
    from synthkd.evaluation.image_scores import score_images

    table = recipe.evaluation
    extractor = _extractor(recipe, teacher, device)
    judge = teacher if teacher is not None else extractor.teacher
    classes, names = (None, ()) if judge is None else (judge.classes, judge.names)
    size = _common_size(teacher, extractor)
    images, reference = (
        load_images(
            path,
            size,
            classes=classes,
            labelled=False,
            trust_code=recipe.run.trust_code,
            names=names,
            table=recipe.data,
        )
        if path
        else None
        for path in (table.images, table.reference)
    )
    assert images is not None
    ask()
    found = score_images(images, reference, extractor, teacher, batch=table.batch)
    against = f" against {_safe(reference.source)} [{reference.digest[:12]}]" if reference else ""
    default = "" if "extractor" in table.model_fields_set else ", the default"
    text += [
        *([""] if text else []),
        f"images {_safe(images.source)} [{images.digest[:12]}]{against}",
        *([images.order] if images.order else []),
        *images.notes,
        *(reference.notes if reference else ()),
        f"extractor {_safe(extractor.name)}{default}: {extractor.kind} [{extractor.digest[:12]}]",
        *_scores_text(found),
    ]
    return {
        "data": images.source,
        "data_digest": images.digest,
        "data_notes": as_data(images.notes),
        "labelled": images.labels is not None,
        "reference": reference.source if reference else None,
        "reference_digest": reference.digest if reference else None,
        **asdict(found),
    }


def _extractor(recipe: Recipe, teacher: "Teacher | None", device: "torch.device") -> "Extractor":
    from synthkd.evaluation.extractors import classifier_extractor, inception_extractor
    from synthkd.specs import load_teacher

    name, weights = recipe.evaluation.extractor, recipe.evaluation.extractor_weights
    if name == "teacher":
        assert teacher is not None
        return classifier_extractor(teacher)
    if name == "inception":
        return inception_extractor(Path(weights) if weights else None, device)
    contract = recipe.teacher.model_copy(update={
        "spec": name, "weights": weights, "classes": None, "args": {}, "features": "",
        "access": "full",
    })  # fmt: skip
    try:
        network = load_teacher(contract, trust_code=recipe.run.trust_code, shared=True)
    except InputError as error:
        raise InputError(f"--extractor {quoted(name)}: {error}") from None
    return classifier_extractor(network.to(device), name)


def _common_size(teacher: "Teacher | None", extractor: "Extractor") -> "ImageSpec | None":
    """The input that all networks share, so that images may differ in size; None: keep theirs."""
    if extractor.teacher is None:
        return None
    spec = extractor.teacher.spec
    return spec if teacher is None or teacher.spec.shape == spec.shape else None


def _comparison_text(found: "Comparison") -> list[Block]:
    ours, theirs = found.student_binary, found.teacher_binary
    told = (
        ("AUROC", *(_figure(t.auroc) for t in (ours, theirs)), ""),
        ("sensitivity", *(_percent(t.sensitivity) for t in (ours, theirs)), ""),
        ("specificity", *(_percent(t.specificity) for t in (ours, theirs)), ""),
        ("F1", *(_figure(t.f1) for t in (ours, theirs)), ""),
    ) if ours and theirs else ()  # fmt: skip
    summary = (
        ("accuracy", _percent(found.student_accuracy), _percent(found.teacher_accuracy),
         _percent(found.constant_accuracy)),
        ("balanced accuracy", _percent(found.student_balanced_accuracy),
         _percent(found.teacher_balanced_accuracy), _percent(found.constant_balanced_accuracy)),
        *told,
        *(() if found.top5 is None else (("top-5 accuracy", _percent(found.top5.student),
            _percent(found.top5.teacher), _percent(found.top5.constant)),)),
        ("ECE, 15 bins", _percent(found.student_ece), _percent(found.teacher_ece), ""),
        ("agreement", _percent(found.agreement), "", ""),
        *(() if found.top5 is None else (
            ("top-5 agreement", _percent(found.top5.agreement), "", ""),)),
        ("balanced agreement", _percent(found.balanced_agreement), "", ""),
        ("KL(teacher ‖ student), nats", _figure(found.kl), "", ""),
        ("transfer efficiency", _figure(found.transfer_efficiency), "", ""),
    )  # fmt: skip
    worst = set(_first(found.classes, [c.agreement for c in found.classes]))
    rows = tuple(
        (
            _safe(c.name),
            f"{c.n:,}",
            _percent(c.student_accuracy),
            _percent(c.teacher_accuracy),
            _percent(c.agreement),
            _figure(c.transfer_efficiency),
        )
        for c in found.classes
        if c in worst
    )
    return [
        Grid(("", "student", "teacher", "a constant"), summary),
        *_binary_text(found),
        "",
        *_few("least agreement", len(found.classes)),
        Grid(("class", "images", "student", "teacher", "agreement", "transfer"), rows),
    ]


def _binary_text(found: "Comparison") -> list[Block]:
    """Each class that is a yes or no, where there are several: student / teacher."""
    if len(found.binary) < 2:
        return []
    hardest = set(_first(found.binary, [row.student.auroc for row in found.binary]))

    def both(row: "BinaryRow", name: str) -> str:
        values = (getattr(told, name) for told in (row.student, row.teacher))
        return " / ".join("" if value is None else f"{value:.3f}" for value in values)

    measures = ("auroc", "sensitivity", "specificity", "f1")
    rows = tuple(
        (_safe(row.name), f"{row.positives:,}", *(both(row, name) for name in measures))
        for row in found.binary
        if row in hardest
    )
    return [
        "",
        "student / teacher:",
        Grid(("class", "positive", "AUROC", "sensitivity", "specificity", "F1"), rows),
    ]


def _scores_text(found: "ImageScores") -> list[Block]:
    scores = tuple(
        (
            name.upper() if name in ("fid", "kid") else name.replace("_", " "),
            (_figure(score.value) or "none")
            + (f" ± {_figure(score.std)}" if score.std is not None else ""),
            f"{score.n:,}" + (f" / {score.n_reference:,}" if score.n_reference else ""),
            f"{_safe(score.extractor)} {score.digest[:12]}",
            score.note,
        )
        for name, score in found.scores.items()
    )
    text: list[Block] = [Grid(("measure", "value", "n", "extractor", "note"), scores, words=2)]
    if found.classes:
        rarest = set(_first(found.classes, [c.votes for c in found.classes]))
        rows = tuple(
            (
                _safe(c.name),
                "" if c.asked is None else f"{c.asked:,}",
                f"{c.votes:,}",
                _figure(c.diversity),
                _figure(c.reference_diversity),
            )
            for c in found.classes
            if c in rarest
        )
        header = ("class", "labelled", "votes", "diversity", "of reference")
        text += ["", *_few("fewest votes", len(found.classes)), Grid(header, rows)]
    return [*text, *(f"warning: {warning}" for warning in found.warnings)]


def _first(classes: Sequence[Any], keys: Sequence[float | None]) -> list[Any]:
    """The classes with the smallest keys; those without one come last."""
    order = sorted(range(len(classes)), key=lambda k: (keys[k] is None, keys[k] or 0.0))
    return [classes[k] for k in order[:MOST_ROWS]]


def _few(what: str, count: int) -> list[Block]:
    if count <= MOST_ROWS:
        return []
    return [f"the {MOST_ROWS} of {count:,} classes with the {what} (evaluation.json has all):"]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _safe(text: object) -> str:
    """A name from somebody else's folder, shown as it is only where that is harmless."""
    return str(text) if str(text).isprintable() else quoted(text)


def _line(block: str | Finding) -> str:
    if isinstance(block, str):
        return block
    return plain(f"{'serious' if block.serious else 'warning'}: {block}")


def _show(blocks: Sequence[Block]) -> None:
    """Tables with rules on a terminal, aligned columns elsewhere."""
    if not sys.stdout.isatty():
        for block in blocks:
            print("\n".join(aligned(block)) if isinstance(block, Grid) else _line(block))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for block in blocks:
        if not isinstance(block, Grid):
            serious = isinstance(block, Finding) and block.serious
            console.print(Text(_line(block), style="bold red" if serious else ""))
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, title in enumerate(block.header):
            table.add_column(title, justify="right" if _is_number(block, column) else "left")
        for row in block.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)


def aligned(grid: Grid) -> list[str]:
    """A table as lines of text.

    >>> aligned(Grid(("class", "n"), (("cat", "7"), ("dog", "12"))))
    ['class   n', 'cat     7', 'dog    12']
    """
    lines = (grid.header, *grid.rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.header))]
    return [
        "  ".join(
            cell.rjust(width) if _is_number(grid, column) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _is_number(grid: Grid, column: int) -> bool:
    return 0 < column < len(grid.header) - grid.words
