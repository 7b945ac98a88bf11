"""Sampling from a diffusion model: a denoiser, a solver of diffusers, and a teacher that steers.

B batch, C channels, H height, W width of what is denoised.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from synthkd.synthesis.diffusion.maths import output_for_x0, predicted_x0, steered

SOLVERS = ("ddim", "dpm", "ddpm")
STATELESS = ("ddim", "ddpm")  # a step does not look back, so it can be taken again
# what of a scheduler's configuration tells how images were noised; the rest is how theirs samples
PROCESS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "prediction_type", "clip_sample", "clip_sample_range",
    "set_alpha_to_one", "thresholding", "dynamic_thresholding_ratio", "sample_max_value",
)  # fmt: skip


class Denoiser(Protocol):
    """A network that predicts what is noise in an image, and what goes with it."""

    shape: tuple[int, int, int]  # C, H, W of what it denoises: images, or latents
    prediction_type: str  # what it predicts: epsilon, v_prediction or sample
    schedule: Mapping[str, Any]  # the configuration of a scheduler of diffusers
    bfloat16: bool  # whether its network computes in bfloat16

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, noisy: Tensor, step: int, labels: Tensor) -> Tensor:
        """Its prediction [B, C, H, W] for noisy images at a step; label −1 is no class."""

    def decoded(self, x0: Tensor) -> Tensor:
        """Images [B, C', H', W'] in 0..1 for the teacher; gradients pass."""


@dataclass(frozen=True)
class Guide:
    """What pulls the predicted clean image towards a small loss.

    At every step x₀ ← x₀ − scale · w · clipped(∂ loss / ∂ x₀), with w = 1 ("constant"), a
    ("rising": the clearer the image, the stronger) or 1 − a ("falling"), where a is the share of
    signal. With `through` "denoiser" the gradient is taken with respect to the noisy image, through
    the network, as in universal guidance (Bansal et al. 2023, https://arxiv.org/abs/2302.07121);
    with "image" x₀ is taken for free, as DiffDFKD does (https://arxiv.org/abs/2504.00870), at a
    third of the price.
    """

    loss: Callable[[Tensor, Tensor], Tensor]  # images [B, C', H', W'] and labels to a sum over B
    scale: float
    schedule: str = "constant"
    clip: float = 1.0
    through: str = "image"

    def weight(self, alpha_bar: float) -> float:
        """w · scale at a step that keeps the share `kept` of the signal."""
        return (
            self.scale
            * {"constant": 1.0, "rising": alpha_bar, "falling": 1 - alpha_bar}[self.schedule]
        )


def solver(name: str, schedule: Mapping[str, Any], steps: int) -> Any:
    """A scheduler of diffusers made from another one's configuration, ready to take `steps` steps
    spaced from the end. What it cannot do, it says by an exception of its own."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    prediction_type = {
        "ddim": DDIMScheduler,
        "dpm": DPMSolverMultistepScheduler,
        "ddpm": DDPMScheduler,
    }[name]
    able = prediction_type().config
    known = {key: schedule[key] for key in PROCESS if key in schedule and key in able}
    made: Any = prediction_type(**known | {"timestep_spacing": "trailing"})
    if steps > made.config.num_train_timesteps:
        raise ValueError(f"it has {made.config.num_train_timesteps} steps in all")
    made.set_timesteps(steps)
    if len(made.timesteps) > steps:  # by rounding, for some numbers: one more, at step −1
        made.timesteps = made.timesteps[:steps]
        if name == "dpm":
            made.sigmas = torch.cat([made.sigmas[:steps], made.sigmas[-1:]])
            made.num_inference_steps = steps
    return made


def able_solvers(
    names: Sequence[str], schedule: Mapping[str, Any], steps: int
) -> tuple[tuple[str, ...], str]:
    """Those of the solvers that can run a schedule in so many steps, and what the last of the
    others said."""
    able, said = [], ""
    for name in names:
        try:
            solver(name, schedule, steps)
        except Exception as error:  # whatever the library says to untrusted numbers
            said = " ".join(str(error).split())[:160]
        else:
            able.append(name)
    return tuple(able), said


@torch.no_grad()
def sampled(
    denoiser: Denoiser,
    seeds: Sequence[int],
    labels: Tensor,
    *,
    name: str = "ddim",
    steps: int = 8,
    guide: Guide | None = None,
    recurrence: int = 1,
    batch: int = 64,
    until: float = float("inf"),
    tick: Callable[[int, int], None] | None = None,
) -> Tensor:
    """An image for every seed, [B, C', H', W'] in 0..1; after `until`, a time of
    time.perf_counter, no second batch is begun, and the rest is left out. `tick` hears of the
    images done, of how many, before every denoising step; it may raise.

    `labels` [B] are the classes asked for (−1: none). An image depends on its seed and label alone,
    unless a guide's loss looks at several images at once. `recurrence` takes every step so many
    times, with fresh noise in between.
    """
    images: list[Tensor] = []
    for i in range(0, len(seeds), batch):
        if images and time.perf_counter() > until:
            break
        part = slice(i, i + batch)
        images.append(
            _denoised(
                denoiser,
                seeds[part],
                labels[part],
                name,
                steps,
                guide,
                recurrence,
                partial(tick, i, len(seeds)) if tick else None,
            )
        )
    if not images:
        return denoiser.decoded(torch.empty(0, *denoiser.shape, device=denoiser.device))
    return torch.cat(images)


def _denoised(
    denoiser: Denoiser, seeds: Sequence[int], labels: Tensor, name: str, steps: int,
    guide: Guide | None, recurrence: int, tick: Callable[[], None] | None,
) -> Tensor:  # fmt: skip
    sources = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def noise() -> Tensor:
        drawn = [torch.randn(denoiser.shape, generator=source) for source in sources]
        return torch.stack(drawn).to(denoiser.device)

    scheduler = solver(name, denoiser.schedule, steps)
    labels = labels.to(denoiser.device)
    more = {"generator": sources} if name == "ddpm" else {}
    now = noise() * scheduler.init_noise_sigma
    for step, following in pairwise([*scheduler.timesteps.tolist(), -1]):
        for turn in range(recurrence if name in STATELESS else 1):
            if tick:
                tick()
            if turn:
                now = _noisier(now, scheduler.alphas_cumprod, following, step, noise())
            output = _steered_output(denoiser, now, step, labels, scheduler, guide)
            moved: Tensor = scheduler.step(output, step, now, **more).prev_sample
            now = moved
    return denoiser.decoded(now).clamp(0, 1)


def _steered_output(
    denoiser: Denoiser, noisy: Tensor, step: int, labels: Tensor, scheduler: Any,
    guide: Guide | None,
) -> Tensor:  # fmt: skip
    """The denoiser's output, or the one that stands for the clean image that the guide prefers."""
    alpha_bar = scheduler.alphas_cumprod[step]
    if guide is None or not guide.weight(float(alpha_bar)):
        return denoiser(noisy, step, labels)
    through = guide.through == "denoiser"
    with torch.enable_grad():
        noisy = noisy.detach().requires_grad_(through)
        with torch.set_grad_enabled(through):
            x0 = predicted_x0(
                noisy, denoiser(noisy, step, labels), alpha_bar, denoiser.prediction_type
            )
        x0 = x0 if through else x0.detach().requires_grad_()
        loss = guide.loss(denoiser.decoded(x0), labels)
        (gradient,) = torch.autograd.grad(loss, noisy if through else x0)
    moved = steered(x0.detach(), gradient, guide.weight(float(alpha_bar)), guide.clip)
    return output_for_x0(noisy.detach(), moved, alpha_bar, denoiser.prediction_type)


def _noisier(now: Tensor, alpha_bar: Tensor, earlier: int, step: int, noise: Tensor) -> Tensor:
    """x at `step` from x at the less noisy step `earlier` (−1: clean) and fresh noise [B, C, H,
    W]."""
    share = alpha_bar[step] / (alpha_bar[earlier] if earlier >= 0 else 1.0)
    return share.sqrt() * now + (1 - share).sqrt() * noise
