"""The loop: synthesize, remember, replay, teach. No files, no printing.

`Lab` holds all that changes during a run; `rounds` moves it on and yields plain `Round` values.
B batch, N images, C channels, H height, W width, K classes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthkd import schedules
from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.findings import Finding, as_data
from synthkd.core.images import Batch, in_cache, portions, resized, sent, to_float, to_uint8
from synthkd.core.logits import blended, paired
from synthkd.core.seeds import generator_for, globally
from synthkd.engine import batches
from synthkd.engine.batches import TaughtBatch, TeachingBatch
from synthkd.engine.chain import Chain
from synthkd.engine.controllers import Controller, TeacherChoice, controllers_of
from synthkd.engine.processes import Processes, means
from synthkd.engine.progress import (
    Progress,
    Tick,
    advance,
    budget_of,
    no_tick,
    stage_share,
    taught_share,
    whole_share,
)
from synthkd.images.augment import augmented, mixed_up
from synthkd.losses.synthesis import TERMS
from synthkd.measures import decided, kl, relative_entropy
from synthkd.networks.classifier import Classifier
from synthkd.networks.modes import in_eval_mode
from synthkd.networks.reconstruction import reconstruct
from synthkd.networks.refitting import looked_at, timed
from synthkd.networks.slimmable import SHARES
from synthkd.recipe import Recipe, Sources, Stage, sources_of
from synthkd.replay import Memory, Replay, ReplayBatch, replay_for
from synthkd.students.learner import Learner, Step
from synthkd.students.objective import DistillationObjective
from synthkd.students.sandwich import check_widths
from synthkd.synthesis import GENERATORS, Generator
from synthkd.synthesis.context import HELD_BACK, SynthesisContext, SyntheticBatch
from synthkd.synthesis.plan import Plan
from synthkd.teachers.ensemble import SELECTED, EnsembleTeacher
from synthkd.teachers.protocol import Seen, Teacher

HELD_OUT = 1024  # synthetic images that nobody learns from
LOOKED_AT = 128  # held-out images that agreement is measured on after a round
REFITTING = 0.1  # of the time left, that refitting a pruned student's layers may take
RECALIBRATED = 20  # batches on which BatchNorm statistics are estimated anew
LEAST_PRIORITY = 1e-6  # of an image that is known by heart, so that it may come again
PARTS = ("synthesis", "labelling", "student")


@dataclass(frozen=True)
class Round:
    """What happened in one round: plain values for whoever records them."""

    progress: Progress
    stage: str
    share: float  # of the run, 0..1
    measures: dict[str, float]
    samples: Tensor | None  # [n, C, H, W] uint8, a few fresh images
    labels: Tensor | None  # [n] the classes asked for, or seen where none was
    generator: str = ""  # who made them
    stage_share: float = 1.0  # of the stage, 0..1


class Lab:
    """Teacher, learners, generators, memory, controllers, cursor. Saved and restored whole.

    Of several `processes` each has a lab: images, memory and what is held out are its own, cursor,
    controllers and, at the end of a round, learners are alike. A batch, the memory's capacity and
    the counts of the cursor are those of all together.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: Sequence[Stage],
        teacher: Teacher,
        student: Classifier | None,
        *,
        device: torch.device | None = None,
        bfloat16: bool = False,
        sources: Sources | None = None,
        assistants: Sequence[Classifier] = (),
        peer: Classifier | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        least = 2 * self.processes.count
        if student is not None and self.processes.count > 1 and recipe.training.batch < least:
            raise InputError(
                f"training.batch {recipe.training.batch}: each of {self.processes.count} processes "
                f"learns two images of it at least; give {least} or more"
            )
        self.sources = sources or sources_of(recipe)
        self.recipe, self.stages, self.teacher = recipe, tuple(stages), teacher
        self.device = device or torch.device("cpu")
        self.bfloat16 = bfloat16
        self.learner: Learner | None = None
        self.chain: Chain | None = None  # with assistants
        self.peer: Learner | None = None
        if student is not None:
            check_widths(recipe.training.widths, student.body)
            self.learner = self._learner(student, "objective")
            if assistants:
                before = [
                    self._learner(each, f"objective {place}")
                    for place, each in enumerate(assistants, start=1)
                ]
                self.chain = Chain([*before, self.learner], recipe.teaching)
                self.learner = self.chain.learner
            if peer is not None:
                self.peer = self._learner(peer, "objective of the peer")
        self.folder: Path | None = None  # see `keep_in`
        self.memory: Replay = replay_for(self._own(recipe), teacher, self.label)
        self.shares = _shares(recipe.memory.shares)
        shape, several = teacher.spec.shape, teacher.independent
        self.held_out = Memory(HELD_OUT, shape, teacher.classes, independent=several)
        self.generators: dict[str, Generator] = {}
        for kind in dict.fromkeys(s.generator for s in self.stages if s.synthesizes):
            with globally(generator_for(recipe.run.seed, "generator", kind)):
                self.generators[kind] = GENERATORS[kind](recipe, teacher)
        self.controllers: dict[str, Controller] = controllers_of(recipe)
        if isinstance(teacher, EnsembleTeacher) and teacher.rule == SELECTED:
            largest = max(1, *(t.parameters_count for t in teacher.teachers))
            self.controllers["teacher"] = TeacherChoice(
                [t.parameters_count / largest for t in teacher.teachers]
            )
        self.progress = Progress()
        self.budget = budget_of(recipe.budget, self.stages)
        self.deadline = float("inf")  # by time.perf_counter: nothing is begun after it
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._unsettled: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.real: Tensor | None = None
        self.plan = Plan(self.stages, ())
        self.begun: list[str] = []  # generators that took over what an earlier run trained
        self.teacher_findings: list[Finding] = []
        self.student_findings: list[Finding] = []
        self.student_choice: dict[str, Any] = {}  # of --student auto, as it was measured
        self.doubts: list[Finding] = []  # that came up in its rounds
        self.tick: Tick = no_tick  # told how far a round is; may end it by an exception
        self.asked = 0  # images that the teachers of all processes answered, when a round ended
        for learner in self.learners:  # they begin alike, whatever machine each process is on
            self.processes.spread_(learner.everything())

    def _own(self, recipe: Recipe) -> Recipe:
        """The recipe with the memory of this process alone."""
        capacity = -(-recipe.memory.capacity // self.processes.count)
        memory = recipe.memory.model_copy(update={"capacity": capacity})
        return recipe.model_copy(update={"memory": memory})

    def stream(self, *path: int | str) -> torch.Generator:
        """Random numbers for a purpose, other ones in every process."""
        rank = self.processes.rank
        return generator_for(self.recipe.run.seed, *path, *(("rank", rank) if rank else ()))

    def _learner(self, student: Classifier, seed: str) -> Learner:
        """A student that learns by the recipe from the teacher."""
        recipe, several = self._own(self.recipe), self.processes.count > 1
        with globally(generator_for(recipe.run.seed, seed)):
            objective = DistillationObjective(
                recipe.training, student, self.teacher, capacity=recipe.memory.capacity
            )
        if recipe.memory.priority and not objective.tells_images(student, self.teacher):
            raise InputError(
                "memory.priority goes by the loss of each image, and none of training.terms tells "
                "it: add one that does, e.g. soft_targets"
            )
        return Learner(
            student, recipe.training, objective, bfloat16=self.bfloat16,
            exchange=self.processes.mean_ if several else None,
        )  # fmt: skip

    @property
    def shipped(self) -> Learner | None:
        """The learner whose network leaves the run: the last of a chain."""
        return self.chain.learners[-1] if self.chain else self.learner

    @property
    def learners(self) -> tuple[Learner, ...]:
        """All that learn in the run: the assistants, the student, its peer."""
        chain = self.chain.learners if self.chain else ()
        every = (*(chain or (self.learner,)), self.peer)
        return tuple(learner for learner in every if learner is not None)

    def value(self, name: str, otherwise: float) -> float:
        """What the controller of this name says, or, where there is none, `otherwise`."""
        return self.controllers[name].value if name in self.controllers else otherwise

    @property
    def difficulty(self) -> float:
        """How difficult synthetic images shall be, 0..1."""
        return self.controllers["difficulty"].value

    def limit(self, seconds: float) -> None:
        """Gives the run this wall clock in all, of which `progress.seconds` are spent already."""
        table = self.recipe.budget.model_copy(update={"minutes": max(seconds, 1e-3) / 60})
        self.budget = budget_of(table, self.stages)
        self.deadline = time.perf_counter() + seconds - self.progress.seconds

    def keep_in(self, folder: Path) -> None:
        """Where a file lies with the images that are too many to be held in memory; without it,
        where the system keeps such files. To be told before there are any."""
        self.folder = folder
        for memory in (self.memory, self.held_out):
            if isinstance(memory, Memory):
                memory.keep_in(folder)

    def use_real(self, real: Tensor) -> None:
        """Real uint8 images [N, C, H, W] to learn from. With mix ratio 0 a twentieth of them is
        held out."""
        self.real = real
        if not self.sources.synthetic:
            order = torch.randperm(
                len(real), generator=generator_for(self.recipe.run.seed, "held-out")
            )
            count = min(HELD_OUT, len(real) // 20)
            self.hold_out(real[order[:count]], "real")
            self.real = real[order[count:]]

    def hold_out(self, images: Tensor, origin: str) -> None:
        """Keeps uint8 images [N, C, H, W] for measuring agreement; nobody learns from them."""
        self.held_out.add(images, torch.full((len(images),), -1), self.label(images), origin)

    @torch.no_grad()
    def label(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        """The teacher's logits [N, K] for uint8 images [N, C, H, W]; `exact` means in float32."""
        if not len(pixels):
            return torch.empty(0, self.teacher.classes)
        parts: list[Tensor] = []
        with self.teacher.exact() if exact else nullcontext():
            for part in portions(pixels):
                self.tick("labelling", sum(map(len, parts)), len(pixels))
                parts.append(self.teacher(to_float(self.moved(part))).cpu())
        return torch.cat(parts)

    def fill(self, pixels: Tensor, labels: Tensor) -> None:
        """Puts a finished synthetic data set into the memory, every process its part of it: a
        twentieth is held out, in all the same images."""
        order = torch.randperm(len(pixels), generator=generator_for(self.recipe.run.seed, "fill"))
        kept = order[min(HELD_OUT, len(pixels) // 20) :]
        self.hold_out(pixels[order[: len(order) - len(kept)]], "data")
        kept = kept[self.processes.rank :: self.processes.count]
        spec = self.teacher.spec
        self.memory = Memory(
            len(kept), spec.shape, self.teacher.classes, self.folder,
            independent=self.teacher.independent,
        )  # fmt: skip
        for part in torch.split(kept, 8 * 512):
            some = pixels[part]
            self.memory.add(some, labels[part], self.label(some), "data")

    @property
    def taught_share(self) -> float:
        """How far the student's training is, 0..1."""
        return taught_share(self.progress, self.budget)

    @property
    def turn_share(self) -> float:
        """How far the turn of the network that learns now is, 0..1: an assistant's, or the
        student's."""
        return self.chain.share(self.taught_share) if self.chain else self.taught_share

    @property
    def easiest(self) -> float:
        """The share of the remembered images, from the easiest on, that is drawn from."""
        curriculum = self.recipe.memory.curriculum
        return schedules.competence(self.turn_share) if curriculum else 1.0

    @property
    def late(self) -> bool:
        """Whether the time is over, by the clock of the first process."""
        if self.deadline == inf:
            return False
        return bool(self.processes.first(time.perf_counter() > self.deadline))

    def since(self, began: float) -> float:
        """Seconds since a time of time.perf_counter, by the clock of the first process."""
        return float(self.processes.first(time.perf_counter() - began))

    def gathered(
        self, measures: dict[str, float], counts: dict[str, int]
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Measures and counts of a round, of all processes together: means, and sums."""
        if self.processes.count == 1:
            self.asked = self.teacher.queries
            return measures, counts
        told = self.processes.every([measures, counts, self.teacher.queries])
        self.asked = sum(asked for _, _, asked in told)
        sums = {name: sum(count[name] for _, count, _ in told) for name in counts}
        return means([measured for measured, _, _ in told]), sums

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.progress.stage >= len(self.stages)

    @property
    def stage(self) -> Stage:
        """The stage that runs now."""
        return self.stages[self.progress.stage]

    def __iter__(self) -> Iterator[Round]:
        """`rounds(self)`."""
        return rounds(self)

    def state_dict(self) -> dict[str, Any]:
        """All that changes. Resuming is loading it, nothing else."""
        return {
            "learner": self.learner.state_dict() if self.learner else None,
            "generators": {kind: g.state_dict() for kind, g in self.generators.items()},
            "memory": self.memory.state_dict(),
            "held_out": self.held_out.state_dict(),
            "controllers": {name: c.state_dict() for name, c in self.controllers.items()},
            "progress": asdict(self.progress),
            "seconds": dict(self.seconds),
            "queries": self.teacher.queries if self.processes.count == 1 else self.asked,
            "chain": self.chain.state_dict() if self.chain else None,
            "peer": self.peer.state_dict() if self.peer else None,
            "doubts": as_data(self.doubts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state of a run with the same recipe."""
        if self.chain:
            self.chain.load_state_dict(state["chain"])
            self.learner = self.chain.learner
        if self.peer:
            self.peer.load_state_dict(state["peer"])
        if self.learner:
            self.learner.load_state_dict(state["learner"])
        for kind, generator in self.generators.items():
            generator.load_state_dict(state["generators"][kind])
        self.memory.load_state_dict(state["memory"])
        self.held_out.load_state_dict(state["held_out"])
        for name, controller in self.controllers.items():
            controller.load_state_dict(state["controllers"][name])
        self.progress = Progress(**state["progress"])
        self.seconds = dict(state["seconds"])
        self.doubts = [Finding(**one) for one in state.get("doubts", ())]
        self.asked = int(state["queries"])
        self.teacher.queries = self.asked if self.processes.leads else 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the wall clock of a block to `seconds[part]`: at once, or on a GPU, which is not
        waited for, when `settle_times` is called."""
        if self.device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(self.device)
            began.record(stream)
            try:
                yield
            finally:
                ended.record(stream)
                self._unsettled.append((part, began, ended))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def settle_times(self) -> None:
        """Adds what a GPU took for the blocks of `timed` since the last call; waits until it has
        done them."""
        for part, began, ended in self._unsettled:
            ended.synchronize()
            self.seconds[part] += began.elapsed_time(ended) / 1000
        self._unsettled.clear()

    def moved(self, pixels: Tensor) -> Tensor:
        """Images on the device of the run (`sent`)."""
        return sent(pixels, self.device)


def rounds(lab: Lab) -> Iterator[Round]:
    """Synthesize, remember, replay, teach: a Round at a time, until the budget is spent."""
    before = time.perf_counter()
    while not lab.finished:
        stage, place = lab.stage, lab.progress.stage
        rng = lab.stream("round", lab.progress.round)

        with lab.timed("synthesis"):
            synthesized = synthesize(lab, stage, rng, until=_stage_end(lab))
        fresh, measures, classes = _remember(lab, synthesized, stage.generator)
        seen, synthetic = 0, 0
        if stage.student_steps and lab.learner:
            seen, synthetic, taught = _teach(lab, stage, fresh, before, rng)
            measures |= taught
            with lab.timed("student"):
                for learner in filter(None, (lab.learner, lab.peer)):
                    lab.processes.mean_(learner.statistics())
                measures |= _agreement(lab, rng)
        counts = {
            "synthetic": synthetic, "synthesized": len(synthesized.batch.images),
            "trained": synthesized.trained,
        }  # fmt: skip
        measures, counts = lab.gathered(measures, counts)
        if lab.chain:
            state = lab.chain.state
            measures |= {"turn": float(state.place), "assistant": state.weight}

        lab.settle_times()
        lab.teacher.check()
        now = time.perf_counter()
        lab.progress = advance(
            lab.progress, stage, lab.budget, seconds=lab.processes.first(now - before), seen=seen,
            **counts,
        )  # fmt: skip
        before = now
        if stage.student_steps and lab.learner:
            signals = measures | {"progress": lab.taught_share}
            for controller in lab.controllers.values():
                controller.update(signals)
        measures |= {name: controller.value for name, controller in lab.controllers.items()}
        if lab.chain and seen and lab.chain.notice(lab.taught_share, measures):
            _promote(lab, lab.chain)
        samples = (
            to_uint8(synthesized.batch.images[:64]).cpu() if len(synthesized.batch.images) else None
        )
        yield Round(
            lab.progress, stage.name, whole_share(lab.progress, lab.budget), measures,
            samples, classes[:64] if samples is not None else None, stage.generator,
            stage_share(lab.progress, lab.budget) if lab.progress.stage == place else 1.0,
        )  # fmt: skip
    if lab.chain and not (lab.chain.last and lab.chain.learner.steps):
        raise InputError(
            "the budget was over before it was the student's turn to learn: give more time "
            "(--minutes) or images (--images-seen), fewer teaching.assistants, or a smaller "
            "teaching.assistants_share"
        )


def _promote(lab: Lab, chain: Chain) -> None:
    """Ends the turn of an assistant: its better weights teach from now on. What had followed its
    learning, controllers and priorities of images, begins anew with the next one."""
    select_final_weights(lab)
    chain.promote(lab.taught_share)
    lab.learner = chain.learner
    lab.controllers |= controllers_of(lab.recipe)
    if isinstance(choice := lab.controllers.get("teacher"), TeacherChoice):
        choice.agreement = None  # of another network: the next one's first is no gain over it
    if lab.recipe.memory.priority:
        lab.memory.update(torch.arange(len(lab.memory)), torch.ones(len(lab.memory)))


def _stage_end(lab: Lab) -> float:
    """When a generator must stop in a timed run, by time.perf_counter: at the end of its stage,
    give or take a tenth, so that one long round leaves the next stage its time."""
    if not lab.budget.timed:
        return lab.deadline
    quota = lab.budget.quotas[lab.progress.stage]
    left = max(quota - lab.progress.work, 0.1 * quota)
    return min(lab.deadline, time.perf_counter() + left)


def synthesize(
    lab: Lab, stage: Stage, rng: torch.Generator, *, until: float = float("inf"),
    counts: Callable[[], Tensor | None] | None = None,
) -> SyntheticBatch:  # fmt: skip
    """The generator's turn; no step of it begins after `until`. `counts` tells how many images
    there are of each class, [K], the rarest of which are asked for first; without it the memory
    does."""
    if not stage.synthesizes:
        nothing = torch.empty(0, *lab.teacher.spec.shape, device=lab.device)
        return SyntheticBatch(Batch(nothing, torch.empty(0, dtype=torch.int64)), 0, {})
    terms = {
        name: weight * (lab.difficulty if TERMS[name].follows_difficulty else 1.0)
        for name, weight in stage.terms.items()
    }
    with frozen_student(lab.learner) as student:
        context = SynthesisContext(
            teacher=lab.teacher,
            student=student,
            stage=stage,
            terms=terms,
            augment=lab.recipe.augment,
            reference=partial(_material, lab, ""),
            bfloat16=lab.bfloat16,
            remembered=partial(_remembered, lab, stage.generator),
            material=partial(_material, lab, stage.generator),
            nearest=partial(_nearest, lab, stage.generator),
            counts=counts or partial(_counts, lab, stage.generator),
            share=whole_share(lab.progress, lab.budget),
            stage_share=stage_share(lab.progress, lab.budget),
            difficulty=lab.difficulty,
            deadline=until,
            tick=partial(lab.tick, stage.generator),
        )
        return lab.generators[stage.generator].synthesize(context, rng)


@contextmanager
def frozen_student(learner: Learner | None) -> Iterator[Any]:
    """The student in eval mode and without gradients to its weights, as an opponent of the
    generator."""
    if learner is None:
        yield lambda images: images.new_zeros(())
        return
    student = learner.student

    def answer(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=learner.bfloat16):
            return student(images).float()  # type: ignore[no-any-return]

    with in_eval_mode(student, frozen=True):
        yield answer


def _material(lab: Lab, without: str, count: int, rng: torch.Generator) -> Batch | None:
    """Real images where they are allowed, else from the memory as `_remembered` has it."""
    if lab.real is None or not lab.sources.real:
        return _remembered(lab, without, count, rng)
    pixels = lab.real[torch.randint(len(lab.real), (count,), generator=rng)]
    labels = lab.label(pixels).argmax(1)
    return Batch(to_float(lab.moved(pixels)), sent(labels, lab.device))


def _remembered(lab: Lab, without: str, count: int, rng: torch.Generator) -> Batch | None:
    """Images from the memory, none twice; those of the generator `without` only if there are too
    few others."""
    if len(lab.memory) < 4 * count:
        return None
    shares = {without: 0.0} if without else {}
    # what is made anew for each draw is never the same
    draw = lab.memory.distinct if isinstance(lab.memory, Memory) else lab.memory.draw
    drawn = draw(count, rng, shares=shares)
    return Batch(to_float(lab.moved(drawn.images)), sent(drawn.votes, lab.device))


def _nearest(lab: Lab, without: str, labels: Tensor, rng: torch.Generator) -> Batch | None:
    """A remembered image for each of the classes [B] that are asked for, as `_remembered` chooses
    generators; None where no images are stored, or too few."""
    if not isinstance(lab.memory, Memory) or len(lab.memory) < 4 * len(labels):
        return None
    drawn = lab.memory.nearest(labels, rng, without=without)
    return Batch(to_float(lab.moved(drawn.images)), sent(drawn.votes, lab.device))


def _counts(lab: Lab, origin: str) -> Tensor | None:
    """How many images of a generator are remembered in each class; None where none are stored."""
    return lab.memory.counts_of(origin) if isinstance(lab.memory, Memory) else None


def _shares(shares: Mapping[str, float]) -> dict[str, float]:
    """The recipe's shares of the replay by generator; names and sum are checked."""
    for name in shares:
        if name not in GENERATORS:
            raise InputError(
                f"memory.shares: no generator {quoted(name)}{suggest(name, GENERATORS)}"
            )
    if sum(shares.values()) > 1 + 1e-9 or min(shares.values(), default=0) < 0:
        raise InputError("memory.shares: shares lie in 0..1 and their sum is at most 1")
    return dict(shares)


def _remember(
    lab: Lab, synthesized: SyntheticBatch, generator: str
) -> tuple[Batch, dict[str, float], Tensor]:
    """Labels fresh images and stores them; one in sixteen is held out.

    Returns those to learn from, uint8 with the classes asked for (−1: none was), what was measured,
    and the class of each fresh image.
    """
    images, labels = synthesized.batch
    measures = dict(synthesized.measures)
    if len(images) == 0:
        return Batch(to_uint8(images).cpu(), labels), measures, labels
    pixels, labels = to_uint8(images).cpu(), labels.cpu()
    with lab.timed("labelling"):
        logits = lab.label(pixels)
    lab.generators[generator].answered(logits)
    votes = logits.argmax(1)
    measures["balance"] = relative_entropy(torch.bincount(votes, minlength=lab.teacher.classes))
    measures["confidence"] = float(lab.teacher.probabilities(logits).amax(1).mean())
    # without a memory only the first rounds give any away: later batches reach the student whole
    full = lab.recipe.memory.capacity == 0 and len(lab.held_out) == HELD_OUT
    cut = 0 if full else len(pixels) // HELD_BACK
    lab.held_out.add(pixels[:cut], labels[:cut], logits[:cut], generator)
    lab.memory.add(pixels[cut:], labels[cut:], logits[cut:], generator)
    kept = Batch(pixels[cut:], labels[cut:])
    return kept, measures, torch.where(labels < 0, votes, labels)


def _teach(
    lab: Lab, stage: Stage, fresh: Batch, began: float, rng: torch.Generator
) -> tuple[int, int, dict[str, float]]:
    """The student's turn: hybrid batches, the same view for teacher and student. The round `began`
    at a time of time.perf_counter: in a timed run the learning rate falls by the clock. Returns the
    images that all processes have seen, those of this one that were synthetic, and measures.

    With `training.repeats` the teacher first answers all batches of the round, and the student then
    learns from all their views so many times, each time in another order (data echoing, Choi et al.
    2019, https://arxiv.org/abs/1907.05550, after the augmentation).
    """
    assert lab.learner is not None
    if "teacher" in lab.controllers and isinstance(lab.teacher, EnsembleTeacher):
        lab.teacher.chosen = int(lab.controllers["teacher"].value)
    for learner in filter(None, (lab.learner, lab.peer)):
        if not learner.steps and learner.student.kept:
            if lab.processes.leads:
                _reconstruct(lab, learner.student, fresh.images, rng)
            lab.processes.spread_(list(learner.student.state_dict().values()))
            learner.remember_beginning()
    repeats, (_, count) = lab.recipe.training.repeats, lab.processes.part(lab.recipe.training.batch)
    loss, turn = torch.zeros(()), _Turn(lab, stage, began, lab.learner)
    if repeats == 1:
        for batch, whole in _taught_batches(lab, stage, fresh, turn.left, rng):
            loss = turn.learn(batch, whole)
    elif parts := list(_taught_batches(lab, stage, fresh, turn.left / repeats, rng)):
        pool = batches.pooled([batch for batch, _ in parts])
        parts.clear()  # it may be gigabytes, and is in the pool
        for _ in range(repeats):
            order = torch.randperm(len(pool), generator=rng)
            for index in (*torch.split(order, count), order[:0]):
                every = lab.processes.every([turn.over or len(index) < 2, len(index)])
                if any(over for over, _ in every):  # of a process that has no batch left, say
                    break
                loss = turn.learn(pool.take(index), sum(size for _, size in every))
    if turn.seen and not loss.isfinite():
        lab.teacher.check()  # it may be to blame
        raise InputError(
            f"the student's loss is no longer finite after {lab.learner.steps} steps: "
            f"lower --training.learning_rate (now {lab.recipe.training.learning_rate:g})"
        )
    factors = lab.learner.objective.factors(turn.answers_share)
    told = {f"factor.{name}": factor for name, factor in factors.items()}
    told |= {"competence": lab.easiest} if lab.recipe.memory.curriculum else {}
    return turn.seen, turn.synthetic, {"loss": float(loss), **told, **turn.measured_needs()}


def _reconstruct(lab: Lab, student: Classifier, fresh: Tensor, rng: torch.Generator) -> None:
    """Refits a student that was cut out of its teacher, before its first step, on what it will
    learn from; in a timed run on so few images that there is time for it, or not at all, which is
    said."""
    whole = lab.teacher.network
    if not isinstance(whole, Classifier):
        return
    some = torch.zeros(8, *lab.teacher.spec.shape, device=lab.device)
    left, until = REFITTING * (lab.deadline - time.perf_counter()), inf
    with whole.guard():
        if lab.budget.timed:
            count = timed(student.body, whole.body, student.kept, some).count(left)
            until = time.perf_counter() + 2 * left  # it was estimated
        else:
            count = looked_at(student.body, student.kept, some[:1]).count()
    if not count:
        lab.doubts.append(Finding(
            "not-refitted",
            "the layers of the student that was cut out of its teacher were not refitted: there "
            "was no time for it",
            "give more time (--minutes)",
        ))  # fmt: skip
        return
    if len(lab.memory):
        pixels = lab.memory.draw(count, rng, shares=lab.shares).images
    else:
        pixels = fresh[:count] if lab.real is None else lab.real[:count]
    if not len(pixels):
        return
    with lab.timed("student"):
        images = to_float(lab.moved(pixels))
        images = augmented(images, lab.recipe.augment, lab.difficulty, rng)
        normalised = (images - student.mean) / student.std
        with whole.guard():
            reconstruct(student.body, whole.body, student.kept, normalised, until=until)


class _Turn:
    """A student's turn in one round, and what it has seen in it: `seen` by all processes."""

    def __init__(self, lab: Lab, stage: Stage, began: float, learner: Learner) -> None:
        self.lab, self.stage, self.began, self.learner = lab, stage, began, learner
        self.seen = self.synthetic = self.steps = 0
        moved = lab.controllers.get("temperature")
        self.temperature = moved.value if moved else None
        self.answers_share = lab.value("answers_share", 0.5)
        self.needs = {share: lab.value(f"need.{share:g}", 0.0) for share in SHARES[1:-1]}
        self._measured: list[Mapping[float, Tensor]] = []  # needs in steps of this turn
        self.priority = lab.recipe.memory.priority
        done = lab.progress.work
        self.left = inf if lab.budget.timed else lab.budget.quotas[lab.progress.stage] - done

    @property
    def over(self) -> bool:
        """Whether the budget or the time is used up."""
        return self.seen >= self.left or self.lab.late

    def measured_needs(self) -> dict[str, float]:
        """The mean need of each width in this turn's steps, where it was measured."""
        found = means([{f"need.{s:g}": float(x) for s, x in n.items()} for n in self._measured])
        return {name: need for name, need in found.items() if math.isfinite(need)}

    def learn(self, batch: TaughtBatch, whole: int) -> Tensor:
        """One step by a batch that is this process's part of `whole` images; returns the loss."""
        lab, table = self.lab, self.lab.recipe.training
        lab.tick("student", self.steps, self.stage.student_steps * table.repeats)
        with lab.timed("student"):
            passed = lab.since(self.began) if lab.budget.timed else self.seen
            spent = replace(lab.progress, taught=lab.progress.taught + passed)
            share = taught_share(spent, lab.budget)
            local = lab.chain.share(share) if lab.chain else share
            views = to_float(batch.views) if batch.views.dtype == torch.uint8 else batch.views
            side = schedules.scale(local, table.scales)
            if side < 1:
                small = (max(8, round(side * s)) for s in views.shape[2:])
                views = resized(views, (next(small), next(small)))
            first = lab.recipe.memory.priority_correction
            weights = batch.weights
            if weights is not None:
                weights = weights ** schedules.correction(local, first=first)
            views = views.contiguous(memory_format=torch.channels_last)
            given: dict[str, Any] = {
                "asked": batch.asked, "slots": batch.slots, "weights": weights,
                "temperature": self.temperature, "answers_share": self.answers_share,
                "needs": self.needs, "stage": self.stage.name, "fraction": len(batch) / whole,
            }  # fmt: skip
            peer, told = lab.peer, lab.recipe.teaching.peer_weight
            answers = (peer.answer(views), self.learner.answer(views)) if peer else (None, None)
            step = self.learner.step(
                views, batch.seen, local, per_sample=self.priority > 0, peer=answers[0],
                peer_weight=told, **given,
            )  # fmt: skip
            if peer:
                peer.step(views, batch.seen, share, peer=answers[1], peer_weight=told, **given)
            self._measured += [step.needs] if step.needs else []
            if self.priority and bool(step.loss.isfinite()):
                _prioritise(lab, batch, step)
        self.seen, self.steps = self.seen + whole, self.steps + 1
        self.synthetic += int(batch.synthetic.sum())
        return step.loss


def _prioritise(lab: Lab, batch: TaughtBatch, step: Step) -> None:
    """Gives the images of a batch their losses as priorities; a blend tells nothing of one
    image."""
    assert step.per_sample is not None
    plain = ~batch.blended
    if bool(plain.any()):
        loss = step.per_sample.cpu()[plain].clamp_min(0) + LEAST_PRIORITY
        lab.memory.update(batch.slots.cpu()[plain], loss**lab.recipe.memory.priority)


def _taught_batches(
    lab: Lab, stage: Stage, fresh: Batch, left: float, rng: torch.Generator
) -> Iterator[tuple[TaughtBatch, int]]:
    """Up to `stage.student_steps` hybrid batches of `left` images at most, with the teacher's
    answers: this process's part of each, and how many images all parts have."""
    assert lab.learner is not None
    recipe, seen = lab.recipe, 0
    several = lab.processes.count
    there = len(fresh.images)
    order, used = torch.randperm(there, generator=rng), 0  # each once before any comes again
    before = lab.progress.images_seen // recipe.training.repeats
    for _ in range(stage.student_steps):
        if seen >= left or lab.late:
            break
        whole = recipe.training.batch
        # the rest of the budget; never a last batch of a single image for anyone
        if left - seen < whole + 2 * several:
            whole = math.ceil(left - seen)
            whole = whole if several == 1 else max(whole, 2 * several)
        begin, count = lab.processes.part(whole)
        made = schedules.share(before + seen + begin, count, lab.sources.ratio)
        new = made - _replayed(lab, made, there)
        if new and not there:
            raise InputError(
                f"stage {stage.name}: there is nothing to learn from: the teacher has accepted no "
                "image so far"
            )
        turn = order[torch.arange(used, used + new) % max(1, there)]
        used += new
        new_ones = batches.plain(fresh.images[turn], stage.generator, fresh.labels[turn])
        batch = _hybrid(lab, new_ones, made - new, count - made, rng)
        with lab.timed("student"):
            images = to_float(lab.moved(batch.images))
            images = images.contiguous(memory_format=torch.channels_last)
            hard: float | Tensor = lab.difficulty
            if batch.margins is not None:
                hard = hard * batch.margins
            images = augmented(images, recipe.augment, hard, rng)
            asked, often = batch.asked, recipe.augment.mixup
            if blended := bool(often and float(torch.rand((), generator=rng)) < often):
                images, asked = mixed_up(images, rng), torch.full_like(asked, -1)
        with lab.timed("labelling"):
            taught = _taught_answers(lab, lab.learner, images)
        seen += whole
        yield batches.TaughtBatch(
            images, taught, sent(asked, lab.device), sent(batch.slots, lab.device),
            torch.arange(count) < made,
            torch.full((count,), blended),
            None if batch.weights is None else sent(batch.weights, lab.device),
        ), whole  # fmt: skip


def _taught_answers(lab: Lab, learner: Learner, images: Tensor) -> Seen:
    """What the student is taught of a batch: by its teacher, or the assistant before it, and by the
    running average of itself."""
    layers = learner.objective.teacher_layers
    if lab.peer is not None:
        layers = tuple(dict.fromkeys((*layers, *lab.peer.objective.teacher_layers)))
    if lab.chain is None:
        seen = lab.teacher.teach(images, layers)
    else:
        seen = lab.chain.teach(lab.teacher, images, layers)
    weight = lab.recipe.teaching.average_weight
    if not weight:
        return seen
    own = learner.answer_averaged(images)
    answers = blended((seen.logits, own), (1 - weight, weight), independent=lab.teacher.independent)
    return Seen(answers, seen.features)


def _replayed(lab: Lab, made: int, fresh: int) -> int:
    """How many of a batch's `made` synthetic images come from the memory, if `fresh` are new."""
    if len(lab.memory) == 0:
        return 0
    return round(lab.recipe.memory.replayed * made) if fresh else made


def _hybrid(
    lab: Lab, fresh: TeachingBatch, replayed: int, real: int, rng: torch.Generator
) -> TeachingBatch:
    """One batch: the `fresh` images, so many replayed and so many real ones."""
    parts = [fresh]
    if replayed:
        near = lab.recipe.memory.boundary * lab.difficulty
        drawn = lab.memory.draw(
            replayed, rng, boundary=near, shares=lab.shares, easiest=lab.easiest
        )
        wanted, several = lab.recipe.difficulty.per_image, lab.teacher.independent
        parts.append(batches.replayed(drawn, margins=wanted, independent=several))
    if real:
        assert lab.real is not None
        chosen = lab.real[torch.randint(len(lab.real), (real,), generator=rng)]
        parts.append(batches.plain(chosen, "real"))
    return batches.joined(parts)


def _agreement(lab: Lab, rng: torch.Generator) -> dict[str, float]:
    """Agreement on some of the held-out images after a round, and how far the answers are from the
    teacher's at temperature 1 (the gap that a student's capacity leaves); nothing where none are
    held out."""
    if len(lab.held_out) == 0:
        return {}
    assert lab.learner is not None
    drawn = lab.held_out.draw(min(LOOKED_AT, len(lab.held_out)), rng)
    answers = lab.learner.answer(to_float(lab.moved(drawn.images))).cpu()
    own = decided(answers, independent=lab.teacher.independent)
    same = float((own == _taught(lab, drawn)).float().mean())
    learned, taught = answers, drawn.logits.float()
    if lab.teacher.independent:  # of an image, not of a question about it
        learned, taught = paired(learned), paired(taught)
    return {"agreement": same, "kl": kl(learned, taught) * len(learned) / len(answers)}


def _taught(lab: Lab, kept: ReplayBatch) -> Tensor:
    """What the teacher decided on stored images: its votes [N], or of independent classes [N · K]
    no (0) or yes (1)."""
    return decided(kept.logits, independent=True) if lab.teacher.independent else kept.votes


class HeldOut(NamedTuple):
    """What student and teacher vote on the images that nobody learned from."""

    learned: Tensor  # [N] int64, the student's votes; of independent classes, N yes or no
    taught: Tensor  # [N] int64, the teacher's
    answers: Tensor  # the student's logits, float32 [images, K]

    @property
    def agreement(self) -> float:
        """The share of equal votes, 0..1; 0 without images."""
        return float((self.learned == self.taught).float().mean()) if len(self.taught) else 0.0


def select_final_weights(lab: Lab) -> tuple[dict[str, Any], HeldOut]:
    """Decides between last and averaged weights, recalibrated ones where these are asked for, and
    those that a student cut out of its teacher began with, by agreement on all held-out images;
    loads the best.

    No test data takes part. Returns the agreements and the choice, of the images of all processes
    together, and the votes of the weights that were chosen on those of this one.
    """
    learner, every = lab.learner, lab.processes.every
    assert learner is not None
    name, votes = "last", held_out_votes(lab)
    best = agreement_of_all(lab, votes)
    told = {"held_out_agreement_last": best} if learner.average else {}

    def weights() -> dict[str, Tensor]:
        return {k: v.clone() for k, v in learner.student.state_dict().items()}

    if learner.average is not None:
        kept = weights()
        learner.use(learner.average)
        averaged = held_out_votes(lab)
        told["held_out_agreement_averaged"] = agreed = agreement_of_all(lab, averaged)
        if agreed >= best:
            name, votes, kept, best = "averaged", averaged, learner.average, agreed
        if learner.table.recalibrate and all(every(len(lab.memory) > 0)):
            learner.use(learner.average)
            if learner.recalibrate(_views(lab, learner)):
                lab.processes.mean_(learner.statistics())
                again = held_out_votes(lab)
                told["held_out_agreement_recalibrated"] = agreed = agreement_of_all(lab, again)
                if agreed > best:
                    name, votes, kept, best = "recalibrated", again, weights(), agreed
        learner.use(kept)
    if learner.begun is not None:
        kept = weights()
        learner.use(learner.begun)
        before = held_out_votes(lab)
        told["held_out_agreement_begun"] = agreed = agreement_of_all(lab, before)
        if agreed > best:
            name, votes, kept, best = "begun", before, learner.begun, agreed
        learner.use(kept)
    chosen = {
        "weights": name, "held_out_agreement": best, **told,
        "held_out_images": sum(every(len(lab.held_out))),
    }  # fmt: skip
    return chosen, votes


def agreement_of_all(lab: Lab, votes: HeldOut) -> float:
    """The share of equal votes on the images that all processes hold out, 0..1."""
    if lab.processes.count == 1:
        return votes.agreement
    told = lab.processes.every([int((votes.learned == votes.taught).sum()), len(votes.taught)])
    hits, images = (sum(numbers) for numbers in zip(*told, strict=True))
    return float(hits / max(1, images))


def _views(lab: Lab, learner: Learner) -> Iterator[Tensor]:
    """Batches of remembered images, evenly over classes, augmented and blended as the student's."""
    rng, (_, count) = lab.stream("recalibrate"), lab.processes.part(learner.table.batch)
    for _ in range(RECALIBRATED):
        pixels = lab.memory.draw(count, rng, shares=lab.shares).images
        images = augmented(to_float(lab.moved(pixels)), lab.recipe.augment, lab.difficulty, rng)
        often = lab.recipe.augment.mixup
        if often and float(torch.rand((), generator=rng)) < often:
            images = mixed_up(images, rng)
        yield images


def held_out_votes(lab: Lab) -> HeldOut:
    """What student and teacher vote on all held-out images."""
    assert lab.learner is not None
    kept = lab.held_out.everything()
    answers = [
        lab.learner.answer(to_float(some)).float().cpu()
        for part in portions(kept.images)
        for some in in_cache(lab.moved(part))
        if len(some)
    ]
    taught = _taught(lab, kept)
    if not answers:
        return HeldOut(taught, taught, torch.empty(0, lab.teacher.classes))
    logits = torch.cat(answers)
    return HeldOut(decided(logits, independent=lab.teacher.independent), taught, logits)
