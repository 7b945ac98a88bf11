"""The student: its first weights, its optimizer, its average, its file."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from synthkd import schedules
from synthkd.core.errors import InputError
from synthkd.core.files import write_atomic
from synthkd.losses.distillation import (
    attention_transfer,
    feature_match,
    logit_l1,
    soft_decisions,
    soft_targets,
)
from synthkd.networks.classifier import Classifier
from synthkd.recipe import TrainingTable
from synthkd.teachers.frozen import Maps, maps_of

if TYPE_CHECKING:
    from synthkd.specs.cards import Card


class Learner:
    """A student that learns: network, optimizer and, if asked for, the running average of its
    weights."""

    def __init__(
        self, student: Classifier, table: TrainingTable, *, bfloat16: bool = False
    ) -> None:
        self.student: Classifier = student.arranged()
        if not any("Norm" in type(module).__name__ for module in student.modules()):
            slower = table.learning_rate * table.unnormalised
            table = table.model_copy(update={"learning_rate": slower})
        self.table = table
        self.bfloat16 = bfloat16
        self.steps = 0
        heavy = [p for p in student.parameters() if p.dim() > 1]
        light = [
            p for p in student.parameters() if p.dim() <= 1
        ]  # biases and norms are not decayed
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

    @property
    def looks(self) -> bool:
        """Whether a step compares maps, not answers alone."""
        return self.table.attention > 0 or self.table.features > 0

    def step(
        self, images: Tensor, taught: Tensor, progress: float, maps: Maps | None = None
    ) -> Tensor:
        """One step on images [B, C, H, W] towards the teacher's logits [B, K] and, if it `looks`,
        maps; returns the loss, detached."""
        rate = schedules.rate(progress, self.table)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.student.train()
        watching: AbstractContextManager[Maps] = nullcontext({})
        if self.looks:
            watching = maps_of(self.student)
        precision = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16)
        with watching as seen, precision:
            learned = self.student(images)
        loss = distillation_loss(learned, taught, self.table, independent=self.student.independent)
        if self.looks:
            loss = loss + map_loss(seen, maps or {}, self.table)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.table.clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.table.clip)
        self.optimizer.step()
        self._average()
        self.steps += 1
        return loss.detach()

    def _average(self) -> None:
        if self.average is None:
            return
        decay = schedules.ema_decay(self.steps, longest=self.table.ema)
        now = self.student.state_dict()
        real = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in real], [now[k] for k in real], 1 - decay)
        for key, value in now.items():
            if not value.is_floating_point():
                self.average[key].copy_(value)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """The student's logits [B, K] in eval mode; its mode is put back afterwards."""
        mode = self.student.training
        self.student.eval()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.student(images)
        self.student.train(mode)
        return logits.float()

    def use(self, weights: dict[str, Tensor]) -> None:
        """Puts weights (the average, say) into the student."""
        self.student.load_state_dict(weights, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """All that changes while it learns."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.use(state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            for key, value in state["average"].items():
                self.average[key].copy_(value)
        self.steps = int(state["steps"])


def distillation_loss(
    learned: Tensor, taught: Tensor, table: TrainingTable, *, independent: bool = False
) -> Tensor:
    """What the student minimises, by `table.loss`: at the table's temperature `soft_targets`, or of
    `independent` classes `soft_decisions`; or `logit_l1`, which knows none. Logits [B, K], a
    scalar."""
    if table.loss == "l1":
        return logit_l1(learned, taught)
    if independent:
        return soft_decisions(learned, taught, temperature=table.temperature)
    return soft_targets(learned, taught, temperature=table.temperature)


def map_loss(learned: Maps, taught: Maps, table: TrainingTable) -> Tensor:
    """What the maps add to the student's loss, by `table.attention` and `table.features`.

    Maps are compared where H and W agree, from large to small; features only where C does too. An
    attention of one pixel says nothing and is left out. No pair at all is an InputError.
    """
    sizes = sorted(learned.keys() & taught.keys(), reverse=True)
    pairs = [(learned[size], taught[size]) for size in sizes]
    terms = (
        ("attention", attention_transfer, [p for p in pairs if p[0].shape[2:].numel() > 1]),
        ("features", feature_match, [p for p in pairs if p[0].shape == p[1].shape]),
    )
    values = []
    for name, measure, fitting in terms:
        weight: float = getattr(table, name)
        if weight and not fitting:
            raise InputError(
                f"training.{name} {weight:g}: no map of the student fits one of the teacher's; "
                "leave it at 0"
            )
        if weight:
            values.append(weight * measure([s for s, _ in fitting], [t for _, t in fitting]))
    return torch.stack(values).sum()


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimizer's state with each tensor laid out like its parameter, as an unbroken run
    has it."""
    optimizer.load_state_dict(state)
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_student(student: Classifier, card: "Card", path: Path) -> None:
    """The student as a safetensors file whose header tells how to rebuild it."""
    state = {k: v.detach().cpu().contiguous() for k, v in student.body.state_dict().items()}
    write_atomic(path, save(state, metadata=card.header()))
