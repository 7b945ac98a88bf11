"""`synthkd distill`: a small student from a frozen teacher."""

import json
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from synthkd import recipe as recipes
from synthkd.checks.student import (
    balance_data,
    check_agreement,
    check_budget,
    check_memory,
    expect_budget,
    verdict,
)
from synthkd.commands.display import Display, Schedule, counted
from synthkd.commands.machine import (
    Cadence,
    checked,
    giving_up,
    images_for,
    peak_memory_mb,
    prepare,
    stopping,
    ticking,
    trusting,
)
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import read_table, sha256_of
from synthkd.core.findings import Finding, as_data
from synthkd.core.provenance import PROMISES, inherited_level
from synthkd.core.seeds import generator_for, globally
from synthkd.data.sources import count_images, load_images
from synthkd.data.store import open_store
from synthkd.engine.estimate import Estimate, estimate
from synthkd.engine.loop import HeldOut, Lab, rounds, select_final_weights
from synthkd.engine.progress import no_tick, whole_share
from synthkd.evaluation.compare import YES_OR_NO, compare, seconds_per_image
from synthkd.labels.check import ABOUT_LABELS
from synthkd.measures import class_balance
from synthkd.recipe import Recipe
from synthkd.recipe.unused import ignored
from synthkd.runs.directory import Run, claim, environment, free_name, held, resumable
from synthkd.specs import card_of, is_saved, load_teacher, new_student, read_card
from synthkd.students.auto import against_teacher, best_student
from synthkd.students.learner import save_student
from synthkd.synthesis import plan as plans
from synthkd.synthesis.diffusion.diffusers_io import promise_of
from synthkd.synthesis.diffusion.generator import Diffusion
from synthkd.synthesis.gan import Gan, borrow, save_decoder
from synthkd.teachers.protocol import Teacher

RESERVE = 0.02  # share of a budget in minutes kept for choosing, scoring and saving,
KEPT_IMAGES, KEPT_BYTES = 512, 16_000_000  # synthetic ones, kept for export --int8
LEAST_RESERVE = 4.0  # and at least so many seconds, unless that is more than a tenth
MOST_SCORING = 0.25  # share of it that the final score may take


def run(
    recipe: Recipe, *, dry_run: bool = False, quiet: bool = False, as_json: bool = False,
    given: Collection[str] = (), started: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Distils a student as the recipe says, in a new run directory. Returns the summary, and with
    `as_json` prints it and nothing else.

    A budget in minutes counts from `started`, a time of `time.perf_counter` (default: now). `given`
    are the keys that the user set.
    """
    started = time.perf_counter() if started is None else started
    quiet = quiet or as_json
    display = Display(quiet=quiet)
    recipe = borrow(recipe)
    job = _prepare(recipe, display)
    idle = ignored(job.recipe, job.plan.stages, given)
    display.findings(idle)
    job.manifest["findings"] += as_data(idle)
    expected = None if quiet else _expect(job, display, started)
    if dry_run:
        print(recipes.to_toml(job.recipe), end="")
        return {}
    default = f"runs/{_word(recipe.teacher.spec)}-{_word(recipe.student.spec)}-s{recipe.run.seed}"
    out = Path(recipe.run.out) if recipe.run.out else free_name(Path(default))
    claim(out, resumable=True)
    with held(out, "--out"):
        job.open_data()
        display.findings(job.notes)
        the_run = Run.create(out, job.recipe, job.manifest)
        summary = _go(job, the_run, display, started, expected)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    return summary


def resume(
    path: Path,
    *,
    trust_code: bool = False,
    anyway: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Goes on with an interrupted run from its newest complete checkpoint.

    Trust in code is not kept in the run directory: it is given anew.
    """
    started = time.perf_counter() if started is None else started
    display = Display(quiet=quiet or as_json)
    the_run, recipe = Run.resume(path)
    recipes.refuse_code(recipe.model_dump(), trust_code=trust_code)
    table = recipe.run.model_copy(update={"trust_code": trust_code})
    recipe = recipe.model_copy(update={"run": table})
    job = _prepare(recipe, display, anyway=anyway)
    if dry_run:
        print(recipes.to_toml(job.recipe), end="")
        return {}
    with held(path, "--resume"):
        _take_up(job, the_run, display)
        summary = _go(job, the_run, display, started)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    return summary


def _take_up(job: "Job", the_run: Run, display: Display) -> None:
    """Opens what an interrupted run had opened, and goes back to its newest checkpoint; nothing may
    have changed meanwhile."""
    Run.resume(the_run.path)  # whoever worked in it until now may have finished it
    path, before = the_run.path, the_run.manifest
    if before.get("teacher_sha256") != job.teacher.digest:
        raise InputError(f"--resume {quoted(path)}: the teacher is another one than at the start")
    if before.get("recipe_sha256") != job.manifest["recipe_sha256"]:
        raise InputError(
            f"--resume {quoted(path)}: its recipe.toml is not the one that the run was started with"
        )
    job.manifest |= {key: before.get(key) for key in ("command", "student_chosen")}
    job.manifest["sittings"] = _count(before.get("sittings")) + 1
    job.open_data()
    display.findings(job.notes)
    if before.get("data") != job.manifest["data"]:
        raise InputError(f"--resume {quoted(path)}: the data are other ones than at the start")
    state = the_run.newest()
    if state is None:
        display.say("no checkpoint yet: starting from the beginning")
    else:
        try:
            job.lab.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise InputError(
                f"--resume {quoted(path)}: its newest checkpoint does not fit its recipe"
            ) from None
        display.say(f"going on after round {job.lab.progress.round}")


@dataclass
class Job:
    """A recipe with everything it names opened."""

    recipe: Recipe
    teacher: Teacher
    lab: Lab
    plan: plans.Plan
    names: tuple[str, ...]
    manifest: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)  # of the teacher
    notes: tuple[Finding, ...] = ()  # on the real images

    def open_data(self) -> None:
        """Opens what the recipe allows, and nothing else, and writes it into the manifest."""
        table = self.recipe.data
        opened: dict[str, Any] = {}
        level, real = promise_of(self.recipe.generator.start, self.teacher.digest), None
        level = max(level, _promise_of_student(self.recipe, self.teacher.digest))
        if table.mix_ratio < 1:
            real = images_for(self.recipe, table.real, self.teacher, labelled=False)
            opened["real"] = {"path": table.real, "digest": real.digest, "images": len(real.pixels)}
            self.notes = real.notes
            level = max(level, 2)  # labels, where there are any, are not used
            self.lab.use_real(real.pixels)
        if table.synthetic and table.mix_ratio > 0:
            store = open_store(Path(table.synthetic))
            if store.classes != self.teacher.classes:
                raise InputError(
                    f"--synthetic {quoted(table.synthetic)} has {store.classes} classes, "
                    f"the teacher {self.teacher.classes}"
                )
            made = load_images(
                table.synthetic, self.teacher.spec, classes=store.classes, labelled=True
            )
            assert made.labels is not None
            # what says nothing gets no praise
            level = max(level, inherited_level(store.manifest, self.teacher.digest, unknown=3))
            opened["synthetic"] = {
                "path": table.synthetic,
                "digest": made.digest,
                "images": len(made.pixels),
            }
            self.lab.fill(made.pixels, made.labels)
        self.manifest |= {
            "promise_level": level,
            "promise": PROMISES[level],
            "data": opened,
            "real_images_read": len(real.pixels) if real is not None else 0,
        }


def _promise_of_student(recipe: Recipe, digest: str) -> int:
    """The promise level that a student's first weights allow, under the teacher of this digest.
    What says nothing gets no praise."""
    table = recipe.student
    manifest = Path(table.spec) / "manifest.json"
    if manifest.is_file():
        known = read_table(manifest, f"--student {quoted(table.spec)}")
        return inherited_level(known, digest, unknown=3)
    if table.spec == "demo":  # the teacher's own weights, or those of one that saw labelled digits
        return 0 if recipe.teacher.spec == "demo" else 3
    brought = Path(table.spec).exists() or table.spec.startswith(("hf:", "onnx:"))
    return 3 if table.weights or brought else 0


def _check_val(recipe: Recipe) -> None:
    """Whether validation data can be there: they are opened at the end, when it is late for a
    misspelt path."""
    path = recipe.data.val
    code = ".py:" in path
    if code and not recipe.run.trust_code:
        raise InputError(
            f"--val-data {quoted(path)} runs the code in that file: read it, then give --trust-code"
        )
    if path in ("", "none") or path.startswith("demo:") or code:
        return
    if not Path(path).exists():
        raise InputError(f"--val-data {quoted(path)}: there is no such file or folder")


def _prepare(recipe: Recipe, display: Display, *, anyway: bool = False) -> Job:
    """Teacher, plan and lab; no images are opened. `anyway` is said of this sitting alone."""
    recipe, device, bfloat16 = prepare(recipe)
    if recipe.teacher.spec == "demo" and not recipe.teacher.weights:
        display.say(
            "teacher: the embedded demo, a ResNet-14 for handwritten digits "
            "(give your own with --teacher)"
        )
    teacher = load_teacher(recipe.teacher, trust_code=recipe.run.trust_code).to(device)
    teacher.low_precision = bfloat16
    _check_val(recipe)
    choice: dict[str, Any] = {}
    doubts: Sequence[Finding] = ()
    if recipe.student.spec == "auto":
        best = best_student(recipe.student, teacher)
        promised = ""
        if best.latency_ms is not None and best.conditions is not None:
            promised = f", {best.latency_ms:.3g} ms alone ({best.conditions})"
            choice = {"latency_ms": best.latency_ms, **asdict(best.conditions)}
        display.say(
            f"student auto: {best.name}, {best.params:,} weights, {best.flops:,.0f} operations an "
            f"image{promised}"
        )
        doubts = best.findings
        settled = {"spec": best.name, "max_params": None, "max_flops": None, "max_latency_ms": None}
        table = recipe.student.model_copy(update=settled)
        recipe = recipe.model_copy(update={"student": table})
    with globally(generator_for(recipe.run.seed, "student")):
        student = new_student(recipe.student, teacher, trust_code=recipe.run.trust_code).to(device)
    if not choice:  # no time has been measured yet
        doubts = against_teacher(student, teacher)
    recipe, reasons = plans.suited(recipe, teacher)
    the_plan = plans.plan(recipe, teacher)
    the_plan = plans.Plan(the_plan.stages, (*the_plan.reasons, *reasons))
    if not any(stage.student_steps for stage in the_plan.stages):
        raise InputError(
            "no stage of this pipeline trains the student: see run.stages and student_steps"
        )
    if recipe.budget.minutes is None and recipe.budget.images is None:
        raise InputError("the pipeline has no budget: give --minutes or --images-seen")
    _check_memory(recipe, the_plan)
    budget = (
        counted(recipe.budget.minutes, "minute")
        if recipe.budget.minutes
        else f"{recipe.budget.images:,} student images"
    )
    display.plan(the_plan, budget)
    taken, tensors = student.inherited
    begun = f", {taken} of {tensors} tensors begun as the teacher's" if taken else ""
    small, large = sum(p.numel() for p in student.parameters()), teacher.parameters_count
    share = f", {small / large:.1%} of the teacher's" if large else ""
    display.say(
        f"student {recipe.student.spec}: {small:,} parameters{share}{begun}; "
        f"{recipe.run.precision}, {recipe.run.threads} threads on {device}"
    )
    display.findings(doubts)
    lab = Lab(recipe, the_plan.stages, teacher, student, device=device, bfloat16=bfloat16)
    if recipe.generator.start and "gan" in lab.generators:
        gan = lab.generators["gan"]
        assert isinstance(gan, Gan)
        gan.take_over(recipe.generator.start)
    findings = checked(teacher, recipe, display, anyway=anyway)
    manifest = {
        **environment(lab.device),
        "teacher": recipe.teacher.spec,
        "teacher_sha256": teacher.digest,
        "student": recipe.student.spec,
        "student_chosen": choice,
        "findings": as_data(doubts),
        "recipe_sha256": _hash(recipe),
        "seed": recipe.run.seed,
        "plan": list(the_plan.reasons),
        "stages": [stage.model_dump() for stage in the_plan.stages],
        "device": str(device),
        "precision": recipe.run.precision,
        "teacher_findings": as_data(findings),
    }
    return Job(recipe, teacher, lab, the_plan, teacher.names, manifest, findings)


def _count(value: object) -> int:
    """A count out of a manifest; what is none counts as one."""
    return value if isinstance(value, int) else 1


def _hash(recipe: Recipe) -> str:
    import hashlib

    return hashlib.sha256(recipes.to_toml(recipe).encode()).hexdigest()


def _check_memory(recipe: Recipe, the_plan: plans.Plan) -> None:
    """A student needs images in its first stage: from the memory, from a generator, or real
    ones."""
    if recipe.data.synthetic or recipe.data.mix_ratio == 0:
        return
    for stage in the_plan.stages:
        if stage.generator != "none" and stage.fresh:
            return
        if stage.student_steps:
            raise InputError(
                f"stage {stage.name} trains the student before any stage has invented an image: "
                "run a stage with fresh images first, or give --synthetic"
            )


def _word(spec: str) -> str:
    """A SPEC as part of a directory's name.

    >>> _word("nets/my_file.py:make")
    'my_file-make'
    """
    return Path(spec.replace(".py:", "-").replace(":", "-")).name or "x"


def reserved(whole: float, scoring: float) -> float:
    """Seconds of a budget of `whole` seconds that are kept for choosing, scoring and saving: more
    where `scoring` needs it, but a quarter of all at the most. What needs more runs over.

    >>> reserved(600, 0), reserved(20, 0), reserved(180, 20.0), reserved(180, 120)
    (12.0, 2.0, 20.0, 45.0)
    """
    least = min(max(LEAST_RESERVE, RESERVE * whole), whole / 10)
    return max(least, min(scoring, MOST_SCORING * whole))


def _scoring(job: Job, display: Display, most: float) -> float:
    """Seconds that the final score will take, where it can be told before the images are opened,
    and without asking a black box, whose answers may cost."""
    count = count_images(_val(job.recipe))
    if not count or job.lab.learner is None or job.teacher.access != "full":
        return 0.0
    before = job.teacher.queries
    seconds = count * seconds_per_image(job.lab.learner.student, job.teacher)
    job.teacher.queries = before  # asked about nothing of the run
    if seconds > most:
        display.say(
            f"scoring {count:,} images will take about {seconds:.0f} s, and the budget has "
            f"{most:.0f} for it: the run will end late; give more minutes or fewer images"
        )
    return seconds


def _val(recipe: Recipe) -> str:
    return recipe.data.val or ("demo:unseen" if recipe.teacher.spec == "demo" else "none")


def _expect(job: Job, display: Display, started: float) -> Estimate:
    """Tells what the run will take, and what can be said against its result before it begins."""
    lab = job.lab
    if lab.recipe.budget.minutes:  # the time for scores and for what is over already is not theirs
        whole = lab.recipe.budget.minutes * 60
        lab.limit(whole - reserved(whole, 0.0) - (time.perf_counter() - started))
    expected = estimate(lab)
    ahead = time.perf_counter() - started + expected.seconds
    display.estimate(expected, ahead, timed=lab.budget.timed)
    refined = sum(
        found.invented
        for found, stage in zip(expected.stages, lab.stages, strict=True)
        if stage.generator == "pixels"
    )
    begun = lab.recipe.student.weights or is_saved(lab.recipe.student.spec)
    findings = expect_budget(expected.seen, refined if "pixels" in lab.generators else None)
    display.findings([] if begun else findings)
    job.manifest["estimate"] = asdict(expected)
    return expected


def _go(
    job: Job, the_run: Run, display: Display, started: float, expected: Estimate | None = None
) -> dict[str, Any]:
    """Walks the rounds, records them, and finishes or stops."""
    lab, classes = job.lab, job.teacher.classes
    spent_before = lab.progress.seconds
    if job.recipe.budget.minutes:
        whole = job.recipe.budget.minutes * 60
        reserve = reserved(whole, _scoring(job, display, MOST_SCORING * whole))
        lab.limit(whole - reserve - (time.perf_counter() - started))
    parts = job.recipe.run.snapshots + 1  # the last part ends with the student itself
    part = int(whole_share(lab.progress, lab.budget) * parts)
    cadence = Cadence(job.recipe.run.checkpoint_seconds, saved=lab.progress.round > 0)
    again = f"go on with: synthkd distill --resume {the_run.path}" + trusting(job.recipe)
    display.say(f"run directory: {the_run.path}")
    display.expect(_schedule(job, expected, started))
    give_up = giving_up(cadence, display, again)
    try:
        with resumable(again), stopping(display.acknowledge, give_up) as stop:
            lab.tick = ticking(display, stop, give_up)
            began = time.monotonic()
            for round_ in rounds(lab):
                the_run.record(round_)
                before, part = part, int(round_.share * parts)
                if before < part < parts and lab.learner:
                    weights = lab.learner.average or lab.learner.student.state_dict()
                    seconds = spent_before + time.perf_counter() - started
                    the_run.snapshot(part, weights, round_, seconds)
                display.follow(round_)
                the_run.samples(round_, classes)
                if (stop or cadence.due(time.monotonic() - began)) and not lab.finished:
                    with cadence.saving():
                        the_run.checkpoint(lab.state_dict(), round_.progress.round)
                if stop and not lab.finished:
                    display.stop()
                    display.say(f"stopped at {round_.share:.0%}, saved; {again}")
                    raise SystemExit(128 + stop.signal)
                began = time.monotonic()
    finally:
        lab.tick = no_tick
        display.stop()
    with resumable(again):
        the_run.close_samples(classes)
        return _finish(job, the_run, display, started, spent_before)


def _schedule(job: Job, expected: Estimate | None, started: float) -> Schedule:
    """By what the time left is told."""
    minutes, lab = job.recipe.budget.minutes, job.lab
    if minutes:
        return Schedule(ends=started + 60 * minutes - lab.progress.seconds)
    whole, done, until = sum(lab.budget.quotas), 0.0, []
    for quota in lab.budget.quotas:
        done += quota
        until.append(done / whole if whole else 1.0)
    seconds = tuple(s.seconds for s in expected.stages) if expected else (0.0,) * len(until)
    return Schedule(None, tuple(s.name for s in lab.stages), tuple(until), seconds)


def _finish(
    job: Job, the_run: Run, display: Display, started: float, spent_before: float
) -> dict[str, Any]:
    """Chooses the weights, saves them, and only then opens validation data."""
    lab, recipe = job.lab, job.recipe
    asked = job.teacher.queries  # by the run; the scores come after it
    evaluating = time.perf_counter()
    choice, held_out = select_final_weights(lab)
    assert lab.learner is not None
    student = lab.learner.student.eval()
    path = the_run.path / "student.safetensors"
    network, args = _rebuilding(recipe)
    save_student(student, card_of(student, network, job.names, args), path)
    _keep_images(lab, the_run)
    gan, diffusion = lab.generators.get("gan"), lab.generators.get("diffusion")
    if isinstance(gan, Gan):
        save_decoder(gan, the_run.path / "generator.safetensors")
    if isinstance(diffusion, Diffusion) and not diffusion.borrowed:
        diffusion.save(the_run.path / "diffusion", job.manifest["promise_level"])
    val = _val(recipe)
    scores: dict[str, Any] = {"student_accuracy": None, "teacher_accuracy": None, "agreement": None}
    findings = _check_result(job, held_out)
    problem: InputError | None = None
    images = None
    try:
        if val != "none":
            images = images_for(recipe, val, job.teacher, labelled=True)
    except InputError as error:  # the student is worth keeping all the same
        problem = error
    if images is not None:
        found = compare(student, job.teacher, images)
        scores = {
            "student_accuracy": found.student_accuracy,
            "teacher_accuracy": found.teacher_accuracy,
            "agreement": found.agreement,
            "kl": found.kl,
            "student_ece": found.student_ece,
            "student_told": asdict(found.student_told) if found.student_told else None,
            "teacher_told": asdict(found.teacher_told) if found.teacher_told else None,
            "val_data": val,
            "val_digest": images.digest,
            "val_images": found.n,
            "val_order": found.order,
            "val_notes": as_data(images.notes),
            "label_order": found.label_order,
            "student_balanced_accuracy": found.student_balanced_accuracy,
            "teacher_balanced_accuracy": found.teacher_balanced_accuracy,
            "constant_balanced_accuracy": found.constant_balanced_accuracy,
            "constant_accuracy": found.constant_accuracy,
        }
        findings += found.findings
        if found.order:
            display.say(f"{quoted(val)}: {found.order}")
        display.findings(images.notes)
    evaluation = time.perf_counter() - evaluating
    wall = spent_before + time.perf_counter() - started
    parts = {**lab.seconds, "evaluation": evaluation}
    progress = lab.progress
    names = YES_OR_NO if job.teacher.independent else job.names  # of what was held out
    balance = class_balance(held_out.learned, held_out.taught, len(names))
    summary = {
        # labels that are wrong make the score useless, not the student
        "verdict": verdict(f for f in findings if f.code not in ABOUT_LABELS),
        "findings": as_data(findings),
        **scores,
        "student": recipe.student.spec,
        "answers": student.answers,
        "teacher_answers": job.teacher.reading,
        "student_parameters": sum(p.numel() for p in student.parameters()),
        "teacher_parameters": job.teacher.parameters_count,
        "student_sha256": sha256_of(path),
        **choice,
        "held_out_balance": balance_data(balance, names),
        "wall_seconds": round(wall, 2),
        "seconds": {k: round(v, 2) for k, v in parts.items()}
        | {"rest": round(wall - sum(parts.values()), 2)},
        "images_seen": progress.images_seen,
        "images_invented": progress.invented,
        "held_out": "real" if recipe.data.mix_ratio == 0 else "synthetic",
        "synthetic_share": progress.synthetic_seen / max(1, progress.images_seen),
        "real_images_read": job.manifest["real_images_read"],
        "teacher_access": job.teacher.access,
        "teacher_queries": asked,
        "promise_level": job.manifest["promise_level"],
        "promise": job.manifest["promise"],
        "teacher_findings": as_data(job.findings),
        "peak_memory_mb": peak_memory_mb(lab.device),
        "seed": recipe.run.seed,
    }
    the_run.finish(summary, job.manifest)
    _show(summary, findings, display, the_run.path)
    if problem:
        raise InputError(f"{problem} (the run is finished, but not scored: see synthkd evaluate)")
    return summary


def _check_result(job: Job, held_out: HeldOut) -> list[Finding]:
    """What can be said against the student without any real image."""
    lab = job.lab
    findings: list[Finding] = []
    stored = lab.memory.everything()
    if lab.recipe.data.mix_ratio > 0 and len(stored):
        counts = torch.tensor(lab.memory.counts)
        if job.teacher.independent:  # a class may be there without ever being the likeliest
            counts = (stored.logits > 0).sum(0)
        findings += check_memory(counts, job.names)
    if not lab.recipe.student.weights and not is_saved(lab.recipe.student.spec):
        findings += check_budget(lab.progress.images_seen, _refined(lab))
    names = YES_OR_NO if job.teacher.independent else job.names
    return findings + check_agreement(held_out.learned, held_out.taught, len(names), names)


def _refined(lab: Lab) -> int | None:
    """How many refined images are in the memory; None where the plan refines none, or where no
    image is stored."""
    stored = lab.memory.everything()
    if "pixels" not in lab.generators or len(stored) < len(lab.memory):
        return None
    return stored.origins.count("pixels")


def _keep_images(lab: Lab, the_run: Run) -> None:
    """Keeps some of the memory's images, evenly over the classes: 8-bit integers are calibrated on
    them (synthkd export --int8). Where there is no memory, some that were held out; never real
    ones."""
    kept = lab.memory.everything()
    if not len(kept):
        if lab.recipe.data.mix_ratio == 0:
            return
        kept = lab.held_out.everything()
    rng = generator_for(lab.recipe.run.seed, "calibration")
    fitting = KEPT_BYTES // math.prod(lab.teacher.spec.shape)
    order, seen = torch.randperm(len(kept), generator=rng), Counter[int]()
    ranks = []  # of each image among those of its class
    for vote in kept.votes[order].tolist():
        ranks.append(seen[vote])
        seen[vote] += 1
    first = torch.tensor(ranks, dtype=torch.int64).argsort(stable=True)
    chosen = order[first[: min(KEPT_IMAGES, fitting)]]
    if len(chosen):
        the_run.keep_images(kept.images[chosen], kept.votes[chosen])
        the_run.memory_sheet(kept.images[chosen], kept.votes[chosen], lab.teacher.classes)


def _rebuilding(recipe: Recipe) -> tuple[str, dict[str, str]]:
    """The SPEC that rebuilds the student's network, that of the run it started from if it did, and
    its arguments."""
    folder = Path(recipe.student.spec)
    if folder.is_dir():
        card = read_card(folder / "student.safetensors")
        return card.network, card.args
    return recipe.student.spec, recipe.student.args


def _told(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """AUROC and the like, where the classes are a yes or no."""
    ours, theirs = summary.get("student_told"), summary.get("teacher_told")
    if not ours or not theirs:
        return []
    names = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity",
             "f1": "F1"}  # fmt: skip
    text = [
        f"{title} {ours[name]:.3f} (teacher {theirs[name]:.3f})"
        for name, title in names.items()
        if ours[name] is not None and theirs[name] is not None
    ]
    return [("a class against the rest", ", ".join(text))]


def _show(
    summary: dict[str, Any], findings: Sequence[Finding], display: Display, path: Path
) -> None:
    """The result: what speaks against it first. Beside every share stands a constant's."""

    def percent(value: float | None) -> str:
        return "not scored (no --val-data)" if value is None else f"{value:.2%}"

    parts = ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items())
    scored = (
        f" on {summary['val_images']:,} images of {summary['val_data']}"
        if "val_data" in summary
        else ""
    )
    constant = summary.get("constant_accuracy")
    against = "" if constant is None else f" (a constant classifier: {constant:.2%})"
    rows = [
        ("student accuracy", percent(summary["student_accuracy"]) + scored + against),
        ("teacher accuracy", percent(summary["teacher_accuracy"])),
        *_told(summary),
        ("agreement with the teacher", percent(summary["agreement"])),
        (
            f"balanced agreement, held-out {summary['held_out']}",
            _balance(summary["held_out_balance"]) + f" ({summary['weights']} weights kept)",
        ),
        (
            "parameters",
            f"{summary['student_parameters']:,} of {summary['teacher_parameters']:,}"
            if summary["teacher_parameters"]
            else f"{summary['student_parameters']:,}, the teacher's are unknown",
        ),
        ("images seen", f"{summary['images_seen']:,}, {summary['synthetic_share']:.1%} synthetic"),
        ("teacher asked", f"{summary['teacher_queries']:,} images ({summary['teacher_access']})"),
        (
            "real images read",
            f"{summary['real_images_read']:,} "
            f"(level {summary['promise_level']}, {summary['promise']})",
        ),
        ("seconds", f"{summary['wall_seconds']:.0f}: {parts}"),
        ("peak memory", f"{summary['peak_memory_mb']:,.0f} MB"),
        ("student", str(path / "student.safetensors")),
    ]
    display.findings(findings)
    display.table("result", ("what", "value"), rows)


def _balance(balance: Mapping[str, Any]) -> str:
    """Balanced agreement in words, beside what a constant classifier would get."""
    if balance["balanced_agreement"] is None:
        return "unknown: no image was held out"
    worst, share = balance["worst_class"], balance["balanced_agreement"]
    return (
        f"{share:.2%}; a constant classifier {balance['constant_classifier']:.2%}; "
        f"worst class {worst['name']}: {worst['agreement']:.1%} of {worst['images']:,}"
    )
