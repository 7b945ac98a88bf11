"""The loop: synthesize, remember, replay, teach. No files, no printing.

`Lab` holds all that changes during a run; `rounds` moves it on and yields plain `Round` values. The
generator's turn in a round is `engine.synthesizing`, the student's `engine.teaching`; what nobody
learns from, `engine.held_out`.
B batch, N images, C channels, H height, W width, K classes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd import schedules
from synthkd.core.allocator import give_back_freed_memory
from synthkd.core.errors import InputError, quoted, suggest
from synthkd.core.findings import Finding, as_data
from synthkd.core.images import Batch, portions, sent, to_float, to_uint8
from synthkd.core.seeds import generator_for, globally
from synthkd.engine.chain import Chain
from synthkd.engine.controllers import Controller, TeacherChoice, controllers_of
from synthkd.engine.held_out import agreement_now, select_final_weights
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
from synthkd.engine.synthesizing import synthesize
from synthkd.engine.teaching import teach
from synthkd.measures import relative_entropy
from synthkd.networks.classifier import Classifier
from synthkd.recipe import Recipe, Sources, Stage, sources_of
from synthkd.replay import Memory, Replay, replay_for
from synthkd.students.learner import Learner
from synthkd.students.objective import DistillationObjective
from synthkd.students.sandwich import check_widths
from synthkd.synthesis import GENERATORS, Generator
from synthkd.synthesis.context import HELD_BACK, SyntheticBatch
from synthkd.synthesis.plan import Plan
from synthkd.teachers.ensemble import SELECTED, EnsembleTeacher
from synthkd.teachers.protocol import Teacher

HELD_OUT = 1024  # synthetic images that nobody learns from
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
        self.synthesis_parts = 1  # of a generator's batch: one of them fits into memory
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
            "synthesis_parts": self.synthesis_parts,
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
        self.synthesis_parts = int(state.get("synthesis_parts", 1))
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
            seen, synthetic, taught = teach(lab, stage, fresh, before, rng)
            measures |= taught
            with lab.timed("student"):
                for learner in filter(None, (lab.learner, lab.peer)):
                    lab.processes.mean_(learner.statistics())
                measures |= agreement_now(lab, rng)
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
        if lab.progress.stage != place:  # what comes next takes memory in other sizes
            give_back_freed_memory()
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
