"""Images: rounding, fitting to a classifier, and pictures of many."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from synthkd.core.images import (
    ImageSpec,
    class_sheet,
    fitted,
    grid,
    save_picture,
    to_float,
    to_uint8,
)


def spec(channels: int, height: int, width: int) -> ImageSpec:
    return ImageSpec(channels, height, width, (0.0,) * channels, (1.0,) * channels)


def some(count: int, channels: int, height: int, width: int) -> Tensor:
    """Noise of a fixed seed: the hardest case for a resize."""
    rng = torch.Generator().manual_seed(1)
    size = (count, channels, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)


def test_every_uint8_survives_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert to_float(pixels).dtype == torch.float32


def test_to_uint8_rounds_to_the_nearest_and_cuts_at_both_ends() -> None:
    values = torch.linspace(-0.2, 1.2, 1001)
    expected = [min(255, max(0, round(float(v) * 255))) for v in values.double()]
    assert (to_uint8(values).int() - torch.tensor(expected)).abs().max() <= 1  # ties in float32
    assert to_uint8(torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 7.0])).tolist() == [0, 0, 1, 255]


def test_to_uint8_leaves_its_input_alone() -> None:
    images = torch.tensor([0.25, 2.0])
    to_uint8(images)
    assert images.tolist() == [0.25, 2.0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(16, 16), (32, 32), (8, 8), (13, 9), (9, 31), (28, 28), (5, 40)], ids=str
)
def test_fitted_resizes_as_pillow_does(channels: int, size: tuple[int, int]) -> None:
    pixels = some(4, channels, 16, 20)
    ours = fitted(pixels, spec(channels, *size))
    assert ours.dtype == torch.uint8
    differences = []
    for image, mine in zip(pixels, ours, strict=True):
        for plane, own in zip(image.numpy(), mine.numpy(), strict=True):
            theirs = Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR)
            differences.append(own.astype(int) - np.asarray(theirs).astype(int))
    assert np.abs(differences).max() <= 1
    if (size[0] > 16) == (size[1] > 20):  # else the two sides are done in another order
        assert np.mean(np.array(differences) != 0) < 0.06  # floats, rounded: 0.15 to 0.2
    assert abs(np.mean(differences)) < 0.2  # rounded; cut off it would be -0.5


def test_fitted_leaves_images_of_the_right_shape_bit_for_bit() -> None:
    pixels = some(3, 3, 8, 8)
    assert torch.equal(fitted(pixels, spec(3, 8, 8)), pixels)


def test_grey_becomes_colour_by_copying() -> None:
    pixels = some(2, 1, 8, 8)
    colour = fitted(pixels, spec(3, 8, 8))
    assert all(torch.equal(colour[:, c : c + 1], pixels) for c in range(3))


def test_colour_becomes_grey_as_pillow_does() -> None:
    pixels = some(3, 3, 12, 12)
    grey = fitted(pixels, spec(1, 12, 12))
    for image, mine in zip(pixels, grey, strict=True):
        theirs = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(mine[0].numpy().astype(int) - theirs.astype(int)).max() <= 1


def test_alpha_is_dropped() -> None:
    pixels = some(2, 4, 8, 8)
    assert torch.equal(fitted(pixels, spec(3, 8, 8)), pixels[:, :3])


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_puts_every_image_in_its_place_on_white(channels: int) -> None:
    pixels = some(5, channels, 6, 4)
    sheet = np.asarray(grid(pixels, 3, gap=2))
    assert sheet.shape == (2 * (6 + 2) + 2, 3 * (4 + 2) + 2, 3)
    expected = np.full(sheet.shape, 255, dtype=np.uint8)
    for i in range(5):
        row, column = divmod(i, 3)
        for y in range(6):
            for x in range(4):
                expected[2 + row * 8 + y, 2 + column * 6 + x] = pixels[i, :, y, x].numpy()
    assert np.array_equal(sheet, expected)


def test_grid_zooms_by_repeating_pixels() -> None:
    pixels = some(2, 3, 4, 4)
    small, large = (np.asarray(grid(pixels, 2, zoom=zoom)) for zoom in (1, 3))
    assert np.array_equal(large, small.repeat(3, axis=0).repeat(3, axis=1))


def test_class_sheet_shows_each_class_in_its_row_and_white_where_there_are_too_few() -> None:
    pixels, labels = some(5, 1, 4, 4), torch.tensor([1, 0, 1, 1, 1])
    sheet = class_sheet(pixels, labels, range(3), columns=2, zoom=1)
    white = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    order = torch.stack([pixels[1], white, pixels[0], pixels[2], white, white])
    assert np.array_equal(np.asarray(sheet), np.asarray(grid(order, 2)))


def test_a_saved_picture_reads_back_and_leaves_nothing_else(tmp_path: Path) -> None:
    sheet = grid(some(4, 3, 5, 5), 2)
    save_picture(sheet, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as back:
        assert np.array_equal(np.asarray(back), np.asarray(sheet))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
