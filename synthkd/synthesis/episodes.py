"""A decoder that is optimised for one batch at a time, as in Fast, NAYER and CMI."""

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from synthkd.core.images import Batch
from synthkd.core.optimizers import load_optimizer
from synthkd.core.seeds import globally
from synthkd.images.augment import augmented
from synthkd.networks.decoder import Decoder
from synthkd.recipe import Recipe
from synthkd.synthesis import decoding
from synthkd.synthesis.context import SynthesisContext, SyntheticBatch
from synthkd.synthesis.objective import SynthesisObjective, weights
from synthkd.synthesis.protocol import Abilities, Generator
from synthkd.teachers.protocol import Teacher

REPTILE = 67.0  # the factor in the public code of Fast, which gives no reason for it


class Episodes(Generator):
    """One `synthesize` is one episode: noise and classes are drawn, and Adam, new each time, moves
    weights (and, with `generator.latent_rate`, the noise) for `stage.synthesis_steps` steps.

    The decoder is not told the class: an image comes to its class by these steps, as in CMI and
    Fast, or is drawn from the class's own vector (`generator.source` "noisy_layer", NAYER).

    `generator.meta` says what becomes of θ, the weights that an episode starts from, k steps later
    (θ'):

    - "none": θ ← θ', the episodes go on from each other (CMI, Fang et al. 2021,
      https://arxiv.org/abs/2105.08584; NAYER, Tran et al. 2024, https://arxiv.org/abs/2310.00258).
    - "maml": a step of Adam on the sum of the gradients of the k steps, each taken where it was
      taken; the first-order form of MAML. Fast, Fang et al. 2022:
      https://arxiv.org/abs/2112.06253.
    - "reptile": a step of Adam on 67 (θ − θ'); since Adam divides by the gradient's size, the
      factor matters only against its ε = 1e-8.

    The meta optimizer is an Adam of its own that lives on, with k times the learning rate. After
    every `generator.restart` episodes θ and this optimizer are new; the noisy layer's class vectors
    stay. Fast's single renewal of its first layer after 120 episodes is left out.

    Steps normalise by the batch, and so do new samples; the running statistics are carried over
    from each episode's end, whatever becomes of θ.

    Terms are weighed on a view, shifted and mirrored as `augment` says for difficulty 0 (the public
    code crops and mirrors as well); the images on offer are the whole ones.
    """

    abilities = Abilities(
        needs_gradients=True,
        uses_terms=True,
        serves=frozenset({"projection"}),
        needs_steps=True,
        reads=("generator",),
    )

    def __init__(self, recipe: Recipe, teacher: Teacher) -> None:
        self.recipe, self.teacher, self.table = recipe, teacher, recipe.generator
        self.objective = SynthesisObjective(recipe, teacher)
        self.decoder = decoding.new_decoder(recipe, teacher, conditional=False)
        self.meta = self._new_meta()
        self.episodes = 0

    def synthesize(self, context: SynthesisContext, rng: torch.Generator) -> SyntheticBatch:
        """An episode, then the images of its best step, its last step, or `stage.fresh` new ones
        from where it ended, as `stage.offer` says."""
        stage, table = context.stage, self.table
        if table.restart and self.episodes and self.episodes % table.restart == 0:
            self._restart(rng)
        count, steps = stage.synthesis_batch, 0
        z, drawn = decoding.inputs(self.decoder, count, self.teacher.classes, rng)
        labels = drawn if table.conditional else torch.full_like(drawn, -1)
        worker = self.decoder if table.meta == "none" else copy.deepcopy(self.decoder)
        rate = decoding.rate(table, context.share)
        groups: list[dict[str, Any]] = [{"params": list(worker.parameters()), "lr": rate}]
        if table.latent_rate:
            groups.append({"params": [z.requires_grad_()], "lr": table.latent_rate})
        optimizer = torch.optim.Adam(groups, betas=(table.beta1, 0.999))
        self.meta.zero_grad(set_to_none=True)
        worker.train()
        best, offered, verdict = torch.full((), torch.inf, device=z.device), None, None
        for _ in range(stage.synthesis_steps if weights(context.terms, judged=False) else 0):
            if steps and time.perf_counter() > context.deadline:
                break
            context.tick(steps, stage.synthesis_steps)
            images = decoding.painted(worker, z, drawn, bfloat16=context.bfloat16)
            view = augmented(images, context.augment, 0.0, rng)
            verdict = self.objective(context, view, labels, rng)
            if stage.offer != "new":
                loss, chosen = verdict.loss.detach(), images.detach()
                if stage.offer == "best" and offered is not None:
                    chosen = torch.where(loss < best, chosen, offered)
                best, offered = torch.minimum(best, loss), chosen
            optimizer.zero_grad(set_to_none=True)
            verdict.loss.backward()  # type: ignore[no-untyped-call]
            if table.clip:
                nn.utils.clip_grad_norm_(worker.parameters(), table.clip)
            if table.meta == "maml":
                _add_gradients(self.decoder, worker)
            optimizer.step()
            steps += 1
        self.objective.close()
        self.objective.check()
        measures = verdict.measures(labels) if verdict else {}
        self.episodes += 1
        if steps and worker is not self.decoder:
            self._learn(worker, rate * steps)
        if stage.offer == "new" or offered is None:
            images, drawn = decoding.sampled(
                worker, stage.fresh, self.teacher.classes, rng, bfloat16=context.bfloat16,
                frozen=False,
            )  # fmt: skip
            asked = worker.named and table.conditional
            batch = Batch(images, drawn if asked else torch.full_like(drawn, -1))
        else:
            batch = Batch(offered, labels)
        return SyntheticBatch(batch, steps * count, measures)

    def _learn(self, worker: Decoder, rate: float) -> None:
        """The meta step: θ from the sum of gradients that is already there, or from θ'."""
        if self.table.meta == "reptile":
            pairs = zip(self.decoder.parameters(), worker.parameters(), strict=True)
            for start, end in pairs:
                start.grad = REPTILE * (start.detach() - end.detach())
        for group in self.meta.param_groups:
            group["lr"] = rate
        self.meta.step()
        for mine, its in zip(self.decoder.buffers(), worker.buffers(), strict=True):
            mine.copy_(its)

    def _new_meta(self) -> torch.optim.Adam:
        table = self.table
        return torch.optim.Adam(
            self.decoder.parameters(), lr=table.learning_rate, betas=(table.beta1, 0.999)
        )

    def _restart(self, rng: torch.Generator) -> None:
        with globally(rng):
            new = decoding.new_decoder(self.recipe, self.teacher, conditional=False)
        if new.noisy is not None and self.decoder.noisy is not None:
            new.noisy.vectors.copy_(self.decoder.noisy.vectors)
        self.decoder.load_state_dict(new.state_dict())
        self.meta = self._new_meta()

    def state_dict(self) -> dict[str, Any]:
        """θ, the meta optimizer, the number of episodes, and what the objective remembers."""
        return {
            "decoder": self.decoder.state_dict(),
            "meta": self.meta.state_dict(),
            "episodes": self.episodes,
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.decoder.load_state_dict(state["decoder"])
        load_optimizer(self.meta, state["meta"])
        self.episodes = int(state["episodes"])
        self.objective.load_state_dict(state["objective"])


def _add_gradients(start: nn.Module, worker: nn.Module) -> None:
    """Adds the worker's gradients to those of the start."""
    for mine, its in zip(start.parameters(), worker.parameters(), strict=True):
        if its.grad is not None:
            mine.grad = its.grad.clone() if mine.grad is None else mine.grad + its.grad
