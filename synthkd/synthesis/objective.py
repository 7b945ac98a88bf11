"""What synthesized images are judged by: the terms of a stage, asked of teacher and student.

B batch, C channels, K classes, E embedding, M embeddings remembered.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import sent
from synthkd.core.logits import applies
from synthkd.core.optimizers import load_optimizer
from synthkd.core.seeds import globally
from synthkd.images.augment import augmented, cropped, mirrored
from synthkd.losses.synthesis import TERMS, LayerMoments, View, blended
from synthkd.recipe import Recipe
from synthkd.synthesis.context import SynthesisContext
from synthkd.teachers.protocol import Teacher

EMBEDDING = 256  # E
BANK = 40_960  # embeddings remembered
NEGATIVES = 4_096  # of these, compared with in one step
HEAD_RATE = 1e-3


class SynthesisLoss(NamedTuple):
    """What was found out about one batch."""

    loss: Tensor  # the weighted sum, to be minimised; its gradient runs to the images
    values: dict[str, Tensor]  # each term, unweighted and detached
    taught: Tensor  # [B, K] the teacher's logits, detached
    independent: bool = False  # classes

    def measures(self, labels: Tensor) -> dict[str, float]:
        """Plain numbers for the record: the terms, and the share of images in which the teacher
        sees the class asked for, where any was (labels >= 0)."""
        found = {f"term.{name}": float(value) for name, value in self.values.items()}
        if self.independent:
            asked, absent = asked_of(labels, self.taught.shape[1])
            right = applies(self.taught, asked.clamp_min(0), independent=True) != absent
        else:
            right = self.taught.argmax(1) == labels
        if (chosen := labels >= 0).any():
            found["target_class_rate"] = float(right[chosen].float().mean())
        return found


class SynthesisObjective:
    """Weighs a batch by the terms of a stage; asks teacher and student for what these need only.

    Between batches it remembers a running average of BatchNorm statistics (with
    `generator.statistics_ema`, see `losses.synthesis.blended`), and for the term `contrast` (CMI,
    Fang et al. 2021, https://arxiv.org/abs/2105.08584) a projection head and a bank of embeddings.

    `rate` is the setting to lower where a loss is not finite.

    The head is a two-layer network on the spatial means of all BatchNorm layers' inputs; Adam
    trains it on the gradients that the caller's backward leaves in it. CMI's bank holds these means
    and projects them again in every step. Ours holds the embeddings of the time, cheaper by a pass
    of 4,096 through the head; they age as the head learns. Of the two views of an image the one
    that is judged carries the gradient and a crop is the key; in CMI the other way round, at
    the price of a second backward pass through the teacher.
    """

    def __init__(
        self, recipe: Recipe, teacher: Teacher, *, rate: str = "generator.learning_rate"
    ) -> None:
        self.recipe, self.teacher = recipe, teacher
        self.rate = rate
        self.device = teacher.device
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.running: LayerMoments = ()
        self.head: nn.Module | None = None  # made at the first contrast
        self.optimizer: torch.optim.Optimizer | None = None
        self.bank = torch.empty(0, EMBEDDING, device=self.device)  # [M, E], oldest first
        self._moments: LayerMoments = ()  # of the last step
        self._keys: Tensor | None = None  # [B, E] of the last step

    def __call__(
        self,
        context: SynthesisContext,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        validity: Tensor | None = None,
    ) -> SynthesisLoss:
        """Judges images [B, C, H, W] in 0..1 that were asked to be of classes `labels` [B].

        Without `generator.conditional`, or where a label is −1, the class is the teacher's vote, as
        in DAFL. Where the classes are independent, a label K + k asks for images without class k.
        `validity` [B] is the critic's opinion; without it the term `realism` is left out. Where no
        term is left, `values` is empty and `loss` a constant. Whether the loss was finite is what
        `check` tells.
        """
        terms = weights(context.terms, judged=validity is not None)
        self._improve_head()
        view = self._view(context, terms, images, labels, validity, rng)
        values = {name: TERMS[name](view) for name in terms}
        loss = sum((terms[t] * value for t, value in values.items()), images.new_zeros(()))
        self.note(loss)
        found = {t: value.detach() for t, value in values.items()}
        return SynthesisLoss(loss, found, view.taught.detach(), view.independent)

    def note(self, loss: Tensor) -> None:
        """Remembers whether a loss was finite, without waiting for its value."""
        self._finite = self._finite & loss.detach().isfinite().all()

    def check(self) -> None:
        """Refuses to go on, by an InputError that names the setting to lower, if a loss was not
        finite. To be called once a round: it waits for the device."""
        if not self._finite:
            self.teacher.check()  # it may be to blame
            table, _, key = self.rate.partition(".")
            now = getattr(getattr(self.recipe, table), key)
            raise InputError(
                f"the generator's loss is no longer finite: lower --{self.rate} (now {now:g})"
            )

    def close(self) -> None:
        """Ends a batch: the running statistics and the bank take over what its last step
        showed."""
        self._improve_head()
        if self.recipe.generator.statistics_ema and self._moments:
            self.running = self._moments
        if self._keys is not None:
            self.bank = torch.cat([self.bank, self._keys])[-BANK:]
        self._moments, self._keys = (), None

    def _view(
        self,
        context: SynthesisContext,
        terms: Mapping[str, float],
        images: Tensor,
        labels: Tensor,
        validity: Tensor | None,
        rng: torch.Generator,
    ) -> View:
        needs = frozenset[str]().union(*(TERMS[name].needs for name in terms))

        teacher = self.teacher
        seen = teacher.observe(
            images,
            features="features" in needs,
            statistics="statistics" in needs,
            pooled="projection" in needs,
        )
        votes, absent = seen.logits.argmax(1), None
        if teacher.independent:
            labels, absent = asked_of(labels, teacher.classes)
        asked = self.recipe.generator.conditional
        moments = blended(seen.moments, self.running, self.recipe.generator.statistics_ema)
        self._moments = tuple((mean.detach(), var.detach()) for mean, var in moments)
        embedded, other, bank = self._embedded(context, images, seen.pooled, rng)
        return View(
            images=images,
            labels=torch.where(labels < 0, votes, labels) if asked else votes,
            taught=seen.logits,
            learned=context.student(images) if "student" in needs else None,
            features=seen.features,
            other_features=self._other_features(context, images, rng)
            if "second view" in needs
            else None,
            prototypes=teacher.prototypes,
            moments=moments,
            stored=teacher.stored if moments else (),
            validity=validity,
            normalised=teacher.normalise(images) if "normalised" in needs else None,
            embedded=embedded,
            embedded_other=other,
            bank=bank,
            independent=teacher.independent,
            absent=absent if asked else None,
        )

    def _other_features(
        self, context: SynthesisContext, images: Tensor, rng: torch.Generator
    ) -> Tensor | None:
        """Features of another view of a quarter of the batch: the term costs a teacher pass."""
        part = images[: max(2, len(images) // 4)]
        view = augmented(part, context.augment, 0.3, rng)
        return self.teacher.observe(view, statistics=False).features

    def _embedded(
        self, context: SynthesisContext, images: Tensor, pooled: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Embeddings [B, E] of the batch and of another view of it, and negatives [M, E]."""
        if pooled is None:
            return None, None, None
        if self.head is None:
            with globally(rng):
                self._make_head(pooled.shape[1])
        assert self.head is not None
        with torch.no_grad():
            view = cropped(images, 0.25, rng)
            view = mirrored(view, rng) if context.augment.flip else view
            seen = self.teacher.observe(view, features=False, statistics=False, pooled=True)
            assert seen.pooled is not None
            self._keys = F.normalize(self.head(seen.pooled), dim=1)
        chosen = torch.randperm(len(self.bank), generator=rng)[:NEGATIVES]
        bank = self.bank[sent(chosen, self.device)] if len(chosen) else None
        return F.normalize(self.head(pooled), dim=1), self._keys, bank

    def _make_head(self, size: int) -> None:
        self.head = nn.Sequential(
            nn.Linear(size, EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING)
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=HEAD_RATE)

    def _improve_head(self) -> None:
        """A step on the gradients that the last backward left in the head, if there was one."""
        if self.head is None or self.optimizer is None:
            return
        if any(p.grad is not None for p in self.head.parameters()):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered between batches."""
        return {
            "running": self.running,
            "bank": self.bank,
            "head": self.head.state_dict() if self.head else None,
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.running = tuple(
            (mean.to(self.device), var.to(self.device)) for mean, var in state["running"]
        )
        self.bank = state["bank"].to(self.device)
        self.head = self.optimizer = None
        if state["head"]:
            self._make_head(state["head"]["0.weight"].shape[1])
            assert self.head is not None and self.optimizer is not None
            self.head.load_state_dict(state["head"])
            load_optimizer(self.optimizer, state["optimizer"])


def asked_of(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The class that a label of independent classes is about, and whether it shall be absent.

    >>> asked_of(torch.tensor([1, 4, -1]), 3)
    (tensor([ 1,  1, -1]), tensor([False,  True, False]))
    """
    absent = labels >= classes
    return torch.where(absent, labels - classes, labels), absent


def weights(terms: Mapping[str, float], *, judged: bool) -> dict[str, float]:
    """The terms that count: those with a weight; such as ask a critic only where it has judged.

    >>> weights({"one_hot": 0.5, "realism": 1.0, "spread": 0.0}, judged=False)
    {'one_hot': 0.5}
    """
    return {t: w for t, w in terms.items() if w and (judged or "critic" not in TERMS[t].needs)}
