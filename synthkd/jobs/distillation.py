"""Distillation as a job: one run directory, from a recipe to a student, its scores and its summary.

What `synthkd distill` and `synthkd.distill` do; nothing here prints, a `Reporter` hears of it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd import recipe as recipes
from synthkd.cards.model import run_card
from synthkd.checks.student import (
    balance_data,
    check_agreement,
    check_budget,
    check_estimate,
    check_memory,
    expect_budget,
    expect_memory,
    verdict,
)
from synthkd.core.errors import InputError, quoted
from synthkd.core.files import claim, finite, free_name, sha256_of, sweep
from synthkd.core.findings import Finding, as_data
from synthkd.core.memory import machine_memory
from synthkd.core.seeds import generator_for
from synthkd.core.states import packed
from synthkd.core.words import run_name
from synthkd.data.sources import Images, count_images, place_of
from synthkd.engine.build import build, images_for, open_data
from synthkd.engine.estimate import Estimate, estimate
from synthkd.engine.held_out import HeldOut, held_out_votes, select_final_weights
from synthkd.engine.loop import Lab, Round, rounds
from synthkd.engine.machine import peak_memory_mb
from synthkd.engine.processes import Processes
from synthkd.engine.progress import whole_share
from synthkd.engine.reporter import Reporter, Schedule, Several, Silent
from synthkd.evaluation.compare import YES_OR_NO, Comparison, compare, seconds_per_image
from synthkd.evaluation.probes import seconds_for_set
from synthkd.evaluation.without_data import estimate_agreement, probes_for, probes_suit
from synthkd.jobs.details import draw_chosen, run_details
from synthkd.jobs.evidence import Evidence, Sealed
from synthkd.labels.check import ABOUT_LABELS
from synthkd.measures import class_balance
from synthkd.networks.classifier import Classifier
from synthkd.networks.pruned import is_pruned
from synthkd.networks.slimmable import Slimmable, widths
from synthkd.recipe import Recipe, Stage, val_of
from synthkd.recipe.unused import ignored
from synthkd.replay.protocol import ReplayBatch
from synthkd.runs.checkpoints import newest_of_all
from synthkd.runs.directory import Run, environment, held, resumable
from synthkd.runs.session import Session, going_on
from synthkd.runs.tensorboard import TensorBoard, check_tensorboard
from synthkd.specs import Card, card_of, is_saved, origin, read_card
from synthkd.specs.ensembles import ensemble_tables, is_ensemble
from synthkd.students.learner import save_student
from synthkd.synthesis import GENERATORS, readers
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.protocol import Teacher, asked_freely

RESERVE = 0.02  # share of a budget in minutes kept for choosing, scoring and saving,
KEPT_IMAGES, KEPT_BYTES = 512, 16_000_000  # synthetic ones, kept for export --int8
LEAST_RESERVE = 4.0  # and at least so many seconds, unless that is more than a tenth
MOST_SCORING = 0.25  # share of it that the final score may take
LEAST_PROBED = 10.0  # seconds of a run from which its agreement on real images is estimated
SAID = 3.0  # seconds that this takes, from which it is said
LATE = 30.0  # seconds by which a run may end late that begins when its minutes are over


@dataclass(frozen=True)
class Result:
    """What a distillation leaves."""

    student: Classifier  # an nn.Module: images [B, C, H, W] in 0..1 to logits [B, K], eval mode
    summary: dict[str, Any]  # what summary.json says
    findings: tuple[Finding, ...]  # what speaks against the student
    run: Path  # the run directory
    digest: str  # of hashes.json, which covers every other file in it


class Distillation:
    """A recipe with its lab, about to be run in a directory of its own.

    `teacher`, `student`, `real_data` are living objects as in `engine.build.build`, and `val_data`
    one that takes the place of `data.val`. `begin_with` are weights that the student begins with,
    learned from the same teacher's synthetic images alone. `given` are the keys that the user set,
    so that those that do nothing can be named. A budget in minutes counts from `started`, a time of
    `time.perf_counter` (default: now). With `by_force` a second Ctrl-C may end the process; with
    `tensorboard` the rounds are written for TensorBoard too. `sealed` is the record of the seal,
    where the process has one.

    Several `processes`, of which each has a Distillation, learn one student: the first one alone
    writes, reports and scores, and each keeps checkpoints of its own.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        teacher: Teacher | nn.Module | Callable[..., Any] | None = None,
        student: nn.Module | None = None,
        real_data: Any = None,
        val_data: Any = None,
        begin_with: Mapping[str, Tensor] | None = None,
        report: Reporter | None = None,
        given: Collection[str] = (),
        started: float | None = None,
        by_force: bool = False,
        tensorboard: bool = False,
        sealed: Sealed | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.tensorboard = tensorboard and self.processes.leads
        if self.tensorboard:
            check_tensorboard()
        self.evidence = Evidence(recipe, sealed)  # before the teacher's code runs
        self.started = time.perf_counter() if started is None else started
        self.report = (report if self.processes.leads else None) or Silent()
        self.real_data, self.by_force = real_data, by_force
        if val_data is None:
            _check_val(recipe)
        self.lab = build(
            recipe, teacher=teacher, student=student, real_data=real_data, data=False,
            report=self.report, processes=self.processes,
        )  # fmt: skip
        self.recipe, self.teacher = self.lab.recipe, self.lab.teacher
        if begin_with is not None:
            assert self.lab.shipped is not None
            self.lab.shipped.begin_with(begin_with)
        self.evidence.recipe = self.recipe  # what was left open is decided
        self.val: Any = val_of(self.recipe) if val_data is None else val_data
        self.expected: Estimate | None = None
        self.probing, self.not_estimated = 0.0, ""
        slimmable = any(isinstance(each.student.body, Slimmable) for each in self.lab.learners)
        self.idle = idle = ignored(
            self.recipe, self.lab.stages, given, readers(), slimmable=slimmable
        )
        self.report.findings(idle)
        self.manifest: dict[str, Any] = {
            **environment(self.lab.device),
            "teacher": self.recipe.teacher.spec,
            "teacher_sha256": self.teacher.digest,
            "derived_from": self.teacher.digest,  # the student, and all synthetic images of the run
            "student": self.recipe.student.spec,
            "student_chosen": self.lab.student_choice,
            "findings": as_data([*self.lab.student_findings, *idle]),
            "recipe_sha256": sha256(recipes.to_toml(self.recipe).encode()).hexdigest(),
            "seed": self.recipe.run.seed,
            "plan": list(self.lab.plan.reasons),
            "stages": [stage.model_dump() for stage in self.lab.stages],
            "device": str(self.lab.device),
            "precision": self.recipe.run.precision,
            "teacher_findings": as_data(self.lab.teacher_findings),
            "plugins": {path: sha256_of(Path(path)) for path in self.recipe.run.plugins},
            "processes": self.processes.count,
        }
        if begin_with is not None:
            self.manifest["begun_with"] = sha256(packed(begin_with)).hexdigest()
        alike = [self.manifest["recipe_sha256"], self.teacher.digest]
        if any(told != alike for told in self.processes.every(alike)):
            raise InputError(
                "the processes differ in their settings or in their teacher: start all by the same "
                "command, with the same files and the same version of synthkd"
            )

    def expect(self) -> Estimate:
        """Tells what the run will take, and what can be said against its result before it
        begins."""
        lab = self.lab
        if self.recipe.budget.minutes:  # time for scores, or over already, is not the rounds'
            whole = self.recipe.budget.minutes * 60
            lab.limit(whole - reserved(whole, 0.0) - (time.perf_counter() - self.started))
        self.expected = expected = estimate(lab)
        ahead = time.perf_counter() - self.started + expected.seconds
        self.report.estimate(expected, ahead, timed=lab.budget.timed)
        refined = sum(
            found.synthesized
            for found, stage in zip(expected.stages, lab.stages, strict=True)
            if _refines(stage)
        )
        begun = self.recipe.student.weights or is_saved(self.recipe.student.spec)
        able = any(_refines(stage) for stage in lab.stages)
        findings = expect_budget(
            expected.seen, refined if able else None, self.teacher.classes,
            self.recipe.budget.minutes or ahead / 60,
        )  # fmt: skip
        self.report.findings([] if begun else findings)
        if lab.device.type == "cpu":
            refining = [s.synthesis_batch for s in lab.stages if s.terms]
            self.report.findings(expect_memory(
                expected.memory, machine_memory(), batch=self.recipe.training.batch,
                synthesis_batch=max(refining, default=0),
            ))  # fmt: skip
        self.manifest["estimate"] = asdict(expected)
        return expected

    def start(self) -> Result:
        """Runs it in a new directory: `run.out`, or one that is named after teacher and student; a
        sealed run in the one that is open to it."""
        if not self.processes.leads:
            return self._join()
        recipe = self.recipe
        self._check_time()
        name = run_name(recipe.teacher.spec, recipe.student.spec, recipe.run.seed)
        out = self.evidence.out or Path(recipe.run.out or free_name(Path("runs") / name))
        claim(out, resumable=True)
        with held(out, "--out"):
            self.lab.keep_in(out)
            self._open_data()
            the_run = Run.create(out, recipe, self.manifest | self.evidence.begun())
            self.processes.first(str(out.resolve()))
            return self._walk(the_run)

    def _check_time(self) -> None:
        """Refuses a run whose minutes are over before it begins, where its first rounds would end
        LATE seconds after them or more."""
        minutes = self.recipe.budget.minutes
        if not minutes:
            return
        whole, spent = 60 * minutes, time.perf_counter() - self.started
        left = whole - reserved(whole, 0.0) - spent
        rounds_take = sum(
            min(stage.seconds, stage.round_seconds)
            for stage in (self.expected.stages if self.expected else ())
        )
        if left <= 0 and rounds_take - left > LATE:
            raise InputError(
                f"--minutes {minutes:g}: they were over before the first round: loading and "
                f"checking the teacher, the student and the estimate took {spent:.0f} s: give "
                f"--minutes {math.ceil(spent / 12)} or more"
            )

    def _join(self) -> Result:
        """Runs it in the directory that the first process has made."""
        out = Path(self.processes.first(""))
        if not out.is_dir():
            raise InputError(
                f"--out {quoted(out)}: the first process has made this directory, and process "
                f"{self.processes.rank} does not see it: give one that all machines share"
            )
        self.lab.keep_in(out)
        self._open_data()
        return self._walk(Run(out, self.processes.rank))

    def resume(self, path: Path) -> Result:
        """Goes on with an interrupted run from its newest complete checkpoint."""
        with held(path, "--resume") if self.processes.leads else nullcontext():
            the_run, _ = Run.resume(path)  # whoever worked in it until now may have finished it
            the_run.checkpoints = the_run.checkpoints_of(self.processes.rank)
            self.lab.keep_in(the_run.path)
            self._take_up(the_run)
            if self.processes.leads:
                begun = self.manifest | self.evidence.begun()
                the_run.write_manifest(begun | {"state": "running"})
            return self._walk(the_run)

    def _open_data(self) -> None:
        opened = open_data(self.lab, real_data=self.real_data)
        self.report.findings(opened.notes)
        self.manifest |= opened.as_data()

    def _take_up(self, the_run: Run) -> None:
        """Opens what the run had opened, and goes back to its newest checkpoint; nothing may have
        changed meanwhile. Settings that are newer than the run have their defaults."""
        where, before = f"--resume {quoted(the_run.path)}", the_run.manifest
        if before.get("teacher_sha256") != self.teacher.digest:
            raise InputError(f"{where}: the teacher is not the one that the run was started with")
        if before.get("recipe_sha256") != sha256_of(the_run.path / "recipe.toml"):
            raise InputError(f"{where}: its recipe.toml was changed after the run was started")
        if before.get("plugins", {}) != self.manifest["plugins"]:
            raise InputError(f"{where}: its run.plugins were changed after the run was started")
        kept = (
            "command", "student_chosen", "recipe_sha256", "estimate", "findings", "begun_with",
        )  # fmt: skip
        begun_with = self.manifest.pop("begun_with", None)
        self.manifest |= {key: before[key] for key in kept if key in before}
        sittings = _count(before.get("sittings"))
        self.manifest["sittings"] = sittings + 1
        self.evidence.go_on(before, sittings)
        self._open_data()
        if before.get("data") != self.manifest["data"]:
            raise InputError(f"{where}: the data are not those that the run was started with")
        old = self.processes.first(_count(before.get("processes")))
        state = self._newest(the_run, old)
        if state is None and begun_with != before.get("begun_with"):
            raise InputError(
                f"{where}: it stopped before its first checkpoint, and began with what its student "
                "had learned in a search: run the same synthkd search again"
            )
        if state is None:
            self.report.say("no checkpoint yet: starting from the beginning")
        else:
            try:
                self.lab.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
                said = f"{where}: its newest checkpoint does not fit its recipe"
                raise InputError(said) from None
            self.report.say(f"going on after round {self.lab.progress.round}")
            if self.processes.rank >= old:  # before the manifest says that there is one
                the_run.checkpoint(self.lab.state_dict(), self.lab.progress.round)
        if old != self.processes.count:
            self.report.say(
                f"begun by {old} and resumed by {self.processes.count} processes: the student will "
                "not be that of an unbroken run, bit for bit"
            )
        self.processes.wait()

    def _newest(self, the_run: Run, old: int) -> dict[str, Any] | None:
        """The newest state that all have saved, of a run by `old` processes. One that is new begins
        with the state of an earlier one: its images are the same at first."""
        rank = self.processes.rank
        if self.processes.count == 1:
            return the_run.newest()
        last, state = newest_of_all(the_run.checkpoints_of(rank % old), self.processes) or (0, None)
        if self.processes.leads:
            the_run.take_back(last)
        sweep(the_run.checkpoints.folder)
        if rank < old:
            the_run.checkpoints.forget_after(last)
        else:
            the_run.checkpoints.clear()  # of an earlier sitting with more processes
        return state

    def _walk(self, the_run: Run) -> Result:
        """Walks the rounds, records them, and finishes or stops."""
        lab, recipe, names = self.lab, self.recipe, self.teacher.names
        spent_before = lab.progress.seconds
        if recipe.budget.minutes:
            whole = recipe.budget.minutes * 60
            scoring = 0.0
            if self.processes.leads:
                self.probing = self._probing(whole)
                scoring = self.probing + self._scoring(MOST_SCORING * whole)
            spent = time.perf_counter() - self.started
            without = whole - reserved(whole, 0.0) - spent
            left = max(
                whole - reserved(whole, scoring) - spent, without / 2
            )  # to learn comes first
            lab.limit(self.processes.first(left))
        parts = recipe.run.snapshots + 1  # the last part ends with the student itself
        part = int(whole_share(lab.progress, lab.budget) * parts)
        words = ("--tensorboard",) if self.tensorboard else ()
        launcher = self.processes.launcher
        again = going_on("distill", recipe, the_run.path, *words, launcher=launcher)
        if self.tensorboard:
            seen = [line["images_seen"] for line in the_run.recorded()]
            board = TensorBoard(the_run.path / "tensorboard", len(names), seen)
            self.report = Several((self.report, board))
        self.report.say(f"run directory: {the_run.path}")
        self.report.expect(self._schedule())
        session = Session(
            self.report, again, recipe.run.checkpoint_seconds, saved=lab.progress.round > 0,
            by_force=self.by_force, processes=self.processes,
        )  # fmt: skip
        with self._telling(the_run), session.open(lab):
            for round_ in rounds(lab):
                if self.processes.leads:
                    the_run.record(round_)
                    before, part = part, int(round_.share * parts)
                    if before < part < parts and lab.learner and (not lab.chain or lab.chain.last):
                        weights = lab.learner.average or lab.learner.student.state_dict()
                        seconds = spent_before + time.perf_counter() - self.started
                        the_run.snapshot(part, weights, round_, seconds)
                    self.report.follow(round_)
                    the_run.samples(round_, names)
                session.pause(
                    partial(_checkpoint, the_run, lab, round_),
                    done=f"{round_.share:.0%}", last=lab.finished,
                )  # fmt: skip
        with resumable(again):
            the_run.close_samples(names)
            return self._finish(the_run, spent_before)

    @contextmanager
    def _telling(self, the_run: Run) -> Iterator[None]:
        """What this sitting opened stands in the manifest, also where it is stopped."""
        try:
            yield
        except BaseException:
            told = self.evidence.told([the_run.path])
            if self.processes.leads:
                with suppress(OSError):
                    the_run.write_manifest(self.manifest | told | {"state": "running"})
            self.evidence.stop()
            raise

    def _scoring(self, most: float) -> float:
        """Seconds that the final score will take, where it can be told before the images are
        opened, and without asking a black box, whose answers may cost."""
        count = count_images(self.val) if isinstance(self.val, str) else 0
        if not count or self.lab.shipped is None or not asked_freely(self.teacher):
            return 0.0
        before = self.teacher.queries
        seconds = count * seconds_per_image(self.lab.shipped.student, self.teacher)
        self.teacher.queries = before  # asked about nothing of the run
        if seconds > most:
            self.report.say(
                f"scoring {count:,} images will take about {seconds:.0f} s, and the budget has "
                f"{most:.0f} for it: the run will end late; give more minutes or fewer images"
            )
        return seconds

    def _probing(self, whole: float) -> float:
        """Seconds that the images will take by which the agreement on real ones is estimated, in a
        run of `whole` seconds; 0 where there are to be none, and why not is noted."""
        if not probes_suit(self.teacher):
            self.not_estimated = "the teacher gives no gradients, or has independent classes"
            return 0.0
        if whole < LEAST_PROBED:
            self.not_estimated = f"the run was shorter than {LEAST_PROBED:.0f} s"
            return 0.0
        seconds = math.inf
        with self._without_estimate():
            seconds = seconds_for_set(self.recipe, self.teacher)
        if seconds <= most_probing(whole):
            return seconds
        if seconds < math.inf:
            self.not_estimated = f"it takes some {seconds:.0f} s: synthkd evaluate --no-data"
        return 0.0

    def _estimate(self, student: Classifier, spent: float) -> dict[str, Any] | None:
        """The agreement to be expected on real images, at the end of a run of `spent` seconds."""
        seconds = self.probing if self.recipe.budget.minutes else self._probing(spent)
        if not seconds:
            return None
        if seconds > SAID:
            self.report.say(f"estimating the agreement on real images: some {seconds:.0f} s")
        with self._without_estimate():
            probes = probes_for(self.recipe, self.teacher)
            return estimate_agreement(student, probes).as_data()
        return None

    @contextmanager
    def _without_estimate(self) -> Iterator[None]:
        """A run goes on without its estimate, whatever the user's network raises, which need not
        have been asked for gradients before."""
        try:
            yield
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            self.not_estimated = f"{type(error).__name__}: {quoted(said)}"

    def _schedule(self) -> Schedule:
        """What the time left is estimated from."""
        minutes, lab = self.recipe.budget.minutes, self.lab
        if minutes:
            return Schedule(ends=self.started + 60 * minutes - lab.progress.seconds)
        whole, done, until = sum(lab.budget.quotas), 0.0, []
        for quota in lab.budget.quotas:
            done += quota
            until.append(done / whole if whole else 1.0)
        seconds = (
            tuple(s.seconds for s in self.expected.stages) if self.expected else (0.0,) * len(until)
        )
        return Schedule(None, tuple(s.name for s in lab.stages), tuple(until), seconds)

    def _finish(self, the_run: Run, spent_before: float) -> Result:
        """Chooses the weights, saves them, and only then opens validation data."""
        lab, recipe, every = self.lab, self.recipe, self.processes.every
        asked = sum(every(self.teacher.queries))  # by the run; the scores come after it
        evaluating = time.perf_counter()
        choice, held_out = select_final_weights(lab)
        assert lab.learner is not None
        student = lab.learner.student.eval()
        judged = self._of_all(held_out)
        findings = self._against(judged)
        self.manifest["micro_batches"] = max(every(lab.learner.parts))
        told = [Finding(**one) for part in every(as_data(lab.doubts)) for one in part]
        of_others = sum(every(peak_memory_mb(lab.device))[1:])
        if not self.processes.leads:
            return self._told(student, the_run)
        path = the_run.path / "student.safetensors"
        save_student(student, _card(recipe, student, self.teacher), path)
        self.evidence.chosen()
        sample = _keep_images(lab, the_run)
        draw_chosen(lab, held_out, sample, the_run)
        for generator in lab.generators.values():
            generator.save(the_run.path, self.manifest["promise_level"])
        expected = self._estimate(student, spent_before + time.perf_counter() - self.started)
        findings += check_estimate(expected)
        images, found, problem = self._compared(student)
        findings += found.findings if found else ()
        evaluation = time.perf_counter() - evaluating
        wall = spent_before + time.perf_counter() - self.started
        parts = {**lab.seconds, "evaluation": evaluation}
        progress = lab.progress
        names = (
            YES_OR_NO if self.teacher.independent else self.teacher.names
        )  # of what was held out
        balance = class_balance(judged.learned, judged.taught, len(names))
        details = run_details(lab, judged, sample, found)
        self.manifest |= self.evidence.finished(self.teacher, [the_run.path])
        doubts = [*dict.fromkeys(told), *self.evidence.findings]
        summary = {
            # labels that are wrong make the score useless, not the student
            "verdict": verdict(f for f in findings if f.code not in ABOUT_LABELS),
            "findings": as_data([*findings, *doubts]),
            **_scores_of(images, found),
            "student": recipe.student.spec,
            "answers": student.answers,
            "teacher_answers": self.teacher.reading,
            "student_parameters": sum(p.numel() for p in student.parameters()),
            "teacher_parameters": self.teacher.parameters_count,
            "student_sha256": sha256_of(path),
            "widths": self._widths(images),
            **choice,
            "held_out_balance": balance_data(balance, names),
            "estimated_agreement": expected,
            "not_estimated": "" if expected else self.not_estimated,
            "wall_seconds": round(wall, 2),
            "seconds": {k: round(v, 2) for k, v in parts.items()}
            | {"rest": round(wall - sum(parts.values()), 2)},
            "images_seen": progress.images_seen,
            "images_synthesized": progress.synthesized,
            "held_out": "synthetic" if lab.sources.synthetic else "real",
            "synthetic_share": progress.synthetic_seen / max(1, progress.images_seen),
            "real_images_read": self.manifest["real_images_read"],
            "teacher_access": self.teacher.access,
            "teacher_queries": asked,
            "promise_level": self.manifest["promise_level"],
            "promise": self.manifest["promise"],
            "proof_level": self.manifest["proof_level"],
            "proof": self.manifest["proof"],
            "teacher_findings": as_data(self.lab.teacher_findings),
            "peak_memory_mb": round(peak_memory_mb(lab.device) + of_others, 1),
            "seed": recipe.run.seed,
            "processes": self.processes.count,
        }
        known = self.teacher.names or tuple(map(str, range(student.classes)))
        card = run_card(finite(summary), self.manifest, known, student)
        digest = the_run.finish(summary, self.manifest, details, card)
        result = Result(student, summary, (*findings, *doubts), the_run.path, digest)
        said = (
            f"{problem} (the run is finished, but not scored: see synthkd evaluate)"
            if problem else ""
        )  # fmt: skip
        self.processes.first({"summary": finite(summary), "problem": said, "digest": digest})
        if problem:
            raise Unscored(said, result)
        return result

    def _compared(
        self, student: Classifier
    ) -> tuple[Images | None, Comparison | None, InputError | None]:
        """The validation images, if there are to be any, and the student beside the teacher on
        them, or why they could not be scored: the student is worth keeping all the same."""
        if isinstance(self.val, str) and self.val == "none":
            return None, None, None
        try:
            images = images_for(self.recipe, self.val, self.teacher, labelled=True)
            found = compare(student, self.teacher, images)
        except InputError as error:
            return None, None, error
        if found.order:
            self.report.say(f"{quoted(images.source)}: {found.order}")
        self.report.findings(images.notes)
        return images, found, None

    def _told(self, student: Classifier, the_run: Run) -> Result:
        """What the first process, which alone scores and writes, has come to."""
        told = self.processes.first(None)
        summary = told["summary"]
        findings = tuple(Finding(**one) for one in summary["findings"])
        result = Result(student, summary, findings, the_run.path, told["digest"])
        if told["problem"]:
            raise Unscored(told["problem"], result)
        return result

    def _of_all(self, held_out: HeldOut) -> HeldOut:
        """The votes on the images that all processes hold out; the answers stay those of this
        one."""
        if self.processes.count == 1:
            return held_out
        told = self.processes.every([held_out.learned.tolist(), held_out.taught.tolist()])
        learned, taught = (
            torch.tensor([vote for votes in several for vote in votes], dtype=torch.int64)
            for several in zip(*told, strict=True)
        )
        return HeldOut(learned, taught, held_out.answers)

    def _widths(self, images: Images | None) -> dict[str, dict[str, float | None]]:
        """What a slimmable student is worth at each width; nothing of any other."""
        learner = self.lab.learner
        assert learner is not None
        body, found = learner.student.body, dict[str, dict[str, float | None]]()
        if not isinstance(body, Slimmable):
            return found
        for share in widths(body):
            scored = compare(learner.student, self.teacher, images) if images is not None else None
            found[f"{share:g}"] = {
                "parameters": sum(p.numel() for p in body.sliced(share).parameters()),
                "held_out_agreement": held_out_votes(self.lab).agreement,
                "student_accuracy": scored.student_accuracy if scored else None,
                "agreement": scored.agreement if scored else None,
            }
        return found

    def _against(self, held_out: HeldOut) -> list[Finding]:
        """What can be said against the student without any real image."""
        lab, every = self.lab, self.processes.every
        findings: list[Finding] = []
        stored = lab.memory.everything()
        counts = torch.tensor(lab.memory.counts)
        if self.teacher.independent:  # a class may be there without ever being the likeliest
            counts = (stored.logits > 0).sum(0)
        counts = torch.tensor(every(counts.tolist())).sum(0)
        if lab.sources.synthetic and sum(every(len(stored))):
            findings += check_memory(counts, self.teacher.names)
        refined = every(_refined(lab))
        if not lab.recipe.student.weights and not is_saved(lab.recipe.student.spec):
            of_all = None if None in refined else sum(refined)
            findings += check_budget(lab.progress.images_seen, of_all, self.teacher.classes)
        names = YES_OR_NO if self.teacher.independent else self.teacher.names
        return findings + check_agreement(held_out.learned, held_out.taught, len(names), names)


class Unscored(InputError):
    """A run that is finished and whose validation data could not be read; `result` is there."""

    def __init__(self, text: str, result: Result) -> None:
        super().__init__(text)
        self.result = result


def _scores_of(images: Images | None, found: Comparison | None) -> dict[str, Any]:
    """What the summary says of a comparison."""
    if images is None or found is None:
        return {"student_accuracy": None, "teacher_accuracy": None, "agreement": None}
    return {
        "student_accuracy": found.student_accuracy,
        "teacher_accuracy": found.teacher_accuracy,
        "agreement": found.agreement,
        "kl": found.kl,
        "student_ece": found.student_ece,
        "student_binary": asdict(found.student_binary) if found.student_binary else None,
        "teacher_binary": asdict(found.teacher_binary) if found.teacher_binary else None,
        "val_data": images.source,
        "val_digest": images.digest,
        "val_images": found.n,
        "val_order": found.order,
        "val_notes": as_data(images.notes),
        "label_order": found.label_order,
        "student_balanced_accuracy": found.student_balanced_accuracy,
        "teacher_balanced_accuracy": found.teacher_balanced_accuracy,
        "constant_balanced_accuracy": found.constant_balanced_accuracy,
        "constant_accuracy": found.constant_accuracy,
        "top5": asdict(found.top5) if found.top5 else None,
    }


def _checkpoint(the_run: Run, lab: Lab, round_: Round) -> None:
    the_run.checkpoint(lab.state_dict(), round_.progress.round)


def _check_val(recipe: Recipe) -> None:
    """Whether validation data can be there: they are opened at the end, when it is late for a
    misspelt path."""
    path = recipe.data.val
    code = ".py:" in path
    if code and not recipe.run.trust_code:
        raise InputError(
            f"--val-data {quoted(path)} runs the code in that file: read it, then give --trust-code"
        )
    if path in ("", "none", "demo:seen", "demo:unseen") or code:
        return
    try:
        there = place_of(path)[0].exists()
    except OSError as error:  # a name that is too long, say
        raise InputError(f"--val-data {quoted(path)}: {error.strerror}") from None
    if not there:
        raise InputError(f"--val-data {quoted(path)}: there is no such file or folder")


def _count(value: object) -> int:
    """A count out of a manifest; what is none counts as one."""
    return value if isinstance(value, int) else 1


def most_probing(whole: float) -> float:
    """Seconds of a run of `whole` seconds that an estimate without data may take: 15 % of a short
    one, 3 % of a long one.

    >>> most_probing(20.0), most_probing(300.0), most_probing(3600.0)
    (3.0, 15.0, 108.0)
    """
    return min(0.15 * whole, max(15.0, 0.03 * whole))


def reserved(whole: float, scoring: float) -> float:
    """Seconds of a budget of `whole` seconds that are kept for choosing, scoring and saving: more
    where `scoring` needs it, but a quarter of all at most. What needs more runs over.

    >>> reserved(600, 0), reserved(20, 0), reserved(180, 20.0), reserved(180, 120)
    (12.0, 2.0, 20.0, 45.0)
    """
    least = min(max(LEAST_RESERVE, RESERVE * whole), whole / 10)
    return max(least, min(scoring, MOST_SCORING * whole))


def _refines(stage: Stage) -> bool:
    """Whether a stage improves its images one by one."""
    return stage.synthesizes and GENERATORS[stage.generator].abilities.refines


def _refined(lab: Lab) -> int | None:
    """How many refined images are in the memory; None where the plan refines none, or where no
    image is stored."""
    stored = lab.memory.everything()
    refining = {stage.generator for stage in lab.stages if _refines(stage)}
    if not refining or len(stored) < len(lab.memory):
        return None
    return sum(stored.origins.count(name) for name in refining)


def _keep_images(lab: Lab, the_run: Run) -> ReplayBatch | None:
    """Keeps some of the memory's images, evenly over the classes: 8-bit integers are calibrated on
    them (synthkd export --int8). Where there is no memory, some that were held out; never real
    ones. Returns what was kept."""
    kept = lab.memory.everything()
    if not len(kept):
        if not lab.sources.synthetic:
            return None
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
    if not len(chosen):
        return None
    some = kept.take(chosen)
    the_run.keep_images(some.images, some.votes)
    the_run.memory_sheet(some.images, some.votes, lab.teacher.names)
    return some


def _card(recipe: Recipe, student: Classifier, teacher: Teacher) -> Card:
    """What rebuilds the student beside its weights: its SPEC, that of the run it started from, or
    that of the network it was cut out of."""
    spec, names = recipe.student.spec, teacher.names
    if Path(spec).is_dir():
        card = read_card(Path(spec) / "student.safetensors")
        return card_of(student, card.network, names, card.args, card.of)
    if is_pruned(spec):
        table = recipe.teacher
        if isinstance(teacher, EnsembleTeacher) and is_ensemble(table.spec):
            trust = recipe.run.trust_code
            table = ensemble_tables(table, trust_code=trust)[1][teacher.shown]
        of, args = origin(table)
        return card_of(student, spec, names, args, of)
    return card_of(student, spec, names, recipe.student.args)
