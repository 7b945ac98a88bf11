"""Sampling from a diffusion model: a denoiser, a solver of diffusers, and a teacher that steers.

B batch, C channels, H height, W width of what is denoised.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from synthkd.core.images import sent
from synthkd.synthesis.diffusion.maths import output_for_x0, predicted_x0, steered

SOLVERS = ("ddim", "dpm", "ddpm")
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
    classes: int  # of the teacher's, those it can be asked for: all or 0
    bfloat16: bool  # whether its network computes in bfloat16

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, noisy: Tensor, step: int, labels: Tensor | None) -> Tensor:
        """Its prediction [B, C, H, W] for noisy images at a step; label −1 is no class, None that
        no image has one."""

    def decoded(self, x0: Tensor) -> Tensor:
        """Images [B, C', H', W'] in 0..1 for the teacher; gradients pass."""


@dataclass(frozen=True)
class Guide:
    """What pulls the predicted clean image towards a small loss.

    At every step x₀ ← x₀ − scale · clipped(∂ loss / ∂ x₀). The gradient is taken with respect to
    x₀, as DiffDFKD does (https://arxiv.org/abs/2504.00870), which costs a third of one through the
    network, with respect to the noisy image.
    """

    loss: Callable[[Tensor, Tensor], Tensor]  # images [B, C', H', W'] and labels to a sum over B
    scale: float
    clip: float = 1.0


def solver(name: str, schedule: Mapping[str, Any], steps: int) -> Any:
    """A scheduler of diffusers made from another one's configuration, ready to take `steps` steps
    spaced from the end. What it cannot do, it says by an exception of its own."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    scheduler = {
        "ddim": DDIMScheduler,
        "dpm": DPMSolverMultistepScheduler,
        "ddpm": DDPMScheduler,
    }[name]
    able = scheduler().config
    known = {key: schedule[key] for key in PROCESS if key in schedule and key in able}
    made: Any = scheduler(**known | {"timestep_spacing": "trailing"})
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
    batch: int = 64,
    until: float = float("inf"),
    tick: Callable[[int, int], None] | None = None,
) -> Tensor:
    """An image for every seed, [B, C', H', W'] in 0..1; after `until`, a time of
    time.perf_counter, no second batch is begun, and the rest is left out. `tick` hears of the
    images done, of how many, before every denoising step; it may raise.

    `labels` [B] are the classes asked for (−1: none). An image depends on its seed and label alone,
    unless a guide's loss looks at several images at once.
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
                partial(tick, i, len(seeds)) if tick else None,
            )
        )
    if not images:
        return denoiser.decoded(torch.empty(0, *denoiser.shape, device=denoiser.device))
    return torch.cat(images)


def _denoised(
    denoiser: Denoiser, seeds: Sequence[int], labels: Tensor, name: str, steps: int,
    guide: Guide | None, tick: Callable[[], None] | None,
) -> Tensor:  # fmt: skip
    sources = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def noise() -> Tensor:
        drawn = [torch.randn(denoiser.shape, generator=source) for source in sources]
        return sent(torch.stack(drawn), denoiser.device)

    scheduler = solver(name, denoiser.schedule, steps)
    nobody = bool((labels < 0).all())  # decided before they are on a device, which is waited for
    labels = sent(labels, denoiser.device)
    asked = None if nobody else labels
    more = {"generator": sources} if name == "ddpm" else {}
    now = noise() * scheduler.init_noise_sigma
    for step in scheduler.timesteps.tolist():
        if tick:
            tick()
        if guide is None or not guide.scale:
            output = denoiser(now, step, asked)
        else:
            output = _steered_output(denoiser, now, step, asked, labels, scheduler, guide)
        moved: Tensor = scheduler.step(output, step, now, **more).prev_sample
        now = moved
    return denoiser.decoded(now).clamp(0, 1)


def _steered_output(
    denoiser: Denoiser, noisy: Tensor, step: int, asked: Tensor | None, labels: Tensor,
    scheduler: Any, guide: Guide,
) -> Tensor:  # fmt: skip
    """The output that stands for the clean image that the guide prefers."""
    alpha_bar, kind = scheduler.alphas_cumprod[step], denoiser.prediction_type
    x0 = predicted_x0(noisy, denoiser(noisy, step, asked), alpha_bar, kind)
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(guide.loss(denoiser.decoded(x0), labels), x0)
    moved = steered(x0.detach(), gradient, guide.scale, guide.clip)
    return output_for_x0(noisy, moved, alpha_bar, kind)
