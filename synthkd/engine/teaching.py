"""The student's turn in a round: hybrid batches, the teacher's answers, steps.

B batch, N images, C channels, H height, W width, K classes.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synthkd import schedules
from synthkd.core.errors import InputError
from synthkd.core.findings import Finding
from synthkd.core.images import Batch, resized, sent, to_float
from synthkd.core.logits import blended
from synthkd.engine import batches
from synthkd.engine.batches import TaughtBatch, TeachingBatch
from synthkd.engine.processes import means
from synthkd.engine.progress import taught_share
from synthkd.images.augment import augmented, mixed_up
from synthkd.networks.classifier import Classifier
from synthkd.networks.reconstruction import reconstruct
from synthkd.networks.refitting import looked_at, timed
from synthkd.networks.slimmable import SHARES
from synthkd.recipe import Stage
from synthkd.students.learner import Learner, Step
from synthkd.teachers.ensemble import EnsembleTeacher
from synthkd.teachers.protocol import Seen

if TYPE_CHECKING:
    from synthkd.engine.loop import Lab

REFITTING = 0.1  # of the time left, that refitting a pruned student's layers may take
LEAST_PRIORITY = 1e-6  # of an image that is known by heart, so that it may come again


def teach(
    lab: "Lab", stage: Stage, fresh: Batch, began: float, rng: torch.Generator
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
        if not learner.steps and learner.student.kept and learner.begun is None:
            if lab.processes.leads:
                refit(lab, learner.student, fresh.images, rng)
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


def refit(lab: "Lab", student: Classifier, fresh: Tensor, rng: torch.Generator) -> None:
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

    def __init__(self, lab: "Lab", stage: Stage, began: float, learner: Learner) -> None:
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


def _prioritise(lab: "Lab", batch: TaughtBatch, step: Step) -> None:
    """Gives the images of a batch their losses as priorities; a blend tells nothing of one
    image."""
    assert step.per_sample is not None
    plain = ~batch.blended
    if bool(plain.any()):
        loss = step.per_sample.cpu()[plain].clamp_min(0) + LEAST_PRIORITY
        lab.memory.update(batch.slots.cpu()[plain], loss**lab.recipe.memory.priority)


def _taught_batches(
    lab: "Lab", stage: Stage, fresh: Batch, left: float, rng: torch.Generator
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


def _taught_answers(lab: "Lab", learner: Learner, images: Tensor) -> Seen:
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


def _replayed(lab: "Lab", made: int, fresh: int) -> int:
    """How many of a batch's `made` synthetic images come from the memory, if `fresh` are new."""
    if len(lab.memory) == 0:
        return 0
    return round(lab.recipe.memory.replayed * made) if fresh else made


def _hybrid(
    lab: "Lab", fresh: TeachingBatch, replayed: int, real: int, rng: torch.Generator
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
