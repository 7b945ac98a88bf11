"""Drawings: shapes and ranges of all kinds, and the law that each kind promises."""

import math

import pytest
import torch
from torch import Tensor

from synthkd.synthesis.drawings import DRAWINGS
from synthkd.synthesis.drawings.brushes import blurred, inks, smooth_noise
from synthkd.synthesis.drawings.fractals import chaos
from synthkd.synthesis.drawings.leaves import radii
from synthkd.synthesis.drawings.noise import spectral
from synthkd.synthesis.drawings.strokes import draw_strokes, mutated, painted, stroke_parameters

ALL = pytest.mark.parametrize("kind", list(DRAWINGS))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@ALL
@pytest.mark.parametrize(
    "size", [(3, 32, 32), (1, 28, 28), (1, 9, 8), (2, 8, 17), (4, 21, 13), (3, 11, 40)], ids=str
)
def test_every_kind_draws_any_size_and_one_to_four_channels(kind, size):
    images = DRAWINGS[kind](7, *size, seeded())
    assert images.shape == (7, *size)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1


@ALL
def test_the_seed_alone_decides_and_the_global_state_does_not_move(kind):
    before = torch.get_rng_state()
    first, again = (DRAWINGS[kind](5, 3, 16, 16, seeded(3)) for _ in range(2))
    other = DRAWINGS[kind](5, 3, 16, 16, seeded(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@ALL
def test_no_images_and_one_image_can_be_asked_for(kind):
    assert DRAWINGS[kind](0, 3, 16, 16, seeded()).shape == (0, 3, 16, 16)
    assert DRAWINGS[kind](1, 3, 16, 16, seeded()).shape == (1, 3, 16, 16)


@ALL
def test_images_differ_from_each_other_and_few_are_blank(kind):
    images = DRAWINGS[kind](200, 3, 16, 16, seeded(1)).flatten(1)
    assert torch.cdist(images, images).fill_diagonal_(9).min() > 0.05
    assert (images.std(1) < 0.01).float().mean() < 0.05


@ALL
def test_a_batch_larger_than_a_part_is_filled_to_its_end(kind):
    images = DRAWINGS[kind](300, 1, 32, 32, seeded(1))
    last = images[-8:].flatten(1)
    assert (last.std(1) > 0).all()
    assert not torch.equal(images[:44], images[256:])  # parts do not repeat each other


def test_noise_has_the_mean_and_the_spread_of_a_cut_gaussian():
    images = DRAWINGS["noise"](50, 3, 32, 32, seeded())
    # cut at 2 deviations: within, E[z²] = P − 4 φ(2); outside, z² = 4
    within = math.erf(2 / math.sqrt(2))
    square = within - 4 * math.exp(-2) / math.sqrt(2 * math.pi) + 4 * (1 - within)
    assert abs(float(images.mean()) - 0.5) < 0.003
    assert abs(float(images.std()) - 0.25 * square**0.5) < 0.002


def slope(frequencies: Tensor, power: Tensor) -> float:
    """Of log power over log frequency, by least squares."""
    x = frequencies.double().log()
    y = power.double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.parametrize("size", [(32, 32), (33, 48)])
@pytest.mark.parametrize("exponents", [(0.5, 0.5), (1.0, 2.0), (3.5, 0.7)])
def test_the_spectrum_falls_along_each_axis_as_asked(exponents, size):
    many = torch.tensor([exponents]).expand(400, -1)
    power = torch.fft.fft2(spectral(many, 2, *size, seeded())).abs().square().mean((0, 1))
    for axis, exponent in enumerate(exponents):
        count = size[axis] // 2  # below Nyquist
        along = power[1:count, 0] if axis == 0 else power[0, 1:count]
        assert slope(torch.arange(1, count), along) == pytest.approx(-2 * exponent, abs=0.1)


def test_spectral_noise_has_mean_zero_and_deviation_one():
    waves = spectral(torch.full((2000, 2), 1.0), 1, 16, 15, seeded())
    assert waves.mean((2, 3)).abs().max() < 1e-5
    assert float(waves.square().mean()) == pytest.approx(1, abs=0.05)


def test_leaf_radii_have_a_density_that_falls_with_the_third_power():
    low, high = torch.tensor(0.1), torch.tensor(1.0)
    drawn = radii(low, high, torch.rand(400_000, generator=seeded()))
    edges = torch.logspace(-1, 0, 11)
    density = torch.histogram(drawn, edges)[0] / edges.diff()
    middle = (edges[1:] * edges[:-1]).sqrt()
    assert slope(middle, density) == pytest.approx(-3, abs=0.1)
    assert drawn.min() >= 0.0999
    assert drawn.max() <= 1.001


def straight(y: float) -> Tensor:
    """A horizontal line far across a 20 pixel image, [1, 1, 64, 2]."""
    x = torch.linspace(-10, 30, 64)
    return torch.stack([torch.full_like(x, y), x], -1)[None, None]


@pytest.mark.parametrize(
    ("y", "radius", "rows"),
    [
        (8.5, 1.5, {7: 1.0, 8: 1.0, 9: 1.0}),  # through the centres of row 8
        (8.0, 1.5, {6: 0.5, 7: 1.0, 8: 1.0, 9: 0.5}),  # between rows 7 and 8
        (8.5, 1.75, {6: 0.25, 7: 1.0, 8: 1.0, 9: 1.0, 10: 0.25}),
    ],
)
def test_a_straight_stroke_covers_the_rows_within_its_radius(y, radius, rows):
    known = torch.zeros(20, 20)
    for row, ink in rows.items():
        known[row] = ink
    one = torch.ones(1)
    ink = painted(straight(y), torch.ones(1, 1), radius * one, one, 20, 20)
    assert torch.allclose(ink[0, 0], known, atol=0.03)


def test_a_circle_covers_what_brute_force_distances_say():
    angle = torch.linspace(0, 2 * torch.pi, 64)
    path = torch.stack([16 + 9 * angle.sin(), 14 + 9 * angle.cos()], -1)[None, None]
    one = torch.ones(1)
    ink = painted(path, torch.ones(1, 1), 2 * one, one, 32, 28)[0, 0]
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(28) + 0.5, indexing="ij")
    distance = ((y - 16).hypot(x - 14) - 9).abs()
    known = (2.5 - distance).clamp(0, 1)
    assert (ink - known).abs().mean() < 0.01
    assert (ink - known).abs().max() < 0.1  # the soft minimum leans inwards on a curve


def test_strokes_that_are_not_alive_leave_no_ink():
    one = torch.ones(1)
    path = torch.cat([straight(5.5), straight(14.5)], 1)
    alive = torch.tensor([[True, False]])
    ink = painted(path, alive, 1.5 * one, one, 20, 20)[0, 0]
    assert ink[5].min() > 0.95
    assert ink[10:].max() == 0


def test_a_level_bow_is_centred_and_fills_its_share():
    parameters = torch.full((1, 38), 0.5)
    parameters[0, 0] = 0  # one stroke
    parameters[0, 1] = 0  # over 0.55 of the side: from 4.5 to 15.5
    parameters[0, 2] = 0.9  # radius (0.03 + 0.05 · 0.9) · 20 = 1.5
    parameters[0, 3] = 0  # an edge of one pixel
    parameters[0, 6] = 0  # a curve
    parameters[0, 8:14] = torch.tensor([0.5, 0, 0.5, 0.5, 0.5, 1])
    ink = draw_strokes(parameters, 20, 20)[0, 0]
    column = torch.zeros(20)
    column[8:12] = torch.tensor([0.5, 1, 1, 0.5])
    for x in (6, 10, 13):
        assert torch.allclose(ink[:, x], column, atol=0.03)
    assert ink[:, 2].max() == 0  # 2 pixels before the end, the pen reaches 1.5 + 0.5
    assert torch.allclose(ink, ink.flip(1), atol=1e-3)


def test_mutation_by_nothing_changes_nothing_and_by_little_changes_little():
    parents = stroke_parameters(500, seeded())
    assert torch.allclose(mutated(parents, 0.0, seeded(1)), parents, atol=1e-6)
    children = mutated(parents, 0.05, seeded(1))
    assert children.min() >= 0
    assert children.max() <= 1
    apart = (draw_strokes(children, 28, 28) - draw_strokes(parents, 28, 28)).abs().mean((1, 2, 3))
    strangers = draw_strokes(stroke_parameters(500, seeded(2)), 28, 28)
    far = (strangers - draw_strokes(parents, 28, 28)).abs().mean((1, 2, 3))
    assert apart.median() < 0.6 * far.median()


def test_mutation_redraws_a_whole_stroke_in_its_share_of_the_drawings():
    parents = stroke_parameters(4000, seeded())
    kinds = range(6, 38, 8)  # choices: they change only where a stroke is new
    children = mutated(parents, 0.1, seeded(1))
    changed = (children[:, kinds] != parents[:, kinds]).sum(1)
    assert changed.max() == 1
    assert float(changed.float().mean()) == pytest.approx(0.1, abs=0.02)


def test_the_chaos_game_stays_on_the_sierpinski_triangle():
    corners = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])  # y, x
    halves = torch.eye(2).expand(1, 3, 2, 2) / 2
    y, x, tint = chaos(halves, corners / 2, torch.ones(1, 3), 20, seeded())[0]
    assert y.shape == (20 * 1024,)
    assert y.min() >= 0
    assert x.min() >= 0
    assert (y + x).max() <= 1 + 1e-6
    assert tint.min() >= 0
    assert tint.max() <= 1
    # none in the middle triangles of the first two generations
    for scale in (1, 2):
        v, u = (y * scale) % 1, (x * scale) % 1
        hole = (v < 0.499) & (u < 0.499) & (v + u > 0.501)
        assert not hole.any()
    # each of the nine triangles of the second generation gets its ninth
    fine = (4 * y).floor() * 4 + (4 * x).floor()
    _, counts = fine.unique(return_counts=True)
    nine = counts[counts > 100].float() / len(y)
    assert len(nine) == 9
    assert (nine - 1 / 9).abs().max() < 0.06


def test_smooth_noise_has_the_deviation_asked_for_and_no_sharp_steps():
    weights = torch.tensor([[0.5, 0.0], [0.0, 2.0]]).repeat_interleave(300, 0)
    field = smooth_noise(weights, (4, 8), 32, 40, seeded())
    assert field.shape == (600, 32, 40)
    assert float(field[:300].std()) == pytest.approx(0.5, rel=0.1)
    assert float(field[300:].std()) == pytest.approx(2, rel=0.1)
    assert field[:300].diff(dim=2).abs().max() < 0.5


def test_blur_keeps_what_is_flat_or_sloping_and_spreads_a_point():
    ramp = torch.arange(7.0).expand(1, 1, 5, 7)
    assert torch.allclose(blurred(ramp), ramp)
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 16
    known = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert torch.allclose(blurred(point)[0, 0, 1:4, 1:4], known)
    assert float(blurred(point).sum()) == pytest.approx(16)


def test_the_channels_of_colours_are_correlated_as_in_nature():
    ink = inks(2000, 4, 3, seeded()).flatten(0, 1)
    correlation = torch.corrcoef(ink.T)
    assert correlation.min() > 0.6
    assert ink.std(0).min() > 0.2
