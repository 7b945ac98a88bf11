"""Augmentation: what one image goes through, done again by hand, and what holds for all of them."""

import pytest
import torch
from torch import Tensor

from synthkd.images.augment import (
    augmented,
    bent,
    bent_each,
    cropped,
    erased,
    jittered,
    mirrored,
    mixed_up,
    shifted,
)
from synthkd.recipe import AugmentTable

STRONG = AugmentTable(shift=0.25, crop=0.3, flip=True, affine=1, jitter=1, erase=1)
NOTHING = AugmentTable(shift=0, crop=1, flip=False, affine=0, jitter=0, erase=0)
EACH = {
    "shift": lambda x, rng: shifted(x, 0.25, rng),
    "crop": lambda x, rng: cropped(x, 0.25, rng),
    "mirror": mirrored,
    "jitter": lambda x, rng: jittered(x, 0.5, rng),
    "erase": lambda x, rng: erased(x, 0.9, rng),
    "bend": lambda x, rng: bent(x, 1.0, rng),
    "mixup": mixed_up,
    "all": lambda x, rng: augmented(x, STRONG, 1.0, rng),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(count: int = 12, channels: int = 3, height: int = 10, width: int = 14) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(9))


def same(count: int = 40) -> Tensor:
    """The same image many times over: what differs afterwards was drawn per image."""
    return some(1).expand(count, -1, -1, -1).contiguous()


@pytest.mark.parametrize("name", EACH)
def test_images_stay_images(name):
    images = some()
    out = EACH[name](images, seeded())
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", EACH)
def test_the_seed_and_nothing_else_decides(name):
    torch.manual_seed(1)
    first = EACH[name](some(), seeded(3))
    torch.manual_seed(2)
    torch.rand(17)
    assert torch.equal(first, EACH[name](some(), seeded(3)))
    assert not torch.equal(first, EACH[name](some(), seeded(4)))


@pytest.mark.parametrize("name", EACH)
def test_the_global_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    EACH[name](some(), seeded())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", EACH)
def test_gradients_reach_every_image(name):
    images = some().requires_grad_()
    weights = torch.rand(images.shape, generator=seeded(5))
    (EACH[name](images, seeded()) * weights).sum().backward()
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", ["shift", "mirror", "jitter", "erase", "bend", "all"])
def test_every_image_has_a_draw_of_its_own(name):
    out = EACH[name](same(), seeded())
    assert len({image.numpy().tobytes() for image in out}) > 1
    if name in ("jitter", "bend", "all"):  # continuous draws
        assert len({image.numpy().tobytes() for image in out}) == len(out)


@pytest.mark.parametrize("name", ["shift", "mirror", "jitter", "erase", "bend"])
def test_what_happens_to_an_image_does_not_depend_on_the_pixels_of_the_others(name):
    images = some()
    others = images.clone()
    others[1:] = 0.5
    first, second = EACH[name](images, seeded()), EACH[name](others, seeded())
    assert torch.allclose(first[0], second[0], atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_shift_is_a_copy_with_indices_held_at_the_edge(layout):
    images = some(30).contiguous(memory_format=layout)
    out = shifted(images, 0.25, seeded())
    reach_y, reach_x = 2, 4  # round(0.25 · 10), round(0.25 · 14)
    offsets = set()
    for image, moved in zip(images, out, strict=True):
        found = [
            (dy, dx)
            for dy in range(-reach_y, reach_y + 1)
            for dx in range(-reach_x, reach_x + 1)
            if torch.equal(
                moved,
                image[:, [min(9, max(0, y + dy)) for y in range(10)]][
                    :, :, [min(13, max(0, x + dx)) for x in range(14)]
                ],
            )
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert {abs(dy) for dy, _ in offsets} == {0, 1, 2}
    assert {abs(dx) for _, dx in offsets} == {0, 1, 2, 3, 4}


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    images = some(400)
    out = mirrored(images, seeded())
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)]
    still = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(turned, still, strict=True))
    assert 150 < sum(turned) < 250


def test_a_crop_shows_a_window_of_its_area():
    """Of a plane x + 2y: the slopes of the view are the sides of the window, and in 3:4 to 4:3."""
    side = 64
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    planes = torch.stack([x, y]).expand(200, 2, side, side).contiguous()
    view = cropped(planes, 0.25, seeded())
    wide = (view[:, 0, 32, 60] - view[:, 0, 32, 4]) / (56 / 63)
    tall = (view[:, 1, 60, 32] - view[:, 1, 4, 32]) / (56 / 63)
    assert (wide * tall).min() > 0.2 and (wide * tall).max() < 1.02
    assert 0.5 < (wide * tall).mean() < 0.7  # uniform in 0.25..1, sides cut at 1
    ratio = wide / tall
    assert ratio.min() > 0.72 and ratio.max() < 1.4
    assert view[:, 0].min() >= 0 and view[:, 0].max() <= 1


def test_jitter_is_a_straight_line_through_the_mean_of_an_image():
    images = 0.4 + 0.2 * some()  # far from 0 and 1, so that nothing is cut off
    out = jittered(images, 0.3, seeded())
    for image, changed in zip(images, out, strict=True):
        mean = image.mean()
        slope = ((changed - changed.mean()) * (image - mean)).sum() / (image - mean).square().sum()
        assert 0.7 <= slope <= 1.3
        assert torch.allclose(changed, slope * (image - mean) + changed.mean(), atol=1e-5)
        assert (changed.mean() - mean).abs() <= 0.15 + 1e-6


def test_erasing_paints_one_rectangle_in_the_mean_of_the_image():
    images = some(60, height=20, width=30)
    out = erased(images, 0.5, seeded())
    changed = (out != images).any(1)  # [B, H, W]
    hit = changed.any(2).any(1)
    assert 15 < hit.sum() < 45
    for i in hit.nonzero().flatten().tolist():
        rows, columns = changed[i].any(1).nonzero().flatten(), changed[i].any(0).nonzero().flatten()
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert changed[i][box].all()
        assert changed[i].sum() == len(rows) * len(columns)
        assert 3 <= len(rows) <= 11
        assert 5 <= len(columns) <= 16
        assert torch.allclose(
            out[i][:, changed[i]], images[i].mean((1, 2))[:, None].expand(3, int(changed[i].sum()))
        )


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_erasing_with_certainty_spares_none_and_without_a_chance_all(probability):
    images = some()
    changed = (erased(images, probability, seeded()) != images).flatten(1).any(1)
    assert changed.float().mean() == probability


def test_bending_a_little_moves_an_image_a_little():
    smooth = torch.linspace(0, 1, 16)[None, None, None].expand(8, 1, 16, 16).contiguous()
    gaps = [(bent(smooth, s, seeded()) - smooth).abs().mean().item() for s in (0.001, 0.1, 1.0)]
    assert gaps[0] < 1e-3
    assert gaps == sorted(gaps)


def test_nothing_happens_at_strength_zero():
    assert torch.equal(augmented(some(), NOTHING, 1.0, seeded()), some())


def test_at_difficulty_zero_only_shift_crop_and_mirror_are_left():
    table = STRONG.model_copy(update={"shift": 0.0, "crop": 1.0, "flip": False})
    assert torch.equal(augmented(some(), table, 0.0, seeded()), some())
    expected = mirrored(cropped(shifted(some(), 0.25, rng := seeded()), 0.3, rng), rng)
    assert torch.equal(augmented(some(), STRONG, 0.0, seeded()), expected)


def test_the_result_lies_channels_last():
    for table, difficulty in ((NOTHING, 0.0), (STRONG, 1.0)):
        out = augmented(some(), table, difficulty, seeded())
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_mixup_blends_each_image_with_one_other_of_the_batch():
    flat = torch.arange(8.0).div(7)[:, None, None, None].expand(8, 2, 3, 3)  # one number per image
    out = mixed_up(flat, seeded())
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))
    basis = torch.eye(8)[
        :, :, None, None
    ]  # image i is a one in channel i: the blend shows its parts
    weights = mixed_up(basis, seeded()).squeeze()
    assert torch.allclose(weights.sum(1), torch.ones(8))
    assert ((weights > 0).sum(1) <= 2).all()
    assert (weights.diagonal() > 0).all()


def test_each_image_is_changed_as_hard_as_its_own_difficulty() -> None:
    table = AugmentTable(shift=0, affine=1.0, jitter=1.0, erase=1.0)
    images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    hard = torch.linspace(0, 1, 40)
    found = augmented(images, table, hard, torch.Generator().manual_seed(1))
    assert torch.allclose(found[0], images[0], atol=1e-5)  # the identity at difficulty 0
    change = (found - images).abs().mean((1, 2, 3))
    assert change[:13].mean() < 0.6 * change[-13:].mean()
    none = augmented(images, table, torch.zeros(40), torch.Generator().manual_seed(1))
    assert torch.allclose(none, images, atol=1e-5)


def test_what_bends_each_image_turns_it_about_its_middle() -> None:
    """Of a disc in the middle a rotation leaves everything as it is, and the strength bounds it."""
    axis = torch.linspace(-1, 1, 33)
    disc = ((axis[:, None] ** 2 + axis[None, :] ** 2) < 0.25).float()[None, None]
    still = bent_each(disc, torch.zeros(1), torch.Generator().manual_seed(0))
    assert torch.allclose(still, disc, atol=1e-5)
    images = disc.expand(64, -1, -1, -1)
    found = bent_each(images, torch.ones(64), torch.Generator().manual_seed(0))
    area = found.sum((1, 2, 3)) / disc.sum()
    assert area.min() > 0.75**2 * 0.8 and area.max() < 1.25**2 * 1.25
    middle = (found * axis[None, None, None, :]).sum((1, 2, 3)) / found.sum((1, 2, 3))
    assert middle.abs().max() < 0.05
