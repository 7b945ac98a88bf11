"""`synthkd generate`: a synthetic data set that a teacher agrees with."""

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from synthkd import __version__
from synthkd import recipe as recipes
from synthkd.checks.student import check_dataset, verdict
from synthkd.commands.display import Display
from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding, as_data
from synthkd.core.images import Batch, to_uint8
from synthkd.core.provenance import PROMISES
from synthkd.core.seeds import generator_for
from synthkd.core.states import load_state, save_state
from synthkd.core.words import clock, counted
from synthkd.data.store import MANIFEST, Writer
from synthkd.engine.build import checked, images_for
from synthkd.engine.estimate import estimate_writing
from synthkd.engine.loop import Lab, rounds, synthesize
from synthkd.engine.machine import peak_memory_mb, prepare
from synthkd.recipe import Recipe, Stage
from synthkd.recipe.unused import ignored
from synthkd.runs.checkpoints import FORMAT
from synthkd.runs.directory import claim, environment, free_name, held, resumable
from synthkd.runs.session import Cadence, giving_up, stopping, ticking, trusting
from synthkd.specs import load_teacher
from synthkd.synthesis import plan as plans
from synthkd.synthesis.diffusion.diffusers_io import is_diffusers_folder, offline, promise_of
from synthkd.synthesis.diffusion.generator import Diffusion
from synthkd.synthesis.gan import Gan, borrow, save_decoder
from synthkd.teachers.protocol import Teacher

PATIENCE = 20  # images drawn per image wanted before a class is given up
BATCH = 256  # images drawn at a time
MEMORY = 4096  # images remembered at most
RECIPE, CHECKPOINT = "recipe.toml", "checkpoint.safetensors"  # of a data set that is being made


def run(
    recipe: Recipe, *, save_generator: Path | None = None, dry_run: bool = False,
    quiet: bool = False, as_json: bool = False, given: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Invents images for a teacher and writes them as a data set. Returns its manifest.

    A generator that learns is trained first, or loaded; pixels and drawings are made as they are
    written. A diffusion model that was trained is left in `save_generator`, if that is given. With
    `as_json` the manifest is all that is printed. `given` are the keys that the user set."""
    started = time.perf_counter()
    display = Display(quiet=quiet or as_json)
    with offline(dry_run):
        recipe, job = _prepare(recipe, display, save_generator)
    idle = ignored(recipe, job.stages, given, most_remembered=MEMORY)
    display.findings(idle)
    job.idle = idle
    if not display.quiet:
        _expect(job, display)
    if dry_run:
        print(recipes.to_toml(recipe), end="")
        return {}
    out = Path(recipe.run.out) if recipe.run.out else free_name(Path("synthetic"))
    _check_apart(save_generator, out)
    claim(out, resumable=True)
    with held(out, "--out"):
        claim(out, resumable=True)  # whoever came at the same time may have begun in it
        files.write_atomic(out / RECIPE, recipes.to_toml(recipe))
        manifest = _go(job, out, display, started)
    if as_json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
    return manifest


def resume(
    path: Path, *, trust_code: bool = False, anyway: bool = False,
    save_generator: Path | None = None, dry_run: bool = False, quiet: bool = False,
    as_json: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Goes on with a data set that was interrupted, in training or in writing."""
    started = time.perf_counter()
    display = Display(quiet=quiet or as_json)
    if path.is_dir():
        files.plain_tree(path, f"--resume {quoted(path)}")
    _check_unfinished(path)
    if not (path / RECIPE).is_file():
        raise InputError(f"--resume {quoted(path)}: no data set was begun here")
    told = recipes.read_toml(path / RECIPE)
    recipes.refuse_code(told, trust_code=trust_code)
    recipe = recipes.validated(told)
    table = recipe.run.model_copy(update={"trust_code": trust_code})
    recipe = recipe.model_copy(update={"run": table})
    with offline(dry_run):
        recipe, job = _prepare(recipe, display, save_generator)
    if dry_run:
        print(recipes.to_toml(recipe), end="")
        return {}
    _check_apart(save_generator, path)
    with held(path, "--resume"):
        state = _take_up(job, path, display)
        manifest = _go(job, path, display, started, resumed=True, state=state)
    if as_json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
    return manifest


def _expect(job: "Job", display: Display) -> None:
    """Tells what the data set will take."""
    stage = job.stages[-1]
    if job.learns:
        stage = stage.model_copy(update={"synthesis_steps": 0, "fresh": BATCH})
    before = 0 if job.trained else len(job.stages) - (not job.learns)
    found = estimate_writing(job.lab, stage, job.recipe.dataset.count, before=before)
    display.estimate(found, found.seconds, timed=False)


def _check_apart(keep: Path | None, out: Path) -> None:
    """Refuses to keep a model around or inside the data set, where its folder would be a class."""
    if keep is None:
        return
    one, other = keep.resolve(), out.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise InputError(f"--save-generator {quoted(keep)}: the data set goes there")


def _check_unfinished(path: Path) -> None:
    if (path / MANIFEST).exists():
        raise InputError(f"--resume {quoted(path)}: this data set is finished")


def _take_up(job: "Job", path: Path, display: Display) -> dict[str, Any] | None:
    """Goes back to the checkpoint of an interrupted data set, if there is one already; nothing may
    have changed meanwhile."""
    _check_unfinished(path)  # by whoever worked in it until now
    state: dict[str, Any] | None = None
    if (path / CHECKPOINT).is_file():
        state = load_state(path / CHECKPOINT, "checkpoint")
        if state.get("format") != FORMAT:
            raise InputError(
                f"--resume {quoted(path)}: this data set was begun by another version of synthkd, "
                f"whose checkpoint synthkd {__version__} cannot read: finish it with that version, "
                "or make it anew"
            )
        if state.get("teacher_sha256") != job.teacher.digest:
            raise InputError(f"--resume {quoted(path)}: the teacher is another one")
        if state.get("recipe_sha256") != files.sha256_of(path / RECIPE):
            raise InputError(
                f"--resume {quoted(path)}: its {RECIPE} is not the one that it was begun with"
            )
        try:
            job.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
            raise InputError(f"--resume {quoted(path)}: its checkpoint does not fit it") from None
    display.say("no checkpoint yet: starting from the beginning" if state is None else "going on")
    return state


@dataclass
class Job:
    """A data set in the making: everything that its recipe names, opened, and how far it is."""

    recipe: Recipe
    teacher: Teacher
    lab: Lab
    stages: tuple[Stage, ...]
    reasons: tuple[str, ...]
    level: int = 0  # the promise
    findings: list[Finding] = field(default_factory=list)  # of the teacher
    idle: list[Finding] = field(default_factory=list)  # settings that do nothing
    real: int = 0  # real images read
    seconds: float = 0.0  # in earlier sittings
    training: dict[str, Any] = field(default_factory=dict)
    trained: bool = False
    keep: Path | None = None  # where the diffusion model shall be kept
    # of the writing
    quota: list[int] = field(default_factory=list)  # images that are still missing, by class
    batch: int = 0
    drawn: int = 0
    agreed: int = 0
    writing: float = 0.0  # seconds

    @property
    def generator(self) -> Any:
        """The generator of the last stage."""
        return self.lab.generators[self.stages[-1].generator]

    @property
    def learns(self) -> bool:
        """Whether the generator is trained before it is sampled; others invent as they go, from
        what the stages before them put into the memory."""
        return isinstance(self.generator, Gan | Diffusion)

    def offer(self, rng: torch.Generator) -> Batch:
        """The next images; a generator that is trained beforehand learns no more."""
        if isinstance(self.generator, Gan):
            return self.generator.sample(BATCH, rng)
        stage = self.stages[-1]
        if self.learns:
            stage = stage.model_copy(update={"synthesis_steps": 0, "fresh": BATCH})
        return synthesize(self.lab, stage, rng).batch

    _CURSOR = ("seconds", "training", "trained", "quota", "batch", "drawn", "agreed", "writing")

    def state_dict(self) -> dict[str, Any]:
        """All that changes, the writer apart."""
        cursor = {key: getattr(self, key) for key in self._CURSOR}
        return {"lab": self.lab.state_dict(), "cursor": cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.lab.load_state_dict(state["lab"])
        for key in self._CURSOR:
            setattr(self, key, state["cursor"][key])


def _prepare(
    recipe: Recipe, display: Display, keep: Path | None, *, anyway: bool = False
) -> tuple[Recipe, Job]:
    """Teacher, plan and lab, and the real images that are allowed, if any are."""
    recipe, device, bfloat16 = prepare(borrow(recipe))
    teacher = load_teacher(recipe.teacher, trust_code=recipe.run.trust_code).to(device)
    teacher.low_precision = bfloat16
    allowing = recipe
    if recipe.data.real:  # given is allowed: there is no batch of a student to mix
        data = recipe.data.model_copy(update={"mix_ratio": 0.5})
        allowing = recipe.model_copy(update={"data": data})
    the_plan = plans.plan(allowing, teacher)
    stages = plans.alone(the_plan.stages)
    if not stages:
        raise InputError(
            "no stage of this pipeline has a generator: see run.stages and stage.NAME.generator"
        )
    # a loaded generator is not trained on
    start = recipe.generator.start
    trained = bool(start) and (stages[-1].generator != "diffusion" or is_diffusers_folder(start))
    for stage in () if trained else stages:
        if stage.generator in plans.JUDGED and stage.synthesis_steps and not stage.terms:
            raise InputError(
                f"stage {stage.name}: without a student its generator has nothing to go by: take "
                "another --pipeline, or give it terms (--stage.NAME.terms.one_hot 1)"
            )
    budget = (
        counted(recipe.budget.minutes, "minute")
        if recipe.budget.minutes
        else f"{recipe.budget.images or 0:,} images"
    )
    display.plan(
        plans.Plan(stages, the_plan.reasons),
        "no training" if trained else f"{budget} of training",
    )
    # a critic and a denoiser look back, even where a student would not; no more than they need
    capacity = min(recipe.memory.capacity or MEMORY, MEMORY)
    memory = recipe.memory.model_copy(update={"capacity": capacity})
    whole = recipe.diffusion.model_copy(update={"accept": "all"})  # `_fill` chooses
    small = allowing.model_copy(update={"memory": memory, "diffusion": whole})
    lab = Lab(small, stages, teacher, None, device=device, bfloat16=bfloat16)
    level = promise_of(recipe.generator.start, teacher.digest)
    job = Job(recipe, teacher, lab, stages, the_plan.reasons, level)
    if keep is not None:
        if not isinstance(job.generator, Diffusion) or trained:
            raise InputError("--save-generator: only a diffusion model that is trained here")
        if keep.exists():
            raise InputError(f"--save-generator {quoted(keep)}: this is already there")
        job.keep = keep
    if trained and isinstance(job.generator, Gan):
        job.generator.take_over(recipe.generator.start)
        job.generator.recalibrate_batchnorm(
            generator_for(recipe.run.seed, "settle")
        )  # a run leaves its moving statistics
    job.training = {"from": recipe.generator.start or None, "images": 0, "seconds": 0.0}
    job.trained = trained or not (job.learns or len(stages) > 1)
    job.findings = checked(teacher, recipe, display, anyway=anyway)
    count, classes = recipe.dataset.count, teacher.classes
    job.quota = [count // classes + (k < count % classes) for k in range(classes)]
    return recipe, job


def _go(
    job: Job, out: Path, display: Display, started: float, *, resumed: bool = False,
    state: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains, then writes, saving on the way; finishes or stops."""
    recipe, before, written = job.recipe, job.seconds, job.writing
    writing = started
    opened = {"recipe_sha256": files.sha256_of(out / RECIPE), "real": ""}
    if recipe.data.real:
        real = images_for(recipe, recipe.data.real, job.teacher, labelled=False)
        display.findings(real.notes)
        job.lab.real = real.pixels
        job.real, job.level = len(real.pixels), max(job.level, 2)
        opened["real"] = real.digest
    if state is not None and state.get("real") != opened["real"]:
        raise InputError(f"--resume {quoted(out)}: the real images are not those it was begun with")

    def save(writer: Writer | None) -> None:
        job.seconds = before + time.perf_counter() - started
        if writer is not None:
            job.writing = written + time.perf_counter() - writing
        data = {
            "format": FORMAT,
            "teacher_sha256": job.teacher.digest,
            "writer": writer.state_dict() if writer else None,
            **opened,
            **job.state_dict(),
        }
        with cadence.saving():
            save_state(data, out / CHECKPOINT, "checkpoint")

    cadence = Cadence(recipe.run.checkpoint_seconds, saved=state is not None)
    began = time.monotonic()
    keeping = f" --save-generator {job.keep}" if job.keep else ""
    again = f"go on with: synthkd generate --resume {out}{keeping}" + trusting(recipe)

    def pause(writer: Writer | None) -> None:
        """Saves now and then; when asked to stop, saves and stops."""
        nonlocal began
        if stop or cadence.due(time.monotonic() - began):
            save(writer)
        if stop:
            display.stop()
            display.say(f"stopped and saved; {again}")
            raise SystemExit(128 + stop.signal)
        began = time.monotonic()

    give_up = giving_up(cadence, display, again)
    with resumable(again), stopping(display.acknowledge, give_up) as stop:
        job.lab.tick = ticking(display, stop, give_up)
        if not job.trained:
            _train(job, display, lambda: pause(None))
            save(None)
        if isinstance(job.generator, Gan):
            save_decoder(job.generator, out / "generator.safetensors")
        writing = time.perf_counter()
        with Writer(
            out, job.teacher.spec, job.teacher.classes, job.teacher.names,
            shard=recipe.dataset.shard, folders=recipe.dataset.folders,
            resumed=resumed,
        ) as writer:  # fmt: skip
            if state is not None and state["writer"] is not None:
                _take_over(writer, state["writer"], out)
            if resumed:
                writer.prune()
            _fill(writer, job, display, lambda: pause(writer))
            if not writer.count:
                raise InputError(
                    f"the teacher agrees with none of {job.drawn:,} images drawn: nothing to write"
                )
            job.writing = written + time.perf_counter() - writing
            findings = _check_result(job)
            manifest = _manifest(job) | {
                "verdict": verdict(findings), "findings": as_data([*findings, *job.idle]),
            }  # fmt: skip
            manifest["wall_seconds"] = round(before + time.perf_counter() - started, 2)
            if job.keep is not None:
                job.generator.save(job.keep, job.level)
            writer.close(manifest)
            count = writer.count
    (out / CHECKPOINT).unlink(missing_ok=True)
    display.findings(findings)
    _show(manifest, count, out, display)
    return manifest


def _take_over(writer: Writer, state: dict[str, Any], out: Path) -> None:
    try:
        writer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
        raise InputError(f"--resume {quoted(out)}: its checkpoint does not fit it") from None


def _check_result(job: Job) -> list[Finding]:
    """What can be said against the data set by its classes."""
    count, classes = job.recipe.dataset.count, job.teacher.classes
    asked = [count // classes + (k < count % classes) for k in range(classes)]
    written = [first - still for first, still in zip(asked, job.quota, strict=True)]
    return check_dataset(written, count, job.teacher.names)


def _manifest(job: Job) -> dict[str, Any]:
    recipe = job.recipe
    return {
        **environment(job.lab.device),
        "teacher": recipe.teacher.spec,
        "teacher_sha256": job.teacher.digest,
        "generator": job.stages[-1].generator,
        "seed": recipe.run.seed,
        "promise_level": job.level,
        "promise": PROMISES[job.level],
        "real_images_read": job.real,
        "plan": list(job.reasons),
        "teacher_findings": as_data(job.findings),
        "recipe": recipes.to_toml(recipe),
        "training": job.training,
        "drawn": job.drawn,
        "agreed_share": job.agreed / max(1, job.drawn),
        "classes_not_filled": {str(k): n for k, n in enumerate(job.quota) if n},
        "seconds_writing": round(job.writing, 2),
        "peak_memory_mb": peak_memory_mb(job.lab.device),
    }


def to_come(missing: Sequence[int], still: Sequence[int], drawn: int, patience: int) -> float:
    """How many times as long as until now it will take: until the slowest class is full, or until
    `patience` more images are drawn.

    `missing` images of every class at first and `still` now, after `drawn`.

    >>> to_come([10, 10], [0, 5], drawn=30, patience=1000)
    1.0
    >>> to_come([10, 10], [0, 10], drawn=30, patience=600)
    20.0
    """
    slowest = max(now / max(first - now, 0.5) for first, now in zip(missing, still, strict=True))
    return min(slowest, max(0, patience) / max(1, drawn))


def _show(manifest: dict[str, Any], count: int, out: Path, display: Display) -> None:
    level, missed = manifest["promise_level"], manifest["classes_not_filled"]
    rows = [
        ("images", f"{count:,} in {out}"),
        ("agreed", f"{manifest['agreed_share']:.1%} of {manifest['drawn']:,} drawn: "
                   "the teacher agrees"),
        ("seconds", f"{manifest['wall_seconds']:.0f}: "
                    f"training {manifest['training']['seconds']:.0f}, "
                    f"drawing and writing {manifest['seconds_writing']:.0f}"),
        ("real images read", f"{manifest['real_images_read']:,} "
                             f"(level {level}, {manifest['promise']})"),
        ("contact sheet", str(out / "contact_sheet.png")),
    ]  # fmt: skip
    if missed:
        rows.insert(
            1, ("too few of", ", ".join(f"class {k}: {n} missing" for k, n in missed.items()))
        )
    display.table("result", ("what", "value"), rows)


def _train(job: Job, display: Display, pause: Callable[[], None]) -> None:
    """The stages before the images are written; for a generator that learns, all of them."""
    lab = job.lab
    try:
        for round_ in rounds(lab):
            display.follow(round_)
            stage = next(s for s in job.stages if s.name == round_.stage)
            job.training |= {
                "images": job.training["images"] + stage.synthesis_batch * stage.synthesis_steps,
                "seconds": round(round_.progress.seconds, 2),
                "last": round_.measures,
            }
            if not job.learns and lab.stage == job.stages[-1]:
                break
            if not lab.finished:
                pause()
    finally:
        display.stop()
    if isinstance(job.generator, Gan):
        job.generator.recalibrate_batchnorm(generator_for(job.recipe.run.seed, "settle"))
    job.trained = True


def _fill(writer: Writer, job: Job, display: Display, pause: Callable[[], None]) -> None:
    """Draws until every class has its even share of images in which the teacher sees what was asked
    for.

    Batch k depends on the seed and on k alone, or, of a generator that goes on learning as it
    draws, on the batches before it. After PATIENCE images per image wanted the rest is given up.
    """
    wanted = job.recipe.dataset.count
    least = job.recipe.diffusion.confidence if isinstance(job.generator, Diffusion) else 0.0
    limit = PATIENCE * wanted + 1024
    begun = shown = time.monotonic()
    missing, before = list(job.quota), job.drawn
    while sum(job.quota) and job.drawn < limit:
        made = job.offer(generator_for(job.recipe.run.seed, "image", job.batch))
        pixels = to_uint8(made.images).cpu()
        logits = job.lab.label(pixels, exact=True)  # what is written shall hold anywhere
        votes = logits.argmax(1)
        labels = torch.where(made.labels.cpu() < 0, votes, made.labels.cpu())
        sure = job.teacher.probabilities(logits).amax(1) >= least
        keep = []
        alike = ((votes == labels) & sure).nonzero().flatten().tolist()
        job.agreed += len(alike)
        for i in alike:
            if job.quota[labels[i]] > 0:
                job.quota[labels[i]] -= 1
                keep.append(i)
        index = torch.tensor(keep, dtype=torch.int64)
        writer.add(pixels[index], labels[index], logits[index])
        job.drawn, job.batch = job.drawn + len(pixels), job.batch + 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            more = to_come(missing, job.quota, job.drawn - before, limit - job.drawn)
            display.say(
                f"{writer.count:,} of {wanted:,} images written, {job.drawn:,} drawn, "
                f"{clock(more * (shown - begun))} left"
            )
        pause()
