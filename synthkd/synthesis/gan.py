"""A conditional generator trained against the frozen teacher (catalogue A1), with a critic (A2)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.augment import augmented
from synthkd.errors import InputError, quoted
from synthkd.images import Batch
from synthkd.losses import TERMS, View, critic_hinge
from synthkd.networks.critic import Critic
from synthkd.networks.decoder import Decoder
from synthkd.recipe import Recipe
from synthkd.states import load_state, save_state
from synthkd.students import load_optimizer
from synthkd.synthesis.scene import Invented, Scene, even_labels
from synthkd.teachers import Teacher


class Gan:
    """Decoder, critic and their optimizers. Initial weights come from torch's global random
    state."""

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        table, critic = recipe.generator, recipe.discriminator
        self.table = table
        self.classes = teacher.classes
        self.shape = teacher.spec.shape
        self.device = next(iter(teacher.classifier.buffers())).device
        self.decoder: Decoder = Decoder(
            latent=table.latent,
            width=table.width,
            classes=teacher.classes,
            shape=teacher.spec.shape,
        ).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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

    def synthesize(self, scene: Scene, rng: torch.Generator) -> Invented:
        """`stage.synthesis_steps` steps on `stage.synthesis_batch` images, then `stage.fresh`
        images."""
        measures: dict[str, float] = {}
        stage = scene.stage
        for _ in range(stage.synthesis_steps):
            measures = self._step(scene, rng)
        batch = self.sample(stage.fresh, rng, bfloat16=scene.bfloat16, frozen=False)
        return Invented(batch, stage.synthesis_steps * stage.synthesis_batch, measures)

    def _noise(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, self.table.latent, generator=rng)
        labels = even_labels(count, self.classes, rng)
        return z.to(self.device), labels.to(self.device)

    def _step(self, scene: Scene, rng: torch.Generator) -> dict[str, float]:
        z, labels = self._noise(scene.stage.synthesis_batch, rng)
        self.decoder.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=scene.bfloat16):
            images = self.decoder(z, labels)
        images = images.float()
        reference = scene.reference(len(images), rng) if scene.terms.get("realism") else None
        weights = {
            t: w for t, w in scene.terms.items() if w and (t != "realism" or reference is not None)
        }
        if not weights:  # nothing to judge by, or not yet
            return {}
        view = self._view(scene, images, labels, reference is not None, rng)
        values = {term: TERMS[term](view) for term in weights}
        loss = sum((weights[t] * value for t, value in values.items()), images.new_zeros(()))
        if not loss.isfinite():
            raise InputError(
                "the generator's loss is no longer finite: lower --generator.learning_rate "
                f"(now {self.table.learning_rate:g})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.table.clip:
            nn.utils.clip_grad_norm_(self.decoder.parameters(), self.table.clip)
        self.optimizer.step()
        measures = {f"term.{t}": float(value.detach()) for t, value in values.items()}
        measures["obeyed"] = float((view.taught.argmax(1) == labels).float().mean())
        if reference is not None:
            measures["critic"] = self._critic_step(images.detach(), labels, reference)
        return measures

    def _view(
        self, scene: Scene, images: Tensor, labels: Tensor, judged: bool, rng: torch.Generator
    ) -> View:
        """Asks the networks what the terms need, and nothing more."""
        terms, teacher = scene.terms, scene.teacher
        seen = teacher.observe(
            images,
            features=any(terms.get(t) for t in ("prototype", "consistency", "activation")),
            statistics=bool(terms.get("statistics")),
        )
        other = None
        if terms.get("consistency") and seen.features is not None:
            part = images[
                : max(2, len(images) // 4)
            ]  # a quarter of the batch: the term costs a teacher pass
            other = teacher.observe(
                augmented(part, scene.augment, 0.3, rng), statistics=False
            ).features
        return View(
            images=images,
            labels=labels,
            taught=seen.logits,
            learned=scene.student(images) if terms.get("disagreement") else None,
            features=seen.features,
            other_features=other,
            prototypes=teacher.prototypes,
            moments=seen.moments,
            stored=teacher.stored if seen.moments else (),
            validity=self._frozen_critic(images, labels) if judged else None,
        )

    def _frozen_critic(self, images: Tensor, labels: Tensor) -> Tensor:
        """The critic's opinion, with gradients to the images only."""
        self.critic.requires_grad_(False)
        validity: Tensor = self.critic(images, labels)
        self.critic.requires_grad_(True)
        return validity

    def _critic_step(self, images: Tensor, labels: Tensor, reference: Batch) -> float:
        loss = critic_hinge(
            self.critic(reference.images, reference.labels), self.critic(images, labels)
        )
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def sample(
        self, count: int, rng: torch.Generator, *, bfloat16: bool = False, frozen: bool = True
    ) -> Batch:
        """`count` images. `frozen` normalises by running statistics, so images do not depend on
        each other."""
        z, labels = self._noise(count, rng)
        if count == 0:
            return Batch(z.new_empty((0, 1, 1, 1)), labels)
        buffers = {k: v.clone() for k, v in self.decoder.named_buffers()} if not frozen else {}
        self.decoder.train(not frozen and count > 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            images = self.decoder(z, labels).float()
        for name, buffer in self.decoder.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        return Batch(images, labels)

    @torch.no_grad()
    def settle(self, rng: torch.Generator, *, batches: int = 20, size: int = 256) -> None:
        """Re-estimates the running statistics as plain means over some batches, before sampling for
        good."""
        norms = [m for m in self.decoder.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.decoder.train()
        for _ in range(batches):
            self.decoder(*self._noise(size, rng))
        for norm in norms:
            norm.momentum = 0.1
        self.decoder.eval()

    def state_dict(self) -> dict[str, Any]:
        """Both networks and both optimizers."""
        return {
            "decoder": self.decoder.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.decoder.load_state_dict(state["decoder"])
        self.critic.load_state_dict(state["critic"])
        load_optimizer(self.optimizer, state["optimizer"])
        load_optimizer(self.critic_optimizer, state["critic_optimizer"])

    def take_over(self, run: str) -> None:
        """Loads the decoder that an earlier run trained."""
        state, about = _read_generator(run)
        if (about["classes"], tuple(about["shape"])) != (self.classes, self.shape):
            raise InputError(
                f"--generator-from {quoted(run)}: it makes {about['classes']} classes "
                f"of {about['shape']} images, "
                f"the teacher wants {self.classes} of {list(self.shape)}"
            )
        self.decoder.load_state_dict(state)


def save_generator(gan: Gan, path: Path) -> None:
    """The decoder as a safetensors file that tells its sizes."""
    about = {
        "latent": gan.table.latent, "width": gan.table.width,
        "classes": gan.classes, "shape": list(gan.shape),
    }  # fmt: skip
    save_state({"about": about, "decoder": gan.decoder.state_dict()}, path, "generator")


def borrow(recipe: Recipe) -> Recipe:
    """The recipe with the sizes of the generator that `--generator-from` names, if it names one."""
    if not recipe.generator.start:
        return recipe
    _, about = _read_generator(recipe.generator.start)
    sizes = {"latent": int(about["latent"]), "width": int(about["width"])}
    return recipe.model_copy(update={"generator": recipe.generator.model_copy(update=sizes)})


def _read_generator(run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(run) / "generator.safetensors"
    if not path.is_file():
        raise InputError(f"--generator-from {quoted(run)}: there is no generator.safetensors in it")
    state = load_state(path, "generator")
    return state["decoder"], state["about"]
