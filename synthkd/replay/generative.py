"""A memory without images: an autoencoder that learns to make them again (PRE-DFKD).

N images, B batch, C channels, H height, W width, K classes, Z latent.
"""

from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.core.errors import InputError
from synthkd.core.images import to_float, to_uint8
from synthkd.core.logits import margin_of
from synthkd.core.optimizers import load_optimizer
from synthkd.core.seeds import generator_for, globally
from synthkd.networks.decoder import Decoder
from synthkd.replay.protocol import ReplayBatch
from synthkd.teachers.protocol import Teacher

LATENT, WIDTH = 128, 32
BATCH = 128  # newcomers of a step
KL_WEIGHT = 1e-5
Label = Callable[[Tensor], Tensor]  # uint8 images [N, C, H, W] to the teacher's logits [N, K]


def encoder(shape: tuple[int, int, int]) -> nn.Sequential:
    """Images [B, C, H, W] to [B, 2Z]: mean and logarithm of the variance of their z."""
    widths = (shape[0], WIDTH, 2 * WIDTH, 2 * WIDTH)
    halvings = [
        (nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2))
        for a, b in pairwise(widths)
    ]
    size = -(-shape[1] // 8) * -(-shape[2] // 8)
    last = nn.Linear(2 * WIDTH * size, 2 * LATENT)
    return nn.Sequential(*chain(*halvings), nn.Flatten(), last)


def kl_to_prior(mean: Tensor, spread: Tensor) -> Tensor:
    """KL( N(μ, σ²) ‖ N(0, 1) ) in nats, summed over Z, averaged over B.

    `mean` is μ [B, Z], `spread` is log σ² [B, Z].

    >>> kl_to_prior(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)).item()
    2.0
    """
    return (mean.square() + spread.exp() - 1 - spread).sum(1).mean() / 2


class GenerativeReplay:
    """What `Memory` does, by a variational autoencoder: no image is kept.

    Everything added is learned once, together with a quarter as many of its own images, so that it
    does not forget what it learned before. With x̂ the decoded x and t the teacher's logits it
    minimises

        mean |x̂ − x| + mean |t(x̂) − t(x)| + 1e-5 · KL( q(z|x) ‖ N(0, 1) )

    Binici et al. 2022, https://arxiv.org/abs/2201.03019; loss, weights, share and rate are those of
    their code. Smaller here: the latent (1000 there) and the width (half). Left out: a step on z
    towards sure and even answers before images are decoded.
    """

    def __init__(self, capacity: int, teacher: Teacher, label: Label, *, seed: int) -> None:
        self.capacity, self.teacher, self.label, self.seed = capacity, teacher, label, seed
        self.device = teacher.device
        shape = teacher.spec.shape
        with globally(generator_for(seed, "rehearsal")):
            decoder = Decoder(latent=LATENT, width=WIDTH, classes=0, shape=shape)
            self.parts = nn.ModuleDict({"encoder": encoder(shape), "decoder": decoder})
        self.parts.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.parts.parameters(), lr=5e-4)
        self.counted = torch.zeros(teacher.classes, dtype=torch.int64)
        self.steps = 0

    def __len__(self) -> int:
        return min(self.capacity, sum(self.counts))

    @property
    def counts(self) -> list[int]:
        """Images per class that the teacher saw in all that was added, [K]."""
        return self.counted.tolist()

    def add(self, images: Tensor, labels: Tensor, logits: Tensor, origin: str) -> None:
        """Learns uint8 images [N, C, H, W] by the teacher's logits [N, K]; labels and origin are
        not kept. A single image teaches nothing."""
        if self.capacity == 0 or len(images) < 2:
            return
        count = -(-len(images) // BATCH)
        losses = [
            self._step(part.cpu(), taught.cpu().float())
            for part, taught in zip(images.chunk(count), logits.chunk(count), strict=True)
        ]
        if not torch.stack(losses).isfinite().all():  # asked once: a GPU is waited for
            raise InputError("the autoencoder's loss is no longer finite: use --memory.form images")
        self.counted += torch.bincount(logits.argmax(1).cpu(), minlength=len(self.counted))

    def _step(self, pixels: Tensor, taught: Tensor) -> Tensor:
        """Learns a part of what is added; returns the loss."""
        rng = generator_for(self.seed, "rehearsal", self.steps)
        if len(self):
            own = self._decoded(-(-len(pixels) // 4), rng)
            pixels, taught = torch.cat([pixels, own]), torch.cat([taught, self.label(own)])
        images = to_float(pixels.to(self.device))
        self.parts.train()
        with self._precision():
            mean, spread = self.parts["encoder"](images * 2 - 1).float().chunk(2, dim=1)
            noise = torch.randn(mean.shape, generator=rng).to(self.device)
            made = self.parts["decoder"](mean + noise * (spread / 2).exp(), taught).float()
        gap = F.l1_loss(made, images) + F.l1_loss(self.teacher(made), taught.to(self.device))
        loss = gap + KL_WEIGHT * kl_to_prior(mean, spread)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.teacher.low_precision)

    @torch.no_grad()
    def _decoded(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` images of its own, uint8 on the CPU."""
        z = torch.randn(count, LATENT, generator=rng).to(self.device)
        self.parts.eval()
        with self._precision():
            return to_uint8(self.parts["decoder"](z, z)).cpu()

    def draw(
        self,
        count: int,
        rng: torch.Generator,
        *,
        boundary: float = 0.0,
        shares: Mapping[str, float] = MappingProxyType({}),
        easiest: float = 1.0,
    ) -> ReplayBatch:
        """`count` images. A share `boundary` of them is the half of twice as many in which the
        teacher is less sure. `shares` means nothing here: what was learned has no origin; and a
        recipe that wants the easiest is refused. The teacher is asked about them only when its
        answers are looked at."""
        near = round(boundary * count)
        images = self._decoded(count + near, rng)
        if near:
            taught = self.label(images[count - near :])
            sure = margin_of(taught, independent=self.teacher.independent)
            order = sure.argsort(stable=True)[:near]
            images = torch.cat([images[: count - near], images[count - near :][order]])
        return self._batch(images)

    def everything(self) -> ReplayBatch:
        """Nothing: no image is stored."""
        return self._batch(torch.empty(0, *self.teacher.spec.shape, dtype=torch.uint8))

    def _batch(self, images: Tensor) -> ReplayBatch:
        none = torch.full((len(images),), -1)
        origins = ("replay",) * len(images)
        return ReplayBatch(images, none, none, origins, torch.ones(len(images)), self.label)

    def update(self, slots: Tensor, priorities: Tensor) -> None:
        """Does nothing: no image is stored, so none comes again."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if nothing had happened."""
        return {
            "parts": self.parts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counted": self.counted,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.parts.load_state_dict(state["parts"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.counted.copy_(state["counted"])
        self.steps = int(state["steps"])
