"""A synthetic data set as a job: a directory, from a recipe to images that the teacher agrees with.

What `synthkd generate` and `synthkd.generate` do; nothing here prints, a `Reporter` is notified.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd import __version__
from synthkd import recipe as recipes
from synthkd.cards.data import data_card
from synthkd.checks.student import check_dataset, verdict
from synthkd.core import files
from synthkd.core.errors import InputError, quoted
from synthkd.core.findings import Finding, as_data
from synthkd.core.images import Batch, to_uint8
from synthkd.core.logits import applies
from synthkd.core.promise import PROMISES
from synthkd.core.seeds import generator_for
from synthkd.core.words import clock
from synthkd.data.store import MANIFEST, Writer
from synthkd.engine.build import build_synthesis, images_for
from synthkd.engine.estimate import estimate_writing
from synthkd.engine.loop import rounds
from synthkd.engine.machine import peak_memory_mb
from synthkd.engine.reporter import Reporter, Silent
from synthkd.engine.synthesizing import synthesize
from synthkd.jobs.evidence import Evidence, Sealed
from synthkd.proof import hashes
from synthkd.recipe import Recipe
from synthkd.recipe.unused import ignored
from synthkd.runs.checkpoints import Checkpoints
from synthkd.runs.directory import environment, held
from synthkd.runs.session import Session, going_on
from synthkd.synthesis import Generator, readers
from synthkd.synthesis.diffusion.diffusers_io import promise_of
from synthkd.teachers.protocol import Teacher

PATIENCE = 20  # images drawn per image wanted before a class is given up
BATCH = 256  # images drawn at a time
ENOUGH = 2**40  # more images than are ever asked for
MEMORY = 4096  # images remembered, unless the user says otherwise
RECIPE, CHECKPOINTS = "recipe.toml", "checkpoints"  # of a data set that is being made
SHARDS = "shards.json"  # of one that is being made in shards, until it is merged: jobs.sharding
ONE_FILE = "checkpoint.safetensors"  # what earlier versions kept instead


@dataclass(frozen=True)
class DataSet:
    """What a generation leaves."""

    path: Path  # the data set: see data.store
    manifest: dict[str, Any]
    findings: tuple[Finding, ...]  # what speaks against it
    count: int  # images
    digest: str  # of hashes.json, which covers every other file in it


def used(recipe: Recipe, given: Collection[str] = ()) -> Recipe:
    """The recipe as a data set is made by it, and as it is recorded. A critic and a denoiser look
    back at MEMORY images, even where a student would not, unless the memory's capacity is `given`;
    every image that a diffusion model samples is taken, and the writer chooses."""
    capacity = recipe.memory.capacity
    if "memory.capacity" not in given or not capacity:
        capacity = min(capacity or MEMORY, MEMORY)
    memory = recipe.memory.model_copy(update={"capacity": capacity})
    diffusion = recipe.diffusion.model_copy(update={"accept": "all"})
    return recipe.model_copy(update={"memory": memory, "diffusion": diffusion})


class Generation:
    """A data set in the making: everything that its recipe names, and how far it is.

    `recipe` is the one that is used (see `used`). A generator that learns is trained first, or
    loaded; pixels and drawings are made as they are written. A model that was trained is left in
    `keep`, as other programs read it, if that is given. `whole` is the data set of which this is a
    shard. The other arguments are those of `jobs.distillation.Distillation`.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        teacher: Teacher | nn.Module | Callable[..., Any] | None = None,
        real_data: Any = None,
        keep: Path | None = None,
        whole: Path | None = None,
        report: Reporter | None = None,
        given: Collection[str] = (),
        by_force: bool = False,
        sealed: Sealed | None = None,
    ) -> None:
        self.evidence = Evidence(recipe, sealed, student=False)  # before the teacher's code runs
        self.started = time.perf_counter()
        self.report = report or Silent()
        self.real_data, self.keep, self.by_force = real_data, keep, by_force
        self.whole = whole
        self.lab, loaded = build_synthesis(recipe, teacher=teacher, report=self.report)
        self.recipe, self.teacher, self.stages = self.lab.recipe, self.lab.teacher, self.lab.stages
        self.evidence.recipe = self.recipe  # what was left open is decided
        self.generator: Generator = self.lab.generators[self.stages[-1].generator]
        self.learns = self.generator.abilities.trains
        if keep is not None:
            if not self.generator.abilities.exports or loaded:
                raise InputError("--save-generator: only a diffusion model that is trained here")
            if keep.exists():
                raise InputError(f"--save-generator {quoted(keep)}: this is already there")
        self.idle = ignored(self.recipe, self.stages, given, readers(), student=False)
        self.report.findings(self.idle)
        self.level = promise_of(self.recipe.generator.start, self.teacher.digest)
        self.real = 0  # real images read
        self.seconds = 0.0  # in earlier sittings
        start = self.recipe.generator.start
        self.training: dict[str, Any] = {"from": start or None, "images": 0, "seconds": 0.0}
        self.trained = loaded or not (self.learns or len(self.stages) > 1)
        self.quota = self._shares()  # images that are still missing, by class
        self.asked = [0] * self.teacher.classes  # images that were asked to be of each class
        self.batch = self.drawn = self.agreed = 0
        self.writing = 0.0  # seconds

    _CURSOR = (
        "seconds", "training", "trained", "quota", "asked", "batch", "drawn", "agreed", "writing",
    )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """All that changes, the writer apart."""
        cursor = {key: getattr(self, key) for key in self._CURSOR}
        return {"lab": self.lab.state_dict(), "cursor": cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.lab.load_state_dict(state["lab"])
        for key in self._CURSOR:
            setattr(self, key, state["cursor"][key])

    def expect(self) -> None:
        """Tells what the data set will take."""
        stage = self.stages[-1]
        if self.learns:
            stage = stage.model_copy(update={"synthesis_steps": 0, "fresh": BATCH})
        before = 0 if self.trained else len(self.stages) - (not self.learns)
        found = estimate_writing(self.lab, stage, self.recipe.dataset.count, before=before)
        self.report.estimate(found, found.seconds, timed=False)

    def start(self) -> DataSet:
        """Makes it in a new directory."""
        out = self.evidence.out or Path(self.recipe.run.out or files.free_name(Path("synthetic")))
        self._check_apart(out)
        files.claim(out, resumable=True)
        with held(out, "--out"):
            self.lab.keep_in(out)
            files.claim(out, resumable=True)  # whoever came at the same time may have begun in it
            files.write_atomic(out / RECIPE, recipes.to_toml(self.recipe))
            checkpoints = Checkpoints(out / CHECKPOINTS)
            return self._go(out, checkpoints, None, resumed=False)

    def resume(self, path: Path) -> DataSet:
        """Goes on with one that was interrupted, in training or in writing."""
        self._check_apart(path)
        with held(path, "--resume"):
            self.lab.keep_in(path)
            checkpoints = Checkpoints(path / CHECKPOINTS)
            state = self._take_up(path, checkpoints)
            return self._go(path, checkpoints, state, resumed=True)

    def _shares(self) -> list[int]:
        count, classes = self.recipe.dataset.count, self.teacher.classes
        return [count // classes + (k < count % classes) for k in range(classes)]

    def _offer(self, rng: torch.Generator) -> Batch:
        """The next images; a generator that is trained beforehand learns no more."""
        stage = self.stages[-1]
        if self.learns:
            stage = stage.model_copy(update={"synthesis_steps": 0, "fresh": BATCH})
        return synthesize(self.lab, stage, rng, counts=self._counts).batch

    def _counts(self) -> Tensor:
        """How often each class was asked for, [K], and endlessly where none is missing: a class in
        which the teacher sees nothing takes no more than its part of what is asked for."""
        full = torch.tensor(self.quota) == 0
        return torch.tensor(self.asked).masked_fill(full, ENOUGH)

    def _check_apart(self, out: Path) -> None:
        """Refuses to keep a model around or inside the data set, where its folder would be a
        class."""
        if self.keep is None:
            return
        one, other = self.keep.resolve(), out.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise InputError(f"--save-generator {quoted(self.keep)}: the data set goes there")

    def _take_up(self, path: Path, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """Goes back to the checkpoint of an interrupted data set, if there is one already; nothing
        may have changed meanwhile."""
        check_unfinished(path)  # by whoever worked in it until now
        where = f"--resume {quoted(path)}"
        if (path / ONE_FILE).exists():
            raise InputError(
                f"{where}: this data set was begun by another version of synthkd, whose "
                f"checkpoint synthkd {__version__} cannot read: finish it with that version, "
                "or make it anew"
            )
        _, state = checkpoints.newest() or (0, None)
        if state is not None:
            if state.get("teacher_sha256") != self.teacher.digest:
                raise InputError(f"{where}: the teacher is another one")
            if state.get("plugins", {}) != self._plugins():
                raise InputError(f"{where}: its run.plugins were changed after it was begun")
            if state.get("recipe_sha256") != files.sha256_of(path / RECIPE):
                raise InputError(f"{where}: its {RECIPE} was changed after it was begun")
            try:
                self.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
                raise InputError(f"{where}: its checkpoint does not fit it") from None
        self.report.say(
            "no checkpoint yet: starting from the beginning" if state is None else "going on"
        )
        return state

    def _open_real(self, out: Path, state: dict[str, Any] | None) -> str:
        """Opens the real images that are allowed, if any are; returns their digest."""
        digest = ""
        if self.lab.sources.real:
            given = self.recipe.data.real if self.real_data is None else self.real_data
            real = images_for(self.recipe, given, self.teacher, labelled=False)
            self.report.findings(real.notes)
            self.lab.use_real(real.pixels)
            self.real, self.level = len(real.pixels), max(self.level, 2)
            digest = real.digest
        if state is not None and state.get("real") != digest:
            raise InputError(
                f"--resume {quoted(out)}: the real images are not those it was begun with"
            )
        return digest

    def _go(
        self, out: Path, checkpoints: Checkpoints, state: dict[str, Any] | None, *, resumed: bool
    ) -> DataSet:
        """Trains, then writes, saving on the way; finishes or stops."""
        recipe, before, written = self.recipe, self.seconds, self.writing
        writing = self.started
        opened = {
            "teacher_sha256": self.teacher.digest,
            "recipe_sha256": files.sha256_of(out / RECIPE),
            "plugins": self._plugins(),
            "real": self._open_real(out, state),
        }

        def save(writer: Writer | None) -> None:
            self.seconds = before + time.perf_counter() - self.started
            if writer is not None:
                self.writing = written + time.perf_counter() - writing
            data = {
                "writer": writer.state_dict() if writer else None, **opened, **self.state_dict(),
                "evidence": evidence.told(own) if session.asked else evidence.begun(),
            }  # fmt: skip
            checkpoints.folder.mkdir(exist_ok=True)
            checkpoints.save(data, self.lab.progress.round + self.trained + self.batch)

        evidence = self.evidence
        own = [out, *((self.keep.parent,) if self.keep else ())]
        before_it = (state or {}).get("evidence", {})
        evidence.go_on(before_it, len(before_it.get("sealed", ())))
        keeping = ("--save-generator", self.keep) if self.keep else ()
        again = going_on("generate", recipe, self.whole or out, *keeping)
        session = Session(
            self.report, again, recipe.run.checkpoint_seconds, saved=state is not None,
            by_force=self.by_force,
        )  # fmt: skip
        with session.open(self.lab):
            if not self.trained:
                self._train(lambda last: session.pause(partial(save, None), last=last))
                session.save(partial(save, None))
            if not self.generator.abilities.exports:
                self.generator.save(out, self.level)
            writing = time.perf_counter()
            with Writer(
                out, self.teacher.spec, self.teacher.classes, self.teacher.names,
                shard=recipe.dataset.shard, folders=recipe.dataset.folders, resumed=resumed,
                beside=(CHECKPOINTS,),
            ) as writer:  # fmt: skip
                if state is not None and state["writer"] is not None:
                    _take_over(writer, state["writer"], out)
                if resumed:
                    writer.prune()
                self._fill(writer, lambda: session.pause(partial(save, writer)))
                if not writer.count:
                    raise InputError(
                        f"the teacher agrees with none of {self.drawn:,} images drawn: nothing to "
                        "write"
                    )
                self.writing = written + time.perf_counter() - writing
                findings = self._against()
                proof = evidence.finished(self.teacher, own)
                doubts = [*self.lab.doubts, *evidence.findings]
                manifest = self._manifest() | proof | {
                    "verdict": verdict(findings),
                    "findings": as_data([*findings, *self.idle, *doubts]),
                    "wall_seconds": round(before + time.perf_counter() - self.started, 2),
                }  # fmt: skip
                if self.keep is not None:
                    self.generator.export(self.keep, self.level)
                card = data_card(writer.described() | manifest, writer.folders)
                writer.close(manifest, card)
                count = writer.count
        checkpoints.clear()
        with suppress(OSError):  # none was written
            checkpoints.folder.rmdir()
        return DataSet(out, manifest, (*findings, *doubts), count, hashes.write(out))

    def _plugins(self) -> dict[str, str]:
        """The SHA-256 of each file of `run.plugins`."""
        return {path: files.sha256_of(Path(path)) for path in self.recipe.run.plugins}

    def _against(self) -> list[Finding]:
        """What can be said against the data set by its classes."""
        written = [first - still for first, still in zip(self._shares(), self.quota, strict=True)]
        return check_dataset(written, self.recipe.dataset.count, self.teacher.names)

    def _manifest(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            **environment(self.lab.device),
            "teacher": recipe.teacher.spec,
            "teacher_sha256": self.teacher.digest,
            "derived_from": self.teacher.digest,  # in the sense of licences, and of what leaks
            "generator": self.stages[-1].generator,
            "seed": recipe.run.seed,
            "promise_level": self.level,
            "promise": PROMISES[self.level],
            "real_images_read": self.real,
            "plan": list(self.lab.plan.reasons),
            "teacher_findings": as_data(self.lab.teacher_findings),
            "plugins": self._plugins(),
            "recipe": recipes.to_toml(recipe),
            "training": self.training,
            "drawn": self.drawn,
            "agreed_share": self.agreed / max(1, self.drawn),
            "classes_not_filled": {str(k): n for k, n in enumerate(self.quota) if n},
            "seconds_writing": round(self.writing, 2),
            "peak_memory_mb": peak_memory_mb(self.lab.device),
        }

    def _train(self, pause: Callable[[bool], None]) -> None:
        """The stages before the images are written; for a generator that learns, all of them."""
        lab = self.lab
        for round_ in rounds(lab):
            self.report.follow(round_)
            stage = next(s for s in self.stages if s.name == round_.stage)
            self.training |= {
                "images": self.training["images"] + stage.synthesis_batch * stage.synthesis_steps,
                "seconds": round(round_.progress.seconds, 2),
                "last": round_.measures,
            }
            if not self.learns and lab.stage == self.stages[-1]:
                break
            pause(lab.finished)
        self.report.stop()
        self.generator.finalise(generator_for(self.recipe.run.seed, "settle"))
        self.trained = True

    def _fill(self, writer: Writer, pause: Callable[[], None]) -> None:
        """Draws until every class has its even share of images in which the teacher sees what was
        asked for. An image that was asked to be of no class is of the one that the teacher sees
        most of, also where its classes are independent and none applies: such images are needed to
        learn what to say no to.

        Batch k depends on the seed and on k alone, or, where the generator goes on learning or asks
        for what is missing, on the batches before it. After PATIENCE images per image wanted the
        rest is given up.
        """
        wanted = self.recipe.dataset.count
        least = self.generator.least_confidence
        limit = PATIENCE * wanted + 1024
        begun = shown = time.monotonic()
        missing, before = list(self.quota), self.drawn
        while sum(self.quota) and self.drawn < limit:
            made = self._offer(generator_for(self.recipe.run.seed, "image", self.batch))
            pixels = to_uint8(made.images).cpu()
            logits = self.lab.label(pixels, exact=True)  # what is written shall hold anywhere
            self.generator.answered(logits)
            asked, several = made.labels.cpu(), self.teacher.independent
            labels = torch.where(asked < 0, logits.argmax(1), asked)
            sure = self.teacher.probabilities(logits).gather(1, labels[:, None])[:, 0] >= least
            alike = (asked < 0) | applies(logits, labels, independent=several)
            good = (alike & sure).nonzero().flatten().tolist()
            self.agreed += len(good)
            told = torch.bincount(asked[asked >= 0], minlength=self.teacher.classes)
            self.asked = (torch.tensor(self.asked) + told).tolist()
            keep = []
            for i in good:
                if self.quota[labels[i]] > 0:
                    self.quota[labels[i]] -= 1
                    keep.append(i)
            index = torch.tensor(keep, dtype=torch.int64)
            writer.add(pixels[index], labels[index], logits[index])
            self.drawn, self.batch = self.drawn + len(pixels), self.batch + 1
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                more = to_come(missing, self.quota, self.drawn - before, limit - self.drawn)
                self.report.say(
                    f"{writer.count:,} of {wanted:,} images written, {self.drawn:,} drawn, "
                    f"{clock(more * (shown - begun))} left"
                )
            pause()


def begun(path: Path) -> Recipe:
    """The recipe of a data set that was interrupted. What a stranger may have put there is refused
    before anything is opened."""
    if path.is_dir():
        files.plain_tree(path, f"--resume {quoted(path)}")
    check_unfinished(path)
    if not (path / RECIPE).is_file():
        raise InputError(f"--resume {quoted(path)}: no data set was begun here")
    return recipes.validated(recipes.read_toml(path / RECIPE))


def check_unfinished(path: Path) -> None:
    """Refuses to go on with a data set that is finished."""
    if (path / MANIFEST).exists() and not (path / SHARDS).exists():
        raise InputError(f"--resume {quoted(path)}: this data set is finished")


def _take_over(writer: Writer, state: dict[str, Any], out: Path) -> None:
    try:
        writer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
        raise InputError(f"--resume {quoted(out)}: its checkpoint does not fit it") from None


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
