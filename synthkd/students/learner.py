"""The student: its optimizer, its average, its file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from synthkd import schedules
from synthkd.core.errors import InputError
from synthkd.core.files import write_atomic
from synthkd.core.memory import in_fitting_parts
from synthkd.core.optimizers import average_, load_optimizer
from synthkd.core.states import packed
from synthkd.losses.distillation import TERMS, DistillationView
from synthkd.networks.classifier import Classifier
from synthkd.networks.folding import Folding, folding_pairs
from synthkd.networks.modes import in_eval_mode, plain_means
from synthkd.networks.slimmable import Slimmable, widths
from synthkd.recipe import TrainingTable
from synthkd.students import sandwich
from synthkd.students.objective import DistillationObjective, weighted_mean
from synthkd.students.weighting import GradNorm
from synthkd.teachers.features import features_of
from synthkd.teachers.protocol import Seen

if TYPE_CHECKING:
    from synthkd.specs.header import Card


class Step(NamedTuple):
    """What a step tells: the loss, a scalar, the loss of each image [B] where it is asked for, and
    where they were measured the needs of a slimmable student's widths (`sandwich.needs_of`)."""

    loss: Tensor
    per_sample: Tensor | None = None
    needs: Mapping[float, Tensor] | None = None


class Lesson(NamedTuple):
    """What is learned in one step, of B images."""

    images: Tensor  # [B, C, H, W]
    taught: Seen  # logits [B, K] and features [B, …]
    asked: Tensor | None = None  # [B]
    slots: Tensor | None = None  # [B]
    weights: Tensor | None = None  # [B]
    peer: Tensor | None = None  # [B, K], the logits of a second student

    def parts(self, count: int) -> Iterator[tuple["Lesson", float]]:
        """It in `count` even parts, each with its share of the mean over the whole: of the images,
        or of their weights where they have some. The shares add up to 1."""
        if count == 1:
            yield self, 1.0
            return
        whole = len(self.images) if self.weights is None else float(self.weights.sum())
        for index in torch.arange(len(self.images)).tensor_split(count):
            some = slice(int(index[0]), int(index[-1]) + 1)
            images, taught, *others = self
            features = {name: value[some] for name, value in taught.features.items()}
            rest = (None if other is None else other[some] for other in others)
            part = Lesson(images[some], Seen(taught.logits[some], features), *rest)
            own = len(index) if part.weights is None else float(part.weights.sum())
            yield part, own / max(whole, 1e-12)


class Learner:
    """A student that learns: network, objective, optimizer and, if asked for, the running average
    of its weights. Layers of the student that are frozen stay so, and what frozen BatchNorm layers
    remember stays too.

    Where several processes learn one student, `exchange` takes the gradients of this one and its
    share of a batch, and leaves their mean over all (`engine.processes.Processes.mean_`).
    """

    def __init__(
        self,
        student: Classifier,
        table: TrainingTable,
        objective: DistillationObjective | None = None,
        *,
        bfloat16: bool = False,
        exchange: Callable[[Sequence[Tensor], float], None] | None = None,
    ) -> None:
        self.exchange = exchange
        self.parts = 1  # in which a step is learned, for want of memory
        self.student: Classifier = student.arranged().steadied()
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
        self._norms = {
            name: module for name, module in student.named_modules()
            if _is_norm(module) and all(module is not norm for norm in self._frozen)
        }  # fmt: skip
        moving = [norm.buffers(recurse=False) for norm in self._norms.values()]
        self._moving = [b for some in (*moving, self.objective.buffers()) for b in some]
        self._unmoved = [buffer.clone() for buffer in self._moving]  # as before a step
        self._counted: dict[str, int] = {}
        self._widths: tuple[float, ...] = ()  # at which a step is taken, see `sandwich.chosen`
        self._needs: dict[float, Tensor] = {}  # measured in it
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
        self.average = self._weights() if table.ema else None
        self.begun: dict[str, Tensor] | None = None  # what it began with, if that may be as good

    def remember_beginning(self) -> None:
        """Keeps the weights as they are, to be compared at the end with what was learned."""
        self.begun = self._weights()

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Puts weights into a student that has not learned yet, in the place of its own; one that
        is cut out of its teacher is not refitted any more. Raises InputError where they are of
        another network."""
        if self.steps:
            raise ValueError("a student that has learned cannot begin with other weights")
        try:
            self.student.load_state_dict(weights, strict=True)
        except RuntimeError:
            raise InputError("the weights to begin with are those of another network") from None
        self.average = self._weights() if self.average is not None else None
        if self.student.kept:
            self.remember_beginning()

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.student.state_dict().items()}

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
        needs: Mapping[float, float] | None = None,
        stage: str = "",
        per_sample: bool = False,
        fraction: float = 1.0,
    ) -> Step:
        """One step on images [B, C, H, W] towards what the teacher shows of them: a `Seen`, or its
        logits [B, K] alone.

        `asked`, `slots` and `weights` [B] are those of a `DistillationView`, `progress` is the
        share of the training that is done, `temperature` that of the table's schedule unless a
        controller moves it, and `answers_share` what a controller says (`weighting.TwoKinds`).
        `peer` are the logits [B, K] of a second student, from whose answers this one learns with
        `peer_weight` (mutual learning). `needs` are those of a slimmable student's widths
        (`sandwich.chosen`). `fraction` is that of these images in a batch that several processes
        learn together.

        Where the memory does not suffice, the step and those after it are learned in twice as many
        `parts`, whose gradients are added up by their shares in the whole:

            gradient = sum over parts of  (images of the part / B) · gradient of its mean loss

        That is the gradient of the whole batch but for rounding, for terms that are means over
        images. BatchNorm layers see the parts, and terms that compare images with one another
        compare those of a part.
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
        lesson = Lesson(images, taught, asked, slots, weights, peer)
        if isinstance(body := self.student.body, Slimmable):
            between = body.shares[1:-1]
            self._widths = sandwich.chosen(between, self.table.widths, needs or {}, self.steps)
        given: dict[str, Any] = {
            "temperature": (
                schedules.temperature(progress, self.table) if temperature is None else temperature
            ),
            "answers_share": answers_share,
            "stage": stage,
            "progress": progress,
            "per_sample": per_sample or weights is not None,
        }
        most = max(1, len(images) // 2)
        self._remember()
        step, parts = in_fitting_parts(
            lambda parts: self._gradients(lesson, parts, peer_weight, given),
            min(self.parts, most), most, self._put_back,
        )  # fmt: skip
        self.parts = max(self.parts, parts)
        if self.exchange is not None:
            self.exchange([p.grad for p in self._learning if p.grad is not None], fraction)
        if self.table.clip:
            nn.utils.clip_grad_norm_(self._learning, self.table.clip)
        self.optimizer.step()
        self._average()
        self.steps += 1
        return step

    def _gradients(
        self, lesson: Lesson, parts: int, peer_weight: float, given: Mapping[str, Any]
    ) -> Step:
        """The gradients of a lesson's loss, left at the weights, learned in so many parts."""
        self.optimizer.zero_grad(set_to_none=True)
        self._needs = {}
        losses: list[Tensor] = []
        told: list[Tensor] = []
        for part, share in lesson.parts(parts):
            loss, each = self._loss(part, peer_weight, given)
            if parts > 1:
                loss = share * loss
            torch.autograd.backward(loss)
            losses.append(loss.detach())
            told += [] if each is None else [each]
        whole = losses[0] if parts == 1 else torch.stack(losses).sum()
        return Step(whole, torch.cat(told) if told else None, self._needs)

    def _loss(
        self, lesson: Lesson, peer_weight: float, given: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """The loss, a scalar, and that of each image [B] where it is asked for."""
        images, taught = lesson.images, lesson.taught
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
            asked=lesson.asked,
            slots=lesson.slots,
            weights=lesson.weights,
            independent=self.student.independent,
            **given,
        )
        loss, each = self.objective(view)
        if isinstance(self.student.body, Slimmable):
            loss = loss + self._narrower(view, self.student.body, precision, loss)
        if lesson.peer is not None:  # Zhang et al. 2018: https://arxiv.org/abs/1706.00384
            loss = loss + peer_weight * self._from_peer(view, lesson.peer)
        return loss, each

    @torch.no_grad()
    def _remember(self) -> None:
        """Takes note of what a step moves besides weights: statistics, and what terms keep."""
        if self._moving:
            torch._foreach_copy_(self._unmoved, self._moving)
        if isinstance(weighting := self.objective.weighting, GradNorm):
            self._counted = weighting.get_extra_state()

    @torch.no_grad()
    def _put_back(self) -> None:
        """Everything is as before the step in hand, so that it can be begun anew."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._moving:
            torch._foreach_copy_(self._moving, self._unmoved)
        if isinstance(weighting := self.objective.weighting, GradNorm):
            weighting.set_extra_state(self._counted)
        if isinstance(self.student.body, Slimmable):
            self.student.body.use(1.0)
        if self.student.mean.device.type == "cuda":
            torch.cuda.empty_cache()

    def statistics(self) -> list[Tensor]:
        """The running means and variances of the BatchNorm layers that learn, and those in the
        running average: what differs between processes that learn one student from different
        images."""
        found = []
        for name, norm in self._norms.items():
            for key in ("running_mean", "running_var"):
                if (value := getattr(norm, key, None)) is not None:
                    found.append(value)
                    found += [self.average[f"{name}.{key}"]] if self.average else []
        return found

    def everything(self) -> list[Tensor]:
        """All tensors that learn or are kept, to be given to other processes: weights, buffers, the
        weights of the objective, the running average."""
        own = [*self.student.state_dict().values(), *(self.average or {}).values()]
        return [*own, *self.objective.parameters()]

    def _narrower(
        self, view: DistillationView, body: Slimmable, precision: torch.autocast, full: Tensor
    ) -> Tensor:
        """What the narrower widths lose against the full one, a scalar: the sandwich rule and
        in-place distillation of Yu & Huang 2019 (https://arxiv.org/abs/1903.05134), the narrowest
        width and those of `sandwich.chosen`, taught by the full one's answers. `full` is the loss
        of the full one."""
        total, losses = view.learned.new_zeros(()), dict[float, Tensor]()
        for share in (body.shares[0], *self._widths):
            body.use(share)
            with precision:
                learned = self.student(view.images)
            body.use(1.0)
            told = TERMS["soft_targets"](
                replace(view, learned=learned, taught=view.learned.detach(), per_sample=True)
            )
            losses[share] = weighted_mean(told, view.weights)
            total = total + losses[share]
        if self.table.widths == "needed" and sandwich.measures(self.steps):
            drawn = {share: losses[share] for share in self._widths}
            self._needs = sandwich.needs_of(body, full, drawn)
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
            "begun": self.begun,
            "steps": self.steps,
            "parts": self.parts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.use(state["student"])
        self.objective.load_state_dict(state["objective"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            for key, value in state["average"].items():
                self.average[key].copy_(value)
        if (begun := state.get("begun")) is not None:
            self.remember_beginning()
            assert self.begun is not None
            for key, value in begun.items():
                self.begun[key].copy_(value)
        self.steps = int(state["steps"])
        self.parts = int(state.get("parts", 1))


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a norm that remembers statistics, with weights of which none learns."""
    weights = list(module.parameters(recurse=False))
    return _is_norm(module) and bool(weights) and not any(p.requires_grad for p in weights)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def save_student(student: Classifier, card: "Card", path: Path) -> None:
    """The student as a safetensors file whose header tells how to rebuild it."""
    write_atomic(path, packed(student.body.state_dict(), card.header()))
