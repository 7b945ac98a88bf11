"""A diffusion generator: trained here, or borrowed; steered by the teacher.

B batch, C channels, H height, W width, K classes.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.core.errors import InputError, quoted
from synthkd.core.images import Batch, ImageSpec, resized, sent
from synthkd.core.logits import applies
from synthkd.core.optimizers import load_optimizer
from synthkd.images.augment import mirrored
from synthkd.networks.unet import new_unet, working_size
from synthkd.recipe import Recipe, Sources, Stage
from synthkd.schedules import FLOOR
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch, even_labels
from synthkd.synthesis.diffusion.diffusers_io import (
    describe,
    is_diffusers_folder,
    open_folder,
    save_folder,
    sides,
)
from synthkd.synthesis.diffusion.maths import (
    STEPS,
    add_noise,
    classifier_free,
    drawn_steps,
    lowest_step,
    min_snr,
    target,
)
from synthkd.synthesis.diffusion.sampling import SOLVERS, Denoiser, Guide, able_solvers, sampled
from synthkd.synthesis.objective import SynthesisObjective, weights
from synthkd.synthesis.protocol import Abilities, Generator
from synthkd.teachers.protocol import Teacher

ATTEMPTS = 4  # draws, the first among them, until the teacher accepts an image
TRIED = 16  # images by which solvers are compared
MAX_SNR = 5.0  # the largest weight of a training step, as a signal-to-noise ratio
OPENED_AFTER = 0.5  # the share of a stage after which the linear curriculum has opened all steps
# The scheduler that is trained with: ᾱ falls along a cosine, the network predicts v, and the last
# step keeps nothing of the signal (Lin et al. 2023, https://arxiv.org/abs/2305.08891).
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": True,
}


class Trained:
    """The denoiser that is trained here, as the sampler sees it: its running average.

    Images are brought to the height and width of `size` and to −1..1, and back. One label more than
    there are classes stands for none; `scale` is that of `maths.classifier_free`.
    """

    def __init__(
        self, unet: Any, spec: ImageSpec, schedule: Mapping[str, Any], scale: float
    ) -> None:
        self.unet, self.spec, self.scale = unet, spec, scale
        self.schedule = schedule
        self.size = sides(unet.config)
        self.classes = int(unet.config.num_class_embeds) - 1
        self.shape = (int(unet.config.in_channels), *self.size)
        self.prediction_type = str(schedule["prediction_type"])
        self.bfloat16 = False

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.unet.parameters()).device  # type: ignore[no-any-return]

    def __call__(self, noisy: Tensor, step: int, labels: Tensor | None) -> Tensor:
        """The prediction [B, C, H, W]; label −1 is no class, None that no image has one."""

        def ask(noisy: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.bfloat16):
                return self.unet(noisy, step, labels).sample.float()  # type: ignore[no-any-return]

        return classifier_free(ask, noisy, labels, self.classes, self.scale)

    def encoded(self, images: Tensor) -> Tensor:
        """Images [B, C, H', W'] in 0..1 as the denoiser has them."""
        return 2 * resized(images, self.size) - 1

    def decoded(self, x0: Tensor) -> Tensor:
        """Images for the teacher, in 0..1 where the denoiser keeps to its range."""
        return resized(x0 / 2 + 0.5, (self.spec.height, self.spec.width))


class Diffusion(Generator):
    """A denoiser learns what images look like; sampling it, guided by the teacher, gives new ones.

    It learns from real images where they are allowed. Where they are not, it learns from what other
    generators left in the memory: then it can vary and mix what they found, not find anything they
    missed. A borrowed one (`generator.start`) learns nothing.

    One training step: x_t = √a x₀ + √(1 − a) ε at a step drawn from those that the curriculum has
    opened, the class (the teacher's vote) hidden from a share `diffusion.label_dropout` of the
    batch, the squared error of the prediction weighted by `maths.min_snr`.
    """

    abilities = Abilities(trains=True, exports=True, reads=("diffusion", "generator"))

    @classmethod
    def prepare(cls) -> None:
        """Imports the part of urllib3 that tries to bind ::1 when it is imported, as diffusers does
        sooner or later: recorded, that would be taken for the run's own way into a network."""
        with suppress(ImportError):
            importlib.import_module("urllib3.util.connection")

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        from diffusers.training_utils import EMAModel

        table = recipe.diffusion
        self.recipe, self.table, self.teacher = recipe, table, teacher
        spec, self.classes = teacher.spec, teacher.classes
        self.device = teacher.device
        self.objective = SynthesisObjective(recipe, teacher, rate="diffusion.teacher_guidance")
        self.guidance = table.teacher_guidance if teacher.access == "full" else 0.0
        self.solver: str = "" if table.solver == "auto" else table.solver
        self.borrowed = self.loads(recipe.generator.start)
        self.least_confidence = table.confidence
        self.denoiser: Denoiser
        if self.borrowed:
            self.denoiser = open_folder(
                Path(recipe.generator.start),
                teacher,
                scale=table.guidance_scale,
                prompt=table.prompt,
            )
            self.solvers = self._able_solvers()
            return
        size = table.size or working_size(spec.height, spec.width)
        self.unet = new_unet(spec.channels, self.classes, size=size, width=table.width)
        self.unet.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=table.learning_rate, betas=(0.9, 0.99)
        )
        self.average = EMAModel(
            self.unet.parameters(), decay=table.ema, use_ema_warmup=True, power=0.75
        )
        smooth = new_unet(spec.channels, self.classes, size=size, width=table.width)
        smooth.to(self.device).requires_grad_(False).eval()
        self.denoiser = Trained(smooth, spec, SCHEDULE, table.guidance_scale)
        self.alpha_bar: Tensor = scheduler_of(SCHEDULE).alphas_cumprod  # [T]
        self.solvers = self._able_solvers()
        self._sync_ema()

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """`stage.synthesis_steps` training steps on `stage.synthesis_batch` images each, then
        `stage.fresh` new images. Where there was never anything to learn from: an InputError."""
        stage, trained = context.stage, 0
        measures: dict[str, float] = {}
        losses: list[Tensor] = []
        if not self.borrowed:
            for step in range(stage.synthesis_steps):
                context.tick(step, stage.synthesis_steps)
                if trained and time.perf_counter() > context.deadline:
                    break
                material = context.material(stage.synthesis_batch, rng)
                if material is None:
                    raise InputError(
                        f"stage {stage.name}: the diffusion model has nothing to learn from: allow "
                        "real images (--real-data), or let stages before it fill the memory with "
                        f"four times its synthesis_batch of {stage.synthesis_batch} images (as "
                        "far as --memory.capacity lets them)"
                    )
                losses.append(self._step(context, material, rng))
                trained += stage.synthesis_batch
        if losses:
            if not torch.stack(losses).isfinite().all():  # asked once a round: a GPU is waited for
                raise InputError(
                    "the denoiser's loss is no longer finite: lower --diffusion.learning_rate "
                    f"(now {self.table.learning_rate:g})"
                )
            measures["denoising"] = float(losses[-1])
            self._sync_ema()
            measures["open"] = 1 - lowest_step(self._open(context)) / STEPS
        batch, drawn, accepted = self._offer(context, rng)
        if drawn:
            measures["accepted"] = accepted / drawn
        return SyntheticBatch(batch, trained + drawn, measures)

    # Training

    def _step(self, context: SynthesisContext, material: Batch, rng: torch.Generator) -> Tensor:
        assert isinstance(self.denoiser, Trained)
        images, labels = material
        if context.augment.flip:
            images = mirrored(images, rng)
        x0 = self.denoiser.encoded(images)
        noise = sent(torch.randn(x0.shape, generator=rng), self.device)
        steps = drawn_steps(len(x0), self._open(context), rng)
        hidden = torch.rand(len(x0), generator=rng) < self.table.label_dropout
        labels = torch.where(sent(hidden, self.device), self.classes, sent(labels, self.device))
        alpha_bar, steps = (sent(t, self.device) for t in (self.alpha_bar[steps], steps))
        prediction_type = self.denoiser.prediction_type
        wanted = target(x0, noise, alpha_bar, prediction_type)
        self.unet.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=context.bfloat16):
            found = self.unet(add_noise(x0, noise, alpha_bar), steps, labels).sample
        error = (found.float() - wanted).square().flatten(1).mean(1)
        loss: Tensor = (min_snr(alpha_bar, MAX_SNR, prediction_type) * error).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.average.step(self.unet.parameters())
        return loss.detach()

    def _open(self, context: SynthesisContext) -> float:
        """How much of the curriculum is open: by the share of the stage that is over, or by the
        run's difficulty where it has room to move, or all."""
        if self.table.curriculum == "linear":
            return min(1.0, context.stage_share / OPENED_AFTER)
        if self.table.curriculum == "difficulty":
            reach = self.recipe.difficulty.ceiling - FLOOR
            return (context.difficulty - FLOOR) / reach if reach > 0 else 1.0
        return 1.0

    def _sync_ema(self) -> None:
        """The sampler's network takes over the average."""
        assert isinstance(self.denoiser, Trained)
        self.average.copy_to(self.denoiser.unet.parameters())

    # Sampling

    def _offer(self, context: SynthesisContext, rng: torch.Generator) -> tuple[Batch, int, int]:
        """`stage.fresh` images; those that the teacher does not accept are drawn again, so that
        each is drawn ATTEMPTS times at most. Returns them, how many were drawn and how many
        accepted."""
        wanted = even_labels(context.stage.fresh, self.classes, rng)
        parts: list[Batch] = []
        drawn = 0
        for _ in range(ATTEMPTS):
            if not len(wanted) or (drawn and time.perf_counter() > context.deadline):
                break
            images, asked = self.sample(wanted, context, rng)
            drawn += len(images)
            good = self._accepted(images, asked)
            parts.append(Batch(images[good], asked[good]))
            wanted = torch.cat([wanted[: len(good)][~good.cpu()], wanted[len(good) :]])
        if not parts:
            parts = [Batch(torch.empty(0, *self.teacher.spec.shape, device=self.device), wanted)]
        batch = Batch(*(torch.cat([part[i] for part in parts]) for i in (0, 1)))
        return batch, drawn, len(batch.images)

    @torch.no_grad()
    def _accepted(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whether the teacher sees the class that was asked for and is sure of it, or of any where
        none was; where all are taken it is not asked."""
        if self.table.accept == "all":
            return torch.ones(len(images), dtype=torch.bool, device=images.device)
        logits = self.teacher(images)
        unasked = labels < 0
        labels = torch.where(unasked, logits.argmax(1), labels)
        seen = unasked | applies(logits, labels, independent=self.teacher.independent)
        sure = self.teacher.probabilities(logits).gather(1, labels[:, None])[:, 0]
        return seen & (sure >= self.table.confidence)

    def sample(self, labels: Tensor, context: SynthesisContext, rng: torch.Generator) -> Batch:
        """An image for every label [B], or fewer where time runs out; those of a denoiser that
        knows no classes, without a guide, come with label −1."""
        self.denoiser.bfloat16 = context.bfloat16
        seeds = torch.randint(2**62, (len(labels),), generator=rng).tolist()
        if not self.solver:
            self.solver = self._best_solver(context, rng)
        guide = self._guide(context, rng)
        asked = labels if guide or self._knows_classes else torch.full_like(labels, -1)
        images = self._sampled(seeds, asked, guide, self.solver, context.deadline, context.tick)
        self.objective.close()
        self.objective.check()
        return Batch(images, asked[: len(images)].to(self.device))

    def _sampled(
        self, seeds: list[int], labels: Tensor, guide: Guide | None, solver: str,
        until: float = float("inf"), tick: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        table = self.table
        return sampled(
            self.denoiser, seeds, labels, name=solver, steps=table.steps, guide=guide,
            batch=table.batch, until=until, tick=tick,
        )  # fmt: skip

    @property
    def _knows_classes(self) -> bool:
        """Whether the denoiser can be asked for the teacher's classes."""
        return self.denoiser.classes == self.classes

    def _guide(self, context: SynthesisContext, rng: torch.Generator) -> Guide | None:
        """What pulls samples towards the stage's terms; without any, towards the class."""
        if not self.guidance:
            return None
        terms = weights(context.terms, judged=False) or {"one_hot": 1.0}
        context = replace(context, terms=terms)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return len(images) * self.objective(context, images, labels, rng).loss

        return Guide(loss, self.guidance)

    def _able_solvers(self) -> tuple[str, ...]:
        """The solvers, of those that are allowed, that can run the denoiser's schedule."""
        steps = self.table.steps
        allowed = (self.solver,) if self.solver else SOLVERS
        able, said = able_solvers(allowed, self.denoiser.schedule, steps)
        if not able:
            raise InputError(
                f"--generator-from {quoted(self.recipe.generator.start)}: {', '.join(allowed)} "
                f"cannot run its scheduler in {steps} steps: {quoted(said)}"
            )
        return able

    def _best_solver(self, context: SynthesisContext, rng: torch.Generator) -> str:
        """Of the solvers, the one whose images the teacher agrees with most, at this number of
        steps; without classes, is surest of. After the deadline none is tried any more."""
        labels = even_labels(TRIED, self.classes, rng)
        asked = labels if self._knows_classes else torch.full_like(labels, -1)
        seeds = torch.randint(2**62, (TRIED,), generator=rng).tolist()
        found: dict[str, float] = {}
        for name in self.solvers:
            if found and time.perf_counter() > context.deadline:
                break
            images = self._sampled(seeds, asked, None, name, context.deadline, context.tick)
            shares = self.teacher.probabilities(self.teacher(images)).cpu()
            of = shares.amax(1)
            if self._knows_classes:
                of = shares.gather(1, asked[: len(shares), None])[:, 0]
            found[name] = float(of.mean())
        return max(found, key=lambda name: found[name])

    # State

    @classmethod
    def loads(cls, source: str) -> bool:
        """Whether it is a folder of diffusers."""
        return is_diffusers_folder(source)

    @classmethod
    def guided(cls, recipe: Recipe) -> bool:
        """Whether the teacher guides its samples."""
        return recipe.diffusion.teacher_guidance > 0

    @classmethod
    def remarks(cls, recipe: Recipe, stage: Stage, teacher: Teacher, sources: Sources) -> list[str]:
        """What it learns from; refuses a curriculum that would never open."""
        moves = recipe.difficulty.enabled and stage.student_steps
        if recipe.diffusion.curriculum == "difficulty" and stage.synthesis_steps and not moves:
            raise InputError(
                f"stage {stage.name}: the difficulty moves only while a student learns (and with "
                "--difficulty.enabled true): use --diffusion.curriculum linear"
            )
        if cls.loads(recipe.generator.start):
            return describe(recipe.generator.start, teacher.classes)
        if recipe.data.real and sources.real:
            return ["the diffusion model learns from the real images that are allowed"]
        return [
            "the diffusion model learns from the memory: it varies and mixes what others found, "
            "it cannot find what they missed"
        ]

    def load(self, source: str) -> None:
        """Nothing: a borrowed model is opened when it is made."""

    def save(self, run: Path, level: int) -> None:
        """A model that was trained here, as the folder `diffusion`."""
        if not self.borrowed:
            self.export(run / "diffusion", level)

    def export(self, folder: Path, level: int) -> None:
        """Writes the averaged denoiser as a folder that diffusers alone can sample; `level` is the
        promise level of what it learned from."""
        assert isinstance(self.denoiser, Trained)
        known = {
            "teacher_sha256": self.teacher.digest,
            "classes": list(self.teacher.names),
            "promise_level": level,
        }
        save_folder(self.denoiser.unet, self.denoiser.schedule, folder, known)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, average, and what the objective remembers."""
        state: dict[str, Any] = {"objective": self.objective.state_dict(), "solver": self.solver}
        if not self.borrowed:
            state |= {
                "unet": self.unet.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.objective.load_state_dict(state["objective"])
        self.solver = state["solver"]
        if not self.borrowed:
            self.unet.load_state_dict(state["unet"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.average.load_state_dict(state["average"])
            self.average.to(self.device)
            self._sync_ema()


def scheduler_of(schedule: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers, for its table of ᾱ."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**schedule)
