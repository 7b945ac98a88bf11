"""Sampling: independent of batches, exact for a denoiser whose answer is known, steered."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from synthkd.networks.unet import new_unet
from synthkd.synthesis.diffusion.maths import output_for_x0
from synthkd.synthesis.diffusion.sampling import SOLVERS, Guide, able_solvers, sampled, solver

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": True,
}


class Grey:
    """What two denoisers of grey images have in common."""

    prediction_type = "v_prediction"
    schedule = SCHEDULE
    device = torch.device("cpu")

    def decoded(self, x0: Tensor) -> Tensor:
        return x0 / 2 + 0.5


class Knows(Grey):
    """The ideal denoiser of a distribution of one image per class: it always predicts that."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        self.images = torch.rand(3, *self.shape, generator=torch.Generator().manual_seed(5)) - 0.5
        self.alpha_bar = DDIMScheduler(**SCHEDULE).alphas_cumprod
        self.calls = 0

    def __call__(self, noisy: Tensor, step: int, labels: Tensor) -> Tensor:
        self.calls += 1
        return output_for_x0(noisy, self.images[labels], self.alpha_bar[step], self.prediction_type)


class Net(Grey):
    """A small UNet with random weights."""

    shape = (1, 8, 8)

    def __init__(self) -> None:
        self.unet = new_unet(1, 3, size=8, width=8).eval().requires_grad_(False)

    def __call__(self, noisy: Tensor, step: int, labels: Tensor) -> Tensor:
        found: Tensor = self.unet(noisy, step, labels).sample
        return found


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_every_solver_finds_the_only_image_there_is(name: str, steps: int) -> None:
    known = Knows()
    labels = torch.tensor([2, 0, 1, 1])
    found = sampled(known, [1, 2, 3, 4], labels, name=name, steps=steps)
    torch.testing.assert_close(found, known.images[labels] / 2 + 0.5, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_so_many_steps_as_were_asked_for_are_taken(name: str) -> None:
    """At 61, 103 and others, spacing by 1000 / steps would give one more, at −1, where nothing of
    the signal is kept."""
    for steps in (*range(1, 130), 206, 250, 999, 1000):
        made = solver(name, SCHEDULE, steps)
        assert len(made.timesteps) == len(set(made.timesteps.tolist())) == steps
        assert (int(made.timesteps[0]), int(made.timesteps.min()) >= 0) == (999, True)
    known = Knows()
    found = sampled(known, [1], torch.tensor([2]), name=name, steps=61)
    torch.testing.assert_close(found, known.images[2:] / 2 + 0.5, atol=2e-3, rtol=0)


def test_a_solver_that_cannot_run_a_schedule_is_left_out() -> None:
    assert able_solvers(SOLVERS, SCHEDULE, 8) == (SOLVERS, "")
    able, said = able_solvers(SOLVERS, SCHEDULE | {"beta_schedule": "sigmoid"}, 8)
    assert able == ("ddpm",) and "sigmoid" in said
    assert able_solvers(SOLVERS, SCHEDULE | {"num_train_timesteps": 4}, 8) == (
        (), "it has 4 steps in all",
    )  # fmt: skip


def test_of_a_strangers_scheduler_only_the_noise_is_taken_over() -> None:
    """A learned variance is cut away from the prediction, and noise of its own would not go by an
    image's seed."""
    theirs = {"variance_type": "learned_range", "algorithm_type": "sde-dpmsolver++",
              "use_karras_sigmas": True, "beta_end": 0.03}  # fmt: skip
    for name in SOLVERS:
        config = solver(name, theirs, 5).config
        assert config.beta_end == 0.03
        assert config.get("variance_type") != "learned_range"
        assert config.get("algorithm_type") in (None, "dpmsolver++")
        assert not config.get("use_karras_sigmas")


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    net = Net()
    seeds, labels = list(range(100, 120)), torch.arange(20) % 3
    whole = sampled(net, seeds, labels, name=name, steps=5, batch=20)
    for size in (1, 7):
        parts = sampled(net, seeds, labels, name=name, steps=5, batch=size)
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)
    again = sampled(net, seeds[3:4], labels[3:4], name=name, steps=5)
    torch.testing.assert_close(again, whole[3:4], atol=1e-4, rtol=0)
    assert float((whole[0] - whole[3]).abs().max()) > 0.01  # same class, other seed


def test_after_its_time_no_second_batch_is_begun() -> None:
    net, labels = Net(), torch.arange(9) % 3
    found = sampled(net, list(range(9)), labels, steps=2, batch=4, until=0.0)
    whole = sampled(net, list(range(9)), labels, steps=2, batch=4)
    assert torch.equal(found, whole[:4])


def test_no_seeds_no_images() -> None:
    assert sampled(Net(), [], torch.empty(0, dtype=torch.int64)).shape == (0, 1, 8, 8)


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    """A guide's loss that wants class 1 bright and all others dark."""
    sign = torch.where(labels == 1, -1.0, 1.0)
    return (sign * images.mean((1, 2, 3))).sum() * 100


def test_a_guide_pulls_images_its_way() -> None:
    net, labels = Net(), torch.tensor([0, 1] * 6)
    seeds = list(range(12))
    plain = sampled(net, seeds, labels, steps=6)
    guide = Guide(brightness, 1.0)
    steered = sampled(net, seeds, labels, steps=6, guide=guide)
    moved = (steered - plain).mean((1, 2, 3))
    assert bool((moved[1::2] > 0.002).all()) and bool((moved[::2] < -0.002).all())
    assert all(p.grad is None for p in net.unet.parameters())


def test_without_a_scale_the_guide_is_not_asked() -> None:
    def never(images: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError

    net, label = Net(), torch.tensor([0])
    found = sampled(net, [1], label, steps=2, guide=Guide(never, 0.0))
    assert torch.equal(found, sampled(net, [1], label, steps=2))


def test_the_librarys_own_pipeline_gives_the_same_images(tmp_path: Any) -> None:
    from diffusers import DiffusionPipeline

    from synthkd.synthesis.diffusion.diffusers_io import save_folder

    net = Net()
    save_folder(net.unet, SCHEDULE | {"timestep_spacing": "trailing"}, tmp_path / "d", {})
    theirs = DiffusionPipeline.from_pretrained(str(tmp_path / "d"), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    seeds, labels = [11, 12, 13], [2, 0, 1]
    images = theirs(
        batch_size=3, class_labels=labels, num_inference_steps=5, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images  # fmt: skip
    found = sampled(net, seeds, torch.tensor(labels), steps=5)
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)
