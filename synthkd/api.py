"""The library: what the commands do, with living objects in the place of names and paths.

`import synthkd` offers everything here; nothing prints unless asked, and what is wrong with an
input is an `InputError`. B batch, C channels, H height, W width, K classes.
"""

import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from synthkd.commands.display import Display
from synthkd.commands.report import write as write_report
from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.engine.build import build as build_lab
from synthkd.engine.build import images_for_both
from synthkd.engine.loop import Lab
from synthkd.engine.machine import choose_device, left_as_it_was
from synthkd.engine.processes import Processes
from synthkd.engine.reporter import Reporter, Silent
from synthkd.evaluation.compare import Comparison, compare
from synthkd.evaluation.without_data import (
    NOT_SUITED,
    AgreementEstimate,
    estimate_agreement,
    probes_for,
    probes_suit,
)
from synthkd.jobs import inspection, sharding
from synthkd.jobs.distillation import Distillation, Result, Unscored
from synthkd.jobs.generation import DataSet, Generation, begun, used
from synthkd.labels.class_names import check_same_classes
from synthkd.networks.classifier import Classifier
from synthkd.networks.modes import in_eval_mode
from synthkd.recipe import Recipe, StudentTable, TeacherTable, from_settings, trusted
from synthkd.runs.directory import Run
from synthkd.runs.session import Stopped
from synthkd.specs import living, load_classifier, load_teacher
from synthkd.teachers.protocol import Teacher, is_teacher

Network = nn.Module | Callable[..., Any]  # a network, or a function from arrays to answers


class UselessResult(UserWarning):
    """A student, or a data set, of no use: no better than a constant classifier, say."""


def distill(
    teacher: str | Teacher | Network | None = None,
    student: str | nn.Module | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    images: int | None = None,
    minutes: float | None = None,
    mix_ratio: float | None = None,
    real_data: Any = None,
    val_data: Any = None,
    seed: int | None = None,
    out: str | Path | None = None,
    pipeline: str | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    resume: str | Path | None = None,
    progress: bool | Reporter = False,
    processes: Processes | None = None,
) -> Result:
    """A small student from a frozen teacher, in a run directory.

    `teacher` and `student` are SPECs as on the command line, or living objects: an `nn.Module` (a
    copy of it is used, yours stays as it is), or for the teacher any function from a float32 array
    [B, C, H, W] of pixels in 0..1 to answers, or a `Teacher` of your own; without one it is the
    demo of `synthkd distill`, unless the recipe names another. The input of a living teacher is
    said once: `image_size` in pixels (a side, or height and width), `channels`, and the
    `mean` and `std` that its images are normalised by.

    The budget is `images`, which the student sees, or `minutes`. `mix_ratio` is the share of
    synthetic images in what it sees; below 1.0 `real_data` is needed. `real_data` and `val_data`
    are paths, tensors or arrays of images ([N, C, H, W], [N, H, W, C] or [N, H, W]; 0..1 or
    0..255), pairs of images and labels, or Datasets. `val_data` is opened after the student is
    chosen, and never decides anything; without it nothing is scored on real images.

    Everything else stands in `settings`, by dotted name as in docs/settings.md
    ({"training.batch": 64}), or in a `recipe`, over which the other arguments are laid; messages
    name a setting as the command's flag, `--training.batch`. `resume` goes on with an interrupted
    run; give living objects again, and {"run.trust_code": True} in `settings` where the run needs
    it, and nothing else. `progress` true shows what the command shows; a `Reporter` hears it
    instead. In a program that torchrun starts in several processes they learn one student together
    with `processes` from `engine.processes.from_environment()`.

    Returns the student, an `nn.Module` on images in 0..1 in eval mode, its summary and its run
    directory. Warns of settings that do nothing, and with `UselessResult` where the student is of
    no use. Ctrl-C saves and raises KeyboardInterrupt, which says how to go on. Raises InputError.
    """
    started = time.perf_counter()
    report = _reporter(progress)
    given = {
        "pipeline": pipeline,
        "teacher.spec": _spec(teacher),
        "student.spec": _spec(student),
        "data.real": _spec(real_data),
        "data.val": _spec(val_data),
        "budget.images": images,
        "budget.minutes": minutes,
        "data.mix_ratio": mix_ratio,
        "run.seed": seed,
        "run.out": _spec(out),
        **_contract(image_size, channels, mean, std),
    }
    given = {key: value for key, value in given.items() if value is not None}
    chosen = _chosen(given, settings, recipe, resume, lambda path: Run.resume(path)[1])
    with left_as_it_was():
        job = Distillation(
            chosen,
            teacher=_object(teacher),
            student=_object(student),
            real_data=_object(real_data),
            val_data=_object(val_data),
            report=report,
            given=(*(settings or ()), *given),
            started=started,
            processes=processes,
        )
        leads = job.processes.leads
        if leads:
            _warn_of(job.idle)
        try:
            if resume is None and not isinstance(report, Silent):
                job.expect()
            result = job.start() if resume is None else job.resume(Path(resume))
        except Unscored as problem:
            if leads:
                warnings.warn(str(problem), UserWarning, stacklevel=2)
            result = problem.result
        except Stopped as stop:
            raise KeyboardInterrupt(stop.said) from None
    if leads and result.summary["verdict"] == "useless":
        said = "; ".join(str(finding) for finding in result.findings if finding.serious)
        warnings.warn(said or "the student is of no use", UselessResult, stacklevel=2)
    return result


def generate(
    teacher: str | Teacher | Network | None = None,
    *,
    count: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    images: int | None = None,
    minutes: float | None = None,
    real_data: Any = None,
    seed: int | None = None,
    out: str | Path | None = None,
    pipeline: str | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    resume: str | Path | None = None,
    shards: int | None = None,
    progress: bool | Reporter = False,
) -> DataSet:
    """A synthetic data set of `count` images that a teacher agrees with, every class as often as
    the others, written as shards with the teacher's logits (see docs, `data.store`).

    `images` or `minutes` are the budget of a generator that is trained first. `real_data` may be
    given where such a generator shall see it. With `shards` any number of processes that make the
    same call with the same `out` make it together, and each returns when all of it is there. The
    other arguments are those of `distill`. Returns where the set lies and its manifest; warns with
    `UselessResult` where it is of no use. Raises InputError, and KeyboardInterrupt when what was
    done is saved.
    """
    report = _reporter(progress)
    given = {
        "pipeline": pipeline,
        "teacher.spec": _spec(teacher),
        "data.real": _spec(real_data),
        "dataset.count": count,
        "budget.images": images,
        "budget.minutes": minutes,
        "run.seed": seed,
        "run.out": _spec(out),
        **_contract(image_size, channels, mean, std),
    }
    given = {key: value for key, value in given.items() if value is not None}
    named = (*(settings or ()), *given)
    chosen = _chosen(given, settings, recipe, resume, begun)
    if resume is None:
        chosen = used(chosen, named)
    try:
        with left_as_it_was():
            if shards is not None:
                made = _in_shards(
                    chosen, shards, resume, real_data, _object(teacher), report, named
                )
            else:
                job = Generation(
                    chosen, teacher=_object(teacher), real_data=_object(real_data), report=report,
                    given=named,
                )  # fmt: skip
                _warn_of(job.idle)
                if resume is None and not isinstance(report, Silent):
                    job.expect()
                made = job.start() if resume is None else job.resume(Path(resume))
    except Stopped as stop:
        raise KeyboardInterrupt(stop.said) from None
    if made.manifest["verdict"] == "useless":
        said = "; ".join(str(finding) for finding in made.findings if finding.serious)
        warnings.warn(said or "the data set is of no use", UselessResult, stacklevel=2)
    return made


def _in_shards(
    recipe: Recipe, shards: int, resume: str | Path | None, real_data: Any,
    teacher: Teacher | Network | None, report: Reporter, given: Collection[str],
) -> DataSet:  # fmt: skip
    """A data set that this process makes with others."""
    if resume is not None or not recipe.run.out:
        raise InputError(
            "shards wants the folder that all processes share, out=, and no resume=: make the same "
            "call again"
        )
    if _object(real_data) is not None:
        raise InputError("shards wants real_data as a path, which all processes read")
    out = Path(recipe.run.out)
    sharding.begin(out, recipe, shards)
    return sharding.make_all(out, recipe, report, given=given, teacher=teacher)


def report(*runs: str | Path, out: str | Path | None = None, images: bool = True) -> Path:
    """A report of a run directory, of several side by side, of a search or of a bench, as one HTML
    file that needs nothing else. Without `out` it is report.html in the run, or for several in the
    working directory; without `images` it shows none. Works for a run that is going on or was
    interrupted. Returns the file. Raises InputError."""
    if not runs:
        raise InputError("report: say which run directories, search or bench")
    target = None if out is None else Path(out)
    return write_report(tuple(Path(run) for run in runs), out=target, images=images)


def build(
    recipe: Recipe,
    *,
    teacher: Teacher | Network | None = None,
    student: nn.Module | None = None,
    real_data: Any = None,
    progress: bool | Reporter = False,
) -> Lab:
    """The lab of a recipe, one level below `distill`: teacher, student, plan, generators and memory
    in one object, without a run directory.

        lab = synthkd.build(recipe, teacher=net)
        for round in lab:
            print(round.share, round.measures)
        student = lab.learner.student

    The objects are those of `distill`; `engine.build.build` says more. The threads of the recipe
    are set for the whole process, as the lab works on.
    """
    return build_lab(
        recipe, teacher=teacher, student=student, real_data=real_data, report=_reporter(progress)
    )


def evaluate(
    student: nn.Module | str | Path,
    teacher: str | Teacher | Network | None = None,
    val_data: Any = "demo:unseen",
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
    batch: int = 256,
) -> Comparison:
    """Student and teacher on labelled images, beside what a constant classifier would get.

    `student` is a run directory or an `nn.Module` on images in 0..1 (`Result.student`), which is
    used as it is, on its own device; `teacher`, `val_data` and `settings` are as in `distill`.
    Shares lie in 0..1. Raises InputError.
    """
    recipe = _described(teacher, settings, _contract(image_size, channels, mean, std))
    network, known = _both(student, teacher, recipe)
    images, own = images_for_both(recipe, val_data, known, network)
    with in_eval_mode(network):
        return compare(network, known, images, own=own, batch=batch)


def estimate(
    student: nn.Module | str | Path,
    teacher: str | Teacher | Network | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> AgreementEstimate:
    """The agreement of student and teacher to be expected on real images, without any, with an
    interval: from the share of images refined anew for the teacher in which they agree. Arguments
    are those of `evaluate`. Raises InputError for a teacher that gives no gradients, too."""
    recipe = _described(teacher, settings, _contract(image_size, channels, mean, std))
    network, known = _both(student, teacher, recipe)
    if not probes_suit(known):
        raise InputError(NOT_SUITED)
    with in_eval_mode(network), left_as_it_was():
        return estimate_agreement(network, probes_for(recipe, known))


def _both(
    student: nn.Module | str | Path, teacher: Any, recipe: Recipe
) -> tuple[nn.Module, Teacher]:
    """A student, and its teacher on the same device."""
    trust = recipe.run.trust_code
    known = _object(teacher)
    if not is_teacher(known):
        known = load_teacher(recipe.teacher, trust_code=trust, shared=True, network=known)
    network: nn.Module
    if isinstance(student, str | Path):
        network, names = _of_run(student, trust_code=trust)
        check_same_classes(names, known.names)
    else:
        network = student
    device = next((p.device for p in network.parameters()), known.device)
    return network, known.to(device)


def inspect(
    teacher: str | Network | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a network is, wants and costs, what would be done with it, and what looks wrong: the
    data of `synthkd inspect --json`, by the same names. Needs no images. Arguments are those of
    `distill`. Raises InputError."""
    recipe = _described(teacher, settings, _contract(image_size, channels, mean, std))
    with left_as_it_was():
        return inspection.inspect(recipe, network=_object(teacher)).card


def _described(teacher: Any, settings: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Recipe:
    """The recipe of a teacher's description."""
    given = {"teacher.spec": _spec(teacher), **more}
    known = {key: value for key, value in given.items() if value is not None}
    return from_settings({**(settings or {}), **known})


def load_student(
    run: str | Path, *, network: nn.Module | None = None, trust_code: bool = False
) -> Classifier:
    """The student of a run directory: an `nn.Module` on images [B, C, H, W] in 0..1, to logits
    [B, K], in eval mode.

    A student that was given as a living object needs `network` again: an `nn.Module` of the same
    form, of which a copy takes the saved weights. One that is built by code in a file needs
    `trust_code`. Raises InputError.
    """
    return _of_run(run, network=network, trust_code=trust_code)[0]


def _of_run(
    run: str | Path, *, network: nn.Module | None = None, trust_code: bool = False
) -> tuple[Classifier, tuple[str, ...]]:
    """`load_student`, and the names of its classes."""
    table, none = StudentTable(spec=str(run)), TeacherTable()
    found, names = load_classifier(table, none, trust_code=trust_code, network=network)
    return found.eval().to(choose_device("cpu")), names


def _chosen(
    given: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    recipe: Recipe | None,
    resume: str | Path | None,
    begun_with: Callable[[Path], Recipe],
) -> Recipe:
    """The recipe of what was `given` by argument, laid over `settings` and a `recipe`; or the one
    that an interrupted job was begun with, beside which nothing but living objects is given."""
    if resume is None:
        return from_settings({**(settings or {}), **given}, recipe)
    allowed = dict.fromkeys(("run.trust_code", "run.anyway"), False) | dict(settings or {})
    texts = [key for key, value in given.items() if not str(value).startswith("<")]
    if recipe or texts or len(allowed) > 2:
        raise InputError(
            "resume= goes on with the recipe it was begun with: no other settings, and of objects "
            "the living ones alone"
        )
    trust, anyway = (bool(value) for value in allowed.values())
    return trusted(begun_with(Path(resume)), trust_code=trust, anyway=anyway)


def _warn_of(idle: Sequence[Finding]) -> None:
    """Warns of settings that were given and do nothing."""
    for finding in idle:
        warnings.warn(str(finding), UserWarning, stacklevel=3)


def _spec(given: Any) -> str | None:
    """What stands for an argument in a recipe; None for one that was not given."""
    if given is None:
        return None
    return str(given) if isinstance(given, str | Path) else living(given)


def _object(given: Any) -> Any:
    """An argument that is a living object; None for a SPEC or a path."""
    return None if given is None or isinstance(given, str | Path) else given


def _contract(
    image_size: int | tuple[int, int] | None,
    channels: int | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> dict[str, Any]:
    """What is said of a teacher's input, as settings."""

    def several(values: Any) -> tuple[float, ...] | None:
        if values is None:
            return None
        if hasattr(values, "tolist"):  # of numpy or torch
            values = values.tolist()
        return (values,) if isinstance(values, int | float) else tuple(values)

    return {
        "teacher.image_size": image_size,
        "teacher.channels": channels,
        "teacher.mean": several(mean),
        "teacher.std": several(std),
    }


def _reporter(progress: bool | Reporter) -> Reporter:
    if isinstance(progress, bool):
        return Display() if progress else Silent()
    return progress
