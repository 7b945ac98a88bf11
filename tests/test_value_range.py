"""Which values are black and white, against sums by hand."""

import numpy as np
import pytest

from synthkd.core.errors import InputError
from synthkd.images.value_range import Extent, Levels, levels_of, to_bytes

INTEGERS = {
    1: 1, 3: 3, 7: 7, 15: 15, 16: 16, 2: 255, 100: 255, 255: 255, 256: 1023, 1023: 1023,
    1024: 4095, 4095: 4095, 4096: 16383, 16383: 16383, 16384: 65535, 65535: 65535,
}  # fmt: skip


@pytest.mark.parametrize(("largest", "white"), INTEGERS.items())
def test_whole_numbers_have_the_least_depth_that_holds_them(largest: int, white: int) -> None:
    for kind in (np.uint16, np.int32, np.int64, np.float32, np.float64):
        extent = Extent().over(np.array([[0, largest]], kind))
        assert extent == (0, largest, True)
        assert levels_of(extent)[:2] == (0, white)
    assert to_bytes(np.array([0, white], np.uint16), levels_of(extent)).tolist() == [0, 255]


def test_few_grey_levels_that_do_not_reach_black_are_no_evidence() -> None:
    assert levels_of(Extent(7, 7)).white == 255
    assert levels_of(Extent(0, 7)).white == 7


@pytest.mark.parametrize(
    ("values", "black", "white"),
    [
        ([0.0, 0.5, 1.0], 0, 1),
        ([0.1, 0.5], 0, 1),
        ([-1.0, 0.25, 1.0], -1, 1),
        ([-0.3, 0.25, 0.4], -1, 1),
        ([0.5, 200.25], 0, 255),
        ([-1, 1], -1, 1),
        ([-128, 127], -128, 127),
        ([0.0, 1.0], 0, 1),
    ],
)
def test_fractions_and_signs_are_known_by_their_range(values, black, white) -> None:
    assert levels_of(Extent().over(np.array(values)))[:2] == (black, white)


@pytest.mark.parametrize(
    "values",
    [
        [-2.12, 2.64],  # normalised by mean and deviation
        [0.0, 0.0039],  # divided by 255 twice
        [0.5, 2.6],
        [-1024, 3071],  # Hounsfield units
        [0, 70_000],
        [0.5, 300.5],
        [np.nan, 0.5],
        [np.inf, 0.5],
    ],
)
def test_other_values_are_refused_in_one_line_unless_the_user_says_what_they_are(values) -> None:
    extent = Extent().over(np.array(values, np.float64))
    with pytest.raises(InputError) as caught:
        levels_of(extent)
    assert "\n" not in str(caught.value)
    if np.isfinite(values).all():
        assert "--data.range" in str(caught.value)
        assert levels_of(extent, (-3.0, 3.0))[:2] == (-3, 3)


def test_nan_in_one_image_of_many_is_not_forgotten() -> None:
    extent = Extent()
    for values in ([0.1, 0.2], [np.nan, 0.5], [0.3]):
        extent = extent.over(np.array(values))
    with pytest.raises(InputError, match="NaN"):
        levels_of(extent)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, np.float64])
def test_bytes_are_rounded_to_the_nearest_and_cut(kind) -> None:
    values = np.arange(0, 5000, 7).astype(kind)
    found = to_bytes(values, Levels(0, 4095, ""))
    expected = [min(255, int(int(v) * 255 / 4095 + 0.5)) for v in values]
    assert found.dtype == np.uint8
    assert found.tolist() == expected
    turned = to_bytes(values, Levels(0, 4095, ""), inverted=True)
    assert np.abs(turned.astype(int) - (255 - found.astype(int))).max() <= 1


def test_an_array_of_many_pieces_is_turned_as_one() -> None:
    values = np.random.default_rng(0).random((3000, 1500)).astype(np.float32)  # over 4 M values
    found = to_bytes(values, Levels(0, 1, ""))
    assert np.array_equal(found, np.floor(values.astype(np.float64) * 255 + 0.5).astype(np.uint8))
    assert Extent().over(values).whole is False
    assert Extent().over(np.floor(values * 9)).whole is True


def test_bytes_stay_the_same_object() -> None:
    values = np.zeros((4, 4), np.uint8)
    assert to_bytes(values, Levels(0, 255, "")) is values
