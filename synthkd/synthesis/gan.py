"""A generator trained against the frozen teacher, with a critic."""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthkd.core.errors import InputError, quoted
from synthkd.core.images import Batch
from synthkd.core.optimizers import average_, load_optimizer
from synthkd.core.states import load_state, save_state
from synthkd.losses.synthesis import critic_hinge
from synthkd.networks.critic import Critic
from synthkd.networks.decoder import Decoder
from synthkd.recipe import Recipe
from synthkd.synthesis import decoding
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch
from synthkd.synthesis.diffusion.diffusers_io import is_diffusers_folder
from synthkd.synthesis.objective import SynthesisLoss, SynthesisObjective, weights
from synthkd.synthesis.protocol import Abilities, Generator
from synthkd.teachers.protocol import Teacher


class Step(NamedTuple):
    """One step of the generator."""

    batch: Batch  # the images that were judged, detached
    judged: SynthesisLoss
    critic: Tensor | None  # its loss, where it took a step

    def measures(self) -> dict[str, float]:
        """Plain numbers for the record."""
        critic = {} if self.critic is None else {"critic": float(self.critic)}
        return self.judged.measures(self.batch.labels) | critic


class Gan(Generator):
    """Decoder, critic and their optimizers. Initial weights come from torch's global random
    state.

    With `generator.ema` an averaged decoder, average ← ema · average + (1 − ema) · decoder after
    every step, paints half of the fresh images (MAD, Do et al. 2022,
    https://arxiv.org/abs/2209.10359). It normalises by the batch, like the decoder.
    """

    abilities = Abilities(
        trains=True, needs_gradients=True, uses_terms=True,
        serves=frozenset({"critic", "projection"}), reads=("discriminator", "generator"),
    )  # fmt: skip

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        table, critic = recipe.generator, recipe.discriminator
        self.table, self.final = table, False
        self.classes = teacher.classes
        self.shape = teacher.spec.shape
        self.device = teacher.device
        self.decoder: Decoder = decoding.new_decoder(recipe, teacher, conditional=table.conditional)
        self.average = copy.deepcopy(self.decoder).requires_grad_(False) if table.ema else None
        self.critic: Critic = Critic(
            channels=teacher.spec.channels, classes=teacher.classes,
            width=critic.width, normed=critic.spectral_norm,
        ).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # fmt: skip
        self.optimizer = torch.optim.Adam(
            self.decoder.parameters(), lr=table.learning_rate, betas=(table.beta1, 0.999)
        )
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=critic.learning_rate, betas=(0.0, 0.9)
        )
        self.objective = SynthesisObjective(recipe, teacher)

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """`stage.synthesis_steps` steps on `stage.synthesis_batch` images each, then what
        `stage.offer` says: `stage.fresh` new images, or those of the last step or of the step with
        the smallest loss, where a step was taken."""
        stage, steps = context.stage, 0
        step: Step | None = None
        kept: Batch | None = None
        losses: list[Tensor] = []
        best = torch.full((), torch.inf, device=self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = decoding.rate(self.table, context.share)
        for _ in range(stage.synthesis_steps):
            if steps and time.perf_counter() > context.deadline:
                break
            context.tick(steps, stage.synthesis_steps)
            taken = self._step(context, rng)
            if taken is None:
                break
            steps, step, loss = steps + 1, taken, taken.judged.loss.detach()
            losses += [loss, loss if taken.critic is None else taken.critic]
            if kept is None or stage.offer == "last":
                kept = taken.batch
            elif stage.offer == "best":
                images, labels = taken.batch
                better = loss < best
                kept = Batch(
                    torch.where(better, images, kept.images),
                    torch.where(better, labels, kept.labels),
                )
            best = torch.minimum(best, loss)
        self._check(losses)
        if stage.offer == "new" or kept is None:
            batch = self._fresh(stage.fresh, rng, context.bfloat16)
        else:
            batch = kept
        measures = step.measures() if step else {}
        return SyntheticBatch(batch, steps * stage.synthesis_batch, measures)

    def _step(self, context: SynthesisContext, rng: torch.Generator) -> Step | None:
        """Judges a batch and moves the decoder; None where there is nothing to judge by, or not
        yet."""
        z, drawn = decoding.inputs(self.decoder, context.stage.synthesis_batch, self.classes, rng)
        labels = self._asked(drawn)
        reference = context.reference(len(drawn), rng) if context.terms.get("realism") else None
        if not weights(context.terms, judged=reference is not None):
            return None
        self.decoder.train()
        images = decoding.painted(self.decoder, z, drawn, bfloat16=context.bfloat16)
        validity = self._frozen_critic(images, labels) if reference is not None else None
        verdict = self.objective(context, images, labels, rng, validity)
        self.optimizer.zero_grad(set_to_none=True)
        verdict.loss.backward()  # type: ignore[no-untyped-call]
        if self.table.clip:
            nn.utils.clip_grad_norm_(self.decoder.parameters(), self.table.clip)
        self.optimizer.step()
        self.objective.close()
        self._average()
        seen = Batch(images.detach(), labels)
        critic = self._critic_step(seen, reference) if reference is not None else None
        return Step(seen, verdict, critic)

    def _check(self, losses: list[Tensor]) -> None:
        """Refuses to go on if a loss was not finite: those of the generator and the critic, step by
        step in turn, of which the first to blame is named. Waits for the device once."""
        finite = torch.stack(losses).isfinite().tolist() if losses else []
        if False in finite and finite.index(False) % 2:
            raise InputError(
                "the critic's loss is no longer finite: lower --discriminator.learning_rate (now "
                f"{self.critic_optimizer.param_groups[0]['lr']:g})"
            )
        self.objective.check()

    def _asked(self, labels: Tensor) -> Tensor:
        """The classes asked for: none (−1) of an unconditional generator."""
        return labels if self.table.conditional else torch.full_like(labels, -1)

    @torch.no_grad()
    def _average(self) -> None:
        if self.average is None:
            return
        average_(self.average.state_dict(), self.decoder.state_dict(), 1 - self.table.ema)

    def _frozen_critic(self, images: Tensor, labels: Tensor) -> Tensor:
        """The critic's opinion, with gradients to the images only."""
        self.critic.requires_grad_(False)
        validity: Tensor = self.critic(images, labels.clamp_min(0))
        self.critic.requires_grad_(True)
        return validity

    def _critic_step(self, made: Batch, reference: Batch) -> Tensor:
        """The critic sees classes where they are asked for; else all count as the first."""
        classes = self._asked(reference.labels)
        loss = critic_hinge(
            self.critic(reference.images, classes.clamp_min(0)),
            self.critic(made.images, made.labels.clamp_min(0)),
        )
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimizer.step()
        return loss.detach()

    def _fresh(self, count: int, rng: torch.Generator, bfloat16: bool) -> Batch:
        """New images; half of them from the average, where there is one, in random order. Of a
        final decoder its own alone."""
        if self.final:
            return self.sample(count, rng)
        if self.average is None or count < 2:
            return self.sample(count, rng, bfloat16=bfloat16, frozen=False)
        parts = [
            decoding.sampled(decoder, n, self.classes, rng, bfloat16=bfloat16, frozen=False)
            for decoder, n in ((self.decoder, count - count // 2), (self.average, count // 2))
        ]
        order = torch.randperm(count, generator=rng).to(self.device)
        images, labels = (torch.cat([part[i] for part in parts])[order] for i in (0, 1))
        return Batch(images, self._asked(labels))

    def sample(
        self, count: int, rng: torch.Generator, *, bfloat16: bool = False, frozen: bool = True
    ) -> Batch:
        """`count` images of the decoder. `frozen` normalises by running statistics, so images do
        not depend on each other."""
        images, labels = decoding.sampled(
            self.decoder, count, self.classes, rng, bfloat16=bfloat16, frozen=frozen
        )
        return Batch(images, self._asked(labels))

    def finalise(self, rng: torch.Generator) -> None:
        """Re-estimates the running statistics as plain means over some batches; from now on images
        are normalised by them and do not depend on each other."""
        decoding.recalibrate_batchnorm(self.decoder, self.classes, rng, batches=20, size=256)
        self.final = True

    def save(self, run: Path, level: int) -> None:
        """The decoder as generator.safetensors."""
        save_decoder(self, run / "generator.safetensors")

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, and what the objective remembers."""
        return {
            "decoder": self.decoder.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "final": self.final,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.decoder.load_state_dict(state["decoder"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.critic.load_state_dict(state["critic"])
        load_optimizer(self.optimizer, state["optimizer"])
        load_optimizer(self.critic_optimizer, state["critic_optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.final = bool(state["final"])

    @classmethod
    def loads(cls, source: str) -> bool:
        """Whether it is a run, and not a folder of diffusers."""
        return bool(source) and not is_diffusers_folder(source)

    def load(self, source: str) -> None:
        """Loads the decoder that an earlier run trained."""
        state, about = _read_generator(source)
        if (about["classes"], tuple(about["shape"])) != (self.classes, self.shape):
            raise InputError(
                f"--generator-from {quoted(source)}: it makes {about['classes']} classes "
                f"of {about['shape']} images, "
                f"the teacher takes {self.classes} of {list(self.shape)}"
            )
        self.decoder.load_state_dict(state)
        if self.average:
            self.average.load_state_dict(state)


FORM = ("latent", "width", "conditional", "source", "output")  # what a decoder's weights depend on


def save_decoder(gan: Gan, path: Path) -> None:
    """The decoder as a safetensors file that tells its form."""
    about = {"classes": gan.classes, "shape": list(gan.shape)}
    about |= {key: getattr(gan.table, key) for key in FORM}
    save_state({"about": about, "decoder": gan.decoder.state_dict()}, path, "generator")


def borrow(recipe: Recipe) -> Recipe:
    """The recipe with the form of the generator that `--generator-from` names, if it names one."""
    if not recipe.generator.start or is_diffusers_folder(recipe.generator.start):
        return recipe
    _, about = _read_generator(recipe.generator.start)
    form = {key: about[key] for key in FORM if key in about}
    return recipe.model_copy(update={"generator": recipe.generator.model_copy(update=form)})


def _read_generator(run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(run) / "generator.safetensors"
    if not path.is_file():
        raise InputError(
            f"--generator-from {quoted(run)}: there is no generator.safetensors in it, "
            "and no model_index.json"
        )
    state = load_state(path, "generator")
    return state["decoder"], state["about"]
