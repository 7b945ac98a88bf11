"""Networks that learn one from another: teacher, assistants, student.

B batch, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthkd.core.logits import blended
from synthkd.recipe import TeachingTable
from synthkd.students.learner import Learner
from synthkd.teachers.protocol import Seen, Teacher

SMOOTHED = 0.9  # share of an agreement that outlives a round


@dataclass
class ChainState:
    """Where a chain stands."""

    place: int = 0  # of the learner whose turn it is
    by: int = -1  # of the learner that teaches beside the teacher; −1: none does
    began: float = 0.0  # share of the training at which it began
    weight: float = 0.0  # of the assistant's answers beside the teacher's
    agreement: float | None = None  # with the teacher, on held-out images, smoothed
    best: float = 0.0  # the highest since the turn began


class Chain:
    """Learners in turn, the last of which is the student. Each learns from the one before, whose
    answers are blended with the teacher's:

        p = (1 − w) · softmax(teacher) + w · softmax(assistant)

    Teacher assistants: Mirzadeh et al. 2020 (https://arxiv.org/abs/1902.03393); of one architecture
    throughout, born-again networks: Furlanello et al. 2018 (https://arxiv.org/abs/1805.04770).

    Every assistant has an even part of what is left of `teaching.assistants_share` of the training
    when its turn begins, and none if nothing is; with `teaching.promote_at` it is promoted as soon
    as its agreement with the teacher, smoothed, reaches that. If its successor's agreement falls by
    more than `teaching.rollback` below its best, the teacher teaches alone from then on. Weights
    never pass from one architecture to another.
    """

    def __init__(self, learners: Sequence[Learner], table: TeachingTable) -> None:
        self.learners, self.table = tuple(learners), table
        self.state = ChainState()

    @property
    def learner(self) -> Learner:
        """Whose turn it is."""
        return self.learners[self.state.place]

    @property
    def last(self) -> bool:
        """Whether it is the student's turn."""
        return self.state.place == len(self.learners) - 1

    @property
    def end(self) -> float:
        """The share of the training at which this turn ends."""
        began, assistants = self.state.began, len(self.learners) - 1
        if self.last:
            return 1.0
        left = max(0.0, self.table.assistants_share - began)
        return began + left / (assistants - self.state.place)

    def share(self, whole: float) -> float:
        """How far this turn is, 0..1, after a share `whole` of the training."""
        length = self.end - self.state.began
        return min(1.0, max(0.0, (whole - self.state.began) / length)) if length > 0 else 1.0

    def notice(self, whole: float, signals: Mapping[str, float]) -> bool:
        """Takes notice of a round, after a share `whole` of the training; returns whether the turn
        is over."""
        state, table = self.state, self.table
        if "agreement" in signals:
            now, before = signals["agreement"], state.agreement
            state.agreement = now if before is None else SMOOTHED * before + (1 - SMOOTHED) * now
            state.best = max(state.best, state.agreement)
            fallen = state.best - state.agreement
            if state.place and table.rollback and fallen > table.rollback:
                state.weight = 0.0
        if self.last:
            return False
        good = table.promote_at and state.agreement is not None
        return whole >= self.end or bool(good and (state.agreement or 0.0) >= table.promote_at)

    def promote(self, whole: float) -> None:
        """The next one's turn, of those for whom there is time."""
        by = self.state.place
        self.state = ChainState(by + 1, by, whole, self.table.assistant_weight)
        while not self.last and self.end <= whole:
            self.state.place += 1

    @torch.no_grad()
    def teach(self, teacher: Teacher, images: Tensor, layers: Sequence[str]) -> Seen:
        """What the learner is taught of images [B, C, H, W]: logits [B, K], and the teacher's
        features of `layers`."""
        weight = self.state.weight if self.state.by >= 0 else 0.0
        if not weight:
            return teacher.teach(images, layers)
        other = self.learners[self.state.by].answer(images)
        if weight == 1 and not layers:
            return Seen(other, {})
        seen = teacher.teach(images, layers)
        if weight == 1:
            return Seen(other, seen.features)
        logits = blended(
            (seen.logits, other), (1 - weight, weight), independent=teacher.independent
        )
        return Seen(logits, seen.features)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, and what the learners before this one have become."""
        before = [learner.state_dict() for learner in self.learners[: self.state.place]]
        return {"state": dict(vars(self.state)), "before": before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; the learner whose turn it is loads its own."""
        self.state = ChainState(**state["state"])
        for learner, saved in zip(self.learners, state["before"], strict=False):
            learner.load_state_dict(saved)
