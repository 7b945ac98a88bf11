"""`synthkd audit`: what teacher and student of a run tell about who was in the training data; for
those who hold these data."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd import measures
from synthkd import recipe as recipes
from synthkd.commands.display import Display
from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding, as_data
from synthkd.core.images import save_picture
from synthkd.data.shadows import Shadows, load_shadows
from synthkd.data.sources import Images
from synthkd.engine.build import checked, images_for
from synthkd.engine.machine import choose_device
from synthkd.evaluation import leaks, nearest
from synthkd.evaluation.compare import answers_of, settled
from synthkd.evaluation.leaks import Attack, Group, Rate
from synthkd.evaluation.membership import Estimate
from synthkd.labels.class_names import check_same_classes
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, StudentTable, Table, TeacherTable
from synthkd.runs.directory import CALIBRATION
from synthkd.specs import load_classifier, load_teachers
from synthkd.teachers.frozen import digest_of
from synthkd.teachers.protocol import Teacher

BATCH = 256
FEWEST = 2  # images of a kind
PARTS = ("members", "non-members", "canaries", "canaries left out")  # in the order of the shadows
RESULT, SHEET = "audit.json", "nearest.png"


class Examples(NamedTuple):
    """Everything that is asked about, part after part."""

    parts: dict[str, Images]  # those of PARTS that were given
    labels: NDArray[np.int64]  # [N]
    answers: dict[str, NDArray[np.float32]]  # [N, K], of teacher and student
    findings: list[Finding]

    def rows(self, name: str) -> NDArray[np.int64]:
        """The places of a part among the N."""
        sizes = {key: len(images.pixels) for key, images in self.parts.items()}
        first = sum(sizes[key] for key in PARTS[: PARTS.index(name)] if key in sizes)
        return np.arange(first, first + sizes[name])


def run(
    recipe: Recipe, *, members: str = "", non_members: str = "", canaries: str = "",
    left_out: str = "", shadows: Sequence[Path] | None = None, images: str = "",
    as_json: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Attacks teacher and student of the run directory `student.spec`, and returns what was found
    as plain data; no verdict is among them.

    `members` are images that the teacher was trained with, `non_members` others of the same kind;
    `canaries` are members with wrong labels, which it was trained with too, `left_out` such images
    that it was not trained with. `shadows` are files of `data.shadows`. `images` are synthetic
    ones, by default those that the run kept. Prints tables, with `as_json` the data instead, with
    `quiet` nothing; `run.out` is a directory for the data and the sheet.

    Raises InputError for whatever is missing or wrong.
    """
    path = Path(recipe.student.spec)
    given = dict(zip(PARTS, (members, non_members, canaries, left_out), strict=True))
    _check(given)
    folder = Path(recipe.run.out) if recipe.run.out else None
    recipe = _of_run(path, recipe)
    manifest = files.read_table(path / "manifest.json", f"audit {quoted(path)}")
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    device = choose_device(recipe.run.device)
    display = Display(quiet=quiet or as_json)
    loaded: Any = load_teachers(recipe.teacher, trust_code=recipe.run.trust_code)
    teacher: Teacher = loaded.to(device)
    student, names = load_classifier(
        StudentTable(spec=str(path)), TeacherTable(), trust_code=recipe.run.trust_code
    )
    _check_networks(teacher, student.to(device))
    check_same_classes(names, teacher.names)
    checked(teacher, recipe, display)
    examples = _asked(recipe, given, teacher, student)
    known = load_shadows(shadows, examples.labels, teacher.classes) if shadows else None
    synthetic = _synthetic(recipe, images, path, teacher)
    if folder is not None:
        files.claim(folder)

    findings = [*_other_teacher(manifest, teacher), *examples.findings]
    pixels = [examples.parts[name].pixels for name in PARTS[:2]]
    findings += leaks.shared(pixels[0], pixels[1])
    if known is not None:
        right = np.concatenate([examples.rows(name) for name in PARTS[:2]])
        labels, votes = (of[right] for of in (examples.labels, examples.answers["teacher"]))
        accuracy = float((votes.argmax(1) == labels).mean())
        findings += leaks.out_of_order(known, labels, right, accuracy)
    found = _attacks(examples, known, teacher.classes, recipe.run.seed)
    accuracies = _accuracies(examples)
    near = None if synthetic is None else nearest.neighbours(synthetic.pixels, pixels[0], pixels[1])
    result: dict[str, Any] = {
        "run": str(path),
        "teacher_digest": teacher.digest,
        "student_digest": digest_of(student),
        "data": {
            name: {"source": one.source, "digest": one.digest, "images": len(one.pixels)}
            for name, one in examples.parts.items()
        },
        "shadows": None if known is None else {
            "files": [str(file) for file in shadows or ()],
            "networks": len(known),
            "students": known.student_logits is not None,
        },
        "accuracy": accuracies,
        "attacks": [asdict(one) for one in found],
        "nearest": _near_data(near, synthetic),
        "findings": as_data(findings),
        "limits": leaks.LIMITS,
    }  # fmt: skip
    display.findings(findings)
    _show(display, examples, found, accuracies, near, synthetic)
    if folder is not None:
        _write(folder, result, near, synthetic, pixels, display)
    if as_json:
        print(json.dumps(files.finite(result), indent=2, ensure_ascii=False))
    return result


def _check(given: dict[str, str]) -> None:
    """What can be refused before anything is loaded."""
    for name in PARTS[:2]:
        if not given[name]:
            raise InputError(
                f"--{name} is missing: an audit compares images that the teacher was trained with "
                "(--members) with others of the same kind (--non-members)"
            )
    if given["canaries left out"] and not given["canaries"]:
        raise InputError("--left-out-canaries are compared with --canaries: give those too")


def _of_run(path: Path, given: Recipe) -> Recipe:
    """The recipe of a run, with what is given now laid over it. The teacher is attacked as a whole,
    whatever the run might use of it."""
    file = path / "recipe.toml"
    if not file.is_file():
        raise InputError(f"audit {quoted(path)}: this is not a run directory: no recipe.toml in it")
    kept = recipes.validated(recipes.read_toml(file))
    teacher = TeacherTable()
    if "spec" not in given.teacher.model_fields_set:
        teacher = kept.teacher.model_copy(update={"access": "full"})
        recipes.refuse_code({"teacher": teacher.model_dump()}, trust_code=given.run.trust_code)
    return kept.model_copy(update={
        "teacher": _over(teacher, given.teacher),
        "data": _over(kept.data, given.data),
        "run": given.run,
    })  # fmt: skip


def _over(table: Table, given: Table) -> Any:
    """A table with those settings of another of its kind that were given."""
    return table.model_copy(update={key: getattr(given, key) for key in given.model_fields_set})


def _check_networks(teacher: Teacher, student: Classifier) -> None:
    if teacher.independent:
        raise InputError(
            "audit: the teacher's classes are independent of each other; the attacks are for "
            "classes of which one applies"
        )
    if student.classes != teacher.classes:
        raise InputError(
            f"the student has {student.classes} classes and the teacher {teacher.classes}: give "
            "the teacher of this run by --teacher"
        )


def _other_teacher(manifest: dict[str, Any], teacher: Teacher) -> list[Finding]:
    if manifest.get("teacher_sha256") == teacher.digest:
        return []
    return [
        Finding(
            "other-teacher", "the teacher is not the one that the run was started with",
            "give that one by --teacher, or read the teacher's rows as another network's",
            serious=True,
        )
    ]  # fmt: skip


def _asked(
    recipe: Recipe, given: dict[str, str], teacher: Teacher, student: Classifier
) -> Examples:
    """Reads all parts, and asks both networks about them."""
    parts: dict[str, Images] = {}
    findings: list[Finding] = []
    reordered = False
    answers: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name in (name for name in PARTS if given[name]):
        found = images_for(recipe, given[name], teacher, labelled=True)
        assert found.labels is not None
        if found.labels.dim() > 1:
            raise InputError(
                f"{quoted(found.source)}: labels of several classes per image; give one per image"
            )
        if len(found.pixels) < FEWEST:
            raise InputError(f"{quoted(found.source)}: {FEWEST} {name} are needed, and more help")
        with teacher.exact():
            taught = answers_of(teacher, found.pixels, BATCH, "teacher")
        answers["teacher"].append(taught)
        answers["student"].append(answers_of(student, found.pixels, BATCH, "student"))
        if name in PARTS[:2]:
            before = found
            votes = taught.argmax(1)
            found, check = settled(found, votes, teacher.classes, teacher.names)
            reordered |= found is not before
            findings += check.findings
        elif reordered and any(order.adopted for order in found.others):
            raise InputError(
                f"{quoted(found.source)}: the folders of the members are in another order than by "
                "number, and wrong labels cannot tell theirs: give --class-order"
            )
        findings += found.notes
        parts[name] = found
    labels = torch.cat([one.labels for one in parts.values() if one.labels is not None])
    logits = {key: torch.cat(each).numpy() for key, each in answers.items()}
    return Examples(parts, labels.numpy(), logits, findings)


def _attacks(examples: Examples, known: Shadows | None, classes: int, seed: int) -> list[Attack]:
    """Every attack on both networks, on the members and on the canaries."""
    shadows: dict[str, NDArray[Any] | None] = {"teacher": None, "student": None}
    if known is not None:
        of_students = known.logits if known.student_logits is None else known.student_logits
        shadows = {"teacher": known.logits, "student": of_students}
    had = None if known is None else known.member
    return [
        found
        for group in _groups(examples, classes, seed)
        for network, logits in examples.answers.items()
        for found in leaks.attacks(network, logits[group.rows], group, shadows[network], had)
    ]


def _groups(examples: Examples, classes: int, seed: int) -> list[Group]:
    """The members beside the non-members; and the canaries beside those left out, or where there
    are none, beside the non-members with wrong labels drawn for them."""
    inside, outside = (examples.rows(name) for name in PARTS[:2])
    groups = [_group("members", examples.labels, inside, outside)]
    if "canaries" not in examples.parts:
        return groups
    canaries = examples.rows("canaries")
    if "canaries left out" in examples.parts:
        left = examples.rows("canaries left out")
        canary = _group("canaries", examples.labels, canaries, left)
        return [*groups, canary._replace(by_coin=True)]
    labels = examples.labels.copy()
    labels[outside] = leaks.wrong_labels(labels[outside], classes, seed)
    return [*groups, _group("canaries", labels, canaries, outside)._replace(as_trained=False)]


def _group(
    name: str,
    labels: NDArray[np.int64],
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
) -> Group:
    rows = np.concatenate([inside, outside])
    return Group(name, labels[rows], np.arange(len(rows)) < len(inside), rows)


def _accuracies(examples: Examples) -> dict[str, dict[str, float]]:
    """The share right of every part, by both networks, and by the best constant answer."""
    found: dict[str, dict[str, float]] = {}
    for part in examples.parts:
        rows = examples.rows(part)
        labels = torch.from_numpy(examples.labels[rows])
        found[part] = {
            network: measures.accuracy(torch.from_numpy(logits[rows]), labels)
            for network, logits in examples.answers.items()
        } | {"constant": float(labels.bincount().max()) / len(labels)}
    return found


def _synthetic(recipe: Recipe, given: str, path: Path, teacher: Teacher) -> Images | None:
    """The synthetic images to lay beside real ones: those given, or those that the run kept."""
    source = given or str(path / CALIBRATION)
    if not given and not Path(source).is_file():
        return None
    return images_for(recipe, source, teacher, labelled=False)


def _near_data(near: nearest.Neighbours | None, synthetic: Images | None) -> dict[str, Any] | None:
    if near is None or synthetic is None:
        return None
    return {
        "source": synthetic.source,
        "images": len(synthetic.pixels),
        "nearer_to_a_member": near.nearer._asdict(),
        "by_chance": near.by_chance,
        "least_distance": float(near.member.distance.min()),
        "least_distance_of_a_non_member": float(near.non_member.distance.min()),
    }


def _show(
    display: Display, examples: Examples, found: Sequence[Attack],
    accuracies: dict[str, dict[str, float]], near: nearest.Neighbours | None,
    synthetic: Images | None,
) -> None:  # fmt: skip
    """The tables."""
    networks = (*examples.answers, "constant")
    sizes = [f"{name}, {len(one.pixels):,}" for name, one in examples.parts.items()]
    display.table(
        "accuracy, by the labels of the training", ("", *sizes),
        [("a constant" if network == "constant" else network,
          *(f"{accuracies[part][network]:.2%}" for part in examples.parts))
         for network in networks],
    )  # fmt: skip
    for group in dict.fromkeys(one.group for one in found):
        some = [one for one in found if one.group == group]
        coin = some[0].epsilon_lower_bound is not None
        rates = [
            word
            for rate in some[0].rates
            for word in (f"TPR at {100 * rate.false_positive_rate:g} % FPR", "by chance")
        ]
        display.table(
            f"{group}: {some[0].members:,}, beside {some[0].non_members:,} that were not",
            ("attack", "AUC", "by chance", *rates, *(("ε at least", "by chance") if coin else ())),
            [_row(one) for one in some],
        )
    if near is not None and synthetic is not None:
        display.table(
            f"{len(synthetic.pixels):,} synthetic images of {synthetic.source}",
            ("", "share", "by chance"),
            [("nearer to a member than to any non-member", _interval(near.nearer, percent=True),
              f"{near.by_chance:.1%}")],
        )  # fmt: skip
    display.say(f"This {leaks.LIMITS}: a stronger attack may find more.")


def _row(one: Attack) -> tuple[str, ...]:
    cells = [f"{one.network}, {leaks.SCORES[one.score]}"]
    cells += [_interval(Estimate(one.auc, one.auc_low, one.auc_high)), f"{one.auc_by_chance:.3f}"]
    for rate in one.rates:
        chance = "-" if rate.by_chance is None else f"{rate.by_chance:.2%}"
        cells += [_rate(rate, one.non_members), chance]
    if one.epsilon_lower_bound is not None:
        cells += [f"{one.epsilon_lower_bound:.2f}", f"{one.epsilon_by_chance:.2f}"]
    return tuple(cells)


def _rate(rate: Rate, count: int) -> str:
    if rate.value is None or rate.low is None or rate.high is None:
        return f"not measurable with {count:,} (needs {rate.non_members_needed:,})"
    return _interval(Estimate(rate.value, rate.low, rate.high), percent=True)


def _interval(found: Estimate, *, percent: bool = False) -> str:
    if percent:
        return f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _write(
    folder: Path, result: dict[str, Any], near: nearest.Neighbours | None,
    synthetic: Images | None, pixels: Sequence[Tensor], display: Display,
) -> None:  # fmt: skip
    try:
        if near is not None and synthetic is not None:
            picture = nearest.sheet(synthetic.pixels, pixels[0], pixels[1], near)
            save_picture(picture, folder / SHEET)
            display.say(f"written: {folder / SHEET}, which shows real images")
        files.write_json(folder / RESULT, result)
    except OSError as error:
        raise InputError(f"--out {quoted(folder)}: {error.strerror or quoted(error)}") from None
    display.say(f"written: {folder / RESULT}")
