"""Pixels improved by gradients through the teacher, without a generator."""

import time
from collections.abc import Mapping
from functools import cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from synthkd import schedules
from synthkd.core.images import Batch, resized
from synthkd.images.augment import cropped
from synthkd.recipe import Recipe
from synthkd.synthesis.context import (
    SynthesisContext,
    SyntheticBatch,
    even_labels,
    rarest_labels,
)
from synthkd.synthesis.objective import SynthesisObjective
from synthkd.synthesis.procedural import Procedural
from synthkd.synthesis.protocol import Abilities, Generator
from synthkd.synthesis.resolution import scaled
from synthkd.teachers.protocol import Teacher

TIMED = 2  # the step by whose time the others are estimated: the first prepares the machine
HALF = 0.5  # of a batch must be ready in time, or none of it is begun
FEW = 4  # images of a class in a batch, under which each starts as one of its own class
LEAST = 16  # images in a batch that is cut to the time
RANGE = 10.0  # weight of leaving 0..1, in the Fourier basis; the pixel basis is cut instead


class Pixels(Generator):
    """Adam minimises the stage's terms over the pixels of a batch of images, for a number of steps.

    From noise in the pixel basis this is DeepInversion (Yin et al. 2020,
    https://arxiv.org/abs/1912.08795). In the Fourier basis the variables are the image's spectrum
    times its frequency, so that a step of one size moves large shapes as easily as single pixels
    (Olah et al. 2017, https://distill.pub/2017/feature-visualization, under "preconditioning"):
    ten steps go as far as a hundred. With `pixels.start` "memory" an image begins as a remembered
    one of its class; once the remembered images of a class are used up, the others begin as images
    of any class. Where a batch has fewer than FEW images of a class, it is made of the classes with
    the fewest such images so far, and each image begins as one of its own class, or, where the
    teacher has seen the class in too few, as one of those that come nearest to it. No two of a
    class begin as the same image.
    """

    abilities = Abilities(
        needs_gradients=True, uses_terms=True, serves=frozenset({"projection"}), needs_steps=True,
        offers_its_batch=True, refines=True, reads=("pixels", "procedural", "generator"),
    )  # fmt: skip

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        self.table = recipe.pixels
        self.conditional = recipe.generator.conditional
        self.teacher = teacher
        self.classes = teacher.classes
        self.shape = teacher.spec.shape
        self.device = teacher.device
        self.objective = SynthesisObjective(recipe, teacher, rate="pixels.learning_rate")
        self.drawings = Procedural(recipe, teacher)
        self.scales = recipe.pixels.scales
        self._frequencies = cache(lambda h, w: frequencies(h, w).to(self.device))
        self.inks = colours(self.shape[0]).to(self.device)

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """`stage.synthesis_steps` steps on `stage.synthesis_batch` images, which are then offered.

        Where the time is short, the first step tells how many images can be finished: there are
        fewer then, or, where something was offered in this stage already and less than half of them
        would be ready, none.
        """
        table, stage = self.table, context.stage
        labels = self._asked(context, rng).to(self.device)
        images = self._start(labels, context, rng)
        if self.teacher.independent:
            labels = self._without(labels, images, rng)
        if not self.conditional:  # the teacher's votes are taken instead
            labels = torch.full_like(labels, -1)
        offered, verdict, steps, done, judged = None, None, stage.synthesis_steps, 0, labels
        best = torch.full((), torch.inf, device=self.device)
        size, optimizer, moved = (0, 0), None, images
        while done < steps:
            began = time.perf_counter()
            context.tick(done, steps)
            now = scaled(self.shape, schedules.scale(done / steps, self.scales))
            if now != size:
                with torch.no_grad():
                    images = resized(self._decode(moved, size) if done else images, now)
                size, moved, optimizer = now, self._encode(images).requires_grad_(), None
            if optimizer is None:
                optimizer = torch.optim.Adam(
                    [moved], lr=table.learning_rate, betas=(table.beta1, table.beta2)
                )
            images = self._decode(moved, size)
            outside = (images - images.detach().clamp(0, 1)).abs().mean()
            view = self._view(images, context, rng, done / steps)
            verdict = self.objective(context, view, labels, rng)
            judged = labels
            if stage.offer == "best":
                loss = verdict.loss.detach()
                chosen = images.detach()
                if offered is None or offered.shape != chosen.shape:
                    offered, best = chosen, loss
                offered = torch.where(loss < best, chosen, offered)
                best = torch.minimum(best, loss)
            optimizer.param_groups[0]["lr"] = table.learning_rate * (1 - table.decay * done / steps)
            optimizer.zero_grad(set_to_none=True)
            (verdict.loss + RANGE * outside).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if table.basis == "pixels":
                moved.data = self._encode(self._decode(moved.data, size).clamp(0, 1))
            done += 1
            if done == TIMED and context.deadline < inf:
                ended = time.perf_counter()
                fitting = (context.deadline - ended) / self._ahead(ended - began, done, steps)
                if fitting < HALF and context.stage_share > 0:  # the next stage can use the time
                    labels, offered = labels[:0], images.detach()[:0]
                    break
                count, steps = cut_to_time(fitting, len(labels), done, steps)
                if count < len(labels):
                    labels, optimizer = labels[:count], None
                    offered = None if offered is None else offered[:count]
                    moved = moved.detach()[:count].clone().requires_grad_()
        self.objective.close()
        self.objective.check()
        measures = verdict.measures(judged) if verdict else {}
        with torch.no_grad():
            if offered is None:
                offered = self._decode(moved, size) if done else images
            found = resized(offered, (self.shape[1], self.shape[2])).clamp(0, 1)
        labels = torch.where(labels < self.classes, labels, -1)
        return SyntheticBatch(Batch(found, labels), done * len(labels), measures)

    def _ahead(self, seconds: float, done: int, steps: int) -> float:
        """Seconds of the steps that are left, if the last one took so many: by their areas."""
        over, end, ahead = done / steps, 0.0, 0.0
        for side, share in sorted(self.scales.items()) or [(1.0, 1.0)]:
            end += share
            ahead += max(0.0, min(share, end - over)) * prod(scaled(self.shape, side))
        here = prod(scaled(self.shape, schedules.scale((done - 1) / steps, self.scales)))
        return max(1e-6, seconds * steps * ahead / here)

    @torch.no_grad()
    def _without(self, labels: Tensor, start: Tensor, rng: torch.Generator) -> Tensor:
        """Labels [B] of independent classes, of which some ask for an image without the class: as
        large a share as the teacher sees the class in already."""
        seen = (self.teacher(start) > 0).float().mean(0)  # [K]
        chance = torch.rand(len(labels), generator=rng).to(labels.device)
        return torch.where(chance < seen[labels], labels + self.classes, labels)

    def _start(self, labels: Tensor, context: SynthesisContext, rng: torch.Generator) -> Tensor:
        """Images [B, C, H, W] to begin with. Remembered ones are dealt out by class."""
        count = len(labels)
        if self.table.start == "memory":
            near = context.nearest(labels, rng) if self._many(count) and self.conditional else None
            if near is not None:
                return near.images
            known = context.remembered(count, rng)
            if known is not None:
                return known.images[partners(labels, known.labels)]
        if self.table.start == "noise":
            noise = torch.randn(count, *self.shape, generator=rng).to(self.device)
            return self.teacher.denormalise(noise).clamp(0, 1)
        return self.drawings.sample(count, rng).images

    def _asked(self, context: SynthesisContext, rng: torch.Generator) -> Tensor:
        """The classes [B] of a batch."""
        count = context.stage.synthesis_batch
        counts = context.counts() if self._many(count) else None
        if counts is None or not self.conditional or self.teacher.independent:
            return even_labels(count, self.classes, rng)
        return rarest_labels(counts, count, rng)

    def _many(self, count: int) -> bool:
        """Whether a batch of `count` images has few of each class."""
        return count < FEW * self.classes

    def _view(
        self, images: Tensor, context: SynthesisContext, rng: torch.Generator, share: float
    ) -> Tensor:
        """The whole batch shifted around the edges, and perhaps mirrored: one draw per step; then a
        crop of each image (`schedules.crop`), enlarged to the whole."""
        reach = [round(self.table.roll * side) for side in images.shape[2:]]
        by = [int(torch.randint(-r, r + 1, (), generator=rng)) for r in reach]
        mirrored = context.augment.flip and float(torch.rand((), generator=rng)) < 0.5
        view = images.roll(by, (2, 3))
        view = view.flip(3) if mirrored else view
        smallest = schedules.crop(share, smallest=self.table.crop)
        return view if smallest >= 1 else cropped(view, smallest, rng)

    def _encode(self, images: Tensor) -> Tensor:
        """The variables of images: as the network sees them, or their spectrum over frequency."""
        if self.table.basis == "pixels":
            return self.teacher.normalise(images.detach())
        mixed = torch.einsum("ji,bjhw->bihw", self.inks, images.detach() - 0.5)
        spectrum = torch.fft.rfft2(mixed, norm="ortho") / self._frequencies(*images.shape[2:])
        return torch.view_as_real(spectrum).clone()

    def _decode(self, moved: Tensor, size: tuple[int, int]) -> Tensor:
        """Images of height and width `size` from their variables."""
        if self.table.basis == "pixels":
            return self.teacher.denormalise(moved)
        spectrum = torch.view_as_complex(moved) * self._frequencies(*size)
        mixed = torch.fft.irfft2(spectrum, s=size, norm="ortho")
        images: Tensor = torch.einsum("ij,bjhw->bihw", self.inks, mixed) + 0.5
        return images

    def state_dict(self) -> dict[str, Any]:
        """What the terms remember."""
        return {"objective": self.objective.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.objective.load_state_dict(state["objective"])


def cut_to_time(fitting: float, count: int, done: int, steps: int) -> tuple[int, int]:
    """How many of `count` images to go on with, and the number of steps in all, where the time that
    is left is `fitting` times that of the steps that are left: fewer images, but not under LEAST,
    and then fewer steps.

    >>> cut_to_time(2.0, 64, 2, 40), cut_to_time(0.5, 64, 2, 40), cut_to_time(0.125, 64, 2, 42)
    ((64, 40), (32, 40), (16, 22))
    """
    fitting = max(0.0, fitting)
    if fitting >= 1:
        return count, steps
    kept = min(count, max(LEAST, int(fitting * count)))
    return kept, done + int((steps - done) * min(1.0, fitting * count / kept))


def partners(labels: Tensor, votes: Tensor) -> Tensor:
    """For each of `labels` [B] the place of an image with that vote among `votes` [B]; every image
    is taken once, and labels without one get what is left over.

    >>> partners(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([2, 0, 1, 0, 0])).tolist()
    [1, 3, 2, 4, 0]
    """
    chosen = torch.full_like(labels, -1)
    free = torch.ones_like(votes, dtype=torch.bool)
    for label in torch.unique(labels):
        wanted, there = (labels == label).nonzero()[:, 0], (votes == label).nonzero()[:, 0]
        count = min(len(wanted), len(there))
        chosen[wanted[:count]] = there[:count]
        free[there[:count]] = False
    chosen[chosen < 0] = free.nonzero()[:, 0]
    return chosen


def colours(channels: int) -> Tensor:
    """What a step of each variable does to the channels, an orthonormal matrix [C, C]: brightness,
    then two differences of colour. Only images of three channels are turned.

    >>> colours(3)[:, 0]
    tensor([0.5774, 0.5774, 0.5774])
    """
    if channels != 3:
        return torch.eye(channels)
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    inks: Tensor = (rows / rows.norm(dim=1, keepdim=True)).T
    return inks


def frequencies(height: int, width: int) -> Tensor:
    """1 / frequency for every place of a real image's spectrum, [H, W // 2 + 1], mean 1.

    The frequency is in cycles per pixel, and no less than that of one cycle per image.

    >>> scale = frequencies(4, 4)
    >>> (scale[0, 0] == scale[0, 1]).item(), (scale[0, 1] / scale[0, 2]).item()
    (True, 2.0)
    """
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    scale: Tensor = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
    return scale / scale.mean()
