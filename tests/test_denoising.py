"""The arithmetic of diffusion against the library's, against limits and by hand."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from synthkd.synthesis.diffusion.maths import (
    STEPS,
    add_noise,
    drawn_steps,
    lowest_step,
    min_snr,
    output_for_x0,
    predicted_x0,
    steered,
    target,
)

KINDS = ("epsilon", "v_prediction", "sample")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0 = torch.rand(count, 3, 4, 4, generator=seeded(1)) * 2 - 1
    noise = torch.randn(count, 3, 4, 4, generator=seeded(2))
    return x0, noise, torch.linspace(0.05, 0.95, count)


def test_noise_and_velocity_are_those_of_diffusers() -> None:
    x0, noise, _ = drawn()
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    steps = torch.tensor([0, 10, 300, 500, 900, 998])
    alpha_bar = scheduler.alphas_cumprod[steps]
    theirs = scheduler.add_noise(x0, noise, steps)
    torch.testing.assert_close(add_noise(x0, noise, alpha_bar), theirs, atol=1e-6, rtol=1e-5)
    velocity = scheduler.get_velocity(x0, noise, steps)
    torch.testing.assert_close(
        target(x0, noise, alpha_bar, "v_prediction"), velocity, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("prediction_type", KINDS)
def test_a_perfect_prediction_gives_the_clean_image_back(prediction_type: str) -> None:
    x0, noise, alpha_bar = drawn()
    noisy = add_noise(x0, noise, alpha_bar)
    output = target(x0, noise, alpha_bar, prediction_type)
    found = predicted_x0(noisy, output, alpha_bar, prediction_type)
    torch.testing.assert_close(found, x0, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        output_for_x0(noisy, x0, alpha_bar, prediction_type), output, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_clean_image_is_the_one_that_the_librarys_step_goes_by(prediction_type: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(10)
    x0, noise, _ = drawn()
    step = int(scheduler.timesteps[4])
    done = scheduler.step(noise, step, x0)
    found = predicted_x0(x0, noise, scheduler.alphas_cumprod[step], prediction_type)
    torch.testing.assert_close(found, done.pred_original_sample, atol=1e-5, rtol=1e-4)


def test_v_has_a_clean_image_where_nothing_of_the_signal_is_left() -> None:
    x0, noise, _ = drawn()
    nothing = torch.zeros(6)
    output = target(x0, noise, nothing, "v_prediction")
    noisy = add_noise(x0, noise, nothing)
    assert torch.equal(predicted_x0(noisy, output, nothing, "v_prediction"), x0)


@pytest.mark.parametrize("prediction_type", KINDS)
def test_min_snr_is_the_published_weight(prediction_type: str) -> None:
    scheduler = DDPMScheduler()
    steps = torch.arange(1, 999, 37)
    snr = compute_snr(scheduler, steps).double()
    least = snr.clamp_max(5.0)
    whole = (snr + 1).clamp_max(5.0)  # with the 1 that trains the step without signal
    published = {"epsilon": least / snr, "v_prediction": whole / (snr + 1), "sample": least}[
        prediction_type
    ]
    found = min_snr(scheduler.alphas_cumprod[steps], 5.0, prediction_type)
    torch.testing.assert_close(found.double(), published, atol=1e-5, rtol=1e-4)


def test_min_snr_at_its_ends_and_without_a_bound() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert min_snr(ends, 5.0, "epsilon").tolist() == [1.0, 0.0]
    assert min_snr(ends, 5.0, "sample").tolist() == [0.0, 5.0]
    assert min_snr(ends, 5.0, "v_prediction").tolist() == [1.0, 0.0]
    assert min_snr(ends, 0.0, "v_prediction").tolist() == [1.0, 1.0]


def test_the_curriculum_opens_from_coarse_to_fine_and_draws_what_is_open() -> None:
    lowest = [lowest_step(openness / 20) for openness in range(21)]
    assert lowest == sorted(lowest, reverse=True)
    assert (lowest[0], lowest[-1], lowest_step(-1.0), lowest_step(2.0)) == (999, 0, 999, 0)
    steps = drawn_steps(2000, 0.25, seeded())
    assert (int(steps.min()), int(steps.max())) == (750, 999)
    assert abs(float(steps.float().mean()) - 874.5) < 6  # sd 72 / sqrt(2000) is 1.6


def test_the_curriculum_keeps_the_signal_and_the_circulating_one_does_not() -> None:
    """α_t = 0.9^(T − t) for small t erases the image in its first step."""
    alpha_bar = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    circulating = [0.9 ** (STEPS - t) for t in range(1, 6)]
    assert max(circulating) < 1e-45
    assert float(alpha_bar[0]) > 0.9999
    # ours changes which steps are trained, never what a step keeps: fully open, it trains on images
    # that are all but clean, and every step is noisier than the one before
    assert lowest_step(1.0) == 0
    assert bool((alpha_bar.diff() < 0).all())
    x0 = torch.rand(64, 3, 8, 8, generator=seeded(1)) * 2 - 1
    noise = torch.randn(x0.shape, generator=seeded(2))
    first = add_noise(x0, noise, alpha_bar[:1].expand(64))
    assert float((first - x0).abs().max()) < 0.05
    erased = add_noise(x0, noise, torch.full((64,), circulating[0]))
    together = torch.stack([erased.flatten(), x0.flatten()])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.05


def test_an_image_is_steered_no_further_than_the_clip() -> None:
    x0 = torch.zeros(2, 1, 2, 2)
    gradient = torch.stack([torch.full((1, 2, 2), 5.0), torch.full((1, 2, 2), 0.1)])
    moved = steered(x0, gradient, 3.0, 1.0)
    assert math.isclose(float(moved[0].norm()), 3.0, rel_tol=1e-5)  # ‖g‖ = 10 is cut to 1
    torch.testing.assert_close(moved[1], torch.full((1, 2, 2), -0.3))  # ‖g‖ = 0.2 is left
    torch.testing.assert_close(steered(x0, gradient, 1.0, 0.0), -gradient)
    assert torch.equal(steered(x0, torch.zeros_like(x0), 3.0, 1.0), x0)
