"""The student: its optimizer, its average, its file."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from synthkd import schedules
from synthkd.core.files import write_atomic
from synthkd.core.optimizers import average_, load_optimizer
from synthkd.losses.distillation import TERMS, DistillationView
from synthkd.networks.classifier import Classifier
from synthkd.networks.folding import Folding, folding_pairs
from synthkd.networks.modes import in_eval_mode, plain_means
from synthkd.networks.slimmable import RANDOM, Slimmable, widths
from synthkd.recipe import TrainingTable
from synthkd.students.objective import DistillationObjective, weighted_mean
from synthkd.teachers.features import features_of
from synthkd.teachers.protocol import Seen

if TYPE_CHECKING:
    from synthkd.specs.cards import Card


class Step(NamedTuple):
    """What a step tells: the loss, a scalar, and the loss of each image [B] where it is asked
    for."""

    loss: Tensor
    per_sample: Tensor | None = None


class Learner:
    """A student that learns: network, objective, optimizer and, if asked for, the running average
    of its weights. Layers of the student that are frozen stay so, and what frozen BatchNorm layers
    remember stays too."""

    def __init__(
        self,
        student: Classifier,
        table: TrainingTable,
        objective: DistillationObjective | None = None,
        *,
        bfloat16: bool = False,
    ) -> None:
        self.student: Classifier = student.arranged()
        rate = table.learning_rate
        if not any("Norm" in type(module).__name__ for module in student.modules()):
            rate *= table.lr_factor_without_norm
        if student.kept:
            rate *= table.lr_factor_pruned
        table = table.model_copy(update={"learning_rate": rate})
        self.table = table
        self.objective = objective or DistillationObjective(table, student)
        self.bfloat16 = bfloat16
        self.steps = 0
        frozen = table.batchnorm == "frozen" or (table.batchnorm == "auto" and bool(student.kept))
        self._frozen = [
            module for module in student.modules()
            if _is_frozen_norm(module) or (frozen and _is_norm(module))
        ]  # fmt: skip
        self._folds = self._foldable()
        self._learning = [p for p in student.parameters() if p.requires_grad]
        self._learning += self.objective.parameters()  # heads and adapters, which do not ship
        heavy = [p for p in self._learning if p.dim() > 1]
        light = [p for p in self._learning if p.dim() <= 1]  # biases and norms are not decayed
        groups = [
            {"params": heavy, "weight_decay": table.weight_decay},
            {"params": light, "weight_decay": 0.0},
        ]
        self.optimizer: torch.optim.Optimizer
        if table.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                groups, lr=table.learning_rate, momentum=table.momentum, nesterov=table.momentum > 0
            )
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=table.learning_rate)
        self.average = (
            {k: v.detach().clone() for k, v in student.state_dict().items()} if table.ema else None
        )

    def step(
        self,
        images: Tensor,
        taught: Seen | Tensor,
        progress: float,
        *,
        asked: Tensor | None = None,
        slots: Tensor | None = None,
        weights: Tensor | None = None,
        temperature: float | None = None,
        answers_share: float = 0.5,
        peer: Tensor | None = None,
        peer_weight: float = 0.0,
        stage: str = "",
        per_sample: bool = False,
    ) -> Step:
        """One step on images [B, C, H, W] towards what the teacher shows of them: a `Seen`, or its
        logits [B, K] alone.

        `asked`, `slots` and `weights` [B] are those of a `DistillationView`, `progress` is the
        share of the training that is done, `temperature` that of the table's schedule unless a
        controller moves it, and `answers_share` what a controller says (`weighting.TwoKinds`).
        `peer` are the logits [B, K] of a second student, from whose answers this one learns with
        `peer_weight` (mutual learning).
        """
        if isinstance(taught, Tensor):
            taught = Seen(taught, {})
        rate = schedules.rate(progress, self.table)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.student.train()
        for norm in self._frozen:
            norm.eval()
        self.objective.train()
        precision = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16)
        folding = Folding(self._folds) if self._folds else nullcontext()
        shown = features_of(self.student.body, self.objective.student_layers)
        with shown as seen, precision, folding:
            learned = self.student(images)
        view = DistillationView(
            images=images,
            learned=learned,
            taught=taught.logits,
            student_features=seen,
            teacher_features=taught.features,
            pairs=self.objective.pairs,
            embedding=self.objective.embedding,
            asked=asked,
            slots=slots,
            weights=weights,
            temperature=(
                schedules.temperature(progress, self.table) if temperature is None else temperature
            ),
            answers_share=answers_share,
            independent=self.student.independent,
            stage=stage,
            progress=progress,
            per_sample=per_sample or weights is not None,
        )
        loss, each = self.objective(view)
        if isinstance(self.student.body, Slimmable):
            loss = loss + self._narrower(view, self.student.body, precision)
        if peer is not None:  # Zhang et al. 2018: https://arxiv.org/abs/1706.00384
            loss = loss + peer_weight * self._from_peer(view, peer)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.table.clip:
            nn.utils.clip_grad_norm_(self._learning, self.table.clip)
        self.optimizer.step()
        self._average()
        self.steps += 1
        return Step(loss.detach(), each)

    def _narrower(
        self, view: DistillationView, body: Slimmable, precision: torch.autocast
    ) -> Tensor:
        """What the narrower widths lose against the full one, a scalar: the sandwich rule and
        in-place distillation of Yu & Huang 2019 (https://arxiv.org/abs/1903.05134), the narrowest
        width and RANDOM others in each step, taught by the full one's answers."""
        rng = torch.Generator().manual_seed(self.steps)
        between = body.shares[1:-1]
        drawn = [between[k] for k in torch.randperm(len(between), generator=rng)[:RANDOM].tolist()]
        total = view.learned.new_zeros(())
        for share in (body.shares[0], *drawn):
            body.use(share)
            with precision:
                learned = self.student(view.images)
            body.use(1.0)
            told = TERMS["soft_targets"](
                replace(view, learned=learned, taught=view.learned.detach(), per_sample=True)
            )
            total = total + weighted_mean(told, view.weights)
        return total

    def _from_peer(self, view: DistillationView, peer: Tensor) -> Tensor:
        """How far the student's answers are from another student's, a scalar."""
        told = TERMS["soft_targets"](replace(view, taught=peer, per_sample=True))
        return weighted_mean(told, view.weights)

    def _foldable(self) -> dict[int, nn.modules.batchnorm._BatchNorm]:
        """The frozen norms that are computed within convolutions, tried on images that are always
        the same; none where layers are compared, which are left as they are."""
        norms = [n for n in self._frozen if isinstance(n, nn.modules.batchnorm._BatchNorm)]
        if not norms or self.objective.student_layers:
            return {}
        images = torch.rand(2, *self.student.spec.shape, generator=torch.Generator().manual_seed(0))
        return folding_pairs(self.student, images.to(self.student.mean.device), norms)

    def _average(self) -> None:
        if self.average is None:
            return
        decay = schedules.ema_decay(self.steps, longest=self.table.ema)
        average_(self.average, self.student.state_dict(), 1 - decay)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """The student's logits [B, K] in eval mode; its mode is put back afterwards."""
        precision = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16)
        with in_eval_mode(self.student), precision:
            logits: Tensor = self.student(images)
        return logits.float()

    @torch.no_grad()
    def answer_averaged(self, images: Tensor) -> Tensor:
        """The logits [B, K] of the running average of its weights, in eval mode."""
        assert self.average is not None
        precision = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16)
        with in_eval_mode(self.student), precision:
            logits: Tensor = torch.func.functional_call(
                self.student, self.average, (images,), tie_weights=False
            )
        return logits.float()

    def use(self, weights: dict[str, Tensor]) -> None:
        """Puts weights (the average, say) into the student."""
        self.student.load_state_dict(weights, strict=True)

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Tensor]) -> bool:
        """Estimates the running statistics of the student's BatchNorm layers anew, as plain means
        over `batches` of images [B, C, H, W]; those of frozen ones stay. Returns whether there are
        any."""
        frozen = {id(module) for module in self._frozen}
        norms = [
            module for module in self.student.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in frozen
            and module.track_running_stats
        ]  # fmt: skip
        if not norms:
            return False
        kind = self.student.mean.device.type
        with in_eval_mode(self.student), plain_means(norms):
            for norm in norms:
                norm.train()
            for images in batches:
                with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16):
                    for _ in widths(self.student.body):
                        self.student(images)
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that changes while it learns."""
        return {
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.use(state["student"])
        self.objective.load_state_dict(state["objective"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            for key, value in state["average"].items():
                self.average[key].copy_(value)
        self.steps = int(state["steps"])


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a norm that remembers statistics, with weights of which none learns."""
    weights = list(module.parameters(recurse=False))
    return _is_norm(module) and bool(weights) and not any(p.requires_grad for p in weights)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def save_student(student: Classifier, card: "Card", path: Path) -> None:
    """The student as a safetensors file whose header tells how to rebuild it."""
    state = {k: v.detach().cpu().contiguous() for k, v in student.body.state_dict().items()}
    write_atomic(path, save(state, metadata=card.header()))
